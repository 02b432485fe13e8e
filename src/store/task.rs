//! The queue of tasks: what was given, what is at work, what came of it. A task is claimed, ended and taken over in one transaction each, so that a
//! killed supervisor leaves it queued, running (taken over at the next start) or ended, never lost. Deliberately absent: when to try again.

mod hooks;
mod steps;
mod unreadable;

use super::codec::{all, first, limit, name, parse_time_opt, readable, time, uint};
use super::fault::{Sql, corrupt, missing};
use super::seal::Keys;
use super::{Store, StoreError, StoreResult};
use crate::model::ids::{AgentName, ApprovalId, TaskId};
use crate::model::task::{Task, TaskState};
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

const WHAT: &str = "task";
/// Ended tasks are kept so long: their idempotency keys hold for that time.
const KEPT: TimeDelta = TimeDelta::days(30);
/// Ended tasks kept at most, whatever their age: a busy month must not fill the disk.
const KEPT_MOST: i64 = 100_000;
/// What a model said and was shown in a task, up to a megabyte a turn, is kept so long after its end.
const TURNS_KEPT: TimeDelta = TimeDelta::days(7);
/// Signed requests are remembered so long: a captured one is worth nothing for that time.
const HOOK_KEPT: TimeDelta = TimeDelta::days(400);

/// A task to put into the queue.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The task, queued.
    pub task: Task,
    /// Who gave it: idempotency keys are his own.
    pub submitter: String,
    /// Key under which a repetition finds it.
    pub idempotency_key: Option<String>,
    /// Hash of what was asked for: the same key with another one is an error.
    pub args_hash: String,
    /// Its agent fetches it.
    pub outside: bool,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is in the queue.
    Queued,
    /// The key led to this one.
    Earlier(Box<Task>),
    /// The queue holds so many already.
    Full(u64),
}

/// What became of a wish to cancel.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// It had not begun, or waited: it will not go on.
    Ended(Box<Task>),
    /// It is at work and is asked to stop.
    Asked(Box<Task>),
    /// It had ended before.
    TooLate(Box<Task>),
}

/// A change of state.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskChange {
    /// Done, failed or cancelled.
    End(TaskState, String),
    /// Queued again, not before a moment; `counts` = the try was one.
    Again {
        /// Not before.
        due_at: DateTime<Utc>,
        /// Whether the try counts.
        counts: bool,
        /// Why.
        reason: String,
    },
    /// Waits for a human.
    Wait(ApprovalId),
}

/// A step of a task as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskStep {
    /// Key.
    pub step: String,
    /// When its call began.
    pub at: DateTime<Utc>,
    /// What the line answered; `None` while it is not known.
    pub reply: Option<Value>,
}

/// How much an agent has to do.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Workload {
    /// At work.
    pub running: Option<TaskId>,
    /// Waiting for their turn.
    pub queued: u64,
    /// Waiting for a human.
    pub waiting: u64,
}

fn place(id: &TaskId) -> String {
    format!("task/{id}")
}

impl Store {
    /// Puts a task into the queue unless its key is known or the queue holds `most` already.
    ///
    /// # Errors
    /// `KeyReused`, or the database's.
    pub async fn task_submit(&self, s: Submission, most: u64) -> StoreResult<Submitted> {
        let inner = self.inner.clone();
        let write = move |c: &Connection| {
            if let Some(key) = &s.idempotency_key
                && let Some((id, hash)) = by_key(c, &s.submitter, key)?
            {
                if hash != s.args_hash {
                    return Err(StoreError::KeyReused { key: key.clone() }.into());
                }
                return Ok(Submitted::Earlier(Box::new(get(c, &inner.keys, &id)?.ok_or_else(|| missing(WHAT, &id))?)));
            }
            let queued = count(c)?;
            if queued >= most {
                return Ok(Submitted::Full(queued));
            }
            insert(c, &inner.keys, &s)?;
            Ok(Submitted::Queued)
        };
        self.inner.state.write(write).await
    }

    /// One task.
    pub async fn task(&self, id: &TaskId) -> StoreResult<Option<Task>> {
        let (id, inner) = (id.clone(), self.inner.clone());
        self.inner.state.read(move |c| get(c, &inner.keys, &id)).await
    }

    /// Tasks of an agent (or all) in a state (or any), newest first.
    pub async fn tasks(&self, agent: Option<&AgentName>, state: Option<TaskState>, n: usize) -> StoreResult<Vec<Task>> {
        self.tasks_page(agent, state, None, n).await
    }

    /// Of those, a page that begins after a task.
    ///
    /// # Errors
    /// The database's.
    pub async fn tasks_page(
        &self,
        agent: Option<&AgentName>,
        state: Option<TaskState>,
        after: Option<&TaskId>,
        n: usize,
    ) -> StoreResult<Vec<Task>> {
        let (agent, after, inner) = (agent.cloned(), after.cloned(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT id, sealed_body FROM task WHERE (?1 IS NULL OR agent = ?1) AND (?2 IS NULL OR state = ?2)
                   AND (?4 IS NULL OR (created_at, id) < (SELECT created_at, id FROM task WHERE id = ?4))
                 ORDER BY created_at DESC, id DESC LIMIT ?3",
            )?;
            let after = after.as_ref().map(TaskId::as_str);
            let params = params![agent.as_ref().map(AgentName::as_str), state.map(TaskState::as_str), limit(n), after];
            readable(&mut s, params, |r| open(r, &inner.keys))
        };
        self.inner.state.read(read).await
    }

    /// Every task that waits for a human. One that cannot be read never goes on: it fails for good.
    ///
    /// # Errors
    /// The database's.
    pub async fn tasks_waiting(&self, now: DateTime<Utc>) -> StoreResult<Vec<Task>> {
        let inner = self.inner.clone();
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT id, sealed_body FROM task WHERE state = 'waiting_approval' ORDER BY created_at, id")?;
            all(&mut s, [], |r| match open(r, &inner.keys) {
                Err(e) if e.of_a_row() => Ok(Err(r.get::<_, String>(0)?)),
                read => read.map(Ok),
            })
        };
        let (mut found, mut damaged) = (vec![], vec![]);
        for row in self.inner.state.read(read).await? {
            match row {
                Ok(task) => found.push(task),
                Err(id) => damaged.push(id),
            }
        }
        if !damaged.is_empty() {
            let write = move |c: &Connection| damaged.iter().map(|id| unreadable::give_up(c, id, now)).collect::<Sql<Vec<_>>>();
            let lost = self.inner.state.write(write).await?;
            self.tell_unreadable(lost, now).await;
        }
        Ok(found)
    }

    /// Takes tasks that are due, oldest first and one per agent, for agents with none at work; `most` bounds what is at work then. They are `running`
    /// when this returns. With `lent` it is the next task of that agent, fetched by itself under a lease until then; without, what the house does itself.
    pub async fn task_claim(&self, now: DateTime<Utc>, most: usize, lent: Option<(AgentName, DateTime<Utc>)>) -> StoreResult<Vec<Task>> {
        let inner = self.inner.clone();
        let write = move |c: &Connection| {
            let running: i64 = c.prepare_cached("SELECT count(*) FROM task WHERE state = 'running'")?.query_row([], |r| r.get(0))?;
            let room = most.saturating_sub(usize::try_from(running).unwrap_or(usize::MAX));
            let (mut taken, mut lost) = (vec![], vec![]);
            for (id, _) in due(c, now, lent.as_ref().map(|(agent, _)| agent))?.into_iter().take(room) {
                let begun = change(c, &inner.keys, &id, |t| {
                    t.state = TaskState::Running;
                    t.attempt += 1;
                    t.started_at.get_or_insert(now);
                    t.waits_for = None;
                });
                let Some(task) = unreadable::or_given_up(c, id.as_str(), begun, &mut lost, now)? else { continue };
                if let Some((_, until)) = &lent {
                    c.prepare_cached("UPDATE task SET lease_until = ?2 WHERE id = ?1")?.execute(params![id.as_str(), time(*until)])?;
                }
                taken.push(task);
            }
            Ok((taken, lost))
        };
        let (taken, lost) = self.inner.state.write(write).await?;
        self.tell_unreadable(lost, now).await;
        Ok(taken)
    }

    /// Changes the state of a task that is at work; `None` when it no longer is (it was taken over or ended by another). A task that was asked to stop
    /// does not wait or try again.
    pub async fn task_change(&self, id: &TaskId, to: TaskChange, now: DateTime<Utc>) -> StoreResult<Option<Task>> {
        let (id, inner) = (id.clone(), self.inner.clone());
        let write = move |c: &Connection| {
            let found: Option<(String, bool)> = c
                .prepare_cached("SELECT state, cancel FROM task WHERE id = ?1")?
                .query_row([id.as_str()], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?;
            let Some((state, cancel)) = found else { return Err(missing(WHAT, &id).into()) };
            if state != TaskState::Running.as_str() {
                return Ok(None);
            }
            let to = match to {
                TaskChange::Again { .. } | TaskChange::Wait(_) if cancel => {
                    TaskChange::End(TaskState::Cancelled, "stopped on request".into())
                }
                to => to,
            };
            change(c, &inner.keys, &id, |t| match to {
                TaskChange::End(state, result) => {
                    (t.state, t.result, t.ended_at, t.waits_for) = (state, Some(result), Some(now), None);
                }
                TaskChange::Again { due_at, counts, reason } => {
                    (t.state, t.due_at, t.result) = (TaskState::Queued, due_at, Some(reason));
                    t.attempt -= u32::from(!counts && t.attempt > 0);
                }
                TaskChange::Wait(approval) => {
                    (t.state, t.waits_for) = (TaskState::WaitingApproval, Some(approval));
                    t.attempt = t.attempt.saturating_sub(1);
                }
            })
            .map(Some)
        };
        self.inner.state.write(write).await
    }

    /// A task that waited for a human goes on.
    pub async fn task_resume(&self, id: &TaskId) -> StoreResult<()> {
        let (id, inner) = (id.clone(), self.inner.clone());
        let write = move |c: &Connection| {
            let task = get(c, &inner.keys, &id)?.ok_or_else(|| missing(WHAT, &id))?;
            if task.state == TaskState::WaitingApproval {
                change(c, &inner.keys, &id, |t| t.state = TaskState::Queued)?;
            }
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// Cancels: at once what is not at work, else it is asked to stop.
    ///
    /// # Errors
    /// `Missing`, or the database's.
    pub async fn task_cancel(&self, id: &TaskId, now: DateTime<Utc>) -> StoreResult<Cancelled> {
        let (id, inner) = (id.clone(), self.inner.clone());
        let write = move |c: &Connection| {
            let task = get(c, &inner.keys, &id)?.ok_or_else(|| missing(WHAT, &id))?;
            match task.state {
                TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled => Ok(Cancelled::TooLate(Box::new(task))),
                TaskState::Running => {
                    c.prepare_cached("UPDATE task SET cancel = 1 WHERE id = ?1")?.execute([id.as_str()])?;
                    Ok(Cancelled::Asked(Box::new(task)))
                }
                TaskState::Queued | TaskState::WaitingApproval => {
                    let ended = change(c, &inner.keys, &id, |t| {
                        (t.state, t.ended_at, t.result) = (TaskState::Cancelled, Some(now), Some("cancelled before it was done".into()));
                    })?;
                    Ok(Cancelled::Ended(Box::new(ended)))
                }
            }
        };
        self.inner.state.write(write).await
    }

    /// Whether a submitter's key leads to a task already.
    pub async fn task_key_known(&self, submitter: &str, key: &str) -> StoreResult<bool> {
        let (submitter, key) = (submitter.to_owned(), key.to_owned());
        self.inner.state.read(move |c| Ok(by_key(c, &submitter, &key)?.is_some())).await
    }

    /// Takes over what was at work when the last supervisor ended, or whose lease has run out: queued again, or failed after `most` tries. `all` is the
    /// start: nothing without a lease is at work then.
    pub async fn tasks_take_over(&self, all_of_them: bool, most: u32, now: DateTime<Utc>) -> StoreResult<Vec<Task>> {
        let inner = self.inner.clone();
        let write = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT id FROM task WHERE state = 'running' AND CASE WHEN lease_until IS NULL THEN ?1 ELSE lease_until <= ?2 END",
            )?;
            let ids: Vec<TaskId> = all(&mut s, params![all_of_them, time(now)], |r| Ok(name(WHAT, r.get(0)?)?))?;
            let (mut taken, mut lost) = (vec![], vec![]);
            for id in ids {
                let cancel: bool = c.prepare_cached("SELECT cancel FROM task WHERE id = ?1")?.query_row([id.as_str()], |r| r.get(0))?;
                let changed = change(c, &inner.keys, &id, |t| {
                    let end = if cancel {
                        Some((TaskState::Cancelled, "stopped on request".to_owned()))
                    } else {
                        (t.attempt >= most).then(|| (TaskState::Failed, format!("interrupted {} times", t.attempt)))
                    };
                    match end {
                        Some((state, why)) => (t.state, t.result, t.ended_at) = (state, Some(why), Some(now)),
                        // It keeps its place in the line.
                        None => t.state = TaskState::Queued,
                    }
                });
                taken.extend(unreadable::or_given_up(c, id.as_str(), changed, &mut lost, now)?);
            }
            Ok((taken, lost))
        };
        let (taken, lost) = self.inner.state.write(write).await?;
        self.tell_unreadable(lost, now).await;
        Ok(taken)
    }

    /// When the next queued task that the house does, of an agent that is free, becomes due; `None` when there is none.
    pub async fn task_next_due(&self) -> StoreResult<Option<DateTime<Utc>>> {
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached(
                "SELECT min(due_at) FROM task WHERE state = 'queued' AND outside = 0 AND agent NOT IN (SELECT agent FROM task WHERE state = 'running')",
            )?;
            let at: Option<String> = s.query_row([], |r| r.get(0))?;
            Ok(parse_time_opt(WHAT, at.as_deref())?)
        };
        self.inner.state.read(read).await
    }

    /// Tasks of agents that do not fetch theirs any more are the house's from now on.
    pub async fn tasks_come_home(&self, outside: Vec<AgentName>) -> StoreResult<()> {
        let write = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT DISTINCT agent FROM task WHERE outside = 1 AND terminal = 0")?;
            let agents: Vec<String> = all(&mut s, [], |r| Ok(r.get(0)?))?;
            for agent in agents.iter().filter(|a| !outside.iter().any(|o| o.as_str() == a.as_str())) {
                c.prepare_cached("UPDATE task SET outside = 0 WHERE agent = ?1 AND terminal = 0")?.execute([agent])?;
            }
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// What each agent with open tasks has to do.
    pub async fn workload(&self) -> StoreResult<BTreeMap<AgentName, Workload>> {
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT agent, state, count(*), max(id) FROM task WHERE terminal = 0 GROUP BY agent, state")?;
            let rows: Vec<(String, String, i64, String)> = all(&mut s, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?;
            let mut out = BTreeMap::<AgentName, Workload>::new();
            for (agent, state, count, id) in rows {
                let load = out.entry(name(WHAT, agent)?).or_default();
                match state.as_str() {
                    "running" => load.running = Some(name(WHAT, id)?),
                    "queued" => load.queued = uint(WHAT, count)?,
                    _ => load.waiting = uint(WHAT, count)?,
                }
            }
            Ok(out)
        };
        self.inner.state.read(read).await
    }

    /// Removes tasks that ended long ago, with their steps; returns how many.
    pub async fn tasks_forget(&self, now: DateTime<Utc>) -> StoreResult<usize> {
        let write = move |c: &Connection| {
            let old = time(now - KEPT);
            let over = "SELECT id FROM task WHERE terminal = 1 AND (ended_at < ?1 OR id IN (SELECT id FROM task WHERE terminal = 1 ORDER BY ended_at DESC LIMIT -1 OFFSET ?2))";
            c.prepare_cached(&format!("DELETE FROM task_step WHERE task IN ({over})"))?.execute(params![old, KEPT_MOST])?;
            c.prepare_cached(&format!("DELETE FROM turn WHERE task IN ({over})"))?.execute(params![old, KEPT_MOST])?;
            let said = "DELETE FROM turn WHERE task IN (SELECT id FROM task WHERE terminal = 1 AND ended_at < ?1)";
            c.prepare_cached(said)?.execute([time(now - TURNS_KEPT)])?;
            let gone = c.prepare_cached(&format!("DELETE FROM task WHERE id IN ({over})"))?.execute(params![old, KEPT_MOST])?;
            c.prepare_cached("DELETE FROM hook_seen WHERE at < ?1")?.execute([time(now - HOOK_KEPT)])?;
            Ok(gone)
        };
        self.inner.state.write(write).await
    }
}

fn open(r: &Row<'_>, keys: &Keys) -> Sql<Task> {
    let id: TaskId = name(WHAT, r.get(0)?)?;
    Ok(keys.open(WHAT, &place(&id), &r.get::<_, Vec<u8>>(1)?)?)
}

fn get(c: &Connection, keys: &Keys, id: &TaskId) -> Sql<Option<Task>> {
    let mut s = c.prepare_cached("SELECT id, sealed_body FROM task WHERE id = ?1")?;
    first(&mut s, [id.as_str()], |r| open(r, keys))
}

fn by_key(c: &Connection, submitter: &str, key: &str) -> Sql<Option<(TaskId, String)>> {
    let mut s = c.prepare_cached("SELECT id, args_hash FROM task WHERE submitter = ?1 AND idempotency_key = ?2")?;
    first(&mut s, params![submitter, key], |r| Ok((name(WHAT, r.get(0)?)?, r.get(1)?)))
}

fn count(c: &Connection) -> Sql<u64> {
    let queued = c.prepare_cached("SELECT count(*) FROM task WHERE state = 'queued'")?.query_row([], |r| r.get(0))?;
    Ok(uint(WHAT, queued)?)
}

fn insert(c: &Connection, keys: &Keys, s: &Submission) -> Sql<()> {
    let t = &s.task;
    c.prepare_cached(
        "INSERT INTO task (id, agent, submitter, idempotency_key, args_hash, state, terminal, due_at, created_at, outside, sealed_body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        t.id.as_str(),
        t.agent.as_str(),
        s.submitter,
        s.idempotency_key,
        s.args_hash,
        t.state.as_str(),
        time(t.due_at),
        time(t.created_at),
        s.outside,
        keys.seal(&place(&t.id), t)?
    ])?;
    Ok(())
}

/// The oldest due task of each agent that has none at work, oldest first: of what the house does, or of what one agent fetches.
fn due(c: &Connection, now: DateTime<Utc>, lent: Option<&AgentName>) -> Sql<Vec<(TaskId, String)>> {
    let mut agents = c.prepare_cached(
        "SELECT DISTINCT agent FROM task WHERE state = 'queued' AND agent NOT IN (SELECT agent FROM task WHERE state = 'running')",
    )?;
    let agents: Vec<String> = all(&mut agents, [], |r| Ok(r.get(0)?))?;
    let mut oldest = c.prepare_cached(
        "SELECT id, due_at FROM task WHERE state = 'queued' AND agent = ?1 AND due_at <= ?2 AND outside = ?3 ORDER BY due_at, id LIMIT 1",
    )?;
    let mut found: Vec<(TaskId, String)> = vec![];
    for agent in agents.iter().filter(|a| lent.is_none_or(|l| l.as_str() == a.as_str())) {
        let params = params![agent, time(now), lent.is_some()];
        found.extend(first(&mut oldest, params, |r| Ok((name(WHAT, r.get(0)?)?, r.get(1)?)))?);
    }
    found.sort_by(|a, b| a.1.cmp(&b.1).then(a.0.cmp(&b.0)));
    Ok(found)
}

/// Changes a task as a whole: its columns follow its body. A lease ends with the work.
fn change(c: &Connection, keys: &Keys, id: &TaskId, f: impl FnOnce(&mut Task)) -> Sql<Task> {
    let mut task = get(c, keys, id)?.ok_or_else(|| corrupt(WHAT, format!("{id} vanished")))?;
    f(&mut task);
    c.prepare_cached(
        "UPDATE task SET state = ?2, terminal = ?3, due_at = ?4, ended_at = ?5, lease_until = NULL, sealed_body = ?6 WHERE id = ?1",
    )?
    .execute(params![
        id.as_str(),
        task.state.as_str(),
        task.state.is_terminal(),
        time(task.due_at),
        task.ended_at.map(time),
        keys.seal(&place(id), &task)?
    ])?;
    Ok(task)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::task::TaskWork;
    use crate::store::tests::{at, fresh, open_in};

    fn submission(n: i64, agent: &str, key: Option<&str>) -> Submission {
        let task = Task {
            id: TaskId::new(format!("task-{n}")).unwrap(),
            agent: AgentName::new(agent).unwrap(),
            work: TaskWork::Prompt("hunter2-plain-secret".into()),
            input: Default::default(),
            delegated_by: vec![],
            origin: "call".into(),
            stack: None,
            pushed: None,
            state: TaskState::Queued,
            attempt: 0,
            created_at: at(n),
            due_at: at(n),
            started_at: None,
            ended_at: None,
            waits_for: None,
            result: None,
        };
        Submission {
            task,
            submitter: "keeper".into(),
            idempotency_key: key.map(str::to_owned),
            args_hash: format!("hash {agent}"),
            outside: false,
        }
    }

    async fn claim(store: &Store, now: i64, most: usize) -> Vec<String> {
        let taken = store.task_claim(at(now), most, None).await.unwrap();
        taken.into_iter().map(|t| t.id.to_string()).collect()
    }

    #[tokio::test]
    async fn an_agent_has_one_task_at_work_and_the_oldest_due_one_is_next() {
        let (_dir, store) = fresh().await;
        for (n, agent) in [(3, "a"), (1, "a"), (2, "b"), (90, "c")] {
            assert_eq!(store.task_submit(submission(n, agent, None), 100).await.unwrap(), Submitted::Queued);
        }
        assert_eq!(claim(&store, 10, 1).await, ["task-1"], "one at once");
        assert_eq!(claim(&store, 10, 40).await, ["task-2"], "a is at work, c is not due");
        assert_eq!(claim(&store, 10, 40).await, Vec::<String>::new());
        assert_eq!(store.task_next_due().await.unwrap(), Some(at(90)));
        let id = TaskId::new("task-1").unwrap();
        let ended = store.task_change(&id, TaskChange::End(TaskState::Succeeded, "ok".into()), at(11)).await.unwrap().unwrap();
        assert_eq!((ended.state, ended.attempt, ended.ended_at), (TaskState::Succeeded, 1, Some(at(11))));
        assert_eq!(store.task_change(&id, TaskChange::End(TaskState::Failed, "late".into()), at(12)).await.unwrap(), None, "ended once");
        assert_eq!(claim(&store, 12, 40).await, ["task-3"]);
        let load = store.workload().await.unwrap();
        let of = |a: &str| load.get(a).cloned().unwrap_or_default();
        assert_eq!((of("a").running.unwrap().to_string(), of("c").queued), ("task-3".into(), 1));
    }

    #[tokio::test]
    async fn a_key_finds_its_task_and_a_full_queue_takes_no_more() {
        let (_dir, store) = fresh().await;
        store.task_submit(submission(1, "a", Some("k")), 2).await.unwrap();
        let Submitted::Earlier(task) = store.task_submit(submission(2, "a", Some("k")), 2).await.unwrap() else { panic!("earlier") };
        assert_eq!(task.id.as_str(), "task-1");
        let reused = store.task_submit(submission(3, "b", Some("k")), 2).await.unwrap_err();
        assert!(matches!(reused, StoreError::KeyReused { .. }), "{reused}");
        store.task_submit(submission(4, "a", None), 2).await.unwrap();
        assert_eq!(store.task_submit(submission(5, "a", None), 2).await.unwrap(), Submitted::Full(2));
    }

    #[tokio::test]
    async fn what_was_at_work_is_taken_over_by_the_next_supervisor_and_given_up_in_the_end() {
        let (dir, store) = fresh().await;
        store.task_submit(submission(1, "a", None), 10).await.unwrap();
        store.task_submit(Submission { outside: true, ..submission(2, "b", None) }, 10).await.unwrap();
        let outside = AgentName::new("b").unwrap();
        assert_eq!(store.task_claim(at(5), 40, Some((outside.clone(), at(50)))).await.unwrap().len(), 1);
        store.tasks_come_home(vec![outside]).await.unwrap();
        for tries in 1..=3 {
            assert_eq!(claim(&store, 10, 40).await, ["task-1"], "try {tries}");
            let reopened = open_in(&dir).await.unwrap();
            let taken = reopened.tasks_take_over(true, 3, at(20)).await.unwrap();
            let expected = if tries < 3 { TaskState::Queued } else { TaskState::Failed };
            assert_eq!(taken.iter().map(|t| (t.id.as_str(), t.state)).collect::<Vec<_>>(), [("task-1", expected)], "b has a lease");
            reopened.close().await;
        }
        let late = store.tasks_take_over(false, 3, at(51)).await.unwrap();
        assert_eq!(late.iter().map(|t| (t.id.as_str(), t.state)).collect::<Vec<_>>(), [("task-2", TaskState::Queued)], "its lease ran out");
        assert_eq!(claim(&store, 60, 40).await, Vec::<String>::new(), "it is still fetched by its agent");
        store.tasks_come_home(vec![]).await.unwrap();
        assert_eq!(claim(&store, 60, 40).await, ["task-2"], "until the house does its tasks");
    }

    #[tokio::test]
    async fn cancelling_ends_what_waits_and_asks_what_works() {
        let (_dir, store) = fresh().await;
        let (one, two) = (TaskId::new("task-1").unwrap(), TaskId::new("task-2").unwrap());
        store.task_submit(submission(1, "a", None), 10).await.unwrap();
        store.task_submit(submission(2, "a", None), 10).await.unwrap();
        claim(&store, 10, 40).await;
        assert!(matches!(store.task_cancel(&one, at(11)).await.unwrap(), Cancelled::Asked(_)));
        assert!(matches!(store.task_cancel(&two, at(11)).await.unwrap(), Cancelled::Ended(_)));
        assert!(matches!(store.task_cancel(&two, at(11)).await.unwrap(), Cancelled::TooLate(_)));
        let again = TaskChange::Again { due_at: at(20), counts: true, reason: "engine away".into() };
        let ended = store.task_change(&one, again, at(12)).await.unwrap().unwrap();
        assert_eq!(ended.state, TaskState::Cancelled, "a task that was asked to stop does not try again");
        assert!(store.task_cancel(&TaskId::new("task-9").unwrap(), at(1)).await.is_err());
    }

    #[tokio::test]
    async fn steps_are_kept_sealed_and_forgotten_with_their_task() {
        let (dir, store) = fresh().await;
        let id = TaskId::new("task-1").unwrap();
        store.task_submit(submission(1, "a", None), 10).await.unwrap();
        store.task_step_begin(&id, "look", at(2)).await.unwrap();
        store.task_step_begin(&id, "look", at(3)).await.unwrap();
        assert_eq!(store.task_steps(&id).await.unwrap(), [TaskStep { step: "look".into(), at: at(2), reply: None }]);
        let reply = serde_json::json!({"secret": "hunter2-plain-secret"});
        store.task_step_done(&id, "look", &reply, at(4)).await.unwrap();
        assert_eq!(store.task_steps(&id).await.unwrap(), [TaskStep { step: "look".into(), at: at(2), reply: Some(reply) }]);
        claim(&store, 10, 40).await;
        store.task_change(&id, TaskChange::End(TaskState::Succeeded, "ok".into()), at(11)).await.unwrap();
        assert_eq!(store.tasks_forget(at(12)).await.unwrap(), 0);
        assert_eq!(store.tasks_forget(at(12) + KEPT).await.unwrap(), 1);
        assert!(store.task_steps(&id).await.unwrap().is_empty() && store.task(&id).await.unwrap().is_none());
        store.close().await;
        let bytes = std::fs::read(dir.path().join("home/state.db")).unwrap();
        assert!(!bytes.windows(20).any(|w| w == b"hunter2-plain-secret"), "sealed");
    }

    #[tokio::test]
    async fn a_signed_request_is_remembered_for_its_hook_and_for_its_time() {
        let (_dir, store) = fresh().await;
        assert!(!store.hook_taken("push", "d1").await.unwrap());
        for n in 1..3 {
            store.hook_remember("push", "d1", at(n)).await.unwrap();
        }
        assert!(store.hook_taken("push", "d1").await.unwrap());
        assert!(!store.hook_taken("other", "d1").await.unwrap() && !store.hook_taken("push", "d2").await.unwrap());
        store.tasks_forget(at(2) + HOOK_KEPT).await.unwrap();
        assert!(!store.hook_taken("push", "d1").await.unwrap());
    }
}
