//! The line end to end over the fake engine and a real store: what each call leaves in the audit log, and what passes.

use super::*;
use crate::call::Door;
use crate::call::error::ErrorCode;
use crate::engine::fake::{Behaviour, FakeEngine};
use crate::executor::Executor;
use crate::gate::Rulebook;
use crate::gate::request::RequestFacts;
use crate::model::config::Config;
use crate::model::ids::{AgentName, CallId, OperationId, StackName};
use crate::model::operation::{Operation, OperationState, Phase};
use crate::store::Store;
use crate::store::audit::{AuditQuery, AuditRow};
use arc_swap::ArcSwap;
use futures_util::StreamExt;
use serde_json::json;

pub(crate) const COMPOSE: &str =
    "services:\n  web:\n    image: hello:1\n    environment:\n      GREETING: good-morning-s3cret\n    mem_limit: 64m\n    cpus: 0.5\n";
pub(crate) const KEEPER: &str = "---
name: keeper
description: Keeps stacks.
tools: plan, deploy, status, logs, health, history, operation, approval, restart, stop, prune
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: dev, effect: allow, tools: [deploy, restart], environments: [development], because: \"development is free\"}
    - {id: prod, effect: approval, tools: [deploy], environments: [production], because: \"production is reviewed\"}
    - {id: host, effect: approval, tools: [prune], max_per_hour: 1, because: \"it reaches every stack\"}
---
Keep them.
";

pub(crate) struct Bench {
    pub(crate) house: Arc<House>,
    pub(crate) engine: Arc<FakeEngine>,
    _dir: tempfile::TempDir,
}

pub(crate) async fn bench() -> Bench {
    bench_of(KEEPER).await
}

/// The keeper whose deploys are limited to `n` an hour.
async fn limited(n: u32) -> Bench {
    let because = |b: &str| format!("max_per_hour: {n}, because: \"{b}\"");
    let text = KEEPER
        .replace("because: \"development is free\"", &because("development is free"))
        .replace("because: \"production is reviewed\"", &because("production is reviewed"));
    bench_of(&text).await
}

pub(crate) async fn bench_of(keeper: &str) -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.expect("a store");
    let engine = Arc::new(FakeEngine::new());
    engine.add_image("hello:1", Behaviour::healthy());
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("keeper.md".into(), keeper.into())], policy, &tools::gate_facts()).expect("a rulebook");
    let facts: crate::executor::FactsOf = Arc::new(|plan, service| {
        let service = service.map_or("", crate::model::ids::ServiceName::as_str);
        RequestFacts::of(
            &plan.desired,
            service,
            &Default::default(),
            &Default::default(),
            chrono::Utc::now().date_naive(),
            Default::default(),
        )
    });
    let executor = Executor::new(engine.clone(), store.clone(), facts, crate::executor::Options::default());
    let config = Config {
        home: dir.path().join("home"),
        config_dir: dir.path().join("config"),
        memory: dir.path().join("memory"),
        settings: Default::default(),
        host_name: "host".into(),
        path_map: None,
    };
    let house = House {
        store,
        engine: engine.clone(),
        rulebook: ArcSwap::from_pointee(book),
        refused_rules: ArcSwap::default(),
        executor,
        config,
        prompts: ArcSwap::from_pointee(vec![]),
        calls: Default::default(),
        backups: None,
        turns: Default::default(),
        taints: Default::default(),
    };
    Bench { house: Arc::new(house), engine, _dir: dir }
}

impl Bench {
    pub(crate) async fn call(&self, tool: &str, input: Value) -> Result<Reply, CallError> {
        let who = Principal {
            agent: AgentName::new("keeper").expect("valid"),
            door: Door::McpStdio,
            client: None,
            read_only: false,
            on_behalf: vec![],
        };
        dispatch(&self.house, &who, tool, input, None).await
    }
    /// (kind, tool, verdict, outcome) of all rows, oldest first.
    async fn rows(&self) -> Vec<(String, String, &'static str, Option<String>)> {
        let mut rows: Vec<AuditRow> = self.house.store.audit_rows(&AuditQuery { limit: 100, ..AuditQuery::default() }).await.expect("rows");
        rows.reverse();
        rows.into_iter().map(|r| (r.kind, r.tool, r.verdict.as_str(), r.outcome)).collect()
    }
}

fn row(kind: &str, tool: &str, verdict: &'static str, outcome: Option<&str>) -> (String, String, &'static str, Option<String>) {
    (kind.into(), tool.into(), verdict, outcome.map(str::to_owned))
}

#[tokio::test]
async fn a_read_leaves_one_row_and_a_call_no_rule_grants_one_denial() {
    let b = bench().await;
    b.call("status", json!({})).await.expect("allowed");
    let denied = b.call("stop", json!({"stack": "shop"})).await.expect_err("denied");
    assert_eq!(denied.code, ErrorCode::Denied);
    assert!(denied.message.contains("default.deny"), "{denied}");
    assert_eq!(b.rows().await, [row("read", "status", "allow", Some("ok")), row("read", "stop", "deny", Some("denied"))]);
    assert_eq!(b.engine.calls(), Vec::<String>::new(), "nothing was changed");
}

#[tokio::test]
async fn a_call_that_cannot_be_read_is_recorded_and_does_nothing() {
    let b = bench().await;
    assert_eq!(b.call("statsu", json!({})).await.expect_err("unknown").code, ErrorCode::UnknownTool);
    assert_eq!(b.call("status", json!({"bogus": 1})).await.expect_err("refused").code, ErrorCode::InvalidArgument);
    assert_eq!(b.rows().await, [row("read", "statsu", "allow", Some("error")), row("read", "status", "allow", Some("error"))]);
}

#[tokio::test]
async fn a_plan_never_shows_a_value() {
    let b = bench().await;
    let reply = b.call("plan", json!({"stack": "shop", "compose": COMPOSE, "variables": {"X": "good-evening"}})).await.expect("a plan");
    assert_eq!(reply.value["stack"], "shop");
    assert_eq!(reply.value["changes"][0]["action"], "create");
    let rows = b.house.store.audit_rows(&AuditQuery { limit: 10, ..AuditQuery::default() }).await.expect("rows");
    for text in [reply.value.to_string(), reply.text, json!(rows).to_string()] {
        assert!(!text.contains("good-morning") && !text.contains("good-evening"), "{text}");
    }
}

#[tokio::test]
async fn the_environment_is_the_stacks_and_not_the_callers() {
    let b = bench().await;
    let e = b.call("plan", json!({"stack": "shop", "compose": COMPOSE, "environment": "moon"})).await.expect_err("refused");
    assert_eq!((e.code, e.field.as_deref()), (ErrorCode::InvalidArgument, Some("environment")));
}

#[tokio::test]
async fn an_approval_is_bound_to_the_digest_and_used_once() {
    let b = bench().await;
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let first = b.call("deploy", input.clone()).await.expect("pending").value;
    assert_eq!(first["state"], "pending_approval", "{first}");
    let again = b.call("deploy", input.clone()).await.expect("pending").value;
    assert_eq!(again["approval"]["approval_id"], first["approval"]["approval_id"], "asking twice is one approval");
    let id = ApprovalId::new(first["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    let early = approval::run_approved(&b.house, &id).await.expect_err("not approved yet");
    assert_eq!(early.code, ErrorCode::Conflict);
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    // Another content under the same approval is another question.
    let other = json!({"stack": "shop", "compose": COMPOSE.replace("hello", "hullo"), "environment": "production"});
    assert_ne!(b.call("deploy", other).await.map(|r| r.value["approval"]["approval_id"].clone()).ok(), Some(json!(id)));
    let used = b.house.store.use_approval(&id, None, chrono::Utc::now()).await.expect("stored");
    assert!(used, "the approval was not touched by the other call");
    assert_eq!(approval::run_approved(&b.house, &id).await.expect_err("used").code, ErrorCode::Conflict);
    assert_eq!(b.engine.running(), Vec::<String>::new(), "nothing ran without a word");
}

#[tokio::test]
async fn calls_at_once_on_one_stack_never_pass_its_limit_together() {
    let b = bench().await;
    let policy = "allowed_registries = [\"local\"]\n[environments.development]\nchanges_per_hour = 3\n[environments.production]\n";
    let second = KEEPER.replace("name: keeper", "name: second");
    let files = vec![("keeper.md".into(), KEEPER.into()), ("second.md".into(), second)];
    b.house.rulebook.store(Arc::new(Rulebook::build(files, policy, &tools::gate_facts()).expect("a rulebook")));
    let calls = (0..12).map(|i| {
        let agent = AgentName::new(if i % 2 == 0 { "keeper" } else { "second" }).expect("valid");
        let who = Principal { agent, door: Door::Cli, client: None, read_only: false, on_behalf: vec![] };
        let (house, input) = (b.house.clone(), json!({"stack": "shop", "service": format!("s{i}")}));
        async move { dispatch(&house, &who, "restart", input, None).await.expect_err("there is no such stack").code }
    });
    let codes: Vec<ErrorCode> = futures_util::stream::iter(calls).buffer_unordered(12).collect().await;
    assert_eq!(codes.iter().filter(|c| **c == ErrorCode::NotFound).count(), 3, "{codes:?}");
    assert_eq!(codes.iter().filter(|c| **c == ErrorCode::RateLimited).count(), 9, "{codes:?}");
    let e = b.call("restart", json!({"stack": "bank"})).await.expect_err("not there");
    assert_eq!(e.code, ErrorCode::NotFound, "another stack has its own count");
}

/// A lead that may have the keeper work for it, and may deploy with approval only.
const LEAD: &str = "---
name: lead
description: Leads.
tools: deploy, status
dockwarden:
  tier: tier_3_write_elevated
  can_delegate_to: [keeper]
  rules:
    - {id: asks, effect: approval, tools: [deploy], because: \"the lead asks\"}
---
";

#[tokio::test]
async fn work_on_behalf_of_another_needs_its_right_and_is_recorded_as_such() {
    let b = bench().await;
    let files = vec![("keeper.md".into(), KEEPER.into()), ("lead.md".into(), LEAD.into())];
    b.house
        .rulebook
        .store(Arc::new(Rulebook::build(files, "allowed_registries = [\"local\"]\n", &tools::gate_facts()).expect("a rulebook")));
    let who = |on_behalf: &[&str]| Principal {
        agent: AgentName::new("keeper").expect("valid"),
        door: Door::Task,
        client: None,
        read_only: false,
        on_behalf: on_behalf.iter().map(|n| AgentName::new(*n).expect("valid")).collect(),
    };
    let denied = dispatch(&b.house, &who(&["lead"]), "restart", json!({"stack": "shop"}), None).await.expect_err("the lead may not");
    assert!(denied.code == ErrorCode::Denied && denied.message.contains("on behalf of lead"), "{denied}");
    let input = json!({"stack": "shop", "compose": COMPOSE});
    let asked = dispatch(&b.house, &who(&["lead"]), "deploy", input, None).await.expect("asked").value;
    assert_eq!(asked["state"], "pending_approval", "the keeper alone would not have to ask: {asked}");
    let id = ApprovalId::new(asked["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    for name in ["lead", "keeper"] {
        let refused = crate::adapters::people::decide(&b.house, id.as_str(), name, crate::adapters::people::Word::Approve, "cli").await;
        assert_eq!(refused.expect_err("who asked").code, ErrorCode::Denied, "{name}");
    }
    let rows = b.house.store.audit_rows(&AuditQuery { limit: 10, ..AuditQuery::default() }).await.expect("rows");
    let called: Vec<&AuditRow> = rows.iter().filter(|r| r.kind != "outcome" && r.kind != "event").collect();
    assert!(called.len() == 2 && called.iter().all(|r| r.detail["delegated_by"] == json!(["lead"])), "{called:?}");
    let done = crate::adapters::people::decide(&b.house, id.as_str(), "olga", crate::adapters::people::Word::Approve, "cli").await;
    assert_eq!(done.expect("approved, and the approval knows on whose behalf").value["result"]["state"], "queued");
    assert_eq!(
        dispatch(&b.house, &who(&[]), "deploy", json!({"stack": "own", "compose": COMPOSE}), None).await.expect("free").value["state"],
        "monitoring"
    );
}

#[tokio::test]
async fn a_freeze_and_a_read_only_session_stop_mutations_but_no_reads() {
    let b = bench().await;
    approval::freeze(&b.house.store, "olga", "incident", chrono::Utc::now()).await.expect("frozen");
    let frozen = b.call("restart", json!({"stack": "shop"})).await.expect_err("frozen");
    assert!(frozen.code == ErrorCode::Denied && frozen.message.contains("olga froze all changes: incident"), "{frozen}");
    b.call("status", json!({})).await.expect("reads go on");
    approval::unfreeze(&b.house.store, "olga", chrono::Utc::now()).await.expect("lifted");
    let who =
        Principal { agent: AgentName::new("keeper").expect("valid"), door: Door::Cli, client: None, read_only: true, on_behalf: vec![] };
    let refused = dispatch(&b.house, &who, "restart", json!({"stack": "shop"}), None).await.expect_err("read-only");
    assert!(refused.message.contains("session.read_only"), "{refused}");
    // Without either it gets as far as finding that there is nothing to restart: intent and outcome, two rows.
    assert_eq!(b.call("restart", json!({"stack": "shop"})).await.expect_err("not there").code, ErrorCode::NotFound);
    let tail: Vec<_> = b.rows().await.into_iter().rev().take(2).map(|(kind, _, _, outcome)| (kind, outcome)).collect();
    assert_eq!(tail, [("outcome".to_owned(), Some("error".to_owned())), ("intent".to_owned(), None)]);
}

/// A stack this supervisor once worked on.
async fn known(b: &Bench, stack: &str) {
    let now = chrono::Utc::now();
    let past = Operation {
        id: OperationId::new("op-past").expect("valid"),
        verb: "stop".into(),
        stack: Some(StackName::new(stack).expect("valid")),
        plan: None,
        agent: "stack-keeper".into(),
        call: CallId::new("call-past").expect("valid"),
        idempotency_key: None,
        state: OperationState::Done,
        phase: Phase::Finished,
        epoch: 0,
        release: None,
        reason: None,
        message: None,
        evidence: vec![],
        approval: None,
        cancel_requested: false,
        created_at: now,
        settled_at: Some(now),
    };
    b.house.store.begin_operation(past, "hash").await.expect("stored").expect("new");
}

#[tokio::test]
async fn a_dry_run_of_prune_is_a_read_and_removes_nothing() {
    let b = bench().await;
    known(&b, "gone").await;
    b.engine.add_image("dockwarden/gone/web:r1", Behaviour::healthy());
    b.engine.add_image("dockwarden/of-another-supervisor/web:r1", Behaviour::healthy());
    for input in [json!({"what": "images"}), json!({"what": "images", "dry_run": true})] {
        let shown = b.call("prune", input).await.expect("a read needs no approval").value;
        assert_eq!((shown["dry_run"].clone(), shown["items"].clone()), (json!(true), json!(["dockwarden/gone/web:r1"])), "{shown}");
    }
    approval::freeze(&b.house.store, "olga", "", chrono::Utc::now()).await.expect("frozen");
    b.call("prune", json!({"what": "containers"})).await.expect("a freeze does not stop looking");
    approval::unfreeze(&b.house.store, "olga", chrono::Utc::now()).await.expect("lifted");
    assert_eq!(
        b.rows().await.iter().filter(|r| r.1 == "prune").cloned().collect::<Vec<_>>(),
        vec![row("read", "prune", "allow", Some("ok")); 3]
    );
    assert_eq!(b.engine.calls(), Vec::<String>::new(), "nothing was removed");

    let asked = b.call("prune", json!({"what": "images", "dry_run": false})).await.expect("asked").value;
    assert_eq!(asked["state"], "pending_approval", "{asked}");
    let id = ApprovalId::new(asked["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    let removed = approval::run_approved(&b.house, &id).await.expect("approved").value;
    assert_eq!((removed["dry_run"].clone(), removed["items"].clone()), (json!(false), json!(["dockwarden/gone/web:r1"])), "{removed}");
    assert!(b.engine.calls().iter().any(|c| c.contains("dockwarden/gone/web:r1")), "{:?}", b.engine.calls());
}

fn keyed(key: &str, greeting: &str) -> Value {
    json!({"stack": "shop", "compose": COMPOSE.replace("good-morning", greeting), "idempotency_key": key})
}

#[tokio::test]
async fn a_repeated_call_is_the_same_operation_and_counts_once() {
    let b = limited(1).await;
    let first = b.call("deploy", keyed("k1", "one")).await.expect("deployed").value;
    assert_eq!(first["state"], "monitoring", "{first}");
    for _ in 0..3 {
        let again = b.call("deploy", keyed("k1", "one")).await.expect("a replay counts against nothing").value;
        assert_eq!(again["operation_id"], first["operation_id"]);
    }
    let reused = b.call("deploy", keyed("k1", "two")).await.expect_err("other arguments");
    assert!(matches!(reused.code, ErrorCode::Conflict | ErrorCode::RateLimited), "{reused}");
    assert_eq!(b.call("deploy", keyed("k2", "two")).await.expect_err("the hour's one was used").code, ErrorCode::RateLimited);
}

#[tokio::test]
async fn identical_calls_at_once_make_one_operation_and_count_once() {
    for input in [keyed("k1", "one"), json!({"stack": "shop", "compose": COMPOSE})] {
        let b = limited(1).await;
        let calls: Vec<_> = (0..4).map(|_| b.call("deploy", input.clone())).collect();
        let replies: Vec<_> = futures_util::stream::iter(calls).buffer_unordered(4).map(|r| r.expect("deployed").value).collect().await;
        let ids: std::collections::BTreeSet<String> = replies.iter().map(|r| r["operation_id"].to_string()).collect();
        assert_eq!(ids.len(), 1, "{replies:?}");
        assert!(!ids.contains("null"), "{replies:?}");
        assert_eq!(b.house.store.operations(None, 10).await.expect("listed").len(), 1);
    }
}

#[tokio::test]
async fn a_plan_deployed_twice_at_once_is_one_operation() {
    let b = limited(1).await;
    let plan = b.call("plan", json!({"stack": "shop", "compose": COMPOSE})).await.expect("planned").value;
    let input = json!({"plan_id": plan["plan_id"], "digest": plan["digest"]});
    let (one, two) = tokio::join!(b.call("deploy", input.clone()), b.call("deploy", input.clone()));
    let (one, two) = (one.expect("deployed").value, two.expect("joined").value);
    assert_eq!((one["operation_id"].clone(), one["state"].clone()), (two["operation_id"].clone(), json!("monitoring")));
    assert_eq!(b.call("deploy", input).await.expect("a replay").value["operation_id"], one["operation_id"]);
}

#[tokio::test]
async fn asking_again_for_an_approval_and_a_plan_that_was_denied_count_against_nothing() {
    let b = limited(1).await;
    let privileged = COMPOSE.replace("    mem_limit", "    privileged: true\n    mem_limit");
    for _ in 0..3 {
        let denied = b.call("deploy", json!({"stack": "shop", "compose": privileged})).await.expect_err("denied");
        assert_eq!(denied.code, ErrorCode::Denied, "{denied}");
    }
    let input = json!({"stack": "bank", "compose": COMPOSE, "environment": "production"});
    let (one, two) = tokio::join!(b.call("deploy", input.clone()), b.call("deploy", input.clone()));
    let (one, two) = (one.expect("asked").value, two.expect("asked").value);
    assert_eq!(
        (one["state"].clone(), one["approval"]["approval_id"].clone()),
        (json!("pending_approval"), two["approval"]["approval_id"].clone())
    );
    let why = json!({"stack": "bank", "compose": COMPOSE, "environment": "production", "reason": "another reason is the same question"});
    assert_eq!(b.call("deploy", why).await.expect("asked").value["approval"]["approval_id"], one["approval"]["approval_id"]);
    let other = json!({"stack": "till", "compose": COMPOSE, "environment": "production"});
    assert_eq!(b.call("deploy", other).await.expect_err("another question counts").code, ErrorCode::RateLimited);
}

/// Approves as a registered operator and runs what was asked for.
async fn approve(b: &Bench, pending: &Value) -> Value {
    assert_eq!(pending["state"], "pending_approval", "{pending}");
    let id = ApprovalId::new(pending["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    let started = approval::run_approved(&b.house, &id).await.expect("started").value;
    let operation = crate::model::ids::OperationId::new(started["operation_id"].as_str().expect("an id")).expect("valid");
    let settled =
        b.house.executor.wait(&operation, std::time::Duration::from_secs(10), crate::executor::Until::Settled).await.expect("known");
    assert_eq!(settled.state, crate::model::operation::OperationState::Monitoring, "{settled:?}");
    started
}

fn with_caps(caps: &str, greeting: &str) -> Value {
    let compose = COMPOSE.replace("good-morning", greeting).replace("    mem_limit", &format!("    cap_add: [{caps}]\n    mem_limit"));
    json!({"stack": "shop", "compose": compose})
}

#[tokio::test]
async fn a_finding_an_operator_approved_does_not_ask_again_while_it_is_the_same() {
    let b = bench_of(
        &KEEPER.replace("tools: [deploy, restart]", "tools: [deploy, restart, rollback]").replace("tools: plan,", "tools: rollback, plan,"),
    )
    .await;
    b.house.store.put_operator("olga", "hash", chrono::Utc::now()).await.expect("registered");
    let first = b.call("deploy", with_caps("NET_ADMIN", "one")).await.expect("asks").value;
    approve(&b, &first).await;

    // Another release with the same finding: it is told, and does not ask.
    let plan = b.call("plan", with_caps("NET_ADMIN", "two")).await.expect("planned").value;
    let found = plan["findings"].as_array().expect("a list").iter().find(|f| f["rule"] == "cap.review").expect("still told").clone();
    assert_eq!(found["verdict"], "warn", "{found}");
    assert!(found["because"].as_str().is_some_and(|b| b.ends_with("approved with release 1")), "{found}");
    assert_eq!(b.call("deploy", with_caps("NET_ADMIN", "two")).await.expect("deployed").value["state"], "monitoring");
    // And so on: the first approval is what counts, not the release before.
    let third = b.call("plan", with_caps("NET_ADMIN", "three")).await.expect("planned").value;
    assert!(third.to_string().contains("approved with release 1"), "{third}");

    // A new one asks, and only that one.
    let more = b.call("deploy", with_caps("NET_ADMIN, NET_RAW", "two")).await.expect("asks").value;
    assert_eq!(more["state"], "pending_approval", "{more}");
    let asked: Vec<&str> = more["approval"]["findings"].as_array().expect("a list").iter().filter_map(|f| f["path"].as_str()).collect();
    assert_eq!(asked, ["services.web.cap_add[1]"]);

    // What was taken out and comes back asks; going back to what was approved does not.
    assert_eq!(b.call("deploy", json!({"stack": "shop", "compose": COMPOSE})).await.expect("deployed").value["state"], "monitoring");
    let again = b.call("deploy", with_caps("NET_ADMIN", "two")).await.expect("asks").value;
    assert_eq!(again["state"], "pending_approval", "{again}");
    let back = b.call("rollback", json!({"stack": "shop", "to_release": 2})).await.expect("rolled back").value;
    assert_eq!(back["state"], "monitoring", "{back}");
}

#[tokio::test]
async fn what_no_operator_approved_asks_each_time_and_reviewed_changes_are_reviewed_each_time() {
    let b = bench().await;
    let first = b.call("deploy", with_caps("NET_ADMIN", "one")).await.expect("asks").value;
    // Approved under a name that is no registered operator's, as a client's own answer would be.
    approve(&b, &first).await;
    assert_eq!(b.call("deploy", with_caps("NET_ADMIN", "two")).await.expect("asks").value["state"], "pending_approval");

    b.house.store.put_operator("olga", "hash", chrono::Utc::now()).await.expect("registered");
    let production = |greeting| json!({"stack": "bank", "compose": healthy(greeting), "environment": "production"});
    let first = b.call("deploy", production("one")).await.expect("asks").value;
    approve(&b, &first).await;
    let second = b.call("deploy", production("two")).await.expect("asks").value;
    assert_eq!(second["state"], "pending_approval", "a rule of the agent is asked each time: {second}");
}

/// The stack with what production demands.
fn healthy(greeting: &str) -> String {
    COMPOSE.replace("good-morning", greeting) + "    healthcheck: {test: [CMD, /check]}\n"
}

#[tokio::test]
async fn a_stack_stopped_on_purpose_is_stopped_and_not_unhealthy() {
    let b = bench_of(&KEEPER.replace("tools: [deploy, restart]", "tools: [deploy, restart, stop]")).await;
    b.call("deploy", json!({"stack": "shop", "compose": COMPOSE})).await.expect("deployed");
    for _ in 0..2 {
        let stopped = b.call("stop", json!({"stack": "shop"})).await.expect("stopped");
        assert_eq!(stopped.value["state"], "done", "{}", stopped.value);
        assert_eq!(
            (stopped.value["services"][0]["state"].clone(), stopped.value["services"][0]["desired"].clone()),
            (json!("stopped"), json!(0))
        );
        assert!(stopped.text.contains("web 0/0 stopped") && !stopped.text.to_lowercase().contains("healthy"), "{}", stopped.text);
        let health = b.call("health", json!({"stack": "shop"})).await.expect("looked").text;
        assert!(health.starts_with("stopped") && !health.to_lowercase().contains("healthy"), "{health}");
        let all = b.call("health", json!({})).await.expect("looked").value;
        assert_eq!(all["healthy"], true, "{all}");
        let status = b.call("status", json!({"stack": "shop"})).await.expect("looked").value;
        assert_eq!(status["stacks"][0]["state"], "stopped", "{status}");
    }
    let again = b.call("restart", json!({"stack": "shop"})).await.expect("started");
    assert!(again.text.contains("web 1/1 running"), "{}", again.text);
    let removed = b.call("stop", json!({"stack": "shop", "remove": true})).await.expect("removed");
    assert!(!removed.text.to_lowercase().contains("healthy"), "{}", removed.text);
    let health = b.call("health", json!({"stack": "shop"})).await.expect("looked").text;
    assert!(!health.to_lowercase().contains("healthy"), "{health}");
}

#[tokio::test]
async fn status_says_whether_the_registered_files_are_what_runs() {
    let mut b = bench().await;
    let dir = b._dir.path().join("shop");
    std::fs::create_dir(&dir).expect("made");
    let write = |text: &str| std::fs::write(dir.join("compose.yaml"), text).expect("written");
    let house = Arc::get_mut(&mut b.house).expect("nobody else has it");
    let entry = serde_json::from_value(json!({"dir": dir})).expect("an entry");
    house.config.settings.stacks.insert(crate::model::ids::StackName::new("shop").expect("valid"), entry);
    let files = async || {
        b.call("status", json!({"stack": "shop"})).await.expect("looked").value["stacks"][0]["files"].as_str().expect("told").to_owned()
    };
    write(COMPOSE);
    b.call("deploy", json!({"stack": "shop"})).await.expect("deployed");
    assert_eq!(files().await, "same");
    write(&COMPOSE.replace("morning", "evening"));
    assert_eq!(files().await, "differ");
    write(&COMPOSE.replace("good-morning-s3cret", "${GREETING:-hello}"));
    assert_eq!(files().await, "differ, with the defaults of GREETING, which nothing here declares");
    // Deployed with a variable of the call: the directory alone cannot say the same, and must not claim that it differs.
    for (text, said) in [("${GREETING}", "unknown: nothing here declares the variable GREETING; "), ("${GREETING:?say hello}", "unknown: ")]
    {
        write(&COMPOSE.replace("good-morning-s3cret", text));
        b.call("deploy", json!({"stack": "shop", "variables": {"GREETING": text.len().to_string()}})).await.expect("deployed");
        let told = files().await;
        assert!(told.starts_with(said) && told.contains("GREETING") && told.contains(".env"), "{told}");
    }
    std::fs::remove_file(dir.join("compose.yaml")).expect("gone");
    assert!(files().await.starts_with("unknown: "));
}
