//! What a call carries: who, by which door, and the house it runs in.

use crate::engine::Engine;
use crate::executor::Executor;
use crate::gate::Rulebook;
use crate::model::config::Config;
use crate::model::ids::AgentName;
use crate::store::Store;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// Door a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// MCP over stdio (through the bridge).
    McpStdio,
    /// MCP over HTTP.
    McpHttp,
    /// Command line.
    Cli,
    /// The supervisor's own loop.
    Loop,
}

impl Door {
    /// The word of the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::McpStdio => "mcp-stdio",
            Self::McpHttp => "mcp-http",
            Self::Cli => "cli",
            Self::Loop => "loop",
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
    /// Runs operations.
    pub executor: Arc<Executor>,
    /// Where things are.
    pub config: Config,
    /// MCP prompts.
    pub prompts: ArcSwap<Vec<crate::model::prompt::Prompt>>,
    /// Backup repository; `None` when built without backups.
    pub backups: Option<Arc<crate::executor::backup::BackupHouse>>,
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("House").field("home", &self.config.home).finish_non_exhaustive()
    }
}
