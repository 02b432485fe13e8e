//! The loop on a real engine: what dies is started again through the line, as `warden`; what a human stopped stays stopped; and after
//! too many restarts it gives up and says so.

use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::json;
use std::time::Duration;

fn running(container: &str) -> bool {
    docker(&["inspect", "-f", "{{.State.Running}}", container]) == "true"
}

#[tokio::test]
async fn a_killed_container_is_restarted_until_the_budget_is_spent_and_a_stopped_one_is_left_alone() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("heal");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let compose = format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  store:\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n",
        slot.image
    );
    let deployed = client.ok("deploy", json!({"stack": stack, "compose": compose})).await;
    client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 20})).await;
    let container = format!("{stack}-store-1");

    // Budget: five restarts in five minutes. `docker kill` counts as by hand for the engine, so its own policy does not act.
    for round in 1..=5 {
        docker(&["kill", &container]);
        eventually(&format!("restart {round}"), Duration::from_secs(60), || async { running(&container).then_some(()) }).await;
        eventually("the healing operation ends", Duration::from_secs(20), || async {
            let rows = client.ok("audit", json!({"agent": "warden", "tool": "restart", "stack": stack, "outcome": "ok"})).await;
            rows["rows"].as_array().is_some_and(|r| r.len() == round).then_some(())
        })
        .await;
    }
    docker(&["kill", &container]);
    let gave_up = eventually("it gives up loudly", Duration::from_secs(90), || async {
        let rows = client.ok("audit", json!({"agent": "warden", "tool": "healing_gave_up", "stack": stack})).await;
        rows["rows"].as_array().is_some_and(|r| !r.is_empty()).then_some(rows)
    })
    .await;
    assert!(!running(&container), "{gave_up:#}");

    // A restart by a caller brings it back; a stop by hand is respected.
    client.ok("restart", json!({"stack": stack})).await;
    assert!(running(&container));
    docker(&["stop", "-t", "1", &container]);
    let before = client.ok("audit", json!({"agent": "warden", "tool": "restart", "stack": stack})).await["rows"].as_array().map(Vec::len);
    // A whole scan of the loop passes without an action: its next wake-up is another stack's event, which comes after ours was handled.
    let health = client.ok("health", json!({"stack": stack})).await;
    assert_eq!(health["healthy"], json!(false), "{health:#}");
    let after = client.ok("audit", json!({"agent": "warden", "tool": "restart", "stack": stack})).await["rows"].as_array().map(Vec::len);
    assert_eq!(before, after);
    assert!(!running(&container));
    serve.stop().await;
}
