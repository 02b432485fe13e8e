//! Agents that work by themselves: both wire formats against a provider that says what a test wrote, and a whole incident on a real engine, noticed by
//! the loop, diagnosed and mended by a model's calls.

use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::llm::{self, Provider as Scripted, Say, answer};
use dockwarden::call::House;
use dockwarden::config::Places;
use dockwarden::executor::{Executor, FactsOf, Options};
use dockwarden::model::config::{Config, ModelProvider};
use dockwarden::model::ids::{AgentName, StackName, TaskId};
use dockwarden::model::spend::{Usage, dollars};
use dockwarden::model::task::{Task, TaskEnd, TaskState, TaskWork, Turn};
use dockwarden::runner::hands::Offer;
use dockwarden::runner::models::Key;
use dockwarden::runner::provider::{Answered, Asked, EndReason, Message, Provider, ProviderError, Request, Spoken, listen};
use dockwarden::runner::wire::Wire;
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const KEY: &str = "sk-test-0123456789abcdef";
const BOTH: [ModelProvider; 2] = [ModelProvider::Anthropic, ModelProvider::Openai];

fn request() -> Request {
    let schema = json!({"type": "object", "properties": {"stack": {"type": "string"}}});
    let offer = |name: &str| Offer { name: name.into(), description: "d".into(), schema: schema.clone(), mutates: false };
    let asked = Asked { id: "old-1".into(), tool: "status".into(), input: json!({}) };
    Request {
        system: "You keep stacks.".into(),
        messages: vec![
            Message::User("Look.".into()),
            Message::Model { text: "I look.".into(), calls: vec![asked] },
            Message::Results(vec![Answered { id: "old-1".into(), tool: "status".into(), text: "{\"stacks\":[]}".into() }]),
        ],
        tools: vec![offer("logs"), offer("status")],
        max_tokens: 321,
    }
}

async fn ask_at(kind: ModelProvider, url: &str) -> Result<Spoken, ProviderError> {
    let wire = Wire::new(kind, url, "some-model", Some(Key::new(KEY).unwrap()), Duration::from_millis(400)).unwrap();
    listen(wire.ask(request()), Duration::from_secs(10)).await
}

async fn ask(kind: ModelProvider, say: Say) -> (Result<Spoken, ProviderError>, llm::Asked) {
    let provider = Scripted::saying(vec![say]).await;
    let result = ask_at(kind, &provider.url).await;
    (result, provider.asked().remove(0))
}

#[tokio::test]
async fn both_formats_carry_words_parallel_calls_in_pieces_and_usage() {
    for kind in BOTH {
        let written = if kind == ModelProvider::Anthropic { 30 } else { 0 };
        let calls = [("logs", json!({"stack": "shop", "grep": "f\u{fc}nf \"quotes\""})), ("status", json!({}))];
        let (spoken, asked) = ask(kind, answer("Ich sehe n\u{e4}her hin.", &calls, (100, 40, written, 9))).await;
        let spoken = spoken.unwrap();
        assert_eq!((spoken.text.as_str(), spoken.end), ("Ich sehe n\u{e4}her hin.", EndReason::Done), "{kind:?}");
        let got: Vec<(&str, &Value)> = spoken.calls.iter().map(|c| (c.tool.as_str(), &c.input)).collect();
        assert_eq!(got, [("logs", &calls[0].1), ("status", &calls[1].1)], "{kind:?}");
        assert!(spoken.calls.iter().all(|c| !c.id.is_empty()) && spoken.calls[0].id != spoken.calls[1].id);
        assert_eq!(spoken.usage, Some(Usage { input: 140 + written, cached: 40, cache_written: written, output: 9 }), "{kind:?}");
        let (body, head) = (&asked.body, asked.head.to_ascii_lowercase());
        assert_eq!((&body["model"], &body["max_tokens"], &body["stream"]), (&json!("some-model"), &json!(321), &json!(true)));
        assert_eq!(body["tools"].as_array().unwrap().len(), 2);
        let text = body.to_string();
        for part in ["You keep stacks.", "I look.", "old-1", "{\\\"stacks\\\":[]}"] {
            assert!(text.contains(part), "{kind:?}: {part} is not in {text}");
        }
        match kind {
            ModelProvider::Anthropic => {
                assert!(asked.path == "/v1/messages" && head.contains(&format!("x-api-key: {KEY}")), "{head}");
                assert_eq!(body["tools"][1]["cache_control"]["type"], "ephemeral", "what stays the same is read from the cache");
            }
            ModelProvider::Openai => {
                assert!(asked.path == "/v1/chat/completions" && head.contains(&format!("authorization: bearer {KEY}")), "{head}");
                assert_eq!(body["stream_options"]["include_usage"], true);
            }
        }
    }
}

#[tokio::test]
async fn arguments_that_are_no_json_and_answers_that_were_cut_are_told() {
    for kind in BOTH {
        let (spoken, _) = ask(kind, answer("", &[("logs", json!("{\"stack\": "))], (1, 0, 0, 1))).await;
        assert_eq!(spoken.unwrap().calls[0].input, json!("{\"stack\": "), "{kind:?}");
        let (spoken, _) = ask(kind, Say::Long { text: "I will now".into(), usage: (1, 0, 0, 1) }).await;
        assert_eq!(spoken.unwrap().end, EndReason::MaxTokens, "{kind:?}");
    }
}

#[tokio::test]
async fn every_way_to_fail_has_its_name_and_no_text_holds_the_key() {
    use ProviderError as E;
    let body = |message: &str| json!({"type": "error", "error": {"type": "x", "message": message}}).to_string();
    type Check = fn(&E) -> bool;
    let cases: [(Say, Check); 18] = [
        (Say::Refuse(401, None, body(&format!("Incorrect API key provided: {KEY}."))), |e| matches!(e, E::Unauthorized(_))),
        (Say::Refuse(429, Some("7"), body("slow down")), |e| matches!(e, E::RateLimited { retry_after: Some(d), .. } if d.as_secs() == 7)),
        (Say::Refuse(429, Some("-1"), body("slow down")), |e| matches!(e, E::RateLimited { retry_after: None, .. })),
        (Say::Refuse(529, None, body("overloaded")), |e| matches!(e, E::Overloaded { .. })),
        (Say::Refuse(500, None, "<html>oops</html>".into()), |e| matches!(e, E::Overloaded { .. })),
        // Who stands between lost the answer: the provider may have read the question, and charges for it.
        (Say::Refuse(502, None, "<html>bad gateway</html>".into()), |e| matches!(e, E::Timeout(_)) && e.may_cost()),
        (Say::Refuse(504, None, String::new()), |e| matches!(e, E::Timeout(_)) && e.may_cost()),
        (Say::Refuse(524, None, String::new()), |e| matches!(e, E::Timeout(_)) && e.may_cost()),
        (Say::HangsUp, |e| matches!(e, E::Broken(_)) && e.may_cost()),
        (Say::Refuse(400, None, body("prompt is too long: 9 tokens > 8")), |e| matches!(e, E::ContextTooLong(_))),
        (Say::Refuse(400, None, body("This model's maximum context length is 8 tokens")), |e| matches!(e, E::ContextTooLong(_))),
        (Say::Refuse(400, None, body("max_tokens: must be a number")), |e| matches!(e, E::BadRequest(_))),
        (Say::Refuse(404, None, body("no such model")), |e| matches!(e, E::BadRequest(_))),
        (Say::BreaksOff("I will".into()), |e| matches!(e, E::Broken(_))),
        // Words were written by then: they may be charged for, whatever the failure is called.
        (Say::FailsWithin("overloaded_error"), |e| matches!(e, E::Broken(_)) && e.may_cost()),
        (Say::Garbage, |e| matches!(e, E::Broken(_))),
        (Say::Nothing, |e| matches!(e, E::Timeout(_))),
        (Say::Stalls("I will".into()), |e| matches!(e, E::Timeout(_))),
    ];
    for kind in BOTH {
        for (say, is) in &cases {
            let (result, _) = ask(kind, say.clone()).await;
            let error = result.expect_err("it failed");
            assert!(is(&error), "{kind:?} {say:?}: {error:?}");
            assert!(!error.to_string().contains("0123456789"), "{error}");
        }
        let error = ask_at(kind, "http://127.0.0.1:1/v1").await.expect_err("nobody there");
        assert!(matches!(error, E::Unreachable(_)) && !error.may_cost(), "{error:?}");
    }
}

/// A supervisor's house in this process, without doors and without its queue.
async fn house(home: &Home, toml: &str) -> Arc<House> {
    let places = Places { home: home.path("state"), config_dir: home.path("config"), memory: home.path("state/memory") };
    let (rulebook, prompts) = dockwarden::app::rules::load(&places.config_dir).expect("the shipped files load");
    let store = dockwarden::store::Store::open(&places.home, &places.memory).await.expect("a store");
    let docker = dockwarden::engine::docker::DockerEngine::connect(None).expect("an engine");
    let engine: Arc<dyn dockwarden::engine::Engine> = dockwarden::engine::adopted::Adopted::over(Arc::new(docker), store.registry());
    let late = Arc::new(OnceLock::<Weak<House>>::new());
    let lookup = late.clone();
    let facts: FactsOf = Arc::new(move |plan, service| {
        lookup.get().and_then(Weak::upgrade).map(|h| dockwarden::app::facts::of(&h, plan, service)).unwrap_or_default()
    });
    let executor = Executor::new(engine.clone(), store.clone(), facts, Options { host_ports: true, ..Options::default() });
    let settings = dockwarden::config::parse(toml, "dockwarden.toml").expect("valid");
    let Places { home, config_dir, memory } = places;
    let config = Config { settings, host_name: "box".into(), ..Config::new(home, config_dir, memory) };
    let house = Arc::new(House {
        store,
        engine,
        rulebook: arc_swap::ArcSwap::from_pointee(rulebook),
        refused_rules: arc_swap::ArcSwap::default(),
        executor,
        config,
        prompts: arc_swap::ArcSwap::from_pointee(prompts),
        calls: Default::default(),
        backups: None,
        turns: Default::default(),
        desk: Default::default(),
        taints: Default::default(),
    });
    late.get_or_init(|| Arc::downgrade(&house));
    house
}

/// What of a reply a person would want in a transcript; ids, times and texts of this run are left out.
fn told(value: &Value, stack: &str) -> Value {
    const KEPT: [&str; 13] =
        ["well", "findings", "service", "cause", "root_cause", "state", "release", "verb", "key", "incidents", "error", "code", "releases"];
    match value {
        Value::Object(map) => map.iter().filter(|(k, _)| KEPT.contains(&k.as_str())).map(|(k, v)| (k.clone(), told(v, stack))).collect(),
        Value::Array(items) => items.iter().map(|v| told(v, stack)).collect(),
        // Without a watch window both mean that it serves.
        Value::String(text) if text == "monitoring" => json!("done"),
        Value::String(text) => json!(text.replace(stack, "STACK")),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn transcript(turns: &[Turn], stack: &str) -> String {
    let mut out = String::new();
    for turn in turns {
        out.push_str(&format!("{}. {}\n", turn.number, turn.text));
        for call in &turn.calls {
            let input = call.input.to_string().replace(stack, "STACK");
            let reply = call.reply.as_ref().expect("answered");
            // How soon after a remedy the engine's own check passes differs from run to run; the test looks for it itself.
            let reply = if call.tool == "health" { json!("the services as they are") } else { told(reply, stack) };
            out.push_str(&format!("   > {} {input}\n   < {reply}\n", call.tool));
        }
        out.push_str(&format!(
            "   [{} in, {} cached, {} out, {} USD]\n",
            turn.tokens_in,
            turn.tokens_cached,
            turn.tokens_out,
            dollars(turn.micro_usd)
        ));
    }
    out
}

/// The provider's model of a good responder: it decides by what it is shown.
fn responder(n: usize, asked: &llm::Asked, stack: &str) -> Say {
    let seen = asked.body["messages"].to_string();
    let usage = (1_000 + 100 * n as u64, 500, 0, 40);
    match n {
        0 => answer("I look at the service first.", &[("diagnose", json!({"stack": stack})), ("history", json!({"stack": stack}))], usage),
        1 => {
            assert!(
                seen.contains("unhealthy") && seen.contains("untrusted"),
                "the findings and the log reach the model, in an envelope: {seen}"
            );
            let text = "api cannot reach store since release 2, which changed store's port. I take the release back.";
            answer(
                text,
                &[("rollback", json!({"stack": stack, "reason": "release 2 moved store to another port; api cannot reach it"}))],
                usage,
            )
        }
        2 => answer("Now I look whether it helped.", &[("health", json!({"stack": stack}))], usage),
        3 => {
            let note = json!({"key": format!("incident/{stack}/api"), "value": "release 2 moved store to port 9090, api still asked 8080; rolled back to release 1"});
            answer("", &[("memory_write", note)], usage)
        }
        _ => answer(
            "api was unhealthy because release 2 moved store to another port. Rolled back; all services are healthy. The port must be changed in both services at once.",
            &[],
            usage,
        ),
    }
}

/// A release that passes its own checks and breaks its neighbour is noticed by the loop; the responder finds the cause, takes it back and writes it down.
#[tokio::test]
async fn a_broken_release_is_noticed_diagnosed_rolled_back_and_written_down_by_an_agent() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("inc");
    let named = stack.clone();
    let provider = Scripted::start(move |n, asked| responder(n, asked, &named)).await;
    std::fs::write(home.path("key"), KEY).unwrap();
    let toml = format!(
        "[models]\ndefault = \"scripted\"\n[models.scripted]\nprovider = \"anthropic\"\nmodel = \"m-1\"\nbase_url = \"{}\"\nkey_file = {:?}\nprice = {{input = 3.0, cached = 0.3, output = 15.0}}\n",
        provider.url,
        home.path("key")
    );
    let house = house(&home, &toml).await;
    let compose = |port: u32| {
        format!(
            "x-dockwarden: {{monitor_s: 0, heal: restart}}\nx-service: &s\n  image: {}\n  restart: unless-stopped\n  mem_limit: 64m\nservices:\n  \
             store:\n    <<: *s\n    environment: {{ROLE: store, LISTEN: \"0.0.0.0:{port}\"}}\n    tmpfs: [/data]\n  \
             other:\n    <<: *s\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n  \
             api:\n    <<: *s\n    environment: {{ROLE: api, UPSTREAM: \"store:8080\"}}\n    depends_on: [store]\n    \
             healthcheck: {{test: [CMD, /dockwarden, demo-app, check, \"http://127.0.0.1:8080/visits\"], interval: 1s, timeout: 2s, retries: 2}}\n",
            slot.image
        )
    };
    let keeper = dockwarden::call::Principal {
        agent: AgentName::new("stack-keeper").unwrap(),
        door: dockwarden::call::Door::Cli,
        client: None,
        read_only: false,
        on_behalf: vec![],
    };
    let name = StackName::new(stack.clone()).unwrap();
    for port in [8080, 9090] {
        let input = json!({"stack": stack, "compose": compose(port), "environment": "staging"});
        let reply = dockwarden::call::dispatch::dispatch(&house, &keeper, "deploy", input, None).await.unwrap_or_else(|e| panic!("{e:?}"));
        assert!(["done", "monitoring"].contains(&reply.value["state"].as_str().unwrap_or_default()), "{:#}", reply.value);
        eventually("the deploy ends", Duration::from_secs(60), || async { house.executor.holding(&name).is_none().then_some(()) }).await;
    }
    let current = async || house.store.stack(&name).await.unwrap().unwrap().current;
    assert_eq!(current().await, Some(2), "the broken release passed its own checks");

    // The loop notices, and does what it may: a restart, which does not help. Then it is held still, so that the transcript is the same each time.
    let (quiet, looping) = (CancellationToken::new(), house.clone());
    let stop = quiet.clone();
    let healer = tokio::spawn(async move { dockwarden::supervisor::run(looping, stop).await });
    let incident = eventually("the loop opens an incident", Duration::from_secs(90), || async {
        let found = house.store.incidents(Some(&name), None, 5).await.unwrap();
        found.into_iter().find(|i| i.service.as_str() == "api" && !i.actions.is_empty())
    })
    .await;
    quiet.cancel();
    healer.await.unwrap();
    house.calls.close();
    tokio::time::timeout(Duration::from_secs(240), house.calls.wait()).await.expect("the loop's calls end");
    house.calls.reopen();
    // What these began goes on by itself, and nothing else begins any more.
    eventually("nothing holds the stack", Duration::from_secs(240), || async { house.executor.holding(&name).is_none().then_some(()) })
        .await;

    let now = chrono::Utc::now();
    let task = Task {
        id: TaskId::new("task-01incident").unwrap(),
        agent: AgentName::new("incident-responder").unwrap(),
        work: TaskWork::Skill("diagnose-incident".into()),
        pushed: None,
        input: json!({"stack": stack, "symptom": format!("api is {}", incident.reason)}).as_object().unwrap().clone(),
        delegated_by: vec![],
        origin: "event".into(),
        stack: Some(name.clone()),
        state: TaskState::Running,
        attempt: 1,
        created_at: now,
        due_at: now,
        started_at: None,
        ended_at: None,
        waits_for: None,
        result: None,
    };
    let end = dockwarden::runner::run(&house, &task, &CancellationToken::new()).await;
    assert!(matches!(&end, TaskEnd::Succeeded(report) if report.contains("Rolled back")), "{end:?}");
    let turns = house.store.turns(&task.id).await.unwrap();
    assert_eq!(current().await, Some(3), "release 3 is release 1 again: {turns:#?}");
    assert_eq!(house.store.release(&name, 3).await.unwrap().unwrap().content_of, Some(1));
    eventually("api is healthy", Duration::from_secs(30), || async {
        (docker(&["inspect", "-f", "{{.State.Health.Status}}", &format!("{stack}-api-1")]) == "healthy").then_some(())
    })
    .await;
    let turns = house.store.turns(&task.id).await.unwrap();
    insta::assert_snapshot!("incident_transcript", transcript(&turns, &stack));

    // Five answers: 1000, 1100, ... tokens read anew at 3, 500 from the cache at 0.3, 40 written at 15 US dollars a million.
    let want: u64 = (0..5).map(|n| (1_000 + 100 * n) * 3 + 150 + 40 * 15).sum();
    let spent = house.store.spent(None).await.unwrap();
    assert_eq!((spent.len(), spent[0].micro_usd, spent[0].answers), (1, want, 5));
    assert_eq!(dollars(want), "0.02175");
    let notes = house.store.memory_read(&AgentName::new("incident-responder").unwrap(), None).await.unwrap();
    assert_eq!(notes.len(), 1);
    let query = dockwarden::store::audit::AuditQuery { agent: Some("incident-responder".into()), limit: 50, ..Default::default() };
    let rows = serde_json::to_string(&house.store.audit_rows(&query).await.unwrap()).unwrap();
    assert!(!rows.contains("0123456789") && rows.contains("\"task\""), "{rows}");
    house.executor.close(Duration::from_secs(10)).await;
    house.store.close().await;
}
