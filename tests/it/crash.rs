//! The supervisor killed in the middle of a deploy on a real engine, at several of the engine's own events: the next one finds its way to
//! exactly one serving release and leaves no orphan. (Every journal record is covered on the in-memory engine, in `executor::tests`.)

use crate::support::data::settled;
use crate::support::engine::{docker, engine, nth_event};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::time::Duration;

fn input(stack: &str, image: &str, version: &str) -> Value {
    let service = |role: &str, more: &str| {
        format!(
            "  {role}:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: {role}, VERSION: '{version}'{more}\n    \
             healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 2s}}\n"
        )
    };
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n{}{}volumes: {{visits: {{}}}}\n",
        service("api", ", UPSTREAM: 'store:8080'}\n    depends_on: [store]"),
        service("store", "}\n    volumes: ['visits:/data']"),
    );
    json!({"stack": stack, "compose": compose})
}

fn containers(stack: &str) -> Vec<String> {
    let listed = docker(&[
        "ps",
        "-a",
        "--filter",
        &format!("label=dockwarden.stack={stack}"),
        "--format",
        "{{.Names}} {{.State}} r{{.Label \"dockwarden.release\"}}",
    ]);
    let mut lines: Vec<String> = listed.lines().filter(|l| !l.contains("-claim-")).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn killed_in_the_middle_of_an_update_the_host_ends_with_one_serving_release() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("crash");
    let mut serve = Serve::start(&home).await;
    let first = Client::stdio(&home, "stack-keeper").await.ok("deploy", input(&stack, &slot.image, "1")).await;
    assert_eq!(first["state"], json!("monitoring"), "{first:#}");
    let mut in_the_middle = 0;
    // From the first created canary to the removal of the old containers.
    for (round, n) in [1, 3, 5, 8, 11, 14].into_iter().enumerate() {
        let client = Client::stdio(&home, "stack-keeper").await;
        let event = nth_event(None, &stack, n);
        let version = format!("{}", round + 2);
        let began = client.ok("deploy", {
            let mut input = input(&stack, &slot.image, &version);
            input["wait"] = json!(false);
            input
        });
        let began = began.await;
        let id = began["operation_id"].clone();
        // An event that never comes (the deploy has fewer) means that it had ended: then the kill meets an idle supervisor.
        if tokio::time::timeout(Duration::from_secs(15), event).await.is_err() {
            eprintln!("round {round}: fewer than {n} events");
        }
        in_the_middle += usize::from(!settled(&home, id.as_str().expect("an id")));
        serve.kill9().await;
        serve = Serve::start(&home).await;
        let client = Client::stdio(&home, "stack-keeper").await;
        let ended = eventually("the interrupted operation ends", Duration::from_secs(40), || async {
            let op = client.ok("operation", json!({"operation_id": id, "wait_s": 5})).await;
            matches!(op["state"].as_str(), Some("done" | "rolled_back" | "failed")).then_some(op)
        })
        .await;
        let what = format!("round {round}, killed at event {n}, then {}: healthy", ended["state"]);
        eventually(&what, Duration::from_secs(20), || async {
            (client.ok("health", json!({"stack": stack})).await["healthy"] == json!(true)).then_some(())
        })
        .await;
        let seen = containers(&stack);
        let names: Vec<&str> = seen.iter().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(names, [format!("{stack}-api-1"), format!("{stack}-store-1")], "round {round}, killed at event {n}: {seen:?}");
        assert!(seen.iter().all(|l| l.contains(" running ")), "{seen:?}");
    }
    assert!(in_the_middle >= 4, "only {in_the_middle} of 6 kills met an update at work");
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}

/// A note that was acknowledged is there after SIGKILL in the middle of writing, and the memory's chain is whole.
#[tokio::test]
async fn notes_that_were_acknowledged_survive_a_kill_in_the_middle_of_writing() {
    let home = Home::new();
    home.unlimited("deployer");
    let serve = Serve::start(&home).await;
    let writer = Client::stdio(&home, "deployer").await;
    let (acknowledged, mut count) = tokio::sync::watch::channel(0_u32);
    let writing = tokio::spawn(async move {
        for n in 1.. {
            let note = json!({"key": format!("note/{n}"), "value": format!("the {n}th thing, {}", "x".repeat(2_000))});
            match writer.call("memory_write", note).await {
                Ok(result) if result.is_error != Some(true) => acknowledged.send_replace(n),
                _ => return n - 1,
            };
        }
        0
    });
    count.wait_for(|n| *n >= 25).await.expect("it writes");
    serve.kill9().await;
    let written = tokio::time::timeout(Duration::from_secs(30), writing).await.expect("the writer notices").expect("no panic");
    let serve = Serve::start(&home).await;
    let reader = Client::stdio(&home, "deployer").await;
    for n in 1..=written {
        let found = reader.ok("memory_read", json!({"key": format!("note/{n}")})).await;
        assert!(found.to_string().contains(&format!("the {n}th thing")), "note {n} of {written}: {found:#}");
    }
    let (code, out, err) = home.run(&["memory", "verify", "deployer"]).await;
    assert_eq!(code, 0, "{out}{err}");
    reader.ok("memory_write", json!({"key": "after", "value": "still works"})).await;
    serve.stop().await;
}
