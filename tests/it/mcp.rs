//! The MCP door from outside: what is listed, resources and who hears of their change, sessions over a restart, replies at the end, and other
//! people's clients. Without an engine where none is needed.

use crate::support::engine::engine;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use crate::support::{BIN, eventually};
use rmcp::model::*;
use rmcp::service::{NotificationContext, RoleClient};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ServiceExt};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::process::Command;

/// A stack of one service that needs no volume.
fn compose(image: &str) -> String {
    format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n  web:\n    image: {image}\n    mem_limit: 64m\n    environment: {{ROLE: api, VERSION: \"${{VERSION:-1}}\"}}\n    \
         x-dockwarden: {{start_timeout_s: 20}}\n    healthcheck: {{test: [\"CMD\", \"/dockwarden\", \"demo-app\", \"check\", \
         \"http://127.0.0.1:8080/health\"], interval: 1s, timeout: 2s, retries: 5}}\n"
    )
}

/// Remembers what it was told.
#[derive(Clone, Default)]
struct Ears(Arc<Mutex<Vec<String>>>);

impl ClientHandler for Ears {
    async fn on_resource_updated(&self, params: ResourceUpdatedNotificationParam, _: NotificationContext<RoleClient>) {
        self.0.lock().expect("not poisoned").push(params.uri);
    }
    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.0.lock().expect("not poisoned").push("tools".into());
    }
}

#[tokio::test]
async fn a_client_is_shown_what_it_asks_for_and_read_only_wins() {
    // The SDK's HTTP client wants to know who does TLS; in a run of its own this test is the first to ask.
    rustls::crypto::ring::default_provider().install_default().ok();
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let token = home.token("stack-keeper").await;
    let listed = async |url: &str, headers: &[(&'static str, &'static str)]| {
        let headers: HashMap<_, _> = headers.iter().map(|(k, v)| (k.parse().expect("a name"), v.parse().expect("a value"))).collect();
        let config = StreamableHttpClientTransportConfig::with_uri(url.to_owned()).auth_header(token.clone()).custom_headers(headers);
        let client = ().serve(StreamableHttpClientTransport::from_config(config)).await.expect("initialize");
        let tools = client.list_all_tools().await.expect("listed");
        let call = CallToolRequestParams::new("stop").with_arguments(json!({"stack": "none"}).as_object().expect("an object").clone());
        let stopped = client.call_tool(call).await.expect("answered").structured_content.expect("structured");
        (tools.iter().map(|t| t.name.to_string()).collect::<Vec<_>>(), serde_json::to_string(&tools).expect("json").len(), stopped)
    };
    let url = serve.mcp_url();
    let (default, size, _) = listed(&url, &[]).await;
    assert!(default.contains(&"deploy".to_owned()) && !default.contains(&"prune".to_owned()), "{default:?}");
    assert!(size < 16_000, "{size} characters of default tools");
    let (all, size, _) = listed(&url, &[("x-mcp-toolsets", "all")]).await;
    assert!(all.len() > 20 && size < 36_000, "{size} characters of {} tools", all.len());
    let (memory, ..) = listed(&format!("{url}?toolsets=memory"), &[]).await;
    assert_eq!(memory, ["memory_read", "memory_search", "memory_write"]);
    let (reading, _, stopped) = listed(&url, &[("x-mcp-toolsets", "all"), ("x-mcp-readonly", "true")]).await;
    assert!(!reading.contains(&"deploy".to_owned()) && reading.contains(&"plan".to_owned()), "{reading:?}");
    assert_eq!(stopped["error"]["code"], "denied", "{stopped:#}");
    assert!(stopped.to_string().contains("session.read_only"), "{stopped:#}");
    serve.stop().await;
}

/// What the schema of 2025-12-11 and the registry's own checks ask for, as far as it concerns this entry.
#[test]
fn the_registry_entry_is_of_this_version_and_of_a_form_the_registry_takes() {
    let entry: Value = serde_json::from_str(include_str!("../../server.json")).expect("json");
    assert_eq!(entry["$schema"], "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json");
    assert_eq!(entry["version"], env!("CARGO_PKG_VERSION"));
    let text = |key: &str, most: usize| {
        let text = entry[key].as_str().unwrap_or_else(|| panic!("{key} is missing"));
        assert!((1..=most).contains(&text.len()), "{key} has {} characters, at most {most} are taken", text.len());
        text
    };
    text("description", 100);
    text("title", 100);
    let (namespace, name) = text("name", 200).split_once('/').expect("a namespace and a name");
    let of = |text: &str, more: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    assert!(of(namespace, ".-") && of(name, "._-"), "{namespace}/{name}");
    // A namespace has to be owned. Nobody owns example.com, so nothing can be published by mistake before there is a home to name.
    let home = option_env!("CARGO_PKG_REPOSITORY").unwrap_or_default();
    match home.strip_prefix("https://github.com/").and_then(|path| path.split('/').next()) {
        Some(owner) => assert_eq!(namespace, format!("io.github.{owner}")),
        None if home.is_empty() => assert_eq!((namespace, entry.get("repository")), ("com.example", None)),
        None => assert_ne!(namespace, "com.example", "{home} is the project's home"),
    }
    for remote in entry["remotes"].as_array().expect("remotes") {
        assert_eq!(remote["type"], "streamable-http");
        let url = remote["url"].as_str().expect("a url");
        assert!(url.starts_with("https://") && url.ends_with("/mcp") && !url.contains("localhost") && !url.contains("127.0.0.1"), "{url}");
        for variable in url.split('{').skip(1).map(|rest| rest.split('}').next().expect("closed")) {
            assert!(remote["variables"][variable]["description"].is_string(), "{variable} is explained nowhere");
        }
        let secret = |h: &&Value| h["name"] == "Authorization" && h["isSecret"] == json!(true) && h["isRequired"] == json!(true);
        assert!(remote["headers"].as_array().expect("headers").iter().any(|h| secret(&h)), "{remote:#}");
    }
}

#[tokio::test]
async fn a_wish_that_is_not_understood_is_refused_before_anything_else() {
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let mut bridge = home.command(["mcp", "--agent", "observer", "--toolsets", "memroy"]);
    let output = bridge.stdin(std::process::Stdio::null()).output().await.expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("did you mean memory"), "{said}");
    serve.stop().await;
}

#[tokio::test]
async fn a_resource_is_a_tool_s_call_with_its_gate_and_its_audit_row() {
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let client = Client::http(&serve.mcp_url(), &home.token("backup-keeper").await).await;
    let peer = client.peer();
    let uris: Vec<String> = peer.list_all_resources().await.expect("listed").into_iter().map(|r| r.uri).collect();
    assert!(uris.contains(&"dockwarden://memory/backup-keeper/context".to_owned()), "{uris:?}");
    // It has no tool `agents`: that family is neither listed nor read.
    assert!(!uris.iter().any(|u| u.starts_with("dockwarden://agents")), "{uris:?}");
    let read = async |uri: &str| peer.read_resource(ReadResourceRequestParams::new(uri)).await;
    client.ok("memory_write", json!({"key": "note", "value": "by a tool"})).await;
    let text = serde_json::to_string(&read("dockwarden://memory/backup-keeper/context").await.expect("read")).expect("json");
    assert!(text.contains("by a tool"), "{text}");
    let refused = read("dockwarden://agents").await.expect_err("denied").to_string();
    assert!(refused.contains("does not have the tool"), "{refused}");
    for nowhere in ["dockwarden://memory/observer/context", "dockwarden://nothing", "file:///etc/passwd"] {
        let error = read(nowhere).await.expect_err("nowhere").to_string();
        assert!(error.contains("there is no resource"), "{nowhere}: {error}");
    }
    let rows = client.ok("audit", json!({"agent": "backup-keeper"})).await;
    let seen: Vec<(&str, &str)> = rows["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|r| (r["tool"].as_str().unwrap_or_default(), r["outcome"].as_str().unwrap_or_default()))
        .collect();
    assert!(seen.contains(&("memory_read", "ok")) && seen.contains(&("agents", "denied")), "{seen:?}");
    client.close().await;
    serve.stop().await;
}

#[tokio::test]
async fn a_session_of_the_earlier_era_outlives_a_restart_of_the_supervisor() {
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let listen = serve.listen.clone();
    let client = Client::http(&serve.mcp_url(), &home.token("observer").await).await;
    client.ok("agents", json!({})).await;
    serve.stop().await;
    let serve = Serve::start_with(&home, &["--listen", &listen], &listen).await;
    // The same session: a server that had forgotten it would answer 404.
    let agents = client.ok("agents", json!({"agent": "observer"})).await;
    assert_eq!(agents["agents"][0]["you"], json!(true), "{agents:#}");
    serve.stop().await;
}

#[tokio::test]
async fn who_listens_hears_of_changes_and_a_call_at_work_is_answered_at_the_end() {
    // As above.
    rustls::crypto::ring::default_provider().install_default().ok();
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("heard");
    let serve = Serve::start(&home).await;
    let config = StreamableHttpClientTransportConfig::with_uri(serve.mcp_url()).auth_header(home.token("stack-keeper").await);
    let ears = Ears::default();
    let client = ears.clone().serve(StreamableHttpClientTransport::from_config(config)).await.expect("initialize");
    let uri = format!("dockwarden://stacks/{stack}");
    #[expect(deprecated, reason = "the earlier era's way, which most clients still use")]
    client.subscribe(SubscribeRequestParams::new(&uri)).await.expect("subscribed");
    let (rows, own) = (format!("dockwarden://audit?tool=deploy&stack={stack}"), "dockwarden://memory/stack-keeper/history");
    for uri in [rows.as_str(), own] {
        #[expect(deprecated, reason = "as above")]
        client.subscribe(SubscribeRequestParams::new(uri)).await.expect("subscribed");
    }
    #[expect(deprecated, reason = "as above")]
    let another = client.subscribe(SubscribeRequestParams::new("dockwarden://memory/observer/history")).await;
    assert!(another.is_err(), "nobody follows another's memory");
    let call = |tool: &str, arguments: Value| {
        let (peer, tool) = (client.peer().clone(), tool.to_owned());
        let arguments = arguments.as_object().expect("an object").clone();
        async move { peer.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments)).await }
    };
    let deployed = call("deploy", json!({"stack": stack, "compose": compose(&slot.image)})).await.expect("answered");
    let value = deployed.structured_content.expect("structured");
    assert_eq!(value["state"], "monitoring", "{value:#}");
    // Out of its watch window, so that the next deploy does not wait for its end.
    call("operation", json!({"operation_id": value["operation_id"], "wait_s": 20})).await.expect("answered");
    let told = |what: &str| ears.0.lock().expect("not poisoned").iter().any(|u| u == what);
    eventually("the stack's resource is told of", Duration::from_secs(10), || async { told(&uri).then_some(()) }).await;
    eventually("rows of the log are told of", Duration::from_secs(10), || async { told(&rows).then_some(()) }).await;
    eventually("the agent's history is told of", Duration::from_secs(10), || async { told(own).then_some(()) }).await;
    // A change of the rules is a change of the tools.
    home.unlimited("observer");
    eventually("the list of tools is told of", Duration::from_secs(10), || async { told("tools").then_some(()) }).await;
    // The nearest name of a stack that is not there.
    let missed = call("health", json!({"stack": format!("{stack}x")})).await.expect("answered").structured_content.expect("structured");
    assert!(missed["error"]["hint"].as_str().is_some_and(|h| h.contains(&format!("did you mean {stack}?"))), "{missed:#}");
    // SIGTERM while a call waits: it is answered, not cut.
    let slow = json!({"stack": stack, "compose": compose(&slot.image).replace("/health\"", "/nowhere\""), "variables": {"VERSION": "2"}});
    let waiting = tokio::spawn(call("deploy", slow));
    let begun = eventually("the deploy runs", Duration::from_secs(20), || async {
        let status = call("status", json!({"stack": stack})).await.expect("answered").structured_content.expect("structured");
        status["stacks"][0]["operation_id"].as_str().map(str::to_owned)
    })
    .await;
    let (answer, status) = tokio::join!(waiting, serve.stop());
    assert!(status.success(), "{status}");
    let answer = answer.expect("no panic").expect("the promised reply came").structured_content.expect("structured");
    assert_eq!(answer["operation_id"], json!(begun), "{answer:#}");
    // Whoever starts next takes it over; the home's end removes the stack.
    let serve = Serve::start(&home).await;
    serve.stop().await;
}

#[tokio::test]
async fn the_clients_of_others_agree() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("clients");
    let serve = Serve::start(&home).await;
    let token = home.token("stack-keeper").await;
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/run.sh"))
        .arg("clients.mjs")
        .args(["--binary", BIN, "--url", &serve.mcp_url(), "--token", &token, "--stack", &stack, "--image", &slot.image])
        .arg("--home")
        .arg(home.path("state"))
        .arg("--config")
        .arg(home.path("config"))
        .kill_on_drop(true)
        .output()
        .await
        .expect("tests/node/run.sh runs");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(
        output.status.success() && text(&output.stdout).ends_with("clients agree\n"),
        "{}\n{}\n{}",
        text(&output.stdout),
        text(&output.stderr),
        std::fs::read_to_string(home.path("serve.log")).unwrap_or_default()
    );
    serve.stop().await;
}
