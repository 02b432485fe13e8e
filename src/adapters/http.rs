//! The HTTP door: MCP at `/mcp`, the approvals pages, health and metrics beside it. One listener, loopback unless told otherwise,
//! with TLS when it has a certificate. JSON REST is under `/api` (`api`), signed requests come in at `/hooks`.

pub mod api;
pub mod card;
pub mod guard;
pub mod health;
pub mod hooks;
pub mod listen;
pub mod pages;
pub mod resource;
pub mod session;
pub mod strangers;
pub mod tls;

use super::Doors;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use guard::Guard;
use std::sync::Arc;

/// All routes behind the Host and Origin guard.
pub fn router(doors: &Arc<Doors>, guard: Guard) -> Router {
    let open = Router::new().route("/", get(health::front_page)).route("/health", get(health::health)).route("/ready", get(health::ready));
    let open = [("", ""), ("/mcp", "/mcp"), ("/api", "/api")].into_iter().fold(open, |open, (suffix, path)| {
        let describe = move |state, base| resource::describe(path, state, base);
        open.route(&format!("{}{suffix}", resource::WELL_KNOWN), get(describe))
    });
    let inner = Router::new()
        .route("/api/health/deep", get(health::deep))
        .route("/metrics", get(health::metrics))
        .route("/.well-known/agent-card.json", get(card::agent_card));
    let inner = if guard.beyond_loopback { inner.layer(from_fn_with_state(Arc::clone(doors), guard::token)) } else { inner };
    open.merge(inner)
        .with_state(Arc::clone(doors))
        .merge(super::mcp::http::router(doors))
        .merge(pages::router(doors))
        .merge(hooks::router(doors))
        .merge(api::router(doors))
        .fallback(health::not_found)
        .layer(from_fn_with_state(Arc::new(guard), guard::names))
        .layer(from_fn(strangers::watched))
}

#[cfg(test)]
mod tests;
