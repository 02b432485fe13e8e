//! rmcp's client in the protocol's newer revision (2026-07-28: `server/discover`, no session), over stdio and over HTTP: list, read, deploy with
//! progress, hear of it, give a call up, come back and find its operation. The other clients are in `tests/python` and `tests/node`.

use crate::support::engine::engine;
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::serve::Serve;
use rmcp::model::*;
use rmcp::service::{NotificationContext, PeerRequestOptions, RoleClient, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt};
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::process::Child;

/// Remembers the progress it was told of.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<f64>>>);

impl Told {
    fn so_far(&self) -> Vec<f64> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl ClientHandler for Told {
    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.0.lock().expect("not poisoned").push(params.progress);
    }
}

/// A client that knows only the newer revision: a server that fell back to the earlier one would be an error.
struct Client {
    service: RunningService<RoleClient, Told>,
    told: Told,
    _bridge: Option<Child>,
}

impl Client {
    async fn connect(home: &Home, url: Option<(&str, &str)>) -> Self {
        let told = Told::default();
        let newer = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        let (service, bridge) = match url {
            Some((url, token)) => {
                let config = StreamableHttpClientTransportConfig::with_uri(url.to_owned()).auth_header(token);
                let transport = StreamableHttpClientTransport::from_config(config);
                (told.clone().serve_with_lifecycle(transport, newer).await.expect("discovered over HTTP"), None)
            }
            None => {
                let mut command = home.command(["mcp", "--agent", "stack-keeper"]);
                let mut bridge = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("the binary runs");
                let pipes = (bridge.stdout.take().expect("piped"), bridge.stdin.take().expect("piped"));
                (told.clone().serve_with_lifecycle(pipes, newer).await.expect("discovered over stdio"), Some(bridge))
            }
        };
        Self { service, told, _bridge: bridge }
    }

    async fn ok(&self, tool: &str, arguments: Value) -> Value {
        let result = self.service.call_tool(params(tool, arguments)).await.unwrap_or_else(|e| panic!("{tool}: {e}"));
        assert_ne!(result.is_error, Some(true), "{tool}: {:#}", serde_json::to_value(&result).unwrap_or_default());
        result.structured_content.unwrap_or_else(|| panic!("{tool} returned no structured content"))
    }
}

fn params(tool: &str, arguments: Value) -> CallToolRequestParams {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)
}

fn compose(image: &str) -> String {
    format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n  web:\n    image: {image}\n    mem_limit: 64m\n    environment: {{ROLE: api, VERSION: \"${{VERSION}}\"}}\n    \
         x-dockwarden: {{start_timeout_s: 20}}\n    healthcheck: {{test: [\"CMD\", \"/dockwarden\", \"demo-app\", \"check\", \
         \"http://127.0.0.1:8080/health\"], interval: 1s, timeout: 2s, retries: 5}}\n"
    )
}

#[tokio::test]
async fn rmcp_in_the_newer_revision_lists_reads_deploys_hears_gives_up_and_comes_back() {
    // The SDK's HTTP client wants to know who does TLS, even for plain HTTP.
    rustls::crypto::ring::default_provider().install_default().ok();
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("eras");
    let serve = Serve::start(&home).await;
    let (url, token) = (serve.mcp_url(), home.token("stack-keeper").await);
    let mut release = 0;
    for (door, to) in [("stdio", None), ("http", Some((url.as_str(), token.as_str())))] {
        let version = |release: u32, key: Option<&str>| {
            let mut input = json!({"stack": stack, "compose": compose(&slot.image), "variables": {"VERSION": release.to_string()}});
            if let Some(key) = key {
                input["idempotency_key"] = json!(key);
            }
            input
        };
        let client = Client::connect(&home, to).await;
        assert_eq!(client.service.peer_info().expect("discovered").protocol_version, ProtocolVersion::V_2026_07_28, "{door}");
        let tools = client.service.list_all_tools().await.expect("listed");
        assert!(tools.iter().any(|t| t.name == "deploy"), "{door}: {tools:?}");
        let (uri, rows) = (format!("dockwarden://stacks/{stack}"), format!("dockwarden://audit?tool=deploy&stack={stack}"));
        let follow = |uri: &String| SubscriptionFilter::builder().resource_subscriptions(vec![uri.clone()]).build();
        let mut heard = client.service.listen(follow(&uri)).await.expect("listens");
        let mut recorded = client.service.listen(follow(&rows)).await.expect("listens");

        release += 1;
        let deployed = client.ok("deploy", version(release, None)).await;
        assert_eq!(deployed["state"], "monitoring", "{door}: {deployed:#}");
        let told = client.told.so_far();
        assert!(told.len() > 1 && told.is_sorted(), "{door}: {told:?}");
        let news = tokio::time::timeout(Duration::from_secs(10), heard.next()).await.expect("told in time").expect("open");
        assert!(matches!(&news, Some(ServerNotification::ResourceUpdatedNotification(n)) if n.params.uri == uri), "{door}: {news:?}");
        let news = tokio::time::timeout(Duration::from_secs(10), recorded.next()).await.expect("told in time").expect("open");
        assert!(matches!(&news, Some(ServerNotification::ResourceUpdatedNotification(n)) if n.params.uri == rows), "{door}: {news:?}");
        let read = client.service.read_resource(ReadResourceRequestParams::new(&uri)).await.expect("read");
        assert!(serde_json::to_string(&read).expect("json").contains(&stack), "{door}: {read:?}");
        let ended = client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 30})).await;
        assert_eq!(ended["state"], "done", "{door}: {ended:#}");

        // Given up as soon as it is at work: what was begun goes on without it.
        release += 1;
        let (before, key) = (client.told.so_far().len(), format!("rmcp {door}"));
        let request = CallToolRequest::new(params("deploy", version(release, Some(&key))));
        let given = client.service.send_cancellable_request(request.into(), PeerRequestOptions::no_options()).await.expect("sent");
        eventually("the deploy is at work", Duration::from_secs(30), || async { (client.told.so_far().len() > before).then_some(()) })
            .await;
        given.cancel(Some("the user went away".into())).await.expect("told");
        client.service.cancel().await.expect("closed");

        let client = Client::connect(&home, to).await;
        let listed = client.ok("operation", json!({"stack": stack, "limit": 1})).await;
        let found = client.ok("deploy", version(release, Some(&key))).await;
        assert_eq!(found["operation_id"], listed["operations"][0]["operation_id"], "{door}: {found:#}");
        let ended = client.ok("operation", json!({"operation_id": found["operation_id"], "wait_s": 30})).await;
        assert_eq!(ended["state"], "done", "{door}: {ended:#}");
        assert_eq!(client.ok("history", json!({"stack": stack})).await["current"], json!(release), "{door}: no release was made twice");
        client.service.cancel().await.expect("closed");
    }
    serve.stop().await;
}
