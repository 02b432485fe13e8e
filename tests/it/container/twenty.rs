//! Twenty agents, each in a container of its own as the profile of `docker-compose.mcp.yml` makes them, at one supervisor in a container: each does its task.
//! Prints how long it took and what the supervisor holds.

use super::*;
use std::time::Instant;

const AGENTS: usize = 20;
const WITHIN: Duration = Duration::from_secs(180);
const LOOKS: &str = "---\nname: NAME\ndescription: Looks from a container.\ntools: status, tasks, memory_write, task_submit\nmodel: inherit\ndockwarden:\n  tier: tier_3_write_elevated\n  rules:\n    - {id: give, effect: allow, tools: [task_submit], because: \"it works for itself\"}\n---\nYou look.\n";

/// Containers that go with the value, before the network they are on.
struct Containers(Vec<String>);

impl Drop for Containers {
    fn drop(&mut self) {
        let all = self.0.iter().map(String::as_str);
        drop(Command::new("docker").args(["rm", "-f", "-v"]).args(all).output());
    }
}

fn name(n: usize) -> String {
    format!("w{n}")
}

/// One answer with a call, then the end: told apart by what the model is shown, since twenty ask at once.
fn looks(asked: &crate::support::llm::Asked) -> crate::support::llm::Say {
    let spoken = asked.body["messages"].as_array().expect("messages").iter().any(|m| m["role"] == "assistant");
    match spoken {
        false => {
            answer("I look.", &[("status", json!({})), ("memory_write", json!({"key": "seen", "value": "all well"}))], (8_000, 0, 0, 100))
        }
        true => answer("Nothing is deployed.", &[], (8_000, 0, 0, 50)),
    }
}

/// Resident memory of a container's first process in MiB, and what of it is not the binary's own pages.
fn rss_mib(container: &str) -> (u64, u64) {
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", container]);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the engine runs on this host");
    let of = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).expect(key);
        line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number") / 1024
    };
    (of("VmRSS:"), of("RssAnon:"))
}

#[tokio::test]
async fn twenty_agents_in_containers_of_their_own_do_their_tasks() {
    let _slot = engine().await;
    let home = Home::new();
    let names: Vec<String> = (0..AGENTS).map(name).collect();
    for name in &names {
        home.configure(&format!("agents/{name}.md"), &LOOKS.replace("NAME", name));
    }
    home.configure(
        "dockwarden.toml",
        &format!(
            "backup_schedule = \"off\"\n[models]\ndefault = \"m\"\n[models.m]\nprovider = \"anthropic\"\nmodel = \"m-1\"\nbase_url = \"http://127.0.0.1:1\"\nkey_env = \"KEY\"\nprice = {{input = 3.0, output = 15.0}}\n[tasks]\nmaintenance = false\noutside = {names:?}\n"
        ),
    );
    let toml = home.path("config/dockwarden.toml").display().to_string();
    let mut supervisor = Deployment::of(&home, &[("DOCKWARDEN_TOML", toml)]);
    let agents = home.path("config/agents").display().to_string();
    // In place of the shipped ones.
    let shipped = format!("{}/agents:", env!("CARGO_MANIFEST_DIR"));
    supervisor.run.replace("--volume", &shipped, &format!("{agents}:/etc/dockwarden/agents:ro"));
    let supervisor = supervisor.up().await;
    let gateway = docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", &supervisor.run.network]);
    let provider = Provider::start_at(&gateway, |_, asked| looks(asked)).await;
    std::fs::create_dir(home.path("secrets")).expect("created");
    std::fs::write(home.path("secrets/model.key"), "sk-test-0123456789").expect("written");

    let mut clients = vec![];
    let mut running = Containers(vec![]);
    let begun = Instant::now();
    for agent in &names {
        let (ok, out) = supervisor.exec(&["agents", "token", agent, "--json"]);
        assert!(ok, "{out}");
        let token = serde_json::from_str::<Value>(&out).expect("JSON")["token"].as_str().expect("a token").to_owned();
        let file = home.path(&format!("secrets/{agent}.token"));
        std::fs::write(&file, &token).expect("written");
        // The service of the file, for another agent.
        let mut run = supervisor.agent.clone();
        let container = format!("{}-{agent}", supervisor.name);
        run.replace("--name", "", &container);
        run.replace("--env", "DOCKWARDEN_MODEL_URL=", &format!("DOCKWARDEN_MODEL_URL={}", provider.url));
        let shipped = home.path("secrets/stack-keeper.token").display().to_string();
        run.replace("--volume", &shipped, &format!("{}:/run/secrets/token:ro", file.display()));
        run.command = ["agent", "run", agent].map(str::to_owned).to_vec();
        running.0.push(container);
        docker(&[&["run", "--detach"], &run.args()[..]].concat());
        clients.push(Client::http(&format!("http://127.0.0.1:{}/mcp", supervisor.port), &token).await);
    }
    let up = begun.elapsed();
    let begun = Instant::now();
    let mut given = vec![];
    for (agent, client) in names.iter().zip(&clients) {
        given.push(client.ok("task_submit", json!({"agent": agent, "prompt": "Look."})).await["task_id"].clone());
    }
    for (n, client) in clients.iter().enumerate() {
        loop {
            let seen = client.ok("tasks", json!({"task_id": given[n], "wait_s": 5})).await;
            if seen["tasks"][0]["state"] == "succeeded" {
                assert!(seen.to_string().contains("Nothing is deployed."), "{seen:#}");
                break;
            }
            let log = || Command::new("docker").args(["logs", &running.0[n]]).output().expect("the docker client runs");
            assert!(begun.elapsed() < WITHIN, "{}: {seen:#}\n{:?}", names[n], log());
        }
    }
    let took = begun.elapsed();
    let ours = rss_mib(&supervisor.name);
    let theirs: Vec<(u64, u64)> = running.0.iter().map(|c| rss_mib(c)).collect();
    println!(
        "{AGENTS} agents in containers of their own: started in {:.1} s, a task of a model each in {:.1} s; RSS of the supervisor {} MiB (anonymous {}), of an agent at most {} MiB (anonymous {})",
        up.as_secs_f64(),
        took.as_secs_f64(),
        ours.0,
        ours.1,
        theirs.iter().map(|t| t.0).max().unwrap_or_default(),
        theirs.iter().map(|t| t.1).max().unwrap_or_default(),
    );
    // Each by its own token, once; each question asked and paid for once.
    assert_eq!(provider.asked().len(), AGENTS * 2);
    let (ok, out) = supervisor.exec(&["agents", "cost", "--json"]);
    let cost: Value = serde_json::from_str(&out).expect("JSON");
    let spent = cost["spent"].as_array().expect("rows");
    assert!(ok && spent.len() == AGENTS && spent.iter().all(|s| s["answers"] == json!(2)), "{cost:#}");
    assert!(theirs.iter().all(|(_, own)| *own < 16), "{theirs:?}");
    for client in clients {
        client.close().await;
    }
    for container in &running.0 {
        docker(&["stop", container]);
        assert_eq!(docker(&["inspect", "-f", "{{.State.ExitCode}}", container]), "0", "{container}");
    }
}
