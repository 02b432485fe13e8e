//! The HTTP door with a certificate of its own: MCP over https as any client speaks it, a renewed certificate without a restart, nothing over
//! plain HTTP, and an address beyond loopback that needs no proxy.

use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::people::admin;
use crate::support::serve::Serve;
use serde_json::json;
use std::time::Duration;

/// Writes a new certificate and key for these names into the home; its PEM.
fn renew(home: &Home) -> String {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).expect("made");
    // The key first: a pair that does not fit is refused, and taken when the second file is there.
    std::fs::write(home.path("key.pem"), made.signing_key.serialize_pem()).expect("written");
    std::fs::write(home.path("cert.pem"), made.cert.pem()).expect("written");
    made.cert.pem()
}

fn trusting(pem: &str) -> reqwest::Client {
    // A second call finds the first one's provider.
    rustls::crypto::ring::default_provider().install_default().ok();
    let root = reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate");
    reqwest::Client::builder().tls_certs_only([root]).timeout(Duration::from_secs(10)).build().expect("a client")
}

#[tokio::test]
async fn the_door_speaks_tls_and_takes_a_renewed_certificate_without_a_restart() {
    let home = Home::new();
    let first = renew(&home);
    let paths = format!("[http]\ntls_cert = {:?}\ntls_key = {:?}\n", home.path("cert.pem"), home.path("key.pem"));
    home.configure("dockwarden.toml", &paths);
    // Beyond loopback: a certificate and names are enough, no proxy is needed.
    let port = std::net::TcpListener::bind("0.0.0.0:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let listen = format!("127.0.0.1:{port}");
    let args = ["--listen", &format!("0.0.0.0:{port}"), "--allowed-host", "box.example"];
    let serve = Serve::start_with(&home, &args, &listen).await;
    let url = format!("https://localhost:{port}");
    let health = trusting(&first).get(format!("{url}/health")).send().await.expect("an answer");
    assert_eq!(health.status(), 200);
    let page = trusting(&first).get(&url).send().await.expect("an answer").text().await.expect("text");
    for line in [format!("claude mcp add --transport http dockwarden {url}/mcp --header"), "dockwarden mcp --agent observer".to_owned()] {
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }

    // MCP by the SDK's own client, with a token.
    let token = home.token("observer").await;
    let client = Client::http_by(trusting(&first), &format!("{url}/mcp"), &token).await;
    client.ok("status", json!({})).await;

    // Plain HTTP gets nothing, and a guest without a token learns nothing.
    assert!(reqwest::Client::new().get(format!("http://{listen}/health")).send().await.is_err());
    assert_eq!(trusting(&first).get(format!("{url}/metrics")).send().await.expect("an answer").status(), 401);

    let second = renew(&home);
    assert_ne!(first, second);
    eventually("the renewed certificate is shown", Duration::from_secs(15), || async {
        let answer = trusting(&second).get(format!("{url}/health")).send().await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    assert!(trusting(&first).get(format!("{url}/health")).send().await.is_err(), "the old one is not shown to new connections");
    client.ok("status", json!({})).await;
    let rows = admin(&home, json!({"admin": "audit_rows", "after": 0, "limit": 500})).await.expect("rows");
    assert!(rows["rows"].as_array().expect("rows").iter().any(|r| r["tool"] == "tls_reloaded"));
    serve.stop().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_ends_the_start_with_its_file() {
    let home = Home::new();
    renew(&home);
    std::fs::write(home.path("key.pem"), "not a key").expect("written");
    let paths = format!("[http]\ntls_cert = {:?}\ntls_key = {:?}\n", home.path("cert.pem"), home.path("key.pem"));
    home.configure("dockwarden.toml", &paths);
    let (code, _, err) = home.run(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert!(code != 0 && err.contains("key.pem") && err.contains("tls_key is a PEM file"), "{code}: {err}");
    home.configure("dockwarden.toml", "");
    let (code, _, err) = home.run(&["serve", "--listen", "0.0.0.0:0", "--allowed-host", "x"]).await;
    assert!(code != 0 && err.contains("tls_cert"), "{code}: {err}");
}
