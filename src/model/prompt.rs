//! A prompt (skill) as MCP clients see it: one Markdown file with front matter.

use serde::{Deserialize, Serialize};

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
    /// Text with `{{argument}}` placeholders.
    pub body: String,
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
