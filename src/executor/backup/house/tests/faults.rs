//! What goes wrong with a repository and with what is read, each through the worker process: the error names it, no snapshot lies, and what was there before
//! stays sound.

use super::house;
use crate::executor::backup::SnapshotState;
use crate::executor::backup::house::*;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

/// A house with one snapshot of `data`, which holds one small file.
async fn world() -> (tempfile::TempDir, BackupHouse, SnapshotReport) {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path(), "");
    house.ensure().await.unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/small"), "x").unwrap();
    let report = house.backup_dir(request(dir.path().join("data"))).await.unwrap();
    (dir, house, report)
}

fn request(path: PathBuf) -> BackupRequest {
    let (volume, instance) = ("v".to_owned(), "01test".to_owned());
    BackupRequest { path, volume, stack: None, instance, tags: vec![], definition: None, progress: Arc::new(|_| {}) }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0u8; bytes];
    getrandom::fill(&mut noise).unwrap();
    noise
}

/// The repository is sound and holds what it held.
async fn sound(house: &BackupHouse, first: &SnapshotReport) {
    let listed: Vec<String> = house.list().await.unwrap().into_iter().map(|s| s.snapshot_id.to_string()).collect();
    assert_eq!(listed, [first.snapshot_id.to_string()], "no snapshot that lies");
    assert_eq!(house.check(true).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_repository_that_others_are_at_work_on_is_named_as_locked() {
    let (dir, mut house, first) = world().await;
    let lock = fs::File::open(dir.path().join("home/backups.lock")).unwrap();
    lock.lock().unwrap();
    let limit = std::mem::replace(&mut house.time_limit, Duration::from_secs(6));
    let error = house.backup_dir(request(dir.path().join("data"))).await.unwrap_err();
    assert!(matches!(&error, BackupError::Worker(Failure::Locked { waited_s: 3, .. })), "{error}");
    // One that only reads keeps out one that removes, and lets others read.
    lock.unlock().unwrap();
    lock.lock_shared().unwrap();
    let error = house.forget(vec![first.snapshot_id.clone()]).await.unwrap_err();
    assert!(matches!(&error, BackupError::Worker(Failure::InUse { .. })), "{error}");
    lock.unlock().unwrap();
    house.time_limit = limit;
    sound(&house, &first).await;
}

#[tokio::test]
async fn a_key_of_another_repository_opens_nothing_and_writes_nothing() {
    let (dir, house, first) = world().await;
    let key = fs::read(&house.key_file).unwrap();
    fs::write(&house.key_file, "ab".repeat(32)).unwrap();
    let refused = |e: BackupError| {
        assert!(
            matches!(&e, BackupError::Worker(Failure::WrongKey { key_file, .. }) if *key_file == house.key_file.display().to_string()),
            "{e}"
        );
    };
    refused(house.backup_dir(request(dir.path().join("data"))).await.unwrap_err());
    refused(house.forget(vec![first.snapshot_id.clone()]).await.unwrap_err());
    fs::write(&house.key_file, "no key").unwrap();
    let error = house.list().await.unwrap_err();
    assert!(matches!(&error, BackupError::Worker(Failure::Key { .. })), "{error}");
    fs::write(&house.key_file, key).unwrap();
    sound(&house, &first).await;
}

#[tokio::test]
async fn a_damaged_pack_is_found_by_a_check_and_never_restored_as_if_it_were_whole() {
    let (dir, house, _) = world().await;
    fs::write(dir.path().join("data/large"), noise(3 << 20)).unwrap();
    let report = house.backup_dir(request(dir.path().join("data"))).await.unwrap();
    let mut packs = vec![];
    for below in fs::read_dir(house.repo.join("data")).unwrap() {
        packs.extend(fs::read_dir(below.unwrap().path()).unwrap().map(|e| e.unwrap().path()));
    }
    let pack = packs.into_iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().write(true).open(&pack).unwrap().write_at(b"damage", 100_000).unwrap();
    assert!(!house.check(true).await.unwrap().is_empty());
    let into = dir.path().join("into");
    fs::create_dir(&into).unwrap();
    let error = house.restore(&report.snapshot_id, &into).await.unwrap_err();
    assert!(matches!(&error, BackupError::Worker(Failure::Repository { .. } | Failure::Internal { .. })), "{error}");
    // What does not need it comes back: one bad pack is not all.
    let small = dir.path().join("into-small");
    fs::create_dir(&small).unwrap();
    house.restore_part(&report.snapshot_id, &small, Some(Path::new("small"))).await.unwrap();
    assert_eq!(fs::read_to_string(small.join("small")).unwrap(), "x");
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_makes_the_snapshot_partial_and_is_named() {
    let (dir, house, _) = world().await;
    let large = dir.path().join("data/large");
    fs::write(&large, noise(192 << 20)).unwrap();
    let (file, cut) = (fs::File::options().write(true).open(&large).unwrap(), std::sync::Mutex::new(false));
    // Progress is told once bytes have been read and long before the last one.
    let progress: ProgressSink = Arc::new(move |p| {
        let mut cut = cut.lock().unwrap();
        if p.bytes > 0 && !*cut {
            file.set_len(1).unwrap();
            *cut = true;
        }
    });
    let report = house.backup_dir(BackupRequest { progress, ..request(dir.path().join("data")) }).await.unwrap();
    assert_eq!((report.state, report.unreadable.len()), (SnapshotState::Partial, 1), "{report:?}");
    assert!(report.unreadable[0].starts_with("large: shrank by ") && report.unreadable[0].ends_with("while it was read"), "{report:?}");
    let listed = house.list().await.unwrap();
    assert_eq!(listed.iter().find(|s| s.snapshot_id == report.snapshot_id).unwrap().state, SnapshotState::Partial, "it says so itself");
    assert_eq!(house.check(true).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_disk_that_is_full_in_the_middle_of_a_pack_is_named_and_leaves_no_snapshot() {
    let (dir, house, first) = world().await;
    let script = fs::read_to_string(dir.path().join("worker.sh")).unwrap();
    // A limit on the size of files stands for the disk.
    let limited = dir.path().join("limited.sh");
    fs::write(&limited, script.replace("#!/bin/sh\n", "#!/bin/sh\nulimit -f 1024\ntrap '' XFSZ\n")).unwrap();
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
    let full = BackupHouse { worker: Arc::new(WorkerProcess::new(limited)), ..house.clone() };
    fs::write(dir.path().join("data/large"), noise(24 << 20)).unwrap();
    let error = full.backup_dir(request(dir.path().join("data"))).await.unwrap_err();
    assert!(error.to_string().contains("File too large"), "{error}");
    sound(&house, &first).await;
    let report = house.backup_dir(request(dir.path().join("data"))).await.unwrap();
    assert_eq!((report.state, report.files), (SnapshotState::Complete, 2), "with room it is done");
}
