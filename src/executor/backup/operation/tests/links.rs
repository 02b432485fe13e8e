//! Directories of the host in whose place, or above which, somebody puts a link.

use super::*;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

struct World {
    rig: Rig,
    host: PathBuf,
    directory: Directory,
    snapshot: BackupRecord,
}

async fn world() -> World {
    let rig = Rig::new().await;
    let real = rig.dir.path().canonicalize().unwrap();
    let host = real.join("srv/shop/data");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::create_dir_all(real.join("root/data")).unwrap();
    std::fs::write(real.join("root/data/key"), "of the host").unwrap();
    let directory = Directory { host: host.display().to_string(), here: Some(host.clone()), real: None };
    let snapshot = BackupRecord { volume: directory.host.clone(), ..rig.snapshot().await };
    World { rig, host, directory, snapshot }
}

impl World {
    async fn run(&self, verb: &str, job: DataJob) -> Operation {
        let op = self.rig.exec.submit_data(Some(shop()), job, test_permit(), request(verb, None)).await.unwrap();
        self.rig.done(&self.rig.exec, &op).await.0
    }

    async fn backup(&self, quiesce: Quiesce) -> Operation {
        let directories = vec![self.directory.clone()];
        self.run("backup", DataJob::Backup(Box::new(BackupJob { directories, quiesce, ..BackupJob::default() }))).await
    }

    fn jobs(&self) -> [DataJob; 1] {
        let (snapshot, directory) = (Box::new(self.snapshot.clone()), self.directory.clone());
        [DataJob::RestoreDirectory { snapshot, directory, path: None }]
    }

    /// A container that may write what the directory lies in.
    async fn neighbour(&self) -> EngineName {
        let mount = EngineMount {
            source: Some(self.host.parent().unwrap().display().to_string()),
            ..EngineMount::new(MountKind::Bind, "/p".to_owned())
        };
        let (name, image) = (EngineName::new("neighbour").unwrap(), ImageRef::new("db:1").unwrap());
        let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::new(name, image) };
        let id = self.rig.engine.create_container(&test_permit(), &spec).await.unwrap();
        self.rig.engine.start(&test_permit(), &id).await.unwrap();
        id
    }
}

fn refused(op: &Operation, why: &str) {
    assert!(op.state == OperationState::Failed && op.message.as_deref().is_some_and(|m| m.contains(why)), "{why}: {op:?}");
}

#[tokio::test]
async fn a_link_in_the_place_of_a_directory_is_neither_read_nor_handed_to_the_engine_nor_written_through() {
    let w = world().await;
    let real = w.host.ancestors().nth(3).unwrap();
    let created = || w.rig.engine.calls().into_iter().filter(|c| c.contains("create_container")).count();
    let before = created();
    // Once the directory itself, once what it lies in.
    for (moved, link) in [("srv/shop/data", "root/data"), ("srv/shop", "root")] {
        std::fs::rename(real.join(moved), real.join("aside")).unwrap();
        symlink(real.join(link), real.join(moved)).unwrap();
        refused(&w.backup(Quiesce::None).await, "is a link");
        assert_eq!(created(), before, "no helper was made that binds it: the engine would follow the link");
        if link == "root" {
            for job in w.jobs() {
                refused(&w.run("restore", job).await, "is a link");
            }
        }
        let left: Vec<_> = std::fs::read_dir(real.join("root")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["data"], "nothing was made where the link leads");
        std::fs::remove_file(real.join(moved)).unwrap();
        std::fs::rename(real.join("aside"), real.join(moved)).unwrap();
    }
    assert_eq!(w.rig.store.backups(None, None, 10).await.unwrap().len(), 1, "the one taken before");
    assert_eq!(std::fs::read_to_string(real.join("root/data/key")).unwrap(), "of the host");
}

#[tokio::test]
async fn a_container_that_could_put_a_link_there_meanwhile_is_held_or_nothing_is_done() {
    let w = world().await;
    let id = w.neighbour().await;
    refused(&w.backup(Quiesce::None).await, "neighbour may write what it lies in");
    for job in w.jobs() {
        refused(&w.run("restore", job).await, "neighbour may write what it lies in");
    }
    let held = w.backup(Quiesce::Pause).await;
    assert_eq!(held.state, OperationState::Done, "{held:?}");
    assert_eq!(w.rig.engine.container(&id).await.unwrap().unwrap().state, RunState::Running);
}

#[tokio::test]
async fn a_directory_that_nobody_here_sees_is_not_read() {
    let mut w = world().await;
    w.directory.here = None;
    refused(&w.backup(Quiesce::None).await, "nobody here can tell whether a link lies on its path");
}
