//! The event log of one memory and the projections that follow each event in the same transaction.

use super::{MAX_KEY, MAX_VALUE, MemoryEntry, search};
use crate::store::chain::{self, Field, GENESIS, Hash};
use crate::store::codec::{all, canonical, limit, parse_json, parse_time, time};
use crate::store::fault::Sql;
use crate::store::{StoreError, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

const WHAT: &str = "memory entry";
const DOMAIN: &str = "dockwarden memory";

/// An event sets a key of the context.
pub(super) const SET: &str = "set";
/// An event removes a key of the context.
pub(super) const REMOVE: &str = "remove";
/// An event adds to the history.
pub(super) const HISTORY: &str = "history";

/// An event makes the context what it was at an earlier event.
pub(super) const RESTORE: &str = "restore";

/// An event tells that the oldest ones left the log.
pub(super) const COMPACT: &str = "compact";

/// An event to append.
pub(super) struct NewEvent {
    op: &'static str,
    at: DateTime<Utc>,
    key: String,
    value: Value,
    source: String,
}

impl NewEvent {
    /// Sets a key; `Null` removes it.
    pub(super) fn set(key: &str, value: &Value, source: &str, at: DateTime<Utc>) -> StoreResult<Self> {
        if key.len() > MAX_KEY {
            return Err(StoreError::TooLarge { what: "memory key", size: key.len(), max: MAX_KEY });
        }
        let size = value.to_string().len();
        if size > MAX_VALUE {
            return Err(StoreError::TooLarge { what: "memory value", size, max: MAX_VALUE });
        }
        let op = if value.is_null() { REMOVE } else { SET };
        Ok(Self { op, at, key: key.into(), value: value.clone(), source: source.into() })
    }

    /// Whether it makes the context smaller.
    pub(super) fn removes(&self) -> bool {
        self.op == REMOVE
    }

    /// The context goes back to what an earlier event left.
    pub(super) fn restore(value: Value, by: String, at: DateTime<Utc>) -> Self {
        Self { op: RESTORE, at, key: String::new(), value, source: by }
    }

    /// The oldest events left the log.
    pub(super) fn compact(value: Value, at: DateTime<Utc>) -> Self {
        Self { op: COMPACT, at, key: String::new(), value, source: "supervisor".into() }
    }

    /// Something that happened elsewhere, as a file tells it.
    pub(super) fn past(key: &str, value: &Value, source: &str, at: DateTime<Utc>) -> StoreResult<Self> {
        Ok(Self { op: HISTORY, ..Self::set(key, value, source, at)? })
    }

    /// When it happened, under which key, and what: two that say the same are one.
    pub(super) fn says(&self) -> (DateTime<Utc>, String, String) {
        (parse_time(WHAT, &time(self.at)).unwrap_or(self.at), self.key.clone(), canonical(&self.value))
    }

    /// Something that happened.
    pub(super) fn history(key: &str, value: Value, source: String, at: DateTime<Utc>) -> Self {
        Self { op: HISTORY, at, key: key.into(), value, source }
    }
}

/// A stored event, before anything in it is believed.
pub(super) struct RawEvent {
    pub seq: i64,
    pub ts: String,
    pub op: String,
    pub key: String,
    pub value: String,
    pub source: String,
    pub prev_hash: Vec<u8>,
    pub hash: Vec<u8>,
}

impl RawEvent {
    /// The hash this event must have after `prev`.
    pub(super) fn link(&self, prev: &Hash) -> Hash {
        let fields = [
            Field::Int(self.seq),
            Field::Text(&self.ts),
            Field::Text(&self.op),
            Field::Text(&self.key),
            Field::Text(&self.value),
            Field::Text(&self.source),
        ];
        chain::link(DOMAIN, prev, &fields)
    }
}

/// Appends an event and brings context, history and search up to it.
pub(super) fn append(c: &Connection, new: &NewEvent) -> Sql<i64> {
    let (last, prev) = head(c)?;
    let mut event = RawEvent {
        seq: last + 1,
        ts: time(new.at),
        op: new.op.into(),
        key: new.key.clone(),
        value: canonical(&new.value),
        source: new.source.clone(),
        prev_hash: prev.to_vec(),
        hash: Vec::new(),
    };
    event.hash = event.link(&prev).to_vec();
    insert_event(c, &event)?;
    if matches!(new.op, RESTORE | COMPACT) {
        // The projection of these is their makers'.
        return Ok(event.seq);
    }
    if new.op == HISTORY {
        insert_history(c, &event)?;
    } else if let Some(old) = context_seq(c, &event.key)? {
        remove_context(c, &event.key)?;
        search::remove(c, old)?;
    }
    if new.op == SET {
        insert_context(c, &event)?;
    }
    if new.op != REMOVE {
        search::insert(c, event.seq, &event.key, &new.value)?;
    }
    Ok(event.seq)
}

fn head(c: &Connection) -> Sql<(i64, Hash)> {
    let mut statement = c.prepare_cached("SELECT seq, hash FROM memory_event ORDER BY seq DESC LIMIT 1")?;
    Ok(statement.query_row([], |r| Ok((r.get(0)?, r.get(1)?))).optional()?.unwrap_or((0, GENESIS)))
}

fn insert_event(c: &Connection, e: &RawEvent) -> Sql<usize> {
    let mut statement = c.prepare_cached(
        "INSERT INTO memory_event (seq, ts, op, key, value, source, prev_hash, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    Ok(statement.execute(params![e.seq, e.ts, e.op, e.key, e.value, e.source, e.prev_hash, e.hash])?)
}

fn insert_context(c: &Connection, e: &RawEvent) -> Sql<usize> {
    let mut statement = c.prepare_cached("INSERT INTO context (key, seq, ts, value, source) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    Ok(statement.execute(params![e.key, e.seq, e.ts, e.value, e.source])?)
}

fn insert_history(c: &Connection, e: &RawEvent) -> Sql<usize> {
    let mut statement = c.prepare_cached("INSERT INTO history (seq, ts, key, value, source) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    Ok(statement.execute(params![e.seq, e.ts, e.key, e.value, e.source])?)
}

fn context_seq(c: &Connection, key: &str) -> Sql<Option<i64>> {
    Ok(c.prepare_cached("SELECT seq FROM context WHERE key = ?1")?.query_row([key], |r| r.get(0)).optional()?)
}

fn remove_context(c: &Connection, key: &str) -> Sql<usize> {
    Ok(c.prepare_cached("DELETE FROM context WHERE key = ?1")?.execute([key])?)
}

/// The entry of one key, if it is set.
pub(super) fn context_key(c: &Connection, key: &str) -> Sql<Vec<MemoryEntry>> {
    let mut statement = c.prepare_cached("SELECT seq, ts, 'context', key, value, source FROM context WHERE key = ?1")?;
    all(&mut statement, [key], read_entry)
}

/// The entries set last, newest first.
pub(super) fn context_newest(c: &Connection, n: usize) -> Sql<Vec<MemoryEntry>> {
    let mut statement = c.prepare_cached("SELECT seq, ts, 'context', key, value, source FROM context ORDER BY seq DESC LIMIT ?1")?;
    all(&mut statement, [limit(n)], read_entry)
}

/// All of the context, by key.
pub(super) fn context_all(c: &Connection) -> Sql<Vec<MemoryEntry>> {
    let mut statement = c.prepare_cached("SELECT seq, ts, 'context', key, value, source FROM context ORDER BY key")?;
    all(&mut statement, [], read_entry)
}

/// Bytes of all keys and values of the context.
pub(super) fn context_bytes(c: &Connection) -> Sql<u64> {
    let sum: i64 = c.query_row("SELECT coalesce(sum(octet_length(key) + octet_length(value)), 0) FROM context", [], |r| r.get(0))?;
    Ok(sum.unsigned_abs())
}

/// What happened last, newest first: all of it or under one key, before an entry or to the end.
pub(super) fn history_newest(c: &Connection, key: Option<&str>, before: Option<i64>, n: usize) -> Sql<Vec<MemoryEntry>> {
    let mut statement = c.prepare_cached(
        "SELECT seq, ts, 'history', key, value, source FROM history
         WHERE (?1 IS NULL OR key = ?1) AND (?2 IS NULL OR seq < ?2) ORDER BY seq DESC LIMIT ?3",
    )?;
    all(&mut statement, rusqlite::params![key, before, limit(n)], read_entry)
}

/// All that happened, oldest first.
pub(super) fn history_all(c: &Connection) -> Sql<Vec<MemoryEntry>> {
    let mut statement = c.prepare_cached("SELECT seq, ts, 'history', key, value, source FROM history ORDER BY seq")?;
    all(&mut statement, [], read_entry)
}

/// Reads `seq, ts, kind, key, value, source`.
pub(super) fn read_entry(r: &Row<'_>) -> Sql<MemoryEntry> {
    Ok(MemoryEntry {
        seq: r.get(0)?,
        at: parse_time(WHAT, &r.get::<_, String>(1)?)?,
        kind: r.get(2)?,
        key: r.get(3)?,
        value: parse_json(WHAT, &r.get::<_, String>(4)?)?,
        source: r.get(5)?,
    })
}

/// What a search found: the context's or the history's entry of an event.
pub(super) fn entry(c: &Connection, seq: i64) -> Sql<Vec<MemoryEntry>> {
    let mut statement = c.prepare_cached(
        "SELECT seq, ts, 'context', key, value, source FROM context WHERE seq = ?1
         UNION ALL SELECT seq, ts, 'history', key, value, source FROM history WHERE seq = ?1",
    )?;
    all(&mut statement, [seq], read_entry)
}

/// Calls `see` with every event of a range that is in the log, oldest first.
pub(super) fn each(c: &Connection, first: i64, last: i64, mut see: impl FnMut(RawEvent) -> Sql<()>) -> Sql<()> {
    let mut statement = c.prepare_cached(
        "SELECT seq, ts, op, key, value, source, prev_hash, hash FROM memory_event WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq",
    )?;
    let mut rows = statement.query([first, last])?;
    while let Some(r) = rows.next()? {
        see(RawEvent {
            seq: r.get(0)?,
            ts: r.get(1)?,
            op: r.get(2)?,
            key: r.get(3)?,
            value: r.get(4)?,
            source: r.get(5)?,
            prev_hash: r.get(6)?,
            hash: r.get(7)?,
        })?;
    }
    Ok(())
}
