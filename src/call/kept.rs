//! Data kept since a restore took its place: what `backups` lists, what reminds of it, and what must hold before it may go. Nothing ever removes it but a
//! call that names it. Deliberately absent: removing it, which is an operation (`executor::backup`).

use super::error::ErrorCode;
use super::{Call, CallError, compose_files, data_plan, observe};
use crate::executor::backup::{Devices, keep, mounts};
use crate::model::config::OwnContainer;
use crate::model::ids::{EngineName, SnapshotId, StackName};
use crate::model::observed::ContainerDetail;
use crate::store::backup::BackupRecord;
use crate::store::kept::KeptRecord;
use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// After so long kept data is called to mind: long enough to have seen a week's and a weekend's work on what took its place.
const REMIND_DAYS: i64 = 14;
/// Snapshots of one source looked through.
const LOOKED_THROUGH: usize = 1000;

/// Data that was live until a restore took its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Kept {
    /// The volume, or the directory as the supervisor sees it: for `restore {confirm}`.
    pub place: String,
    /// Stack.
    pub stack: String,
    /// What it was live as.
    pub source: String,
    /// Since when nothing of the stack writes it.
    pub since: DateTime<Utc>,
    /// Release that took its place.
    pub release: u32,
    /// Operation of that release.
    pub operation_id: String,
    /// Snapshot that is in its place.
    pub snapshot_id: String,
    /// Bytes, as far as that can be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Kept for more than 14 days.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub old: bool,
}

impl Kept {
    /// One line for a person.
    pub fn line(&self) -> String {
        let size = self.bytes.map(|b| format!(", {b} bytes")).unwrap_or_default();
        let old = if self.old { ", for long" } else { "" };
        format!(
            "KEPT{old}: {} of {} since {}{size} (release {} has a snapshot in its place; restore {{confirm}} lets it go)",
            self.place,
            self.stack,
            self.since.format("%Y-%m-%dT%H:%M:%SZ"),
            self.release
        )
    }
}

/// What is kept of one stack or of all, oldest first.
///
/// # Errors
/// The store's.
pub async fn list(call: &Call, stack: Option<&StackName>) -> Result<Vec<Kept>, CallError> {
    let mut out = vec![];
    for record in call.house.store.kept(stack).await? {
        let bytes = size(call, &record).await;
        out.push(Kept {
            bytes,
            old: call.now - record.since > TimeDelta::days(REMIND_DAYS),
            place: record.place,
            stack: record.stack.to_string(),
            source: record.source,
            since: record.since,
            release: record.release,
            operation_id: record.operation.to_string(),
            snapshot_id: record.snapshot_id,
        });
    }
    Ok(out)
}

/// A listing does not fail for a volume that cannot be looked at.
async fn size(call: &Call, record: &KeptRecord) -> Option<u64> {
    let path = if record.is_directory() {
        PathBuf::from(&record.place)
    } else {
        let volume = call.house.engine.volume(&EngineName::new(record.place.as_str()).ok()?).await.ok()??;
        (volume.driver == "local" && volume.options.is_empty()).then(|| PathBuf::from(volume.mountpoint))?
    };
    // Walks a disk that may be slow.
    let walked = tokio::task::spawn_blocking(move || data_plan::bytes_below(&path, u64::MAX)).await.ok()??;
    (walked < u64::MAX).then_some(walked)
}

/// Whether somebody has removed it, so that only our record of it is left.
async fn gone(call: &Call, kept: &KeptRecord) -> Result<bool, CallError> {
    if !kept.is_directory() {
        let Ok(name) = EngineName::new(kept.place.as_str()) else { return Ok(true) };
        return Ok(call.house.engine.volume(&name).await?.is_none());
    }
    let path = Path::new(&kept.place);
    let missing = std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    // Not seen from here is not gone.
    Ok(missing && path.parent().is_some_and(Path::is_dir))
}

/// Where it is as the engine's host names it.
pub fn host(call: &Call, kept: &KeptRecord) -> String {
    match kept.is_directory() {
        true => compose_files::on_host(&call.house.config, Path::new(&kept.place)).display().to_string(),
        false => kept.place.clone(),
    }
}

/// What is kept at a place.
///
/// # Errors
/// `NotFound` naming what is kept.
pub async fn at(call: &Call, place: &str) -> Result<KeptRecord, CallError> {
    let all = call.house.store.kept(None).await?;
    let shown: Vec<&str> = all.iter().map(|k| k.place.as_str()).take(10).collect();
    let hint = if shown.is_empty() {
        "no data is kept: `restore {swap: true}` and `rollback` with snapshots keep what was live before".to_owned()
    } else {
        format!("`backups` lists what is kept: {}", crate::redact::line(&shown.join(", "), 400))
    };
    all.iter().find(|k| k.place == place.trim_end_matches('/')).cloned().ok_or_else(|| {
        let message = format!("nothing is kept at {}", crate::redact::line(place, 200));
        CallError::new(ErrorCode::NotFound, message, hint).field("confirm")
    })
}

/// Refuses where a container mounts it, running or not. What holds all of it: the snapshot, to be compared before anything goes; `None` where nothing is at
/// its place any more: its removal was interrupted, or somebody has removed it. An earlier comparison counts for nothing: it may have been written since.
///
/// # Errors
/// `Conflict` with the next step.
pub async fn releasable(call: &Call, kept: &KeptRecord) -> Result<Option<BackupRecord>, CallError> {
    let refused = |message: String, hint: String| Err(CallError::new(ErrorCode::Conflict, message, hint).field("confirm"));
    let place = host(call, kept);
    let mut all = call.house.engine.containers(&[]).await?;
    // What a directory lies in is the supervisor's own container's to mount.
    let own = |id: &EngineName| matches!(&call.house.config.own_container, OwnContainer::Is(own) if own == id);
    all.retain(|c| !(kept.is_directory() && own(&c.id)));
    let devices = Devices::of(call.house.engine.as_ref()).await?;
    let uses = |c: &ContainerDetail| c.mounts.iter().any(|m| mounts(&devices, m, &place));
    if let Some(user) = observe::details(&call.house, &all).await?.into_iter().find(uses) {
        let name = crate::redact::line(&user.name, 80);
        return refused(
            format!("container {name} mounts {place}: it is no data that only waits"),
            format!("remove {name} if it is not needed, then confirm again"),
        );
    }
    if gone(call, kept).await? {
        return Ok(None);
    }
    let whole = |b: &BackupRecord| b.state == "complete" && SnapshotId::new(b.snapshot_id.as_str()).is_ok();
    let (source, next) = if kept.is_directory() {
        let next = format!("look at {place}, take what you need, and remove it on the host when nothing of it is needed");
        (kept.source.as_str(), next)
    } else {
        (kept.place.as_str(), format!("call `backup {{volume: {}}}` first, then confirm again", kept.place))
    };
    let taken = call.house.store.backups(Some(&kept.stack), Some(source), LOOKED_THROUGH).await?;
    // Of a directory the others are of what was before, or of what took its place.
    match taken.into_iter().find(|b| whole(b) && (!kept.is_directory() || keep::covers(kept, b))) {
        Some(found) => Ok(Some(found)),
        None => refused(format!("no whole snapshot of {place} is recorded: what is in it would be lost"), next),
    }
}
