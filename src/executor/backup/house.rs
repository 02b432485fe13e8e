//! The supervisor's side of a repository: what can be asked of it, each piece of work done through the port (`BackupStore`), by a process of its own (`child`).
//! Deliberately absent: the repository itself; that lives in the child.

mod child;
mod known;

pub use child::WorkerProcess;

use super::copies::SecondCopy;
use super::{BackupError, BackupStore, Failure, PlainReport, ProgressSink, RestoreReport, SnapshotInfo, SnapshotReport};
use crate::executor::worker::{CheckReport, Claim, CopyReport, Job, Output, Remote, Request, Source};
use crate::model::ids::{SnapshotId, StackName};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// Pause before a repository that others read is asked again whether it can be had alone.
const ALONE_AGAIN: Duration = Duration::from_secs(2);

/// The backup repository of one home.
#[derive(Debug, Clone)]
pub struct BackupHouse {
    /// `<home>/backups`; of a repository on another host only the name of its lock.
    pub repo: PathBuf,
    /// Where the repository is instead, on another host.
    pub remote: Option<Remote>,
    /// Who writes its directory, when that is not in the home.
    pub claim: Option<Claim>,
    /// Second repositories that get its snapshots, too.
    pub copies: Arc<Vec<SecondCopy>>,
    /// Where archives on their way and plain exports lie: the home.
    pub beside: PathBuf,
    /// `<home>/keys/backup.key`: 256 random bits in hexadecimal, mode 0600, made on first use. Whoever loses it loses the backups.
    pub key_file: PathBuf,
    /// Who does the work.
    pub worker: Arc<dyn BackupStore>,
    /// Longest life of one piece of work.
    pub time_limit: Duration,
    /// Most memory of one piece of work, MiB; by what it is when absent ([`Job::memory_mib`]).
    pub memory_mib: Option<u64>,
    /// Held shared by whoever holds containers still, alone by what removes from the repository: nobody stays paused for a prune.
    pub(crate) calm: Arc<RwLock<()>>,
}

/// What a comparison of data with a snapshot found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compared {
    /// `path: what`; empty = equal.
    pub(crate) differences: Vec<String>,
    /// Whether the SHA-256 of every file was recorded when it was backed up; otherwise those without one were compared by the ids of their pieces.
    pub(crate) by_sums: bool,
}

/// One snapshot to be taken.
#[derive(Clone)]
pub struct BackupRequest {
    /// Directory to read.
    pub path: PathBuf,
    /// Source it is recorded under: a volume's name, a directory of the host, or what stands for a command's output.
    pub volume: String,
    /// Stack.
    pub stack: Option<StackName>,
    /// Instance id.
    pub instance: String,
    /// Further tags, no commas.
    pub tags: Vec<String>,
    /// What the data is part of, kept with the snapshot.
    pub definition: Option<String>,
    /// Takes progress.
    pub progress: ProgressSink,
}

impl std::fmt::Debug for BackupRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupRequest")
            .field("path", &self.path)
            .field("volume", &self.volume)
            .field("stack", &self.stack)
            .finish_non_exhaustive()
    }
}

impl BackupHouse {
    /// The house of a home, whose work processes of this binary do.
    pub fn of(home: &Path, exe: PathBuf, time_limit: Duration) -> Self {
        Self::with(home, Arc::new(WorkerProcess::new(exe)), time_limit)
    }

    /// The house of a home.
    pub fn with(home: &Path, worker: Arc<dyn BackupStore>, time_limit: Duration) -> Self {
        Self {
            repo: home.join("backups"),
            remote: None,
            claim: None,
            copies: Arc::default(),
            beside: home.to_owned(),
            key_file: home.join("keys/backup.key"),
            worker,
            time_limit,
            memory_mib: None,
            calm: Arc::default(),
        }
    }

    /// Makes key and repository on first use; afterwards checks that the one opens the other, and that it is the one that was there.
    ///
    /// # Errors
    /// `Key` when a repository exists and its key does not: a new key could not open it. `NotThere` and `OtherRepository` when what was there is not.
    pub async fn ensure(&self) -> Result<(), BackupError> {
        if self.remote.is_some() && !self.key_file.exists() {
            match self.probe().await {
                Ok(()) => return Err(self.key_is_missing()),
                Err(BackupError::Worker(Failure::NoRepository { .. })) => {}
                Err(e) => return Err(e),
            }
        }
        let house = self.clone();
        tokio::task::spawn_blocking(move || house.ensure_key())
            .await
            .map_err(|e| BackupError::WorkerLost { what: "could not prepare its key", detail: e.to_string() })?
            .map(|made| {
                if made {
                    let (key, place) = (self.key_file.display(), self.place());
                    tracing::warn!(%key, repository = %place, "a key was made, without which no backup opens: copy it once to where no copy of the repository is");
                }
            })?;
        match self.run(Job::Init, Arc::new(|_| {})).await? {
            Output::Opened { id } => self.now_known(&id),
            other => Err(unexpected(&other)),
        }
    }

    /// Looks whether the repository is there; its key is not needed.
    ///
    /// # Errors
    /// `NoRepository`, and as for every piece of work.
    pub async fn probe(&self) -> Result<(), BackupError> {
        match self.run(Job::Probe, Arc::new(|_| {})).await? {
            Output::Ready => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds snapshots to another repository that is there; those it has are left out.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn copy_to(&self, to: &Self, snapshots: Vec<SnapshotId>, progress: ProgressSink) -> Result<CopyReport, BackupError> {
        let (remote, claim, key_file) = (to.remote.clone(), to.claim.clone(), to.key_file.clone());
        let job = Job::Copy { snapshots, to: to.repo.clone(), remote, claim, key_file };
        match self.run(job, progress).await? {
            Output::Copied(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Copies the repository's files as they are into an empty directory.
    ///
    /// # Errors
    /// `TargetNotEmpty`, `NoRepository`, and as for every piece of work.
    pub async fn fetch(&self, into: &Path) -> Result<u64, BackupError> {
        match self.run(Job::Fetch { into: into.to_owned() }, Arc::new(|_| {})).await? {
            Output::Fetched(files) => Ok(files),
            other => Err(unexpected(&other)),
        }
    }

    /// Where the repository is, for people.
    pub fn place(&self) -> String {
        self.remote.as_ref().map_or_else(|| self.repo.display().to_string(), |r| r.target.at.to_string())
    }

    /// Takes a snapshot of a directory.
    ///
    /// # Errors
    /// A `Worker` failure, `WorkerLost` or `TimedOut`. Files that cannot be read are no error: the report is then `partial` and names them.
    pub async fn backup_dir(&self, request: BackupRequest) -> Result<SnapshotReport, BackupError> {
        let source = Source::Dir(request.path.clone());
        self.backup(request, source).await
    }

    pub(super) async fn backup(&self, request: BackupRequest, source: Source) -> Result<SnapshotReport, BackupError> {
        let BackupRequest { path: _, volume, stack, instance, tags, definition, progress } = request;
        let job = Job::Backup { source, volume, stack: stack.map(Into::into), instance, tags, definition };
        match self.run(job, progress).await? {
            Output::Snapshot(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes snapshots, and what no snapshot needs any more, as soon as nobody reads the repository or holds containers still.
    ///
    /// # Errors
    /// `InUse` when others were at work on it for the whole time limit, and as for every piece of work.
    pub async fn forget(&self, snapshots: Vec<SnapshotId>) -> Result<u64, BackupError> {
        let begun = Instant::now();
        loop {
            // Asked for anew each time and never waited for: a backup, a drill or an export may read for long, and a lock that is waited for would keep
            // everybody else from holding containers meanwhile.
            let done = match self.calm.try_write() {
                Ok(_alone) => self.run(Job::Forget { snapshots: snapshots.clone() }, Arc::new(|_| {})).await,
                Err(_) => Err(Failure::InUse { repo: self.place() }.into()),
            };
            match done {
                Ok(Output::Forgotten(n)) => return Ok(n),
                Ok(other) => return Err(unexpected(&other)),
                Err(BackupError::Worker(Failure::InUse { .. })) if begun.elapsed() < self.time_limit => {}
                Err(e) => return Err(e),
            }
            tokio::time::sleep(ALONE_AGAIN).await;
        }
    }

    /// Waits until nothing is being removed from the repository, and keeps it so: taken before containers are held still, kept until they run again.
    pub(crate) async fn calm(&self) -> OwnedRwLockReadGuard<()> {
        self.calm.clone().read_owned().await
    }

    /// Snapshots in the repository, newest first, ours and others'.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn list(&self) -> Result<Vec<SnapshotInfo>, BackupError> {
        match self.run(Job::List, Arc::new(|_| {})).await? {
            Output::Snapshots(snapshots) => Ok(snapshots),
            other => Err(unexpected(&other)),
        }
    }

    /// Checks the repository; what is wrong, in words, empty = sound. `read_data` also reads every pack.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn check(&self, read_data: bool) -> Result<Vec<String>, BackupError> {
        Ok(self.checked(Job::Check { read_data, part: None }).await?.wrong)
    }

    /// Checks the repository and reads one of so many parts of its data.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn check_part(&self, part: (u32, u32)) -> Result<CheckReport, BackupError> {
        self.checked(Job::Check { read_data: true, part: Some(part) }).await
    }

    /// Writes a snapshot as `*.tar.zst` with its SHA-256 beside it.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn plain(&self, snapshot: &SnapshotId, file: &Path, top: &str) -> Result<PlainReport, BackupError> {
        match self.run(Job::Plain { snapshot: snapshot.clone(), file: file.to_owned(), top: top.to_owned() }, Arc::new(|_| {})).await? {
            Output::Plain(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Directory of plain exports, beneath the home.
    pub fn exports(&self) -> PathBuf {
        self.beside.join("exports")
    }

    /// Removes what a killed supervisor left on its way. Called before any work begins.
    ///
    /// # Errors
    /// `Io`.
    pub fn sweep_spool(&self) -> Result<(), BackupError> {
        match std::fs::remove_dir_all(self.spool()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(BackupError::io(&self.spool(), &e)),
            _ => Ok(()),
        }
    }

    /// Writes a snapshot's files into an empty directory.
    ///
    /// # Errors
    /// `TargetNotEmpty`, `UnknownSnapshot`, and as for every piece of work.
    pub async fn restore(&self, snapshot: &SnapshotId, into: &Path) -> Result<RestoreReport, BackupError> {
        self.restore_part(snapshot, into, None).await
    }

    /// As [`Self::restore`], of what lies at one path alone, with the directories above it.
    ///
    /// # Errors
    /// As [`Self::restore`]; `NoSuchPath`.
    pub async fn restore_part(&self, snapshot: &SnapshotId, into: &Path, path: Option<&Path>) -> Result<RestoreReport, BackupError> {
        let path = path.map(Path::to_owned);
        self.restored(Job::Restore { snapshot: snapshot.clone(), into: into.to_owned(), path }).await
    }

    /// What was kept with a snapshot about what its data is part of.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn definition(&self, snapshot: &SnapshotId) -> Result<Option<String>, BackupError> {
        match self.run(Job::Definition { snapshot: snapshot.clone() }, Arc::new(|_| {})).await? {
            Output::Definition(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Looks whether a snapshot holds something at a path.
    ///
    /// # Errors
    /// `NoSuchPath` with the nearest names, and as for every piece of work.
    pub async fn find(&self, snapshot: &SnapshotId, path: &Path) -> Result<(), BackupError> {
        match self.run(Job::Find { snapshot: snapshot.clone(), path: path.to_owned() }, Arc::new(|_| {})).await? {
            Output::Ready => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Differences between a directory and a snapshot; empty = equal in every byte and attribute.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn verify(&self, snapshot: &SnapshotId, dir: &Path) -> Result<Vec<String>, BackupError> {
        Ok(self.verify_source(snapshot, Source::Dir(dir.to_owned()), None).await?.differences)
    }

    pub(crate) async fn verify_source(&self, snapshot: &SnapshotId, against: Source, path: Option<&Path>) -> Result<Compared, BackupError> {
        self.compared(Job::Verify { snapshot: snapshot.clone(), against, path: path.map(Path::to_owned) }).await
    }

    /// As [`Self::verify_source`], and everything the repository stores of it is read: before data goes that only the snapshot holds then.
    pub(crate) async fn prove(&self, snapshot: &SnapshotId, against: Source) -> Result<Vec<String>, BackupError> {
        Ok(self.compared(Job::Prove { snapshot: snapshot.clone(), against }).await?.differences)
    }

    /// Lets go of what killed and failed backups left, in two steps a day apart; `false` when others are at work and it was left for another day.
    pub(crate) async fn tidy(&self) -> Result<bool, BackupError> {
        let Ok(_alone) = self.calm.try_write() else { return Ok(false) };
        match self.run(Job::Forget { snapshots: vec![] }, Arc::new(|_| {})).await {
            Ok(Output::Forgotten(_)) => Ok(true),
            Ok(other) => Err(unexpected(&other)),
            Err(BackupError::Worker(Failure::InUse { .. })) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(crate) async fn export(
        &self,
        snapshot: &SnapshotId,
        tar: &Path,
        top: &str,
        path: Option<&Path>,
    ) -> Result<RestoreReport, BackupError> {
        let path = path.map(Path::to_owned);
        self.restored(Job::Export { snapshot: snapshot.clone(), tar: tar.to_owned(), top: top.to_owned(), path }).await
    }

    /// Is there once somebody was told where the key is, to keep a copy of it.
    pub fn key_told(&self) -> PathBuf {
        self.key_file.with_extension("told")
    }

    /// Directory for archives on their way, beneath the home.
    pub(crate) fn spool(&self) -> PathBuf {
        self.beside.join("spool")
    }

    /// What restic needs to work on the repository.
    pub fn restic_env(&self) -> Vec<(String, String)> {
        let mut env = vec![
            (
                "RESTIC_REPOSITORY".to_owned(),
                self.remote.as_ref().map_or_else(|| self.repo.display().to_string(), |r| r.target.at.restic()),
            ),
            ("RESTIC_PASSWORD_FILE".to_owned(), self.key_file.display().to_string()),
        ];
        if let Some(target) = self.remote.as_ref().map(|r| &r.target) {
            env.extend(target.region.iter().map(|r| ("AWS_DEFAULT_REGION".to_owned(), r.clone())));
            env.extend(target.credentials_file.iter().map(|f| ("AWS_SHARED_CREDENTIALS_FILE".to_owned(), f.display().to_string())));
        }
        env
    }

    async fn run(&self, job: Job, progress: ProgressSink) -> Result<Output, BackupError> {
        // Half of the limit, so that one that waits in vain can say so before it is stopped for it.
        let lock_within_s = Some((self.time_limit / 2).as_secs());
        let (repo, remote, key_file) = (self.repo.clone(), self.remote.clone(), self.key_file.clone());
        let expected = if job == Job::Init { self.known()? } else { vec![] };
        let (known, claim) = (Some(self.known_file()), self.claim.clone());
        let apart: Vec<PathBuf> = self.copies.iter().map(|c| &c.house).filter(|h| h.remote.is_none()).map(|h| h.repo.clone()).collect();
        let request = Request { repo, remote, key_file, lock_within_s, expected, known, claim, apart, job };
        match tokio::time::timeout(self.time_limit, self.worker.ask(&request, self.memory_mib, progress)).await {
            Ok(result) => result,
            // It ends with the future that was dropped.
            Err(_) => Err(BackupError::TimedOut { after: self.time_limit }),
        }
    }

    async fn checked(&self, job: Job) -> Result<CheckReport, BackupError> {
        match self.run(job, Arc::new(|_| {})).await? {
            Output::Checked(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    async fn compared(&self, job: Job) -> Result<Compared, BackupError> {
        match self.run(job, Arc::new(|_| {})).await? {
            Output::Findings(differences) => Ok(Compared { differences, by_sums: true }),
            Output::FoundByPieces(differences) => Ok(Compared { differences, by_sums: false }),
            other => Err(unexpected(&other)),
        }
    }

    async fn restored(&self, job: Job) -> Result<RestoreReport, BackupError> {
        match self.run(job, Arc::new(|_| {})).await? {
            Output::Restored(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    fn key_is_missing(&self) -> BackupError {
        let detail = format!(
            "it is missing, and {} cannot be opened without it; put back the copy you keep, or move that repository away to start a new one",
            self.place()
        );
        BackupError::Key { path: self.key_file.display().to_string(), detail }
    }

    /// Whether it was made.
    fn ensure_key(&self) -> Result<bool, BackupError> {
        use std::io::Write;
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let bad = |detail: String| BackupError::Key { path: self.key_file.display().to_string(), detail };
        if self.key_file.exists() {
            return Ok(false);
        }
        if self.remote.is_none() && self.repo.join("config").exists() {
            return Err(self.key_is_missing());
        }
        let directory = self.key_file.parent().ok_or_else(|| bad("has no directory".to_owned()))?;
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|e| bad(e.to_string()))?;
        let text: String = key.iter().map(|b| format!("{b:02x}")).collect();
        let written = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).and_then(|()| {
            // Written aside and renamed: a crash must not leave half a key that a repository could then be made with.
            let aside = self.key_file.with_extension("new");
            let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(format!("{text}\n").as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&aside, &self.key_file)?;
            std::fs::File::open(directory)?.sync_all()
        });
        written.map(|()| true).map_err(|e| bad(e.to_string()))
    }
}

fn unexpected(output: &Output) -> BackupError {
    Failure::Protocol { detail: format!("unexpected answer {output:?}") }.into()
}

#[cfg(test)]
#[cfg(feature = "backup")]
pub(crate) mod tests;
