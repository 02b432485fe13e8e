//! Runs of a task over the fake engine, a real store and a model that says what a script says: what is done, once, whatever interrupts it.

use super::ask::Patience;
use super::hands::{Away, Decided, Fate, Hands, HouseHands, Offer};
use super::journal::HouseJournal;
use super::models::Model;
use super::provider::{Asked, EndReason, Event, Events, Message, Provider, ProviderError, Request};
use super::work::{Desk, work};
use crate::call::{Door, House, Principal, approval};
use crate::engine::fake::{Behaviour, FakeEngine};
use crate::executor::{Executor, Options, StopAfter};
use crate::gate::Rulebook;
use crate::gate::request::RequestFacts;
use crate::model::config::{Config, ModelProvider};
use crate::model::ids::{AgentName, ApprovalId, CallId, StackName, TaskId};
use crate::model::operation::OperationState;
use crate::model::spend::{Price, Usage};
use crate::model::task::{Task, TaskEnd, TaskState, TaskWork};
use crate::store::Store;
use crate::store::audit::AuditQuery;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use chrono::Utc;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const COMPOSE: &str = "services:\n  web:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.5\nx-dockwarden:\n  monitor_s: 0\n";
const KEEPER: &str = "---
name: keeper
description: Keeps stacks.
tools: plan, deploy, status, health, history, operation, approval, restart, stop, cancel
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: dev, effect: allow, tools: [deploy, restart, stop, cancel], environments: [development], because: \"development is free\"}
    - {id: prod, effect: approval, tools: [deploy], environments: [production], because: \"production is reviewed\"}
---
Keep them.
";

/// A home and an engine that outlive the supervisors over them.
struct World {
    engine: Arc<FakeEngine>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let engine = Arc::new(FakeEngine::new());
        engine.add_image("hello:1", Behaviour::healthy());
        engine.add_image("hello:2", Behaviour::healthy());
        Self { engine, dir: tempfile::tempdir().expect("a directory") }
    }

    async fn house(&self, stop_after: Option<StopAfter>) -> Arc<House> {
        let dir = self.dir.path();
        let store = Store::open(&dir.join("home"), &dir.join("memory")).await.expect("a store");
        let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
        let book = Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], policy, &crate::tools::gate_facts()).expect("a rulebook");
        let facts: crate::executor::FactsOf = Arc::new(|plan, service| {
            let service = service.map_or("", crate::model::ids::ServiceName::as_str);
            RequestFacts::of(&plan.desired, service, &Default::default(), &Default::default(), Utc::now().date_naive(), Default::default())
        });
        let executor = Executor::new(self.engine.clone(), store.clone(), facts, Options { stop_after, ..Options::default() });
        let config = Config { host_name: "host".into(), ..Config::new(dir.join("home"), dir.join("config"), dir.join("memory")) };
        Arc::new(House {
            store,
            engine: self.engine.clone(),
            rulebook: ArcSwap::from_pointee(book),
            refused_rules: ArcSwap::default(),
            executor,
            config,
            prompts: ArcSwap::from_pointee(vec![]),
            calls: Default::default(),
            backups: None,
            turns: Default::default(),
            desk: Default::default(),
            taints: Default::default(),
        })
    }
}

async fn close(house: &House) {
    house.executor.close(Duration::from_secs(5)).await;
    house.store.close().await;
}

/// What a model says next.
#[derive(Clone)]
enum Line {
    Say(&'static str),
    Call(&'static str, Value),
    Calls(Vec<(&'static str, Value)>),
    Cut(&'static str),
    Refuse(&'static str),
    RefuseCall(&'static str),
    Fail(ProviderError),
    Breaks(ProviderError),
    Never,
}

/// A model that says line `n` when it has spoken `n` times in what it is shown. Errors are said once each, before the line they stand at.
struct Script {
    lines: Vec<Line>,
    errors: Mutex<Vec<(usize, ProviderError)>>,
    asked: Mutex<Vec<Request>>,
    usage: Usage,
}

impl Script {
    fn new(lines: Vec<Line>) -> Self {
        Self {
            lines,
            errors: Mutex::default(),
            asked: Mutex::default(),
            usage: Usage { input: 1_000, cached: 400, cache_written: 0, output: 50 },
        }
    }
    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Provider for Script {
    fn ask(&self, request: Request) -> Events {
        let said = request.messages.iter().filter(|m| matches!(m, Message::Model { .. })).count();
        self.asked.lock().unwrap().push(request);
        let mut errors = self.errors.lock().unwrap();
        if let Some(at) = errors.iter().position(|(n, _)| *n == said) {
            return Box::pin(futures_util::stream::iter([Err(errors.remove(at).1)]));
        }
        let call = |i: usize, tool: &str, input: Value| Ok(Event::Call(Asked { id: format!("c{said}-{i}"), tool: tool.into(), input }));
        let mut events = match self.lines[said].clone() {
            Line::Never => return Box::pin(futures_util::stream::pending()),
            Line::Fail(e) => return Box::pin(futures_util::stream::iter([Err(e)])),
            Line::Breaks(e) => {
                return Box::pin(futures_util::stream::iter([Ok(Event::Text("Well,".into())), Err(e)]));
            }
            Line::Say(text) => vec![Ok(Event::Text(text.into()))],
            Line::Cut(text) => {
                let events = [
                    Ok(Event::Text(text.into())),
                    call(0, "stop", json!({"stack": "shop"})),
                    Ok(Event::Usage(self.usage)),
                    Ok(Event::End(EndReason::MaxTokens)),
                ];
                return Box::pin(futures_util::stream::iter(events));
            }
            Line::Refuse(text) => {
                let events = [Ok(Event::Text(text.into())), Ok(Event::Usage(self.usage)), Ok(Event::End(EndReason::Refused))];
                return Box::pin(futures_util::stream::iter(events));
            }
            Line::RefuseCall(tool) => {
                let events = [call(0, tool, json!({"stack": "shop"})), Ok(Event::Usage(self.usage)), Ok(Event::End(EndReason::Refused))];
                return Box::pin(futures_util::stream::iter(events));
            }
            Line::Call(tool, input) => vec![Ok(Event::Text("I call.".into())), call(0, tool, input)],
            Line::Calls(calls) => calls.into_iter().enumerate().map(|(i, (tool, input))| call(i, tool, input)).collect(),
        };
        events.extend([Ok(Event::Usage(self.usage)), Ok(Event::End(EndReason::Done))]);
        Box::pin(futures_util::stream::iter(events))
    }
}

fn model() -> Model {
    Model {
        name: "test".into(),
        provider: ModelProvider::Anthropic,
        base_url: String::new(),
        model: "m".into(),
        key: None,
        max_tokens: 1_000,
        context_tokens: 100_000,
        timeout: Duration::from_secs(5),
        price: Some(Price { input: 3_000_000, cached: 300_000, cache_write: 3_750_000, output: 15_000_000 }),
    }
}

fn task() -> Task {
    let now = Utc::now();
    Task {
        id: TaskId::new("task-01").unwrap(),
        agent: AgentName::new("keeper").unwrap(),
        work: TaskWork::Prompt("Deploy the shop.".into()),
        input: Default::default(),
        delegated_by: vec![],
        origin: "call".into(),
        stack: None,
        pushed: None,
        state: TaskState::Running,
        attempt: 1,
        created_at: now,
        due_at: now,
        started_at: None,
        ended_at: None,
        waits_for: None,
        result: None,
    }
}

fn hands(house: &Arc<House>) -> HouseHands {
    let who = Principal { agent: AgentName::new("keeper").unwrap(), door: Door::Task, client: None, read_only: false, on_behalf: vec![] };
    HouseHands { house: house.clone(), who }
}

const HASTY: Patience = Patience { tries: 3, first: Duration::from_millis(1), most: Duration::from_millis(50) };

struct Set {
    turns: u32,
    cap: Option<u64>,
    model: Model,
}

impl Default for Set {
    fn default() -> Self {
        Self { turns: 40, cap: None, model: model() }
    }
}

async fn run_as(house: &Arc<House>, hands: &dyn Hands, script: &Script, set: &Set, stop: &CancellationToken) -> TaskEnd {
    let task = task();
    let journal = HouseJournal::new(&house.store, task.agent.clone(), task.id.clone(), || set.cap, &set.model);
    let desk = Desk {
        journal: &journal,
        hands,
        provider: script,
        model: &set.model,
        system: "You keep stacks.".into(),
        task: "Deploy the shop.".into(),
        turns: set.turns,
        patience: HASTY,
    };
    work(&desk, &task, stop).await
}

async fn run(house: &Arc<House>, script: &Script) -> TaskEnd {
    run_as(house, &hands(house), script, &Set::default(), &CancellationToken::new()).await
}

async fn spent(house: &House) -> u64 {
    house.store.spent_by(&crate::model::spend::month(Utc::now()), &AgentName::new("keeper").unwrap()).await.unwrap()
}

fn deploy() -> Line {
    Line::Call("deploy", json!({"stack": "shop", "compose": COMPOSE, "environment": "development", "idempotency_key": "mine"}))
}

fn result(request: &Request, n: usize) -> Value {
    let texts: Vec<&String> = request
        .messages
        .iter()
        .flat_map(|m| match m {
            Message::Results(r) => r.iter().map(|a| &a.text).collect(),
            Message::User(_) | Message::Model { .. } => vec![],
        })
        .collect();
    serde_json::from_str(texts[n]).expect("JSON")
}

/// The new release serves; whether its watch window is over is a matter of moments.
fn serves(operation: &Value) -> bool {
    matches!(operation["state"].as_str(), Some("monitoring" | "done"))
}

#[tokio::test]
async fn a_model_calls_tools_until_it_says_that_it_is_done() {
    let world = World::new();
    let house = world.house(None).await;
    let script = Script::new(vec![
        Line::Calls(vec![("status", json!({})), ("statsu", json!({})), ("status", json!("{no json"))]),
        deploy(),
        Line::Say("Deployed release 1."),
    ]);
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("Deployed release 1.".into()));
    let asked = script.asked();
    assert_eq!(asked.len(), 3);
    assert_eq!(result(&asked[1], 1)["error"]["code"], "unknown_tool");
    assert_eq!(result(&asked[1], 2)["error"]["code"], "invalid_argument");
    assert!(serves(&result(&asked[2], 3)));
    let tools: Vec<&str> = asked[0].tools.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(tools, ["approval", "cancel", "deploy", "health", "history", "operation", "plan", "restart", "status", "stop"]);
    assert!(asked[0].tools.iter().all(|t| !t.keyed()), "the key is not the model's to set");
    let operations = house.store.operations(None, 10).await.unwrap();
    assert_eq!(operations[0].idempotency_key.as_deref(), Some("task-01-2-1"));
    assert_eq!(operations[0].call.as_str(), "call-01-2-1");
    // 600 * 3 + 400 * 0.3 + 50 * 15 millionths, three times.
    assert_eq!(spent(&house).await, 3 * 2_670);
    let doors: Vec<String> =
        house.store.audit_rows(&AuditQuery { limit: 10, ..Default::default() }).await.unwrap().into_iter().map(|r| r.door).collect();
    assert!(doors.iter().all(|d| d == "task"), "{doors:?}");
    // A run of a task that is done asks nobody and says the same.
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("Deployed release 1.".into()));
    assert_eq!(script.asked().len(), 3);
}

#[tokio::test]
async fn a_task_that_needs_a_person_waits_and_goes_on_with_what_came_of_it() {
    let world = World::new();
    let house = world.house(None).await;
    let production = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let script = Script::new(vec![Line::Call("deploy", production), Line::Say("Done as approved.")]);
    let TaskEnd::Waiting(id) = run(&house, &script).await else { panic!("it must wait") };
    assert_eq!(run(&house, &script).await, TaskEnd::Waiting(id.clone()), "still");
    assert_eq!(script.asked().len(), 1, "waiting costs nothing");
    house.store.decide_approval(&id, "ann", true, Utc::now()).await.unwrap();
    approval::run_approved(&house, &id).await.expect("it starts");
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("Done as approved.".into()));
    let reply = result(&script.asked()[1], 0);
    assert_eq!((&reply["state"], &reply["decided"]["state"]), (&json!("decided"), &json!("used")));
    assert!(serves(&reply["decided"]["operation"]), "{reply}");
    assert_eq!(house.store.operations(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_task_that_is_stopped_does_not_wait_for_what_was_approved_to_start() {
    let world = World::new();
    let house = world.house(None).await;
    let production = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let script = Script::new(vec![Line::Call("deploy", production), Line::Say("Done.")]);
    let TaskEnd::Waiting(id) = run(&house, &script).await else { panic!("it must wait") };
    house.store.decide_approval(&id, "ann", true, Utc::now()).await.unwrap();
    let (stop, hands) = (CancellationToken::new(), hands(&house));
    let set = Set::default();
    let stopped = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
    };
    let both = async { tokio::join!(run_as(&house, &hands, &script, &set, &stop), stopped).0 };
    let end = tokio::time::timeout(Duration::from_secs(15), both).await.expect("not half a minute");
    assert_eq!(end, TaskEnd::Cancelled);
}

#[tokio::test]
async fn what_is_refused_by_a_person_is_told_to_the_model() {
    let world = World::new();
    let house = world.house(None).await;
    let production = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let script = Script::new(vec![Line::Call("deploy", production), Line::Say("Not allowed.")]);
    let TaskEnd::Waiting(id) = run(&house, &script).await else { panic!("it must wait") };
    house.store.decide_approval(&id, "ann", false, Utc::now()).await.unwrap();
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("Not allowed.".into()));
    assert_eq!(result(&script.asked()[1], 0)["decided"]["state"], "denied");
}

#[tokio::test]
async fn turns_and_money_end_a_run() {
    let world = World::new();
    let house = world.house(None).await;
    let look = || Line::Call("status", json!({}));
    let script = Script::new(vec![look(), look(), look(), look()]);
    let end = run_as(&house, &hands(&house), &script, &Set { turns: 2, ..Set::default() }, &CancellationToken::new()).await;
    assert!(matches!(&end, TaskEnd::Failed(why) if why.starts_with("out of turns: 2")), "{end:?}");
    // Two answers cost 5340; the next could cost 1000 tokens of words and what is read.
    let set = Set { cap: Some(20_000), ..Set::default() };
    let end = run_as(&house, &hands(&house), &script, &set, &CancellationToken::new()).await;
    assert!(matches!(&end, TaskEnd::Failed(why) if why.starts_with("out of budget: 0.00534 of 0.02 US dollars")), "{end:?}");
    assert_eq!((script.asked().len(), spent(&house).await), (2, 5_340), "nothing was asked beyond the cap");
    let of = async |what: &str| {
        let query = AuditQuery { tool: Some(what.into()), limit: 9, ..Default::default() };
        house.store.audit_rows(&query).await.unwrap()
    };
    assert_eq!(of("budget_share").await.len(), 0, "not even half of it is spent");
    let refused = of("budget_refused").await;
    assert_eq!(refused.len(), 1);
    assert_eq!((&refused[0].detail["spent_usd"], &refused[0].detail["cap_usd"]), (&json!("0.00534"), &json!("0.02")));
    // Another cap is told of anew.
    let set = Set { cap: Some(9_000), ..Set::default() };
    run_as(&house, &hands(&house), &script, &set, &CancellationToken::new()).await;
    assert_eq!(of("budget_refused").await.len(), 2);
}

#[tokio::test]
async fn a_cap_that_is_lowered_stops_what_is_at_work() {
    let world = World::new();
    let house = world.house(None).await;
    let script = Script::new(vec![Line::Call("status", json!({})), Line::Say("done")]);
    let (task, model) = (task(), model());
    let cap = || if script.asked().is_empty() { None } else { Some(3_000) };
    let journal = HouseJournal::new(&house.store, task.agent.clone(), task.id.clone(), cap, &model);
    let hands = hands(&house);
    let desk = Desk {
        journal: &journal,
        hands: &hands,
        provider: &script,
        model: &model,
        system: "You keep stacks.".into(),
        task: "Look.".into(),
        turns: 9,
        patience: HASTY,
    };
    let end = work(&desk, &task, &CancellationToken::new()).await;
    assert!(matches!(&end, TaskEnd::Failed(why) if why.starts_with("out of budget")), "{end:?}");
    assert_eq!(script.asked().len(), 1);
}

#[tokio::test]
async fn a_call_of_an_answer_its_provider_broke_off_is_not_made_and_a_key_in_two_pieces_is_not_kept() {
    let world = World::new();
    let house = world.house(None).await;
    let script = Script::new(vec![Line::RefuseCall("stop"), Line::Say("It is sk-12345678-secret, I think.")]);
    let key = crate::runner::models::Key::new("sk-12345678-secret").expect("a key");
    let set = Set { model: Model { key: Some(key), ..model() }, ..Set::default() };
    let end = run_as(&house, &hands(&house), &script, &set, &CancellationToken::new()).await;
    assert!(matches!(&end, TaskEnd::Succeeded(text) if text.contains("I think") && !text.contains("12345678")), "{end:?}");
    let turns = house.store.turns(&task().id).await.unwrap();
    assert!(turns[0].cut && turns[0].calls.is_empty(), "{turns:?}");
    assert!(!serde_json::to_string(&turns).unwrap().contains("12345678"));
}

#[tokio::test]
async fn shares_of_the_budget_are_told_once_each() {
    let world = World::new();
    let house = world.house(None).await;
    let look = || Line::Call("status", json!({}));
    let mut script = Script::new(vec![look(), look(), look(), Line::Say("done")]);
    // 0.2 dollars an answer, of a budget of 0.5.
    script.usage = Usage { input: 0, cached: 0, cache_written: 0, output: 13_334 };
    let end = run_as(&house, &hands(&house), &script, &Set { cap: Some(900_000), ..Set::default() }, &CancellationToken::new()).await;
    assert_eq!(end, TaskEnd::Succeeded("done".into()));
    let rows = house.store.audit_rows(&AuditQuery { tool: Some("budget_share".into()), limit: 9, ..Default::default() }).await.unwrap();
    let told: Vec<&Value> = rows.iter().rev().map(|r| &r.detail["percent"]).collect();
    assert_eq!(told, [&json!(50), &json!(80)]);
}

#[tokio::test]
async fn a_provider_that_is_away_is_asked_again_and_the_run_ends_for_another_try() {
    let world = World::new();
    let house = world.house(None).await;
    let busy = |after| ProviderError::RateLimited { retry_after: after, detail: "slow down".into() };
    let script = Script::new(vec![Line::Call("status", json!({})), Line::Say("done")]);
    script.errors.lock().unwrap().extend([
        (0, busy(None)),
        (0, ProviderError::Broken("cut".into())),
        (1, busy(Some(Duration::from_millis(20)))),
    ]);
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("done".into()));
    let ledger = house.store.spent(None).await.unwrap();
    assert_eq!((ledger[0].answers, ledger[0].errors, ledger[0].lost), (2, 2, 1), "a broken answer may cost, a refused question does not");
    // It fails in the middle of its answer: the question was read, and is paid for at its worst.
    let (world, breaks) =
        (World::new(), Script::new(vec![Line::Breaks(ProviderError::Overloaded { retry_after: None, detail: "x".into() })]));
    let house = world.house(None).await;
    let end = run(&house, &breaks).await;
    let ledger = house.store.spent(None).await.unwrap();
    assert!(
        matches!(end, TaskEnd::Retry(_)) && (ledger[0].errors, ledger[0].lost) == (0, 3) && spent(&house).await > 0,
        "{end:?}: {ledger:?}"
    );
    let away = Script::new(vec![Line::Fail(busy(Some(Duration::from_secs(3600))))]);
    let world = World::new();
    let house = world.house(None).await;
    let end = run(&house, &away).await;
    assert!(matches!(&end, TaskEnd::Retry(why) if why.contains("slow down")), "{end:?}");
    assert_eq!(away.asked().len(), 1, "an hour is not waited for");
    let wrong = Script::new(vec![Line::Fail(ProviderError::Unauthorized("status 401".into()))]);
    let end = run(&house, &wrong).await;
    assert!(matches!(&end, TaskEnd::Failed(why) if why.contains("key_file")), "{end:?}");
}

#[tokio::test]
async fn a_stopped_run_ends_at_once_and_pays_for_the_open_question() {
    let world = World::new();
    let house = world.house(None).await;
    let script = Script::new(vec![Line::Never]);
    let stop = CancellationToken::new();
    let (h, set) = (hands(&house), Set::default());
    let (end, ()) = tokio::join!(run_as(&house, &h, &script, &set, &stop), async {
        while script.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
    assert_eq!(end, TaskEnd::Cancelled);
    assert_eq!(house.store.spent(None).await.unwrap()[0].lost, 1);
}

#[tokio::test]
async fn half_an_answer_is_not_acted_on() {
    let world = World::new();
    let house = world.house(None).await;
    let script = Script::new(vec![Line::Cut("I will now"), Line::Say(""), Line::Say("done")]);
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("done".into()));
    assert!(matches!(script.asked()[1].messages.last(), Some(Message::User(text)) if text.contains("cut")));
    assert!(house.store.audit_rows(&AuditQuery { limit: 9, ..Default::default() }).await.unwrap().is_empty(), "stop was not called");
}

#[tokio::test]
async fn a_conversation_that_is_too_long_is_shortened() {
    let world = World::new();
    let house = world.house(None).await;
    let mut lines: Vec<Line> = (0..9).map(|_| Line::Call("plan", json!({"stack": "shop", "compose": COMPOSE}))).collect();
    lines.push(Line::Say("done"));
    let script = Script::new(lines);
    let too_long = ProviderError::ContextTooLong("prompt is too long".into());
    script.errors.lock().unwrap().extend([(9, too_long.clone()), (9, too_long)]);
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("done".into()));
    let asked = script.asked();
    let size = |r: &Request| super::window::size_of(r);
    assert!(
        size(&asked[11]) < size(&asked[10]) && size(&asked[10]) < size(&asked[9]),
        "{} {} {}",
        size(&asked[9]),
        size(&asked[10]),
        size(&asked[11])
    );
}

/// Hands that die before or after the call of a moment, or when the house around them died.
struct Doomed {
    inner: HouseHands,
    die_at: u32,
    moment: AtomicU32,
    dead: Arc<AtomicBool>,
    died: Arc<tokio::sync::Notify>,
}

impl Doomed {
    async fn moment(&self) {
        if self.moment.fetch_add(1, Ordering::SeqCst) + 1 == self.die_at {
            self.dead.store(true, Ordering::SeqCst);
        }
        if self.dead.load(Ordering::SeqCst) {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Hands for Doomed {
    async fn tools(&self) -> Result<Vec<Offer>, Away> {
        self.inner.tools().await
    }
    async fn call(&self, id: Option<&CallId>, tool: &str, input: Value) -> Result<Value, Away> {
        self.moment().await;
        let answer = self.inner.call(id, tool, input).await;
        self.moment().await;
        answer
    }
    async fn fate(&self, id: &CallId) -> Result<Fate, Away> {
        self.inner.fate(id).await
    }
    async fn approval(&self, id: &ApprovalId) -> Result<Decided, Away> {
        self.inner.approval(id).await
    }
}

fn whole_task() -> Script {
    Script::new(vec![
        Line::Call("status", json!({})),
        deploy(),
        Line::Calls(vec![("restart", json!({"stack": "shop"})), ("health", json!({"stack": "shop"}))]),
        Line::Say("All done."),
    ])
}

/// One run that dies at a moment of its hands or of the executor's journal, and the one that takes it up. Returns whether it died, the deploys and
/// restarts there were, and what the model was told of the restart.
async fn killed(die_at: u32, record: u64) -> (bool, usize, usize, Value) {
    let world = World::new();
    let (dead, died) = (Arc::new(AtomicBool::new(false)), Arc::new(tokio::sync::Notify::new()));
    let (flag, told) = (dead.clone(), died.clone());
    let stop_after: StopAfter = Arc::new(move |count| {
        let hit = count == record;
        if hit {
            flag.store(true, Ordering::SeqCst);
            told.notify_one();
        }
        hit
    });
    let house = world.house(Some(stop_after)).await;
    let doomed = Doomed { inner: hands(&house), die_at, moment: AtomicU32::new(0), dead: dead.clone(), died: died.clone() };
    let script = whole_task();
    let (set, stop) = (Set::default(), CancellationToken::new());
    tokio::select! {
        biased;
        () = died.notified() => {}
        end = run_as(&house, &doomed, &script, &set, &stop) => assert_eq!(end, TaskEnd::Succeeded("All done.".into())),
    }
    close(&house).await;
    let house = world.house(None).await;
    house.store.audit_close_orphans(&[], Utc::now()).await.unwrap();
    for id in house.executor.recover().await.unwrap() {
        house.executor.wait(&id, Duration::from_secs(10), crate::executor::Until::Ended).await.unwrap();
    }
    let context = format!("hands at {die_at}, record {record}");
    let script = whole_task();
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("All done.".into()), "{context}");
    let operations = house.store.operations(None, 50).await.unwrap();
    assert!(operations.iter().all(|o| o.state.is_terminal() || o.state == OperationState::Monitoring), "{context}: {operations:?}");
    let count = |verb: &str| operations.iter().filter(|o| o.verb == verb).count();
    assert_eq!(world.engine.violations(), Vec::<String>::new(), "{context}");
    let releases = house.store.releases(&StackName::new("shop").unwrap(), 10).await.unwrap().len();
    assert!(releases <= 1, "{context}: {releases} releases");
    let report = house.store.audit_verify().await.unwrap();
    assert!(report.problems.is_empty(), "{context}: {report:?}");
    let turns = house.store.turns(&task().id).await.unwrap();
    let reply = turns[2].calls[0].reply.clone().unwrap();
    let counts = (count("deploy"), count("restart"));
    close(&house).await;
    (dead.load(Ordering::SeqCst), counts.0, counts.1, reply)
}

#[tokio::test]
async fn a_run_that_is_killed_between_calls_goes_on_and_does_nothing_twice() {
    let mut at = 1;
    loop {
        let (died, deploys, restarts, reply) = killed(at, 0).await;
        assert_eq!((deploys, restarts), (1, 1), "hands at {at}");
        assert!(serves(&reply), "hands at {at}: {reply}");
        if !died {
            break;
        }
        at += 1;
    }
    assert_eq!(at, 9, "four calls have eight moments");
}

#[tokio::test]
async fn a_run_that_is_killed_inside_an_operation_goes_on_and_does_nothing_twice() {
    let mut record = 1;
    loop {
        let (died, deploys, restarts, reply) = killed(0, record).await;
        assert_eq!(deploys, 1, "record {record}");
        assert!(restarts <= 1, "record {record}");
        assert!(reply.is_object(), "record {record}");
        if !died {
            break;
        }
        record += 1;
    }
    assert!(record > 10, "deploy and restart wrote more than ten records: {record}");
}

#[tokio::test]
async fn a_call_whose_fate_is_unknown_is_never_repeated_blindly() {
    let world = World::new();
    let house = world.house(None).await;
    let setup = Script::new(vec![deploy(), Line::Say("done")]);
    assert_eq!(run(&house, &setup).await, TaskEnd::Succeeded("done".into()));
    // The intent of a call that takes no key is on record, its effect is not known.
    let mut turns = house.store.turns(&task().id).await.unwrap();
    let mut last = turns.pop().unwrap();
    last.calls.push(crate::model::task::TurnCall {
        id: "c".into(),
        tool: "cancel".into(),
        input: json!({"operation_id": "op-1"}),
        reply: None,
    });
    house.store.save_turn(&task().id, &last).await.unwrap();
    house.store.audit_intent(&intent("call-01-2-1"), &[]).await.unwrap();
    house.store.audit_close_orphans(&[], Utc::now()).await.unwrap();
    let script = Script::new(vec![Line::Never, Line::Never, Line::Say("I looked.")]);
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("I looked.".into()));
    assert_eq!(result(&script.asked()[0], 1)["state"], "unknown");
    assert_eq!(house.store.operations(None, 9).await.unwrap().len(), 1, "nothing was made again");
}

fn intent(call: &str) -> crate::store::audit::Intent {
    let sample = crate::store::audit::Intent::sample(call, "keeper", Utc::now());
    crate::store::audit::Intent { door: "task".into(), tool: "cancel".into(), ..sample }
}

#[tokio::test]
async fn a_question_to_a_person_whose_answer_was_lost_is_found_again() {
    let world = World::new();
    let house = world.house(None).await;
    let cancel =
        crate::model::task::TurnCall { id: "c".into(), tool: "cancel".into(), input: json!({"operation_id": "op-1"}), reply: None };
    let turn = crate::model::task::Turn {
        number: 1,
        at: Utc::now(),
        text: String::new(),
        cut: false,
        refused: false,
        calls: vec![cancel],
        tokens_in: 0,
        tokens_cached: 0,
        tokens_out: 0,
        micro_usd: 0,
    };
    let free = crate::store::ledger::Entry { id: 0, usage: Usage::default(), micro_usd: 0, millis: 0 };
    house.store.begin_turn(&task().id, &turn, free).await.unwrap();
    let asked = intent("call-01-1-1");
    house.store.audit_intent(&asked, &[]).await.unwrap();
    let outcome = crate::store::audit::Outcome {
        call: asked.call.clone(),
        outcome: "pending_approval".into(),
        code: None,
        verdict: Default::default(),
        findings: vec![],
        detail: json!({"state": "pending_approval", "approval": {"approval_id": "ap-void"}}),
        duration_ms: 1,
        at: Utc::now(),
    };
    house.store.audit_outcome(&outcome, &[]).await.unwrap();
    let script = Script::new(vec![Line::Never, Line::Say("It is gone.")]);
    assert_eq!(run(&house, &script).await, TaskEnd::Succeeded("It is gone.".into()));
    let reply = result(&script.asked()[0], 0);
    assert_eq!((&reply["state"], &reply["decided"]["state"]), (&json!("decided"), &json!("gone")), "{reply}");
}

#[tokio::test]
async fn a_refusal_stays_a_failure_when_the_run_is_killed_right_after_it() {
    let world = World::new();
    let house = world.house(None).await;
    let script = Script::new(vec![Line::Refuse("I will not do that.")]);
    let refused = |end: &TaskEnd| matches!(end, TaskEnd::Failed(why) if why.contains("refused") && why.contains("I will not do that."));
    assert!(refused(&run(&house, &script).await));
    // The turn is on disk and the task's end is not: the next run reads the one and finds the other.
    let again = run(&house, &Script::new(vec![Line::Never, Line::Never])).await;
    assert!(refused(&again), "{again:?}");
}
