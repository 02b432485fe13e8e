//! The call gate: may this agent call this tool on this stack in this environment, before any work is done. Total, pure, default deny;
//! the strictest verdict of everything that matches wins. Deliberately absent: what a plan contains (`gate::plan`), and counting (the
//! limits are returned, the transaction of the audit intent counts).

pub use super::delegation::may_delegate;
use super::load::HOUSE_AGENTS;
use super::{ApprovalTerms, CallFacts, Decision, RateLimit, Rulebook, args, glob, rules};
use crate::model::agent::{Agent, Rule, Tier};
use crate::model::ids::{ServiceName, StackName};
use crate::model::policy::RuleLevel;
use crate::model::verdict::{Finding, Verdict};
use serde_json::Value;

/// Life of an approval when no rule says otherwise: 30 minutes.
pub const APPROVAL_TTL_S: u64 = 30 * 60;
/// Longest life a rule can give: a week. Beyond it nobody remembers what was approved.
const MAX_TTL_S: u64 = 7 * 24 * 3600;
/// Window of the limit an agent has over all its calls, in seconds.
pub const MINUTE_S: u32 = 60;
/// Window of the limits of rules and stacks, in seconds.
const HOUR_S: u32 = 3600;

/// Tools on the agent's own memory and own tasks: they need no rule, nobody else reads or writes them.
pub(super) const OWN_MEMORY: &[&str] = &["memory_read", "memory_search", "memory_write", "task_work"];
/// Mutations that only add a copy or stop something under way. An environment that asks for approval of mutations does not hold them
/// up (a rule can): a nightly backup would never run, and the brake would wait for the person it should protect.
const ADDS_ONLY: &[&str] = &["backup", "verify_backup", "export", "cancel", "memory_write", "task_submit", "task_work"];
/// Mutations that the limited tier has in every environment, where a rule grants them.
const LIMITED_EVERYWHERE: &[&str] = &["backup", "verify_backup", "export", "memory_write", "task_submit", "task_work"];

/// What of a call a rule is held against.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Tool.
    pub tool: &'a str,
    /// Stack.
    pub stack: Option<&'a str>,
    /// Environment.
    pub environment: Option<&'a str>,
    /// Service.
    pub service: Option<&'a str>,
    /// Arguments as given.
    pub arguments: &'a Value,
}

impl<'a> Asked<'a> {
    /// Of a call.
    pub fn of(facts: &'a CallFacts) -> Self {
        Self {
            tool: &facts.tool,
            stack: facts.stack.as_ref().map(StackName::as_str),
            environment: facts.environment.as_deref(),
            service: facts.service.as_ref().map(ServiceName::as_str),
            arguments: &facts.arguments,
        }
    }
}

/// Whether a rule speaks of such a call. A rule with stacks, environments or services never matches a call that names none.
pub fn rule_matches(rule: &Rule, asked: &Asked<'_>) -> bool {
    let Asked { tool, stack, environment, service, arguments } = *asked;
    let fits =
        |patterns: &[String], name: Option<&str>| patterns.is_empty() || name.is_some_and(|n| patterns.iter().any(|p| glob::matches(p, n)));
    rule.tools.iter().any(|t| t == tool)
        && fits(&rule.stacks, stack)
        && (rule.environments.is_empty() || environment.is_some_and(|e| rule.environments.iter().any(|x| x == e)))
        && fits(&rule.services, service)
        && args::fit(rule, arguments)
}

/// Whether a rule that denies or asks for approval speaks of a part of what such a call may touch: a stack's services where the call names none, stacks and
/// environments where it is for the whole host. Naming less is no way around it. It grants nothing.
pub fn rule_touches(rule: &Rule, asked: &Asked<'_>) -> bool {
    let whole = Rule {
        stacks: rule.stacks.iter().filter(|_| asked.stack.is_some()).cloned().collect(),
        environments: rule.environments.iter().filter(|_| asked.environment.is_some()).cloned().collect(),
        services: rule.services.iter().filter(|_| asked.service.is_some()).cloned().collect(),
        ..rule.clone()
    };
    rule.effect >= Verdict::Approval && !OWN_MEMORY.contains(&asked.tool) && rule_matches(&whole, asked)
}

/// A tier as the manifest writes it.
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Tier1Read => "tier_1_read",
        Tier::Tier2WriteLimited => "tier_2_write_limited",
        Tier::Tier3WriteElevated => "tier_3_write_elevated",
        Tier::Tier4Policy => "tier_4_policy",
    }
}

/// Why a tier forbids a call whatever the rules say; `None` when it leaves it to them.
pub fn tier_cap(tier: Tier, tool: &str, mutates: bool, environment: Option<&str>, production_like: bool) -> Option<&'static str> {
    match tier {
        _ if !mutates => None,
        Tier::Tier1Read => Some("this tier only reads"),
        Tier::Tier2WriteLimited if LIMITED_EVERYWHERE.contains(&tool) => None,
        Tier::Tier2WriteLimited if environment.is_none() => {
            Some("this tier changes stacks outside production only, and the call is for the whole host")
        }
        Tier::Tier2WriteLimited => production_like.then_some("this tier changes nothing in a production-like environment"),
        Tier::Tier3WriteElevated => None,
        Tier::Tier4Policy if tool == "memory_write" => None,
        Tier::Tier4Policy => Some("this tier never executes"),
    }
}

/// Seconds of `45s`, `30m`, `2h`, `1d`; `None` for anything else, for zero, and beyond a week.
pub fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|s| (1..=MAX_TTL_S).contains(s))
}

/// Decides one call: what its agent may, narrowed to what everybody may on whose behalf it is made.
pub fn decide(book: &Rulebook, facts: &CallFacts) -> Decision {
    let Some(agent) = book.agents.get(&facts.agent) else {
        return refused(
            "agent.unknown",
            format!("no agent is called {:?}", clip(&facts.agent)),
            "an operator adds agents/<name>.md, or the call names one that exists (`agents` lists them)".into(),
        );
    };
    let mut decision = judge(book, agent, facts);
    if let Some(max) = agent.limits.calls_per_minute {
        decision.limits.insert(0, RateLimit { key: format!("{}/*", agent.name), max, window_s: MINUTE_S });
    }
    if !facts.on_behalf.is_empty() {
        decision = super::delegation::narrow(book, facts, decision);
    }
    if decision.verdict != Verdict::Deny {
        decision.limits.extend(stack_limit(book, facts));
    }
    decision
}

/// The limit a stack has over the changes of all agents. Not counted is what an environment's approval does not hold up either: a nightly backup, the
/// brake, and the loop, which heals within a budget of its own.
fn stack_limit(book: &Rulebook, facts: &CallFacts) -> Option<RateLimit> {
    let (stack, environment) = (facts.stack.as_ref()?, facts.environment.as_deref()?);
    let counted = facts.mutates && !ADDS_ONLY.contains(&facts.tool.as_str()) && !HOUSE_AGENTS.contains(&facts.agent.as_str());
    let max = book.policy.environments.get(environment)?.changes_per_hour.filter(|_| counted)?;
    // No agent can be called `*`.
    Some(RateLimit { key: format!("*/{stack}"), max, window_s: HOUR_S })
}

/// What one agent may, whoever calls.
pub(super) fn judge(book: &Rulebook, agent: &Agent, facts: &CallFacts) -> Decision {
    let tool = facts.tool.as_str();
    if !agent.tools.iter().any(|t| t == tool) {
        let because = format!("{} does not have the tool {:?}", agent.name, clip(tool));
        let has = if agent.tools.is_empty() { "none".to_owned() } else { agent.tools.join(", ") };
        let hint = format!("its tools are: {has}. An operator adds the tool to the `tools:` line of {}", agent.source);
        return refused("tool.not_granted", because, hint);
    }
    let environment = facts.environment.as_deref();
    let stack = facts.stack.as_ref().map(StackName::as_str);
    if let Some(d) = facts.mutates.then(|| unknown_place(book, stack, environment)).flatten() {
        return d;
    }
    let strict = environment.is_some_and(|e| rules::production_like(&book.policy, e));
    if let Some(why) = tier_cap(agent.tier, tool, facts.mutates, environment, strict) {
        let tier = tier_name(agent.tier);
        let hint =
            format!("no rule lifts a tier; an operator raises `tier:` in {}, or an agent of a higher tier makes the call", agent.source);
        return refused(&format!("{}/{tier}", agent.name), format!("{tool} by an agent of {tier}: {why}"), hint);
    }

    // What a rule asks of a tool's changes (approval, an hourly limit) says nothing of a call that changes nothing; a denial holds for both.
    let applies = |r: &&Rule| !facts.preview || r.effect == Verdict::Deny;
    let asked = Asked::of(facts);
    let matched: Vec<&Rule> = agent.rules.iter().filter(|r| rule_matches(r, &asked)).filter(applies).collect();
    let mut findings: Vec<Finding> =
        matched.iter().map(|r| finding(&format!("{}/{}", agent.name, r.id), r.effect, r.because.clone())).collect();
    let granted = matched.iter().any(|r| r.effect <= Verdict::Approval);
    let by_tier = !facts.mutates || OWN_MEMORY.contains(&tool);
    let touched = |r: &&Rule| !matched.iter().any(|m| m.id == r.id) && rule_touches(r, &asked);
    let touched: Vec<&Rule> =
        agent.rules.iter().filter(touched).filter(applies).filter(|r| granted || by_tier || r.effect == Verdict::Deny).collect();
    findings.extend(touched.iter().map(|r| {
        let because = format!("the call names no part of the stack or host, so it may touch what this rule is for: {}", r.because);
        finding(&format!("{}/{}", agent.name, r.id), r.effect, because)
    }));
    let matched: Vec<&Rule> = matched.into_iter().chain(touched).collect();
    if !granted && by_tier {
        let because = if facts.mutates { "its own memory and tasks need no rule" } else { "a read that `tools:` names needs no rule" };
        findings.push(finding(&format!("{}/{}", agent.name, tier_name(agent.tier)), Verdict::Allow, because.into()));
    }
    if !granted && !by_tier {
        findings.push(finding(
            "default.deny",
            Verdict::Deny,
            format!("no rule of {} grants {tool}{}", agent.name, place(stack, environment)),
        ));
    }
    let raised = if facts.mutates { raise(book, agent, tool, stack, environment) } else { None };
    findings.extend(raised.clone());

    let verdict = findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Deny);
    let limits = matched.iter().filter(|r| verdict != Verdict::Deny && r.effect != Verdict::Deny);
    let hour = |key: String, max: Option<u32>| max.map(|max| RateLimit { key, max, window_s: HOUR_S });
    let limits = limits
        .flat_map(|r| {
            let key = format!("{}/{}", agent.name, r.id);
            let on_stack = stack.and_then(|s| hour(format!("{key}/{s}"), r.max_per_hour_per_stack));
            [hour(key, r.max_per_hour), on_stack].into_iter().flatten()
        })
        .collect();
    let approval = (verdict == Verdict::Approval).then(|| {
        let terms = terms(&matched, strict || raised.is_some());
        ApprovalTerms { count: terms.count.max(book.policy.least_approvals(environment)), ..terms }
    });
    let hint = (verdict == Verdict::Deny).then(|| deny_hint(agent, facts, &findings));
    Decision { verdict, findings, limits, approval, hint }
}

/// A mutation of a stack whose environment is not known to the policy has no rules to be judged by.
fn unknown_place(book: &Rulebook, stack: Option<&str>, environment: Option<&str>) -> Option<Decision> {
    let known = || book.policy.environments.keys().cloned().collect::<Vec<_>>().join(", ");
    match environment {
        Some(e) if !book.policy.environments.contains_key(e) => {
            let because = format!("the environment {:?} is not in the policy", clip(e));
            Some(refused(
                "environment.unknown",
                because,
                format!("environments are: {}. An operator adds [environments.{}] to policy.toml", known(), clip(e)),
            ))
        }
        None if stack.is_some() => {
            let because = "the environment of the stack is not known".to_owned();
            Some(refused("environment.unknown", because, format!("name one of: {}", known())))
        }
        Some(_) | None => None,
    }
}

/// What the environment itself asks of mutations of its stacks.
fn raise(book: &Rulebook, agent: &Agent, tool: &str, stack: Option<&str>, environment: Option<&str>) -> Option<Finding> {
    let (_, environment) = (stack?, environment?);
    let id = format!("environment.{environment}");
    match book.policy.environments.get(environment)?.mutations? {
        RuleLevel::Deny if !OWN_MEMORY.contains(&tool) => {
            Some(finding(&id, Verdict::Deny, format!("the policy refuses all changes in {environment}")))
        }
        // The loop heals while nobody is there to approve; what it may do is limited by its manifest and its persisted budget.
        RuleLevel::Approval if ADDS_ONLY.contains(&tool) || HOUSE_AGENTS.contains(&agent.name.as_str()) => None,
        RuleLevel::Approval => Some(finding(&id, Verdict::Approval, format!("changes in {environment} need an operator's approval"))),
        RuleLevel::Deny | RuleLevel::Off | RuleLevel::Allow | RuleLevel::Warn => None,
    }
}

/// Terms of the strictest of the rules that ask for approval: most approvals, shortest life, and only the channels all of them accept.
/// An operator's approval always counts, a client's only where each of them says so, and where the environment is a `guarded` one, each of them for this very
/// environment: one that speaks of all of them did not mean it.
fn terms(matched: &[&Rule], guarded: bool) -> ApprovalTerms {
    let asking: Vec<&&Rule> = matched.iter().filter(|r| r.effect == Verdict::Approval).collect();
    let count = asking.iter().map(|r| r.approvals.unwrap_or(1)).max().unwrap_or(1).max(1);
    let ttl_s = asking.iter().map(|r| r.ttl.as_deref().and_then(seconds).unwrap_or(APPROVAL_TTL_S)).min().unwrap_or(APPROVAL_TTL_S);
    let says = |r: &Rule| r.channels.iter().any(|c| c == super::CLIENT) && !(guarded && r.environments.is_empty());
    let client = !asking.is_empty() && asking.iter().all(|r| says(r));
    let mut channels = vec!["operator".to_owned()];
    if client {
        channels.push(super::CLIENT.into());
    }
    ApprovalTerms { count, ttl_s, channels }
}

/// Says what stands in the way, and the line an operator would add.
fn deny_hint(agent: &Agent, facts: &CallFacts, findings: &[Finding]) -> String {
    if let Some(f) = findings.iter().find(|f| f.verdict == Verdict::Deny && f.rule != "default.deny") {
        let of = if f.rule.starts_with("environment.") { "policy.toml" } else { agent.source.as_str() };
        return format!("{} in {of} stands in the way; only an operator changes it", f.rule);
    }
    let near: Vec<&str> =
        agent.rules.iter().filter(|r| r.effect < Verdict::Deny && r.tools.contains(&facts.tool)).map(|r| r.id.as_str()).collect();
    let near = if near.is_empty() { String::new() } else { format!("; rules that grant {} elsewhere: {}", facts.tool, near.join(", ")) };
    let list = |key: &str, value: Option<&str>| value.map(|v| format!(", {key}: [{v}]")).unwrap_or_default();
    let stack = list("stacks", facts.stack.as_ref().map(StackName::as_str));
    let environment = list("environments", facts.environment.as_deref());
    format!(
        "an operator would add to {} under `rules:`: - {{id: {}, effect: allow, tools: [{}]{stack}{environment}, because: \"...\"}}{near}",
        agent.source,
        facts.tool.replace('_', "-"),
        facts.tool
    )
}

fn place(stack: Option<&str>, environment: Option<&str>) -> String {
    match (stack, environment) {
        (Some(s), Some(e)) => format!(" on {s} in {e}"),
        (Some(s), None) => format!(" on {s}"),
        (None, Some(e)) => format!(" in {e}"),
        (None, None) => String::new(),
    }
}

fn finding(rule: &str, verdict: Verdict, because: String) -> Finding {
    Finding { rule: rule.into(), verdict, service: None, path: None, because }
}

fn refused(rule: &str, because: String, hint: String) -> Decision {
    Decision {
        verdict: Verdict::Deny,
        findings: vec![finding(rule, Verdict::Deny, because)],
        limits: vec![],
        approval: None,
        hint: Some(hint),
    }
}

/// Callers choose names; a reply repeats no more of them than a name can have.
pub(super) fn clip(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
pub(crate) mod tests;
