//! Signed requests that were taken: one that is sent again makes no second task.

use crate::store::codec::time;
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};

impl Store {
    /// Whether a signed request was taken before.
    pub async fn hook_taken(&self, hook: &str, digest: &str) -> StoreResult<bool> {
        let (hook, digest) = (hook.to_owned(), digest.to_owned());
        let read = move |c: &Connection| {
            let sql = "SELECT count(*) FROM hook_seen WHERE hook = ?1 AND digest = ?2";
            Ok(c.prepare_cached(sql)?.query_row(params![hook, digest], |r| r.get::<_, i64>(0))? > 0)
        };
        self.inner.state.read(read).await
    }

    /// Remembers a signed request whose work is in the queue.
    pub async fn hook_remember(&self, hook: &str, digest: &str, now: DateTime<Utc>) -> StoreResult<()> {
        let (hook, digest) = (hook.to_owned(), digest.to_owned());
        let write = move |c: &Connection| {
            let sql = "INSERT INTO hook_seen (hook, digest, at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
            c.prepare_cached(sql)?.execute(params![hook, digest, time(now)])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }
}
