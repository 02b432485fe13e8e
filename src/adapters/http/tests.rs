//! The whole router, as connections see it.

use super::*;
use crate::adapters::socket::credential;
use crate::call::dispatch::tests::bench;
use axum::Extension;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use chrono::Utc;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use sha2::{Digest, Sha256};
use strangers::Strangers;
use tokio_util::sync::CancellationToken;

fn guard() -> Guard {
    Guard { hosts: vec![], origins: vec![], beyond_loopback: true, tls: false }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request {
    let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1:7420");
    headers.iter().fold(request, |r, (k, v)| r.header(*k, *v)).body(Body::from(body.to_owned())).expect("a request")
}

#[tokio::test]
async fn a_header_that_nobody_looked_at_makes_no_stranger_known_and_a_credential_does() {
    let b = bench().await;
    let doors = Doors::new(b.house.clone(), CancellationToken::new());
    let (agents, operators): ([u8; 32], [u8; 32]) = (Sha256::digest("dw_good").into(), Sha256::digest("dwo_good").into());
    b.house.store.put_token("keeper", "", &agents, None, Utc::now()).await.expect("kept");
    b.house.store.put_operator("ann", &credential::hash("correct horse").expect("hashed"), Utc::now()).await.expect("kept");
    b.house.store.put_operator_token("ann", "", &operators, Utc::now() + chrono::TimeDelta::days(1), Utc::now()).await.expect("kept");
    let (router, all) = (router(&doors, guard()), Strangers::default());
    // Whether the client of a fresh connection is still a stranger after its request, and what was answered.
    let ask = async |request: Request| {
        let client = all.meet();
        let one = TowerToHyperService::new(router.clone().layer(Extension(client.clone())));
        let response = one.call(request).await.expect("answered");
        let stranger = all.waiting() > 0;
        client.known();
        (stranger, response.status(), response)
    };
    let made_up = [("cookie", "dockwarden_session=made-up"), ("authorization", "Bearer made-up")];
    for path in [
        "/health",
        "/ready",
        "/",
        "/approvals",
        "/approvals/login",
        "/api/openapi.json",
        "/.well-known/oauth-protected-resource",
        "/metrics",
        "/nowhere",
    ] {
        let (stranger, status, _) = ask(request("GET", path, &made_up, "")).await;
        assert!(stranger, "{path} answered {status}");
    }
    for (path, token) in [("/api/stacks", "Bearer dw_good"), ("/api/approvals", "Bearer dwo_good"), ("/metrics", "Bearer dw_good")] {
        let (stranger, status, _) = ask(request("GET", path, &[("authorization", token)], "")).await;
        assert!(!stranger && status == StatusCode::OK, "{path} answered {status}");
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let (stranger, status, _) = ask(request("POST", "/approvals/login", &form, "operator=ann&passphrase=wrong")).await;
    assert!(stranger && status == StatusCode::UNAUTHORIZED, "{status}");
    let (stranger, status, response) = ask(request("POST", "/approvals/login", &form, "operator=ann&passphrase=correct+horse")).await;
    assert!(!stranger && status == StatusCode::SEE_OTHER, "{status}");
    let cookie = response.headers()["set-cookie"].to_str().expect("ASCII").split(';').next().expect("a value").to_owned();
    let (stranger, status, _) = ask(request("GET", "/approvals", &[("cookie", &cookie)], "")).await;
    assert!(!stranger && status == StatusCode::OK, "{status}");
}
