//! Approvals on the line: asking for one, using one up, running what was approved, and the house-wide freeze. Who may approve is the door's business
//! (an operator at a terminal or in an authenticated session); the states are the store's. Deliberately absent: any way for an agent to approve.

use super::context::Door;
use super::dispatch::{Reply, resume};
use super::error::ErrorCode;
use super::{Call, CallError, House, Principal, brakes};
use crate::gate::{CallFacts, Decision};
use crate::model::ids::{AgentName, ApprovalId, OperationId};
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use crate::model::verdict::{Finding, Verdict};
use crate::redact;
use crate::store::approval::{Approval, ApprovalState, resolved_place};
use crate::store::{Store, StoreResult};
use crate::tools::{Answer, Bound};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Life of an approval where no rule says otherwise, in seconds.
const TTL_S: u64 = 1800;

/// Most approvals of one agent that wait at once.
const MOST_WAITING: usize = 20;

/// Key of the store under which a freeze stands.
const FREEZE: &str = crate::store::FREEZE;

/// What the approvals say to a call.
pub(super) enum Word {
    /// No rule asks for one.
    NotNeeded,
    /// Given, for exactly this digest, and used up by this call.
    Given,
    /// Asked for: the reply of the call.
    Pending(Answer),
}

/// Asks for the approval a call needs, or uses up the one it has.
pub(super) async fn ask(
    call: &Call,
    facts: &CallFacts,
    decision: &Decision,
    plan: Option<&Plan>,
    input: &Value,
    bound: &dyn Bound,
) -> Result<Word, CallError> {
    let needed = decision.verdict.max(plan.map_or(Verdict::Allow, |p| p.verdict));
    // What an operator approved uses that up, also where nothing asks for it any more: it is good for one call.
    if needed == Verdict::Deny || (needed != Verdict::Approval && call.resumes.is_none()) {
        return Ok(Word::NotNeeded);
    }
    let resolved = match plan {
        Some(_) => None,
        None => bound.resolved(call).await?,
    };
    if let Some(resolved) = &resolved {
        call.resolved.set(resolved.clone()).expect("a call asks once");
    }
    let digest = plan.map_or_else(|| digest(call, facts, input, resolved.as_ref()), |p| p.digest.clone());
    let store = &call.house.store;
    if call.resumes.is_none() && brakes::stands_in(store, &call.id, facts, call.also.get(), &digest, call.now).await? {
        return Ok(Word::Given);
    }
    let approval = match &call.resumes {
        Some(id) => resumed(call, id, &digest).await?,
        None => {
            if let Some(plan) = plan {
                store.put_plan(plan).await?;
            }
            few_enough(call, facts, &digest).await?;
            let asked = store.request_approval(request(call, facts, decision, plan, input, digest)).await?;
            if let Some(resolved) = &resolved {
                store.set_value(&resolved_place(&asked.id), resolved).await?;
            }
            asked
        }
    };
    if approval.state != ApprovalState::Approved {
        return Ok(Word::Pending(pending(&approval, decision, plan)));
    }
    if !store.use_approval(&approval.id, &call.id, Utc::now()).await? {
        return Err(CallError::new(
            ErrorCode::Conflict,
            format!("approval {} was used already", approval.id),
            "repeat the call to ask for a new approval",
        ));
    }
    call.approved_by.set(approval.id).expect("a call uses one approval");
    Ok(Word::Given)
}

/// People read what waits: an agent that asks for more than anybody reads hides what matters. The same question again is none more.
async fn few_enough(call: &Call, facts: &CallFacts, digest: &str) -> Result<(), CallError> {
    let store = &call.house.store;
    if store.waiting_of(&facts.agent, call.now).await? < MOST_WAITING
        || store.open_approvals(&facts.agent, &facts.tool, call.now).await?.iter().any(|a| a.digest == digest)
    {
        return Ok(());
    }
    let message = format!("{MOST_WAITING} approvals of {} wait already", facts.agent);
    Err(CallError::new(
        ErrorCode::RateLimited,
        message,
        "wait until an operator has decided some of them; poll `approval`, do not ask for more",
    ))
}

async fn resumed(call: &Call, id: &ApprovalId, digest: &str) -> Result<Approval, CallError> {
    let store = &call.house.store;
    let approval = find(store, id).await?;
    if approval.digest != digest {
        store.set_approval_state(id, ApprovalState::Stale).await?;
        return Err(CallError::new(
            ErrorCode::StalePlan,
            format!("the stack, its files or the policy changed since approval {id} was asked for; nothing was done"),
            "call `plan` again and ask for a new approval",
        ));
    }
    Ok(approval)
}

fn request(call: &Call, facts: &CallFacts, decision: &Decision, plan: Option<&Plan>, input: &Value, digest: String) -> Approval {
    let terms = decision.approval.as_ref();
    // What the plan alone or a tainted word puts under approval has no rule with terms of its own.
    let least = |facts: &CallFacts| call.rulebook.policy.least_approvals(facts.environment.as_deref());
    let least = call.also.get().map_or(0, least).max(least(facts));
    let needed = terms.map_or(1, |t| t.count).max(least);
    let life = TimeDelta::seconds(i64::try_from(terms.map_or(TTL_S, |t| t.ttl_s)).unwrap_or(i64::from(u32::MAX)));
    Approval {
        id: ApprovalId::new(format!("ap-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase())).expect("a ulid is alphanumeric"),
        agent: facts.agent.clone(),
        on_behalf: facts.on_behalf.clone(),
        tool: facts.tool.clone(),
        stack: facts.stack.clone(),
        environment: facts.environment.clone(),
        plan: plan.map(|p| p.id.clone()),
        digest,
        input: input.clone(),
        call: call.id.clone(),
        reason: input.get("reason").and_then(Value::as_str).map(|r| redact::line(r, 500)),
        state: ApprovalState::Pending,
        needed,
        approved_by: vec![],
        denied_by: None,
        operation: None,
        at_terminal: matches!(call.who.door, Door::Cli | Door::PeerCli),
        by_client: decision.client_decides(plan.map_or(Verdict::Allow, |p| p.verdict), needed),
        created_at: call.now,
        expires_at: call.now + life,
    }
}

/// The reply of a call that waits for a human.
fn pending(approval: &Approval, decision: &Decision, plan: Option<&Plan>) -> Answer {
    let plan_findings = plan.map(|p| p.findings.as_slice()).unwrap_or_default();
    let findings: Vec<&Finding> = decision.findings.iter().chain(plan_findings).filter(|f| f.verdict == Verdict::Approval).collect();
    let why: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.rule, f.because)).collect();
    let people = match approval.needed {
        0 | 1 => "an operator runs".to_owned(),
        n => format!("{n} different operators run"),
    };
    let how =
        format!("{people} `dockwarden approvals approve {}`; the call then runs by itself: poll `approval`, do not ask again", approval.id);
    let text = format!("pending approval {} until {} ({})\n{how}", approval.id, approval.expires_at.to_rfc3339(), why.join("; "));
    let mut shown =
        json!({"approval_id": approval.id, "digest": approval.digest, "expires_at": approval.expires_at, "how": how, "findings": findings});
    if let Some(plan) = &approval.plan {
        shown["plan_id"] = json!(plan);
    }
    Answer { value: json!({"state": "pending_approval", "approval": shown}), text: Some(text) }
}

/// What the arguments of a call without plan meant when its approval was asked for.
///
/// # Errors
/// The store's.
pub async fn resolved_for(store: &Store, id: &ApprovalId) -> Result<Option<Value>, CallError> {
    Ok(store.value(&resolved_place(id)).await?)
}

/// Digest of a call of a tool without plan: the tool, what it is about, its arguments without those that change nothing, what they mean now, and the policy.
fn digest(call: &Call, facts: &CallFacts, input: &Value, resolved: Option<&Value>) -> String {
    let mut arguments = canonical(input);
    if let Value::Object(map) = &mut arguments {
        for key in ["reason", "wait", "timeout_s", "idempotency_key"] {
            map.remove(key);
        }
    }
    let about = json!([facts.tool, facts.stack, facts.environment, arguments, resolved, call.policy_version()]);
    call.house.store.keyed_digest(about.to_string().as_bytes())
}

/// The same value with every object's keys in order.
pub(crate) fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(k, v)| (k.clone(), canonical(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// An approval by id.
///
/// # Errors
/// `NotFound`.
pub async fn find(store: &Store, id: &ApprovalId) -> Result<Approval, CallError> {
    store.approval(id, Utc::now()).await?.ok_or_else(|| {
        CallError::new(
            ErrorCode::NotFound,
            format!("there is no approval {id}"),
            "use the approval_id of a reply in state pending_approval",
        )
        .field("approval_id")
    })
}

/// Runs what an operator approved, as the agent that asked for it; returns as soon as its operation is accepted. Called by the door through which the
/// operator's word came, after `Store::decide_approval` answered `Approved`.
///
/// # Errors
/// `Conflict` when it is not approved (any more), `StalePlan` when the world moved since, and whatever the call itself answers.
pub async fn run_approved(house: &Arc<House>, id: &ApprovalId) -> Result<Reply, CallError> {
    // One at a time: who comes second finds what became of the first.
    let _turn = house.turns.wait(&format!("approval {id}")).await;
    let approval = find(&house.store, id).await?;
    if approval.state != ApprovalState::Approved {
        let state = serde_json::to_value(approval.state).ok().and_then(|s| s.as_str().map(str::to_owned)).unwrap_or_default();
        return Err(CallError::new(
            ErrorCode::Conflict,
            format!("approval {id} is {state}"),
            "only an approved one can start; the agent repeats its call to ask again",
        ));
    }
    let name = |text: &String| {
        AgentName::new(text.as_str())
            .map_err(|e| CallError::new(ErrorCode::Internal, "the approval names no valid agent", "ask again").detail(e.to_string()))
    };
    let agent = name(&approval.agent)?;
    let on_behalf = approval.on_behalf.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let who = Principal { agent, door: Door::Approval, client: Some(format!("approval {id}")), read_only: false, on_behalf };
    resume(house, &who, &approval.tool, approval.input.clone(), approval.id.clone()).await
}

/// What came of the call that an approval let through.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    /// It began this operation.
    Operation(Box<Operation>),
    /// It is at work, and began no operation yet.
    AtWork,
    /// It was done without an operation.
    Done,
    /// It began nothing, for this reason.
    Failed(String),
    /// It was interrupted: whether it did anything is not known.
    Unknown,
}

/// What came of the call that a used approval let through: used says only that it began.
///
/// # Errors
/// The store's.
pub async fn came_of(store: &Store, approval: &Approval) -> StoreResult<Came> {
    // Its row before the operation: a call that ended well has its operation in the journal by then.
    let row = match store.approved_call(&approval.id).await? {
        Some(call) => store.audit_of_call(&call).await?.pop(),
        None => None,
    };
    if let Some(id) = store.operation_of_approval(&approval.id).await?
        && let Some(operation) = store.operation(&id).await?
    {
        return Ok(Came::Operation(Box::new(operation)));
    }
    let Some(row) = row else { return Ok(Came::Unknown) };
    let detail = &row.detail["detail"];
    Ok(match row.outcome.as_deref() {
        None => Came::AtWork,
        Some("unknown") => Came::Unknown,
        Some("ok") => {
            let id = detail["operation_id"].as_str().and_then(|id| OperationId::new(id).ok());
            let operation = match id {
                Some(id) => store.operation(&id).await?,
                None => None,
            };
            operation.map_or(Came::Done, |o| Came::Operation(Box::new(o)))
        }
        Some(_) => Came::Failed(detail["message"].as_str().unwrap_or("the audit log does not say why").to_owned()),
    })
}

/// Stops all mutations until [`unfreeze`]; recorded as an event.
///
/// # Errors
/// When it could not be recorded.
pub async fn freeze(store: &Store, operator: &str, reason: &str, now: DateTime<Utc>) -> Result<(), CallError> {
    let reason = redact::line(reason, 500);
    store.audit_event(operator, "freeze", None, &json!({"reason": reason}), now).await?;
    store.set_value(FREEZE, &json!({"by": operator, "reason": reason, "at": now})).await?;
    Ok(())
}

/// Lifts a freeze.
///
/// # Errors
/// When it could not be recorded.
pub async fn unfreeze(store: &Store, operator: &str, now: DateTime<Utc>) -> Result<(), CallError> {
    store.audit_event(operator, "unfreeze", None, &json!({}), now).await?;
    store.set_value(FREEZE, &Value::Null).await?;
    Ok(())
}

/// Why nothing may change now, when a freeze stands.
///
/// # Errors
/// When it cannot be read: then nothing may change either.
pub async fn frozen(store: &Store) -> Result<Option<String>, CallError> {
    let stands = store.value(FREEZE).await?.filter(Value::is_object);
    Ok(stands.map(|f| {
        let (by, reason) = (f["by"].as_str().unwrap_or("an operator"), f["reason"].as_str().unwrap_or(""));
        format!("{by} froze all changes{}{reason}", if reason.is_empty() { "" } else { ": " })
    }))
}

#[cfg(test)]
mod tests;
