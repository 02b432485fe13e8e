//! JSON REST under `/api`: tools as plain requests, approvals and the freeze for operators, described by OpenAPI. Each area is a file under
//! `api/` that gives a [`Part`]. An agent's token makes that agent's calls, through the same line as any other door; what decides needs an
//! operator's token. Deliberately absent: any right of this door's own.

mod approvals;
mod describe;
mod freeze;
mod tasks;
mod tools;
pub mod who;

pub use who::{OPERATOR_PREFIX, Who};

use crate::adapters::Doors;
use crate::call::CallError;
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Bytes of a request's body: what a line of MCP may have.
const MAX_BODY: usize = crate::adapters::mcp::stdio::MAX_LINE;

/// An area of the REST door.
pub struct Part {
    /// Its routes, with their whole paths.
    pub router: Router<Arc<Doors>>,
    /// Its description, of what utoipa's macros describe.
    pub docs: utoipa::openapi::OpenApi,
    /// Its paths in the form of OpenAPI, of what is made from a table.
    pub paths: Map<String, Value>,
}

/// Every area; a new one is a file and a line here.
const PARTS: &[fn() -> Part] = &[tools::part, approvals::part, freeze::part, tasks::part];

/// The routes of `/api`.
pub fn router(doors: &Arc<Doors>) -> Router {
    let parts: Vec<Part> = PARTS.iter().map(|part| part()).collect();
    let document: Arc<str> = describe::document(&parts).to_string().into();
    let open = move || {
        let document = Arc::clone(&document);
        async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) }
    };
    let all = parts.into_iter().fold(Router::new(), |all, part| all.merge(part.router));
    all.layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::clone(doors), present))
        .route("/api/openapi.json", get(open))
        .with_state(Arc::clone(doors))
}

/// Middleware: a request counts as a client, and nothing of the answer is kept by anyone in between.
async fn present(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    let _here = doors.presence.enter();
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// What a request answers.
pub type Answer = Result<Response, Failure>;

/// A `CallError` as a response: `{"error": {code, message, hint, ...}}`.
#[derive(Debug)]
pub struct Failure(pub CallError);

impl From<CallError> for Failure {
    fn from(e: CallError) -> Self {
        Self(e)
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(e: crate::store::StoreError) -> Self {
        Self(e.into())
    }
}

impl From<JsonRejection> for Failure {
    fn from(e: JsonRejection) -> Self {
        let hint = "send a JSON object with Content-Type: application/json; /api/openapi.json describes it";
        Self(CallError::new(ErrorCode::InvalidArgument, e.body_text(), hint))
    }
}

impl From<PathRejection> for Failure {
    fn from(e: PathRejection) -> Self {
        Self(CallError::new(ErrorCode::InvalidArgument, e.body_text(), "/api/openapi.json describes the paths"))
    }
}

impl From<QueryRejection> for Failure {
    fn from(e: QueryRejection) -> Self {
        Self(CallError::new(ErrorCode::InvalidArgument, e.body_text(), "/api/openapi.json describes the parameters"))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(e) = self;
        if let Some(detail) = &e.detail {
            tracing::warn!(code = ?e.code, detail, "a REST request failed");
        }
        let retry = e.data.as_ref().and_then(|d| d["retry_after_s"].as_u64());
        let mut response = (status(e.code), Json(json!({"error": e}))).into_response();
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// The status of a code.
fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::UnknownTool | ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Denied => StatusCode::FORBIDDEN,
        ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Busy | ErrorCode::StalePlan | ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::Preflight | ErrorCode::Failed => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::EngineUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::RegistryUnauthorized => StatusCode::BAD_GATEWAY,
        ErrorCode::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A reply; one that waits for an operator is accepted, not done.
pub fn answer(reply: Reply) -> Response {
    let waits = reply.known.state.as_deref() == Some("pending_approval");
    (if waits { StatusCode::ACCEPTED } else { StatusCode::OK }, Json(reply.value)).into_response()
}
