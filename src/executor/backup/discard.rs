//! Data that a restore took the place of goes, once a snapshot was found to hold every byte of it and no container mounts it. A directory gets another name
//! before anything of it is removed, so that a removal that was interrupted is known by it. Deliberately absent: who may, and which snapshot.

use super::acts::Doer;
use super::reach::Devices;
use super::{Around, BackupError, exchange, helper, keep};
use crate::executor::restore;
use crate::executor::worker::Source;
use crate::model::ids::{EngineName, SnapshotId};
use crate::model::observed::MountInfo;
use crate::store::backup::BackupRecord;
use crate::store::kept::KeptRecord;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Differences named in an error.
const SHOWN: usize = 5;

/// Whether a mount is of a volume, or of a directory of the host, a part of it or what it is a part of.
pub fn mounts(devices: &Devices, mount: &MountInfo, place: &str) -> bool {
    if place.starts_with('/') {
        return devices.touches(mount, place);
    }
    mount.name.as_deref() == Some(place)
}

/// Name of a kept directory while it is removed.
pub fn removing(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(restore::REMOVING);
    name.into()
}

fn failed(e: crate::store::StoreError) -> BackupError {
    BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() }
}

/// Container that mounts it, running or not. What a directory lies in is the supervisor's own container's to mount.
async fn user(around: Around<'_>, place: &str) -> Result<Option<String>, BackupError> {
    let devices = Devices::of(around.engine).await?;
    let all = if place.starts_with('/') { around.others().await? } else { around.engine.containers(&[]).await? };
    for summary in all {
        let Some(detail) = around.engine.container(&summary.id).await? else { continue };
        if detail.mounts.iter().any(|m| mounts(&devices, m, place)) {
            return Ok(Some(detail.name));
        }
    }
    Ok(None)
}

async fn unused(around: Around<'_>, place: &str) -> Result<(), BackupError> {
    match user(around, place).await? {
        None => Ok(()),
        Some(container) => Err(BackupError::StillMounted { place: place.to_owned(), container }),
    }
}

/// Compares it with the snapshot, and notes that it is covered.
pub(super) async fn cover(doer: &Doer<'_>, kept: &KeptRecord, host: &str, snapshot: &BackupRecord) -> Result<Value, BackupError> {
    let hands = &doer.hands;
    unused(hands.around(), host).await?;
    let id = SnapshotId::new(snapshot.snapshot_id.as_str())?;
    let mut differences = if kept.is_directory() {
        hands.house.prove(&id, Source::Dir(kept.place.clone().into())).await?
    } else {
        let name = EngineName::new(kept.place.as_str())?;
        let volume = hands.engine.volume(&name).await?.ok_or_else(|| BackupError::NoVolume { volume: name.to_string() })?;
        match helper::host_path(hands, doer.permit, &volume).await? {
            Some(path) => hands.house.prove(&id, Source::Dir(path)).await?,
            None => {
                let spool = helper::download(hands, doer.permit, &helper::Mount::Volume(name)).await?;
                let found = hands.house.prove(&id, Source::Tar(spool.path().to_owned())).await;
                spool.remove()?;
                found?
            }
        }
    };
    if !differences.is_empty() {
        let (place, snapshot) = (kept.place.clone(), snapshot.snapshot_id.clone());
        let count = differences.len();
        differences.truncate(SHOWN);
        let next = if kept.is_directory() {
            "look at it, and remove it on the host when nothing of it is needed".to_owned()
        } else {
            format!("call `backup {{volume: {place}}}` and confirm again")
        };
        return Err(BackupError::NotCovered { place, snapshot, count, differences, next });
    }
    if !doer.store.kept_is_covered(&kept.place, &snapshot.snapshot_id).await.map_err(failed)? {
        return Err(BackupError::SnapshotGoes { place: kept.place.clone(), snapshot: snapshot.snapshot_id.clone() });
    }
    Ok(json!({"covered_by": snapshot.snapshot_id}))
}

/// Removes it; safe to repeat. `compared`: the snapshot that this operation found to hold all of it; without one only what is left of an earlier removal goes.
pub(super) async fn discard(doer: &Doer<'_>, kept: &KeptRecord, host: &str, compared: Option<&str>) -> Result<Value, BackupError> {
    let engine = doer.hands.engine.as_ref();
    unused(doer.hands.around(), host).await?;
    if kept.is_directory() {
        let place = Path::new(&kept.place);
        let going = removing(place);
        // Removes nothing but what the operation that kept it has named.
        restore::remove_beside(&going, &kept.operation).await?;
        if there(place)? {
            compared.ok_or_else(|| BackupError::NotCompared { place: kept.place.clone() })?;
            exchange::rename(place, &going)?;
            restore::remove_beside(&going, &kept.operation).await?;
        }
    } else {
        let name = EngineName::new(kept.place.as_str())?;
        if engine.volume(&name).await?.is_some() {
            compared.ok_or_else(|| BackupError::NotCompared { place: kept.place.clone() })?;
            engine.remove_volume(doer.permit, &name).await?;
        }
    }
    // What nothing else holds any more stays whatever a schedule's numbers say.
    let holds = compared.or(kept.covered.as_deref()).map(|id| (id, keep::KEPT));
    doer.store.drop_kept(&kept.place, holds).await.map_err(failed)?;
    Ok(json!({"removed": kept.place}))
}

fn there(path: &Path) -> Result<bool, BackupError> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => other.map(|_| true).map_err(|e| BackupError::io(path, &e)),
    }
}
