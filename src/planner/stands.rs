//! Which containers of a service stand for it. Pure.

use super::{Observed, serving};
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, RunState};
use std::collections::BTreeMap;

/// Of the containers of a service those that stand for it: those that are up, and of a number of which none is, the newest. What was stopped and kept
/// beside them stands for nothing: started as well, it would be a second writer.
pub fn live<'a>(observed: &'a Observed, service: &ServiceName) -> Vec<&'a ContainerDetail> {
    standing_for(serving(observed, service), |c| (&c.labels, c.state))
}

/// As [`live`], over any view of the serving containers of one service.
pub fn standing_for<'a, T>(all: Vec<&'a T>, show: impl Fn(&'a T) -> (&'a BTreeMap<String, String>, RunState)) -> Vec<&'a T> {
    let up = |c: &'a T| matches!(show(c).1, RunState::Running | RunState::Restarting | RunState::Paused);
    let number = |c: &'a T| show(c).0.get(labels::NUMBER);
    // Ids of operations are ULIDs: they sort by time.
    let age = |c: &'a T| {
        let labels = show(c).0;
        (labels.get(labels::RELEASE).and_then(|r| r.parse::<u32>().ok()), labels.get(labels::OPERATION))
    };
    let stands = |(i, c): (usize, &'a T)| {
        let mut same = all.iter().copied().enumerate().filter(|(j, o)| *j != i && number(o) == number(c));
        up(c) || !same.any(|(j, o)| up(o) || (age(o), j) > (age(c), i))
    };
    all.iter().copied().enumerate().filter(|pair| stands(*pair)).map(|(_, c)| c).collect()
}
