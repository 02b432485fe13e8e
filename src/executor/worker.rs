//! The backup worker: `dockwarden worker` reads one JSON request line on standard input, does it, and answers with JSON lines on standard
//! output: any number of `progress`, then one `done` or `failed`. It is a process of its own because repository work is long, holds much
//! memory for a short time and may panic inside its library; the supervisor must survive all three. It ends when its standard input closes,
//! so it never outlives the supervisor. Deliberately absent: engines, stores, policy; it knows directories, tar files and one repository.

#[cfg(feature = "backup")]
mod compare;
#[cfg(feature = "backup")]
mod copy;
#[cfg(feature = "backup")]
mod counter;
mod failure;
#[cfg(feature = "backup")]
mod jobs;
#[cfg(feature = "backup")]
mod left;
#[cfg(feature = "backup")]
mod mark;
#[cfg(feature = "backup")]
mod mode;
#[cfg(feature = "backup")]
mod part;
#[cfg(feature = "backup-remote")]
pub(crate) mod remote;
#[cfg(feature = "backup")]
mod repo;
mod report;
#[cfg(feature = "backup")]
mod restore;
#[cfg(feature = "backup")]
mod source;
#[cfg(feature = "backup")]
mod sums;
#[cfg(feature = "backup")]
mod tarball;
#[cfg(test)]
#[cfg(feature = "backup")]
pub(crate) mod tests;
#[cfg(feature = "backup")]
mod walk;

pub use failure::{Failure, Trouble};
pub use report::{CheckReport, CopyReport, PlainReport, Progress, RestoreReport, SnapshotInfo, SnapshotReport, SnapshotState};

use crate::model::ids::SnapshotId;
use crate::model::target::Target;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// Cap of work that reads a snapshot out, MiB.
const READING_MIB: u64 = 256;
/// Cap of work that writes, checks or prunes, MiB.
const WRITING_MIB: u64 = 960;
/// And for each processor.
const WRITING_MIB_FOR_EACH: u64 = 64;

/// One request: which repository, and what to do with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Directory of the repository; of one on another host only the name of its lock.
    pub repo: PathBuf,
    /// Where it is instead, on another host.
    #[serde(default)]
    pub remote: Option<Remote>,
    /// File that holds the key: 256 bits in hexadecimal.
    pub key_file: PathBuf,
    /// Longest wait for others to let go of the repository, seconds; without it there is no limit.
    #[serde(default)]
    pub lock_within_s: Option<u64>,
    /// Ids of the repositories that are known to be there; when there are any, no other one is made or taken.
    #[serde(default)]
    pub expected: Vec<String>,
    /// File that says so.
    #[serde(default)]
    pub known: Option<PathBuf>,
    /// Who writes its directory, where several hosts may reach it.
    #[serde(default)]
    pub claim: Option<Claim>,
    /// Directories of further repositories, which may not lie on the data that is read either.
    #[serde(default)]
    pub apart: Vec<PathBuf>,
    /// What to do.
    pub job: Job,
}

impl Request {
    /// Where the repository is, for people.
    pub fn place(&self) -> String {
        self.remote.as_ref().map_or_else(|| self.repo.display().to_string(), |r| r.target.at.to_string())
    }

    /// The file that says which repositories were there, for people.
    #[cfg(feature = "backup")]
    fn known(&self) -> String {
        self.known.as_ref().map_or_else(|| "the list of known repositories".to_owned(), |f| f.display().to_string())
    }
}

/// A repository on another host. Credentials are named and never carried: the worker reads them itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Where, and how it is reached.
    pub target: Target,
    /// Instance that writes there; without it nothing is written.
    pub owner: Option<String>,
}

/// Who writes a directory that several hosts may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Instance.
    pub instance: String,
    /// The one whose place it takes.
    pub replaces: Option<String>,
}

/// What a worker can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Creates the repository, or checks that the key opens the one that is there.
    Init,
    /// Looks whether there is one; no key is needed.
    Probe,
    /// Adds snapshots to a second repository, which is there; those that it has are left out.
    Copy {
        /// Which.
        snapshots: Vec<SnapshotId>,
        /// Its directory, or the name of its lock.
        to: PathBuf,
        /// Where it is instead, on another host.
        remote: Option<Remote>,
        /// Who writes its directory.
        #[serde(default)]
        claim: Option<Claim>,
        /// Its key.
        key_file: PathBuf,
    },
    /// Copies the files of the repository as they are into an empty directory, each compared with its name.
    Fetch {
        /// Directory, empty, existing.
        into: PathBuf,
    },
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
        /// What the data is part of, kept with the snapshot.
        #[serde(default)]
        definition: Option<String>,
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
        /// Only what lies at this path of it, and the directories above.
        #[serde(default)]
        path: Option<PathBuf>,
    },
    /// Reads what was kept with a snapshot about what its data is part of.
    Definition {
        /// Which snapshot.
        snapshot: SnapshotId,
    },
    /// Looks whether a snapshot holds something at a path.
    Find {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Relative path.
        path: PathBuf,
    },
    /// Writes a snapshot as a tar file with one top directory.
    Export {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// File to write; must not exist.
        tar: PathBuf,
        /// Name of the top directory.
        top: String,
        /// Only what lies at this path of it, and the directories above.
        #[serde(default)]
        path: Option<PathBuf>,
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
        /// Only what lies at this path of the snapshot, and the directories above: all that the data may hold.
        #[serde(default)]
        path: Option<PathBuf>,
    },
    /// Compares data with a snapshot, and reads all that the repository stores of it: what is equal here comes back from there.
    Prove {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// The data.
        against: Source,
    },
}

impl Job {
    /// Most memory for it, MiB, unless the configuration says otherwise. What reads a snapshot out must fit beside everything else of a small host; what
    /// writes, checks or prunes works on several packs for each processor.
    pub fn memory_mib(&self) -> u64 {
        match self {
            Self::Probe
            | Self::Fetch { .. }
            | Self::List
            | Self::Plain { .. }
            | Self::Restore { .. }
            | Self::Definition { .. }
            | Self::Find { .. }
            | Self::Export { .. }
            | Self::Verify { .. }
            | Self::Prove { .. } => READING_MIB,
            Self::Init | Self::Backup { .. } | Self::Check { .. } | Self::Forget { .. } | Self::Copy { .. } => {
                WRITING_MIB + WRITING_MIB_FOR_EACH * std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
            }
        }
    }

    /// Whether it changes the repository it is asked of.
    #[cfg(feature = "backup")]
    fn writes(&self) -> bool {
        match self {
            Self::Init | Self::Backup { .. } | Self::Forget { .. } => true,
            Self::Probe
            | Self::Copy { .. }
            | Self::Fetch { .. }
            | Self::List
            | Self::Check { .. }
            | Self::Plain { .. }
            | Self::Restore { .. }
            | Self::Definition { .. }
            | Self::Find { .. }
            | Self::Export { .. }
            | Self::Verify { .. }
            | Self::Prove { .. } => false,
        }
    }
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

/// Takes progress; called at most four times a second.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// What a job gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// From `Probe`, the repository is there; from `Find`, the path is.
    Ready,
    /// From `Init`: the repository is there and the key opens it.
    Opened {
        /// Its id, which no other repository has.
        id: String,
    },
    /// From `Backup`.
    Snapshot(SnapshotReport),
    /// From `Definition`.
    Definition(Option<String>),
    /// From `List`.
    Snapshots(Vec<SnapshotInfo>),
    /// From `Check`.
    Checked(CheckReport),
    /// From `Verify` and `Prove`: what is wrong, empty = all is well.
    Findings(Vec<String>),
    /// The same, where the snapshot has no SHA-256 of some of its files, as those that restic takes: these were compared by the ids of their chunks alone.
    FoundByPieces(Vec<String>),
    /// From `Restore` and `Export`.
    Restored(RestoreReport),
    /// From `Plain`.
    Plain(PlainReport),
    /// From `Copy`.
    Copied(CopyReport),
    /// From `Fetch`: how many files.
    Fetched(u64),
    /// From `Forget`: how many snapshots were removed.
    Forgotten(u64),
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
    yield_memory();
    match handle(&request, sink) {
        Ok(output) => last_line(&out, &Line::Done(output)),
        Err(failure) => last_line(&out, &Line::Failed(failure)),
    }
}

/// Where memory gets short, the kernel takes this process and not the supervisor or what it looks after.
fn yield_memory() {
    // Raising it needs no right; where there is no such file there is no such choice.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
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
