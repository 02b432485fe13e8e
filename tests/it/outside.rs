//! Agents in processes of their own: `dockwarden agent run` against a real supervisor, on a real engine, with a model that says what a test wrote. Killed,
//! stopped, left without a supervisor, refused, and twenty at once.

use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::llm::{Asked, Provider, Say, answer};
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::process::Child;

const KEY: &str = "sk-test-0123456789abcdef";
const WITHIN: Duration = Duration::from_secs(90);

/// A home whose supervisor lends out these agents; their model is the scripted provider.
fn lends(provider: &Provider, agents: &[(&str, &str)]) -> Home {
    let home = Home::new();
    let names: Vec<&str> = agents.iter().map(|(name, _)| *name).collect();
    // The key's place is the agent's matter: the supervisor never reads this one.
    home.configure(
        "dockwarden.toml",
        &format!(
            "[models]\ndefault = \"scripted\"\n[models.scripted]\nprovider = \"anthropic\"\nmodel = \"m-1\"\nbase_url = \"{}\"\nkey_env = \"SCRIPTED_KEY\"\nprice = {{input = 3.0, cached = 0.3, output = 15.0}}\n[tasks]\nmaintenance = false\noutside = {names:?}\n",
            provider.url
        ),
    );
    for (name, text) in agents {
        if !text.is_empty() {
            home.configure(&format!("agents/{name}.md"), text);
        }
    }
    std::fs::write(home.path("model.key"), KEY).expect("written");
    // The command line looks on as this one.
    home.unlimited("stack-keeper");
    home
}

/// Makes an agent's token, and puts it where its process finds it.
async fn token(home: &Home, agent: &str) -> String {
    let token = home.token(agent).await;
    std::fs::write(home.path(&format!("{agent}.token")), &token).expect("written");
    token
}

/// A running `dockwarden agent run`. Its environment has no engine.
struct Agent {
    child: Child,
    log: std::path::PathBuf,
}

impl Agent {
    fn start(home: &Home, serve: &Serve, name: &str) -> Self {
        let log = home.path(&format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let token = home.path(&format!("{name}.token")).display().to_string();
        let key = home.path("model.key").display().to_string();
        let mut command = home.command(["agent", "run", name, "--url", &serve.mcp_url(), "--token-file", &token, "--key-file", &key]);
        // Neither the supervisor's state nor an engine is there for it.
        command.env_remove("DOCKER_HOST").env("DOCKWARDEN_HOME", "/nonexistent").env("DOCKWARDEN_CONFIG", "/nonexistent");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(file)).spawn().expect("the binary runs");
        Self { child, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn kill9(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and waits for the end.
    async fn stop(mut self) -> ExitStatus {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("still running");
        kill_process(pid, Signal::TERM).expect("signalled");
        match tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await {
            Ok(status) => status.expect("a child of ours"),
            Err(_) => panic!("it did not end:\n{}", self.said()),
        }
    }

    /// Resident memory in KiB: all of it, and what is not the binary's own pages.
    fn rss_kib(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().expect("still running"))).expect("running");
        let of = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).expect(key);
            line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
        };
        (of("VmRSS:"), of("RssAnon:"))
    }
}

/// How often the model has spoken in what it is shown.
fn said(asked: &Asked) -> usize {
    asked.body["messages"].as_array().expect("messages").iter().filter(|m| m["role"] == "assistant").count()
}

/// The agent gives itself something to do.
async fn submit(client: &Client, agent: &str, prompt: &str) -> String {
    let given = client.ok("task_submit", json!({"agent": agent, "prompt": prompt})).await;
    given["task_id"].as_str().expect("an id").to_owned()
}

async fn task(home: &Home, id: &str) -> Value {
    let (_, out, err) = home.run(&["task", "show", id, "--json"]).await;
    let shown: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    shown["tasks"][0].clone()
}

async fn ended(home: &Home, id: &str, agent: &Agent) -> Value {
    let begun = Instant::now();
    loop {
        let seen = task(home, id).await;
        if ["succeeded", "failed", "cancelled"].contains(&seen["state"].as_str().unwrap_or_default()) {
            return seen;
        }
        assert!(begun.elapsed() < WITHIN, "{seen:#}\n{}", agent.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const DEPLOYS: &str = "---
name: outsider
description: Deploys from outside.
tools: status, deploy, operation, memory_write, task_submit
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: dev, effect: allow, tools: [deploy], environments: [development], because: \"development is free\"}
    - {id: give, effect: allow, tools: [task_submit], because: \"it works for itself\"}
  limits: {usd_per_month: 50}
---
You deploy.
";

/// Killed while its deploy runs, and again while its model speaks: the third process finishes, and there was one deploy.
#[tokio::test]
async fn an_agent_outside_that_is_killed_goes_on_and_deploys_once() {
    let slot = engine().await;
    let stalled = AtomicBool::new(false);
    let stack = format!("t{}-outside", std::process::id());
    let compose = format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  store:\n    image: {}\n    mem_limit: 64m\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n",
        slot.image
    );
    let wanted = json!({"stack": stack, "compose": compose, "environment": "development"});
    let provider = Provider::start(move |_, asked| {
        let usage = (8_000, 500, 0, 300);
        match said(asked) {
            0 => answer("I deploy.", &[("deploy", wanted.clone())], usage),
            1 if !stalled.swap(true, Ordering::SeqCst) => Say::Stalls("It".into()),
            1 => answer("I note it.", &[("memory_write", json!({"key": "deployed", "value": "release 1"}))], usage),
            _ => answer("Deployed release 1.", &[], usage),
        }
    })
    .await;
    let home = lends(&provider, &[("outsider", DEPLOYS)]);
    home.named(stack.clone());
    let serve = Serve::start(&home).await;
    let token = token(&home, "outsider").await;
    let client = Client::http(&serve.mcp_url(), &token).await;
    let first = Agent::start(&home, &serve, "outsider");
    let id = submit(&client, "outsider", "Deploy the store.").await;
    let running = || docker(&["ps", "-q", "--filter", &format!("label=dockwarden.stack={stack}")]);
    let log = first.log.clone();
    eventually("its deploy has begun", WITHIN, || async {
        assert!(!std::fs::read_to_string(&log).unwrap_or_default().contains("ERROR"), "{:?}", std::fs::read_to_string(&log));
        (!running().is_empty()).then_some(())
    })
    .await;
    first.kill9().await;
    let second = Agent::start(&home, &serve, "outsider");
    eventually("the model speaks again", WITHIN, || async { provider.asked().iter().any(|a| said(a) == 1).then_some(()) }).await;
    second.kill9().await;
    let third = Agent::start(&home, &serve, "outsider");
    let done = ended(&home, &id, &third).await;
    assert_eq!((&done["state"], &done["attempt"]), (&json!("succeeded"), &json!(1)), "{done:#}\n{}", third.said());
    assert!(done.to_string().contains("Deployed release 1."), "{done:#}");
    assert_eq!(running().lines().count(), 1);

    let (_, out, _) = home.run(&["history", &stack, "--json"]).await;
    let history: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(history["releases"].as_array().map(Vec::len), Some(1), "{history:#}");
    let (_, out, _) = home.run(&["audit", "--of", "outsider", "--limit", "100", "--json"]).await;
    let audit: Value = serde_json::from_str(&out).expect("json");
    let rows = audit["rows"].as_array().expect("rows").clone();
    let of = |tool: &str| rows.iter().filter(|r| r["tool"] == tool).count();
    assert!(of("deploy") >= 1 && of("memory_write") >= 1 && of("task_lent") == 3, "{audit:#}");
    assert!(
        rows.iter().filter(|r| r["tool"] == "deploy").all(|r| r["door"].as_str().is_some_and(|d| d.starts_with("mcp-http tk-"))),
        "{audit:#}"
    );
    let (_, out, _) = home.run(&["agents", "cost", "--json"]).await;
    let cost: Value = serde_json::from_str(&out).expect("json");
    // Three answers of 8000 anew, 500 from the cache and 300 written; one was lost and counts at its worst.
    let spent = &cost["spent"][0];
    assert_eq!((&spent["answers"], &spent["lost"], &spent["agent"]), (&json!(3), &json!(1), &json!("outsider")), "{cost:#}");
    assert!(spent["micro_usd"].as_u64().is_some_and(|m| m > 3 * (8_000 * 3 + 150 + 300 * 15)), "{cost:#}");
    for asked in provider.asked() {
        assert!(asked.head.to_ascii_lowercase().contains(&format!("x-api-key: {KEY}")), "the key is the agent's own");
    }

    // The supervisor is killed while its agent waits; it finds the next one by itself.
    let listen = serve.listen.clone();
    serve.kill9().await;
    let serve = Serve::start_with(&home, &["--listen", &listen], &listen).await;
    let id = submit(&Client::http(&serve.mcp_url(), &token).await, "outsider", "Deploy the store again.").await;
    let done = ended(&home, &id, &third).await;
    assert_eq!(done["state"], "succeeded", "{done:#}\n{}", third.said());
    assert_eq!(third.stop().await.code(), Some(0));
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(!std::fs::read_to_string(home.path("outsider.log")).expect("a log").contains(KEY));
    serve.stop().await;
}

const LOOKS: &str = "---
name: NAME
description: Looks from outside.
tools: status, memory_write, task_submit, cancel
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: give, effect: allow, tools: [task_submit, cancel], because: \"it works for itself\"}
---
You look.
";

/// Told to end in the middle of an answer it gives its task back; a cancelled task stops; each end is an exit code.
#[tokio::test]
async fn an_agent_outside_that_is_told_to_end_gives_its_task_back() {
    let provider = Provider::start(|n, _| match n {
        0 | 2 => Say::Stalls("Well".into()),
        _ => answer("Done.", &[], (8_000, 0, 0, 100)),
    })
    .await;
    let looks = LOOKS.replace("NAME", "looker");
    let home = lends(&provider, &[("looker", &looks)]);
    let serve = Serve::start(&home).await;
    let client = Client::http(&serve.mcp_url(), &token(&home, "looker").await).await;
    let asked = |n: usize| {
        let provider = &provider;
        eventually("the model is asked", WITHIN, move || async move { (provider.asked().len() >= n).then_some(()) })
    };
    let id = submit(&client, "looker", "Look.").await;
    let agent = Agent::start(&home, &serve, "looker");
    asked(1).await;
    assert_eq!(agent.stop().await.code(), Some(0));
    let seen = task(&home, &id).await;
    assert_eq!((&seen["state"], &seen["attempt"]), (&json!("queued"), &json!(0)), "{seen:#}");
    let agent = Agent::start(&home, &serve, "looker");
    assert_eq!(ended(&home, &id, &agent).await["state"], "succeeded");

    let id = submit(&client, "looker", "Look again.").await;
    asked(3).await;
    client.ok("cancel", json!({"task_id": id})).await;
    assert_eq!(ended(&home, &id, &agent).await["state"], "cancelled");

    // A second process takes the first one's place, and says so.
    let other = Agent::start(&home, &serve, "looker");
    let mut agent = agent;
    let status = tokio::time::timeout(WITHIN, agent.child.wait()).await.expect("it ends").expect("a child of ours");
    assert_eq!(status.code(), Some(1), "{}", agent.said());
    assert!(agent.said().contains("another process of the agent looker"), "{}", agent.said());
    let id = submit(&client, "looker", "Look once more.").await;
    assert_eq!(ended(&home, &id, &other).await["state"], "succeeded");
    assert_eq!(other.stop().await.code(), Some(0));
    serve.stop().await;
}

#[tokio::test]
async fn an_agent_that_cannot_work_outside_is_told_why() {
    let provider = Provider::saying(vec![]).await;
    let (looks, poor) = (LOOKS.replace("NAME", "looker"), LOOKS.replace("NAME", "poor").replace("model: inherit\n", ""));
    let home = lends(&provider, &[("looker", &looks), ("poor", &poor)]);
    let serve = Serve::start(&home).await;
    for agent in ["looker", "poor", "observer"] {
        token(&home, agent).await;
    }
    std::fs::write(home.path("wrong.token"), "dw-not-a-token").expect("written");
    let file = |name: &str| home.path(name).display().to_string();
    let (url, key) = (serve.mcp_url(), file("model.key"));
    let cases: [(&str, Vec<&str>, i32, &str); 6] = [
        ("looker", vec!["--token-file", "wrong.token", "--key-file", &key], 3, "does not take this token"),
        ("looker", vec!["--token-file", "observer.token", "--key-file", &key], 3, "the token is of the agent observer, not of looker"),
        ("observer", vec!["--token-file", "observer.token", "--key-file", &key], 3, "`outside` under [tasks]"),
        ("poor", vec!["--token-file", "poor.token", "--key-file", &key], 3, "it has no `model`"),
        ("looker", vec!["--token-file", "looker.token"], 1, "is asked with a key, and this process has none"),
        ("looker", vec![], 2, "an agent needs its token"),
    ];
    for (agent, args, code, words) in cases {
        let args: Vec<String> = args.iter().map(|a| if a.ends_with(".token") { file(a) } else { (*a).to_owned() }).collect();
        let mut command = home.command(["agent", "run", agent, "--url", &url]);
        let output = command.args(&args).stdin(Stdio::null()).output();
        let output = tokio::time::timeout(WITHIN, output).await.expect("it ends by itself").expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stderr).split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(code), "{agent} {args:?}: {text}");
        assert!(text.contains(words), "{agent} {args:?}: {text}");
    }
    serve.stop().await;
}

const LOOK: &str =
    "---\nname: look\ntitle: Look\ndescription: Looks.\nsteps:\n  - {id: status, tool: status}\n---\n# Looked\n\n{{steps.status}}\n";

/// Twenty agents, a process each: their tasks by model at their own, their runbooks at the supervisor. Prints what it took.
#[tokio::test]
async fn twenty_agents_in_processes_of_their_own_do_their_tasks() {
    const AGENTS: usize = 20;
    const TASKS: usize = 3;
    let provider = Provider::start(|_, asked| match said(asked) {
        0 => answer("I look.", &[("status", json!({})), ("memory_write", json!({"key": "seen", "value": "all well"}))], (8_000, 0, 0, 100)),
        _ => answer("All is well.", &[], (8_000, 0, 0, 50)),
    })
    .await;
    let texts: Vec<(String, String)> = (0..AGENTS).map(|n| (format!("w{n}"), LOOKS.replace("NAME", &format!("w{n}")))).collect();
    let agents: Vec<(&str, &str)> = texts.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let home = lends(&provider, &agents);
    home.configure("prompts/look.md", LOOK);
    let serve = Serve::start(&home).await;
    let mut clients = vec![];
    for (name, _) in &agents {
        clients.push(Client::http(&serve.mcp_url(), &token(&home, name).await).await);
    }
    let running: Vec<Agent> = agents.iter().map(|(name, _)| Agent::start(&home, &serve, name)).collect();
    let begun = Instant::now();
    let mut given = vec![];
    for _ in 0..TASKS {
        for (n, (name, _)) in agents.iter().enumerate() {
            given.push((n, submit(&clients[n], name, "Look whether all is well.").await));
        }
    }
    for (n, (name, _)) in agents.iter().enumerate() {
        clients[n].ok("task_submit", json!({"agent": name, "skill": "look"})).await;
    }
    let submitted = begun.elapsed();
    for (n, id) in &given {
        let done = ended(&home, id, &running[*n]).await;
        assert_eq!(done["state"], "succeeded", "{done:#}\n{}", running[*n].said());
    }
    let took = begun.elapsed();
    let open = async || {
        let (_, out, _) = home.run(&["task", "list", "--state", "succeeded", "--limit", "200", "--json"]).await;
        let listed: Value = serde_json::from_str(&out).expect("json");
        listed["tasks"].as_array().map_or(0, Vec::len)
    };
    eventually("the runbooks end too", WITHIN, || async { (open().await == AGENTS * (TASKS + 1)).then_some(()) }).await;
    let rss: Vec<(u64, u64)> = running.iter().map(Agent::rss_kib).collect();
    println!(
        "{AGENTS} agents in processes of their own: {} tasks of a model in {:.1} s ({:.1} s of it to give them), RSS of a process at most {} MiB, of it {} MiB its own, of the supervisor {} MiB",
        given.len(),
        took.as_secs_f64(),
        submitted.as_secs_f64(),
        rss.iter().map(|(all, _)| all).max().unwrap() / 1024,
        rss.iter().map(|(_, own)| own).max().unwrap() / 1024,
        serve.rss_kib().await / 1024
    );
    assert!(rss.iter().all(|(_, own)| *own < 16 * 1024), "{rss:?}");
    // Two answers a task, each paid once.
    assert_eq!(provider.asked().len(), given.len() * 2);
    let (_, out, _) = home.run(&["agents", "cost", "--json"]).await;
    let cost: Value = serde_json::from_str(&out).expect("json");
    let each = (TASKS as u64) * (16_000 * 3 + 150 * 15);
    let spent = cost["spent"].as_array().expect("rows");
    assert!(spent.len() == AGENTS && spent.iter().all(|s| s["micro_usd"] == json!(each)), "{each}: {cost:#}");
    for agent in running {
        let log = agent.log.clone();
        assert_eq!(agent.stop().await.code(), Some(0));
        let text = std::fs::read_to_string(log).expect("a log");
        assert_eq!((text.matches("a task begins").count(), text.matches("a task ends").count()), (TASKS, TASKS), "{text}");
    }
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}
