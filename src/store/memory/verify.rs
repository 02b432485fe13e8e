//! Looks for edits, gaps and removed guards in a memory's event log, and for projections that do not follow from it. Changes nothing.

use super::events::{self, HISTORY, REMOVE, RESTORE, SET};
use super::restore;
use crate::store::chain::{GENESIS, Hash};
use crate::store::fault::Sql;
use crate::store::migrate;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};

/// Problems in words; empty = intact.
pub(super) fn verify(c: &Connection) -> Sql<Vec<String>> {
    let mut problems = Vec::new();
    let found = migrate::objects(c)?;
    for expected in migrate::expected_objects(&migrate::MEMORY)? {
        if !found.contains(&expected) {
            problems.push(format!("{} {} is missing or was changed", expected.0, expected.1));
        }
    }
    let (mut last, mut prev): (i64, Hash) = (0, GENESIS);
    let mut readable = true;
    let mut history: BTreeSet<(i64, String)> = BTreeSet::new();
    events::each(c, |event| {
        if event.seq != last + 1 {
            problems.push(format!("events between {last} and {} are missing", event.seq));
        } else if event.prev_hash != prev {
            problems.push(format!("event {} does not follow event {last}", event.seq));
        }
        let stored: Option<Hash> = event.hash.as_slice().try_into().ok();
        let own_prev: Option<Hash> = event.prev_hash.as_slice().try_into().ok();
        if stored.is_none() || own_prev.map(|p| event.link(&p)) != stored {
            problems.push(format!("event {} was changed: its content does not fit its hash", event.seq));
        }
        prev = stored.unwrap_or(GENESIS);
        last = event.seq;
        match event.op.as_str() {
            SET | REMOVE => {}
            RESTORE if restore::target(&event.value).is_some_and(|to| to < event.seq) => {}
            RESTORE => {
                readable = false;
                problems.push(format!("event {} restores nothing there is", event.seq));
            }
            HISTORY => drop(history.insert((event.seq, event.value))),
            other => problems.push(format!("event {} has the unknown operation {other:?}", event.seq)),
        }
        Ok(())
    })?;
    if readable {
        match restore::context_as_of(c, last) {
            Ok(context) => of_context(c, &context, &mut problems)?,
            Err(e) => problems.push(format!("the context cannot be made from its events: {e:?}")),
        }
    }
    of_history(c, &history, &mut problems)?;
    Ok(problems)
}

fn of_context(c: &Connection, context: &BTreeMap<String, i64>, problems: &mut Vec<String>) -> Sql<()> {
    let mut keys = context.keys().cloned().collect::<BTreeSet<_>>();
    let mut statement = c.prepare("SELECT c.key, c.seq, c.value IS e.value FROM context c LEFT JOIN memory_event e ON e.seq = c.seq")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let (key, seq, same): (String, i64, bool) = (r.get(0)?, r.get(1)?, r.get(2)?);
        keys.remove(&key);
        if context.get(&key) != Some(&seq) || !same {
            problems.push(format!("context key {key:?} is not what its events say"));
        }
    }
    problems.extend(keys.iter().map(|key| format!("context key {key:?} is missing")));
    Ok(())
}

fn of_history(c: &Connection, history: &BTreeSet<(i64, String)>, problems: &mut Vec<String>) -> Sql<()> {
    let mut missing: BTreeSet<i64> = history.iter().map(|(seq, _)| *seq).collect();
    let mut statement = c.prepare("SELECT seq, value FROM history")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let row: (i64, String) = (r.get(0)?, r.get(1)?);
        missing.remove(&row.0);
        if !history.contains(&row) {
            problems.push(format!("history entry {} is not what its event says", row.0));
        }
    }
    problems.extend(missing.iter().map(|seq| format!("history entry {seq} is missing")));
    Ok(())
}
