//! An operation: a durable run of a plan, made of journaled steps.

use super::ids::{ApprovalId, CallId, OperationId, PlanId, StackName};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// State of an operation, as replies show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OperationState {
    /// Accepted, not begun.
    Queued,
    /// At work.
    Running,
    /// The new release serves; its watch window runs.
    Monitoring,
    /// Finished, watch window passed.
    Done,
    /// Failed and undone: what ran before runs.
    RolledBack,
    /// Failed before anything was changed.
    Failed,
    /// Cancelled and undone.
    Cancelled,
    /// Waits for a human's approval; nothing was done.
    PendingApproval,
    /// Neither forward nor back: a person must look.
    NeedsAttention,
}

impl OperationState {
    /// No step will follow.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack | Self::Failed | Self::Cancelled | Self::NeedsAttention)
    }
    /// The word of the wire form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Monitoring => "monitoring",
            Self::Done => "done",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::PendingApproval => "pending_approval",
            Self::NeedsAttention => "needs_attention",
        }
    }
}

/// Phase of a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Phase {
    /// Waiting its turn.
    Queued,
    /// Read-only checks.
    Preflight,
    /// The data is made safe, or brought back beside the live data.
    Snapshot,
    /// Images, networks, volumes, claim.
    Prepare,
    /// New containers start and are probed.
    StartNew,
    /// Smoke tests of the whole changed stack, before anything is switched.
    Smoke,
    /// The new release takes over.
    Switch,
    /// Old containers are stopped and named away.
    StopOld,
    /// Watch window.
    Monitor,
    /// Nothing left to do.
    Finished,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Id.
    pub id: OperationId,
    /// `deploy`, `rollback`, `restart`, `stop`, `scale`, `backup`, `restore`, `prune`.
    pub verb: String,
    /// Stack it holds, where it holds one.
    pub stack: Option<StackName>,
    /// Plan it runs.
    pub plan: Option<PlanId>,
    /// Who asked.
    pub agent: String,
    /// Call that started it.
    pub call: CallId,
    /// Key given by the caller.
    pub idempotency_key: Option<String>,
    /// State.
    pub state: OperationState,
    /// Phase.
    pub phase: Phase,
    /// Epoch of the stack it runs under.
    pub epoch: u64,
    /// Release it makes.
    pub release: Option<u32>,
    /// Reason given by the caller, untrusted.
    pub reason: Option<String>,
    /// Why it ended the way it did, in words.
    pub message: Option<String>,
    /// What was kept of a failure.
    pub evidence: Vec<Evidence>,
    /// Approval that let it start.
    pub approval: Option<ApprovalId>,
    /// Cancel was asked for.
    pub cancel_requested: bool,
    /// Created.
    pub created_at: DateTime<Utc>,
    /// Reached `monitoring` or a terminal state.
    pub settled_at: Option<DateTime<Utc>>,
}

impl Operation {
    /// One that was asked for at a moment and of which nothing has been done.
    pub fn new(id: OperationId, verb: String, agent: String, call: CallId, created_at: DateTime<Utc>) -> Self {
        Self {
            id,
            verb,
            stack: None,
            plan: None,
            agent,
            call,
            idempotency_key: None,
            state: OperationState::Queued,
            phase: Phase::Queued,
            epoch: 0,
            release: None,
            reason: None,
            message: None,
            evidence: vec![],
            approval: None,
            cancel_requested: false,
            created_at,
            settled_at: None,
        }
    }
}

/// What is kept of a container that failed, before it is removed. Texts are untrusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Evidence {
    /// Service.
    pub service: String,
    /// Container name.
    pub container: String,
    /// Why it counts as failed.
    pub reason: String,
    /// Exit code, when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Killed by the out-of-memory killer.
    #[serde(default)]
    pub oom_killed: bool,
    /// Output of the last probe (untrusted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_output: Option<String>,
    /// Last lines it wrote, at most 200 (untrusted).
    #[serde(default)]
    pub logs: Vec<String>,
}

/// One record of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Operation.
    pub operation: OperationId,
    /// Order within the operation, from 1.
    pub seq: u64,
    /// Phase.
    pub phase: Phase,
    /// Idempotency key of the step within the operation, e.g. `stop:web:1`.
    pub key: String,
    /// What is to be done, as data that recovery understands.
    pub intent: serde_json::Value,
    /// What came of it; `None` = the intent only.
    pub done: Option<serde_json::Value>,
    /// When the intent was written.
    pub at: DateTime<Utc>,
    /// When the result was written; `None` also where an earlier version wrote it.
    #[serde(default)]
    pub done_at: Option<DateTime<Utc>>,
}
