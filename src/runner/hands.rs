//! What calls tools for a run: in the house the line itself, in a container of its own a client of the supervisor. The loop knows no other way to do
//! anything. Deliberately absent: any decision; a call that is offered here is judged by the gate like every other.

use crate::call::approval::{self, Came};
use crate::call::dispatch::{dispatch, dispatch_as};
use crate::call::{CallError, House, Principal};
use crate::executor::Until;
use crate::gate::reach;
use crate::model::ids::{ApprovalId, CallId};
use crate::model::operation::{Operation, OperationState};
use crate::redact;
use crate::store::StoreError;
use crate::store::approval::ApprovalState;
use crate::tools::{Effect, ToolSpec, catalogue};
use async_trait::async_trait;
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a run waits for an operation whose outcome it needs before it goes on; longer ones are followed with the tool `operation`.
const SETTLES_WITHIN: Duration = Duration::from_secs(600);
/// How long is waited for the call of an approval that was given, before the task waits for it.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// Pause between looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A tool as a model is shown it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its input, root `type: object`.
    pub schema: Value,
    /// Whether a call of it may change something.
    pub mutates: bool,
}

impl Offer {
    /// Whether a repeated call can be told from a second one by a key.
    pub fn keyed(&self) -> bool {
        self.schema["properties"].get(KEY).is_some()
    }
}

/// The argument that tells a repeated call from a second one.
pub const KEY: &str = "idempotency_key";

/// What became of a call whose answer never came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It never began: it may be made.
    NeverBegan,
    /// It ended, and this is what is known of its answer.
    Ended(Value),
    /// It began; what it did is not known. It must not be made again without looking.
    Unknown,
}

/// Where an approval stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    /// Nobody decided yet.
    Waits,
    /// Decided: the state, and what became of the call it let through.
    Done(Value),
}

/// The supervisor did not answer at all: another try may find it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the supervisor did not answer: {0}")]
pub struct Away(pub String);

impl From<StoreError> for Away {
    fn from(e: StoreError) -> Self {
        Self(e.to_string())
    }
}

/// What calls tools for a run.
#[async_trait]
pub trait Hands: Send + Sync {
    /// Tools it may ever call, sorted by name.
    ///
    /// # Errors
    /// `Away`.
    async fn tools(&self) -> Result<Vec<Offer>, Away>;

    /// Does one call. `id` names it in the audit log, so that [`Hands::fate`] finds it; hands that cannot choose the name ignore it. A refusal
    /// or failure is an answer too: `{"error": {code, message, hint, ...}}`.
    ///
    /// # Errors
    /// `Away`: whether it began is then unknown.
    async fn call(&self, id: Option<&CallId>, tool: &str, input: Value) -> Result<Value, Away>;

    /// Makes a call again that was begun under this name before: under a name of its own, since the fates of both would be mixed.
    ///
    /// # Errors
    /// As [`Hands::call`].
    async fn repeat(&self, id: &CallId, tool: &str, input: Value) -> Result<Value, Away> {
        tracing::debug!(call = %id, tool, "made again");
        self.call(None, tool, input).await
    }

    /// What became of a call with this id. Hands that cannot look answer `Unknown`.
    ///
    /// # Errors
    /// `Away`.
    async fn fate(&self, id: &CallId) -> Result<Fate, Away>;

    /// Where an approval stands that a call waits for; waits for what it started to settle.
    ///
    /// # Errors
    /// `Away`.
    async fn approval(&self, id: &ApprovalId) -> Result<Decided, Away>;
}

/// Hands inside the house: the one line, as the task's agent on behalf of who gave it.
#[derive(Debug)]
pub struct HouseHands {
    /// The house.
    pub house: Arc<House>,
    /// As whom.
    pub who: Principal,
}

/// An error as an answer.
pub fn refusal(error: &CallError) -> Value {
    json!({ "error": error })
}

/// What the catalogue says of a tool, in the form of an offer.
fn offer(spec: &ToolSpec) -> Offer {
    Offer {
        name: spec.name.to_owned(),
        description: spec.description.to_owned(),
        schema: (spec.input_schema)(),
        mutates: spec.effect != Effect::Read,
    }
}

/// What is known of an operation, in a few words.
fn told(o: &Operation) -> Value {
    let mut shown = json!({"operation_id": o.id, "verb": o.verb, "state": o.state});
    if let Some(stack) = &o.stack {
        shown["stack"] = json!(stack);
    }
    if let Some(release) = o.release {
        shown["release"] = json!(release);
    }
    if let Some(message) = &o.message {
        shown["message"] = json!(redact::envelope(format!("operation {}", o.id), message, 1_000));
    }
    shown
}

impl HouseHands {
    /// The operation a call began, as it stands when it settled or the time is over.
    async fn operation_of(&self, id: &CallId) -> Result<Option<Operation>, Away> {
        let found = self.house.store.operations(None, 200).await?.into_iter().find(|o| o.call == *id);
        match found {
            Some(o) => self.settled(o).await.map(Some),
            None => Ok(None),
        }
    }

    async fn settled(&self, operation: Operation) -> Result<Operation, Away> {
        if operation.state.is_terminal() || operation.state == OperationState::Monitoring {
            return Ok(operation);
        }
        self.house.executor.wait(&operation.id, SETTLES_WITHIN, Until::Settled).await.map_err(|e| Away(e.to_string()))
    }
}

#[async_trait]
impl Hands for HouseHands {
    async fn tools(&self) -> Result<Vec<Offer>, Away> {
        let book = self.house.rulebook.load();
        let needed: Vec<_> = std::iter::once(&self.who.agent).chain(&self.who.on_behalf).map(|a| book.agents.get(a.as_str())).collect();
        let may = |s: &ToolSpec| {
            let mutates = s.effect != Effect::Read;
            needed.iter().all(|a| a.is_some_and(|a| reach::may_ever(&book, a, s.name, mutates)))
        };
        Ok(catalogue().iter().filter(|s| may(s)).map(|s| offer(s)).collect())
    }

    async fn call(&self, id: Option<&CallId>, tool: &str, input: Value) -> Result<Value, Away> {
        let result = match id {
            Some(id) => dispatch_as(&self.house, &self.who, id.clone(), tool, input).await,
            None => dispatch(&self.house, &self.who, tool, input, None).await,
        };
        Ok(match result {
            Ok(reply) => reply.value,
            Err(e) => refusal(&e),
        })
    }

    async fn fate(&self, id: &CallId) -> Result<Fate, Away> {
        // The operation first: it is the effect itself, and its outcome row may have been lost.
        if let Some(operation) = self.operation_of(id).await? {
            return Ok(Fate::Ended(told(&operation)));
        }
        let rows = self.house.store.audit_of_call(id).await?;
        let Some(last) = rows.last() else { return Ok(Fate::NeverBegan) };
        Ok(match last.outcome.as_deref() {
            None | Some("unknown") => Fate::Unknown,
            Some(outcome) => {
                // The ids the log keeps of an answer lead to the rest; an approval among them is waited for as if the answer had come.
                let kept = last.detail["detail"].as_object().cloned().unwrap_or_default();
                let mut known = Value::Object(kept);
                known["outcome"] = json!(outcome);
                known["note"] = json!("the answer itself was lost in an interruption; this is what the audit log says of it");
                Fate::Ended(known)
            }
        })
    }

    async fn approval(&self, id: &ApprovalId) -> Result<Decided, Away> {
        let until = tokio::time::Instant::now() + STARTS_WITHIN;
        loop {
            let Some(a) = self.house.store.approval(id, Utc::now()).await? else {
                return Ok(Decided::Done(json!({"state": "gone", "approval_id": id})));
            };
            let mut shown = json!({"approval_id": id, "state": a.state, "tool": a.tool, "approved_by": a.approved_by});
            match a.state {
                ApprovalState::Pending => return Ok(Decided::Waits),
                // Its call starts in a moment, or is tried again when it can.
                ApprovalState::Approved => {}
                ApprovalState::Used => match approval::came_of(&self.house.store, &a).await? {
                    Came::AtWork => {}
                    Came::Operation(o) => {
                        shown["operation"] = told(&self.settled(*o).await?);
                        return Ok(Decided::Done(shown));
                    }
                    Came::Done => {
                        shown["outcome"] = json!("ok");
                        return Ok(Decided::Done(shown));
                    }
                    Came::Failed(why) => {
                        shown["outcome"] = json!("error");
                        shown["message"] = json!(redact::line(&why, 1_000));
                        shown["hint"] = json!("the approval is used up and its call began nothing; call again to ask for a new one");
                        return Ok(Decided::Done(shown));
                    }
                    Came::Unknown => {
                        shown["outcome"] = json!("unknown");
                        shown["hint"] =
                            json!("its call was interrupted; look with `status`, `history` or `operation` before you ask again");
                        return Ok(Decided::Done(shown));
                    }
                },
                ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Stale => {
                    if let Some(by) = &a.denied_by {
                        shown["denied_by"] = json!(redact::line(by, 300));
                    }
                    return Ok(Decided::Done(shown));
                }
            }
            if tokio::time::Instant::now() >= until {
                return Ok(Decided::Waits);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests;
