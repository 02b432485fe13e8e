//! Approvals: what waits, and an operator's word about one.

use super::super::wire::Credential;
use crate::adapters::people::{self, Done, Word, reply, verified};
use crate::call::House;
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// What waits, or everything.
pub(super) async fn list(house: &House, all: bool) -> Done {
    let list = house.store.approvals(!all, Utc::now()).await?;
    let text = if list.is_empty() { "no approvals wait".to_owned() } else { format!("{} approvals", list.len()) };
    reply(json!({"approvals": list.iter().map(people::row).collect::<Vec<_>>()}), text)
}

/// One, whole.
pub(super) async fn show(house: &Arc<House>, approval: &str) -> Done {
    people::show(house, approval).await
}

/// Yes.
pub(super) async fn approve(house: &Arc<House>, approval: &str, confirm: Option<&str>, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    people::decide_confirmed(house, approval, &by, confirm, Word::Approve, people::CLI).await
}

/// No.
pub(super) async fn reject(house: &Arc<House>, approval: &str, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    people::decide(house, approval, &by, Word::Reject, people::CLI).await
}

/// The yes no longer holds.
pub(super) async fn revoke(house: &Arc<House>, approval: &str, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    people::decide(house, approval, &by, Word::Revoke, people::CLI).await
}
