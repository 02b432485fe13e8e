//! The supervisor's half against a guest that is honest, clumsy or lies.

use super::*;
use crate::gate::Rulebook;
use crate::model::spend::Usage;
use crate::model::task::{TaskWork, TurnCall};
use crate::runner::journal::Word;
use crate::supervisor::tasks::tests::{Bench, agent};
use crate::tools;
use futures_util::FutureExt;
use serde::de::DeserializeOwned;

const MODELS: &str = "[models]\ndefault = \"m\"\n[models.m]\nprovider = \"anthropic\"\nmodel = \"m-1\"\nkey_env = \"KEY\"\nmax_tokens = 1000\nprice = {input = 3.0, output = 15.0}\n";

fn name(text: &str) -> AgentName {
    AgentName::new(text).expect("valid")
}

async fn bench(limits: &str) -> Bench {
    bench_of(limits, |_| {}).await
}

async fn bench_of(limits: &str, set: impl FnOnce(&mut crate::model::config::Settings)) -> Bench {
    let b = Bench::with(|s| {
        set(s);
        s.models = crate::config::parse(MODELS, "t").expect("valid").models;
        s.tasks.outside = vec![name("a0")];
    })
    .await;
    let own = agent("a0").replace("---\nx\n", &format!("  limits: {{{limits}}}\n---\nx\n"));
    let files = vec![("a0.md".to_owned(), own), ("a1.md".to_owned(), agent("a1"))];
    b.house.rulebook.store(Arc::new(Rulebook::build(files, "", &tools::gate_facts()).unwrap_or_else(|p| panic!("{p:#?}"))));
    b
}

fn guest(agent: &str) -> Guest {
    Guest { agent: name(agent), door: Door::McpHttp(None) }
}

async fn ask<T: DeserializeOwned>(b: &Bench, ask: Ask) -> Result<T, CallError> {
    answer(&b.house, &guest("a0"), ask).await.map(|v| serde_json::from_value(v).expect("what is answered"))
}

async fn hello(b: &Bench) -> u64 {
    ask::<Welcome>(b, Ask::Hello { agent: name("a0"), version: VERSION }).await.expect("welcome").claim
}

async fn fetched(b: &Bench, claim: u64) -> Lent {
    ask::<Option<Lent>>(b, Ask::Fetch { claim, wait_s: 5 }).await.expect("an answer").expect("a task")
}

/// A guest with a task.
struct Has<'a> {
    b: &'a Bench,
    claim: u64,
    task: TaskId,
}

impl<'a> Has<'a> {
    async fn of(b: &'a Bench) -> Self {
        let given = b.give("a0", TaskWork::Prompt("Look.".into()), Value::Null, None).await;
        let claim = hello(b).await;
        let lent = fetched(b, claim).await;
        assert_eq!(lent.task.id, given.id);
        Self { b, claim, task: lent.task.id }
    }

    async fn about<T: DeserializeOwned>(&self, about: About) -> Result<T, CallError> {
        ask(self.b, Ask::On { claim: self.claim, task: self.task.clone(), about }).await
    }

    async fn question(&self) -> i64 {
        match self.about::<Word>(About::Question { input: 5_000 }).await.expect("an answer") {
            Word::Ask(id) => id,
            over => panic!("{over:?}"),
        }
    }

    async fn begin(&self, turn: Turn, id: i64, usage: Usage) -> Result<Turn, CallError> {
        self.about(About::Begin { turn, counted: Counted { id, usage, millis: 5 } }).await
    }
}

fn turn(number: u32) -> Turn {
    let call = TurnCall { id: format!("c{number}"), tool: "status".into(), input: json!({}), reply: Some(json!("forged")) };
    let at = DateTime::UNIX_EPOCH;
    Turn {
        number,
        at,
        text: "I look.".into(),
        cut: false,
        refused: false,
        calls: vec![call],
        tokens_in: 9,
        tokens_cached: 9,
        tokens_out: 9,
        micro_usd: 9,
    }
}

const HONEST: Usage = Usage { input: 4_000, cached: 0, cache_written: 0, output: 100 };

#[tokio::test]
async fn only_an_agent_that_is_lent_out_is_welcome_and_is_told_why_not() {
    let b = bench("turns: 9").await;
    let welcome: Welcome = ask(&b, Ask::Hello { agent: name("a0"), version: VERSION }).await.expect("welcome");
    assert_eq!((welcome.model.model.as_str(), welcome.model.key_env.as_deref()), ("m-1", Some("KEY")));
    let other = ask::<Welcome>(&b, Ask::Hello { agent: name("a1"), version: VERSION }).await.expect_err("another's token");
    assert!(other.code == ErrorCode::Denied && other.message.contains("of the agent a0, not of a1"), "{other}");
    let inside = answer(&b.house, &guest("a1"), Ask::Hello { agent: name("a1"), version: VERSION }).await.expect_err("not lent");
    assert!(inside.code == ErrorCode::Denied && inside.hint.contains("`outside` under [tasks]"), "{inside:?}");
    ask::<Welcome>(&b, Ask::Hello { agent: name("a0"), version: VERSION + 1 }).await.expect_err("another version");
    let b = Bench::with(|s| s.tasks.outside = vec![name("a0")]).await;
    let poor = ask::<Welcome>(&b, Ask::Hello { agent: name("a0"), version: VERSION }).await.expect_err("no model");
    assert!(poor.message.contains("the house has no default"), "{poor}");
}

#[tokio::test]
async fn turns_are_written_once_in_order_and_as_the_supervisor_counts_them() {
    let b = bench("turns: 2").await;
    let has = Has::of(&b).await;
    let id = has.question().await;
    assert!(has.begin(turn(2), id, HONEST).await.is_err(), "the first is 1");
    assert!(has.begin(turn(1), id + 1, HONEST).await.is_err(), "no such question");
    assert!(has.begin(turn(1), 0, HONEST).await.is_err(), "nothing is free");
    let huge = Usage { output: u64::MAX / 2, ..HONEST };
    assert!(has.begin(turn(1), id, huge).await.is_err(), "no model says so much");
    let first = has.begin(turn(1), id, HONEST).await.expect("written");
    // 4000 * 3 + 100 * 15 millionths; neither price, time nor replies are the guest's to say.
    assert_eq!((first.micro_usd, first.tokens_in, &first.calls[0].reply), (13_500, 4_000, &None));
    assert!(first.at > DateTime::UNIX_EPOCH);
    assert_eq!(has.begin(turn(1), id, HONEST).await.expect("its answer was lost"), first);
    let other = Turn { text: "I do something else.".into(), ..turn(1) };
    assert_eq!(has.begin(other, id, HONEST).await.expect_err("written already").code, ErrorCode::Conflict);
    has.about::<()>(About::Answered { turn: 1, index: 0, reply: json!({"stacks": []}) }).await.expect("kept");
    assert!(has.about::<()>(About::Answered { turn: 1, index: 1, reply: json!({}) }).await.is_err());
    let turns: Vec<Turn> = has.about(About::Turns).await.expect("read");
    assert_eq!(turns[0].calls[0].reply, Some(json!({"stacks": []})));
    let id = has.question().await;
    has.begin(turn(2), id, HONEST).await.expect("written");
    let id = has.question().await;
    assert!(has.begin(turn(3), id, HONEST).await.is_err(), "limits.turns is 2");
    let spent = b.house.store.spent(None).await.expect("read");
    assert_eq!((spent[0].answers, spent[0].agent.as_str()), (2, "a0"));
}

#[tokio::test]
async fn the_cap_holds_whatever_is_reported() {
    let b = bench("usd_per_month: 0.08").await;
    let has = Has::of(&b).await;
    // An answer of 1000 tokens at most: 0.015 dollars and what is read.
    let id = has.question().await;
    let lie = Usage { input: 1, output: 0, ..HONEST };
    let written = has.begin(turn(1), id, lie).await.expect("written");
    // Read at the dearest, written to the cache, and with the longest answer.
    assert_eq!(written.micro_usd, 5_000 * 375 / 100 + 1_000 * 15, "counted at its worst");
    let failed = has.question().await;
    has.about::<()>(About::Unanswered { id: failed, may_cost: false }).await.expect("entered");
    has.about::<()>(About::Unanswered { id: failed, may_cost: false }).await.expect("entered before");
    let cap = has.about::<Word>(About::Question { input: 9_000 }).await.expect("an answer");
    assert!(matches!(cap, Word::OverCap { spent: 33_750, cap: 80_000, .. }), "{cap:?}");
    assert!(has.begin(turn(2), failed, HONEST).await.is_err(), "an answer without a question");
    let small = has.about::<Word>(About::Question { input: 0 }).await.expect("an answer");
    let Word::Ask(id) = small else { panic!("{small:?}") };
    let worst = b.house.store.ledger_open(&has.task, id).await.expect("read").expect("open");
    assert!(worst > 15_000, "what every question holds is counted: {worst}");
    // Another agent's question is not this one's to settle.
    let stranger = TaskId::new("task-other").expect("valid");
    assert_eq!(b.house.store.ledger_open(&stranger, id).await.expect("read"), None);
}

#[tokio::test]
async fn a_call_is_named_once_and_as_it_is_written_down() {
    let b = bench("turns: 9").await;
    let has = Has::of(&b).await;
    let id = has.question().await;
    let note = json!({"key": "seen", "value": "well"});
    let mut first = turn(1);
    (first.calls[0].tool, first.calls[0].input) = ("memory_write".into(), note.clone());
    has.begin(first, id, HONEST).await.expect("written");
    let own = work::call_id(&has.task, 1, 0).expect("valid");
    let as_named = |call: &CallId| Named { claim: has.claim, task: has.task.clone(), call: call.clone(), repeated: false };
    let (no, yes) = (json!({"key": "seen", "value": "ill"}), note);
    for (call, tool, input) in [
        (work::call_id(&has.task, 2, 0).expect("valid"), "memory_write", &yes),
        (CallId::new("call-of-somebody").expect("valid"), "memory_write", &yes),
        (own.clone(), "stop", &yes),
        (own.clone(), "memory_write", &no),
    ] {
        named(&b.house, &guest("a0"), as_named(&call), tool, input).await.expect_err("not written down");
    }
    assert_eq!(named(&b.house, &guest("a0"), as_named(&own), "memory_write", &yes).await.expect("it is").id, Some(own.clone()));
    let who = Principal { agent: name("a0"), door: Door::McpHttp(None), client: None, read_only: false, on_behalf: vec![] };
    crate::call::dispatch::dispatch_as(&b.house, &who, own.clone(), "memory_write", yes.clone()).await.expect("called");
    let again = named(&b.house, &guest("a0"), as_named(&own), "memory_write", &yes).await.expect_err("begun before");
    assert_eq!(again.code, ErrorCode::Conflict);
    // Made again it has no name, and is a call of the task all the same.
    let repeated = |call: &CallId| Named { repeated: true, ..as_named(call) };
    let known = named(&b.house, &guest("a0"), repeated(&own), "memory_write", &yes).await.expect("known");
    assert_eq!((known.id, &known.on_behalf), (None, &b.house.store.task(&has.task).await.expect("read").expect("there").delegated_by));
    named(&b.house, &guest("a0"), repeated(&own), "memory_write", &no).await.expect_err("another call");
    let fate: crate::runner::hands::Fate = has.about(About::Fate { call: own }).await.expect("known");
    assert!(matches!(fate, crate::runner::hands::Fate::Ended(_)), "{fate:?}");
    let foreign = CallId::new("call-of-somebody").expect("valid");
    assert!(has.about::<Value>(About::Fate { call: foreign }).await.is_err());
}

#[tokio::test]
async fn the_newest_process_of_an_agent_has_its_task_and_an_end_is_told_once() {
    let b = bench("turns: 9").await;
    let old = Has::of(&b).await;
    let id = old.question().await;
    old.begin(turn(1), id, HONEST).await.expect("written");
    let claim = hello(&b).await;
    let replaced = old.about::<Kept>(About::Keep).await.expect_err("replaced");
    assert!(replaced.code == ErrorCode::Conflict && replaced.message.contains("another process"), "{replaced}");
    let lent = fetched(&b, claim).await;
    assert_eq!(lent.task.id, old.task, "it goes on");
    let new = Has { b: &b, claim, task: lent.task.id };
    assert_eq!(new.about::<Vec<Turn>>(About::Turns).await.expect("read").len(), 1);
    assert_eq!(new.about::<Kept>(About::Keep).await.expect("kept"), Kept::Yours);
    assert_eq!(new.about::<Option<TaskState>>(About::Back).await.expect("back"), Some(TaskState::Queued));
    assert!(new.about::<Kept>(About::Keep).await.is_err(), "it is nobody's");
    let lent = fetched(&b, claim).await;
    assert_eq!((lent.task.id == old.task, lent.task.attempt), (true, 1), "that was no try");
    assert!(new.about::<Option<TaskState>>(About::End { end: TaskEnd::Retry("no engine".into()) }).await.is_ok());
    let task = b.house.store.task(&old.task).await.expect("read").expect("there");
    assert_eq!((task.state, task.result.as_deref()), (TaskState::Queued, Some("no engine")));
    // A number that was never given opens nothing.
    let ahead = ask::<Option<Lent>>(&b, Ask::Fetch { claim: u64::MAX, wait_s: 0 }).await.expect_err("no such process");
    assert_eq!(ahead.code, ErrorCode::Conflict);
    assert_eq!(ask::<Option<Lent>>(&b, Ask::Fetch { claim, wait_s: 0 }).await.expect("nothing is due"), None);
}

#[tokio::test]
async fn a_task_that_is_cancelled_is_told_to_who_has_it_and_a_skill_that_is_gone_fails_by_itself() {
    let b = bench("turns: 9").await;
    let has = Has::of(&b).await;
    tasks::cancel(&b.house, &has.task, Utc::now()).await.expect("asked");
    assert_eq!(has.about::<Kept>(About::Keep).await.expect("told"), Kept::Cancel);
    // After a restart here, too, what it calls is done for who gave the task, until it is over.
    let given = b.house.store.task(&has.task).await.expect("read").expect("there");
    b.house.desk.returned(&given);
    assert!(b.house.desk.lent_to(&name("a0")).is_none());
    tasks::restore(&b.house, Utc::now()).await.expect("restored");
    assert_eq!(b.house.desk.lent_to(&name("a0")), Some(has.task.clone()));
    assert_eq!(has.about::<Option<TaskState>>(About::End { end: TaskEnd::Cancelled }).await.expect("ended"), Some(TaskState::Cancelled));
    // A skill without steps, gone before its task is fetched.
    let skill = "---\nname: gone\ntitle: G\ndescription: d\n---\nGo.\n";
    let parsed = crate::gate::prompt::parse_prompt("gone.md", skill).unwrap_or_else(|p| panic!("{p:#?}"));
    b.house.prompts.store(Arc::new(vec![parsed]));
    let given = b.give("a0", TaskWork::Skill("gone".into()), Value::Null, None).await;
    b.house.prompts.store(Arc::default());
    assert_eq!(ask::<Option<Lent>>(&b, Ask::Fetch { claim: has.claim, wait_s: 0 }).await.expect("an answer"), None);
    let failed = b.house.store.task(&given.id).await.expect("read").expect("there");
    assert_eq!(failed.state, TaskState::Failed);
    assert!(failed.result.unwrap_or_default().contains("there is no skill"));
}

#[tokio::test]
async fn who_waits_for_a_task_gets_it_when_it_is_given() {
    let b = bench("turns: 9").await;
    let claim = hello(&b).await;
    let bell = b.house.desk.given(&name("a0"));
    let rung = bell.notified();
    tokio::pin!(rung);
    rung.as_mut().enable();
    let (lent, given) = tokio::join!(fetched(&b, claim), async {
        tokio::task::yield_now().await;
        b.give("a0", TaskWork::Prompt("Look.".into()), Value::Null, None).await
    });
    assert_eq!(lent.task.id, given.id);
    assert!(rung.now_or_never().is_some(), "who waits is woken");
    let rows = b.house.store.audit_after(0, None, 50).await.expect("rows");
    assert!(
        rows.iter().any(|r| r.tool == "task_lent" && r.agent == "a0" && r.detail["task"] == json!(given.id)),
        "who had it is on record"
    );
}

#[tokio::test]
async fn a_task_of_a_push_comes_with_the_files_that_were_pushed_and_keeps_them() {
    use crate::call::hooks::{self, Request};
    use crate::model::config::{GitFollow, StackSettingsEntry};
    use crate::model::trigger::{HookKind, Trigger};
    let file = |n: u32| format!("services: {{web: {{image: \"hello:{n}\"}}}}\n");
    let lab = crate::executor::checkout::tests::Lab::new(&file(1));
    let git = Some(GitFollow { branch: "main".into(), remote: "origin".into() });
    let entry = StackSettingsEntry { dir: lab.here.clone(), git, ..Default::default() };
    let shop = crate::model::ids::StackName::new("shop").expect("valid");
    let b = bench_of("turns: 9", |s| drop(s.stacks.insert(shop, entry))).await;
    let trigger: Trigger = serde_json::from_value(json!({"name": "push", "agent": "a0", "prompt": "Deploy.", "stack": "shop",
        "on": {"webhook": "github", "secret_file": "/k", "events": ["push"]}}))
    .expect("valid");
    let headers = [("x-github-event".to_owned(), "push".to_owned())].into();
    let body = json!({"ref": "refs/heads/main"}).to_string();
    let request = Request { headers: &headers, body: body.as_bytes() };
    hooks::take(&b.house, &trigger, HookKind::Github, &request, Utc::now()).await.expect("taken");
    lab.push(&file(2));
    let lies = || std::fs::read_to_string(lab.here.join("compose.yaml")).expect("there");
    assert_eq!(lies(), file(1));
    let claim = hello(&b).await;
    let lent = fetched(&b, claim).await;
    assert_eq!(lies(), file(2));
    // It goes on after its first answer, under what was planned by then: a newer commit is the next push's.
    let has = Has { b: &b, claim, task: lent.task.id.clone() };
    let id = has.question().await;
    has.begin(turn(1), id, HONEST).await.expect("written");
    lab.push(&file(3));
    assert_eq!(fetched(&b, claim).await.task.id, lent.task.id, "it came back");
    assert_eq!(lies(), file(2));
}
