//! What is known of data that a restore took the place of: where it is, since when, and what took its place. Deliberately absent: the data itself, and
//! whether it may go.

use super::codec::{all, name, parse_time, time};
use super::fault::Sql;
use super::{Store, StoreResult};
use crate::model::ids::{OperationId, StackName};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// Data that was live once and is kept until somebody confirms that it may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The volume, or the directory as this process sees it.
    pub place: String,
    /// What it was: the volume's name in the records, or the directory of the host.
    pub source: String,
    /// Stack.
    pub stack: StackName,
    /// Release that runs on what took its place.
    pub release: u32,
    /// Operation of that release.
    pub operation: OperationId,
    /// Snapshot that took its place.
    pub snapshot_id: String,
    /// Since when nothing of the stack writes it.
    pub since: DateTime<Utc>,
    /// Snapshot that was found to hold all of it when they were last compared.
    #[serde(default)]
    pub covered: Option<String>,
}

impl KeptRecord {
    /// Whether it is a directory of the host.
    pub fn is_directory(&self) -> bool {
        self.source.starts_with('/')
    }
}

const COLUMNS: &str = "place, source, stack, release, operation, snapshot, since, covered";

impl Store {
    /// Records data that is kept; again changes nothing.
    pub async fn keep(&self, records: &[KeptRecord]) -> StoreResult<()> {
        let records = records.to_vec();
        self.inner.state.write(move |c| records.iter().try_for_each(|r| put(c, r))).await
    }

    /// What an operation kept is live again.
    pub async fn unkeep(&self, operation: &OperationId) -> StoreResult<()> {
        let operation = operation.clone();
        self.inner.state.write(move |c| remove(c, "operation", operation.as_str())).await
    }

    /// Kept data is gone. The snapshot that alone holds it now, where one does, gets a tag in the same write.
    pub async fn drop_kept(&self, place: &str, holds: Option<(&str, &str)>) -> StoreResult<()> {
        let (place, holds) = (place.to_owned(), holds.map(|(id, tag)| (id.to_owned(), tag.to_owned())));
        let write = move |c: &Connection| {
            if let Some((id, tag)) = &holds {
                mark(c, id, tag)?;
            }
            remove(c, "place", &place)
        };
        self.inner.state.write(write).await
    }

    /// A snapshot held all of it when they were compared. A note, not a proof: it may have been written since. `false`, and nothing noted, when the snapshot is
    /// being removed: its record goes before it does.
    pub async fn kept_is_covered(&self, place: &str, snapshot: &str) -> StoreResult<bool> {
        let (place, snapshot) = (place.to_owned(), snapshot.to_owned());
        let write = move |c: &Connection| {
            let text = "UPDATE kept SET covered = ?2 WHERE place = ?1 AND EXISTS (SELECT 1 FROM backup WHERE snapshot_id = ?2)";
            Ok(c.prepare_cached(text)?.execute([place.as_str(), snapshot.as_str()])? > 0)
        };
        self.inner.state.write(write).await
    }

    /// What is kept, of one stack or of all, oldest first.
    pub async fn kept(&self, stack: Option<&StackName>) -> StoreResult<Vec<KeptRecord>> {
        let stack = stack.cloned();
        self.inner.state.read(move |c| list(c, stack.as_ref())).await
    }
}

fn put(c: &Connection, r: &KeptRecord) -> Sql<()> {
    c.prepare_cached(&format!("INSERT OR REPLACE INTO kept ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"))?.execute(params![
        r.place,
        r.source,
        r.stack.as_str(),
        r.release,
        r.operation.as_str(),
        r.snapshot_id,
        time(r.since),
        r.covered
    ])?;
    Ok(())
}

fn mark(c: &Connection, snapshot: &str, tag: &str) -> Sql<()> {
    c.prepare_cached(
        "UPDATE backup SET tags = CASE tags WHEN '' THEN ?2 ELSE tags || ',' || ?2 END
         WHERE snapshot_id = ?1 AND instr(',' || tags || ',', ',' || ?2 || ',') = 0",
    )?
    .execute([snapshot, tag])?;
    Ok(())
}

fn remove(c: &Connection, column: &str, value: &str) -> Sql<()> {
    c.prepare_cached(&format!("DELETE FROM kept WHERE {column} = ?1"))?.execute([value])?;
    Ok(())
}

fn list(c: &Connection, stack: Option<&StackName>) -> Sql<Vec<KeptRecord>> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM kept WHERE (?1 IS NULL OR stack = ?1) ORDER BY since, place"))?;
    all(&mut statement, params![stack.map(StackName::as_str)], |r| {
        Ok(KeptRecord {
            place: r.get(0)?,
            source: r.get(1)?,
            stack: name("kept", r.get(2)?)?,
            release: r.get(3)?,
            operation: name("kept", r.get(4)?)?,
            snapshot_id: r.get(5)?,
            since: parse_time("kept", &r.get::<_, String>(6)?)?,
            covered: r.get(7)?,
        })
    })
}
