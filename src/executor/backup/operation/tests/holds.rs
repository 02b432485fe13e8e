//! What a data operation holds, how long, and who waits for whom: writers, the stack, the repository, helpers, the disk.

use super::*;
use crate::engine::VolumeCreate;
use crate::executor::backup::HELPER_LABEL;
use crate::executor::backup::fake::Fault;
use crate::model::labels;
use std::collections::BTreeMap;

/// The number of a try in what an operation says of itself.
fn tried(standing: &Standing) -> u32 {
    let number = standing.message.rsplit_once("(try ").and_then(|(_, rest)| rest.strip_suffix(" failed)"));
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// A backup that holds its writers when the engine goes away.
async fn held_when_the_engine_goes(rig: &Rig) -> Operation {
    rig.block();
    let op = rig.exec.submit_data(Some(shop()), backup(), test_permit(), request("backup", None)).await.unwrap();
    rig.blocked().await;
    assert_eq!(rig.writer().await, RunState::Paused);
    rig.engine.set_down(true);
    // From here on pauses between tries cost no time.
    tokio::time::pause();
    op
}

#[tokio::test]
async fn writers_are_resumed_however_long_the_engine_was_away() {
    let rig = Rig::new().await;
    let op = held_when_the_engine_goes(&rig).await;
    let mut standing = rig.exec.standing(&op.id).unwrap();
    rig.exec.cancel(&op.id).await.unwrap();
    standing.wait_for(|s| tried(s) > 10 * TRIES).await.expect("it goes on trying");
    rig.engine.set_down(false);
    let (op, _) = rig.done(&rig.exec, &op).await;
    assert!(matches!(op.state, OperationState::Cancelled | OperationState::Failed), "{op:?}");
    assert_eq!(rig.writer().await, RunState::Running);
}

#[tokio::test]
async fn writers_that_an_end_of_the_supervisor_leaves_held_are_resumed_by_the_next_start() {
    let rig = Rig::new().await;
    let op = held_when_the_engine_goes(&rig).await;
    rig.exec.close(Duration::from_secs(3600)).await;
    let (op, _) = rig.done(&rig.exec, &op).await;
    assert!(!op.state.is_terminal(), "{op:?}");
    rig.engine.set_down(false);
    let next = rig.executor(None);
    next.recover().await.unwrap();
    let (op, _) = rig.done(&next, &op).await;
    assert_eq!((op.state, rig.writer().await), (OperationState::Failed, RunState::Running), "{op:?}");
}

#[tokio::test]
async fn writers_run_again_when_the_worker_uses_more_memory_than_it_may() {
    let rig = Rig::new().await;
    let mut noise = vec![0u8; 48 << 20];
    getrandom::fill(&mut noise).unwrap();
    rig.engine.write_volume_file("shop_data", "large", &noise);
    let mut house = rig.exec.backups.clone().unwrap();
    // The worker itself, not a shell before it.
    house.worker = Arc::new(house::WorkerProcess::new(rig.dir.path().join("real.sh")));
    house.ensure().await.unwrap();
    // Enough to open a repository, and not to read data into it.
    house.memory_mib = Some(24);
    let options = Options { backups: Some(house), ..Options::default() };
    let poor = Executor::new(rig.engine.clone(), rig.store.clone(), Arc::new(|_, _| RequestFacts::default()), options);
    let op = poor.submit_data(Some(shop()), backup(), test_permit(), request("backup", None)).await.unwrap();
    let (op, done) = rig.done(&poor, &op).await;
    let message = op.message.clone().unwrap_or_default();
    assert!(op.state == OperationState::Failed && message.contains("more than the 24 MiB of memory"), "{op:?}");
    assert!(rig.engine.calls().iter().any(|c| c.contains("pause")), "it was held: {:?}", rig.engine.calls());
    assert_eq!((rig.writer().await, done), (RunState::Running, DataResult::default()));
}

#[tokio::test]
async fn nothing_is_held_while_snapshots_are_removed_and_none_removed_while_something_is_held() {
    let rig = Rig::new().await;
    let calm = rig.exec.backups.clone().unwrap().calm;
    let removing = calm.clone().write_owned().await;
    rig.block();
    let op = rig.exec.submit_data(Some(shop()), backup(), test_permit(), request("backup", None)).await.unwrap();
    let mut standing = rig.exec.standing(&op.id).unwrap();
    standing.wait_for(|s| s.message.contains("waiting until nothing is removed")).await.expect("it waits");
    assert_eq!(rig.writer().await, RunState::Running);
    drop(removing);
    rig.blocked().await;
    assert_eq!((rig.writer().await, calm.try_write().is_err()), (RunState::Paused, true));
    rig.exec.cancel(&op.id).await.unwrap();
    rig.done(&rig.exec, &op).await;
    assert!(calm.try_write().is_ok());
}

/// A schedule's backup that keeps one snapshot.
pub(super) fn thinning() -> DataJob {
    let rest = Keep { hourly: 1, daily: 1, weekly: 1, monthly: 1, pre_update: 0 };
    let keep = Some(Keeping { rest, ..Keeping::default() });
    DataJob::Backup(Box::new(BackupJob { volumes: vec![data()], keep, ..BackupJob::default() }))
}

#[tokio::test]
async fn a_backup_lets_its_stack_go_before_it_waits_to_remove_old_snapshots() {
    let rig = Rig::new().await;
    let old = rig.snapshot().await;
    // Somebody else holds containers still and reads.
    let reading = rig.exec.backups.clone().unwrap().calm.read_owned().await;
    let op = rig.exec.submit_data(Some(shop()), thinning(), test_permit(), request("backup", None)).await.unwrap();
    let mut standing = rig.exec.standing(&op.id).unwrap();
    standing.wait_for(|s| s.message.contains("the schedule no longer needs")).await.expect("it has read everything");
    assert_eq!(rig.exec.holding(&shop()), None);
    rig.snapshot().await;
    assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::Running);
    drop(reading);
    let (op, _) = rig.done(&rig.exec, &op).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert!(!rig.store.backups(None, None, 10).await.unwrap().contains(&old));
}

#[tokio::test]
async fn a_backup_that_is_not_whole_thins_out_too_and_leaves_the_whole_one() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    let whole = rig.snapshot().await;
    fake.fail_next("backup", Fault::Partial);
    let op = rig.exec.submit_data(Some(shop()), thinning(), test_permit(), request("backup", None)).await.unwrap();
    let (op, done) = rig.done(&rig.exec, &op).await;
    assert!(crate::executor::backup::partial(&op) && op.message.as_deref().is_some_and(|m| m.contains("shop_data")), "{op:?}");
    assert_eq!(op.evidence.len(), 1, "what could not be read stands apart");
    let stay = rig.store.backups(None, None, 10).await.unwrap();
    assert_eq!((done.snapshots.len(), stay.contains(&whole), stay.contains(&old)), (1, true, false), "{stay:?}");
}

#[tokio::test]
async fn helpers_left_behind_are_swept_and_those_of_work_that_goes_on_are_not() {
    let rig = Rig::new().await;
    rig.engine.fail_next("remove_container", EngineError::Refused("busy".into()));
    let first = rig.exec.submit_data(Some(shop()), backup(), test_permit(), request("backup", None)).await.unwrap();
    assert_eq!(rig.done(&rig.exec, &first).await.0.state, OperationState::Failed);
    let left: Vec<_> = rig.engine.containers(&[HELPER_LABEL.to_owned()]).await.unwrap();
    assert_eq!(left.iter().map(|c| c.labels.get(labels::OPERATION).cloned()).collect::<Vec<_>>(), [Some(first.id.to_string())]);
    rig.block();
    let working = rig.exec.submit_data(Some(shop()), backup(), test_permit(), request("backup", None)).await.unwrap();
    rig.blocked().await;
    for (name, operation) in [("theirs", working.id.as_str()), ("nobodys", "op-gone")] {
        let labels = [(labels::INSTANCE, rig.store.instance()), (labels::OPERATION, operation), (HELPER_LABEL, "probe")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let volume = VolumeCreate { name: EngineName::new(name).unwrap(), driver: None, driver_opts: BTreeMap::new(), labels };
        rig.engine.create_volume(&test_permit(), &volume).await.unwrap();
    }
    let at_work = |id: &str| rig.exec.active.lock().unwrap().keys().any(|a| a.as_str() == id);
    crate::executor::backup::helper::sweep(rig.engine.as_ref(), &test_permit(), rig.store.instance(), &at_work).await.unwrap();
    assert_eq!((rig.volumes().await, rig.engine.container_names()), (vec!["shop_data".into(), "theirs".into()], vec!["db".to_owned()]));
    rig.exec.cancel(&working.id).await.unwrap();
    rig.done(&rig.exec, &working).await;
}

#[tokio::test]
async fn a_drill_without_room_makes_nothing_and_says_nothing_of_the_snapshot() {
    let rig = Rig::new().await;
    let mut snapshot = rig.snapshot().await;
    snapshot.bytes = u64::MAX / 4;
    let job = DataJob::Drill { snapshots: vec![(snapshot, None)], copy: None };
    let op = rig.exec.submit_data(Some(shop()), job, test_permit(), request("verify_backup", None)).await.unwrap();
    let (op, done) = rig.done(&rig.exec, &op).await;
    assert!(op.state == OperationState::Failed && op.message.as_deref().is_some_and(|m| m.contains("more are needed there")), "{op:?}");
    assert_eq!((done.drills, rig.volumes().await), (vec![], vec!["shop_data".to_owned()]));
}

#[tokio::test]
async fn writers_that_the_engine_refuses_to_resume_are_told_of_and_tried_until_they_run() {
    let rig = Rig::new().await;
    rig.block();
    let op = rig.exec.submit_data(Some(shop()), backup(), test_permit(), request("backup", None)).await.unwrap();
    rig.blocked().await;
    for _ in 0..2 * TRIES {
        rig.engine.fail_next("pause", EngineError::Refused("503 no server is available".into()));
    }
    tokio::time::pause();
    rig.exec.cancel(&op.id).await.unwrap();
    let (op, _) = rig.done(&rig.exec, &op).await;
    assert_eq!((op.state, rig.writer().await), (OperationState::Cancelled, RunState::Running), "{op:?}");
    let told = rig.store.audit_after(0, None, 100).await.unwrap().into_iter().filter(|r| r.tool == STILL_HELD).collect::<Vec<_>>();
    assert_eq!(told.iter().map(|r| r.detail["operation"].clone()).collect::<Vec<_>>(), [serde_json::json!(op.id)], "told once");
}

/// A worker that does not remove snapshots, or does and dies before it says so.
fn removing_goes_wrong(rig: &Rig, how: &str) {
    let worker = rig.dir.path().join("worker.sh");
    let script = std::fs::read_to_string(&worker).unwrap();
    let real = rig.dir.path().join("real.sh");
    let wrong = match how {
        "refused" => "exit 9".to_owned(),
        _ => format!("(printf '%s\\n' \"$line\"; exec sleep 20 2>/dev/null) | {{ {} > /dev/null; kill -9 $$; }}", real.display()),
    };
    let case = format!("read -r line\ncase \"$line\" in *'\"do\":\"forget\"'*) {wrong} ;; esac\n");
    std::fs::write(&worker, script.replacen("read -r line\n", &case, 1)).unwrap();
}

#[tokio::test]
async fn a_removal_that_fails_leaves_no_record_without_its_snapshot_and_the_backup_stands() {
    for how in ["refused", "done and not told"] {
        let rig = Rig::new().await;
        let old = rig.snapshot().await;
        removing_goes_wrong(&rig, how);
        let op = rig.exec.submit_data(Some(shop()), thinning(), test_permit(), request("backup", None)).await.unwrap();
        let (op, done) = rig.done(&rig.exec, &op).await;
        assert_eq!((op.state, done.snapshots.len()), (OperationState::Done, 1), "{how}: {op:?}");
        assert!(op.message.as_deref().is_some_and(|m| m.contains("were not removed")), "{how}: {op:?}");
        let there: Vec<String> =
            rig.exec.backups.clone().unwrap().list().await.unwrap().iter().map(|s| s.snapshot_id.to_string()).collect();
        let mut recorded: Vec<String> = rig.store.backups(None, None, 10).await.unwrap().into_iter().map(|b| b.snapshot_id).collect();
        recorded.sort();
        let mut sorted = there.clone();
        sorted.sort();
        assert_eq!(recorded, sorted, "{how}");
        assert_eq!(there.contains(&old.snapshot_id), how == "refused", "{how}");
    }
}

#[tokio::test]
async fn what_a_killed_restore_has_half_filled_goes_with_the_helper_that_mounts_it() {
    let rig = Rig::new().await;
    let job = DataJob::Restore { snapshot: Box::new(rig.snapshot().await), into: None, path: None, to: None };
    let doomed = rig.executor(Some(Arc::new(|count| count == 1)));
    let op = doomed.submit_data(Some(shop()), job, test_permit(), request("restore", None)).await.unwrap();
    rig.done(&doomed, &op).await;
    doomed.close(Duration::from_secs(5)).await;
    // As it is when the upload was under way.
    let steps = rig.store.steps(&op.id).await.unwrap();
    let into = steps.iter().find_map(|s| match serde_json::from_value(s.intent.clone()) {
        Ok(DataAct::Restore { into, .. }) => Some(into),
        _ => None,
    });
    let into = into.expect("it was written down");
    let marks = |more: &[(&str, &str)]| {
        let own = [(labels::INSTANCE, rig.store.instance()), (labels::OPERATION, op.id.as_str())];
        own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<std::collections::BTreeMap<_, _>>()
    };
    let volume = VolumeCreate { name: into.clone(), driver: None, driver_opts: Default::default(), labels: marks(&[]) };
    rig.engine.create_volume(&test_permit(), &volume).await.unwrap();
    let mount = EngineMount { source: Some(into.to_string()), ..EngineMount::new(MountKind::Volume, "/volume".to_owned()) };
    let helper = ContainerSpec {
        mounts: vec![mount],
        labels: marks(&[(HELPER_LABEL, "volume")]),
        ..ContainerSpec::new(EngineName::new("dockwarden-volume-1").unwrap(), ImageRef::new("db:1").unwrap())
    };
    rig.engine.create_container(&test_permit(), &helper).await.unwrap();
    // The sweep of the takeover itself does not get through.
    rig.engine.fail_next("remove_container", EngineError::Refused("busy".into()));
    let next = rig.executor(None);
    next.recover().await.unwrap();
    let (op, _) = rig.done(&next, &op).await;
    assert_eq!(op.state, OperationState::Failed, "{op:?}");
    assert_eq!((rig.volumes().await, rig.engine.container_names()), (vec!["shop_data".to_owned()], vec!["db".to_owned()]));
}
