//! `/.well-known/agent-card.json`: what this supervisor offers, in the form A2A directories read. It points to the MCP door; A2A itself is not
//! spoken here. Deliberately absent: agents, stacks and anything else that is told to a token's owner only.

use crate::adapters::Doors;
use crate::adapters::mcp::http::Base;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::sync::Arc;

/// The card as seen under an address.
fn card(base: &str, name: &str, skills: Value) -> Value {
    let url = format!("{base}/mcp");
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

/// `GET /.well-known/agent-card.json`.
pub async fn agent_card(State(doors): State<Arc<Doors>>, Extension(Base(base)): Extension<Base>) -> Response {
    let skill =
        |p: &crate::model::prompt::Prompt| json!({"id": p.name, "name": p.title, "description": p.description, "tags": ["mcp-prompt"]});
    // A runbook is a task's, not a prompt's.
    let skills = doors.house.prompts.load().iter().filter(|p| p.steps.is_empty()).map(skill).collect();
    Json(card(&base, &doors.house.config.host_name, skills)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_has_what_the_specification_requires_and_points_to_the_mcp_door() {
        let card = card("https://box:7420", "box", json!([]));
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
