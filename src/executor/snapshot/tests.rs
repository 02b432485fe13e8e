//! Deploys that make data safe and rollbacks that bring it back, with a stop of the supervisor in between, on the in-memory engine with a real repository.

use crate::engine::Engine;
use crate::executor::backup::{BackupHouse, DataJob, DataResult, house};
use crate::executor::tests::*;
use crate::executor::{Executor, StopAfter};
use crate::model::ids::EngineName;
use crate::model::operation::{Operation, OperationState};
use crate::model::plan::{DataPlan, Plan, PlannedRestore};
use crate::model::spec::{Quiesce, StackSpec};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

mod before;
mod commands;
mod directories;
mod unnamed;

fn data() -> EngineName {
    EngineName::new("shop_data").unwrap()
}

fn repository(rig: &Rig) -> BackupHouse {
    house::tests::house(rig.dir(), "")
}

async fn planned(rig: &Rig, exec: &Arc<Executor>, spec: StackSpec, what: DataPlan) -> Plan {
    let want = release_of(rig, spec).await;
    Plan { data: what, ..plan_for(rig, exec, want).await }
}

async fn run(rig: &Rig, exec: &Arc<Executor>, plan: Plan) -> (Operation, DataResult) {
    let op = exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    ended(exec, &op.id).await;
    (rig.store.operation(&op.id).await.unwrap().unwrap(), DataResult::of(&rig.store.steps(&op.id).await.unwrap()))
}

fn first(quiesce: Quiesce) -> DataPlan {
    DataPlan { snapshot: vec![data()], quiesce, ..DataPlan::default() }
}

/// Release 1 with `one` in its volume.
async fn deployed(rig: &Rig) -> Arc<Executor> {
    let exec = executor_with(&rig.engine, &rig.store, None, Some(repository(rig)));
    let plan = planned(rig, &exec, stack("web:1", Some("db:1"), &[]), DataPlan::default()).await;
    assert_eq!(run(rig, &exec, plan).await.0.state, OperationState::Done);
    rig.engine.write_volume_file("shop_data", "a", b"one");
    exec
}

/// The release of [`deployed`] with the volume of a snapshot.
fn brought_back(snapshot_id: &str) -> (StackSpec, DataPlan) {
    let mut spec = stack("web:1", Some("db:1"), &[]);
    let volume = spec.volumes.get_mut("data").unwrap();
    volume.name = "restored".into();
    volume.swapped_from = Some("shop_data".into());
    let restore = PlannedRestore {
        snapshot_id: snapshot_id.into(),
        source: "shop_data".into(),
        key: "data".into(),
        service: None,
        live: "shop_data".into(),
        into: EngineName::new("restored").unwrap(),
    };
    (spec, DataPlan { restore: vec![restore], ..DataPlan::default() })
}

async fn volume_of_db(rig: &Rig) -> Option<String> {
    let db = rig.engine.container(&EngineName::new("shop-db-1").unwrap()).await.unwrap().unwrap();
    db.mounts.into_iter().find_map(|m| m.name)
}

#[tokio::test]
async fn an_update_snapshots_first_and_a_rollback_brings_the_data_back() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let plan = planned(&rig, &exec, stack("web:1", Some("db:2"), &[]), first(Quiesce::Pause)).await;
    let (op, done) = run(&rig, &exec, plan).await;
    assert_eq!((op.state, done.snapshots.len()), (OperationState::Done, 1));
    let snapshot = &done.snapshots[0];
    assert_eq!(
        (snapshot.release, snapshot.tags.clone(), snapshot.operation.clone()),
        (Some(1), vec!["pre-update".into()], Some(op.id.to_string()))
    );
    let calls = rig.engine.calls();
    let at = |what: &str| calls.iter().position(|c| c.contains(what)).unwrap_or_else(|| panic!("no {what} in {calls:#?}"));
    assert!(at("pause") < at("stop"), "snapshotted before the old one was stopped");
    assert_one_release(&rig, "snapshotted update").await;
    rig.engine.write_volume_file("shop_data", "a", b"two");
    let (spec, what) = brought_back(&snapshot.snapshot_id);
    let plan = planned(&rig, &exec, spec, what).await;
    let (op, done) = run(&rig, &exec, plan).await;
    assert_eq!((op.state, done.restored.len()), (OperationState::Done, 1), "{op:?}");
    assert!(op.message.as_deref().is_some_and(|m| m.contains("the data before is kept in volume shop_data")), "{op:?}");
    assert_one_release(&rig, "data brought back").await;
    assert_eq!(volume_of_db(&rig).await.as_deref(), Some("restored"));
    assert_eq!(rig.engine.volume_file("restored", "a"), Some(b"one".to_vec()));
    assert_eq!(rig.engine.volume_file("shop_data", "a"), Some(b"two".to_vec()), "the live data is kept aside");
}

#[tokio::test]
async fn writers_stopped_for_a_snapshot_are_not_started_again_on_migrated_data() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let plan = planned(&rig, &exec, stack("web:bad", Some("db:2"), &[]), first(Quiesce::Stop)).await;
    let (op, done) = run(&rig, &exec, plan).await;
    assert_eq!((op.state, done.snapshots.len()), (OperationState::NeedsAttention, 1), "{op:?}");
    assert_eq!(rig.engine.violations(), Vec::<String>::new());
    let db: Vec<String> = rig.engine.running().into_iter().filter(|n| n.contains("db")).collect();
    assert!(db.len() == 1 && db[0] != "shop-db-1", "the new database alone: {db:?}");
}

#[tokio::test]
async fn a_failed_rollback_of_data_puts_the_old_data_and_the_old_release_back() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let plan = planned(&rig, &exec, stack("web:2", Some("db:1"), &[]), first(Quiesce::None)).await;
    let (_, done) = run(&rig, &exec, plan).await;
    let (mut spec, what) = brought_back(&done.snapshots[0].snapshot_id);
    spec.services.get_mut("db").unwrap().image = Some(crate::model::ids::ImageRef::new("db:bad").unwrap());
    let plan = planned(&rig, &exec, spec, what).await;
    let (op, _) = run(&rig, &exec, plan).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert_one_release(&rig, "failed rollback of data").await;
    assert_eq!(volume_of_db(&rig).await.as_deref(), Some("shop_data"));
    assert_eq!(rig.engine.volume(&EngineName::new("restored").unwrap()).await.unwrap(), None, "the copy goes with the failure");
}

#[tokio::test]
async fn data_comes_back_although_the_engine_was_away_in_the_middle_and_a_helper_holds_the_volume() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let plan = planned(&rig, &exec, stack("web:2", Some("db:1"), &[]), first(Quiesce::None)).await;
    let (_, done) = run(&rig, &exec, plan).await;
    let (spec, what) = brought_back(&done.snapshots[0].snapshot_id);
    let plan = planned(&rig, &exec, spec, what).await;
    for call in ["upload", "remove_container"] {
        let away = crate::engine::EngineError::Unreachable { endpoint: "unix:///x".into(), detail: "restarting".into() };
        rig.engine.fail_next(call, away);
    }
    let (op, done) = run(&rig, &exec, plan).await;
    assert_eq!((op.state, done.restored.len()), (OperationState::Done, 1), "{op:?}");
    assert_eq!(rig.engine.volume_file("restored", "a"), Some(b"one".to_vec()));
    assert_one_release(&rig, "brought back").await;
}

#[tokio::test]
async fn an_update_whose_snapshot_cannot_be_taken_is_not_made() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    rig.engine.fail_next("download", crate::engine::EngineError::Refused("no way in".into()));
    let plan = planned(&rig, &exec, stack("web:1", Some("db:2"), &[]), first(Quiesce::Pause)).await;
    let (op, _) = run(&rig, &exec, plan).await;
    assert!(op.state == OperationState::RolledBack && op.message.as_deref().is_some_and(|m| m.contains("no way in")), "{op:?}");
    assert_one_release(&rig, "no snapshot, no update").await;
}

/// Runs a plan in a supervisor that stops after record `k`, and has another one take over. How the operation stands then, and whether it was stopped.
async fn stopped_after(rig: &Rig, k: u64, plan: impl AsyncFnOnce(&Arc<Executor>) -> Plan) -> (Operation, bool) {
    let crashed = Arc::new(AtomicBool::new(false));
    let flag = crashed.clone();
    let stop: StopAfter = Arc::new(move |count| {
        flag.fetch_or(count == k, Ordering::SeqCst);
        count == k
    });
    let doomed = executor_with(&rig.engine, &rig.store, Some(stop), Some(repository(rig)));
    let plan = plan(&doomed).await;
    let op = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    ended(&doomed, &op.id).await;
    doomed.close(Duration::from_secs(5)).await;
    let next = executor_with(&rig.engine, &rig.store, None, Some(repository(rig)));
    for id in next.recover().await.unwrap() {
        ended(&next, &id).await;
    }
    (rig.store.operation(&op.id).await.unwrap().unwrap(), crashed.load(Ordering::SeqCst))
}

/// Stops the supervisor at records of an operation, starts another one, and looks. `k` runs over all records of the data phase and some of the rest.
async fn crash(what: impl AsyncFn(&Rig, &Arc<Executor>) -> (StackSpec, DataPlan)) {
    let (mut k, mut seen) = (1, 0);
    loop {
        let rig = rig().await;
        let exec = deployed(&rig).await;
        let (spec, data_plan) = what(&rig, &exec).await;
        let (_, crashed) = stopped_after(&rig, k, async |doomed| planned(&rig, doomed, spec, data_plan).await).await;
        let context = format!("stopped after record {k}");
        assert_one_release(&rig, &context).await;
        let current = rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current).unwrap();
        let release = rig.store.release(&shop(), current).await.unwrap().unwrap();
        assert_eq!(
            volume_of_db(&rig).await.as_deref(),
            Some(release.spec.volumes["data"].name.as_str()),
            "{context}: release and data belong together"
        );
        seen += 1;
        if !crashed {
            assert!(seen > 8, "the operation wrote more than a few records");
            return;
        }
        k += if k < 7 { 1 } else { 6 };
    }
}

#[tokio::test]
async fn a_crash_in_a_snapshotted_update_leaves_one_release_and_nothing_paused() {
    crash(async |_, _| (stack("web:1", Some("db:2"), &[]), first(Quiesce::Pause))).await;
}

#[tokio::test]
async fn a_crash_while_data_is_brought_back_leaves_release_and_data_together() {
    crash(async |rig, exec| {
        let plan = planned(rig, exec, stack("web:2", Some("db:1"), &[]), first(Quiesce::None)).await;
        let (_, done) = run(rig, exec, plan).await;
        brought_back(&done.snapshots[0].snapshot_id)
    })
    .await;
}

#[tokio::test]
async fn a_drill_starts_the_service_on_the_restored_data_without_network() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let plan = planned(&rig, &exec, stack("web:2", Some("db:1"), &[]), first(Quiesce::None)).await;
    let (_, done) = run(&rig, &exec, plan).await;
    let drill = async || {
        let job = DataJob::Drill { snapshots: vec![(done.snapshots[0].clone(), Some(name("db")))], copy: None };
        let op = exec.submit_data(Some(shop()), job, permit("verify_backup"), request("verify_backup")).await.unwrap();
        ended(&exec, &op.id).await;
        let drills = DataResult::of(&rig.store.steps(&op.id).await.unwrap()).drills;
        (rig.store.operation(&op.id).await.unwrap().unwrap(), drills)
    };
    let (op, drills) = drill().await;
    assert_eq!((op.state, drills[0].passed, drills[0].probed.as_deref()), (OperationState::Done, true, Some("db")), "{op:?} {drills:?}");
    // The same with an image that cannot use the data.
    let mut release = rig.store.release(&shop(), 2).await.unwrap().unwrap();
    let bad = rig.engine.image(&crate::model::ids::ImageRef::new("db:bad").unwrap()).await.unwrap().unwrap().id;
    release.images.get_mut("db").unwrap().id = Some(bad);
    rig.store.put_release(&release).await.unwrap();
    let (op, drills) = drill().await;
    assert_eq!((op.state, drills[0].passed), (OperationState::Failed, false));
    assert!(drills[0].detail.contains("does not run on it") && !drills[0].detail.contains("cannot open the data"), "{drills:?}");
    assert_eq!(
        drills[0].evidence.as_ref().map(|e| e.text.trim()),
        Some("cannot open the data"),
        "what it wrote is nobody's word but its own"
    );
    let left: Vec<String> = rig.engine.container_names().into_iter().filter(|n| n.contains("drill")).collect();
    assert_eq!(left, Vec::<String>::new());
    assert_one_release(&rig, "drilled").await;
}
