//! Probes, smoke tests and hooks of `x-dockwarden` on a real engine: made from the supervisor at the container's own address, and a failing one never
//! touches what serves.

use crate::support::engine::{docker, engine};
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};

fn input(stack: &str, image: &str, version: &str, text: &str) -> Value {
    let check = "'/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'";
    let compose = format!(
        "x-dockwarden: {{monitor: {{window_s: 1}}}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
         environment: {{ROLE: store, VERSION: '{version}'}}\n    tmpfs: [/data]\n    x-dockwarden:\n      probes: [{{http: {{port: 8080, path: /health}}}}, {{tcp: 8080}}]\n      \
         smoke: [{{exec: [{check}]}}, {{http: {{port: 8080, path: /health, contains: '{text}'}}}}]\n      hooks: {{pre: [{{run: ['/dockwarden', '--version']}}], post: [{{run: [{check}]}}]}}\n"
    );
    json!({"stack": stack, "compose": compose, "timeout_s": 50})
}

#[tokio::test]
async fn a_release_is_proven_at_its_own_address_before_anything_is_switched() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("prove");
    let _serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;

    let mut plan = input(&stack, &slot.image, "1", "ok release 1");
    plan.as_object_mut().expect("an object").remove("timeout_s");
    let plan = client.ok("plan", plan).await;
    let checks = plan["preflight"].as_array().expect("a report");
    let of = |id: &str| checks.iter().find(|c| c["id"] == json!(id)).map(|c| c["ok"].clone());
    assert_eq!((of("probe.possible"), of("port.free")), (Some(json!("yes")), Some(json!("yes"))), "{plan:#}");
    assert!(plan["findings"].to_string().contains("hook.command"), "hooks are findings: {plan:#}");

    let one = client.ok("deploy", input(&stack, &slot.image, "1", "ok release 1")).await;
    assert!(matches!(one["state"].as_str(), Some("monitoring" | "done")), "{one:#}");
    let ended = client.ok("operation", json!({"operation_id": one["operation_id"], "wait_s": 20})).await;
    assert_eq!(ended["state"], json!("done"), "{ended:#}");
    let container = format!("{stack}-store-1");
    let serving = docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &container]);

    let two = client.ok("deploy", input(&stack, &slot.image, "2", "never in an answer")).await;
    assert_eq!(two["state"], json!("rolled_back"), "{two:#}");
    let reason = two["evidence"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("smoke test 2 failed") && reason.contains("from the supervisor to"), "{two:#}");
    assert_eq!(docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &container]), serving, "the old one was never touched");
    let left = docker(&["ps", "-a", "--filter", &format!("label=dockwarden.stack={stack}"), "--format", "{{.Names}}"]);
    let left: Vec<&str> = left.lines().filter(|n| !n.contains("-claim-")).collect();
    assert_eq!(left, [container.as_str()], "no canary and no hook is left");
}
