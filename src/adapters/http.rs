//! The HTTP door: MCP at `/mcp`, the approvals pages, health and metrics beside it. One listener, loopback unless told otherwise.
//! Deliberately absent: a REST form of the tools, TLS (a proxy's work).

pub mod card;
pub mod guard;
pub mod health;
pub mod listen;
pub mod pages;
pub mod session;
pub mod strangers;

use super::Doors;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use guard::Guard;
use std::sync::Arc;

/// All routes behind the Host and Origin guard.
pub fn router(doors: &Arc<Doors>, guard: Guard) -> Router {
    let open = Router::new().route("/", get(health::front_page)).route("/health", get(health::health)).route("/ready", get(health::ready));
    let secure = guard.beyond_loopback;
    let inner = Router::new()
        .route("/api/health/deep", get(health::deep))
        .route("/metrics", get(health::metrics))
        .route("/.well-known/agent-card.json", get(move |state, headers| card::agent_card(state, headers, secure)));
    let inner = if guard.beyond_loopback { inner.layer(from_fn_with_state(Arc::clone(doors), guard::token)) } else { inner };
    open.merge(inner)
        .with_state(Arc::clone(doors))
        .merge(super::mcp::http::router(doors))
        .merge(pages::router(doors))
        .fallback(health::not_found)
        .layer(from_fn_with_state(Arc::new(guard), guard::names))
        .layer(from_fn(strangers::watched))
}
