//! What keeps the loop from healing, and what must not: on the fake engine, scan by scan.

use super::*;
use crate::call::{Door, Principal, dispatch};
use crate::gate::Permit;
use crate::model::config::MaintenanceWindow;
use crate::model::ids::AgentName;
use crate::model::observed::{RunState, StatsSample};
use crate::model::spec::Restart;
use crate::supervisor::tasks::tests::Bench;
use serde_json::Value;
use std::time::Duration;

const COMPOSE: &str = "x-dockwarden: {monitor_s: 0}\nservices:\n  web: &s\n    image: hello:1\n    restart: unless-stopped\n    mem_limit: 64m\n    cpus: 0.5\n  db: *s\n";

fn id(name: &str) -> EngineName {
    EngineName::new(name).expect("valid")
}

fn stack(name: &str) -> StackName {
    StackName::new(name).expect("valid")
}

async fn call(b: &Bench, tool: &str, input: Value) {
    let agent = AgentName::new("a0").expect("valid");
    let who = Principal { agent, door: Door::Cli, client: None, read_only: false, on_behalf: vec![] };
    dispatch::dispatch(&b.house, &who, tool, input, None).await.unwrap_or_else(|e| panic!("{tool}: {e:?}"));
}

/// These stacks, and who acts past us.
async fn deployed(b: &Bench, stacks: &[&str], file: &str) -> Permit {
    for stack in stacks {
        call(b, "deploy", json!({"stack": stack, "compose": file})).await;
    }
    let operation = b.house.store.operations(None, 1).await.expect("read").remove(0);
    b.house.rulebook.store(Arc::new(crate::gate::call::tests::shipped()));
    crate::gate::permit_takeover(&operation)
}

/// It ends and stays down: no policy acts, as after a kill.
async fn ends(b: &Bench, permit: &Permit, name: &str) {
    b.house.engine.set_restart(permit, &id(name), Restart::No).await.expect("set");
    b.crash(name, 1);
}

async fn state(b: &Bench, name: &str) -> RunState {
    b.house.engine.container(&id(name)).await.expect("looked").expect("there").state
}

async fn told(b: &Bench, what: &str) -> usize {
    let rows = b.house.store.audit_after(0, None, 1000).await.expect("rows");
    rows.into_iter().filter(|r| r.tool == what).count()
}

/// A loop without events; nothing waits before it counts.
async fn healer(b: &Bench) -> (Healer, tokio::sync::mpsc::Receiver<Wake>) {
    let (wake, woken) = tokio::sync::mpsc::channel(64);
    let mut healer = Healer::new(b.house.clone(), wake).await;
    healer.quiet_until = None;
    healer.signs.way = Duration::ZERO;
    (healer, woken)
}

/// What was begun has ended when nobody can wake the loop any more.
async fn end(healer: Healer, mut woken: tokio::sync::mpsc::Receiver<Wake>) {
    drop(healer);
    while woken.recv().await.is_some() {}
}

async fn scanned(b: &Bench, scans: usize) {
    let (mut healer, woken) = healer(b).await;
    for _ in 0..scans {
        healer.scan().await;
    }
    end(healer, woken).await;
}

#[tokio::test]
async fn one_container_that_does_not_answer_keeps_no_other_stack_from_being_healed() {
    let b = Bench::with(|_| {}).await;
    let permit = deployed(&b, &["aaa", "shop"], COMPOSE).await;
    b.engine.silence_container("aaa-db-1", true);
    ends(&b, &permit, "shop-web-1").await;
    let (mut healer, woken) = healer(&b).await;
    for _ in 0..2 {
        healer.scan().await;
    }
    assert!(!healer.engine_lost && healer.quiet_until.is_none(), "the engine answers");
    // It answers again, and is looked at again at once when its rest is over.
    b.engine.silence_container("aaa-db-1", false);
    assert!(healer.slow.rests(&stack("aaa")));
    healer.slow.answered(&stack("aaa"));
    assert!(!healer.slow.rests(&stack("aaa")));
    end(healer, woken).await;
    assert_eq!((state(&b, "shop-web-1").await, told(&b, "stack_does_not_answer").await), (RunState::Running, 1));
}

#[tokio::test]
async fn an_engine_that_does_not_answer_at_all_is_lost_and_settles_first() {
    let b = Bench::with(|_| {}).await;
    let permit = deployed(&b, &["shop"], COMPOSE).await;
    ends(&b, &permit, "shop-web-1").await;
    let (mut healer, woken) = healer(&b).await;
    b.away(true);
    healer.scan().await;
    assert!(healer.engine_lost);
    b.away(false);
    healer.scan().await;
    assert!(healer.quiet_until.is_some_and(|t| t > Utc::now()));
    end(healer, woken).await;
    assert_eq!((state(&b, "shop-web-1").await, told(&b, "stack_does_not_answer").await), (RunState::Exited, 0));
}

#[tokio::test]
async fn a_container_that_never_answers_does_not_keep_the_loop_from_beginning() {
    let b = Bench::with(|_| {}).await;
    let permit = deployed(&b, &["aaa", "shop"], COMPOSE).await;
    let seen = json!({"at": Utc::now() - TimeDelta::hours(1)});
    b.house.store.set_value(SEEN, &seen).await.expect("kept");
    ends(&b, &permit, "aaa-db-1").await;
    ends(&b, &permit, "shop-web-1").await;
    b.engine.silence_container("aaa-db-1", true);
    let (mut healer, woken) = healer(&b).await;
    for _ in 0..6 {
        healer.scan().await;
        healer.quiet_until = None;
    }
    end(healer, woken).await;
    assert_eq!(state(&b, "shop-web-1").await, RunState::Running);
}

#[tokio::test]
async fn in_a_maintenance_window_and_while_the_engine_settles_nothing_is_healed() {
    let window = |stacks: &[&str]| MaintenanceWindow {
        schedule: "* * * * *".into(),
        minutes: 60,
        stacks: stacks.iter().map(|s| (*s).to_owned()).collect(),
    };
    let b = Bench::with(|s| s.maintenance = vec![window(&["shop"])]).await;
    let permit = deployed(&b, &["shop", "wiki"], COMPOSE).await;
    ends(&b, &permit, "shop-web-1").await;
    ends(&b, &permit, "wiki-web-1").await;
    let (mut healer, woken) = healer(&b).await;
    healer.quiet_until = Some(Utc::now() + TimeDelta::seconds(15));
    healer.scan().await;
    end(healer, woken).await;
    assert_eq!((state(&b, "shop-web-1").await, state(&b, "wiki-web-1").await), (RunState::Exited, RunState::Exited), "it settles");
    scanned(&b, 2).await;
    assert_eq!((state(&b, "shop-web-1").await, state(&b, "wiki-web-1").await), (RunState::Exited, RunState::Running));
}

#[tokio::test]
async fn while_most_of_the_host_is_down_at_once_nothing_is_healed_and_it_is_told() {
    let b = Bench::with(|_| {}).await;
    let permit = deployed(&b, &["shop", "wiki"], COMPOSE).await;
    for name in ["shop-web-1", "shop-db-1", "wiki-web-1"] {
        ends(&b, &permit, name).await;
    }
    scanned(&b, 2).await;
    assert_eq!((state(&b, "shop-web-1").await, told(&b, "host_failing").await), (RunState::Exited, 1));
}

#[tokio::test]
async fn a_service_that_was_given_up_keeps_none_from_being_restarted_before_it_is_too_large() {
    let b = Bench::with(|_| {}).await;
    let file = format!("{COMPOSE}    x-dockwarden: {{memory_restart_percent: 90}}\n").replace("  db: *s\n", "  db:\n    <<: *s\n");
    let permit = deployed(&b, &["shop"], &file).await;
    let given_up = Course { release: 1, quarantined: Some(Utc::now()), ..Course::default() };
    b.house.store.set_value("course:shop/web", &json!(given_up)).await.expect("kept");
    ends(&b, &permit, "shop-web-1").await;
    b.engine.set_stats(StatsSample {
        cpu_percent: 1.0,
        memory_bytes: 63 << 20,
        memory_limit_bytes: 64 << 20,
        net_rx_bytes: 0,
        net_tx_bytes: 0,
        block_read_bytes: 0,
        block_write_bytes: 0,
        pids: 1,
    });
    b.engine.clear_calls();
    scanned(&b, 4).await;
    let calls = b.engine.calls();
    assert!(calls.iter().any(|c| c.contains("shop-db-1")), "{calls:?}");
    assert_eq!(state(&b, "shop-web-1").await, RunState::Exited, "and what was given up stays so");
    let course = b.house.store.value("course:shop/db").await.expect("read");
    assert!(course.is_none_or(|c| c["acts"] == json!([])), "it did not fail: a real failure later has its whole budget");
}

#[tokio::test]
async fn what_began_anew_by_a_persons_hand_stays_so_whatever_else_is_done_to_the_stack() {
    let b = Bench::with(|_| {}).await;
    deployed(&b, &["shop"], COMPOSE).await;
    let (healer, woken) = healer(&b).await;
    let (shop, web) = (stack("shop"), ServiceName::new("web").expect("valid"));
    let release = b.house.store.release(&shop, 1).await.expect("read").expect("there");
    let look = Look { stack: &shop, release: &release, now: Utc::now() };
    // Given up before somebody's deploy, which is the hand that helped.
    let long_ago = look.now - TimeDelta::days(1);
    let given_up = Course { release: 1, quarantined: Some(long_ago), ..Course::default() };
    healer.keep(&look, &web, given_up).await.expect("kept");
    let fresh = Course { release: 1, ..Course::default() };
    assert_eq!(healer.course(&look, &web).await.expect("read"), fresh);
    let kept = b.house.store.value("course:shop/web").await.expect("read").expect("kept");
    assert_eq!(serde_json::from_value::<Course>(kept).expect("a course"), fresh, "also when five others have followed");
    end(healer, woken).await;
}

#[tokio::test]
async fn incidents_of_what_is_gone_end_without_a_recovery_and_say_why() {
    let b = Bench::with(|_| {}).await;
    let (shop, wiki, given_back) = (stack("shop"), stack("wiki"), stack("given-back"));
    call(&b, "deploy", json!({"stack": shop, "compose": COMPOSE})).await;
    deployed(&b, &["shop", "wiki"], &COMPOSE.replace("  db: *s\n", "")).await;
    let release = b.house.store.release(&shop, 1).await.expect("read").expect("there");
    let signs = Incidents::new(b.house.clone());
    for (of, service) in [(&shop, "db"), (&shop, "web"), (&wiki, "web"), (&given_back, "web")] {
        let patient = Ailment {
            service: ServiceName::new(service).expect("valid"),
            container: None,
            cause: Cause::Crashed,
            reason: "it ended".into(),
            error: None,
            looping: false,
        };
        signs.sign(of, &release, &patient, Utc::now()).await.expect("noted");
    }
    b.house.store.set_stopped(&wiki, true).await.expect("kept");
    scanned(&b, 1).await;
    let mut seen = vec![];
    for i in b.house.store.incidents(None, None, 9).await.expect("read") {
        seen.push((format!("{}/{}", i.stack, i.service), i.closed_at.is_some(), i.recovered_at.is_some(), i.ended.unwrap_or_default()));
    }
    seen.sort();
    let ended = |what: &str, why: &str| (what.to_owned(), true, false, why.to_owned());
    assert_eq!(
        seen,
        [
            ended("given-back/web", "its stack is no longer managed here"),
            ended("shop/db", "its stack has no such service any more"),
            ("shop/web".to_owned(), true, true, String::new()),
            ended("wiki/web", "its stack was stopped"),
        ]
    );
}
