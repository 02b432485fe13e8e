//! The person at the client whose agent asks, where a rule of that agent says `channels: [client]`: what they are shown, and their answer on its way to the
//! decision that an operator's word takes, too. Deliberately absent: how a client is asked (`mcp::ask`), and whether the answer counts (the gate's matter, kept
//! with the approval).

use super::{Said, Speaker, Word, say, show};
use crate::call::approval;
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House, Principal};
use crate::model::ids::ApprovalId;
use crate::store::approval::ApprovalState;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// Longest question, in bytes. Nobody reads a longer one in a dialog, and what is cut off would be approved unseen: it goes to the operators alone.
const MAX_QUESTION: usize = 12_000;

/// What a person at a client is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The approval it is about.
    pub approval: ApprovalId,
    /// What would be done and why it waits, in plain text.
    pub text: String,
    /// Void after.
    pub expires_at: DateTime<Utc>,
}

/// What a person at a client said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Let it run.
    Yes,
    /// Do not.
    No,
    /// Nothing that decides: closed, or not understood.
    Nothing,
}

/// The question a reply leads to: none where it does not wait for an approval, where no rule lets the client decide this one, and where it is too long to be read.
///
/// # Errors
/// The store's.
pub async fn question(house: &House, who: &Principal, reply: &Reply) -> Result<Option<Question>, CallError> {
    // As the tool said it: what is shown may be masked.
    let waits = reply.known.state.as_deref() == Some("pending_approval");
    let Some(id) = reply.known.approval.clone().filter(|_| waits) else { return Ok(None) };
    let asked = approval::find(&house.store, &id).await?;
    let theirs = asked.by_client && !asked.at_terminal && asked.agent == who.agent.as_str() && asked.state == ApprovalState::Pending;
    if !theirs {
        return Ok(None);
    }
    let what = show(house, id.as_str()).await?.text;
    let text = format!(
        "dockwarden on {} asks the person at this client, not the model. Approving lets this call run once, exactly as shown.\n\n{what}",
        house.config.host_name
    );
    if text.len() > MAX_QUESTION {
        tracing::info!(approval = %id, bytes = text.len(), "what would be done is too long for a question at the client; an operator decides");
        return Ok(None);
    }
    Ok(Some(Question { approval: id, text, expires_at: asked.expires_at }))
}

/// Carries an answer out: what the call answered when it was let run, the refusal when not. `None`: nothing was decided.
///
/// # Errors
/// `Denied` when the person said no, and those of `people::say`.
pub async fn answered(
    house: &Arc<House>,
    who: &Principal,
    session: &str,
    id: &ApprovalId,
    answer: Answer,
) -> Result<Option<Reply>, CallError> {
    let word = match answer {
        Answer::Yes => Word::Approve,
        Answer::No => Word::Reject,
        Answer::Nothing => return Ok(None),
    };
    let by = Speaker::Client { agent: &who.agent, session, client: who.client.as_deref() };
    let (_, started) = say(house, id.as_str(), Said { word, by, door: who.door.as_str() }).await?;
    match started {
        Some(reply) => Ok(Some(reply)),
        None => Err(CallError::new(
            ErrorCode::Denied,
            format!("the person at the client said no to approval {id}; nothing was done"),
            "do not ask for the same again; find out from them what they want instead",
        )),
    }
}

#[cfg(test)]
mod tests;
