//! What is known of second repositories: which snapshots each holds, and what came of bringing it up to date. Deliberately absent: the copies themselves, which
//! are the truth about what they hold.

use crate::store::codec::{all, int, parse_time, time, uint};
use crate::store::fault::Sql;
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

/// What came of bringing a second repository up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// Its name.
    pub copy: String,
    /// When it was begun: what was taken before is in it.
    pub at: DateTime<Utc>,
    /// It holds all that it should.
    pub passed: bool,
    /// Snapshots added.
    pub copied: u64,
    /// Snapshots removed.
    pub removed: u64,
    /// Snapshots of ours in it afterwards.
    pub held: u64,
    /// Bytes added.
    pub bytes: u64,
    /// How long it took, ms.
    pub duration_ms: u64,
    /// Why it failed; empty when it passed.
    pub detail: String,
    /// Operation.
    pub operation: String,
}

impl CopyRecord {
    /// In one line.
    pub fn told(&self) -> String {
        format!("the copy {} holds {} snapshots: {} added, {} removed", self.copy, self.held, self.copied, self.removed)
    }
}

/// Where a copy stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct CopyState {
    /// Its name.
    pub copy: String,
    /// Begin of the last run that passed: what was taken before is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<DateTime<Utc>>,
    /// Snapshots in it after that.
    pub held: u64,
    /// Snapshots recorded since: also one that was still being read while that run went on.
    pub missing: u64,
    /// When it was last tried, where that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<DateTime<Utc>>,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

const WHAT: &str = "backup_copy_run";
const COLUMNS: &str = "operation, copy, at, passed, copied, removed, held, bytes, duration_ms, detail";
/// Runs of each copy that are kept.
const KEPT: u32 = 100;

impl Store {
    /// Records a run, and with `pairs` (snapshot, its id in the copy) all that the copy holds now.
    pub async fn put_copy(&self, record: &CopyRecord, pairs: Option<Vec<(String, String)>>) -> StoreResult<()> {
        let record = record.clone();
        self.inner.state.write(move |c| put(c, &record, pairs.as_deref())).await
    }

    /// The last run of a copy, and the last one that passed.
    pub async fn last_copy(&self, copy: &str) -> StoreResult<(Option<CopyRecord>, Option<CopyRecord>)> {
        let copy = copy.to_owned();
        self.inner.state.read(move |c| Ok((last(c, &copy, false)?, last(c, &copy, true)?))).await
    }

    /// Id that a snapshot has in a copy; `None` when the copy does not hold it.
    pub async fn copied_as(&self, copy: &str, snapshot: &str) -> StoreResult<Option<String>> {
        let (copy, snapshot) = (copy.to_owned(), snapshot.to_owned());
        self.inner.state.read(move |c| copied_as(c, &copy, &snapshot)).await
    }

    /// Where each of these copies stands.
    pub async fn copies(&self, names: Vec<String>) -> StoreResult<Vec<CopyState>> {
        self.inner.state.read(move |c| names.iter().map(|name| state(c, name)).collect()).await
    }
}

fn put(c: &Connection, r: &CopyRecord, pairs: Option<&[(String, String)]>) -> Sql<()> {
    c.prepare_cached(&format!("INSERT OR REPLACE INTO backup_copy_run ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"))?
        .execute(params![
            r.operation,
            r.copy,
            time(r.at),
            r.passed,
            int(WHAT, r.copied)?,
            int(WHAT, r.removed)?,
            int(WHAT, r.held)?,
            int(WHAT, r.bytes)?,
            int(WHAT, r.duration_ms)?,
            r.detail,
        ])?;
    c.prepare_cached(
        "DELETE FROM backup_copy_run WHERE copy = ?1 AND passed = ?3
           AND at < (SELECT at FROM backup_copy_run WHERE copy = ?1 AND passed = ?3 ORDER BY at DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![r.copy, KEPT, r.passed])?;
    let Some(pairs) = pairs else { return Ok(()) };
    c.prepare_cached("DELETE FROM backup_copy WHERE copy = ?1")?.execute([&r.copy])?;
    let mut insert = c.prepare_cached("INSERT OR REPLACE INTO backup_copy (copy, snapshot_id, copy_id) VALUES (?1, ?2, ?3)")?;
    for (snapshot, id) in pairs {
        insert.execute([&r.copy, snapshot, id])?;
    }
    Ok(())
}

fn last(c: &Connection, copy: &str, good: bool) -> Sql<Option<CopyRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM backup_copy_run WHERE copy = ?1 AND (passed OR NOT ?2) ORDER BY at DESC, rowid DESC LIMIT 1");
    let mut statement = c.prepare_cached(&sql)?;
    Ok(all(&mut statement, params![copy, good], read)?.pop())
}

fn copied_as(c: &Connection, copy: &str, snapshot: &str) -> Sql<Option<String>> {
    let mut statement = c.prepare_cached("SELECT copy_id FROM backup_copy WHERE copy = ?1 AND snapshot_id = ?2")?;
    Ok(all(&mut statement, params![copy, snapshot], |r| Ok(r.get(0)?))?.pop())
}

fn state(c: &Connection, copy: &str) -> Sql<CopyState> {
    let (latest, good) = (last(c, copy, false)?, last(c, copy, true)?);
    let failed = latest.filter(|l| !l.passed);
    let since = good.as_ref().map(|g| time(g.at));
    let missing: i64 =
        c.prepare_cached("SELECT count(*) FROM backup WHERE ?1 IS NULL OR recorded_at > ?1")?.query_row([since], |r| r.get(0))?;
    Ok(CopyState {
        copy: copy.to_owned(),
        last_good: good.as_ref().map(|g| g.at),
        held: good.map(|g| g.held).unwrap_or_default(),
        missing: uint(WHAT, missing)?,
        failed_at: failed.as_ref().map(|f| f.at),
        detail: failed.map(|f| f.detail).unwrap_or_default(),
    })
}

fn read(r: &Row<'_>) -> Sql<CopyRecord> {
    Ok(CopyRecord {
        operation: r.get(0)?,
        copy: r.get(1)?,
        at: parse_time(WHAT, &r.get::<_, String>(2)?)?,
        passed: r.get(3)?,
        copied: uint(WHAT, r.get(4)?)?,
        removed: uint(WHAT, r.get(5)?)?,
        held: uint(WHAT, r.get(6)?)?,
        bytes: uint(WHAT, r.get(7)?)?,
        duration_ms: uint(WHAT, r.get(8)?)?,
        detail: r.get(9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::backup::BackupRecord;
    use crate::store::tests::fresh;
    use chrono::TimeDelta;

    #[tokio::test]
    async fn a_snapshot_that_was_being_read_while_a_copy_was_made_is_missing_in_it() {
        let (_dir, store) = fresh().await;
        let begun = Utc::now() - TimeDelta::hours(1);
        let run = CopyRecord {
            copy: "disk".into(),
            at: begun + TimeDelta::minutes(1),
            passed: true,
            copied: 1,
            removed: 0,
            held: 1,
            bytes: 1,
            duration_ms: 1,
            detail: String::new(),
            operation: "op-1".into(),
        };
        store.put_copy(&run, None).await.unwrap();
        let missing = async || store.copies(vec!["disk".into()]).await.unwrap()[0].missing;
        assert_eq!(missing().await, 0);
        // Begun before the copy, ended long after it.
        let record = BackupRecord { at: begun, ..BackupRecord::sample("ab", "shop_data") };
        store.put_backup(&record).await.unwrap();
        assert_eq!(missing().await, 1);
        assert!(store.last_backup_recorded().await.unwrap().is_some_and(|t| t > run.at));
    }
}
