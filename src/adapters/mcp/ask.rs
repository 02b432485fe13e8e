//! Asking the person at the client, in the form of each era: a request within the session (`elicitation/create`, up to 2025-11-25), or a result that says what is
//! missing, with a signed state that the client brings back (2026-07-28). No answer, or none that says yes or no, leaves the approval as it is.
//! Deliberately absent: whether an answer counts, and what comes of it (`people::client`).

use super::reply;
use crate::adapters::Doors;
use crate::adapters::people::client::{self, Answer, Question};
use crate::call::dispatch::{Reply, refuse};
use crate::call::error::ErrorCode;
use crate::call::{CallError, Principal, approval};
use crate::model::ids::ApprovalId;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use rmcp::RoleServer;
use rmcp::model::*;
use rmcp::service::{PeerRequestOptions, RequestContext};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// Key of the question among a result's, and of its one field.
const KEY: &str = "approval";
const FIELD: &str = "approve";
/// How long a person has within a call that says nothing else, and at most: a client gives its call up after 60 s.
const WAIT: Duration = Duration::from_secs(45);
const LONGEST: Duration = Duration::from_secs(55);
/// First bytes of what a state's tag is made of. Everything else under that key is a JSON text, which begins otherwise.
const DOMAIN: &str = "mcp-request-state:";

/// One call and the client it came from.
#[derive(Debug)]
pub struct Asker<'a> {
    /// The doors.
    pub doors: &'a Arc<Doors>,
    /// Who calls.
    pub who: &'a Principal,
    /// Door, token and connection, for the record.
    pub session: &'a str,
    /// Tool.
    pub tool: &'a str,
    /// Its input.
    pub input: &'a Value,
    /// When the call came in.
    pub begun: Instant,
}

/// What a brought-back answer leads to.
#[derive(Debug)]
pub enum Back {
    /// The reply of the call.
    Reply(Box<Result<Reply, CallError>>),
    /// The call is made; nobody is asked again.
    Quiet,
    /// The call is made, and asks where it has to.
    Ask,
}

/// What a state says; whoever may bring it back and for which call is in its tag.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    approval: ApprovalId,
    until: DateTime<Utc>,
}

impl Asker<'_> {
    /// Takes up what a client brings back from a question: the answer counts only with the state that this very call was given.
    pub async fn brought(&self, state: Option<&str>, responses: Option<&InputResponses>) -> Back {
        let Some(state) = state else { return Back::Ask };
        let given = match self.opened(state, Utc::now()) {
            Ok(given) => given,
            Err(e) => return Back::Reply(Box::new(refuse(&self.doors.house, self.who, self.tool, self.input, e).await)),
        };
        let Some(response) = responses.and_then(|r| r.get(KEY)) else { return Back::Ask };
        match self.carried_out(given.approval, answer(&response["action"], &response["content"])).await {
            Ok(Some(reply)) => Back::Reply(Box::new(Ok(reply))),
            Ok(None) => Back::Quiet,
            // As any other call that comes to nothing: an answer that decides nothing is counted and recorded, too.
            Err(e) => Back::Reply(Box::new(refuse(&self.doors.house, self.who, self.tool, self.input, e).await)),
        }
    }

    /// Asks for what a reply waits for, where the client can be asked and its answer would count; the reply that this leads to, or none: then it stands as it is.
    pub async fn ask(&self, result: &Result<Reply, CallError>, context: &RequestContext<RoleServer>) -> Option<CallToolResponse> {
        let (Ok(pending), true) = (result, shows_forms(context)) else { return None };
        let question = match client::question(&self.doors.house, self.who, pending).await {
            Ok(question) => question?,
            Err(e) => {
                tracing::warn!(error = %e, "the client could not be asked; the approval waits for an operator");
                return None;
            }
        };
        if context.protocol_version().is_some_and(|v| v >= ProtocolVersion::V_2026_07_28) {
            let state = State { approval: question.approval.clone(), until: question.expires_at };
            let asked = [(KEY.to_owned(), InputRequest::Elicitation(form(&question)))];
            return Some(InputRequiredResult::new(Some(asked.into()), Some(self.sealed(&state))).into());
        }
        let said = self.within_session(&question, context).await;
        let came = self.carried_out(question.approval, said).await.transpose()?;
        Some(reply::result(came).into())
    }

    /// Asks by a request of ours, and waits as long as the call may take.
    async fn within_session(&self, question: &Question, context: &RequestContext<RoleServer>) -> Answer {
        let most = self.input["timeout_s"].as_u64().map_or(WAIT, |s| Duration::from_secs(s).min(LONGEST));
        let left = most.saturating_sub(self.begun.elapsed());
        let request = ServerRequest::ElicitRequest(form(question));
        let asked = async {
            let sent = context.peer.send_cancellable_request(request, PeerRequestOptions::with_timeout(left)).await?;
            sent.await_response().await
        };
        let answered = tokio::select! {
            answered = asked => answered,
            () = context.ct.cancelled() => return Answer::Nothing,
            () = self.doors.shutdown.cancelled() => return Answer::Nothing,
        };
        match answered {
            Ok(ClientResult::ElicitResult(r)) => answer(&json!(r.action), r.content.as_ref().unwrap_or(&Value::Null)),
            Ok(_) => Answer::Nothing,
            Err(e) => {
                tracing::info!(approval = %question.approval, error = %e, "the client gave no answer; the approval waits for an operator");
                Answer::Nothing
            }
        }
    }

    /// In a task of its own: a client that goes away must not leave a decision between its record and its start.
    async fn carried_out(&self, id: ApprovalId, answer: Answer) -> Result<Option<Reply>, CallError> {
        let (house, who, session) = (self.doors.house.clone(), self.who.clone(), self.session.to_owned());
        let done = self.doors.house.calls.spawn(async move { client::answered(&house, &who, &session, &id, answer).await }).await;
        done.unwrap_or_else(|e| {
            Err(CallError::new(ErrorCode::Internal, "the decision ended abnormally", "call `approval` to see what became of it")
                .detail(e.to_string()))
        })
    }

    /// The tag of a state: only this agent, by this door and token, brings it back, and only with the same call.
    fn tag(&self, payload: &str) -> String {
        let bound = json!([self.who.agent, self.who.door.detail(), self.tool, approval::canonical(self.input), payload]);
        self.doors.house.store.keyed_digest(format!("{DOMAIN}{bound}").as_bytes())
    }

    fn sealed(&self, state: &State) -> String {
        let payload = BASE64_URL_SAFE_NO_PAD.encode(json!(state).to_string());
        format!("{payload}.{}", self.tag(&payload))
    }

    fn opened(&self, state: &str, now: DateTime<Utc>) -> Result<State, CallError> {
        let refused = |message: &str| {
            CallError::new(ErrorCode::Denied, message, "call the tool again without requestState and inputResponses").field("requestState")
        };
        let foreign = || refused("this requestState was not given to this agent for this call; nothing was decided");
        let (payload, tag) = state.split_once('.').ok_or_else(foreign)?;
        if !bool::from(self.tag(payload).as_bytes().ct_eq(tag.as_bytes())) {
            return Err(foreign());
        }
        let text = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| foreign())?;
        let state: State = serde_json::from_slice(&text).map_err(|_| foreign())?;
        if state.until <= now {
            return Err(refused("the time of this question is over; nothing was decided"));
        }
        Ok(state)
    }
}

/// Whether the client said that it shows forms. One that names no kind means forms, as before there were others.
pub fn shows_forms(context: &RequestContext<RoleServer>) -> bool {
    let can = context.client_capabilities().and_then(|c| c.elicitation);
    can.is_some_and(|e| e.form.is_some() || e.url.is_none())
}

/// The question with its one field. It has no default: a client that accepts what it is not asked to fill in has decided nothing.
fn form(question: &Question) -> ElicitRequest {
    let schema = json!({"type": "object", "required": [FIELD], "properties": {
        FIELD: {"type": "boolean", "title": "Let this call run", "description": "Yes starts it now; no rejects it; closing this leaves it to an operator."}}});
    let requested_schema = serde_json::from_value(schema).expect("a schema of ours");
    ElicitRequest::new(ElicitRequestParams::FormElicitationParams { meta: None, message: question.text.clone(), requested_schema })
}

/// What an answer says. Only an accepted form whose field says so is a yes.
fn answer(action: &Value, content: &Value) -> Answer {
    match (action.as_str(), content[FIELD].as_bool()) {
        (Some("accept"), Some(true)) => Answer::Yes,
        (Some("accept"), Some(false)) | (Some("decline"), _) => Answer::No,
        _ => Answer::Nothing,
    }
}

#[cfg(test)]
mod tests;
