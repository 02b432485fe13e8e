//! Directories of the host whose restored copy takes their place, with a stop of the supervisor at every record.

use super::*;
use crate::executor::backup::BackupRequest;
use std::path::PathBuf;

struct World {
    rig: Rig,
    host: PathBuf,
    directory: Directory,
    snapshot: BackupRecord,
}

/// A directory that a container mounts; a snapshot of it holds `old`, it holds `live`.
async fn world() -> World {
    let rig = Rig::new().await;
    let host = rig.dir.path().join("srv/data");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("file"), "old").unwrap();
    let directory = Directory { host: host.display().to_string(), here: Some(host.clone()), real: None };
    let (volume, progress): (_, crate::executor::backup::ProgressSink) = (directory.host.clone(), Arc::new(|_| {}));
    let asked =
        BackupRequest { path: host.clone(), volume, stack: Some(shop()), instance: "i".into(), tags: vec![], definition: None, progress };
    let report = rig.exec.backups.clone().unwrap().backup_dir(asked).await.unwrap();
    let snapshot = BackupRecord { volume: directory.host.clone(), snapshot_id: report.snapshot_id.to_string(), ..rig.snapshot().await };
    std::fs::write(host.join("file"), "live").unwrap();
    let mount = EngineMount {
        kind: MountKind::Bind,
        source: Some(directory.host.clone()),
        target: "/files".to_owned(),
        // One that only reads sees the old directory until it starts again.
        read_only: true,
        propagation: None,
        nocopy: false,
        subpath: None,
        tmpfs_size: None,
        tmpfs_mode: None,
        tmpfs_options: vec![],
        selinux: None,
    };
    rig.engine.add_image("user:1", Behaviour::running());
    let spec =
        ContainerSpec { mounts: vec![mount], ..ContainerSpec::new(EngineName::new("user").unwrap(), ImageRef::new("user:1").unwrap()) };
    let id = rig.engine.create_container(&test_permit(), &spec).await.unwrap();
    rig.engine.start(&test_permit(), &id).await.unwrap();
    World { rig, host, directory, snapshot }
}

impl World {
    fn job(&self) -> DataJob {
        DataJob::SwapDirectory { snapshot: Box::new(self.snapshot.clone()), directory: self.directory.clone(), release: None }
    }

    fn live(&self) -> String {
        std::fs::read_to_string(self.host.join("file")).unwrap()
    }

    /// What every directory beside it holds.
    fn all(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.host.parent().unwrap()).unwrap();
        let mut all: Vec<String> = entries.map(|e| std::fs::read_to_string(e.unwrap().path().join("file")).unwrap_or_default()).collect();
        all.sort();
        all
    }

    async fn user(&self) -> RunState {
        self.rig.engine.container(&EngineName::new("user").unwrap()).await.unwrap().unwrap().state
    }
}

#[tokio::test]
async fn a_restored_directory_takes_the_live_ones_place_which_is_kept() {
    let w = world().await;
    let op = w.rig.exec.submit_data(Some(shop()), w.job(), test_permit(), request("restore", None)).await.unwrap();
    let (op, done) = w.rig.done(&w.rig.exec, &op).await;
    assert_eq!((op.state, w.live().as_str(), w.user().await), (OperationState::Done, "old", RunState::Running), "{op:?}");
    assert_eq!(w.all(), ["live", "old"], "the one before is kept and nothing else stays");
    let message = op.message.unwrap_or_default();
    let kept = message.rsplit(' ').next().unwrap();
    assert_eq!(std::fs::read_to_string(PathBuf::from(kept).join("file")).unwrap(), "live", "{message}");
    assert_eq!(done.snapshots.iter().map(|s| s.tags.clone()).collect::<Vec<_>>(), [vec!["pre-restore".to_owned()]]);
    let calls = w.rig.engine.calls();
    assert!(calls.iter().any(|c| c.contains("stop")), "nobody had it mounted meanwhile: {calls:?}");
}

#[tokio::test]
async fn a_user_that_somebody_has_paused_stays_so_and_nothing_is_exchanged() {
    let w = world().await;
    let user = EngineName::new("user").unwrap();
    w.rig.engine.pause(&test_permit(), &user, true).await.unwrap();
    let op = w.rig.exec.submit_data(Some(shop()), w.job(), test_permit(), request("restore", None)).await.unwrap();
    let (op, _) = w.rig.done(&w.rig.exec, &op).await;
    assert!(op.state == OperationState::Failed && op.message.as_deref().is_some_and(|m| m.contains("has paused it")), "{op:?}");
    assert_eq!((w.live().as_str(), w.user().await), ("live", RunState::Paused));
}

#[tokio::test]
async fn data_that_its_users_cannot_run_on_goes_back() {
    let w = world().await;
    w.rig.engine.fail_next("start", EngineError::Refused("cannot read its files".into()));
    let op = w.rig.exec.submit_data(Some(shop()), w.job(), test_permit(), request("restore", None)).await.unwrap();
    let (op, _) = w.rig.done(&w.rig.exec, &op).await;
    assert!(op.state == OperationState::Failed && op.message.as_deref().is_some_and(|m| m.contains("cannot read its files")), "{op:?}");
    assert_eq!((w.live().as_str(), w.user().await), ("live", RunState::Running));
    assert_eq!(w.all(), ["live", "old"], "the restored one stays beside");
}

#[tokio::test]
async fn a_crash_at_any_record_leaves_the_old_or_the_new_in_place_and_loses_neither() {
    let mut ends = vec![];
    for k in 1.. {
        let w = world().await;
        let crashed = Arc::new(AtomicBool::new(false));
        let flag = crashed.clone();
        let stop: StopAfter = Arc::new(move |count| {
            flag.fetch_or(count == k, Ordering::SeqCst);
            count == k
        });
        let doomed = w.rig.executor(Some(stop));
        let op = doomed.submit_data(Some(shop()), w.job(), test_permit(), request("restore", None)).await.unwrap();
        w.rig.done(&doomed, &op).await;
        doomed.close(Duration::from_secs(5)).await;
        let next = w.rig.executor(None);
        next.recover().await.unwrap();
        let (op, _) = w.rig.done(&next, &op).await;
        let context = format!("stopped after record {k}: {op:?}");
        assert_eq!(w.user().await, RunState::Running, "{context}");
        let (live, all) = (w.live(), w.all());
        assert!(all.contains(&"live".to_owned()) && all.iter().all(|t| t == "live" || t == "old"), "{context}: {all:?}");
        // What the operation says is what there is.
        assert_eq!(live == "old", op.state == OperationState::Done, "{context}: {live}");
        if !crashed.load(Ordering::SeqCst) {
            break;
        }
        ends.push(live);
    }
    assert!(ends.len() >= 10 && ends.iter().any(|e| e == "old") && ends.iter().any(|e| e == "live"), "both ends were seen: {ends:?}");
}
