//! The soak: five stacks with twenty services, faults at random from a printed seed, for `DOCKWARDEN_SOAK_S` seconds (30 by default; a person lets it run for
//! an hour). Every fault is healed or given up within its budget, the loop never storms, data, audit log and memories stay whole; the report is printed.
//!
//! `DOCKWARDEN_SOAK_SEED` repeats a run's choices. `DOCKWARDEN_SOAK_ENGINE=1` takes an engine of its own and restarts that, too.

use crate::support::engine::engine;
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::own_engine::OwnEngine;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

const STACKS: usize = 5;
const SERVICES: [&str; 4] = ["store", "api", "web", "worker"];
/// Acts the loop has for a service before it gives up, as the product's policy says.
const BUDGET: usize = 5;
/// Faults that need an act, of one service: one less than would make the loop give it up.
const MOST_ACTING: usize = BUDGET - 1;
/// Faults without which a run shows nothing.
const LEAST: usize = 6;
/// Longest time from a fault to everything well: the longest pause of the loop, a grace, a start, two health checks, and a slow machine.
const WITHIN: Duration = Duration::from_secs(120);

/// What is done to a service, or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// SIGKILL of its first process.
    Kill,
    /// Its health check fails from now on.
    Health,
    /// It takes memory until its limit ends it.
    Memory,
    /// It writes far more log than is kept.
    Log,
    /// What two others depend on is killed.
    Dependency,
    /// SIGKILL of the supervisor.
    Supervisor,
    /// The engine is restarted with all that runs on it.
    Engine,
}

impl Kind {
    /// Whether the process must be another one afterwards.
    fn restarts(self) -> bool {
        !matches!(self, Self::Log | Self::Supervisor)
    }
}

/// Numbers that look random and repeat with their seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// Where the stacks run.
enum Ground {
    Shared,
    Own(Box<OwnEngine>),
}

impl Ground {
    /// The client; a failure is told by what it did not print.
    fn try_docker(&self, args: &[&str]) -> String {
        let mut command = Command::new("docker");
        if let Self::Own(engine) = self {
            command.env("DOCKER_HOST", engine.host());
        }
        String::from_utf8_lossy(&command.args(args).output().expect("the docker client runs").stdout).trim().to_owned()
    }
}

/// A container as the engine shows it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    well: bool,
    started: String,
}

/// A fault that is not over.
#[derive(Debug, Clone)]
struct Pending {
    kind: Kind,
    at: Instant,
    container: String,
    /// What ran when it was made.
    before: String,
}

#[derive(Default)]
struct Report {
    healed: BTreeMap<Kind, Vec<Duration>>,
    given_up: Vec<String>,
    faults: usize,
}

struct Soak {
    ground: Ground,
    home: Home,
    stacks: Vec<String>,
    dice: Dice,
    pending: Vec<Pending>,
    acting: BTreeMap<String, usize>,
    visits: BTreeMap<String, u64>,
    report: Report,
}

fn compose(image: &str) -> String {
    let service = |name: &str, role: &str, health: &str, more: &str| {
        format!(
            "  {name}:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 96m\n    environment: {{ROLE: {role}, UPSTREAM: '{up}:8080', FAULTS: 'on'}}\n    \
             logging: {{driver: json-file, options: {{max-size: 1m, max-file: '2'}}}}\n    \
             healthcheck: {{test: [CMD, /dockwarden, demo-app, check, 'http://127.0.0.1:8080/{health}'], interval: 2s, timeout: 4s, retries: 3}}\n{more}",
            up = if name == "web" { "api" } else { "store" }
        )
    };
    format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n{}{}{}{}volumes: {{visits: {{}}}}\n",
        service("store", "store", "health", "    volumes: ['visits:/data']\n"),
        service("api", "api", "visits", "    depends_on: [store]\n"),
        service("web", "web", "health", "    depends_on: [api]\n"),
        service("worker", "store", "health", "    tmpfs: [/data]\n"),
    )
}

impl Soak {
    fn containers(&self) -> Vec<String> {
        self.stacks.iter().flat_map(|s| SERVICES.map(|service| format!("{s}-{service}-1"))).collect()
    }

    /// Every container of ours; one that is not there is not among them.
    fn look(&self) -> BTreeMap<String, Seen> {
        let names = self.containers();
        let form = "{{.Name}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}} {{.State.StartedAt}}";
        let args: Vec<&str> = ["inspect", "-f", form].into_iter().chain(names.iter().map(String::as_str)).collect();
        let parse = |line: &str| {
            let mut words = line.trim_start_matches('/').split(' ');
            let (name, state, health, started) = (words.next()?, words.next()?, words.next()?, words.next()?);
            Some((name.to_owned(), Seen { well: state == "running" && health == "healthy", started: started.to_owned() }))
        };
        self.ground.try_docker(&args).lines().filter_map(parse).collect()
    }

    /// Ends what is over; panics with what is not within its time.
    fn settle(&mut self, given_up: &BTreeSet<String>) {
        let seen = self.look();
        for p in std::mem::take(&mut self.pending) {
            let now = seen.get(&p.container);
            let over = now.is_some_and(|s| s.well && (!p.kind.restarts() || s.started != p.before));
            if over {
                self.report.healed.entry(p.kind).or_default().push(p.at.elapsed());
            } else if given_up.contains(&p.container) {
                self.report.given_up.push(p.container);
            } else {
                assert!(
                    p.at.elapsed() < WITHIN,
                    "{:?} of {} is neither healed nor given up after {:?}: {now:?}\n{}",
                    p.kind,
                    p.container,
                    p.at.elapsed(),
                    tail(&self.home)
                );
                self.pending.push(p);
            }
        }
    }

    /// One fault of a kind, at a service that is well; nothing when there is none that may have it.
    fn strike(&mut self, kind: Kind) {
        let busy: BTreeSet<&str> = self.pending.iter().map(|p| stack_of(&p.container)).collect();
        let seen = self.look();
        let may = |name: &String| {
            let acts = self.acting.get(name).copied().unwrap_or(0) < MOST_ACTING;
            let of_kind = match kind {
                Kind::Dependency => name.ends_with("-store-1"),
                // The check of an api is of what it depends on.
                Kind::Health => !name.ends_with("-api-1"),
                Kind::Kill | Kind::Memory | Kind::Log | Kind::Supervisor | Kind::Engine => true,
            };
            // One fault a stack at a time: what follows from what stays clear.
            of_kind && (acts || kind == Kind::Log) && !busy.contains(stack_of(name)) && seen.get(name).is_some_and(|s| s.well)
        };
        let choice: Vec<String> = self.containers().into_iter().filter(may).collect();
        if choice.is_empty() {
            return;
        }
        let container = choice[self.dice.roll(choice.len())].clone();
        let before = seen[&container].started.clone();
        let at = Instant::now();
        self.report.faults += 1;
        if kind.restarts() {
            *self.acting.entry(container.clone()).or_default() += 1;
        }
        let order = |fault: &str| drop(self.ground.try_docker(&["exec", &container, "/dockwarden", "demo-app", "fault", fault]));
        match kind {
            Kind::Kill | Kind::Dependency => drop(self.ground.try_docker(&["kill", "-s", "KILL", &container])),
            Kind::Health => order("health"),
            Kind::Memory => order("memory"),
            Kind::Log => order("log"),
            Kind::Supervisor | Kind::Engine => unreachable!("not of one service"),
        }
        self.pending.push(Pending { kind, at, container, before });
    }

    /// A visit through all roles of a stack that is well; what was counted is never lost.
    fn visit(&mut self) {
        let stack = self.stacks[self.dice.roll(self.stacks.len())].clone();
        let web = format!("{stack}-web-1");
        let said = self.ground.try_docker(&["exec", &web, "/dockwarden", "demo-app", "check", "http://127.0.0.1:8080/"]);
        let Some(count) = said.split_whitespace().skip_while(|w| *w != "visits").nth(1).and_then(|n| n.parse().ok()) else { return };
        let known = self.visits.entry(stack.clone()).or_default();
        assert!(count > *known, "{stack} counted {count} after {known}: a volume lost what it held");
        *known = count;
    }

    /// Rows of the loop about one stack.
    async fn rows(&self, client: &Client, stack: &str, tool: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (vec![], Value::Null);
        loop {
            let mut ask = json!({"agent": "warden", "tool": tool, "stack": stack, "limit": 200, "response_format": "detailed"});
            if cursor.is_string() {
                ask["cursor"] = cursor;
            }
            let page = client.ok("audit", ask).await;
            all.extend(page["rows"].as_array().expect("rows").iter().cloned());
            cursor = page["next_cursor"].clone();
            if !cursor.is_string() {
                return all;
            }
        }
    }

    /// Containers of services the loop has given up, by its own word.
    async fn given_up(&self, client: &Client) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for stack in &self.stacks {
            for row in self.rows(client, stack, "healing_gave_up").await {
                found.extend(service_of(&row).map(|service| format!("{stack}-{service}-1")));
            }
        }
        found
    }
}

/// The service a row of the log is about; its detail is JSON in an envelope.
fn service_of(row: &Value) -> Option<&'static str> {
    let text = row["detail"]["text"].as_str()?;
    SERVICES.into_iter().find(|s| text.contains(&format!("\"service\":\"{s}\"")))
}

fn stack_of(container: &str) -> &str {
    container.trim_end_matches("-1").rsplit_once('-').map_or(container, |(stack, _)| stack)
}

fn tail(home: &Home) -> String {
    let log = std::fs::read_to_string(home.path("serve.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn whatever_is_broken_at_random_is_healed_or_given_up_and_nothing_is_lost() {
    let seconds = number("DOCKWARDEN_SOAK_S").unwrap_or(30);
    let seed = number("DOCKWARDEN_SOAK_SEED")
        .unwrap_or_else(|| (u64::from(std::process::id()) << 20) ^ chrono::Utc::now().timestamp_micros().unsigned_abs());
    println!("soak: {seconds} s, DOCKWARDEN_SOAK_SEED={seed}");
    let slot = engine().await;
    let own = std::env::var("DOCKWARDEN_SOAK_ENGINE").is_ok_and(|v| v == "1");
    let (ground, home) = if own {
        let engine = OwnEngine::start().await;
        engine.load(&slot.image);
        let home = Home::new().on_engine(engine.host());
        (Ground::Own(Box::new(engine)), home)
    } else {
        (Ground::Shared, Home::new())
    };
    home.unlimited("stack-keeper");
    // The soak reads as much of the log as it likes; an agent's changes are not what is looked at here.
    home.unbroken();
    let stacks: Vec<String> = (0..STACKS).map(|n| home.stack(&format!("soak{n}"))).collect();
    let mut serve = Serve::start(&home).await;
    let mut client = Client::stdio(&home, "stack-keeper").await;
    for stack in &stacks {
        let begun = client.ok("deploy", json!({"stack": stack, "compose": compose(&slot.image), "timeout_s": 55})).await;
        let done = client.ok("operation", json!({"operation_id": begun["operation_id"], "wait_s": 50})).await;
        assert_eq!(done["state"], json!("done"), "{done:#}");
    }
    let (dice, acting, visits) = (Dice(seed), BTreeMap::new(), BTreeMap::new());
    let mut soak = Soak { ground, home, stacks, dice, pending: vec![], acting, visits, report: Report::default() };

    let kinds =
        [Kind::Kill, Kind::Health, Kind::Memory, Kind::Log, Kind::Dependency, Kind::Kill, Kind::Health, Kind::Supervisor, Kind::Engine];
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
    let (mut next, mut restarts, mut engine_restarts, mut last_big) = (begun, 0, 0, begun);
    let (mut given_up, mut asked) = (BTreeSet::new(), begun);
    // On a machine with much else to do it takes longer to break enough.
    let striking = |faults: usize| begun.elapsed() < length || (faults < LEAST && begun.elapsed() < length * 6);
    while striking(soak.report.faults) || !soak.pending.is_empty() {
        if !soak.pending.is_empty() && asked.elapsed() > Duration::from_secs(2) {
            (given_up, asked) = (soak.given_up(&client).await, Instant::now());
        }
        soak.settle(&given_up);
        if striking(soak.report.faults) && Instant::now() >= next {
            let kind = kinds[soak.dice.roll(kinds.len())];
            let calm = last_big.elapsed() > Duration::from_secs(10);
            match kind {
                // In the middle of what it heals, too: that is the point.
                Kind::Supervisor if calm => {
                    let at = Instant::now();
                    serve.kill9().await;
                    serve = Serve::start(&soak.home).await;
                    client = Client::stdio(&soak.home, "stack-keeper").await;
                    soak.report.faults += 1;
                    soak.report.healed.entry(kind).or_default().push(at.elapsed());
                    (restarts, last_big) = (restarts + 1, Instant::now());
                }
                Kind::Engine if calm && soak.pending.is_empty() => {
                    if let Ground::Own(engine) = &mut soak.ground {
                        engine.halt().await;
                        engine.boot().await;
                        soak.report.faults += 1;
                        (engine_restarts, last_big) = (engine_restarts + 1, Instant::now());
                        let whole: Vec<Pending> = soak
                            .containers()
                            .into_iter()
                            .map(|container| Pending { kind, at: last_big, container, before: String::new() })
                            .collect();
                        soak.pending.extend(whole);
                    }
                }
                Kind::Supervisor | Kind::Engine => {}
                kind => soak.strike(kind),
            }
            soak.visit();
            next = Instant::now() + Duration::from_millis(300 + soak.dice.roll(1700) as u64);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // Everything that was not given up is well.
    let given_up = soak.given_up(&client).await;
    eventually("what depends on what was broken is well, too", WITHIN, || async {
        let seen = soak.look();
        soak.containers().iter().filter(|c| !given_up.contains(*c)).all(|c| seen.get(c).is_some_and(|s| s.well)).then_some(())
    })
    .await;
    // No storm: what the loop did is bounded by what was done to it, and for each service by its budget.
    let mut acts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for stack in &soak.stacks {
        for tool in ["restart", "deploy", "rollback", "scale", "stop"] {
            for row in soak.rows(&client, stack, tool).await.iter().filter(|r| r["kind"] == "intent") {
                *acts.entry(tool).or_default() += 1;
                *most.entry(format!("{stack}/{}", service_of(row).unwrap_or("all"))).or_default() += 1;
            }
        }
    }
    let all: usize = acts.values().sum();
    let acting: usize = soak.acting.values().sum();
    let bound = 2 * acting + STACKS * SERVICES.len() * (restarts + engine_restarts).min(1) + 5;
    let mut table = String::new();
    for (kind, times) in &mut soak.report.healed {
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64();
        table.push_str(&format!("  {kind:?}: {} healed, p50 {:.1} s, most {:.1} s\n", times.len(), at(50), at(100)));
    }
    for agent in ["warden", "stack-keeper"] {
        let (code, out, err) = soak.home.run(&["memory", "verify", agent]).await;
        assert_eq!(code, 0, "memory of {agent}: {out}{err}");
    }
    let (code, verified, err) = soak.home.run(&["audit", "verify"]).await;
    println!(
        "soak of {} s, seed {seed}: {} stacks, {} services, {} faults ({restarts} kills of the supervisor, {engine_restarts} restarts of the engine)\n{table}  given up: {:?}\n  \
         acts of the loop: {acts:?}, {all} in all, most of one service {:?}; at most {bound} were to be expected\n  visits kept: {:?}\n  memories intact; {}\n  RSS of the supervisor {} MiB",
        begun.elapsed().as_secs(),
        soak.stacks.len(),
        soak.containers().len(),
        soak.report.faults,
        soak.report.given_up,
        most.iter().max_by_key(|(_, n)| **n),
        soak.visits.values().collect::<Vec<_>>(),
        verified.trim(),
        serve.rss_kib().await / 1024
    );
    assert_eq!(code, 0, "{verified}{err}");
    assert!(soak.report.faults >= LEAST, "hardly anything was broken: this shows nothing");
    assert!(all <= bound, "the loop acted {all} times for {acting} faults that needed it");
    // A log that somebody floods takes what its driver is told to keep, and no more.
    for container in soak.containers() {
        let path = soak.ground.try_docker(&["inspect", "-f", "{{.LogPath}}", &container]);
        let size = |end: &str| std::fs::metadata(format!("{path}{end}")).map_or(0, |m| m.len());
        assert!(size("") + size(".1") < 4 << 20, "{container}: its log has {} bytes", size("") + size(".1"));
    }
    // Nothing has more containers than it should.
    for stack in &soak.stacks {
        let listed = soak.ground.try_docker(&["ps", "--filter", &format!("label=dockwarden.stack={stack}"), "--format", "{{.Names}}"]);
        assert_eq!(listed.lines().count(), SERVICES.len() - given_up.iter().filter(|c| stack_of(c) == stack).count(), "{listed}");
    }
    serve.stop().await;
}
