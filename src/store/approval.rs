//! stub: approvals
use super::{Store, StoreResult};
use crate::model::ids::*;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// State of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ApprovalState {
    /// Waits for a human.
    Pending,
    /// Given, not used yet.
    Approved,
    /// Refused by a human.
    Denied,
    /// Its time ran out.
    Expired,
    /// Its operation started.
    Used,
    /// The world moved since.
    Stale,
}

/// One approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Id.
    pub id: ApprovalId,
    /// Who asked.
    pub agent: String,
    /// Tool.
    pub tool: String,
    /// Stack.
    pub stack: Option<StackName>,
    /// Environment.
    pub environment: Option<String>,
    /// Plan it is bound to, when the tool has one.
    pub plan: Option<PlanId>,
    /// Digest it is bound to: plan digest, or hash of the arguments for a tool without plan.
    pub digest: String,
    /// The call as parsed, to run it as the requester later (encrypted at rest).
    pub input: serde_json::Value,
    /// Call that asked.
    pub call: CallId,
    /// Reason the requester gave, untrusted.
    pub reason: Option<String>,
    /// State.
    pub state: ApprovalState,
    /// Approvals needed.
    pub needed: u32,
    /// Who approved.
    pub approved_by: Vec<String>,
    /// Who denied, and why.
    pub denied_by: Option<String>,
    /// Operation it started.
    pub operation: Option<OperationId>,
    /// Asked.
    pub created_at: DateTime<Utc>,
    /// Void after.
    pub expires_at: DateTime<Utc>,
}

impl Store {
    /// Inserts, or returns the pending or approved one that (agent, tool, digest) already has.
    pub async fn request_approval(&self, _approval: Approval) -> StoreResult<Approval> {
        todo!()
    }
    /// One approval; a pending one past its time is returned (and stored) as expired.
    pub async fn approval(&self, _id: &ApprovalId, _now: DateTime<Utc>) -> StoreResult<Option<Approval>> {
        todo!()
    }
    /// All, newest first; `pending_only` for the queue.
    pub async fn approvals(&self, _pending_only: bool, _now: DateTime<Utc>) -> StoreResult<Vec<Approval>> {
        todo!()
    }
    /// Adds an operator's word; becomes `Approved` with enough different operators, `Denied` with one no. Returns the new state of it, or `None` when it is not pending.
    pub async fn decide_approval(&self, _id: &ApprovalId, _operator: &str, _approve: bool, _now: DateTime<Utc>) -> StoreResult<Option<Approval>> {
        todo!()
    }
    /// Uses an approved one up (single use): `true` exactly once.
    pub async fn use_approval(&self, _id: &ApprovalId, _operation: Option<&OperationId>, _now: DateTime<Utc>) -> StoreResult<bool> {
        todo!()
    }
    /// Sets state (stale, expired).
    pub async fn set_approval_state(&self, _id: &ApprovalId, _state: ApprovalState) -> StoreResult<()> {
        todo!()
    }
}
