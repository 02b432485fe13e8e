//! Operators: who may approve, and their tokens.

use super::super::credential;
use super::super::wire::Credential;
use crate::adapters::people::{Done, authorised, reply, verified};
use crate::adapters::tokens;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::AgentName;
use crate::store::token::Removal;
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// Their names.
pub(super) async fn list(house: &House) -> Done {
    let names: Vec<String> = house.store.operators().await?.into_iter().map(|(name, _)| name).collect();
    reply(json!({"operators": names}), names.join("\n"))
}

/// Adds one, or gives one a new passphrase.
pub(super) async fn add(house: &Arc<House>, name: &str, passphrase: String, credential: Option<&Credential>) -> Done {
    let name = AgentName::new(name)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "choose a name like a login name").field("name"))?;
    if house.rulebook.load().agents.contains_key(name.as_str()) {
        return Err(CallError::new(ErrorCode::Conflict, format!("{name} is an agent"), "an operator is a person: choose another name")
            .field("name"));
    }
    let by = authorised(house, credential).await?;
    let hashed = tokio::task::spawn_blocking(move || credential::hash(&passphrase)).await;
    let bad = |e: String| CallError::new(ErrorCode::InvalidArgument, e, "type a longer passphrase").field("passphrase");
    let hash = hashed.map_err(|e| bad(e.to_string()))?.map_err(|e| bad(e.to_string()))?;
    house.store.put_operator(name.as_str(), &hash, Utc::now()).await?;
    house.store.audit_event(&by.name, "operator_added", None, &json!({"operator": name}), Utc::now()).await?;
    reply(json!({"operator": name}), format!("operator {name} may now approve. {}", by.note).trim())
}

/// Removes one; the last one stays.
pub(super) async fn remove(house: &Arc<House>, name: &str, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    match house.store.remove_operator(name, Utc::now()).await? {
        Removal::Gone => {
            house.store.audit_event(&by, "operator_removed", None, &json!({"operator": name}), Utc::now()).await?;
            reply(json!({"removed": name}), format!("{name} is no operator any more: passphrase, tokens and web sessions are void"))
        }
        Removal::Unknown => {
            let name = crate::redact::line(name, 80);
            Err(CallError::new(ErrorCode::NotFound, format!("there is no operator {name:?}"), "see `dockwarden operators`").field("name"))
        }
        Removal::Last => {
            let hint = "add the next one first: `dockwarden operators add NAME`";
            Err(CallError::new(ErrorCode::Conflict, format!("{name} is the only operator; without one nobody could approve"), hint)
                .field("name"))
        }
    }
}

/// Makes an operator's token.
pub(super) async fn make_token(house: &Arc<House>, label: &str, days: u32, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    tokens::make_for_operator(house, &by, label, days).await
}

/// Ends one.
pub(super) async fn revoke_token(house: &Arc<House>, token: &str, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    tokens::revoke_of_operator(house, token, &by).await
}
