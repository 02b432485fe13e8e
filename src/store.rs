//! Durable state: `state.db`, `audit.db`, one `memory.db` per agent. The only place that knows SQLite. One writer thread per database
//! with group commit (`synchronous=FULL`), readers beside it. Deliberately absent: decisions.

pub mod accepted;
pub mod adopted;
pub mod appended;
pub mod approval;
pub mod audit;
pub mod backup;
pub mod copy;
pub mod disk;
pub mod incident;
pub mod journal;
pub mod kept;
pub mod lease;
pub mod ledger;
pub mod memory;
pub mod notice;
pub mod release;
pub mod seal;
pub mod taint;
pub mod task;
pub mod token;
pub mod turn;

mod chain;
mod codec;
mod db;
mod fault;
mod migrate;
mod reserve;

use crate::model::ids::AgentName;
use db::Database;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    #[error(
        "{db} has schema {found}, this version of dockwarden knows {known}: install the newer version again, or restore the copy made before its migration"
    )]
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
    /// A number that is given once belongs to another operation.
    #[error("{what} was recorded by operation {by}; plan again")]
    Taken {
        /// What.
        what: String,
        /// Whose it is.
        by: String,
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
    /// It is not there.
    #[error("there is no {what} {id}")]
    Missing {
        /// What.
        what: &'static str,
        /// Its name or id.
        id: String,
    },
    /// Files that hold a part of it are not here as they were written.
    #[error(
        "what is asked for is in files of the {what} that are not here as they were written: {files}; put them back from a backup of the supervisor"
    )]
    Absent {
        /// What.
        what: &'static str,
        /// Which files.
        files: String,
    },
    /// The disk is full.
    #[error("the disk is full: {detail}")]
    Full {
        /// What could not be done.
        detail: String,
    },
    /// Larger than the store takes.
    #[error("{what} has {size} bytes, at most {max} are kept: shorten it or split it over several keys")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Bytes it has.
        size: usize,
        /// Bytes it may have.
        max: usize,
    },
    /// An operator froze the house.
    #[error("all changes are frozen; an operator lifts it with `dockwarden unfreeze`")]
    Frozen,
    /// The writer has ended.
    #[error("the store is shutting down")]
    Closed,
}

/// Key of the small value that is an object while an operator's freeze of all changes stands.
pub const FREEZE: &str = "freeze";

/// Result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// The open store of one home. Cheap to clone; all methods are safe to call from any task.
#[derive(Debug, Clone)]
pub struct Store {
    home: PathBuf,
    inner: Arc<Inner>,
}

struct Inner {
    instance: String,
    keys: seal::Keys,
    state: Arc<Database>,
    audit: Arc<Database>,
    /// What was adopted, as the engine is shown with it.
    registry: Arc<crate::engine::adopted::Registry>,
    reserve: Arc<reserve::Reserve>,
    memory_root: PathBuf,
    memories: tokio::sync::Mutex<Memories>,
    projection: tokio::sync::Mutex<Projection>,
    /// A projection will run soon.
    projection_due: std::sync::atomic::AtomicBool,
    /// Valid tokens, once read.
    tokens: tokio::sync::Mutex<Option<Arc<Vec<token::Known>>>>,
    /// One compaction at a time.
    compactions: tokio::sync::Mutex<()>,
    /// What incidents say, findable; made by the first search.
    incident_words: tokio::sync::Mutex<Option<incident::Index>>,
    /// One checkpoint at a time: two would race for the end of the file.
    checkpoints: tokio::sync::Mutex<()>,
    /// Stacks whose operations were begun or saved, for those who listen.
    moved: tokio::sync::broadcast::Sender<crate::model::ids::StackName>,
    /// What was appended to the audit log and to memories, likewise.
    appended: tokio::sync::broadcast::Sender<appended::Appended>,
}

/// Memory databases opened so far.
#[derive(Default)]
struct Memories {
    open: BTreeMap<AgentName, Arc<Database>>,
    closed: bool,
}

/// How far the audit log was looked at for projection, and whose memory could not be written then.
#[derive(Default)]
struct Projection {
    seen: i64,
    behind: BTreeSet<AgentName>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Store {
    /// Refuses the next writes of state.db, as a full disk does.
    #[cfg(test)]
    pub(crate) fn fail_writes(&self, next: u32) {
        self.inner.state.refuse.store(next, std::sync::atomic::Ordering::SeqCst);
    }

    /// Opens (creating, migrating after a copy by `VACUUM INTO`) `state.db` and `audit.db` under `home` and, each when first used, the memory databases under `memory`.
    ///
    /// # Errors
    /// `TooNew`, `Io` or `Database`; `Corrupt` when a key file is missing or is not the one the home was made with.
    pub async fn open(home: &Path, memory: &Path) -> StoreResult<Self> {
        let (home, memory) = (home.to_path_buf(), memory.to_path_buf());
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(home, memory)).await;
        opened.map_err(|e| StoreError::Corrupt { what: "home", detail: format!("opening it ended early: {e}") })?
    }

    fn open_blocking(home: PathBuf, memory_root: PathBuf) -> StoreResult<Self> {
        private_dir(&home)?;
        private_dir(&home.join("keys"))?;
        // Opened by hand first: the keys and the identity are settled before the writer takes the file.
        let path = home.join("state.db");
        let conn = migrate::open(&path, &migrate::STATE)?;
        let (instance, keys) = seal::identify(&conn, &home).map_err(|e| e.named(&path))?;
        let registry = Arc::new(crate::engine::adopted::Registry::default());
        registry.set(adopted::objects(&conn).map_err(|e| e.named(&path))?);
        drop(conn);
        let reserve = Arc::new(reserve::Reserve::open(&home));
        let state = Database::open(&path, &migrate::STATE, Some(Arc::clone(&reserve)))?;
        let audit = Database::open(&home.join("audit.db"), &migrate::AUDIT, Some(Arc::clone(&reserve)))?;
        let inner = Inner {
            instance,
            keys,
            state,
            audit,
            registry,
            reserve,
            memory_root,
            memories: tokio::sync::Mutex::default(),
            projection: tokio::sync::Mutex::default(),
            projection_due: std::sync::atomic::AtomicBool::default(),
            tokens: tokio::sync::Mutex::default(),
            compactions: tokio::sync::Mutex::default(),
            incident_words: tokio::sync::Mutex::default(),
            checkpoints: tokio::sync::Mutex::default(),
            moved: tokio::sync::broadcast::channel(256).0,
            appended: tokio::sync::broadcast::channel(appended::BACKLOG).0,
        };
        Ok(Self { home, inner: Arc::new(inner) })
    }

    /// The home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Instance id of this home: a ULID in lower case, made when the home was.
    pub fn instance(&self) -> &str {
        &self.inner.instance
    }

    /// Whether the disk of the home is full: then only essential calls are recorded, and so taken.
    pub fn is_full(&self) -> bool {
        self.inner.reserve.is_given_up()
    }

    /// Finishes queued writes and joins the writers; later calls answer `Closed`.
    pub async fn close(&self) {
        let open = {
            let mut memories = self.inner.memories.lock().await;
            memories.closed = true;
            std::mem::take(&mut memories.open)
        };
        for db in open.values() {
            db.close().await;
        }
        self.inner.audit.close().await;
        self.inner.state.close().await;
    }
}

/// Creates a directory of the home with mode 0700; one that others can enter is closed to them.
fn private_dir(dir: &Path) -> StoreResult<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| fault::io(dir, &e))?;
    let mode = std::fs::metadata(dir).map_err(|e| fault::io(dir, &e))?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(|e| StoreError::Io {
            path: dir.display().to_string(),
            detail: format!(
                "it is open to others (mode {:o}) and closing it failed: {e}; make the supervisor's user its owner",
                mode & 0o777
            ),
        })?;
    }
    Ok(())
}

#[cfg(test)]
impl Store {
    /// What a broken disk leaves behind in `state.db`: one row is changed past every check.
    pub(crate) async fn damage(&self, sql: &'static str) {
        let changed = self.inner.state.write(move |c| Ok(c.execute(sql, [])?)).await.expect("written");
        assert_eq!(changed, 1, "{sql}");
    }
}

#[cfg(test)]
mod tests;
