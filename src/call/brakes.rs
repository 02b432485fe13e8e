//! What stands beside the rules: the circuit breaker, which stops an agent that keeps failing on a stack until an operator lifts it, and
//! broken glass, by which an operator stands in for approvals for at most an hour. Deliberately absent: any way round a denial, and who
//! may do either (the door's business).

use super::CallError;
use super::error::ErrorCode;
use crate::gate::CallFacts;
use crate::model::ids::{CallId, StackName};
use crate::model::operation::{Operation, OperationState};
use crate::model::verdict::{Finding, Verdict};
use crate::redact;
use crate::store::{Store, StoreResult};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Rule id of a denial by the breaker.
pub const BREAKER: &str = "breaker.open";
/// Longest time glass stays broken, minutes.
pub const MOST_MINUTES: u32 = 60;
/// Shortest reason: a word is none.
const LEAST_REASON: usize = 10;
/// Operations of a stack looked back over; more than any breaker counts, and more than backups hide.
const LOOK_BACK: usize = 1000;
/// Mutations the breaker lets through: they only add a copy, or stop what is under way.
const UNBROKEN: &[&str] = &["backup", "verify_backup", "export", "cancel", "memory_write", "task_submit", "task_work"];
const GLASS: &str = "glass";

fn key(what: &str, agent: &str, stack: &StackName) -> String {
    format!("breaker:{what}:{agent}/{stack}")
}

/// Failures in a row, newest first, of an agent on a stack since a moment; a success ends the row, but not of what an open breaker lets through: that
/// says nothing of the rest. Pure.
fn in_a_row<'a>(operations: &'a [Operation], agent: &str, since: Option<DateTime<Utc>>) -> Vec<&'a Operation> {
    let mine = operations.iter().filter(|o| o.agent == agent && since.is_none_or(|s| o.created_at > s));
    let mine = mine.filter(|o| !UNBROKEN.contains(&o.verb.as_str()));
    mine.filter(|o| o.state.is_terminal() && o.state != OperationState::Cancelled).take_while(|o| o.state != OperationState::Done).collect()
}

/// Why an agent may not change a stack now: too many of its operations there failed in a row. `most` is the policy's number; 0 never.
///
/// # Errors
/// The store's: then nothing may change either.
pub async fn breaker(store: &Store, facts: &CallFacts, most: u32, now: DateTime<Utc>) -> StoreResult<Option<Finding>> {
    let Some(stack) = &facts.stack else { return Ok(None) };
    let own = crate::gate::load::HOUSE_AGENTS.contains(&facts.agent.as_str());
    if most == 0 || own || UNBROKEN.contains(&facts.tool.as_str()) {
        return Ok(None);
    }
    let agent = facts.agent.as_str();
    let operations = store.operations(Some(stack), LOOK_BACK).await?;
    if in_a_row(&operations, agent, None).len() < most as usize {
        return Ok(None);
    }
    let lifted = store.value(&key("lifted", agent, stack)).await?;
    let lifted = lifted.as_ref().and_then(|v| v["at"].as_str()).and_then(|t| t.parse().ok());
    let failed = in_a_row(&operations, agent, lifted);
    let Some(last) = failed.first().filter(|_| failed.len() >= most as usize) else { return Ok(None) };
    let (told, id) = (key("open", agent, stack), json!(last.id));
    if store.value(&told).await?.as_ref() != Some(&id) {
        let detail = json!({"agent": agent, "failed": failed.len(), "last": last.id});
        store.audit_event("supervisor", "breaker_opened", Some(stack.as_str()), &detail, now).await?;
        store.set_value(&told, &id).await?;
        tracing::error!(agent, %stack, failed = failed.len(), "too many failures in a row: this agent's changes of this stack are stopped");
    }
    let because = format!("the last {} operations of {agent} on {stack} failed, the newest is {}", failed.len(), last.id);
    Ok(Some(Finding { rule: BREAKER.into(), verdict: Verdict::Deny, service: None, path: None, because }))
}

/// Lets an agent change a stack again: failures until now no longer count.
///
/// # Errors
/// When it could not be recorded.
pub async fn lift(store: &Store, operator: &str, agent: &str, stack: &StackName, now: DateTime<Utc>) -> Result<(), CallError> {
    store.audit_event(operator, "breaker_lifted", Some(stack.as_str()), &json!({"agent": redact::line(agent, 80)}), now).await?;
    store.set_value(&key("lifted", agent, stack), &json!({"at": now, "by": operator})).await?;
    Ok(())
}

/// Glass that an operator broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glass {
    /// Agent it holds for.
    pub agent: String,
    /// Stack it holds for.
    pub stack: StackName,
    /// Operator.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Until when.
    pub until: DateTime<Utc>,
}

/// All glass that is broken now.
///
/// # Errors
/// The store's.
pub async fn broken(store: &Store, now: DateTime<Utc>) -> StoreResult<Vec<Glass>> {
    let stored = store.value(GLASS).await?;
    // What cannot be read grants nothing.
    let all: Vec<Glass> = stored.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
    Ok(all.into_iter().filter(|g| g.until > now).collect())
}

/// For a while, calls of one agent on one stack that need approval count as approved by this operator. What is denied stays denied.
///
/// # Errors
/// `InvalidArgument` without a reason or for more than an hour; when it could not be recorded.
pub async fn break_glass(store: &Store, mut glass: Glass, minutes: u32, now: DateTime<Utc>) -> Result<Glass, CallError> {
    let invalid = |message: String, hint: &str, field: &str| Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field(field));
    glass.reason = redact::line(&glass.reason, 500);
    if glass.reason.chars().count() < LEAST_REASON {
        return invalid("breaking the glass needs a reason".into(), "say what happened and why it cannot wait", "reason");
    }
    if !(1..=MOST_MINUTES).contains(&minutes) {
        return invalid(format!("glass stays broken for 1 to {MOST_MINUTES} minutes"), "break it again if it takes longer", "minutes");
    }
    glass.until = now + TimeDelta::minutes(i64::from(minutes));
    let stack = glass.stack.clone();
    store.audit_event(&glass.by, "break_glass_opened", Some(stack.as_str()), &json!(glass), now).await?;
    let mut all = broken(store, now).await?;
    all.retain(|g| g.agent != glass.agent || g.stack != glass.stack);
    all.push(glass.clone());
    store.set_value(GLASS, &json!(all)).await?;
    tracing::warn!(agent = glass.agent, %stack, by = glass.by, reason = glass.reason, until = %glass.until, "GLASS BROKEN: approvals are not asked for");
    Ok(glass)
}

/// Ends all broken glass at once; how many there were.
///
/// # Errors
/// When it could not be recorded.
pub async fn mend(store: &Store, operator: &str, now: DateTime<Utc>) -> Result<usize, CallError> {
    let all = broken(store, now).await?;
    store.audit_event(operator, "break_glass_closed", None, &json!({"ended": all.len()}), now).await?;
    store.set_value(GLASS, &json!([])).await?;
    Ok(all.len())
}

/// Whether broken glass stands in for the approval of a call; then its use is recorded first. A call about two stacks needs it broken for both.
///
/// # Errors
/// The store's: then the approval is asked for by nobody and the call fails.
pub async fn stands_in(
    store: &Store,
    call: &CallId,
    facts: &CallFacts,
    also: Option<&CallFacts>,
    digest: &str,
    now: DateTime<Utc>,
) -> StoreResult<bool> {
    let Some(stack) = &facts.stack else { return Ok(false) };
    let open = broken(store, now).await?;
    let of = |agent: &String, stack: &StackName| open.iter().find(|g| g.agent == *agent && g.stack == *stack);
    // Each agent of a chain needs the approval: glass broken for one of them is not broken for the others.
    let all = |stack: &StackName| [&facts.agent].into_iter().chain(&facts.on_behalf).all(|a| of(a, stack).is_some());
    let other = also.map(|a| a.stack.as_ref().is_some_and(all));
    let Some(glass) = of(&facts.agent, stack).filter(|_| all(stack) && other != Some(false)) else { return Ok(false) };
    let detail =
        json!({"call": call, "agent": facts.agent, "tool": facts.tool, "digest": digest, "reason": glass.reason, "until": glass.until});
    store.audit_event(&glass.by, "break_glass_used", Some(stack.as_str()), &detail, now).await?;
    tracing::warn!(agent = facts.agent, tool = facts.tool, %stack, by = glass.by, "broken glass stands in for an approval");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::explain::call_of;
    use crate::model::ids::OperationId;
    use crate::model::operation::Phase;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    fn operation(n: i64, agent: &str, state: OperationState) -> Operation {
        Operation {
            stack: StackName::new("shop").ok(),
            state,
            phase: Phase::Finished,
            epoch: 1,
            settled_at: Some(at(n)),
            ..Operation::new(
                OperationId::new(format!("op-{n}")).unwrap(),
                "deploy".into(),
                agent.into(),
                CallId::new(format!("call-{n}")).unwrap(),
                at(n),
            )
        }
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
        (dir, store)
    }

    fn facts(agent: &str, tool: &str) -> CallFacts {
        call_of(agent, tool, true, StackName::new("shop").ok(), Some("production".into()), None)
    }

    #[test]
    fn a_success_ends_a_row_of_failures_and_cancelled_ones_do_not_count() {
        use OperationState::*;
        let list: Vec<Operation> =
            [(6, "a", Failed), (5, "b", Failed), (4, "a", Cancelled), (3, "a", RolledBack), (2, "a", Done), (1, "a", Failed)]
                .into_iter()
                .map(|(n, agent, state)| operation(n, agent, state))
                .collect();
        let ids = |since| in_a_row(&list, "a", since).iter().map(|o| o.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(None), ["op-6", "op-3"]);
        assert_eq!(ids(Some(at(3))), ["op-6"]);
        for verb in ["backup", "verify_backup"] {
            let passed = Operation { verb: verb.into(), ..operation(7, "a", Done) };
            let list: Vec<Operation> = [passed].into_iter().chain(list.clone()).collect();
            assert_eq!(in_a_row(&list, "a", None).len(), 2, "a {verb} passes an open breaker, so it mends none");
        }
    }

    #[tokio::test]
    async fn failures_in_a_row_stop_that_agent_on_that_stack_until_an_operator_lifts_it() {
        let (_dir, store) = store().await;
        let stops = async |agent: &str, tool: &str| breaker(&store, &facts(agent, tool), 3, at(100)).await.unwrap().map(|f| f.because);
        for n in 1..=3 {
            assert_eq!(stops("deployer", "deploy").await, None, "{n}");
            store.begin_operation(operation(n, "deployer", OperationState::RolledBack), "h").await.unwrap().ok();
            store.save_operation(&operation(n, "deployer", OperationState::RolledBack)).await.unwrap();
        }
        let why = stops("deployer", "deploy").await.expect("stopped");
        assert_eq!(why, "the last 3 operations of deployer on shop failed, the newest is op-3");
        assert!(stops("deployer", "deploy").await.is_some(), "and stays so");
        for (agent, tool) in [("stack-keeper", "deploy"), ("warden", "restart"), ("deployer", "cancel"), ("deployer", "backup")] {
            assert_eq!(stops(agent, tool).await, None, "{agent} {tool}");
        }
        assert_eq!(breaker(&store, &facts("deployer", "deploy"), 0, at(100)).await.unwrap(), None, "0 is off");
        lift(&store, "ann", "deployer", &StackName::new("shop").unwrap(), at(101)).await.unwrap();
        assert_eq!(stops("deployer", "deploy").await, None);
        let rows = store.audit_after(0, None, 100).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.tool.as_str()).collect::<Vec<_>>(), ["breaker_opened", "breaker_lifted"], "told once");
    }

    #[tokio::test]
    async fn broken_glass_stands_in_for_one_agent_on_one_stack_for_a_while() {
        let (_dir, store) = store().await;
        let glass = |reason: &str| Glass {
            agent: "deployer".into(),
            stack: StackName::new("shop").unwrap(),
            by: "ann".into(),
            reason: reason.into(),
            until: at(0),
        };
        assert!(break_glass(&store, glass("now"), 10, at(0)).await.is_err(), "a reason");
        for minutes in [0, 61] {
            assert!(break_glass(&store, glass("production is down"), minutes, at(0)).await.is_err(), "{minutes}");
        }
        let made = break_glass(&store, glass("production is down"), 30, at(0)).await.unwrap();
        assert_eq!(made.until, at(30));
        let call = CallId::new("call-1").unwrap();
        let stands =
            async |agent: &str, minute| stands_in(&store, &call, &facts(agent, "deploy"), None, "digest", at(minute)).await.unwrap();
        assert!(stands("deployer", 29).await);
        let other = CallFacts { stack: StackName::new("billing").ok(), ..facts("deployer", "deploy") };
        let both = async || stands_in(&store, &call, &facts("deployer", "deploy"), Some(&other), "digest", at(1)).await.unwrap();
        assert!(!both().await, "the data of a stack whose glass is whole");
        assert!(!stands("stack-keeper", 29).await && !stands("deployer", 30).await);
        assert_eq!(mend(&store, "ann", at(10)).await.unwrap(), 1);
        assert!(!stands("deployer", 11).await);
        let rows = store.audit_after(0, None, 100).await.unwrap();
        let told: Vec<_> = rows.iter().map(|r| (r.agent.as_str(), r.tool.as_str())).collect();
        assert_eq!(told, [("ann", "break_glass_opened"), ("ann", "break_glass_used"), ("ann", "break_glass_closed")]);
    }
}
