//! What an agent in a process of its own and its supervisor say to each other beside tool calls: which task, what the model is told, what it said, what it
//! cost, how it ended. Plain data of one custom MCP method. Deliberately absent: who may ask what (`supervisor::tasks::outside`), and the transport.

use super::journal::Counted;
use super::models::{Key, Model};
use crate::model::config::ModelProvider;
use crate::model::ids::{AgentName, ApprovalId, CallId, TaskId};
use crate::model::task::{Task, TaskEnd, Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// The method.
pub const METHOD: &str = "dockwarden/work";
/// The key of a tool call's `_meta` that names it: a [`Named`].
pub const CALL: &str = "dockwarden/call";
/// Version of what is said here; another one is refused at the door.
pub const VERSION: u32 = 1;

/// Something asked of the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Who comes; answered by a [`Welcome`].
    Hello {
        /// The agent it was started as: it must be the token's.
        agent: AgentName,
        /// [`VERSION`].
        version: u32,
    },
    /// The next task, waited for at most so long; answered by an optional [`Lent`].
    Fetch {
        /// As [`Welcome`] gave it.
        claim: u64,
        /// Seconds.
        wait_s: u64,
    },
    /// About the task it has.
    On {
        /// As [`Welcome`] gave it.
        claim: u64,
        /// The task.
        task: TaskId,
        /// What.
        about: About,
    },
}

/// Something about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum About {
    /// A sign of life; answered by a [`Kept`].
    Keep,
    /// Tools the model may be offered.
    Tools,
    /// What was said so far.
    Turns,
    /// Before a question; answered by a `Word`.
    Question {
        /// Tokens of the question.
        input: u64,
    },
    /// A question has no answer.
    Unanswered {
        /// Number of the question.
        id: i64,
        /// The provider may charge for it.
        may_cost: bool,
    },
    /// A new turn and what it cost; answered by the turn as it was written.
    Begin {
        /// The turn.
        turn: Turn,
        /// What the provider counted.
        counted: Counted,
    },
    /// What a call of a turn was answered.
    Answered {
        /// Turn.
        turn: u32,
        /// Call, from 0.
        index: usize,
        /// The answer.
        reply: Value,
    },
    /// What became of a call; answered by a `Fate`.
    Fate {
        /// Its id.
        call: CallId,
    },
    /// Where an approval stands; answered by a `Decided`.
    Approval {
        /// Its id.
        approval: ApprovalId,
    },
    /// The try is over.
    End {
        /// How.
        end: TaskEnd,
    },
    /// The agent's process ends: the task goes on where it was, with the next one.
    Back,
}

/// The name of a tool call: a call of a turn that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// As [`Welcome`] gave it.
    pub claim: u64,
    /// Task.
    pub task: TaskId,
    /// Its name in the audit log.
    pub call: CallId,
    /// It was begun before under this name, and is made again without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}

/// The answer to [`Ask::Hello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Given with every further question. A later one of the same agent ends it: one process an agent.
    pub claim: u64,
    /// Seconds without a sign of life after which a task is given to the next who asks.
    pub lease_s: u64,
    /// The agent's model as it stands now.
    pub model: ModelFacts,
}

/// The answer to [`About::Keep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is kept.
    Yours,
    /// Somebody wants it stopped.
    Cancel,
}

/// What a model is told before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// System prompt.
    pub system: String,
    /// The task in words.
    pub task: String,
    /// Answers at most.
    pub turns: u32,
}

/// A task handed out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lent {
    /// The task.
    pub task: Task,
    /// What its model is told.
    pub brief: Brief,
    /// The model.
    pub model: ModelFacts,
}

/// A model as an operator configured it, without key and price: the key is the agent's own, the price the supervisor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Its name in the configuration.
    pub name: String,
    /// What it speaks.
    pub provider: ModelProvider,
    /// Address.
    pub base_url: String,
    /// Its name there.
    pub model: String,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Tokens it takes in all.
    pub context_tokens: u32,
    /// Longest wait for a piece of an answer, in seconds.
    pub timeout_s: u64,
    /// It is asked with a key.
    pub needs_key: bool,
    /// Environment variable the key is usually in.
    pub key_env: Option<String>,
}

impl ModelFacts {
    /// The model to ask, with the agent's own key and, where the agent reaches the provider elsewhere, that address.
    pub fn with(&self, key: Option<Key>, base_url: Option<&str>) -> Model {
        Model {
            name: self.name.clone(),
            provider: self.provider,
            base_url: base_url.unwrap_or(&self.base_url).to_owned(),
            model: self.model.clone(),
            key,
            max_tokens: self.max_tokens,
            context_tokens: self.context_tokens,
            timeout: Duration::from_secs(self.timeout_s),
            price: None,
        }
    }
}
