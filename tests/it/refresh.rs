//! `refresh` on a real engine and a registry whose tags move: what moved is replaced and shown, nothing else is, and what was planned is what runs.

use crate::support::engine::{docker, engine};
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::registry::{Access, Registry, program};
use crate::support::serve::Serve;
use serde_json::{Value, json};

fn digest_line(plan: &Value) -> (Value, Value) {
    let lines = plan["changes"][0]["diff"].as_array().expect("lines");
    let line = lines.iter().find(|l| l["path"] == "image.digest").unwrap_or_else(|| panic!("no digest in {plan:#}"));
    (line["from"].clone(), line["to"].clone())
}

#[tokio::test]
async fn a_tag_that_moved_is_shown_and_replaced_and_one_that_did_not_is_left_alone() {
    let _slot = engine().await;
    let registry = Registry::start(Access::Open, &program("one", 1)).await;
    let home = Home::new();
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    home.configure(
        "policy.toml",
        &policy.replace("allowed_registries = [", &format!("allowed_registries = [\"{}\", ", registry.address())),
    );
    let stack = home.stack("moving");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let image = format!("{}/team/web:1", registry.address());
    let compose =
        format!("x-dockwarden: {{monitor_s: 0}}\nservices:\n  web:\n    image: {image}\n    mem_limit: 64m\n    stop_signal: SIGKILL\n");
    let input = |refresh: bool| json!({"stack": stack, "compose": compose, "refresh": refresh});
    let container = format!("{stack}-web-1");
    let id = || docker(&["inspect", "-f", "{{.Id}}", &container]);
    let runs = || {
        let image = docker(&["inspect", "-f", "{{.Image}}", &container]);
        docker(&["image", "inspect", "-f", "{{join .RepoDigests \" \"}}", &image])
    };

    let first = registry.digest();
    let plan = client.ok("plan", input(false)).await;
    assert_eq!(digest_line(&plan), (Value::Null, json!(first)), "{plan:#}");
    let pullable = plan["preflight"].as_array().expect("checks").iter().find(|c| c["id"] == "image.present").expect("checked").clone();
    assert_eq!(pullable["ok"], json!("yes"), "{pullable}");
    client.ok("deploy", input(false)).await;
    assert!(runs().contains(&first), "{}", runs());

    let before = id();
    let plan = client.ok("plan", input(true)).await;
    assert_eq!(plan["changes"][0]["action"], json!("unchanged"), "{plan:#}");
    client.ok("deploy", input(true)).await;
    assert_eq!(id(), before, "an unchanged tag replaces nothing");

    let second = registry.move_tags(&program("two", 1));
    let plan = client.ok("plan", input(true)).await;
    assert_eq!(digest_line(&plan), (json!(first), json!(second)), "{plan:#}");
    // It moves once more before the plan is carried out: what was shown is what runs.
    let third = registry.move_tags(&program("three", 1));
    client.ok("deploy", json!({"plan_id": plan["plan_id"], "digest": plan["digest"]})).await;
    assert!(id() != before && runs().contains(&second) && !runs().contains(&third), "{}", runs());
    // And the reference names it here.
    assert!(docker(&["image", "inspect", "-f", "{{join .RepoDigests \" \"}}", &image]).contains(&second));
    let plan = client.ok("plan", input(false)).await;
    assert_eq!(plan["changes"][0]["action"], json!("unchanged"), "{plan:#}");
    client.ok("stop", json!({"stack": stack, "remove": true})).await;
    serve.stop().await;
}
