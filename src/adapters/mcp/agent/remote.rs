//! Hands and journal of a run whose supervisor is at the other end of a connection. What can be asked twice is asked until it is answered; a tool call is
//! made once, and after an interruption the run asks what became of it. Deliberately absent: the run itself.

use super::link::{Link, LinkError};
use crate::model::ids::{ApprovalId, CallId, TaskId};
use crate::model::task::Turn;
use crate::runner::hands::{Away, Decided, Fate, Hands, Offer};
use crate::runner::journal::{Counted, Journal, Word};
use crate::runner::outside::{About, Ask, CALL, Named};
use async_trait::async_trait;
use rmcp::model::{CallToolRequestParams, MetaObject};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest wait for an answer that needs no work.
const SOON: Duration = Duration::from_secs(20);
/// Longest wait for one that waits for an operation.
const LATE: Duration = Duration::from_secs(660);
/// How long a supervisor that is away is waited for within a run; then the run is begun again when it is back.
const PATIENCE: Duration = Duration::from_secs(300);
/// First and longest pause between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A task at work here.
#[derive(Debug)]
pub struct Remote {
    /// The connection.
    pub link: Arc<Link>,
    /// This process's number.
    pub claim: u64,
    /// The task.
    pub task: TaskId,
    /// Ends waiting for a supervisor that is away.
    pub stop: CancellationToken,
    /// The first thing that was not answered.
    unanswered: OnceLock<LinkError>,
}

impl Remote {
    /// For a task that was fetched.
    pub fn new(link: Arc<Link>, claim: u64, task: TaskId, stop: CancellationToken) -> Self {
        Self { link, claim, task, stop, unanswered: OnceLock::new() }
    }

    /// Whether something was not answered, so that the run's end says nothing of the task.
    pub fn broken(&self) -> bool {
        self.unanswered.get().is_some()
    }

    /// Whether something was refused.
    pub fn refused(&self) -> bool {
        matches!(self.unanswered.get(), Some(LinkError::Refused { .. }))
    }

    /// Why, in words.
    pub fn why(&self) -> String {
        self.unanswered.get().map(ToString::to_string).unwrap_or_default()
    }

    /// Asks about the task, once.
    ///
    /// # Errors
    /// `LinkError`.
    pub async fn once<T: DeserializeOwned>(&self, about: About, within: Duration) -> Result<T, LinkError> {
        self.link.ask(&Ask::On { claim: self.claim, task: self.task.clone(), about }, within).await
    }

    /// Asks about the task until there is an answer, or for so long.
    ///
    /// # Errors
    /// `LinkError`: the refusal, or the last reason.
    pub async fn until<T: DeserializeOwned>(&self, about: About, within: Duration, patience: Duration) -> Result<T, LinkError> {
        let ask = Ask::On { claim: self.claim, task: self.task.clone(), about };
        let until = tokio::time::Instant::now() + patience;
        let mut pause = PAUSES.0;
        loop {
            let away = match self.link.ask(&ask, within).await {
                Err(LinkError::Away(away)) => away,
                answered => return answered,
            };
            if self.stop.is_cancelled() || tokio::time::Instant::now() + pause > until {
                return Err(LinkError::Away(away));
            }
            tracing::warn!(task = %self.task, away, pause_ms = pause.as_millis(), "the supervisor does not answer; it is asked again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn asked<T: DeserializeOwned>(&self, about: About, within: Duration) -> Result<T, Away> {
        self.until(about, within, PATIENCE).await.map_err(|e| self.lost(e))
    }

    fn lost(&self, e: LinkError) -> Away {
        let why = e.to_string();
        self.unanswered.get_or_init(|| e);
        Away(why)
    }
}

#[async_trait]
impl Hands for Remote {
    async fn tools(&self) -> Result<Vec<Offer>, Away> {
        self.asked(About::Tools, SOON).await
    }

    async fn call(&self, id: Option<&CallId>, tool: &str, input: Value) -> Result<Value, Away> {
        let named = id.map(|id| Named { claim: self.claim, task: self.task.clone(), call: id.clone(), repeated: false });
        self.made(named, tool, input).await
    }

    async fn repeat(&self, id: &CallId, tool: &str, input: Value) -> Result<Value, Away> {
        // The supervisor must know that it belongs to the task, and for whom that is done.
        let named = Named { claim: self.claim, task: self.task.clone(), call: id.clone(), repeated: true };
        self.made(Some(named), tool, input).await
    }

    async fn fate(&self, id: &CallId) -> Result<Fate, Away> {
        self.asked(About::Fate { call: id.clone() }, LATE).await
    }

    async fn approval(&self, id: &ApprovalId) -> Result<Decided, Away> {
        self.asked(About::Approval { approval: id.clone() }, LATE).await
    }
}

impl Remote {
    async fn made(&self, named: Option<Named>, tool: &str, input: Value) -> Result<Value, Away> {
        let arguments = match input {
            Value::Object(map) => map,
            // No client can send that; it is answered as the line answers it.
            _ => {
                return Ok(
                    json!({"error": {"code": "invalid_argument", "message": "the arguments are no JSON object", "hint": "give them as the tool's input schema says"}}),
                );
            }
        };
        let mut params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        if let Some(named) = named {
            let mut meta = MetaObject::default();
            meta.insert(CALL.into(), json!(named));
            params.meta = Some(meta.into());
        }
        let result = self.link.call(params, LATE).await.map_err(|e| self.lost(e))?;
        let said = result.content.iter().find_map(|c| c.as_text()).map(|t| t.text.clone()).unwrap_or_default();
        let value = result.structured_content.unwrap_or_else(|| json!({ "text": said }));
        // Not begun: a supervisor that ends, or a name it does not take. Neither is the tool's answer.
        let (error, data) = (&value["error"], &value["error"]["data"]);
        if result.is_error == Some(true) && (data["ending"] == true || data["unmade"] == true) {
            let code = error["code"].as_str().unwrap_or_default().to_owned();
            let begun_before = data["ending"] == true || code == "conflict";
            let refused = LinkError::Refused { code, message: said.clone(), hint: String::new() };
            return Err(self.lost(if begun_before { LinkError::Away(said) } else { refused }));
        }
        Ok(value)
    }
}

#[async_trait]
impl Journal for Remote {
    async fn turns(&self) -> Result<Vec<Turn>, Away> {
        self.asked(About::Turns, SOON).await
    }

    async fn question(&self, input: u64, _: u32) -> Result<Word, Away> {
        self.asked(About::Question { input }, SOON).await
    }

    async fn unanswered(&self, id: i64, may_cost: bool) -> Result<(), Away> {
        self.asked(About::Unanswered { id, may_cost }, SOON).await
    }

    async fn begin(&self, turn: Turn, counted: Counted) -> Result<Turn, Away> {
        self.asked(About::Begin { turn, counted }, SOON).await
    }

    async fn answered(&self, turn: &Turn, index: usize) -> Result<(), Away> {
        let reply = turn.calls[index].reply.clone().unwrap_or_default();
        self.asked(About::Answered { turn: turn.number, index, reply }, SOON).await
    }
}
