//! A task: durable work given to an agent, done by a runbook (a fixed sequence of calls) or by a model that chooses the calls.
//! Whatever a task does goes through the one line as its agent, with the rights it was delegated.

use super::ids::{AgentName, ApprovalId, StackName, TaskId};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// State of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TaskState {
    /// Waits for its agent to be free, or for its next try.
    Queued,
    /// At work.
    Running,
    /// Waits for a human's approval of one of its calls.
    WaitingApproval,
    /// Did what it was for.
    Succeeded,
    /// Gave up: out of tries, out of budget, out of turns.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl TaskState {
    /// No work will follow.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
    /// The word of the wire form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::WaitingApproval => "waiting_approval",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskWork {
    /// A prompt or runbook of `prompts/` by name.
    Skill(String),
    /// Free text, for an agent with a model.
    Prompt(String),
}

/// One task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Id.
    pub id: TaskId,
    /// Agent that does it.
    pub agent: AgentName,
    /// What is to be done.
    pub work: TaskWork,
    /// Arguments of the skill, or facts for the prompt.
    #[serde(default)]
    pub input: Map<String, Value>,
    /// Who gave it, outermost first. Each call of the task needs the right of its agent and of everybody named here.
    pub delegated_by: Vec<AgentName>,
    /// What set it off: `call`, `cron`, `event`, `webhook`.
    pub origin: String,
    /// The stack it is about, when known.
    #[serde(default)]
    pub stack: Option<StackName>,
    /// The reference whose push set it off, as the signed request names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<String>,
    /// State.
    pub state: TaskState,
    /// Tries so far, this one included.
    pub attempt: u32,
    /// When it was given.
    pub created_at: DateTime<Utc>,
    /// Not before this moment.
    pub due_at: DateTime<Utc>,
    /// When its first try began.
    #[serde(default)]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<DateTime<Utc>>,
    /// Approval it waits for.
    #[serde(default)]
    pub waits_for: Option<ApprovalId>,
    /// What came of it, in words (untrusted where a model wrote it).
    #[serde(default)]
    pub result: Option<String>,
}

/// How one try of a task ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskEnd {
    /// Done; the agent's closing words.
    Succeeded(String),
    /// A call waits for this approval: the task goes on when it was decided.
    Waiting(ApprovalId),
    /// Failed for a reason that another try may mend (a provider or the engine away).
    Retry(String),
    /// Failed for good: out of budget, out of turns, a call that was denied and is needed.
    Failed(String),
    /// Stopped on request.
    Cancelled,
}

/// One turn of a model in a task, journaled before the calls it asks for are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Counted from 1 over all tries of the task.
    pub number: u32,
    /// When the model's answer was complete.
    pub at: DateTime<Utc>,
    /// Its words.
    pub text: String,
    /// The answer ended because it was as long as it may be, not because it was done.
    #[serde(default)]
    pub cut: bool,
    /// The provider refused to go on: the task has failed, whenever that is read.
    #[serde(default)]
    pub refused: bool,
    /// Calls it asked for, in order.
    pub calls: Vec<TurnCall>,
    /// Tokens read (cached ones included), of them from the cache, and written.
    pub tokens_in: u64,
    /// Of `tokens_in`, those the provider's cache had.
    pub tokens_cached: u64,
    /// Tokens written.
    pub tokens_out: u64,
    /// Price in millionths of a US dollar.
    pub micro_usd: u64,
}

/// A call a model asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnCall {
    /// The provider's id of it.
    pub id: String,
    /// Tool.
    pub tool: String,
    /// Arguments as the model wrote them, the idempotency key added where the tool takes one.
    pub input: Value,
    /// What the line answered; `None` until it has.
    #[serde(default)]
    pub reply: Option<Value>,
}
