//! Tokens over the real door: two at a time, named in the audit log, listed without themselves, and void the moment they are revoked, with the
//! stream that was open.

use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::people::admin;
use crate::support::serve::Serve;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;

async fn made(home: &Home, label: &str) -> (String, String) {
    let (code, out, err) = home.run(&["agents", "token", "observer", "--label", label, "--days", "30", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let value: Value = serde_json::from_str(&out).expect("json");
    (value["token"].as_str().expect("a token").to_owned(), value["token_id"].as_str().expect("an id").to_owned())
}

/// An open stream of server messages of a session of its own; resolves when the server ends it.
async fn stream(serve: &Serve, token: &str) -> impl Future<Output = ()> + use<> {
    let connect = async || {
        let stream = tokio::net::TcpStream::connect(&serve.listen).await.expect("open");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
        tokio::spawn(connection);
        sender
    };
    let request = || hyper::Request::builder().uri("/mcp").header("host", &serve.listen).header("authorization", format!("Bearer {token}"));
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let opened =
        request().method("POST").header("accept", "application/json, text/event-stream").header("content-type", "application/json");
    let opened = opened.body(Full::<bytes::Bytes>::from(hello.to_string())).expect("a request");
    let answer = connect().await.send_request(opened).await.expect("an answer");
    let session = answer.headers().get("mcp-session-id").expect("a session").clone();
    answer.into_body().collect().await.expect("read to its end");
    let listening =
        request().header("accept", "text/event-stream").header("mcp-session-id", session).header("mcp-protocol-version", "2025-06-18");
    let mut sender = connect().await;
    let answer = sender.send_request(listening.body(Full::<bytes::Bytes>::default()).expect("a request")).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    async move {
        // What comes before the end does not matter, and neither does how the connection is closed.
        let mut body = answer.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        drop(sender);
    }
}

#[tokio::test]
async fn a_revoked_token_is_void_at_once_and_its_streams_end() {
    let home = Home::new();
    let serve = Serve::start(&home).await;
    let ((one, one_id), (two, two_id)) = (made(&home, "ci").await, made(&home, "ci").await);
    let first = Client::http(&serve.mcp_url(), &one).await;
    let second = Client::http(&serve.mcp_url(), &two).await;
    first.ok("status", json!({})).await;
    second.ok("status", json!({})).await;
    let rows = admin(&home, json!({"admin": "audit_rows", "after": 0, "limit": 100})).await.expect("rows");
    let doors: Vec<&str> =
        rows["rows"].as_array().expect("rows").iter().filter(|r| r["tool"] == "status").filter_map(|r| r["door"].as_str()).collect();
    assert_eq!(doors, [format!("mcp-http {one_id}"), format!("mcp-http {two_id}")]);

    let (ours, others) = (stream(&serve, &one).await, stream(&serve, &two).await);
    tokio::pin!(others);
    let (code, _, err) = home.run(&["agents", "revoke", &one_id]).await;
    assert_eq!(code, 0, "{err}");
    tokio::time::timeout(Duration::from_secs(10), ours).await.expect("the stream ends with its token");
    assert!(first.call("status", json!({})).await.is_err(), "the session of a void token");
    assert!(Client::try_http(&serve.mcp_url(), Some(&one)).await.is_err(), "a new session with it");
    second.ok("status", json!({})).await;
    assert!(futures_util::poll!(&mut others).is_pending(), "the other token's stream goes on");

    let (code, out, err) = home.run(&["agents", "tokens", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(!out.contains(&one) && !out.contains(&two), "a token is in the list: {out}");
    let listed: Value = serde_json::from_str(&out).expect("json");
    let states: Vec<_> =
        listed["tokens"].as_array().expect("a list").iter().map(|t| (t["id"].as_str(), t["state"].as_str(), t["label"].as_str())).collect();
    assert_eq!(states, [(Some(two_id.as_str()), Some("valid"), Some("ci")), (Some(one_id.as_str()), Some("revoked"), Some("ci"))]);

    // A third and a fourth: the one before the newest stays, the older one ends.
    let (_, three_id) = made(&home, "ci").await;
    let (code, out, _) = home.run(&["agents", "token", "observer", "--label", "ci", "--json"]).await;
    let four: Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, four["ended"].clone()), (0, json!([two_id])), "not {three_id}");
    assert!(second.call("status", json!({})).await.is_err());
    assert_eq!(home.run(&["agents", "revoke", &one_id]).await.0, 1, "it is void already");
    serve.stop().await;
}
