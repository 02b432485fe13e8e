//! Taint: a change that uses words its agent first saw in untrusted output (a log, a label, another agent's note) waits for a person. Words of our own
//! registry and words the agent used before are never taint. What each agent saw is in [`Taints`]. Deliberately absent: any claim that what is not tainted is safe; the gates judge every call all the same.

mod seen;

pub use seen::Taints;

use super::{Call, CallError, House};
use crate::gate::load::HOUSE_AGENTS;
use crate::gate::{ApprovalTerms, CallFacts, Decision, call};
use crate::model::policy::TaintLevel;
use crate::model::task::Task;
use crate::model::verdict::{Finding, Verdict};
use crate::redact;
use crate::store::StoreResult;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rule id of the finding.
pub const RULE: &str = "taint.argument";
/// Shortest word that counts. Shorter ones are everywhere.
const LEAST: usize = 5;
/// Longest word that is looked at, bytes.
const LONGEST: usize = 512;
/// Arguments that change nothing, or name something we keep ourselves: a tool takes no id it does not know.
const FREE: &[&str] = &["reason", "idempotency_key", "operation_id", "plan_id", "digest", "snapshot_id", "approval_id"];
/// Changes that only add a copy, stop what is under way, or touch the agent's own notes. What a task's agent does with the text it is given is judged when
/// it does it, by what whoever gave it saw, too.
const EXEMPT: &[&str] = &["backup", "verify_backup", "cancel", "memory_write", "task_submit"];

/// A word of a call that came from untrusted output.
#[derive(Debug, Clone, PartialEq)]
struct Tainted {
    argument: String,
    word: String,
    /// The spellings of it that were seen.
    seen: Vec<String>,
    source: Arc<str>,
}

/// Why a call waits: in words, and the kind of output alone.
#[derive(Debug, Clone, PartialEq)]
struct Why {
    because: String,
    source: String,
}

impl Tainted {
    fn why(&self) -> Why {
        let (argument, word, source) = (redact::line(&self.argument, 80), redact::line(&self.word, 120), redact::line(&self.source, 120));
        Why { because: format!("{argument} has {word:?}, which the agent first saw in untrusted output ({source})"), source }
    }
}

/// Raises a change that uses tainted words to approval by an operator. Called before its intent is written.
///
/// # Errors
/// The store's: then nothing changes either.
pub(super) async fn raise(call: &Call, facts: &CallFacts, input: &Value, decision: &mut Decision) -> Result<(), CallError> {
    let taints = &call.house.taints;
    // With those of the plan it carries out; those it said when it made it.
    let asked = asked(&facts.arguments);
    let exempt = !facts.mutates || EXEMPT.contains(&facts.tool.as_str()) || decision.verdict == Verdict::Deny;
    let because = if exempt { None } else { reason(call, facts, &asked).await? };
    taints.said(&facts.agent, &self::asked(input), call.now, since(call), facts.mutates);
    let Some(Why { because, .. }) = because else { return Ok(()) };
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
    if let Some(why) = reason(call, facts, &asked(&facts.arguments)).await? {
        call.house.taints.keep_plan(id, why, call.now);
    }
    Ok(())
}

/// What was heard before it no longer counts. An agent with a task is shown again what it read since the task began.
fn since(call: &Call) -> DateTime<Utc> {
    let window = call.now - TimeDelta::seconds(i64::from(call.rulebook.policy.taint.window_s));
    call.house.desk.reads_since(&call.who.agent).map_or(window, |began| began.min(window))
}

/// Whether a text has words its caller first saw in untrusted output: who keeps it for later keeps those.
///
/// # Errors
/// The store's.
pub async fn of_others(call: &Call, text: &Value) -> Result<bool, CallError> {
    let policy = &call.rulebook.policy.taint;
    if policy.level == TaintLevel::Off || HOUSE_AGENTS.contains(&call.who.agent.as_str()) {
        return Ok(false);
    }
    let asked = asked(&serde_json::json!({ "value": text }));
    let found = call.house.taints.tainted(call.who.agent.as_str(), &asked, since(call));
    if found.is_empty() {
        return Ok(false);
    }
    let known = registry(call).await?;
    Ok(found.iter().any(|t| t.seen.iter().any(|w| !known.contains(w))))
}

/// Notes what came with a task from outside of the house, a request or an event: its agent reads it before it makes any call. What another agent gave is
/// judged by what that one read.
pub async fn told(house: &Arc<House>, task: &Task, now: DateTime<Utc>) {
    if !task.delegated_by.is_empty() || matches!(task.origin.as_str(), "call" | "cron") || task.input.is_empty() {
        return;
    }
    let text = Value::Object(task.input.clone()).to_string();
    house.taints.heard(task.agent.as_str(), &format!("input of task {} ({})", task.id, task.origin), &text, now);
    house.taints.keep(house).await;
}

async fn reason(call: &Call, facts: &CallFacts, asked: &[(String, String)]) -> Result<Option<Why>, CallError> {
    let policy = &call.rulebook.policy.taint;
    if policy.level == TaintLevel::Off || HOUSE_AGENTS.contains(&facts.agent.as_str()) {
        return Ok(None);
    }
    let (taints, since) = (&call.house.taints, since(call));
    if let Some(why) = facts.arguments.get("plan_id").and_then(Value::as_str).and_then(|id| taints.plan(id, since)) {
        return Ok(Some(Why { because: format!("the plan was made so: {}", why.because), ..why }));
    }
    // Whoever handed the work over may have read it where this agent did not.
    let readers = [&facts.agent].into_iter().chain(&facts.on_behalf);
    let found: Vec<Tainted> = readers.flat_map(|agent| taints.tainted(agent, asked, since)).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let known = registry(call).await?;
    Ok(found.iter().find(|t| t.seen.iter().any(|w| !known.contains(w))).map(Tainted::why))
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
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            // Paths of files and names of variables are the caller's words, too; other keys are names of services.
            if matches!(path, "files" | "variables") {
                out.extend(words(k).filter(|w| specific(w)).map(|w| (path.to_owned(), w)));
            }
            gather(&format!("{path}.{k}"), v, out);
        }),
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
