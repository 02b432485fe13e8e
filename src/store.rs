//! Durable state: `state.db`, `audit.db`, one `memory.db` per agent. The only place that knows SQLite. One writer thread per database
//! with group commit (`synchronous=FULL`), readers beside it. Deliberately absent: decisions.

pub mod approval;
pub mod audit;
pub mod backup;
pub mod journal;
pub mod memory;
pub mod release;
pub mod seal;
pub mod token;

/// What a store answered when it could not.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("{db}: {detail}")]
    Database {
        /// Which file.
        db: String,
        /// Cause.
        detail: String,
    },
    /// The file was written by a newer version.
    #[error("{db} has schema {found}, this version of dockwarden knows {known}: install the newer version again, or restore the copy made before its migration")]
    TooNew {
        /// Which file.
        db: String,
        /// Version found.
        found: i64,
        /// Newest version known here.
        known: i64,
    },
    /// A stored value could not be read back.
    #[error("stored {what} is unreadable: {detail}")]
    Corrupt {
        /// What.
        what: &'static str,
        /// Cause.
        detail: String,
    },
    /// The epoch of the stack has moved on: a newer operation holds it.
    #[error("a newer operation holds stack {stack}")]
    Superseded {
        /// Stack.
        stack: String,
    },
    /// Same idempotency key, other arguments.
    #[error("idempotency key {key:?} was used with other arguments")]
    KeyReused {
        /// Key.
        key: String,
    },
    /// File system.
    #[error("{path}: {detail}")]
    Io {
        /// Path.
        path: String,
        /// Cause.
        detail: String,
    },
    /// The writer has ended.
    #[error("the store is shutting down")]
    Closed,
}

/// Result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

use std::path::{Path, PathBuf};

/// The open store of one home. Cheap to clone; all methods are safe to call from any task.
#[derive(Debug, Clone)]
pub struct Store {
    home: PathBuf,
}

impl Store {
    /// Opens (creating, migrating after a copy by `VACUUM INTO`) `state.db` and `audit.db` under `home` and the memory databases under `memory`.
    ///
    /// # Errors
    /// `TooNew`, `Io` or `Database`.
    pub async fn open(_home: &Path, _memory: &Path) -> StoreResult<Self> {
        todo!()
    }
    /// The home.
    pub fn home(&self) -> &Path {
        &self.home
    }
    /// Instance id of this home: a ULID in lower case, made when the home was.
    pub fn instance(&self) -> &str {
        todo!()
    }
    /// Flushes and joins the writers.
    pub async fn close(&self) {
        todo!()
    }
}
