//! Services behind a front on a real engine, under an open-loop load of 200 connections a second: an update, a broken release, a killed supervisor
//! and a stop of the one that writes data lose none of them.

use crate::support::engine::{Slot, docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::own_engine::OwnEngine;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// New connections per second.
const RATE: u64 = 200;
/// A request that takes longer is lost. Longer than a busy machine takes, shorter than a client's patience.
const PATIENCE: Duration = Duration::from_secs(25);

/// One test at a time measures losses, not the machine; and the last one removes the image.
static ONE: Mutex<()> = Mutex::const_new(());

pub(crate) struct Turn {
    pub(crate) slot: Slot,
    _one: MutexGuard<'static, ()>,
}

impl Turn {
    pub(crate) async fn take() -> Self {
        let one = ONE.lock().await;
        Self { slot: engine().await, _one: one }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let hash = std::fs::read(crate::support::BIN).map(|bytes| {
            use sha2::Digest;
            sha2::Sha256::digest(bytes).iter().take(6).map(|b| format!("{b:02x}")).collect::<String>()
        });
        match hash.map(|h| Command::new("docker").args(["rmi", &format!("dockwarden/front:{h}")]).output()) {
            // None was made, or it lies on an engine of the test's own.
            Ok(Ok(o)) if o.status.success() || String::from_utf8_lossy(&o.stderr).contains("No such image") => {}
            other => eprintln!("the image of fronts stays: {other:?}"),
        }
    }
}

/// What came of the requests of a load.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) sent: usize,
    /// Cause -> how many.
    pub(crate) lost: BTreeMap<String, usize>,
    /// Release that answered -> how many.
    pub(crate) by: BTreeMap<String, usize>,
}

pub(crate) struct Load {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Outcome>,
}

/// One new connection per request, sent when its time has come whatever became of the others.
pub(crate) fn load(port: u16) -> Load {
    load_of(port, RATE, "/health", of_health)
}

/// The same of another page at another rate; what an answer is counted under, `None` = it is lost.
pub(crate) fn load_of(port: u16, rate: u64, path: &'static str, read: fn(&str) -> Option<String>) -> Load {
    let (stop, mut stopped) = oneshot::channel();
    let running = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
        let mut requests = JoinSet::new();
        let mut out = Outcome::default();
        loop {
            tokio::select! {
                _ = ticks.tick() => { requests.spawn(ask(port, path, read)); out.sent += 1; }
                _ = &mut stopped => break,
            }
        }
        while let Some(done) = requests.join_next().await {
            match done.expect("a request does not panic") {
                Ok(release) => *out.by.entry(release).or_default() += 1,
                Err(why) => *out.lost.entry(why).or_default() += 1,
            }
        }
        out
    });
    Load { stop, running }
}

impl Load {
    pub(crate) async fn end(self) -> Outcome {
        self.stop.send(()).expect("the load runs");
        self.running.await.expect("the load does not panic")
    }
}

/// The release that answered.
pub(crate) async fn one(port: u16) -> Result<String, String> {
    ask(port, "/health", of_health).await
}

fn of_health(answer: &str) -> Option<String> {
    Some(answer.rsplit("ok release ").next()?.trim().to_owned())
}

async fn ask(port: u16, path: &str, read: fn(&str) -> Option<String>) -> Result<String, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())?;
    match read(&text).filter(|_| text.starts_with("HTTP/1.1 200")) {
        Some(by) => Ok(by),
        None => Err(format!("answered {:?}", text.lines().next())),
    }
}

fn input(stack: &str, port: u16, image: &str, more: &str, version: &str, fail: &str) -> Value {
    let compose = format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n  web:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
         environment: {{ROLE: store, VERSION: '{version}', FAIL: {fail}}}\n    ports: ['127.0.0.1:{port}:8080']\n    \
         healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 2s}}\n{more}"
    );
    json!({"stack": stack, "compose": compose, "timeout_s": 50})
}

const FRONT: &str = "    tmpfs: [/data]\n    x-dockwarden: {strategy: front, start_timeout_s: 8}\n";
const HOLD: &str = "    volumes: ['visits:/data']\n    x-dockwarden: {strategy: hold, start_timeout_s: 6, front: {max_held: 4000}}\nvolumes: {visits: {}}\n";

/// One that is free now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

pub(crate) fn running(stack: &str) -> Vec<String> {
    let listed = docker(&["ps", "-a", "--filter", &format!("label=dockwarden.stack={stack}"), "--format", "{{.Names}} {{.State}}"]);
    let mut lines: Vec<String> = listed.lines().filter(|l| !l.contains("-claim-")).map(str::to_owned).collect();
    lines.sort();
    lines
}

pub(crate) async fn settled(client: &Client, deployed: &Value) {
    let done = client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 40})).await;
    assert_eq!(done["state"], json!("done"), "{done:#}");
}

/// A second release and a broken third, under load, with the whole stack checked in between.
async fn releases_under_load(more: &str) {
    let turn = Turn::take().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("front");
    let port = free_port();
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let first = client.ok("deploy", input(&stack, port, &turn.slot.image, more, "1", "none")).await;
    assert_eq!(first["state"], json!("monitoring"), "{first:#}");
    settled(&client, &first).await;
    let whole = [format!("{stack}-web-1 running"), format!("{stack}-web-front running")];
    assert_eq!(running(&stack), whole);

    let load = load(port);
    let plan = client.ok("plan", input_of_plan(&stack, port, &turn.slot.image, more, "2")).await;
    assert!(plan["changes"][0]["expected_loss"].as_str().is_some_and(|l| l.starts_with("none: ")), "{plan:#}");
    let begun = std::time::Instant::now();
    let second = client.ok("deploy", input(&stack, port, &turn.slot.image, more, "2", "none")).await;
    eprintln!("update to monitoring: {:?}", begun.elapsed());
    assert_eq!(second["state"], json!("monitoring"), "{second:#}");
    settled(&client, &second).await;
    let broken = client.ok("deploy", input(&stack, port, &turn.slot.image, more, "3", "health")).await;
    assert_eq!(broken["state"], json!("rolled_back"), "{broken:#}");
    let restarted = client.ok("restart", json!({"stack": stack})).await;
    assert_eq!(restarted["state"], json!("done"), "{restarted:#}");
    let outcome = load.end().await;
    assert_eq!(outcome.lost, BTreeMap::new(), "{outcome:?}");
    assert!(outcome.by.contains_key("1") && outcome.by.contains_key("2") && !outcome.by.contains_key("3"), "{outcome:?}");
    assert_eq!(running(&stack), whole);
    // After the restart the engine's own first check is still to come.
    eventually("healthy", Duration::from_secs(30), || async {
        (client.ok("health", json!({"stack": stack})).await["healthy"] == json!(true)).then_some(())
    })
    .await;
    let status = client.ok("status", json!({"stack": stack})).await;
    assert!(status.to_string().contains(&format!("{stack}-web-front")), "{status:#}");

    // A front that does not run is an ailment of its service; a removal takes everything.
    docker(&["stop", "-t", "1", &format!("{stack}-web-front")]);
    let health = client.ok("health", json!({"stack": stack})).await;
    assert!(health.to_string().contains("its front does not run"), "{health:#}");
    client.ok("stop", json!({"stack": stack, "remove": true})).await;
    assert_eq!(running(&stack), Vec::<String>::new());
    serve.stop().await;
}

fn input_of_plan(stack: &str, port: u16, image: &str, more: &str, version: &str) -> Value {
    let mut input = input(stack, port, image, more, version, "none");
    input.as_object_mut().expect("an object").remove("timeout_s");
    input
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_behind_a_front_lose_no_request() {
    releases_under_load(FRONT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_of_a_service_that_writes_data_lose_no_request() {
    releases_under_load(HOLD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_killed_in_an_update_behind_a_front_loses_no_request() {
    let turn = Turn::take().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    home.unbroken();
    let stack = home.stack("frontkill");
    let port = free_port();
    let mut serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let first = client.ok("deploy", input(&stack, port, &turn.slot.image, FRONT, "1", "none")).await;
    settled(&client, &first).await;
    let load = load(port);
    for (round, wait_ms) in [30, 150, 300, 450, 600, 900].into_iter().enumerate() {
        let client = Client::stdio(&home, "stack-keeper").await;
        let mut next = input(&stack, port, &turn.slot.image, FRONT, &format!("{}", round + 2), "none");
        next["wait"] = json!(false);
        let began = client.ok("deploy", next).await;
        // The moment of an outage is no condition to wait for.
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        serve.kill9().await;
        // Nobody but the front is there now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        serve = Serve::start(&home).await;
        let client = Client::stdio(&home, "stack-keeper").await;
        let ended = eventually("the interrupted operation ends", Duration::from_secs(40), || async {
            let op = client.ok("operation", json!({"operation_id": began["operation_id"], "wait_s": 5})).await;
            matches!(op["state"].as_str(), Some("done" | "rolled_back" | "failed")).then_some(op)
        })
        .await;
        let whole = [format!("{stack}-web-1 running"), format!("{stack}-web-front running")];
        assert_eq!(running(&stack), whole, "round {round}, killed after {wait_ms} ms, then {}", ended["state"]);
    }
    let outcome = load.end().await;
    assert_eq!(outcome.lost, BTreeMap::new(), "{outcome:?}");
    serve.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_serves_without_its_supervisor_and_other_services_reach_it_by_name() {
    let turn = Turn::take().await;
    let home = Home::new();
    let stack = home.stack("frontname");
    let port = free_port();
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let caller = format!(
        "{FRONT}  caller:\n    image: {}\n    mem_limit: 64m\n    restart: unless-stopped\n    environment: {{ROLE: api, UPSTREAM: 'web:8080'}}\n    \
         ports: ['127.0.0.1::8080']\n    depends_on: {{web: {{condition: service_healthy}}}}\n",
        turn.slot.image
    );
    let first = client.ok("deploy", input(&stack, port, &turn.slot.image, &caller, "1", "none")).await;
    assert_eq!(first["state"], json!("monitoring"), "{first:#}");
    settled(&client, &first).await;
    client.close().await;
    serve.kill9().await;
    assert_eq!(one(port).await, Ok("1".to_owned()), "the published port");
    let by_name = docker(&["exec", &format!("{stack}-caller-1"), "/dockwarden", "demo-app", "check", "http://web:8080/health"]);
    assert!(by_name.contains("ok release 1"), "{by_name}");
    // Its process ends: the engine starts it again, with the routes it had.
    docker(&["exec", &format!("{stack}-web-front"), "/dockwarden", "front", "--status"]);
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &format!("{stack}-web-front")]);
    let pid = pid.parse::<i32>().ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    eventually("the front is back", Duration::from_secs(20), || async { one(port).await.ok().filter(|r| r == "1") }).await;
    let inspect = docker(&[
        "inspect",
        "-f",
        "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}} {{.HostConfig.RestartPolicy.Name}}",
        &format!("{stack}-web-front"),
    ]);
    assert_eq!(inspect, "true [ALL] 65534:65534 unless-stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_engine_every_port_serves_its_stack_without_the_supervisor() {
    let turn = Turn::take().await;
    let mut engine = OwnEngine::start().await;
    engine.load(&turn.slot.image);
    let home = Home::new().on_engine(engine.host());
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let mut ports = vec![];
    for (base, more) in [("boota", FRONT), ("bootb", HOLD)] {
        let (stack, port) = (home.stack(base), free_port());
        // A release before, so that what was replaced must stay down.
        for release in ["old", base] {
            let deployed = client.ok("deploy", input(&stack, port, &turn.slot.image, more, release, "none")).await;
            assert_eq!(deployed["state"], json!("monitoring"), "{deployed:#}");
            settled(&client, &deployed).await;
        }
        ports.push((port, base));
    }
    client.close().await;
    serve.kill9().await;
    engine.halt().await;
    engine.boot().await;
    for (port, base) in ports {
        let url = format!("http://127.0.0.1:{port}/health");
        let answer = eventually(&format!("port {port}"), Duration::from_secs(30), || async {
            let checked = engine.inside(crate::support::BIN, &["demo-app", "check", &url]);
            checked.status.success().then(|| String::from_utf8_lossy(&checked.stdout).into_owned())
        })
        .await;
        assert_eq!(answer.trim(), format!("ok release {base}"));
    }
    let up = engine.docker(&["ps", "--format", "{{.Names}}"]);
    assert_eq!(up.lines().count(), 4, "{up}");
    engine.halt().await;
}
