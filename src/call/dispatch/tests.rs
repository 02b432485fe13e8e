//! The line end to end over the fake engine and a real store: what each call leaves in the audit log, and what passes.

use super::*;
use crate::call::Door;
use crate::call::error::ErrorCode;
use crate::engine::fake::{Behaviour, FakeEngine};
use crate::executor::Executor;
use crate::gate::Rulebook;
use crate::gate::request::RequestFacts;
use crate::model::config::Config;
use crate::model::ids::AgentName;
use crate::store::Store;
use crate::store::audit::{AuditQuery, AuditRow};
use arc_swap::ArcSwap;
use serde_json::json;

const COMPOSE: &str =
    "services:\n  web:\n    image: hello:1\n    environment:\n      GREETING: good-morning-s3cret\n    mem_limit: 64m\n    cpus: 0.5\n";
const KEEPER: &str = "---
name: keeper
description: Keeps stacks.
tools: plan, deploy, status, health, history, operation, approval, restart, stop
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: dev, effect: allow, tools: [deploy, restart], environments: [development], because: \"development is free\"}
    - {id: prod, effect: approval, tools: [deploy], environments: [production], because: \"production is reviewed\"}
---
Keep them.
";

struct Bench {
    house: Arc<House>,
    engine: Arc<FakeEngine>,
    _dir: tempfile::TempDir,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.expect("a store");
    let engine = Arc::new(FakeEngine::new());
    engine.add_image("hello:1", Behaviour::healthy());
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], policy, &tools::gate_facts()).expect("a rulebook");
    let facts: crate::executor::FactsOf = Arc::new(|_, _| RequestFacts::default());
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
        executor,
        config,
        prompts: ArcSwap::from_pointee(vec![]),
        calls: Default::default(),
        backups: None,
    };
    Bench { house: Arc::new(house), engine, _dir: dir }
}

impl Bench {
    async fn call(&self, tool: &str, input: Value) -> Result<Reply, CallError> {
        let who = Principal { agent: AgentName::new("keeper").expect("valid"), door: Door::McpStdio, client: None, read_only: false };
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
async fn a_freeze_and_a_read_only_session_stop_mutations_but_no_reads() {
    let b = bench().await;
    approval::freeze(&b.house.store, "olga", "incident", chrono::Utc::now()).await.expect("frozen");
    let frozen = b.call("restart", json!({"stack": "shop"})).await.expect_err("frozen");
    assert!(frozen.code == ErrorCode::Denied && frozen.message.contains("olga froze all changes: incident"), "{frozen}");
    b.call("status", json!({})).await.expect("reads go on");
    approval::unfreeze(&b.house.store, "olga", chrono::Utc::now()).await.expect("lifted");
    let who = Principal { agent: AgentName::new("keeper").expect("valid"), door: Door::Cli, client: None, read_only: true };
    let refused = dispatch(&b.house, &who, "restart", json!({"stack": "shop"}), None).await.expect_err("read-only");
    assert!(refused.message.contains("session.read_only"), "{refused}");
    // Without either it gets as far as finding that there is nothing to restart: intent and outcome, two rows.
    assert_eq!(b.call("restart", json!({"stack": "shop"})).await.expect_err("not there").code, ErrorCode::NotFound);
    let tail: Vec<_> = b.rows().await.into_iter().rev().take(2).map(|(kind, _, _, outcome)| (kind, outcome)).collect();
    assert_eq!(tail, [("outcome".to_owned(), Some("error".to_owned())), ("intent".to_owned(), None)]);
}
