//! Streamable HTTP at `/mcp`: bearer token to agent, caps on sessions and streams, then rmcp's service. Deliberately absent: Host, Origin and body
//! checks, which hold for the whole listener (`adapters::http::guard`).

pub(in crate::adapters) mod admit;

use super::sessions::Sessions;
use super::{Caller, Server};
use crate::adapters::Doors;
use crate::adapters::http::strangers;
use crate::call::CallError;
use crate::call::error::ErrorCode;
use crate::call::gauge::Gauge;
use crate::gate::RateLimit;
use crate::model::ids::AgentName;
use crate::store::token::{TokenId, TokenUse};
use crate::tools::toolsets::Selection;
use admit::{Kind, Streams};
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
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Most sessions at once. Each keeps a task and its streams; an agent needs one.
const MAX_SESSIONS: usize = 1_024;
/// Most sessions of one token.
const MAX_OF_TOKEN: usize = 256;
/// Bytes of the request that opens a session: it is kept with the session.
const MAX_INITIALIZE: usize = 64 * 1024;
/// Streams at once that last as long as the client likes. Each holds a connection, and some of those are for people, probes and calls.
const MAX_STREAMS: usize = crate::adapters::http::listen::MAX_CONNECTIONS - 128;
/// Most such streams of one token.
const MAX_STREAMS_OF_TOKEN: usize = 128;
/// How often it is noted on disk that a session is used; it is forgotten a day after the last note.
const NOTE_USE_EVERY: Duration = Duration::from_secs(10 * 60);
/// A session nobody used for so long ends; the client makes a new one.
const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);

/// Requests of one token in a minute, where its agent has the lowest limit of calls, and where it has none.
const LEAST_REQUESTS: u32 = 600;
const MOST_REQUESTS: u32 = 60_000;

#[derive(Clone)]
struct Gatekeeper {
    doors: Arc<Doors>,
    sessions: Arc<LocalSessionManager>,
    kept: Arc<Sessions>,
    /// Sessions that are open, by their id.
    opened: Arc<Mutex<BTreeMap<String, Opened>>>,
    /// One session is opened after the other: the caps hold for as many as come at once.
    opening: Arc<tokio::sync::Mutex<()>>,
    /// Requests of each token, whatever they ask.
    requests: Arc<Gauge>,
    streams: Streams,
}

/// An open session: whose it is, the token that used it last, and when that was last noted on disk.
#[derive(Debug, Clone)]
struct Opened {
    agent: AgentName,
    token: TokenId,
    noted: Instant,
}

impl Gatekeeper {
    /// How many sessions of a token are open; those that ended are forgotten.
    async fn open_of(&self, token: TokenId) -> usize {
        let open = self.sessions.sessions.read().await;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|id, _| open.contains_key(id.as_str()));
        opened.values().filter(|o| o.token == token).count()
    }

    /// A session is used: its agent opened it, or found it again after a restart. An id that names no open session is none, whatever a request without one was
    /// answered.
    async fn used(&self, session: &str, agent: &AgentName, token: TokenId) {
        if !self.sessions.sessions.read().await.contains_key(session) {
            return;
        }
        let now = Instant::now();
        {
            let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            match opened.get_mut(session) {
                Some(known) => {
                    known.token = token;
                    if now.duration_since(known.noted) < NOTE_USE_EVERY {
                        return;
                    }
                    known.noted = now;
                }
                None => drop(opened.insert(session.to_owned(), Opened { agent: agent.clone(), token, noted: now })),
            }
        }
        self.kept.used(session).await;
    }

    /// Whether a session is another agent's, or nobody's who is known: who guesses or reads its id gets nothing by it.
    async fn is_foreign(&self, session: &str, agent: &AgentName) -> bool {
        let known = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(session).map(|o| o.agent.clone());
        let owner = match known {
            Some(owner) => Some(owner),
            None => self.kept.owner(session).await,
        };
        match owner {
            Some(owner) => owner != *agent,
            // What is neither open nor kept is none: rmcp says so, or never looks at the header.
            None => self.sessions.sessions.read().await.contains_key(session) || self.kept.has(session).await,
        }
    }

    /// Refuses a request beyond what one token may make in a minute, calls or not.
    fn within_minute(&self, agent: &AgentName, token: TokenId) -> Result<(), Box<Response>> {
        let calls = self.doors.house.rulebook.load().agents.get(agent.as_str()).and_then(|a| a.limits.calls_per_minute);
        let limit = RateLimit { key: format!("{token}/*"), max: requests_per_minute(calls), window_s: 60 };
        let Err(too_many) = self.requests.count(&token.to_string(), &limit, Utc::now()) else { return Ok(()) };
        let message = format!("this token made {} requests within a minute", limit.max);
        let hint =
            format!("try again in {} s; follow what changes with a subscription instead of asking again and again", too_many.retry_after_s);
        let mut response = problem(StatusCode::TOO_MANY_REQUESTS, "rate_limited", &message, &hint);
        response.headers_mut().insert(header::RETRY_AFTER, too_many.retry_after_s.into());
        Err(Box::new(response))
    }

    /// Whether there is room for another session.
    async fn room(&self, token: TokenId) -> Result<(), Box<Response>> {
        let hint = "end sessions that are not needed (HTTP DELETE), or wait: idle ones end by themselves";
        let full = |status, message: &str| Err(Box::new(problem(status, "too_many_sessions", message, hint)));
        if self.sessions.sessions.read().await.len() >= MAX_SESSIONS {
            return full(StatusCode::SERVICE_UNAVAILABLE, "too many MCP sessions are open");
        }
        if self.open_of(token).await >= MAX_OF_TOKEN {
            return full(StatusCode::TOO_MANY_REQUESTS, "this token has too many MCP sessions open");
        }
        Ok(())
    }
}

/// The routes of `/mcp`.
pub fn router(doors: &Arc<Doors>) -> Router {
    guarded(doors).0
}

fn guarded(doors: &Arc<Doors>) -> (Router, Gatekeeper) {
    let mut manager = LocalSessionManager::default();
    manager.session_config.keep_alive = Some(SESSION_IDLE);
    let sessions = Arc::new(manager);
    let mut config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_cancellation_token(doors.hangup.child_token())
        .with_max_request_body_bytes(super::stdio::MAX_LINE);
    let kept = Arc::new(Sessions::open(&doors.house.config.home));
    config.session_store = Some(Arc::<Sessions>::clone(&kept));
    let (for_factory, beside) = (Arc::clone(doors), Arc::clone(&kept));
    let server = move || Ok(Server::per_request(Arc::clone(&for_factory), Arc::clone(&beside)));
    let service = StreamableHttpService::new(server, Arc::clone(&sessions), config);
    let streams = Streams::new(MAX_STREAMS, MAX_STREAMS_OF_TOKEN);
    let (opened, opening, requests) = Default::default();
    let keeper = Gatekeeper { doors: Arc::clone(doors), sessions, kept, opened, opening, requests, streams };
    (Router::new().route_service("/mcp", service).layer(from_fn_with_state(keeper.clone(), admit)), keeper)
}

async fn admit(State(keeper): State<Gatekeeper>, mut request: Request, next: Next) -> Response {
    let (mut caller, token) = match identity(&keeper.doors, request.headers(), &base_of(request.extensions())).await {
        Ok(identity) => identity,
        Err(refused) => return *refused,
    };
    // Before the call, which may take long.
    strangers::known(request.extensions());
    // Before the body is read.
    if let Err(too_many) = keeper.within_minute(&caller.agent, token.id) {
        return *too_many;
    }
    let session = request.headers().get("mcp-session-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    if let Some(session) = &session
        && keeper.is_foreign(session, &caller.agent).await
    {
        return problem(StatusCode::NOT_FOUND, "not_found", "this agent has no such session", "open one with `initialize`");
    }
    if let Err(e) = narrow(&mut caller, request.headers(), request.uri().query().unwrap_or_default()) {
        return problem(StatusCode::BAD_REQUEST, "invalid_argument", &e.message, &e.hint);
    }
    let mut kind = if request.method() == axum::http::Method::GET { Kind::Stream } else { Kind::Other };
    if request.method() == axum::http::Method::POST {
        let (parts, body) = request.into_parts();
        let whole = match axum::body::to_bytes(body, super::stdio::MAX_LINE).await {
            Ok(whole) => whole,
            Err(e) => return unread(&e),
        };
        kind = Kind::of(&whole);
        if kind == Kind::Session && whole.len() > MAX_INITIALIZE {
            let hint = "say less in `initialize`: it is kept with the session";
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "a request that opens a session has at most 64 KiB", hint);
        }
        request = Request::from_parts(parts, Body::from(whole));
    }
    let opening = if kind == Kind::Session { Some(keeper.opening.lock().await) } else { None };
    if opening.is_some()
        && let Err(full) = keeper.room(token.id).await
    {
        return *full;
    }
    let place = match (kind == Kind::Stream).then(|| keeper.streams.take(token.id)).transpose() {
        Ok(place) => place,
        Err(full) => {
            let hint = "end streams that are not needed; one stream can follow up to 256 resources";
            return problem(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", full, hint);
        }
    };
    let agent = caller.agent.clone();
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(token.id);
    let ends = request.method() == axum::http::Method::DELETE;
    let _here = keeper.doors.presence.enter();
    let revoked = keeper.doors.tokens.watch(token.id);
    let (headers, base) = (request.headers().clone(), base_of(request.extensions()));
    let mut response = next.run(request).await;
    let opened = response.headers().get("mcp-session-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    if let Some(id) = &opened {
        // Before the client hears of it.
        keeper.kept.belongs(id, &agent).await;
    }
    if let Some(id) = opened.or(session).filter(|_| response.status().is_success() && !ends) {
        keeper.used(&id, &agent, token.id).await;
    }
    drop(opening);
    // A session that was ended is gone, not going: some clients take any other answer for a failure.
    if ends && response.status() == StatusCode::ACCEPTED {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    let streams = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
    if !streams {
        return response;
    }
    // A token that was revoked before it was watched would have nobody to end its stream.
    if let Err(refused) = identity(&keeper.doors, &headers, &base).await {
        return *refused;
    }
    // A stream that is open when its token ends must end with it: the next request is refused anyway.
    let ended = until_void(revoked, token.expires_at);
    response.map(|body| {
        let stream = body.into_data_stream().take_until(ended);
        Body::from_stream(stream.inspect(move |_| {
            let _held_as_long_as_the_stream = &place;
        }))
    })
}

/// What a request whose body could not be read is answered, and why it could not.
fn unread(e: &axum::Error) -> Response {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(e) = cause {
        if e.is::<http_body_util::LengthLimitError>() {
            let hint = "send it in parts or name a file of the stack's directory";
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "a request has at most 4 MiB", hint);
        }
        if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut) {
            return problem(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive in time; nothing was done", "send it again");
        }
        cause = e.source();
    }
    problem(StatusCode::BAD_REQUEST, "invalid_argument", "the body did not arrive whole; nothing was done", "send it again")
}

/// Requests of one token in a minute: what is no call, e.g. lists and completions, is counted here only, so it is far above the calls an agent may make.
pub(super) fn requests_per_minute(calls: Option<u32>) -> u32 {
    calls.map_or(MOST_REQUESTS, |calls| calls.saturating_mul(4).clamp(LEAST_REQUESTS, MOST_REQUESTS))
}

/// Resolves when a token was revoked or its time is over.
async fn until_void(revoked: CancellationToken, expires_at: Option<DateTime<Utc>>) {
    let left = expires_at.map(|e| (e - Utc::now()).to_std().unwrap_or_default());
    tokio::select! {
        () = revoked.cancelled() => {}
        () = async { match left { Some(left) => tokio::time::sleep(left).await, None => std::future::pending().await } } => {}
    }
}

/// What the client's configuration asks for: `X-MCP-Toolsets` and `X-MCP-Readonly`, or `?toolsets=` and `?readonly=` where a client sends no
/// headers. Either of them makes the session read-only; nothing makes it less so.
fn narrow(caller: &mut Caller, headers: &HeaderMap, query: &str) -> Result<(), CallError> {
    let header = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().map(str::to_owned)).collect::<Result<Vec<_>, _>>();
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|p| p.split_once('=').or(Some((p, ""))));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.replace("%2C", ",").replace("%2c", ",")).collect::<Vec<_>>()
    };
    let asked = |name: &str, key: &str| {
        let mut found = header(name).map_err(|_| unreadable(name))?;
        found.extend(parameter(key));
        Ok::<_, CallError>(found)
    };
    let wished = asked("x-mcp-toolsets", "toolsets")?;
    if !wished.is_empty() {
        caller.toolsets = Selection::parse(&wished.join(","))?;
    }
    for value in asked("x-mcp-readonly", "readonly")? {
        match value.trim() {
            "" | "1" | "true" => caller.read_only = true,
            "0" | "false" => {}
            _ => return Err(unreadable("x-mcp-readonly")),
        }
    }
    Ok(())
}

fn unreadable(name: &str) -> CallError {
    CallError::new(
        ErrorCode::InvalidArgument,
        format!("{name} is not understood"),
        "X-MCP-Toolsets takes names, X-MCP-Readonly true or false",
    )
}

/// Scheme and authority a request was sent to, e.g. `https://box:7420`; the guard puts it into the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base(pub String);

/// [`Base`] of a request; empty when the guard was not asked.
pub fn base_of(extensions: &axum::http::Extensions) -> String {
    extensions.get::<Base>().map(|b| b.0.clone()).unwrap_or_default()
}

/// The agent behind a request's bearer token, and the token.
///
/// # Errors
/// The 401 or 503 to send.
pub async fn identity(doors: &Doors, headers: &HeaderMap, base: &str) -> Result<(Caller, TokenUse), Box<Response>> {
    let Some(token) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(bearer) else {
        return Err(unauthorized(base, "this door needs a bearer token", false));
    };
    let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    match doors.house.store.token_use(&hash, Utc::now()).await {
        Ok(Some(token)) => match AgentName::new(token.agent.clone()) {
            Ok(agent) if doors.house.rulebook.load().agents.contains_key(agent.as_str()) => {
                Ok((Caller { agent, read_only: false, toolsets: Selection::default() }, token))
            }
            _ => Err(unauthorized(base, "the token belongs to an agent that has no manifest any more", true)),
        },
        Ok(None) => Err(unauthorized(base, "the token is not known as an agent's, was revoked or has expired", true)),
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

/// A 401 that says where to read about the tokens (RFC 9728); `shown`: there was a token, and it is not valid (RFC 6750).
pub fn unauthorized(base: &str, message: &str, shown: bool) -> Box<Response> {
    let hint = "an operator makes a token with `dockwarden agents token NAME`; send it as `Authorization: Bearer TOKEN`";
    let mut response = problem(StatusCode::UNAUTHORIZED, "unauthorized", message, hint);
    let error = if shown { "error=\"invalid_token\", " } else { "" };
    let metadata = crate::adapters::http::resource::WELL_KNOWN;
    let text = format!("Bearer realm=\"dockwarden\", {error}resource_metadata=\"{base}{metadata}/mcp\"");
    // A Host that is no header value was refused before.
    let value = header::HeaderValue::from_str(&text).unwrap_or(header::HeaderValue::from_static("Bearer realm=\"dockwarden\""));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    Box::new(response)
}

/// The token of an `Authorization` header.
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim())
}

/// A JSON error body with what to do next.
pub fn problem(status: StatusCode, code: &str, message: &str, hint: &str) -> Response {
    (status, axum::Json(json!({"error": {"code": code, "message": message, "hint": hint}}))).into_response()
}

#[cfg(test)]
mod tests;
