//! What a data operation is asked for and what came of it, as data. Deliberately absent: doing it.

use super::{Quiesce, acts};
use crate::executor::restore::RestoreOutcome;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::operation::StepRecord;
use crate::model::spec::Keep;
use crate::store::backup::{BackupRecord, DrillRecord};
use std::collections::BTreeSet;
use std::time::Duration;

/// What is done with data.
#[derive(Debug, Clone)]
pub enum DataJob {
    /// Volumes are read into the repository, one after the other.
    Backup {
        /// Which.
        volumes: Vec<EngineName>,
        /// How their writers are held meanwhile.
        quiesce: Quiesce,
        /// Release that runs.
        release: Option<u32>,
        /// Further tags of the snapshots; no commas.
        tags: Vec<String>,
        /// Longest run of one worker; the house's own limit when absent.
        timeout: Option<Duration>,
        /// For a schedule's run: which snapshots of the stack stay afterwards. Absent, nothing is ever removed.
        keep: Option<Keep>,
    },
    /// A snapshot is put beside the live data and compared.
    Restore {
        /// Which.
        snapshot: Box<BackupRecord>,
        /// Empty or new volume; a fresh one when absent.
        into: Option<EngineName>,
    },
    /// Restores are rehearsed, each in a scratch volume of its own.
    Drill {
        /// Which, and the service that is started on it.
        snapshots: Vec<(BackupRecord, Option<ServiceName>)>,
    },
}

impl DataJob {
    /// Verbs of operations that run a data job.
    pub const VERBS: [&'static str; 3] = ["backup", "restore", "verify_backup"];

    /// Volumes it reads or fills.
    pub(super) fn volumes(&self) -> BTreeSet<EngineName> {
        match self {
            Self::Backup { volumes, .. } => volumes.iter().cloned().collect(),
            Self::Restore { into, .. } => into.iter().cloned().collect(),
            Self::Drill { .. } => BTreeSet::new(),
        }
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
}

impl DataResult {
    /// Of the journal of any operation.
    pub fn of(steps: &[StepRecord]) -> Self {
        let done = |prefix: &'static str| steps.iter().filter(move |s| s.key.starts_with(prefix)).filter_map(|s| s.done.clone());
        Self {
            snapshots: done(acts::SNAPSHOT).filter_map(|v| serde_json::from_value(v["snapshot"].clone()).ok()).collect(),
            drills: done(acts::DRILL).filter_map(|v| serde_json::from_value(v).ok()).collect(),
            restored: done(acts::RESTORE).filter_map(|v| serde_json::from_value(v).ok()).collect(),
        }
    }
}
