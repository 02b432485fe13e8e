//! `/.well-known/agent-card.json`: what this supervisor offers, in the form A2A directories read. It points to the MCP door; A2A itself is not
//! spoken here. Deliberately absent: agents, stacks and anything else that is told to a token's owner only.

use crate::adapters::Doors;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// The card as seen under a host's name.
fn card(host: &str, secure: bool, name: &str, skills: Value) -> Value {
    let scheme = if secure { "https" } else { "http" };
    let url = format!("{scheme}://{host}/mcp");
    json!({
        "protocolVersion": "0.3.0",
        "name": format!("dockwarden on {name}"),
        "description": "Runs Docker compose stacks under a policy: plans, deploys, rolls back, backs up; every call gated, journaled, audited.",
        "version": env!("CARGO_PKG_VERSION"),
        "url": url,
        "preferredTransport": "MCP",
        "additionalInterfaces": [{"url": url, "transport": "MCP"}],
        "capabilities": {"streaming": true, "pushNotifications": false, "stateTransitionHistory": true},
        "defaultInputModes": ["application/json"],
        "defaultOutputModes": ["application/json", "text/plain"],
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "an operator makes one: dockwarden agents token NAME"}},
        "security": [{"bearer": []}],
        "skills": skills,
    })
}

/// `GET /.well-known/agent-card.json`. `secure`: a proxy with TLS stands in front.
pub async fn agent_card(State(doors): State<Arc<Doors>>, headers: HeaderMap, secure: bool) -> Response {
    // The guard has checked it against the list of names.
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
    let skill =
        |p: &crate::model::prompt::Prompt| json!({"id": p.name, "name": p.title, "description": p.description, "tags": ["mcp-prompt"]});
    let skills = doors.house.prompts.load().iter().map(skill).collect();
    Json(card(host, secure, &doors.house.config.host_name, skills)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_has_what_the_specification_requires_and_points_to_the_mcp_door() {
        let card = card("box:7420", true, "box", json!([]));
        let required = [
            "protocolVersion",
            "name",
            "description",
            "url",
            "version",
            "capabilities",
            "defaultInputModes",
            "defaultOutputModes",
            "skills",
        ];
        assert!(required.iter().all(|k| !card[k].is_null()), "{card:#}");
        assert_eq!(card["url"], "https://box:7420/mcp");
    }
}
