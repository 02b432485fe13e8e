//! The door of agents that run in processes of their own: the custom method by which they fetch and report tasks, and names of their tool calls.
//! Deliberately absent: what they may ask (`supervisor::tasks::outside`).

use super::reply;
use crate::adapters::{Doors, ending};
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use crate::call::{CallError, Principal};
use crate::runner::outside::{Ask, METHOD, Named};
use crate::supervisor::tasks::outside::{self, Guest};
use rmcp::ErrorData;
use rmcp::model::{CustomRequest, CustomResult, ErrorCode as Code};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The one key of an answer. It keeps it from looking like an answer of the protocol's own.
pub const ANSWER: &str = "dockwarden/answer";

/// Answers one question of an agent outside. It is carried out even if the agent does not wait for it; only waiting ends with the connection.
///
/// # Errors
/// `METHOD_NOT_FOUND` for any other method; else the refusal, with code, cause and hint in its data.
pub async fn answer(
    doors: &Arc<Doors>,
    who: &Principal,
    request: CustomRequest,
    gone: &CancellationToken,
) -> Result<CustomResult, ErrorData> {
    if request.method != METHOD {
        return Err(ErrorData::new(Code::METHOD_NOT_FOUND, request.method, None));
    }
    let mut params = request.params.unwrap_or_default();
    if let Some(map) = params.as_object_mut() {
        map.remove("_meta");
    }
    let ask: Ask = serde_json::from_value(params).map_err(|e| ErrorData::invalid_params(format!("{METHOD}: {e}"), None))?;
    if doors.shutdown.is_cancelled() {
        return Err(refusal(&ending()));
    }
    if who.read_only {
        let hint = "connect without X-MCP-Readonly";
        return Err(refusal(&CallError::new(ErrorCode::Denied, "this session was started read-only", hint)));
    }
    let guest = Guest { agent: who.agent.clone(), door: who.door };
    let (house, shutdown, waits, gone) = (doors.house.clone(), doors.shutdown.clone(), matches!(ask, Ask::Fetch { .. }), gone.clone());
    let work = doors.house.calls.spawn(async move {
        tokio::select! {
            answer = outside::answer(&house, &guest, ask) => answer,
            () = shutdown.cancelled() => Err(ending()),
            () = gone.cancelled(), if waits => Err(ending()),
        }
    });
    match work.await {
        Ok(Ok(value)) => Ok(CustomResult::new(json!({ ANSWER: value }))),
        Ok(Err(e)) => {
            if let Some(detail) = &e.detail {
                tracing::error!(code = ?e.code, message = %e.message, %detail, "an agent outside was not answered");
            }
            Err(refusal(&e))
        }
        Err(e) => Err(ErrorData::internal_error(format!("the supervisor failed inside this: {e}"), None)),
    }
}

fn refusal(error: &CallError) -> ErrorData {
    ErrorData::invalid_request(format!("{}; {}", error.message, error.hint), Some(reply::error_value(error)))
}

/// A tool call under a name of the agent's journal.
///
/// # Errors
/// As of any call; `Conflict` when a call of this name was begun before, `InvalidArgument` when the journal does not have it.
pub async fn call(doors: &Arc<Doors>, who: Principal, name: &Value, tool: String, input: Value) -> Result<Reply, CallError> {
    let named: Named = serde_json::from_value(name.clone()).map_err(|e| {
        let hint = "only `dockwarden agent run` names its calls; leave the key out";
        CallError::new(ErrorCode::InvalidArgument, format!("_meta {}: {e}", crate::runner::outside::CALL), hint)
    })?;
    let guest = Guest { agent: who.agent.clone(), door: who.door };
    let id = outside::named(&doors.house, &guest, named, &tool, &input).await.map_err(|e| e.data(json!({"unmade": true})))?;
    doors.call_as(who, id, tool, input).await
}
