//! The worker of the queue: claims what is due, one task per agent, does it as its agent and records how it ended. Woken when something comes in or
//! ends. Deliberately absent: any right of its own: each call of a task takes the line as the task's agent, on behalf of who gave it.

mod approved;
mod checkout;
pub mod outside;
mod runbook;

use crate::call::approval::{Came, came_of};
use crate::call::{Door, House, Principal, tasks};
use crate::model::ids::ApprovalId;
use crate::model::prompt::Retry;
use crate::model::task::{Task, TaskEnd, TaskState, TaskWork};
use crate::runner;
use crate::store::approval::ApprovalState;
use crate::store::task::TaskChange;
use crate::store::{StoreError, StoreResult};
use approved::Starts;
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A task interrupted so often takes the supervisor down with it, or runs too long to ever end: it is given up.
const INTERRUPTED_MOST: u32 = 10;
/// Pause between looks at what waits for a human, and at leases.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause between removals of what ended long ago.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// Longest pause between two tries.
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(1);
/// Pause before a change of state that could not be written is tried again.
const UNWRITTEN: Duration = Duration::from_secs(1);

/// Runs until `shutdown`; what is at work then stops after its call and is taken up by the next supervisor.
pub async fn run(house: Arc<House>, shutdown: CancellationToken) {
    // Nothing is claimed before: what counts as at work keeps its agent from its next task.
    while !take_over(&house).await {
        if tokio::time::timeout(UNWRITTEN, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
    let (at_work, mut starts) = (TaskTracker::new(), Starts::default());
    let (mut look, mut forget) = (tokio::time::interval(LOOK_EVERY), tokio::time::interval(FORGET_EVERY));
    for ticker in [&mut look, &mut forget] {
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    }
    loop {
        let next = claim(&house, &at_work, &shutdown).await.unwrap_or_else(|e| {
            tracing::error!(error = %e, "the queue of tasks could not be read");
            None
        });
        // Only what the clock brings must be waited for; everything else wakes the desk.
        let due = next.map(|at| (at - Utc::now()).to_std().unwrap_or_default().max(Duration::from_millis(1)));
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = house.desk.work.notified() => {}
            () = async { match due { Some(d) => tokio::time::sleep(d).await, None => std::future::pending().await } } => {}
            _ = look.tick() => look_after(&house, &mut starts, &at_work).await,
            _ = forget.tick() => match house.store.tasks_forget(Utc::now()).await {
                Ok(0) => {}
                Ok(gone) => tracing::info!(gone, "tasks that ended long ago were removed"),
                Err(e) => tracing::error!(error = %e, "old tasks could not be removed"),
            },
        }
    }
    at_work.close();
    at_work.wait().await;
}

/// Takes over what was at work when the supervisor ended; whether that could be written.
async fn take_over(house: &House) -> bool {
    match house.store.tasks_take_over(true, INTERRUPTED_MOST, Utc::now()).await {
        Ok(taken) if taken.is_empty() => true,
        Ok(taken) => {
            tracing::warn!(tasks = taken.len(), "tasks that were at work are taken over");
            for task in &taken {
                tasks::tell(house, task, Utc::now()).await;
            }
            true
        }
        Err(e) => {
            tracing::error!(error = %e, "interrupted tasks could not be taken over; it is tried again");
            false
        }
    }
}

/// Begins everything that is due; when the next task will be.
async fn claim(house: &Arc<House>, at_work: &TaskTracker, shutdown: &CancellationToken) -> StoreResult<Option<DateTime<Utc>>> {
    let settings = &house.config.settings.tasks;
    let most = settings.max_agents as usize;
    for task in house.store.task_claim(Utc::now(), most, None).await? {
        let (house, shutdown) = (house.clone(), shutdown.clone());
        at_work.spawn(async move { attempt(&house, task, &shutdown).await });
    }
    // Everything that was due is taken, unless there is no room: then the end of a task wakes us.
    let next = house.store.task_next_due().await?;
    Ok(next.filter(|at| *at > Utc::now()))
}

/// One try of a task, recorded.
async fn attempt(house: &Arc<House>, task: Task, shutdown: &CancellationToken) {
    let stop = house.desk.begins(&task.id, shutdown);
    // Who cancelled it after it was claimed found nothing to stop yet.
    match house.store.task_asked_to_stop(&task.id).await {
        Ok(true) => stop.cancel(),
        Ok(false) => {}
        Err(e) => tracing::error!(task = %task.id, error = %e, "whether a task was cancelled could not be read; it begins"),
    }
    let span = tracing::info_span!("task", task = %task.id, agent = %task.agent);
    let (inner, doing, stopping) = (house.clone(), task.clone(), stop.clone());
    let work = tokio::spawn(tracing::Instrument::instrument(async move { carry_out(&inner, &doing, &stopping).await }, span));
    let end = work.await.unwrap_or_else(|e| {
        tracing::error!(task = %task.id, error = %e, "a task ended abnormally");
        TaskEnd::Failed("the supervisor failed inside this task; see its log".into())
    });
    let now = Utc::now();
    let change = after(&task, end, retry(house, &task), shutdown.is_cancelled(), now);
    // Until it is written the task counts as at work, and its agent gets no other: a full disk must not outlive itself.
    let written = loop {
        match house.store.task_change(&task.id, change.clone(), now).await {
            Ok(written) => break written,
            Err(e) => tracing::error!(task = %task.id, error = %e, "the end of a task could not be recorded; it is tried again"),
        }
        if tokio::time::timeout(UNWRITTEN, shutdown.cancelled()).await.is_ok() {
            tracing::error!(task = %task.id, "the end of a task is not recorded; the next supervisor takes it over");
            return house.desk.ends(&task.id);
        }
    };
    match written {
        Some(ended) => tasks::tell(house, &ended, now).await,
        None => tracing::warn!(task = %task.id, "a task had ended before its work did"),
    }
    house.desk.ends(&task.id);
}

async fn carry_out(house: &Arc<House>, task: &Task, stop: &CancellationToken) -> TaskEnd {
    if !house.rulebook.load().agents.contains_key(task.agent.as_str()) {
        return TaskEnd::Failed(format!("there is no agent {} any more", task.agent));
    }
    if let Err(end) = checkout::follow(house, task, stop).await {
        return end;
    }
    if let TaskWork::Skill(name) = &task.work {
        let prompts = house.prompts.load_full();
        match tasks::skill(&prompts, name) {
            Err(e) => return TaskEnd::Failed(e.message),
            Ok(skill) if !skill.steps.is_empty() => return runbook::run(house, task, skill, stop).await,
            Ok(_) => {}
        }
    }
    runner::run(house, task, stop).await
}

/// Who makes the calls of a task.
fn principal(task: &Task) -> Principal {
    let client = Some(format!("task {}", task.id));
    Principal { agent: task.agent.clone(), door: Door::Task, client, read_only: false, on_behalf: task.delegated_by.clone() }
}

/// How often the task is tried: its skill's word, then its agent's, then the configuration's.
fn retry(house: &House, task: &Task) -> (u32, u32) {
    let own = match &task.work {
        TaskWork::Skill(name) => house.prompts.load().iter().find(|p| p.name == *name).map(|p| p.retry).unwrap_or_default(),
        TaskWork::Prompt(_) => Retry::default(),
    };
    let agent = house.rulebook.load().agents.get(task.agent.as_str()).and_then(|a| a.limits.task_tries);
    let settings = &house.config.settings.tasks;
    (own.tries.or(agent).unwrap_or(settings.tries), own.pause_s.unwrap_or(settings.retry_pause_s))
}

/// What the end of a try makes of its task. Pure.
fn after(task: &Task, end: TaskEnd, (tries, pause_s): (u32, u32), shutdown: bool, now: DateTime<Utc>) -> TaskChange {
    match end {
        TaskEnd::Succeeded(text) => TaskChange::End(TaskState::Succeeded, text),
        TaskEnd::Waiting(approval) => TaskChange::Wait(approval),
        TaskEnd::Failed(why) => TaskChange::End(TaskState::Failed, why),
        // An ending supervisor refuses what it is asked for: that is no fault of the task.
        TaskEnd::Cancelled | TaskEnd::Retry(_) if shutdown => {
            TaskChange::Again { due_at: task.due_at, counts: false, reason: "the supervisor ended; it goes on where it was".into() }
        }
        TaskEnd::Cancelled => TaskChange::End(TaskState::Cancelled, "stopped on request".into()),
        TaskEnd::Retry(why) if task.attempt >= tries => TaskChange::End(TaskState::Failed, format!("{why} (after {} tries)", task.attempt)),
        TaskEnd::Retry(why) => TaskChange::Again { due_at: now + pause(task.attempt, pause_s), counts: true, reason: why },
    }
}

/// The pause after a try: doubled each time, an hour at most.
fn pause(attempt: u32, pause_s: u32) -> TimeDelta {
    let doubled = i64::from(pause_s).saturating_mul(1_i64 << attempt.saturating_sub(1).min(20));
    TimeDelta::try_seconds(doubled).map_or(LONGEST_PAUSE, |d| d.min(LONGEST_PAUSE))
}

/// Tasks whose human has decided go on; leases that ran out end, also of agents that do not fetch their tasks any more.
async fn look_after(house: &Arc<House>, starts: &mut Starts, at_work: &TaskTracker) {
    match decided(house).await {
        Ok(given) => starts.again(house, at_work, &given),
        Err(e) => tracing::error!(error = %e, "tasks that wait for a person could not be looked at"),
    }
    match house.store.tasks_take_over(false, INTERRUPTED_MOST, Utc::now()).await {
        Ok(taken) if taken.is_empty() => {}
        Ok(taken) => {
            tracing::warn!(tasks = taken.len(), "an agent outside did not come back; its tasks are queued again");
            for task in &taken {
                house.desk.returned(task);
                tasks::tell(house, task, Utc::now()).await;
            }
            house.desk.settled();
        }
        Err(e) => tracing::error!(error = %e, "leases of tasks could not be looked at"),
    }
}

/// Lets tasks go on whose human has decided; the approvals that were given and whose call has not started. What cannot be told of one keeps none of the others waiting.
async fn decided(house: &House) -> StoreResult<Vec<ApprovalId>> {
    let mut given = vec![];
    for task in house.store.tasks_waiting(Utc::now()).await? {
        if let Err(e) = stands(house, &task, &mut given).await {
            tracing::error!(task = %task.id, error = %e, "what a task waits for could not be looked at");
        }
    }
    Ok(given)
}

/// Where one stands.
async fn stands(house: &House, task: &Task, given: &mut Vec<ApprovalId>) -> StoreResult<()> {
    let approval = match &task.waits_for {
        Some(id) => match house.store.approval(id, Utc::now()).await {
            // It will not be decided any more; the task says so when it goes on.
            Err(e @ StoreError::Corrupt { .. }) => {
                tracing::error!(task = %task.id, approval = %id, error = %e, "the approval a task waits for cannot be read");
                None
            }
            found => found?,
        },
        None => None,
    };
    let open = match approval {
        Some(a) => match a.state {
            ApprovalState::Pending => true,
            // Not yet done: the operator's door runs the call and uses it up.
            ApprovalState::Approved => {
                given.push(a.id);
                true
            }
            ApprovalState::Used => came_of(&house.store, &a).await? == Came::AtWork,
            ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Stale => false,
        },
        None => false,
    };
    if !open {
        house.store.task_resume(&task.id).await?;
        house.desk.settled();
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
