//! A second repository through the doors people use: configured, filled, looked at, checked, and the one an instance comes back from.

// The bucket of the unit tests, which verifies signatures.
#[path = "../../src/executor/worker/remote/tests/bucket.rs"]
mod bucket;

use crate::support::data::called;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use bucket::{KEY_ID, SECRET, Service};
use serde_json::json;
use std::path::{Path, PathBuf};

#[tokio::test]
async fn a_copy_is_kept_shown_checked_and_brings_the_instance_back_when_home_and_repository_are_lost() {
    let home = Home::new();
    home.unlimited("backup-keeper");
    let disk = home.path("disk/copy");
    home.configure("dockwarden.toml", &format!("[backup.copies.disk]\nat = {disk:?}\nschedule = \"off\"\n"));
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "backup-keeper").await;
    client.ok("memory_write", json!({"key": "kept", "value": "the copy has it"})).await;
    let own = called(&client, "backup", json!({})).await;
    let snapshot = own["snapshots"][0]["snapshot_id"].clone();
    let before = client.ok("backups", json!({})).await;
    assert_eq!((&before["copies"][0]["copy"], &before["copies"][0]["missing"]), (&json!("disk"), &json!(1)), "{before:#}");

    let copied = called(&client, "backup", json!({"copy": "disk"})).await;
    assert_eq!(copied["message"], json!("the copy disk holds 1 snapshots: 1 added, 0 removed"), "{copied:#}");
    let after = client.ok("backups", json!({})).await;
    assert_eq!((&after["snapshots"][0]["snapshot_id"], &after["snapshots"][0]["copies"]), (&snapshot, &json!(["disk"])), "{after:#}");
    assert!(after["copies"][0]["last_good"].is_string() && after["copies"][0]["missing"] == json!(0), "{after:#}");
    let checked = called(&client, "verify_backup", json!({"copy": "disk", "repository_part": 1})).await;
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
    let sound = called(&client, "verify_backup", json!({"repository_part": 1})).await;
    assert_eq!(sound["state"], json!("done"), "{sound:#}");
    // It is known to be the same snapshot: nothing is copied back.
    let again = called(&client, "backup", json!({"copy": "disk"})).await;
    assert_eq!(again["message"], json!("the copy disk holds 1 snapshots: 0 added, 0 removed"), "{again:#}");
    drop(client);
    serve.stop().await;
}

/// Files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

#[tokio::test]
async fn a_repository_in_a_bucket_is_worked_with_and_brought_back_to_an_empty_home_and_its_secret_stays_in_its_file() {
    let service = Service::start();
    let home = Home::new();
    home.unlimited("backup-keeper");
    let credentials = home.path("s3.credentials");
    std::fs::write(&credentials, format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")).expect("written");
    let place = service.at("host/main");
    let wrong = service.at("host/main").replace("/bucket/", "/elsewhere/");
    home.configure(
        "dockwarden.toml",
        &format!(
            "[backup.repository]\nat = {place:?}\ncredentials_file = {credentials:?}\n\
             [backup.copies.gone]\nat = {wrong:?}\ncredentials_file = {credentials:?}\nschedule = \"off\"\n"
        ),
    );
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "backup-keeper").await;
    client.ok("memory_write", json!({"key": "kept", "value": "the bucket has it"})).await;
    let own = called(&client, "backup", json!({})).await;
    assert_eq!(own["state"], json!("done"), "{own:#}");
    assert!(service.keys().iter().any(|k| k.starts_with("host/main/snapshots/")), "{:?}", service.keys());
    assert!(!home.path("state/backups").exists(), "nothing of it is in the home");
    let sound = called(&client, "verify_backup", json!({"repository_part": 1})).await;
    assert_eq!(sound["state"], json!("done"), "{sound:#}");
    let failed = called(&client, "backup", json!({"copy": "gone"})).await;
    assert!(failed["state"] == json!("failed") && failed["message"].as_str().is_some_and(|m| m.contains("make the bucket")), "{failed:#}");
    let listed = client.ok("backups", json!({})).await;
    assert!(listed["copies"][0]["detail"].as_str().is_some_and(|d| d.contains("NoSuchBucket")), "{listed:#}");
    let (code, out, _) = home.run(&["doctor"]).await;
    assert!(code != 0 && out.contains(&format!("the repository is at {place}")) && out.contains("make the bucket"), "{out}");
    let (code, out, err) = home.run(&["backup", "repo", "--env"]).await;
    let env = [format!("export RESTIC_REPOSITORY='{place}'"), format!("export AWS_SHARED_CREDENTIALS_FILE='{}'", credentials.display())];
    assert!(code == 0 && env.iter().all(|l| out.lines().any(|o| o == l)), "{out}{err}");
    drop(client);
    serve.stop().await;
    for file in files(&home.path("state")).into_iter().chain([home.path("serve.log")]) {
        let text = std::fs::read(&file).unwrap_or_default();
        assert!(!text.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "the secret is in {}", file.display());
    }

    let key = home.path("kept.key");
    std::fs::copy(home.path("state/keys/backup.key"), &key).expect("kept");
    std::fs::remove_dir_all(home.path("state")).expect("lost");
    let key = key.display().to_string();
    let (code, out, err) = home.run(&["restore", "--bootstrap", "--repository", &place, "--key", &key]).await;
    assert_eq!(code, 0, "{out}{err}");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "backup-keeper").await;
    let memory = client.ok("memory_read", json!({"key": "kept"})).await;
    assert!(memory.to_string().contains("the bucket has it"), "{memory:#}");
    let again = called(&client, "backup", json!({})).await;
    assert_eq!(again["state"], json!("done"), "the instance that came back may write there: {again:#}");
    drop(client);
    serve.stop().await;

    // Without the configuration that says so, the repository comes home.
    std::fs::remove_dir_all(home.path("state")).expect("lost");
    home.configure(
        "dockwarden.toml",
        &format!("[backup.copies.far]\nat = {place:?}\ncredentials_file = {credentials:?}\nschedule = \"off\"\n"),
    );
    let (code, out, err) = home.run(&["restore", "--bootstrap", "--repository", "far", "--key", &key]).await;
    assert_eq!(code, 0, "{out}{err}");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "backup-keeper").await;
    assert_eq!(client.ok("backups", json!({})).await["snapshots"].as_array().map(Vec::len), Some(2));
    let sound = called(&client, "verify_backup", json!({"repository_part": 1})).await;
    assert_eq!(sound["state"], json!("done"), "{sound:#}");
    drop(client);
    serve.stop().await;
}
