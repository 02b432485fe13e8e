//! A stack's whole life on a real engine through a real MCP client, over both doors: plan, deploy, a second release, a broken third,
//! rollback, backup, damage, restore; and a supervisor killed in between that forgets nothing.

use crate::support::data::done;
use crate::support::engine::{docker, engine};
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};

/// The demo stack, small and quick: web asks api, api asks store, store counts on a volume.
fn compose(image: &str) -> String {
    format!(
        r#"
x-dockwarden: {{monitor_s: 2}}
x-service: &service
  image: {image}
  restart: unless-stopped
  mem_limit: 64m
  x-dockwarden: {{start_timeout_s: 8}}
  healthcheck: {{test: ["CMD", "/dockwarden", "demo-app", "check", "http://127.0.0.1:8080/health"], interval: 2s, timeout: 2s, retries: 3}}
services:
  web:
    <<: *service
    ports: ["127.0.0.1::8080"]
    environment: {{ROLE: web, UPSTREAM: "api:8080", VERSION: "${{VERSION}}", FAIL: "${{FAIL:-none}}", TOKEN: "s3cr3t-of-the-journey"}}
    depends_on: {{api: {{condition: service_healthy}}}}
  api:
    <<: *service
    environment: {{ROLE: api, UPSTREAM: "store:8080", VERSION: "${{VERSION}}"}}
    depends_on: {{store: {{condition: service_healthy}}}}
  store:
    <<: *service
    environment: {{ROLE: store}}
    volumes: ["visits:/data"]
volumes: {{visits: {{}}}}
"#
    )
}

fn args(stack: &str, image: &str, version: &str, fail: &str) -> Value {
    json!({"stack": stack, "compose": compose(image), "variables": {"VERSION": version, "FAIL": fail}})
}

fn with(mut base: Value, more: Value) -> Value {
    base.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    base
}

/// What the published port answers, through the host.
async fn visit(stack: &str) -> String {
    let id = docker(&[
        "ps",
        "-q",
        "--filter",
        &format!("label=com.docker.compose.project={stack}"),
        "--filter",
        "label=com.docker.compose.service=web",
    ]);
    let port = docker(&["port", &id, "8080/tcp"]);
    reqwest_get(&format!("http://{}/", port.lines().next().expect("a published port"))).await
}

async fn reqwest_get(url: &str) -> String {
    let rest = url.strip_prefix("http://").expect("http");
    let (address, path) = rest.split_once('/').expect("a path");
    let stream = tokio::net::TcpStream::connect(address).await.expect("the published port accepts");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("http");
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("/{path}"))
        .header("host", address)
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

#[tokio::test]
async fn a_stack_lives_its_whole_life_over_stdio_and_http() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("shop");
    let serve = Serve::start(&home).await;
    let stdio = Client::stdio(&home, "stack-keeper").await;

    // A plan changes nothing and shows no value.
    let plan = stdio.ok("plan", args(&stack, &slot.image, "1", "none")).await;
    assert_eq!((plan["to_release"].clone(), plan["changes"].as_array().map(Vec::len)), (json!(1), Some(3)), "{plan:#}");
    assert!(!plan.to_string().contains("s3cr3t-of-the-journey"), "a value of the environment is in the plan: {plan:#}");
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("label=dockwarden.stack={stack}")]), "", "plan changes nothing");

    // Release 1 by the plan's digest.
    let one = stdio.ok("deploy", json!({"plan_id": plan["plan_id"], "digest": plan["digest"], "reason": "first"})).await;
    assert_eq!((one["state"].clone(), one["release"].clone()), (json!("monitoring"), json!(1)), "{one:#}");
    let health = stdio.ok("health", json!({"stack": stack})).await;
    assert_eq!(health["healthy"], json!(true), "{health:#}");
    assert!(visit(&stack).await.contains('1'));
    stdio.ok("operation", json!({"operation_id": one["operation_id"], "wait_s": 20})).await;
    stdio.ok("memory_write", json!({"key": "shop/first", "value": {"release": 1, "note": "deployed by the journey"}})).await;

    // Release 2 over HTTP, as the same agent by its token.
    let http = Client::http(&serve.mcp_url(), &home.token("stack-keeper").await).await;
    let two = http.ok("deploy", args(&stack, &slot.image, "2", "none")).await;
    assert_eq!((two["state"].clone(), two["release"].clone()), (json!("monitoring"), json!(2)), "{two:#}");
    settle(&http, &two).await;

    // The supervisor is killed; the next one knows everything.
    serve.kill9().await;
    let serve = Serve::start(&home).await;
    let stdio = Client::stdio(&home, "stack-keeper").await;
    let memory = stdio.ok("memory_read", json!({"key": "shop/first"})).await;
    assert!(memory.to_string().contains("deployed by the journey"), "{memory:#}");
    let history = stdio.ok("history", json!({"stack": stack})).await;
    assert_eq!(history["releases"].as_array().map(Vec::len), Some(2), "{history:#}");

    // A broken release 3: 2 keeps serving, and the evidence says why.
    let broken = stdio.ok("deploy", with(args(&stack, &slot.image, "3", "health"), json!({"timeout_s": 50}))).await;
    assert_eq!(broken["state"], json!("rolled_back"), "{broken:#}");
    assert!(broken["evidence"].as_array().is_some_and(|e| !e.is_empty()), "{broken:#}");
    assert!(visit(&stack).await.contains('2'), "release 2 keeps serving");

    // Back to 1.
    let back = stdio.ok("rollback", json!({"stack": stack, "to_release": 1, "reason": "journey"})).await;
    assert_eq!(back["state"], json!("monitoring"), "{back:#}");
    settle(&stdio, &back).await;
    let visits = visit(&stack).await;
    assert!(visits.contains('1'), "{visits}");

    // Backup, damage, restore beside, verify.
    let backup = stdio.ok("backup", json!({"stack": stack, "reason": "before the damage"})).await;
    let snapshot = backup["snapshots"][0].clone();
    assert_eq!(snapshot["state"], json!("complete"), "{backup:#}");
    let volume = format!("{stack}_visits");
    let mount = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &volume]);
    let files: Vec<_> = std::fs::read_dir(&mount).expect("readable as root").map(|e| e.expect("an entry").path()).collect();
    assert!(!files.is_empty(), "the store wrote its counter");
    let before: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).expect("read")).collect();
    for file in &files {
        std::fs::write(file, b"damaged").expect("written");
    }
    let restored = stdio.ok("restore", json!({"snapshot_id": snapshot["snapshot_id"]})).await;
    assert_eq!(restored["verified"], json!(true), "{restored:#}");
    let beside = restored["volume"].as_str().expect("the new volume's name").to_owned();
    assert_ne!(beside, volume, "live data is never overwritten");
    let mount = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &beside]);
    for (file, content) in files.iter().zip(&before) {
        let copy = std::path::Path::new(&mount).join(file.file_name().expect("a name"));
        assert_eq!(std::fs::read(copy).expect("restored"), *content);
    }
    docker(&["volume", "rm", &beside]);

    // The audit log holds all of it, and nobody changed it.
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let audit = stdio.ok("audit", json!({"stack": stack, "tool": "deploy"})).await;
    assert!(audit["rows"].as_array().is_some_and(|r| r.len() >= 3), "{audit:#}");
    assert!(!audit.to_string().contains("s3cr3t-of-the-journey"), "a value of the environment is in the audit log");
    done(&stdio, "stop", json!({"stack": stack, "remove": true})).await;
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("label=dockwarden.stack={stack}")]), "");
    assert!(serve.stop().await.success());
}

/// Waits until an operation's watch window is over.
async fn settle(client: &Client, deployed: &Value) {
    let done = client.ok("operation", json!({"operation_id": deployed["operation_id"], "wait_s": 30})).await;
    assert_eq!(done["state"], json!("done"), "{done:#}");
}

#[tokio::test]
async fn http_without_a_token_is_refused() {
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let refused = Client::try_http(&serve.mcp_url(), None).await;
    assert!(refused.is_err());
    let wrong = Client::try_http(&serve.mcp_url(), Some("not-a-token")).await;
    assert!(wrong.is_err());
    serve.stop().await;
}

#[tokio::test]
async fn an_observer_reads_and_is_denied_everything_else() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("locked");
    let serve = Serve::start(&home).await;
    let observer = Client::stdio(&home, "observer").await;
    observer.ok("status", json!({})).await;
    let denied = observer.refused("deploy", args(&stack, &slot.image, "1", "none")).await;
    assert_eq!(denied["error"]["code"], json!("denied"), "{denied:#}");
    assert!(denied["error"]["hint"].as_str().is_some_and(|h| !h.is_empty()));
    serve.stop().await;
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer_and_the_server_stays_up() {
    let slot = engine().await;
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let stack = home.stack("bad");
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    let cases = [
        ("health", json!({"stack": "no-such-stack"})),
        ("rollback", json!({"stack": "no-such-stack"})),
        ("restart", json!({"stack": "../x"})),
        ("restart", json!({"stack": "x/kill?signal=KILL&"})),
        ("status", json!({"stack": "Bad Name", "x": 1})),
        ("deploy", json!({"stack": stack, "compose": "services: [\n"})),
        ("deploy", json!({"stack": stack, "compose": bomb})),
        ("deploy", json!({"stack": stack, "compose": "services:\n  web:\n    image: local/never-heard-of:1\n"})),
        ("deploy", json!({"stack": stack, "compose": format!("services:\n  web:\n    image: {}\n    privileged: true\n", slot.image)})),
        ("deploy", json!({"stack": stack, "compose": format!("services:\n  web:\n    image: {}\n    volumes: ['/:/host']\n", slot.image)})),
        ("deploy", json!({"stack": stack, "compose": "x".repeat(1024 * 1024)})),
        ("operation", json!({"operation_id": "op-unknown"})),
        ("deplyo", json!({})),
    ];
    for (tool, input) in cases {
        let refused = match client.call(tool, input.clone()).await {
            Ok(result) => {
                let value = result.structured_content.clone().unwrap_or_default();
                assert!(
                    result.is_error == Some(true) || matches!(value["state"].as_str(), Some("failed" | "rolled_back")),
                    "{tool} {value:#}"
                );
                value
            }
            Err(e) => panic!("{tool}: a protocol error instead of a tool error: {e}"),
        };
        let text = refused.to_string();
        assert!(text.len() < 16 * 1024, "{tool}: the answer is bounded");
    }
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("label=dockwarden.stack={stack}")]), "", "nothing half-made");
    client.ok("status", json!({})).await;
    serve.stop().await;
}
