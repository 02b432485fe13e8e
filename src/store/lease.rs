//! Tasks at work: which are with agents in processes of their own, for how long, and which were asked to stop. Deliberately absent: who gets one (`task_claim`), and what its end
//! means (`tasks_take_over`).

use super::codec::time;
use super::{Store, StoreResult};
use crate::model::ids::TaskId;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};

impl Store {
    /// Prolongs the lease of a task that somebody outside works on; `false` when it is no longer his.
    pub async fn task_lease(&self, id: &TaskId, until: DateTime<Utc>) -> StoreResult<bool> {
        let id = id.clone();
        let write = move |c: &Connection| {
            let sql = "UPDATE task SET lease_until = ?2 WHERE id = ?1 AND state = 'running' AND lease_until IS NOT NULL AND cancel = 0";
            Ok(c.prepare_cached(sql)?.execute(params![id.as_str(), time(until)])? == 1)
        };
        self.inner.state.write(write).await
    }

    /// Whether somebody outside works on a task: `None` when nobody does, else whether he was asked to stop.
    pub async fn task_lent(&self, id: &TaskId) -> StoreResult<Option<bool>> {
        let id = id.clone();
        let read = move |c: &Connection| {
            let sql = "SELECT cancel FROM task WHERE id = ?1 AND state = 'running' AND lease_until IS NOT NULL";
            Ok(c.prepare_cached(sql)?.query_row([id.as_str()], |r| r.get(0)).optional()?)
        };
        self.inner.state.read(read).await
    }

    /// Whether a task that is at work was asked to stop.
    pub async fn task_asked_to_stop(&self, id: &TaskId) -> StoreResult<bool> {
        let id = id.clone();
        let read = move |c: &Connection| {
            let sql = "SELECT count(*) FROM task WHERE id = ?1 AND state = 'running' AND cancel = 1";
            Ok(c.prepare_cached(sql)?.query_row([id.as_str()], |r| r.get::<_, i64>(0))? > 0)
        };
        self.inner.state.read(read).await
    }
}
