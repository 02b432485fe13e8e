//! Commands of a service around its backup and instead of it, directories of the host, exports, and looks at the repository.

use super::*;
use crate::executor::backup::{BackupRequest, SnapshotState};
use crate::model::ids::ServiceName;
use crate::model::observed::ExecOutcome;
use std::path::PathBuf;
use std::sync::Mutex;

/// What was run in the container, in order; a command that holds `bad` ends with exit code 3, `dump` writes a dump.
fn scripted(rig: &Rig) -> Arc<Mutex<Vec<String>>> {
    let ran: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = ran.clone();
    rig.engine.on_exec(move |_, command| {
        let command = command.join(" ");
        log.lock().unwrap().push(command.clone());
        let (exit_code, output) = match () {
            () if command.contains("bad") => (3, "no such database"),
            () if command.contains("dump") => (0, "CREATE TABLE visits"),
            () => (0, "ok"),
        };
        Some(ExecOutcome { exit_code: Some(exit_code), output: output.to_owned(), truncated: false })
    });
    ran
}

async fn commands(rig: &Rig, pre: &str, post: &str, stdout: Option<&str>) -> ServiceCommands {
    let hook = |run: &str| serde_json::from_value(serde_json::json!({"run": run.split(' ').collect::<Vec<_>>()})).unwrap();
    ServiceCommands {
        service: ServiceName::new("db").unwrap(),
        environment: "production".into(),
        container: rig.engine.container(&EngineName::new("db").unwrap()).await.unwrap().unwrap().id,
        pre: vec![hook(pre)],
        post: vec![hook(post)],
        stdout: stdout.map(|c| c.split(' ').map(str::to_owned).collect()),
        timeout_s: 60,
    }
}

fn job_of(commands: ServiceCommands, quiesce: Quiesce) -> DataJob {
    DataJob::Backup(Box::new(BackupJob { volumes: vec![data()], commands: vec![commands], quiesce, ..BackupJob::default() }))
}

async fn run(rig: &Rig, exec: &Arc<Executor>, verb: &str, job: DataJob) -> (Operation, DataResult) {
    let op = exec.submit_data(Some(shop()), job, test_permit(), request(verb, None)).await.unwrap();
    rig.done(exec, &op).await
}

#[tokio::test]
async fn commands_run_around_the_reading_and_an_output_is_a_snapshot_of_one_file() {
    let rig = Rig::new().await;
    let ran = scripted(&rig);
    let job = job_of(commands(&rig, "flush", "thaw", Some("dump all")).await, Quiesce::Pause);
    let (op, done) = run(&rig, &rig.exec, "backup", job).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_eq!(*ran.lock().unwrap(), ["flush", "dump all", "thaw"]);
    let sources: Vec<(&str, u64, u64)> = done.snapshots.iter().map(|s| (s.volume.as_str(), s.files, s.bytes)).collect();
    assert_eq!(sources, [("shop_db.stdout", 1, 19), ("shop_data", 2, 100_003)]);
    assert_eq!((done.checks.len(), done.checks[0].level, done.checks[0].passed), (1, 1, true));
    let steps: Vec<String> = rig.store.steps(&op.id).await.unwrap().into_iter().map(|s| s.key).collect();
    assert_eq!(steps, ["before:db", "snapshot:stdout:db", "hold", "snapshot:shop_data", "resume", "after:db", "count"]);
    assert_eq!(std::fs::read_dir(rig.exec.backups.clone().unwrap().spool()).unwrap().count(), 0, "nothing stays in the spool");
    let restore = DataJob::Restore { snapshot: Box::new(done.snapshots[0].clone()), into: None, path: None, to: None };
    let (_, back) = run(&rig, &rig.exec, "restore", restore).await;
    // The fake engine's volumes keep neither modes nor times, so only the content is compared here.
    assert!(back.restored[0].volume.starts_with("shop_db.stdout-restored-"), "{back:?}");
    assert_eq!(rig.engine.volume_file(&back.restored[0].volume, "stdout"), Some(b"CREATE TABLE visits".to_vec()));
}

#[tokio::test]
async fn a_command_that_fails_stores_nothing_and_what_was_begun_in_the_container_is_ended() {
    for (pre, stdout, names) in [("bad flush", "dump all", "`pre`"), ("flush", "bad dump", "`stdout`")] {
        let rig = Rig::new().await;
        let ran = scripted(&rig);
        let (op, done) = run(&rig, &rig.exec, "backup", job_of(commands(&rig, pre, "thaw", Some(stdout)).await, Quiesce::Pause)).await;
        let message = op.message.unwrap_or_default();
        assert_eq!((op.state, done.snapshots), (OperationState::Failed, vec![]), "{message}");
        assert!(message.contains(names) && message.contains("exit code 3"), "{message}");
        // What the container wrote may be anything: it is kept apart, and shown as untrusted.
        assert!(!message.contains("no such database"), "{message}");
        assert_eq!((op.evidence[0].probe_output.as_deref(), op.evidence[0].exit_code), (Some("no such database"), Some(3)));
        assert_eq!(ran.lock().unwrap().last().map(String::as_str), Some("thaw"), "post runs also after a failure");
        assert_eq!((rig.writer().await, rig.exec.backups.clone().unwrap().list().await.unwrap()), (RunState::Running, vec![]));
    }
}

#[tokio::test]
async fn a_post_that_fails_is_told_and_the_snapshots_stay() {
    let rig = Rig::new().await;
    let ran = scripted(&rig);
    let (op, done) = run(&rig, &rig.exec, "backup", job_of(commands(&rig, "flush", "bad thaw", None).await, Quiesce::None)).await;
    assert_eq!((op.state, done.snapshots.len()), (OperationState::NeedsAttention, 1), "{op:?}");
    assert!(op.message.as_deref().is_some_and(|m| m.contains("`post`")), "{op:?}");
    assert_eq!(
        ran.lock().unwrap().iter().filter(|c| *c == "bad thaw").count(),
        2,
        "in its turn and on the way back, and not again and again"
    );
}

#[tokio::test]
async fn a_policy_that_forbids_commands_by_now_is_obeyed_at_the_moment_they_would_run() {
    let rig = Rig::new().await;
    let ran = scripted(&rig);
    let (op, done) = run(&rig, &rig.exec, "backup", job_of(commands(&rig, "forbidden", "thaw", None).await, Quiesce::None)).await;
    assert_eq!((op.state, done.snapshots), (OperationState::Failed, vec![]));
    assert!(op.message.as_deref().is_some_and(|m| m.contains("refused by rule hook.command")), "{op:?}");
    assert_eq!(*ran.lock().unwrap(), Vec::<String>::new(), "nothing was begun, so nothing is ended");
    // What may not be ended is not begun.
    let (op, _) = run(&rig, &rig.exec, "backup", job_of(commands(&rig, "flush", "forbidden", None).await, Quiesce::None)).await;
    assert!(op.state == OperationState::Failed && op.message.as_deref().is_some_and(|m| m.contains("`post`")), "{op:?}");
    assert_eq!(*ran.lock().unwrap(), Vec::<String>::new());
}

/// Who asked is revoked in the middle: what `pre` holds is let go all the same, and that is in the log.
#[tokio::test]
async fn what_was_begun_is_ended_also_when_nobody_may_run_commands_any_more() {
    use crate::executor::backup::command::ENDED_ANYWAY;
    for (stdout, state) in [(None, OperationState::Done), (Some("bad dump"), OperationState::Failed)] {
        let rig = Rig::new().await;
        let ran = scripted(&rig);
        let (op, _) = run(&rig, &rig.exec, "backup", job_of(commands(&rig, "flush", "revoked thaw", stdout).await, Quiesce::None)).await;
        assert_eq!(op.state, state, "{op:?}");
        assert_eq!(ran.lock().unwrap().last().map(String::as_str), Some("revoked thaw"), "{stdout:?}");
        let rows = rig.store.audit_after(0, None, 100).await.unwrap();
        let told: Vec<_> = rows.into_iter().filter(|r| r.tool == ENDED_ANYWAY).collect();
        assert!(told.len() == 1 && told[0].detail["rule"] == "hook.command" && told[0].detail["operation"] == op.id.as_str(), "{told:?}");
    }
}

#[tokio::test]
async fn commands_are_judged_for_those_the_work_is_done_for_as_well() {
    use crate::gate::{CallFacts, Decision, permit};
    use crate::model::verdict::Verdict;
    let rig = Rig::new().await;
    let ran = scripted(&rig);
    let facts = CallFacts {
        agent: "tester".into(),
        tool: "backup".into(),
        mutates: true,
        preview: false,
        stack: Some(shop()),
        environment: None,
        service: None,
        arguments: Default::default(),
        on_behalf: vec!["lead".into()],
    };
    let decision = Decision { verdict: Verdict::Allow, findings: vec![], limits: vec![], approval: None, hint: None };
    let permit = permit(&CallId::new("call-1").unwrap(), &facts, &decision, Verdict::Allow, &[], false).expect("allowed");
    let job = job_of(commands(&rig, "flush", "thaw", None).await, Quiesce::None);
    let op = rig.exec.submit_data(Some(shop()), job, permit, request("backup", None)).await.unwrap();
    let (op, _) = rig.done(&rig.exec, &op).await;
    assert!(op.message.as_deref().is_some_and(|m| m.contains("refused by rule hook.command")), "{op:?}");
    assert_eq!(*ran.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn after_a_crash_at_any_record_the_container_runs_thawed() {
    for at in 1..=14 {
        let rig = Rig::new().await;
        let ran = scripted(&rig);
        let crashed = rig.executor(Some(Arc::new(move |n| n == at)));
        let job = job_of(commands(&rig, "flush", "thaw", Some("dump all")).await, Quiesce::Pause);
        let (op, _) = run(&rig, &crashed, "backup", job).await;
        crashed.close(Duration::from_secs(5)).await;
        let next = rig.executor(None);
        next.recover().await.unwrap();
        let (op, done) = rig.done(&next, &op).await;
        assert!(matches!(op.state, OperationState::Failed | OperationState::Done), "record {at}: {op:?}");
        assert_eq!(rig.writer().await, RunState::Running, "record {at}");
        let ran = ran.lock().unwrap().clone();
        assert!(!ran.contains(&"flush".to_owned()) || ran.last().map(String::as_str) == Some("thaw"), "record {at}: {ran:?}");
        let listed = next.backups.clone().unwrap().list().await.unwrap();
        let recorded = rig.store.backups(None, None, 10).await.unwrap();
        assert!(recorded.iter().all(|r| listed.iter().any(|s| s.snapshot_id.as_str() == r.snapshot_id)), "record {at}: a record lies");
        assert!(done.snapshots.iter().all(|s| s.state == "complete"), "record {at}");
    }
}

#[tokio::test]
async fn a_directory_of_the_host_comes_back_beside_itself_with_its_owner_and_modes() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let rig = Rig::new().await;
    let host = rig.dir.path().join("srv/data");
    std::fs::create_dir_all(host.join("below")).unwrap();
    std::fs::write(host.join("below/file"), "live").unwrap();
    chown(host.join("below/file"), Some(1234), Some(4321)).unwrap();
    std::fs::set_permissions(host.join("below/file"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    let directory = Directory { host: host.display().to_string(), here: Some(host.clone()), real: None };
    let house = rig.exec.backups.clone().unwrap();
    let (volume, progress): (_, crate::executor::backup::ProgressSink) = (directory.host.clone(), Arc::new(|_| {}));
    let asked =
        BackupRequest { path: host.clone(), volume, stack: Some(shop()), instance: "i".into(), tags: vec![], definition: None, progress };
    let report = house.backup_dir(asked).await.unwrap();
    assert_eq!((report.files, report.bytes, report.state), (1, 4, SnapshotState::Complete));
    let listed = house.list().await.unwrap();
    assert_eq!(listed[0].volume.as_deref(), Some(directory.host.as_str()));
    let snapshot = BackupRecord { volume: directory.host.clone(), snapshot_id: report.snapshot_id.to_string(), ..rig.snapshot().await };
    std::fs::write(host.join("below/file"), "newer").unwrap();
    let job = DataJob::RestoreDirectory { snapshot: Box::new(snapshot), directory, path: None };
    let (op, back) = run(&rig, &rig.exec, "restore", job).await;
    assert_eq!((op.state, back.restored[0].verified), (OperationState::Done, true), "{op:?}");
    let into = PathBuf::from(&back.restored[0].volume);
    assert_eq!(into.parent(), host.parent());
    let meta = std::fs::metadata(into.join("below/file")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4751, 1234, 4321));
    assert_eq!(std::fs::read_to_string(into.join("below/file")).unwrap(), "live");
    assert_eq!(std::fs::read_to_string(host.join("below/file")).unwrap(), "newer", "live data is untouched");
}

#[tokio::test]
async fn an_export_unpacks_with_zstd_and_tar_alone_and_only_the_last_two_stay() {
    let rig = Rig::new().await;
    let snapshot = rig.snapshot().await;
    let mut files = vec![];
    for _ in 0..3 {
        let (op, done) = run(&rig, &rig.exec, "export", DataJob::Export { snapshots: vec![snapshot.clone()] }).await;
        assert_eq!((op.state, op.message, done.exports.len()), (OperationState::Done, None, 1));
        files.push(PathBuf::from(&done.exports[0].file));
    }
    assert_eq!(files.iter().map(|f| f.exists()).collect::<Vec<_>>(), [false, true, true]);
    let there = std::fs::read_dir(files[2].parent().unwrap()).unwrap().count();
    assert_eq!(there, 4, "two exports, each with its SHA-256, and nothing half-made");
    let directory = files[2].parent().unwrap();
    let check =
        std::process::Command::new("sha256sum").arg("-c").arg(files[2].with_extension("zst.sha256")).current_dir(directory).output();
    assert!(check.as_ref().is_ok_and(|o| o.status.success()), "{check:?}");
    let unpacked = zstd::decode_all(std::fs::File::open(&files[2]).unwrap()).unwrap();
    let mut names: Vec<String> = tar::Archive::new(unpacked.as_slice())
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string().trim_end_matches('/').to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["shop_data", "shop_data/a", "shop_data/b"]);
}

#[tokio::test]
async fn a_damaged_pack_fails_the_check_of_its_part_and_is_recorded() {
    let rig = Rig::new().await;
    rig.snapshot().await;
    let whole = |done: &DataResult| done.checks.iter().map(|c| (c.level, c.passed, c.part.clone())).collect::<Vec<_>>();
    let (op, done) = run(&rig, &rig.exec, "verify_backup", DataJob::Check { part: (1, 1), copy: None }).await;
    assert_eq!((op.state, whole(&done)), (OperationState::Done, vec![(2, true, Some("1/1".into()))]));
    let repo = rig.exec.backups.clone().unwrap().repo;
    let pack = walk(&repo.join("data")).into_iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[40] ^= 0xff;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    let (op, done) = run(&rig, &rig.exec, "verify_backup", DataJob::Check { part: (1, 1), copy: None }).await;
    assert_eq!((op.state, whole(&done)), (OperationState::Failed, vec![(2, false, Some("1/1".into()))]));
    assert!(op.message.as_deref().is_some_and(|m| m.contains("NOT sound")), "{op:?}");
    let kept = rig.store.last_checks().await.unwrap();
    assert_eq!(kept.iter().map(|c| (c.level, c.passed)).collect::<Vec<_>>(), [(1, true), (2, false)]);
}

#[tokio::test]
async fn a_service_that_does_not_run_keeps_nobody_elses_data_from_being_read() {
    for (stdout, partial) in [(None, false), (Some("dump all"), true)] {
        let rig = Rig::new().await;
        let ran = scripted(&rig);
        let commands = commands(&rig, "flush", "thaw", stdout).await;
        rig.engine.stop(&test_permit(), &EngineName::new("db").unwrap(), Duration::from_secs(1)).await.unwrap();
        let (op, done) = run(&rig, &rig.exec, "backup", job_of(commands, Quiesce::Pause)).await;
        assert_eq!((op.state, done.snapshots.len(), ran.lock().unwrap().len()), (OperationState::Done, 1, 0), "{op:?}");
        assert_eq!(crate::executor::backup::partial(&op), partial, "{op:?}");
        assert!(op.message.as_deref().is_some_and(|m| m.contains("does not run")), "{op:?}");
    }
}

#[tokio::test]
async fn a_backup_runs_no_command_while_the_repository_is_being_cleaned_up() {
    let rig = Rig::new().await;
    let ran = scripted(&rig);
    let cleaning = rig.exec.backups.clone().unwrap().calm.write_owned().await;
    let job = job_of(commands(&rig, "flush tables", "thaw tables", None).await, Quiesce::Pause);
    let op = rig.exec.submit_data(Some(shop()), job, test_permit(), request("backup", None)).await.unwrap();
    let mut standing = rig.exec.standing(&op.id).unwrap();
    let waits = standing.wait_for(|s| s.message.contains("nothing is removed from the repository"));
    waits.await.expect("it waits before it has run anything");
    assert_eq!(*ran.lock().unwrap(), Vec::<String>::new());
    drop(cleaning);
    assert_eq!(rig.done(&rig.exec, &op).await.0.state, OperationState::Done);
    assert_eq!(*ran.lock().unwrap(), ["flush tables", "thaw tables"]);
}
