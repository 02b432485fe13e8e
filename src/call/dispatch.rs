//! The line itself. Every door calls [`dispatch`]; nothing here knows any single tool. The order is the security of the house: the gate before any work,
//! the intent before any effect, both gates over what is really done, the outcome before the reply.

mod follow;

pub use follow::{Wish, follow, may_hear};

use super::repeat::{self, Before};
use super::{Call, CallError, House, Principal, Progress, approval, brakes, error::ErrorCode, facts, record, taint};
use crate::gate::{self, CallFacts, Decision, RateLimit};
use crate::model::ids::{ApprovalId, CallId, OperationId};
use crate::model::verdict::Verdict;
use crate::redact;
use crate::store::audit::Intent;
use crate::tools::{self, Answer, Bound};
use futures_util::FutureExt;
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tracing::Instrument;

/// What a caller gets: the structured value every door shows, and whether it was cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Structured content, matching the tool's output schema.
    pub value: Value,
    /// Short text for people and models that do not read structured content.
    pub text: String,
    /// What decides how it goes on, as the tool said it: who acts on a reply in the house reads this, not what was masked.
    pub known: Known,
}

/// What a reply says of what it began, before anything in it was masked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// `state`.
    pub state: Option<String>,
    /// `operation_id`.
    pub operation: Option<OperationId>,
    /// The approval it waits for.
    pub approval: Option<ApprovalId>,
}

impl Known {
    fn of(value: &Value) -> Self {
        Self {
            state: value["state"].as_str().map(str::to_owned),
            operation: value["operation_id"].as_str().and_then(|id| OperationId::new(id).ok()),
            approval: value["approval"]["approval_id"].as_str().and_then(|id| ApprovalId::new(id).ok()),
        }
    }
}

impl Reply {
    /// A reply that the house makes itself, of words that need no masking.
    pub fn new(value: Value, text: impl Into<String>) -> Self {
        Self { known: Known::of(&value), value, text: text.into() }
    }
}

/// Runs one call. `progress` gets lines while a call waits; dropping this future never stops an operation.
///
/// # Errors
/// A `CallError` with cause and hint: bad arguments, a denial, a failure. Each is in the audit log.
pub async fn dispatch(
    house: &Arc<House>,
    who: &Principal,
    tool: &str,
    input: Value,
    progress: Option<Progress>,
) -> Result<Reply, CallError> {
    enter(Call::new(house, who, progress, None), tool, input).await
}

/// As [`dispatch`], under an id the caller chose and wrote down before: after a crash it finds by it what became of the call.
///
/// # Errors
/// As [`dispatch`].
pub async fn dispatch_as(house: &Arc<House>, who: &Principal, id: CallId, tool: &str, input: Value) -> Result<Reply, CallError> {
    let mut call = Call::new(house, who, None, None);
    call.id = id;
    enter(call, tool, input).await
}

/// Refuses a call for a reason of the door it came by, before it is looked at: counted and recorded like any other.
///
/// # Errors
/// Always: this error, or that there were too many calls.
pub async fn refuse(house: &Arc<House>, who: &Principal, tool: &str, input: &Value, error: CallError) -> Result<Reply, CallError> {
    let call = Call::new(house, who, None, None);
    within_minute(&call, tool, input).await?;
    reply(misunderstood(&call, tool, input, error).await)
}

/// Runs a call an operator approved, as the agent that asked for it.
///
/// # Errors
/// As [`dispatch`]; `StalePlan` when the world moved since.
pub(super) async fn resume(
    house: &Arc<House>,
    who: &Principal,
    tool: &str,
    input: Value,
    approval: ApprovalId,
) -> Result<Reply, CallError> {
    enter(Call::new(house, who, None, Some(approval)), tool, input).await
}

async fn enter(call: Call, tool: &str, input: Value) -> Result<Reply, CallError> {
    let own = Arc::clone(&call.own);
    // Before anything is written of it: the row of the intent, too, may quote them.
    let (taking, variables) = (Arc::clone(&own), input.get("variables").cloned());
    if let Some(variables) = variables.filter(|v| v.as_object().is_some_and(|v| !v.is_empty())) {
        let taken = tokio::task::spawn_blocking(move || taking.input(&json!({ "variables": variables }))).await;
        taken.map_err(|e| {
            let hint = "call again, and report this to the operator";
            CallError::new(ErrorCode::Internal, "the variables could not be looked through for secrets", hint).detail(e.to_string())
        })?;
    }
    own.scope(within(call, tool, input)).await
}

async fn within(call: Call, tool: &str, input: Value) -> Result<Reply, CallError> {
    let span = tracing::info_span!("call", call_id = %call.id, agent = %call.who.agent, tool = %redact::line(tool, 64), verdict = tracing::field::Empty);
    let (house, agent) = (call.house.clone(), call.who.agent.clone());
    let result = line(Arc::new(call), tool, input).instrument(span.clone()).await;
    // After the reply's content is settled and durable; a failure is caught up on by the next call or start.
    house.store.project_history_soon();
    let result = span.in_scope(|| reply(result));
    #[cfg(test)]
    if let Ok(reply) = &result {
        tools::tests::assert_fits(tool, &reply.value);
    }
    let shown = result.as_ref().map_or_else(|e| e.data.as_ref(), |r| Some(&r.value));
    if let Some(shown) = shown {
        house.taints.reply(agent.as_str(), shown, chrono::Utc::now());
    }
    // Before the reply is given: a restart must not make the agent forget where it read what it says next.
    house.taints.keep(&house).await;
    result
}

/// The line of ARCHITECTURE.md, top to bottom.
async fn line(call: Arc<Call>, name: &str, input: Value) -> Result<Answer, CallError> {
    within_minute(&call, name, &input).await?;
    let input = Arc::new(input);
    let (facts, also, bound) = match understand(&call, name, &input).await {
        Ok(understood) => understood,
        Err(refused) => return misunderstood(&call, name, &input, refused).await,
    };
    let facts = call.facts.get_or_init(|| facts);
    let mut decision = house_rules(&call, facts, gate::call::decide(&call.rulebook, facts)).await?;
    if let Some(also) = also {
        let also = call.also.get_or_init(|| also);
        decision = decision.and(house_rules(&call, also, gate::call::decide(&call.rulebook, also)).await?);
    }
    taint::raise(&call, facts, &input, &mut decision).await?;
    tracing::Span::current().record("verdict", decision.verdict.as_str());
    let intent = record::intent(&call, facts, &decision, &input);
    if decision.verdict == Verdict::Deny {
        return record::single(&call, &intent, &[], Err(denial(&decision.findings, decision.hint.as_deref()))).await;
    }
    if !facts.mutates {
        // Before the work; the row counts it after.
        record::fits(&call, &intent, &decision.limits).await?;
        let result = read(&call, facts, &decision, bound).await;
        return record::single(&call, &intent, &decision.limits, result).await;
    }
    let before = repeat::before(&call, facts, &decision, bound.as_ref(), &input).await;
    let limits = before.limits(&decision.limits);
    record::begin(&call, &intent, &limits).await?;
    // From here on it belongs to the house: a caller that goes away must not leave a mutation half-done or without its outcome row.
    let late = before.late(&decision.limits);
    let rest = call.own.scope(mutate(call.clone(), decision, bound, input, before, (limits, late))).instrument(tracing::Span::current());
    call.house.calls.spawn(rest).await.unwrap_or_else(|e| {
        Err(CallError::new(ErrorCode::Internal, "the call was interrupted", "call `status` to see what was done").detail(e.to_string()))
    })
}

/// Refuses a call beyond what its agent may make in a minute. What an operator's approval starts was counted when it was asked for.
async fn within_minute(call: &Call, name: &str, input: &Value) -> Result<(), CallError> {
    let agent = call.who.agent.as_str();
    let most = call.rulebook.agents.get(agent).and_then(|a| a.limits.calls_per_minute).filter(|_| call.resumes.is_none());
    let Some(max) = most else { return Ok(()) };
    let limit = RateLimit { key: format!("{agent}/*"), max, window_s: 60 };
    let Err(too_many) = call.house.turns.gauge.count(agent, &limit, call.now) else { return Ok(()) };
    let refused = record::limited(&limit, too_many.retry_after_s);
    let Some(untold) = too_many.told else { return Err(refused) };
    let more = if untold == 0 { String::new() } else { format!("; {untold} more were refused since the last row that says so") };
    let because = format!("at most {max} calls in {} s{more}", limit.window_s);
    let finding = crate::model::verdict::Finding { rule: limit.key, verdict: Verdict::Deny, service: None, path: None, because };
    let decision = Decision { verdict: Verdict::Deny, findings: vec![finding], limits: vec![], approval: None, hint: None };
    let facts = facts::unread(call, redact::keep_start(name, MAX_NAME));
    record::single(call, &record::intent(call, &facts, &decision, input), &[], Err(refused)).await.map(|_| ())
}

async fn understand(call: &Call, name: &str, input: &Arc<Value>) -> Result<(CallFacts, Option<CallFacts>, Box<dyn Bound>), CallError> {
    bounded(name, input)?;
    let tool = tools::find(name)?;
    let bound = tool.parse(Value::clone(input))?;
    let scope = bound.scope(call).await?;
    let other = scope.also.clone();
    let facts = facts::resolve(call, tool.spec(), bound.changes(), scope, input).await?;
    let also = facts::also(call, &facts, other).await?;
    Ok((facts, also, bound))
}

/// Longest name of a tool or key of an argument, in bytes. Complaints quote these, the values never.
const MAX_NAME: usize = 200;

/// Refuses what no tool and no argument is called, before anything quotes it.
fn bounded(name: &str, input: &Value) -> Result<(), CallError> {
    fn keys(value: &Value) -> bool {
        match value {
            Value::Object(map) => map.iter().all(|(k, v)| k.len() <= MAX_NAME && keys(v)),
            Value::Array(items) => items.iter().all(keys),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        }
    }
    if name.len() > MAX_NAME {
        let message = format!("the name of the tool has {} bytes; the longest allowed has {MAX_NAME}", name.len());
        return Err(CallError::new(ErrorCode::UnknownTool, message, "call a tool that tools/list names"));
    }
    if !keys(input) {
        let message = format!("a key among the arguments has more than {MAX_NAME} bytes");
        return Err(CallError::new(
            ErrorCode::InvalidArgument,
            message,
            "use the argument names of the tool's input schema, and shorter paths and names",
        ));
    }
    Ok(())
}

async fn read(call: &Call, facts: &CallFacts, decision: &Decision, bound: Box<dyn Bound>) -> Result<Answer, CallError> {
    if facts.preview && decision.verdict <= Verdict::Warn {
        return bound.preview(call).await;
    }
    let permit =
        gate::permit(&call.id, facts, decision, Verdict::Allow, &[], false).map_err(|r| denial(&r.findings, decision.hint.as_deref()))?;
    let answer = bound.run(call, None, permit).await?;
    taint::planned(call, facts, &answer.value).await?;
    Ok(answer)
}

async fn mutate(
    call: Arc<Call>,
    decision: Decision,
    bound: Box<dyn Bound>,
    input: Arc<Value>,
    before: Before,
    (mut counted, late): (Vec<RateLimit>, Vec<RateLimit>),
) -> Result<Answer, CallError> {
    let mut verdict = decision.verdict;
    let mut findings = vec![];
    let facts = call.facts.get().expect("line() set the facts before the intent");
    let effect = async {
        if let Some(earlier) = before.earlier?
            && let Some(answer) = bound.replay(&call, earlier).await?
        {
            return Ok(answer);
        }
        let plan = bound.plan(&call).await?;
        if let Some(plan) = &plan {
            (verdict, findings) = (verdict.max(plan.verdict), plan.findings.clone());
        }
        let plan_verdict = plan.as_ref().map_or(Verdict::Allow, |p| p.verdict);
        // Before an approval is used up: what was approved and may not start now stays approved.
        still_may(&call, facts).await?;
        let approved = match approval::ask(&call, facts, &decision, plan.as_ref(), &input, bound.as_ref()).await? {
            approval::Word::NotNeeded => false,
            approval::Word::Given => true,
            approval::Word::Pending(answer) => return Ok(answer),
        };
        // It asks nobody again after all: it is a call like any other, and counts before it does anything.
        if call.approved_by.get().is_none() {
            record::late(&call, &late).await?;
            counted.extend(late);
        }
        // Minutes may have passed since: whoever froze the house was told that nothing changes.
        still_may(&call, facts).await?;
        let permit = gate::permit(&call.id, facts, &decision, plan_verdict, &findings, approved)
            .map_err(|r| denial(&r.findings, decision.hint.as_deref()))?;
        if !bound.replays() {
            call.let_next();
        }
        bound.run(&call, plan, permit).await
    };
    let result = AssertUnwindSafe(effect).catch_unwind().await.unwrap_or_else(|_| {
        Err(CallError::new(
            ErrorCode::Internal,
            "the supervisor failed inside this call",
            "call `status` to see what was done, and report this to the operator",
        ))
    });
    call.let_next();
    tracing::Span::current().record("verdict", verdict.as_str());
    record::end(&call, &record::outcome(&call, verdict, &findings, &result), &counted).await?;
    result
}

/// Refuses what the house's own rules refuse by now, though they did not when the call came in.
async fn still_may(call: &Call, facts: &CallFacts) -> Result<(), CallError> {
    for facts in [Some(facts), call.also.get()].into_iter().flatten() {
        let open = Decision { verdict: Verdict::Allow, findings: vec![], limits: vec![], approval: None, hint: None };
        let now = house_rules(call, facts, open).await?;
        if now.verdict == Verdict::Deny {
            return Err(denial(&now.findings, now.hint.as_deref()));
        }
    }
    Ok(())
}

/// What holds whatever an agent's rules say: a read-only session and a frozen house change nothing.
async fn house_rules(call: &Call, facts: &CallFacts, mut decision: Decision) -> Result<Decision, CallError> {
    if !facts.mutates {
        return Ok(decision);
    }
    let finding = |rule: &str, because: String| crate::model::verdict::Finding {
        rule: rule.into(),
        verdict: Verdict::Deny,
        service: None,
        path: None,
        because,
    };
    if call.who.read_only {
        decision.findings.push(finding("session.read_only", "this session was started read-only".into()));
        let hint = "connect without --read-only or X-MCP-Readonly; an operator's token only reads: use an agent's token";
        decision.hint = Some(hint.into());
    }
    if let Some(frozen) = approval::frozen(&call.house.store).await? {
        decision.findings.push(finding("house.frozen", frozen));
        decision.hint = Some("an operator lifts it with `dockwarden unfreeze`".into());
    }
    if let Some(open) = brakes::breaker(&call.house.store, facts, call.rulebook.policy.breaker_failures, call.now).await? {
        decision.hint = Some(format!("find out why; an operator lifts it with `dockwarden unfreeze --pair {}/STACK`", facts.agent));
        decision.findings.push(open);
    }
    decision.verdict = decision.findings.iter().map(|f| f.verdict).max().unwrap_or_default().max(decision.verdict);
    Ok(decision)
}

/// A call that could not be read leaves one row all the same.
async fn misunderstood(call: &Call, name: &str, input: &Value, refused: CallError) -> Result<Answer, CallError> {
    let facts = facts::unread(call, redact::keep_start(name, MAX_NAME));
    let decision = Decision { verdict: Verdict::Allow, findings: vec![], limits: vec![], approval: None, hint: None };
    let intent = Intent { essential: false, ..record::intent(call, &facts, &decision, input) };
    record::single(call, &intent, &[], Err(refused)).await
}

/// Which rules said no, why, and how to get it.
fn denial(findings: &[crate::model::verdict::Finding], hint: Option<&str>) -> CallError {
    let strictest = findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Deny);
    let reasons: Vec<String> =
        findings.iter().filter(|f| f.verdict == strictest).take(5).map(|f| format!("{} ({})", f.rule, f.because)).collect();
    let message =
        if reasons.is_empty() { "denied: no rule allows this call".to_owned() } else { format!("denied by {}", reasons.join("; ")) };
    let hint = hint.unwrap_or("change what the rule names and call `plan` again, or ask an operator for an exception in policy.toml");
    let mut error = CallError::new(ErrorCode::Denied, message, hint);
    error.findings = findings.to_vec();
    error
}

/// Redaction, and the detail of an error to the log only.
fn reply(result: Result<Answer, CallError>) -> Result<Reply, CallError> {
    match result {
        Ok(mut answer) => {
            let known = Known::of(&answer.value);
            redact::reply(&mut answer.value);
            let text = answer.text.map_or_else(|| answer.value.to_string(), |t| redact::said(&t));
            Ok(Reply { value: answer.value, text, known })
        }
        Err(mut error) => {
            if let Some(detail) = &error.detail {
                tracing::error!(code = ?error.code, message = %error.message, %detail, "call failed");
            }
            for text in [Some(&mut error.message), Some(&mut error.hint), error.field.as_mut()].into_iter().flatten() {
                *text = redact::said(text);
            }
            redact::findings(&mut error.findings);
            if let Some(data) = &mut error.data {
                redact::reply(data);
            }
            Err(error)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
