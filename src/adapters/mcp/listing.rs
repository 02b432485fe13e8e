//! The catalogue in MCP's form, and which part of it a caller is shown: what it may ever call, what its session may do, what it asked for.
//! Deliberately absent: whether a call is allowed; a tool that is not listed is judged by the gate like any other.

use super::Caller;
use crate::gate::{Rulebook, reach};
use crate::tools::{Effect, ToolSpec, catalogue, toolsets};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

struct Entry {
    tool: Tool,
    /// Characters of its JSON.
    size: usize,
}

/// Built once: a tool is the same for everyone.
static ENTRIES: LazyLock<BTreeMap<&'static str, Entry>> = LazyLock::new(|| {
    let entry = |spec: &&'static ToolSpec| {
        let tool = tool(spec);
        let size = serde_json::to_string(&tool).map_or(0, |text| text.len() + 1);
        (spec.name, Entry { tool, size })
    };
    catalogue().iter().map(entry).collect()
});

fn object(value: Value) -> Arc<JsonObject> {
    match value {
        Value::Object(map) => Arc::new(map),
        _ => Arc::new(JsonObject::new()),
    }
}

fn tool(spec: &ToolSpec) -> Tool {
    // The protocol gives destructive and idempotent a meaning only where something is changed; the title stands beside the name.
    let changes = spec.effect != Effect::Read;
    let destructive = changes.then_some(spec.effect == Effect::Destructive);
    let hints = ToolAnnotations::from_raw(None, Some(!changes), destructive, changes.then_some(spec.idempotent), Some(false));
    Tool::new(spec.name, spec.description, object((spec.input_schema)()))
        .with_title(spec.title)
        .with_raw_output_schema(object((spec.output_schema)()))
        .with_annotations(hints)
}

/// What a caller may ever call in this session, in the catalogue's order (sorted by name).
pub fn callable(rulebook: &Rulebook, caller: &Caller) -> Vec<&'static ToolSpec> {
    let Some(agent) = rulebook.agents.get(caller.agent.as_str()) else { return vec![] };
    let may = |s: &&'static ToolSpec| {
        let mutates = s.effect != Effect::Read;
        !(mutates && caller.read_only) && reach::may_ever(rulebook, agent, s.name, mutates)
    };
    catalogue().iter().copied().filter(may).collect()
}

/// What a caller is shown of it.
pub fn listed(rulebook: &Rulebook, caller: &Caller) -> Vec<&'static ToolSpec> {
    caller.toolsets.pick(&callable(rulebook, caller), |spec| ENTRIES.get(spec.name).map_or(0, |e| e.size))
}

/// The same in MCP's form.
pub fn tools(specs: &[&'static ToolSpec]) -> Vec<Tool> {
    specs.iter().filter_map(|s| ENTRIES.get(s.name)).map(|e| e.tool.clone()).collect()
}

/// One tool in MCP's form.
pub fn tool_of(name: &str) -> Option<Tool> {
    ENTRIES.get(name).map(|e| e.tool.clone())
}

/// Names of groups a caller has tools of that it is not shown, for the hint in the instructions.
pub fn hidden_groups(callable: &[&'static ToolSpec], listed: &[&'static ToolSpec]) -> Vec<&'static str> {
    let hidden = |name: &str| callable.iter().any(|s| s.name == name) && !listed.iter().any(|s| s.name == name);
    toolsets::TOOLSETS.iter().filter(|(.., tools)| tools.iter().any(|t| hidden(t))).map(|(name, ..)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::AgentName;
    use crate::tools::toolsets::Selection;

    fn shipped() -> Rulebook {
        let dir = tempfile::tempdir().expect("directory");
        crate::app::rules::load(dir.path()).expect("the shipped files load").0
    }

    fn caller(agent: &str, read_only: bool, toolsets: &str) -> Caller {
        let toolsets = Selection::parse(toolsets).expect("known");
        Caller { agent: AgentName::new(agent).expect("a name"), read_only, toolsets }
    }

    fn names(caller: &Caller) -> Vec<&'static str> {
        listed(&shipped(), caller).iter().map(|s| s.name).collect()
    }

    /// Characters of `tools/list`, about four a token.
    fn size(caller: &Caller) -> usize {
        serde_json::to_string(&tools(&listed(&shipped(), caller))).expect("serialises").len()
    }

    #[test]
    fn the_list_of_tools_stays_small() {
        for agent in [
            "observer",
            "deployer",
            "backup-keeper",
            "stack-keeper",
            "incident-responder",
            "docker-stack-orchestrator",
            "devops-automation",
        ] {
            let size = size(&caller(agent, false, ""));
            assert!(size < 16_000, "{agent}: {size} characters are {} tokens", size / 4);
        }
        let all = size(&caller("stack-keeper", false, "all"));
        assert!(all < 36_000, "all: {all} characters are {} tokens", all / 4);
    }

    #[test]
    fn an_agent_sees_all_of_its_tools_when_they_are_few_and_the_default_ones_otherwise() {
        assert_eq!(names(&caller("observer", false, "")).len(), 15);
        let keeper = names(&caller("stack-keeper", false, ""));
        assert!(keeper.contains(&"deploy") && !keeper.contains(&"prune"), "{keeper:?}");
        assert!(names(&caller("stack-keeper", false, "all")).contains(&"prune"));
    }

    #[test]
    fn read_only_wins_over_every_wish() {
        for wish in ["all", "change", "deploy", ""] {
            let seen = listed(&shipped(), &caller("stack-keeper", true, wish));
            assert!(seen.iter().all(|s| s.effect == Effect::Read), "{wish}");
        }
    }

    #[test]
    fn what_no_rule_grants_is_not_shown_whatever_is_asked_for() {
        assert!(!names(&caller("backup-keeper", false, "all")).contains(&"deploy"));
        assert!(names(&caller("nobody", false, "all")).is_empty());
    }
}
