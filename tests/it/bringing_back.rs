//! Data brought back on a real engine: a part of a snapshot, for another stack, for another host, in the place of a directory and of a volume without a name.
//! What is on disk is looked at directly.

use crate::support::data::{called, done, ended, mountpoint};
use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the volume a stack's container has at a path.
fn mounted(stack: &str, at: &str) -> String {
    let format = format!("{{{{range .Mounts}}}}{{{{if eq .Destination \"{at}\"}}}}{{{{.Name}}}}{{{{end}}}}{{{{end}}}}");
    docker(&["inspect", "-f", &format, &format!("{stack}-store-1")])
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A service with a named volume, one without a name, and a directory of the host.
fn input(stack: &str, image: &str, files: &Path) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1, backup: {{enable: false}}}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
         environment: {{ROLE: store, VERSION: '1'}}\n    volumes: ['/data', 'shared:/shared', '{}:/files']\n    \
         healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 1s}}\nvolumes: {{shared: {{}}}}\n",
        files.display()
    );
    json!({"stack": stack, "compose": compose})
}

fn bind_roots(home: &Home) -> PathBuf {
    let root = home.path("stacks");
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    let roots = format!("bind_roots_allow = [{:?}]", root.display().to_string());
    home.configure("policy.toml", &policy.replace("bind_roots_allow = []", &roots));
    root
}

#[tokio::test]
async fn a_part_another_stack_a_directory_and_a_volume_without_a_name_come_back_as_asked() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let files = bind_roots(&home).join("files");
    std::fs::create_dir_all(&files).expect("made");
    let (stack, other) = (home.stack("back"), home.stack("elsewhere"));
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = client.ok("deploy", input(&stack, &slot.image, &files)).await;
    let up = ended(&client, &up["operation_id"]).await;
    assert_eq!(up["state"], json!("done"), "{up:#}");
    let (shared, unnamed) = (mountpoint(&format!("{stack}_shared")), mounted(&stack, "/data"));
    std::fs::create_dir_all(shared.join("photos/2024")).expect("made");
    for (path, text) in [
        (shared.join("photos/2024/a"), "a"),
        (shared.join("photos/b"), "b"),
        (files.join("note"), "old"),
        (mountpoint(&unnamed).join("note"), "old"),
    ] {
        std::fs::write(path, text).expect("written");
    }
    let backup = done(&client, "backup", json!({"stack": stack})).await;
    let of = |source: &str| {
        let snapshots = backup["snapshots"].as_array().expect("a list");
        let found = snapshots.iter().find(|s| s["volume"] == source).unwrap_or_else(|| panic!("no snapshot of {source}: {backup:#}"));
        found["snapshot_id"].clone()
    };
    let (volume, directory, anonymous) = (of(&format!("{stack}_shared")), of(&files.display().to_string()), of(&unnamed));
    std::fs::write(files.join("note"), "live").expect("written");
    std::fs::write(mountpoint(&unnamed).join("note"), "live").expect("written");

    // A part.
    let part = done(&client, "restore", json!({"snapshot_id": volume, "path": "photos/2024"})).await;
    assert_eq!((part["restored"][0]["files"].clone(), part["restored"][0]["verified"].clone()), (json!(1), json!(true)), "{part:#}");
    let beside = part["restored"][0]["volume"].as_str().expect("restored").to_owned();
    assert_eq!(read(&mountpoint(&beside).join("photos/2024/a")), "a");
    assert!(!mountpoint(&beside).join("photos/b").exists());
    docker(&["volume", "rm", &beside]);
    let volumes = || docker(&["volume", "ls", "-q", "--filter", &format!("name={stack}")]);
    let before = volumes();
    for (path, says) in [("/photos", "is absolute"), ("photos/../../x", "leads up"), ("fotos", "nearest are photos")] {
        let refused = client.refused("restore", json!({"snapshot_id": volume, "path": path})).await;
        assert!(refused["error"]["field"] == json!("path") && refused.to_string().contains(says), "{path}: {refused:#}");
    }
    assert_eq!(volumes(), before, "nothing is made for what is refused");

    // Another stack, which takes it into use under its own name.
    let same = client.refused("restore", json!({"snapshot_id": volume, "to_stack": stack})).await;
    assert_eq!(same["error"]["field"], json!("to_stack"), "{same:#}");
    let moved = done(&client, "restore", json!({"snapshot_id": volume, "to_stack": other})).await;
    assert_eq!(moved["restored"][0]["volume"], json!(format!("{other}_shared")), "{moved:#}");
    let next = moved["restored"][0]["next"].as_str().expect("words");
    let file = next.split_whitespace().find(|w| w.ends_with(".json")).unwrap_or_else(|| panic!("no file in {next}"));
    let compose: Value = serde_json::from_str(&read(Path::new(file))).expect("a compose file");
    assert_eq!(compose["services"]["store"]["image"], json!(slot.image), "{compose:#}");
    let more = home.path("stacks/more/files");
    std::fs::create_dir_all(&more).expect("made");
    let up = client.ok("deploy", input(&other, &slot.image, &more)).await;
    let up = ended(&client, &up["operation_id"]).await;
    assert_eq!((up["state"].clone(), mounted(&other, "/shared")), (json!("done"), format!("{other}_shared")), "{up:#}");
    assert_eq!(read(&mountpoint(&format!("{other}_shared")).join("photos/2024/a")), "a");
    client.ok("stop", json!({"stack": other, "remove": true})).await;

    // A directory changes places with what was restored beside it.
    let started = || docker(&["inspect", "-f", "{{.State.StartedAt}}", &format!("{stack}-store-1")]);
    let then = started();
    let swapped = done(&client, "restore", json!({"snapshot_id": directory, "swap": true})).await;
    let kept = swapped["message"].as_str().and_then(|m| m.rsplit(' ').next()).map(PathBuf::from).unwrap_or_else(|| panic!("{swapped:#}"));
    assert_eq!((read(&files.join("note")), read(&kept.join("note"))), ("old".to_owned(), "live".to_owned()), "{swapped:#}");
    assert_ne!(started(), then, "a container sees a directory it was started on");
    let entries = std::fs::read_dir(files.parent().expect("a parent")).expect("listed").count();
    assert_eq!(entries, 3, "the two of them, what is the other stack's, and nothing else");

    // That was a release like any other, and what was live is known to be kept.
    let history = client.ok("history", json!({"stack": stack})).await;
    let newest = &history["releases"][0];
    assert_eq!((newest["current"].clone(), newest["operation_id"].clone()), (json!(true), swapped["operation_id"].clone()), "{history:#}");
    let changed = client.ok("history", json!({"stack": stack, "release": newest["release"]})).await["changed"].to_string();
    assert!(changed.contains(directory.as_str().expect("an id")), "{changed}");
    let listed = client.ok("backups", json!({"stack": stack})).await;
    let row = listed["kept"].as_array().and_then(|k| k.first()).unwrap_or_else(|| panic!("{listed:#}"));
    assert_eq!(
        (row["place"].clone(), row["release"].clone(), row["bytes"].clone()),
        (json!(kept), newest["release"].clone(), json!(4)),
        "{row:#}"
    );
    // It goes when somebody says so, and not while it is another than what was snapshotted.
    let nothing = client.refused("restore", json!({"confirm": "/nowhere"})).await;
    assert_eq!(nothing["error"]["field"], json!("confirm"), "{nothing:#}");
    std::fs::write(kept.join("more"), "written since").expect("written");
    let refused = called(&client, "restore", json!({"confirm": kept})).await;
    assert!(refused["state"] == json!("failed") && refused["evidence"].to_string().contains("more: not in snapshot"), "{refused:#}");
    assert!(kept.join("note").is_file());

    // An older release with the data of then.
    std::fs::write(files.join("note"), "newer").expect("written");
    let back = client.ok("rollback", json!({"stack": stack, "data": directory})).await;
    let back = ended(&client, &back["operation_id"]).await;
    assert_eq!((back["state"].clone(), read(&files.join("note"))), (json!("done"), "old".to_owned()), "{back:#}");
    let place = back["message"].as_str().and_then(|m| m.rsplit(' ').next()).map(PathBuf::from).unwrap_or_else(|| panic!("{back:#}"));
    assert_eq!(read(&place.join("note")), "newer");
    done(&client, "restore", json!({"confirm": place})).await;
    assert!(!place.exists());
    let kept_still = client.ok("backups", json!({"stack": stack})).await["kept"].clone();
    assert_eq!((kept_still.as_array().map(Vec::len), kept_still[0]["place"].clone()), (Some(1), json!(kept)), "{kept_still:#}");

    // A volume that has no name in the file, twice: the second time it is found by what took its place.
    for round in 1..=2 {
        let live = mounted(&stack, "/data");
        std::fs::write(mountpoint(&live).join("note"), format!("live {round}")).expect("written");
        done(&client, "restore", json!({"snapshot_id": anonymous, "swap": true})).await;
        let used = mounted(&stack, "/data");
        assert_ne!(used, live);
        assert_eq!(
            (read(&mountpoint(&used).join("note")), read(&mountpoint(&live).join("note"))),
            ("old".to_owned(), format!("live {round}"))
        );
    }
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
    docker(&["volume", "rm", &unnamed]);
}

#[tokio::test]
async fn a_copy_of_repository_and_key_is_listed_and_restored_from_on_another_host() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let files = bind_roots(&home).join("files");
    std::fs::create_dir_all(&files).expect("made");
    let stack = home.stack("moves");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = client.ok("deploy", input(&stack, &slot.image, &files)).await;
    ended(&client, &up["operation_id"]).await;
    std::fs::write(mountpoint(&format!("{stack}_shared")).join("note"), "moved").expect("written");
    let backup = done(&client, "backup", json!({"stack": stack})).await;
    let taken = backup["snapshots"].as_array().expect("a list").len();
    drop(client);
    serve.stop().await;

    // Another home is another host: it knows nothing of the stack.
    let there = Home::new();
    there.unlimited("stack-keeper");
    let arrived = there.stack("arrived");
    let copy = |from: &str| {
        let to = there.path(from);
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("made");
        let status = std::process::Command::new("cp").arg("-a").arg(home.path(from)).arg(&to).status().expect("cp runs");
        assert!(status.success(), "{from}");
    };
    copy("state/backups");
    copy("state/keys/backup.key");
    let serve = Serve::start(&there).await;
    let client = Client::stdio(&there, "stack-keeper").await;
    let listed = eventually("the snapshots are listed", Duration::from_secs(60), || async {
        let listed = client.ok("backups", json!({"stack": stack})).await;
        (listed["snapshots"].as_array().is_some_and(|s| s.len() == taken)).then_some(listed)
    })
    .await;
    let source = json!(format!("{stack}_shared"));
    let snapshot = listed["snapshots"].as_array().expect("a list").iter().find(|s| s["volume"] == source).expect("listed").clone();
    assert_eq!(snapshot["state"], json!("complete"));
    let moved = done(&client, "restore", json!({"snapshot_id": snapshot["snapshot_id"], "to_stack": arrived})).await;
    assert_eq!(moved["restored"][0]["verified"], json!(true), "{moved:#}");
    let volume = moved["restored"][0]["volume"].as_str().expect("restored").to_owned();
    assert_eq!((volume.as_str(), read(&mountpoint(&volume).join("note")).as_str()), (format!("{arrived}_shared").as_str(), "moved"));
    docker(&["volume", "rm", &volume]);
    serve.stop().await;
}

#[tokio::test]
async fn a_link_in_the_place_of_a_directory_is_neither_read_nor_exchanged() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let root = bind_roots(&home);
    let (files, host) = (root.join("files"), home.path("host"));
    for dir in [&files, &host] {
        std::fs::create_dir_all(dir).expect("made");
    }
    std::fs::write(host.join("key"), "of the host").expect("written");
    let stack = home.stack("linked");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = client.ok("deploy", input(&stack, &slot.image, &files)).await;
    let up = ended(&client, &up["operation_id"]).await;
    assert_eq!(up["state"], json!("done"), "{up:#}");
    let taken = done(&client, "backup", json!({"stack": stack})).await;
    let source = json!(files.display().to_string());
    let of = |list: &Value| list["snapshots"].as_array().expect("a list").iter().filter(|s| s["volume"] == source).count();
    assert_eq!(of(&taken), 1, "{taken:#}");

    // What a container that may write above its own directory does.
    std::fs::rename(&files, root.join("old")).expect("moved");
    std::os::unix::fs::symlink(&host, &files).expect("linked");
    let begun = client.ok("backup", json!({"stack": stack, "wait": false})).await;
    let op = ended(&client, &begun["operation_id"]).await;
    assert!(op["state"] == json!("failed") && op["message"].as_str().is_some_and(|m| m.contains("is a link")), "{op:#}");
    assert_eq!(of(&client.ok("backups", json!({"stack": stack})).await), 1, "nothing of the host is in the repository");
    assert_eq!(std::fs::read_dir(&host).expect("there").count(), 1);
    serve.stop().await;
}
