//! Why the call gate says what it says: every rule of the agent with the condition it fails on, the tier, the environment, the limits; and
//! the whole table of agents, tools and environments. Pure, and decides nothing: the verdict is [`call::decide`]'s own.

use super::call::{self, Asked, rule_matches, rule_touches, tier_name};
use super::{ApprovalTerms, CallFacts, RateLimit, Rulebook, ToolFacts, rules};
use crate::model::agent::{Agent, Rule, RuleExample};
use crate::model::ids::{ServiceName, StackName};
use crate::model::verdict::{Finding, Verdict};
use serde::Serialize;
use serde_json::Value;

/// A call as somebody asks about it.
pub fn call_of(
    agent: &str,
    tool: &str,
    mutates: bool,
    stack: Option<StackName>,
    environment: Option<String>,
    service: Option<ServiceName>,
) -> CallFacts {
    let (agent, tool) = (agent.to_owned(), tool.to_owned());
    CallFacts { agent, tool, mutates, stack, environment, service, preview: false, arguments: Default::default(), on_behalf: vec![] }
}

/// One rule of the agent beside the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleTrace {
    /// Id.
    pub rule: String,
    /// What it says where it matches.
    pub effect: Verdict,
    /// Whether it speaks of this call.
    pub matched: bool,
    /// The first condition that keeps it from matching.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_because: Option<String>,
    /// Why it is there.
    pub because: String,
}

/// What would happen to a call, and what plays into it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// What the call gate says; the plan gate judges the plan after it.
    pub verdict: Verdict,
    /// What it goes by.
    pub findings: Vec<Finding>,
    /// Every rule of the agent.
    pub rules: Vec<RuleTrace>,
    /// The agent's tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// What the tier forbids here, whatever the rules say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier_forbids: Option<String>,
    /// Environment the call is judged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Whether that environment is treated as production.
    pub production_like: bool,
    /// What each of those may on whose behalf the call is made, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on_behalf: Vec<OnBehalf>,
    /// Limits the call would count under, as words.
    pub limits: Vec<String>,
    /// Terms of the approval it would need, as words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// What to do to get a denied call through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// One of those on whose behalf a call is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnBehalf {
    /// Agent.
    pub agent: String,
    /// What it may itself.
    pub verdict: Verdict,
    /// Every rule of it.
    pub rules: Vec<RuleTrace>,
}

/// Explains a call.
pub fn explain(book: &Rulebook, facts: &CallFacts) -> Explanation {
    let decision = call::decide(book, facts);
    let agent = book.agents.get(&facts.agent);
    let environment = facts.environment.as_deref();
    let production_like = environment.is_some_and(|e| rules::production_like(&book.policy, e));
    Explanation {
        verdict: decision.verdict,
        findings: decision.findings,
        rules: agent.map(|a| a.rules.iter().map(|r| trace(r, facts)).collect()).unwrap_or_default(),
        tier: agent.map(|a| tier_name(a.tier).to_owned()),
        tier_forbids: agent
            .and_then(|a| call::tier_cap(a.tier, &facts.tool, facts.mutates, environment, production_like))
            .map(str::to_owned),
        environment: facts.environment.clone(),
        production_like,
        on_behalf: facts.on_behalf.iter().map(|name| on_behalf(book, facts, name)).collect(),
        limits: decision.limits.iter().map(limit).collect(),
        approval: decision.approval.as_ref().map(terms),
        hint: decision.hint,
    }
}

fn on_behalf(book: &Rulebook, facts: &CallFacts, name: &str) -> OnBehalf {
    let alone = CallFacts { agent: name.to_owned(), on_behalf: vec![], ..facts.clone() };
    let rules = book.agents.get(name).map(|a| a.rules.iter().map(|r| trace(r, &alone)).collect()).unwrap_or_default();
    OnBehalf { agent: name.to_owned(), verdict: call::decide(book, &alone).verdict, rules }
}

fn limit(l: &RateLimit) -> String {
    format!("{}: at most {} in {} s", l.key, l.max, l.window_s)
}

fn terms(t: &ApprovalTerms) -> String {
    format!("{} approval(s) within {} s, by {}", t.count, t.ttl_s, t.channels.join(" or "))
}

fn trace(rule: &Rule, facts: &CallFacts) -> RuleTrace {
    let asked = Asked::of(facts);
    let matched = rule_matches(rule, &asked) || (rule_touches(rule, &asked) && (!facts.preview || rule.effect == Verdict::Deny));
    // The rule again with one condition after the other: the first with which it no longer matches is the reason.
    let with = |stacks: bool, environments: bool, services: bool| Rule {
        stacks: if stacks { rule.stacks.clone() } else { vec![] },
        environments: if environments { rule.environments.clone() } else { vec![] },
        services: if services { rule.services.clone() } else { vec![] },
        args: Default::default(),
        ..rule.clone()
    };
    let fits = |r: &Rule| rule_matches(r, &asked);
    let not_because = (!matched).then(|| match () {
        () if !fits(&with(false, false, false)) => format!("it speaks of {}", rule.tools.join(", ")),
        () if !fits(&with(true, false, false)) => format!("it is for stacks {}", rule.stacks.join(", ")),
        () if !fits(&with(true, true, false)) => format!("it is for {}", rule.environments.join(", ")),
        () if !fits(&with(true, true, true)) => format!("it is for services {}", rule.services.join(", ")),
        () => format!("it is for calls with {}", super::args::unmet(rule, asked.arguments).unwrap_or_default()),
    });
    RuleTrace { rule: rule.id.clone(), effect: rule.effect, matched, not_because, because: rule.because.clone() }
}

/// One example of a manifest, run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExampleRun {
    /// Agent.
    pub agent: String,
    /// Rule.
    pub rule: String,
    /// `match` or `not_match`.
    pub kind: &'static str,
    /// The call.
    pub call: String,
    /// Whether it is as the manifest says.
    pub passed: bool,
}

/// Runs every example of every manifest.
pub fn examples(book: &Rulebook) -> Vec<ExampleRun> {
    let mut out = vec![];
    for agent in book.agents.values() {
        for rule in &agent.rules {
            out.extend(rule.matches.iter().map(|e| example(agent, rule, e, true)));
            out.extend(rule.not_match.iter().map(|e| example(agent, rule, e, false)));
        }
    }
    out
}

/// Whether a rule speaks of the call of an example.
pub(super) fn example_matches(rule: &Rule, e: &RuleExample) -> bool {
    let arguments = Value::Object(e.args.clone());
    let (stack, environment, service) = (e.stack.as_deref(), e.environment.as_deref(), e.service.as_deref());
    rule_matches(rule, &Asked { tool: &e.tool, stack, environment, service, arguments: &arguments })
}

fn example(agent: &Agent, rule: &Rule, e: &RuleExample, wanted: bool) -> ExampleRun {
    let passed = example_matches(rule, e) == wanted;
    let args = (!e.args.is_empty()).then(|| Value::Object(e.args.clone()).to_string());
    let words = [Some(e.tool.as_str()), e.stack.as_deref(), e.environment.as_deref(), e.service.as_deref(), args.as_deref()];
    let call = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let kind = if wanted { "match" } else { "not_match" };
    ExampleRun { agent: agent.name.to_string(), rule: rule.id.clone(), kind, call, passed }
}

/// One line of the table: an agent, a tool, and the verdict in each environment and for a call without stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MatrixRow {
    /// Agent.
    pub agent: String,
    /// Tool.
    pub tool: String,
    /// Environment and verdict, in the policy's order; `-` is a call that names no stack.
    pub verdicts: Vec<(String, Verdict)>,
    /// Rules that say something else for certain arguments.
    pub by_arguments: Vec<String>,
}

/// Stack the table is made for: a name no shipped rule gives a meaning to.
const ANY: &str = "any";

/// The table over all agents, tools and environments, for a stack of a name no rule singles out. Rules bound to stacks by name show as what
/// they are there: no grant. Those bound to arguments are named beside the row.
pub fn matrix(book: &Rulebook, tools: &[ToolFacts]) -> Vec<MatrixRow> {
    let stack = StackName::new(ANY).ok();
    let of = |agent: &str, tool: &ToolFacts, environment: Option<&String>| {
        let stack = environment.and(stack.clone());
        call::decide(book, &call_of(agent, &tool.name, tool.mutates, stack, environment.cloned(), None)).verdict
    };
    let mut rows = vec![];
    for (agent, rules) in book.agents.iter().map(|(name, a)| (name, &a.rules)) {
        for tool in tools {
            let places = book.policy.environments.keys();
            let mut verdicts: Vec<_> = places.map(|e| (e.clone(), of(agent, tool, Some(e)))).collect();
            verdicts.push(("-".into(), of(agent, tool, None)));
            let bound = rules.iter().filter(|r| !r.args.is_empty() && r.tools.contains(&tool.name)).map(|r| r.id.clone()).collect();
            rows.push(MatrixRow { agent: agent.clone(), tool: tool.name.clone(), verdicts, by_arguments: bound });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::call::tests::{catalogue, shipped};

    fn of(agent: &str, tool: &str, environment: Option<&str>) -> Explanation {
        let stack = environment.map(|_| StackName::new("shop").expect("valid"));
        let mutates = catalogue().iter().any(|t| t.name == tool && t.mutates);
        explain(&shipped(), &call_of(agent, tool, mutates, stack, environment.map(str::to_owned), None))
    }

    fn rules(e: &Explanation) -> Vec<(&str, bool, Option<&str>)> {
        e.rules.iter().map(|r| (r.rule.as_str(), r.matched, r.not_because.as_deref())).collect()
    }

    #[test]
    fn each_rule_says_whether_it_speaks_of_the_call_and_else_why_not() {
        let e = of("deployer", "deploy", Some("production"));
        assert_eq!(e.verdict, Verdict::Approval);
        assert_eq!(
            rules(&e),
            [
                ("try-out", false, Some("it is for development, staging")),
                ("production", true, None),
                ("brake", false, Some("it speaks of cancel")),
            ]
        );
        assert!(e.production_like && e.tier_forbids.is_none());
        assert_eq!(e.approval.as_deref(), Some("1 approval(s) within 1800 s, by operator"));
        assert_eq!(e.limits, ["deployer/*: at most 30 in 60 s", "deployer/production: at most 10 in 3600 s"]);
    }

    #[test]
    fn what_a_tier_forbids_is_told_beside_the_rules() {
        let e = of("backup-keeper", "restore", Some("production"));
        assert_eq!((e.verdict, e.tier.as_deref()), (Verdict::Deny, Some("tier_2_write_limited")));
        assert_eq!(e.tier_forbids.as_deref(), Some("this tier changes nothing in a production-like environment"));
        let nobody = of("nobody", "status", None);
        assert_eq!((nobody.verdict, nobody.rules.len(), nobody.tier), (Verdict::Deny, 0, None));
    }

    #[test]
    fn the_examples_of_the_shipped_agents_pass_and_a_wrong_one_does_not() {
        let book = shipped();
        let all = examples(&book);
        assert!(all.len() >= 15 && all.iter().all(|e| e.passed), "{all:#?}");
        let agent = &book.agents["deployer"];
        let wrong = RuleExample {
            tool: "deploy".into(),
            stack: None,
            environment: Some("production".into()),
            service: None,
            args: Default::default(),
        };
        assert!(!example(agent, &agent.rules[0], &wrong, true).passed && example(agent, &agent.rules[0], &wrong, false).passed);
    }

    #[test]
    fn the_matrix_says_what_the_gate_says() {
        let book = shipped();
        let rows = matrix(&book, &catalogue());
        assert_eq!(rows.len(), book.agents.len() * catalogue().len());
        let row = rows.iter().find(|r| r.agent == "deployer" && r.tool == "deploy").expect("there");
        let word = |e: &str| row.verdicts.iter().find(|(n, _)| n == e).map(|(_, v)| v.as_str());
        assert_eq!((word("development"), word("production"), word("-")), (Some("allow"), Some("approval"), Some("deny")));
    }
}
