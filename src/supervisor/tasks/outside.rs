//! The supervisor's half of an agent in a process of its own (`dockwarden agent run`): hands out its tasks, keeps its turns and its ledger, says what
//! became of a call. The other half is not trusted: prices, caps, turns and names of calls are decided here. Deliberately absent: tool calls, which take
//! the one line like every other.

use super::{after, checkout, retry};
use crate::call::error::ErrorCode;
use crate::call::{CallError, Door, House, Principal, tasks};
use crate::gate::load::HOUSE_AGENTS;
use crate::model::agent::Agent;
use crate::model::config::ModelSettings;
use crate::model::ids::{AgentName, CallId, TaskId};
use crate::model::task::{Task, TaskEnd, TaskState, Turn};
use crate::redact;
use crate::runner::hands::{Away, Hands, HouseHands, Offer};
use crate::runner::journal::{Counted, HouseJournal, Journal};
use crate::runner::models::{self, Model};
use crate::runner::outside::{About, Ask, Brief, Kept, Lent, ModelFacts, Named, VERSION, Welcome};
use crate::runner::provider::{Message, Request};
use crate::runner::{self, window, work};
use crate::store::task::TaskChange;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest wait for a task in one question.
const MOST_WAIT: Duration = Duration::from_secs(30);
/// Pause between looks at what the clock or another agent's end makes due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the files of a push before an agent outside gets the task about them: well within its lease.
const FOLLOW_WITHIN: Duration = Duration::from_secs(60);
/// Most calls of one turn that are written down; the runner makes fewer.
const MOST_CALLS: usize = 64;
/// Bytes of text in a token at most: beyond anything people write or programs print. What is reported below that is not believed.
const BYTES_A_TOKEN: u64 = 12;
/// Longest closing words of a task.
const MOST_WORDS: usize = 32 * 1024;

/// Who asks: an agent, and the door it came in by.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Agent.
    pub agent: AgentName,
    /// Door.
    pub door: Door,
}

fn conflict(message: String, hint: &str) -> CallError {
    CallError::new(ErrorCode::Conflict, message, hint)
}

fn invalid(field: &str, message: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::InvalidArgument, message, "use the dockwarden binary of the same version as the supervisor").field(field)
}

impl From<Away> for CallError {
    fn from(e: Away) -> Self {
        CallError::new(ErrorCode::Internal, "the supervisor could not read or write its state", "run `dockwarden doctor` on the host")
            .detail(e.0)
    }
}

fn value(answer: impl Serialize) -> Result<Value, CallError> {
    serde_json::to_value(answer)
        .map_err(|e| CallError::new(ErrorCode::Internal, "the answer could not be written", "report this").detail(e.to_string()))
}

/// Answers one question.
///
/// # Errors
/// `Denied` for an agent that is not outside, or was started as another one; `Conflict` when its task or its place is another's by now; `Internal`,
/// after which it asks again.
pub async fn answer(house: &Arc<House>, guest: &Guest, ask: Ask) -> Result<Value, CallError> {
    let now = Utc::now();
    match ask {
        Ask::Hello { agent, version } => value(hello(house, guest, &agent, version, now)?),
        Ask::Fetch { claim, wait_s } => value(fetch(house, guest, claim, Duration::from_secs(wait_s).min(MOST_WAIT)).await?),
        Ask::On { claim, task, about } => {
            let at = At::of(house, guest, claim, &task, now).await?;
            at.about(about, now).await
        }
    }
}

/// The name under which a tool call is made: only one of a turn that is on disk, as it stands there, and what changes something only once.
///
/// # Errors
/// As [`answer`]; `Conflict` when it was begun before.
pub async fn named(house: &Arc<House>, guest: &Guest, named: Named, tool: &str, input: &Value) -> Result<Known, CallError> {
    let at = At::of(house, guest, named.claim, &named.task, Utc::now()).await?;
    let turns = house.store.turns(&at.task.id).await?;
    let last = turns.last().ok_or_else(|| invalid("call", "no turn of this task is written down"))?;
    let is = |i: &usize| work::call_id(&at.task.id, last.number, *i).is_ok_and(|id| id == named.call);
    let call = (0..last.calls.len()).find(is).map(|i| &last.calls[i]);
    if !call.is_some_and(|c| c.tool == tool && c.input == *input && c.reply.is_none()) {
        return Err(invalid("call", format!("{} is no open call of the last turn of {}", named.call, at.task.id)));
    }
    let on_behalf = at.task.delegated_by.clone();
    if named.repeated {
        return Ok(Known { id: None, on_behalf });
    }
    if !house.store.audit_of_call(&named.call).await?.is_empty() {
        return Err(conflict(format!("{} was begun before", named.call), "ask what became of it"));
    }
    Ok(Known { id: Some(named.call), on_behalf })
}

/// A tool call as the journal of its task has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name; none when it was begun under it before.
    pub id: Option<CallId>,
    /// Who gave the task, outermost first.
    pub on_behalf: Vec<AgentName>,
}

/// The agent and its model, if it may work outside at all.
fn known(house: &House, agent: &AgentName) -> Result<(Arc<Agent>, String, ModelSettings), CallError> {
    if HOUSE_AGENTS.contains(&agent.as_str()) || !house.config.settings.tasks.outside.contains(agent) {
        let hint = format!(
            "an operator adds {agent:?} to `outside` under [tasks] in dockwarden.toml and starts the supervisor again",
            agent = agent.as_str()
        );
        return Err(CallError::new(ErrorCode::Denied, format!("the supervisor does the tasks of {agent} itself"), hint));
    }
    runner::chosen(house, agent).map_err(|why| no_model(agent, &why))
}

fn no_model(agent: &AgentName, why: &str) -> CallError {
    let hint = "an operator mends agents/ or [models] of dockwarden.toml";
    CallError::new(ErrorCode::Denied, format!("the agent {agent} cannot do tasks: {why}"), hint)
}

fn facts_of(agent: &Agent, name: &str, settings: &ModelSettings) -> Result<(Model, ModelFacts), String> {
    let model = models::keyless(name, settings)?;
    runner::affordable(agent, &model)?;
    let facts = ModelFacts {
        name: model.name.clone(),
        provider: model.provider,
        base_url: model.base_url.clone(),
        model: model.model.clone(),
        max_tokens: model.max_tokens,
        context_tokens: model.context_tokens,
        timeout_s: model.timeout.as_secs(),
        needs_key: settings.key_env.is_some() || settings.key_file.is_some(),
        key_env: settings.key_env.clone(),
    };
    Ok((model, facts))
}

fn hello(house: &House, guest: &Guest, agent: &AgentName, version: u32, now: DateTime<Utc>) -> Result<Welcome, CallError> {
    if *agent != guest.agent {
        let hint = "give this process the token of its agent: `dockwarden agents token NAME`";
        return Err(CallError::new(ErrorCode::Denied, format!("the token is of the agent {}, not of {agent}", guest.agent), hint));
    }
    if version != VERSION {
        return Err(invalid("version", format!("the supervisor speaks version {VERSION} of this, not {version}")));
    }
    let (agent, name, settings) = known(house, agent)?;
    let (_, model) = facts_of(&agent, &name, &settings).map_err(|why| no_model(&guest.agent, &why))?;
    Ok(Welcome { claim: house.desk.arrives(&guest.agent, now), lease_s: tasks::LEASE.num_seconds().unsigned_abs(), model })
}

fn mine(house: &House, guest: &Guest, claim: u64, now: DateTime<Utc>) -> Result<(), CallError> {
    if house.desk.newest(&guest.agent, claim, now) {
        return Ok(());
    }
    let message = format!("another process of the agent {} came after this one", guest.agent);
    Err(conflict(message, "run one `dockwarden agent run` for each agent"))
}

/// The agent's next task, or the one it has already.
async fn fetch(house: &Arc<House>, guest: &Guest, claim: u64, wait: Duration) -> Result<Option<Lent>, CallError> {
    let until = tokio::time::Instant::now() + wait;
    let given = house.desk.given(&guest.agent);
    loop {
        let news = given.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        let now = Utc::now();
        mine(house, guest, claim, now)?;
        let (agent, name, settings) = known(house, &guest.agent)?;
        let (_, model) = facts_of(&agent, &name, &settings).map_err(|why| no_model(&guest.agent, &why))?;
        if let Some(task) = tasks::fetch(house, &guest.agent, now).await? {
            match briefed(house, &task, &agent).await {
                Ok(brief) => {
                    let detail = json!({"task": task.id, "try": task.attempt, "door": guest.door.detail()});
                    let stack = task.stack.as_ref().map(|s| s.as_str());
                    house.store.audit_event(guest.agent.as_str(), "task_lent", stack, &detail, now).await?;
                    return Ok(Some(Lent { task, brief, model }));
                }
                Err(end) => drop(ended(house, &task, end, now).await?),
            }
            continue;
        }
        let look = (tokio::time::Instant::now() + LOOK_EVERY).min(until);
        if tokio::time::timeout_at(look, news).await.is_err() && look == until {
            return Ok(None);
        }
    }
}

/// What an agent outside is told of its task, once the files it is about are those that were pushed. Within its lease, since it waits for the answer.
async fn briefed(house: &Arc<House>, task: &Task, agent: &Agent) -> Result<Brief, TaskEnd> {
    let never = CancellationToken::new();
    match tokio::time::timeout(FOLLOW_WITHIN, checkout::follow(house, task, &never)).await {
        Ok(followed) => followed?,
        Err(_) => return Err(TaskEnd::Retry(format!("what was pushed could not be fetched within {} s", FOLLOW_WITHIN.as_secs()))),
    }
    runner::brief(house, task, agent).await
}

/// Records how a try ended, as the house does for its own.
async fn ended(house: &House, task: &Task, end: TaskEnd, now: DateTime<Utc>) -> Result<Option<Task>, CallError> {
    let change = after(task, end, retry(house, task), false, now);
    put(house, task, change, now).await
}

async fn put(house: &House, task: &Task, change: TaskChange, now: DateTime<Utc>) -> Result<Option<Task>, CallError> {
    let ended = house.store.task_change(&task.id, change, now).await?;
    if let Some(ended) = &ended {
        tasks::tell(house, ended, now).await;
    }
    house.desk.returned(task);
    house.desk.settled();
    Ok(ended)
}

/// A guest at work on its task.
struct At<'a> {
    house: &'a Arc<House>,
    guest: &'a Guest,
    task: Task,
    cancel: bool,
}

impl<'a> At<'a> {
    async fn of(house: &'a Arc<House>, guest: &'a Guest, claim: u64, id: &TaskId, now: DateTime<Utc>) -> Result<Self, CallError> {
        mine(house, guest, claim, now)?;
        let task = tasks::find(house, id).await?;
        let lent = house.store.task_lent(id).await?;
        match lent {
            Some(cancel) if task.agent == guest.agent && task.state == TaskState::Running => Ok(Self { house, guest, task, cancel }),
            _ => Err(conflict(format!("task {id} is not with {} any more", guest.agent), "stop working on it; fetch the next one")),
        }
    }

    fn hands(&self) -> HouseHands {
        let who = Principal {
            agent: self.guest.agent.clone(),
            door: self.guest.door,
            client: None,
            read_only: false,
            on_behalf: self.task.delegated_by.clone(),
        };
        HouseHands { house: self.house.clone(), who }
    }

    fn model(&self) -> Result<(Arc<Agent>, Model), CallError> {
        let (agent, name, settings) = known(self.house, &self.guest.agent)?;
        let (model, _) = facts_of(&agent, &name, &settings).map_err(|why| no_model(&self.guest.agent, &why))?;
        Ok((agent, model))
    }

    fn journal(&self, agent: &Agent, model: &Model) -> HouseJournal<'_> {
        let cap = agent.limits.usd_per_month.map(runner::micro);
        let cap = move || cap;
        HouseJournal::new(&self.house.store, self.guest.agent.clone(), self.task.id.clone(), cap, model)
    }

    async fn about(&self, about: About, now: DateTime<Utc>) -> Result<Value, CallError> {
        match about {
            About::Keep => value(self.keep(now).await?),
            About::Tools => value(self.hands().tools().await?),
            About::Turns => {
                let (agent, model) = self.model()?;
                value(self.journal(&agent, &model).turns().await?)
            }
            About::Question { input } => {
                let (agent, model) = self.model()?;
                let least = self.always_said(&agent, &model).await? / 2;
                let input = input.clamp(least, u64::from(model.context_tokens).max(least));
                value(self.journal(&agent, &model).question(input, model.max_tokens).await?)
            }
            About::Unanswered { id, may_cost } => {
                let (agent, model) = self.model()?;
                // Asked again after the answer was lost on its way: there is nothing left to enter.
                if self.house.store.ledger_open(&self.task.id, id).await?.is_some() {
                    self.journal(&agent, &model).unanswered(id, may_cost).await?;
                }
                value(())
            }
            About::Begin { turn, counted } => value(self.begin(turn, counted, now).await?),
            About::Answered { turn, index, reply } => {
                let mut turns = self.house.store.turns(&self.task.id).await?;
                let found = turns.iter_mut().find(|t| t.number == turn).filter(|t| index < t.calls.len());
                let found = found.ok_or_else(|| invalid("turn", format!("there is no call {index} in turn {turn} of {}", self.task.id)))?;
                found.calls[index].reply = Some(work::bounded(reply));
                self.house.store.save_turn(&self.task.id, found).await?;
                value(())
            }
            About::Fate { call } => {
                let prefix = self.task.id.as_str().strip_prefix("task-").unwrap_or(self.task.id.as_str());
                if !call.as_str().starts_with(&format!("call-{prefix}-")) {
                    return Err(invalid("call", format!("{call} is no call of {}", self.task.id)));
                }
                value(self.hands().fate(&call).await?)
            }
            About::Approval { approval } => {
                let asked = self.house.store.approval(&approval, now).await?;
                if asked.is_some_and(|a| a.agent != self.guest.agent.as_str()) {
                    return Err(invalid("approval", format!("{approval} is another agent's")));
                }
                value(self.hands().approval(&approval).await?)
            }
            About::End { end } => {
                let end = bounded(end);
                value(ended(self.house, &self.task, end, now).await?.map(|t| t.state))
            }
            About::Back => {
                let reason = "its agent's process ended; it goes on where it was".to_owned();
                let change = TaskChange::Again { due_at: self.task.due_at, counts: false, reason };
                value(put(self.house, &self.task, change, now).await?.map(|t| t.state))
            }
        }
    }

    async fn keep(&self, now: DateTime<Utc>) -> Result<Kept, CallError> {
        if self.cancel || !self.house.store.task_lease(&self.task.id, now + tasks::LEASE).await? {
            return Ok(Kept::Cancel);
        }
        Ok(Kept::Yours)
    }

    /// Tokens of what every question of this task holds: the system prompt, the task, the tools.
    async fn always_said(&self, agent: &Agent, model: &Model) -> Result<u64, CallError> {
        let brief = runner::brief(self.house, &self.task, agent).await;
        // A skill that is gone by now says nothing.
        let Brief { system, task, .. } = brief.unwrap_or_else(|_| Brief { system: String::new(), task: String::new(), turns: 0 });
        let tools: Vec<Offer> = self.hands().tools().await?;
        Ok(window::size_of(&Request { system, messages: vec![Message::User(task)], tools, max_tokens: model.max_tokens }))
    }

    async fn begin(&self, turn: Turn, counted: Counted, now: DateTime<Utc>) -> Result<Turn, CallError> {
        let (agent, model) = self.model()?;
        let journal = self.journal(&agent, &model);
        let written = self.house.store.turns(&self.task.id).await?;
        let turn = cleaned(turn, now)?;
        if let Some(same) = written.iter().find(|t| t.number == turn.number) {
            let asked = |t: &Turn| t.calls.iter().map(|c| (c.id.clone(), c.tool.clone(), c.input.clone())).collect::<Vec<_>>();
            // Its answer was lost on the way: it is written once all the same.
            if same.text == turn.text && asked(same) == asked(&turn) {
                return Ok(same.clone());
            }
            return Err(conflict(format!("{} has a turn {} already", self.task.id, turn.number), "read the turns again"));
        }
        let most = agent.limits.turns.unwrap_or(runner::TURNS);
        if turn.number as usize != written.len() + 1 || turn.number > most {
            return Err(invalid("turn", format!("turn {} cannot follow {} of {most}", turn.number, written.len())));
        }
        let worst = self.house.store.ledger_open(&self.task.id, counted.id).await?;
        let worst = worst.ok_or_else(|| conflict("this answer's question is not open".into(), "ask anew"))?;
        let context = u64::from(model.context_tokens).saturating_add(u64::from(model.max_tokens)).saturating_mul(4);
        let usage = counted.usage;
        if [usage.input, usage.cached, usage.cache_written, usage.output].iter().any(|n| *n > context) || counted.millis > 86_400_000 {
            return Err(invalid("counted", "more tokens or time than this model can take"));
        }
        let said = turn.text.len() + turn.calls.iter().map(|c| c.tool.len() + c.input.to_string().len()).sum::<usize>();
        let always = self.always_said(&agent, &model).await?;
        let least = if believable(counted.usage, always, said as u64) { 0 } else { worst };
        if least > 0 {
            tracing::warn!(agent = %self.guest.agent, task = %self.task.id, usage = ?counted.usage, "fewer tokens than was said were reported; the answer counts at its worst");
        }
        Ok(journal.begin_at(turn, counted, least).await?)
    }
}

/// Whether so many bytes can have been so few tokens. `always`: tokens, counted generously, of what each question holds.
fn believable(usage: crate::model::spend::Usage, always: u64, said: u64) -> bool {
    // `window::tokens` takes three bytes for a token.
    usage.input >= always.saturating_mul(3) / BYTES_A_TOKEN && usage.output >= said / BYTES_A_TOKEN
}

/// A turn as it is written: its words clean and bounded, none of its calls answered.
fn cleaned(mut turn: Turn, now: DateTime<Utc>) -> Result<Turn, CallError> {
    if turn.calls.len() > MOST_CALLS {
        return Err(invalid("turn", format!("at most {MOST_CALLS} calls in a turn")));
    }
    turn.at = now;
    turn.text = redact::keep_start(&redact::mask(&redact::clean(&turn.text)), work::MOST_WORDS).to_owned();
    turn.calls.iter_mut().for_each(|c| c.reply = None);
    Ok(turn)
}

/// An end as it is kept.
fn bounded(end: TaskEnd) -> TaskEnd {
    let short = |text: String| redact::keep_start(&redact::mask(&redact::clean(&text)), MOST_WORDS).to_owned();
    match end {
        TaskEnd::Succeeded(text) => TaskEnd::Succeeded(short(text)),
        TaskEnd::Failed(text) => TaskEnd::Failed(short(text)),
        TaskEnd::Retry(text) => TaskEnd::Retry(short(text)),
        end @ (TaskEnd::Waiting(_) | TaskEnd::Cancelled) => end,
    }
}

#[cfg(test)]
mod tests;
