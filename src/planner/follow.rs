//! `depends_on.<other>.restart`: what is restarted because another service is. Pure.

use crate::model::ids::ServiceName;
use crate::model::plan::{Action, Change, DiffLine, Strategy};
use crate::model::spec::{ServiceSpec, StackSpec};

/// Restarts what asks for it and would stay as it is: its dependency gets a new container. One restart leads to the next along the levels.
pub(super) fn changed(stack: &StackSpec, changes: &mut [Change]) {
    for at in 0..changes.len() {
        let Some(spec) = stack.services.get(&changes[at].service).filter(|_| changes[at].action == Action::Unchanged) else { continue };
        let renewed = |c: &Change| c.strategy == Strategy::Follow || (c.action == Action::Update && c.strategy != Strategy::RunOnce);
        let Some(cause) = changes.iter().find(|c| renewed(c) && asked(spec, &c.service)) else { continue };
        let line = DiffLine { path: format!("depends_on.{}.restart", cause.service), from: None, to: Some("its container is new".into()) };
        let loss = super::expected_loss(Action::Restart, Strategy::Follow).into();
        changes[at] =
            Change { action: Action::Restart, strategy: Strategy::Follow, expected_loss: loss, diff: vec![line], ..changes[at].clone() };
    }
}

/// Written, and not only implied by a link: a link follows the name by itself.
fn asked(spec: &ServiceSpec, on: &ServiceName) -> bool {
    spec.depends_on.get(on).is_some_and(|d| d.restart) && !spec.written.implied_dependencies.contains(on.as_str())
}

/// Whether a service restarts when another one is restarted in place: also one that lives in its namespaces, which end with it.
pub(super) fn restarted(stack: &StackSpec, service: &ServiceName, with: &ServiceName) -> bool {
    let Some(spec) = stack.services.get(service) else { return false };
    if spec.shares(with) || asked(spec, with) {
        return true;
    }
    // Bounded: `levels` refused rings before.
    spec.depends_on.keys().any(|between| asked(spec, between) && restarted(stack, between, with))
}
