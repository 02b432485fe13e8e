//! The port to a backup repository: one piece of work is asked for, one answer comes back. A process of its own does it (`house::child`); tests have a repository in
//! memory (`fake`). Deliberately absent: what is asked when, keys, waiting for others and the time limit, which are the house's.

use super::{BackupError, ProgressSink};
use crate::executor::worker::{Output, Request};
use async_trait::async_trait;

/// Who does work on backup repositories.
#[async_trait]
pub trait BackupStore: std::fmt::Debug + Send + Sync {
    /// Does one piece of work, in at most so many MiB of memory; without a number in what the work needs by default. Dropped on its way it ends there, as when
    /// it is killed: what it had not finished is no snapshot.
    ///
    /// # Errors
    /// `Worker` with its own word, `WorkerLost` when it ended without one, `OutOfMemory`.
    async fn ask(&self, request: &Request, memory_mib: Option<u64>, progress: ProgressSink) -> Result<Output, BackupError>;
}
