//! The strategies that front.rs does not have, on a real engine and under load: `canary` and `blue_green` lose no request, `alias` a few, `follow` what a
//! restart costs; each with an update, a way back and nothing left over. And services that end by themselves, or live in namespaces of others.

use crate::front::{Outcome, Turn, free_port, load, load_of, one, running, settled};
use crate::support::engine::docker;
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Requests a second that go through three services: each of them waits 2 s at most for the next, also on a busy machine.
const CHAIN_RATE: u64 = 50;

/// A supervisor with one stack. Dropped in this order: what heals goes before what it would heal, and the image last.
struct Ground {
    client: Client,
    serve: Serve,
    home: Home,
    turn: Turn,
    stack: String,
    port: u16,
}

impl Ground {
    async fn new(base: &str) -> Self {
        let turn = Turn::take().await;
        let home = Home::new();
        home.unlimited("stack-keeper");
        let (stack, port) = (home.stack(base), free_port());
        let serve = Serve::start(&home).await;
        let client = Client::stdio(&home, "stack-keeper").await;
        Self { client, serve, home, turn, stack, port }
    }

    /// A service of the demo application; `more` are further keys.
    fn service(&self, name: &str, role: &str, upstream: &str, version: &str, more: &str) -> String {
        format!(
            "  {name}:\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    \
             environment: {{ROLE: {role}, UPSTREAM: '{upstream}', VERSION: '{version}'}}\n    tmpfs: [/data]\n    \
             healthcheck: {{test: ['CMD', '/dockwarden', 'demo-app', 'check', 'http://127.0.0.1:8080/health'], interval: 2s}}\n{more}",
            self.turn.slot.image
        )
    }

    fn published(&self, more: &str) -> String {
        format!("    ports: ['127.0.0.1:{}:8080']\n{more}", self.port)
    }

    fn input(&self, services: &[String]) -> Value {
        let compose = format!("x-dockwarden: {{monitor_s: 1}}\nservices:\n{}", services.concat());
        json!({"stack": self.stack, "compose": compose, "timeout_s": 50})
    }

    /// Deploys and waits until the watch window has passed.
    async fn deploy(&self, services: &[String]) -> Value {
        let deployed = self.client.ok("deploy", self.input(services)).await;
        assert_eq!(deployed["state"], json!("monitoring"), "{deployed:#}");
        settled(&self.client, &deployed).await;
        deployed
    }

    /// Goes back to the release before and waits until that has passed.
    async fn back(&self) {
        let back = self.client.ok("rollback", json!({"stack": self.stack, "reason": "the test goes back"})).await;
        settled(&self.client, &back).await;
    }

    /// The strategy a change of this service would have, and what it would cost.
    async fn planned(&self, services: &[String], service: &str) -> (String, String) {
        let mut input = self.input(services);
        input.as_object_mut().expect("an object").remove("timeout_s");
        let plan = self.client.ok("plan", input).await;
        let change = plan["changes"].as_array().and_then(|c| c.iter().find(|c| c["service"] == json!(service)));
        let word = |key: &str| change.and_then(|c| c[key].as_str()).unwrap_or_else(|| panic!("{service}: {plan:#}")).to_owned();
        (word("strategy"), word("expected_loss"))
    }

    fn networks(&self) -> Vec<String> {
        let label = format!("label=dockwarden.stack={}", self.stack);
        docker(&["network", "ls", "--format", "{{.Name}}", "--filter", &label]).lines().map(str::to_owned).collect()
    }

    /// The containers that run, by their names after the stack's, and nothing beside them.
    fn whole(&self, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|c| format!("{}-{c} running", self.stack)).collect();
        assert_eq!(running(&self.stack), expected);
    }

    async fn end(self) {
        self.client.ok("stop", json!({"stack": self.stack, "remove": true})).await;
        assert_eq!((running(&self.stack), self.networks()), (vec![], vec![]), "nothing is left over");
        self.serve.stop().await;
        drop(self.home);
    }
}

fn versions(outcome: &Outcome) -> BTreeSet<&str> {
    outcome.by.keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_serves_its_share_before_the_switch_and_loses_no_request() {
    let g = Ground::new("canary").await;
    let web = |version: &str, bake_s: u32| {
        let course =
            format!("    x-dockwarden: {{strategy: canary, start_timeout_s: 8, canary: {{weights: [20, 60], bake_s: {bake_s}}}}}\n");
        [g.service("web", "store", "", version, &g.published(&course))]
    };
    g.deploy(&web("1", 2)).await;
    g.whole(&["web-1", "web-front"]);
    let (strategy, loss) = g.planned(&web("2", 2), "web").await;
    assert_eq!(strategy, "canary");
    assert!(loss.starts_with("none: ") && loss.contains("20, then 60 % of new connections"), "{loss}");

    let under_load = load(g.port);
    let mut input = g.input(&web("2", 2));
    input["wait"] = json!(false);
    let begun = g.client.ok("deploy", input).await;
    let operation = async || g.client.ok("operation", json!({"operation_id": begun["operation_id"]})).await;
    eventually("a share of the new version before the switch", Duration::from_secs(20), || async {
        let seen = one(g.port).await.expect("an answer");
        let op = operation().await;
        assert_ne!(op["phase"], json!("switch"), "the new version was seen before: {op:#}");
        (seen == "2" && op["phase"] == json!("smoke")).then_some(())
    })
    .await;
    settled(&g.client, &begun).await;
    assert_eq!(one(g.port).await.as_deref(), Ok("2"));
    g.back().await;
    assert_eq!(one(g.port).await.as_deref(), Ok("1"));
    let outcome = under_load.end().await;
    assert_eq!(outcome.lost, BTreeMap::new(), "{outcome:?}");
    assert_eq!(versions(&outcome), BTreeSet::from(["1", "2"]), "{outcome:?}");
    g.whole(&["web-1", "web-front"]);

    // One that dies while it has a share loses it, and the old one serves on.
    let mut input = g.input(&web("3", 30));
    input["wait"] = json!(false);
    let begun = g.client.ok("deploy", input).await;
    eventually("a share of the third", Duration::from_secs(20), || async { one(g.port).await.ok().filter(|r| r == "3") }).await;
    let label = format!("label=dockwarden.stack={}", g.stack);
    let named = docker(&["ps", "--filter", &label, "--format", "{{.Names}}"]);
    let ill = named.lines().find(|n| n.starts_with("dw-") && n.ends_with("-web-1")).expect("the canary").to_owned();
    docker(&["kill", &ill]);
    let ended = g.client.ok("operation", json!({"operation_id": begun["operation_id"], "wait_s": 30})).await;
    assert_eq!(ended["state"], json!("rolled_back"), "{ended:#}");
    assert!(ended.to_string().contains("as a canary"), "{ended:#}");
    for _ in 0..10 {
        assert_eq!(one(g.port).await.as_deref(), Ok("1"));
    }
    g.whole(&["web-1", "web-front"]);
    g.end().await;
}

/// The releases of web and api behind one answer.
fn both(answer: &str) -> Option<String> {
    let of = |role: &str| Some(answer.split_once(&format!("{role} release "))?.1.lines().next()?.trim().to_owned());
    Some(format!("{}+{}", of("Web")?, of("Api")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_one_colour_meet_no_other_version_and_lose_no_request() {
    let g = Ground::new("green").await;
    let all = |version: &str| {
        let green = "    x-dockwarden: {strategy: blue_green, start_timeout_s: 8}\n";
        [
            g.service("store", "store", "", "1", ""),
            g.service("api", "api", "store:8080", version, &format!("    expose: ['8080']\n    depends_on: [store]\n{green}")),
            g.service("web", "web", "api:8080", version, &g.published(&format!("    depends_on: [api]\n{green}"))),
        ]
    };
    let names = ["api-1", "api-front", "store-1", "web-1", "web-front"];
    g.deploy(&all("1")).await;
    g.whole(&names);
    let under_load = load_of(g.port, CHAIN_RATE, "/visits", both);
    for version in ["2", "3"] {
        let (strategy, loss) = g.planned(&all(version), "web").await;
        assert_eq!(strategy, "blue_green");
        assert!(loss.starts_with("none: "), "{loss}");
        g.deploy(&all(version)).await;
        g.whole(&names);
        assert_eq!(g.networks().len(), 2, "the stack's and the colour's: {:?}", g.networks());
    }
    g.back().await;
    let outcome = under_load.end().await;
    eprintln!("blue_green: {} requests, by {:?}", outcome.sent, outcome.by);
    assert_eq!(outcome.lost, BTreeMap::new(), "{outcome:?}");
    assert_eq!(versions(&outcome), BTreeSet::from(["1+1", "2+2", "3+3"]), "each met its own version only: {outcome:?}");
    g.whole(&names);
    assert_eq!(g.networks().len(), 2, "{:?}", g.networks());
    g.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_moves_with_at_most_a_few_requests_lost() {
    let g = Ground::new("alias").await;
    let all = |version: &str| {
        let alias = "    depends_on: [store]\n    x-dockwarden: {strategy: alias, start_timeout_s: 8}\n";
        [
            g.service("store", "store", "", "1", ""),
            g.service("api", "api", "store:8080", version, alias),
            g.service("web", "web", "api:8080", "1", &g.published("    depends_on: [api]\n")),
        ]
    };
    let names = ["api-1", "store-1", "web-1"];
    g.deploy(&all("1")).await;
    g.whole(&names);
    let (strategy, loss) = g.planned(&all("2"), "api").await;
    assert_eq!(strategy, "alias");
    assert!(loss.contains("of new connections while old and new answer to the name"), "{loss}");
    let under_load = load_of(g.port, CHAIN_RATE, "/visits", both);
    g.deploy(&all("2")).await;
    g.whole(&names);
    g.back().await;
    let outcome = under_load.end().await;
    let lost: usize = outcome.lost.values().sum();
    eprintln!("alias: {lost} of {} requests lost in an update and a rollback", outcome.sent);
    assert!(lost * 100 <= outcome.sent, "more than 1 %: {outcome:?}");
    assert_eq!(versions(&outcome), BTreeSet::from(["1+1", "1+2"]), "{outcome:?}");
    g.whole(&names);
    g.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_its_dependency_is_restarted_after_it_and_nothing_else_is() {
    let g = Ground::new("follow").await;
    let all = |version: &str| {
        [
            g.service("api", "store", "", version, ""),
            g.service("web", "web", "api:8080", "1", &g.published("    depends_on: {api: {condition: service_healthy, restart: true}}\n")),
            g.service("other", "store", "", "1", "    depends_on: [api]\n"),
        ]
    };
    let names = ["api-1", "other-1", "web-1"];
    g.deploy(&all("1")).await;
    let of = |service: &str, what: &str| docker(&["inspect", "-f", what, &format!("{}-{service}-1", g.stack)]);
    let (id, started) = ("{{.Id}}", "{{.State.StartedAt}}");
    let before = (of("web", id), of("other", id), of("other", started), of("api", id));
    assert_eq!(g.planned(&all("2"), "web").await.0, "follow");
    let under_load = load(g.port);
    for step in ["update", "rollback"] {
        let was = of("web", started);
        match step {
            "update" => drop(g.deploy(&all("2")).await),
            _ => g.back().await,
        }
        assert_eq!(
            (of("web", id), of("other", id), of("other", started)),
            (before.0.clone(), before.1.clone(), before.2.clone()),
            "{step}"
        );
        assert!(of("web", started) > was && of("web", started) > of("api", started), "{step}: restarted, after what it depends on");
        g.whole(&names);
    }
    assert_ne!(of("api", id), before.3);
    eventually("web serves", Duration::from_secs(10), || async { one(g.port).await.ok() }).await;
    let outcome = under_load.end().await;
    let lost: usize = outcome.lost.values().sum();
    eprintln!("follow: {lost} of {} requests lost in two restarts", outcome.sent);
    assert!(outcome.by.get("1").copied().unwrap_or_default() > 0, "{outcome:?}");
    g.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_ends_well_is_finished_and_one_that_fails_fails_its_deploy() {
    let g = Ground::new("job").await;
    let all = |policy: &str, url: &str| {
        let image = &g.turn.slot.image;
        let job = format!(
            "  job:\n    image: {image}\n    mem_limit: 64m\n    restart: '{policy}'\n    command: [check, '{url}']\n    depends_on: {{web: {{condition: service_healthy}}}}\n"
        );
        [g.service("web", "store", "", "1", &g.published("")), job]
    };
    let state = || docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.StartedAt}}", &format!("{}-job-1", g.stack)]);
    let finished = json!("service job finished: exit code 0");
    let mut runs = BTreeSet::new();
    for policy in ["no", "on-failure:3"] {
        let deployed = g.deploy(&all(policy, "http://web:8080/health")).await;
        let done = g.client.ok("operation", json!({"operation_id": deployed["operation_id"]})).await;
        assert_eq!(done["message"], finished, "{policy}: {done:#}");
        assert!(state().starts_with("exited 0 "), "{policy}: {}", state());
        runs.insert(state());
        assert_eq!(g.client.ok("health", json!({"stack": g.stack})).await["healthy"], json!(true), "{policy}");
        let again = g.client.ok("deploy", g.input(&all(policy, "http://web:8080/health"))).await;
        assert!(again["message"].as_str().is_some_and(|m| m.contains("nothing to do")), "{again:#}");
        assert!(runs.contains(&state()), "{policy}: it did not run again");
    }
    assert_eq!(runs.len(), 2, "it ran once for each release");
    let failed = g.client.ok("deploy", g.input(&all("no", "http://web:8080/nothing-here"))).await;
    assert_eq!(failed["state"], json!("rolled_back"), "{failed:#}");
    assert!(failed.to_string().contains("answered 404"), "its last words: {failed:#}");
    assert!(runs.contains(&state()), "the one before is there as it ended");
    g.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lives_in_another_services_namespaces_moves_with_it() {
    let g = Ground::new("spaces").await;
    let all = |version: &str| {
        [
            g.service("web", "store", "", version, &g.published("    ipc: shareable\n")),
            g.service("net", "store", "", "1", "    network_mode: 'service:web'\n")
                .replace("8080", "8081")
                .replace("tmpfs:", "command: [--listen, '0.0.0.0:8081']\n    tmpfs:"),
            g.service("pid", "store", "", "1", "    pid: 'service:web'\n"),
            g.service("ipc", "store", "", "1", "    ipc: 'service:web'\n"),
        ]
    };
    let names = ["ipc-1", "net-1", "pid-1", "web-1"];
    let space = |service: &str, kind: &str| {
        let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &format!("{}-{service}-1", g.stack)]);
        std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a process of this machine")
    };
    let id = || docker(&["inspect", "-f", "{{.Id}}", &format!("{}-web-1", g.stack)]);
    let mut before = None;
    for version in ["1", "2"] {
        g.deploy(&all(version)).await;
        g.whole(&names);
        for kind in ["net", "pid", "ipc"] {
            assert_eq!(space(kind, kind), space("web", kind), "release {version}: {kind} lives there");
        }
        assert_ne!(before.replace(id()), Some(id()), "release {version} has a container of its own");
    }
    g.back().await;
    g.whole(&names);
    for kind in ["net", "pid", "ipc"] {
        assert_eq!(space(kind, kind), space("web", kind), "after the rollback: {kind} lives there");
    }
    assert_eq!(one(g.port).await.as_deref(), Ok("1"));
    g.end().await;
}
