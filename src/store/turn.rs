//! What a model said in a task, turn by turn. Sealed, since it holds what containers wrote. A turn is durable before the calls it asks for are made,
//! and its price with it. Deliberately absent: what a turn means.

use super::codec::{all, changed, time};
use super::fault::{Sql, corrupt};
use super::ledger::{self, Entry};
use super::{Store, StoreResult};
use crate::model::ids::TaskId;
use crate::model::task::Turn;
use chrono::TimeDelta;
use rusqlite::{Connection, params};

const WHAT: &str = "turn";
/// How long turns of a task that is gone are kept; those of one that is open stay.
const KEPT: TimeDelta = TimeDelta::days(30);

fn place(task: &TaskId, number: u32) -> String {
    format!("turn/{task}/{number}")
}

impl Store {
    /// Writes a new turn and settles what it cost, in one transaction, durable on return.
    ///
    /// # Errors
    /// `Corrupt` when the task has a turn of that number: two runs of one task are at work.
    pub async fn begin_turn(&self, task: &TaskId, turn: &Turn, entry: Entry) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&place(task, turn.number), turn)?;
        let (task, number, at) = (task.clone(), turn.number, turn.at);
        let write = move |c: &Connection| {
            let written = c
                .prepare_cached("INSERT OR IGNORE INTO turn (task, number, at, sealed_body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![task.as_str(), number, time(at), sealed])?;
            if written == 0 {
                return Err(corrupt(WHAT, format!("{task} has a turn {number} already: another run of it is at work")).into());
            }
            let old = "DELETE FROM turn WHERE at < ?1 AND task NOT IN (SELECT id FROM task WHERE terminal = 0)";
            c.prepare_cached(old)?.execute([time(at - KEPT)])?;
            ledger::settle(c, &entry)
        };
        self.inner.state.write(write).await
    }

    /// Writes what the calls of a turn were answered.
    ///
    /// # Errors
    /// `Missing` when there is no such turn.
    pub async fn save_turn(&self, task: &TaskId, turn: &Turn) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&place(task, turn.number), turn)?;
        let (task, number) = (task.clone(), turn.number);
        let write = move |c: &Connection| {
            let rows = c.prepare_cached("UPDATE turn SET sealed_body = ?3 WHERE task = ?1 AND number = ?2")?.execute(params![
                task.as_str(),
                number,
                sealed
            ])?;
            Ok(changed(rows, WHAT, format!("{task}/{number}"))?)
        };
        self.inner.state.write(write).await
    }

    /// The turns of a task, first to last.
    pub async fn turns(&self, task: &TaskId) -> StoreResult<Vec<Turn>> {
        let (task, inner) = (task.clone(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT number, sealed_body FROM turn WHERE task = ?1 ORDER BY number")?;
            all(&mut s, [task.as_str()], |r| -> Sql<Turn> {
                Ok(inner.keys.open(WHAT, &place(&task, r.get(0)?), &r.get::<_, Vec<u8>>(1)?)?)
            })
        };
        self.inner.state.read(read).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::task::TurnCall;
    use crate::store::tests::open_in;
    use chrono::{DateTime, Utc};
    use serde_json::json;

    fn turn(number: u32, days: i64) -> Turn {
        let call = TurnCall { id: "c1".into(), tool: "status".into(), input: json!({}), reply: None };
        let at = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_000 + days);
        Turn {
            number,
            at,
            text: "look".into(),
            cut: false,
            refused: false,
            calls: vec![call],
            tokens_in: 10,
            tokens_cached: 4,
            tokens_out: 2,
            micro_usd: 7,
        }
    }

    fn free() -> Entry {
        Entry { id: 0, usage: Default::default(), micro_usd: 0, millis: 0 }
    }

    #[tokio::test]
    async fn a_turn_is_read_back_as_written_and_its_answers_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let task = TaskId::new("task-1").unwrap();
        store.begin_turn(&task, &turn(1, 0), free()).await.unwrap();
        assert!(store.begin_turn(&task, &turn(1, 0), free()).await.unwrap_err().to_string().contains("another run"));
        let mut second = turn(2, 0);
        store.begin_turn(&task, &second, free()).await.unwrap();
        second.calls[0].reply = Some(json!({"ok": true}));
        store.save_turn(&task, &second).await.unwrap();
        assert_eq!(store.turns(&task).await.unwrap(), [turn(1, 0), second]);
        assert!(store.save_turn(&task, &turn(3, 0)).await.is_err());
    }

    #[tokio::test]
    async fn turns_go_a_month_after_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let (old, new) = (TaskId::new("task-1").unwrap(), TaskId::new("task-2").unwrap());
        store.begin_turn(&old, &turn(1, 0), free()).await.unwrap();
        store.begin_turn(&new, &turn(1, 29), free()).await.unwrap();
        assert_eq!(store.turns(&old).await.unwrap().len(), 1);
        store.begin_turn(&new, &turn(2, 31), free()).await.unwrap();
        assert_eq!((store.turns(&old).await.unwrap().len(), store.turns(&new).await.unwrap().len()), (0, 2));
    }

    #[tokio::test]
    async fn turns_of_a_task_that_is_open_stay_and_those_of_one_that_ended_go_a_week_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let id = TaskId::new("task-1").unwrap();
        let began = turn(1, 0).at;
        let task = crate::model::task::Task {
            id: id.clone(),
            agent: crate::model::ids::AgentName::new("a").unwrap(),
            work: crate::model::task::TaskWork::Prompt("look".into()),
            pushed: None,
            input: Default::default(),
            delegated_by: vec![],
            origin: "call".into(),
            stack: None,
            state: crate::model::task::TaskState::Queued,
            attempt: 0,
            created_at: began,
            due_at: began,
            started_at: None,
            ended_at: None,
            waits_for: None,
            result: None,
        };
        let submission =
            crate::store::task::Submission { task, submitter: "t".into(), idempotency_key: None, args_hash: "h".into(), outside: false };
        store.task_submit(submission, 9).await.unwrap();
        store.task_claim(began, 9, None).await.unwrap();
        store.begin_turn(&id, &turn(1, 0), free()).await.unwrap();
        store.begin_turn(&id, &turn(2, 40), free()).await.unwrap();
        assert_eq!(store.turns(&id).await.unwrap().len(), 2, "it goes on where it was");
        let ended = began + TimeDelta::days(41);
        let end = crate::store::task::TaskChange::End(crate::model::task::TaskState::Succeeded, "ok".into());
        store.task_change(&id, end, ended).await.unwrap();
        store.tasks_forget(ended + TimeDelta::days(6)).await.unwrap();
        assert_eq!(store.turns(&id).await.unwrap().len(), 2);
        store.tasks_forget(ended + TimeDelta::days(8)).await.unwrap();
        assert!(store.turns(&id).await.unwrap().is_empty() && store.task(&id).await.unwrap().is_some());
    }
}
