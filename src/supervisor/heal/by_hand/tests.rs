//! What a hand does to a stack, on the fake engine: left alone, told once, ended by the next deploy; and what is no hand's work is healed.

use super::*;
use crate::call::hands::Hands;
use crate::call::{Door, Principal, dispatch};
use crate::gate::Permit;
use crate::model::ids::AgentName;
use crate::supervisor::heal::tests::detail;
use crate::supervisor::tasks::tests::Bench;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

const COMPOSE: &str = "x-dockwarden: {monitor_s: 0, drift: mend}\nservices:\n  web: &s\n    image: hello:1\n    restart: unless-stopped\n    mem_limit: 64m\n    cpus: 0.5\n  db: *s\n";

fn shop() -> StackName {
    StackName::new("shop").expect("valid")
}

fn id(name: &str) -> EngineName {
    EngineName::new(name).expect("valid")
}

/// A stack of two services, and who acts past us: the permit of an operation that has ended.
async fn deployed() -> (Bench, Permit) {
    let b = Bench::with(|_| {}).await;
    deploy(&b).await;
    let operation = b.house.store.operations(Some(&shop()), 1).await.expect("read").remove(0);
    (b, crate::gate::permit_takeover(&operation))
}

async fn deploy(b: &Bench) {
    b.house.rulebook.store(std::sync::Arc::new(rules()));
    call(b, "a0", "deploy", json!({"stack": "shop", "compose": COMPOSE})).await;
    // The loop's own agent is shipped.
    b.house.rulebook.store(std::sync::Arc::new(crate::gate::call::tests::shipped()));
}

fn rules() -> crate::gate::Rulebook {
    let files = vec![("a0.md".to_owned(), crate::supervisor::tasks::tests::agent("a0"))];
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    crate::gate::Rulebook::build(files, policy, &crate::tools::gate_facts()).unwrap_or_else(|p| panic!("{p:#?}"))
}

async fn call(b: &Bench, agent: &str, tool: &str, input: Value) -> Value {
    let who =
        Principal { agent: AgentName::new(agent).expect("valid"), door: Door::Cli, client: None, read_only: false, on_behalf: vec![] };
    dispatch::dispatch(&b.house, &who, tool, input, None).await.unwrap_or_else(|e| panic!("{tool}: {e:?}")).value
}

async fn names(b: &Bench) -> Vec<String> {
    let ours = labels::filter(labels::STACK, "shop");
    let mut names: Vec<String> = b.house.engine.containers(&[ours]).await.expect("listed").into_iter().map(|c| c.name).collect();
    names.retain(|n| n.contains("-web-") || n.contains("-db-"));
    names.sort();
    names
}

async fn told(b: &Bench) -> Vec<Value> {
    let rows = b.house.store.audit_after(0, None, 1000).await.expect("rows");
    rows.into_iter().filter(|r| r.tool == "drift_found").map(|r| json!(r)).collect()
}

/// The loop with its events, in steps.
struct Loop {
    healer: Healer,
    woken: Receiver<Wake>,
    shutdown: CancellationToken,
    events: tokio::task::JoinHandle<()>,
}

impl Loop {
    async fn begin(b: &Bench) -> Self {
        let (wake, woken) = tokio::sync::mpsc::channel(256);
        let shutdown = CancellationToken::new();
        let events = tokio::spawn(watch::run(b.house.clone(), wake.clone(), shutdown.clone()));
        let mut healer = Healer::new(b.house.clone(), wake).await;
        healer.quiet_until = None;
        (healer.signs.way, healer.signs.rest) = (Duration::from_millis(30), Duration::from_millis(60));
        // Whoever follows is told of all that comes after its first question.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Self { healer, woken, shutdown, events }
    }

    /// Takes what comes until nothing comes any more for longer than any of its pauses.
    async fn rest(&mut self) {
        while let Ok(Some(wake)) = tokio::time::timeout(Duration::from_millis(800), self.woken.recv()).await {
            self.healer.woken(wake).await;
        }
    }

    /// Two scans, and all that they begin; what the loop keeps is what another one reads.
    async fn end(mut self, b: &Bench) -> Hands {
        self.rest().await;
        for _ in 0..2 {
            self.healer.scan().await;
            self.rest().await;
        }
        self.shutdown.cancel();
        self.events.await.expect("ended");
        drop(self.healer);
        while self.woken.recv().await.is_some() {}
        Hands::read(&b.house.store).await.expect("read")
    }
}

/// As `docker compose down` does it: dependents first, each stopped and removed, then the network.
async fn down(b: &Bench, permit: &Permit) {
    for name in ["shop-web-1", "shop-db-1"] {
        b.house.engine.stop(permit, &id(name), Duration::ZERO).await.expect("stopped");
        b.house.engine.remove_container(permit, &id(name), false).await.expect("removed");
    }
    b.house.engine.remove_network(permit, &id("shop_default")).await.expect("removed");
}

#[tokio::test]
async fn a_stack_taken_down_stays_down_is_told_once_and_comes_back_with_a_deploy() {
    let (b, permit) = deployed().await;
    let at_work = Loop::begin(&b).await;
    down(&b, &permit).await;
    let hands = at_work.end(&b).await;
    assert_eq!(names(&b).await, Vec::<String>::new());
    assert_eq!(hands.removed[&shop()].keys().map(ToString::to_string).collect::<Vec<_>>(), ["db", "web"]);
    let rows = told(&b).await;
    let text = rows[0].to_string();
    assert!(rows.len() == 1 && text.contains("db: its container was removed by hand") && text.contains("web: its container"), "{rows:#?}");
    assert!(text.contains("to_release: 1") && !text.contains("\"mends\":true"), "{text}");

    let status = call(&b, "stack-keeper", "status", json!({"stack": "shop"})).await;
    assert_eq!(status["stacks"][0]["state"], "missing", "{status:#}");
    assert!(status.to_string().contains("removed by hand: `deploy`"), "{status:#}");
    let health = call(&b, "stack-keeper", "health", json!({"stack": "shop"})).await;
    assert_eq!((&health["healthy"], &health["stacks"][0]["services"][0]["state"]), (&json!(false), &json!("missing")), "{health:#}");
    let found = call(&b, "stack-keeper", "diagnose", json!({"stack": "shop"})).await;
    assert!(found["findings"][0]["next"].as_str().is_some_and(|n| n.starts_with("`deploy`, or `rollback")), "{found:#}");

    // It outlives the supervisor, and is not told again.
    let hands = Loop::begin(&b).await.end(&b).await;
    assert_eq!((names(&b).await, hands.removed.len(), told(&b).await.len()), (vec![], 1, 1));

    // The next deploy ends it; what goes missing without a sign of a hand is healed again.
    deploy(&b).await;
    assert_eq!(names(&b).await, ["shop-db-1", "shop-web-1"]);
    assert_eq!(Loop::begin(&b).await.end(&b).await, Hands::default());
    b.house.engine.remove_container(&permit, &id("shop-web-1"), false).await.expect("removed");
    assert_eq!(Loop::begin(&b).await.end(&b).await, Hands::default());
    assert_eq!(names(&b).await, ["shop-db-1", "shop-web-1"], "one container of a stack that runs is made again");
}

#[tokio::test]
async fn a_stack_taken_down_while_nobody_looked_is_not_built_again() {
    let (b, permit) = deployed().await;
    down(&b, &permit).await;
    let hands = Loop::begin(&b).await.end(&b).await;
    assert_eq!((names(&b).await, hands.removed[&shop()].len(), told(&b).await.len()), (vec![], 2, 1));
    // What the drift names as the next step brings it back.
    call(&b, "warden", "rollback", json!({"stack": "shop", "to_release": 1, "data": "code_only"})).await;
    assert_eq!(names(&b).await, ["shop-db-1", "shop-web-1"]);
    assert_eq!(Loop::begin(&b).await.end(&b).await, Hands::default());
}

#[tokio::test]
async fn one_container_removed_by_force_is_left_alone_and_its_neighbour_is_healed() {
    let (b, permit) = deployed().await;
    let mut at_work = Loop::begin(&b).await;
    b.house.engine.remove_container(&permit, &id("shop-web-1"), false).await.expect("removed");
    at_work.rest().await;
    // The neighbour ends and its policy does not act, as after `docker kill`.
    b.house.engine.set_restart(&permit, &id("shop-db-1"), crate::model::spec::Restart::No).await.expect("set");
    b.crash("shop-db-1", 1);
    let hands = at_work.end(&b).await;
    assert_eq!(hands.removed[&shop()].keys().map(ToString::to_string).collect::<Vec<_>>(), ["web"]);
    assert_eq!(names(&b).await, ["shop-db-1"]);
    let db = b.house.engine.container(&id("shop-db-1")).await.expect("looked").expect("there");
    assert_eq!(db.state, RunState::Running, "what crashed is healed");
}

#[tokio::test]
async fn what_was_stopped_by_hand_and_removed_later_is_still_left_alone() {
    let (b, permit) = deployed().await;
    let at_work = Loop::begin(&b).await;
    b.house.engine.stop(&permit, &id("shop-web-1"), Duration::ZERO).await.expect("stopped");
    let hands = at_work.end(&b).await;
    assert_eq!((hands.stopped.len(), hands.removed.len()), (1, 0));
    let health = call(&b, "stack-keeper", "health", json!({"stack": "shop"})).await.to_string();
    assert!(health.contains("stopped by hand: `restart {stack: shop}` starts it"), "{health}");
    // Removed while nobody looks.
    b.house.engine.remove_container(&permit, &id("shop-web-1"), false).await.expect("removed");
    let hands = Loop::begin(&b).await.end(&b).await;
    assert_eq!((hands.stopped.len(), hands.removed.len(), names(&b).await), (0, 1, vec!["shop-db-1".to_owned()]));
    assert_eq!(told(&b).await.len(), 2, "stopped, then removed");
}

#[tokio::test]
async fn what_an_operation_of_ours_removed_is_no_hands_work() {
    let (b, permit) = deployed().await;
    let before = b.house.engine.container(&id("shop-web-1")).await.expect("looked").expect("there").id;
    let at_work = Loop::begin(&b).await;
    call(&b, "warden", "restart", json!({"stack": "shop", "service": "web", "recreate": true})).await;
    assert_eq!(at_work.end(&b).await, Hands::default());
    assert!(b.house.engine.container(&before).await.expect("looked").is_none(), "the one before is removed");
    assert!(b.house.executor.has_removed(&shop(), &before).await.expect("read"), "and the journal says by whom");
    // Its event comes late, when the new one has gone for another reason.
    let now = b.house.engine.container(&id("shop-web-1")).await.expect("looked").expect("there").id;
    assert!(!b.house.executor.has_removed(&shop(), &now).await.expect("read"));
    b.house.engine.remove_container(&permit, &now, false).await.expect("removed");
    let mut at_work = Loop::begin(&b).await;
    at_work.healer.signs.removed(before, Place { stack: shop(), service: ServiceName::new("web").expect("valid") });
    assert_eq!(at_work.end(&b).await, Hands::default());
    assert_eq!(names(&b).await, ["shop-db-1", "shop-web-1"], "healed");
}

#[tokio::test]
async fn an_engine_that_was_away_is_no_hands_work() {
    let (b, _) = deployed().await;
    let mut at_work = Loop::begin(&b).await;
    b.away(true);
    at_work.healer.scan().await;
    b.away(false);
    at_work.healer.scan().await;
    at_work.healer.quiet_until = None;
    assert_eq!(at_work.end(&b).await, Hands::default());
    assert_eq!((names(&b).await.len(), told(&b).await.len()), (2, 0));
}

#[tokio::test]
async fn a_call_that_stops_the_stack_ends_what_a_hand_did() {
    let (b, permit) = deployed().await;
    let at_work = Loop::begin(&b).await;
    down(&b, &permit).await;
    assert_eq!(at_work.end(&b).await.removed.len(), 1);
    b.house.store.set_stopped(&shop(), true).await.expect("stopped");
    assert_eq!(Loop::begin(&b).await.end(&b).await, Hands::default());
    let status = call(&b, "stack-keeper", "status", json!({"stack": "shop"})).await;
    assert_eq!(status["stacks"][0]["state"], "stopped", "{status:#}");
}

#[test]
fn only_what_the_engine_would_have_started_again_was_stopped_by_a_person() {
    let at = |s: i64| DateTime::<Utc>::from_timestamp(1_800_000_000 + s, 0);
    let base = || ContainerDetail {
        state: RunState::Exited,
        restart_policy: "unless-stopped".into(),
        exit_code: 143,
        started_at: at(-100),
        finished_at: at(10),
        ..detail("web")
    };
    let found = |c: ContainerDetail| !stopped(&[c], at(0).expect("valid")).is_empty();
    assert!(found(base()));
    assert!(found(ContainerDetail { restart_policy: "always".into(), exit_code: 0, ..base() }));
    for (what, c) in [
        ("no policy", ContainerDetail { restart_policy: "no".into(), ..base() }),
        ("on-failure", ContainerDetail { restart_policy: "on-failure".into(), ..base() }),
        ("killed", ContainerDetail { exit_code: 137, ..base() }),
        ("out of memory", ContainerDetail { oom_killed: true, ..base() }),
        ("could not be started", ContainerDetail { error: "port is allocated".into(), ..base() }),
        ("restarting", ContainerDetail { state: RunState::Restarting, ..base() }),
        ("running", ContainerDetail { state: RunState::Running, ..base() }),
        ("ended while we looked", ContainerDetail { finished_at: at(-1), ..base() }),
    ] {
        assert!(!found(c), "{what}");
    }
}
