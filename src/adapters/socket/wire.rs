//! The lines of the local socket as types. One JSON value a line; a hello, a welcome, then MCP or asks and answers.
//! Deliberately absent: a version negotiation; both ends are the same binary, and the welcome names the supervisor's version.

use crate::call::CallError;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Protocol that follows the hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HelloDoor {
    /// MCP, byte for byte.
    Mcp,
    /// Asks and answers.
    Cli,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// What follows.
    pub door: HelloDoor,
    /// Agent to act as; none for a connection that only administers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Only reads.
    #[serde(default)]
    pub read_only: bool,
    /// Tools an MCP client wants listed; as `--toolsets` takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolsets: Option<String>,
}

/// Parses a hello.
///
/// # Errors
/// In words.
pub fn parse_hello(text: &str) -> Result<Hello, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Welcome {
    /// Come in.
    Ok {
        /// Always true.
        ok: bool,
        /// The supervisor's version.
        version: String,
    },
    /// No, and why.
    Refused {
        /// Cause and hint.
        error: CallError,
    },
}

/// A request of the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ask {
    /// A tool call.
    Tool {
        /// Given back with the answer.
        id: Value,
        /// Tool.
        tool: String,
        /// Input.
        input: Value,
    },
    /// Something only people at the machine do.
    Admin {
        /// Given back with the answer.
        id: Value,
        /// What.
        #[serde(flatten)]
        admin: Admin,
    },
}

/// Requests of people. Those that decide carry an operator's credential, typed at the terminal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "admin", rename_all = "snake_case")]
pub enum Admin {
    /// Version, instance, uptime, load.
    Info,
    /// The queue of approvals.
    Approvals {
        /// Also those that are settled.
        #[serde(default)]
        all: bool,
    },
    /// One approval with what it would do.
    ApprovalShow {
        /// Which.
        approval: String,
    },
    /// Yes.
    Approve {
        /// Which.
        approval: String,
        /// What was typed to confirm a call that may be one's own: the name of its stack, or of the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm: Option<String>,
        /// Who says so.
        credential: Credential,
    },
    /// No. A client of an earlier version says `deny`.
    #[serde(alias = "deny")]
    Reject {
        /// Which.
        approval: String,
        /// Who says so.
        credential: Credential,
    },
    /// Takes a word back while nothing has started.
    Revoke {
        /// Which.
        approval: String,
        /// Who says so.
        credential: Credential,
    },
    /// Stops all changes.
    Freeze {
        /// Why, for everyone who is refused because of it.
        reason: String,
        /// Who says so.
        credential: Credential,
    },
    /// Lets changes happen again.
    Unfreeze {
        /// Who says so.
        credential: Credential,
    },
    /// Lets an agent change a stack again after too many failures.
    BreakerLift {
        /// Agent.
        agent: String,
        /// Stack.
        stack: String,
        /// Who says so.
        credential: Credential,
    },
    /// Stands in for approvals of one agent on one stack for a while.
    BreakGlass {
        /// Agent.
        agent: String,
        /// Stack.
        stack: String,
        /// How long.
        minutes: u32,
        /// Why.
        reason: String,
        /// Who says so.
        credential: Credential,
    },
    /// Ends all broken glass.
    MendGlass {
        /// Who says so.
        credential: Credential,
    },
    /// Names of operators.
    Operators,
    /// A new operator, or a new passphrase.
    OperatorAdd {
        /// Name.
        name: String,
        /// The new passphrase.
        passphrase: String,
        /// An operator there is; not needed for the first.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// An operator is one no longer.
    OperatorRemove {
        /// Name.
        name: String,
        /// Who says so: an operator, also this one.
        credential: Credential,
    },
    /// A new bearer token for an agent.
    Token {
        /// Agent.
        agent: String,
        /// Ends all earlier ones.
        #[serde(default)]
        revoke: bool,
        /// What it is for, e.g. a machine's name.
        #[serde(default)]
        label: String,
        /// Days it is valid; for ever when absent.
        #[serde(default)]
        days: Option<u32>,
        /// An operator, where there is one.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// Takes stacks over from Compose.
    Adopt {
        /// Which; all that could be when absent.
        #[serde(default)]
        stack: Option<String>,
        /// Only look.
        #[serde(default)]
        dry_run: bool,
        /// Go on although the files differ from what runs.
        #[serde(default)]
        accept_drift: bool,
        /// Environment.
        #[serde(default)]
        environment: Option<String>,
        /// Who says so; a look needs none.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// Gives a stack back to Compose.
    Eject {
        /// Which.
        stack: String,
        /// Only look.
        #[serde(default)]
        dry_run: bool,
        /// Who says so; a look needs none.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// Tokens there are, without the tokens.
    Tokens,
    /// What agents spent on models.
    Spent {
        /// Month, `2026-11`; all when absent.
        #[serde(default)]
        month: Option<String>,
    },
    /// Ends one token and the MCP sessions of its agent.
    TokenRevoke {
        /// Its id.
        token: String,
        /// An operator, where there is one.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// A new bearer token for the operator whose credential it is.
    OperatorToken {
        /// What it is for, e.g. a phone.
        #[serde(default)]
        label: String,
        /// Days it is valid.
        days: u32,
        /// Who it is for.
        credential: Credential,
    },
    /// Tokens of operators there are, without the tokens.
    OperatorTokens,
    /// Ends one token of an operator.
    OperatorTokenRevoke {
        /// Its id.
        token: String,
        /// Who says so.
        credential: Credential,
    },
    /// Judges the current release of every stack by the policy in force.
    PolicyCheck,
    /// Rows of the audit log after a row, oldest first.
    AuditRows {
        /// The row.
        after: i64,
        /// Not before.
        #[serde(default)]
        since: Option<DateTime<Utc>>,
        /// Most rows.
        limit: usize,
    },
    /// What agents did for the first time since a moment.
    AuditFirsts {
        /// The moment.
        since: DateTime<Utc>,
    },
    /// Checks the audit log.
    AuditVerify {
        /// Checkpoints that were kept elsewhere, as `audit checkpoint` printed them.
        #[serde(default)]
        kept: String,
    },
    /// Sign the head of the log and show the signature, to be kept elsewhere.
    AuditCheckpoint,
    /// An agent's memory back to what it was at a moment.
    MemoryRestore {
        /// Agent.
        agent: String,
        /// Moment.
        at: chrono::DateTime<chrono::Utc>,
        /// An operator, where there is one.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// An agent's memory as `context.json` and `history.json` in a directory.
    MemoryExport {
        /// Agent.
        agent: String,
        /// Directory, absolute, as the supervisor sees it.
        dir: std::path::PathBuf,
    },
    /// Sets keys of an agent's memory.
    MemoryImport {
        /// Agent.
        agent: String,
        /// Text of a `context.json`.
        context: String,
        /// Agent whose notes they are.
        #[serde(default)]
        of: Option<String>,
        /// An operator, where there is one.
        #[serde(default)]
        credential: Option<Credential>,
    },
    /// Checks the event log of an agent's memory.
    MemoryVerify {
        /// Agent.
        agent: String,
    },
    /// Where the backup repository is and the key to open it with any restic.
    BackupRepository {
        /// An operator, where there is one.
        #[serde(default)]
        credential: Option<Credential>,
    },
}

/// An operator's name and passphrase. Never logged: `Debug` shows the name only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Operator.
    pub operator: String,
    /// What was typed.
    pub passphrase: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("operator", &self.operator).finish_non_exhaustive()
    }
}

/// A line back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// On the way.
    Progress {
        /// Request.
        id: Value,
        /// How far.
        progress: ProgressText,
    },
    /// Done.
    Done {
        /// Request.
        id: Value,
        /// Structured value.
        ok: Value,
        /// In words.
        text: String,
    },
    /// Not done.
    Error {
        /// Request.
        id: Value,
        /// The `CallError`.
        error: Value,
    },
}

/// One progress line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressText {
    /// 0..=100.
    pub percent: f64,
    /// What it does.
    pub message: String,
}

impl Answer {
    /// A progress line.
    pub fn progress(id: Value, percent: f64, message: String) -> Self {
        Self::Progress { id, progress: ProgressText { percent, message } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hello_line_is_the_documented_one() {
        let hello = Hello { door: HelloDoor::Mcp, agent: Some("deployer".into()), read_only: false, toolsets: None };
        assert_eq!(serde_json::to_string(&hello).expect("serialises"), r#"{"door":"mcp","agent":"deployer","read_only":false}"#);
        assert_eq!(parse_hello(r#"{"door":"mcp","agent":"deployer","read_only":false}"#), Ok(hello));
        for bad in ["", "GET / HTTP/1.1", r#"{"door":"ssh"}"#, r#"{"door":"mcp","agent":"a","uid":0}"#] {
            assert!(parse_hello(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn asks_and_answers_keep_their_wire_form() {
        let ask = |v: Value| serde_json::from_value::<Ask>(v).expect("understood");
        assert_eq!(
            ask(json!({"id": 1, "tool": "status", "input": {}})),
            Ask::Tool { id: json!(1), tool: "status".into(), input: json!({}) }
        );
        assert_eq!(ask(json!({"id": 2, "admin": "info"})), Ask::Admin { id: json!(2), admin: Admin::Info });
        let credential = Credential { operator: "ann".into(), passphrase: "secret".into() };
        let approve = json!({"id": 3, "admin": "approve", "approval": "ap-1", "credential": {"operator": "ann", "passphrase": "secret"}});
        assert_eq!(
            ask(approve),
            Ask::Admin { id: json!(3), admin: Admin::Approve { approval: "ap-1".into(), confirm: None, credential: credential.clone() } }
        );
        assert!(!format!("{credential:?}").contains("secret"));
        assert_eq!(
            serde_json::to_value(Answer::progress(json!(1), 40.0, "starting".into())).expect("serialises"),
            json!({"id": 1, "progress": {"percent": 40.0, "message": "starting"}})
        );
    }
}
