//! Steps of a task: that the call of each began, and what the line answered, sealed. Deliberately absent: what a step is, and when it is made again.

use super::{TaskStep, WHAT};
use crate::model::ids::TaskId;
use crate::store::codec::{all, parse_time, time};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use serde_json::Value;

fn step_place(task: &TaskId, step: &str) -> String {
    format!("task/{task}/{step}")
}

impl Store {
    /// Notes that the call of a step begins; when it is there already, it stands as it is.
    pub async fn task_step_begin(&self, task: &TaskId, step: &str, at: DateTime<Utc>) -> StoreResult<()> {
        let (task, step) = (task.clone(), step.to_owned());
        let write = move |c: &Connection| {
            let sql = "INSERT INTO task_step (task, step, at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
            c.prepare_cached(sql)?.execute(params![task.as_str(), step, time(at)])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// Keeps what the line answered to a step.
    pub async fn task_step_done(&self, task: &TaskId, step: &str, reply: &Value, at: DateTime<Utc>) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&step_place(task, step), reply)?;
        let (task, step) = (task.clone(), step.to_owned());
        let write = move |c: &Connection| {
            let sql =
                "INSERT INTO task_step (task, step, at, sealed_reply) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET sealed_reply = ?4";
            c.prepare_cached(sql)?.execute(params![task.as_str(), step, time(at), sealed])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// The call of a step is known to have done nothing: the next try makes it anew.
    pub async fn task_step_undone(&self, task: &TaskId, step: &str) -> StoreResult<()> {
        let (task, step) = (task.clone(), step.to_owned());
        let write = move |c: &Connection| {
            let sql = "DELETE FROM task_step WHERE task = ?1 AND step = ?2 AND sealed_reply IS NULL";
            c.prepare_cached(sql)?.execute(params![task.as_str(), step])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// What steps of a task answered is of no use any more: the next try makes them anew.
    ///
    /// # Errors
    /// The database's.
    pub async fn task_steps_anew(&self, task: &TaskId, steps: Vec<String>) -> StoreResult<()> {
        let task = task.clone();
        let write = move |c: &Connection| {
            for step in &steps {
                c.prepare_cached("DELETE FROM task_step WHERE task = ?1 AND step = ?2")?.execute(params![task.as_str(), step])?;
            }
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// The steps of a task, in the order they began.
    pub async fn task_steps(&self, task: &TaskId) -> StoreResult<Vec<TaskStep>> {
        let (task, inner) = (task.clone(), self.inner.clone());
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT step, at, sealed_reply FROM task_step WHERE task = ?1 ORDER BY at, step")?;
            all(&mut s, [task.as_str()], |r| {
                let (step, at, sealed): (String, String, Option<Vec<u8>>) = (r.get(0)?, r.get(1)?, r.get(2)?);
                let reply = sealed.map(|b| inner.keys.open(WHAT, &step_place(&task, &step), &b)).transpose()?;
                Ok(TaskStep { step, at: parse_time(WHAT, &at)?, reply })
            })
        };
        self.inner.state.read(read).await
    }
}
