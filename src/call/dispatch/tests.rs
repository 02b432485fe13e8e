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

mod before_update;
mod beside;
mod bounds;
mod delivered;
mod hooks;
mod keys;
mod own_secrets;
mod refresh;
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
    let used = b.house.store.use_approval(&id, &CallId::new("call-1").expect("valid"), chrono::Utc::now()).await.expect("stored");
    assert!(used, "the approval was not touched by the other call");
    assert_eq!(approval::run_approved(&b.house, &id).await.expect_err("used").code, ErrorCode::Conflict);
    assert_eq!(b.engine.running(), Vec::<String>::new(), "nothing ran without a word");
}

#[tokio::test]
async fn where_approver_and_requester_must_differ_one_operator_is_not_enough() {
    let b = bench().await;
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n[environments.development]\n[environments.production]\ndistinct_approver = true\n";
    b.house
        .rulebook
        .store(Arc::new(Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], policy, &tools::gate_facts()).expect("a rulebook")));
    let deploy = async |compose: String, environment: &str| {
        let reply = b
            .call("deploy", json!({"stack": format!("in-{environment}"), "compose": compose, "environment": environment}))
            .await
            .expect("asked")
            .value;
        ApprovalId::new(reply["approval"]["approval_id"].as_str().unwrap_or_else(|| panic!("{reply}"))).expect("valid")
    };
    let asked = deploy(COMPOSE.into(), "production").await;
    let say = async |id: &ApprovalId, who: &str| {
        b.house.store.decide_approval(id, who, true, chrono::Utc::now()).await.expect("stored").expect("was pending").state
    };
    assert_eq!(say(&asked, "olga").await, ApprovalState::Pending);
    assert_eq!(approval::run_approved(&b.house, &asked).await.expect_err("one is not enough").code, ErrorCode::Conflict);
    assert_eq!(say(&asked, "olga").await, ApprovalState::Pending, "nor is the same one twice");
    assert_eq!(say(&asked, "rita").await, ApprovalState::Approved);
    // Where no rule asks but the plan does, it is the same there, and one is enough elsewhere.
    let risky = COMPOSE.replace("    image:", "    cap_add: [NET_ADMIN]\n    image:");
    let needed = async |id: ApprovalId| b.house.store.approval(&id, chrono::Utc::now()).await.expect("readable").expect("there").needed;
    assert_eq!(needed(deploy(risky.clone(), "production").await).await, 2);
    assert_eq!(needed(deploy(risky, "development").await).await, 1);
}

#[tokio::test]
async fn operations_are_listed_in_pages_by_stack_and_state() {
    let b = bench().await;
    for stack in ["shop", "bank", "mill"] {
        assert_eq!(b.call("deploy", json!({"stack": stack, "compose": COMPOSE})).await.expect("deployed").value["state"], "monitoring");
    }
    b.call("restart", json!({"stack": "shop", "service": "web"})).await.expect("restarted");
    let list = async |input: Value| b.call("operation", input).await.map(|r| r.value);
    let of = |value: &Value| -> Vec<String> {
        let rows = value["operations"].as_array().unwrap_or_else(|| panic!("{value}")).iter();
        rows.map(|o| {
            format!(
                "{} {} {}",
                o["verb"].as_str().expect("a verb"),
                o["stack"].as_str().expect("a stack"),
                o["agent"].as_str().expect("an agent")
            )
        })
        .collect()
    };
    let all = ["restart shop keeper", "deploy mill keeper", "deploy bank keeper", "deploy shop keeper"];
    let whole = list(json!({})).await.expect("listed");
    assert_eq!((of(&whole), whole.get("next_cursor"), whole.get("verb")), (all.map(str::to_owned).to_vec(), None, None));
    let first = list(json!({"limit": 3})).await.expect("listed");
    assert_eq!(of(&first), all[..3]);
    let second = list(json!({"limit": 3, "cursor": first["next_cursor"]})).await.expect("listed");
    assert_eq!((of(&second), second.get("next_cursor")), (all[3..].iter().map(|s| (*s).to_owned()).collect(), None));
    assert_eq!(of(&list(json!({"stack": "shop"})).await.expect("listed")), [all[0], all[3]]);
    assert_eq!(of(&list(json!({"stack": "shop", "state": "failed"})).await.expect("listed")), Vec::<String>::new());
    // What is listed can be looked at, and leads to the same state.
    let one = list(json!({"operation_id": whole["operations"][1]["operation_id"]})).await.expect("one");
    assert_eq!((one["stack"].as_str(), &one["state"], one.get("operations")), (Some("mill"), &whole["operations"][1]["state"], None));
    for (wrong, field) in [
        (json!({"state": "lost"}), "state"),
        (json!({"cursor": "op-none"}), "cursor"),
        (json!({"cursor": "../x"}), "cursor"),
        (json!({"wait_s": 5}), "wait_s"),
        (json!({"operation_id": one["operation_id"], "stack": "mill"}), "operation_id"),
    ] {
        let e = list(wrong.clone()).await.expect_err("refused");
        assert_eq!((e.code, e.field.as_deref()), (ErrorCode::InvalidArgument, Some(field)), "{wrong}");
    }
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

#[tokio::test]
async fn a_service_is_made_anew_only_from_host_paths_that_lead_where_they_led() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().canonicalize().expect("it is there");
    let data = root.join("data");
    std::fs::create_dir(&data).expect("made");
    let b = bench().await;
    let book = {
        let policy = format!("allowed_registries = [\"local\", \"docker.io/library\"]\nbind_roots_allow = [{root:?}]\n");
        Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], &policy, &tools::gate_facts()).expect("a rulebook")
    };
    b.house.rulebook.store(Arc::new(book));
    let compose = COMPOSE.replace("    mem_limit", &format!("    volumes: [\"{}:/data\"]\n    mem_limit", data.display()));
    let plan = async || b.call("plan", json!({"stack": "shop", "compose": compose})).await.expect("planned").value;
    b.call("deploy", json!({"stack": "shop", "compose": compose})).await.expect("deployed");
    let anew = json!({"stack": "shop", "service": "web", "recreate": true});
    assert_eq!(b.call("restart", anew.clone()).await.expect("made anew").value["state"], "monitoring");
    let (before, again) = (plan().await, plan().await);
    assert_eq!(before["digest"], again["digest"], "nothing moved");

    // Still below an allowed root, but another directory: another plan.
    std::fs::rename(&data, root.join("real")).expect("moved");
    std::os::unix::fs::symlink(root.join("real"), &data).expect("linked");
    let id = before["plan_id"].as_str().expect("an id").to_owned();
    let stale = b.call("deploy", json!({"plan_id": id, "digest": before["digest"]})).await.expect_err("stale");
    assert_eq!(stale.code, ErrorCode::StalePlan, "{stale}");
    // Out of every root: refused.
    std::fs::remove_file(&data).expect("gone");
    std::os::unix::fs::symlink("/", &data).expect("linked");
    let denied = b.call("restart", anew).await.expect_err("denied");
    assert!(denied.code == ErrorCode::Denied && denied.message.contains("bind.outside"), "{denied}");
}

#[tokio::test]
async fn texts_of_a_call_see_no_variable_of_the_registered_directory() {
    let mut b = bench().await;
    let dir = b._dir.path().join("shop");
    std::fs::create_dir(&dir).expect("made");
    std::fs::write(dir.join(".env"), "SECRET=hunter2hunter2\nBAD=hunter2${hunter2\n").expect("written");
    std::fs::write(dir.join("labels"), "SECRET=hunter2hunter2\n").expect("written");
    let house = Arc::get_mut(&mut b.house).expect("nobody else has it");
    let entry = serde_json::from_value(json!({"dir": dir})).expect("an entry");
    house.config.settings.stacks.insert(crate::model::ids::StackName::new("shop").expect("valid"), entry);
    let with = |line: &str| COMPOSE.replace("    mem_limit", &format!("    {line}\n    mem_limit"));
    let part = "services:\n  other:\n    image: hello:1\n    command: [\"${SECRET}\"]\n";
    let calls = [
        json!({"stack": "shop", "compose": with("command: [\"${SECRET}\"]")}),
        json!({"stack": "shop", "compose": COMPOSE.replace("hello:1", "hello:${SECRET}")}),
        json!({"stack": "shop", "compose": with("command: [\"${U:?${SECRET}}\"]")}),
        json!({"stack": "shop", "compose": with("label_file: labels")}),
        json!({"stack": "shop", "compose": with("label_file: .env")}),
        json!({"stack": "shop", "compose": with("extends: {file: .env, service: web}")}),
        json!({"stack": "shop", "files": {"compose.yaml": format!("include: [{{path: part.yaml, env_file: labels}}]\n{COMPOSE}"), "part.yaml": part}}),
        json!({"stack": "shop", "files": {"compose.yaml": format!("include: [part.yaml]\n{COMPOSE}"), "part.yaml": part}}),
    ];
    for input in calls {
        let told = match b.call("plan", input.clone()).await {
            Ok(reply) => format!("{} {}", reply.value, reply.text),
            Err(e) => format!("{e:?}"),
        };
        assert!(!told.contains("hunter2"), "{input}: {told}");
    }
    let labels = b.call("plan", json!({"stack": "shop", "compose": with("label_file: labels")})).await.expect("planned").value;
    let line = labels["changes"][0]["diff"].as_array().expect("lines").iter().find(|l| l["path"] == "labels.SECRET").expect("told").clone();
    assert!(line["to"].as_str().is_some_and(|t| t.starts_with("set (")), "{line}");
    // What the call brings itself counts as before.
    let own = json!({"stack": "shop", "files": {"compose.yaml": with("command: [\"${GREETING}\"]"), ".env": "GREETING=good-evening\n"}});
    assert!(b.call("plan", own).await.expect("planned").value.to_string().contains("good-evening"));
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
async fn what_is_denied_or_unreadable_counts_and_reads_are_refused_before_the_work() {
    let b = bench_of(&KEEPER.replace("  tier: tier_3", "  limits: {calls_per_minute: 3}\n  tier: tier_3")).await;
    assert_eq!(b.call("stop", json!({"stack": "shop"})).await.expect_err("denied").code, ErrorCode::Denied);
    assert_eq!(b.call("statsu", json!({})).await.expect_err("unknown").code, ErrorCode::UnknownTool);
    b.call("status", json!({})).await.expect("the third");
    for (tool, input) in
        [("status", json!({})), ("statsu", json!({})), ("stop", json!({"stack": "shop"})), ("deploy", json!({"stack": "shop"}))]
    {
        let refused = b.call(tool, input).await.expect_err("too many");
        assert_eq!((refused.code, refused.message.as_str()), (ErrorCode::RateLimited, "limit keeper/* reached: 3 calls in 60 s"), "{tool}");
    }
    let rows = b.rows().await;
    assert_eq!(rows.len(), 4, "one row for all that were too many: {rows:?}");
    assert_eq!(rows[3], row("read", "status", "deny", Some("denied")));
}

#[tokio::test]
async fn a_read_beyond_a_rules_hour_is_not_done() {
    let b = bench_of(
        &KEEPER
            .replace("  rules:", "  rules:\n    - {id: look, effect: allow, tools: [plan], max_per_hour: 1, because: \"planning costs\"}"),
    )
    .await;
    let input = json!({"stack": "shop", "compose": COMPOSE});
    let first = b.call("plan", input.clone()).await.expect("the first").value;
    assert_eq!(b.call("plan", input).await.expect_err("the second").code, ErrorCode::RateLimited);
    let kept = b.house.store.value("plans:keeper").await.expect("readable").expect("noted");
    assert_eq!(kept, json!([first["plan_id"]]), "no second plan was made");
}

#[tokio::test]
async fn of_an_agents_plans_the_newest_are_kept() {
    let b = bench().await;
    let plan = async || b.call("plan", json!({"stack": "shop", "compose": COMPOSE})).await.expect("planned").value["plan_id"].clone();
    let first = crate::model::ids::PlanId::new(plan().await.as_str().expect("an id")).expect("valid");
    let second = crate::model::ids::PlanId::new(plan().await.as_str().expect("an id")).expect("valid");
    b.house.store.keep_plans("keeper", &second, 1).await.expect("kept");
    assert!(b.house.store.plan(&first).await.expect("readable").is_none());
    assert!(b.house.store.plan(&second).await.expect("readable").is_some());
}

#[tokio::test]
async fn the_reserve_of_the_disk_is_for_what_is_done() {
    let b = bench().await;
    let input = json!({"stack": "shop"});
    let who = Principal {
        agent: AgentName::new("keeper").expect("valid"),
        door: Door::McpStdio,
        client: None,
        read_only: false,
        on_behalf: vec![],
    };
    let call = Call::new(&b.house, &who, None, None);
    let facts = crate::gate::explain::call_of("keeper", "stop", true, StackName::new("shop").ok(), None, None);
    let decision = |verdict| Decision { verdict, findings: vec![], limits: vec![], approval: None, hint: None };
    assert!(record::intent(&call, &facts, &decision(Verdict::Allow), &input).essential);
    assert!(!record::intent(&call, &facts, &decision(Verdict::Deny), &input).essential);
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

#[tokio::test]
async fn an_approval_of_a_prune_is_for_what_it_showed() {
    let b = bench_of(&KEEPER.replace("max_per_hour: 1", "max_per_hour: 9")).await;
    b.engine.add_image("dockwarden/front:old", Behaviour::healthy());
    let input = json!({"what": "images", "dry_run": false});
    let asked = b.call("prune", input.clone()).await.expect("asked").value;
    let id = ApprovalId::new(asked["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    let shown = approval::resolved_for(&b.house.store, &id).await.expect("readable").expect("kept");
    assert_eq!(shown, json!({"items": ["dockwarden/front:old"]}));
    b.engine.add_image("dockwarden/front:older", Behaviour::healthy());
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    let stale = approval::run_approved(&b.house, &id).await.expect_err("more would go than was shown");
    assert_eq!(stale.code, ErrorCode::StalePlan, "{stale}");
    assert_eq!(approval::resolved_for(&b.house.store, &id).await.expect("readable"), None, "it goes with the input");
    let again = b.call("prune", input).await.expect("asked").value;
    assert_ne!(again["approval"]["approval_id"], asked["approval"]["approval_id"]);
    // One whose time ran out is forgotten, too.
    let id = ApprovalId::new(again["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    assert!(approval::resolved_for(&b.house.store, &id).await.expect("readable").is_some());
    let late = chrono::Utc::now() + chrono::TimeDelta::days(1);
    assert_eq!(b.house.store.approval(&id, late).await.expect("read").expect("there").state, ApprovalState::Expired);
    assert_eq!(approval::resolved_for(&b.house.store, &id).await.expect("readable"), None);
}

#[tokio::test]
async fn an_agent_asks_for_no_more_than_people_read() {
    let b = bench().await;
    let ask = |n: usize| json!({"stack": "bank", "compose": COMPOSE, "environment": "production", "variables": {"X": "x"}, "images": {"web": format!("hello:{n}")}});
    for n in 0..25 {
        b.engine.add_image(&format!("hello:{n}"), Behaviour::healthy());
    }
    let mut asked = vec![];
    for n in 0..20 {
        asked.push(b.call("deploy", ask(n)).await.expect("asked").value["approval"]["approval_id"].clone());
    }
    let more = b.call("deploy", ask(20)).await.expect_err("too many wait");
    assert!(more.code == ErrorCode::RateLimited && more.message.contains("20 approvals"), "{more}");
    assert_eq!(b.call("deploy", ask(3)).await.expect("the same question").value["approval"]["approval_id"], asked[3]);
    // What is settled is not kept, and lists carry no input.
    let id = ApprovalId::new(asked[0].as_str().expect("an id")).expect("valid");
    let store = &b.house.store;
    let input = async || store.approval(&id, chrono::Utc::now()).await.expect("readable").expect("there").input;
    assert!(store.approvals(true, chrono::Utc::now()).await.expect("listed").iter().all(|a| a.input.is_null()));
    assert_eq!(input().await["stack"], "bank");
    store.decide_approval(&id, "olga", false, chrono::Utc::now()).await.expect("stored").expect("was pending");
    assert!(input().await.is_null());
    b.call("deploy", ask(20)).await.expect("one less waits");
}
