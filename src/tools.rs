//! stub: the catalogue of tools
use serde_json::Value;

/// What a tool does to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Reads.
    Read,
    /// Changes, can be undone.
    Write,
    /// Changes, may lose something.
    Destructive,
}

/// A tool as doors show it.
#[derive(Debug)]
pub struct ToolSpec {
    /// Name.
    pub name: &'static str,
    /// Title for people.
    pub title: &'static str,
    /// What it does, when to use it, in at most three sentences.
    pub description: &'static str,
    /// Effect.
    pub effect: Effect,
    /// Calling again with the same arguments changes nothing more.
    pub idempotent: bool,
    /// JSON Schema of the input (root `type: object`, no `$ref`, no root combinators).
    pub input_schema: fn() -> Value,
    /// JSON Schema of the output.
    pub output_schema: fn() -> Value,
}

/// All tools, sorted by name.
pub fn catalogue() -> &'static [&'static ToolSpec] {
    todo!()
}
