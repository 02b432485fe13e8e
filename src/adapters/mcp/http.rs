//! Streamable HTTP at `/mcp`: bearer token to agent, a cap on sessions, then rmcp's service. Deliberately absent: Host, Origin and body
//! checks, which hold for the whole listener (`adapters::http::guard`).

use super::{Caller, Server};
use crate::adapters::Doors;
use crate::model::ids::AgentName;
use crate::store::token::TokenUse;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Most sessions at once. Each keeps a task and its streams; an agent needs one.
const MAX_SESSIONS: usize = 256;
/// A session nobody used for so long ends; the client makes a new one.
const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);

#[derive(Clone)]
struct Gatekeeper {
    doors: Arc<Doors>,
    sessions: Arc<LocalSessionManager>,
}

/// The routes of `/mcp`.
pub fn router(doors: &Arc<Doors>) -> Router {
    let mut manager = LocalSessionManager::default();
    manager.session_config.keep_alive = Some(SESSION_IDLE);
    let sessions = Arc::new(manager);
    let config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_cancellation_token(doors.shutdown.child_token())
        .with_max_request_body_bytes(super::stdio::MAX_LINE);
    let for_factory = Arc::clone(doors);
    let service = StreamableHttpService::new(move || Ok(Server::per_request(Arc::clone(&for_factory))), Arc::clone(&sessions), config);
    let keeper = Gatekeeper { doors: Arc::clone(doors), sessions };
    Router::new().route_service("/mcp", service).layer(from_fn_with_state(keeper, admit))
}

async fn admit(State(keeper): State<Gatekeeper>, mut request: Request, next: Next) -> Response {
    let (caller, token) = match identity(&keeper.doors, request.headers()).await {
        Ok(identity) => identity,
        Err(refused) => return *refused,
    };
    let opens = request.method() == axum::http::Method::POST && !request.headers().contains_key("mcp-session-id");
    if opens && keeper.sessions.sessions.read().await.len() >= MAX_SESSIONS {
        let hint = "end sessions that are not needed (HTTP DELETE), or wait: idle ones end by themselves";
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", "too many MCP sessions are open", hint);
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(token.id);
    let _here = keeper.doors.presence.enter();
    let revoked = keeper.doors.tokens.watch(token.id);
    let response = next.run(request).await;
    let streams = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
    if !streams {
        return response;
    }
    // A stream that is open when its token ends must end with it: the next request is refused anyway.
    let ended = until_void(revoked, token.expires_at);
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(ended)))
}

/// Resolves when a token was revoked or its time is over.
async fn until_void(revoked: CancellationToken, expires_at: Option<DateTime<Utc>>) {
    let left = expires_at.map(|e| (e - Utc::now()).to_std().unwrap_or_default());
    tokio::select! {
        () = revoked.cancelled() => {}
        () = async { match left { Some(left) => tokio::time::sleep(left).await, None => std::future::pending().await } } => {}
    }
}

/// The agent behind a request's bearer token.
///
/// # Errors
/// The 401 or 503 to send.
pub async fn caller(doors: &Doors, headers: &HeaderMap) -> Result<Caller, Box<Response>> {
    identity(doors, headers).await.map(|(caller, _)| caller)
}

async fn identity(doors: &Doors, headers: &HeaderMap) -> Result<(Caller, TokenUse), Box<Response>> {
    let hint = "an operator makes a token with `dockwarden agents token NAME`; send it as `Authorization: Bearer TOKEN`";
    let refuse = |message: &str| {
        let mut response = problem(StatusCode::UNAUTHORIZED, "unauthorized", message, hint);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer realm=\"dockwarden\""));
        Box::new(response)
    };
    let Some(token) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(bearer) else {
        return Err(refuse("this door needs a bearer token"));
    };
    let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    match doors.house.store.token_use(&hash, Utc::now()).await {
        Ok(Some(token)) => match AgentName::new(token.agent.clone()) {
            Ok(agent) if doors.house.rulebook.load().agents.contains_key(agent.as_str()) => Ok((Caller { agent, read_only: false }, token)),
            _ => Err(refuse("the token belongs to an agent that has no manifest any more")),
        },
        Ok(None) => Err(refuse("the token is not known, was revoked or has expired")),
        Err(e) => {
            tracing::error!(error = %e, "tokens could not be read");
            Err(Box::new(problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "internal",
                "tokens could not be checked",
                "run `dockwarden doctor` on the host",
            )))
        }
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim())
}

/// A JSON error body with what to do next.
pub fn problem(status: StatusCode, code: &str, message: &str, hint: &str) -> Response {
    (status, axum::Json(json!({"error": {"code": code, "message": message, "hint": hint}}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_read_in_any_case_of_the_scheme_and_nothing_else_is() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        for bad in ["abc", "Basic abc", "Bearer ", ""] {
            assert_eq!(bearer(bad), None, "{bad:?}");
        }
    }
}
