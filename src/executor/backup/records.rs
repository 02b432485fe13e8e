//! Records of snapshots that the repository holds and the state does not: of a repository that was copied here from another host, of a home that was
//! brought back, of a supervisor that was killed between a snapshot and its record. Deliberately absent: removing any.

use super::{BackupError, BackupHouse, Failure, INSTANCE, SnapshotInfo};
use crate::model::ids::SnapshotId;
use crate::store::backup::BackupRecord;
use crate::store::{Store, StoreError};

/// Agent of records made from the repository alone.
pub const FROM_REPOSITORY: &str = "restored";
/// The host of our snapshots is this and the instance.
const HOST: &str = "dockwarden-";

/// The record of a listed snapshot; `None` for one that is not ours.
pub fn of(s: &SnapshotInfo) -> Option<BackupRecord> {
    let volume = s.volume.clone()?;
    let tagged = |key: &str| s.tags.iter().find_map(|t| t.strip_prefix(key)).map(str::to_owned);
    let own = |t: &&String| !["volume=", "stack=", "release=", "operation=", "partial"].iter().any(|k| t.starts_with(k));
    Some(BackupRecord {
        snapshot_id: s.snapshot_id.to_string(),
        stack: s.stack.clone(),
        volume,
        bytes: s.bytes,
        added: 0,
        files: s.files,
        state: s.state.as_str().to_owned(),
        at: s.at,
        agent: FROM_REPOSITORY.to_owned(),
        release: tagged("release=").and_then(|r| r.parse().ok()),
        tags: s.tags.iter().filter(own).cloned().collect(),
        operation: tagged("operation="),
        copies: vec![],
    })
}

/// Whether a listed snapshot is of ours. Another instance's own databases are nothing that this one restores, or thins out with its own; its stacks' data is,
/// where the repository was brought here.
pub(super) fn is_ours(s: &SnapshotInfo, instance: &str) -> bool {
    let theirs = s.volume.as_deref() == Some(INSTANCE) && s.host.strip_prefix(HOST) != Some(instance);
    !theirs && s.host.starts_with(HOST)
}

/// Records what the repository holds and the state does not, and says how many that were. The names of the snapshot files tell whether there are any, so
/// that a repository in which nothing is new is not opened.
///
/// # Errors
/// As for every piece of work, and the store's.
pub async fn record_unknown(store: &Store, house: &BackupHouse) -> Result<usize, BackupError> {
    let failed = |e: StoreError| BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() };
    // Another host is asked for all of it at once.
    let mut unknown = house.remote.is_some();
    for name in names(house)? {
        if let Ok(id) = SnapshotId::new(name)
            && store.backup(&id).await.map_err(failed)?.is_none()
        {
            unknown = true;
            break;
        }
    }
    if !unknown {
        return Ok(0);
    }
    let mut recorded = 0;
    let listed = match house.list().await {
        Err(BackupError::Worker(Failure::NoRepository { .. } | Failure::Key { .. })) if house.remote.is_some() => return Ok(0),
        listed => listed?,
    };
    for s in listed {
        let Some(record) = of(&s).filter(|_| is_ours(&s, store.instance())) else { continue };
        if store.backup(&s.snapshot_id).await.map_err(failed)?.is_none() {
            store.put_backup(&record).await.map_err(failed)?;
            recorded += 1;
        }
    }
    Ok(recorded)
}

fn names(house: &BackupHouse) -> Result<Vec<String>, BackupError> {
    if house.remote.is_some() {
        return Ok(vec![]);
    }
    let directory = house.repo.join("snapshots");
    let entries = match std::fs::read_dir(&directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|e| BackupError::io(&directory, &e))?,
    };
    let mut names = vec![];
    for entry in entries {
        names.extend(entry.map_err(|e| BackupError::io(&directory, &e))?.file_name().into_string());
    }
    Ok(names)
}
