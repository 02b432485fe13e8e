//! Micro-benchmarks of what every call passes: gate, plan, compose load, audit. Run with `cargo bench --profile dev --bench micro`.
//! Deliberately absent: anything with an engine or a process of its own (`calls.sh`).

use chrono::{DateTime, Utc};
use divan::Bencher;
use divan::counter::ItemsCount;
use dockwarden::app::rules;
use dockwarden::compose::{self, Files, LoadInput, Source};
use dockwarden::gate::{CallFacts, Rulebook, call};
use dockwarden::model::ids::{AgentName, CallId, ImageRef, PlanId, ServiceName, StackName};
use dockwarden::model::observed::ImageIdentity;
use dockwarden::model::policy::Quotas;
use dockwarden::model::spec::StackSpec;
use dockwarden::model::verdict::Verdict;
use dockwarden::planner::{self, Observed, PlanInput, Want};
use dockwarden::store::Store;
use dockwarden::store::audit::{Intent, Outcome};
use dockwarden::tools;
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rows written together by one run of an audit benchmark, per caller.
const ROWS: usize = 64;

fn main() {
    if std::env::args().any(|a| a == "memory") {
        return searches_in_a_large_memory();
    }
    distribution_of_gate_decisions();
    distribution_in_a_large_house();
    durable_appends_beside_bare_fsyncs();
    verification();
    searches_in_a_large_memory();
    divan::main();
}

fn shipped() -> Rulebook {
    let texts = |list: &[(&str, &str)]| list.iter().map(|(f, t)| ((*f).to_owned(), (*t).to_owned())).collect();
    Rulebook::build(texts(rules::AGENTS), rules::POLICY, &tools::gate_facts()).expect("the shipped rules are sound")
}

/// Every shipped agent with every tool, on a stack of each environment and on none.
fn calls(book: &Rulebook) -> Vec<CallFacts> {
    let mut all = vec![];
    for agent in book.agents.keys() {
        for tool in tools::gate_facts() {
            for environment in [None, Some("development"), Some("staging"), Some("production")] {
                all.push(CallFacts {
                    agent: agent.clone(),
                    tool: tool.name.clone(),
                    mutates: tool.mutates,
                    preview: false,
                    stack: environment.map(|_| StackName::new("shop").expect("a name")),
                    environment: environment.map(str::to_owned),
                    service: None,

                    arguments: Default::default(),
                    on_behalf: vec![],
                });
            }
        }
    }
    all
}

/// 20 agents with 5 rules each over 30 tools.
fn large() -> (Rulebook, Vec<CallFacts>) {
    let tools: Vec<_> = (0..30)
        .map(|n| dockwarden::gate::ToolFacts {
            name: format!("tool_{n}"),
            mutates: n % 2 == 0,
            input: serde_json::json!({"type": "object", "properties": {}}),
        })
        .collect();
    let names = |range: std::ops::Range<usize>| range.map(|n| format!("tool_{n}")).collect::<Vec<_>>().join(", ");
    let agent = |a: usize| {
        let rules: String = (0..5)
            .map(|r| {
                let (effect, environment) = [("allow", "development"), ("approval", "production"), ("deny", "staging")][r % 3];
                format!(
                    "    - {{id: r{r}, effect: {effect}, tools: [{}], stacks: [\"web-{a}-{r}-*\", \"db-{r}\"], environments: [{environment}], because: \"bench\"}}\n",
                    names(r * 6..r * 6 + 6)
                )
            })
            .collect();
        let all = names(0..30);
        let text = format!(
            "---\nname: agent-{a}\ndescription: Bench.\ntools: {all}\ndockwarden:\n  tier: tier_3_write_elevated\n  rules:\n{rules}---\n"
        );
        (format!("agent-{a}.md"), text)
    };
    let book = Rulebook::build((0..20).map(agent).collect(), "", &tools).unwrap_or_else(|p| panic!("{}", rules::in_words(&p)));
    let mut calls = vec![];
    for a in 0..20 {
        for (n, tool) in tools.iter().enumerate() {
            for environment in ["development", "staging", "production"] {
                calls.push(CallFacts {
                    agent: format!("agent-{a}"),
                    tool: tool.name.clone(),
                    mutates: tool.mutates,
                    preview: false,
                    stack: Some(StackName::new(format!("web-{a}-{}-shop", n / 6)).expect("a name")),
                    environment: Some(environment.into()),
                    arguments: Default::default(),
                    on_behalf: vec![],
                    service: None,
                });
            }
        }
    }
    (book, calls)
}

/// Percentiles are what the goal speaks of, and divan has none.
fn distribution_of_gate_decisions() {
    let book = shipped();
    let calls = calls(&book);
    distribution("gate decision, shipped agents", &book, &calls);
}

fn distribution_in_a_large_house() {
    let (book, calls) = large();
    distribution("gate decision, 20 agents, 30 tools, 100 rules", &book, &calls);
}

fn distribution(what: &str, book: &Rulebook, calls: &[CallFacts]) {
    let mut took: Vec<Duration> = Vec::with_capacity(calls.len() * 200);
    for _ in 0..200 {
        for facts in calls {
            let start = Instant::now();
            black_box(call::decide(black_box(book), black_box(facts)));
            took.push(start.elapsed());
        }
    }
    took.sort_unstable();
    let at = |q: f64| took[((took.len() - 1) as f64 * q) as usize];
    println!("{what}, {} calls: p50 {:?}  p99 {:?}  p99.9 {:?}", took.len(), at(0.5), at(0.99), at(0.999));
}

#[divan::bench]
fn gate_decision(bencher: Bencher) {
    let book = shipped();
    let calls = calls(&book);
    let mut next = calls.iter().cycle();
    bencher.with_inputs(|| next.next().expect("endless")).bench_local_refs(|facts| call::decide(&book, facts));
}

struct NoFiles;
impl Files for NoFiles {
    fn read(&self, _: &str) -> Result<Option<String>, dockwarden::compose::ReadError> {
        Ok(None)
    }
}

fn load(text: &str) -> StackSpec {
    let variables = BTreeMap::new();
    let input = LoadInput {
        name: StackName::new("shop").expect("a name"),
        project_dir: "/srv/shop",
        sources: vec![Source { path: "compose.yaml".into(), text: text.into() }],
        variables: &variables,
        profiles: &[],
        files: &NoFiles,
        quotas: &Quotas::default(),
    };
    compose::load(&input).unwrap_or_else(|e| panic!("{e}"))
}

#[divan::bench]
fn compose_load_hello() -> StackSpec {
    load(black_box(include_str!("../examples/hello/compose.yaml")))
}

/// Six services in three levels, with what services usually have.
fn six() -> StackSpec {
    let mut text = String::from("services:\n");
    for (service, needs) in [("proxy", "web"), ("web", "api"), ("api", "db"), ("worker", "db"), ("db", ""), ("cache", "")] {
        text.push_str(&format!(
            "  {service}:\n    image: shop/{service}:1.2.3\n    restart: unless-stopped\n    read_only: true\n    mem_limit: 64m\n    \
             environment: {{LOG_LEVEL: info, REGION: eu, WORKERS: \"4\", URL: \"http://{service}:8080\"}}\n    \
             healthcheck: {{test: [CMD, /check], interval: 5s, timeout: 2s}}\n    volumes: [\"{service}-data:/data\"]\n"
        ));
        if !needs.is_empty() {
            text.push_str(&format!("    depends_on: {{{needs}: {{condition: service_healthy}}}}\n"));
        }
    }
    text.push_str("volumes:\n");
    for service in ["proxy", "web", "api", "worker", "db", "cache"] {
        text.push_str(&format!("  {service}-data:\n"));
    }
    load(&text)
}

fn images(spec: &StackSpec) -> BTreeMap<ServiceName, ImageIdentity> {
    let identity = |(name, service): (&ServiceName, &dockwarden::model::spec::ServiceSpec)| {
        let reference: ImageRef = service.image.clone().expect("every service has one");
        let id = Some(format!("sha256:{}", digest(reference.as_str().as_bytes())));
        (name.clone(), ImageIdentity { reference, id, repo_digest: None })
    };
    spec.services.iter().map(identity).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[divan::bench]
fn spec_hash_6_services(bencher: Bencher) {
    let spec = six();
    bencher.bench_local(|| {
        for service in spec.services.keys() {
            black_box(planner::hash::spec_hash(&spec, service, "sha256:0", &digest));
        }
    });
}

#[divan::bench]
fn plan_6_services(bencher: Bencher) {
    let spec = six();
    let images = images(&spec);
    let observed = Observed::default();
    bencher.bench_local(|| {
        let want = Want::Release { desired: Box::new(spec.clone()), images: images.clone(), content_of: None };
        planner::plan(&PlanInput {
            id: PlanId::new("plan-1").expect("an id"),
            stack: spec.name.clone(),
            environment: "development".into(),
            want,
            observed: &observed,
            current: None,
            anew: &Default::default(),
            next_release: 1,
            policy_version: "1",
            project_dir: None,
            git: None,
            literal_keys: &[],
            hash: &|text| digest(text.as_bytes())[..6].to_owned(),
            digest: &digest,
            now: DateTime::UNIX_EPOCH,
        })
        .expect("a plan")
    });
}

fn row(n: usize) -> (Intent, Outcome) {
    let call = CallId::new(format!("call-{n}")).expect("an id");
    let now = Utc::now();
    let intent = Intent {
        call: call.clone(),
        delegated_by: vec![],
        agent: "observer".into(),
        door: "mcp-http".into(),
        tool: "status".into(),
        stack: Some("shop".into()),
        environment: Some("staging".into()),
        arguments: json!({"stack": "shop", "response_format": "concise"}),
        essential: false,
        verdict: Verdict::Allow,
        findings: vec![],
        at: now,
    };
    let detail = json!({"state": "running"});
    let outcome =
        Outcome { call, outcome: "ok".into(), code: None, verdict: Verdict::Allow, findings: vec![], detail, duration_ms: 1, at: now };
    (intent, outcome)
}

/// Rows a second with so many callers, each waiting for its row, in turns with a bare loop of fsyncs on the same disk: the ratio says how many rows
/// share one.
fn durable_appends_beside_bare_fsyncs() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::Builder::new().prefix("audit-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let store = runtime.block_on(Store::open(dir.path(), &dir.path().join("memory"))).expect("a store");
    let file = std::fs::File::create(dir.path().join("fsync")).expect("a file");
    let spans = Duration::from_secs(2);
    let fsyncs = || {
        let (start, mut count) = (Instant::now(), 0_u32);
        while start.elapsed() < spans / 4 {
            file.write_all_at(&[7; 4096], 0).expect("written");
            file.sync_data().expect("durable");
            count += 1;
        }
        f64::from(count) / start.elapsed().as_secs_f64()
    };
    println!("audit appends, durable, beside a bare fsync loop:");
    for callers in [1, 8, 32, 256] {
        let bare = fsyncs();
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let store = store.clone();
                runtime.spawn(async move {
                    let mut done = 0_u64;
                    while start.elapsed() < spans {
                        let (intent, outcome) = row(usize::try_from(done).expect("few"));
                        store.audit_read(&intent, &outcome, &[]).await.expect("durable");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let rows: u64 = tasks.into_iter().map(|task| runtime.block_on(task).expect("finished")).sum();
        let rate = rows as f64 / start.elapsed().as_secs_f64();
        println!("  {callers:>3} callers: {rate:>8.0} rows/s; fsyncs {bare:>6.0}/s; {:.2} rows a fsync", rate / bare);
    }
    runtime.block_on(store.close());
}

/// What `audit verify` reads a second, in the database and in a sealed segment.
fn verification() {
    let dir = tempfile::Builder::new().prefix("audit-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(dir.path(), &dir.path().join("memory")).await.expect("a store");
        let writes = futures_util::stream::iter(0..20_000).map(|n| {
            let ((intent, outcome), store) = (row(n), store.clone());
            async move { store.audit_read(&intent, &outcome, &[]).await.expect("durable") }
        });
        writes.buffer_unordered(256).for_each(|_| async {}).await;
        let verified = async |what: &str| {
            let start = Instant::now();
            let report = store.audit_verify().await.expect("readable");
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            println!("audit verify, {} rows {what}: {:.0} rows/s", report.rows, report.rows as f64 / start.elapsed().as_secs_f64());
        };
        verified("in the database").await;
        let start = Instant::now();
        let now = dockwarden::store::audit::rotate::Rotation { max_bytes: 0, max_age: None };
        store.audit_rotate(&now, Utc::now()).await.expect("sealed").expect("due");
        println!("audit rotation of them: {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
        verified("in a sealed segment").await;
        store.close().await;
    });
}

/// Searches among ten thousand notes of one agent: rare words, frequent ones, beginnings, several words, none.
fn searches_in_a_large_memory() {
    const NOTES: usize = 10_000;
    let dir = tempfile::Builder::new().prefix("memory-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(dir.path(), &dir.path().join("memory")).await.expect("a store");
        let agent = AgentName::new("observer").expect("a name");
        let words = ["restarted", "volume", "timeout", "released", "postgres", "refused", "healthy", "port"];
        let writes = futures_util::stream::iter(0..NOTES).map(|n| {
            let text = format!("stack {} {} after {} in release {n}", n % 97, words[n % 8], words[(n / 8) % 8]);
            let (store, agent) = (store.clone(), agent.clone());
            async move { store.memory_write(&agent, &format!("incident/{n}"), &json!({"what": text}), Utc::now()).await.expect("durable") }
        });
        writes.buffer_unordered(256).for_each(|_| async {}).await;
        let queries = ["release 4711", "restarting", "timeout", "healthy volume port", "postg ref", "stack 5 released", "of no kind"];
        let mut took = vec![];
        for query in queries.iter().cycle().take(700) {
            let start = Instant::now();
            black_box(store.memory_search(&agent, query, 20).await.expect("readable"));
            took.push(start.elapsed());
        }
        took.sort_unstable();
        let at = |q: f64| took[((took.len() - 1) as f64 * q) as usize];
        println!("memory search among {NOTES} notes, {} searches: p50 {:?}  p99 {:?}  most {:?}", took.len(), at(0.5), at(0.99), at(1.0));
        store.close().await;
    });
}

/// One durable row a call, as a read leaves it. The directory is on the disk of the build, not on a tmpfs: an fsync must cost what it costs.
#[divan::bench(args = [1, 32], sample_count = 20, sample_size = 1)]
fn audit_appends(bencher: Bencher, callers: usize) {
    let dir = tempfile::Builder::new().prefix("audit-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let store = runtime.block_on(Store::open(dir.path(), &dir.path().join("memory"))).expect("a store");
    bencher.counter(ItemsCount::new(callers * ROWS)).bench_local(|| {
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let store = store.clone();
                runtime.spawn(async move {
                    for n in 0..ROWS {
                        let (intent, outcome) = row(n);
                        store.audit_read(&intent, &outcome, &[]).await.expect("durable");
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task).expect("finished");
        }
    });
    runtime.block_on(store.close());
}

/// What one durable write costs on this disk at least (a page rewritten in place): the floor of the line above with one caller.
#[divan::bench(sample_count = 100, sample_size = 1)]
fn one_fsync(bencher: Bencher) {
    use std::os::unix::fs::FileExt;
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    bencher.bench_local(|| {
        file.write_all_at(&[7; 4096], 0).expect("written");
        file.sync_data().expect("durable");
    });
}
