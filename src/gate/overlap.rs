//! Rules of one agent that another of its rules always overrules: they look like a grant and are none. Errs on the side of silence: what it names is dead.

use super::glob;
use crate::model::agent::Rule;
use crate::model::verdict::Verdict;

/// Rules that never decide anything, each with the stricter one that speaks of all its calls.
pub(super) fn dead(rules: &[Rule]) -> Vec<(&Rule, &Rule)> {
    let granting = rules.iter().filter(|r| r.effect < Verdict::Deny);
    granting.filter_map(|r| rules.iter().find(|o| o.effect > r.effect && covers(o, r) && !counts(r, o)).map(|o| (r, o))).collect()
}

/// A rule that only adds a limit to an approval still says something.
fn counts(rule: &Rule, by: &Rule) -> bool {
    by.effect < Verdict::Deny && (rule.max_per_hour.is_some() || rule.max_per_hour_per_stack.is_some())
}

/// Whether every call the inner rule speaks of is one of the outer rule, too.
fn covers(outer: &Rule, inner: &Rule) -> bool {
    let names = |outer: &[String], inner: &[String]| {
        let by_one = |p: &String| outer.iter().any(|o| o == p || o == "*" || (!p.contains(['*', '?']) && glob::matches(o, p)));
        outer.is_empty() || (!inner.is_empty() && inner.iter().all(by_one))
    };
    let words = |outer: &[String], inner: &[String]| outer.is_empty() || (!inner.is_empty() && inner.iter().all(|w| outer.contains(w)));
    words(&outer.tools, &inner.tools)
        && !outer.tools.is_empty()
        && names(&outer.stacks, &inner.stacks)
        && words(&outer.environments, &inner.environments)
        && names(&outer.services, &inner.services)
        && outer.args.iter().all(|(path, c)| inner.args.get(path) == Some(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        yaml_serde::from_str(&format!("{{because: b, {text}}}")).expect("a rule")
    }

    #[test]
    fn only_what_is_wholly_behind_a_stricter_rule_is_dead() {
        let cases = [
            ("id: a, effect: allow, tools: [deploy]", "id: b, effect: deny, tools: [deploy, stop]", true),
            (
                "id: a, effect: approval, tools: [deploy], stacks: [web-1]",
                "id: b, effect: deny, tools: [deploy], stacks: [\"web-*\"]",
                true,
            ),
            ("id: a, effect: allow, tools: [deploy], environments: [staging]", "id: b, effect: approval, tools: [deploy]", true),
            ("id: a, effect: allow, tools: [deploy], args: {wait: {equals: true}}", "id: b, effect: deny, tools: [deploy]", true),
            ("id: a, effect: allow, tools: [deploy], max_per_hour: 3", "id: b, effect: deny, tools: [deploy]", true),
            ("id: a, effect: allow, tools: [deploy], max_per_hour: 3", "id: b, effect: approval, tools: [deploy]", false),
            ("id: a, effect: allow, tools: [deploy, stop]", "id: b, effect: deny, tools: [deploy]", false),
            (
                "id: a, effect: allow, tools: [deploy], stacks: [\"web-*\"]",
                "id: b, effect: deny, tools: [deploy], stacks: [\"*-1\"]",
                false,
            ),
            ("id: a, effect: allow, tools: [deploy]", "id: b, effect: deny, tools: [deploy], environments: [staging]", false),
            ("id: a, effect: allow, tools: [deploy]", "id: b, effect: deny, tools: [deploy], args: {wait: {equals: true}}", false),
            ("id: a, effect: allow, tools: [deploy]", "id: b, effect: allow, tools: [deploy]", false),
        ];
        for (one, other, expected) in cases {
            let rules = [rule(one), rule(other)];
            let dead: Vec<&str> = dead(&rules).iter().map(|(r, _)| r.id.as_str()).collect();
            assert_eq!(dead, if expected { vec!["a"] } else { vec![] }, "{one} / {other}");
        }
    }
}
