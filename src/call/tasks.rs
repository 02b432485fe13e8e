//! Tasks as callers and triggers give them: checked, bounded, put into the queue; looked at; cancelled. Deliberately absent: doing them
//! (`supervisor::tasks`), and who may give which (the gate).

use super::error::ErrorCode;
use super::{CallError, House};
use crate::gate::load::HOUSE_AGENTS;
use crate::gate::{Rulebook, prompt, runbook};
use crate::model::ids::{AgentName, StackName, TaskId};
use crate::model::prompt::Prompt;
use crate::model::task::{Task, TaskState, TaskWork};
use crate::model::trigger::Happened;
use crate::redact;
use crate::store::StoreResult;
use crate::store::task::{Submission, Submitted};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

mod ends;

pub use ends::{cancel, finish, tell};

/// Longest prompt and largest input, in bytes: what is larger belongs into a file or a memory note.
const MAX_TEXT: usize = 32 * 1024;
/// Longest delay.
const MAX_DELAY: TimeDelta = TimeDelta::days(30);
/// Longest idempotency key in bytes.
const MAX_KEY: usize = 200;
/// Most agents that hand work on to one another: a longer chain is a loop.
const MAX_CHAIN: usize = 8;

/// An agent outside that gives no sign of life for so long has lost its task.
pub const LEASE: TimeDelta = TimeDelta::seconds(120);
/// Events that wait to be looked at.
const MOST_NEWS: usize = 512;

/// What the queue keeps in memory: who is woken, what is at work here, and how fast work comes in.
#[derive(Debug, Default)]
pub struct Desk {
    /// Something became due, or an agent became free.
    pub work: Notify,
    ended: Notify,
    at_work: Mutex<BTreeMap<TaskId, CancellationToken>>,
    lent: Mutex<BTreeMap<AgentName, (TaskId, Vec<AgentName>)>>,
    reading: Mutex<BTreeMap<AgentName, (TaskId, DateTime<Utc>)>>,
    outside: Mutex<BTreeMap<AgentName, Outside>>,
    news: Notify,
    happened: Mutex<VecDeque<Happened>>,
    bucket: Mutex<Option<(Instant, f64)>>,
}

/// What is known of the process of an agent outside.
#[derive(Debug, Default)]
struct Outside {
    /// The newest one.
    claim: u64,
    /// It got something to do.
    given: Arc<Notify>,
}

impl Desk {
    /// Takes one of the second's places.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn admit(&self, per_second: u32, now: Instant) -> Result<(), Duration> {
        let most = f64::from(per_second.max(1));
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, left) = bucket.unwrap_or((now, most));
        let left = (left + now.saturating_duration_since(at).as_secs_f64() * most).min(most);
        *bucket = Some((now, if left >= 1.0 { left - 1.0 } else { left }));
        if left >= 1.0 { Ok(()) } else { Err(Duration::from_secs_f64((1.0 - left) / most)) }
    }

    /// A task begins here; the token stops it.
    pub fn begins(&self, id: &TaskId, parent: &CancellationToken) -> CancellationToken {
        let stop = parent.child_token();
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), stop.clone());
        stop
    }

    /// A task ended here, one way or another.
    pub fn ends(&self, id: &TaskId) {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.settled();
    }

    /// A task's state changed: who waits for one looks again, and its agent may be free.
    pub fn settled(&self) {
        self.work.notify_one();
        self.ended.notify_waiters();
    }

    /// An agent outside has this task: until it ends, whatever it calls is done on behalf of who gave it.
    fn lends(&self, task: &Task) {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.insert(task.agent.clone(), (task.id.clone(), task.delegated_by.clone()));
        drop(lent);
        self.reads(task);
    }

    /// The agent of a task has before it what it read since the task began, until [`Desk::read`].
    pub fn reads(&self, task: &Task) {
        if let Some(since) = task.started_at {
            let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            reading.insert(task.agent.clone(), (task.id.clone(), since));
        }
    }

    /// The agent of a task no longer works on it.
    pub fn read(&self, task: &Task) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.get(&task.agent).is_some_and(|(id, _)| *id == task.id) {
            reading.remove(&task.agent);
        }
    }

    /// Since when an agent has what it read before it: the start of its task.
    pub(super) fn reads_since(&self, agent: &AgentName) -> Option<DateTime<Utc>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).get(agent).map(|(_, since)| *since)
    }

    /// As if an agent outside had fetched a task of another.
    #[cfg(test)]
    pub(super) fn lends_for_test(&self, agent: &str, by: &str) {
        let name = |text: &str| AgentName::new(text).expect("valid");
        let id = TaskId::new("task-1").expect("valid");
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).insert(name(agent), (id, vec![name(by)]));
    }

    /// The task an agent outside has.
    #[cfg(test)]
    pub fn lent_to(&self, agent: &AgentName) -> Option<TaskId> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).get(agent).map(|(id, _)| id.clone())
    }

    /// The task is no longer with its agent.
    pub fn returned(&self, task: &Task) {
        self.read(task);
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        if lent.get(&task.agent).is_some_and(|(id, _)| *id == task.id) {
            lent.remove(&task.agent);
        }
    }

    /// A process of an agent outside came: its number. It is higher than each one before, those of earlier supervisors included.
    pub fn arrives(&self, agent: &AgentName, now: DateTime<Utc>) -> u64 {
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        let known = outside.entry(agent.clone()).or_default();
        known.claim = u64::try_from(now.timestamp_micros()).unwrap_or(0).max(known.claim + 1);
        // Who waits in its stead looks again, and finds that it was replaced.
        known.given.notify_waiters();
        known.claim
    }

    /// Whether a process of an agent is the newest one.
    pub fn newest(&self, agent: &AgentName, claim: u64, now: DateTime<Utc>) -> bool {
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        let known = outside.entry(agent.clone()).or_default();
        // After a restart here the first that speaks is taken for it, unless its number cannot have been given yet.
        if known.claim == 0 && claim <= u64::try_from(now.timestamp_micros()).unwrap_or(0) {
            known.claim = claim;
        }
        claim == known.claim
    }

    /// Wakes who waits for work of an agent outside.
    pub fn given(&self, agent: &AgentName) -> Arc<Notify> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner).entry(agent.clone()).or_default().given.clone()
    }

    /// On whose behalf an agent outside calls now.
    pub(super) fn behalf(&self, agent: &AgentName) -> Vec<AgentName> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.get(agent).map(|(_, by)| by.clone()).unwrap_or_default()
    }

    /// Something happened that may set off a trigger. Lossy: what is too much is dropped, oldest first; nobody may wait for it.
    pub fn happened(&self, event: Happened) {
        let mut happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        if happened.len() >= MOST_NEWS {
            happened.pop_front();
        }
        happened.push_back(event);
        drop(happened);
        self.news.notify_one();
    }

    /// Resolves when something happened.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What happened since the last look.
    pub fn take_news(&self) -> Vec<Happened> {
        self.happened.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    fn stop(&self, id: &TaskId) {
        if let Some(stop) = self.at_work.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            stop.cancel();
        }
    }
}

/// What somebody wants done.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Agent to do it.
    pub agent: AgentName,
    /// What.
    pub work: TaskWork,
    /// Arguments, or facts.
    pub input: Map<String, Value>,
    /// The stack it is about.
    pub stack: Option<StackName>,
    /// Who gives it, outermost first.
    pub delegated_by: Vec<AgentName>,
    /// `call`, `cron`, `event`, `webhook`.
    pub origin: &'static str,
    /// Whose idempotency keys it has: an agent, or the name of a trigger.
    pub submitter: String,
    /// Key.
    pub idempotency_key: Option<String>,
    /// Not before so long from now.
    pub delay: TimeDelta,
    /// The reference whose push it comes from, by the word of a signed request and nobody else's.
    pub pushed: Option<String>,
}

/// Longest argument that is put into a prompt, in characters.
const MOST_ARGUMENT: usize = 1_000;

/// An argument as it stands inside instructions: one line, so that it cannot look like a paragraph of them.
pub fn argument(value: &Value) -> String {
    redact::line(value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str(), MOST_ARGUMENT)
}

/// The stack a task is about: as it was given, else as its input says.
pub fn stack_of(stack: &Option<StackName>, input: &Map<String, Value>) -> Option<StackName> {
    stack.clone().or_else(|| input.get("stack").and_then(Value::as_str).and_then(|s| StackName::new(s).ok()))
}

fn invalid(field: &str, message: impl Into<String>, hint: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::InvalidArgument, message, hint).field(field)
}

/// The skill of a name.
///
/// # Errors
/// `NotFound` with the nearest names.
pub fn skill<'a>(prompts: &'a [Prompt], name: &str) -> Result<&'a Prompt, CallError> {
    prompts.iter().find(|p| p.name == name).ok_or_else(|| {
        let names: Vec<&str> = prompts.iter().map(|p| p.name.as_str()).collect();
        let near = crate::tools::nearest(name, names.iter().copied());
        let hint = format!("skills are: {}", if near.is_empty() { names } else { near }.join(", "));
        CallError::new(ErrorCode::NotFound, format!("there is no skill {:?}", redact::line(name, 64)), hint).field("skill")
    })
}

/// Whether a wish can be a task at all: its agent exists and is not the house's own, its skill exists and gets the arguments it needs, free text goes to
/// an agent with a model.
///
/// # Errors
/// `InvalidArgument` or `NotFound`, with what to give instead.
pub fn check(book: &Rulebook, prompts: &[Prompt], wish: &Wish) -> Result<(), CallError> {
    let agent = wish.agent.as_str();
    if !book.agents.contains_key(agent) || HOUSE_AGENTS.contains(&agent) {
        let others = || book.agents.keys().map(String::as_str).filter(|n| !HOUSE_AGENTS.contains(n));
        let near = crate::tools::nearest(agent, others());
        let names = if near.is_empty() { others().collect() } else { near };
        let message = format!("no agent {agent} takes tasks");
        return Err(CallError::new(ErrorCode::NotFound, message, format!("name one of {}", names.join(", "))).field("agent"));
    }
    let size = Value::Object(wish.input.clone()).to_string().len();
    if size > MAX_TEXT {
        return Err(invalid(
            "input",
            format!("the input has {size} bytes, at most {MAX_TEXT} are taken"),
            "give names instead of contents",
        ));
    }
    if wish.delay < TimeDelta::zero() || wish.delay > MAX_DELAY {
        return Err(invalid("delay_s", "a task waits for 30 days at most", "use a schedule for what comes later"));
    }
    if wish.idempotency_key.as_ref().is_some_and(|k| k.is_empty() || k.len() > MAX_KEY) {
        return Err(invalid("idempotency_key", format!("a key has 1 to {MAX_KEY} bytes"), "use a short name of what is asked for"));
    }
    if wish.delegated_by.len() > MAX_CHAIN {
        let chain = wish.delegated_by.iter().map(AgentName::as_str).collect::<Vec<_>>().join(" > ");
        return Err(invalid("agent", format!("the work was handed on too often: {chain}"), "do it, or report back to who gave it"));
    }
    // The gate says it again at each call of the task; here nothing is queued that could do nothing.
    let hands: Vec<&str> = wish.delegated_by.iter().map(AgentName::as_str).chain([agent]).collect();
    for (from, to) in hands.iter().zip(&hands[1..]) {
        crate::gate::call::may_delegate(book, from, to).map_err(|finding| {
            let hint = "give it to an agent you may hand work to, or let an operator extend can_delegate_to";
            let mut refused = CallError::new(ErrorCode::Denied, finding.because.clone(), hint).field("agent");
            refused.findings.push(finding);
            refused
        })?;
    }
    match &wish.work {
        TaskWork::Skill(name) => {
            let skill = skill(prompts, name)?;
            let told = if skill.steps.is_empty() {
                prompt::render(skill, &as_texts(&wish.input)).map(|_| ())
            } else {
                runbook::arguments(skill, &wish.input)
            };
            told.map_err(|e| invalid("input", e.to_string(), "give the skill's arguments as `input`"))
        }
        TaskWork::Prompt(text) if text.trim().is_empty() || text.len() > MAX_TEXT => {
            Err(invalid("prompt", format!("a prompt has 1 to {MAX_TEXT} bytes"), "say what is to be done; give facts as `input`"))
        }
        TaskWork::Prompt(_) => Ok(()),
    }
}

/// The arguments of a prompt as it takes them: texts.
pub fn as_texts(input: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    input.iter().map(|(k, v)| (k.clone(), text(v))).collect()
}

/// Puts a task into the queue; `true` when its key had led to an earlier one. `pushes` counts it under the rate: triggers, which coalesce, do not.
///
/// # Errors
/// Those of [`check`]; `RateLimited` with `retry_after_s` when tasks come too fast or too many wait; `Conflict` when the key was used for something else.
pub async fn submit(house: &House, wish: Wish, pushes: bool, now: DateTime<Utc>) -> Result<(Task, bool), CallError> {
    let settings = &house.config.settings.tasks;
    check(&house.rulebook.load(), &house.prompts.load(), &wish)?;
    let slow = |message: String, after: u64| {
        CallError::new(ErrorCode::RateLimited, message, format!("try again in {after} s")).data(json!({"retry_after_s": after}))
    };
    // What came before is no new work: who repeats a whole batch must not be slowed down by the part that is in.
    let known = match &wish.idempotency_key {
        Some(key) if pushes => house.store.task_key_known(&wish.submitter, key).await?,
        Some(_) | None => false,
    };
    if pushes
        && !known
        && let Err(wait) = house.desk.admit(settings.max_per_second, Instant::now())
    {
        let message = format!("more than {} tasks a second", settings.max_per_second);
        return Err(slow(message, wait.as_secs_f64().ceil().max(1.0) as u64));
    }
    let about = json!([wish.agent, wish.work, wish.input, wish.stack, wish.delegated_by]);
    let args_hash = house.store.keyed_digest(super::approval::canonical(&about).to_string().as_bytes());
    let id = TaskId::new(format!("task-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase())).expect("a ulid is alphanumeric");
    let task = Task {
        id,
        agent: wish.agent,
        work: wish.work,
        input: wish.input,
        delegated_by: wish.delegated_by,
        origin: wish.origin.to_owned(),
        stack: wish.stack,
        pushed: wish.pushed,
        state: TaskState::Queued,
        attempt: 0,
        created_at: now,
        due_at: now + wish.delay,
        started_at: None,
        ended_at: None,
        waits_for: None,
        result: None,
    };
    // A runbook needs no model, so the house does it for everybody.
    let runbook =
        matches!(&task.work, TaskWork::Skill(name) if house.prompts.load().iter().any(|p| p.name == *name && !p.steps.is_empty()));
    let outside = settings.outside.contains(&task.agent) && !runbook;
    if !cfg!(feature = "llm") && !runbook && !outside {
        let hint = "give it a skill with fixed steps, let the agent run outside (`[tasks] outside`), or install a dockwarden that was built with `llm`";
        return Err(invalid(
            "agent",
            format!("agent {} cannot do this: this dockwarden was built without models (`llm`)", task.agent),
            hint,
        ));
    }
    let submission =
        Submission { task: task.clone(), submitter: wish.submitter, idempotency_key: wish.idempotency_key, args_hash, outside };
    match house.store.task_submit(submission, settings.max_queued).await? {
        Submitted::Queued => {
            house.desk.work.notify_one();
            if outside {
                house.desk.given(&task.agent).notify_waiters();
            }
            Ok((task, false))
        }
        Submitted::Earlier(earlier) => Ok((*earlier, true)),
        Submitted::Full(waiting) => Err(slow(format!("{waiting} tasks wait already"), 30)),
    }
}

/// The task a caller names.
///
/// # Errors
/// `NotFound`.
pub async fn find(house: &House, id: &TaskId) -> Result<Task, CallError> {
    house.store.task(id).await?.ok_or_else(|| {
        CallError::new(
            ErrorCode::NotFound,
            format!("there is no task {id}"),
            "use the task_id that task_submit returned; `tasks` lists them",
        )
        .field("task_id")
    })
}

/// Waits until a task has ended or waits for a human, at most so long.
///
/// # Errors
/// `NotFound`.
pub async fn wait(house: &House, id: &TaskId, at_most: Duration) -> Result<Task, CallError> {
    let until = tokio::time::Instant::now() + at_most;
    loop {
        let changed = house.desk.ended.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let task = find(house, id).await?;
        let settled = task.state.is_terminal() || task.state == TaskState::WaitingApproval;
        if settled || tokio::time::timeout_at(until, changed).await.is_err() {
            return Ok(task);
        }
    }
}

/// Before any door opens: tasks of agents that do not fetch theirs any more come home, and what is lent is known.
///
/// # Errors
/// The store's.
pub async fn restore(house: &House, now: DateTime<Utc>) -> StoreResult<()> {
    let outside = &house.config.settings.tasks.outside;
    house.store.tasks_come_home(outside.clone()).await?;
    for agent in outside {
        for task in house.store.tasks(Some(agent), Some(TaskState::Running), 1).await? {
            // Only what is lent has a lease; it holds a while longer, for the agent to find us again.
            let held = house.store.task_lease(&task.id, now + LEASE).await?;
            // One that was cancelled is with its agent all the same, and what it calls is done for who gave it.
            if held || house.store.task_lent(&task.id).await?.is_some() {
                house.desk.lends(&task);
            }
        }
    }
    Ok(())
}

/// Gives an agent outside its next task, or the one it has already (it came back). The lease keeps it from others until `LEASE` has passed without a word.
///
/// # Errors
/// `Conflict` when the house does the agent's tasks itself.
pub async fn fetch(house: &House, agent: &AgentName, now: DateTime<Utc>) -> Result<Option<Task>, CallError> {
    let settings = &house.config.settings.tasks;
    if !settings.outside.contains(agent) {
        let hint = "an operator adds it to `outside` under [tasks] in dockwarden.toml and starts the supervisor again";
        return Err(CallError::new(ErrorCode::Conflict, format!("the supervisor does the tasks of {agent} itself"), hint));
    }
    if let Some(task) = house.store.tasks(Some(agent), Some(TaskState::Running), 1).await?.pop() {
        // None: a runbook of it is at work in the house.
        return Ok(house.store.task_lease(&task.id, now + LEASE).await?.then_some(task));
    }
    let most = settings.max_agents as usize;
    let task = house.store.task_claim(now, most, Some((agent.clone(), now + LEASE))).await?.pop();
    task.iter().for_each(|t| house.desk.lends(t));
    Ok(task)
}

/// A sign of life of who has a task: it stays his for another `LEASE`.
///
/// # Errors
/// `NotFound`; `Conflict` when it is not his (any more), or was asked to stop.
pub async fn keep(house: &House, agent: &AgentName, id: &TaskId, now: DateTime<Utc>) -> Result<Task, CallError> {
    let task = find(house, id).await?;
    if task.agent == *agent && house.store.task_lease(id, now + LEASE).await? {
        return Ok(task);
    }
    Err(CallError::new(
        ErrorCode::Conflict,
        format!("task {id} is not with {agent} any more, or was cancelled"),
        "stop working on it; fetch the next one",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_second_is_taken_and_then_one_by_one() {
        let (desk, start) = (Desk::default(), Instant::now());
        for n in 0..100 {
            assert_eq!(desk.admit(100, start), Ok(()), "{n}");
        }
        let wait = desk.admit(100, start).expect_err("too fast");
        assert!(wait > Duration::from_millis(9) && wait <= Duration::from_millis(10), "{wait:?}");
        assert_eq!(desk.admit(100, start + Duration::from_millis(11)), Ok(()));
        assert!(desk.admit(100, start + Duration::from_millis(12)).is_err());
        let after = start + Duration::from_secs(60);
        assert_eq!((0..200).filter(|_| desk.admit(100, after).is_ok()).count(), 100, "a long rest saves up one second's worth");
    }

    #[test]
    fn a_task_at_work_is_stopped_by_its_id_and_with_the_house() {
        let (desk, house) = (Desk::default(), CancellationToken::new());
        let (one, two) = (TaskId::new("task-1").unwrap(), TaskId::new("task-2").unwrap());
        let (first, second) = (desk.begins(&one, &house), desk.begins(&two, &house));
        desk.stop(&one);
        assert!(first.is_cancelled() && !second.is_cancelled());
        desk.ends(&one);
        house.cancel();
        assert!(second.is_cancelled());
    }
}
