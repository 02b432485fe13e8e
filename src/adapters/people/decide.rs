//! The one way a word about an approval becomes a decision, whoever said it: recorded first, then stored, then carried out. Deliberately absent: whether the
//! speaker is who they say (the doors' matter, see `super`), and what the call does (`call::approval`).

use super::{Done, confirms, denied, reply, row};
use crate::call::approval::{self, run_approved};
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::{AgentName, ApprovalId};
use crate::store::approval::{Approval, ApprovalState};
use chrono::Utc;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a person says to an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Yes.
    Approve,
    /// No.
    Reject,
    /// The earlier yes no longer holds.
    Revoke,
}

/// Who says it.
#[derive(Debug, Clone, Copy)]
pub enum Speaker<'a> {
    /// An operator whose credential was checked, with what was typed to confirm a call of one's own.
    Operator {
        /// Name.
        name: &'a str,
        /// The name of the stack, where it was asked for.
        confirm: Option<&'a str>,
    },
    /// The person at the client of this agent: nobody's credential, only a rule lets it count.
    Client {
        /// Agent.
        agent: &'a AgentName,
        /// Door, token and connection the answer came by.
        session: &'a str,
        /// What the client says of itself.
        client: Option<&'a str>,
    },
}

/// A word as a door passes it on.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// Word.
    pub word: Word,
    /// Who says it.
    pub by: Speaker<'a>,
    /// Door, as the audit log names it.
    pub door: &'a str,
}

impl Speaker<'_> {
    /// The name that stands in the record. No operator can be called like a client: a name has no colon.
    fn name(&self) -> String {
        match self {
            Self::Operator { name, .. } => (*name).to_owned(),
            Self::Client { agent, .. } => format!("client:{agent}"),
        }
    }

    /// Whether a word of theirs can count for an approval at all.
    fn may(&self, house: &House, approval: &Approval, word: Word) -> Result<(), CallError> {
        match self {
            Self::Operator { name, .. } if word == Word::Approve && approval.asked_by(name) => {
                Err(denied("who asked cannot approve", "another operator approves"))
            }
            Self::Operator { confirm, .. } => match confirms(house, approval) {
                Some(name) if word == Word::Approve && confirm.map(str::trim) != Some(name) => Err(unconfirmed(approval, name)),
                Some(_) | None => Ok(()),
            },
            Self::Client { agent, .. } if !approval.by_client || approval.at_terminal || approval.agent != agent.as_str() => {
                Err(denied("a client's answer does not count for this approval", "an operator approves it"))
            }
            Self::Client { .. } => Ok(()),
        }
    }
}

fn unconfirmed(approval: &Approval, name: &str) -> CallError {
    let message = format!(
        "approval {} was asked for at the command line, so it may be your own call: approving it takes its name typed",
        approval.id
    );
    CallError::new(
        ErrorCode::InvalidArgument,
        message,
        format!("type {name}, which is what it is about; or have another person look at it"),
    )
    .field("confirm")
}

/// Takes the word of an operator whose credential was checked: records it, and starts the operation when it was the last one needed.
///
/// # Errors
/// As [`say`].
pub async fn decide(house: &Arc<House>, text: &str, by: &str, word: Word, door: &str) -> Done {
    let said = Said { word, by: Speaker::Operator { name: by, confirm: None }, door };
    shown(by, word, say(house, text, said).await?)
}

/// As [`decide`], with what the operator typed to confirm a call of their own.
///
/// # Errors
/// As [`say`].
pub async fn decide_confirmed(house: &Arc<House>, text: &str, by: &str, confirm: Option<&str>, word: Word, door: &str) -> Done {
    let said = Said { word, by: Speaker::Operator { name: by, confirm }, door };
    shown(by, word, say(house, text, said).await?)
}

/// The reply to an operator.
fn shown(by: &str, word: Word, (after, started): (Approval, Option<Reply>)) -> Done {
    let mut value = row(&after);
    let text = match (word, started, after.state) {
        (Word::Revoke, _, _) => format!("taken back by {by}: nothing had started"),
        (_, Some(started), _) => {
            value["result"] = started.value;
            format!("approved by {by}; {}", started.text)
        }
        (_, None, ApprovalState::Pending) => format!("approved by {by}; {} of {} approvals given", after.approved_by.len(), after.needed),
        (_, None, _) => format!("rejected by {by}"),
    };
    reply(value, text)
}

/// Takes a word: records it, stores it, and runs the call when it was the last one needed. The approval as it was decided, and what the call answered.
///
/// # Errors
/// `Denied` for who asked itself and for a client that no rule names, `InvalidArgument` for a call of one's own that was not confirmed, `Conflict` when it is
/// settled, and what the started call answers.
pub async fn say(house: &Arc<House>, text: &str, said: Said<'_>) -> Result<(Approval, Option<Reply>), CallError> {
    let (id, now, word, by) = (super::approval_id(text)?, Utc::now(), said.word, said.by.name());
    let before = approval::find(&house.store, &id).await?;
    said.by.may(house, &before, word)?;
    let settled = |state: ApprovalState| {
        let state = json!(state);
        let state = state.as_str().unwrap_or("settled");
        let (message, hint) = match word {
            Word::Revoke => {
                (format!("approval {id} is {state}: there is nothing to take back"), "`dockwarden cancel` stops what has started")
            }
            Word::Approve | Word::Reject => (format!("approval {id} is {state} already"), "the agent repeats its call to ask again"),
        };
        CallError::new(ErrorCode::Conflict, message, hint)
    };
    // Approved and not started: its call could not start when the word came, and may now.
    let again = matches!(said.by, Speaker::Operator { .. }) && word != Word::Reject && before.state == ApprovalState::Approved;
    if before.state != ApprovalState::Pending && !again {
        return Err(settled(before.state));
    }
    let restarts = word == Word::Approve && again;
    let what = match word {
        Word::Approve if restarts => "approval_start_again",
        Word::Approve => "approval_given",
        Word::Reject => "approval_denied",
        Word::Revoke => "approval_revoked",
    };
    let stack = before.stack.as_ref().map(|s| s.as_str());
    // Before it counts: no decision without its record.
    house.store.audit_event(&by, what, stack, &detail(house, &before, said), now).await?;
    let decided = match word {
        Word::Approve if restarts => Some(before.clone()),
        Word::Approve | Word::Reject => match said.by {
            Speaker::Operator { .. } => house.store.decide_approval(&id, &by, word == Word::Approve, now).await?,
            Speaker::Client { .. } => house.store.decide_at_client(&id, &by, word == Word::Approve, now).await?,
        },
        Word::Revoke => house.store.revoke_approval(&id, &by, now).await?,
    };
    let Some(after) = decided else {
        // Settled in between, by its time or another's word; or a client's word counts no more.
        house.store.audit_event(&by, "approval_word_void", stack, &json!({"approval": id, "word": what}), now).await?;
        let now = approval::find(&house.store, &id).await?;
        said.by.may(house, &now, word)?;
        return Err(settled(now.state));
    };
    let started = match (word, after.state) {
        (Word::Approve, ApprovalState::Approved) => Some(start(house, &id, said.by).await?),
        _ => None,
    };
    Ok((after, started))
}

/// What the audit log keeps of a word.
fn detail(house: &House, before: &Approval, said: Said<'_>) -> Value {
    let waited_s = (Utc::now() - before.created_at).num_seconds();
    let mut detail = json!({"approval": before.id, "digest": before.digest, "agent": before.agent, "tool": before.tool, "door": said.door, "waited_s": waited_s});
    match said.by {
        Speaker::Operator { .. } => {
            detail["channel"] = json!("operator");
            if said.word == Word::Approve && confirms(house, before).is_some() {
                detail["self_confirmed"] = json!(true);
            }
        }
        Speaker::Client { session, client, .. } => {
            detail["channel"] = json!("client");
            detail["session"] = json!(session);
            detail["client"] = json!(client);
        }
    }
    detail
}

/// Starts what was approved; one that cannot start now can be started later.
async fn start(house: &Arc<House>, id: &ApprovalId, by: Speaker<'_>) -> Done {
    let mut failed = match run_approved(house, id).await {
        Ok(started) => return Ok(started),
        Err(e) => e,
    };
    let now = approval::find(&house.store, id).await?;
    if now.state == ApprovalState::Approved {
        let until = now.expires_at.to_rfc3339();
        let how = match by {
            Speaker::Operator { .. } => "approve it again to start it then",
            // A client's word counts once, for what it was shown.
            Speaker::Client { .. } => "an operator approves it again to start it then, or takes it back",
        };
        failed.hint = format!("{}; it stays approved until {until}: {how}", failed.hint);
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::CLI;
    use super::*;
    use crate::call::dispatch::tests::{COMPOSE, bench};

    #[tokio::test]
    async fn what_could_not_start_is_approved_again_when_it_can() {
        let b = bench().await;
        let asked = b.call("deploy", json!({"stack": "shop", "compose": COMPOSE, "environment": "production"})).await.expect("asked").value;
        let id = asked["approval"]["approval_id"].as_str().expect("an id");
        approval::freeze(&b.house.store, "ann", "", Utc::now()).await.expect("frozen");
        let failed = decide(&b.house, id, "ann", Word::Approve, CLI).await.expect_err("frozen");
        assert!(failed.code == ErrorCode::Denied && failed.hint.contains("approve it again"), "{failed}");
        approval::unfreeze(&b.house.store, "ann", Utc::now()).await.expect("lifted");
        assert_eq!(decide(&b.house, id, "ann", Word::Reject, CLI).await.expect_err("it was approved").code, ErrorCode::Conflict);
        assert_eq!(decide(&b.house, id, "keeper", Word::Approve, CLI).await.expect_err("it asked").code, ErrorCode::Denied);
        let started = decide(&b.house, id, "ann", Word::Approve, CLI).await.expect("started").value;
        assert!(started["result"]["operation_id"].is_string(), "{started}");
        assert_eq!(decide(&b.house, id, "ann", Word::Approve, CLI).await.expect_err("once").code, ErrorCode::Conflict);
        let rows = b.house.store.audit_after(0, None, 100).await.expect("rows");
        let words: Vec<&str> =
            rows.iter().filter(|r| r.agent == "ann" && r.tool.starts_with("approval")).map(|r| r.tool.as_str()).collect();
        assert_eq!(words, ["approval_given", "approval_start_again"]);
    }

    #[tokio::test]
    async fn a_call_from_the_command_line_is_approved_by_typing_what_it_is_about() {
        use crate::call::dispatch::dispatch;
        use crate::call::{Door, Principal};
        let b = bench().await;
        let who = Principal {
            agent: AgentName::new("keeper").expect("valid"),
            door: Door::Cli,
            client: None,
            read_only: false,
            on_behalf: vec![],
        };
        let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
        let asked = dispatch(&b.house, &who, "deploy", input, None).await.expect("asked").value;
        let id = asked["approval"]["approval_id"].as_str().expect("an id");
        assert_eq!(super::super::show(&b.house, id).await.expect("there").value["confirm"], "shop");
        for wrong in [None, Some(""), Some("shops"), Some("host")] {
            let refused = decide_confirmed(&b.house, id, "ann", wrong, Word::Approve, CLI).await.expect_err("not confirmed");
            assert_eq!((refused.code, refused.field.as_deref()), (ErrorCode::InvalidArgument, Some("confirm")), "{wrong:?}");
        }
        assert_eq!(b.engine.running(), Vec::<String>::new());
        decide_confirmed(&b.house, id, "ann", Some(" shop "), Word::Approve, CLI).await.expect("approved");
        let rows = b.house.store.audit_after(0, None, 100).await.expect("rows");
        let given: Vec<&Value> = rows.iter().filter(|r| r.agent == "ann").map(|r| &r.detail).collect();
        assert_eq!(given.len(), 1, "a word that was not taken leaves no decision: {given:?}");
        assert_eq!((&given[0]["self_confirmed"], &given[0]["channel"]), (&json!(true), &json!("operator")));

        // Of the whole host it is the host's name; a no needs nothing; and where two people agree anyhow nobody confirms alone.
        let asked = dispatch(&b.house, &who, "prune", json!({"what": "images", "dry_run": false}), None).await.expect("asked").value;
        let id = asked["approval"]["approval_id"].as_str().expect("an id");
        assert_eq!(super::super::show(&b.house, id).await.expect("there").value["confirm"], "host");
        decide(&b.house, id, "ann", Word::Reject, CLI).await.expect("rejected");
        let mut two = approval::find(&b.house.store, &ApprovalId::new(id).expect("valid")).await.expect("there");
        (two.state, two.needed) = (ApprovalState::Pending, 2);
        assert_eq!(confirms(&b.house, &two), None);
    }
}
