//! Back to a moment: the context as it was then becomes the context again, by one more event. Nothing of the log is undone: history stays, and a restore
//! can itself be gone back behind.

use super::events::{self, NewEvent, REMOVE, RESTORE, SET};
use super::{before, compact, search};
use crate::model::ids::AgentName;
use crate::store::appended::Part;
use crate::store::codec::{all, time};
use crate::store::fault::{Sql, corrupt, missing};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a restore came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MemoryRestored {
    /// The `restore` event.
    pub seq: i64,
    /// Last event the context is made of now.
    pub as_of: i64,
    /// Keys there are now.
    pub keys: usize,
    /// Keys that have another value than before, or are gone.
    pub changed: Vec<String>,
}

impl Store {
    /// Makes the context what it was at a moment; durable on return. `by` is who asked, and stands in the event. A moment whose events have left the log is
    /// read out of their files.
    ///
    /// # Errors
    /// `Missing` when nothing was remembered by then, `Absent` when a file that is needed is not here, `Corrupt` when one does not fit the chain, or the
    /// database's.
    pub async fn memory_restore(&self, agent: &AgentName, at: DateTime<Utc>, by: &str, now: DateTime<Utc>) -> StoreResult<MemoryRestored> {
        let db = self.memory_db(agent).await?;
        loop {
            let dir = self.inner.memory_root.join(agent.as_str());
            let left = move |c: &Connection| match last_before(c, at)? {
                None if compact::start(c)?.last > 0 => before::read(c, &dir).map(Some),
                _ => Ok(None),
            };
            let archived = db.read(left).await?;
            // Again when more events have left meanwhile.
            if let Some(done) = self.remember(agent, Part::Context, back(agent, at, by, now, archived)).await? {
                return Ok(done);
            }
        }
    }
}

/// The write of a restore; `None` when what was read of the files before is not all any more.
fn back(
    agent: &AgentName,
    at: DateTime<Utc>,
    by: &str,
    now: DateTime<Utc>,
    archived: Option<before::Archived>,
) -> impl FnOnce(&Connection) -> Sql<Option<MemoryRestored>> + Send + 'static {
    let (name, by) = (agent.to_string(), by.to_owned());
    move |c: &Connection| {
        let as_of = match last_before(c, at)? {
            Some(as_of) => as_of,
            None if compact::start(c)?.last > 0 => {
                return archived.map_or(Ok(None), |a| before::restore(c, &a, &name, at, by, now));
            }
            None => return Err(missing("memory", format!("of {name} at {}: it begins later", time(at))).into()),
        };
        let (before, after) = (current(c)?, context_as_of(c, as_of)?);
        let changed: Vec<String> = before
            .keys()
            .chain(after.keys())
            .filter(|k| before.get(*k) != after.get(*k))
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let event = NewEvent::restore(json!({"as_of": as_of, "at": time(at)}), by, now);
        let seq = events::append(c, &event)?;
        replace(c, &before, &after)?;
        Ok(Some(MemoryRestored { seq, as_of, keys: after.len(), changed }))
    }
}

/// The event a `restore` goes back to.
pub(super) fn target(value: &str) -> Option<i64> {
    serde_json::from_str::<Value>(value).ok()?["as_of"].as_i64()
}

/// Key -> event that set it, as the events up to one say.
pub(super) fn context_as_of(c: &Connection, upto: i64) -> Sql<BTreeMap<String, i64>> {
    // What later restores go back to is kept when the walk comes by: each goes back only.
    let wanted: BTreeSet<i64> = steps(c, upto)?.iter().filter(|s| s.op == RESTORE).filter_map(|s| target(&s.value)).collect();
    let mut context: BTreeMap<String, i64> = compact::base(c)?.into_iter().collect();
    let mut kept: BTreeMap<i64, BTreeMap<String, i64>> = BTreeMap::from([(compact::start(c)?.last, context.clone())]);
    for step in steps(c, upto)? {
        match step.op.as_str() {
            SET => drop(context.insert(step.key, step.seq)),
            REMOVE => drop(context.remove(&step.key)),
            _ => {
                let back = target(&step.value).and_then(|seq| kept.get(&seq));
                context = back.ok_or_else(|| corrupt("memory", format!("event {} goes back to nothing", step.seq)))?.clone();
            }
        }
        if wanted.contains(&step.seq) {
            kept.insert(step.seq, context.clone());
        }
    }
    Ok(context)
}

struct Step {
    seq: i64,
    op: String,
    key: String,
    /// Of a restore; empty for the others, whose values may be long.
    value: String,
}

/// The events that make the context, oldest first.
fn steps(c: &Connection, upto: i64) -> Sql<Vec<Step>> {
    let mut statement = c.prepare_cached(
        "SELECT seq, op, key, CASE op WHEN 'restore' THEN value ELSE '' END FROM memory_event
         WHERE op IN ('set', 'remove', 'restore') AND seq <= ?1 ORDER BY seq",
    )?;
    all(&mut statement, [upto], |r| Ok(Step { seq: r.get(0)?, op: r.get(1)?, key: r.get(2)?, value: r.get(3)? }))
}

/// The last event of the context at a moment. History does not count: it is written later than what it tells of.
fn last_before(c: &Connection, at: DateTime<Utc>) -> Sql<Option<i64>> {
    let mut statement = c.prepare_cached("SELECT max(seq) FROM memory_event WHERE op IN ('set', 'remove', 'restore') AND ts <= ?1")?;
    let found: Option<i64> = statement.query_row([time(at)], |r| r.get(0))?;
    // What the events that left made of it, when nothing was changed between them and that moment.
    let start = compact::start(c)?;
    Ok(found.or(start.context_at.filter(|ts| *ts <= time(at)).map(|_| start.last)))
}

fn current(c: &Connection) -> Sql<BTreeMap<String, i64>> {
    let mut statement = c.prepare_cached("SELECT key, seq FROM context")?;
    let found: Vec<(String, i64)> = all(&mut statement, [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(found.into_iter().collect())
}

/// The new projection: context and what search finds of it.
fn replace(c: &Connection, before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) -> Sql<()> {
    for (key, seq) in before.iter().filter(|(key, seq)| after.get(*key) != Some(seq)) {
        c.prepare_cached("DELETE FROM context WHERE key = ?1")?.execute([key])?;
        search::remove(c, *seq)?;
    }
    for (key, seq) in after.iter().filter(|(key, seq)| before.get(*key) != Some(seq)) {
        c.prepare_cached(
            "INSERT INTO context (key, seq, ts, value, source) SELECT key, seq, ts, value, source FROM memory_event WHERE seq = ?1
             UNION ALL SELECT key, seq, ts, value, source FROM base WHERE seq = ?1",
        )?
        .execute(params![seq])?;
        let text: String = c.prepare_cached("SELECT value FROM context WHERE seq = ?1")?.query_row([seq], |r| r.get(0))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| corrupt("memory entry", e))?;
        search::insert(c, *seq, key, &value)?;
    }
    Ok(())
}
