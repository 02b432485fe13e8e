//! stub: records of backups
use super::{Store, StoreResult};
use crate::model::ids::*;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// One snapshot as we recorded it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct BackupRecord {
    /// Id in the repository.
    pub snapshot_id: String,
    /// Stack it belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// Volume.
    pub volume: String,
    /// Bytes of data read.
    pub bytes: u64,
    /// Bytes new in the repository.
    pub added: u64,
    /// Files.
    pub files: u64,
    /// `complete`, or `partial` when a file could not be read.
    pub state: String,
    /// When the data was read.
    pub at: DateTime<Utc>,
    /// Agent that asked.
    pub agent: String,
    /// Release that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
}

impl Store {
    /// Records a snapshot.
    pub async fn put_backup(&self, _record: &BackupRecord) -> StoreResult<()> {
        todo!()
    }
    /// Snapshots of a stack or volume (or all), newest first.
    pub async fn backups(&self, _stack: Option<&StackName>, _volume: Option<&str>, _limit: usize) -> StoreResult<Vec<BackupRecord>> {
        todo!()
    }
    /// One by id or unambiguous prefix.
    pub async fn backup(&self, _id: &SnapshotId) -> StoreResult<Option<BackupRecord>> {
        todo!()
    }
}
