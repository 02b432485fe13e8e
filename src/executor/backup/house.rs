//! The supervisor's side of the worker: starts `dockwarden worker` for each piece of repository work, gives it its request, follows its
//! lines, and ends it at the time limit. Deliberately absent: the repository itself; that lives in the child.

use super::room::leaves_a_tenth;
use super::{BackupError, Failure, PlainReport, ProgressSink, RestoreReport, SnapshotInfo, SnapshotReport};
use crate::executor::worker::{Job, Line, Output, Request, Source};
use crate::model::ids::{SnapshotId, StackName};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// End of the worker's error output that is kept for a report, bytes.
const ERROR_TAIL: usize = 2000;
/// Pause before a repository that others read is asked again whether it can be had alone.
const ALONE_AGAIN: Duration = Duration::from_secs(2);

/// The backup repository of one home.
#[derive(Debug, Clone)]
pub struct BackupHouse {
    /// `<home>/backups`.
    pub repo: PathBuf,
    /// `<home>/keys/backup.key`: 256 random bits in hexadecimal, mode 0600, made on first use. Whoever loses it loses the backups.
    pub key_file: PathBuf,
    /// Our own binary.
    pub exe: PathBuf,
    /// Longest life of one worker.
    pub time_limit: Duration,
    /// Held shared by whoever holds containers still, alone by what removes from the repository: nobody stays paused for a prune.
    pub(crate) calm: Arc<RwLock<()>>,
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
    /// The house of a home.
    pub fn of(home: &Path, exe: PathBuf, time_limit: Duration) -> Self {
        Self { repo: home.join("backups"), key_file: home.join("keys/backup.key"), exe, time_limit, calm: Arc::default() }
    }

    /// Makes key and repository on first use; afterwards checks that the one opens the other.
    ///
    /// # Errors
    /// `Key` when a repository exists and its key does not: a new key could not open it.
    pub async fn ensure(&self) -> Result<(), BackupError> {
        let house = self.clone();
        tokio::task::spawn_blocking(move || house.ensure_key())
            .await
            .map_err(|e| BackupError::WorkerLost { what: "could not prepare its key", detail: e.to_string() })??;
        match self.run(Job::Init, Arc::new(|_| {})).await? {
            Output::Ready => Ok(()),
            other => Err(unexpected(&other)),
        }
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
        let BackupRequest { path: _, volume, stack, instance, tags, progress } = request;
        let job = Job::Backup { source, volume, stack: stack.map(Into::into), instance, tags };
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
                Err(_) => Err(Failure::InUse { repo: self.repo.display().to_string() }.into()),
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
        self.findings(Job::Check { read_data, part: None }).await
    }

    /// Checks the repository and reads one of so many parts of its data.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn check_part(&self, part: (u32, u32)) -> Result<Vec<String>, BackupError> {
        self.findings(Job::Check { read_data: true, part: Some(part) }).await
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

    /// Directory of plain exports: beside the repository, beneath the home.
    pub fn exports(&self) -> PathBuf {
        self.repo.with_file_name("exports")
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
        self.restored(Job::Restore { snapshot: snapshot.clone(), into: into.to_owned() }).await
    }

    /// Differences between a directory and a snapshot; empty = equal in every byte and attribute.
    ///
    /// # Errors
    /// As for every piece of work.
    pub async fn verify(&self, snapshot: &SnapshotId, dir: &Path) -> Result<Vec<String>, BackupError> {
        self.verify_source(snapshot, Source::Dir(dir.to_owned())).await
    }

    pub(crate) async fn verify_source(&self, snapshot: &SnapshotId, against: Source) -> Result<Vec<String>, BackupError> {
        self.findings(Job::Verify { snapshot: snapshot.clone(), against }).await
    }

    pub(crate) async fn export(&self, snapshot: &SnapshotId, tar: &Path, top: &str) -> Result<RestoreReport, BackupError> {
        self.restored(Job::Export { snapshot: snapshot.clone(), tar: tar.to_owned(), top: top.to_owned() }).await
    }

    /// Directory for archives on their way: beside the repository, beneath the home.
    pub(crate) fn spool(&self) -> PathBuf {
        self.repo.with_file_name("spool")
    }

    /// What restic needs to work on the repository.
    pub fn restic_env(&self) -> Vec<(String, String)> {
        vec![
            ("RESTIC_REPOSITORY".to_owned(), self.repo.display().to_string()),
            ("RESTIC_PASSWORD_FILE".to_owned(), self.key_file.display().to_string()),
        ]
    }

    async fn findings(&self, job: Job) -> Result<Vec<String>, BackupError> {
        match self.run(job, Arc::new(|_| {})).await? {
            Output::Findings(found) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    async fn restored(&self, job: Job) -> Result<RestoreReport, BackupError> {
        match self.run(job, Arc::new(|_| {})).await? {
            Output::Restored(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    fn ensure_key(&self) -> Result<(), BackupError> {
        use std::io::Write;
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let bad = |detail: String| BackupError::Key { path: self.key_file.display().to_string(), detail };
        if self.key_file.exists() {
            return Ok(());
        }
        if self.repo.join("config").exists() {
            return Err(bad(format!(
                "it is missing, and {} cannot be opened without it; put back the copy you keep, or move that repository away to start a new one",
                self.repo.display()
            )));
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
        written.map_err(|e| bad(e.to_string()))
    }

    /// Refuses to write into the last tenth of the disk the repository is on.
    ///
    /// # Errors
    /// `DiskFull`, or `Io` when the disk cannot be asked.
    pub fn room(&self) -> Result<(), BackupError> {
        let there = self.repo.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let disk = rustix::fs::statvfs(there).map_err(|e| BackupError::io(there, &e.into()))?;
        let mebibytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize) >> 20;
        let (free, total) = (mebibytes(disk.f_bavail), mebibytes(disk.f_blocks));
        if leaves_a_tenth(free, total, 0) {
            Ok(())
        } else {
            Err(BackupError::DiskFull { repo: self.repo.display().to_string(), free, total })
        }
    }

    async fn run(&self, job: Job, progress: ProgressSink) -> Result<Output, BackupError> {
        let request = Request { repo: self.repo.clone(), key_file: self.key_file.clone(), job };
        match tokio::time::timeout(self.time_limit, self.run_unlimited(&request, progress)).await {
            Ok(result) => result,
            // The child was dropped with the future, and dies with it.
            Err(_) => Err(BackupError::TimedOut { after: self.time_limit }),
        }
    }

    async fn run_unlimited(&self, request: &Request, progress: ProgressSink) -> Result<Output, BackupError> {
        let lost = |what: &'static str, detail: String| BackupError::WorkerLost { what, detail };
        let mut line = serde_json::to_vec(request).map_err(|e| lost("was not asked", e.to_string()))?;
        line.push(b'\n');
        let mut child = tokio::process::Command::new(&self.exe)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| lost("could not be started", format!("{}: {e}", self.exe.display())))?;
        let mut stdin = child.stdin.take().expect("was piped");
        let stdout = child.stdout.take().expect("was piped");
        let stderr = child.stderr.take().expect("was piped");
        let tail = tokio::spawn(error_tail(stderr));
        let asked = stdin.write_all(&line).await;
        let mut lines = BufReader::new(stdout).lines();
        let mut answer = None;
        while let Some(text) = lines.next_line().await.map_err(|e| lost("could not be read", e.to_string()))? {
            // Anything that is not of the protocol was printed by a library; it is not an answer.
            match serde_json::from_str::<Line>(&text) {
                Ok(Line::Progress(p)) => progress(p),
                Ok(Line::Done(output)) => answer = Some(Ok(output)),
                Ok(Line::Failed(failure)) => answer = Some(Err(failure)),
                Err(_) => tracing::debug!(line = %text, "worker printed"),
            }
            if answer.is_some() {
                break;
            }
        }
        // Closing its input is what ends a worker; until here it meant "go on".
        drop(stdin);
        let status = child.wait().await.map_err(|e| lost("could not be waited for", e.to_string()))?;
        match answer {
            Some(Ok(output)) => Ok(output),
            Some(Err(failure)) => Err(failure.into()),
            None => {
                let tail = tail.await.unwrap_or_default();
                let asked = asked.err().map(|e| format!("request not delivered: {e}; ")).unwrap_or_default();
                Err(lost(
                    "ended without an answer",
                    format!("{asked}{status}; {}", if tail.is_empty() { "it wrote no error" } else { tail.trim() }),
                ))
            }
        }
    }
}

async fn error_tail(mut stderr: tokio::process::ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0u8; 4096];
    while let Ok(n) = stderr.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..n]);
        let surplus = kept.len().saturating_sub(ERROR_TAIL);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn unexpected(output: &Output) -> BackupError {
    Failure::Protocol { detail: format!("unexpected answer {output:?}") }.into()
}

#[cfg(test)]
#[cfg(feature = "backup")]
pub(crate) mod tests {

    use super::*;
    use crate::executor::backup::{Progress, SnapshotState};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::sync::Mutex;

    /// Not a test of its own: what the tests beside it start as their worker.
    #[test]
    #[ignore = "started by the tests beside it"]
    fn worker_process() {
        if std::env::var_os("DOCKWARDEN_TEST_WORKER").is_some() {
            crate::executor::worker::worker_main();
        }
    }

    /// A house whose binary is this test binary, run by `prefix` (another user, for example).
    pub(crate) fn house(dir: &Path, prefix: &str) -> BackupHouse {
        let exe = dir.join("worker.sh");
        let me = std::env::current_exe().unwrap();
        let test = "executor::backup::house::tests::worker_process";
        let script = format!(
            "#!/bin/sh\nexport DOCKWARDEN_TEST_WORKER=1\necho noise\nexec {prefix} {} --exact {test} --ignored --nocapture\n",
            me.display()
        );
        fs::write(&exe, script).unwrap();
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
        BackupHouse::of(&dir.join("home"), exe, Duration::from_secs(120))
    }

    fn request(path: PathBuf) -> BackupRequest {
        BackupRequest {
            path,
            volume: "v".to_owned(),
            stack: None,
            instance: "01test".to_owned(),
            tags: Vec::new(),
            progress: Arc::new(|_| {}),
        }
    }

    #[tokio::test]
    async fn a_directory_goes_through_the_worker_process_and_comes_back_equal() {
        let dir = tempfile::tempdir().unwrap();
        let house = house(dir.path(), "");
        house.ensure().await.unwrap();
        house.ensure().await.unwrap();
        assert_eq!(fs::metadata(&house.key_file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::create_dir(dir.path().join("data")).unwrap();
        // Random, so that it takes long enough for progress to be told.
        let mut noise = vec![0u8; 64 << 20];
        getrandom::fill(&mut noise).unwrap();
        fs::write(dir.path().join("data/noise"), &noise).unwrap();
        let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
        let sink = seen.clone();
        let progress: ProgressSink = Arc::new(move |p| sink.lock().unwrap().push(p));
        let report = house.backup_dir(BackupRequest { progress, ..request(dir.path().join("data")) }).await.unwrap();
        assert_eq!((report.files, report.bytes, report.state), (1, 64 << 20, SnapshotState::Complete));
        assert!(seen.lock().unwrap().iter().all(|p| p.files == 1 && p.bytes <= 64 << 20) && !seen.lock().unwrap().is_empty());
        assert_eq!(house.list().await.unwrap().len(), 1);
        assert_eq!(house.check(true).await.unwrap(), Vec::<String>::new());
        let into = dir.path().join("into");
        fs::create_dir(&into).unwrap();
        assert_eq!(house.restore(&report.snapshot_id, &into).await.unwrap(), RestoreReport { files: 1, bytes: 64 << 20 });
        assert_eq!(house.verify(&report.snapshot_id, &into).await.unwrap(), Vec::<String>::new());
        let again = house.restore(&report.snapshot_id, &into).await.unwrap_err();
        assert!(matches!(&again, BackupError::Worker(Failure::TargetNotEmpty { path }) if *path == into.display().to_string()), "{again}");
        let restic =
            std::process::Command::new("restic").args(["--no-cache", "check", "--read-data"]).envs(house.restic_env()).output().unwrap();
        assert!(restic.status.success(), "{}", String::from_utf8_lossy(&restic.stderr));
    }

    #[tokio::test]
    async fn what_cannot_be_read_makes_the_snapshot_partial_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = house(dir.path(), "setpriv --reuid=65534 --regid=65534 --clear-groups");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("closed")).unwrap();
        fs::write(data.join("closed/inside"), "x").unwrap();
        fs::write(data.join("open"), "x").unwrap();
        fs::write(data.join("secret"), "x").unwrap();
        fs::set_permissions(data.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(data.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        nobody.ensure_key().unwrap();
        for path in [dir.path().join("home"), dir.path().join("home/keys"), nobody.key_file.clone()] {
            chown(path, Some(65534), Some(65534)).unwrap();
        }
        nobody.ensure().await.unwrap();
        let report = nobody.backup_dir(request(data.clone())).await.unwrap();
        let denied = "Permission denied (os error 13)";
        assert_eq!(
            (report.files, report.state, report.unreadable),
            (1, SnapshotState::Partial, vec![format!("closed: {denied}"), format!("secret: {denied}")])
        );
        assert_eq!(nobody.list().await.unwrap().iter().map(|s| s.state).collect::<Vec<_>>(), vec![SnapshotState::Partial]);
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        let error = nobody.backup_dir(request(data.clone())).await.unwrap_err();
        assert!(matches!(&error, BackupError::Worker(Failure::Io { path, .. }) if *path == data.display().to_string()), "{error}");
        assert_eq!(nobody.list().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_worker_that_hangs_dies_or_is_missing_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut house = house(dir.path(), "");
        let script = |text: &str| {
            fs::write(dir.path().join("worker.sh"), format!("#!/bin/sh\n{text}\n")).unwrap();
        };
        script("echo $$ > \"$0.pid\"; exec sleep 600");
        house.time_limit = Duration::from_millis(500);
        assert!(matches!(house.list().await, Err(BackupError::TimedOut { .. })));
        let pid: i32 = fs::read_to_string(dir.path().join("worker.sh.pid")).unwrap().trim().parse().unwrap();
        let state = || fs::read_to_string(format!("/proc/{pid}/stat")).ok().filter(|s| !s.contains(") Z "));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while state().is_some() {
            assert!(std::time::Instant::now() < deadline, "the worker outlives its time limit");
            tokio::task::yield_now().await;
        }
        house.time_limit = Duration::from_secs(60);
        script("echo broken pipe dream >&2; exit 7");
        let died = house.list().await.unwrap_err().to_string();
        assert!(
            died.contains("ended without an answer") && died.contains("exit status: 7") && died.contains("broken pipe dream"),
            "{died}"
        );
        house.exe = dir.path().join("none");
        assert!(house.list().await.unwrap_err().to_string().contains("could not be started"));
    }

    #[tokio::test]
    async fn a_worker_ends_when_its_supervisor_lets_go_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let house = house(dir.path(), "");
        house.ensure().await.unwrap();
        // A lock held here keeps the worker waiting inside its job.
        let lock = fs::File::open(dir.path().join("home/backups.lock")).unwrap();
        lock.lock().unwrap();
        let mut child = tokio::process::Command::new(&house.exe).arg("worker").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let request = Request { repo: house.repo.clone(), key_file: house.key_file.clone(), job: Job::List };
        stdin.write_all(format!("{}\n", serde_json::to_string(&request).unwrap()).as_bytes()).await.unwrap();
        drop(stdin);
        let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await.expect("it must end").unwrap();
        assert_eq!(status.code(), Some(75));
    }

    #[tokio::test]
    async fn a_missing_key_is_never_replaced_while_its_repository_exists() {
        let dir = tempfile::tempdir().unwrap();
        let house = house(dir.path(), "");
        house.ensure().await.unwrap();
        let key = fs::read(&house.key_file).unwrap();
        fs::remove_file(&house.key_file).unwrap();
        assert!(matches!(house.ensure().await, Err(BackupError::Key { .. })));
        assert!(!house.key_file.exists());
        fs::write(&house.key_file, key).unwrap();
        house.ensure().await.unwrap();
    }
}
