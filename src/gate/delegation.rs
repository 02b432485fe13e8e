//! Work handed from agent to agent: who may give it to whom, and that nobody gains by it. A call made on behalf of others is allowed only as far as its
//! agent and each of them may. Pure. Deliberately absent: tasks themselves, and counting.

use super::call::judge;
use super::load::{HOUSE_AGENTS, LoadProblem};
use super::{ApprovalTerms, CallFacts, Decision, Rulebook};
use crate::model::agent::Agent;
use crate::model::verdict::{Finding, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Longest chain of hands a piece of work may go through. Beyond it nobody answers for what is done.
pub const MOST_HANDS: usize = 8;

/// Whether an agent may hand work to another. To itself it may: nothing is gained by it.
///
/// # Errors
/// The rule that stands in the way: `delegation.unknown`, `delegation.not_granted` or `delegation.conflict`.
pub fn may_delegate(book: &Rulebook, from: &str, to: &str) -> Result<(), Finding> {
    let (giver, taker) = (known(book, from)?, known(book, to)?);
    if from == to {
        return Ok(());
    }
    if HOUSE_AGENTS.contains(&to) {
        return Err(denied("delegation.not_granted", format!("{to} is the supervisor's own agent: nobody hands it work")));
    }
    conflict(giver, taker)?;
    if !giver.can_delegate_to.iter().any(|a| a == to) {
        let listed = if giver.can_delegate_to.is_empty() { "nobody".to_owned() } else { giver.can_delegate_to.join(", ") };
        let because = format!("{from} may hand work to {listed}; an operator adds {to} to can_delegate_to in {}", giver.source);
        return Err(denied("delegation.not_granted", because));
    }
    Ok(())
}

/// Narrows what its agent may to what everybody may on whose behalf the call is made. The agent's own limit a minute counts, the hourly limits of all.
pub(super) fn narrow(book: &Rulebook, facts: &CallFacts, mut decision: Decision) -> Decision {
    if let Err(broken) = chain(book, facts) {
        let hint = format!("{}; an operator changes who may work for whom", broken.because);
        decision.findings.push(broken);
        return denial(decision, Some(hint));
    }
    let mut seen = BTreeSet::from([facts.agent.as_str()]);
    for name in facts.on_behalf.iter().filter(|n| seen.insert(n)) {
        let Some(agent) = book.agents.get(name) else { continue };
        let theirs = judge(book, agent, facts);
        decision.verdict = decision.verdict.max(theirs.verdict);
        decision.hint = decision.hint.or_else(|| theirs.hint.map(|h| format!("the work is done for {name}, who needs the right too: {h}")));
        decision.approval = stricter(decision.approval, theirs.approval);
        decision.limits.extend(theirs.limits);
        let new = theirs.findings.into_iter().filter(|f| !f.rule.starts_with("environment.") || !decision.findings.contains(f));
        let new: Vec<Finding> = new.map(|f| Finding { because: format!("{} (on behalf of {name})", f.because), ..f }).collect();
        decision.findings.extend(new);
    }
    if decision.verdict == Verdict::Deny {
        let hint = decision.hint.take();
        return denial(decision, hint);
    }
    decision
}

/// Every hand of the chain may give to the next, and its end conflicts with nobody in it. What an operator takes back holds for work under way.
fn chain(book: &Rulebook, facts: &CallFacts) -> Result<(), Finding> {
    if facts.on_behalf.len() > MOST_HANDS {
        return Err(denied("delegation.too_long", format!("the work went through {} hands; at most {MOST_HANDS}", facts.on_behalf.len())));
    }
    let hands: Vec<&str> = facts.on_behalf.iter().map(String::as_str).chain([facts.agent.as_str()]).collect();
    for (from, to) in hands.iter().zip(&hands[1..]) {
        may_delegate(book, from, to)?;
    }
    let last = known(book, &facts.agent)?;
    for name in &facts.on_behalf {
        conflict(known(book, name)?, last)?;
    }
    Ok(())
}

/// A denial counts against no rule.
fn denial(mut decision: Decision, hint: Option<String>) -> Decision {
    decision.limits.retain(|l| l.window_s <= super::call::MINUTE_S);
    Decision { verdict: Verdict::Deny, approval: None, hint, ..decision }
}

/// The terms that satisfy both: most approvals, shortest life, only the channels both accept.
pub(super) fn stricter(a: Option<ApprovalTerms>, b: Option<ApprovalTerms>) -> Option<ApprovalTerms> {
    match (a, b) {
        (Some(a), Some(b)) => Some(ApprovalTerms {
            count: a.count.max(b.count),
            ttl_s: a.ttl_s.min(b.ttl_s),
            channels: a.channels.into_iter().filter(|c| b.channels.contains(c)).collect(),
        }),
        (one, None) | (None, one) => one,
    }
}

fn known<'a>(book: &'a Rulebook, name: &str) -> Result<&'a Agent, Finding> {
    let missing = || denied("delegation.unknown", format!("no agent is called {:?}", super::call::clip(name)));
    book.agents.get(name).map(AsRef::as_ref).ok_or_else(missing)
}

fn conflict(a: &Agent, b: &Agent) -> Result<(), Finding> {
    let says = |one: &Agent, other: &Agent| one.conflicts_with.iter().any(|n| n == other.name.as_str());
    let by = if says(a, b) {
        a
    } else if says(b, a) {
        b
    } else {
        return Ok(());
    };
    Err(denied("delegation.conflict", format!("{} and {} never work for each other, says {}", a.name, b.name, by.source)))
}

fn denied(rule: &str, because: String) -> Finding {
    Finding { rule: rule.into(), verdict: Verdict::Deny, service: None, path: None, because }
}

/// What the lists of all agents say of one another. `failed` are agents whose own file did not load: nothing is said of them.
/// `line_of` gives the line of a key in a file.
pub(super) fn check(
    agents: &BTreeMap<String, Arc<Agent>>,
    failed: &BTreeSet<String>,
    line_of: &dyn Fn(&str, &str) -> Option<usize>,
) -> Vec<LoadProblem> {
    let mut problems = vec![];
    for agent in agents.values() {
        let lists = [("can_delegate_to", &agent.can_delegate_to), ("conflicts_with", &agent.conflicts_with)];
        for (key, list) in lists {
            for (i, name) in list.iter().enumerate() {
                let (problem, hint) = match () {
                    () if list[..i].contains(name) => ("names it twice".to_owned(), "keep one".to_owned()),
                    () if name == agent.name.as_str() => {
                        ("is the agent itself".to_owned(), "take it out: an agent always works for itself".to_owned())
                    }
                    () if key == "can_delegate_to" && HOUSE_AGENTS.contains(&name.as_str()) => {
                        ("is the supervisor's own agent".to_owned(), "nobody hands it work; take it out".to_owned())
                    }
                    () if !agents.contains_key(name) && !failed.contains(name) => {
                        ("does not exist".to_owned(), format!("agents are: {}", agents.keys().cloned().collect::<Vec<_>>().join(", ")))
                    }
                    () if key == "can_delegate_to" && agent.conflicts_with.contains(name) => {
                        ("stands in conflicts_with too".to_owned(), "an agent either may hand it work or never does".to_owned())
                    }
                    () if key == "can_delegate_to"
                        && agents.get(name).is_some_and(|a| a.conflicts_with.iter().any(|n| n == agent.name.as_str())) =>
                    {
                        (
                            format!("names {} in its conflicts_with: the grant can never hold", agent.name),
                            "take it out of one of the two files".to_owned(),
                        )
                    }
                    () => continue,
                };
                problems.push(LoadProblem {
                    file: agent.source.clone(),
                    line: line_of(&agent.source, key),
                    problem: format!("{key}: {name:?} {problem}"),
                    hint,
                });
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests;
