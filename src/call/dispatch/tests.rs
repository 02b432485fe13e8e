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
use crate::store::approval::ApprovalState;
use crate::store::audit::{AuditQuery, AuditRow};
use arc_swap::ArcSwap;
use futures_util::StreamExt;
use serde_json::json;

mod approvals;
mod before_update;
mod beside;
mod bounds;
mod counts;
mod delivered;
mod hooks;
mod keys;
mod own_secrets;
mod refresh;
mod repeats;
mod stacks;
mod two_stacks;

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
    pub(crate) _dir: tempfile::TempDir,
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
    bench_over(dir, store, engine, keeper).await
}

/// A house over a store and an engine that may have been another's before.
pub(crate) async fn bench_over(dir: tempfile::TempDir, store: Store, engine: Arc<FakeEngine>, keeper: &str) -> Bench {
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("keeper.md".into(), keeper.into())], policy, &tools::gate_facts()).expect("a rulebook");
    let facts: crate::executor::FactsOf = Arc::new(|plan, service| {
        let service = service.map_or("", crate::model::ids::ServiceName::as_str);
        RequestFacts::of(
            &plan.desired,
            service,
            &crate::gate::plan::PlanFacts { carried: plan.carried.clone(), ..Default::default() },
            &Default::default(),
            chrono::Utc::now().date_naive(),
            Default::default(),
        )
    });
    let executor = Executor::new(engine.clone(), store.clone(), facts, crate::executor::Options::default());
    let config =
        Config { host_name: "host".into(), ..Config::new(dir.path().join("home"), dir.path().join("config"), dir.path().join("memory")) };
    let house = House {
        taints: taint::Taints::open(&store).await.expect("readable"),
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
        desk: Default::default(),
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
async fn names_no_tool_and_no_argument_has_are_refused_by_their_size() {
    let b = bench().await;
    let long = "pw=a ".repeat(800_000);
    let start = std::time::Instant::now();
    let name = b.call(&long, json!({})).await.expect_err("no tool");
    assert_eq!((name.code, name.message.len() < 200), (ErrorCode::UnknownTool, true), "{name}");
    let places = [json!({&long: 1}), json!({"stack": "shop", "variables": {&long: "x"}}), json!({"files": [{&long: 1}]})];
    for input in places {
        let key = b.call("plan", input).await.expect_err("no argument");
        assert_eq!((key.code, key.message.len() < 200), (ErrorCode::InvalidArgument, true), "{key}");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(b.rows().await.len(), 4, "each left its row");
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
        stack: Some(StackName::new(stack).expect("valid")),
        state: OperationState::Done,
        phase: Phase::Finished,
        settled_at: Some(now),
        ..Operation::new(
            OperationId::new("op-past").expect("valid"),
            "stop".into(),
            "stack-keeper".into(),
            CallId::new("call-past").expect("valid"),
            now,
        )
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

/// The stack with what production demands.
fn healthy(greeting: &str) -> String {
    COMPOSE.replace("good-morning", greeting) + "    healthcheck: {test: [CMD, /check]}\n"
}

#[tokio::test]
async fn a_digest_is_of_what_the_gate_holds_against_a_plan_as_well() {
    let b = bench().await;
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n[rules]\n\"env.plain_secret\" = \"approval\"\n";
    let book = Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], policy, &tools::gate_facts()).expect("a rulebook");
    b.house.rulebook.store(Arc::new(book));
    // The same stack, once with the secret in the text and once without: the same is done, and only one of them wants an approval.
    let text = |value: &str| COMPOSE.replace("      GREETING", &format!("      DB_PASSWORD: {value}\n      GREETING"));
    let plan = async |value: &str| {
        let input = json!({"stack": "shop", "compose": text(value), "variables": {"PW": "correct-horse-7"}});
        b.call("plan", input).await.expect("planned").value
    };
    let (declared, plain) = (plan("${PW}").await, plan("correct-horse-7").await);
    assert_eq!((declared["verdict"] == "approval", plain["verdict"].as_str()), (false, Some("approval")), "{declared} {plain}");
    assert_ne!(declared["digest"], plain["digest"]);
    assert_eq!(plan("correct-horse-7").await["digest"], plain["digest"]);
    // The stored plan is made again without its texts, and is the same plan.
    let asked = b.call("deploy", json!({"plan_id": plain["plan_id"], "digest": plain["digest"]})).await.expect("asks").value;
    assert_eq!(
        (asked["state"].as_str(), asked["approval"]["digest"].clone()),
        (Some("pending_approval"), plain["digest"].clone()),
        "{asked}"
    );
}

#[tokio::test]
async fn errors_and_their_records_are_cleaned_and_masked_whole() {
    let b = bench().await;
    let compose = COMPOSE
        .replace("    mem_limit", "    cap_add: [\"SYS_ADMIN\\e[2K\"]\n    sysctls: {\"kernel.pw=hunter2hunter2\": \"1\"}\n    mem_limit");
    let denied = b.call("deploy", json!({"stack": "shop", "compose": compose})).await.expect_err("denied");
    let whole = serde_json::to_value(&denied).expect("plain data").to_string();
    assert!(!denied.findings.is_empty() && !whole.contains("hunter2") && !whole.contains("\\u001b"), "{whole}");
    let rows = b.house.store.audit_rows(&AuditQuery { limit: 10, ..AuditQuery::default() }).await.expect("rows");
    let rows = json!(rows).to_string();
    assert!(rows.contains("SYS_ADMIN") || rows.contains("sysctl"), "{rows}");
    assert!(!rows.contains("hunter2") && !rows.contains("\\u001b"), "{rows}");
    let wrong = b.call("status", json!({"pw=hunter2hunter2": 1})).await.expect_err("refused");
    let whole = serde_json::to_value(&wrong).expect("plain data").to_string();
    assert!(!whole.contains("hunter2"), "{whole}");
}
