//! stub: operations and their steps
use super::{Store, StoreResult};
use crate::model::ids::*;
use crate::model::operation::*;
use chrono::{DateTime, Utc};
use serde_json::Value;

impl Store {
    /// Inserts an operation and raises its stack's epoch in one transaction (creating the stack row); returns it with `epoch` set. When `idempotency_key` (per agent, 7 days) is known:
    /// the earlier operation is returned unchanged as `Err(operation)` inside the Ok; same key with another `args_hash` is `KeyReused`.
    pub async fn begin_operation(&self, _op: Operation, _args_hash: &str) -> StoreResult<Result<Operation, Operation>> {
        todo!()
    }
    /// Overwrites state, phase, release, message, evidence, settled_at, cancel flag. `Superseded` when the stack's epoch is newer than `op.epoch` and the operation is not terminal in the store.
    pub async fn save_operation(&self, _op: &Operation) -> StoreResult<()> {
        todo!()
    }
    /// One operation.
    pub async fn operation(&self, _id: &OperationId) -> StoreResult<Option<Operation>> {
        todo!()
    }
    /// All operations not in a terminal state, oldest first.
    pub async fn open_operations(&self) -> StoreResult<Vec<Operation>> {
        todo!()
    }
    /// Newest operations of a stack (or of all), newest first.
    pub async fn operations(&self, _stack: Option<&StackName>, _limit: usize) -> StoreResult<Vec<Operation>> {
        todo!()
    }
    /// Sets the cancel flag; `false` when there is no such open operation.
    pub async fn request_cancel(&self, _id: &OperationId) -> StoreResult<bool> {
        todo!()
    }
    /// Writes a step's intent, durable on return; returns its seq. Refused with `Superseded` when the epoch moved on.
    pub async fn step_intent(&self, _op: &OperationId, _epoch: u64, _phase: Phase, _key: &str, _intent: &Value, _now: DateTime<Utc>) -> StoreResult<u64> {
        todo!()
    }
    /// Writes a step's result, durable on return.
    pub async fn step_done(&self, _op: &OperationId, _seq: u64, _result: &Value) -> StoreResult<()> {
        todo!()
    }
    /// All steps of an operation in order.
    pub async fn steps(&self, _op: &OperationId) -> StoreResult<Vec<StepRecord>> {
        todo!()
    }
}
