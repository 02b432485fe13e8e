//! `audit`: rows of the audit log, newest first. What others wrote into a call (arguments, reasons) is in an untrusted envelope.

use super::logs::moment;
use super::status::Format;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::plan::Plan;
use crate::model::verdict::Verdict;
use crate::redact::{self, Untrusted};
use crate::store::audit::{AuditQuery, AuditRow};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Rows when the caller does not say.
const LIMIT: usize = 50;
/// Most rows of a reply.
const MAX_LIMIT: usize = 200;
/// Bytes of what a concise row is about.
const BRIEF: usize = 200;
/// Most bytes of details in a reply.
const MAX_BYTES: usize = 48_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Agent.
    agent: Option<String>,
    /// Tool.
    tool: Option<String>,
    /// Stack.
    stack: Option<String>,
    /// Verdict.
    verdict: Option<Verdict>,
    /// `ok`, `error`, `denied`, `pending_approval` or `unknown`.
    outcome: Option<String>,
    /// Not before: RFC 3339, or an age like `2h`.
    since: Option<String>,
    /// Before.
    until: Option<String>,
    /// `next_cursor` of the reply before, for older rows.
    cursor: Option<String>,
    /// Rows; 50 by default, 200 at most.
    limit: Option<usize>,
    /// `detailed` gives arguments, findings and outcome in full, and hashes.
    #[serde(default)]
    response_format: Format,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Row {
    seq: i64,
    at: DateTime<Utc>,
    kind: String,
    call: String,
    agent: String,
    door: String,
    tool: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Untrusted>,
    /// First 12 characters of the row's hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    rows: Vec<Row>,
    /// Pass as `cursor` for older rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

pub(super) struct Audit;

impl Verb for Audit {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "audit",
        title: "Read the audit log",
        description: "Who called what on which stack, what the gate said and how it ended; newest first, with filters. The log is append-only and hash-chained.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, _: &Input) -> Result<Scope, CallError> {
        Ok(Scope::default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let before_seq = input.cursor.as_deref().map(cursor).transpose()?;
        let limit = input.limit.unwrap_or(LIMIT).clamp(1, MAX_LIMIT);
        let query = AuditQuery {
            agent: input.agent,
            tool: input.tool,
            stack: input.stack,
            verdict: input.verdict,
            outcome: input.outcome,
            since: input.since.as_deref().map(|s| moment(s, call.now)).transpose()?,
            until: input.until.as_deref().map(|s| moment(s, call.now).map_err(|e| e.field("until"))).transpose()?,
            before_seq,
            // One more than asked for tells whether there are older ones.
            limit: limit + 1,
        };
        let found = call.house.store.audit_rows(&query).await?;
        let all = found.len();
        let mut used = 0;
        let rows: Vec<Row> = found
            .into_iter()
            .take(limit)
            .map(|r| row(r, input.response_format))
            .take_while(|r| {
                used += r.detail.as_ref().map_or(0, |d| d.text.len()) + 300;
                used <= MAX_BYTES
            })
            .collect();
        let next_cursor = rows.last().filter(|_| rows.len() < all).map(|r| r.seq.to_string());
        Ok(Output { rows, next_cursor })
    }

    fn text(o: &Output) -> Option<String> {
        let mut out = String::new();
        for r in &o.rows {
            let stack = r.stack.as_deref().unwrap_or("-");
            let outcome = r.outcome.as_deref().unwrap_or("-");
            out.push_str(&format!(
                "{} {} {} {} {} {stack} {} {outcome}\n",
                r.seq,
                r.at.format("%Y-%m-%dT%H:%M:%SZ"),
                r.kind,
                r.agent,
                r.tool,
                r.verdict.as_str()
            ));
        }
        if let Some(next) = &o.next_cursor {
            out.push_str(&format!("(older rows: cursor {next})"));
        }
        Some(if out.is_empty() { "no rows".into() } else { out.trim_end().to_owned() })
    }
}

fn cursor(text: &str) -> Result<i64, CallError> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
        CallError::new(
            ErrorCode::InvalidArgument,
            format!("{:?} is no cursor", redact::line(text, 64)),
            "pass next_cursor of the reply before",
        )
        .field("cursor")
    })
}

/// What a row is about, in a line: arguments, the code of an error, what came of it.
fn brief(detail: &Value) -> Option<String> {
    let empty = |v: &&Value| v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
    // An event of the supervisor's own has no call: all of it is what it is about.
    let event = detail.get("arguments").is_none() && detail.get("findings").is_none();
    let about = if event { [detail, &Value::Null, &Value::Null] } else { ["arguments", "code", "detail"].map(|key| &detail[key]) };
    let parts = about.map(|v| Some(v).filter(|v| !empty(v)));
    let text = parts.into_iter().flatten().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then(|| redact::line(&text, BRIEF))
}

fn row(r: AuditRow, format: Format) -> Row {
    let whole = format == Format::Detailed;
    Row {
        detail: if whole { Some(r.detail.to_string()) } else { brief(&r.detail) }
            .map(|text| redact::envelope(format!("audit:{}", r.seq), &text, 1_500)),
        hash: whole.then(|| redact::keep_start(&r.hash, 12).to_owned()),
        seq: r.seq,
        at: r.at,
        kind: r.kind,
        call: r.call,
        agent: r.agent,
        door: r.door,
        tool: r.tool,
        stack: r.stack,
        environment: r.environment,
        verdict: r.verdict,
        outcome: r.outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_concise_row_says_what_it_is_about_in_a_line() {
        let read = json!({"arguments": {"service": "web"}, "code": null, "detail": {}, "duration_ms": 3, "findings": []});
        assert_eq!(brief(&read).as_deref(), Some(r#"{"service":"web"}"#));
        let failed = json!({"code": "denied", "detail": {"message": "no"}, "findings": []});
        assert_eq!(brief(&failed).as_deref(), Some(r#"denied {"message":"no"}"#));
        assert_eq!(brief(&json!({"service": "web"})).as_deref(), Some(r#"{"service":"web"}"#), "an event");
        assert_eq!(brief(&json!({"arguments": {}, "findings": []})), None);
        assert!(brief(&json!({"arguments": {"a": "x".repeat(900)}})).is_some_and(|b| b.len() <= BRIEF));
    }
}
