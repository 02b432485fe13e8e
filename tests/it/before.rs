//! What an update does with directories of the host that its service writes: read first, and no update where they cannot be.

use crate::support::data::{called, ended};
use crate::support::engine::{docker, engine};
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn input(stack: &str, image: &str, version: &str, files: &Path) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1, backup: {{enable: false}}}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
         environment: {{ROLE: store, VERSION: '{version}'}}\n    volumes: ['visits:/data', '{}:/files']\n    \
         healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 1s}}\n\
         volumes: {{visits: {{x-dockwarden: {{backup: {{pre_update: false}}}}}}}}\n",
        files.display()
    );
    json!({"stack": stack, "compose": compose})
}

/// A root for binds, and the policy that has every replacement snapshotted, but for the volume whose file says no.
fn policy(home: &Home, stack: &str) -> PathBuf {
    let root = home.path("stacks");
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    let roots = format!("bind_roots_allow = [{:?}]", root.display().to_string());
    let policy = policy.replace("bind_roots_allow = []", &roots).replace("pre_update = \"image\"", "pre_update = \"every\"");
    let exception = format!(
        "\n[[exceptions]]\nrule = \"backup.pre_update\"\nstack = {stack:?}\nservice = \"store\"\nvalue = \"{stack}_visits\"\nbecause = \"a cache\"\n\
         expires = \"2999-01-01\"\n"
    );
    home.configure("policy.toml", &(policy + &exception));
    root
}

#[tokio::test]
async fn a_directory_of_the_host_is_snapshotted_before_its_service_is_replaced_or_it_is_not_replaced() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("before");
    let files = policy(&home, &stack).join("files");
    std::fs::create_dir_all(&files).expect("made");
    std::fs::write(files.join("note"), "one").expect("written");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let one = client.ok("deploy", input(&stack, &slot.image, "1", &files)).await;
    assert_eq!(ended(&client, &one["operation_id"]).await["state"], json!("done"), "{one:#}");

    let plan = client.ok("plan", input(&stack, &slot.image, "2", &files)).await;
    let told = plan["findings"].to_string();
    assert!(told.contains(&format!("{} is snapshotted first", files.display())), "{plan:#}");
    let two = client.ok("deploy", input(&stack, &slot.image, "2", &files)).await;
    let two = ended(&client, &two["operation_id"]).await;
    let taken: Vec<(&str, &Value)> =
        two["snapshots"].as_array().expect("a list").iter().map(|s| (s["volume"].as_str().expect("a source"), &s["tags"])).collect();
    assert_eq!(taken, [(files.to_str().expect("plain"), &json!(["pre-update"]))], "the volume says that it is left out: {two:#}");
    assert_eq!(two["state"], json!("done"), "{two:#}");
    let snapshot = two["snapshots"][0]["snapshot_id"].clone();
    std::fs::write(files.join("note"), "two").expect("written");
    let back = called(&client, "restore", json!({"snapshot_id": snapshot})).await;
    let beside = PathBuf::from(back["restored"][0]["volume"].as_str().unwrap_or_else(|| panic!("{back:#}")));
    assert_eq!(std::fs::read_to_string(beside.join("note")).expect("restored"), "one");

    // What the service has put into its place is nobody's data: the service is not replaced.
    std::fs::rename(&files, files.with_file_name("moved")).expect("moved");
    std::os::unix::fs::symlink(files.with_file_name("moved"), &files).expect("linked");
    let running = || docker(&["inspect", "-f", "{{.Id}} {{.State.Status}}", &format!("{stack}-store-1")]);
    let before = running();
    let three = client.ok("deploy", input(&stack, &slot.image, "3", &files)).await;
    let three = ended(&client, &three["operation_id"]).await;
    assert_eq!(three["state"], json!("rolled_back"), "{three:#}");
    assert!(three["message"].as_str().is_some_and(|m| m.contains("is a link")), "{three:#}");
    assert!(before == running() && before.ends_with("running"), "{before}");
    serve.stop().await;
}
