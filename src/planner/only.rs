//! Plans about one service: nothing else is touched, whatever it has drifted to, and nothing older is put on newer data. Pure.

use super::{PlanError, PlanInput, live};
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::ContainerDetail;
use crate::model::plan::{Action, Change, Strategy};

/// A container of a later release than the current one was kept because it changed the data: one of the current release must not see that data.
pub(super) fn not_newer(input: &PlanInput<'_>, service: &ServiceName) -> Result<(), PlanError> {
    let current = input.current.map_or(0, |r| r.number);
    let release = |c: &ContainerDetail| c.labels.get(labels::RELEASE).and_then(|r| r.parse::<u32>().ok()).unwrap_or(0);
    match live(input.observed, service).into_iter().map(release).find(|kept| *kept > current) {
        Some(kept) => Err(PlanError::Impossible(format!(
            "service {service} runs as release {kept} left it, on data that release changed, and the stack is at release {current}; `deploy` or `rollback` decides which one stays"
        ))),
        None => Ok(()),
    }
}

/// What one service's change means for the stack: nothing for the others, whatever they have drifted to.
pub(super) fn changes(changes: Vec<Change>, service: &ServiceName) -> Vec<Change> {
    let others = |c: Change| match c.service == *service {
        true => c,
        false => Change { action: Action::Unchanged, strategy: Strategy::InPlace, expected_loss: "none".into(), diff: vec![], ..c },
    };
    changes.into_iter().filter(|c| c.action != Action::Remove).map(others).collect()
}
