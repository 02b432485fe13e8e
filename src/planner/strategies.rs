//! What `canary`, `blue_green` and `alias` ask of a service, and what they mean for others. Pure.

use super::front::{Standing, standing, update};
use super::{Observed, PlanError, PlanInput, one_shot, serving};
use crate::model::ids::ServiceName;
use crate::model::plan::{Action, Change, DiffLine, Strategy};
use crate::model::spec::{ServiceSpec, StackSpec};
use std::collections::BTreeSet;

/// Most steps of a canary, and longest watch of one in seconds.
const MAX_STEPS: usize = 10;
const MAX_BAKE_S: u64 = 3600;

/// Refuses what a strategy cannot do for a service, naming it.
pub(super) fn check(stack: &StackSpec, service: &ServiceName, spec: &ServiceSpec, observed: &Observed, new: bool) -> Result<(), PlanError> {
    let Some(strategy) = spec.settings.strategy else { return Ok(()) };
    let name = serde_json::to_value(strategy).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let refuse = |why: &str| Err(PlanError::Impossible(format!("service {service} cannot have strategy {name}: {why}")));
    match strategy {
        Strategy::Start | Strategy::RunOnce | Strategy::InPlace | Strategy::Follow => {
            return refuse(
                "the planner chooses it where nothing is replaced; ask for front, hold, canary, blue_green, alias, handover or recreate",
            );
        }
        Strategy::Handover | Strategy::Recreate | Strategy::Front | Strategy::Hold => return Ok(()),
        Strategy::Canary | Strategy::BlueGreen | Strategy::Alias => {}
    }
    let carries = serving(observed, service).iter().any(|c| c.mounts.iter().any(|m| m.kind == "volume" && m.writable));
    if spec.single_writer() || (carries && !spec.settings.concurrent) {
        return refuse(
            "it writes data, and old and new would run side by side; ask for hold, or set x-dockwarden.concurrent: true if two copies are safe",
        );
    }
    if one_shot(stack, service) {
        return refuse("it runs once to its end");
    }
    if strategy == Strategy::Alias {
        if spec.network_mode.is_some() {
            return refuse("it has no network of the stack that could know it by name");
        }
        if spec.ports.iter().any(|p| p.published.is_some()) {
            return refuse("old and new cannot hold the same host port; ask for front, or leave it out for handover");
        }
        if spec.networks.values().any(|n| n.ipv4_address.is_some() || n.ipv6_address.is_some()) {
            return refuse("its fixed address can be held by one container only");
        }
    }
    if new && strategy == Strategy::BlueGreen && open_networks(stack, spec).next().is_some() && meeting(stack).is_empty() {
        return refuse(
            "the services of this strategy share no network, and on the one where they start together each would reach the others; \
             put them on one network of the stack, or ask for front",
        );
    }
    let canary = spec.settings.canary.clone().unwrap_or_default();
    let growing = canary.weights.windows(2).all(|w| w[0] < w[1]) && canary.weights.iter().all(|w| (1..=99).contains(w));
    if strategy == Strategy::Canary && (canary.weights.is_empty() || canary.weights.len() > MAX_STEPS || !growing) {
        return refuse("canary.weights are 1 to 10 growing shares of 1 to 99 percent");
    }
    if strategy == Strategy::Canary && canary.bake_s > MAX_BAKE_S {
        return refuse("canary.bake_s is at most 3600");
    }
    Ok(())
}

/// Networks of a service that are not internal: one that has no way out of the host's networks must not get one by a network of ours.
fn open_networks<'a>(stack: &'a StackSpec, spec: &'a ServiceSpec) -> impl Iterator<Item = &'a str> {
    spec.networks.keys().map(String::as_str).filter(|key| stack.networks.get(*key).is_some_and(|n| !n.internal))
}

/// Networks on which all `blue_green` services meet that may stand on a network of their own: there they reach nothing that they do not reach anyway.
pub fn meeting(stack: &StackSpec) -> BTreeSet<&str> {
    let green = stack.services.values().filter(|s| s.active && s.settings.strategy == Some(Strategy::BlueGreen));
    let mut each = green.map(|s| open_networks(stack, s).collect::<BTreeSet<_>>()).filter(|networks| !networks.is_empty());
    let first = each.next().unwrap_or_default();
    each.fold(first, |shared, networks| shared.intersection(&networks).copied().collect())
}

/// Refuses tests and hooks of a stack that name what is not there, or would write beside what runs.
pub(super) fn stack_settings(stack: &StackSpec) -> Result<(), PlanError> {
    let s = &stack.settings;
    let (pre, post) = (s.hooks.pre.iter().map(|h| ("hooks.pre", &h.service)), s.hooks.post.iter().map(|h| ("hooks.post", &h.service)));
    for (key, service) in s.smoke.iter().map(|t| ("smoke", &t.service)).chain(pre).chain(post) {
        let refuse = |why: &str| Err(PlanError::Impossible(format!("x-dockwarden.{key} names service {service}, {why}")));
        match stack.services.get(service).filter(|s| s.active) {
            None => return refuse("which the file does not have or does not run"),
            Some(_) if key != "hooks.pre" && one_shot(stack, service) => {
                return refuse("which runs once to its end: nothing runs in it then");
            }
            Some(spec) if key == "hooks.pre" && spec.single_writer() => {
                return refuse("which writes data while the hook would run beside it; write it as a hook of the service itself");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The course of a canary in words.
pub(super) fn canary(spec: &ServiceSpec) -> String {
    let c = spec.settings.canary.clone().unwrap_or_default();
    let shares: Vec<String> = c.weights.iter().map(u32::to_string).collect();
    format!(
        "the new version gets {} % of new connections, each share watched for {} s; a failing one loses what it got",
        shares.join(", then "),
        c.bake_s
    )
}

/// Services of strategy `blue_green` are replaced together: those that would stay are made anew with the first that changes.
pub(super) fn together(stack: &StackSpec, input: &PlanInput<'_>, changes: &mut [Change]) {
    let cause = changes.iter().find(|c| c.action == Action::Update && c.strategy == Strategy::BlueGreen).map(|c| c.service.clone());
    let Some(cause) = cause else { return };
    for change in changes.iter_mut().filter(|c| matches!(c.action, Action::Unchanged | Action::Scale | Action::Restart)) {
        let Some(spec) = stack.services.get(&change.service).filter(|s| s.settings.strategy == Some(Strategy::BlueGreen)) else { continue };
        let standing: Standing = standing(stack, &change.service, input.observed, input.digest);
        let (strategy, expected_loss) = update(spec, false, standing, false);
        change.diff.push(DiffLine { path: "blue_green".into(), from: None, to: Some(format!("replaced together with {cause}")) });
        (change.action, change.strategy, change.expected_loss) = (Action::Update, strategy, expected_loss);
    }
}
