//! How often the engine has restarted a container lately. Its own count goes back to nothing only when somebody starts the container by hand, so a service that
//! fails once a week would be called a crash loop for ever after some weeks. Pure.

use crate::model::ids::EngineName;
use crate::model::observed::ContainerDetail;
use crate::supervisor::policy;
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;

/// How long a restart counts. The engine's own pauses grow to a minute: a loop has enough of them in this.
pub(super) const WINDOW: TimeDelta = TimeDelta::minutes(2 * policy::WINDOW.num_minutes());

/// What each container's count was when its window began.
#[derive(Debug, Default)]
pub(super) struct Restarts(BTreeMap<EngineName, (u64, DateTime<Utc>)>);

impl Restarts {
    /// Restarts of each container within the window. Of one that was never looked at they all count when its release is young, else none.
    pub(super) fn lately(&mut self, containers: &[ContainerDetail], young: bool, now: DateTime<Utc>) -> BTreeMap<EngineName, u64> {
        let mut out = BTreeMap::new();
        for c in containers {
            let base = self.0.entry(c.id.clone()).or_insert((if young { 0 } else { c.restart_count }, now));
            // A lower count: it was started by hand. Later than now: the clock was set back.
            if c.restart_count < base.0 || now - base.1 >= WINDOW || base.1 > now {
                *base = (c.restart_count, now);
            }
            out.insert(c.id.clone(), c.restart_count - base.0);
        }
        // Those of other stacks are not here; what was not seen for long has gone.
        self.0.retain(|id, (_, since)| out.contains_key(id) || now - *since < WINDOW);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_engine_restarted_lately_is_a_loop() {
        let (mut known, id) = (Restarts::default(), EngineName::new("c1").expect("valid"));
        let at = |minutes: i64| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::minutes(minutes);
        let mut of = |count: u64, young: bool, minutes: i64| {
            let c = ContainerDetail { restart_count: count, ..ContainerDetail::running("c1", "c1", "web:1") };
            known.lately(&[c], young, at(minutes))[&id]
        };
        assert_eq!(of(5, false, 0), 0, "five in all its life");
        assert_eq!((of(6, false, 1), of(10, false, 2)), (1, 5), "five more within minutes");
        assert_eq!(of(11, false, 20), 0, "a new window");
        assert_eq!(of(0, false, 21), 0, "started by hand");
        assert_eq!(of(3, false, 22), 3);
        let young = ContainerDetail { restart_count: 5, ..ContainerDetail::running("c2", "c2", "web:1") };
        assert_eq!(
            known.lately(&[young], true, at(23)).values().copied().collect::<Vec<_>>(),
            [5],
            "of a release just made all are lately"
        );
    }
}
