//! Which addresses tell of changes, and which change concerns which address. Deliberately absent: who may follow them (`subscribe`, by the gate).

use super::resources;
use crate::adapters::changes::Change;
use crate::store::appended::{Part, Row, looks};
use std::collections::BTreeMap;

/// What an address is about, as far as changes are told.
#[derive(Debug, PartialEq)]
pub enum Topic {
    /// Every stack.
    Stacks,
    /// A stack, or something of it.
    Stack(String),
    /// Agents and what they may do.
    Agents,
    /// Rows of the audit log with these values.
    Log(BTreeMap<String, String>),
    /// A part of an agent's memory.
    Memory(String, Part),
}

/// Filters that choose among rows which are there already: such a page does not change.
const PAST: [&str; 2] = ["cursor", "until"];

/// The topic of an address; `None` where no change is ever told.
pub fn topic(uri: &str) -> Option<Topic> {
    let (path, query) = resources::split(uri)?;
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["stacks"] => Some(Topic::Stacks),
        ["stacks", stack, ..] => Some(Topic::Stack((*stack).to_owned())),
        ["agents", ..] => Some(Topic::Agents),
        ["memory", agent, "context"] => Some(Topic::Memory((*agent).to_owned(), Part::Context)),
        ["memory", agent, "history"] => Some(Topic::Memory((*agent).to_owned(), Part::History)),
        ["audit"] => {
            let filter: BTreeMap<String, String> = query.into_iter().collect();
            let never = PAST.iter().any(|key| filter.contains_key(*key)) || filter.get("tool").is_some_and(|tool| looks(tool));
            (!never).then_some(Topic::Log(filter))
        }
        _ => None,
    }
}

impl Topic {
    /// Whether a change concerns it.
    pub fn concerned_by(&self, change: &Change) -> bool {
        match (self, change) {
            (_, Change::Missed) => true,
            (Self::Stacks, Change::Stack(_) | Change::Stacks) | (Self::Agents, Change::Rules) => true,
            (Self::Stack(mine), Change::Stack(stack)) => mine == stack,
            (Self::Log(filter), Change::Log(rows)) => rows.iter().any(|row| fits(filter, row)),
            (Self::Memory(mine, of), Change::Memory(agent, part)) => mine == agent.as_str() && of == part,
            (
                Self::Stacks | Self::Stack(_) | Self::Agents | Self::Log(_) | Self::Memory(..),
                Change::Stack(_) | Change::Stacks | Change::Rules | Change::Log(_) | Change::Memory(..),
            ) => false,
        }
    }
}

/// Whether a row is among those a filter shows. `since` was a moment before it in any case.
fn fits(filter: &BTreeMap<String, String>, row: &Row) -> bool {
    filter.iter().all(|(key, wanted)| match key.as_str() {
        "agent" => *wanted == row.agent,
        "tool" => *wanted == row.tool,
        "stack" => row.stack.as_ref() == Some(wanted),
        "verdict" => *wanted == row.verdict.as_str(),
        "outcome" => row.outcome.as_ref() == Some(wanted),
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::AgentName;
    use crate::model::verdict::Verdict;
    use std::sync::Arc;

    fn hears(path: &str, change: &Change) -> bool {
        topic(&format!("{}{path}", resources::SCHEME)).is_some_and(|t| t.concerned_by(change))
    }

    #[test]
    fn a_change_concerns_the_stack_and_what_is_under_it() {
        let change = Change::Stack("shop".into());
        for path in ["stacks", "stacks/shop", "stacks/sh%6Fp", "stacks/shop/health", "stacks/shop/releases/3"] {
            assert!(hears(path, &change), "{path}");
        }
        for path in ["stacks/shop2", "stacks/sho", "agents", "audit", "memory/shop/context"] {
            assert!(!hears(path, &change), "{path}");
        }
        assert_eq!(topic("other://stacks"), None);
        assert!(hears("agents/observer", &Change::Rules) && !hears("audit", &Change::Rules));
    }

    #[test]
    fn rows_of_the_audit_log_concern_those_who_asked_for_such_rows() {
        let row = |tool: &str, verdict, outcome: Option<&str>| Row {
            agent: "deployer".into(),
            tool: tool.into(),
            stack: Some("shop".into()),
            verdict,
            outcome: outcome.map(str::to_owned),
        };
        let rows = [row("deploy", Verdict::Allow, None), row("stop", Verdict::Deny, Some("denied"))];
        let change = Change::Log(Arc::new(rows.into()));
        for query in ["", "?agent=deployer", "?stack=shop&since=2h", "?tool=stop&verdict=deny", "?outcome=denied", "?tool=d%65ploy"] {
            assert!(hears(&format!("audit{query}"), &change), "{query}");
        }
        // One row must have all of it.
        for query in ["?agent=observer", "?stack=bank", "?tool=deploy&verdict=deny", "?outcome=ok", "?verdict=warn"] {
            assert!(!hears(&format!("audit{query}"), &change), "{query}");
        }
        assert!(!hears("stacks/shop", &change), "the engine tells of stacks");
    }

    #[test]
    fn a_memory_concerns_who_follows_that_part_of_it() {
        let change = Change::Memory(AgentName::new("observer").expect("valid"), Part::Context);
        assert!(hears("memory/observer/context", &change));
        assert!(!hears("memory/observer/history", &change) && !hears("memory/deployer/context", &change));
    }

    #[test]
    fn what_never_changes_tells_nothing() {
        for path in
            ["audit?cursor=7", "audit?until=2h", "audit?tool=audit", "audit?tool=memory_read", "audit?x", "memory/observer", "stacksx", ""]
        {
            assert_eq!(topic(&format!("{}{path}", resources::SCHEME)), None, "{path}");
        }
        for path in ["stacks", "stacks/shop/operations/op-1", "agents", "agents/observer", "audit", "audit?stack=shop"] {
            assert!(hears(path, &Change::Missed), "{path}");
        }
    }
}
