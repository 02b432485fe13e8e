//! The imperative shell: the only code that changes the world. Runs a plan as a durable operation of journaled steps.

mod acts;
mod adopt;
mod apply;
pub mod backup;
mod beside;
mod canary;
pub mod checkout;
mod checks;
mod claim;
mod colour;
mod connect;
mod control;
mod create;
mod datapath;
mod front;
mod hooks;
mod inplace;
mod leave;
mod look;
pub mod names;
mod once;
mod options;
mod patience;
pub mod places;
mod preflight;
mod prepare;
pub mod probe;
mod pull;
pub mod reactions;
mod recover;
mod removed;
pub mod render;
pub mod restore;
mod retire;
mod revive;
mod run;
mod smoke;
mod snapshot;
pub(crate) mod straight;
#[cfg(test)]
mod tests;
mod triggers;
mod undo;
mod work;
pub mod worker;

use crate::engine::Engine;
use crate::gate::Permit;
use crate::gate::request::RequestFacts;
use crate::model::config::OwnContainer;
use crate::model::ids::*;
use crate::model::operation::*;
use crate::model::plan::{Plan, PlanKind};
use crate::model::release::Release;
use crate::store::Store;
use chrono::Utc;
pub use options::{CommandGate, CommandsOf, FactsOf, FrontDoor, Options, RealOf, StopAfter};
use recover::Takeover;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use work::Held;

/// An adoption makes a few tags and one container.
const ADOPT_WITHIN: Duration = Duration::from_secs(120);
/// Pause between looks at an operation that nobody is at work on.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Who asks for an operation and why.
#[derive(Debug, Clone)]
pub struct Request {
    /// `deploy`, `rollback`, `restart`, `stop`, `scale`, `backup`, `restore`.
    pub verb: String,
    /// Agent.
    pub agent: String,
    /// Call.
    pub call: CallId,
    /// Key given by the caller.
    pub idempotency_key: Option<String>,
    /// Hash over the arguments, to tell reuse of a key.
    pub args_hash: String,
    /// Reason, untrusted.
    pub reason: Option<String>,
    /// Approval it runs under.
    pub approval: Option<ApprovalId>,
}

/// Why an operation could not be started, waited for or cancelled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExecutorError {
    /// Another operation holds the stack.
    #[error("operation {operation} holds stack {stack}")]
    Busy {
        /// Stack.
        stack: StackName,
        /// Operation that holds it.
        operation: OperationId,
    },
    /// The world moved since the plan was made.
    #[error("the stack changed since the plan was made: {0}")]
    Stale(String),
    /// No such operation.
    #[error("no operation {0}")]
    Unknown(OperationId),
    /// This build has no backups.
    #[error("this supervisor was built without backups")]
    NoRepository,
    /// It is past the point where cancel undoes.
    #[error("operation {0} has already switched or ended")]
    TooLate(OperationId),
    /// It is over.
    #[error("operation {operation} has ended: {}", state.as_str())]
    Ended {
        /// Operation.
        operation: OperationId,
        /// How it ended.
        state: OperationState,
    },
    /// Shutting down.
    #[error("the supervisor is shutting down")]
    Closing,
    /// State could not be read or written.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// Engine.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

/// Where an operation stands, for progress lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// State.
    pub state: OperationState,
    /// Phase.
    pub phase: Phase,
    /// 0..=100.
    pub percent: f64,
    /// What it does now.
    pub message: String,
}

/// What a caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The new release serves, or it is over.
    Settled,
    /// It is over, the watch window included.
    Ended,
}

/// What is known here of an operation at work.
#[derive(Debug)]
struct Active {
    /// Stack it holds; none when it works beside one.
    stack: Option<StackName>,
    /// Volumes it reads or fills.
    volumes: BTreeSet<EngineName>,
    standing: watch::Receiver<Standing>,
    cancel: CancellationToken,
    conclude: CancellationToken,
}

/// Runs operations. One per home.
pub struct Executor {
    engine: Arc<dyn Engine>,
    store: Store,
    facts: FactsOf,
    real: RealOf,
    stop_after: Option<StopAfter>,
    host_ports: bool,
    backups: Option<backup::BackupHouse>,
    own: OwnContainer,
    commands: CommandsOf,
    front_binary: PathBuf,
    front_tag: tokio::sync::OnceCell<ImageRef>,
    front_door: Option<FrontDoor>,
    records: AtomicU64,
    active: Mutex<BTreeMap<OperationId, Active>>,
    submitting: tokio::sync::Mutex<()>,
    runs: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    closing: CancellationToken,
    reactions: reactions::Reactions,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("active", &self.active()).finish_non_exhaustive()
    }
}

impl Executor {
    /// Makes an executor over an engine and a store; `facts` tells what requests of a plan may contain.
    pub fn new(engine: Arc<dyn Engine>, store: Store, facts: FactsOf, options: Options) -> Arc<Self> {
        Arc::new(Self {
            engine,
            store,
            facts,
            real: options.real.unwrap_or_else(|| Arc::new(|path| std::fs::canonicalize(path).ok()?.to_str().map(str::to_owned))),
            stop_after: options.stop_after,
            host_ports: options.host_ports,
            backups: options.backups,
            own: options.own,
            commands: options
                .commands
                .unwrap_or_else(|| Arc::new(|_, _| Arc::new(|_, run| crate::gate::request::assert_command(run, &RequestFacts::default())))),
            front_binary: options.front_binary.unwrap_or_else(|| PathBuf::from("/proc/self/exe")),
            front_tag: tokio::sync::OnceCell::new(),
            front_door: options.front_door,
            records: AtomicU64::new(0),
            active: Mutex::default(),
            submitting: tokio::sync::Mutex::default(),
            runs: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            reactions: reactions::Reactions::default(),
        })
    }

    /// How soon the loop acts.
    pub fn reactions(&self) -> &reactions::Reactions {
        &self.reactions
    }

    /// Starts an operation for a plan; returns at once. The same idempotency key returns the earlier operation.
    ///
    /// # Errors
    /// `Busy` while another operation holds the stack (its watch window does not count: that is ended), `Stale` when the world is not the plan's any more,
    /// `Closing`, `Store`, `Engine`.
    pub async fn submit(self: &Arc<Self>, plan: Plan, permit: Permit, request: Request) -> Result<Operation, ExecutorError> {
        let _one = loop {
            let one = self.submitting.lock().await;
            if self.closing.is_cancelled() {
                return Err(ExecutorError::Closing);
            }
            if let Some(known) = self.known_key(&plan.stack, &request).await? {
                return Ok(known);
            }
            match self.concluding(&plan.stack)? {
                None => break one,
                Some(standing) => ended(one, standing).await,
            }
        };
        self.close_abandoned(&plan.stack).await?;
        let now = Utc::now();
        let noop = plan.is_noop();
        let op = Operation {
            stack: Some(plan.stack.clone()),
            plan: Some(plan.id.clone()),
            idempotency_key: request.idempotency_key.clone(),
            state: if noop { OperationState::Done } else { OperationState::Queued },
            phase: if noop { Phase::Finished } else { Phase::Queued },
            release: Some(plan.to_release).filter(|r| *r > 0),
            reason: request.reason,
            message: noop.then(|| "nothing to do: the stack is as the plan says".to_owned()),
            approval: request.approval,
            settled_at: noop.then_some(now),
            ..Operation::new(
                OperationId::new(format!("op-{}", ulid::Ulid::generate().to_string().to_lowercase())).expect("a ULID is a valid id"),
                request.verb,
                request.agent.clone(),
                request.call,
                now,
            )
        };
        if let Some(key) = &request.idempotency_key {
            let known = self.store.earlier_operation(&request.agent, Some(key), &request.args_hash, None, now).await?;
            if let Some(known) = known {
                return Ok(known);
            }
        }
        self.still_true(&plan).await?;
        self.store.put_plan(&plan).await?;
        // Read before the operation is recorded: from there on nothing may fail that leaves it open with nobody at work on it.
        let current = self.release_before(&plan).await?;
        let op = match self.store.begin_operation(op, &request.args_hash).await? {
            Ok(op) => op,
            Err(earlier) => return Ok(earlier),
        };
        if plan.kind != PlanKind::Stop && !noop {
            let (spec, environment) = (plan.desired.clone(), plan.environment.clone());
            let learned = tokio::task::spawn_blocking(move || crate::redact::declared::release(&spec, &environment)).await;
            if let Err(e) = learned {
                tracing::error!(error = %e, stack = %plan.stack, "the secrets of this release could not be taken into the filter of what leaves");
            }
        }
        if !noop {
            self.spawn(op.clone(), plan, permit, vec![], current, Takeover::None);
        } else if matches!(plan.kind, PlanKind::Stop) {
            self.store.set_stopped(&plan.stack, true).await?;
        }
        Ok(op)
    }

    /// An earlier operation of the same agent with the same key, while the stack is held by it.
    async fn known_key(&self, stack: &StackName, request: &Request) -> Result<Option<Operation>, ExecutorError> {
        let Some(key) = &request.idempotency_key else { return Ok(None) };
        let Some(holder) = self.holding(stack) else { return Ok(None) };
        let op = self.store.operation(&holder).await?;
        Ok(op.filter(|o| o.agent == request.agent && o.idempotency_key.as_ref() == Some(key)))
    }

    /// Takes the turn of one who begins an operation on a stack that nothing holds.
    async fn turn(&self, stack: &StackName) -> Result<tokio::sync::MutexGuard<'_, ()>, ExecutorError> {
        loop {
            let one = self.submitting.lock().await;
            match self.concluding(stack)? {
                None => return Ok(one),
                Some(standing) => ended(one, standing).await,
            }
        }
    }

    /// Has the watch window on a stack concluded, and tells what to wait for; any other operation on it is `Busy`.
    fn concluding(&self, stack: &StackName) -> Result<Option<watch::Receiver<Standing>>, ExecutorError> {
        let Some(id) = self.holding(stack) else { return Ok(None) };
        let Some(standing) = self.standing(&id) else { return Ok(None) };
        // The sender is dropped when the run has ended.
        if standing.has_changed().is_err() {
            return Ok(None);
        }
        let state = standing.borrow().state;
        if state != OperationState::Monitoring && !state.is_terminal() {
            return Err(ExecutorError::Busy { stack: stack.clone(), operation: id });
        }
        if let Some(active) = self.active.lock().expect("no panic while held").get(&id) {
            active.conclude.cancel();
        }
        Ok(Some(standing))
    }

    async fn release_before(&self, plan: &Plan) -> Result<Option<Release>, ExecutorError> {
        match plan.from_release {
            Some(number) => Ok(self.store.release(&plan.stack, number).await?),
            None => Ok(None),
        }
    }

    fn spawn(
        self: &Arc<Self>,
        op: Operation,
        plan: Plan,
        permit: Permit,
        steps: Vec<StepRecord>,
        current: Option<Release>,
        takeover: Takeover,
    ) {
        let standing = Standing { state: op.state, phase: op.phase, percent: 0.0, message: "queued".into() };
        let (send, receive) = watch::channel(standing);
        let (cancel, conclude) = (CancellationToken::new(), CancellationToken::new());
        let id = op.id.clone();
        let stack = Some(plan.stack.clone());
        let active = Active { stack, volumes: BTreeSet::new(), standing: receive, cancel: cancel.clone(), conclude: conclude.clone() };
        self.active.lock().expect("no panic while held").insert(id.clone(), active);
        let exec = self.clone();
        let begin = run::Begin { exec: exec.clone(), plan, permit, current, op, steps, standing: send, cancel, conclude };
        let held = Held { exec: exec.clone(), id };
        self.tasks.spawn(async move {
            exec.work(begin, takeover).await;
            drop(held);
        });
    }

    /// Waits until the operation stands as asked or the time is over; returns it as it stands.
    ///
    /// # Errors
    /// `Unknown`, `Store`.
    pub async fn wait(&self, id: &OperationId, timeout: Duration, until: Until) -> Result<Operation, ExecutorError> {
        let late = tokio::time::Instant::now() + timeout;
        let settled = |state: OperationState| (until == Until::Settled && state == OperationState::Monitoring) || state.is_terminal();
        loop {
            if let Some(mut standing) = self.standing(id) {
                // A closed channel is as good as settled: the run has ended and stored its state.
                let _ended_or_late = tokio::time::timeout_at(late, standing.wait_for(|s| settled(s.state))).await;
            }
            let op = self.store.operation(id).await?.ok_or_else(|| ExecutorError::Unknown(id.clone()))?;
            if settled(op.state) || tokio::time::Instant::now() >= late || self.closing.is_cancelled() {
                return Ok(op);
            }
            // Nobody is at work on it yet: a takeover is tried again. Who follows it must not do so as fast as the disk is.
            tokio::select! {
                () = tokio::time::sleep_until(late.min(tokio::time::Instant::now() + LOOK_AGAIN)) => {}
                () = self.closing.cancelled() => {}
            }
        }
    }

    /// Progress of a running operation; `None` when it is not running here.
    pub fn standing(&self, id: &OperationId) -> Option<watch::Receiver<Standing>> {
        self.active.lock().expect("no panic while held").get(id).map(|a| a.standing.clone())
    }

    /// Asks an operation to stop and undo.
    ///
    /// # Errors
    /// `TooLate` after the switch, `Ended`, `Unknown`, `Store`.
    pub async fn cancel(&self, id: &OperationId) -> Result<Operation, ExecutorError> {
        let op = self.store.operation(id).await?.ok_or_else(|| ExecutorError::Unknown(id.clone()))?;
        let phase = self.standing(id).map(|s| s.borrow().phase);
        match phase {
            Some(phase) if phase < Phase::Switch => {}
            _ if op.state.is_terminal() => return Err(ExecutorError::Ended { operation: op.id, state: op.state }),
            _ => return Err(ExecutorError::TooLate(op.id)),
        }
        // Told to the run first: a run that reaches the switch meanwhile would go past it while the database is written.
        if let Some(active) = self.active.lock().expect("no panic while held").get(id) {
            active.cancel.cancel();
        }
        if self.standing(id).is_none_or(|s| s.borrow().phase >= Phase::Switch) {
            return Err(ExecutorError::TooLate(op.id));
        }
        self.store.request_cancel(id).await?;
        Ok(op)
    }

    /// Stops at the next journal record and waits for running operations, at most so long.
    pub async fn close(&self, limit: Duration) {
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(active = self.active(), "operations did not stop in time; the next start takes them over");
        }
    }

    /// Operation at work on a stack. One whose run has told its end (its sender is gone) holds nothing any more, though its task is still being put away.
    pub fn holding(&self, stack: &StackName) -> Option<OperationId> {
        let holds = |a: &Active| a.stack.as_ref() == Some(stack) && a.standing.has_changed().is_ok();
        self.active.lock().expect("no panic while held").iter().find(|(_, a)| holds(a)).map(|(id, _)| id.clone())
    }

    /// How many operations are at work.
    pub fn active(&self) -> usize {
        self.active.lock().expect("no panic while held").len()
    }

    /// The judge of commands for who was permitted an operation, and those it works for.
    fn judge_of(&self, permit: &Permit) -> CommandGate {
        (self.commands)(permit.agent(), permit.on_behalf())
    }
    fn request_facts(&self, plan: &Plan, service: Option<&ServiceName>) -> RequestFacts {
        let facts = (self.facts)(plan, service);
        match service {
            Some(service) => facts.planned(&plan.images, service),
            None => facts,
        }
    }
    fn probes_host_ports(&self) -> bool {
        self.host_ports
    }
    /// Whether the engine's host is this one: then the addresses of its bridge networks can be reached from here.
    fn is_local(&self) -> bool {
        self.host_ports
    }
    /// The engine as data looks at it.
    fn around(&self) -> backup::Around<'_> {
        backup::Around { engine: self.engine.as_ref(), instance: self.store.instance(), own: &self.own }
    }
    async fn closing(&self) {
        self.closing.cancelled().await;
    }
    /// Removes what an interrupted operation's work with data left on the engine; what others have at work stays.
    async fn sweep_helpers(&self, permit: &Permit, own: &OperationId) {
        let others = |op: &str| op != own.as_str() && self.active.lock().expect("no panic while held").keys().any(|id| id.as_str() == op);
        if let Err(e) = backup::helper::sweep(self.engine.as_ref(), permit, self.store.instance(), &others).await {
            tracing::warn!(operation = %own, error = %e, "helpers of the interrupted work are left behind");
        }
    }
    /// Checked before every act.
    fn may_go_on(&self) -> Result<(), run::Halt> {
        if self.closing.is_cancelled() { Err(run::Halt::Interrupted("the supervisor is shutting down".into())) } else { Ok(()) }
    }
    /// Called after every journal record.
    fn recorded(&self) -> Result<(), run::Halt> {
        let count = self.records.fetch_add(1, Ordering::Relaxed) + 1;
        match &self.stop_after {
            Some(stop) if stop(count) => {
                self.closing.cancel();
                Err(run::Halt::Interrupted("stopped after a journal record".into()))
            }
            _ => self.may_go_on(),
        }
    }
}

/// Waits for the end of a run without keeping others from beginning theirs meanwhile: who waited looks again.
async fn ended(turn: tokio::sync::MutexGuard<'_, ()>, mut standing: watch::Receiver<Standing>) {
    drop(turn);
    while standing.changed().await.is_ok() {}
}
