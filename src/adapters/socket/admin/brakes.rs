//! The brakes of the house: the freeze, breakers of single agents, and standing in for approvals.

use super::super::wire::Credential;
use super::stacks::stack_name;
use crate::adapters::people::{Done, reply, verified};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House, approval, brakes};
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// Whom to stand in for, where, how long and why.
pub(super) struct Wish {
    pub(super) agent: String,
    pub(super) stack: String,
    pub(super) minutes: u32,
    pub(super) reason: String,
}

/// Stops all changes.
pub(super) async fn freeze(house: &Arc<House>, reason: &str, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    approval::freeze(&house.store, &by, reason, Utc::now()).await?;
    let text = format!(
        "frozen by {by}: nothing changes until `dockwarden unfreeze`; operations under way go on to their end, `dockwarden cancel` stops one"
    );
    reply(json!({"frozen": approval::frozen(&house.store).await?, "operations": house.executor.active()}), text)
}

/// Lets changes happen again.
pub(super) async fn unfreeze(house: &Arc<House>, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    let before = approval::frozen(&house.store).await?;
    approval::unfreeze(&house.store, &by, Utc::now()).await?;
    let text = if before.is_some() { format!("unfrozen by {by}") } else { "nothing was frozen".to_owned() };
    reply(json!({"frozen": null, "was": before}), text)
}

/// Lifts the breaker of an agent on a stack.
pub(super) async fn lift(house: &Arc<House>, agent: &str, stack: &str, credential: &Credential) -> Done {
    let (by, stack) = (verified(house, credential).await?, stack_name(stack)?);
    brakes::lift(&house.store, &by, agent, &stack, Utc::now()).await?;
    let text = format!("lifted by {by}: {agent} may change {stack} again, as far as its rules go");
    reply(json!({"agent": agent, "stack": stack}), text)
}

/// Stands in for approvals.
pub(super) async fn break_glass(house: &Arc<House>, wish: Wish, credential: &Credential) -> Done {
    let Wish { agent, stack, minutes, reason } = wish;
    let (by, stack) = (verified(house, credential).await?, stack_name(&stack)?);
    if !house.rulebook.load().agents.contains_key(&agent) || crate::gate::load::HOUSE_AGENTS.contains(&agent.as_str()) {
        let message = format!("there is no agent {:?} to do it for", crate::redact::line(&agent, 80));
        return Err(CallError::new(ErrorCode::NotFound, message, "see `dockwarden agents list`").field("agent"));
    }
    let glass = brakes::Glass { agent, stack, by, reason, until: Utc::now() };
    let made = brakes::break_glass(&house.store, glass, minutes, Utc::now()).await?;
    let text = format!(
        "GLASS BROKEN by {}: until {} what {} does on {} needs no approval; what is denied stays denied. `dockwarden break-glass --end` ends it",
        made.by, made.until, made.agent, made.stack
    );
    reply(json!(made), text)
}

/// Ends it.
pub(super) async fn mend_glass(house: &Arc<House>, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    let ended = brakes::mend(&house.store, &by, Utc::now()).await?;
    reply(json!({"ended": ended}), format!("{ended} ended by {by}: approvals are asked for again"))
}
