//! The cap on a worker's memory: one that uses more is ended with an error that says so, and a restore stays below 300 MB, whatever the data is.

use super::house;
use crate::executor::backup::SnapshotState;
use crate::executor::backup::house::*;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

fn request(path: PathBuf) -> BackupRequest {
    let (volume, instance) = ("v".to_owned(), "01test".to_owned());
    BackupRequest { path, volume, stack: None, instance, tags: vec![], definition: None, progress: Arc::new(|_| {}) }
}

/// A file of noise, which neither shrinks nor repeats.
fn noise(dir: &Path, name: &str, mib: usize) {
    let mut noise = vec![0u8; mib << 20];
    getrandom::fill(&mut noise).unwrap();
    fs::write(dir.join(name), &noise).unwrap();
}

/// A file of lines that shrink to a twentieth and never repeat.
fn text(dir: &Path, name: &str, mib: usize) {
    let mut file = std::io::BufWriter::new(fs::File::create(dir.join(name)).unwrap());
    let (mut written, mut n) = (0, 0u64);
    while written < mib << 20 {
        n += 1;
        let line = format!(
            "{n} GET /healthz HTTP/1.1 200 - the same words that a log of a service is full of, again and again and again, day by day\n"
        );
        file.write_all(line.as_bytes()).unwrap();
        written += line.len();
    }
}

#[tokio::test]
async fn a_worker_that_uses_more_memory_than_it_may_is_ended_with_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut house = house(dir.path(), "");
    house.ensure().await.unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    noise(&data, "a", 24);
    noise(&data, "b", 24);
    house.memory_mib = Some(12);
    let begun = Instant::now();
    let error = house.backup_dir(request(data.clone())).await.unwrap_err();
    assert!(matches!(&error, BackupError::OutOfMemory { mib: 12 }), "{error}");
    assert!(error.to_string().contains("`worker_memory_mib` of [backup] in dockwarden.toml"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it is ended at once");
    house.memory_mib = None;
    assert_eq!(house.list().await.unwrap(), vec![], "no snapshot that lies");
    let report = house.backup_dir(request(data)).await.unwrap();
    assert_eq!((report.files, report.state), (2, SnapshotState::Complete));
    assert_eq!(house.check(true).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restore_of_some_hundred_megabytes_stays_below_300_mb_also_of_what_shrinks() {
    const MOST_KIB: u64 = 300_000_000 / 1024;
    let dir = tempfile::tempdir().unwrap();
    let mut house = house(dir.path(), "");
    let worker = WorkerProcess::new(dir.path().join("worker.sh"));
    house.worker = Arc::new(worker.clone());
    house.ensure().await.unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    for n in 0..3 {
        noise(&data, &format!("noise-{n}"), 40);
        text(&data, &format!("text-{n}"), 96);
    }
    fs::File::create(data.join("zeros")).unwrap().set_len(256 << 20).unwrap();
    let report = house.backup_dir(request(data)).await.unwrap();
    assert!(report.added < 180 << 20, "the text shrinks: {report:?}");
    let backup = worker.peak_kib.swap(0, Ordering::Relaxed);
    let into = dir.path().join("into");
    fs::create_dir(&into).unwrap();
    // The cap of a restore is what it is by default: above it this would be an error.
    house.restore(&report.snapshot_id, &into).await.unwrap();
    let restored = worker.peak_kib.load(Ordering::Relaxed);
    assert_eq!(house.verify(&report.snapshot_id, &into).await.unwrap(), Vec::<String>::new());
    let compared = worker.peak_kib.load(Ordering::Relaxed);
    println!("backup {backup} KiB, restore {restored} KiB, compare {compared} KiB");
    assert!(restored > 1000 && compared < MOST_KIB, "restore {restored} KiB, compare {compared} KiB");
}

#[tokio::test]
async fn the_kernel_takes_a_worker_before_the_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path(), "");
    house.ensure().await.unwrap();
    // A lock held here keeps the worker inside its job.
    let lock = fs::File::open(dir.path().join("home/backups.lock")).unwrap();
    lock.lock().unwrap();
    let worker = dir.path().join("worker.sh");
    let script = fs::read_to_string(&worker).unwrap();
    fs::write(&worker, script.replace("#!/bin/sh\n", "#!/bin/sh\necho $$ > \"$0.pid\"\n")).unwrap();
    let waiting = house.clone();
    let work = tokio::spawn(async move { waiting.list().await });
    let deadline = Instant::now() + Duration::from_secs(60);
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    loop {
        let pid = fs::read_to_string(dir.path().join("worker.sh.pid")).unwrap_or_default();
        let adjusted = fs::read_to_string(format!("/proc/{}/oom_score_adj", pid.trim())).unwrap_or_default();
        if adjusted.trim() == "1000" {
            break;
        }
        assert!(Instant::now() < deadline, "worker: {adjusted:?}, own: {own:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lock.unlock().unwrap();
    assert_eq!(work.await.unwrap().unwrap(), vec![]);
}
