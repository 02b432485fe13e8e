//! How tasks end by somebody's word: cancelled, or brought back by an agent outside; and how those are told that failed for good. Deliberately absent: the ends of
//! what the house does itself (`supervisor::tasks`).

use super::{MAX_TEXT, find, keep};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::{AgentName, StackName, TaskId};
use crate::model::task::{Task, TaskState};
use crate::redact;
use crate::store::approval::ApprovalState;
use crate::store::task::{Cancelled, TaskChange};
use chrono::{DateTime, Utc};
use serde_json::json;

/// Cancels a task: one at work stops after its call.
///
/// # Errors
/// `NotFound`, `Conflict` when it has ended.
pub async fn cancel(house: &House, id: &TaskId, now: DateTime<Utc>) -> Result<Task, CallError> {
    find(house, id).await?;
    match house.store.task_cancel(id, now).await? {
        Cancelled::Ended(task) => {
            house.desk.settled();
            withdraw(house, &task, now).await?;
            Ok(*task)
        }
        Cancelled::Asked(task) => {
            house.desk.stop(id);
            Ok(*task)
        }
        Cancelled::TooLate(task) => {
            let message = format!("task {id} has ended: it is {}", task.state.as_str());
            Err(CallError::new(ErrorCode::Conflict, message, "call `tasks` with the task_id to see what came of it"))
        }
    }
}

/// What a cancelled task waited for is not to be let through any more, unless another task waits for the same.
async fn withdraw(house: &House, task: &Task, now: DateTime<Utc>) -> Result<(), CallError> {
    let Some(id) = &task.waits_for else { return Ok(()) };
    let others = house.store.tasks(None, Some(TaskState::WaitingApproval), 10_000).await?;
    let open = house.store.approval(id, now).await?.filter(|a| matches!(a.state, ApprovalState::Pending | ApprovalState::Approved));
    if open.is_some() && !others.iter().any(|t| t.waits_for.as_ref() == Some(id)) {
        house.store.set_approval_state(id, ApprovalState::Stale).await?;
    }
    Ok(())
}

/// A task that failed for good is in the audit log, where people look; of any other nothing is said.
pub async fn tell(house: &House, task: &Task, now: DateTime<Utc>) {
    if task.state != TaskState::Failed {
        return;
    }
    let why = redact::line(task.result.as_deref().unwrap_or_default(), 300);
    tracing::warn!(task = %task.id, agent = %task.agent, why, "a task failed for good");
    let detail = json!({"task": task.id, "origin": task.origin, "tries": task.attempt, "why": why});
    let stack = task.stack.as_ref().map(StackName::as_str);
    if let Err(e) = house.store.audit_event(task.agent.as_str(), "task_failed", stack, &detail, now).await {
        tracing::error!(task = %task.id, error = %e, "the failure could not be recorded");
    }
}

/// The end of a task that an agent outside had.
///
/// # Errors
/// As [`keep`].
pub async fn finish(
    house: &House,
    agent: &AgentName,
    id: &TaskId,
    end: (TaskState, String),
    now: DateTime<Utc>,
) -> Result<Task, CallError> {
    keep(house, agent, id, now).await?;
    let (state, result) = (end.0, redact::keep_start(&redact::mask(&redact::clean(&end.1)), MAX_TEXT).to_owned());
    let ended = house.store.task_change(id, TaskChange::End(state, result), now).await?;
    let ended = ended.ok_or_else(|| CallError::new(ErrorCode::Conflict, format!("task {id} had ended"), "fetch the next one"))?;
    house.desk.returned(&ended);
    house.desk.settled();
    tell(house, &ended, now).await;
    Ok(ended)
}
