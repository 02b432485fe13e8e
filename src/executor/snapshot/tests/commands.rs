//! What a service has run around the reading of its data is run before an update too.

use super::*;
use crate::model::observed::ExecOutcome;
use crate::model::spec::BackupSettings;
use serde_json::json;
use std::sync::Mutex;

const PRE: &str = "flush tables";
const DUMP: &str = "dump all";
const POST: &str = "thaw tables";

/// What was run in the containers, in order; a command of `fails` ends with exit code 3.
fn scripted(rig: &Rig, fails: &'static str) -> Arc<Mutex<Vec<String>>> {
    let ran: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = ran.clone();
    rig.engine.on_exec(move |_, command| {
        let command = command.join(" ");
        // Health checks are none of these.
        let output = [(PRE, "flushed"), (DUMP, "CREATE TABLE visits"), (POST, "thawed")].into_iter().find(|(c, _)| *c == command)?.1;
        log.lock().unwrap().push(command.clone());
        Some(ExecOutcome { exit_code: Some(if command == fails { 3 } else { 0 }), output: output.to_owned(), truncated: false })
    });
    ran
}

fn with_commands(db: &str) -> StackSpec {
    let run = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let backup: BackupSettings =
        serde_json::from_value(json!({"pre": [{"run": run(PRE)}], "post": [{"run": run(POST)}], "stdout": run(DUMP)})).unwrap();
    let mut spec = stack("web:1", Some(db), &[]);
    spec.services.get_mut(&name("db")).unwrap().settings.backup = Some(backup);
    spec
}

/// Release 1 with commands and data.
async fn deployed(rig: &Rig) -> Arc<Executor> {
    let exec = executor_with(&rig.engine, &rig.store, None, Some(repository(rig)));
    let plan = planned(rig, &exec, with_commands("db:1"), DataPlan::default()).await;
    assert_eq!(run(rig, &exec, plan).await.0.state, OperationState::Done);
    rig.engine.write_volume_file("shop_data", "a", b"one");
    exec
}

fn asked() -> DataPlan {
    DataPlan { commands: vec![name("db")], ..first(Quiesce::Pause) }
}

#[tokio::test]
async fn an_update_runs_the_backups_commands_around_its_snapshot() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let ran = scripted(&rig, "nothing");
    let plan = planned(&rig, &exec, with_commands("db:2"), asked()).await;
    let (op, done) = run(&rig, &exec, plan).await;
    assert_eq!((op.state, ran.lock().unwrap().clone()), (OperationState::Done, [PRE, DUMP, POST].map(str::to_owned).to_vec()), "{op:?}");
    let taken: Vec<(&str, &[String])> = done.snapshots.iter().map(|s| (s.volume.as_str(), s.tags.as_slice())).collect();
    let tags = ["pre-update".to_owned()];
    assert_eq!(taken, [("shop_db.stdout", tags.as_slice()), ("shop_data", tags.as_slice())]);
    let steps: Vec<String> = rig.store.steps(&op.id).await.unwrap().into_iter().map(|s| s.key).collect();
    let order = ["before:db", "snapshot:stdout:db", "hold", "snapshot:shop_data", "resume", "after:db"];
    assert_eq!(steps[..order.len()], order.map(str::to_owned), "before anything of the release is made");
    assert_one_release(&rig, "updated").await;
}

#[tokio::test]
async fn a_command_that_fails_stops_the_update_and_what_was_begun_is_ended() {
    for fails in [PRE, DUMP] {
        let rig = rig().await;
        let exec = deployed(&rig).await;
        let ran = scripted(&rig, fails);
        let plan = planned(&rig, &exec, with_commands("db:2"), asked()).await;
        let (op, done) = run(&rig, &exec, plan).await;
        let message = op.message.unwrap_or_default();
        assert_eq!((op.state, done.snapshots), (OperationState::RolledBack, vec![]), "{message}");
        assert!(message.contains(fails) && message.contains("exit code 3"), "{message}");
        assert_eq!(ran.lock().unwrap().last().map(String::as_str), Some(POST), "{fails}");
        assert_one_release(&rig, fails).await;
    }
}

#[tokio::test]
async fn an_update_that_fails_later_ends_nothing_twice() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let ran = scripted(&rig, "nothing");
    let plan = planned(&rig, &exec, with_commands("db:bad"), asked()).await;
    let (op, _) = run(&rig, &exec, plan).await;
    assert_eq!(op.state, OperationState::RolledBack, "{op:?}");
    assert_eq!(*ran.lock().unwrap(), [PRE, DUMP, POST]);
    assert_one_release(&rig, "failed later").await;
}

#[tokio::test]
async fn after_a_crash_at_any_record_of_it_what_was_begun_is_ended() {
    for k in 1..=14 {
        let rig = rig().await;
        deployed(&rig).await;
        let ran = scripted(&rig, "nothing");
        let doomed = executor_with(&rig.engine, &rig.store, Some(Arc::new(move |count| count == k)), Some(repository(&rig)));
        let plan = planned(&rig, &doomed, with_commands("db:2"), asked()).await;
        let op = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        ended(&doomed, &op.id).await;
        doomed.close(Duration::from_secs(5)).await;
        let next = executor_with(&rig.engine, &rig.store, None, Some(repository(&rig)));
        for id in next.recover().await.unwrap() {
            ended(&next, &id).await;
        }
        let ran = ran.lock().unwrap().clone();
        assert!(!ran.contains(&PRE.to_owned()) || ran.last().map(String::as_str) == Some(POST), "record {k}: {ran:?}");
        assert_one_release(&rig, &format!("stopped after record {k}")).await;
    }
}

#[tokio::test]
async fn nothing_is_asked_of_a_stack_while_the_repository_is_being_cleaned_up() {
    let rig = rig().await;
    let exec = deployed(&rig).await;
    let ran = scripted(&rig, "nothing");
    let cleaning = exec.backups.clone().unwrap().calm.write_owned().await;
    let plan = planned(&rig, &exec, with_commands("db:2"), asked()).await;
    let op = exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    let mut standing = exec.standing(&op.id).unwrap();
    let waits = standing.wait_for(|s| s.message.contains("nothing is removed from the repository"));
    waits.await.expect("it waits before it has run anything");
    assert_eq!(*ran.lock().unwrap(), Vec::<String>::new());
    drop(cleaning);
    ended(&exec, &op.id).await;
    assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::Done);
    assert_eq!(*ran.lock().unwrap(), [PRE, DUMP, POST]);
}
