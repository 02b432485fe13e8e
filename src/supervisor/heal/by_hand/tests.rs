//! What a hand does to a stack, on the fake engine: left alone, told once, ended by the next deploy; and what is no hand's work is healed.

mod copies;

use super::*;
use crate::call::hands::Hands;
use crate::call::{Door, Principal, dispatch};
use crate::engine::fake::Behaviour;
use crate::gate::Permit;
use crate::model::ids::AgentName;
use crate::supervisor::heal::tests::detail;
use crate::supervisor::policy::{Act, Course};
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
    deploy_file(b, COMPOSE).await;
}

async fn deploy_file(b: &Bench, file: &str) {
    b.house.rulebook.store(std::sync::Arc::new(rules()));
    call(b, "a0", "deploy", json!({"stack": "shop", "compose": file})).await;
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

/// Id and state of the container of that name.
async fn there(b: &Bench, name: &str) -> (EngineName, RunState) {
    let c = b.house.engine.container(&id(name)).await.expect("looked").expect("there");
    (c.id, c.state)
}

/// `web` has no restart policy, `db` and `api` have one. Both end on a stop like most programs: by the signal.
async fn with_and_without_policy() -> (Bench, Permit) {
    let b = Bench::with(|_| {}).await;
    b.engine.add_image("ends:1", Behaviour::healthy().with_stop_exit(143));
    deploy_file(&b, &format!("{}  api: *s\n", COMPOSE.replace("hello:1", "ends:1").replace("  db: *s", "  db: {<<: *s, restart: \"no\"}")))
        .await;
    let operation = b.house.store.operations(Some(&shop()), 1).await.expect("read").remove(0);
    (b, crate::gate::permit_takeover(&operation))
}

/// An engine that ends stops all that runs, tells it like any other stop, and is gone; what has a policy is started by the next one.
#[tokio::test]
async fn what_the_engine_stopped_as_it_ended_is_no_hands_work() {
    let (b, permit) = with_and_without_policy().await;
    let mut at_work = Loop::begin(&b).await;
    for name in ["shop-web-1", "shop-db-1", "shop-api-1"] {
        b.house.engine.stop(&permit, &id(name), Duration::ZERO).await.expect("stopped");
    }
    at_work.rest().await;
    assert_eq!((at_work.healer.hands.stopped.len(), at_work.healer.hands.unsure.len()), (3, 3), "so far it looks like a hand's work");
    b.away(true);
    loop {
        let wake = tokio::time::timeout(Duration::from_secs(20), at_work.woken.recv()).await.expect("in time").expect("open");
        let withdrawn = matches!(wake, Wake::Withdrawn(_));
        at_work.healer.woken(wake).await;
        if withdrawn {
            break;
        }
    }
    b.away(false);
    // It comes back by itself; `web` would have, too, had it not been stopped by a person a moment before.
    b.house.engine.start(&permit, &id("shop-api-1")).await.expect("started");
    at_work.healer.scan().await;
    assert!(at_work.healer.quiet_until.is_some(), "the engine settles first");
    at_work.healer.quiet_until = None;
    let hands = at_work.end(&b).await;
    let (web, state) = there(&b, "shop-web-1").await;
    assert_eq!((hands.ids(), hands.unsure, state), (BTreeSet::from([web]), BTreeSet::new(), RunState::Exited));
    assert_eq!(there(&b, "shop-db-1").await.1, RunState::Running, "healed");
}

#[tokio::test]
async fn a_stop_right_before_the_supervisor_ended_is_asked_about_again() {
    let (b, permit) = with_and_without_policy().await;
    let mut at_work = Loop::begin(&b).await;
    for name in ["shop-web-1", "shop-db-1"] {
        b.house.engine.stop(&permit, &id(name), Duration::ZERO).await.expect("stopped");
    }
    at_work.rest().await;
    at_work.shutdown.cancel();
    // The host goes down with both, and comes up again.
    let hands = Loop::begin(&b).await.end(&b).await;
    assert_eq!(hands.ids(), BTreeSet::from([there(&b, "shop-web-1").await.0]));
    assert_eq!(there(&b, "shop-db-1").await.1, RunState::Running, "nothing tells it from a host that went down");
}

#[tokio::test]
async fn what_a_person_stops_while_an_operation_holds_the_stack_is_left_alone_and_what_the_operation_stops_is_not() {
    let (b, permit) = deployed().await;
    let mut at_work = Loop::begin(&b).await;
    b.engine.add_remote_image("hello:2", Behaviour::healthy());
    b.engine.hold_pulls(true);
    let file = COMPOSE.replace("  db: *s", "  db: {<<: *s, image: \"hello:2\"}");
    let before = there(&b, "shop-db-1").await.0;
    let deploying = deploy_file(&b, &file);
    let by_hand = async {
        while b.engine.pulls_under_way() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(b.house.executor.holding(&shop()).is_some());
        b.house.engine.stop(&permit, &id("shop-web-1"), Duration::ZERO).await.expect("stopped");
        at_work.rest().await;
        // The loop's own acts cannot begin now, and cost nothing.
        b.house.rulebook.store(std::sync::Arc::new(crate::gate::call::tests::shipped()));
        let (stack, service) = (shop(), ServiceName::new("db").expect("valid"));
        let release = b.house.store.release(&stack, 1).await.expect("read").expect("there");
        let look = Look { stack: &stack, release: &release, now: Utc::now() };
        let mut course = Course { release: 1, ..Course::default() };
        course.took(Act::Restart, look.now, 0.0);
        at_work.healer.keep(&look, &service, course.clone()).await.expect("kept");
        let reason = "it ended".to_owned();
        let patient = Ailment { service: service.clone(), container: None, cause: Cause::Crashed, reason, error: None, looping: false };
        at_work.healer.act(&look, &patient, Act::Restart);
        while !matches!(at_work.woken.recv().await, Some(Wake::Look(_))) {}
        let kept = at_work.healer.course(&look, &service).await.expect("read");
        assert_eq!(kept, Course { acts: vec![], ..course });
        b.engine.hold_pulls(false);
    };
    tokio::join!(deploying, by_hand);
    let (now, later) = (Utc::now(), Utc::now() + chrono::TimeDelta::seconds(30));
    let hands = at_work.end(&b).await;
    let (web, state) = there(&b, "shop-web-1").await;
    assert_eq!((hands.ids(), state), (BTreeSet::from([web.clone()]), RunState::Exited));
    // The old one was stopped by us, while we were at it, and is not for ever taken for ours to stop.
    assert_ne!(before, there(&b, "shop-db-1").await.0);
    let stopped = async |id: &EngineName, at| b.house.executor.has_stopped(&shop(), id, at).await.expect("read");
    assert_eq!((stopped(&before, now).await, stopped(&before, later).await, stopped(&web, now).await), (true, false, false));
}

#[tokio::test]
async fn what_is_known_of_a_stack_goes_with_it() {
    let (b, _) = deployed().await;
    let mut at_work = Loop::begin(&b).await;
    let release = b.house.store.release(&shop(), 1).await.expect("read").expect("there");
    let (stack, web) = (shop(), ServiceName::new("web").expect("valid"));
    let look = Look { stack: &stack, release: &release, now: Utc::now() };
    let given_up = Course { release: 1, quarantined: Some(look.now), ..Course::default() };
    at_work.healer.keep(&look, &web, given_up.clone()).await.expect("kept");
    at_work.healer.hands.removed.insert(shop(), BTreeMap::from([(web.clone(), look.now)]));
    at_work.healer.signs.news.insert(shop(), (vec![], Instant::now(), true));
    assert_eq!(at_work.healer.course(&look, &web).await.expect("read"), given_up);
    b.house.store.forget_stack(&stack, &[]).await.expect("forgotten");
    assert_eq!(at_work.healer.course(&look, &web).await.expect("read"), Course { release: 1, ..Course::default() });
    at_work.healer.scan().await;
    assert!(at_work.healer.signs.news.is_empty());
    assert_eq!(at_work.end(&b).await, Hands::default());
}

#[tokio::test]
async fn the_loop_starts_no_copy_that_a_person_stopped_beside_the_one_it_restarts() {
    let b = Bench::with(|_| {}).await;
    deploy_file(&b, &COMPOSE.replace("mem_limit", "deploy: {replicas: 2}\n    mem_limit")).await;
    let operation = b.house.store.operations(Some(&shop()), 1).await.expect("read").remove(0);
    let permit = crate::gate::permit_takeover(&operation);
    let mut at_work = Loop::begin(&b).await;
    b.house.engine.stop(&permit, &id("shop-web-1"), Duration::ZERO).await.expect("stopped");
    at_work.rest().await;
    b.house.engine.set_restart(&permit, &id("shop-web-2"), crate::model::spec::Restart::No).await.expect("set");
    b.crash("shop-web-2", 1);
    let hands = at_work.end(&b).await;
    assert_eq!((there(&b, "shop-web-1").await.1, there(&b, "shop-web-2").await.1), (RunState::Exited, RunState::Running));
    assert_eq!(hands.ids(), BTreeSet::from([there(&b, "shop-web-1").await.0]));
    // A person's own restart of the service starts both.
    call(&b, "warden", "restart", json!({"stack": "shop", "service": "web"})).await;
    assert_eq!(there(&b, "shop-web-1").await.1, RunState::Running);
}

/// A container that ends and stays down: no policy acts, as after a kill.
async fn ends(b: &Bench, permit: &Permit, name: &str) {
    b.house.engine.set_restart(permit, &id(name), crate::model::spec::Restart::No).await.expect("set");
    b.crash(name, 1);
}

/// Looks again and again, without the pauses of the ladder.
async fn impatient(b: &Bench, at_work: &mut Loop, service: &str, scans: usize) -> Course {
    let key = format!("course:shop/{service}");
    let read = async || -> Course {
        b.house.store.value(&key).await.expect("read").map_or_else(Course::default, |v| serde_json::from_value(v).expect("a course"))
    };
    for _ in 0..scans {
        let course = Course { not_before: None, ..read().await };
        b.house.store.set_value(&key, &json!(course)).await.expect("kept");
        at_work.healer.scan().await;
        at_work.rest().await;
    }
    read().await
}

#[tokio::test]
async fn a_frozen_house_costs_a_service_nothing_of_its_budget() {
    let (b, permit) = deployed().await;
    let mut at_work = Loop::begin(&b).await;
    crate::call::approval::freeze(&b.house.store, "ann", "moving", Utc::now()).await.expect("frozen");
    ends(&b, &permit, "shop-db-1").await;
    at_work.rest().await;
    let course = impatient(&b, &mut at_work, "db", 6).await;
    assert_eq!((course.acts.len(), course.quarantined, there(&b, "shop-db-1").await.1), (0, None, RunState::Exited));
    crate::call::approval::unfreeze(&b.house.store, "ann", Utc::now()).await.expect("lifted");
    at_work.end(&b).await;
    assert_eq!(there(&b, "shop-db-1").await.1, RunState::Running);
}

#[tokio::test]
async fn a_limit_of_the_loops_own_rights_gives_no_service_up() {
    let (b, permit) = deployed().await;
    let warden = include_str!("../../../../agents/warden.md").replace("max_per_hour: 60", "max_per_hour: 1");
    let book = crate::gate::Rulebook::build(vec![("warden.md".to_owned(), warden)], "", &crate::tools::gate_facts());
    b.house.rulebook.store(std::sync::Arc::new(book.unwrap_or_else(|p| panic!("{p:#?}"))));
    let mut at_work = Loop::begin(&b).await;
    ends(&b, &permit, "shop-db-1").await;
    at_work.rest().await;
    assert_eq!(there(&b, "shop-db-1").await.1, RunState::Running, "the one act of this hour");
    ends(&b, &permit, "shop-web-1").await;
    let course = impatient(&b, &mut at_work, "web", 6).await;
    assert_eq!((course.acts.len(), course.quarantined), (0, None));
    assert!(course.not_before.is_some_and(|t| t > Utc::now() + chrono::TimeDelta::seconds(15)), "asked again at the next scan: {course:?}");
    b.house.rulebook.store(std::sync::Arc::new(crate::gate::call::tests::shipped()));
    impatient(&b, &mut at_work, "web", 1).await;
    assert_eq!(there(&b, "shop-web-1").await.1, RunState::Running);
    at_work.end(&b).await;
}

#[tokio::test]
async fn services_given_up_long_ago_do_not_keep_the_others_from_being_healed() {
    let b = Bench::with(|_| {}).await;
    deploy_file(&b, &format!("{}  c: *s\n  d: *s\n", COMPOSE)).await;
    let operation = b.house.store.operations(Some(&shop()), 1).await.expect("read").remove(0);
    let permit = crate::gate::permit_takeover(&operation);
    let given_up = Course { release: 1, quarantined: Some(Utc::now()), ..Course::default() };
    for service in ["c", "d"] {
        b.house.store.set_value(&format!("course:shop/{service}"), &json!(given_up)).await.expect("kept");
    }
    let at_work = Loop::begin(&b).await;
    for service in ["c", "d", "db"] {
        ends(&b, &permit, &format!("shop-{service}-1")).await;
    }
    at_work.end(&b).await;
    assert_eq!(there(&b, "shop-db-1").await.1, RunState::Running, "three of four are down, and one of them is news");
    assert_eq!(there(&b, "shop-c-1").await.1, RunState::Exited);
}

#[tokio::test]
async fn a_rollback_of_the_loop_does_not_start_what_a_person_stopped() {
    let (b, permit) = deployed().await;
    deploy_file(&b, &COMPOSE.replace("mem_limit: 64m", "mem_limit: 65m")).await;
    let mut at_work = Loop::begin(&b).await;
    b.house.engine.stop(&permit, &id("shop-web-1"), Duration::ZERO).await.expect("stopped");
    at_work.rest().await;
    for _ in 0..4 {
        ends(&b, &permit, "shop-db-1").await;
        at_work.rest().await;
        impatient(&b, &mut at_work, "db", 1).await;
    }
    let verbs: Vec<String> = b.house.store.operations(Some(&shop()), 20).await.expect("read").into_iter().map(|o| o.verb).collect();
    assert!(!verbs.contains(&"rollback".to_owned()) && verbs.iter().filter(|v| *v == "restart").count() >= 3, "{verbs:?}");
    assert_eq!(there(&b, "shop-web-1").await.1, RunState::Exited);
    at_work.end(&b).await;
}

#[tokio::test]
async fn an_event_before_the_first_scan_does_not_start_what_was_stopped_while_nobody_looked() {
    let (b, permit) = with_and_without_policy().await;
    Loop::begin(&b).await.end(&b).await;
    b.house.engine.stop(&permit, &id("shop-web-1"), Duration::ZERO).await.expect("stopped while no supervisor ran");
    let mut at_work = Loop::begin(&b).await;
    at_work.healer.woken(Wake::Look(shop())).await;
    at_work.rest().await;
    assert_eq!(there(&b, "shop-web-1").await.1, RunState::Exited);
    at_work.end(&b).await;
}
