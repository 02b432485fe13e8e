//! `POST /api/tasks` and `GET /api/tasks/{id}`: tasks for programs that do not speak MCP. An agent's bearer token says who calls; the call takes the same
//! line as the tools `task_submit` and `tasks`. Deliberately absent: anything those two do not do.

use crate::adapters::Doors;
use crate::adapters::http::api::who::Who;
use crate::adapters::mcp::http::problem;
use crate::call::CallError;
use crate::call::error::ErrorCode;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Largest body: an input is 32 KiB at most.
const MAX_BODY: usize = 64 * 1024;

/// A task as a program gives it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NewTask {
    agent_id: String,
    #[serde(default)]
    skill_id: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    input: Option<Map<String, Value>>,
    #[serde(default)]
    stack: Option<String>,
    #[serde(default)]
    idempotency_key: Option<String>,
    #[serde(default)]
    delay_s: Option<u32>,
}

/// The routes of `/api/tasks`.
pub fn router(doors: &Arc<Doors>) -> Router {
    let routes = Router::new().route("/api/tasks", post(submit)).route("/api/tasks/{id}", get(show));
    routes.layer(DefaultBodyLimit::max(MAX_BODY)).with_state(Arc::clone(doors))
}

async fn call(doors: &Arc<Doors>, who: &Who, tool: &str, input: Value) -> Result<Value, Box<Response>> {
    let who = who.principal(doors).map_err(|e| Box::new(refused(&e)))?;
    doors.call(who, tool.to_owned(), input, None).await.map(|reply| reply.value).map_err(|e| Box::new(refused(&e)))
}

/// An error of the line as HTTP says it.
fn refused(e: &CallError) -> Response {
    let status = match e.code {
        ErrorCode::InvalidArgument | ErrorCode::UnknownTool => StatusCode::BAD_REQUEST,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Denied => StatusCode::FORBIDDEN,
        ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Busy | ErrorCode::StalePlan | ErrorCode::Conflict | ErrorCode::Preflight => StatusCode::CONFLICT,
        ErrorCode::Failed | ErrorCode::EngineUnavailable | ErrorCode::RegistryUnauthorized => StatusCode::BAD_GATEWAY,
        ErrorCode::StorageFull | ErrorCode::Internal => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = (status, Json(json!({"error": e}))).into_response();
    if let Some(after) = e.data.as_ref().and_then(|d| d["retry_after_s"].as_u64()) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after));
    }
    response
}

async fn submit(State(doors): State<Arc<Doors>>, who: Who, body: Result<Json<NewTask>, JsonRejection>) -> Response {
    let new = match body {
        Ok(Json(new)) => new,
        Err(e) => {
            let hint = "fields: agentId, skillId or prompt, input, stack, idempotencyKey, delayS";
            return problem(e.status(), "invalid_argument", &e.body_text(), hint);
        }
    };
    let wish = json!({"agent": new.agent_id, "skill": new.skill_id, "prompt": new.prompt, "input": new.input, "stack": new.stack,
                      "idempotency_key": new.idempotency_key, "delay_s": new.delay_s});
    match call(&doors, &who, "task_submit", wish).await {
        // An approval may stand before it: then there is no task yet.
        Ok(value) => match value["task_id"].as_str().and_then(|id| HeaderValue::from_str(&format!("/api/tasks/{id}")).ok()) {
            Some(place) => (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(value)).into_response(),
            None => (StatusCode::ACCEPTED, Json(value)).into_response(),
        },
        Err(response) => *response,
    }
}

async fn show(State(doors): State<Arc<Doors>>, Path(id): Path<String>, who: Who) -> Response {
    match call(&doors, &who, "tasks", json!({"task_id": id})).await {
        Ok(mut value) => {
            let mut task = value["tasks"][0].take();
            task["steps"] = value["steps"].take();
            Json(task).into_response()
        }
        Err(response) => *response,
    }
}
