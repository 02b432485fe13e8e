//! A volume that has no name in the file: what is restored takes its place in a container made anew.

use super::*;
use crate::executor::backup::BackupJob;
use crate::model::spec::MountKind;
use crate::planner::Want;
use crate::store::backup::BackupRecord;

/// A database whose volume the engine named.
fn unnamed() -> StackSpec {
    let mut spec = stack("web:1", Some("db:1"), &[]);
    let db = spec.services.get_mut(&name("db")).unwrap();
    db.mounts.iter_mut().filter(|m| m.kind == MountKind::Volume).for_each(|m| m.source = None);
    spec.volumes.clear();
    spec
}

/// Release 1, the name of its volume, which holds `live`, and a snapshot that holds `old`.
async fn deployed(rig: &Rig) -> (Arc<Executor>, String, BackupRecord) {
    let exec = executor_with(&rig.engine, &rig.store, None, Some(repository(rig)));
    let plan = planned(rig, &exec, unnamed(), DataPlan::default()).await;
    assert_eq!(run(rig, &exec, plan).await.0.state, OperationState::Done);
    let volume = volume_of_db(rig).await.unwrap();
    rig.engine.write_volume_file(&volume, "a", b"old");
    let job = BackupJob { volumes: vec![EngineName::new(volume.as_str()).unwrap()], release: Some(1), ..BackupJob::default() };
    let op = exec.submit_data(Some(shop()), DataJob::Backup(Box::new(job)), permit("backup"), request("backup")).await.unwrap();
    ended(&exec, &op.id).await;
    let mut taken = DataResult::of(&rig.store.steps(&op.id).await.unwrap()).snapshots;
    rig.engine.write_volume_file(&volume, "a", b"live");
    (exec, volume, taken.remove(0))
}

async fn swap(rig: &Rig, exec: &Arc<Executor>, live: &str, snapshot: &BackupRecord) -> Plan {
    let restore = PlannedRestore {
        snapshot_id: snapshot.snapshot_id.clone(),
        source: live.to_owned(),
        key: String::new(),
        service: Some(name("db")),
        live: live.to_owned(),
        into: EngineName::new("restored").unwrap(),
    };
    let plan = plan_for(rig, exec, Want::Recreate { service: name("db") }).await;
    Plan { data: DataPlan { restore: vec![restore], ..DataPlan::default() }, ..plan }
}

#[tokio::test]
async fn the_restored_volume_takes_its_place_and_the_one_before_is_kept_also_later() {
    let rig = rig().await;
    let (exec, live, snapshot) = deployed(&rig).await;
    let plan = swap(&rig, &exec, &live, &snapshot).await;
    let (op, done) = run(&rig, &exec, plan).await;
    assert_eq!((op.state, done.restored.len()), (OperationState::Done, 1), "{op:?}");
    assert_one_release(&rig, "swapped").await;
    assert_eq!(volume_of_db(&rig).await.as_deref(), Some("restored"));
    let file = |volume: &str| rig.engine.volume_file(volume, "a").map(|b| String::from_utf8(b).unwrap());
    assert_eq!((file("restored").as_deref(), file(&live).as_deref()), (Some("old"), Some("live")));
    // The next container takes it over like any volume without a name.
    let plan = plan_for(&rig, &exec, Want::Recreate { service: name("db") }).await;
    assert_eq!(run(&rig, &exec, plan).await.0.state, OperationState::Done);
    assert_eq!(volume_of_db(&rig).await.as_deref(), Some("restored"));
    assert_eq!(file(&live).as_deref(), Some("live"));
}

#[tokio::test]
async fn a_crash_at_any_record_leaves_one_of_the_two_in_place_and_loses_neither() {
    let mut k = 1;
    let mut swapped = 0;
    loop {
        let rig = rig().await;
        let (_, live, snapshot) = deployed(&rig).await;
        let (now, crashed) = stopped_after(&rig, k, async |doomed| swap(&rig, doomed, &live, &snapshot).await).await;
        let context = format!("stopped after record {k}");
        assert_one_release(&rig, &context).await;
        let used = volume_of_db(&rig).await.unwrap();
        let expected = if now.state == OperationState::Done { ("restored", "old") } else { (live.as_str(), "live") };
        assert_eq!(used, expected.0, "{context}: {now:?}");
        assert_eq!(rig.engine.volume_file(&used, "a"), Some(expected.1.as_bytes().to_vec()), "{context}");
        assert_eq!(rig.engine.volume_file(&live, "a"), Some(b"live".to_vec()), "{context}: the data before is kept");
        swapped += u32::from(used == "restored");
        let kept = rig.store.kept(Some(&shop())).await.unwrap();
        let places: Vec<&str> = kept.iter().map(|k| k.place.as_str()).collect();
        assert_eq!(places, if used == "restored" { vec![live.as_str()] } else { vec![] }, "{context}: what is kept is known");
        if !crashed {
            assert!(swapped >= 2 && k > 10, "both ends were seen");
            return;
        }
        k += if k < 5 { 1 } else { 3 };
    }
}
