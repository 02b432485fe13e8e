//! A skill: one Markdown file with front matter. Without steps it is a prompt for a model, as MCP clients see it; with steps a runbook.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Name.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// Arguments.
    pub arguments: Vec<PromptArgument>,
    /// Text with `{{argument}}` placeholders; of a runbook the form of its report, with `{{steps.ID}}` for what a step answered.
    pub body: String,
    /// Calls in order, for a skill that needs no model: a runbook. Empty = a prompt.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// How often a task of this skill is tried.
    #[serde(default)]
    pub retry: Retry,
}

/// How often something is tried; what is not given comes from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Tries.
    pub tries: Option<u32>,
    /// Pause before the second one, in seconds; it doubles with each.
    pub pause_s: Option<u32>,
}

/// One call of a runbook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name by which later steps and the report mean its reply.
    pub id: String,
    /// Tool.
    pub tool: String,
    /// Arguments; texts may hold `{{argument}}`, `{{steps.ID.path}}`, `{{item.path}}`. A text that is one placeholder keeps the type of what it stands for.
    #[serde(default)]
    pub input: Map<String, Value>,
    /// Made only if this is so: `{{...}}`, `not {{...}}`, `{{...}} == text`, `{{...}} != text` (or another placeholder), several joined by `and`.
    #[serde(default)]
    pub when: Option<String>,
    /// Made once for each element of this list: one placeholder.
    #[serde(default)]
    pub each: Option<String>,
    /// A failure is noted and the next step is made.
    #[serde(default)]
    pub continue_on_error: bool,
}

/// One argument of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptArgument {
    /// Name.
    pub name: String,
    /// What it means.
    pub description: String,
    /// Whether it must be given.
    #[serde(default)]
    pub required: bool,
}
