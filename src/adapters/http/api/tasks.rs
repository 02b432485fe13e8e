//! `POST /api/tasks` and `GET /api/tasks/{id}`: tasks for programs that do not speak MCP. An agent's bearer token says who calls; the call takes the same
//! line as the tools `task_submit` and `tasks`, with the same names. Deliberately absent: anything those two do not do.

use super::{Answer, Failure, Part, Who, answer};
use crate::adapters::Doors;
use crate::call::CallError;
use crate::call::error::ErrorCode;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use utoipa::OpenApi as _;

/// Largest body: an input is 32 KiB at most.
const MAX_BODY: usize = 64 * 1024;

#[derive(utoipa::OpenApi)]
#[openapi(paths(submit, show), components(schemas(NewTask)))]
struct Docs;

/// A task as a program gives it: a skill or a prompt. The aliases are the names of earlier versions.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewTask {
    /// Who does it.
    #[serde(alias = "agentId")]
    agent: String,
    /// Skill of prompts/.
    #[serde(default, alias = "skillId")]
    skill: Option<String>,
    /// What to do, in words.
    #[serde(default)]
    prompt: Option<String>,
    /// Arguments of the skill, or facts.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    input: Option<Map<String, Value>>,
    /// Stack it is about.
    #[serde(default)]
    stack: Option<String>,
    /// The same key gives the same task.
    #[serde(default, alias = "idempotencyKey")]
    idempotency_key: Option<String>,
    /// Start so many seconds from now.
    #[serde(default, alias = "delayS")]
    delay_s: Option<u32>,
}

/// The routes of `/api/tasks`.
pub(super) fn part() -> Part {
    let router = Router::new().route("/api/tasks", post(submit)).route("/api/tasks/{id}", get(show));
    Part { router: router.layer(DefaultBodyLimit::max(MAX_BODY)), docs: Docs::openapi(), paths: Map::new() }
}

/// Gives an agent a task.
#[utoipa::path(post, path = "/api/tasks", tag = "tasks", operation_id = "submit_task", request_body = NewTask,
    responses((status = 202, description = "queued, at `Location`; or it waits for an operator", body = Object),
              (status = "default", description = "cause and what to do next", body = super::describe::Problem)))]
async fn submit(State(doors): State<Arc<Doors>>, who: Who, body: Result<Json<NewTask>, JsonRejection>) -> Answer {
    let Json(new) = body.map_err(|e| {
        let hint = "fields: agent, skill or prompt, input, stack, idempotency_key, delay_s";
        Failure(CallError::new(ErrorCode::InvalidArgument, e.body_text(), hint))
    })?;
    let wish = json!({"agent": new.agent, "skill": new.skill, "prompt": new.prompt, "input": new.input, "stack": new.stack,
                      "idempotency_key": new.idempotency_key, "delay_s": new.delay_s});
    let value = doors.call(who.principal(&doors)?, "task_submit".to_owned(), wish, None).await?.value;
    // An approval may stand before it: then there is no task yet.
    Ok(match value["task_id"].as_str().and_then(|id| HeaderValue::from_str(&format!("/api/tasks/{id}")).ok()) {
        Some(place) => (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(value)).into_response(),
        None => (StatusCode::ACCEPTED, Json(value)).into_response(),
    })
}

/// A task with its result and steps.
#[utoipa::path(get, path = "/api/tasks/{id}", tag = "tasks", operation_id = "get_task", params(("id" = String, Path)),
    responses((status = 200, description = "with `state`, `result` and `steps`", body = Object), (status = 404, description = "no such task", body = super::describe::Problem),
              (status = "default", description = "cause and what to do next", body = super::describe::Problem)))]
async fn show(State(doors): State<Arc<Doors>>, who: Who, id: Result<Path<String>, PathRejection>) -> Answer {
    let Path(id) = id?;
    let mut reply = doors.call(who.principal(&doors)?, "tasks".to_owned(), json!({"task_id": id}), None).await?;
    let mut task = reply.value["tasks"][0].take();
    task["steps"] = reply.value["steps"].take();
    reply.value = task;
    Ok(answer(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_the_names_of_the_tool_and_those_of_earlier_versions_are_understood() {
        let now = r#"{"agent": "a", "skill": "s", "input": {"x": 1}, "stack": "shop", "idempotency_key": "k", "delay_s": 3}"#;
        let before = now.replace("\"agent\"", "\"agentId\"").replace("\"skill\"", "\"skillId\"");
        let before = before.replace("idempotency_key", "idempotencyKey").replace("delay_s", "delayS");
        for text in [now, &before] {
            let new: NewTask = serde_json::from_str(text).expect("a task");
            assert_eq!((new.agent.as_str(), new.skill.as_deref()), ("a", Some("s")), "{text}");
            assert_eq!((new.idempotency_key.as_deref(), new.delay_s), (Some("k"), Some(3)), "{text}");
        }
        assert!(serde_json::from_str::<NewTask>(r#"{"agent": "a", "agent_id": "b"}"#).is_err());
        // What is described is what the tool takes.
        let tool = crate::tools::catalogue().iter().find(|t| t.name == "task_submit").expect("there");
        let (takes, described) = ((tool.input_schema)(), serde_json::to_value(Docs::openapi()).expect("plain"));
        let described = described["components"]["schemas"]["NewTask"]["properties"].as_object().expect("fields").clone();
        assert_eq!(described.len(), 7);
        for (name, _) in described {
            assert!(takes["properties"][&name].is_object(), "{name}");
        }
    }
}
