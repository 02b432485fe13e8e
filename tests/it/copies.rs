//! A second repository through the doors people use: configured, filled, looked at, checked, and the one an instance comes back from.

use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::time::Duration;

async fn ended(client: &Client, tool: &str, mut arguments: Value) -> Value {
    arguments["wait"] = json!(false);
    let begun = client.ok(tool, arguments).await;
    eventually("the operation ends", Duration::from_secs(120), || async {
        let op = client.ok("operation", json!({"operation_id": begun["operation_id"], "wait_s": 20})).await;
        (!matches!(op["state"].as_str(), Some("queued" | "running" | "monitoring"))).then_some(op)
    })
    .await
}

#[tokio::test]
async fn a_copy_is_kept_shown_checked_and_brings_the_instance_back_when_home_and_repository_are_lost() {
    let home = Home::new();
    home.unlimited("backup-keeper");
    let disk = home.path("disk/copy");
    home.configure("dockwarden.toml", &format!("[backup.copies.disk]\nat = {disk:?}\nschedule = \"off\"\n"));
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "backup-keeper").await;
    client.ok("memory_write", json!({"key": "kept", "value": "the copy has it"})).await;
    let own = ended(&client, "backup", json!({})).await;
    let snapshot = own["snapshots"][0]["snapshot_id"].clone();
    let before = client.ok("backups", json!({})).await;
    assert_eq!((&before["copies"][0]["copy"], &before["copies"][0]["missing"]), (&json!("disk"), &json!(1)), "{before:#}");

    let copied = ended(&client, "backup", json!({"copy": "disk"})).await;
    assert_eq!(copied["message"], json!("the copy disk holds 1 snapshots: 1 added, 0 removed"), "{copied:#}");
    let after = client.ok("backups", json!({})).await;
    assert_eq!((&after["snapshots"][0]["snapshot_id"], &after["snapshots"][0]["copies"]), (&snapshot, &json!(["disk"])), "{after:#}");
    assert!(after["copies"][0]["last_good"].is_string() && after["copies"][0]["missing"] == json!(0), "{after:#}");
    let checked = ended(&client, "verify_backup", json!({"copy": "disk", "repository_part": 1})).await;
    assert_eq!(
        (&checked["state"], &checked["checks"][0]["copy"], &checked["checks"][0]["passed"]),
        (&json!("done"), &json!("disk"), &json!(true))
    );
    let refused = client.refused("backup", json!({"copy": "tape"})).await;
    assert!(refused.to_string().contains("there are disk"), "{refused:#}");
    let (code, out, err) = home.run(&["--agent", "backup-keeper", "backup", "--copy", "disk"]).await;
    assert!(code == 0 && out.contains("0 added"), "{code} {out}{err}");
    let (_, out, _) = home.run(&["doctor"]).await;
    assert!(out.contains(&format!("the copy disk is at {}", disk.display())), "{out}");

    // Of what was lost only the key and the copy are left.
    let key = home.path("kept.key");
    std::fs::copy(home.path("state/keys/backup.key"), &key).expect("kept");
    drop(client);
    serve.kill9().await;
    std::fs::remove_dir_all(home.path("state")).expect("lost");
    let key = key.display().to_string();
    let (code, _, err) = home.run(&["restore", "--bootstrap", "--repository", "s3:bucket", "--key", &key]).await;
    assert!(code != 0 && err.contains("s3:https://host/bucket/prefix"), "{err}");
    let (code, out, err) = home.run(&["restore", "--bootstrap", "--repository", "disk", "--key", &key]).await;
    assert_eq!(code, 0, "{out}{err}");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "backup-keeper").await;
    let memory = client.ok("memory_read", json!({"key": "kept"})).await;
    assert!(memory.to_string().contains("the copy has it"), "{memory:#}");
    // What is listed is what the repository holds now, and can be proven.
    let listed = client.ok("backups", json!({})).await;
    assert_eq!(listed["snapshots"].as_array().map(Vec::len), Some(1), "{listed:#}");
    let sound = ended(&client, "verify_backup", json!({"repository_part": 1})).await;
    assert_eq!(sound["state"], json!("done"), "{sound:#}");
    // It is known to be the same snapshot: nothing is copied back.
    let again = ended(&client, "backup", json!({"copy": "disk"})).await;
    assert_eq!(again["message"], json!("the copy disk holds 1 snapshots: 0 added, 0 removed"), "{again:#}");
    drop(client);
    serve.stop().await;
}
