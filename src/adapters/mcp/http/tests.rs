//! Who may open a session, use it, and how often a token asks.

use super::*;
use crate::call::dispatch::tests::{Bench, KEEPER, bench_of};
use axum::body::Bytes;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

fn narrowed(headers: &[(&'static str, &'static str)], query: &str) -> Result<Caller, CallError> {
    let agent = AgentName::new("observer").expect("a name");
    let mut caller = Caller { agent, read_only: false, toolsets: Selection::default() };
    let headers = headers.iter().map(|(k, v)| (k.parse().expect("a name"), v.parse().expect("a value"))).collect();
    narrow(&mut caller, &headers, query).map(|()| caller)
}

#[test]
fn a_client_narrows_its_session_by_header_or_query_and_never_widens_it() {
    assert!(!narrowed(&[], "").expect("understood").read_only);
    for (headers, query) in [(vec![("x-mcp-readonly", "true")], "readonly=false"), (vec![("x-mcp-readonly", "false")], "a=b&readonly")] {
        assert!(narrowed(&headers, query).expect("understood").read_only, "{headers:?} {query}");
    }
    let memory = Selection::parse("memory,plan").expect("known");
    assert_eq!(narrowed(&[("x-mcp-toolsets", "memory, plan")], "").expect("understood").toolsets, memory);
    assert_eq!(narrowed(&[], "toolsets=memory%2Cplan").expect("understood").toolsets, memory);
    assert!(narrowed(&[("x-mcp-toolsets", "memroy")], "").is_err());
    assert!(narrowed(&[("x-mcp-readonly", "maybe")], "").is_err());
}

#[test]
fn a_bearer_token_is_read_in_any_case_of_the_scheme_and_nothing_else_is() {
    assert_eq!(bearer("Bearer abc"), Some("abc"));
    assert_eq!(bearer("bearer  abc "), Some("abc"));
    for bad in ["abc", "Basic abc", "Bearer ", ""] {
        assert_eq!(bearer(bad), None, "{bad:?}");
    }
}

struct Door {
    _bench: Bench,
    router: Router,
    keeper: Gatekeeper,
}

/// A door with a token for `keeper` and one for `other`.
async fn door() -> Door {
    let bench = bench_of(&KEEPER.replace("  tier: tier_3", "  limits: {calls_per_minute: 30}\n  tier: tier_3")).await;
    let mut book = crate::gate::Rulebook::clone(&bench.house.rulebook.load());
    let other = book.agents["keeper"].clone();
    book.agents.insert("other".into(), other);
    bench.house.rulebook.store(Arc::new(book));
    for agent in ["keeper", "other"] {
        let hash: [u8; 32] = Sha256::digest(agent.as_bytes()).into();
        bench.house.store.put_token(agent, "", &hash, None, Utc::now()).await.expect("kept");
    }
    let (router, keeper) = guarded(&Doors::new(bench.house.clone(), CancellationToken::new()));
    Door { _bench: bench, router, keeper }
}

impl Door {
    async fn ask(&self, method: &str, agent: &str, session: Option<&str>, body: impl Into<Body>) -> Response {
        let request = Request::builder().method(method).uri("/mcp").header("host", "127.0.0.1:7420");
        let request = request.header("authorization", format!("Bearer {agent}")).header("content-type", "application/json");
        let request = request.header("accept", if method == "GET" { "text/event-stream" } else { "application/json, text/event-stream" });
        let request = session.into_iter().fold(request, |r, s| r.header("mcp-session-id", s));
        TowerToHyperService::new(self.router.clone()).call(request.body(body.into()).expect("a request")).await.expect("answered")
    }

    /// Opens a session of the era that has them.
    async fn open(&self, agent: &str) -> String {
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}});
        let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string();
        let opened = self.ask("POST", agent, None, hello).await;
        assert_eq!(opened.status(), StatusCode::OK);
        opened.headers()["mcp-session-id"].to_str().expect("ASCII").to_owned()
    }
}

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

#[tokio::test]
async fn a_session_is_its_agents_alone_also_for_a_supervisor_that_came_later() {
    let door = door().await;
    let id = door.open("keeper").await;
    let refused = async |door: &Door, agent: &str| {
        let said = r#"{"jsonrpc":"2.0","id":0,"result":{"action":"accept","content":{"approve":true}}}"#;
        for (method, body) in [("GET", ""), ("POST", said), ("POST", LIST), ("DELETE", "")] {
            let response = door.ask(method, agent, Some(&id), body).await;
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{method} {body}");
        }
    };
    refused(&door, "other").await;
    let introduced = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(door.ask("POST", "keeper", Some(&id), introduced).await.status(), StatusCode::ACCEPTED);
    assert_eq!(door.ask("POST", "keeper", Some(&id), LIST).await.status(), StatusCode::OK);
    // The next supervisor of this home.
    let (router, keeper) = guarded(&Doors::new(door.keeper.doors.house.clone(), CancellationToken::new()));
    let later = Door { router, keeper, ..door };
    refused(&later, "other").await;
    assert_eq!(later.ask("POST", "keeper", Some(&id), LIST).await.status(), StatusCode::OK);
    assert_eq!(later.ask("DELETE", "keeper", Some(&id), "").await.status(), StatusCode::NO_CONTENT);
    // One that nobody is known to have opened is nobody's.
    let id = later.open("keeper").await;
    later.keeper.opened.lock().expect("open").clear();
    std::fs::remove_file(later.keeper.doors.house.config.home.join(format!("run/sessions/{id}.agent"))).expect("there");
    assert_eq!(later.ask("POST", "keeper", Some(&id), LIST).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_id_that_a_client_made_up_is_not_kept() {
    let door = door().await;
    for n in 0..20 {
        let discover = json!({"jsonrpc": "2.0", "id": n, "method": "server/discover", "params": {"_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"}}}});
        door.ask("POST", "keeper", Some(&format!("made-up-{n}")), discover.to_string()).await;
        door.keeper.used(&format!("made-up-{n}"), &AgentName::new("keeper").expect("valid"), TokenId::numbered(1)).await;
    }
    assert_eq!(door.keeper.opened.lock().expect("open").len(), 0);
    let id = door.open("keeper").await;
    assert_eq!(door.keeper.opened.lock().expect("open").keys().cloned().collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_token_asks_so_often_in_a_minute_whatever_it_asks() {
    let door = door().await;
    for _ in 0..LEAST_REQUESTS {
        assert_ne!(door.ask("POST", "keeper", None, "not read at all").await.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    let refused = door.ask("POST", "keeper", None, LIST).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let after = refused.headers()["retry-after"].to_str().expect("ASCII").parse::<u64>().expect("seconds");
    assert!((1..=60).contains(&after), "{after}");
    assert_ne!(door.ask("POST", "other", None, LIST).await.status(), StatusCode::TOO_MANY_REQUESTS, "each token has its own minute");
    assert_eq!((requests_per_minute(Some(1_000)), requests_per_minute(None)), (4_000, MOST_REQUESTS));
}

#[tokio::test]
async fn a_body_that_was_not_read_says_why() {
    let door = door().await;
    let broken = |kind: std::io::ErrorKind| {
        let parts = [Ok(Bytes::from_static(b"{")), Err(std::io::Error::new(kind, "gone"))];
        Body::from_stream(futures_util::stream::iter(parts))
    };
    for (body, expected) in [
        (broken(std::io::ErrorKind::TimedOut), StatusCode::REQUEST_TIMEOUT),
        (broken(std::io::ErrorKind::ConnectionReset), StatusCode::BAD_REQUEST),
        (Body::from(vec![b' '; super::super::stdio::MAX_LINE + 1]), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        assert_eq!(door.ask("POST", "keeper", None, body).await.status(), expected);
    }
}
