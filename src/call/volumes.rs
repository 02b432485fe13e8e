//! Whose volume it is and which volumes a stack writes: what `backup` and `restore` ask before they touch anything. Ownership is our label plus our
//! registry. Deliberately absent: reading or writing the data.

use super::error::ErrorCode;
use super::{Call, CallError, prepare};
use crate::model::ids::{EngineName, StackName};
use crate::model::labels;
use crate::model::release::Release;
use std::collections::BTreeSet;

/// The stack a backup is of: the named one, or the one the volume belongs to.
///
/// # Errors
/// `InvalidArgument` when neither or both are given, `NotFound` for what is not ours.
pub async fn owner(call: &Call, stack: Option<&StackName>, volume: Option<&EngineName>) -> Result<StackName, CallError> {
    match (stack, volume) {
        (Some(stack), None) => match call.house.store.stack(stack).await? {
            Some(record) => Ok(record.name),
            None => Err(prepare::not_deployed(stack)),
        },
        (None, Some(volume)) => of_volume(call, volume).await,
        _ => Err(CallError::new(ErrorCode::InvalidArgument, "backup takes either stack or volume", "give one of them").field("stack")),
    }
}

async fn of_volume(call: &Call, volume: &EngineName) -> Result<StackName, CallError> {
    let found = call.house.engine.volume(volume).await?;
    let ours = found.as_ref().filter(|v| v.labels.get(labels::INSTANCE).is_some_and(|i| i == call.house.store.instance()));
    if let Some(stack) = ours.and_then(|v| v.labels.get(labels::STACK)).and_then(|s| StackName::new(s.as_str()).ok()) {
        return Ok(stack);
    }
    // One that a restore took the place of is the stack's that keeps it, with our label or without.
    if let Some(kept) = call.house.store.kept(None).await?.into_iter().find(|k| k.place == volume.as_str()) {
        return Ok(kept.stack);
    }
    // A volume without our label may still be one a release declares, e.g. an external one.
    if found.is_some() {
        for record in call.house.store.stacks().await? {
            if let Some(release) = current(call, &record.name).await?
                && release.spec.volumes.values().any(|v| v.name == volume.as_str())
            {
                return Ok(record.name);
            }
        }
    }
    let hint = "call `status` and `backup {stack}`: only volumes of stacks deployed here are backed up";
    Err(CallError::new(ErrorCode::NotFound, format!("no stack of ours has a volume {volume}"), hint).field("volume"))
}

/// The release that serves.
///
/// # Errors
/// The store's.
pub async fn current(call: &Call, stack: &StackName) -> Result<Option<Release>, CallError> {
    let store = &call.house.store;
    match store.stack(stack).await?.and_then(|r| r.current) {
        Some(number) => Ok(store.release(stack, number).await?),
        None => Ok(None),
    }
}

/// Volumes of a stack: those its release declares and those the engine has under our labels, external ones excepted that others own.
///
/// # Errors
/// The engine's.
pub async fn of_stack(call: &Call, stack: &StackName, release: Option<&Release>) -> Result<Vec<EngineName>, CallError> {
    let labelled = call.house.engine.volumes(&super::observe::ours(&call.house, Some(stack))).await?;
    // Restored copies carry our labels too; they are backed up once a release uses them.
    let used = |name: &EngineName| release.is_none_or(|r| r.spec.volumes.values().any(|v| v.name == name.as_str()));
    let mut names: BTreeSet<EngineName> =
        labelled.into_iter().filter(|v| v.labels.contains_key(labels::COMPOSE_VOLUME) || used(&v.name)).map(|v| v.name).collect();
    for volume in release.iter().flat_map(|r| r.spec.volumes.values()) {
        if let Ok(name) = EngineName::new(volume.name.as_str())
            && call.house.engine.volume(&name).await?.is_some()
        {
            names.insert(name);
        }
    }
    // Volumes that a restore took the place of are kept for a person to look at, not backed up again and again.
    for replaced in release.iter().flat_map(|r| r.spec.volumes.values()).filter_map(|v| v.swapped_from.as_deref()) {
        names.retain(|n| n.as_str() != replaced);
    }
    // Anonymous volumes are carried over from release to release and hold data like any other.
    for container in super::observe::details(&call.house, &super::observe::serving(&call.house, Some(stack)).await?).await? {
        let written = container.mounts.into_iter().filter(|m| m.kind == "volume" && m.writable).filter_map(|m| m.name);
        names.extend(written.filter_map(|n| EngineName::new(n).ok()));
    }
    Ok(names.into_iter().collect())
}
