//! The bridge as a process, line by line: it ends with its client whatever is open, and outlives its supervisor. And the sessions of the HTTP door:
//! what they follow over a restart, and how they are counted. Without an engine.

use crate::support::eventually;
use crate::support::home::Home;
use crate::support::serve::Serve;
use rmcp::model::*;
use rmcp::service::{NotificationContext, RoleClient};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ServiceExt};
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// A client that writes lines.
struct Bridge {
    child: Child,
    to: Option<ChildStdin>,
    from: Lines<BufReader<ChildStdout>>,
}

impl Bridge {
    async fn start(home: &Home, agent: &str) -> Self {
        let mut command = home.command(["mcp", "--agent", agent]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("the binary runs");
        let (to, from) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let mut bridge = Self { child, to, from: BufReader::new(from).lines() };
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "lines", "version": "0"}});
        bridge.say(json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})).await;
        assert!(bridge.answer(json!(0)).await["result"]["serverInfo"].is_object());
        bridge.say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        bridge
    }

    async fn say(&mut self, message: Value) {
        let line = format!("{message}\n");
        self.to.as_mut().expect("open").write_all(line.as_bytes()).await.expect("the bridge reads");
    }

    async fn call(&mut self, id: u32, tool: &str, arguments: Value) {
        self.say(json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})).await;
    }

    /// The answer under an id; what comes before it is passed over.
    async fn answer(&mut self, id: Value) -> Value {
        let look = async {
            loop {
                let line = self.from.next_line().await.expect("text").expect("the bridge is there");
                let message: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                if message["id"] == id && message.get("method").is_none() {
                    return message;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), look).await.unwrap_or_else(|_| panic!("no answer to {id}"))
    }

    /// Closes stdin and waits for the bridge to end by itself.
    async fn leave(mut self) -> std::process::ExitStatus {
        drop(self.to.take());
        tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await.expect("it ends by itself").expect("a child of ours")
    }
}

const LOOK: &str = "---\nname: look\ntitle: Look\ndescription: Looks.\nsteps:\n  - {id: agents, tool: agents}\n---\n{{steps.agents}}\n";

/// A task that nobody begins for a long time: a call that waits for it waits as long as it may.
async fn waiting_task(home: &Home) -> String {
    let (code, out, err) = home.run(&["task", "submit", "stack-keeper", "--skill", "look", "--delay-s", "3000", "--json"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str::<Value>(&out).expect("json")["task_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_client_that_cancelled_a_call_leaves_and_its_bridge_ends() {
    let home = Home::new();
    home.configure("prompts/look.md", LOOK);
    let serve = Serve::start(&home).await;
    let task = waiting_task(&home).await;
    let mut bridge = Bridge::start(&home, "stack-keeper").await;
    bridge.call(5, "tasks", json!({"task_id": task, "wait_s": 50})).await;
    bridge.say(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5, "reason": "Esc"}})).await;
    // Arguments as text: the commonest fault of clients written by hand.
    let params = json!({"name": "agents", "arguments": "{}"});
    bridge.say(json!({"jsonrpc": "2.0", "id": 6, "method": "tools/call", "params": params})).await;
    let told = bridge.answer(json!(6)).await;
    assert_eq!(told["result"]["isError"], true, "{told}");
    assert!(told["result"]["content"][0]["text"].as_str().is_some_and(|t| t.contains("`arguments`")), "{told}");
    assert!(bridge.leave().await.success());
    serve.stop().await;
}

#[tokio::test]
async fn a_stdio_client_outlives_a_supervisor_that_is_killed_and_started_again() {
    let home = Home::new();
    home.configure("prompts/look.md", LOOK);
    let serve = Serve::start(&home).await;
    let listen = serve.listen.clone();
    let task = waiting_task(&home).await;
    let mut bridge = Bridge::start(&home, "stack-keeper").await;
    bridge.call(1, "agents", json!({})).await;
    assert_ne!(bridge.answer(json!(1)).await["result"]["isError"], true);
    bridge.call(2, "tasks", json!({"task_id": task, "wait_s": 50})).await;
    // Answered after it, so that the waiting call has arrived.
    bridge.call(3, "agents", json!({})).await;
    bridge.answer(json!(3)).await;
    serve.kill9().await;
    let cut = bridge.answer(json!(2)).await;
    assert_eq!(cut["result"]["isError"], true, "{cut}");
    assert!(cut["result"]["content"][0]["text"].as_str().is_some_and(|t| t.contains("`operation`")), "{cut}");
    // Said while nobody is there: it waits for the next supervisor.
    bridge.call(4, "agents", json!({"agent": "stack-keeper"})).await;
    let serve = Serve::start_with(&home, &["--listen", &listen], &listen).await;
    let after = bridge.answer(json!(4)).await;
    assert_eq!(after["result"]["structuredContent"]["agents"][0]["you"], true, "{after}");
    bridge.call(5, "agents", json!({})).await;
    assert_ne!(bridge.answer(json!(5)).await["result"]["isError"], true);
    assert!(bridge.leave().await.success());
    serve.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_there_is_no_supervisor_has_none_started() {
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let mut asked = Bridge::start(&home, "stack-keeper").await;
    let mut cancelled = Bridge::start(&home, "stack-keeper").await;
    serve.kill9().await;
    asked.call(1, "agents", json!({})).await;
    cancelled.say(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 0}})).await;
    assert!(cancelled.leave().await.success());
    assert!(asked.leave().await.success());
    let started = dockwarden::adapters::socket::client::connect(&home.path("state")).await;
    assert!(started.is_err(), "a supervisor that nobody asked for runs");
}

/// Remembers what changed.
#[derive(Clone, Default)]
struct Ears(Arc<Mutex<Vec<String>>>);

impl ClientHandler for Ears {
    async fn on_resource_updated(&self, params: ResourceUpdatedNotificationParam, _: NotificationContext<RoleClient>) {
        self.0.lock().expect("not poisoned").push(params.uri);
    }
}

#[tokio::test]
async fn what_a_session_follows_is_told_after_a_restart_too() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let listen = serve.listen.clone();
    let ears = Ears::default();
    let config = StreamableHttpClientTransportConfig::with_uri(serve.mcp_url()).auth_header(home.token("stack-keeper").await);
    let client = ears.clone().serve(StreamableHttpClientTransport::from_config(config)).await.expect("initialize");
    let uri = "dockwarden://agents/observer";
    #[expect(deprecated, reason = "the earlier era's way, which most clients still use")]
    client.subscribe(SubscribeRequestParams::new(uri)).await.expect("subscribed");
    #[expect(deprecated, reason = "as above")]
    let never = client.subscribe(SubscribeRequestParams::new("dockwarden://audit?cursor=7")).await;
    assert!(never.is_err(), "rows that are there already do not change");
    serve.stop().await;
    let serve = Serve::start_with(&home, &["--listen", &listen], &listen).await;
    client.list_all_tools().await.expect("the session is found again");
    let told = || ears.0.lock().expect("not poisoned").iter().any(|u| u == uri);
    // Its stream comes back a moment later; each change of the rules is told to who is there.
    let mut n = 0;
    eventually("the agent's resource is told of", Duration::from_secs(30), || {
        n += 1;
        if n % 50 == 1 {
            let path = home.path("config").join("agents/observer.md");
            let text = std::fs::read_to_string(&path).expect("written");
            std::fs::write(&path, text + "\nLook again.\n").expect("written");
        }
        let heard = told();
        async move { heard.then_some(()) }
    })
    .await;
    serve.stop().await;
}

#[tokio::test]
async fn a_session_is_one_whatever_version_its_header_names() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let token = home.token("stack-keeper").await;
    let http = reqwest::Client::new();
    let initialize = async |name: String| {
        let client = json!({"name": name, "version": "0"});
        let params = json!({"protocolVersion": "2026-07-28", "capabilities": {}, "clientInfo": client});
        let request = http.post(serve.mcp_url()).bearer_auth(&token).header("accept", "application/json, text/event-stream");
        let request = request.header("content-type", "application/json").header("mcp-protocol-version", "2026-07-28");
        let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string();
        let answer = request.body(body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.headers().contains_key("mcp-session-id"))
    };
    assert_eq!(initialize("x".repeat(100 * 1024)).await, (413, false), "it is kept with the session");
    for n in 0..256 {
        assert_eq!(initialize(n.to_string()).await, (200, true), "session {n}");
    }
    assert_eq!(initialize("one more".into()).await, (429, false));
    serve.stop().await;
}
