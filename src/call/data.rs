//! From a permitted backup or restore to its reply: hands the job to the executor, waits with progress as asked, reads what came of it from the journal.
//! The operation goes on whatever happens to the caller. Deliberately absent: which volumes, and any step.

use super::error::ErrorCode;
use super::run::{self, Waiting};
use super::{Call, CallError};
use crate::executor::backup::{DataJob, DataResult, INSTANCE};
use crate::executor::{Request, Until};
use crate::gate::Permit;
use crate::model::ids::{OperationId, StackName};
use crate::model::operation::{Operation, OperationState};
use crate::model::plan::Plan;
use crate::redact::{self, Untrusted};
use crate::store::backup::BackupRecord;
use chrono::Utc;
use schemars::JsonSchema;
use serde::Serialize;

/// Refuses a snapshot of a supervisor's own databases and keys, this one's or another's: no tool hands them out.
///
/// # Errors
/// `Denied`, with the command that brings an instance back.
pub fn not_the_houses(record: &BackupRecord) -> Result<(), CallError> {
    if record.volume != INSTANCE {
        return Ok(());
    }
    let message =
        format!("snapshot {} holds a supervisor's own databases and keys, which are off limits to every tool", record.snapshot_id);
    let hint = "an operator brings an instance back at the terminal: `dockwarden restore --bootstrap`";
    Err(CallError::new(ErrorCode::Denied, message, hint).field("snapshot_id"))
}

/// Where a backup or restore stands.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct DataView {
    /// For `operation` and `cancel`.
    pub operation_id: OperationId,
    /// State.
    pub state: OperationState,
    /// From acceptance to its end, or until now.
    pub duration_ms: u64,
    /// Why it ended as it did, or what comes next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the engine said, where that is why.
    // Not in the schema: every client pays for it, and few operations have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub engine: Option<Untrusted>,
}

impl DataView {
    fn of(operation: &Operation) -> Self {
        let end = operation.settled_at.unwrap_or_else(Utc::now);
        let waits = matches!(operation.state, OperationState::Queued | OperationState::Running);
        let next = waits.then(|| format!("still at work: call `operation` with {} and wait_s", operation.id));
        let (ended, engine) = operation.message.as_deref().map(|m| run::said("engine", m, 500)).unzip();
        Self {
            operation_id: operation.id.clone(),
            state: operation.state,
            duration_ms: u64::try_from((end - operation.created_at).num_milliseconds()).unwrap_or_default(),
            message: ended.or(next),
            engine: engine.flatten(),
        }
    }

    /// One line: verb, state, how long, and what there is to say.
    pub fn line(&self, verb: &str) -> String {
        let message = self.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
        let engine = self.engine.as_ref().map(|e| format!("\n[untrusted, {}]\n{}", e.source, e.text)).unwrap_or_default();
        format!("{verb}: {} in {} ms ({}){message}{engine}", self.state.as_str(), self.duration_ms, self.operation_id)
    }
}

/// Runs a permitted job and waits as asked.
///
/// # Errors
/// `Busy`, and those of engine and store.
pub async fn execute(
    call: &Call,
    verb: &str,
    stack: Option<StackName>,
    job: DataJob,
    permit: Permit,
    waiting: Waiting,
    arguments: &serde_json::Value,
) -> Result<(DataView, DataResult), CallError> {
    let request = Request {
        verb: verb.to_owned(),
        agent: call.who.agent.to_string(),
        call: call.id.clone(),
        idempotency_key: waiting.idempotency_key.clone(),
        args_hash: run::args_hash(call, arguments),
        reason: waiting.reason.as_deref().map(|r| redact::line(r, 500)),
        approval: call.approved_by.get().cloned(),
    };
    let operation = call.house.executor.submit_data(stack, job, permit, request).await.map_err(run::executor_error)?;
    tracing::info!(operation = %operation.id, verb, "operation accepted");
    call.accepted(&operation.id);
    waited(call, operation, &waiting).await
}

/// Runs a permitted plan that swaps data, and waits as asked.
///
/// # Errors
/// `Busy`, `StalePlan`, and those of engine and store.
pub async fn execute_plan(
    call: &Call,
    verb: &str,
    plan: Plan,
    permit: Permit,
    waiting: Waiting,
    arguments: &serde_json::Value,
) -> Result<(DataView, DataResult), CallError> {
    let operation = run::submit(call, verb, plan, permit, &waiting, arguments).await?;
    waited(call, operation, &waiting).await
}

/// An earlier call's operation, waited for like a new one.
///
/// # Errors
/// The executor's and the store's.
pub async fn replay(call: &Call, operation: Operation, waiting: &Waiting) -> Result<(DataView, DataResult), CallError> {
    waited(call, operation, waiting).await
}

async fn waited(call: &Call, operation: Operation, waiting: &Waiting) -> Result<(DataView, DataResult), CallError> {
    // What an operator approved starts and is polled: nobody waits at this call.
    let operation = if waiting.wait.unwrap_or(true) && call.resumes.is_none() {
        run::wait(call, operation.id, waiting.timeout_s, Until::Ended).await?
    } else {
        operation
    };
    let done = result(call, &operation.id).await?;
    Ok((DataView::of(&operation), done))
}

/// What an operation did with data so far.
///
/// # Errors
/// The store's.
pub async fn result(call: &Call, id: &OperationId) -> Result<DataResult, CallError> {
    Ok(DataResult::of(&call.house.store.steps(id).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::dispatch::tests::bench_of;
    use serde_json::json;

    const KEEPER: &str = "---
name: keeper
description: Restores.
tools: restore, verify_backup, export
model: inherit
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: any, effect: allow, tools: [restore, verify_backup, export], because: \"it restores whatever it likes\"}
---
Keep them.
";

    #[tokio::test]
    async fn the_supervisors_own_snapshot_is_given_out_by_no_tool() {
        let b = bench_of(KEEPER).await;
        let record = BackupRecord {
            snapshot_id: "a".repeat(64),
            stack: None,
            volume: INSTANCE.to_owned(),
            bytes: 1,
            added: 1,
            files: 1,
            state: "complete".to_owned(),
            at: Utc::now() - chrono::TimeDelta::hours(1),
            agent: "warden".to_owned(),
            release: None,
            tags: vec![],
            operation: None,
            copies: vec![],
        };
        b.house.store.put_backup(&record).await.unwrap();
        let id = json!({"snapshot_id": record.snapshot_id});
        let into = json!({"snapshot_id": record.snapshot_id, "into": "dockwarden.instance-restored-x"});
        let by_name = json!({"volume": INSTANCE, "at": Utc::now().to_rfc3339()});
        for (tool, input) in
            [("restore", id.clone()), ("restore", into), ("restore", by_name), ("verify_backup", id.clone()), ("export", id)]
        {
            let refused = b.call(tool, input.clone()).await.expect_err(tool);
            assert!(refused.code == ErrorCode::Denied && refused.message.contains("own databases and keys"), "{tool} {input}: {refused}");
        }
        let shop = BackupRecord { volume: "shop_data".to_owned(), ..record };
        assert!(not_the_houses(&shop).is_ok());
    }
}
