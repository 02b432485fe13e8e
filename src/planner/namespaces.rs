//! Services that live in a namespace of another one (`network_mode: service:x`, and so on): their containers are bound to the very containers of that one,
//! so they change with it and after it, and neither is handed over while the other runs. Pure.

use super::{Observed, expected_loss, serving};
use crate::model::ids::ServiceName;
use crate::model::plan::{Action, Change, DiffLine, Strategy};
use crate::model::spec::StackSpec;

/// Makes what shares a namespace follow what it shares it with. The levels have put it later already: sharing is a dependency.
pub(super) fn follow(stack: &StackSpec, observed: &Observed, changes: &mut [Change]) {
    let started = |c: &Change| c.action == Action::Restart && c.diff.iter().any(|l| l.path == "state");
    let renewed = |c: &Change| matches!(c.action, Action::Create | Action::Update) || started(c);
    // A chain of them is as long as there are services.
    for _ in 0..changes.len() {
        let hosts: Vec<ServiceName> = changes.iter().filter(|c| renewed(c)).map(|c| c.service.clone()).collect();
        let before = changes.to_vec();
        for change in changes.iter_mut() {
            let Some(spec) = stack.services.get(&change.service).filter(|s| s.active) else { continue };
            let Some(host) = hosts.iter().find(|h| spec.shares(h)) else { continue };
            let there = !serving(observed, &change.service).is_empty();
            if !there || matches!(change.action, Action::Create | Action::Remove) || change.strategy == Strategy::RunOnce {
                continue;
            }
            if change.diff.is_empty() {
                change.diff =
                    vec![DiffLine { path: "namespace".into(), from: Some(format!("of {host}")), to: Some(format!("of the new {host}")) }];
            }
            recreated(change);
        }
        let shared: Vec<ServiceName> = changes.iter().map(|c| c.service.clone()).filter(|s| sharers(stack, s)).collect();
        for change in changes.iter_mut().filter(|c| c.action == Action::Update && shared.contains(&c.service)) {
            // The new one must be there when what lives in it starts.
            if change.strategy == Strategy::Handover {
                recreated(change);
            }
        }
        if *changes == before[..] {
            return;
        }
    }
}

fn sharers(stack: &StackSpec, of: &ServiceName) -> bool {
    stack.services.values().any(|s| s.active && s.shares(of))
}

fn recreated(change: &mut Change) {
    (change.action, change.strategy) = (Action::Update, Strategy::Recreate);
    change.expected_loss = expected_loss(Action::Update, Strategy::Recreate).into();
}
