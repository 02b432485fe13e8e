//! Verdicts and findings: what a gate says, strictest wins.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a gate decides. Ordered: the strictest of several is `max()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Verdict {
    /// Nothing to say.
    #[default]
    Allow,
    /// Executes; the finding is recorded and returned.
    Warn,
    /// A human must approve this exact plan digest.
    Approval,
    /// Never executes.
    Deny,
}

impl Verdict {
    /// The lower-case word used in audit, replies and policy files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Warn => "warn",
            Self::Approval => "approval",
            Self::Deny => "deny",
        }
    }
}

/// One thing a gate found: the rule, how strict, where, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Finding {
    /// Rule id, e.g. `bind.outside`, or the id of an agent's rule, e.g. `deployer/web-prod`.
    pub rule: String,
    /// What the rule asks for.
    pub verdict: Verdict,
    /// Service concerned, when one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Path in the resolved file, e.g. `services.db.volumes[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why, in words for the caller; never contains a secret value.
    pub because: String,
}
