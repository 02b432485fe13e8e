//! Calls that repeat one another: identical calls take turns until the first one's operation is under way, so that two at once make one operation and
//! count once. What repeats an operation or a question to an operator counts against no hourly limit, as long as that is all it does. Deliberately absent: what a repetition answers
//! (the tool's matter), and any decision whether a call is allowed.

use super::{Call, CallError, approval};
use crate::executor::{Executor, Standing};
use crate::gate::{self, CallFacts, Decision, RateLimit};
use crate::model::ids::OperationId;
use crate::model::operation::{Operation, OperationState};
use crate::store::StoreError;
use crate::tools::Bound;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::OwnedMutexGuard;

/// Operations remembered by the call that began them; an older one has long settled, and its idempotency key is in the journal anyhow.
const REMEMBERED: usize = 256;
/// Arguments that do not tell one call from another.
const NOISE: [&str; 3] = ["reason", "wait", "timeout_s"];

/// Lines of identical calls.
#[derive(Debug, Default)]
pub struct Turns {
    /// Calls of the last minute.
    pub gauge: super::gauge::Gauge,
    lines: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    under_way: Arc<Mutex<BTreeMap<String, OperationId>>>,
}

/// The turn of one call: the identical ones wait until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    call: String,
    under_way: Arc<Mutex<BTreeMap<String, OperationId>>>,
    _first: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for the turn of a call.
    pub(super) async fn wait(&self, call: &str) -> Turn {
        let line = {
            let mut lines = self.lines.lock().expect("no panic while held");
            lines.retain(|_, line| Arc::strong_count(line) > 1);
            lines.entry(call.to_owned()).or_default().clone()
        };
        Turn { call: call.to_owned(), under_way: self.under_way.clone(), _first: line.lock_owned().await }
    }

    /// The operation an identical call began, while it has not settled.
    fn joins(&self, call: &str, executor: &Executor) -> Option<OperationId> {
        let mut under_way = self.under_way.lock().expect("no panic while held");
        let found = under_way.get(call)?.clone();
        let at_work = |s: &Standing| matches!(s.state, OperationState::Queued | OperationState::Running);
        if executor.standing(&found).is_some_and(|s| at_work(&s.borrow())) {
            return Some(found);
        }
        under_way.remove(call);
        None
    }
}

impl Turn {
    /// Ends the turn: from now on identical calls join this operation.
    pub(super) fn leads_to(self, operation: &OperationId) {
        let mut under_way = self.under_way.lock().expect("no panic while held");
        under_way.insert(self.call.clone(), operation.clone());
        if under_way.len() > REMEMBERED {
            // Ids sort by age.
            let oldest = under_way.iter().min_by(|a, b| a.1.cmp(b.1)).map(|(call, _)| call.clone());
            oldest.map(|call| under_way.remove(&call));
        }
    }
}

/// A limit that a rule sets on what it grants; the other kind bounds all calls of an agent, repetitions and denials too: the house must bear them.
pub(super) fn by_rule(limit: &RateLimit) -> bool {
    limit.window_s > gate::call::MINUTE_S
}

/// What was before a call that changes the world.
pub(super) struct Before {
    /// The operation it repeats.
    pub(super) earlier: Result<Option<Operation>, CallError>,
    asked_before: bool,
    resumes: bool,
}

impl Before {
    /// The limits this call counts under.
    pub(super) fn limits(&self, limits: &[RateLimit]) -> Vec<RateLimit> {
        let repeats = self.asked_before || matches!(self.earlier, Ok(Some(_)));
        // The resume of an approval was counted when it was asked for.
        limits.iter().filter(|l| !self.resumes && (!repeats || !by_rule(l))).cloned().collect()
    }

    /// The limits this call counts under once it turns out that it repeats nothing: the same words may ask for something else by now, which needs no
    /// approval and was never counted.
    pub(super) fn late(&self, limits: &[RateLimit]) -> Vec<RateLimit> {
        let now = self.limits(limits);
        limits.iter().filter(|l| !self.resumes && !now.contains(l)).cloned().collect()
    }
}

/// Waits for the call's turn and looks for what it repeats, where either matters: a tool whose calls repeat one another, or a limit of a rule.
pub(super) async fn before(call: &Call, facts: &CallFacts, decision: &Decision, bound: &dyn Bound, input: &Value) -> Before {
    let resumes = call.resumes.is_some();
    let counted = decision.limits.iter().any(by_rule);
    if !counted && !bound.replays() {
        return Before { earlier: Ok(None), asked_before: false, resumes };
    }
    let same = identity(call, &facts.tool, input);
    call.takes(call.house.turns.wait(&same).await);
    let earlier = earlier(call, bound, &same).await;
    if matches!(earlier, Ok(Some(_))) {
        call.let_next();
    }
    let asked_before = counted
        && asked(call, facts, &same).await.unwrap_or_else(|e| {
            tracing::warn!(error = %e, "the open approvals could not be read; the call is counted");
            false
        });
    Before { earlier, asked_before, resumes }
}

async fn earlier(call: &Call, bound: &dyn Bound, same: &str) -> Result<Option<Operation>, CallError> {
    if !bound.replays() {
        return Ok(None);
    }
    if let Some(found) = bound.earlier(call).await? {
        return Ok(Some(found));
    }
    match call.house.turns.joins(same, &call.house.executor) {
        Some(id) => Ok(call.house.store.operation(&id).await?),
        None => Ok(None),
    }
}

/// Whether the same agent asked an operator for the same thing before and the word is not used yet.
async fn asked(call: &Call, facts: &CallFacts, same: &str) -> Result<bool, StoreError> {
    let open = call.house.store.open_approvals(&facts.agent, &facts.tool, call.now).await?;
    Ok(open.iter().any(|a| a.on_behalf == facts.on_behalf && identity(call, &a.tool, &a.input) == same))
}

/// Equal for calls of one agent that differ in nothing that matters.
fn identity(call: &Call, tool: &str, input: &Value) -> String {
    let mut arguments = approval::canonical(input);
    if let Value::Object(map) = &mut arguments {
        map.retain(|key, value| !value.is_null() && !NOISE.contains(&key.as_str()));
    }
    call.house.store.keyed_digest(json!([call.who.agent, call.who.on_behalf, tool, arguments]).to_string().as_bytes())
}
