//! Tasks whose stored form cannot be read back: they fail for good by their columns and are told of, and keep nobody else's from being done. Deliberately absent:
//! mending them.

use crate::store::Store;
use crate::store::codec::time;
use crate::store::fault::Sql;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use serde_json::json;

/// One that was given up: its id and its agent.
pub(super) type Lost = (String, String);

/// What a change came to; nothing when the task cannot be read, which is given up then. Nothing of it was written.
pub(super) fn or_given_up<T>(c: &Connection, id: &str, changed: Sql<T>, lost: &mut Vec<Lost>, now: DateTime<Utc>) -> Sql<Option<T>> {
    match changed {
        Err(e) if e.of_a_row() => {
            tracing::error!(task = id, error = ?e, "a task cannot be read and is given up");
            lost.push(give_up(c, id, now)?);
            Ok(None)
        }
        changed => changed.map(Some),
    }
}

/// Ends a task by its columns.
pub(super) fn give_up(c: &Connection, id: &str, now: DateTime<Utc>) -> Sql<Lost> {
    let sql = "UPDATE task SET state = 'failed', terminal = 1, ended_at = ?2, lease_until = NULL WHERE id = ?1 RETURNING agent";
    let agent = c.prepare_cached(sql)?.query_row(params![id, time(now)], |r| r.get(0))?;
    Ok((id.to_owned(), agent))
}

impl Store {
    /// Where people look: in the audit log, like every task that failed for good.
    pub(super) async fn tell_unreadable(&self, lost: Vec<Lost>, now: DateTime<Utc>) {
        for (task, agent) in lost {
            let detail = json!({"task": task, "why": "its record cannot be read; the log of the supervisor says why"});
            if let Err(e) = self.audit_event(&agent, "task_failed", None, &detail, now).await {
                tracing::error!(task, error = %e, "the failure could not be recorded");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::task::{Task, TaskState, TaskWork};
    use crate::store::Store;
    use crate::store::task::{Submission, TaskChange};
    use crate::store::tests::{at, fresh};

    async fn given(store: &Store, id: &str, agent: &str) {
        let task = Task {
            id: crate::model::ids::TaskId::new(id).unwrap(),
            agent: crate::model::ids::AgentName::new(agent).unwrap(),
            work: TaskWork::Prompt("look".into()),
            input: Default::default(),
            delegated_by: vec![],
            origin: "call".into(),
            stack: None,
            pushed: None,
            state: TaskState::Queued,
            attempt: 0,
            created_at: at(1),
            due_at: at(1),
            started_at: None,
            ended_at: None,
            waits_for: None,
            result: None,
        };
        let submission = Submission { task, submitter: "t".into(), idempotency_key: None, args_hash: "h".into(), outside: false };
        store.task_submit(submission, 9).await.unwrap();
    }

    async fn damage(store: &Store, id: &'static str) {
        let write = move |c: &rusqlite::Connection| Ok(c.execute("UPDATE task SET sealed_body = x'0102' WHERE id = ?1", [id])?);
        assert_eq!(store.inner.state.write(write).await.unwrap(), 1);
    }

    async fn claimed(store: &Store) -> Vec<String> {
        store.task_claim(at(5), 9, None).await.unwrap().into_iter().map(|t| t.id.to_string()).collect()
    }

    /// What the log tells failed for good.
    async fn told(store: &Store) -> Vec<String> {
        let rows = store.audit_after(0, None, 100).await.unwrap().into_iter().filter(|r| r.tool == "task_failed");
        rows.map(|r| format!("{} of {}", r.detail["task"].as_str().unwrap_or_default(), r.agent)).collect()
    }

    #[tokio::test]
    async fn a_task_that_cannot_be_read_stops_neither_the_queue_nor_its_agents_next_task() {
        let (_dir, store) = fresh().await;
        for (id, agent) in [("task-1", "a"), ("task-2", "a"), ("task-3", "b")] {
            given(&store, id, agent).await;
        }
        damage(&store, "task-1").await;
        assert_eq!(claimed(&store).await, ["task-3"], "the damaged one is given up");
        assert_eq!(claimed(&store).await, ["task-2"]);
        assert_eq!(told(&store).await, ["task-1 of a"]);
        assert_eq!(store.tasks(None, None, 9).await.unwrap().len(), 2, "the others are listed");
    }

    #[tokio::test]
    async fn a_task_that_cannot_be_read_keeps_none_from_being_taken_over_or_looked_at() {
        let (_dir, store) = fresh().await;
        for (id, agent) in [("task-1", "a"), ("task-2", "b"), ("task-3", "c"), ("task-4", "d")] {
            given(&store, id, agent).await;
        }
        assert_eq!(claimed(&store).await.len(), 4);
        for id in ["task-3", "task-4"] {
            let (id, approval) =
                (crate::model::ids::TaskId::new(id).unwrap(), crate::model::ids::ApprovalId::new(format!("ap-{id}")).unwrap());
            store.task_change(&id, TaskChange::Wait(approval), at(6)).await.unwrap();
        }
        damage(&store, "task-1").await;
        damage(&store, "task-3").await;
        let ids = |found: Vec<Task>| found.into_iter().map(|t| t.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(store.tasks_take_over(true, 3, at(7)).await.unwrap()), ["task-2"]);
        for _ in 0..2 {
            assert_eq!(ids(store.tasks_waiting(at(8)).await.unwrap()), ["task-4"]);
        }
        assert_eq!(told(&store).await, ["task-1 of a", "task-3 of c"], "each once");
    }
}
