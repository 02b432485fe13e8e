//! The loop: ask the model, write down what it said, make the calls it asked for, ask again. Each turn is durable before its calls, each answer before
//! the next question, so that a run that was killed goes on where it was and nothing is done twice.

use super::ask::{self, NoAnswer, Patience};
use super::hands::{Away, Decided, Fate, Hands, KEY, Offer};
use super::journal::{Counted, Journal};
use super::models::Model;
use super::provider::{EndReason, Provider, ProviderError, Request, Spoken};
use super::window;
use crate::model::ids::{ApprovalId, CallId, InvalidName, TaskId};
use crate::model::spend::dollars;
use crate::model::task::{Task, TaskEnd, Turn, TurnCall};
use crate::redact;
use chrono::Utc;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Longest answer of a tool that is kept, bytes; beyond what any model is shown.
const MOST_REPLY: usize = 64_000;
/// Longest closing words.
const MOST_REPORT: usize = 8_000;
/// Longest words of one turn that are kept.
pub const MOST_WORDS: usize = 32_000;
/// Calls of one turn; a model that asks for more gets a refusal for the rest.
const MOST_CALLS: usize = 16;
/// How often the conversation is shortened for a provider that finds it too long.
const SHORTER: u32 = 3;

/// Everything a run works with.
pub struct Desk<'a> {
    /// Journal and ledger.
    pub journal: &'a dyn Journal,
    /// What makes the calls.
    pub hands: &'a dyn Hands,
    /// The model.
    pub provider: &'a dyn Provider,
    /// Its settings.
    pub model: &'a Model,
    /// System prompt.
    pub system: String,
    /// The task in words.
    pub task: String,
    /// Answers of the model at most.
    pub turns: u32,
    /// Patience with the provider.
    pub patience: Patience,
}

/// Why a run stops before the model is done.
struct Halt(TaskEnd);

impl From<Away> for Halt {
    fn from(e: Away) -> Self {
        Self(TaskEnd::Retry(e.to_string()))
    }
}

/// Does one try of a task.
pub async fn work(desk: &Desk<'_>, task: &Task, stop: &CancellationToken) -> TaskEnd {
    let run = Run { desk, task, stop };
    match run.go().await {
        Ok(end) | Err(Halt(end)) => end,
    }
}

struct Run<'a> {
    desk: &'a Desk<'a>,
    task: &'a Task,
    stop: &'a CancellationToken,
}

impl Run<'_> {
    async fn go(&self) -> Result<TaskEnd, Halt> {
        let offers = self.desk.hands.tools().await?;
        let mut turns = self.desk.journal.turns().await?;
        let interrupted = turns.len();
        if let Some(last) = turns.last_mut() {
            self.take_up(last, &offers).await?;
        }
        loop {
            let again = turns.len() == interrupted;
            if let Some(last) = turns.last_mut() {
                self.make_calls(last, again).await?;
                self.wait_for_people(last).await?;
                if last.refused {
                    return Ok(TaskEnd::Failed(format!("the model's provider refused to go on: {}", report(&last.text))));
                }
                if last.calls.is_empty() && !last.cut {
                    return Ok(TaskEnd::Succeeded(report(&last.text)));
                }
            }
            if self.stop.is_cancelled() {
                return Ok(TaskEnd::Cancelled);
            }
            if turns.len() >= self.desk.turns as usize {
                let words = turns.last().map(|t| report(&t.text)).unwrap_or_default();
                return Ok(TaskEnd::Failed(format!("out of turns: {} were allowed (limits.turns). Last words: {words}", self.desk.turns)));
            }
            let (spoken, counted) = self.ask(&turns, &offers).await?;
            let turn = self.write_down(&turns, spoken, counted, &offers).await?;
            turns.push(turn);
        }
    }

    async fn ask(&self, turns: &[Turn], offers: &[Offer]) -> Result<(Spoken, Counted), Halt> {
        let desk = self.desk;
        let mut request = Request {
            system: desk.system.clone(),
            messages: vec![],
            tools: offers.iter().map(shown).collect(),
            max_tokens: desk.model.max_tokens,
        };
        let empty = window::size_of(&request);
        // What the last question was thought to be, and was.
        let before = turns.split_last().and_then(|(last, earlier)| {
            let messages = window::conversation(&desk.task, earlier, u64::from(desk.model.context_tokens))?;
            Some((empty + window::size_of_messages(&messages), last.tokens_in))
        });
        let mut room = u64::from(desk.model.context_tokens).saturating_sub(empty + u64::from(desk.model.max_tokens));
        for shorter in 0..=SHORTER {
            let Some(messages) = window::conversation(&desk.task, turns, room) else { break };
            request.messages = messages;
            let worst = ask::generously(window::size_of(&request), before).min(u64::from(desk.model.context_tokens));
            match ask::ask(desk.journal, desk.provider, desk.model, &request, worst, &desk.patience, self.stop).await {
                Ok(answer) => return Ok(answer),
                Err(NoAnswer::Provider(ProviderError::ContextTooLong(_))) if shorter < SHORTER => {
                    room = (window::size_of(&request) - empty) * 7 / 10
                }
                Err(e) => return Err(no_answer(e, desk, self.task)),
            }
        }
        let text = format!(
            "the task no longer fits into the {} tokens of the model {}, however it is shortened",
            desk.model.context_tokens, desk.model.name
        );
        Err(Halt(TaskEnd::Failed(text)))
    }

    /// Makes a turn of an answer and writes it down, before anything it asks for is done.
    async fn write_down(&self, turns: &[Turn], spoken: Spoken, counted: Counted, offers: &[Offer]) -> Result<Turn, Halt> {
        let number = u32::try_from(turns.len()).unwrap_or(u32::MAX - 1) + 1;
        let refused = spoken.end == EndReason::Refused && spoken.calls.is_empty();
        let broken_off = matches!(spoken.end, EndReason::MaxTokens | EndReason::Refused);
        let cut = !refused && (broken_off || (spoken.calls.is_empty() && spoken.text.trim().is_empty()));
        // A key that came in two pieces was in neither.
        let text = self.desk.model.key.as_ref().map_or_else(|| spoken.text.clone(), |k| k.scrub(&spoken.text));
        // Half an answer is not acted on: its last call may be half a call.
        let asked = if cut { vec![] } else { spoken.calls };
        let call = |(i, mut a): (usize, super::provider::Asked)| {
            if let (Some(_), Value::Object(map)) = (offers.iter().find(|o| o.name == a.tool && o.keyed()), &mut a.input) {
                map.insert(KEY.into(), json!(format!("{}-{number}-{}", self.task.id, i + 1)));
            }
            TurnCall {
                id: if a.id.is_empty() { format!("call-{number}-{}", i + 1) } else { a.id },
                tool: a.tool,
                input: a.input,
                reply: None,
            }
        };
        let turn = Turn {
            number,
            at: Utc::now(),
            text: redact::keep_start(&redact::mask(&redact::clean(&text)), MOST_WORDS).to_owned(),
            cut,
            refused,
            calls: asked.into_iter().enumerate().map(call).collect(),
            tokens_in: counted.usage.input,
            tokens_cached: counted.usage.cached,
            tokens_out: counted.usage.output,
            micro_usd: 0,
        };
        Ok(self.desk.journal.begin(turn, counted).await?)
    }

    /// The calls of the last turn of an interrupted run: some were answered, one may have been under way, the rest never began.
    async fn take_up(&self, turn: &mut Turn, offers: &[Offer]) -> Result<(), Halt> {
        for i in 0..turn.calls.len() {
            let call = &turn.calls[i];
            let offer = offers.iter().find(|o| o.name == call.tool);
            // What only reads, and what tells a repetition by its key, is simply made again.
            if call.reply.is_some() || offer.is_none_or(|o| !o.mutates || o.keyed()) {
                continue;
            }
            let reply = match self.unless_stopped(self.desk.hands.fate(&self.call_id(turn.number, i)?)).await? {
                Fate::NeverBegan => continue,
                Fate::Ended(answer) => answer,
                Fate::Unknown => json!({
                    "state": "unknown",
                    "message": "this call was interrupted after it began; whether it was done is not known",
                    "hint": "look with `status`, `history` or `operation` first; do not simply repeat it",
                }),
            };
            self.answered(turn, i, reply).await?;
        }
        Ok(())
    }

    /// `again`: the turn is of an interrupted run.
    async fn make_calls(&self, turn: &mut Turn, again: bool) -> Result<(), Halt> {
        for i in 0..turn.calls.len() {
            if turn.calls[i].reply.is_some() {
                continue;
            }
            if self.stop.is_cancelled() {
                return Err(Halt(TaskEnd::Cancelled));
            }
            let reply = if i < MOST_CALLS {
                let call = &turn.calls[i];
                // A call that was begun under this name before would have its fate mixed with this one's.
                let id = self.call_id(turn.number, i)?;
                let fresh = !again || self.unless_stopped(self.desk.hands.fate(&id)).await? == Fate::NeverBegan;
                match fresh {
                    true => self.desk.hands.call(Some(&id), &call.tool, call.input.clone()).await?,
                    false => self.desk.hands.repeat(&id, &call.tool, call.input.clone()).await?,
                }
            } else {
                json!({"error": {"code": "rate_limited", "message": format!("at most {MOST_CALLS} calls in one answer"), "hint": "ask again for what is still needed"}})
            };
            self.answered(turn, i, reply).await?;
        }
        Ok(())
    }

    async fn answered(&self, turn: &mut Turn, i: usize, reply: Value) -> Result<(), Halt> {
        let reply = self.desk.model.key.as_ref().map_or(reply.clone(), |k| k.scrub_value(reply));
        turn.calls[i].reply = Some(bounded(reply));
        Ok(self.desk.journal.answered(turn, i).await?)
    }

    /// Calls that a person has to approve: the run ends until it is decided, and then goes on with what came of it.
    async fn wait_for_people(&self, turn: &mut Turn) -> Result<(), Halt> {
        for i in 0..turn.calls.len() {
            let Some((id, mut reply)) = turn.calls[i].reply.as_ref().and_then(|r| Some((waits_for(r)?, r.clone()))) else { continue };
            match self.unless_stopped(self.desk.hands.approval(&id)).await? {
                Decided::Waits => return Err(Halt(TaskEnd::Waiting(id))),
                Decided::Done(outcome) => {
                    reply["state"] = json!("decided");
                    reply["decided"] = outcome;
                    self.answered(turn, i, reply).await?;
                }
            }
        }
        Ok(())
    }

    /// What only looks and waits, for minutes where an operation settles, is not waited for by a task that was stopped.
    async fn unless_stopped<T>(&self, look: impl Future<Output = Result<T, Away>>) -> Result<T, Halt> {
        tokio::select! {
            biased;
            seen = look => Ok(seen?),
            () = self.stop.cancelled() => Err(Halt(TaskEnd::Cancelled)),
        }
    }

    fn call_id(&self, turn: u32, i: usize) -> Result<CallId, Halt> {
        call_id(&self.task.id, turn, i).map_err(|e| Halt(TaskEnd::Failed(e.to_string())))
    }
}

/// The name in the audit log of call `i` (from 0) of a turn, known before it is made.
///
/// # Errors
/// A task's id that leaves no room for it.
pub fn call_id(task: &TaskId, turn: u32, i: usize) -> Result<CallId, InvalidName> {
    let task = task.as_str();
    let task = task.strip_prefix("task-").unwrap_or(task);
    CallId::new(format!("call-{task}-{turn}-{}", i + 1))
}

/// The approval a reply waits for.
fn waits_for(reply: &Value) -> Option<ApprovalId> {
    let waits = reply.get("state").and_then(Value::as_str) == Some("pending_approval");
    waits.then(|| reply.pointer("/approval/approval_id")?.as_str()).flatten().and_then(|id| ApprovalId::new(id).ok())
}

/// A tool as the model is shown it: the key is set here, not by the model.
fn shown(offer: &Offer) -> Offer {
    let mut offer = offer.clone();
    if let Some(properties) = offer.schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove(KEY);
    }
    offer
}

/// A reply as it is kept.
pub fn bounded(reply: Value) -> Value {
    let text = reply.to_string();
    if text.len() <= MOST_REPLY {
        return reply;
    }
    let mut short = json!({"cut": format!("{} of {} bytes", MOST_REPLY, text.len()), "text": redact::keep_start(&text, MOST_REPLY)});
    for key in ["state", "operation_id", "approval"] {
        if let Some(value) = reply.get(key) {
            short[key] = value.clone();
        }
    }
    short
}

fn report(text: &str) -> String {
    redact::keep_start(text.trim(), MOST_REPORT).to_owned()
}

fn no_answer(e: NoAnswer, desk: &Desk<'_>, task: &Task) -> Halt {
    let name = &desk.model.name;
    Halt(match e {
        NoAnswer::Stopped => TaskEnd::Cancelled,
        NoAnswer::Away(e) => return e.into(),
        NoAnswer::OverBudget { spent, worst, cap } => TaskEnd::Failed(format!(
            "out of budget: {} of {} US dollars of this month are spent, and the next question could cost {} more; raise limits.usd_per_month of {} or wait for the next month",
            dollars(spent),
            dollars(cap),
            dollars(worst),
            task.agent
        )),
        NoAnswer::Provider(e) if e.may_pass() => TaskEnd::Retry(format!("model {name}: {e}")),
        NoAnswer::Provider(e @ ProviderError::Unauthorized(_)) => {
            TaskEnd::Failed(format!("model {name}: {e}; check key_file or key_env of [models.{name}] in dockwarden.toml"))
        }
        NoAnswer::Provider(e) => TaskEnd::Failed(format!("model {name}: {e}; check [models.{name}] in dockwarden.toml")),
    })
}
