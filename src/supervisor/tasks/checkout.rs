//! Before a task that a signed push set off is done, the checkout of its stack is brought to what was pushed, where its registration says `git`: the operator's
//! word in dockwarden.toml, and the request's signature, are the right to it. What is to change is in the audit log before it changes, and what came of it after.
//! Deliberately absent: any way for an agent to ask for it.

use super::tasks::stack_of;
use crate::call::{House, compose_files};
use crate::executor::checkout::{Checkout, CheckoutError, LIMIT};
use crate::model::task::{Task, TaskEnd};
use crate::redact;
use crate::store::StoreError;
use chrono::Utc;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Who it is in the audit log: no agent did it.
const ACTOR: &str = "supervisor";

/// Brings the checkout forward, if this task is to.
pub(super) async fn follow(house: &Arc<House>, task: &Task, stop: &CancellationToken) -> Result<(), TaskEnd> {
    let Some(pushed) = &task.pushed else { return Ok(()) };
    let Some(stack) = stack_of(&task.stack, &task.input) else { return Ok(()) };
    let Some(entry) = house.config.settings.stacks.get(&stack) else { return Ok(()) };
    let Some(git) = &entry.git else { return Ok(()) };
    if *pushed != git.reference() {
        let pushed = redact::line(pushed, 120);
        return Err(TaskEnd::Failed(format!(
            "{pushed:?} was pushed, and stack {stack} follows {}: set `refs` of the trigger",
            git.reference()
        )));
    }
    // A task that goes on has planned already: a newer commit is the next push's.
    let begun = !house.store.task_steps(&task.id).await.map_err(again)?.is_empty();
    if begun || !house.store.turns(&task.id).await.map_err(again)?.is_empty() {
        return Ok(());
    }
    let Some(dir) = compose_files::visible(&house.config, &entry.dir) else {
        let hint = "mount it into the supervisor's container at the same path (STACK_ROOTS), writable";
        return Err(TaskEnd::Failed(format!("the checkout {} cannot be seen: {hint}", entry.dir.display())));
    };
    let checkout = Checkout { dir: &dir, remote: &git.remote, branch: &git.branch, limit: LIMIT };
    let event = async |what: &str, more: Value| {
        let mut detail = json!({"task": task.id, "branch": git.branch, "remote": git.remote});
        detail.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        house.store.audit_event(ACTOR, what, Some(stack.as_str()), &detail, Utc::now()).await.map(drop).map_err(again)
    };
    let fetched = tokio::select! {
        fetched = checkout.fetch() => fetched,
        () = stop.cancelled() => return Err(TaskEnd::Cancelled),
    };
    let step = match fetched {
        Ok(Some(step)) => step,
        Ok(None) => return Ok(()),
        Err(e) => {
            event("checkout_refused", json!({"why": redact::line(&e.to_string(), 400)})).await?;
            return Err(end(&e));
        }
    };
    // From here on it is done to its end: half of a step is neither the old files nor the new ones.
    if stop.is_cancelled() {
        return Err(TaskEnd::Cancelled);
    }
    event("checkout_moves", json!({"from": step.from, "to": step.to})).await?;
    match checkout.advance(&step).await {
        Ok(()) => event("checkout_moved", json!({"from": step.from, "to": step.to})).await,
        Err(e) => {
            event("checkout_refused", json!({"from": step.from, "to": step.to, "why": redact::line(&e.to_string(), 400)})).await?;
            Err(end(&e))
        }
    }
}

fn again(e: StoreError) -> TaskEnd {
    TaskEnd::Retry(e.to_string())
}

fn end(e: &CheckoutError) -> TaskEnd {
    let why = redact::line(&e.to_string(), 500);
    if e.passes() { TaskEnd::Retry(why) } else { TaskEnd::Failed(why) }
}
