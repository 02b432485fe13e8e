//! stub: the audit log
use super::{Store, StoreResult};
use crate::gate::RateLimit;
use crate::model::ids::*;
use crate::model::verdict::{Finding, Verdict};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A row to be written when a call begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    /// Call.
    pub call: CallId,
    /// Agent.
    pub agent: String,
    /// Door: `mcp-stdio`, `mcp-http`, `cli`, `loop`.
    pub door: String,
    /// Tool.
    pub tool: String,
    /// Stack.
    pub stack: Option<String>,
    /// Environment.
    pub environment: Option<String>,
    /// Arguments, already redacted.
    pub arguments: Value,
    /// Verdict of the call gate.
    pub verdict: Verdict,
    /// Findings behind it.
    pub findings: Vec<Finding>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What came of recording an intent.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// Written and durable.
    Ok {
        /// Its number.
        seq: i64,
    },
    /// A limit was reached: a denial was written instead.
    Limited {
        /// Its number.
        seq: i64,
        /// Limit that stood in the way.
        limit: RateLimit,
        /// Seconds until a call fits again.
        retry_after_s: u64,
    },
}

/// How a call ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Call.
    pub call: CallId,
    /// `ok`, `error`, `denied`, `pending_approval`, `unknown`.
    pub outcome: String,
    /// Error code, when there is one.
    pub code: Option<String>,
    /// Strictest verdict at the end.
    pub verdict: Verdict,
    /// Findings of the plan gate.
    pub findings: Vec<Finding>,
    /// Operation, digest, approval, release, redacted summary.
    pub detail: Value,
    /// How long, ms.
    pub duration_ms: u64,
    /// When.
    pub at: DateTime<Utc>,
}

/// One row as read back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct AuditRow {
    /// Number, from 1 without gaps.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// `intent`, `outcome`, `read`, `event`.
    pub kind: String,
    /// Call.
    pub call: String,
    /// Agent.
    pub agent: String,
    /// Door.
    pub door: String,
    /// Tool.
    pub tool: String,
    /// Stack.
    pub stack: Option<String>,
    /// Environment.
    pub environment: Option<String>,
    /// Verdict.
    pub verdict: Verdict,
    /// Outcome.
    pub outcome: Option<String>,
    /// The rest: arguments, findings, detail.
    pub detail: Value,
    /// Hash of the row, hexadecimal.
    pub hash: String,
}

/// Filter of a query.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// Agent.
    pub agent: Option<String>,
    /// Tool.
    pub tool: Option<String>,
    /// Stack.
    pub stack: Option<String>,
    /// Verdict.
    pub verdict: Option<Verdict>,
    /// Outcome.
    pub outcome: Option<String>,
    /// Not before.
    pub since: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
    /// Rows with a smaller number than this (newest first paging).
    pub before_seq: Option<i64>,
    /// Most rows.
    pub limit: usize,
}

/// Result of `audit verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Rows checked.
    pub rows: i64,
    /// Hash of the last row.
    pub head: String,
    /// Checkpoints checked.
    pub checkpoints: usize,
    /// What is wrong, in words with row numbers; empty = intact.
    pub problems: Vec<String>,
}

impl Store {
    /// Writes a mutation's intent and counts it against `limits` in one transaction, durable on return.
    pub async fn audit_intent(&self, _intent: &Intent, _limits: &[RateLimit]) -> StoreResult<Recorded> {
        todo!()
    }
    /// Writes a read's (or a denied call's) single row, counted like an intent, durable on return.
    pub async fn audit_read(&self, _intent: &Intent, _outcome: &Outcome, _limits: &[RateLimit]) -> StoreResult<Recorded> {
        todo!()
    }
    /// Writes a mutation's outcome, durable on return.
    pub async fn audit_outcome(&self, _outcome: &Outcome) -> StoreResult<i64> {
        todo!()
    }
    /// Writes an event that is not a call (policy reloaded, loop gave up, approval given).
    pub async fn audit_event(&self, _agent: &str, _what: &str, _stack: Option<&str>, _detail: &Value, _now: DateTime<Utc>) -> StoreResult<i64> {
        todo!()
    }
    /// Rows, newest first.
    pub async fn audit_rows(&self, _query: &AuditQuery) -> StoreResult<Vec<AuditRow>> {
        todo!()
    }
    /// Closes intents without outcome as `unknown`; returns how many. `live` = calls still running.
    pub async fn audit_close_orphans(&self, _live: &[CallId], _now: DateTime<Utc>) -> StoreResult<usize> {
        todo!()
    }
    /// Checks chain, numbers, triggers and checkpoints.
    pub async fn audit_verify(&self) -> StoreResult<AuditReport> {
        todo!()
    }
    /// Writes a signed checkpoint of the head to `checkpoints` under the home.
    pub async fn audit_checkpoint(&self, _now: DateTime<Utc>) -> StoreResult<()> {
        todo!()
    }
}
