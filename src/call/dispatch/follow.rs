//! Following what a tool reads: judged by the gate as a call of that tool would be, when it begins and whenever something is told. Nothing is read.
//! Deliberately absent: what changed, and telling it.

use super::{denial, house_rules, misunderstood, reply, understand, within_minute};
use crate::call::error::ErrorCode;
use crate::call::{Call, CallError, House, Principal, record, taint};
use crate::gate::{self, CallFacts, Decision};
use crate::model::verdict::Verdict;
use crate::tools::Answer;
use serde_json::{Value, json};
use std::sync::Arc;

/// What is followed: all that a call would read.
#[derive(Debug)]
pub struct Wish<'a> {
    /// Tool.
    pub tool: &'a str,
    /// Its arguments.
    pub input: Value,
    /// The stack it must be about, where the arguments do not say.
    pub stack: Option<&'a str>,
}

/// Begins to follow something. It leaves the row the call would leave, with `followed` among its arguments; only a refusal counts as a call.
///
/// # Errors
/// What the call's arguments or the gate are wrong about, and the store's.
pub async fn follow(house: &Arc<House>, who: &Principal, wish: Wish<'_>) -> Result<(), CallError> {
    let call = Call::new(house, who, None, None);
    let own = Arc::clone(&call.own);
    let result = own.scope(begin(&call, wish)).await;
    house.store.project_history_soon();
    reply(result).map(|_| ())
}

async fn begin(call: &Call, wish: Wish<'_>) -> Result<Answer, CallError> {
    let (tool, shown) = (wish.tool, noted(&wish.input));
    let (facts, decision) = match judged(call, wish).await {
        Ok(judged) => judged,
        Err(refused) => {
            within_minute(call, tool, &shown).await?;
            return misunderstood(call, tool, &shown, refused).await;
        }
    };
    let intent = record::intent(call, &facts, &decision, &shown);
    if let Err(refused) = lets_through(&decision) {
        within_minute(call, tool, &shown).await?;
        return record::single(call, &intent, &[], Err(refused)).await;
    }
    record::single(call, &intent, &[], Ok(Answer { value: json!({}), text: None })).await
}

/// Whether something may still be followed by the rules of now. Nothing is recorded: who is refused hears nothing.
pub async fn may_hear(house: &Arc<House>, who: &Principal, wish: Wish<'_>) -> bool {
    let call = Call::new(house, who, None, None);
    let own = Arc::clone(&call.own);
    let judged = own.scope(judged(&call, wish)).await;
    judged.is_ok_and(|(_, decision)| lets_through(&decision).is_ok())
}

async fn judged(call: &Call, Wish { tool, input, stack }: Wish<'_>) -> Result<(CallFacts, Decision), CallError> {
    let input = Arc::new(input);
    let (facts, also, _) = understand(call, tool, &input).await?;
    let about = facts.stack.as_ref().map(crate::model::ids::StackName::as_str);
    if stack.is_some() && stack != about {
        let hint = "list resources and resource templates to see the addresses there are";
        return Err(CallError::new(ErrorCode::NotFound, "that is of no such stack", hint).field("stack"));
    }
    let mut decision = house_rules(call, &facts, gate::call::decide(&call.rulebook, &facts)).await?;
    if let Some(also) = also {
        decision = decision.and(house_rules(call, &also, gate::call::decide(&call.rulebook, &also)).await?);
    }
    taint::raise(call, &facts, &input, &mut decision).await?;
    Ok((facts, decision))
}

/// As for a read: what would need an approval is refused.
fn lets_through(decision: &Decision) -> Result<(), CallError> {
    match decision.verdict {
        Verdict::Allow | Verdict::Warn => Ok(()),
        Verdict::Approval | Verdict::Deny => Err(denial(&decision.findings, decision.hint.as_deref())),
    }
}

fn noted(input: &Value) -> Value {
    let mut noted = input.clone();
    if let Some(map) = noted.as_object_mut() {
        map.insert("followed".into(), json!(true));
    }
    noted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Door;
    use crate::call::dispatch::tests::{KEEPER, bench_of};
    use crate::model::ids::AgentName;
    use crate::store::audit::AuditQuery;

    #[tokio::test]
    async fn following_is_judged_and_recorded_like_the_read_and_reads_nothing() {
        let deny = "    - {id: bank, effect: deny, tools: [status], stacks: [bank], because: \"not his\"}\n";
        let text = KEEPER.replacen("  rules:\n", &format!("  rules:\n{deny}"), 1);
        assert_ne!(text, KEEPER, "the rule is in");
        let b = bench_of(&text).await;
        let agent = AgentName::new("keeper").expect("valid");
        let who = Principal { agent, door: Door::McpStdio, client: None, read_only: true, on_behalf: vec![] };
        let of = |stack: &str| Wish { tool: "status", input: json!({"stack": stack}), stack: None };
        // What is not deployed yet can be followed: its first deploy is told.
        follow(&b.house, &who, of("shop")).await.expect("allowed");
        let denied = follow(&b.house, &who, of("bank")).await.expect_err("denied");
        assert!(denied.code == ErrorCode::Denied && denied.message.contains("not his"), "{denied}");
        let odd = follow(&b.house, &who, Wish { input: json!({"stak": "x"}), ..of("") }).await.expect_err("no such argument");
        assert_eq!(odd.code, ErrorCode::InvalidArgument, "{odd}");
        assert!(may_hear(&b.house, &who, of("shop")).await);
        assert!(!may_hear(&b.house, &who, of("bank")).await);
        assert!(!may_hear(&b.house, &who, Wish { stack: Some("bank"), ..of("shop") }).await, "an address that says another stack");
        let rows = b.house.store.audit_rows(&AuditQuery { limit: 9, ..AuditQuery::default() }).await.expect("rows");
        let told: Vec<_> = rows.iter().rev().map(|r| (r.tool.as_str(), r.outcome.as_deref(), &r.detail["arguments"]["followed"])).collect();
        let yes = json!(true);
        assert_eq!(told, [("status", Some("ok"), &yes), ("status", Some("denied"), &yes), ("status", Some("error"), &yes)]);
    }
}
