//! A disk that is really full: the supervisor's home on a small file system of its own, in a mount namespace of its own, filled to the last byte. What helps
//! is still recorded and done; what cannot be recorded is not done; and all is as before when there is room.

use crate::support::BIN;
use crate::support::engine::engine;
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::http::ask;
use crate::support::mcp::Client;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// A supervisor whose home is a file system of 64 MiB that only it sees.
struct Small<'a> {
    home: &'a Home,
    child: Child,
    pid: String,
    listen: String,
}

impl<'a> Small<'a> {
    async fn start(home: &'a Home) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").to_string();
        let state = home.path("state");
        let script = "mount -t tmpfs -o size=64m,mode=0700 tmpfs \"$1\" && shift && exec \"$@\"";
        let log = std::fs::File::options().create(true).append(true).open(home.path("serve.log")).expect("a log file");
        let mut command = Self::with_environment(home, Command::new("unshare"));
        command.args(["-m", "sh", "-c", script, "sh"]).arg(&state).args([BIN, "serve", "--listen", &free]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn().expect("unshare runs");
        let pid = child.id().expect("running").to_string();
        let small = Self { home, child, pid, listen: free };
        let up = async || (small.inside(&[BIN, "health", "--self"]).await.0 == 0).then_some(());
        eventually("the supervisor answers", Duration::from_secs(60), up).await;
        small
    }

    fn with_environment(home: &Home, mut command: Command) -> Command {
        let like = home.command(["serve"]);
        let given = like.as_std().get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
        command.env_clear().envs(given.collect::<Vec<_>>());
        command
    }

    /// Runs a program where the home is what the supervisor sees.
    async fn inside(&self, args: &[&str]) -> (i32, String) {
        let mut command = Self::with_environment(self.home, Command::new("nsenter"));
        let output = command.args(["-t", &self.pid, "-m", "--"]).args(args).stdin(Stdio::null()).output().await.expect("nsenter runs");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    }

    async fn fill(&self, name: &str) {
        let file = format!("of={}", self.home.path("state").join(name).display());
        let (code, said) = self.inside(&["dd", "if=/dev/zero", &file, "bs=4k"]).await;
        assert!(code != 0 && said.contains("No space left"), "{said}");
    }

    async fn has(&self, name: &str) -> bool {
        self.inside(&["test", "-s", &self.home.path("state").join(name).display().to_string()]).await.0 == 0
    }

    async fn client(&self, agent: &str) -> Client {
        let (code, out) = self.inside(&[BIN, "agents", "token", agent, "--json"]).await;
        assert_eq!(code, 0, "{out}");
        let token = out.lines().find_map(|l| serde_json::from_str::<Value>(l).ok()).or_else(|| serde_json::from_str(&out).ok());
        let token = token.and_then(|v| v["token"].as_str().map(str::to_owned)).unwrap_or_else(|| panic!("no token in {out}"));
        Client::http(&format!("http://{}/mcp", self.listen), &token).await
    }
}

fn code(refused: &Value) -> &str {
    refused["error"]["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn on_a_full_disk_what_helps_is_recorded_and_done_and_nothing_else_is() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("observer");
    home.unlimited("stack-keeper");
    let small = Small::start(&home).await;
    let (observer, keeper) = (small.client("observer").await, small.client("stack-keeper").await);
    observer.ok("agents", json!({})).await;
    assert!(small.has("reserve").await, "room is kept while there is room");

    small.fill("filler").await;
    let deploy = json!({"stack": home.stack("full"), "compose": format!("services:\n  web:\n    image: {}\n", slot.image)});
    let refused = keeper.refused("deploy", deploy.clone()).await;
    assert_eq!(code(&refused), "storage_full", "{refused:#}");
    assert!(refused["error"]["hint"].as_str().is_some_and(|h| h.contains("free space") && h.contains("prune")), "{refused:#}");
    assert_eq!(code(&observer.refused("agents", json!({})).await), "storage_full");
    assert_eq!(code(&keeper.refused("memory_write", json!({"key": "k", "value": "v"})).await), "storage_full");
    assert!(!small.has("reserve").await, "the reserve is given up");
    // What helps, by agents; and what people ask for.
    assert_eq!(code(&keeper.refused("restart", json!({"stack": "nowhere"})).await), "not_found");
    assert_eq!(code(&keeper.refused("rollback", json!({"stack": "nowhere"})).await), "not_found");
    assert_eq!(code(&keeper.refused("stop", json!({"stack": "nowhere"})).await), "not_found");
    assert_eq!(keeper.ok("prune", json!({"what": "containers"})).await["dry_run"], json!(true));
    let (code_of, said) = small.inside(&[BIN, "status"]).await;
    assert_eq!(code_of, 0, "{said}");
    let (_, said) = small.inside(&[BIN, "health", "--deep"]).await;
    assert!(said.contains("full"), "{said}");

    // The reserve is used up as well: without a row nothing is done, whoever asks.
    small.fill("filler-2").await;
    let mut last = Value::Null;
    for _ in 0..5_000 {
        // What the log had set aside for itself lasts for some hundred rows.
        last = keeper.refused("restart", json!({"stack": "nowhere"})).await;
        if code(&last) != "not_found" {
            break;
        }
    }
    assert_eq!(code(&last), "storage_full", "{last:#}");

    // Room again: everything is taken again, and the reserve too.
    for file in ["filler", "filler-2"] {
        let path = home.path("state").join(file).display().to_string();
        assert_eq!(small.inside(&["rm", &path]).await.0, 0);
    }
    eventually("agents are heard again", Duration::from_secs(20), || async {
        observer.call("agents", json!({})).await.ok().filter(|r| r.is_error != Some(true)).map(|_| ())
    })
    .await;
    assert!(small.has("reserve").await, "room is kept again");
    let rows = observer.ok("audit", json!({"agent": "stack-keeper", "limit": 200})).await;
    let tools: Vec<&str> = rows["rows"].as_array().expect("rows").iter().filter_map(|r| r["tool"].as_str()).collect();
    for recorded in ["restart", "rollback", "stop", "prune", "status"] {
        assert!(tools.contains(&recorded), "{recorded} is in the log: {tools:?}");
    }
    assert!(!tools.contains(&"deploy") && !tools.contains(&"memory_write"), "what was not recorded was not done: {tools:?}");
    let (verified, said) = small.inside(&[BIN, "audit", "verify"]).await;
    assert_eq!(verified, 0, "{said}");
    let mut child = small.child;
    child.kill().await.expect("ended");
}

#[tokio::test]
async fn a_disk_that_fills_up_is_told_before_it_is_full_and_again_when_it_has_room() {
    let home = Home::new();
    let small = Small::start(&home).await;
    let deep = async || {
        let page = ask(&small.listen, "/api/health/deep", &[], None).await;
        (page.status, serde_json::from_str::<Value>(&page.body).expect("json")["disk"].clone())
    };
    // Read at the command line: a tool's question to the audit log is a row of it, and would fill the disk.
    let told = async |what: &str| {
        let (code, log) = small.inside(&[BIN, "audit", "export"]).await;
        assert_eq!(code, 0, "{log}");
        assert!(log.matches(what).count() < 2, "told once: {log}");
        log.contains(what).then_some(())
    };
    let fill_to = async |percent: u64| {
        for n in 0..400 {
            if deep().await.1["used_percent"].as_u64().expect("a number") >= percent {
                return;
            }
            let file = format!("of={}", home.path("state").join(format!("part-{percent}-{n}")).display());
            let (code, said) = small.inside(&["dd", "if=/dev/zero", &file, "bs=256k", "count=1"]).await;
            assert_eq!(code, 0, "{said}");
        }
        panic!("never {percent} % full");
    };
    let (status, fine) = deep().await;
    assert_eq!((status, &fine["ok"], &fine["level"]), (200, &json!(true), &json!("fine")), "{fine}");

    fill_to(87).await;
    eventually("the filling disk is told", Duration::from_secs(30), || told("disk_high")).await;
    let (status, high) = deep().await;
    assert_eq!((status, &high["ok"], &high["level"]), (200, &json!(true), &json!("high")), "{high}");
    let metrics = ask(&small.listen, "/metrics", &[], None).await.body;
    assert!(metrics.contains("dockwarden_home_disk_level 1\n"), "{metrics}");

    // Not to the last byte: giving the reserve up would make room.
    fill_to(96).await;
    let (status, full) = deep().await;
    assert_eq!((status, &full["ok"], &full["level"]), (503, &json!(false), &json!("critical")), "{full}");
    eventually("the nearly full disk is told", Duration::from_secs(30), || told("disk_critical")).await;
    let (code_of, _) = small.inside(&["sh", "-c", &format!("rm {}/part-*", home.path("state").display())]).await;
    assert_eq!(code_of, 0);
    eventually("the room is told", Duration::from_secs(30), || told("disk_eased")).await;
    assert_eq!(deep().await.0, 200);
    let mut child = small.child;
    child.kill().await.expect("ended");
}
