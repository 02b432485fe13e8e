//! The worker process as the supervisor sees it: what it answers, and how it ends.

mod faults;
mod memory;

use super::*;
use crate::executor::backup::{Progress, SnapshotState};
use crate::executor::worker::{Job, Request};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;
use std::sync::Mutex;
use tokio::io::AsyncWriteExt;

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
        definition: None,
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
    assert!(died.contains("ended without an answer") && died.contains("exit status: 7") && died.contains("broken pipe dream"), "{died}");
    house.worker = Arc::new(WorkerProcess::new(dir.path().join("none")));
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
    let mut child = tokio::process::Command::new(dir.path().join("worker.sh"))
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let request = Request {
        repo: house.repo.clone(),
        remote: None,
        key_file: house.key_file.clone(),
        lock_within_s: None,
        expected: vec![],
        known: None,
        claim: None,
        apart: vec![],
        job: Job::List,
    };
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

#[tokio::test]
async fn a_place_whose_repository_was_there_gets_no_new_one_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path(), "");
    house.ensure().await.unwrap();
    fs::rename(&house.repo, dir.path().join("unmounted")).unwrap();
    fs::create_dir(&house.repo).unwrap();
    let gone = house.ensure().await.unwrap_err();
    let file = house.known_file().display().to_string();
    assert!(matches!(&gone, BackupError::Worker(Failure::NotThere { known, .. }) if *known == file), "{gone}");
    assert_eq!(fs::read_dir(&house.repo).unwrap().count(), 0);
    fs::remove_file(&file).unwrap();
    house.ensure().await.unwrap();
    // Disks that take turns: each id is a line.
    let other = fs::read_to_string(&file).unwrap();
    fs::remove_dir_all(&house.repo).unwrap();
    fs::rename(dir.path().join("unmounted"), &house.repo).unwrap();
    let error = house.ensure().await.unwrap_err();
    let BackupError::Worker(Failure::OtherRepository { id, .. }) = &error else { panic!("{error}") };
    fs::write(&file, format!("{other}{id}\n")).unwrap();
    house.ensure().await.unwrap();
}
