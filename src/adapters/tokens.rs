//! Bearer tokens as people handle them: make, list, end. Ending one ends what is connected with it. Deliberately absent: keeping them
//! (`store::token`) and reading them off a request (`mcp::http`).

use super::Doors;
use super::people::{Done, authorised, denied, reply};
use super::socket::credential;
use super::socket::peer::WARDEN;
use super::socket::wire::Credential;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::redact;
use crate::store::token::{TokenId, TokenRecord};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// Longest life that can be asked for: ten years.
const MAX_DAYS: u32 = 3650;
/// Longest life of an operator's token: it decides, so it is made anew each month.
const MAX_OPERATOR_DAYS: u32 = 30;

/// What is connected by a token right now; ended when the token is.
#[derive(Debug, Default)]
pub struct Live(Mutex<BTreeMap<TokenId, CancellationToken>>);

impl Live {
    /// What a request of this token has to watch.
    pub fn watch(&self, id: TokenId) -> CancellationToken {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    /// Ends everything connected by these tokens.
    pub fn end(&self, ids: &[TokenId]) {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().filter_map(|id| live.remove(id)).for_each(|watched| watched.cancel());
    }

    fn end_named(&self, id: &str) {
        let ids: Vec<TokenId> = {
            let live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            live.keys().filter(|k| k.to_string() == id).copied().collect()
        };
        self.end(&ids);
    }
}

/// A token somebody wants.
#[derive(Debug)]
pub struct Wish {
    /// Agent it acts as.
    pub agent: String,
    /// End all earlier ones first.
    pub revoke: bool,
    /// What it is for.
    pub label: String,
    /// Days it is valid.
    pub days: Option<u32>,
}

/// Makes a token: shown once, only its hash is kept.
///
/// # Errors
/// `NotFound`, `Denied`, `InvalidArgument`.
pub async fn make(doors: &Doors, wish: &Wish, credential: Option<&Credential>) -> Done {
    let (house, agent) = (&doors.house, wish.agent.as_str());
    if !house.rulebook.load().agents.contains_key(agent) {
        let message = format!("there is no agent {:?}", redact::line(agent, 80));
        return Err(CallError::new(ErrorCode::NotFound, message, "see `dockwarden agents list`").field("agent"));
    }
    if agent == WARDEN {
        return Err(denied("agent warden is the supervisor's own loop", "make a token for another agent"));
    }
    if wish.days.is_some_and(|d| d == 0 || d > MAX_DAYS) {
        let message = format!("a token is valid for 1 to {MAX_DAYS} days");
        return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave it out for a token without end").field("days"));
    }
    let by = authorised(house, credential).await?;
    let (token, kept) = credential::token().map_err(no_token)?;
    let (now, label) = (Utc::now(), redact::line(&wish.label, 60));
    let mut ended = if wish.revoke { house.store.revoke_tokens(agent, now).await? } else { vec![] };
    let expires = wish.days.map(|d| now + TimeDelta::days(i64::from(d)));
    let (id, replaced) = house.store.put_token(agent, &label, &kept, expires, now).await?;
    ended.extend(replaced);
    doors.tokens.end(&ended);
    let ended: Vec<String> = ended.iter().map(ToString::to_string).collect();
    let id = id.to_string();
    let detail = json!({"agent": agent, "token": id, "label": label, "expires_at": expires, "ended": ended});
    house.store.audit_event(&by.name, "token_made", None, &detail, now).await?;
    let value = json!({"agent": agent, "token": token, "token_id": id, "label": label, "expires_at": expires, "revoked": ended.len(), "ended": ended, "note": by.note});
    reply(value, token)
}

/// Makes a token for an operator who typed their passphrase: shown once, only its hash is kept, and it always ends.
///
/// # Errors
/// `InvalidArgument`, and the store's.
pub async fn make_for_operator(house: &House, operator: &str, label: &str, days: u32) -> Done {
    if !(1..=MAX_OPERATOR_DAYS).contains(&days) {
        let message = format!("an operator's token is valid for 1 to {MAX_OPERATOR_DAYS} days");
        return Err(CallError::new(ErrorCode::InvalidArgument, message, "make another one when it ends").field("days"));
    }
    let (token, kept) = credential::operator_token().map_err(no_token)?;
    let (now, label) = (Utc::now(), redact::line(label, 60));
    let expires = now + TimeDelta::days(i64::from(days));
    let (id, ended) = house.store.put_operator_token(operator, &label, &kept, expires, now).await?;
    let ended: Vec<String> = ended.iter().map(ToString::to_string).collect();
    let detail = json!({"operator": operator, "token": id.to_string(), "label": label, "expires_at": expires, "ended": ended});
    house.store.audit_event(operator, "operator_token_made", None, &detail, now).await?;
    let value =
        json!({"operator": operator, "token": token, "token_id": id.to_string(), "label": label, "expires_at": expires, "ended": ended});
    reply(value, token)
}

/// Lists tokens of operators by id: never the token.
///
/// # Errors
/// The store's.
pub async fn list_of_operators(house: &House) -> Done {
    let mut rows = rows(house.store.operator_tokens().await?);
    for row in &mut rows {
        if let Some(row) = row.as_object_mut() {
            let operator = row.remove("agent").unwrap_or_default();
            row.insert("operator".into(), operator);
        }
    }
    let text = format!("{} tokens", rows.len());
    reply(json!({"tokens": rows}), text)
}

/// Ends a token of an operator; any operator may end any.
///
/// # Errors
/// `NotFound`.
pub async fn revoke_of_operator(house: &House, id: &str, by: &str) -> Done {
    let (now, shown) = (Utc::now(), redact::line(id, 40));
    if !house.store.revoke_operator_token(id, now).await? {
        let message = format!("there is no valid token {shown:?} of an operator");
        return Err(CallError::new(ErrorCode::NotFound, message, "see `dockwarden operators tokens`").field("token"));
    }
    house.store.audit_event(by, "operator_token_revoked", None, &json!({"token": shown}), now).await?;
    reply(json!({"token_id": id, "state": "revoked"}), format!("token {id} is void"))
}

fn no_token(e: credential::CredentialError) -> CallError {
    CallError::new(ErrorCode::Internal, "no token could be made", "look at the supervisor's log").detail(e.to_string())
}

/// Records with whether they hold.
fn rows(records: Vec<TokenRecord>) -> Vec<Value> {
    let now = Utc::now();
    let row = |t: TokenRecord| {
        let state = match () {
            () if t.revoked_at.is_some() => "revoked",
            () if t.expires_at.is_some_and(|e| e <= now) => "expired",
            () => "valid",
        };
        let mut row = json!(t);
        row["state"] = json!(state);
        row
    };
    records.into_iter().map(row).collect()
}

/// Lists tokens by id: never the token.
///
/// # Errors
/// The store's.
pub async fn list(house: &House) -> Done {
    let rows = rows(house.store.tokens().await?);
    let text = format!("{} tokens", rows.len());
    reply(json!({"tokens": rows}), text)
}

/// Ends a token and what is connected with it.
///
/// # Errors
/// `NotFound`, `Denied`.
pub async fn revoke(doors: &Doors, id: &str, credential: Option<&Credential>) -> Done {
    let house = &doors.house;
    let by = authorised(house, credential).await?;
    let now = Utc::now();
    let shown = redact::line(id, 40);
    if !house.store.revoke_token(id, now).await? {
        let message = format!("there is no valid token {shown:?}");
        return Err(CallError::new(ErrorCode::NotFound, message, "see `dockwarden agents tokens`").field("token"));
    }
    doors.tokens.end_named(id);
    house.store.audit_event(&by.name, "token_revoked", None, &json!({"token": shown}), now).await?;
    reply(json!({"token_id": id, "state": "revoked"}), format!("token {id} is void and its connections are closed. {}", by.note).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ending_a_token_ends_what_watches_it_and_nothing_else() {
        let dir = tempfile::tempdir().expect("directory");
        let store = crate::store::Store::open(dir.path(), dir.path()).await.expect("opens");
        let mut ids = vec![];
        for n in [1, 2] {
            ids.push(store.put_token("a", "", &[n; 32], None, Utc::now()).await.expect("kept").0);
        }
        let live = Live::default();
        let (one, two) = (live.watch(ids[0]), live.watch(ids[1]));
        live.end_named(&ids[0].to_string());
        assert!(one.is_cancelled() && !two.is_cancelled());
        assert!(!live.watch(ids[0]).is_cancelled(), "a later watch starts anew");
        store.close().await;
    }
}
