//! Configs and secrets: where a service sees them, and where their content comes from.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A config or secret mounted into a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMount {
    /// Key of the config or secret.
    pub source: String,
    /// Absolute path inside (`/run/secrets/<source>` and `/<source>` by default).
    pub target: String,
    /// Target as written.
    #[serde(default)]
    pub written_target: Option<String>,
    /// Owner.
    pub uid: Option<String>,
    /// Group.
    pub gid: Option<String>,
    /// Mode, e.g. 0o444.
    pub mode: Option<u32>,
}

/// Where a config's or secret's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileObject {
    /// Engine name (`name:` or `<stack>_<key>`).
    pub name: String,
    /// Kept outside of this stack.
    pub external: bool,
    /// Absolute host path, when `file:`.
    pub file: Option<String>,
    /// Literal content: `content:`, or read from `file:`/`environment:` by the loader. Encrypted at rest, never shown.
    pub content: Option<String>,
    /// What tells the content of a `file:` that is mounted as it is (no text, a directory, too long to be copied) from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Name of the variable, when `environment:`.
    pub environment: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver or template driver asked for.
    pub driver: Option<String>,
    /// Options of the driver.
    #[serde(default)]
    pub driver_opts: BTreeMap<String, String>,
    /// Template driver.
    #[serde(default)]
    pub template_driver: Option<String>,
}
