//! Backups on a real engine: databases that people run, data outside of volumes, and a supervisor that is killed at any record of its work. What is on
//! disk is looked at directly, and the repository by restic.

use crate::support::data::{called, ended, mountpoint, settled};
use crate::support::engine::{database, docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// restic on the home's repository, with its key.
pub(crate) fn restic(home: &Home, args: &[&str]) -> String {
    let output = std::process::Command::new("restic")
        .arg("--no-cache")
        .args(args)
        .env("RESTIC_REPOSITORY", home.path("state/backups"))
        .env("RESTIC_PASSWORD_FILE", home.path("state/keys/backup.key"))
        .output()
        .expect("restic runs");
    assert!(output.status.success(), "restic {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// PostgreSQL and Redis with the backup settings the documentation shows, and a directory of the host.
fn databases(stack: &str, postgres: &str, redis: &str, files: &Path, dump: &str) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1, backup: {{enable: false}}}}
services:
  db:
    image: {postgres}
    mem_limit: 256m
    volumes: ['db:/data']
    healthcheck: {{test: ['CMD', 'pg_isready'], interval: 1s, start_period: 60s}}
    x-dockwarden:
      backup:
        quiesce: pause
        pre: [{{run: [psql, -c, CHECKPOINT]}}]
        stdout: '{dump}'
        verify: [psql, -v, ON_ERROR_STOP=1, -c, 'select 1 / count(*) from visits']
  cache:
    image: {redis}
    mem_limit: 64m
    volumes: ['cache:/data', '{files}:/files']
    healthcheck: {{test: ['CMD', 'redis-cli', 'ping'], interval: 1s, start_period: 60s}}
    x-dockwarden:
      backup:
        pre: [{{run: [redis-cli, save]}}]
        verify: redis-cli exists visits
volumes: {{db: {{}}, cache: {{}}}}
",
        files = files.display()
    );
    json!({"stack": stack, "compose": compose})
}

#[tokio::test]
async fn databases_are_backed_up_by_their_own_commands_and_run_again_on_what_comes_back() {
    let _slot = engine().await;
    let (postgres, redis) = (database("postgres").await, database("redis").await);
    let home = Home::new();
    home.unlimited("stack-keeper");
    let root = home.path("stacks");
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    home.configure(
        "policy.toml",
        &policy.replace("bind_roots_allow = []", &format!("bind_roots_allow = [{:?}]", root.display().to_string())),
    );
    let files = root.join("files");
    std::fs::create_dir_all(files.join("of")).expect("made");
    std::fs::write(files.join("of/visitors"), "ann").expect("written");
    let stack = home.stack("databases");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = called(&client, "deploy", databases(&stack, &postgres, &redis, &files, "pg_dump --no-owner postgres")).await;
    assert_eq!(up["state"], json!("done"), "{up:#}");
    let sql = |text: &str| docker(&["exec", &format!("{stack}-db-1"), "psql", "-At", "-c", text]);
    sql("create table visits(who text); insert into visits values ('ann'), ('bob')");
    docker(&["exec", &format!("{stack}-cache-1"), "redis-cli", "set", "visits", "2"]);

    let backup = called(&client, "backup", json!({"stack": stack})).await;
    assert_eq!((backup["state"].clone(), backup["message"].clone()), (json!("done"), Value::Null), "{backup:#}");
    let of = |source: &str| {
        let snapshots = backup["snapshots"].as_array().expect("a list");
        snapshots.iter().find(|s| s["volume"] == source).unwrap_or_else(|| panic!("no snapshot of {source}: {backup:#}")).clone()
    };
    let (dump, directory) = (of(&format!("{stack}_db.stdout")), of(&files.display().to_string()));
    of(&format!("{stack}_db"));
    of(&format!("{stack}_cache"));

    let back = called(&client, "restore", json!({"snapshot_id": dump["snapshot_id"]})).await;
    let volume = back["restored"][0]["volume"].as_str().expect("restored").to_owned();
    let text = std::fs::read_to_string(mountpoint(&volume).join("stdout")).expect("one file");
    assert!(text.contains("COPY public.visits (who) FROM stdin;\nann\nbob\n"), "{text}");
    docker(&["volume", "rm", &volume]);

    // A directory comes back beside itself.
    std::fs::write(files.join("of/visitors"), "nobody").expect("written");
    let back = called(&client, "restore", json!({"snapshot_id": directory["snapshot_id"]})).await;
    let beside = PathBuf::from(back["restored"][0]["volume"].as_str().expect("restored"));
    assert_eq!((back["restored"][0]["verified"].clone(), beside.parent()), (json!(true), files.parent()), "{back:#}");
    let read = |root: &Path| std::fs::read_to_string(root.join("of/visitors")).expect("there");
    assert_eq!((read(&beside), read(&files)), ("ann".to_owned(), "nobody".to_owned()));
    let swap = called(&client, "restore", json!({"snapshot_id": directory["snapshot_id"], "swap": true})).await;
    assert_eq!((swap["state"].clone(), read(&files).as_str()), (json!("done"), "ann"), "{swap:#}");

    // Both servers start on what comes back, without network, and hold what was written.
    let drill = called(&client, "verify_backup", json!({"stack": stack, "probe": true})).await;
    assert_eq!(drill["state"], json!("done"), "{drill:#}");
    let mut probed: Vec<&str> = drill["drills"].as_array().expect("a list").iter().filter_map(|d| d["probed"].as_str()).collect();
    probed.sort_unstable();
    assert_eq!(probed, ["cache", "db"], "{drill:#}");

    // A dump that fails is no snapshot.
    let wrong = client.ok("deploy", databases(&stack, &postgres, &redis, &files, "pg_dump nosuch")).await;
    ended(&client, &wrong["operation_id"]).await;
    let before = client.ok("backups", json!({"stack": stack})).await["snapshots"].clone();
    let failed = called(&client, "backup", json!({"stack": stack, "service": "db"})).await;
    assert_eq!(failed["state"], json!("failed"), "{failed:#}");
    assert!(failed["message"].as_str().is_some_and(|m| m.contains("exit code 1") && m.contains("nosuch")), "{failed:#}");
    assert_eq!(client.ok("backups", json!({"stack": stack})).await["snapshots"], before);

    let exported = called(&client, "export", json!({"snapshot_id": dump["snapshot_id"]})).await;
    let file = exported["exports"][0]["file"].as_str().unwrap_or_else(|| panic!("{exported:#}")).to_owned();
    let check = std::process::Command::new("sha256sum")
        .arg("-c")
        .arg(format!("{file}.sha256"))
        .current_dir(Path::new(&file).parent().unwrap())
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    let keeper = Client::stdio(&home, "backup-keeper").await;
    let part = called(&keeper, "verify_backup", json!({"repository_part": 3})).await;
    drop(keeper);
    assert_eq!((part["state"].clone(), part["checks"][0]["part"].clone()), (json!("done"), json!("3/7")), "{part:#}");
    restic(&home, &["check", "--read-data"]);
    serve.stop().await;
}

/// One service with one volume that holds noise.
fn one(stack: &str, image: &str) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1, backup: {{enable: false, quiesce: pause}}}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    \
         mem_limit: 64m\n    environment: {{ROLE: store, VERSION: '1'}}\n    volumes: ['visits:/data']\n    \
         healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 1s}}\nvolumes: {{visits: {{}}}}\n"
    );
    json!({"stack": stack, "compose": compose})
}

/// Journal records of the newest operation: each step has one before it and one after it.
pub(crate) fn records(home: &Home, operation: &str) -> u32 {
    let open = rusqlite::Connection::open_with_flags(home.path("state/state.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY);
    let count = open.and_then(|c| {
        c.busy_timeout(Duration::from_secs(5))?;
        c.query_row("SELECT count(*) + count(sealed_done) FROM step WHERE operation = ?1", [operation], |r| r.get::<_, u32>(0))
    });
    count.expect("the journal is read")
}

/// One point of the matrix: a call, and after how many records, and how long after that, the supervisor is killed.
struct Point {
    tool: &'static str,
    swap: bool,
    record: u32,
    later: Duration,
}

fn matrix() -> Vec<Point> {
    let point = |tool, swap, record, ms| Point { tool, swap, record, later: Duration::from_millis(ms) };
    let mut all: Vec<Point> = (1..=8).map(|n| point("backup", false, n, 0)).collect();
    all.extend([40, 120, 300].map(|ms| point("backup", false, 3, ms)));
    all.extend([(1, 0), (1, 60), (1, 200), (2, 0)].map(|(n, ms)| point("restore", false, n, ms)));
    all.extend((1..=12).step_by(2).map(|n| point("restore", true, n, 0)));
    all.extend([(1, 0), (1, 50), (1, 150), (2, 0)].map(|(n, ms)| point("prune", false, n, ms)));
    if std::env::var_os("DOCKWARDEN_MATRIX").is_some_and(|v| v == "full") {
        return all;
    }
    // One of each kind, among them the moments with most under way.
    let few = [("backup", false, 3, 120), ("restore", false, 1, 60), ("restore", true, 5, 0), ("prune", false, 1, 50)];
    all.retain(|p| few.contains(&(p.tool, p.swap, p.record, u64::try_from(p.later.as_millis()).unwrap_or_default())));
    all
}

#[tokio::test]
async fn a_supervisor_killed_at_any_record_leaves_no_lie_nothing_paused_and_the_live_data_alone() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    // What is cleaned up here is only this home's: nobody is asked.
    let keeper = std::fs::read_to_string(home.path("config/agents/stack-keeper.md")).expect("shipped");
    let free = keeper.replace("- id: host\n      effect: approval", "- id: host\n      effect: allow");
    assert_ne!(free, keeper, "the rule about the host has changed");
    home.configure("agents/stack-keeper.md", &free);
    let stack = home.stack("killed");
    let mut serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = client.ok("deploy", one(&stack, &slot.image)).await;
    ended(&client, &up["operation_id"]).await;
    let live = format!("{stack}_visits");
    let mut noise = vec![0u8; 48 << 20];
    getrandom::fill(&mut noise).expect("random bytes");
    std::fs::write(mountpoint(&live).join("noise"), &noise).expect("written");
    let instance = docker(&["inspect", "-f", "{{index .Config.Labels \"dockwarden.instance\"}}", &format!("{stack}-store-1")]);
    let mut snapshot = called(&client, "backup", json!({"stack": stack})).await["snapshots"][0].clone();
    drop(client);
    let points = matrix();
    let (all, mut met) = (points.len(), 0);
    for (n, point) in points.into_iter().enumerate() {
        let client = Client::stdio(&home, "stack-keeper").await;
        let context =
            format!("{}{} killed {:?} after record {}", point.tool, if point.swap { " (swap)" } else { "" }, point.later, point.record);
        // New bytes, so that there is something to read and to forget.
        getrandom::fill(&mut noise[..8 << 20]).expect("random bytes");
        std::fs::write(mountpoint(&live).join(format!("more-{}", n % 3)), &noise[..8 << 20]).expect("written");
        let before = std::fs::read(mountpoint(&live).join("noise")).expect("live");
        let arguments = match (point.tool, point.swap) {
            ("backup", _) => json!({"stack": stack, "wait": false}),
            ("restore", false) => json!({"snapshot_id": snapshot["snapshot_id"], "wait": false}),
            ("restore", true) => json!({"snapshot_id": snapshot["snapshot_id"], "swap": true, "wait": false}),
            _ => {
                // A second snapshot in the same hour is what a plan to forget may take away.
                let taken = called(&client, "backup", json!({"stack": stack})).await;
                assert_eq!(taken["state"], json!("done"), "{context}: {taken:#}");
                snapshot = taken["snapshots"][0].clone();
                json!({"what": "snapshots", "dry_run": false})
            }
        };
        let begun = client.call(point.tool, arguments);
        let operation = tokio::select! {
            reply = begun => reply.unwrap_or_else(|e| panic!("{context}: {e}")).structured_content.unwrap_or_default()["operation_id"].as_str().map(str::to_owned),
            found = newest(&home, point.tool) => Some(found),
        };
        let operation = operation.unwrap_or_else(|| panic!("{context}: no operation"));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while records(&home, &operation) < point.record && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if settled(&home, &operation) {
                break;
            }
        }
        tokio::time::sleep(point.later).await;
        let at_work = !settled(&home, &operation);
        met += usize::from(at_work);
        eprintln!("{context}: {}", if at_work { "at work" } else { "over" });
        serve.kill9().await;
        drop(client);
        serve = Serve::start(&home).await;
        let client = Client::stdio(&home, "stack-keeper").await;
        let op = ended(&client, &json!(operation)).await;
        assert_ne!(op["state"], json!("needs_attention"), "{context}: {op:#}");
        let container = format!("{stack}-store-1");
        eventually(&format!("{context}: the service runs"), Duration::from_secs(60), || async {
            (docker(&["inspect", "-f", "{{.State.Status}}", &container]) == "running").then_some(())
        })
        .await;
        let ours = format!("label=dockwarden.instance={instance}");
        let helpers = |what: &[&str]| docker(&[what, &["--filter", &ours, "--filter", "label=dockwarden.helper"]].concat());
        assert_eq!(helpers(&["ps", "-aq"]) + &helpers(&["volume", "ls", "-q"]), "", "{context}: a helper is left");
        assert!(std::fs::read(mountpoint(&live).join("noise")).expect("live") == before, "{context}: live data changed");
        let recorded = client.ok("backups", json!({"stack": stack})).await;
        let there = restic(&home, &["snapshots", "--json"]);
        for s in recorded["snapshots"].as_array().expect("a list") {
            assert!(there.contains(s["snapshot_id"].as_str().expect("an id")), "{context}: {s} is recorded and not there");
            assert_eq!(s["state"], json!("complete"), "{context}");
        }
        // Volumes a restore made stay only when they are whole: recorded as restored, or in use.
        let in_use = docker(&["inspect", "-f", "{{range .Mounts}}{{.Name}}{{end}}", &container]);
        let volumes = docker(&["volume", "ls", "-q", "--filter", &ours]);
        for volume in volumes.lines().filter(|v| v.contains("-restored-") && *v != in_use) {
            let whole = std::fs::metadata(mountpoint(volume).join("noise")).is_ok_and(|m| m.len() == noise.len() as u64);
            assert!(whole, "{context}: the half-filled volume {volume} is left");
            docker(&["volume", "rm", volume]);
        }
        restic(&home, &["check"]);
    }
    assert!(2 * met > all, "{met} of {all} kills met an operation at work");
    restic(&home, &["check", "--read-data"]);
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}

/// The operation of a verb that runs now, once there is one.
pub(crate) async fn newest(home: &Home, verb: &str) -> String {
    eventually("the operation begins", Duration::from_secs(60), || async {
        let open = rusqlite::Connection::open_with_flags(home.path("state/state.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        open.busy_timeout(Duration::from_secs(5)).ok()?;
        open.query_row("SELECT id FROM operation WHERE verb = ?1 AND settled_at IS NULL ORDER BY rowid DESC LIMIT 1", [verb], |r| r.get(0))
            .ok()
    })
    .await
}

#[tokio::test]
async fn after_the_home_is_lost_a_copy_of_repository_and_key_brings_everything_back() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("lost");
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let up = client.ok("deploy", one(&stack, &slot.image)).await;
    ended(&client, &up["operation_id"]).await;
    client.ok("memory_write", json!({"key": "of-the-shop", "value": "ann knows the key"})).await;
    std::fs::write(mountpoint(&format!("{stack}_visits")).join("note"), "live").expect("written");
    let keeper = Client::stdio(&home, "backup-keeper").await;
    let own = called(&keeper, "backup", json!({})).await;
    drop(keeper);
    assert_eq!((own["state"].clone(), own["snapshots"][0]["volume"].clone()), (json!("done"), json!("dockwarden.instance")), "{own:#}");
    // Taken after the copy of the databases: only the repository knows of it.
    let later = called(&client, "backup", json!({"stack": stack})).await["snapshots"][0].clone();
    let container = docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &format!("{stack}-store-1")]);
    drop(client);
    serve.kill9().await;

    let (kept, state) = (home.path("kept"), home.path("state"));
    std::fs::create_dir(&kept).expect("made");
    std::fs::rename(state.join("backups"), kept.join("backups")).expect("kept");
    std::fs::rename(state.join("keys/backup.key"), kept.join("backup.key")).expect("kept");
    std::fs::remove_dir_all(&state).expect("lost");
    let (repository, key) = (kept.join("backups").display().to_string(), kept.join("backup.key").display().to_string());
    let bootstrap = ["restore", "--bootstrap", "--repository", &repository, "--key", &key];
    std::fs::write(kept.join("wrong.key"), "0".repeat(64)).expect("written");
    let wrong = kept.join("wrong.key").display().to_string();
    let (code, _, err) = home.run(&["restore", "--bootstrap", "--repository", &repository, "--key", &wrong]).await;
    assert!(code != 0 && err.contains("does not open the backup repository"), "{code}: {err}");
    let (code, out, err) = home.run(&bootstrap).await;
    assert_eq!(code, 0, "{out}{err}");
    let (code, _, err) = home.run(&bootstrap).await;
    assert!(code != 0 && err.contains("holds an instance already"), "a second time is refused: {err}");

    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    eventually("the stack is healthy", Duration::from_secs(60), || async {
        let health = client.ok("health", json!({"stack": stack})).await;
        (health["healthy"] == json!(true)).then_some(())
    })
    .await;
    assert_eq!(
        docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &format!("{stack}-store-1")]),
        container,
        "nothing that runs was touched: {}",
        std::fs::read_to_string(home.path("serve.log")).unwrap_or_default()
    );
    let memory = client.ok("memory_read", json!({"key": "of-the-shop"})).await;
    assert!(memory.to_string().contains("ann knows the key"), "{memory:#}");
    let listed = client.ok("backups", json!({"stack": stack})).await;
    assert_eq!(listed["snapshots"][0]["snapshot_id"], later["snapshot_id"], "{listed:#}");
    let back = called(&client, "restore", json!({"snapshot_id": later["snapshot_id"]})).await;
    let volume = back["restored"][0]["volume"].as_str().unwrap_or_else(|| panic!("{back:#}")).to_owned();
    assert_eq!(std::fs::read_to_string(mountpoint(&volume).join("note")).expect("restored"), "live");
    docker(&["volume", "rm", &volume]);
    let again = client.ok("deploy", one(&stack, &slot.image)).await;
    assert_ne!(again["state"], json!("failed"), "{again:#}");
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}

/// A tree with what is easily lost.
fn difficult(root: &Path) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
    std::fs::create_dir_all(root.join("deep/er")).expect("made");
    std::fs::create_dir(root.join("empty-dir")).expect("made");
    std::fs::write(root.join("deep/er/text"), "hello").expect("written");
    std::fs::write(root.join("empty"), "").expect("written");
    std::fs::hard_link(root.join("deep/er/text"), root.join("same-text")).expect("linked");
    symlink("deep/er/text", root.join("link")).expect("linked");
    std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xfe\xff")), "bytes").expect("written");
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::from_raw_mode(0o640)).expect("made");
    std::fs::write(root.join("setuid"), "x").expect("written");
    rustix::fs::lsetxattr(root.join("setuid"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).expect("set");
    chown(root.join("setuid"), Some(1234), Some(4321)).expect("owned");
    std::fs::set_permissions(root.join("setuid"), std::fs::Permissions::from_mode(0o6755)).expect("set");
    let sparse = std::fs::File::create(root.join("sparse")).expect("made");
    sparse.set_len(16 << 20).expect("set");
    sparse.write_at(b"end", (16 << 20) - 3).expect("written");
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    std::fs::File::open(root.join("deep/er/text")).expect("opened").set_modified(old).expect("set");
}

/// What a tree keeps, in the words of the documentation's table.
fn kept(root: &Path) -> Vec<(&'static str, bool)> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name));
    let is = |name: &str, check: &dyn Fn(std::fs::Metadata) -> bool| meta(name).is_ok_and(check);
    let mut value = [0u8; 16];
    let note = rustix::fs::lgetxattr(root.join("setuid"), "user.note", &mut value).is_ok_and(|n| &value[..n] == b"kept");
    let second = |m: &std::fs::Metadata| m.mtime() == 1_000_000_000;
    vec![
        ("owner and modes", is("setuid", &|m| (m.mode() & 0o7777, m.uid(), m.gid()) == (0o6755, 1234, 4321))),
        ("symbolic links", std::fs::read_link(root.join("link")).is_ok_and(|t| t == Path::new("deep/er/text"))),
        ("hard links", is("same-text", &|m| meta("deep/er/text").is_ok_and(|o| o.ino() == m.ino()))),
        ("fifos", is("pipe", &|m| m.file_type().is_fifo() && m.mode() & 0o777 == 0o640)),
        ("empty directories", is("empty-dir", &|m| m.is_dir())),
        ("empty files", is("empty", &|m| m.len() == 0)),
        ("names that are not UTF-8", root.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xfe\xff")).exists()),
        ("content of sparse files", std::fs::read(root.join("sparse")).is_ok_and(|d| d.len() == 16 << 20 && d.ends_with(b"end"))),
        ("seconds of times", is("deep/er/text", &|m| second(&m))),
        ("nanoseconds of times", is("deep/er/text", &|m| second(&m) && m.mtime_nsec() == 123_456_789)),
        ("user attributes", note),
    ]
}

#[tokio::test]
async fn each_way_to_read_a_volume_keeps_what_the_documentation_says() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("keeps");
    // Whose the volume is nobody knows; here it is ours.
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    home.configure("policy.toml", &policy.replace("[rules]\n", "[rules]\n\"vol.external_unknown\" = \"warn\"\n"));
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    // A volume with driver options is only mounted while a container uses it: it is read through the engine.
    let (device, foreign) = (home.path("device"), format!("{stack}-foreign"));
    std::fs::create_dir(&device).expect("made");
    docker(&["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", &format!("device={}", device.display()), &foreign]);
    let mut input = one(&stack, &slot.image);
    let compose = input["compose"].as_str().expect("text").replace("['visits:/data']", "['visits:/data', 'foreign:/other']");
    input["compose"] = json!(
        compose.replace("volumes: {visits: {}}", &format!("volumes: {{visits: {{}}, foreign: {{external: true, name: {foreign}}}}}"))
    );
    let up = client.ok("deploy", input).await;
    assert!(up["operation_id"].is_string(), "{up:#}");
    ended(&client, &up["operation_id"]).await;
    difficult(&mountpoint(&format!("{stack}_visits")));
    difficult(&device);
    let backup = called(&client, "backup", json!({"stack": stack})).await;
    assert_eq!(backup["state"], json!("done"), "{backup:#}");
    for snapshot in backup["snapshots"].as_array().expect("a list") {
        let archive = snapshot["volume"] == json!(foreign);
        let back = called(&client, "restore", json!({"snapshot_id": snapshot["snapshot_id"]})).await;
        assert_eq!(back["restored"][0]["verified"], json!(true), "{back:#}");
        let volume = back["restored"][0]["volume"].as_str().expect("restored").to_owned();
        let lost: Vec<&str> = kept(&mountpoint(&volume)).into_iter().filter(|(_, kept)| !kept).map(|(what, _)| what).collect();
        docker(&["volume", "rm", &volume]);
        // The engine's archives carry the attribute of file capabilities and no other.
        let expected: &[&str] = if archive { &["nanoseconds of times", "user attributes"] } else { &[] };
        assert_eq!(lost, expected, "{}", snapshot["volume"]);
    }
    client.ok("stop", json!({"stack": stack, "remove": true})).await;
    docker(&["volume", "rm", "-f", &foreign]);
    serve.stop().await;
}
