//! What operators say, whichever door they said it at: the credential's check, and the one way a word becomes a decision. Deliberately
//! absent: how a door learns the passphrase (the terminal, the login page), and what an approval leads to (`call::approval`).

use super::socket::credential;
use super::socket::wire::Credential;
use crate::call::approval::{self, run_approved};
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::ApprovalId;
use crate::model::plan::Plan;
use crate::store::approval::{Approval, ApprovalState};
use chrono::Utc;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// One guess at a time, and a wrong one costs this much on top of the hash.
static GUESSES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const WRONG_GUESS: Duration = Duration::from_secs(1);

/// The command line, as the audit log names it.
pub const CLI: &str = "cli";
/// The approvals page, as the audit log names it.
pub const PAGE: &str = "page";

/// What a request of a person answers.
pub type Done = Result<Reply, CallError>;

/// An answer.
///
/// # Errors
/// Never.
pub fn reply(value: Value, text: impl Into<String>) -> Done {
    Ok(Reply { value, text: text.into() })
}

/// A refusal.
pub fn denied(message: impl Into<String>, hint: &str) -> CallError {
    CallError::new(ErrorCode::Denied, message, hint)
}

/// What an operator says to an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Yes.
    Approve,
    /// No.
    Deny,
    /// The earlier yes no longer holds.
    Revoke,
}

/// An id as typed.
///
/// # Errors
/// `InvalidArgument`.
pub fn approval_id(text: &str) -> Result<ApprovalId, CallError> {
    ApprovalId::new(text)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "see `dockwarden approvals list`").field("approval"))
}

/// An approval as lists show it: without the call's input, which may carry secret values.
pub fn row(a: &Approval) -> Value {
    json!({"approval_id": a.id, "state": a.state, "agent": a.agent, "tool": a.tool, "stack": a.stack, "environment": a.environment, "reason": a.reason, "on_behalf": a.on_behalf,
           "needed": a.needed, "approved_by": a.approved_by, "denied_by": a.denied_by, "operation_id": a.operation, "created_at": a.created_at, "expires_at": a.expires_at})
}

/// An approval with the plan it stands for, when its tool has one.
///
/// # Errors
/// `InvalidArgument`, `NotFound`, and the store's.
pub async fn with_plan(house: &House, text: &str) -> Result<(Approval, Option<Plan>), CallError> {
    let approval = approval::find(&house.store, &approval_id(text)?).await?;
    let plan = match &approval.plan {
        Some(id) => house.store.plan(id).await?,
        None => None,
    };
    Ok((approval, plan))
}

/// Who asks, and on whose behalf.
pub fn asker(a: &Approval) -> String {
    if a.on_behalf.is_empty() { a.agent.clone() } else { format!("{} on behalf of {}", a.agent, a.on_behalf.join(", ")) }
}

/// One approval with what it would do.
///
/// # Errors
/// As `with_plan`.
pub async fn show(house: &House, text: &str) -> Done {
    let (approval, plan) = with_plan(house, text).await?;
    let mut value = row(&approval);
    value["digest"] = json!(approval.digest);
    if let Some(plan) = plan {
        value["changes"] = json!(plan.changes);
        value["findings"] = json!(plan.findings);
    }
    reply(value, format!("{} wants {} on {}", asker(&approval), approval.tool, approval.stack.as_ref().map_or("the host", |s| s.as_str())))
}

/// Takes the word of an operator whose credential was checked: records it, and starts the operation when it was the last one needed.
///
/// # Errors
/// `Denied` for who asked itself, `Conflict` when it is settled, and what the started call answers.
pub async fn decide(house: &Arc<House>, text: &str, by: &str, word: Word, door: &str) -> Done {
    let id = approval_id(text)?;
    let now = Utc::now();
    let before = approval::find(&house.store, &id).await?;
    if word == Word::Approve && before.asked_by(by) {
        return Err(denied("who asked cannot approve", "another operator approves"));
    }
    let decided = match word {
        Word::Approve => house.store.decide_approval(&id, by, true, now).await?,
        Word::Deny => house.store.decide_approval(&id, by, false, now).await?,
        Word::Revoke => house.store.revoke_approval(&id, by, now).await?,
    };
    let Some(after) = decided else {
        let state = json!(before.state);
        let state = state.as_str().unwrap_or("settled");
        let (message, hint) = match word {
            Word::Revoke => {
                (format!("approval {id} is {state}: there is nothing to take back"), "`dockwarden cancel` stops what has started")
            }
            Word::Approve | Word::Deny => (format!("approval {id} is {state} already"), "the agent repeats its call to ask again"),
        };
        return Err(CallError::new(ErrorCode::Conflict, message, hint));
    };
    let what = match word {
        Word::Approve => "approval_given",
        Word::Deny => "approval_denied",
        Word::Revoke => "approval_revoked",
    };
    let stack = after.stack.as_ref().map(|s| s.as_str());
    let waited_s = (now - after.created_at).num_seconds();
    let detail =
        json!({"approval": id, "digest": after.digest, "agent": after.agent, "tool": after.tool, "door": door, "waited_s": waited_s});
    house.store.audit_event(by, what, stack, &detail, now).await?;
    let mut value = row(&after);
    match (word, after.state) {
        (Word::Revoke, _) => reply(value, format!("taken back by {by}: nothing had started")),
        (_, ApprovalState::Approved) => {
            let started = run_approved(house, &id).await?;
            value["result"] = started.value;
            reply(value, format!("approved by {by}; {}", started.text))
        }
        (_, ApprovalState::Pending) => {
            reply(value, format!("approved by {by}; {} of {} approvals given", after.approved_by.len(), after.needed))
        }
        (_, ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Used | ApprovalState::Stale) => {
            reply(value, format!("denied by {by}"))
        }
    }
}

/// Checks a passphrase; one guess at a time, a wrong one is recorded.
///
/// # Errors
/// `Denied` when operator or passphrase are wrong, `Internal` when the stored credential is unreadable.
pub async fn verified(house: &House, credential: &Credential) -> Result<String, CallError> {
    let _one = GUESSES.lock().await;
    let stored = house.store.operators().await?.into_iter().find(|(name, _)| *name == credential.operator);
    let ok = match stored {
        None => false,
        Some((_, hash)) => {
            let passphrase = credential.passphrase.clone();
            let checked = tokio::task::spawn_blocking(move || credential::verify(&passphrase, &hash)).await;
            let internal = |e: String| {
                CallError::new(
                    ErrorCode::Internal,
                    "the operator's credential could not be checked",
                    "set it again with `dockwarden operators add`",
                )
                .detail(e)
            };
            checked.map_err(|e| internal(e.to_string()))?.map_err(|e| internal(e.to_string()))?
        }
    };
    if ok {
        return Ok(credential.operator.clone());
    }
    tokio::time::sleep(WRONG_GUESS).await;
    let operator = super::client_text(&credential.operator);
    house.store.audit_event("operator", "credential_refused", None, &json!({"operator": operator}), Utc::now()).await?;
    Err(denied(
        "the operator or the passphrase is wrong",
        "make an operator with `dockwarden operators add NAME`, then type its passphrase",
    ))
}

/// Who may do what needs an operator where there is one.
pub struct Authorised {
    /// Operator, or `home-owner`.
    pub name: String,
    /// What to tell the person about it.
    pub note: String,
}

/// An operator where there is one; on a home without operators its owner, and the reply says so.
///
/// # Errors
/// `Denied`.
pub async fn authorised(house: &House, credential: Option<&Credential>) -> Result<Authorised, CallError> {
    match credential {
        Some(credential) => Ok(Authorised { name: verified(house, credential).await?, note: String::new() }),
        None if house.store.operators().await?.is_empty() => Ok(Authorised {
            name: "home-owner".into(),
            note: "No operator exists yet, so the home's owner was enough. Add one (`dockwarden operators add NAME`): from then on this asks for a passphrase.".into(),
        }),
        None => Err(denied("this needs an operator's passphrase", "run it at a terminal: it is typed there, never passed as an argument or variable").field("credential")),
    }
}
