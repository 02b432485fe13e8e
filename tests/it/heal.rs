//! The loop on a real engine: what dies is started again through the line, as `warden`; what a human stopped stays stopped; and after
//! too many restarts it gives up and says so.

use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::json;
use std::time::Duration;

/// `false` also when there is none: between two containers of a name there is a moment without.
fn running(container: &str) -> bool {
    !docker(&["ps", "-q", "--filter", &format!("name=^/{container}$"), "--filter", "status=running"]).is_empty()
}

#[tokio::test]
async fn a_killed_container_is_restarted_until_the_budget_is_spent_and_a_stopped_one_is_left_alone() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("heal");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let compose = format!(
        "x-dockwarden: {{monitor_s: 0, heal: restart}}\nservices:\n  store: &s\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n  other: *s\n",
        slot.image
    );
    let deployed = client.ok("deploy", json!({"stack": stack, "compose": compose})).await;
    client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 20})).await;
    let container = format!("{stack}-store-1");

    // Stopped by hand: left alone, while the neighbour that was killed after it comes back.
    let other = format!("{stack}-other-1");
    docker(&["stop", "-t", "1", &container]);
    docker(&["kill", &other]);
    eventually("the neighbour is healed", Duration::from_secs(30), || async { running(&other).then_some(()) }).await;
    assert!(!running(&container), "what a human stopped stays stopped");
    docker(&["start", &container]);

    // Budget: five restarts in five minutes. `docker kill` counts as by hand for the engine, so its own policy does not act.
    for round in 1..=5 {
        docker(&["kill", &container]);
        eventually(&format!("restart {round}"), Duration::from_secs(60), || async { running(&container).then_some(()) }).await;
        eventually("the healing operation ends", Duration::from_secs(20), || async {
            let rows = client.ok("audit", json!({"agent": "warden", "tool": "restart", "stack": stack})).await;
            rows["rows"].as_array().is_some_and(|r| r.iter().filter(|r| r.to_string().contains("store")).count() >= round).then_some(())
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

    // A restart by a caller brings it back.
    client.ok("restart", json!({"stack": stack, "service": "store"})).await;
    assert!(running(&container));
    serve.stop().await;
}

#[tokio::test]
async fn what_a_human_stopped_stays_stopped_over_a_restart_of_the_supervisor_and_what_crashed_is_healed() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("again");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let compose = format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  stopped: &s\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n  crashed: *s\n  absent: *s\n",
        slot.image
    );
    let deployed = client.ok("deploy", json!({"stack": stack, "compose": compose})).await;
    client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 20})).await;
    let [stopped, crashed, absent] = ["stopped", "crashed", "absent"].map(|s| format!("{stack}-{s}-1"));
    docker(&["stop", "-t", "1", &stopped]);
    eventually("the loop has seen the hand", Duration::from_secs(20), || async {
        std::fs::read_to_string(home.path("serve.log")).is_ok_and(|log| log.contains("stopped by hand")).then_some(())
    })
    .await;

    // Twice: by SIGKILL and by SIGTERM. The crash happens while nobody looks; that it is healed shows that the loop looked at the stack.
    let mut serve = serve;
    for end in ["kill9", "stop"] {
        if end == "kill9" {
            serve.kill9().await;
        } else {
            assert!(serve.stop().await.success());
        }
        docker(&["kill", &crashed]);
        if end == "kill9" {
            // Nobody saw this hand; the engine's facts tell it: what ended by itself would have been started again.
            docker(&["stop", "-t", "10", &absent]);
            assert_ne!(docker(&["inspect", "-f", "{{.State.ExitCode}}", &absent]), "137", "it ends on SIGTERM");
        }
        serve = Serve::start(&home).await;
        eventually(&format!("what crashed runs again after {end}"), Duration::from_secs(60), || async { running(&crashed).then_some(()) })
            .await;
        assert!(!running(&stopped) && !running(&absent), "after {end}: what a human stopped stays stopped");
        let client = Client::stdio(&home, "stack-keeper").await;
        eventually("the healing operation ends", Duration::from_secs(20), || async {
            let status = client.ok("status", json!({"stack": stack})).await;
            status["stacks"][0]["operation_id"].is_null().then_some(())
        })
        .await;
        let restarts = client.ok("audit", json!({"agent": "warden", "tool": "restart", "stack": stack})).await;
        let of = |service: &str| {
            let said = format!("\"service\":\"{service}\"");
            restarts["rows"].as_array().map_or(0, |rows| rows.iter().filter(|r| r.to_string().replace('\\', "").contains(&said)).count())
        };
        assert!(of("crashed") > 0 && of("stopped") == 0, "{restarts:#}");
        assert!(!running(&stopped) && !running(&absent), "after {end}");
    }

    // A hand that starts it again hands it back to the loop.
    docker(&["start", &stopped]);
    eventually("the loop has seen the start", Duration::from_secs(20), || async {
        docker(&["kill", &stopped]);
        tokio::time::timeout(Duration::from_secs(8), async {
            while !running(&stopped) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .ok()
    })
    .await;
    serve.stop().await;
}

/// The ladder on a real engine: a service that keeps dying right after a deploy is restarted, made anew, then its release is taken back; the
/// incident tells the whole way.
#[tokio::test]
async fn a_release_that_keeps_failing_is_rolled_back_by_the_loop_and_the_incident_tells_it() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("ladder");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let compose = |version: u32| {
        format!(
            "x-dockwarden: {{monitor_s: 0}}\nservices:\n  store:\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: store, VERSION: \"{version}\"}}\n    tmpfs: [/data]\n",
            slot.image
        )
    };
    for version in [1, 2] {
        let deployed = client.ok("deploy", json!({"stack": stack, "compose": compose(version)})).await;
        client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 20})).await;
    }
    let container = format!("{stack}-store-1");
    let release = || async { client.ok("history", json!({"stack": stack})).await["current"].as_u64().unwrap_or_default() };
    // Two restarts, a new container of the same release (3), then release 1 again (4).
    let mut seen = vec![];
    for expected in [2, 2, 3, 4] {
        docker(&["kill", &container]);
        eventually(&format!("the loop heals towards release {expected}"), Duration::from_secs(60), || async {
            (running(&container) && release().await == expected).then_some(())
        })
        .await;
        seen.push(release().await);
        eventually("the healing operation ends", Duration::from_secs(30), || async {
            let found = client.ok("diagnose", json!({"stack": stack})).await;
            let done = found["incidents"][0]["actions"].as_array().map(|a| a.iter().filter(|t| !t.to_string().contains("at work")).count());
            (done == Some(seen.len())).then_some(())
        })
        .await;
    }
    let history = client.ok("history", json!({"stack": stack})).await;
    assert_eq!(history["releases"][0]["content_of"], 1, "{history:#}");
    let found = client.ok("diagnose", json!({"stack": stack})).await;
    let incident = &found["incidents"][0];
    assert_eq!(incident["cause"], "killed", "{found:#}");
    let acts: Vec<&str> = incident["actions"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().split(':').next().unwrap()).collect();
    assert_eq!(acts, ["restart", "restart", "recreate", "rollback"], "{found:#}");
    let report = client.ok("diagnose", json!({"stack": stack, "incident_id": incident["incident_id"]})).await;
    assert!(report["report"]["text"].as_str().unwrap().contains("rollback:"), "{report:#}");
    serve.stop().await;
}

/// As `docker compose down` does it: each container stopped and removed, dependents first, then the network; volumes stay.
fn compose_down(stack: &str) {
    for container in ["web", "store"].map(|s| format!("{stack}-{s}-1")) {
        docker(&["stop", "-t", "2", &container]);
        docker(&["rm", &container]);
    }
    docker(&["network", "rm", &format!("{stack}_default")]);
}

fn left_of(stack: &str) -> String {
    docker(&["ps", "-aq", "--filter", &format!("label=com.docker.compose.project={stack}")])
}

#[tokio::test]
async fn a_stack_taken_down_by_hand_stays_down_is_reported_and_comes_back_with_a_deploy() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let (stack, other) = (home.stack("down"), home.stack("neighbour"));
    let mut serve = Serve::start(&home).await;
    let mut client = Client::stdio(&home, "stack-keeper").await;
    let compose = format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  store: &s\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n  web:\n    <<: *s\n    depends_on: [store]\n",
        slot.image
    );
    for stack in [&stack, &other] {
        let deployed = client.ok("deploy", json!({"stack": stack, "compose": compose})).await;
        client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 20})).await;
    }
    // By one that looks, and by one that does not: each time the neighbour, killed afterwards, shows that the loop is at work.
    for seen in [true, false] {
        let victim = format!("{other}-store-1");
        let strike = || {
            compose_down(&stack);
            docker(&["kill", &victim]);
        };
        if seen {
            strike();
        } else {
            serve.kill9().await;
            strike();
            serve = Serve::start(&home).await;
            client = Client::stdio(&home, "stack-keeper").await;
        }
        eventually("the neighbour is healed", Duration::from_secs(60), || async { running(&victim).then_some(()) }).await;
        eventually("the drift is told", Duration::from_secs(60), || async {
            let rows = client.ok("audit", json!({"agent": "warden", "tool": "drift_found", "stack": stack})).await;
            let told = rows["rows"].as_array().map_or(0, |r| r.iter().filter(|r| r.to_string().contains("removed by hand")).count());
            (told == if seen { 1 } else { 2 }).then_some(())
        })
        .await;
        assert_eq!(left_of(&stack), "", "what a hand took down stays down");
        let status = client.ok("status", json!({"stack": stack})).await;
        assert_eq!(status["stacks"][0]["state"], "missing", "{status:#}");
        let health = client.ok("health", json!({"stack": stack})).await.to_string();
        assert!(health.contains("removed by hand: `deploy`"), "{health}");
        let healed = client.ok("audit", json!({"agent": "warden", "tool": "restart", "stack": stack})).await;
        let healed = healed["rows"].as_array().map_or(0, |rows| rows.iter().filter(|r| r.to_string().contains("recreate")).count());
        assert_eq!(healed, 0, "nothing was made anew");

        let back = client.ok("deploy", json!({"stack": stack, "compose": compose})).await;
        client.ok("operation", json!({"operation_id": back["operation_id"], "wait_s": 20})).await;
        for container in ["web", "store"].map(|s| format!("{stack}-{s}-1")) {
            assert!(running(&container), "{container}: {back:#}");
        }
        eventually("it counts as running", Duration::from_secs(40), || async {
            (client.ok("status", json!({"stack": stack})).await["stacks"][0]["state"] == "running").then_some(())
        })
        .await;
        // Handed back to the loop: what is killed now is healed.
        docker(&["kill", &format!("{stack}-web-1")]);
        eventually("it is healed again", Duration::from_secs(60), || async { running(&format!("{stack}-web-1")).then_some(()) }).await;
        eventually("the healing operation ends", Duration::from_secs(30), || async {
            client.ok("status", json!({"stack": stack})).await["stacks"][0]["operation_id"].is_null().then_some(())
        })
        .await;
    }
    serve.stop().await;
}
