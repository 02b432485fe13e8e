//! What a data operation is asked for and what came of it, as data. Deliberately absent: doing it.

use super::export::Exported;
use super::{ForgetPlan, Forgotten, Quiesce, ServiceCommands, acts};
use crate::executor::restore::RestoreOutcome;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::operation::StepRecord;
use crate::model::spec::Keep;
use crate::store::backup::copies::CopyRecord;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
use crate::store::kept::KeptRecord;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// What a backup reads, and how.
#[derive(Debug, Clone, Default)]
pub struct BackupJob {
    /// The supervisor's own databases, keys and memories.
    pub instance: bool,
    /// Volumes.
    pub volumes: Vec<EngineName>,
    /// Directories of the engine's host.
    pub directories: Vec<Directory>,
    /// What services have run around it, and whose output is data too.
    pub commands: Vec<ServiceCommands>,
    /// Services whose commands cannot be run, since they have no container.
    pub silent: Vec<Silent>,
    /// How writers are held while volumes and directories are read.
    pub quiesce: Quiesce,
    /// Release that runs.
    pub release: Option<u32>,
    /// Further tags of the snapshots; no commas.
    pub tags: Vec<String>,
    /// Longest run of one worker; the house's own limit when absent.
    pub timeout: Option<Duration>,
    /// For a schedule's run: which snapshots of the stack stay afterwards. Absent, nothing is ever removed.
    pub keep: Option<Keeping>,
}

/// A service that does not run: its data is at rest and read without its commands. What a command would have written is nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Which.
    pub service: ServiceName,
    /// The output of a command of it is data, too.
    pub output: bool,
}

/// A directory of the engine's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Its path there: the name of the source.
    pub host: String,
    /// Its path as this process sees it, if it does: the one it was judged by, on which no link is followed.
    pub here: Option<PathBuf>,
    /// Where its path led on the engine's host when it was judged, where that is another one: what containers mount.
    #[serde(default)]
    pub real: Option<String>,
}

impl Directory {
    /// The path containers mount it by.
    pub fn bound(&self) -> &str {
        self.real.as_deref().unwrap_or(&self.host)
    }
}

/// How many snapshots stay, for sources of their own and for all others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeping {
    /// By source.
    pub own: BTreeMap<String, Keep>,
    /// For all others.
    pub rest: Keep,
}

/// What is done with data.
#[derive(Debug, Clone)]
pub enum DataJob {
    /// Data is read into the repository, one source after the other.
    Backup(Box<BackupJob>),
    /// A snapshot is put beside the live data and compared.
    Restore {
        /// Which.
        snapshot: Box<BackupRecord>,
        /// Empty or new volume; a fresh one when absent.
        into: Option<EngineName>,
        /// Only what lies at this path of it.
        path: Option<PathBuf>,
        /// Another stack that the volume is made for.
        to: Option<StackName>,
    },
    /// A snapshot is written into a new directory beside the one it was taken of, and compared.
    RestoreDirectory {
        /// Which.
        snapshot: Box<BackupRecord>,
        /// The directory it was taken of.
        directory: Directory,
        /// Only what lies at this path of it.
        path: Option<PathBuf>,
    },
    /// Data that a restore took the place of goes.
    Discard {
        /// Which.
        kept: Box<KeptRecord>,
        /// Its place as the engine's host names it.
        host: String,
        /// Snapshot that shall hold all of it; none where one was found to.
        snapshot: Option<Box<BackupRecord>>,
    },
    /// The repository is checked and a part of its data read.
    Check {
        /// The `n`th of so many parts.
        part: (u32, u32),
        /// A copy instead of the repository.
        copy: Option<String>,
    },
    /// A second repository is brought up to date.
    Copy {
        /// Which.
        copy: String,
    },
    /// Snapshots are written as plain files.
    Export {
        /// Which.
        snapshots: Vec<BackupRecord>,
    },
    /// Snapshots are removed.
    Forget {
        /// Which, and what stays.
        plan: Box<ForgetPlan>,
    },
    /// Restores are rehearsed, each in a scratch volume of its own.
    Drill {
        /// Which, and the service that is started on it.
        snapshots: Vec<(BackupRecord, Option<ServiceName>)>,
        /// The copy they are taken from, instead of the repository.
        copy: Option<String>,
    },
}

impl DataJob {
    /// Verbs of operations that run a data job.
    pub const VERBS: [&'static str; 5] = ["backup", "restore", "verify_backup", "export", "prune"];

    /// Volumes it reads or fills.
    pub(super) fn volumes(&self) -> BTreeSet<EngineName> {
        match self {
            Self::Backup(job) => job.volumes.iter().cloned().collect(),
            Self::Restore { into, .. } => into.iter().cloned().collect(),
            Self::Discard { kept, .. } => EngineName::new(kept.place.as_str()).into_iter().collect(),
            Self::RestoreDirectory { .. }
            | Self::Drill { .. }
            | Self::Check { .. }
            | Self::Copy { .. }
            | Self::Export { .. }
            | Self::Forget { .. } => BTreeSet::new(),
        }
    }

    /// Whether nothing is switched or healed meanwhile.
    pub(super) fn holds_stack(&self) -> bool {
        matches!(self, Self::Backup(_))
    }
}

/// What an operation did with data, read from its journal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataResult {
    /// Snapshots it took.
    pub snapshots: Vec<BackupRecord>,
    /// What it restored.
    pub restored: Vec<RestoreOutcome>,
    /// Restores it rehearsed.
    pub drills: Vec<DrillRecord>,
    /// Looks at the repository itself.
    pub checks: Vec<CheckRecord>,
    /// Plain files it wrote.
    pub exports: Vec<Exported>,
    /// Second repositories it brought up to date, or did not.
    pub copies: Vec<CopyRecord>,
    /// Snapshots it removed.
    pub forgotten: Option<Forgotten>,
}

impl DataResult {
    /// Of the journal of any operation.
    pub fn of(steps: &[StepRecord]) -> Self {
        let done = |prefix: &'static str| steps.iter().filter(move |s| s.key.starts_with(prefix)).filter_map(|s| s.done.clone());
        Self {
            snapshots: done(acts::SNAPSHOT).filter_map(|v| serde_json::from_value(v["snapshot"].clone()).ok()).collect(),
            checks: ["count", "check"].into_iter().flat_map(done).filter_map(|v| serde_json::from_value(v).ok()).collect(),
            copies: done(acts::COPY).filter_map(|v| serde_json::from_value(v).ok()).collect(),
            exports: done(acts::EXPORT).filter_map(|v| serde_json::from_value(v).ok()).collect(),
            forgotten: done(acts::FORGET).find_map(|v| serde_json::from_value(v).ok()),
            drills: done(acts::DRILL).filter_map(|v| serde_json::from_value(v).ok()).collect(),
            restored: done(acts::RESTORE).filter_map(|v| serde_json::from_value(v).ok()).collect(),
        }
    }
}
