//! The backup worker: `dockwarden worker` reads one JSON request line on standard input, does it, and answers with JSON lines on standard
//! output: any number of `progress`, then one `done` or `failed`. It is a process of its own because repository work is long, holds much
//! memory for a short time and may panic inside its library; the supervisor must survive all three. It ends when its standard input closes,
//! so it never outlives the supervisor. Deliberately absent: engines, stores, policy; it knows directories, tar files and one repository.

#[cfg(feature = "backup")]
mod compare;
#[cfg(feature = "backup")]
mod jobs;
#[cfg(feature = "backup")]
mod mode;
#[cfg(feature = "backup")]
mod repo;
#[cfg(feature = "backup")]
mod source;
#[cfg(feature = "backup")]
mod tarball;
#[cfg(test)]
#[cfg(feature = "backup")]
mod tests;
#[cfg(feature = "backup")]
mod walk;

use crate::model::ids::SnapshotId;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// One request: which repository, and what to do with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Directory of the repository.
    pub repo: PathBuf,
    /// File that holds the key: 256 bits in hexadecimal.
    pub key_file: PathBuf,
    /// What to do.
    pub job: Job,
}

/// What a worker can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Creates the repository, or checks that the key opens the one that is there.
    Init,
    /// Takes a snapshot.
    Backup {
        /// Where the data is.
        source: Source,
        /// Volume it belongs to: names the path in the snapshot.
        volume: String,
        /// Stack it belongs to.
        stack: Option<String>,
        /// Instance id of the supervisor.
        instance: String,
        /// Further tags.
        tags: Vec<String>,
    },
    /// Lists snapshots, newest first.
    List,
    /// Checks the repository; `read_data` also reads every pack.
    Check {
        /// Read and decrypt all data.
        read_data: bool,
        /// Only the `n`th of so many parts of the data: all of them in turn read everything.
        #[serde(default)]
        part: Option<(u32, u32)>,
    },
    /// Writes a snapshot as a compressed tar file that any `zstd` and `tar` unpack, and its SHA-256 beside it.
    Plain {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// File to write, `*.tar.zst`; must not exist.
        file: PathBuf,
        /// Name of the top directory.
        top: String,
    },
    /// Writes a snapshot's files into an empty directory.
    Restore {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Directory, empty, existing.
        into: PathBuf,
    },
    /// Writes a snapshot as a tar file with one top directory.
    Export {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// File to write; must not exist.
        tar: PathBuf,
        /// Name of the top directory.
        top: String,
    },
    /// Removes snapshots, and then what no snapshot needs any more.
    Forget {
        /// Which; those that are gone already are no error.
        snapshots: Vec<SnapshotId>,
    },
    /// Compares data with a snapshot, by content.
    Verify {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The data.
        against: Source,
    },
}

/// A file tree, as a directory or as a tar file whose entries lie under one top directory (what an engine's archive call gives).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A directory that can be read.
    Dir(PathBuf),
    /// A tar file.
    Tar(PathBuf),
}

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

/// Takes progress; called at most four times a second.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// What a job gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The repository is there and the key opens it.
    Ready,
    /// From `Backup`.
    Snapshot(SnapshotReport),
    /// From `List`.
    Snapshots(Vec<SnapshotInfo>),
    /// From `Check` and `Verify`: what is wrong, empty = all is well.
    Findings(Vec<String>),
    /// From `Restore` and `Export`.
    Restored(RestoreReport),
    /// From `Plain`.
    Plain(PlainReport),
    /// From `Forget`: how many snapshots were removed.
    Forgotten(u64),
}

/// Why a job was not done, with what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No repository.
    #[error("there is no backup repository at {repo}: the first backup creates it; if it was moved, put it back or correct the path")]
    NoRepository {
        /// Where.
        repo: String,
    },
    /// The key does not open it.
    #[error(
        "the key in {key_file} does not open the backup repository at {repo}: put back the key file that belongs to it (it cannot be made anew)"
    )]
    WrongKey {
        /// Where.
        repo: String,
        /// Which key.
        key_file: String,
    },
    /// Others are at work on it, and this must be done alone.
    #[error("the backup repository {repo} is in use: snapshots are removed when nothing reads it; the next backup or `prune` tries again")]
    InUse {
        /// Where.
        repo: String,
    },
    /// The key file is missing or malformed.
    #[error("backup key {key_file}: {detail}; restore this file from the copy you keep, or move the repository away to start a new one")]
    Key {
        /// Which key.
        key_file: String,
        /// Cause.
        detail: String,
    },
    /// The repository would be backed up into itself.
    #[error(
        "the backup repository {repo} lies on the data to be backed up ({source_path}): move the repository (or the home) to another place"
    )]
    RepositoryOnSource {
        /// Repository.
        repo: String,
        /// Source.
        source_path: String,
    },
    /// No such snapshot.
    #[error("no snapshot {snapshot}: {detail}; `backups` lists those that exist")]
    UnknownSnapshot {
        /// Id asked for.
        snapshot: String,
        /// Cause.
        detail: String,
    },
    /// The target holds something.
    #[error("{path} is not empty: a restore never overwrites; give an empty or new target")]
    TargetNotEmpty {
        /// Where.
        path: String,
    },
    /// A file or directory could not be used.
    #[error("{path}: {detail}")]
    Io {
        /// Where.
        path: String,
        /// Cause.
        detail: String,
    },
    /// A tar stream that is not whole.
    #[error("the archive {path} is damaged or cut short ({detail}): nothing was stored; try again")]
    Archive {
        /// Where.
        path: String,
        /// Cause.
        detail: String,
    },
    /// The repository refused.
    #[error("backup repository: {detail}; run the check of the repository (`verify_backup`) before relying on it")]
    Repository {
        /// Cause.
        detail: String,
    },
    /// The request was not understood.
    #[error("the worker did not understand its request: {detail}; supervisor and worker must be the same version, restart the supervisor")]
    Protocol {
        /// Cause.
        detail: String,
    },
    /// A defect.
    #[error("the backup worker failed: {detail}; nothing was recorded, the data is untouched")]
    Internal {
        /// Cause.
        detail: String,
    },
    /// Built without the feature.
    #[error("this build of dockwarden has no backup support: build it with the default features")]
    NotBuilt,
}

/// One line a worker writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// On the way.
    Progress(Progress),
    /// Done; the last line.
    Done(Output),
    /// Not done; the last line.
    Failed(Failure),
}

/// Does one request. A panic inside the repository library becomes a `Failure`.
///
/// # Errors
/// Every `Failure` names its cause and the next step.
pub fn handle(request: &Request, progress: ProgressSink) -> Result<Output, Failure> {
    #[cfg(feature = "backup")]
    {
        let request = request.clone();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || jobs::run(&request, progress)))
            .unwrap_or_else(|panic| Err(Failure::Internal { detail: panic_text(panic.as_ref()) }))
    }
    #[cfg(not(feature = "backup"))]
    {
        let _ = (request, progress);
        Err(Failure::NotBuilt)
    }
}

#[cfg(feature = "backup")]
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "panic without a message".to_owned())
}

/// The body of `dockwarden worker`. Standard output carries the protocol only.
pub fn worker_main() -> ExitCode {
    let mut first = String::new();
    let request = match std::io::stdin().lock().read_line(&mut first) {
        Ok(_) => serde_json::from_str::<Request>(&first).map_err(|e| Failure::Protocol { detail: e.to_string() }),
        Err(e) => Err(Failure::Protocol { detail: e.to_string() }),
    };
    let out = Arc::new(Mutex::new(std::io::stdout()));
    let request = match request {
        Ok(request) => request,
        Err(failure) => return last_line(&out, &Line::Failed(failure)),
    };
    // The supervisor holds our standard input open for as long as it wants us. A parent-death signal would be bound to the thread that
    // started us, which a thread pool may retire; a closed pipe says exactly what is meant.
    // Leaving at once is the point: an orphan must not go on reading or writing anything.
    #[allow(clippy::disallowed_methods)]
    std::thread::spawn(|| {
        let mut rest = String::new();
        while matches!(std::io::stdin().lock().read_line(&mut rest), Ok(n) if n > 0) {
            rest.clear();
        }
        std::process::exit(ORPHANED.into());
    });
    let sink: ProgressSink = {
        let out = out.clone();
        Arc::new(move |p| {
            // A supervisor that no longer reads also closes our input; that ends us, so a failed progress line is not an error of its own.
            let _ = write_line(&out, &Line::Progress(p));
        })
    };
    match handle(&request, sink) {
        Ok(output) => last_line(&out, &Line::Done(output)),
        Err(failure) => last_line(&out, &Line::Failed(failure)),
    }
}

/// Exit code of a worker whose supervisor went away.
const ORPHANED: u8 = 75;

fn last_line(out: &Mutex<std::io::Stdout>, line: &Line) -> ExitCode {
    match (write_line(out, line), line) {
        (Ok(()), Line::Done(_)) => ExitCode::SUCCESS,
        (Ok(()), _) => ExitCode::FAILURE,
        (Err(_), _) => ExitCode::from(ORPHANED),
    }
}

fn write_line(out: &Mutex<std::io::Stdout>, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line).map_err(std::io::Error::other)?;
    text.push(b'\n');
    let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    out.write_all(&text)?;
    out.flush()
}
