//! One-shot services: what one was run for, and whether it must run again. A one-shot whose own text, image and dependencies are those of its
//! last completed run does not run again, not even after a crash or when its container is gone. Pure.

use super::{PlanInput, diff, hash, jobs, serving};
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, ImageIdentity, RunState};
use crate::model::plan::{Action, Change, DiffLine, Strategy};
use crate::model::spec::{MountKind, StackSpec};
use std::collections::{BTreeMap, BTreeSet};

/// The run-once key: the hash of the service and of everything it waits for. `None` while an image is not on the engine yet.
pub fn key(
    stack: &StackSpec,
    service: &ServiceName,
    images: &BTreeMap<ServiceName, ImageIdentity>,
    digest: &dyn Fn(&[u8]) -> String,
) -> Option<String> {
    let spec = stack.services.get(service)?;
    let of = |name: &ServiceName| {
        let id = images.get(name)?.id.as_deref()?;
        Some(format!("{name}={}", hash::spec_hash(stack, name, id, digest)))
    };
    let active = |name: &&ServiceName| stack.services.get(*name).is_some_and(|s| s.active);
    let mut parts = vec![of(service)?];
    for name in spec.depends_on.keys().filter(active) {
        parts.push(of(name)?);
    }
    let mut key = digest(parts.join("\n").as_bytes());
    key.truncate(32);
    Some(key)
}

/// What happens to a one-shot.
pub(super) fn change(
    input: &PlanInput<'_>,
    desired: &StackSpec,
    images: &BTreeMap<ServiceName, ImageIdentity>,
    service: &ServiceName,
) -> Change {
    let spec = &desired.services[service];
    let old = input.current.and_then(|r| r.spec.services.get(service));
    let there = serving(input.observed, service);
    let wanted = key(desired, service, images, input.digest);
    let ran = input.observed.once.get(service);
    let spec_hash = images.get(service).and_then(|i| i.id.as_deref()).map(|id| hash::spec_hash(desired, service, id, input.digest));
    let same = |c: &&ContainerDetail| spec_hash.is_some() && c.labels.get(labels::SPEC) == spec_hash.as_ref();
    let ended_well = |c: &&ContainerDetail| c.state == RunState::Exited && c.exit_code == 0;
    let at_work = |c: &&ContainerDetail| matches!(c.state, RunState::Running | RunState::Restarting);
    let make = |action, diff| Change {
        service: service.clone(),
        action,
        strategy: if action == Action::Unchanged { Strategy::InPlace } else { Strategy::RunOnce },
        expected_loss: super::expected_loss(action, Strategy::RunOnce).into(),
        diff,
    };
    let data = data_there(input, desired, service);
    let ran_for_this = wanted.is_some() && ran == wanted.as_ref() && data;
    // A run from before keys were kept: its container is the only witness.
    let witnessed = ran.is_none() && !there.is_empty() && there.iter().all(|c| same(c) && (ended_well(c) || at_work(c)));
    if ran_for_this || witnessed {
        return make(Action::Unchanged, vec![]);
    }
    let mut lines = diff::diff(old, Some(spec), input.literal_keys, input.hash);
    super::content::image_lines(input, images.get(service), service, there.first().copied(), &mut lines);
    if lines.is_empty() {
        let why = match () {
            () if !data => "its data is new",
            () if ran.is_some() && there.iter().all(same) => "what it waits for changed",
            () => "it has not run to its end",
        };
        lines.push(DiffLine { path: "run_once".into(), from: None, to: Some(why.into()) });
    }
    let change = make(if there.is_empty() { Action::Create } else { Action::Update }, lines);
    match there.iter().any(|c| jobs::at_work(c)) {
        true => Change { expected_loss: "the run at work is ended within its stop grace, then it runs once to its end".into(), ..change },
        false => change,
    }
}

/// Whether the volumes it and its dependencies keep data in exist: on new ones it has not run, whatever is remembered.
fn data_there(input: &PlanInput<'_>, desired: &StackSpec, service: &ServiceName) -> bool {
    let mounted = input.observed.containers.iter().flat_map(|c| &c.mounts).filter_map(|m| m.name.clone());
    let known: BTreeSet<String> = input.observed.volumes.iter().cloned().chain(mounted).collect();
    let names = std::iter::once(service).chain(desired.services[service].depends_on.keys());
    let mounts = names.filter_map(|n| desired.services.get(n)).flat_map(|s| &s.mounts).filter(|m| m.kind == MountKind::Volume);
    let volumes = mounts.filter_map(|m| m.source.as_ref()).filter_map(|key| desired.volumes.get(key)).filter(|v| !v.external);
    volumes.into_iter().all(|v| known.contains(&v.name))
}
