//! Keeps a memory within its limits: the oldest events go to a file beside the database, which every backup of the supervisor carries, and leave the log. The
//! file is whole and on disk before the first event leaves, and all that changes in the database changes in one transaction: a crash at any point loses
//! nothing and repeats nothing. An event of the log tells the hash of the last one that left, so the chain is checked through the files to the first event.
//! The context never leaves. Deliberately absent: what the limits are, and when one looks.

use super::events::{self, NewEvent};
use super::{archive, restore};
use crate::model::ids::AgentName;
use crate::store::chain::{self, Field, GENESIS, Hash, hex};
use crate::store::codec::{all, time};
use crate::store::db::used_bytes;
use crate::store::fault::{Sql, corrupt};
use crate::store::{Store, StoreResult, migrate};
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How much of an agent's memory stays in its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// At most so many bytes; half of them remain when the oldest events leave.
    pub max_bytes: u64,
    /// No event that is much older than this.
    pub max_age: Option<TimeDelta>,
}

/// What left the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// Number of the first event.
    pub first: i64,
    /// Number of the last event.
    pub last: i64,
    /// Where they are now.
    pub file: PathBuf,
}

/// How far a compaction goes: a test stops where a crash could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(test), expect(dead_code, reason = "outside of tests a compaction goes to its end"))]
pub(super) enum Until {
    /// The events are on disk under a name that means nothing.
    Written,
    /// The file has its name.
    Named,
    /// The events are gone from the log.
    Done,
}

/// What the last compaction left, for those who read the log from where it begins.
pub(super) struct Start {
    /// The last event that left; 0 when none has.
    pub last: i64,
    /// Its hash.
    pub head: Hash,
    /// Last change of the context among those that left.
    pub context_at: Option<String>,
}

impl Store {
    /// Agents that have a memory on disk.
    ///
    /// # Errors
    /// `Io`.
    pub async fn memory_agents(&self) -> StoreResult<Vec<AgentName>> {
        let root = self.inner.memory_root.clone();
        let listed = tokio::task::spawn_blocking(move || crate::store::copy::memories(&root)).await;
        let dirs = listed.map_err(|e| corrupt("memory", format!("listing them ended early: {e}")))??;
        Ok(dirs.iter().filter_map(|d| AgentName::new(d.file_name()?.to_str()?).ok()).collect())
    }

    /// Moves the oldest events of an agent's log to a file when the log is larger or older than it may be.
    ///
    /// # Errors
    /// `Corrupt` when an event does not fit its chain: a damaged log is not compacted. The file system's, and the database's.
    pub async fn memory_compact(&self, agent: &AgentName, keep: &Keep, now: DateTime<Utc>) -> StoreResult<Option<Compacted>> {
        self.compact_until(agent, keep, now, Until::Done).await
    }

    pub(super) async fn compact_until(
        &self,
        agent: &AgentName,
        keep: &Keep,
        now: DateTime<Utc>,
        until: Until,
    ) -> StoreResult<Option<Compacted>> {
        // Two would write the same file.
        let _one = self.inner.compactions.lock().await;
        let dir = self.inner.memory_root.join(agent.as_str());
        let (path, rule) = (dir.join("memory.db"), keep.clone());
        let home = dir.clone();
        let copied = tokio::task::spawn_blocking(move || {
            // A reader of its own: a memory nobody uses is not opened for a look at it.
            let reader = migrate::open_reader(&path)?;
            let copy = || -> Sql<_> {
                if !migrate::is_newest(&reader, &migrate::MEMORY)? {
                    return Ok(None);
                }
                let snapshot = reader.unchecked_transaction()?;
                let Some((first, last)) = due(&snapshot, &rule, now)? else { return Ok(None) };
                let written = archive::write(&snapshot, &home, (first, last), start(&snapshot)?.head)?;
                Ok(Some((first, last, written)))
            };
            copy().map_err(|e| e.named(&path))
        });
        let copied = copied.await.map_err(|e| corrupt("memory archive", format!("making it ended early: {e}")))??;
        let Some((first, last, written)) = copied else { return Ok(None) };
        let done = Compacted { first, last, file: archive::file(&dir, first) };
        if until < Until::Named {
            return Ok(Some(done));
        }
        let named = tokio::task::spawn_blocking(move || archive::name(&dir, first)).await;
        named.map_err(|e| corrupt("memory archive", format!("naming it ended early: {e}")))??;
        if until < Until::Done {
            return Ok(Some(done));
        }
        let write = move |c: &Connection| leave(c, (first, last), &written, now);
        let left = self.memory_db(agent).await?.write(write).await?;
        Ok(left.then_some(done))
    }
}

/// Where the log begins.
pub(super) fn start(c: &Connection) -> Sql<Start> {
    let mut statement = c.prepare_cached("SELECT last, head, context_at FROM compacted ORDER BY first DESC LIMIT 1")?;
    let found = statement.query_row([], |r| Ok(Start { last: r.get(0)?, head: r.get(1)?, context_at: r.get(2)? })).optional()?;
    Ok(found.unwrap_or(Start { last: 0, head: GENESIS, context_at: None }))
}

/// The events to move, when it is time.
fn due(c: &Connection, keep: &Keep, now: DateTime<Utc>) -> Sql<Option<(i64, i64)>> {
    let first = start(c)?.last + 1;
    let head: i64 = c.query_row("SELECT coalesce(max(seq), 0) FROM memory_event", [], |r| r.get(0))?;
    let bytes = used_bytes(c)?;
    let mut last = 0;
    if bytes > keep.max_bytes {
        let all = i128::from(head - first + 1);
        let kept = all * i128::from(keep.max_bytes / 2) / i128::from(bytes.max(1));
        last = head - i64::try_from(kept).unwrap_or(0);
    }
    if let Some(age) = keep.max_age {
        // Some days at once: not a file a day.
        let late = time(now - age - (age / 8).max(TimeDelta::days(1)));
        let begins: Option<String> = c.query_row("SELECT ts FROM memory_event WHERE seq = ?1", [first], |r| r.get(0)).optional()?;
        if begins.is_some_and(|ts| ts < late) {
            let young: Option<i64> = c.query_row("SELECT min(seq) FROM memory_event WHERE ts >= ?1", [time(now - age)], |r| r.get(0))?;
            last = last.max(young.map_or(head, |seq| seq - 1));
        }
    }
    let last = spare_targets(c, last)?;
    Ok((last >= first).then_some((first, last)))
}

/// Where a later restore goes back to must stay, and with it all after it.
fn spare_targets(c: &Connection, mut last: i64) -> Sql<i64> {
    let mut statement = c.prepare_cached(
        "SELECT min(json_extract(value, '$.as_of')) FROM memory_event
         WHERE op = 'restore' AND seq > ?1 AND json_extract(value, '$.as_of') < ?1",
    )?;
    while let Some(target) = statement.query_row([last], |r| r.get::<_, Option<i64>>(0))? {
        last = target;
    }
    Ok(last)
}

/// Takes the events out of the log: what tells of it, the context they leave, then they themselves. False when something came in between.
fn leave(c: &Connection, (first, last): (i64, i64), written: &archive::Written, now: DateTime<Utc>) -> Sql<bool> {
    let before = start(c)?;
    if before.last + 1 != first || spare_targets(c, last)? != last {
        return Ok(false);
    }
    let context = restore::context_as_of(c, last)?;
    let context_at: Option<String> = c
        .prepare_cached("SELECT ts FROM memory_event WHERE op IN ('set', 'remove', 'restore') AND seq <= ?1 ORDER BY seq DESC LIMIT 1")?
        .query_row([last], |r| r.get(0))
        .optional()?
        .or(before.context_at);
    rebase(c, &context)?;
    let told = json!({
        "first": first,
        "last": last,
        "head": hex(&written.head),
        "sha256": hex(&written.sha256),
        "base": hex(&base_hash(c)?),
    });
    let event = events::append(c, &NewEvent::compact(told, now))?;
    c.prepare_cached("INSERT INTO compacted (first, last, head, sha256, to_at, context_at, event) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![first, last, written.head, written.sha256, written.to_at, context_at, event])?;
    c.prepare_cached("DELETE FROM search WHERE rowid IN (SELECT seq FROM history WHERE seq <= ?1)")?.execute([last])?;
    c.prepare_cached("DELETE FROM history WHERE seq <= ?1")?.execute([last])?;
    c.prepare_cached("DELETE FROM memory_event WHERE seq <= ?1")?.execute([last])?;
    Ok(true)
}

/// Makes a context the one the log begins with. What of it is there already stays as it is.
fn rebase(c: &Connection, context: &BTreeMap<String, i64>) -> Sql<()> {
    for (key, seq) in base(c)? {
        if context.get(&key) != Some(&seq) {
            c.prepare_cached("DELETE FROM base WHERE seq = ?1")?.execute([seq])?;
        }
    }
    let there: BTreeSet<i64> = base(c)?.into_iter().map(|(_, seq)| seq).collect();
    let mut take = c.prepare_cached(
        "INSERT INTO base (key, seq, ts, value, source) SELECT key, seq, ts, value, source FROM memory_event WHERE seq = ?1",
    )?;
    for (key, seq) in context.iter().filter(|(_, seq)| !there.contains(seq)) {
        if take.execute([seq])? != 1 {
            let detail = format!("what key {key:?} was set to is not there; nothing is compacted, run memory verify");
            return Err(corrupt("memory", detail).into());
        }
    }
    Ok(())
}

/// Hash over the context the log begins with.
pub(super) fn base_hash(c: &Connection) -> Sql<Hash> {
    let mut statement = c.prepare_cached("SELECT key, seq, ts, value, source FROM base ORDER BY key")?;
    let mut rows = statement.query([])?;
    let mut hash = GENESIS;
    while let Some(r) = rows.next()? {
        let (key, ts, value, source): (String, String, String, String) = (r.get(0)?, r.get(2)?, r.get(3)?, r.get(4)?);
        let fields = [Field::Text(&key), Field::Int(r.get(1)?), Field::Text(&ts), Field::Text(&value), Field::Text(&source)];
        hash = chain::link("dockwarden memory base", &hash, &fields);
    }
    Ok(hash)
}

/// A listed file, as the database says.
pub(super) struct Listed {
    pub first: i64,
    pub last: i64,
    pub head: Hash,
    pub sha256: Hash,
    pub event: i64,
}

/// All listed files, oldest first.
pub(super) fn listed(c: &Connection) -> Sql<Vec<Listed>> {
    let mut statement = c.prepare_cached("SELECT first, last, head, sha256, event FROM compacted ORDER BY first")?;
    all(&mut statement, [], |r| Ok(Listed { first: r.get(0)?, last: r.get(1)?, head: r.get(2)?, sha256: r.get(3)?, event: r.get(4)? }))
}

/// Key and event of the context the log begins with.
pub(super) fn base(c: &Connection) -> Sql<Vec<(String, i64)>> {
    let mut statement = c.prepare_cached("SELECT key, seq FROM base")?;
    all(&mut statement, [], |r| Ok((r.get(0)?, r.get(1)?)))
}
