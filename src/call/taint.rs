//! Taint: a change that uses words its agent first saw in untrusted output (a log, a label, another agent's note) waits for a person. Words of our own
//! registry and words the agent used before are never taint. What each agent saw is kept in memory, bounded, and forgotten at a restart; plans made
//! with such words likewise. Deliberately absent: any claim that what is not tainted is safe; the gates judge every call all the same.

use super::{Call, CallError};
use crate::gate::load::HOUSE_AGENTS;
use crate::gate::{ApprovalTerms, CallFacts, Decision, call};
use crate::model::policy::TaintLevel;
use crate::model::verdict::{Finding, Verdict};
use crate::redact;
use crate::store::StoreResult;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

/// Rule id of the finding.
pub const RULE: &str = "taint.argument";
/// Words of untrusted output kept for an agent, and as many of its own: some hundred kilobytes. The oldest go first.
const MOST_WORDS: usize = 16_384;
/// Agents remembered. Their names come from the rulebook, so this is never reached by a caller's choice.
const MOST_AGENTS: usize = 256;
/// Plans remembered as made with tainted words; a plan lives shorter than so many are made.
const MOST_PLANS: usize = 1_024;
/// Shortest word that counts. Shorter ones are everywhere.
const LEAST: usize = 5;
/// Longest word that is looked at, bytes.
const LONGEST: usize = 512;
/// Arguments that change nothing, or name something we keep ourselves: a tool takes no id it does not know.
const FREE: &[&str] = &["reason", "idempotency_key", "operation_id", "plan_id", "digest", "snapshot_id", "approval_id"];
/// Changes that only add a copy, stop what is under way, or touch the agent's own notes. What a task's agent does with the text it is given is judged when
/// it does it, by what whoever gave it saw, too.
const EXEMPT: &[&str] = &["backup", "verify_backup", "cancel", "memory_write", "task_submit"];

/// What the agents saw.
#[derive(Debug, Default)]
pub struct Taints {
    seed: RandomState,
    agents: Mutex<BTreeMap<String, Heard>>,
    plans: Mutex<Plans>,
}

/// Words as hashes, newest last in the queues.
#[derive(Debug, Default)]
struct Heard {
    untrusted: HashMap<u64, (DateTime<Utc>, Arc<str>)>,
    order: VecDeque<u64>,
    own: BTreeSet<u64>,
    own_order: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Plans {
    made: HashMap<String, (DateTime<Utc>, String)>,
    order: VecDeque<String>,
}

/// A word of a call that came from untrusted output.
#[derive(Debug, Clone, PartialEq)]
struct Tainted {
    argument: String,
    word: String,
    /// The spellings of it that were seen.
    seen: Vec<String>,
    source: Arc<str>,
}

impl Tainted {
    fn because(&self) -> String {
        let (argument, word) = (redact::line(&self.argument, 80), redact::line(&self.word, 120));
        format!("{argument} has {word:?}, which the agent first saw in untrusted output ({})", redact::line(&self.source, 120))
    }
}

impl Taints {
    /// Notes untrusted text that reached an agent.
    pub fn heard(&self, agent: &str, source: &str, text: &str, now: DateTime<Utc>) {
        let source: Arc<str> = source.into();
        let hashes: Vec<u64> = words(text).flat_map(|w| spellings(&w)).map(|w| self.seed.hash_one(w)).collect();
        self.with(agent, |heard| {
            for hash in hashes {
                if heard.own.contains(&hash) {
                    continue;
                }
                if heard.untrusted.insert(hash, (now, source.clone())).is_none() {
                    heard.order.push_back(hash);
                }
                if heard.order.len() > MOST_WORDS
                    && let Some(oldest) = heard.order.pop_front()
                {
                    heard.untrusted.remove(&oldest);
                }
            }
        });
    }

    /// Notes every enveloped text of a reply.
    pub(super) fn reply(&self, agent: &str, value: &Value, now: DateTime<Utc>) {
        match value {
            Value::Object(map) if map.get("untrusted") == Some(&Value::Bool(true)) => {
                let word = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
                self.heard(agent, word("source"), word("text"), now);
            }
            Value::Object(map) => map.values().for_each(|v| self.reply(agent, v, now)),
            Value::Array(items) => items.iter().for_each(|v| self.reply(agent, v, now)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// The agent says these words itself: those it did not see in untrusted output before are its own from now on.
    fn said(&self, agent: &str, asked: &[(String, String)]) {
        let hashes: Vec<u64> = asked.iter().flat_map(|(_, w)| spellings(w)).map(|w| self.seed.hash_one(w)).collect();
        self.with(agent, |heard| {
            for hash in hashes {
                if !heard.untrusted.contains_key(&hash) && heard.own.insert(hash) {
                    heard.own_order.push_back(hash);
                }
                if heard.own_order.len() > MOST_WORDS
                    && let Some(oldest) = heard.own_order.pop_front()
                {
                    heard.own.remove(&oldest);
                }
            }
        });
    }

    /// Words of a call that an agent saw in untrusted output since a moment.
    fn tainted(&self, agent: &str, asked: &[(String, String)], since: DateTime<Utc>) -> Vec<Tainted> {
        let found = |heard: &mut Heard| {
            let source = |w: &String| heard.untrusted.get(&self.seed.hash_one(w)).filter(|(at, _)| *at >= since).map(|(_, s)| s.clone());
            let one = |(argument, word): &(String, String)| {
                let seen: Vec<String> = spellings(word).filter(|w| source(w).is_some()).collect();
                let source = seen.first().and_then(source)?;
                Some(Tainted { argument: argument.clone(), word: word.clone(), seen, source })
            };
            asked.iter().filter_map(one).collect()
        };
        self.with(agent, found)
    }

    fn with<T>(&self, agent: &str, f: impl FnOnce(&mut Heard) -> T) -> T {
        let mut agents = self.agents.lock().expect("no panic while held");
        if agents.len() >= MOST_AGENTS && !agents.contains_key(agent) {
            agents.pop_first();
        }
        f(agents.entry(agent.to_owned()).or_default())
    }

    fn keep_plan(&self, id: &str, because: String, now: DateTime<Utc>) {
        let mut plans = self.plans.lock().expect("no panic while held");
        if plans.made.insert(id.to_owned(), (now, because)).is_none() {
            plans.order.push_back(id.to_owned());
        }
        if plans.order.len() > MOST_PLANS
            && let Some(oldest) = plans.order.pop_front()
        {
            plans.made.remove(&oldest);
        }
    }

    fn plan(&self, id: &str, since: DateTime<Utc>) -> Option<String> {
        let plans = self.plans.lock().expect("no panic while held");
        plans.made.get(id).filter(|(at, _)| *at >= since).map(|(_, because)| because.clone())
    }
}

/// Raises a change that uses tainted words to approval by an operator. Called before its intent is written.
///
/// # Errors
/// The store's: then nothing changes either.
pub(super) async fn raise(call: &Call, facts: &CallFacts, decision: &mut Decision) -> Result<(), CallError> {
    let (taints, input) = (&call.house.taints, &*facts.arguments);
    let asked = asked(input);
    let exempt = !facts.mutates || EXEMPT.contains(&facts.tool.as_str()) || decision.verdict == Verdict::Deny;
    let because = if exempt { None } else { reason(call, facts, &asked).await? };
    taints.said(&facts.agent, &asked);
    let Some(because) = because else { return Ok(()) };
    decision.findings.push(Finding { rule: RULE.into(), verdict: Verdict::Approval, service: None, path: None, because });
    decision.verdict = decision.verdict.max(Verdict::Approval);
    let (count, ttl_s) = decision.approval.as_ref().map_or((1, call::APPROVAL_TTL_S), |t| (t.count, t.ttl_s));
    // Whoever was talked into the call must not be the way its approval comes.
    decision.approval = Some(ApprovalTerms { count, ttl_s, channels: vec!["operator".into()] });
    Ok(())
}

/// Remembers a plan made with tainted words: deploying it by its id is using them.
///
/// # Errors
/// The store's.
pub(super) async fn planned(call: &Call, facts: &CallFacts, answer: &Value) -> Result<(), CallError> {
    let Some(id) = answer.get("plan_id").and_then(Value::as_str).filter(|_| !facts.mutates) else { return Ok(()) };
    if let Some(because) = reason(call, facts, &asked(&facts.arguments)).await? {
        call.house.taints.keep_plan(id, because, call.now);
    }
    Ok(())
}

async fn reason(call: &Call, facts: &CallFacts, asked: &[(String, String)]) -> Result<Option<String>, CallError> {
    let policy = &call.rulebook.policy.taint;
    if policy.level == TaintLevel::Off || HOUSE_AGENTS.contains(&facts.agent.as_str()) {
        return Ok(None);
    }
    let taints = &call.house.taints;
    let since = call.now - TimeDelta::seconds(i64::from(policy.window_s));
    if let Some(because) = facts.arguments.get("plan_id").and_then(Value::as_str).and_then(|id| taints.plan(id, since)) {
        return Ok(Some(format!("the plan was made so: {because}")));
    }
    // Whoever handed the work over may have read it where this agent did not.
    let readers = [&facts.agent].into_iter().chain(&facts.on_behalf);
    let found: Vec<Tainted> = readers.flat_map(|agent| taints.tainted(agent, asked, since)).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let known = registry(call).await?;
    Ok(found.iter().find(|t| t.seen.iter().any(|w| !known.contains(w))).map(Tainted::because))
}

/// Words of our own registry: names of stacks, services, environments and agents, and everything in the specs of the current releases.
async fn registry(call: &Call) -> StoreResult<BTreeSet<String>> {
    let house = &call.house;
    let mut known = BTreeSet::new();
    let mut add = |text: &str| known.extend(words(text).flat_map(|w| spellings(&w).collect::<Vec<_>>()));
    house.config.settings.stacks.keys().for_each(|s| add(s.as_str()));
    call.rulebook.policy.environments.keys().chain(call.rulebook.agents.keys()).for_each(|n| add(n));
    for record in house.store.stacks().await? {
        add(record.name.as_str());
        let Some(number) = record.current else { continue };
        let Some(release) = house.store.release(&record.name, number).await? else { continue };
        for value in [serde_json::to_value(&release.spec), serde_json::to_value(&release.images)].into_iter().flatten() {
            leaves(&value, &mut add);
        }
    }
    Ok(known)
}

/// Keys and texts of a value.
fn leaves(value: &Value, add: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => add(text),
        Value::Array(items) => items.iter().for_each(|v| leaves(v, add)),
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            add(k);
            leaves(v, add);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The words of a call's arguments that matter, each with the argument it stands in.
fn asked(input: &Value) -> Vec<(String, String)> {
    let mut out = vec![];
    for (key, value) in input.as_object().into_iter().flatten().filter(|(k, _)| !FREE.contains(&k.as_str())) {
        gather(key, value, &mut out);
    }
    out
}

fn gather(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => {
            // What an image is called matters even where it is a plain word.
            let mut image = path.contains("image");
            for word in words(text) {
                if image || specific(&word) {
                    out.push((path.to_owned(), word.clone()));
                }
                image = path.contains("image") || matches!(word.as_str(), "image" | "from");
            }
        }
        Value::Array(items) => items.iter().for_each(|v| gather(path, v, out)),
        Value::Object(map) => map.iter().for_each(|(k, v)| gather(&format!("{path}.{k}"), v, out)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A word no one writes by chance: a reference, a path, an address, an id. Plain words and numbers stand in every log.
fn specific(word: &str) -> bool {
    let mixed = word.contains(|c: char| c.is_ascii_digit()) && word.contains(|c: char| c.is_alphabetic());
    word.len() >= LEAST
        && (mixed || word.contains(['/', '@', '\\', '$']) || (word.contains([':', '.']) && word.contains(char::is_alphanumeric)))
}

/// The words of a text, in small letters.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let ends = |c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';' | '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' | '|' | '=' | '*')
    };
    let trimmed = text.split(ends).map(|w| w.trim_matches(|c: char| matches!(c, '.' | ':' | '!' | '?')));
    trimmed.filter(|w| w.len() >= 2 && w.len() <= LONGEST).map(str::to_lowercase)
}

/// A word, and for a reference the name without tag or digest: an image is the same whichever version of it is asked for.
fn spellings(word: &str) -> impl Iterator<Item = String> + use<> {
    let name = word.split('@').next().unwrap_or(word);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !name.is_empty() => name,
        _ => name,
    };
    let short = (name != word && name.contains('/') && name.len() >= LEAST).then(|| name.to_owned());
    [Some(word.to_owned()), short].into_iter().flatten()
}

#[cfg(test)]
mod tests;
