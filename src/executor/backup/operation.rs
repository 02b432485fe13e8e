//! Backup and restore as operations: durable, run by the supervisor and not by the call, journaled before each act. Whatever ends one (its end, a failure,
//! a cancel, a crash), held containers run again and nothing half-made stays. Deliberately absent: who may, which volumes, and when.

mod back;
mod jobs;

use super::acts::{self, DataAct, Doer};
use super::{BackupError, DataJob, Hands, Progress, command};
use crate::executor::{Active, Executor, ExecutorError, Held, Request, Standing};
use crate::gate::{self, Permit};
use crate::model::ids::{EngineName, OperationId, StackName};
use crate::model::operation::*;
use crate::store::StoreError;
use chrono::Utc;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest wait for the watch window of a deploy; after it a backup is told `busy`.
const WATCH_WINDOW: Duration = Duration::from_secs(30);
/// Pause between tries of taking something back.
const PAUSE: Duration = Duration::from_secs(2);
/// Tries of taking back that an engine that answers refuses. One that is away is waited for, however long it takes: nobody else resumes held containers. A
/// takeover tries more often, since the engine may just be starting.
const TRIES: u32 = 5;
const TAKEOVER_TRIES: u32 = 150;
/// Pause between tries of setting going again what an engine that answers has refused so often.
const LONG_PAUSE: Duration = Duration::from_secs(30);
/// Audit event of containers that could not be set going again after a backup.
pub const STILL_HELD: &str = "writers_held";

/// Begin the messages of operations that an end of the supervisor interrupted.
const SHUT_DOWN: &str = "the supervisor was shut down";
const RESTARTED: &str = "the supervisor was restarted while it ran";

/// Whether an operation on data failed for no other reason than that the supervisor ended.
pub fn interrupted(operation: &Operation) -> bool {
    let message = operation.message.as_deref().unwrap_or_default();
    operation.state == OperationState::Failed && [SHUT_DOWN, RESTARTED].iter().any(|m| message.starts_with(m))
}

/// Why a data operation stops before its end.
enum Stop {
    /// Why, and what a container had a hand in.
    Failed(String, Vec<Evidence>),
    Cancelled,
    /// The supervisor ends in order.
    Closing,
    /// A crash test ended it right there.
    Crashed,
}

impl From<BackupError> for Stop {
    fn from(e: BackupError) -> Self {
        let (shown, mut why) = (e.evidence(), e.to_string());
        if matches!(e, BackupError::Command { .. }) && !shown.is_empty() {
            why.push_str("; `operation` shows what it wrote");
        }
        Self::Failed(why, shown)
    }
}

impl From<StoreError> for Stop {
    // No journal row, no action.
    fn from(e: StoreError) -> Self {
        Self::failed(e.to_string())
    }
}

impl Stop {
    fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into(), vec![])
    }
}

impl Executor {
    /// Starts a backup or restore; returns at once. The same idempotency key returns the earlier operation. A backup holds its stack, so that nothing is
    /// switched or healed while its data is read; a restore goes on beside it.
    ///
    /// # Errors
    /// `Busy` naming the operation that holds the stack or one of the volumes, `NoRepository`, `Closing`, `Store`.
    pub async fn submit_data(
        self: &Arc<Self>,
        stack: Option<StackName>,
        job: DataJob,
        permit: Permit,
        request: Request,
    ) -> Result<Operation, ExecutorError> {
        let holds = stack.is_some() && job.holds_stack();
        if let (true, Some(stack)) = (holds, &stack) {
            self.watch_window(stack).await;
        }
        let _one = self.submitting.lock().await;
        if self.closing.is_cancelled() {
            return Err(ExecutorError::Closing);
        }
        if self.backups.is_none() {
            return Err(ExecutorError::NoRepository);
        }
        if let (true, Some(stack)) = (holds, &stack) {
            if let Some(known) = self.known_key(stack, &request).await? {
                return Ok(known);
            }
            if let Some(operation) = self.held_by(stack).await? {
                return Err(ExecutorError::Busy { stack: stack.clone(), operation });
            }
        }
        if let Some(operation) = self.using(&job.volumes()) {
            let stack = stack.clone().unwrap_or_else(|| StackName::new("volumes").expect("a valid name"));
            return Err(ExecutorError::Busy { stack, operation });
        }
        let op = Operation {
            stack,
            idempotency_key: request.idempotency_key,
            release: match &job {
                DataJob::Backup(job) => job.release,
                DataJob::Restore { .. }
                | DataJob::RestoreDirectory { .. }
                | DataJob::Drill { .. }
                | DataJob::Discard { .. }
                | DataJob::Check { .. }
                | DataJob::Copy { .. }
                | DataJob::Export { .. }
                | DataJob::Forget { .. } => None,
            },
            reason: request.reason,
            approval: request.approval,
            ..Operation::new(
                OperationId::new(format!("op-{}", ulid::Ulid::generate().to_string().to_lowercase())).expect("a ULID is a valid id"),
                request.verb,
                request.agent,
                request.call,
                Utc::now(),
            )
        };
        let begun = if holds {
            self.store.begin_operation(op, &request.args_hash).await?
        } else {
            self.store.begin_aside(op, &request.args_hash).await?
        };
        match begun {
            Ok(op) => {
                self.spawn_data(op.clone(), Some(job), permit, vec![]);
                Ok(op)
            }
            Err(earlier) => Ok(earlier),
        }
    }

    /// Waits a while for the watch window of a deploy to pass: a backup must not cut it short, as a newer deploy does. One that has ended and is only being
    /// put away is waited for, too: whoever saw its end may begin the next at once.
    async fn watch_window(&self, stack: &StackName) {
        let Some(id) = self.holding(stack) else { return };
        let Some(mut standing) = self.standing(&id) else { return };
        let ended = matches!(self.store.operation(&id).await, Ok(Some(op)) if op.state.is_terminal());
        if ended || standing.borrow().state == OperationState::Monitoring {
            // Passed, or still there: what holds the stack then is looked at under the lock.
            let _passed_or_late = tokio::time::timeout(WATCH_WINDOW, async { while standing.changed().await.is_ok() {} }).await;
        }
    }

    /// Operation that works on one of these volumes.
    fn using(&self, volumes: &BTreeSet<EngineName>) -> Option<OperationId> {
        let active = self.active.lock().expect("no panic while held");
        active.iter().find(|(_, a)| !a.volumes.is_disjoint(volumes)).map(|(id, _)| id.clone())
    }

    /// Ends what a crash interrupted: held containers run again, nothing half-made stays, the operation is closed as failed.
    pub(in crate::executor) fn take_over_data(self: &Arc<Self>, op: Operation, steps: Vec<StepRecord>) {
        let permit = gate::permit_takeover(&op);
        self.spawn_data(op, None, permit, steps);
    }

    fn spawn_data(self: &Arc<Self>, op: Operation, job: Option<DataJob>, permit: Permit, steps: Vec<StepRecord>) {
        let standing = Standing { state: op.state, phase: op.phase, percent: 0.0, message: "queued".into() };
        let (send, receive) = watch::channel(standing);
        let cancel = CancellationToken::new();
        let id = op.id.clone();
        // One that holds its stack has an epoch; one beside it must not be in the way of anything else.
        let holds = op.stack.clone().filter(|_| op.epoch > 0);
        let volumes = job.as_ref().map(DataJob::volumes).unwrap_or_default();
        let time_limit = match &job {
            Some(DataJob::Backup(job)) => job.timeout,
            Some(_) | None => None,
        };
        let active = Active { stack: holds, volumes, standing: receive, cancel: cancel.clone(), conclude: CancellationToken::new() };
        self.active.lock().expect("no panic while held").insert(id.clone(), active);
        let exec = self.clone();
        let held = Held { exec: exec.clone(), id: id.clone() };
        self.tasks.spawn(async move {
            let journal = steps
                .into_iter()
                .filter_map(|s| Some((s.key.clone(), (serde_json::from_value::<DataAct>(s.intent.clone()).ok()?, s.done.is_some()))))
                .collect();
            let work = Work {
                op: Mutex::new(op),
                id: id.clone(),
                permit,
                standing: send,
                cancel,
                time_limit,
                journal: Mutex::new(journal),
                evidence: Mutex::new(vec![]),
                exec: exec.clone(),
            };
            match job {
                Some(job) => work.drive(&job).await,
                None => work.close_interrupted().await,
            }
            drop(held);
        });
    }
}

/// One data operation at work.
struct Work {
    exec: Arc<Executor>,
    op: Mutex<Operation>,
    id: OperationId,
    permit: Permit,
    standing: watch::Sender<Standing>,
    cancel: CancellationToken,
    /// Longest run of a worker that reads data, where a stack says so.
    time_limit: Option<Duration>,
    /// Key -> act and whether it was done.
    journal: Mutex<BTreeMap<String, (DataAct, bool)>>,
    /// What a container had a hand in, of work that goes on all the same.
    evidence: Mutex<Vec<Evidence>>,
}

impl Work {
    fn operation(&self) -> Operation {
        self.op.lock().expect("no panic while held").clone()
    }

    fn hands(&self) -> Result<Hands, BackupError> {
        let house = self.exec.backups.clone().ok_or(BackupError::Worker(super::Failure::NotBuilt))?;
        let (engine, instance) = (self.exec.engine.clone(), self.exec.store.instance().to_owned());
        Ok(Hands { engine, house, instance, operation: self.id.clone(), own: self.exec.own.clone() })
    }

    async fn update(&self, change: impl FnOnce(&mut Operation)) -> Result<(), StoreError> {
        let op = {
            let mut op = self.op.lock().expect("no panic while held");
            change(&mut op);
            op.clone()
        };
        self.exec.store.save_operation(&op).await?;
        self.standing.send_modify(|s| (s.state, s.phase) = (op.state, op.phase));
        Ok(())
    }

    /// From here on it works beside its stack: others may deploy, and write the volumes it has read.
    async fn let_go(&self) -> Result<(), StoreError> {
        self.exec.store.step_beside(&self.id).await?;
        self.op.lock().expect("no panic while held").epoch = 0;
        if let Some(active) = self.exec.active.lock().expect("no panic while held").get_mut(&self.id) {
            (active.stack, active.volumes) = (None, BTreeSet::new());
        }
        Ok(())
    }

    fn say(&self, percent: f64, message: String) {
        self.standing.send_modify(|s| (s.percent, s.message) = (percent, message));
    }

    /// A journal record was written: a crash test may end it here.
    fn recorded(&self) -> Result<(), Stop> {
        match self.exec.recorded() {
            Err(_) if self.exec.stop_after.is_some() => Err(Stop::Crashed),
            _ => Ok(()),
        }
    }

    async fn drive(&self, job: &DataJob) {
        let ended = match self.go(job).await {
            Err(Stop::Crashed) => return,
            other => other,
        };
        let cleaned = self.clean(TRIES).await;
        if let (Err(left), true) = (&cleaned, self.exec.closing.is_cancelled()) {
            // It is not ended: the next start takes back what could not be.
            tracing::warn!(operation = %self.id, left, "the supervisor ends before everything was taken back");
            return;
        }
        let mut evidence = std::mem::take(&mut *self.evidence.lock().expect("no panic while held"));
        let (mut state, mut message) = match ended {
            Ok(message) => (OperationState::Done, message),
            Err(Stop::Cancelled) => (OperationState::Cancelled, Some(format!("cancelled by a caller; {}", self.kept(job)))),
            Err(Stop::Closing) => (OperationState::Failed, Some(format!("{SHUT_DOWN}; {}; call it again", self.kept(job)))),
            Err(Stop::Failed(why, shown)) => {
                evidence.extend(shown);
                let left = self.half_filled().map(|left| format!("; {left}")).unwrap_or_default();
                (OperationState::Failed, Some(format!("{why}{left}")))
            }
            Err(Stop::Crashed) => return,
        };
        if let Err(left) = cleaned {
            state = OperationState::NeedsAttention;
            message = Some(message.map_or_else(|| left.clone(), |m| format!("{m}; {left}")));
        }
        self.settle(state, message, evidence).await;
    }

    fn kept(&self, job: &DataJob) -> String {
        match job {
            DataJob::Backup(_) => {
                format!("{} finished snapshots are kept, an unfinished one left nothing, held containers run again", self.finished())
            }
            DataJob::Check { .. } => "nothing was changed".to_owned(),
            DataJob::Discard { kept, .. } => format!("what is left of {} stays recorded as kept", kept.place),
            DataJob::Copy { .. } => "the copy holds what was added so far, and the rest is added the next time".to_owned(),
            DataJob::Export { .. } => "finished exports are kept, an unfinished one is removed".to_owned(),
            DataJob::Forget { .. } => "snapshots removed so far are gone, the repository stays whole".to_owned(),
            DataJob::Drill { .. } => "finished drills are recorded, what the others made is removed".to_owned(),
            DataJob::Restore { .. } => match self.half_filled() {
                Some(left) => format!("{left}; live data was not touched"),
                None => "a half-filled volume made for it is removed, live data was not touched".to_owned(),
            },
            DataJob::RestoreDirectory { .. } => "the half-filled directory is removed, live data was not touched".to_owned(),
        }
    }

    /// What a restore that did not come to its end leaves: a volume that was there before is nobody's to remove.
    fn half_filled(&self) -> Option<String> {
        let journal = self.journal.lock().expect("no panic while held");
        journal.values().find_map(|(act, done)| match act {
            DataAct::Restore { into, made: false, .. } if !done => {
                Some(format!("volume {into} was there before and stays, perhaps half filled: look at it or empty it before you use it"))
            }
            _ => None,
        })
    }

    fn finished(&self) -> usize {
        let journal = self.journal.lock().expect("no panic while held");
        journal.iter().filter(|(key, (_, done))| *done && key.starts_with(acts::SNAPSHOT)).count()
    }

    async fn settle(&self, state: OperationState, message: Option<String>, evidence: Vec<Evidence>) {
        if state != OperationState::Done {
            tracing::warn!(operation = %self.id, state = state.as_str(), message = message.as_deref().unwrap_or_default(), "data operation ended");
        }
        let end = self.update(|op| {
            op.state = state;
            op.phase = Phase::Finished;
            op.message = message;
            op.evidence = evidence;
            op.settled_at = Some(Utc::now());
        });
        if let Err(e) = end.await {
            tracing::error!(operation = %self.id, error = %e, "the end of the operation could not be recorded; the next start takes it over");
        }
    }

    /// What a restart interrupted.
    async fn close_interrupted(&self) {
        self.exec.sweep_helpers(&self.permit, &self.id).await;
        let cleaned = self.clean(TAKEOVER_TRIES).await;
        let again = format!(
            "{RESTARTED}; {} finished snapshots are kept, {}, held containers run again; call `{}` again",
            self.finished(),
            self.half_filled().unwrap_or_else(|| "nothing half-made stays".to_owned()),
            self.operation().verb
        );
        match cleaned {
            Ok(()) => self.settle(OperationState::Failed, Some(again), vec![]).await,
            // Ending again: the next start goes on.
            Err(_) if self.exec.closing.is_cancelled() => {}
            Err(left) => {
                let message = format!("{RESTARTED}; {left}");
                self.settle(OperationState::NeedsAttention, Some(message), vec![]).await;
            }
        }
    }

    /// Work that a cancel or the end of the supervisor may end in the middle: its worker dies with it.
    async fn interruptible<T>(&self, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
        tokio::select! {
            result = work => result,
            () = self.cancel.cancelled() => Err(Stop::Cancelled),
            () = self.exec.closing.cancelled() => Err(if self.exec.stop_after.is_some() { Stop::Crashed } else { Stop::Closing }),
        }
    }

    /// One journaled act.
    async fn step(&self, act: DataAct) -> Result<Value, Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        command::may_begin(&self.exec.judge_of(&self.permit), &act)?;
        let (key, op) = (act.key(), self.operation());
        let intent = serde_json::to_value(&act).expect("an act is plain data");
        let seq = self.exec.store.step_intent(&self.id, op.epoch, op.phase, &key, &intent, Utc::now()).await?;
        self.journal.lock().expect("no panic while held").insert(key.clone(), (act.clone(), false));
        self.recorded()?;
        let mut hands = self.hands()?;
        // A stack's limit is for its data: what is done for the whole repository takes as long as that is large.
        if matches!(act, DataAct::Snapshot { .. } | DataAct::Directory { .. } | DataAct::Output { .. } | DataAct::Instance { .. }) {
            hands.house.time_limit = self.time_limit.unwrap_or(hands.house.time_limit);
        }
        let done = self.doer(hands).perform(&act).await?;
        self.exec.store.step_done(&self.id, seq, &done).await?;
        if let Some(entry) = self.journal.lock().expect("no panic while held").get_mut(&key) {
            entry.1 = true;
        }
        self.recorded()?;
        Ok(done)
    }

    fn doer(&self, hands: Hands) -> Doer<'_> {
        let op = self.operation();
        let standing = self.standing.clone();
        let progress = Arc::new(move |p: Progress| {
            standing.send_modify(|s| s.message = format!("{} bytes, {} files", p.bytes, p.files));
        });
        let (store, judge) = (&self.exec.store, self.exec.judge_of(&self.permit));
        Doer { hands, store, permit: &self.permit, operation: &self.id, stack: op.stack, agent: op.agent, progress, judge }
    }
}

#[cfg(test)]
#[cfg(feature = "backup")]
mod tests;
