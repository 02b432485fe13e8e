//! A supervisor killed in the middle of a task that a model does, at several moments, on a real engine: the next one goes on where it was. No deploy happens
//! twice, no answer is paid twice, and the task ends. (Every moment of the loop itself is covered on the in-memory engine, in `runner::tests`.)

use crate::matrix::Doomed;
use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::llm::{self, Provider, Say, answer};
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(90);
/// Tokens of every answer: read, cached, written to the cache, written.
const USAGE: llm::Counted = (1_000, 0, 0, 40);
/// What one costs at 3 and 15 US dollars a million, in millionths.
const EACH: u64 = 1_000 * 3 + 40 * 15;

const MAKER: &str = "---
name: maker
description: Deploys what it is told to.
tools: deploy, operation, history, status, task_submit, tasks
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: all, effect: allow, tools: [deploy, task_submit], because: \"it deploys\"}
  limits: {usd_per_month: 20}
---
Deploy.
";

/// When the supervisor is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The turn is written down; its deploy waits for the call before it.
    BeforeTheCall,
    /// A container of the deploy is there.
    DuringTheCall,
    /// The n-th record of the deploy's journal is written.
    AtRecord(u64),
    /// The deploy was answered, and the model is being asked what next.
    DuringTheAnswer,
}

/// What the state says while a supervisor uses it, or after it was killed.
fn count(home: &Home, sql: &str, what: &str) -> i64 {
    let path = home.path("state/state.db");
    let open = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a database");
    open.busy_timeout(Duration::from_secs(5)).expect("set");
    open.query_row(sql, [what], |r| r.get(0)).expect("a number")
}

fn compose(image: &str, fail: &str) -> String {
    format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  web:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
         environment: {{ROLE: store, FAIL: {fail}}}\n    tmpfs: [/data]\n    x-dockwarden: {{start_timeout_s: 50}}\n    \
         healthcheck: {{test: [CMD, /dockwarden, demo-app, check, 'http://127.0.0.1:8080/health'], interval: 2s}}\n"
    )
}

/// Whether the last deploy the model was told of serves.
fn serves(asked: &llm::Asked) -> bool {
    let messages = asked.body["messages"].as_array().expect("messages");
    let results = messages.iter().rev().take_while(|m| m["role"] == "tool").filter_map(|m| m["content"].as_str());
    results
        .filter_map(|t| serde_json::from_str::<Value>(t).ok())
        .any(|v| v["verb"] == "deploy" && ["monitoring", "done"].map(Value::from).contains(&v["state"]))
}

async fn killed_at(moment: Moment, image: &str) {
    let home = Home::new();
    let (stack, slow) = (home.stack("killed"), home.stack("slow"));
    home.unlimited("stack-keeper");
    home.configure("agents/maker.md", MAKER);
    // Deploys the model asked for: more than one only when it was told that one came to nothing.
    let (wanted, killed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let waits_for = Arc::new(std::sync::Mutex::new(String::new()));
    let input = json!({"stack": stack, "compose": compose(image, "none")});
    let (counted, gone, first) = (wanted.clone(), killed.clone(), waits_for.clone());
    let provider = Provider::start(move |n, asked| {
        if n == 0 || !serves(asked) {
            let deploy = ("deploy", input.clone());
            assert!(counted.fetch_add(1, Ordering::SeqCst) < 4, "it never serves: {}", asked.body["messages"]);
            let other = first.lock().expect("not poisoned").clone();
            return match (n, moment) {
                (0, Moment::BeforeTheCall) => {
                    answer("First I wait for the other one.", &[("operation", json!({"operation_id": other, "wait_s": 50})), deploy], USAGE)
                }
                _ => answer("I deploy it.", &[deploy], USAGE),
            };
        }
        // The kill comes from outside and may come late: no further than into this answer.
        if matches!(moment, Moment::DuringTheCall | Moment::DuringTheAnswer) && !gone.load(Ordering::SeqCst) {
            return Say::Stalls("It serv".into());
        }
        answer("It serves.", &[], USAGE)
    })
    .await;
    home.configure(
        "dockwarden.toml",
        &format!(
            "[models]\ndefault = \"m\"\n[models.m]\nprovider = \"openai\"\nmodel = \"x\"\nbase_url = \"{}\"\nprice = {{input = 3.0, output = 15.0}}\n",
            provider.url
        ),
    );

    let submit = async |client: &Client| {
        let given = client.ok("task_submit", json!({"agent": "maker", "prompt": "Deploy the shop."})).await;
        given["task_id"].as_str().expect("an id").to_owned()
    };
    let task = if let Moment::AtRecord(n) = moment {
        let doomed = Doomed::start(&home, n).await;
        let task = submit(&Client::stdio(&home, "maker").await).await;
        let (records, aborted) = doomed.ended(WITHIN).await;
        assert!(aborted && records == n, "{moment:?}: {records} records");
        task
    } else {
        let serve = Serve::start(&home).await;
        if moment == Moment::BeforeTheCall {
            let keeper = Client::stdio(&home, "stack-keeper").await;
            let begun = keeper.ok("deploy", json!({"stack": slow, "compose": compose(image, "health"), "wait": false})).await;
            *waits_for.lock().expect("not poisoned") = begun["operation_id"].as_str().expect("an id").to_owned();
        }
        let task = submit(&Client::stdio(&home, "maker").await).await;
        eventually(&format!("{moment:?}"), WITHIN, || async {
            match moment {
                Moment::BeforeTheCall => count(&home, "SELECT count(*) FROM turn WHERE task = ?1", &task) == 1,
                Moment::DuringTheCall => !docker(&["ps", "-q", "--filter", &format!("name=^/{stack}-web")]).is_empty(),
                Moment::DuringTheAnswer => provider.asked().len() == 2,
                Moment::AtRecord(_) => unreachable!("above"),
            }
            .then_some(())
        })
        .await;
        serve.kill9().await;
        killed.store(true, Ordering::SeqCst);
        task
    };
    let context = format!("{moment:?}");
    // Questions whose answer is no turn.
    let lost = provider.asked().len() as u64 - 1;
    assert!(
        if moment == Moment::DuringTheAnswer { lost == 1 } else { lost <= u64::from(moment == Moment::DuringTheCall) },
        "{context}: {lost}"
    );
    let of_stack = "SELECT count(*) FROM operation WHERE verb = 'deploy' AND stack = ?1";
    assert_eq!(count(&home, "SELECT count(*) FROM turn WHERE task = ?1", &task), 1, "{context}: the turn is on disk");
    let begun = i64::from(moment != Moment::BeforeTheCall);
    assert_eq!(count(&home, of_stack, &stack), begun, "{context}: the deploy has begun, or it has not");

    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "maker").await;
    let done = eventually("the task ends", WITHIN, || async {
        let seen = client.ok("tasks", json!({"task_id": task, "wait_s": 5})).await;
        let state = seen["tasks"][0]["state"].as_str().unwrap_or_default().to_owned();
        ["succeeded", "failed", "cancelled"].contains(&state.as_str()).then_some(seen)
    })
    .await;
    assert_eq!(done["tasks"][0]["state"], json!("succeeded"), "{context}: {done:#}");
    assert!(done.to_string().contains("It serves."), "{context}: {done:#}");

    // Each deploy the model asked for is one operation, however often the call was made.
    assert_eq!(count(&home, of_stack, &stack), wanted.load(Ordering::SeqCst) as i64, "{context}");
    let keys = "SELECT count(DISTINCT idempotency_key) FROM operation WHERE verb = 'deploy' AND stack = ?1";
    assert_eq!(count(&home, keys, &stack), wanted.load(Ordering::SeqCst) as i64, "{context}");
    if moment != Moment::BeforeTheCall {
        // What had begun was taken over; only one that came to nothing is asked for again.
        assert!(wanted.load(Ordering::SeqCst) <= 2, "{context}");
    }
    let label = format!("label=dockwarden.stack={stack}");
    let listed = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}} {{.State}}"]);
    let running: Vec<&str> = listed.lines().filter(|l| !l.contains("-claim-")).collect();
    assert_eq!(running, [format!("{stack}-web-1 running")], "{context}");

    // Every answer that came is paid once; the one that never came counts at the most it can have cost.
    let asked = provider.asked().len() as u64;
    let (code, out, err) = home.run(&["agents", "cost", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let told: Value = serde_json::from_str(&out).expect("json");
    let spent = &told["spent"][0];
    assert_eq!((&spent["answers"], &spent["lost"]), (&json!(asked - lost), &json!(lost)), "{context}: {told:#}");
    let paid = spent["micro_usd"].as_u64().expect("money");
    if lost == 0 {
        assert_eq!(paid, asked * EACH, "{context}: {told:#}");
    } else {
        assert!(paid > (asked - lost) * EACH, "{context}: {told:#}");
    }
    assert_eq!(count(&home, "SELECT count(*) FROM ledger_open WHERE agent = ?1", "maker"), 0, "{context}");
    let turns = count(&home, "SELECT count(*) FROM turn WHERE task = ?1", &task);
    assert_eq!(turns as u64, asked - lost, "{context}: a turn an answer");
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{context}: {out}{err}");
    serve.stop().await;
}

#[tokio::test]
async fn a_supervisor_killed_before_the_call_of_a_turn_makes_it_once_afterwards() {
    let slot = engine().await;
    killed_at(Moment::BeforeTheCall, &slot.image).await;
}

#[tokio::test]
async fn a_supervisor_killed_during_a_deploy_of_a_task_never_deploys_twice() {
    let slot = engine().await;
    killed_at(Moment::DuringTheCall, &slot.image).await;
    // The first record of the journal, and one after containers were made.
    killed_at(Moment::AtRecord(1), &slot.image).await;
    killed_at(Moment::AtRecord(6), &slot.image).await;
}

#[tokio::test]
async fn an_answer_that_broke_off_with_the_supervisor_is_asked_for_again_and_counted_as_lost() {
    let slot = engine().await;
    killed_at(Moment::DuringTheAnswer, &slot.image).await;
}
