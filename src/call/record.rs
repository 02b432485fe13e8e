//! The audit rows of a call: one for a read or a denial, intent and outcome for a mutation. A row that cannot be written is an error of the call.
//! Deliberately absent: what is allowed.

use super::error::ErrorCode;
use super::{Call, CallError, Door};
use crate::gate::{CallFacts, Decision, RateLimit};
use crate::model::verdict::{Finding, Verdict};
use crate::redact;
use crate::store::audit::{Intent, Outcome, Recorded};
use crate::tools::Answer;
use chrono::Utc;
use serde_json::{Value, json};

/// Tools that help on a full disk.
const HELPS: [&str; 4] = ["restart", "rollback", "stop", "prune"];

/// The row of a call that begins.
pub(crate) fn intent(call: &Call, facts: &CallFacts, decision: &Decision, input: &Value) -> Intent {
    Intent {
        call: call.id.clone(),
        agent: facts.agent.clone(),
        delegated_by: facts.on_behalf.clone(),
        // The approval's own rows say who asked by which door and token, and whose word it was.
        door: call.resumes.as_ref().map_or_else(|| call.who.door.detail(), |id| format!("{} {id}", call.who.door.as_str())),
        tool: redact::line(&facts.tool, 64),
        stack: facts.stack.as_ref().map(ToString::to_string),
        environment: facts.environment.clone(),
        arguments: redact::arguments(input, &|text| call.house.store.keyed_hash(text)),
        // The reserve is for what helps: a denial does not, and would use it up.
        essential: decision.verdict != Verdict::Deny && (HELPS.contains(&facts.tool.as_str()) || call.who.door == Door::Cli),
        verdict: decision.verdict,
        findings: clean(&decision.findings),
        at: call.now,
    }
}

fn clean(findings: &[Finding]) -> Vec<Finding> {
    let mut findings = findings.to_vec();
    redact::findings(&mut findings);
    findings
}

/// How a call ended. `plan` is what the plan gate said.
pub(crate) fn outcome(call: &Call, verdict: Verdict, plan: &[Finding], result: &Result<Answer, CallError>) -> Outcome {
    let (outcome, code, detail) = match result {
        Ok(answer) if answer.value["state"] == "pending_approval" => ("pending_approval", None, references(&answer.value)),
        Ok(answer) => ("ok", None, references(&answer.value)),
        Err(error) => {
            let outcome = match error.code {
                ErrorCode::Denied | ErrorCode::RateLimited => "denied",
                _ => "error",
            };
            let code = serde_json::to_value(error.code).ok().and_then(|v| v.as_str().map(str::to_owned));
            let mut detail = json!({"message": redact::line(&error.message, 300)});
            if let Some(engine) = error.engine() {
                detail["engine"] = json!(engine);
            }
            (outcome, code, detail)
        }
    };
    let at = Utc::now();
    let duration_ms = u64::try_from((at - call.now).num_milliseconds()).unwrap_or_default();
    Outcome { call: call.id.clone(), outcome: outcome.to_owned(), code, verdict, findings: clean(plan), detail, duration_ms, at }
}

/// What of a reply the audit log keeps: the ids that lead to the rest, never the content.
fn references(value: &Value) -> Value {
    const KEPT: [&str; 13] = [
        "operation_id",
        "state",
        "release",
        "plan_id",
        "digest",
        "approval",
        "verdict",
        "to_release",
        "from_release",
        "client",
        "dry_run",
        "key",
        "restored_to",
    ];
    let mut kept = serde_json::Map::new();
    for key in KEPT {
        if let Some(found) = value.get(key) {
            kept.insert(key.to_owned(), found.clone());
        }
    }
    if let Some(Value::Array(snapshots)) = value.get("snapshots") {
        kept.insert("snapshots".into(), snapshots.iter().take(50).filter_map(|s| s.get("snapshot_id").cloned()).collect());
    }
    let mut kept = Value::Object(kept);
    redact::reply(&mut kept);
    kept
}

/// Writes the single row of a read, or of a call that went no further. A reached limit replaces the result.
///
/// # Errors
/// The store's, and the call's own.
pub(crate) async fn single(
    call: &Call,
    intent: &Intent,
    limits: &[RateLimit],
    result: Result<Answer, CallError>,
) -> Result<Answer, CallError> {
    let row = outcome(call, intent.verdict, &[], &result);
    admitted(call.house.store.audit_read(intent, &row, limits).await?)?;
    result
}

/// Writes a mutation's intent.
///
/// # Errors
/// `RateLimited` when a limit was reached: the denial is written instead.
pub(crate) async fn begin(call: &Call, intent: &Intent, limits: &[RateLimit]) -> Result<(), CallError> {
    admitted(call.house.store.audit_intent(intent, limits).await?)
}

/// Counts a call, whose intent is written, under limits it was spared before; nothing when they do not let it through.
///
/// # Errors
/// `RateLimited`, and the store's.
pub(crate) async fn late(call: &Call, limits: &[RateLimit]) -> Result<(), CallError> {
    match limits {
        [] => Ok(()),
        _ => match call.house.store.audit_count(limits, call.now).await? {
            Some((limit, retry_after_s)) => Err(limited(&limit, retry_after_s)),
            None => Ok(()),
        },
    }
}

/// Writes a mutation's outcome. One that was denied after all is taken out of the hourly limits it was counted under.
///
/// # Errors
/// The store's.
pub(crate) async fn end(call: &Call, outcome: &Outcome, counted: &[RateLimit]) -> Result<(), CallError> {
    let denied = outcome.outcome == "denied";
    let forgiven: Vec<RateLimit> = counted.iter().filter(|l| denied && super::repeat::by_rule(l)).cloned().collect();
    call.house.store.audit_outcome(outcome, &forgiven).await?;
    Ok(())
}

fn admitted(recorded: Recorded) -> Result<(), CallError> {
    match recorded {
        Recorded::Ok { .. } => Ok(()),
        Recorded::Limited { limit, retry_after_s, .. } => Err(limited(&limit, retry_after_s)),
    }
}

/// The refusal of a call that a limit does not let through now.
pub(crate) fn limited(limit: &RateLimit, retry_after_s: u64) -> CallError {
    let message = format!("limit {} reached: {} calls in {} s", limit.key, limit.max, limit.window_s);
    let mut error = CallError::new(ErrorCode::RateLimited, message, format!("try again in {retry_after_s} s"));
    error.data = Some(json!({"retry_after_s": retry_after_s}));
    error
}

/// Refuses a call that its limits do not let through now, with its row; counts nothing.
///
/// # Errors
/// `RateLimited`, and the store's.
pub(crate) async fn fits(call: &Call, intent: &Intent, limits: &[RateLimit]) -> Result<(), CallError> {
    match limits {
        [] => Ok(()),
        _ => match call.house.store.audit_limited(intent, limits).await? {
            Some(recorded) => admitted(recorded),
            None => Ok(()),
        },
    }
}
