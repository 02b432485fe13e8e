//! Replies, errors and progress of `tools/call` in MCP's form. An error of ours is a tool error, never a protocol error: clients show
//! only the former to the model. Deliberately absent: shortening and redaction, which happen before a reply reaches a door.

use crate::call::CallError;
use crate::call::context::ProgressLine;
use crate::call::dispatch::Reply;
use rmcp::model::{CallToolResult, ContentBlock, ProgressNotificationParam, ProgressToken};
use rmcp::{Peer, RoleServer};
use serde_json::{Value, json};
use std::future::Future;
use tokio::sync::mpsc::Receiver;

/// What `tools/call` answers.
pub fn result(result: Result<Reply, CallError>) -> CallToolResult {
    match result {
        Ok(reply) => {
            let mut out = CallToolResult::success(vec![ContentBlock::text(reply.text)]);
            out.structured_content = Some(reply.value);
            out
        }
        Err(error) => {
            if let Some(detail) = &error.detail {
                tracing::warn!(code = ?error.code, detail, "call failed");
            }
            let mut out = CallToolResult::error(vec![ContentBlock::text(error_text(&error))]);
            out.structured_content = Some(error_value(&error));
            out
        }
    }
}

/// `{"error": {code, message, hint, field?, findings?, data?}}`.
pub fn error_value(error: &CallError) -> Value {
    json!({ "error": error })
}

/// The same in words, for models and people that read text only.
pub fn error_text(error: &CallError) -> String {
    let code = serde_json::to_value(error.code).ok().and_then(|c| c.as_str().map(str::to_owned)).unwrap_or_else(|| "internal".into());
    let field = error.field.as_ref().map_or_else(String::new, |f| format!(" (field {f})"));
    let mut text = format!("{code}{field}: {}", error.message);
    for f in &error.findings {
        text.push_str(&format!(
            "\n- {} [{}]{}: {}",
            f.rule,
            f.verdict.as_str(),
            f.path.as_ref().map_or_else(String::new, |p| format!(" {p}")),
            f.because
        ));
    }
    if let Some(engine) = error.engine() {
        text.push_str(&format!("\n[untrusted, {}]\n{}", engine.source, engine.text));
    }
    text.push_str(&format!("\nhint: {}", error.hint));
    text
}

/// Waits for a call and passes its progress on meanwhile. A client that does not take notifications loses them, not the reply.
pub async fn with_progress(
    call: impl Future<Output = Result<Reply, CallError>>,
    mut lines: Receiver<ProgressLine>,
    peer: &Peer<RoleServer>,
    token: ProgressToken,
) -> Result<Reply, CallError> {
    tokio::pin!(call);
    let mut last = -1.0;
    loop {
        tokio::select! {
            biased;
            Some((percent, message)) = lines.recv() => {
                // The protocol wants every notification to be further than the one before.
                last = if percent > last { percent } else { last + 0.01 };
                let line = ProgressNotificationParam::new(token.clone(), last).with_total(100.0).with_message(message);
                if let Err(e) = peer.notify_progress(line).await {
                    tracing::debug!(error = %e, "progress was not taken");
                }
            }
            result = &mut call => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::error::ErrorCode;

    #[test]
    fn an_error_is_a_tool_error_with_code_cause_field_and_hint() {
        let e = CallError::new(ErrorCode::InvalidArgument, "no such field", "see the schema").field("stak").detail("never shown");
        let value = serde_json::to_value(result(Err(e))).expect("serialises");
        assert_eq!(
            value,
            json!({"resultType": "complete", "content": [{"type": "text", "text": "invalid_argument (field stak): no such field\nhint: see the schema"}],
                   "structuredContent": {"error": {"code": "invalid_argument", "message": "no such field", "hint": "see the schema", "field": "stak"}}, "isError": true})
        );
    }

    #[test]
    fn a_reply_carries_its_value_and_its_text() {
        let value = serde_json::to_value(result(Ok(Reply::new(json!({"a": 1}), "one")))).expect("serialises");
        assert_eq!(
            value,
            json!({"resultType": "complete", "content": [{"type": "text", "text": "one"}], "structuredContent": {"a": 1}, "isError": false})
        );
    }
}
