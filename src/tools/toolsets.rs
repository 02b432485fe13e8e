//! Groups of tools a client can ask for, since every listed tool is paid for in its model's context. Listing only: which of them may be
//! called, on what, is the gate's alone. Deliberately absent: protocols, and the sizes they give a tool.

use super::{Effect, ToolSpec, nearest};
use crate::call::CallError;
use crate::call::error::ErrorCode;
use std::collections::BTreeSet;

/// Name, meaning and tools of each group. A tool can be in several; each is in one at least.
pub const TOOLSETS: &[(&str, &str, &[&str])] = &[
    ("observe", "what runs, how well, and what it was", &["diagnose", "health", "history", "logs", "operation", "stats", "status"]),
    (
        "change",
        "plans and what carries them out",
        &["approval", "cancel", "deploy", "operation", "plan", "restart", "rollback", "scale", "stop"],
    ),
    ("data", "backups, restores, cleaning up", &["backup", "backups", "export", "operation", "prune", "restore", "verify_backup"]),
    ("memory", "the agent's own notes", &["memory_read", "memory_search", "memory_write"]),
    ("tasks", "work for agents", &["agents", "cancel", "task_submit", "task_work", "tasks"]),
    ("govern", "who may what, and who did what", &["agents", "approval", "audit"]),
];

/// What a client that asks for nothing gets when all its tools together are too large.
const DEFAULT: &[&str] = &[
    "approval",
    "cancel",
    "deploy",
    "diagnose",
    "health",
    "history",
    "logs",
    "operation",
    "plan",
    "restart",
    "rollback",
    "status",
    "stop",
];

/// Most characters of a default list: 4,000 tokens of about four characters.
pub const DEFAULT_BUDGET: usize = 16_000;

/// Which tools a client wants listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    all: bool,
    default: bool,
    tools: BTreeSet<&'static str>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { all: false, default: true, tools: BTreeSet::new() }
    }
}

impl Selection {
    /// Reads `default`, `all`, or names of groups and tools, separated by commas; nothing means `default`.
    ///
    /// # Errors
    /// `InvalidArgument` with the nearest names.
    pub fn parse(text: &str) -> Result<Self, CallError> {
        let words: Vec<&str> = text.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
        if words.is_empty() {
            return Ok(Self::default());
        }
        let mut selection = Self { all: false, default: false, tools: BTreeSet::new() };
        for word in words {
            let group = TOOLSETS.iter().find(|(name, ..)| *name == word);
            match (word, group) {
                ("all", _) => selection.all = true,
                ("default", _) => selection.default = true,
                (_, Some((_, _, tools))) => selection.tools.extend(*tools),
                (word, None) => match super::catalogue().iter().find(|s| s.name == word) {
                    Some(spec) => drop(selection.tools.insert(spec.name)),
                    None => return Err(unknown(word)),
                },
            }
        }
        Ok(selection)
    }

    /// Picks from the tools a principal may call. Without a wish it is all of them while they fit into the budget, else its part of the
    /// default group; `size` is what one costs in the client's list.
    pub fn pick(&self, callable: &[&'static ToolSpec], size: impl Fn(&ToolSpec) -> usize) -> Vec<&'static ToolSpec> {
        let fits = callable.iter().map(|s| size(s)).sum::<usize>() < DEFAULT_BUDGET;
        let wanted =
            |s: &&'static ToolSpec| self.all || self.tools.contains(s.name) || (self.default && (fits || DEFAULT.contains(&s.name)));
        callable.iter().copied().filter(wanted).collect()
    }
}

fn unknown(word: &str) -> CallError {
    let names: Vec<&str> = TOOLSETS.iter().map(|(name, ..)| *name).chain(["default", "all"]).collect();
    let near = nearest(word, names.iter().copied().chain(super::catalogue().iter().map(|s| s.name)));
    let near = if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) };
    let message = format!("there is no toolset {:?}", crate::redact::line(word, 64));
    CallError::new(ErrorCode::InvalidArgument, message, format!("{near}Toolsets are {}, or name tools", names.join(", "))).field("toolsets")
}

/// Whether a tool is left to a session that only reads.
pub fn reads(spec: &ToolSpec) -> bool {
    spec.effect == Effect::Read
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::catalogue;

    fn names(selection: &str, size: usize) -> Vec<&'static str> {
        Selection::parse(selection).expect("known").pick(catalogue(), |_| size).iter().map(|s| s.name).collect()
    }

    #[test]
    fn every_tool_is_in_a_group_and_every_group_has_tools_that_exist() {
        for spec in catalogue() {
            assert!(TOOLSETS.iter().any(|(.., tools)| tools.contains(&spec.name)), "{} is in no toolset", spec.name);
        }
        for name in TOOLSETS.iter().flat_map(|(.., tools)| *tools).chain(DEFAULT) {
            assert!(catalogue().iter().any(|s| s.name == *name), "{name} is no tool");
        }
    }

    #[test]
    fn a_client_gets_what_it_asks_for_in_the_order_of_the_catalogue() {
        assert_eq!(names("memory", 1), ["memory_read", "memory_search", "memory_write"]);
        assert_eq!(names(" plan, memory_read ,", 1), ["memory_read", "plan"]);
        assert_eq!(names("all", 100_000).len(), catalogue().len());
        assert_eq!(names("", 1).len(), catalogue().len(), "all of them fit");
        assert_eq!(names("", 1_000), DEFAULT, "too large for a list nobody asked for");
        assert_eq!(names("default,audit", 1_000).len(), DEFAULT.len() + 1);
    }

    #[test]
    fn an_unknown_group_is_named_with_the_nearest() {
        let e = Selection::parse("memroy").expect_err("refused");
        assert_eq!((e.field.as_deref(), e.hint.contains("did you mean memory")), (Some("toolsets"), true), "{e}");
    }
}
