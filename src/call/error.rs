//! The error a caller sees: a stable code, the cause, and what to do next. The detail goes to the log only.

use crate::model::verdict::Finding;
use serde::Serialize;
use serde_json::Value;

/// Stable codes, part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ErrorCode {
    /// Arguments are wrong.
    InvalidArgument,
    /// No such tool.
    UnknownTool,
    /// No such stack, service, release, operation, snapshot, ...
    NotFound,
    /// The gate said no.
    Denied,
    /// A limit was reached.
    RateLimited,
    /// Another operation holds the stack.
    Busy,
    /// The world moved since the plan was made.
    StalePlan,
    /// Name or state is in the way.
    Conflict,
    /// Read-only checks found what would make it fail.
    Preflight,
    /// The operation failed and was undone.
    Failed,
    /// The engine does not answer.
    EngineUnavailable,
    /// A registry wants credentials.
    RegistryUnauthorized,
    /// The disk of the home is full.
    StorageFull,
    /// The supervisor's own fault.
    Internal,
}

/// What a caller is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallError {
    /// Code.
    pub code: ErrorCode,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// Field or path concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Rules that matched, for denials.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Anything structured that helps (operation, evidence).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// For the log only.
    #[serde(skip)]
    pub detail: Option<String>,
}

impl CallError {
    /// An error with its cause and what to do next.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into(), field: None, findings: vec![], data: None, detail: None }
    }
    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
    /// Adds structured data.
    #[must_use]
    pub fn data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }
    /// Adds the detail for the log.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nhint: {}", self.message, self.hint)
    }
}
impl std::error::Error for CallError {}

impl From<crate::store::StoreError> for CallError {
    fn from(e: crate::store::StoreError) -> Self {
        use crate::store::StoreError as S;
        match &e {
            S::Superseded { .. } => {
                Self::new(ErrorCode::Busy, e.to_string(), "call `status` and `operation` to see what holds it, then try again")
            }
            S::KeyReused { .. } => {
                Self::new(ErrorCode::Conflict, e.to_string(), "use another idempotency_key, or repeat the call with the same arguments")
            }
            S::Frozen => Self::new(
                ErrorCode::Denied,
                "an operator froze all changes before this one began",
                "an operator lifts it with `dockwarden unfreeze`",
            ),
            S::Full { .. } => Self::new(
                ErrorCode::StorageFull,
                "the disk of the supervisor's home is full, so the call could not be recorded and was not done",
                "free space there, or `prune`: until then only restart, rollback, stop, prune and calls from the command line are taken",
            )
            .detail(e.to_string()),
            _ => Self::new(
                ErrorCode::Internal,
                "the supervisor could not read or write its state",
                "run `dockwarden doctor`; nothing was changed after this point",
            )
            .detail(e.to_string()),
        }
    }
}

impl From<crate::engine::EngineError> for CallError {
    fn from(e: crate::engine::EngineError) -> Self {
        use crate::engine::EngineError as E;
        let text = e.to_string();
        match e {
            E::NotFound { .. } => Self::new(ErrorCode::NotFound, text, "call `status` to see what exists"),
            E::Conflict(_) => Self::new(ErrorCode::Conflict, text, "call `status` to see what is in the way"),
            E::Refused(_) => Self::new(ErrorCode::Failed, text, "change what the engine refused and plan again"),
            E::Unauthorized { ref registry, .. } => {
                let hint = format!(
                    "an operator puts a config.json with credentials for {registry} into the directory DOCKER_CONFIG names for the supervisor \
                     (without it: .docker in its user's home), then call again"
                );
                Self::new(ErrorCode::RegistryUnauthorized, text, hint)
            }
            E::Unreachable { .. } | E::Timeout { .. } => {
                Self::new(ErrorCode::EngineUnavailable, text, "check the engine (`dockwarden doctor`), then call again")
            }
            E::Protocol(_) => {
                Self::new(ErrorCode::Internal, "the engine's answer was not understood", "run `dockwarden doctor`").detail(text)
            }
        }
    }
}
