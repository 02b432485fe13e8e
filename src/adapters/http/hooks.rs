//! `POST /hooks/{name}`: signed requests that give agents work. The secret is read each time, so that it can be changed without a restart. Deliberately
//! absent: what a request means (`call::hooks`), and any hint to a caller why its signature was refused.

use crate::adapters::Doors;
use crate::adapters::http::strangers;
use crate::adapters::mcp::http::problem;
use crate::call::error::ErrorCode;
use crate::call::hooks::{self, LEAST_SECRET, Request, Taken};
use crate::model::trigger::Trigger;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// Largest body.
const MAX_BODY: usize = 1024 * 1024;

/// The routes of `/hooks`.
pub fn router(doors: &Arc<Doors>) -> Router {
    let routes = Router::new().route("/hooks/{name}", post(hook)).layer(DefaultBodyLimit::max(MAX_BODY));
    routes.with_state(Arc::clone(doors))
}

/// The secret of a trigger, without the line end an editor adds.
async fn secret(trigger: &Trigger) -> Option<Vec<u8>> {
    let file = trigger.on.secret_file.as_ref()?;
    match tokio::fs::read(file).await {
        Ok(text) if text.trim_ascii().len() >= LEAST_SECRET => Some(text.trim_ascii().to_vec()),
        Ok(_) => {
            tracing::error!(trigger = trigger.name, "the secret is shorter than {LEAST_SECRET} bytes");
            None
        }
        Err(e) => {
            tracing::error!(trigger = trigger.name, error = %e, "the secret cannot be read");
            None
        }
    }
}

async fn hook(
    State(doors): State<Arc<Doors>>,
    Path(name): Path<String>,
    extensions: Extensions,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let house = &doors.house;
    let found = house.config.settings.triggers.iter().find(|t| t.name == name && t.on.webhook.is_some());
    let Some((trigger, kind)) = found.and_then(|t| t.on.webhook.map(|kind| (t, kind))) else {
        return problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no such hook",
            "an operator adds it to [[triggers]] in dockwarden.toml",
        );
    };
    if doors.shutdown.is_cancelled() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "busy", "the supervisor is ending", "send it again");
    }
    let Some(secret) = secret(trigger).await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "internal", "this hook has no usable secret", "see the supervisor's log");
    };
    // Header names are in lower case already; one that is no text proves nothing.
    let headers = headers.iter().filter_map(|(k, v)| Some((k.as_str().to_owned(), v.to_str().ok()?.to_owned()))).collect();
    let request = Request { headers: &headers, body: &body };
    let now = Utc::now();
    if let Err(why) = hooks::verify(kind, &secret, &request, now) {
        tracing::warn!(trigger = trigger.name, why, "a request to a hook was refused");
        return problem(StatusCode::UNAUTHORIZED, "unauthorized", "the request is not signed with this hook's secret", "see docs/tasks.md");
    }
    strangers::known(&extensions);
    let _busy = doors.presence.enter();
    match hooks::take(house, trigger, kind, &request, now).await {
        Ok(Taken::Tasks { tasks, left_out }) => {
            let mut body = json!({"state": "taken", "tasks": tasks});
            if left_out > 0 {
                body["left_out"] = json!(left_out);
            }
            (StatusCode::ACCEPTED, Json(body)).into_response()
        }
        Ok(Taken::Duplicate) => Json(json!({"state": "duplicate"})).into_response(),
        Ok(Taken::Ignored(why)) => Json(json!({"state": "ignored", "reason": why})).into_response(),
        Err(e) => {
            tracing::error!(trigger = trigger.name, error = %e, detail = e.detail, "a signed request could not be taken");
            let status = match e.code {
                ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
                ErrorCode::InvalidArgument | ErrorCode::NotFound => StatusCode::UNPROCESSABLE_ENTITY,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            let mut response = problem(status, "refused", &e.message, &e.hint);
            if let Some(after) = e.data.as_ref().and_then(|d| d["retry_after_s"].as_u64()) {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after));
            }
            response
        }
    }
}
