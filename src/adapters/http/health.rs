//! Health for machines, metrics for scrapers, one page for people who opened the address in a browser.
//! Deliberately absent: the health of stacks, which is a tool with an audit row.

use crate::adapters::Doors;
use crate::adapters::mcp::http::{Base, problem};
use crate::call::House;
use crate::model::disk::DiskLevel;
use crate::store::disk;
use crate::supervisor;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The engine answers `info` in milliseconds; after this it counts as gone.
const ENGINE_WITHIN: Duration = Duration::from_secs(3);

/// `GET /health`: the process lives.
pub async fn health() -> Response {
    Json(json!({"status": "ok", "timestamp": chrono::Utc::now()})).into_response()
}

/// `GET /ready`: calls can be served.
pub async fn ready(State(doors): State<Arc<Doors>>) -> Response {
    let ready = !doors.shutdown.is_cancelled();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let (agents, skills) = (doors.house.rulebook.load().agents.len(), doors.house.prompts.load().len());
    (status, Json(json!({"ready": ready, "agents": agents, "skills": skills}))).into_response()
}

/// `GET /api/health/deep`: engine, store and the home's disk, each asked now.
pub async fn deep(State(doors): State<Arc<Doors>>) -> Response {
    let house = &doors.house;
    let engine = match tokio::time::timeout(ENGINE_WITHIN, house.engine.info()).await {
        Ok(Ok(info)) => Ok(json!({"ok": true, "version": info.version, "api_version": info.api_version})),
        Ok(Err(e)) => Err(json!({"ok": false, "error": e.to_string(), "hint": "see `dockwarden doctor`"})),
        Err(_) => Err(json!({"ok": false, "error": "no answer within 3 s", "hint": "see `dockwarden doctor`"})),
    };
    let store = match house.store.open_operations().await {
        Ok(open) => Ok(json!({"ok": true, "open_operations": open.len()})),
        Err(e) => {
            tracing::error!(error = %e, "the store does not answer");
            Err(json!({"ok": false, "error": "state cannot be read", "hint": "see the supervisor's log and `dockwarden doctor`"}))
        }
    };
    let (disk, level) = disk(house).await;
    let healthy = engine.is_ok() && store.is_ok() && level < DiskLevel::Critical;
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let part = |p: Result<Value, Value>| p.unwrap_or_else(|e| e);
    let body = json!({"status": if healthy { "ok" } else { "failing" }, "timestamp": chrono::Utc::now(), "engine": part(engine), "store": part(store), "disk": disk,
                      "uptime_s": doors.started.elapsed().as_secs(), "version": env!("CARGO_PKG_VERSION")});
    (status, Json(body)).into_response()
}

/// The disk of the home, now, at the level that was told of it.
async fn disk(house: &House) -> (Value, DiskLevel) {
    let hint = "free space there; see `dockwarden doctor`";
    match (disk::usage(&house.config.home), supervisor::disk::level(&house.store).await) {
        (Ok(usage), Ok(told)) => {
            let level = house.config.settings.disk.level(usage.percent(), told);
            let mut part =
                json!({"ok": level < DiskLevel::Critical, "level": level, "used_percent": usage.percent(), "free_mib": usage.free >> 20});
            if level > DiskLevel::Fine {
                part["hint"] = json!(hint);
            }
            (part, level)
        }
        (Err(e), _) => (json!({"ok": false, "error": e.to_string(), "hint": hint}), DiskLevel::Critical),
        // That the store cannot be read is said by its own part.
        (Ok(usage), Err(_)) => (json!({"ok": true, "used_percent": usage.percent(), "free_mib": usage.free >> 20}), DiskLevel::Fine),
    }
}

/// `GET /metrics`: OpenMetrics text.
pub async fn metrics(State(doors): State<Arc<Doors>>) -> Response {
    let mut states = BTreeMap::<&'static str, i64>::new();
    match doors.house.store.open_operations().await {
        Ok(open) => open.iter().for_each(|o| *states.entry(o.state.as_str()).or_default() += 1),
        Err(e) => tracing::error!(error = %e, "operations could not be counted"),
    }
    match doors.house.store.spent(None).await {
        Ok(spent) => doors.metrics.spent(&spent),
        Err(e) => tracing::error!(error = %e, "what models cost could not be read"),
    }
    match (disk::usage(&doors.house.config.home), supervisor::disk::level(&doors.house.store).await) {
        // As now: what was told stands until the next look, and on a full disk it cannot even be kept.
        (Ok(usage), Ok(told)) => doors.metrics.disk(usage, doors.house.config.settings.disk.level(usage.percent(), told)),
        (usage, level) => tracing::error!(?usage, ?level, "the home's disk could not be looked at"),
    }
    doors.metrics.reactions(&doors.house.executor.reactions().take());
    doors.metrics.stacks.refresh(&doors.house).await;
    doors.metrics.backups.refresh(&doors.house.store, doors.house.backups.as_deref()).await;
    let states: Vec<_> = states.into_iter().collect();
    let text = doors.metrics.text(&states, doors.presence.count());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// `GET /`: what this is and how to attach.
pub async fn front_page(State(doors): State<Arc<Doors>>, Extension(Base(base)): Extension<Base>) -> String {
    let host = &doors.house.config.host_name;
    format!(
        "dockwarden {} on {host}\n\nA supervisor of Docker compose stacks for LLM agents. This address speaks MCP (Streamable HTTP) at /mcp.\n\n\
         Attach (an operator makes the token on the host: dockwarden agents token NAME):\n\n  \
         claude mcp add --transport http dockwarden {base}/mcp --header \"Authorization: Bearer TOKEN\"\n\n\
         On the host itself no token is needed:\n\n  claude mcp add dockwarden -- dockwarden mcp --agent observer\n\n\
         observer only reads; dockwarden agents list shows who may do more.\n\n\
         For machines: /api/openapi.json /health /ready /api/health/deep /metrics\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Everything else.
pub async fn not_found() -> Response {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path", "MCP is at /mcp; see / for what else there is")
}
