//! The imperative shell: the only code that changes the world. Runs a plan as a durable operation of journaled steps.

pub mod backup;

use crate::engine::Engine;
use crate::gate::Permit;
use crate::model::ids::*;
use crate::model::operation::*;
use crate::model::plan::Plan;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// Who asks for an operation and why.
#[derive(Debug, Clone)]
pub struct Request {
    /// `deploy`, `rollback`, `restart`, `stop`, `scale`.
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
    /// It is past the point where cancel undoes.
    #[error("operation {0} has already switched")]
    TooLate(OperationId),
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

/// Runs operations. One per home.
#[derive(Debug)]
pub struct Executor {
    engine: Arc<dyn Engine>,
    store: Store,
}

impl Executor {
    /// Makes an executor over an engine and a store.
    pub fn new(engine: Arc<dyn Engine>, store: Store) -> Arc<Self> {
        Arc::new(Self { engine, store })
    }
    /// Starts an operation for a plan; returns at once. The same idempotency key returns the earlier operation.
    pub async fn submit(self: &Arc<Self>, _plan: Plan, _permit: Permit, _request: Request) -> Result<Operation, ExecutorError> {
        let _ = (&self.engine, &self.store);
        todo!()
    }
    /// Waits until the operation is settled (`monitoring` or terminal) or the time is over; returns it as it stands.
    pub async fn wait(&self, _id: &OperationId, _timeout: Duration) -> Result<Operation, ExecutorError> {
        todo!()
    }
    /// Progress of a running operation; `None` when it is not running here.
    pub fn standing(&self, _id: &OperationId) -> Option<tokio::sync::watch::Receiver<Standing>> {
        todo!()
    }
    /// Asks an operation to stop and undo; `TooLate` after the switch.
    pub async fn cancel(&self, _id: &OperationId) -> Result<Operation, ExecutorError> {
        todo!()
    }
    /// Takes over every operation a restart interrupted: undoes before the switch, goes forward after it. Returns what was taken over.
    pub async fn recover(self: &Arc<Self>) -> Result<Vec<OperationId>, ExecutorError> {
        todo!()
    }
    /// Stops at the next journal record and waits for running operations, at most so long.
    pub async fn close(&self, _limit: Duration) {
        todo!()
    }
    /// Operations at work now, by stack.
    pub fn holding(&self, _stack: &StackName) -> Option<OperationId> {
        todo!()
    }
    /// How many operations are at work.
    pub fn active(&self) -> usize {
        todo!()
    }
}
