//! Directories of the host that a service writes are read before it is replaced, as its volumes are, with a stop of the supervisor at every record.

use super::directories::{World, world};
use super::*;
use crate::engine::{ContainerSpec, EngineError, EngineMount};
use crate::executor::Options;
use crate::model::config::OwnContainer;
use crate::model::ids::{ImageRef, StackName};
use crate::model::labels;
use crate::model::observed::RunState;
use crate::model::plan::PlannedDirectory;
use crate::model::spec::MountKind;
use std::path::Path;

/// The release of [`world`] with another image of what writes the directory.
async fn update(w: &World, exec: &Arc<Executor>, db: &str) -> Plan {
    let mut spec = stack("web:1", Some(db), &[]);
    for mount in &mut spec.services.get_mut(&name("db")).unwrap().mounts {
        (mount.kind, mount.source) = (MountKind::Bind, Some(w.here.display().to_string()));
    }
    spec.volumes.clear();
    let directory = PlannedDirectory { host: w.here.display().to_string(), here: w.here.clone(), real: None };
    let what = DataPlan { directories: vec![directory], quiesce: Quiesce::Pause, ..DataPlan::default() };
    planned(&w.rig, exec, spec, what).await
}

#[tokio::test]
async fn an_update_reads_the_directories_its_service_writes_first_while_it_is_held() {
    let w = world().await;
    let plan = update(&w, &w.exec, "db:2").await;
    w.rig.engine.clear_calls();
    let (op, done) = run(&w.rig, &w.exec, plan).await;
    assert_eq!(op.state, OperationState::Done, "{op:?}");
    let taken: Vec<_> = done.snapshots.iter().map(|s| (s.volume.clone(), s.release, s.tags.clone())).collect();
    assert_eq!(taken, [(w.here.display().to_string(), Some(1), vec!["pre-update".to_owned()])]);
    let keys: Vec<String> = w.rig.store.steps(&op.id).await.unwrap().into_iter().map(|s| s.key).collect();
    assert_eq!(keys[..3], ["hold".to_owned(), format!("snapshot:{}", w.here.display()), "resume".to_owned()]);
    let calls = w.rig.engine.calls();
    let at = |what: &str| calls.iter().position(|c| c.starts_with(what)).unwrap_or_else(|| panic!("no {what} in {calls:#?}"));
    assert!(at("pause ") < at("stop "), "{calls:#?}");
    assert_one_release(&w.rig, "updated").await;
}

#[tokio::test]
async fn an_update_whose_directory_cannot_be_read_is_not_made() {
    let w = world().await;
    let plan = update(&w, &w.exec, "db:2").await;
    w.rig.engine.fail_next("download", EngineError::Refused("no way in".into()));
    let (op, done) = run(&w.rig, &w.exec, plan).await;
    assert!(op.state == OperationState::RolledBack && op.message.as_deref().is_some_and(|m| m.contains("no way in")), "{op:?}");
    assert_eq!((done.snapshots, w.current().await), (vec![], Some(1)));
    assert_one_release(&w.rig, "not read").await;
    // Gone from its place: nothing else is read for it.
    std::fs::rename(&w.here, w.here.with_file_name("moved")).unwrap();
    let plan = update(&w, &w.exec, "db:2").await;
    let (op, done) = run(&w.rig, &w.exec, plan).await;
    assert_eq!((op.state, done.snapshots, w.current().await), (OperationState::RolledBack, vec![], Some(1)), "{op:?}");
    assert_one_release(&w.rig, "not there").await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_it_leaves_one_release_and_nothing_held() {
    let (mut k, mut ends) = (1, vec![]);
    loop {
        let w = world().await;
        let (op, crashed) = stopped_after(&w.rig, k, async |doomed| update(&w, doomed, "db:2").await).await;
        assert_one_release(&w.rig, &format!("stopped after record {k}: {op:?}")).await;
        ends.push(op.state == OperationState::Done);
        if !crashed {
            break;
        }
        k += if k < 8 { 1 } else { 5 };
    }
    assert!(ends.len() >= 8 && ends.contains(&true) && ends.contains(&false), "both ends were seen: {ends:?}");
}

/// A container beside the stack's that writes a directory.
async fn beside(w: &World, name: &str, stack: Option<&str>, writes: &Path) -> EngineName {
    let mount = EngineMount { source: Some(writes.display().to_string()), ..EngineMount::new(MountKind::Bind, "/files".to_owned()) };
    let ours = stack.map(|s| [(labels::INSTANCE, w.rig.store.instance()), (labels::STACK, s)].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let spec = ContainerSpec {
        mounts: vec![mount],
        labels: ours.into_iter().flatten().collect(),
        ..ContainerSpec::new(EngineName::new(name).unwrap(), ImageRef::new("web:1").unwrap())
    };
    let id = w.rig.engine.create_container(&permit("deploy"), &spec).await.unwrap();
    w.rig.engine.start(&permit("deploy"), &id).await.unwrap();
    id
}

#[tokio::test]
async fn the_supervisors_own_container_is_never_held_for_an_update_nor_in_its_way() {
    for quiesce in [Quiesce::Pause, Quiesce::None] {
        let w = world().await;
        let own = beside(&w, "dockwarden", None, w.here.parent().unwrap()).await;
        let options = Options { backups: Some(repository(&w.rig)), own: OwnContainer::Is(own.clone()), ..Options::default() };
        let exec = executor_as(&w.rig.engine, &w.rig.store, options);
        let mut plan = update(&w, &exec, "db:2").await;
        plan.data.quiesce = quiesce;
        w.rig.engine.clear_calls();
        let (op, done) = run(&w.rig, &exec, plan).await;
        assert_eq!((op.state, done.snapshots.len()), (OperationState::Done, 1), "{quiesce:?}: {op:?}");
        let touched: Vec<String> = w.rig.engine.calls().into_iter().filter(|c| c.contains("dockwarden") && c.contains("pause")).collect();
        assert_eq!((touched, w.rig.engine.container(&own).await.unwrap().unwrap().state), (vec![], RunState::Running), "{quiesce:?}");
    }
}

#[tokio::test]
async fn for_an_update_nobody_is_held_but_the_stack_and_those_the_plan_names() {
    for also_held in [vec![], vec![StackName::new("portal").unwrap()]] {
        let w = world().await;
        beside(&w, "backupd", None, &w.here).await;
        beside(&w, "portal-files-1", Some("portal"), &w.here).await;
        let mut plan = update(&w, &w.exec, "db:2").await;
        plan.data.also_held = also_held.clone();
        w.rig.engine.clear_calls();
        let (op, done) = run(&w.rig, &w.exec, plan).await;
        assert_eq!((op.state, done.snapshots.len()), (OperationState::Done, 1), "{op:?}");
        let calls = w.rig.engine.calls();
        let paused = |name: &str| calls.iter().any(|c| c.starts_with("pause ") && c.contains(name));
        let held = (paused("shop-db-1"), paused("portal-files-1"), paused("backupd"));
        assert_eq!(held, (true, !also_held.is_empty(), false), "{calls:#?}");
    }
}
