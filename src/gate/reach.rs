//! What an agent could ever be allowed, for listing: a tool no rule can let through is not shown to its model. Pure; errs on the side of
//! showing, since the gate decides each call anyway. Deliberately absent: any decision about a call.

use super::call::{OWN_MEMORY, tier_cap};
use super::{Rulebook, rules};
use crate::model::agent::{Agent, Rule};
use crate::model::verdict::Verdict;

/// Whether some call of this tool by this agent could get past the call gate.
pub fn may_ever(book: &Rulebook, agent: &Agent, tool: &str, mutates: bool) -> bool {
    let speaks = |r: &&Rule| r.tools.iter().any(|t| t == tool);
    let everywhere = |r: &Rule| r.stacks.is_empty() && r.environments.is_empty() && r.services.is_empty() && r.args.is_empty();
    let capped = |e: Option<&str>| {
        let strict = e.is_some_and(|e| rules::production_like(&book.policy, e));
        tier_cap(agent.tier, tool, mutates, e, strict).is_some()
    };
    let granted = || !mutates || OWN_MEMORY.contains(&tool) || agent.rules.iter().filter(speaks).any(|r| r.effect < Verdict::Deny);
    agent.tools.iter().any(|t| t == tool)
        && !agent.rules.iter().filter(speaks).any(|r| r.effect == Verdict::Deny && everywhere(r))
        && !(capped(None) && book.policy.environments.keys().all(|e| capped(Some(e))))
        && granted()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::call::tests::catalogue;

    fn book(front: &str) -> Rulebook {
        let text = format!("---\nname: x\ndescription: d\n{front}\n---\nprompt\n");
        let policy = include_str!("../../agents/policy.toml");
        Rulebook::build(vec![("x.md".into(), text)], policy, &catalogue()).expect("loads")
    }

    fn shown(book: &Rulebook) -> Vec<String> {
        let agent = &book.agents["x"];
        let mut seen: Vec<String> = catalogue().into_iter().filter(|t| may_ever(book, agent, &t.name, t.mutates)).map(|t| t.name).collect();
        seen.sort();
        seen
    }

    #[test]
    fn a_tool_that_no_rule_grants_is_not_shown() {
        let front = "tools: status, logs, deploy, stop, memory_write, backup
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - {id: a, effect: approval, tools: [deploy], environments: [production], because: b, match: [{tool: deploy, stack: s, environment: production}]}
    - {id: n, effect: deny, tools: [logs], because: b, match: [{tool: logs}]}
    - {id: p, effect: deny, tools: [status], stacks: [\"db-*\"], because: b, match: [{tool: status, stack: db-1}]}";
        assert_eq!(shown(&book(front)), ["deploy", "memory_write", "status"]);
    }

    #[test]
    fn a_tier_that_only_reads_shows_what_reads() {
        let front = "tools: status, plan\ndockwarden:\n  tier: tier_1_read";
        assert_eq!(shown(&book(front)), ["plan", "status"]);
    }
}
