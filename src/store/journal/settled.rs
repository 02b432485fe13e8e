//! Operations by when they ended: one of hours has many younger ones before it.

use super::{COLUMNS, read_operation};
use crate::model::operation::Operation;
use crate::store::codec::{all, limit, time};
use crate::store::fault::Sql;
use crate::store::seal::Keys;
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};

impl Store {
    /// Operations that settled at or after a moment, the last ones first.
    ///
    /// # Errors
    /// The database's.
    pub async fn operations_settled(&self, since: DateTime<Utc>, limit: usize) -> StoreResult<Vec<Operation>> {
        let inner = self.inner.clone();
        self.inner.state.read(move |c| operations_settled(c, &inner.keys, since, limit)).await
    }
}

fn operations_settled(c: &Connection, keys: &Keys, since: DateTime<Utc>, n: usize) -> Sql<Vec<Operation>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {COLUMNS} FROM operation WHERE settled_at >= ?1 ORDER BY settled_at DESC LIMIT ?2"))?;
    all(&mut statement, params![time(since), limit(n)], |r| read_operation(r, keys))
}
