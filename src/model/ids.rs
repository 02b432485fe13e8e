//! Names and ids as newtypes validated at construction. An id that reaches an engine goes into a URL path unescaped,
//! so a value that could leave its path segment must be unwritable, not checked later.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A name was refused: what was asked for and the form it must have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} {value:?}: {rule}")]
pub struct InvalidName {
    /// Kind of name, e.g. `stack`.
    pub kind: &'static str,
    /// The refused text, cut to 80 characters.
    pub value: String,
    /// The form that is accepted.
    pub rule: &'static str,
}

fn refuse(kind: &'static str, value: &str, rule: &'static str) -> InvalidName {
    InvalidName { kind, value: value.chars().take(80).collect(), rule }
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`, at most 200 bytes: the engine's own rule for names, and safe in a URL path.
fn engine_safe(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.len() <= 200
        && b[0].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
        && !s.contains("..")
}

/// `^[a-z0-9][a-z0-9_-]*$`, at most 63 bytes: Compose's rule for project names.
fn project_safe(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.len() <= 63
        && (b[0].is_ascii_lowercase() || b[0].is_ascii_digit())
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-'))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Validates `value`; the error names the accepted form.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                if $check(&value) { Ok(Self(value)) } else { Err(refuse($kind, &value, $rule)) }
            }
            /// The validated text.
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(v: String) -> Result<Self, InvalidName> { Self::new(v) }
        }
        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(v: &str) -> Result<Self, InvalidName> { Self::new(v) }
        }
        impl From<$name> for String {
            fn from(v: $name) -> String { v.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str { &self.0 }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str { &self.0 }
        }
        impl JsonSchema for $name {
            fn inline_schema() -> bool { true }
            fn schema_name() -> std::borrow::Cow<'static, str> { stringify!($name).into() }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string"})
            }
        }
    };
}

name_type!(
    /// A stack (a compose project).
    StackName, "stack", project_safe, "lower-case letters, digits, '-' and '_', starting with a letter or digit, at most 63");
name_type!(
    /// A service of a stack.
    ServiceName, "service", engine_safe, "letters, digits, '_', '.', '-', starting with a letter or digit");
name_type!(
    /// A container, network or volume name or id as given to an engine.
    EngineName, "engine name", engine_safe, "letters, digits, '_', '.', '-', starting with a letter or digit");
name_type!(
    /// An agent's name.
    AgentName, "agent", project_safe, "lower-case letters, digits, '-' and '_', starting with a letter or digit, at most 63");
name_type!(
    /// Id of an operation: `op-` and a ULID in lower case.
    OperationId, "operation id", engine_safe, "the id a deploy, rollback, restart, stop or backup returned");
name_type!(
    /// Id of a stored plan: `plan-` and a ULID in lower case.
    PlanId, "plan id", engine_safe, "the plan_id that `plan` returned");
name_type!(
    /// Id of an approval: `ap-` and a ULID in lower case.
    ApprovalId, "approval id", engine_safe, "the approval_id of a reply in state pending_approval");
name_type!(
    /// Id of a backup snapshot: hexadecimal, as restic prints it.
    SnapshotId, "snapshot id", engine_safe, "the snapshot_id that `backup` or `backups` returned");
name_type!(
    /// Id of an incident: `inc-` and a ULID in lower case.
    IncidentId, "incident id", engine_safe, "the id that `diagnose` showed");
name_type!(
    /// Id of a task: `task-` and a ULID in lower case.
    TaskId, "task id", engine_safe, "the task_id that `task_submit` returned");
name_type!(
    /// Id of one call: `call-` and a ULID in lower case; ties audit rows, spans and replies together.
    CallId, "call id", engine_safe, "an id made by the supervisor");

impl EngineName {
    /// The first twelve characters, as the Docker client shows ids.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min(12)]
    }
}
impl From<StackName> for EngineName {
    fn from(v: StackName) -> Self {
        Self(v.0)
    }
}

/// An image reference (`registry/repo:tag@digest`) or `sha256:` id. Validated so that it is safe in a URL path or query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef(String);

impl ImageRef {
    /// Accepts the characters of a reference, no empty or dot-only path component, at most 512 bytes.
    pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
        let value = value.into();
        let ok = !value.is_empty()
            && value.len() <= 512
            && value.as_bytes()[0].is_ascii_alphanumeric()
            && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-/:@+".contains(&c))
            && value.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
        if ok { Ok(Self(value)) } else { Err(refuse("image reference", &value, "repository[:tag][@sha256:...]")) }
    }
    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl JsonSchema for ImageRef {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ImageRef".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string"})
    }
}
impl TryFrom<String> for ImageRef {
    type Error = InvalidName;
    fn try_from(v: String) -> Result<Self, InvalidName> {
        Self::new(v)
    }
}
impl From<ImageRef> for String {
    fn from(v: ImageRef) -> String {
        v.0
    }
}
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_would_leave_their_path_segment_are_refused() {
        for bad in ["", "x/kill?signal=KILL&", "../x", "a b", "-x", ".x", "a..b", "x\u{0}", "é"] {
            assert!(EngineName::new(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(EngineName::new("web-1.a_b").is_ok());
    }

    #[test]
    fn image_references_cannot_carry_a_query_or_a_dot_segment() {
        for bad in ["", "a/../b", "a?x=y", "a//b", "../a", "a b", "/a", "a/"] {
            assert!(ImageRef::new(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["busybox", "ghcr.io/acme/web:1.2@sha256:00", "localhost:5000/x", "sha256:abc"] {
            assert!(ImageRef::new(good).is_ok(), "{good:?} must be accepted");
        }
    }
}
