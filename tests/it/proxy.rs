//! `--behind-proxy` on loopback: whoever the proxy lets in is a stranger, so names and tokens count as on any other address.

use crate::support::home::Home;
use crate::support::http::ask;
use crate::support::serve::Serve;

fn free() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").to_string()
}

#[tokio::test]
async fn behind_a_proxy_on_this_machine_tokens_are_asked_for_and_names_must_be_given() {
    let home = Home::new();
    let listen = free();
    let (code, _, err) = home.run(&["serve", "--listen", &listen, "--behind-proxy"]).await;
    assert!(code != 0 && err.contains("--allowed-host"), "{code} {err}");

    let args = ["--listen", &listen, "--behind-proxy", "--allowed-host", "wardens.example"];
    let serve = Serve::start_with(&home, &args, &listen).await;
    for path in ["/metrics", "/api/health/deep", "/.well-known/agent-card.json"] {
        assert_eq!(ask(&listen, path, &[], None).await.status, 401, "{path}");
    }
    for path in ["/health", "/ready"] {
        assert_eq!(ask(&listen, path, &[], None).await.status, 200, "{path}");
    }
    serve.stop().await;

    let serve = Serve::start(&home).await;
    assert_eq!(ask(&serve.listen, "/metrics", &[], None).await.status, 200, "on loopback alone it is open");
    serve.stop().await;
}
