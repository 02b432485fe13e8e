//! Snapshots that a plan brings back: into a new volume under the name of the live one, into a new volume for a service that has one without a name, or into
//! the place of a directory of the host. Whatever cannot be taken into use is refused here, before anything is done. Reads only.

use crate::call::error::ErrorCode;
use crate::call::{Call, CallError, observe, sources, volumes};
use crate::executor::backup::command;
use crate::executor::{places, restore, straight};
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::labels;
use crate::model::plan::{Action, DiffLine, Plan, PlannedExchange, PlannedRestore, Strategy};
use crate::model::spec::{MountKind, StackSpec};
use crate::store::backup::BackupRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Releases looked through.
const LOOKED_THROUGH: usize = 100;

/// What of a plan's data comes out of snapshots.
#[derive(Debug, Clone, Default)]
pub struct Brought {
    /// Into volumes.
    pub restore: Vec<PlannedRestore>,
    /// Into the place of directories.
    pub exchange: Vec<PlannedExchange>,
}

impl Brought {
    /// Services that need new containers for it, whatever they are.
    pub fn anew(&self) -> BTreeSet<ServiceName> {
        let unnamed = self.restore.iter().filter_map(|r| r.service.clone());
        unnamed.chain(self.exchange.iter().flat_map(|e| e.services.iter().cloned())).collect()
    }
}

fn refused(message: String, hint: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::Conflict, message, hint).field("data")
}

/// Where each snapshot goes in the release that would run.
///
/// # Errors
/// `Conflict` when a snapshot is not whole, or of nothing that the release has; `InvalidArgument` for two of one source.
pub async fn snapshots(
    call: &Call,
    stack: &StackName,
    target: &StackSpec,
    project: Option<&str>,
    records: &[BackupRecord],
) -> Result<Brought, CallError> {
    let mut brought = Brought::default();
    if records.is_empty() {
        return Ok(brought);
    }
    let releases = call.house.store.releases(stack, LOOKED_THROUGH).await?;
    for record in records {
        whole(record)?;
        if record.volume.starts_with('/') {
            brought.exchange.push(directory(call, stack, (target, project), record).await?);
            continue;
        }
        // The snapshot may be of a volume that has been swapped since: any release that used it tells its key.
        let specs = releases.iter().map(|r| &r.spec).chain([target]);
        let key =
            specs.flat_map(|s| &s.volumes).find(|(_, v)| v.name == record.volume || v.declared() == record.volume).map(|(k, _)| k.clone());
        let volume = key.as_ref().and_then(|k| target.volumes.get(k)).filter(|v| !v.external);
        let planned = match (key, volume) {
            (Some(key), Some(volume)) => PlannedRestore {
                snapshot_id: record.snapshot_id.clone(),
                source: record.volume.clone(),
                live: volume.name.clone(),
                key,
                service: None,
                into: free_name(call, record).await?,
            },
            _ => match anonymous(call, stack, record).await? {
                Some((service, planned)) if target.services.get(&service).is_some_and(|s| s.active) => planned,
                Some(_) | None => return Err(of_nothing(record)),
            },
        };
        if brought.restore.iter().any(|p| p.live == planned.live) {
            let message = format!("two of the snapshots are of volume {}", planned.live);
            return Err(CallError::new(ErrorCode::InvalidArgument, message, "name one of them").field("data"));
        }
        brought.restore.push(planned);
    }
    Ok(brought)
}

fn whole(record: &BackupRecord) -> Result<(), CallError> {
    if record.state == "complete" {
        return Ok(());
    }
    let message = format!("snapshot {} is {}: not everything of {} is in it", record.snapshot_id, record.state, record.volume);
    Err(refused(message, "take a whole one, or bring this one back beside the live data with `restore` and copy what you need"))
}

fn of_nothing(record: &BackupRecord) -> CallError {
    let message = if record.volume.ends_with(command::ENDS) {
        format!("snapshot {} is the output of a command, and no service has that as its data", record.snapshot_id)
    } else {
        format!("no service of the release that would run writes volume {}, so its data cannot be swapped in", record.volume)
    };
    refused(
        message,
        format!("bring it back beside the live data with `restore {{snapshot_id: {}}}` and copy what you need", record.snapshot_id),
    )
}

async fn free_name(call: &Call, record: &BackupRecord) -> Result<EngineName, CallError> {
    restore::free_name(call.house.engine.as_ref(), record)
        .await
        .map_err(|e| refused(crate::redact::line(&e.to_string(), 300), "remove restored volumes you no longer need"))
}

/// A directory is exchanged only where the release that would run writes it, and where the supervisor can: the snapshot may be older than the file.
async fn directory(
    call: &Call,
    stack: &StackName,
    (target, project): (&StackSpec, Option<&str>),
    record: &BackupRecord,
) -> Result<PlannedExchange, CallError> {
    let host = record.volume.clone();
    let release = volumes::current(call, stack).await?;
    let judged = match &release {
        Some(release) => places::judged(&call.house.store, release).await?,
        None => BTreeMap::new(),
    };
    let beside = || format!("bring it back with `restore {{snapshot_id: {}}}` without `swap`, and copy what you need", record.snapshot_id);
    let writes = |s: &_| sources::directories(&call.house, project, &judged, s).into_iter().any(|d| d.host == host);
    if !target.services.values().any(|s| s.active && writes(s)) {
        return Err(refused(format!("no service of the release that would run writes {host}"), beside()));
    }
    let found = sources::directory_of(&call.house, release.as_ref(), &host).await?;
    let Some(here) = found.here.clone().filter(|h| straight::identity(h).is_ok()) else {
        let hint = "restore it into a volume with `into`, or let the supervisor's container see the directory above it";
        return Err(refused(format!("{host} is a directory of the host that the supervisor does not see"), hint));
    };
    exchangeable(&here, &host, beside)?;
    let mounts = |m: &crate::model::spec::MountSpec| {
        let overlaps = |source: &str| Path::new(source).starts_with(&host) || Path::new(&host).starts_with(source);
        m.kind == MountKind::Bind && m.source.as_deref().is_some_and(overlaps)
    };
    let services = target.services.iter().filter(|(_, s)| s.active && s.mounts.iter().any(mounts)).map(|(n, _)| n.clone()).collect();
    Ok(PlannedExchange { snapshot_id: record.snapshot_id.clone(), host, here, real: found.real, services })
}

/// Two names are exchanged within one file system: what is mounted there by itself cannot be moved.
fn exchangeable(here: &Path, host: &str, beside: impl Fn() -> String) -> Result<(), CallError> {
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev()).ok();
    let above: PathBuf = here.parent().map(Path::to_owned).unwrap_or_default();
    if device(here).is_none() || device(here) != device(&above) {
        return Err(refused(format!("{host} is a mount point of its own: nothing can take its place"), beside()));
    }
    Ok(())
}

/// The service that has the snapshot's volume without a name for it in the file, and the restore into a new one in its place. `None` where the file names
/// the volume, or nobody has it.
///
/// # Errors
/// The engine's and the store's.
pub async fn anonymous(call: &Call, stack: &StackName, record: &BackupRecord) -> Result<Option<(ServiceName, PlannedRestore)>, CallError> {
    let releases = call.house.store.releases(stack, LOOKED_THROUGH).await?;
    let named = releases.iter().flat_map(|r| r.spec.volumes.values()).any(|v| v.name == record.volume || v.declared() == record.volume);
    if named || record.state != "complete" {
        return Ok(None);
    }
    // What took its place before is called after it.
    let after = format!("{}-restored-", record.volume);
    let is = |name: &str| name == record.volume || name.starts_with(&after);
    let serving = observe::serving(&call.house, Some(stack)).await?;
    for container in observe::details(&call.house, &serving).await? {
        let mut mounts = container.mounts.iter().filter(|m| m.kind == "volume" && m.writable).filter_map(|m| m.name.clone());
        let service = container.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
        let (Some(live), Some(service)) = (mounts.find(|n| is(n)), service) else { continue };
        let into = free_name(call, record).await?;
        let (snapshot_id, source) = (record.snapshot_id.clone(), record.volume.clone());
        let planned = PlannedRestore { snapshot_id, source, key: String::new(), service: Some(service.clone()), live, into };
        return Ok(Some((service, planned)));
    }
    Ok(None)
}

/// Refuses where a service's new container would not take its unnamed volume over: it would run beside the old one with a volume of its own.
///
/// # Errors
/// `Conflict` naming the strategy.
pub fn taken_over(plan: &Plan) -> Result<(), CallError> {
    for service in plan.data.restore.iter().filter_map(|r| r.service.as_ref()) {
        let change = plan.changes.iter().find(|c| c.service == *service);
        match change.map(|c| (c.action, c.strategy)) {
            Some((Action::Update, Strategy::Recreate | Strategy::Hold)) => {}
            other => {
                let how =
                    other.map_or("not at all".to_owned(), |(action, strategy)| format!("by {action:?} and {strategy:?}").to_lowercase());
                let message =
                    format!("service {service} would be replaced {how}, and its container would not take the restored volume over");
                let hint = "give the volume a name in the file, or bring the data back beside it with `restore {snapshot_id}` and copy what you need";
                return Err(refused(message, hint));
            }
        }
    }
    Ok(())
}

/// The release uses the restored volumes.
pub fn swap(desired: &mut StackSpec, brought: &Brought) -> Brought {
    let mut done = brought.clone();
    for restore in &mut done.restore {
        if let Some(volume) = desired.volumes.get_mut(&restore.key) {
            let declared = volume.declared().to_owned();
            restore.live = std::mem::replace(&mut volume.name, restore.into.to_string());
            volume.swapped_from = Some(declared);
        }
    }
    done
}

/// Writes into the diff whose data is another afterwards.
pub(super) fn tell(plan: &mut Plan) {
    for change in plan.changes.iter_mut().filter(|c| c.action == Action::Update) {
        for restore in &plan.data.restore {
            let uses =
                plan.desired.services.get(&change.service).is_some_and(|s| {
                    s.mounts.iter().any(|m| m.kind == MountKind::Volume && m.source.as_deref() == Some(restore.key.as_str()))
                });
            if uses || restore.service.as_ref() == Some(&change.service) {
                let path = format!("volumes.{}", if restore.key.is_empty() { &restore.source } else { &restore.key });
                change.diff.push(DiffLine { path, from: Some(restore.live.clone()), to: Some(restore.into.to_string()) });
                change.expected_loss.push_str(&format!(
                    "; what was written since snapshot {} is in volume {} only",
                    short(&restore.snapshot_id),
                    restore.live
                ));
            }
        }
        for exchange in plan.data.exchange.iter().filter(|e| e.services.contains(&change.service)) {
            let (from, to) = ("as it is, kept beside".to_owned(), format!("snapshot {}", short(&exchange.snapshot_id)));
            change.diff.push(DiffLine { path: format!("volumes.{}", exchange.host), from: Some(from), to: Some(to) });
            change.expected_loss.push_str(&format!(
                "; what was written to {} since snapshot {} is beside it only",
                exchange.host,
                short(&exchange.snapshot_id)
            ));
        }
    }
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_not_exchanged_and_a_directory_below_one_is() {
        let beside = || "beside".to_owned();
        let refused = exchangeable(Path::new("/proc"), "/proc", beside).unwrap_err();
        assert!(refused.message.contains("mount point of its own") && refused.hint == "beside", "{refused:?}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        exchangeable(&dir.path().join("data"), "/srv/data", beside).unwrap();
        assert!(exchangeable(&dir.path().join("gone"), "/srv/gone", beside).is_err());
    }
}
