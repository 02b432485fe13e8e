//! What a call carries: who, by which door, and the house it runs in.

use super::repeat::{Turn, Turns};
use crate::engine::Engine;
use crate::executor::Executor;
use crate::gate::{CallFacts, LoadProblem, Rulebook};
use crate::model::config::Config;
use crate::model::ids::{AgentName, ApprovalId, CallId, OperationId};
use crate::store::Store;
use crate::store::token::TokenId;
use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use std::sync::{Arc, Mutex, OnceLock};

/// Door a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// MCP over stdio (through the bridge).
    McpStdio,
    /// MCP over HTTP, with the token that opened it.
    McpHttp(Option<TokenId>),
    /// JSON REST, with the token that opened it.
    Rest(TokenId),
    /// Command line of the user whose home it is.
    Cli,
    /// Command line of another user, whom the policy lets act as an agent.
    PeerCli,
    /// An operator's word: a call that waited for it runs.
    Approval,
    /// The supervisor's own loop.
    Loop,
    /// A task of an agent that runs in the house: a runbook's call, or one a model asked for.
    Task,
}

impl Door {
    /// The word of the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::McpStdio => "mcp-stdio",
            Self::McpHttp(_) => "mcp-http",
            Self::Rest(_) => "rest",
            Self::Cli | Self::PeerCli => "cli",
            Self::Approval => "approval",
            Self::Loop => "loop",
            Self::Task => "task",
        }
    }

    /// The word, and which token opened the door where one did.
    pub fn detail(self) -> String {
        match self {
            Self::McpHttp(Some(token)) | Self::Rest(token) => format!("{} {token}", self.as_str()),
            Self::McpHttp(None) | Self::McpStdio | Self::Cli | Self::PeerCli | Self::Approval | Self::Loop | Self::Task => {
                self.as_str().to_owned()
            }
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Principal {
    /// Agent.
    pub agent: AgentName,
    /// Door.
    pub door: Door,
    /// What the client says of itself (untrusted), e.g. `claude-code 2.1`.
    pub client: Option<String>,
    /// Only reads, whatever the manifest grants.
    pub read_only: bool,
    /// Who gave the agent this work, outermost first: a call needs the right of each of them too.
    pub on_behalf: Vec<AgentName>,
}

/// One line of progress of a waiting call: percent 0..=100 and a text.
pub type ProgressLine = (f64, String);

/// Where progress goes; bounded, lossy (a slow reader never holds up an operation).
pub type Progress = tokio::sync::mpsc::Sender<ProgressLine>;

/// Everything a call may use. Built once by `app`.
pub struct House {
    /// Durable state.
    pub store: Store,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Agents and policy in force.
    pub rulebook: ArcSwap<Rulebook>,
    /// Problems of the last change of agents, policy or prompts that was not taken; empty when the files are what is in force.
    pub refused_rules: ArcSwap<Vec<LoadProblem>>,
    /// Runs operations.
    pub executor: Arc<Executor>,
    /// Where things are.
    pub config: Config,
    /// MCP prompts.
    pub prompts: ArcSwap<Vec<crate::model::prompt::Prompt>>,
    /// Calls at work: waited for at the end, so that none loses its outcome or its reply.
    pub calls: tokio_util::task::TaskTracker,
    /// Backup repository; `None` when built without backups.
    pub backups: Option<Arc<crate::executor::backup::BackupHouse>>,
    /// Identical calls, one after the other.
    pub turns: Turns,
    /// The queue of tasks, as far as it is in memory.
    pub desk: super::tasks::Desk,
    /// What each agent saw in untrusted output.
    pub taints: super::taint::Taints,
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("House").field("home", &self.config.home).finish_non_exhaustive()
    }
}

/// One call on its way down the line.
#[derive(Debug)]
pub struct Call {
    /// The house.
    pub house: Arc<House>,
    /// Who calls.
    pub who: Principal,
    /// Id, new for each call.
    pub id: CallId,
    /// When it came in.
    pub now: DateTime<Utc>,
    /// The rulebook in force when it came in: a reload between the two gates must not mix two policies.
    pub rulebook: Arc<Rulebook>,
    /// Where progress goes.
    pub progress: Option<Progress>,
    /// Approval this call resumes, when an operator's word started it.
    pub resumes: Option<ApprovalId>,
    /// Facts, once they are known.
    pub facts: OnceLock<CallFacts>,
    /// The facts of the other stack it is about, where it is about two.
    pub also: OnceLock<CallFacts>,
    /// Approval that let it through, once it did.
    pub approved_by: OnceLock<ApprovalId>,
    /// What its arguments meant when it was let through, of a tool without plan: nothing beyond that is done.
    pub resolved: OnceLock<serde_json::Value>,
    /// The secrets it brought along: masked in whatever it says, and in nothing else.
    pub own: Arc<crate::redact::declared::Own>,
    /// Its turn among identical calls, while it has it.
    turn: Mutex<Option<Turn>>,
}

impl Call {
    /// A call that comes in now.
    pub fn new(house: &Arc<House>, who: &Principal, progress: Option<Progress>, resumes: Option<ApprovalId>) -> Self {
        let mut who = who.clone();
        // What an agent outside does while it has a task is done for who gave the task.
        // What an operator approved is done for whom it was asked for, whatever task the agent has by now.
        if who.on_behalf.is_empty() && resumes.is_none() {
            who.on_behalf = house.desk.behalf(&who.agent);
        }
        let id = CallId::new(format!("call-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase())).expect("a ulid is alphanumeric");
        Self {
            house: house.clone(),
            who,
            id,
            now: Utc::now(),
            rulebook: house.rulebook.load_full(),
            progress,
            resumes,
            facts: OnceLock::new(),
            also: OnceLock::new(),
            approved_by: OnceLock::new(),
            resolved: OnceLock::new(),
            own: Arc::default(),
            turn: Mutex::default(),
        }
    }

    /// Keeps this call's turn among identical ones until [`Call::accepted`] or [`Call::let_next`].
    pub(super) fn takes(&self, turn: Turn) {
        *self.turn.lock().expect("no panic while held") = Some(turn);
    }

    /// The operation of this call is under way: an identical call that waited joins it.
    pub fn accepted(&self, operation: &OperationId) {
        if let Some(turn) = self.turn.lock().expect("no panic while held").take() {
            turn.leads_to(operation);
        }
    }

    /// This call leads to no operation that others could join.
    pub(super) fn let_next(&self) {
        drop(self.turn.lock().expect("no panic while held").take());
    }

    /// Sends a line of progress; a slow or absent reader loses it.
    pub fn progress(&self, percent: f64, text: impl Into<String>) {
        if let Some(progress) = &self.progress {
            // Lossy by design: a full channel means that the reader is behind, a closed one that it is gone.
            progress.try_send((percent, text.into())).ok();
        }
    }

    /// Version of the policy and of the grants of the requester and of those it works for: part of each digest, so that another agent's change makes
    /// nothing stale.
    pub fn policy_version(&self) -> String {
        self.rulebook.version_for_chain(self.who.agent.as_str(), &self.who.on_behalf).unwrap_or_else(|| self.rulebook.version.clone())
    }

    /// Environment of the call's stack: the policy's default when the call names none.
    pub fn environment(&self) -> &str {
        self.facts.get().and_then(|f| f.environment.as_deref()).unwrap_or(&self.rulebook.policy.default_environment)
    }
}
