//! Second repositories as operations: what they hold, what is proven of them, and that the backup does not depend on them.

use super::*;
use crate::executor::backup::ForgetPlan;
use crate::model::target::BackupSettings;
use crate::store::backup::copies::CopyState;

/// An executor whose repository has one copy, `disk`, in a directory of its own.
fn with_copy(rig: &Rig, more: &str) -> Arc<Executor> {
    let at = rig.dir.path().join("disk/copy");
    let settings: BackupSettings = toml::from_str(&format!("[copies.disk]\nat = {at:?}\n{more}")).unwrap();
    let mut house = house::BackupHouse::of(&rig.dir.path().join("home"), rig.dir.path().join("worker.sh"), Duration::from_secs(60));
    house = house.configured(&settings, rig.store.instance());
    let options = Options { backups: Some(house), ..Options::default() };
    Executor::new(rig.engine.clone(), rig.store.clone(), Arc::new(|_, _| RequestFacts::default()), options)
}

async fn run(rig: &Rig, exec: &Arc<Executor>, verb: &str, job: DataJob) -> (Operation, DataResult) {
    let op = exec.submit_data(None, job, test_permit(), request(verb, None)).await.unwrap();
    rig.done(exec, &op).await
}

fn copy() -> DataJob {
    DataJob::Copy { copy: "disk".into() }
}

async fn state(rig: &Rig) -> CopyState {
    rig.store.copies(vec!["disk".into()]).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_copy_holds_the_snapshots_is_proven_by_itself_and_outlives_the_repository() {
    let rig = Rig::new().await;
    let exec = with_copy(&rig, "");
    let first = rig.snapshot().await;
    assert_eq!((state(&rig).await.last_good, state(&rig).await.missing), (None, 1));
    let drill = || DataJob::Drill { snapshots: vec![(first.clone(), None)], copy: Some("disk".into()) };
    let (op, done) = run(&rig, &exec, "verify_backup", drill()).await;
    assert!(op.state == OperationState::Failed && done.drills.is_empty(), "it is not there yet: {op:?}");
    assert!(op.message.as_deref().is_some_and(|m| m.contains("does not hold snapshot")), "{op:?}");

    let (op, done) = run(&rig, &exec, "backup", copy()).await;
    assert_eq!(op.message.as_deref(), Some("the copy disk holds 1 snapshots: 1 added, 0 removed"));
    assert!(done.copies[0].bytes > 0, "{:?}", done.copies);
    assert_eq!(rig.store.backups(None, None, 10).await.unwrap()[0].copies, ["disk"]);
    rig.engine.write_volume_file("shop_data", "a", b"two");
    let second = rig.snapshot().await;
    assert_eq!((state(&rig).await.held, state(&rig).await.missing), (1, 1));
    let (_, done) = run(&rig, &exec, "backup", copy()).await;
    assert_eq!((done.copies[0].copied, done.copies[0].held, done.copies[0].removed), (1, 2, 0));
    let (_, done) = run(&rig, &exec, "backup", copy()).await;
    assert_eq!((done.copies[0].copied, done.copies[0].held), (0, 2), "nothing is added twice");

    // What is removed from the repository stays in the copy by the copy's numbers: of two of one hour the newer.
    let plan = Box::new(ForgetPlan::new(&[first.clone(), second.clone()], &[first], &BTreeSet::new()));
    run(&rig, &exec, "prune", DataJob::Forget { plan }).await;
    let (_, done) = run(&rig, &exec, "backup", copy()).await;
    let house = exec.backups.clone().unwrap();
    let there = house.second("disk").unwrap().house.list().await.unwrap();
    assert_eq!((done.copies[0].removed, there.len()), (1, 1));
    assert_eq!(there[0].original.as_str(), second.snapshot_id);

    // The repository is lost: the copy is whole.
    std::fs::remove_dir_all(rig.dir.path().join("home/backups/data")).unwrap();
    let drill = |copy: Option<&str>| DataJob::Drill { snapshots: vec![(second.clone(), None)], copy: copy.map(str::to_owned) };
    let (op, _) = run(&rig, &exec, "verify_backup", drill(None)).await;
    assert_eq!(op.state, OperationState::Failed);
    let (op, done) = run(&rig, &exec, "verify_backup", drill(Some("disk"))).await;
    assert_eq!((op.state, done.drills[0].passed, done.drills[0].copy.as_deref()), (OperationState::Done, true, Some("disk")));
    assert_eq!(done.drills[0].snapshot_id, second.snapshot_id, "named as everybody knows it");
    let last = rig.store.last_drills(None, Some("shop_data")).await.unwrap();
    assert_eq!(last.iter().map(|d| (d.copy.as_deref(), d.passed)).collect::<Vec<_>>(), [(Some("disk"), true), (None, false)]);
    let (op, done) = run(&rig, &exec, "verify_backup", DataJob::Check { part: (1, 1), copy: Some("disk".into()) }).await;
    assert_eq!((op.state, done.checks[0].passed, done.checks[0].copy.as_deref()), (OperationState::Done, true, Some("disk")));
    assert_eq!(rig.volumes().await, ["shop_data"]);
}

#[tokio::test]
async fn a_copy_that_cannot_be_had_is_a_recorded_failure_and_no_failure_of_the_backup() {
    let rig = Rig::new().await;
    let exec = with_copy(&rig, "");
    std::fs::write(rig.dir.path().join("disk"), "not a directory").unwrap();
    let (op, done) = run(&rig, &exec, "backup", backup()).await;
    assert_eq!((op.state, done.snapshots.len()), (OperationState::Done, 1), "{op:?}");
    let (op, done) = run(&rig, &exec, "backup", copy()).await;
    assert!(
        op.state == OperationState::Failed && op.message.as_deref().is_some_and(|m| m.starts_with("the copy disk is not up to date: ")),
        "{op:?}"
    );
    assert!(!done.copies[0].passed && done.copies[0].detail.contains("disk/copy"), "{:?}", done.copies);
    let failed = state(&rig).await;
    assert_eq!((failed.last_good, failed.failed_at, &failed.detail), (None, Some(done.copies[0].at), &done.copies[0].detail));
    std::fs::remove_file(rig.dir.path().join("disk")).unwrap();
    let (op, done) = run(&rig, &exec, "backup", copy()).await;
    assert_eq!((op.state, done.copies[0].held), (OperationState::Done, 1), "{op:?}");
    let good = state(&rig).await;
    assert_eq!((good.last_good, good.failed_at, good.detail.as_str()), (Some(done.copies[0].at), None, ""));
    let (op, _) = run(&rig, &exec, "backup", DataJob::Copy { copy: "tape".into() }).await;
    assert!(op.message.as_deref().is_some_and(|m| m.contains("there is no copy tape: there are disk")), "{op:?}");
}

#[tokio::test]
async fn what_a_killed_backup_left_is_seen_to_by_the_check_and_is_no_fault() {
    let rig = Rig::new().await;
    rig.snapshot().await;
    let left = rig.dir.path().join("home/backups/data/00");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join(format!("00{}", "ab".repeat(31))), "half a pack").unwrap();
    let check = || DataJob::Check { part: (1, 7), copy: None };
    let (op, done) = run(&rig, &rig.exec, "verify_backup", check()).await;
    assert!(op.state == OperationState::Done && done.checks[0].passed && !done.checks[0].detail.is_empty(), "{op:?}");
    assert!(op.message.as_deref().is_some_and(|m| m.starts_with("sound; strange")), "{op:?}");
    // A day later.
    let note = rig.dir.path().join("home/backups.left");
    let noted = std::fs::read_to_string(&note).unwrap();
    let (_, time) = noted.split_once(':').unwrap();
    std::fs::write(&note, noted.replace(time, "\"2020-01-01T00:00:00Z\"}")).unwrap();
    let (op, done) = run(&rig, &rig.exec, "verify_backup", check()).await;
    assert_eq!((op.state, done.checks[0].passed, done.checks[0].detail.as_str()), (OperationState::Done, true, ""), "{op:?}");
    assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0);
}

#[tokio::test]
async fn a_drill_that_could_not_run_says_nothing_of_the_snapshot() {
    let rig = Rig::new().await;
    let snapshot = rig.snapshot().await;
    let drill = || DataJob::Drill { snapshots: vec![(snapshot.clone(), None)], copy: None };
    let worker = rig.dir.path().join("worker.sh");
    let real = std::fs::read(&worker).unwrap();
    std::fs::write(&worker, "#!/bin/sh\nexit 7\n").unwrap();
    let (op, done) = run(&rig, &rig.exec, "verify_backup", drill()).await;
    assert!(op.state == OperationState::Failed && done.drills.is_empty(), "{op:?}");
    assert!(rig.store.last_drills(None, Some("shop_data")).await.unwrap().is_empty());
    assert_eq!(rig.volumes().await, ["shop_data"]);
    std::fs::write(&worker, real).unwrap();
    let (op, done) = run(&rig, &rig.exec, "verify_backup", drill()).await;
    assert!(op.state == OperationState::Done && done.drills[0].passed, "{op:?}");
}

#[tokio::test]
async fn a_copy_has_numbers_and_a_key_of_its_own() {
    let rig = Rig::new().await;
    let key = rig.dir.path().join("disk.key");
    let keep = "keep = {hourly = 1, daily = 1, weekly = 1, monthly = 1, pre_update = 0}";
    let exec = with_copy(&rig, &format!("key_file = {key:?}\n{keep}\n"));
    for content in ["one", "two", "three"] {
        rig.engine.write_volume_file("shop_data", "a", content.as_bytes());
        rig.snapshot().await;
        run(&rig, &exec, "backup", copy()).await;
    }
    let house = exec.backups.clone().unwrap();
    let second = &house.second("disk").unwrap().house;
    assert_eq!((house.list().await.unwrap().len(), second.list().await.unwrap().len()), (3, 1));
    assert_eq!(second.key_file, key);
    assert_ne!(std::fs::read(&key).unwrap(), std::fs::read(&house.key_file).unwrap());
    assert_eq!(second.check(true).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_copy_whose_disk_is_away_fails_and_no_other_one_is_made_in_its_place() {
    let rig = Rig::new().await;
    let exec = with_copy(&rig, "");
    rig.snapshot().await;
    let (op, _) = run(&rig, &exec, "backup", copy()).await;
    assert_eq!(op.state, OperationState::Done, "{op:?}");
    let (disk, away) = (rig.dir.path().join("disk"), rig.dir.path().join("away"));
    std::fs::rename(&disk, &away).unwrap();
    std::fs::create_dir(&disk).unwrap();
    let (op, done) = run(&rig, &exec, "backup", copy()).await;
    assert!(op.state == OperationState::Failed && done.copies[0].detail.contains("Is its disk mounted?"), "{op:?}");
    assert!(state(&rig).await.failed_at.is_some());
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0);
    std::fs::remove_dir(&disk).unwrap();
    std::fs::rename(&away, &disk).unwrap();
    let (op, _) = run(&rig, &exec, "backup", copy()).await;
    assert_eq!(op.state, OperationState::Done, "{op:?}");
}
