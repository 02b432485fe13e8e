//! The crash matrix on a real engine: the supervisor aborts (no destructors, no goodbye) before an effect, after it, or before its done record, at the
//! journal's own moments of a deploy, an update, a broken update, a rollback and scaling; the next supervisor takes over. Afterwards: one serving
//! release, never two writers at any moment between, nothing forgotten, the data as it was.
//!
//! A sample of the moments by default, every one with `DOCKWARDEN_MATRIX=full`, the second third of them with `DOCKWARDEN_MATRIX=2/3`, so that several
//! runs at a time share them. (Every one runs on the in-memory engine, in `executor::tests`.)

use crate::front::{free_port, load};
use crate::support::BIN;
use crate::support::engine::{Slot, docker, engine, remove_stack};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

/// Moments of one case that run by default.
const SAMPLE: u64 = 3;

/// The moments to run of `all`: every one, or a sample spread over them.
fn moments(all: u64) -> Vec<u64> {
    match std::env::var("DOCKWARDEN_MATRIX").as_deref() {
        Err(_) => {}
        Ok("full") => return (1..=all).collect(),
        Ok(part) => {
            let numbers = part.split_once('/').and_then(|(k, n)| Some((k.parse::<u64>().ok()?, n.parse::<u64>().ok()?)));
            let (k, n) = numbers.filter(|(k, n)| (1..=*n).contains(k)).unwrap_or_else(|| panic!("DOCKWARDEN_MATRIX={part}: full, or 2/3"));
            return (1..=all).filter(|m| m % n == k % n).collect();
        }
    }
    let sample = SAMPLE.min(all);
    (0..sample).map(|i| 1 + i * all / sample).collect()
}

/// A stack with everything that makes a deploy long: data, a one-shot between, a stateless service with a port behind a front, one with copies.
pub(crate) fn compose(image: &str, port: u16, version: &str, fail: &str, workers: u32) -> String {
    // What follows a broken version must not have written data: a store that was updated keeps its new data, and a person has to look.
    let rest = if fail == "none" { version } else { "good" };
    let service = |name: &str, role: &str, version: &str, fail: &str, more: &str| {
        format!(
            "  {name}:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: {role}, VERSION: '{version}', \
             UPSTREAM: 'store:8080', FAIL: {fail}}}\n    \
             healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 2s}}\n{more}"
        )
    };
    format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n{}{}{}  once:\n    image: {image}\n    command: [check, 'http://store:8080/health']\n    \
         mem_limit: 64m\n    restart: 'no'\n    environment: {{VERSION: '{rest}'}}\n    depends_on: {{store: {{condition: service_healthy}}}}\nvolumes: {{visits: {{}}}}\n",
        service("store", "store", rest, "none", "    volumes: ['visits:/data']\n"),
        service(
            "api",
            "web",
            version,
            fail,
            &format!(
                "    ports: ['127.0.0.1:{port}:8080']\n    depends_on: {{once: {{condition: service_completed_successfully}}}}\n    \
                 x-dockwarden: {{strategy: front, start_timeout_s: 4}}\n"
            )
        ),
        service("worker", "web", rest, "none", &format!("    deploy: {{replicas: {workers}}}\n    x-dockwarden: {{start_timeout_s: 4}}\n")),
    )
}

/// Containers of the service that writes data, followed by the engine's own events: never two at a time.
struct Writers {
    most: Arc<Mutex<usize>>,
    follower: tokio::task::JoinHandle<()>,
}

impl Writers {
    async fn follow(stack: &str, service: &str) -> Self {
        let filters = [format!("label=dockwarden.stack={stack}"), format!("label=dockwarden.service={service}")];
        let up = docker(&["ps", "-q", "--no-trunc", "--filter", &filters[0], "--filter", &filters[1]]);
        let mut running: BTreeSet<String> = up.lines().map(str::to_owned).collect();
        let mut events = tokio::process::Command::new("docker")
            .args(["events", "--filter", &filters[0], "--filter", &filters[1], "--filter", "event=start", "--filter", "event=die"])
            .args(["--format", "{{.Action}} {{.ID}}"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the docker client runs");
        let mut lines = BufReader::new(events.stdout.take().expect("piped")).lines();
        let most = Arc::new(Mutex::new(running.len()));
        let seen = most.clone();
        let follower = tokio::spawn(async move {
            let _events = events;
            while let Ok(Some(line)) = lines.next_line().await {
                let Some((action, id)) = line.split_once(' ') else { continue };
                if action == "start" {
                    running.insert(id.to_owned());
                } else {
                    running.remove(id);
                }
                let mut most = seen.lock().expect("not poisoned");
                *most = running.len().max(*most);
            }
        });
        Self { most, follower }
    }

    fn never_two(self, context: &str) {
        assert!(!self.follower.is_finished(), "{context}: the engine's events were followed to the end");
        self.follower.abort();
        assert!(*self.most.lock().expect("not poisoned") <= 1, "{context}: two containers with the same data ran at a time");
    }
}

/// One kind of operation.
pub(crate) struct Case<'a> {
    pub(crate) name: &'static str,
    /// Brings the stack to where the operation begins; runs before every moment, with the number of the round.
    pub(crate) before: &'a dyn Fn(u64) -> Vec<(&'static str, Value)>,
    /// The operation.
    pub(crate) act: &'a dyn Fn(u64) -> (&'static str, Value),
    /// Copies of `worker` that may run afterwards.
    pub(crate) workers: &'a [usize],
    /// States it may end in when nothing crashes.
    pub(crate) ends: &'a [&'a str],
    /// A first deploy that was undone leaves nothing.
    pub(crate) may_vanish: bool,
}

/// Data a stack must never lose.
pub(crate) enum Data {
    /// Visits that the demo counts in a volume, asked for through this port.
    Visits(u16),
    /// Rows of a table of the PostgreSQL in the service `db`.
    Rows,
}

/// A home with one stack and what must hold of it.
pub(crate) struct Bench {
    pub(crate) home: Home,
    pub(crate) stack: String,
    /// The service that writes data.
    pub(crate) writer: &'static str,
    /// Containers that run whenever the stack does, beside copies of `worker`.
    pub(crate) fixed: &'static [&'static str],
    pub(crate) data: Data,
}

impl Bench {
    /// The names of the stack's containers with their state, without the claim.
    fn containers(&self) -> BTreeMap<String, String> {
        let label = format!("label=dockwarden.stack={}", self.stack);
        let listed = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}} {{.State}}"]);
        let pairs = listed.lines().filter_map(|l| l.split_once(' ')).filter(|(n, _)| !n.contains("-claim-"));
        pairs.map(|(name, state)| (name.trim_start_matches(&format!("{}-", self.stack)).to_owned(), state.to_owned())).collect()
    }

    /// Runs one call under an ordinary supervisor and waits until its operation has passed.
    async fn through(&self, client: &Client, tool: &str, input: Value) {
        let begun = client.ok(tool, input).await;
        if begun.get("operation_id").is_some_and(Value::is_string) {
            let done = client.ok("operation", json!({"operation_id": begun["operation_id"], "wait_s": 30})).await;
            assert_eq!(done["state"], json!("done"), "{tool}: {done:#}");
        }
    }

    /// What must be true once an operation has settled.
    async fn whole(&self, client: &Client, case: &Case<'_>, context: &str) {
        let seen = self.containers();
        if case.may_vanish && seen.is_empty() {
            let label = format!("label=dockwarden.stack={}", self.stack);
            let networks = docker(&["network", "ls", "-q", "--filter", &label]);
            let volumes = docker(&["volume", "ls", "-q", "--filter", &label]);
            assert_eq!((networks.as_str(), volumes.as_str()), ("", ""), "{context}: nothing half-made stays");
            return;
        }
        let workers = seen.keys().filter(|n| n.starts_with("worker-")).count();
        assert!(case.workers.contains(&workers), "{context}: {workers} workers: {seen:?}");
        let mut expected: BTreeSet<String> = self.fixed.iter().map(|n| (*n).to_owned()).collect();
        expected.extend((1..=workers).map(|n| format!("worker-{n}")));
        let running: BTreeSet<String> = seen.iter().filter(|(_, s)| *s == "running").map(|(n, _)| n.clone()).collect();
        assert_eq!(running, expected, "{context}: the containers of one release, under their canonical names: {seen:?}");
        let others: Vec<&String> =
            seen.keys().filter(|n| !expected.contains(*n) && !["once-1", "migrate-1"].contains(&n.as_str())).collect();
        assert!(others.is_empty(), "{context}: nothing is forgotten: {others:?}");
        eventually(&format!("{context}: healthy"), Duration::from_secs(20), || async {
            (client.ok("health", json!({"stack": self.stack})).await["healthy"] == json!(true)).then_some(())
        })
        .await;
    }
}

impl Bench {
    /// Adds to the data and counts it.
    async fn count(&self) -> u64 {
        let mut command = match self.data {
            Data::Visits(port) => {
                let mut command = tokio::process::Command::new(BIN);
                command.args(["demo-app", "check", &format!("http://127.0.0.1:{port}/")]);
                command
            }
            Data::Rows => {
                let mut command = tokio::process::Command::new("docker");
                let sql = "insert into beat default values; select 'visits ' || count(*) from beat";
                command.args(["exec", &format!("{}-db-1", self.stack), "psql", "-qtA", "-v", "ON_ERROR_STOP=1", "-c", sql]);
                command
            }
        };
        let text = eventually("the stack answers", Duration::from_secs(120), || {
            let asked = command.output();
            async {
                let output = asked.await.expect("the command runs");
                output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
            }
        })
        .await;
        let count = text.split_whitespace().skip_while(|w| *w != "visits").nth(1).and_then(|n| n.parse().ok());
        count.unwrap_or_else(|| panic!("no count in {text:?}"))
    }
}

/// A supervisor that aborts at a journal record: this test binary, running the product's own `serve`.
pub(crate) struct Doomed {
    child: Child,
    records: std::path::PathBuf,
}

const AT: &str = "DOCKWARDEN_TEST_ABORT_AT";
/// SIGABRT.
const ABORTED: i32 = 6;
const RECORDS: &str = "DOCKWARDEN_TEST_RECORDS";

impl Doomed {
    pub(crate) async fn start(home: &Home, at: u64) -> Self {
        let records = home.path("records");
        let log = std::fs::File::options().create(true).append(true).open(home.path("doomed.log")).expect("a log file");
        let exe = std::env::current_exe().expect("this binary's path");
        let child = home
            .command_of(exe, ["--exact", "matrix::a_supervisor_that_aborts", "--ignored", "--nocapture"])
            .env(AT, at.to_string())
            .env(RECORDS, &records)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("a second handle")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("this binary runs");
        let mut doomed = Self { child, records };
        for _ in 0..600 {
            if home.run(&["health", "--self"]).await.0 == 0 {
                return doomed;
            }
            if let Some(status) = doomed.child.try_wait().expect("a child of ours") {
                panic!("it ended before it answered: {status}\n{}", std::fs::read_to_string(home.path("doomed.log")).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it does not answer:\n{}", std::fs::read_to_string(home.path("doomed.log")).unwrap_or_default());
    }

    /// How many records there were, and whether it aborted within this time; one that did not is killed.
    pub(crate) async fn ended(mut self, within: Duration) -> (u64, bool) {
        let ended = tokio::time::timeout(within, self.child.wait()).await;
        let aborted = ended.is_ok_and(|status| {
            let status = status.expect("a child of ours");
            let log = || std::fs::read_to_string(self.records.with_file_name("doomed.log")).unwrap_or_default();
            assert_eq!(status.signal(), Some(ABORTED), "it ended by something else: {status}\n{}", log());
            true
        });
        self.child.kill().await.expect("killed");
        (std::fs::read_to_string(&self.records).ok().and_then(|t| t.trim().parse().ok()).unwrap_or_default(), aborted)
    }
}

/// Not a test: the process the matrix starts and that aborts.
#[test]
#[ignore = "started by the crash matrix as a process of its own"]
fn a_supervisor_that_aborts() {
    let at: u64 = std::env::var(AT).ok().and_then(|v| v.parse().ok()).expect("the matrix says when");
    let records = std::env::var_os(RECORDS).expect("the matrix says where to count");
    let count = AtomicU64::new(0);
    let stop_after: dockwarden::executor::StopAfter = Arc::new(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst) + 1;
        std::fs::write(&records, n.to_string()).expect("counted");
        if n == at {
            std::process::abort();
        }
        false
    });
    let options = dockwarden::app::ServeOptions {
        places: dockwarden::config::places(None, None),
        listen: Some("127.0.0.1:0".into()),
        behind_proxy: false,
        allowed_hosts: vec![],
        idle_exit: None,
    };
    let executor = dockwarden::executor::Options { stop_after: Some(stop_after), front_binary: Some(BIN.into()), ..Default::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(dockwarden::app::serve_with(options, executor)).expect("it serves until it aborts");
}

/// Runs the case at its moments; how many there are and how many ran.
pub(crate) async fn run(bench: &Bench, case: &Case<'_>) -> (u64, usize) {
    let (mut all, mut ran, mut round) = (0, 0, 0);
    // The first round aborts nowhere: it counts.
    let mut queue = vec![None];
    while let Some(moment) = queue.pop() {
        round += 1;
        let context = moment.map_or_else(|| format!("{}, through", case.name), |m| format!("{}, moment {m} of {all}", case.name));
        let serve = Serve::start(&bench.home).await;
        let client = Client::stdio(&bench.home, "stack-keeper").await;
        if case.may_vanish && round > 1 {
            client.call("stop", json!({"stack": bench.stack, "remove": true})).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            // What the product never removes is ours to remove: the next first deploy begins with nothing.
            remove_stack(&bench.stack);
        }
        for (tool, input) in (case.before)(round) {
            bench.through(&client, tool, input).await;
        }
        let counted = if case.may_vanish { None } else { Some(bench.count().await) };
        client.close().await;
        serve.stop().await;

        let writers = Writers::follow(&bench.stack, bench.writer).await;
        let begun = Instant::now();
        let doomed = Doomed::start(&bench.home, moment.unwrap_or(u64::MAX)).await;
        let client = Client::stdio(&bench.home, "stack-keeper").await;
        let (tool, mut input) = (case.act)(round);
        if tool == "deploy" {
            input["timeout_s"] = json!(50);
        }
        let answered = client.call(tool, input).await;
        match (moment, answered) {
            (None, answered) => {
                let answered = answered.unwrap_or_else(|e| panic!("{context}: {e}"));
                let id = answered.structured_content.clone().unwrap_or_default()["operation_id"].clone();
                let done = client.ok("operation", json!({"operation_id": id, "wait_s": 30})).await;
                assert!(case.ends.iter().any(|s| done["state"] == json!(s)), "{context}: {done:#}");
                all = doomed.ended(Duration::ZERO).await.0;
                queue.extend(moments(all).into_iter().rev().map(Some));
            }
            // Most calls lose their connection; one whose reply was out before the moment came does not.
            (Some(m), _) => {
                let (records, aborted) = doomed.ended(Duration::from_secs(30)).await;
                // A round may need a record less than the one that counted; then the operation was over.
                assert!(aborted || records < m, "{context}: {records} records and no abort");
                ran += usize::from(aborted);
            }
        }
        drop(client);

        let serve = Serve::start(&bench.home).await;
        let client = Client::stdio(&bench.home, "stack-keeper").await;
        eventually(&format!("{context}: the operation ends"), Duration::from_secs(60), || async {
            let status = client.ok("status", json!({"stack": bench.stack})).await;
            status["stacks"][0]["operation_id"].is_null().then_some(())
        })
        .await;
        bench.whole(&client, case, &context).await;
        writers.never_two(&context);
        if let Some(before) = counted {
            assert!(bench.count().await > before, "{context}: the data is whole");
        }
        eprintln!("{context}: whole {:.1} s after it began", begun.elapsed().as_secs_f64());
        client.close().await;
        serve.stop().await;
    }
    (all, ran)
}

/// A bench for the stack of [`compose`], and the port it serves.
async fn bench(base: &str) -> (Slot, Bench, u16) {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    home.unbroken();
    let (stack, port) = (home.stack(base), free_port());
    let bench = Bench { home, stack, writer: "store", fixed: &["store-1", "api-1", "api-front"], data: Data::Visits(port) };
    (slot, bench, port)
}

pub(crate) fn told(results: &[(&str, (u64, usize))]) {
    for (name, (all, ran)) in results {
        eprintln!("crash matrix, {name}: {ran} of {all} moments, all whole");
        assert!(*all > 8 && *ran >= 2, "{name} has moments");
    }
}

/// Deploys a first release under an ordinary supervisor, so that a load has whom to ask.
async fn begin(bench: &Bench, (tool, input): (&'static str, Value)) {
    let serve = Serve::start(&bench.home).await;
    let client = Client::stdio(&bench.home, "stack-keeper").await;
    bench.through(&client, tool, input).await;
    client.close().await;
    serve.stop().await;
}

/// Runs cases under load: behind a front no request is lost, whatever aborts.
async fn under_load(bench: &Bench, port: u16, first: (&'static str, Value), cases: &[Case<'_>]) {
    begin(bench, first).await;
    let load = load(port);
    let mut results = vec![];
    for case in cases {
        results.push((case.name, run(bench, case).await));
    }
    let outcome = load.end().await;
    eprintln!("crash matrix, {}: {} requests, lost {:?}", cases[0].name, outcome.sent, outcome.lost);
    assert_eq!(outcome.lost, BTreeMap::new(), "behind a front no request is lost: {outcome:?}");
    told(&results);
}

impl Bench {
    fn deploy(&self, slot: &Slot, port: u16, version: String, fail: &str, workers: u32) -> (&'static str, Value) {
        ("deploy", json!({"stack": self.stack, "compose": compose(&slot.image, port, &version, fail, workers)}))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_at_moments_of_a_first_deploy_there_is_one_serving_release_or_nothing() {
    let (slot, bench, port) = bench("mxf").await;
    let first = Case {
        name: "first deploy",
        before: &|_| vec![],
        act: &|round| bench.deploy(&slot, port, format!("f{round}"), "none", 1),
        workers: &[1],
        ends: &["done"],
        may_vanish: true,
    };
    told(&[("first deploy", run(&bench, &first).await)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_at_moments_of_an_update_there_is_one_serving_release() {
    let (slot, bench, port) = bench("mxu").await;
    let deploy = |version: String| bench.deploy(&slot, port, version, "none", 1);
    let update = Case {
        name: "update",
        before: &|round| vec![deploy(format!("u{round}a"))],
        act: &|round| deploy(format!("u{round}b")),
        workers: &[1],
        ends: &["done"],
        may_vanish: false,
    };
    under_load(&bench, port, deploy("first".into()), &[update]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_at_moments_of_a_broken_update_there_is_one_serving_release() {
    let (slot, bench, port) = bench("mxb").await;
    let broken = Case {
        name: "broken update",
        before: &|_| vec![bench.deploy(&slot, port, "good".into(), "none", 1)],
        act: &|round| bench.deploy(&slot, port, format!("b{round}"), "health", 1),
        workers: &[1],
        ends: &["rolled_back"],
        may_vanish: false,
    };
    under_load(&bench, port, bench.deploy(&slot, port, "good".into(), "none", 1), &[broken]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_at_moments_of_a_rollback_there_is_one_serving_release() {
    let (slot, bench, port) = bench("mxr").await;
    let deploy = |version: String| bench.deploy(&slot, port, version, "none", 1);
    let rollback = Case {
        name: "rollback",
        before: &|round| vec![deploy(format!("r{round}a")), deploy(format!("r{round}b"))],
        act: &|_| ("rollback", json!({"stack": bench.stack, "reason": "the matrix"})),
        workers: &[1],
        ends: &["done"],
        may_vanish: false,
    };
    under_load(&bench, port, deploy("first".into()), &[rollback]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_at_moments_of_scaling_there_is_one_serving_release() {
    let (slot, bench, port) = bench("mxs").await;
    let scale = |to: u32| ("scale", json!({"stack": bench.stack, "service": "worker", "replicas": to}));
    let up = Case {
        name: "scale up",
        before: &|round| vec![bench.deploy(&slot, port, format!("s{round}"), "none", 1)],
        act: &|_| scale(3),
        workers: &[1, 3],
        ends: &["done"],
        may_vanish: false,
    };
    let down = Case {
        name: "scale down",
        before: &|round| vec![bench.deploy(&slot, port, format!("d{round}"), "none", 3)],
        act: &|_| scale(1),
        workers: &[1, 3],
        ends: &["done"],
        may_vanish: false,
    };
    under_load(&bench, port, bench.deploy(&slot, port, "first".into(), "none", 1), &[up, down]).await;
}
