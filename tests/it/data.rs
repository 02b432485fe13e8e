//! Data on a real engine: backups and restores as operations that outlive their caller and their supervisor, snapshots before updates, rollbacks that bring
//! data back. What is on disk is looked at directly.

use crate::support::data::{ended, mountpoint};
use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::time::Duration;

/// One service with one volume; `settings` go under its `x-dockwarden`.
fn input(stack: &str, image: &str, version: &str, settings: &str) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
         environment: {{ROLE: store, VERSION: '{version}'}}\n    volumes: ['visits:/data']\n    x-dockwarden: {{{settings}}}\n    \
         healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 2s}}\nvolumes: {{visits: {{}}}}\n"
    );
    json!({"stack": stack, "compose": compose})
}

/// The volume the running container writes.
fn in_use(stack: &str) -> String {
    docker(&["inspect", "-f", "{{range .Mounts}}{{.Name}}{{end}}", &format!("{stack}-store-1")])
}

fn paused(stack: &str) -> bool {
    docker(&["inspect", "-f", "{{.State.Paused}}", &format!("{stack}-store-1")]) == "true"
}

/// Bytes that neither compress nor repeat.
fn noise(mebibytes: usize) -> Vec<u8> {
    let mut noise = vec![0u8; mebibytes << 20];
    getrandom::fill(&mut noise).expect("random bytes");
    noise
}

#[tokio::test]
async fn a_backup_outlives_its_caller_and_a_killed_supervisor_leaves_no_container_paused() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("paused");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let settings = "backup: {enable: false, quiesce: pause}";
    client.ok("deploy", input(&stack, &slot.image, "1", settings)).await;
    let large = mountpoint(&format!("{stack}_visits")).join("large");
    std::fs::write(&large, noise(384)).expect("written");

    let begun = client.ok("backup", json!({"stack": stack, "wait": false})).await;
    assert!(matches!(begun["state"].as_str(), Some("queued" | "running")), "{begun:#}");
    eventually("the writer is paused", Duration::from_secs(60), || async { paused(&stack).then_some(()) }).await;
    serve.kill9().await;
    assert!(paused(&stack), "nobody was there to resume it");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    eventually("the writer runs again", Duration::from_secs(30), || async { (!paused(&stack)).then_some(()) }).await;
    let op = ended(&client, &begun["operation_id"]).await;
    assert_eq!(op["state"], json!("failed"), "{op:#}");
    assert!(op["message"].as_str().is_some_and(|m| m.contains("restarted while it ran")), "{op:#}");
    assert_eq!(client.ok("backups", json!({"stack": stack})).await["snapshots"], json!([]), "no half snapshot");

    // A call that gives up waiting, and one that is cancelled.
    let short = json!({"stack": stack, "timeout_s": 0, "idempotency_key": "once"});
    let first = client.ok("backup", short.clone()).await;
    assert!(matches!(first["state"].as_str(), Some("queued" | "running")), "{first:#}");
    let again = client.ok("backup", short).await;
    assert_eq!(again["operation_id"], first["operation_id"], "the same key is the same operation");
    let busy = client.refused("deploy", input(&stack, &slot.image, "2", settings)).await;
    assert_eq!(busy["error"]["data"]["operation_id"], first["operation_id"], "{busy:#}");
    client.ok("cancel", json!({"operation_id": first["operation_id"]})).await;
    let op = ended(&client, &first["operation_id"]).await;
    assert_eq!((op["state"].clone(), paused(&stack)), (json!("cancelled"), false), "{op:#}");
    assert_eq!(client.ok("backups", json!({"stack": stack})).await["snapshots"], json!([]), "no half snapshot");

    std::fs::remove_file(&large).expect("removed");
    let whole = client.ok("backup", json!({"stack": stack, "wait": false})).await;
    let op = ended(&client, &whole["operation_id"]).await;
    assert_eq!((op["state"].clone(), op["snapshots"][0]["state"].clone()), (json!("done"), json!("complete")), "{op:#}");
    assert!(!paused(&stack));
    let helpers = docker(&["ps", "-aq", "--filter", "label=dockwarden.helper", "--filter", &format!("name={stack}")]);
    assert_eq!(helpers, "", "no helper container stays");
    serve.stop().await;
}

#[tokio::test]
async fn data_goes_back_by_a_snapshot_taken_before_the_update_and_stays_back_in_later_deploys() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("data");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let settings = "backup: {enable: false, pre_update: true}";
    let live = format!("{stack}_visits");
    let note = |volume: &str| mountpoint(volume).join("note");

    let one = client.ok("deploy", input(&stack, &slot.image, "1", settings)).await;
    ended(&client, &one["operation_id"]).await;
    std::fs::write(note(&live), "one").expect("written");
    let plan = client.ok("plan", input(&stack, &slot.image, "2", settings)).await;
    assert!(plan["changes"][0]["expected_loss"].as_str().is_some_and(|l| l.contains("its data is snapshotted")), "{plan:#}");
    let two = client.ok("deploy", input(&stack, &slot.image, "2", settings)).await;
    let two = ended(&client, &two["operation_id"]).await;
    let snapshot = two["snapshots"][0].clone();
    assert_eq!(
        (two["state"].clone(), snapshot["tags"].clone(), snapshot["release"].clone()),
        (json!("done"), json!(["pre-update"]), json!(1)),
        "{two:#}"
    );
    std::fs::write(note(&live), "two").expect("written");

    let unknown = client.refused("rollback", json!({"stack": stack, "data": "feedbeef"})).await;
    assert_eq!((unknown["error"]["code"].clone(), unknown["error"]["field"].clone()), (json!("not_found"), json!("data")), "{unknown:#}");
    let other = home.stack("other");
    client.ok("deploy", input(&other, &slot.image, "1", "backup: {enable: false}")).await;
    let foreign = client.refused("rollback", json!({"stack": other, "to_release": 1, "data": snapshot["snapshot_id"]})).await;
    assert_eq!(foreign["error"]["code"], json!("invalid_argument"), "{foreign:#}");

    let back = client.ok("rollback", json!({"stack": stack, "data": snapshot["snapshot_id"]})).await;
    let back = ended(&client, &back["operation_id"]).await;
    assert_eq!(back["state"], json!("done"), "{back:#}");
    assert!(back["message"].as_str().is_some_and(|m| m.contains(&format!("kept in volume {live}"))), "{back:#}");
    let restored = in_use(&stack);
    assert_ne!(restored, live);
    let read = |volume: &str| std::fs::read_to_string(note(volume)).expect("there");
    assert_eq!((read(&restored), read(&live)), ("one".to_owned(), "two".to_owned()), "the data of release 1 runs, the later data is kept");

    // The file still says `visits`; what was taken into use stays in use.
    let three = client.ok("deploy", input(&stack, &slot.image, "3", settings)).await;
    let three = ended(&client, &three["operation_id"]).await;
    assert_eq!((three["state"].clone(), in_use(&stack)), (json!("done"), restored.clone()), "{three:#}");
    client.ok("stop", json!({"stack": stack, "remove": true})).await;
    let four = client.ok("deploy", input(&stack, &slot.image, "4", settings)).await;
    assert_eq!((four["state"].clone(), in_use(&stack)), (json!("monitoring"), restored), "also after a removal: {four:#}");

    // Taken into use on request, and rehearsed: both leave every other volume alone.
    ended(&client, &four["operation_id"]).await;
    std::fs::write(note(&in_use(&stack)), "four").expect("written");
    let before = in_use(&stack);
    let swapped = client.ok("restore", json!({"snapshot_id": snapshot["snapshot_id"], "swap": true, "wait": false})).await;
    let swapped = ended(&client, &swapped["operation_id"]).await;
    assert_eq!((swapped["state"].clone(), swapped["restored"][0]["verified"].clone()), (json!("done"), json!(true)), "{swapped:#}");
    assert_ne!(in_use(&stack), before);
    assert_eq!((read(&in_use(&stack)), read(&before), read(&live)), ("one".to_owned(), "four".to_owned(), "two".to_owned()));
    let drill = client.ok("verify_backup", json!({"snapshot_id": snapshot["snapshot_id"], "probe": true, "wait": false})).await;
    let drill = ended(&client, &drill["operation_id"]).await;
    assert_eq!((drill["state"].clone(), drill["drills"][0]["probed"].clone()), (json!("done"), json!("store")), "{drill:#}");
    let listed = client.ok("backups", json!({"stack": stack})).await;
    assert_eq!(listed["drills"][0]["passed"], json!(true), "{listed:#}");
    assert_eq!(listed["uncovered"][0]["service"], json!("store"), "its schedule is off: {listed:#}");
    let of_drill = format!("label=dockwarden.operation={}", drill["operation_id"].as_str().expect("an id"));
    assert_eq!(
        docker(&["volume", "ls", "-q", "--filter", &of_drill]) + &docker(&["ps", "-aq", "--filter", &of_drill]),
        "",
        "nothing of the drill stays"
    );
    let (_, doctor, _) = home.run(&["doctor"]).await;
    assert!(doctor.contains(&format!("{stack}/store")), "doctor names data without backups: {doctor}");
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}
