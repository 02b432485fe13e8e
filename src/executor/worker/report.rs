//! What comes of each job, as it is told. Deliberately absent: failures, which have a list of their own.

use crate::model::ids::SnapshotId;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Whether a snapshot holds everything that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Everything.
    Complete,
    /// Something could not be read; see `unreadable`.
    Partial,
}

impl SnapshotState {
    /// The word stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
        }
    }
}

/// A snapshot just taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// Bytes of file data it holds.
    pub bytes: u64,
    /// Bytes it added to the repository, compressed and encrypted.
    pub added: u64,
    /// Files, links and special files it holds (directories not counted).
    pub files: u64,
    /// Complete or not.
    pub state: SnapshotState,
    /// What could not be read, `path: cause`, at most 100 and then a count; empty when complete.
    pub unreadable: Vec<String>,
}

/// A snapshot as the repository lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// When it was taken.
    pub at: DateTime<Utc>,
    /// Volume, for snapshots we took.
    pub volume: Option<String>,
    /// Stack, for snapshots we took of one.
    pub stack: Option<String>,
    /// Complete or not.
    pub state: SnapshotState,
    /// Host field: `dockwarden-<instance>` for ours.
    pub host: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Bytes of file data.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Id of the snapshot it was copied from; its own where it is no copy.
    pub original: SnapshotId,
}

/// What a copy added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Snapshots that were added.
    pub snapshots: u64,
    /// Bytes of packs that were read for them.
    pub bytes: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// What is wrong; empty = sound.
    pub wrong: Vec<String>,
    /// What is strange and harms no snapshot.
    pub strange: Vec<String>,
}

/// What a restore wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Files, links and special files.
    pub files: u64,
    /// Bytes of file data.
    pub bytes: u64,
}

/// A snapshot as a plain file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlainReport {
    /// Files, links and special files in it.
    pub files: u64,
    /// Bytes of file data in it.
    pub bytes: u64,
    /// Its own size.
    pub size: u64,
    /// SHA-256 of it, hexadecimal.
    pub sha256: String,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes handled.
    pub bytes: u64,
    /// Files seen.
    pub files: u64,
}
