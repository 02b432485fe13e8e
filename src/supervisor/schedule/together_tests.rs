//! Schedules that are due together, on a real house with the fake engine and a worker that never ends.

use super::*;
use crate::call::{Door, Principal, dispatch};
use crate::executor::backup::{BackupHouse, BackupJob, DataJob, test_permit};
use crate::executor::{Executor, Options, Request};
use crate::gate::request::RequestFacts;
use crate::model::ids::{AgentName, CallId, EngineName, OperationId, StackName};
use crate::store::backup::BackupRecord;
use crate::store::backup::copies::CopyRecord;
use crate::supervisor::tasks::tests::Bench;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Services a and b back up by themselves, c with the stack.
fn compose() -> String {
    let own = "    x-dockwarden: {backup: {schedule: hourly}}\n";
    let service = |name: &str, own: &str| {
        format!("  {name}:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.5\n    volumes: [\"{name}:/data\"]\n{own}")
    };
    let services = [service("a", own), service("b", own), service("c", "")].concat();
    format!("x-dockwarden: {{monitor_s: 0}}\nservices:\n{services}volumes: {{a: {{}}, b: {{}}, c: {{}}}}\n")
}

/// A house whose stack `shop` has two services with an hourly backup each.
async fn with_two_schedules(dir: &std::path::Path) -> (Bench, StackRecord) {
    let exe = dir.join("worker.sh");
    std::fs::write(&exe, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copies = toml::from_str(&format!("[copies.disk]\nat = {:?}", dir.join("disk"))).unwrap();
    let backups = BackupHouse::of(&dir.join("home"), exe, Duration::from_secs(600)).configured(&copies, "01test");
    let mut bench = Bench::with(|_| {}).await;
    let house = Arc::get_mut(&mut bench.house).expect("nobody else has it");
    let facts: crate::executor::FactsOf = Arc::new(|plan, service| {
        let service = service.map_or("", crate::model::ids::ServiceName::as_str);
        RequestFacts::of(&plan.desired, service, &Default::default(), &Default::default(), Utc::now().date_naive(), Default::default())
    });
    let options = Options { backups: Some(backups.clone()), ..Options::default() };
    house.executor = Executor::new(house.engine.clone(), house.store.clone(), facts, options);
    house.backups = Some(Arc::new(backups));
    let who = Principal { agent: AgentName::new("a0").unwrap(), door: Door::Task, client: None, read_only: false, on_behalf: vec![] };
    let input = json!({"stack": "shop", "compose": compose(), "environment": "development"});
    let done = dispatch::dispatch(&bench.house, &who, "deploy", input, None).await.unwrap();
    let deployed: OperationId = serde_json::from_value(done.value["operation_id"].clone()).unwrap();
    if let Some(mut standing) = bench.house.executor.standing(&deployed) {
        while standing.changed().await.is_ok() {}
    }
    assert_eq!((&done.value["release"], bench.house.executor.holding(&shop())), (&json!(1), None), "{}", done.value);
    bench.house.rulebook.store(Arc::new(crate::gate::call::tests::shipped()));
    let stack = bench.house.store.stack(&shop()).await.unwrap().expect("deployed");
    (bench, stack)
}

fn shop() -> StackName {
    StackName::new("shop").unwrap()
}

/// Which backups are noted as run: those of services a and b, and the stack's.
async fn ran(house: &House) -> [bool; 3] {
    let mut ran = [false; 3];
    for (n, key) in ["backup:shop/a", "backup:shop/b", "backup:shop"].into_iter().enumerate() {
        ran[n] = noted(house.store.value(key).await.unwrap().as_ref(), Utc::now() + chrono::TimeDelta::days(1)).is_some();
    }
    ran
}

async fn end(house: &House, operation: &OperationId) {
    let standing = house.executor.standing(operation);
    house.executor.cancel(operation).await.unwrap();
    if let Some(mut standing) = standing {
        while standing.changed().await.is_ok() {}
    }
}

#[tokio::test]
async fn backups_that_are_due_together_run_one_after_the_other_and_none_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, stack) = with_two_schedules(dir.path()).await;
    let (house, now) = (&bench.house, Utc::now() + chrono::TimeDelta::hours(1));
    for expected in [[true, false, false], [true, true, false], [true, true, true]] {
        backup(house, &stack, now).await.unwrap();
        assert_eq!(ran(house).await, expected);
        // Looked at again while it is at work: nothing is begun, and nothing noted.
        backup(house, &stack, now).await.unwrap();
        assert_eq!(ran(house).await, expected);
        let at_work = house.executor.holding(&shop()).expect("the next has begun");
        end(house, &at_work).await;
    }
    backup(house, &stack, now).await.unwrap();
    assert_eq!(house.executor.holding(&shop()), None, "each ran once");
}

#[tokio::test]
async fn a_backup_that_finds_its_volume_busy_is_still_due() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, stack) = with_two_schedules(dir.path()).await;
    let (house, now) = (&bench.house, Utc::now() + chrono::TimeDelta::hours(1));
    let job = BackupJob { volumes: vec![EngineName::new("shop_a").unwrap()], ..BackupJob::default() };
    let request = Request {
        verb: "backup".into(),
        agent: "tester".into(),
        call: CallId::new("call-1").unwrap(),
        idempotency_key: None,
        args_hash: "h".into(),
        reason: None,
        approval: None,
    };
    let other = StackName::new("other").unwrap();
    let theirs = house.executor.submit_data(Some(other), DataJob::Backup(Box::new(job)), test_permit(), request).await.unwrap();
    let busy = backup(house, &stack, now).await.unwrap_err();
    assert!(busy.contains(theirs.id.as_str()), "{busy}");
    assert_eq!(ran(house).await, [false, true, false]);
    for operation in [house.executor.holding(&shop()).expect("b runs"), theirs.id] {
        end(house, &operation).await;
    }
    backup(house, &stack, now).await.unwrap();
    assert_eq!(ran(house).await, [true, true, false]);
    end(house, &house.executor.holding(&shop()).expect("a runs")).await;
}

#[tokio::test]
async fn the_repository_and_its_copies_are_checked_by_the_clock_one_part_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, _) = with_two_schedules(dir.path()).await;
    let (house, begun) = (&bench.house, Utc::now());
    let record = BackupRecord {
        snapshot_id: "a".repeat(64),
        stack: None,
        volume: "shop_a".to_owned(),
        bytes: 1,
        added: 1,
        files: 1,
        state: "complete".to_owned(),
        at: begun,
        agent: "a0".to_owned(),
        release: None,
        tags: vec![],
        operation: None,
        copies: vec![],
    };
    house.store.put_backup(&record).await.unwrap();
    let parts = async || {
        let of = async |key: &str| house.store.value(key).await.unwrap().and_then(|v| v["part"].as_u64());
        (of("check:repository:part").await, of("check:copy:disk:part").await)
    };
    let ended = async || {
        for operation in house.store.open_operations().await.unwrap() {
            end(house, &operation.id).await;
        }
    };
    // One that never was good is not looked at.
    check::tick(house, begun).await;
    check::tick(house, begun + chrono::TimeDelta::weeks(2)).await;
    assert_eq!(parts().await, (Some(1), None));
    ended().await;
    let copied = CopyRecord {
        copy: "disk".to_owned(),
        at: begun,
        passed: true,
        copied: 1,
        removed: 0,
        held: 1,
        bytes: 1,
        duration_ms: 1,
        detail: String::new(),
        operation: "op".to_owned(),
    };
    house.store.put_copy(&copied, Some(vec![])).await.unwrap();
    // The same day of each second week: the next part all the same.
    for (weeks, expected) in [(4, (Some(2), None)), (6, (Some(3), Some(1))), (8, (Some(4), Some(2)))] {
        check::tick(house, begun + chrono::TimeDelta::weeks(weeks)).await;
        assert_eq!(parts().await, expected);
        check::tick(house, begun + chrono::TimeDelta::weeks(weeks)).await;
        assert_eq!(parts().await, expected, "once");
        ended().await;
    }
}

#[tokio::test]
async fn a_run_that_an_end_of_the_supervisor_interrupted_is_made_up_for_a_few_times() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, stack) = with_two_schedules(dir.path()).await;
    let (house, now) = (&bench.house, Utc::now() + chrono::TimeDelta::hours(1));
    backup(house, &stack, now).await.unwrap();
    let first = house.executor.holding(&shop()).expect("a has begun");
    end(house, &first).await;
    let at = |minutes| now + chrono::TimeDelta::minutes(minutes);
    let (schedule, key) = ("0 0 1 1 *", "backup:shop/a");
    let due = async |now| {
        let input = json!({"stack": "shop", "service": "a", "wait": false});
        let begun = run(house, Due { key: key.into(), schedule, tool: "backup", input, at_once: false }, now).await.unwrap();
        if begun {
            end(house, &house.executor.holding(&shop()).expect("it runs")).await;
        }
        begun
    };
    assert!(!due(at(30)).await, "it was cancelled: that is meant");
    // The same operation, as a start after a crash closes it.
    let interrupt = async |now: chrono::DateTime<Utc>| {
        let note = house.store.value(key).await.unwrap().unwrap();
        let mut op = house.store.operation(&OperationId::new(note["operation"].as_str().unwrap()).unwrap()).await.unwrap().unwrap();
        (op.state, op.message) =
            (crate::model::operation::OperationState::Failed, Some("the supervisor was restarted while it ran; x".into()));
        op.settled_at = Some(now);
        house.store.save_operation(&op).await.unwrap();
    };
    for n in 1..=3 {
        interrupt(at(n * 20)).await;
        assert!(!due(at(n * 20 + 14)).await, "not at once");
        assert!(due(at(n * 20 + 15)).await, "try {n}");
    }
    interrupt(at(80)).await;
    assert!(!due(at(100)).await, "not without end");
}

#[tokio::test]
async fn a_run_that_did_not_begin_is_made_up_for_a_few_times() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, _) = with_two_schedules(dir.path()).await;
    let (house, now) = (&bench.house, Utc::now() + chrono::TimeDelta::hours(1));
    let at = |minutes| now + chrono::TimeDelta::minutes(minutes);
    let key = "backup:shop/a";
    let due = async |schedule: &str, input: serde_json::Value, now| {
        run(house, Due { key: key.into(), schedule, tool: "backup", input, at_once: false }, now).await
    };
    let (yearly, a) = ("0 0 1 1 *", json!({"stack": "shop", "service": "a", "wait": false}));
    // What a kill between the note and the beginning leaves.
    house.store.set_value(key, &json!({"at": now, "begun": false, "again": 0})).await.unwrap();
    assert_eq!(due(yearly, a.clone(), at(14)).await, Ok(false), "not at once");
    // The house is frozen while it is due: refused, and not for good.
    crate::call::approval::freeze(&house.store, "test", "moving", Utc::now()).await.unwrap();
    for (n, minutes) in [15, 30, 45].into_iter().enumerate() {
        assert!(due(yearly, a.clone(), at(minutes)).await.is_err(), "try {n}");
        assert_eq!(due(yearly, a.clone(), at(minutes + 14)).await, Ok(false), "after try {n}");
    }
    assert_eq!(due(yearly, a.clone(), at(60)).await, Ok(false), "not without end");
    assert!(house.executor.holding(&shop()).is_none());
    // What is written wrongly is not tried again before its next time.
    house.store.set_value(key, &json!({"at": now - chrono::TimeDelta::hours(2)})).await.unwrap();
    assert!(due("hourly", json!({"stack": "nope", "wait": false}), now).await.is_err());
    assert_eq!(due(yearly, a, at(20)).await, Ok(false));
}
