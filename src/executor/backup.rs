//! Backups of volumes: what a backup needs (`BackupContext`), and `backup_volumes`, which reads each volume from the host where that is
//! proven to be the same data, otherwise through the engine, while its writers are held still if asked. Data goes into one restic-format
//! repository through the worker process (`BackupHouse`). Deliberately absent: schedules, retention, policy.

pub(crate) mod helper;
pub(crate) mod house;
mod quiesce;

pub use helper::{EMPTY_IMAGE, HELPER_LABEL};
pub use house::{BackupHouse, BackupRequest};
pub use quiesce::{Quiesce, Writer, resume, writers};

pub use super::worker::{Failure, Progress, ProgressSink, RestoreReport, SnapshotInfo, SnapshotReport, SnapshotState};

use super::worker::Source;
use crate::engine::{Engine, EngineError};
use crate::gate::Permit;
use crate::model::ids::{EngineName, InvalidName, StackName};
use crate::model::observed::VolumeInfo;
use crate::store::backup::BackupRecord;
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a backup or restore was not done, with what to do next.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The worker answered that it could not.
    #[error(transparent)]
    Worker(#[from] Failure),
    /// The worker could not be started, or ended without an answer.
    #[error(
        "the backup worker {what}: {detail}; the data is untouched, no snapshot was recorded; try again, and see the supervisor's log if it happens twice"
    )]
    WorkerLost {
        /// What happened.
        what: &'static str,
        /// Exit status and the end of its error output.
        detail: String,
    },
    /// The time limit.
    #[error("the backup worker was stopped after {after:?}: raise the time limit of backups, or split the volume")]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The key file cannot be made or read.
    #[error("backup key {path}: {detail}")]
    Key {
        /// Which file.
        path: String,
        /// Cause.
        detail: String,
    },
    /// A file of ours could not be written.
    #[error("{path}: {detail}; check space and permissions there")]
    Io {
        /// Where.
        path: String,
        /// Cause.
        detail: String,
    },
    /// The engine said no.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The snapshot was taken and could not be recorded.
    #[error("snapshot {snapshot} was taken but not recorded: {cause}; `backups` will not show it, restic does")]
    Unrecorded {
        /// Its id.
        snapshot: String,
        /// Cause.
        cause: StoreError,
    },
    /// No such volume.
    #[error("there is no volume {volume} on the engine; `status` names the volumes of a stack")]
    NoVolume {
        /// Which.
        volume: String,
    },
    /// The target of a restore holds data.
    #[error("volume {volume} is not empty: a restore never overwrites; leave `into` out to get a new volume, or name one that is empty")]
    TargetNotEmpty {
        /// Which.
        volume: String,
    },
    /// The target of a restore is the source.
    #[error("volume {volume} is the one the snapshot was taken of: a restore goes beside the live data; leave `into` out")]
    TargetIsSource {
        /// Which.
        volume: String,
    },
    /// Writers could not be held still.
    #[error("container {container} could not be {verb} before the backup: {cause}; nothing was read, everything runs again")]
    NotQuiet {
        /// Which.
        container: String,
        /// `paused` or `stopped`.
        verb: &'static str,
        /// Cause.
        cause: EngineError,
    },
    /// Writers could not be set going again.
    #[error(
        "after the backup these containers could not be resumed: {containers}; unpause or start them (`restart`), their service is down"
    )]
    NotResumed {
        /// Names with causes.
        containers: String,
    },
    /// A stored name is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl BackupError {
    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), detail: error.to_string() }
    }
}

/// What backup and restore work with.
#[derive(Debug, Clone)]
pub struct BackupContext {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Where snapshots are recorded.
    pub store: Store,
    /// The repository.
    pub house: BackupHouse,
    /// Instance id of the home; labels everything made here.
    pub instance: String,
}

/// What moves data, without what records it.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) house: BackupHouse,
    pub(crate) instance: String,
}

impl BackupContext {
    pub(crate) fn hands(&self) -> Hands {
        Hands { engine: self.engine.clone(), house: self.house.clone(), instance: self.instance.clone() }
    }
}

/// Who asked for a backup, and of which release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupReason {
    /// Stack the volumes belong to.
    pub stack: Option<StackName>,
    /// Agent that asked.
    pub agent: String,
    /// Release that runs.
    pub release: Option<u32>,
    /// Further tags of the snapshots, e.g. `pre-update`; no commas.
    pub tags: Vec<String>,
}

/// Backs up volumes one after the other and records each snapshot. Containers that write one of them are paused or stopped first when
/// `quiesce` says so (the caller journals that with `writers`, and calls `resume` when it takes over an interrupted operation), and always
/// set going again: on error, on cancellation, and before this returns.
///
/// # Errors
/// The first volume that fails ends the run; snapshots taken before it stay recorded. `NotResumed` comes before every other error.
pub async fn backup_volumes(
    ctx: &BackupContext,
    permit: &Permit,
    reason: &BackupReason,
    volumes: &[EngineName],
    quiesce: Quiesce,
    now: DateTime<Utc>,
    progress: ProgressSink,
) -> Result<Vec<BackupRecord>, BackupError> {
    ctx.house.ensure().await?;
    let held = quiesce::hold(&ctx.engine, permit, volumes, quiesce).await?;
    let result = all(ctx, permit, reason, volumes, now, progress).await;
    held.release().await?;
    result
}

async fn all(
    ctx: &BackupContext,
    permit: &Permit,
    reason: &BackupReason,
    volumes: &[EngineName],
    now: DateTime<Utc>,
    progress: ProgressSink,
) -> Result<Vec<BackupRecord>, BackupError> {
    let hands = ctx.hands();
    let mut records = Vec::new();
    for name in volumes {
        let volume = ctx.engine.volume(name).await?.ok_or_else(|| BackupError::NoVolume { volume: name.to_string() })?;
        let report = snapshot(&hands, permit, reason, &volume, progress.clone()).await?;
        let record = BackupRecord {
            snapshot_id: report.snapshot_id.to_string(),
            stack: reason.stack.as_ref().map(ToString::to_string),
            volume: name.to_string(),
            bytes: report.bytes,
            added: report.added,
            files: report.files,
            state: report.state.as_str().to_owned(),
            at: now,
            agent: reason.agent.clone(),
            release: reason.release,
        };
        if report.state == SnapshotState::Partial {
            tracing::error!(volume = %name, snapshot = %report.snapshot_id, unreadable = ?report.unreadable, "the backup is partial");
        }
        ctx.store.put_backup(&record).await.map_err(|cause| BackupError::Unrecorded { snapshot: record.snapshot_id.clone(), cause })?;
        records.push(record);
    }
    Ok(records)
}

pub(crate) async fn snapshot(
    ctx: &Hands,
    permit: &Permit,
    reason: &BackupReason,
    volume: &VolumeInfo,
    progress: ProgressSink,
) -> Result<SnapshotReport, BackupError> {
    let request = |path: PathBuf| BackupRequest {
        path,
        volume: volume.name.clone(),
        stack: reason.stack.clone(),
        instance: ctx.instance.clone(),
        tags: reason.tags.clone(),
        progress: progress.clone(),
    };
    if let Some(path) = helper::host_path(ctx, permit, volume).await? {
        return ctx.house.backup_dir(request(path)).await;
    }
    let spool = helper::download(ctx, permit, &volume.name).await?;
    let report = ctx.house.backup(request(spool.path().to_owned()), Source::Tar(spool.path().to_owned())).await;
    spool.remove()?;
    report
}

#[cfg(test)]
pub(crate) fn test_permit() -> Permit {
    use crate::gate::{CallFacts, Decision, permit};
    use crate::model::ids::CallId;
    use crate::model::verdict::Verdict;
    let facts = CallFacts {
        agent: "tester".into(),
        tool: "backup".into(),
        mutates: true,
        preview: false,
        stack: None,
        environment: None,
        service: None,
    };
    let decision = Decision { verdict: Verdict::Allow, findings: Vec::new(), limits: Vec::new(), approval: None, hint: None };
    permit(&CallId::new("call-1").expect("a valid id"), &facts, &decision, Verdict::Allow, &[], false).expect("allowed")
}
