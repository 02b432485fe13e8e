//! A supervisor that is killed while it brings a copy up to date, lets directories change places, or removes what a restore took the place of. One moment of
//! each by default, every one with `DOCKWARDEN_MATRIX=full`. restic and the disk say afterwards what is there.

use crate::backups::{newest, records, restic};
use crate::support::data::{called, done, ended, mountpoint, settled};
use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Copy,
    Exchange,
    DiscardVolume,
    DiscardDirectory,
}

/// Work, and after how many records and milliseconds the supervisor is killed in it.
type Point = (Work, u32, u64);

fn points() -> Vec<Point> {
    use Work::{Copy, DiscardDirectory, DiscardVolume, Exchange};
    let mut all: Vec<Point> = [(1, 0), (1, 60), (1, 200), (2, 0)].map(|(n, ms)| (Copy, n, ms)).to_vec();
    all.extend((1..=13).step_by(2).map(|n| (Exchange, n, 0)));
    for work in [DiscardVolume, DiscardDirectory] {
        all.extend([(1, 0), (1, 40), (2, 0), (3, 0), (3, 5)].map(|(n, ms)| (work, n, ms)));
    }
    if std::env::var("DOCKWARDEN_MATRIX").as_deref() != Ok("full") {
        let few = [(Copy, 1, 60), (Exchange, 7, 0), (DiscardVolume, 1, 40), (DiscardDirectory, 3, 0)];
        all.retain(|p| few.contains(p));
    }
    all
}

fn input(stack: &str, image: &str, files: &Path) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1, backup: {{enable: false, quiesce: pause}}}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    \
         mem_limit: 64m\n    environment: {{ROLE: store, VERSION: '1'}}\n    volumes: ['visits:/data', '{}:/files']\n    \
         healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 1s}}\nvolumes: {{visits: {{}}}}\n",
        files.display()
    );
    json!({"stack": stack, "compose": compose})
}

fn noise(at: &Path, name: &str, mib: usize) -> Vec<u8> {
    let mut noise = vec![0u8; mib << 20];
    getrandom::fill(&mut noise).expect("random bytes");
    std::fs::write(at.join(name), &noise).expect("written");
    noise
}

/// Where the service has its volume now.
fn in_use(stack: &str) -> String {
    let template = "{{range .Mounts}}{{if eq .Destination \"/data\"}}{{.Name}}{{end}}{{end}}";
    docker(&["inspect", "-f", template, &format!("{stack}-store-1")])
}

/// Everything that is restored is taken into use, and what was live is kept: its place, and what it holds.
async fn kept_after_a_swap(client: &Client, stack: &str, source: &str, live: &Path) -> (String, Vec<u8>) {
    let taken = done(client, "backup", json!({"stack": stack})).await;
    let of = taken["snapshots"].as_array().and_then(|s| s.iter().find(|s| s["volume"] == source)).cloned();
    let snapshot = of.unwrap_or_else(|| panic!("no snapshot of {source}: {taken:#}"))["snapshot_id"].clone();
    let held = noise(live, "since", 4);
    done(client, "restore", json!({"snapshot_id": snapshot, "swap": true})).await;
    let listed = client.ok("backups", json!({"stack": stack})).await;
    let rows = listed["kept"].as_array().cloned().unwrap_or_default();
    let same = |r: &&Value| r["place"].as_str().is_some_and(|p| p.starts_with('/') == source.starts_with('/'));
    let newest = rows.iter().filter(same).max_by_key(|r| r["since"].as_str()).and_then(|r| r["place"].as_str());
    (newest.unwrap_or_else(|| panic!("nothing is kept: {listed:#}")).to_owned(), held)
}

fn place_of(kept: &str) -> Option<PathBuf> {
    if kept.starts_with('/') {
        return Some(PathBuf::from(kept)).filter(|p| p.exists());
    }
    let there = docker(&["volume", "ls", "-q", "--filter", &format!("name={kept}")]);
    there.lines().any(|v| v == kept).then(|| mountpoint(kept))
}

#[tokio::test]
async fn a_supervisor_killed_while_it_copies_exchanges_or_removes_leaves_each_whole_or_not_begun() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    home.unlimited("backup-keeper");
    let (root, disk) = (home.path("stacks"), home.path("disk/copy"));
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    let roots = format!("bind_roots_allow = [{:?}]", root.display().to_string());
    home.configure("policy.toml", &policy.replace("bind_roots_allow = []", &roots));
    home.configure("dockwarden.toml", &format!("[backup.copies.disk]\nat = {disk:?}\nschedule = \"off\"\n"));
    let files = root.join("files");
    std::fs::create_dir_all(&files).expect("made");
    let stack = home.stack("killed-data");
    let mut serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = client.ok("deploy", input(&stack, &slot.image, &files)).await;
    assert_eq!(ended(&client, &up["operation_id"]).await["state"], json!("done"), "{up:#}");
    noise(&mountpoint(&in_use(&stack)), "noise", 24);
    noise(&files, "noise", 8);
    let instance = docker(&["inspect", "-f", "{{index .Config.Labels \"dockwarden.instance\"}}", &format!("{stack}-store-1")]);
    done(&client, "backup", json!({"stack": stack})).await;
    drop(client);
    let all = points();
    let (count, mut met) = (all.len(), 0);
    for (work, record, later) in all {
        let context = format!("{work:?} killed {later} ms after record {record}");
        let client = Client::stdio(&home, "stack-keeper").await;
        let keeper = Client::stdio(&home, "backup-keeper").await;
        let source = if matches!(work, Work::Exchange | Work::DiscardDirectory) { files.display().to_string() } else { in_use(&stack) };
        let at = if source.starts_with('/') { files.clone() } else { mountpoint(&source) };
        noise(&at, "new", 4);
        // What is called, by whom; what must be there afterwards whatever came of it.
        let mut kept = None;
        let (who, tool, arguments) = match work {
            Work::Copy => {
                done(&client, "backup", json!({"stack": stack})).await;
                (&keeper, "backup", json!({"copy": "disk"}))
            }
            Work::Exchange => {
                let taken = done(&client, "backup", json!({"stack": stack})).await;
                let of = taken["snapshots"].as_array().and_then(|s| s.iter().find(|s| s["volume"] == source.as_str()));
                (&client, "restore", json!({"snapshot_id": of.expect("a snapshot of it")["snapshot_id"], "swap": true}))
            }
            Work::DiscardVolume | Work::DiscardDirectory => {
                let (place, held) = kept_after_a_swap(&client, &stack, &source, &at).await;
                if work == Work::DiscardVolume {
                    done(&client, "backup", json!({"volume": place})).await;
                }
                let arguments = json!({"confirm": place});
                kept = Some((place, held));
                (&client, "restore", arguments)
            }
        };
        let (volume, before) = (in_use(&stack), std::fs::read(files.join("noise")).expect("live"));
        let live = std::fs::read(mountpoint(&volume).join("noise")).expect("live");
        let mut arguments = arguments;
        arguments["wait"] = json!(false);
        let operation = tokio::select! {
            reply = who.call(tool, arguments) => {
                let reply = reply.unwrap_or_else(|e| panic!("{context}: {e}")).structured_content.unwrap_or_default();
                reply["operation_id"].as_str().map_or_else(|| panic!("{context}: {reply:#}"), str::to_owned)
            }
            found = newest(&home, tool) => found,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while records(&home, &operation) < record && !settled(&home, &operation) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(later)).await;
        met += usize::from(!settled(&home, &operation));
        serve.kill9().await;
        drop((client, keeper));

        serve = Serve::start(&home).await;
        let client = Client::stdio(&home, "stack-keeper").await;
        let op = ended(&client, &json!(operation)).await;
        eprintln!("{context}: {}", op["state"]);
        assert_ne!(op["state"], json!("needs_attention"), "{context}: {op:#}");
        eventually(&format!("{context}: the service runs"), Duration::from_secs(60), || async {
            (docker(&["inspect", "-f", "{{.State.Status}}", &format!("{stack}-store-1")]) == "running").then_some(())
        })
        .await;
        let ours = format!("label=dockwarden.instance={instance}");
        let helpers = |what: &[&str]| docker(&[what, &["--filter", &ours, "--filter", "label=dockwarden.helper"]].concat());
        assert_eq!(helpers(&["ps", "-aq"]) + &helpers(&["volume", "ls", "-q"]), "", "{context}: a helper is left");
        assert_eq!(in_use(&stack), volume, "{context}");
        assert!(std::fs::read(mountpoint(&volume).join("noise")).expect("live") == live, "{context}: the live volume changed");
        assert!(std::fs::read(files.join("noise")).expect("live") == before, "{context}: what no restore changes has changed");
        // A directory that was made for the operation stays only as what is kept.
        let listed = client.ok("backups", json!({"stack": stack})).await;
        let recorded = listed["kept"].to_string();
        for entry in std::fs::read_dir(&root).expect("listed").map(|e| e.expect("an entry").path()).filter(|p| p.is_dir() && *p != files) {
            // One whose removal has begun has another name.
            let place = entry.to_str().expect("plain").trim_end_matches(".removing");
            assert!(recorded.contains(place), "{context}: {} is left: {recorded}", entry.display());
        }
        if let Some((place, held)) = kept {
            match place_of(&place) {
                Some(at) => {
                    assert!(recorded.contains(&place), "{context}: {place} is there and not known to be kept: {recorded}");
                    assert!(std::fs::read(at.join("since")).expect("kept") == held, "{context}: {place} is no longer whole");
                    done(&client, "restore", json!({"confirm": place})).await;
                }
                // It was removed, or its removal had begun: the same word ends it.
                None if recorded.contains(&place) => drop(done(&client, "restore", json!({"confirm": place})).await),
                None => {}
            }
            assert!(place_of(&place).is_none(), "{context}");
        }
        let there = restic(&home, &["snapshots", "--json"]);
        for s in listed["snapshots"].as_array().expect("a list") {
            assert!(there.contains(s["snapshot_id"].as_str().expect("an id")), "{context}: {s} is recorded and not there");
        }
        restic(&home, &["check"]);
        if work == Work::Copy {
            let keeper = Client::stdio(&home, "backup-keeper").await;
            let again = called(&keeper, "backup", json!({"copy": "disk"})).await;
            assert_eq!(again["state"], json!("done"), "{context}: {again:#}");
            let sound = called(&keeper, "verify_backup", json!({"copy": "disk", "repository_part": 1})).await;
            assert_eq!(sound["state"], json!("done"), "{context}: {sound:#}");
        }
    }
    assert!(2 * met >= count, "{met} of {count} kills met an operation at work");
    restic(&home, &["check", "--read-data"]);
    let copy = disk.display().to_string();
    restic(&home, &["--repo", &copy, "check", "--read-data"]);
    serve.stop().await;
}
