//! `operation`: where an operation stands, waiting for it when asked to; without an id the newest ones.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::{self, Scope};
use crate::call::run::{self, OperationView};
use crate::call::{Call, CallError, data};
use crate::executor::Until;
use crate::executor::backup::export::Exported;
use crate::executor::backup::{DataResult, Forgotten};
use crate::executor::restore::RestoreOutcome;
use crate::gate::Permit;
use crate::model::ids::{OperationId, StackName};
use crate::model::operation::{Operation, OperationState};
use crate::model::plan::Plan;
use crate::redact;
use crate::store::backup::copies::CopyRecord;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One; else the newest are listed.
    operation_id: Option<OperationId>,
    /// Wait so many seconds for it to settle, 55 at most.
    wait_s: Option<u64>,
    /// Of this stack.
    stack: Option<StackName>,
    /// In this state.
    state: Option<String>,
    /// 20 by default, 200 at most.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Operations listed when the caller does not say how many, and at most.
const LISTED: usize = 20;
const MOST: usize = 200;

/// One line of the list.
#[derive(Debug, Serialize)]
struct Listed {
    operation_id: OperationId,
    verb: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<StackName>,
    state: OperationState,
    agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<u32>,
    at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    /// Why it ended so, where it did not end well.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    #[serde(flatten)]
    view: Option<OperationView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Row>>")]
    operations: Option<Vec<Listed>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    // The rest is not in the schema: every client pays for it, and few verbs give these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    snapshots: Vec<BackupRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    restored: Vec<RestoreOutcome>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    copies: Vec<CopyRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    drills: Vec<DrillRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    checks: Vec<CheckRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    exports: Vec<Exported>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    forgotten: Option<Forgotten>,
}

pub(super) struct Follow;

impl Verb for Follow {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "operation",
        title: "Follow an operation",
        description: "State, phase, services and evidence of one operation, or the newest ones. States: queued, running, monitoring (serves, watched), done, rolled_back (failed and undone), failed, cancelled, needs_attention (a person must look).",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let Some(id) = &input.operation_id else { return Ok(input.stack.as_ref().map(Scope::stack).unwrap_or_default()) };
        let operation = facts::operation(call, id).await?;
        Ok(operation.stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let Some(id) = input.operation_id else { return list(call, input).await };
        if input.stack.is_some() || input.state.is_some() || input.limit.is_some() || input.cursor.is_some() {
            let hint = "leave out operation_id for a list, or stack, state, limit and cursor for one operation";
            return Err(CallError::new(ErrorCode::InvalidArgument, "operation_id names one operation, the rest narrows a list", hint)
                .field("operation_id"));
        }
        let operation = match input.wait_s.unwrap_or(0) {
            0 => facts::operation(call, &id).await?,
            seconds => run::wait(call, id, Some(seconds), Until::Ended).await?,
        };
        let DataResult { snapshots, restored, drills, checks, exports, copies, forgotten } = data::result(call, &operation.id).await?;
        let view = Some(run::view(call, operation).await?);
        Ok(Output { view, operations: None, next_cursor: None, snapshots, restored, drills, checks, exports, copies, forgotten })
    }

    fn text(output: &Output) -> Option<String> {
        let Some(view) = &output.view else { return Some(listed(output)) };
        let mut text = run::text(view);
        for s in &output.snapshots {
            text.push_str(&format!("\nsnapshot {} of {}: {} bytes, {} files, {}", s.snapshot_id, s.volume, s.bytes, s.files, s.state));
        }
        for r in &output.restored {
            let verified = if r.verified { "verified" } else { "NOT equal to the snapshot" };
            text.push_str(&format!(
                "\nrestored {} of {} into {}: {} files, {} bytes, {verified}",
                r.snapshot_id, r.source, r.volume, r.files, r.bytes
            ));
        }
        if let Some(f) = &output.forgotten {
            text.push_str(&format!("\nremoved {} snapshots by plan {}: {}", f.snapshots.len(), f.digest, f.snapshots.join(", ")));
        }
        Some(text)
    }
}

/// Newest first, a page of them.
async fn list(call: &Call, input: Input) -> Result<Output, CallError> {
    if input.wait_s.is_some() {
        return Err(
            CallError::new(ErrorCode::InvalidArgument, "only one operation can be waited for", "name its operation_id").field("wait_s")
        );
    }
    let state = input.state.as_deref().map(state).transpose()?;
    let after = match input.cursor.as_deref() {
        Some(text) => Some(cursor(call, text).await?),
        None => None,
    };
    let most = input.limit.unwrap_or(LISTED).clamp(1, MOST);
    let mut found = call.house.store.operations_page(input.stack.as_ref(), state, after.as_ref(), most + 1).await?;
    let more = found.len() > most;
    found.truncate(most);
    let next_cursor = found.last().filter(|_| more).map(|o| o.id.to_string());
    let row = |o: Operation| {
        let bad = !matches!(o.state, OperationState::Done | OperationState::Monitoring | OperationState::Queued | OperationState::Running);
        Listed {
            duration_ms: o.settled_at.map(|end| run::millis(end - o.created_at)),
            message: o.message.as_deref().filter(|_| bad).map(|m| run::said("engine", m, 200).0),
            operation_id: o.id,
            verb: o.verb,
            stack: o.stack,
            state: o.state,
            agent: o.agent,
            release: o.release,
            at: o.created_at,
        }
    };
    let operations = Some(found.into_iter().map(row).collect());
    Ok(Output {
        view: None,
        operations,
        next_cursor,
        snapshots: vec![],
        restored: vec![],
        drills: vec![],
        checks: vec![],
        exports: vec![],
        copies: vec![],
        forgotten: None,
    })
}

fn state(word: &str) -> Result<OperationState, CallError> {
    serde_json::from_value(serde_json::json!(word)).map_err(|_| {
        let hint = "queued, running, monitoring, done, rolled_back, failed, cancelled or needs_attention";
        CallError::new(ErrorCode::InvalidArgument, format!("{:?} is no state of an operation", redact::line(word, 40)), hint).field("state")
    })
}

/// The last operation of the page before.
async fn cursor(call: &Call, text: &str) -> Result<OperationId, CallError> {
    let unknown = || {
        let message = format!("{:?} is no cursor", redact::line(text, 64));
        CallError::new(ErrorCode::InvalidArgument, message, "pass next_cursor of the reply before").field("cursor")
    };
    let id = OperationId::new(text).map_err(|_| unknown())?;
    call.house.store.operation(&id).await?.ok_or_else(unknown).map(|o| o.id)
}

fn listed(output: &Output) -> String {
    let line = |o: &Listed| {
        let stack = o.stack.as_ref().map(|s| format!(" {s}")).unwrap_or_default();
        let why = o.message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
        format!("{} {}{stack} {} {} by {}{why}", o.operation_id, o.verb, o.state.as_str(), o.at.format("%Y-%m-%d %H:%M"), o.agent)
    };
    let operations = output.operations.as_deref().unwrap_or_default();
    let mut lines: Vec<String> = operations.iter().map(line).collect();
    if lines.is_empty() {
        lines.push("no operations".into());
    }
    lines.extend(output.next_cursor.as_ref().map(|next| format!("(older ones: cursor {next})")));
    lines.join("\n")
}
