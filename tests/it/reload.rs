//! Agents and policy edited while calls run: no call is lost, what is faulty is not taken and is told, and what was in force stays in force.

use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(20);

fn shipped(home: &Home, file: &str) -> String {
    std::fs::read_to_string(home.path("config").join(file)).expect("shipped")
}

/// Waits until the agents in force say so.
async fn agents(client: &Client, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(what, WITHIN, || async {
        let listed = client.ok("agents", json!({})).await;
        fits(&listed).then_some(listed)
    })
    .await
}

#[tokio::test]
async fn two_hundred_calls_run_through_edits_of_agents_and_policy() {
    let home = Arc::new(Home::new());
    home.unlimited("observer");
    let serve = Serve::start(&home).await;
    let token = home.token("observer").await;
    let done = Arc::new(AtomicBool::new(false));
    let editor = {
        let (home, done) = (home.clone(), done.clone());
        let (deployer, policy) = (shipped(&home, "agents/deployer.md"), shipped(&home, "policy.toml"));
        tokio::spawn(async move {
            let mut edits = 0_u32;
            while !done.load(Ordering::SeqCst) {
                edits += 1;
                let faulty = edits.is_multiple_of(3);
                home.configure(
                    "agents/deployer.md",
                    &if faulty { "---\nnot a manifest".to_owned() } else { format!("{deployer}\nEdit {edits}.\n") },
                );
                home.configure("policy.toml", &format!("{policy}\n# edit {edits}\n"));
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            home.configure("agents/deployer.md", &deployer);
            edits
        })
    };
    let mut callers = vec![];
    for n in 0..4 {
        let client = if n % 2 == 0 { Client::stdio(&home, "observer").await } else { Client::http(&serve.mcp_url(), &token).await };
        callers.push(tokio::spawn(async move {
            for i in 0..50 {
                let tool = if i % 2 == 0 { "agents" } else { "audit" };
                client.ok(tool, json!({})).await;
                // Long enough in all that several reloads fall into it.
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            50
        }));
    }
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.expect("every call was answered");
    }
    done.store(true, Ordering::SeqCst);
    assert!(editor.await.expect("edited") > 3);
    assert_eq!(answered, 200);
    let client = Client::stdio(&home, "observer").await;
    agents(&client, "the mended file is taken", |l| l["problems"].is_null()).await;
    let reloads = client.ok("audit", json!({"tool": "rules_reloaded"})).await;
    assert!(reloads["rows"].as_array().is_some_and(|r| r.len() >= 2), "{reloads:#}");
    serve.stop().await;
}

#[tokio::test]
async fn a_faulty_file_keeps_what_is_in_force_and_is_told_until_it_is_mended() {
    let home = Home::new();
    home.unlimited("observer");
    let serve = Serve::start(&home).await;
    let observer = Client::stdio(&home, "observer").await;
    let (text, policy) = (shipped(&home, "agents/observer.md"), shipped(&home, "policy.toml"));

    // A tool less and a broken policy come together: neither is taken.
    let narrower = text.replacen("history, ", "", 1);
    assert_ne!(narrower, text);
    home.configure("policy.toml", "default_environment = \"nowhere\"\nnonsense = 1\n");
    home.configure("agents/observer.md", &narrower);
    let listed = agents(&observer, "it is told", |l| !l["problems"].is_null()).await;
    assert!(listed["problems"].to_string().contains("policy.toml"), "{listed:#}");
    let history = async || observer.refused("history", json!({"stack": "nowhere"})).await["error"]["code"].clone();
    assert_eq!(history().await, json!("not_found"), "what was in force stays in force");
    let log = std::fs::read_to_string(home.path("serve.log")).expect("logged");
    assert!(log.contains("was not taken") && log.contains("policy.toml"), "{log}");
    let (_, out, err) = home.run(&["doctor"]).await;
    assert!(out.contains("policy.toml") || err.contains("policy.toml"), "{out}{err}");
    let refused = observer.ok("audit", json!({"tool": "rules_refused"})).await;
    assert!(refused["rows"].as_array().is_some_and(|r| !r.is_empty()), "{refused:#}");

    // Mended: the change holds from the next call on.
    home.configure("policy.toml", &policy);
    agents(&observer, "the mended policy is taken", |l| l["problems"].is_null()).await;
    assert_eq!(history().await, json!("denied"));

    // A tool that does not exist, and an agent that is gone.
    home.configure("agents/observer.md", &text.replacen("tools: ", "tools: no_such_tool, ", 1));
    let listed = agents(&observer, "the unknown tool is told", |l| !l["problems"].is_null()).await;
    assert!(listed["problems"].to_string().contains("no_such_tool"), "{listed:#}");
    home.configure("agents/observer.md", &text);
    std::fs::remove_file(home.path("config/agents/deployer.md")).expect("removed");
    let without = |l: &Value| l["problems"].is_null() && !l.to_string().contains("\"name\":\"deployer\"");
    agents(&observer, "an agent that is gone is gone", without).await;
    serve.stop().await;
}
