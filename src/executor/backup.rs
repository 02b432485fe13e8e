//! Backups of volumes: each is read from the host where that is proven to be the same data, otherwise through the engine, while its writers are held
//! still if asked (`quiesce`). Data goes into one restic-format repository (`BackupHouse`), through a port (`BackupStore`). `acts` are the journaled pieces,
//! `operation` runs them as a durable operation. Deliberately absent: schedules, policy.

pub(crate) mod acts;
pub mod around;
pub mod command;
pub mod copies;
pub mod definition;
mod discard;
pub mod drill;
pub(crate) mod exchange;
pub mod export;
#[cfg(test)]
pub(crate) mod fake;
pub mod forget;
pub(crate) mod helper;
pub(crate) mod house;
mod job;
pub mod keep;
mod operation;
mod port;
mod quiesce;
pub(crate) mod reach;
pub mod records;
pub(crate) mod room;

pub use acts::{DataAct, INSTANCE};
pub use around::Around;
pub use command::ServiceCommands;
pub use copies::SecondCopy;
pub use discard::{mounts, removing};
pub use forget::{ForgetPlan, Forgotten};
pub use helper::{EMPTY_IMAGE, HELPER_LABEL};
pub use house::{BackupHouse, BackupRequest, WorkerProcess};
pub use job::{BackupJob, DataJob, DataResult, Directory, Keeping, Silent};
pub use operation::{STILL_HELD, interrupted};
pub use port::BackupStore;
pub use quiesce::{Quiesce, Writer, resume, writers};
pub use reach::Devices;

pub use super::worker::{
    CheckReport, CopyReport, Failure, PlainReport, Progress, ProgressSink, Remote, RestoreReport, SnapshotInfo, SnapshotReport,
    SnapshotState, Trouble,
};

use super::worker::Source;
use crate::engine::{Engine, EngineError};
use crate::gate::Permit;
use crate::model::config::OwnContainer;
use crate::model::ids::{InvalidName, OperationId, StackName};
use crate::model::observed::VolumeInfo;
use crate::model::operation::{Evidence, Operation, OperationState};
use crate::store::StoreError;
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
    /// The memory cap.
    #[error(
        "the backup worker was ended: it used more than the {mib} MiB of memory it may (`worker_memory_mib` of [backup] in dockwarden.toml). No snapshot was \
         recorded and what was read is untouched; set it higher, restart the supervisor and call it again"
    )]
    OutOfMemory {
        /// The cap, MiB.
        mib: u64,
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
    /// The target of a restore is another stack's.
    #[error("volume {volume} belongs to another stack or supervisor: leave `into` out to get a new volume")]
    TargetForeign {
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
    /// A command of the service did not do its part.
    #[error("service {service}: `{which}` of its backup, `{command}`, {why}; of its data nothing more was stored")]
    Command {
        /// Service.
        service: String,
        /// Container.
        container: String,
        /// `pre`, `post` or `stdout`.
        which: &'static str,
        /// The command.
        command: String,
        /// What happened.
        why: String,
        /// How it ended.
        exit_code: Option<i64>,
        /// What it wrote: anything, so not in the message.
        output: String,
    },
    /// A directory of the host that is not there.
    #[error("{path} is not a directory that the supervisor can reach: {detail}")]
    NoDirectory {
        /// Which.
        path: String,
        /// Cause.
        detail: String,
    },
    /// Kept data that is to go is in use.
    #[error("container {container} mounts {place}: it is no data that only waits; nothing was removed")]
    StillMounted {
        /// Which.
        place: String,
        /// By whom.
        container: String,
    },
    /// Kept data that is to go is not in the snapshot.
    #[error(
        "snapshot {snapshot} does not hold what is in {place} ({count} differences, which `operation` names); nothing was removed: {next}"
    )]
    NotCovered {
        /// Which.
        place: String,
        /// Snapshot it was compared with.
        snapshot: String,
        /// How many differences were named.
        count: usize,
        /// The first of them: names of files, so not in the message.
        differences: Vec<String>,
        /// What to do.
        next: String,
    },
    /// The snapshot that holds kept data is being removed.
    #[error(
        "snapshot {snapshot} is being removed, or {place} is not kept any more; nothing was removed: look at `backups` and confirm again"
    )]
    SnapshotGoes {
        /// Which place.
        place: String,
        /// Which snapshot.
        snapshot: String,
    },
    /// Kept data that is to go is at its place again, after it had been found gone.
    #[error("{place} is there again and was not compared with a snapshot; nothing was removed: confirm again")]
    NotCompared {
        /// Which.
        place: String,
    },
    /// What runs on data that was taken into use is not well.
    #[error("container {container} is not well on the restored data: {cause}; the data before is in its place again")]
    NotProven {
        /// Which.
        container: String,
        /// Cause.
        cause: String,
    },
    /// The disk of the repository is nearly full.
    #[error(
        "the disk of {repo} has {free} MiB of {total} MiB free, and backups leave the last tenth alone: free space, move the repository, or keep fewer snapshots"
    )]
    DiskFull {
        /// Repository.
        repo: String,
        /// Free, MiB.
        free: u64,
        /// Size, MiB.
        total: u64,
    },
    /// What is to be written has no room.
    #[error(
        "the disk of {path} has {free} MiB of {total} MiB free, {needed} MiB more are needed there, and the last tenth is left alone: free space and call it again"
    )]
    NoRoom {
        /// Where.
        path: String,
        /// What is to come, MiB.
        needed: u64,
        /// Free, MiB.
        free: u64,
        /// Size, MiB.
        total: u64,
    },
    /// A directory beside a live one cannot be made: its file system is read-only here.
    #[error(
        "{path} cannot be made, the supervisor sees {parent} read-only: add `ReadWritePaths={parent}` and `CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER` to \
         [Service] of its unit (`systemctl edit dockwarden`), restart it and call `restore` again"
    )]
    ReadOnly {
        /// What was to be made.
        path: String,
        /// The directory it would lie in.
        parent: String,
    },
    /// No such copy.
    #[error("there is no copy {copy}: {}", if .known.is_empty() { "dockwarden.toml has no [backup.copies.NAME]".to_owned() } else { format!("there are {}", .known.join(", ")) })]
    NoCopy {
        /// Which.
        copy: String,
        /// Those that are configured.
        known: Vec<String>,
    },
    /// A snapshot that a copy does not hold.
    #[error(
        "the copy {copy} does not hold snapshot {snapshot}: bring it up to date with backup {{copy: {copy}}}, or take another snapshot"
    )]
    NotCopied {
        /// Copy.
        copy: String,
        /// Snapshot.
        snapshot: String,
    },
    /// A stored name is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Begins the message of a backup that is done and not whole.
pub const PARTIAL: &str = "PARTIAL:";

/// Whether a backup ended without all that it was to read.
pub fn partial(operation: &Operation) -> bool {
    let message = operation.message.as_deref().unwrap_or_default();
    operation.verb == "backup" && operation.state == OperationState::Done && message.starts_with(PARTIAL)
}

/// Names that a container may have chosen, kept apart from what we say.
pub(crate) fn named(source: &str, reason: String, names: Vec<String>) -> Evidence {
    let (service, container) = (source.to_owned(), source.to_owned());
    let logs = names.iter().map(|n| crate::redact::line(n, 300)).collect();
    Evidence { service, container, reason, exit_code: None, oom_killed: false, probe_output: None, logs }
}

impl BackupError {
    /// What a container had a hand in: kept apart from the message, shown as untrusted.
    pub(crate) fn evidence(&self) -> Vec<Evidence> {
        match self {
            Self::Command { service, container, why, exit_code, output, .. } if !output.is_empty() => {
                let (service, container, reason) = (service.clone(), container.clone(), why.clone());
                let probe_output = Some(output.clone());
                vec![Evidence { service, container, reason, exit_code: *exit_code, oom_killed: false, probe_output, logs: vec![] }]
            }
            Self::NotCovered { place, count, differences, .. } => {
                vec![named(place, format!("{count} differences"), differences.clone())]
            }
            _ => vec![],
        }
    }

    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), detail: error.to_string() }
    }
}

fn within(inner: &str, outer: &str) -> bool {
    std::path::Path::new(inner).starts_with(outer)
}

/// What moves data, without what records it.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    /// The engine.
    pub(crate) engine: Arc<dyn Engine>,
    /// The repository.
    pub(crate) house: BackupHouse,
    /// Instance id of the home; labels everything made here.
    pub(crate) instance: String,
    /// Operation at work; labels helpers, so that a takeover knows whose they are.
    pub(crate) operation: OperationId,
    /// The supervisor's own container.
    pub(crate) own: OwnContainer,
}

impl Hands {
    /// The engine as this supervisor looks at it.
    pub(crate) fn around(&self) -> Around<'_> {
        Around { engine: self.engine.as_ref(), instance: &self.instance, own: &self.own }
    }
}

/// What a snapshot is tagged with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BackupReason {
    /// Stack the volume belongs to.
    pub(crate) stack: Option<StackName>,
    /// Further tags, e.g. `pre-update`; no commas.
    pub(crate) tags: Vec<String>,
    /// What the data is part of ([`definition`]).
    pub(crate) definition: Option<String>,
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
        volume: volume.name.to_string(),
        stack: reason.stack.clone(),
        instance: ctx.instance.clone(),
        tags: reason.tags.clone(),
        definition: reason.definition.clone(),
        progress: progress.clone(),
    };
    if let Some(path) = helper::host_path(ctx, permit, volume).await? {
        return ctx.house.backup_dir(request(path)).await;
    }
    let spool = helper::download(ctx, permit, &helper::Mount::Volume(volume.name.clone())).await?;
    let report = ctx.house.backup(request(spool.path().to_owned()), Source::Tar(spool.path().to_owned())).await;
    spool.remove()?;
    report
}

/// A snapshot of a directory of ours, under a source's name.
pub(crate) async fn read_directory(
    ctx: &Hands,
    reason: BackupReason,
    source: &str,
    path: PathBuf,
    progress: ProgressSink,
) -> Result<SnapshotReport, BackupError> {
    let (volume, instance) = (source.to_owned(), ctx.instance.clone());
    let BackupReason { stack, tags, definition } = reason;
    // A home of ours may be reached through a link; nobody else writes there.
    let path = std::fs::canonicalize(&path).map_err(|e| BackupError::io(&path, &e))?;
    ctx.house.backup_dir(BackupRequest { path, volume, stack, instance, tags, definition, progress }).await
}

/// A snapshot of a directory of the engine's host: read here where it is proven to be the same, otherwise through the engine.
pub(crate) async fn snapshot_directory(
    ctx: &Hands,
    permit: &Permit,
    reason: &BackupReason,
    directory: &Directory,
    progress: ProgressSink,
) -> Result<SnapshotReport, BackupError> {
    let request = |path: PathBuf| BackupRequest {
        path,
        volume: directory.host.clone(),
        stack: reason.stack.clone(),
        instance: ctx.instance.clone(),
        tags: reason.tags.clone(),
        definition: reason.definition.clone(),
        progress: progress.clone(),
    };
    let path = directory.here.as_deref().ok_or_else(|| reach::unseen(directory))?;
    let before = reach::identity(directory, path)?;
    if helper::local(ctx, permit).await? {
        return ctx.house.backup_dir(request(path.to_owned())).await;
    }
    // The engine follows links: nobody may put one there before it has.
    reach::unmoved(ctx.around(), directory).await?;
    let spool = helper::download(ctx, permit, &helper::Mount::Directory(directory.bound().to_owned())).await?;
    if reach::identity(directory, path)? != before {
        spool.remove()?;
        return Err(reach::replaced(directory));
    }
    reach::unmoved(ctx.around(), directory).await?;
    let report = ctx.house.backup(request(spool.path().to_owned()), Source::Tar(spool.path().to_owned())).await;
    spool.remove()?;
    report
}

#[cfg(test)]
pub(crate) fn test_permit() -> Permit {
    crate::gate::test_permit("backup", None)
}
