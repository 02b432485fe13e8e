//! Directories of the host whose restored copy takes their place, as a release, with a stop of the supervisor at every record.

use super::*;
use crate::engine::fake::Behaviour;
use crate::engine::{ContainerSpec, EngineError, EngineMount};
use crate::executor::Options;
use crate::executor::backup::BackupRequest;
use crate::model::config::OwnContainer;
use crate::model::ids::ImageRef;
use crate::model::observed::{ImageIdentity, RunState};
use crate::model::plan::PlannedExchange;
use crate::model::release::ReleaseState;
use crate::model::spec::MountKind;
use crate::planner::Want;
use crate::store::backup::BackupRecord;
use std::collections::BTreeSet;
use std::path::PathBuf;

pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) exec: Arc<Executor>,
    pub(super) here: PathBuf,
    snapshot: BackupRecord,
}

/// Release 1, whose database writes a directory that holds `live`; a snapshot of it holds `old`.
pub(super) async fn world() -> World {
    let rig = rig().await;
    let exec = executor_with(&rig.engine, &rig.store, None, Some(repository(&rig)));
    let here = rig.dir().canonicalize().unwrap().join("srv/data");
    std::fs::create_dir_all(&here).unwrap();
    std::fs::write(here.join("file"), "old").unwrap();
    let mut spec = stack("web:1", Some("db:1"), &[]);
    let db = spec.services.get_mut(&name("db")).unwrap();
    for mount in &mut db.mounts {
        (mount.kind, mount.source) = (MountKind::Bind, Some(here.display().to_string()));
    }
    spec.volumes.clear();
    let plan = planned(&rig, &exec, spec, DataPlan::default()).await;
    assert_eq!(run(&rig, &exec, plan).await.0.state, OperationState::Done);
    // Read from here: the engine in memory has no files of the host.
    let (volume, progress): (_, crate::executor::backup::ProgressSink) = (here.display().to_string(), Arc::new(|_| {}));
    let (stack, instance) = (Some(shop()), "i".to_owned());
    let asked = BackupRequest { path: here.clone(), volume: volume.clone(), stack, instance, tags: vec![], definition: None, progress };
    let house = repository(&rig);
    house.ensure().await.unwrap();
    let report = house.backup_dir(asked).await.unwrap();
    let snapshot = BackupRecord {
        snapshot_id: report.snapshot_id.to_string(),
        stack: Some("shop".into()),
        volume,
        bytes: report.bytes,
        added: report.added,
        files: report.files,
        state: report.state.as_str().into(),
        at: chrono::Utc::now(),
        agent: "tester".into(),
        release: Some(1),
        tags: vec![],
        operation: None,
        copies: vec![],
    };
    rig.store.put_backup(&snapshot).await.unwrap();
    std::fs::write(here.join("file"), "live").unwrap();
    World { rig, exec, here, snapshot }
}

impl World {
    async fn swap(&self, exec: &Arc<Executor>) -> Plan {
        let exchange = PlannedExchange {
            snapshot_id: self.snapshot.snapshot_id.clone(),
            host: self.here.display().to_string(),
            here: self.here.clone(),
            real: None,
            services: BTreeSet::from([name("db")]),
        };
        let plan = plan_for(&self.rig, exec, Want::Recreate { service: name("db") }).await;
        Plan { data: DataPlan { exchange: vec![exchange], ..DataPlan::default() }, ..plan }
    }

    fn live(&self) -> String {
        std::fs::read_to_string(self.here.join("file")).unwrap()
    }

    /// What every directory beside it holds.
    fn all(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.here.parent().unwrap()).unwrap();
        let mut all: Vec<String> = entries.map(|e| std::fs::read_to_string(e.unwrap().path().join("file")).unwrap_or_default()).collect();
        all.sort();
        all
    }

    pub(super) async fn current(&self) -> Option<u32> {
        self.rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current)
    }

    /// A container of nobody that reads the directory.
    async fn reader(&self) -> EngineName {
        let mount = EngineMount {
            source: Some(self.here.display().to_string()),
            read_only: true,
            ..EngineMount::new(MountKind::Bind, "/files".to_owned())
        };
        let reader = EngineName::new("reader").unwrap();
        let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::new(reader.clone(), ImageRef::new("web:1").unwrap()) };
        let id = self.rig.engine.create_container(&permit("restore"), &spec).await.unwrap();
        self.rig.engine.start(&permit("restore"), &id).await.unwrap();
        reader
    }

    async fn state(&self, container: &EngineName) -> RunState {
        self.rig.engine.container(container).await.unwrap().unwrap().state
    }
}

#[tokio::test]
async fn nothing_is_stopped_for_an_exchange_while_its_images_are_on_their_way() {
    let w = world().await;
    w.reader().await;
    let mut plan = w.swap(&w.exec).await;
    // As a release whose image has to be fetched again.
    w.rig.engine.add_remote_image("db:2", Behaviour::healthy());
    let image = ImageRef::new("db:2").unwrap();
    plan.desired.services.get_mut("db").unwrap().image = Some(image.clone());
    plan.images.insert(name("db"), ImageIdentity { reference: image, id: None, repo_digest: None });
    w.rig.engine.hold_pulls(true);
    w.rig.engine.clear_calls();
    let op = w.exec.submit(plan, permit("restore"), request("restore")).await.unwrap();
    while w.rig.engine.pulls_under_way() == 0 {
        assert!(!w.rig.store.operation(&op.id).await.unwrap().unwrap().state.is_terminal());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stopped = |calls: &[String]| calls.iter().filter(|c| c.starts_with("stop ")).count();
    assert_eq!((stopped(&w.rig.engine.calls()), w.live().as_str()), (0, "live"));
    w.rig.engine.hold_pulls(false);
    ended(&w.exec, &op.id).await;
    let op = w.rig.store.operation(&op.id).await.unwrap().unwrap();
    assert_eq!((op.state, w.live().as_str()), (OperationState::Done, "old"), "{:?}", op.message);
    assert!(stopped(&w.rig.engine.calls()) > 0);
}

#[tokio::test]
async fn a_restored_directory_takes_the_live_ones_place_as_a_release_and_what_was_live_is_kept() {
    let w = world().await;
    let reader = w.reader().await;
    let plan = w.swap(&w.exec).await;
    let (op, done) = run(&w.rig, &w.exec, plan).await;
    assert_eq!((op.state, op.release, w.live().as_str()), (OperationState::Done, Some(2), "old"), "{op:?}");
    assert_eq!(w.all(), ["live", "old"], "the one before is kept and nothing else stays");
    let release = w.rig.store.release(&shop(), 2).await.unwrap().unwrap();
    assert_eq!((w.current().await, release.state, release.operation), (Some(2), ReleaseState::Good, op.id.clone()));
    let message = op.message.unwrap_or_default();
    let place = message.rsplit(' ').next().unwrap();
    assert_eq!(std::fs::read_to_string(PathBuf::from(place).join("file")).unwrap(), "live", "{message}");
    let kept = w.rig.store.kept(Some(&shop())).await.unwrap();
    assert_eq!((kept.len(), kept[0].place.as_str(), kept[0].release), (1, place, 2), "{kept:?}");
    assert_eq!((kept[0].source.as_str(), kept[0].covered.as_deref()), (w.here.to_str().unwrap(), None));
    let before = &done.snapshots[0];
    assert_eq!((before.tags.clone(), before.release), (vec!["pre-restore".to_owned()], Some(1)));
    // Whoever else reads it was stopped meanwhile, since it would go on seeing the old one.
    let calls = w.rig.engine.calls();
    let at = |what: &str| calls.iter().rposition(|c| c.contains(what)).unwrap_or_else(|| panic!("no {what} in {calls:#?}"));
    assert!(at("stop") < at("start"), "{calls:#?}");
    assert_eq!(w.state(&reader).await, RunState::Running);
    w.rig.engine.remove_container(&permit("restore"), &reader, false).await.unwrap();
    assert_one_release(&w.rig, "swapped").await;
}

/// Another supervisor over the same state, in a container of its own.
fn within(w: &World, own: OwnContainer) -> Arc<Executor> {
    executor_as(&w.rig.engine, &w.rig.store, Options { backups: Some(repository(&w.rig)), own, ..Options::default() })
}

#[tokio::test]
async fn the_supervisors_own_container_is_not_stopped_for_an_exchange_and_one_that_may_be_it_neither() {
    let w = world().await;
    let reader = w.reader().await;
    let exec = within(&w, OwnContainer::Unknown);
    let (op, _) = run(&w.rig, &exec, w.swap(&exec).await).await;
    let told = op.message.unwrap_or_default();
    assert!(op.state == OperationState::RolledBack && told.contains("it may be the supervisor's own container"), "{told}");
    assert_eq!((w.live().as_str(), w.state(&reader).await), ("live", RunState::Running));
    let id = w.rig.engine.container(&reader).await.unwrap().unwrap().id;
    let exec = within(&w, OwnContainer::Is(id));
    w.rig.engine.clear_calls();
    let (op, _) = run(&w.rig, &exec, w.swap(&exec).await).await;
    assert_eq!((op.state, w.live().as_str()), (OperationState::Done, "old"), "{op:?}");
    let calls = w.rig.engine.calls();
    assert!(!calls.iter().any(|c| c.starts_with("stop ") && c.contains("reader")), "{calls:#?}");
}

#[tokio::test]
async fn a_user_that_somebody_has_paused_stays_so_and_nothing_is_exchanged() {
    let w = world().await;
    let reader = w.reader().await;
    w.rig.engine.pause(&permit("restore"), &reader, true).await.unwrap();
    let plan = w.swap(&w.exec).await;
    let (op, _) = run(&w.rig, &w.exec, plan).await;
    assert!(op.state == OperationState::RolledBack && op.message.as_deref().is_some_and(|m| m.contains("has paused it")), "{op:?}");
    assert_eq!((w.live().as_str(), w.state(&reader).await, w.current().await), ("live", RunState::Paused, Some(1)));
    assert_eq!(w.all(), ["live"], "the copy goes with the failure");
}

#[tokio::test]
async fn data_that_its_service_cannot_run_on_goes_back_and_nothing_is_kept() {
    let w = world().await;
    let plan = w.swap(&w.exec).await;
    w.rig.engine.fail_next("start", EngineError::Refused("cannot read its files".into()));
    let (op, _) = run(&w.rig, &w.exec, plan).await;
    assert!(op.state == OperationState::RolledBack && op.message.as_deref().is_some_and(|m| m.contains("cannot read its files")), "{op:?}");
    assert_eq!((w.live().as_str(), w.all()), ("live", vec!["live".to_owned()]));
    assert_eq!((w.current().await, w.rig.store.kept(None).await.unwrap()), (Some(1), vec![]));
    assert_one_release(&w.rig, "taken back").await;
}

#[tokio::test]
async fn a_crash_at_any_record_leaves_the_old_or_the_new_in_place_and_loses_neither() {
    let (mut ends, mut k) = (vec![], 1);
    loop {
        let w = world().await;
        let (op, crashed) = stopped_after(&w.rig, k, async |doomed| w.swap(doomed).await).await;
        let context = format!("stopped after record {k}: {op:?}");
        assert_one_release(&w.rig, &context).await;
        let (live, all) = (w.live(), w.all());
        let new = op.state == OperationState::Done;
        assert_eq!(
            (live.as_str(), all),
            if new { ("old", vec!["live".to_owned(), "old".to_owned()]) } else { ("live", vec!["live".to_owned()]) },
            "{context}"
        );
        assert_eq!(
            (w.current().await, w.rig.store.kept(None).await.unwrap().len()),
            if new { (Some(2), 1) } else { (Some(1), 0) },
            "{context}"
        );
        ends.push(new);
        if !crashed {
            break;
        }
        k += if k < 16 { 1 } else { 4 };
    }
    assert!(ends.len() >= 10 && ends.contains(&true) && ends.contains(&false), "both ends were seen: {ends:?}");
}
