//! `notifications/message` for a caller's own calls, where it asked for them: by `logging/setLevel` in the earlier era, by the log level of a request in the
//! newer one, where the protocol is giving them up. Nothing is told that the call's reply and its progress do not say.
//! Deliberately absent: the supervisor's own log, and anything of another caller's.
#![expect(deprecated, reason = "the protocol gives logging up (SEP-2577); clients of the earlier era have nothing else")]

use super::subscribe::Session;
use crate::call::CallError;
use crate::call::dispatch::Reply;
use crate::redact;
use rmcp::model::{LoggingLevel, LoggingMessageNotificationParam};
use rmcp::service::RequestContext;
use rmcp::{Peer, RoleServer};
use serde_json::{Value, json};

/// Most findings told of one call.
const MOST: usize = 20;
/// Longest text of one message, in bytes.
const MAX_TEXT: usize = 500;

/// Where the notes of one call go.
#[derive(Debug)]
pub struct Notes {
    peer: Peer<RoleServer>,
    tool: String,
    /// The least rank that is told.
    least: u8,
}

impl Notes {
    /// Of a call of this request.
    pub fn of(session: &Session, context: &RequestContext<RoleServer>, tool: &str) -> Self {
        let least = context.meta.log_level().map_or_else(|| session.least(), rank);
        Self { peer: context.peer.clone(), tool: redact::line(tool, 64), least }
    }

    /// Whether the lines of progress are told.
    pub fn follows_progress(&self) -> bool {
        self.tells(LoggingLevel::Info)
    }

    /// A line of progress.
    pub async fn progress(&self, percent: f64, text: &str) {
        self.say(LoggingLevel::Info, json!({"progress": percent, "message": redact::line(text, MAX_TEXT)})).await;
    }

    /// What the gate held against the call, and its failure.
    pub async fn outcome(&self, result: &Result<Reply, CallError>) {
        if !self.tells(LoggingLevel::Warning) && !self.tells(LoggingLevel::Error) {
            return;
        }
        let findings = match result {
            Ok(reply) => reply.value["findings"].as_array().cloned().unwrap_or_default(),
            Err(error) => error.findings.iter().map(|f| json!(f)).collect(),
        };
        for finding in findings.iter().take(MOST) {
            self.say(LoggingLevel::Warning, noted(finding)).await;
        }
        if let Err(error) = result {
            let message = redact::line(&error.message, MAX_TEXT);
            self.say(LoggingLevel::Error, json!({"code": error.code, "message": message, "hint": redact::line(&error.hint, MAX_TEXT)}))
                .await;
        }
    }

    fn tells(&self, level: LoggingLevel) -> bool {
        rank(level) >= self.least
    }

    async fn say(&self, level: LoggingLevel, data: Value) {
        if !self.tells(level) {
            return;
        }
        let message = LoggingMessageNotificationParam::new(level, data).with_logger(&self.tool);
        if let Err(e) = self.peer.notify_logging_message(message).await {
            tracing::debug!(error = %e, "a note was not taken");
        }
    }
}

/// A finding as it is told, bounded.
fn noted(finding: &Value) -> Value {
    let text = |key: &str| finding[key].as_str().map(|text| redact::line(text, MAX_TEXT));
    let mut noted = json!({"rule": text("rule"), "verdict": text("verdict"), "message": text("because")});
    if let Some(service) = text("service") {
        noted["service"] = service.into();
    }
    noted
}

/// Levels in the order of RFC 5424, least first.
pub fn rank(level: LoggingLevel) -> u8 {
    match level {
        LoggingLevel::Debug => 0,
        LoggingLevel::Info => 1,
        LoggingLevel::Notice => 2,
        LoggingLevel::Warning => 3,
        LoggingLevel::Error => 4,
        LoggingLevel::Critical => 5,
        LoggingLevel::Alert => 6,
        LoggingLevel::Emergency => 7,
    }
}
