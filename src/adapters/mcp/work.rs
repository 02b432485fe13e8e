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
        return unfit(&request);
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

/// Methods of the protocol and what their params must have. A request of theirs that arrives here has others. Those that newer versions have removed are
/// left out: there the specification wants `METHOD_NOT_FOUND`, whatever their params.
const FORMS: &[(&str, &str)] = &[
    ("tools/call", "`name` must be a text and `arguments`, where given, an object"),
    ("prompts/get", "`name` must be a text and `arguments`, where given, an object"),
    ("resources/read", "`uri` must be a text"),
    ("completion/complete", "`ref` names a prompt or a resource template, `argument` has `name` and `value`"),
    ("tools/list", "`cursor`, where given, must be a text"),
    ("prompts/list", "`cursor`, where given, must be a text"),
    ("resources/list", "`cursor`, where given, must be a text"),
    ("resources/templates/list", "`cursor`, where given, must be a text"),
    ("subscriptions/listen", "`notifications` must be an object"),
];

/// A request that is none of ours, or has params that do not fit its method. Of a tool call the model is told: it made the arguments.
fn unfit(request: &CustomRequest) -> Result<CustomResult, ErrorData> {
    let Some((method, form)) = FORMS.iter().find(|(method, _)| *method == request.method) else {
        return Err(ErrorData::new(Code::METHOD_NOT_FOUND, crate::redact::line(&request.method, 200), None));
    };
    let message = format!("params of {method} do not fit: {form}");
    if *method != "tools/call" {
        return Err(ErrorData::invalid_params(message, None));
    }
    let hint = "send the arguments as a JSON object, not as a text that holds one; tools/list has the schemas";
    let error = CallError::new(ErrorCode::InvalidArgument, message, hint).field("arguments");
    let result = serde_json::to_value(reply::result(Err(error)));
    result.map(CustomResult::new).map_err(|e| ErrorData::internal_error(format!("the answer could not be written: {e}"), None))
}

fn refusal(error: &CallError) -> ErrorData {
    ErrorData::invalid_request(format!("{}; {}", error.message, error.hint), Some(reply::error_value(error)))
}

/// A tool call under a name of the agent's journal.
///
/// # Errors
/// As of any call; `Conflict` when a call of this name was begun before and this is no repetition, `InvalidArgument` when the journal does not have it.
pub async fn call(doors: &Arc<Doors>, who: Principal, name: &Value, tool: String, input: Value) -> Result<Reply, CallError> {
    let named: Named = serde_json::from_value(name.clone()).map_err(|e| {
        let hint = "only `dockwarden agent run` names its calls; leave the key out";
        CallError::new(ErrorCode::InvalidArgument, format!("_meta {}: {e}", crate::runner::outside::CALL), hint)
    })?;
    let guest = Guest { agent: who.agent.clone(), door: who.door };
    let known = outside::named(&doors.house, &guest, named, &tool, &input).await.map_err(|e| e.data(json!({"unmade": true})))?;
    let who = Principal { on_behalf: known.on_behalf, ..who };
    match known.id {
        Some(id) => doors.call_as(who, id, tool, input).await,
        None => doors.call(who, tool, input, None).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage};

    /// What is answered to a request that the protocol's own types do not take.
    fn answered(method: &str, params: Value) -> Result<Value, ErrorData> {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let parsed: ClientJsonRpcMessage = serde_json::from_value(message).expect("a message");
        let JsonRpcMessage::Request(request) = parsed else { panic!("a request") };
        let ClientRequest::CustomRequest(request) = request.request else { panic!("{method} {params} fits") };
        unfit(&request).map(|r| r.0)
    }

    #[test]
    fn a_request_whose_params_do_not_fit_is_not_a_method_that_is_missing() {
        for params in [json!({"name": "status", "arguments": "{}"}), json!({"arguments": {}})] {
            let told = answered("tools/call", params).expect("a tool error, which clients show to the model");
            assert_eq!(
                (&told["isError"], &told["structuredContent"]["error"]["code"]),
                (&json!(true), &json!("invalid_argument")),
                "{told}"
            );
        }
        for (method, params) in [("resources/read", json!({})), ("prompts/get", json!({"name": 7}))] {
            let error = answered(method, params).expect_err("refused");
            assert_eq!(error.code, Code::INVALID_PARAMS, "{method}");
            assert!(error.message.contains(method), "{error:?}");
        }
        for (method, params) in [("tools/cal", json!({})), ("resources/subscribe", json!({"uri": []}))] {
            assert_eq!(answered(method, params).expect_err("unknown, or removed").code, Code::METHOD_NOT_FOUND);
        }
    }
}
