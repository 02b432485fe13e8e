//! Looks for edits, gaps and removed guards in a memory's event log, and for projections that do not follow from it. Changes nothing.

use super::compact::{self, Listed};
use super::events::{self, COMPACT, HISTORY, REMOVE, RESTORE, RawEvent, SET};
use super::{archive, restore};
use crate::store::audit::rotate::digest;
use crate::store::chain::{GENESIS, Hash, hex};
use crate::store::fault::Sql;
use crate::store::migrate::{self, Odd};
use rusqlite::Connection;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Problems in words; empty = intact.
pub(super) fn verify(c: &Connection, memory: &Path) -> Sql<Vec<String>> {
    let mut problems = Vec::new();
    problems.extend(migrate::odd(c, &migrate::MEMORY)?.iter().map(|odd| match odd.what {
        Odd::Foreign => odd.to_string(),
        Odd::Missing | Odd::Changed => format!("{} {} is missing or was changed", odd.kind, odd.name),
    }));
    let files = compact::listed(c)?;
    let begin = of_files(&files, memory, &mut problems)?;
    let (mut chain, mut readable) = (begin, true);
    let mut history: BTreeSet<(i64, String)> = BTreeSet::new();
    let mut told: BTreeMap<i64, String> = BTreeMap::new();
    events::each(c, i64::MIN, i64::MAX, |event| {
        chain.step(&event, &mut problems);
        match event.op.as_str() {
            SET | REMOVE => {}
            COMPACT => drop(told.insert(event.seq, event.value)),
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
    of_base(c, &files, &told, &mut problems)?;
    if readable {
        match restore::context_as_of(c, chain.last) {
            Ok(context) => of_context(c, &context, &mut problems)?,
            Err(e) => problems.push(format!("the context cannot be made from its events: {e:?}")),
        }
    }
    of_history(c, &history, &mut problems)?;
    Ok(problems)
}

/// Where the chain is.
struct Chain {
    last: i64,
    prev: Hash,
}

impl Chain {
    fn step(&mut self, event: &RawEvent, problems: &mut Vec<String>) {
        let last = self.last;
        if event.seq != last + 1 {
            problems.push(format!("events between {last} and {} are missing", event.seq));
        } else if event.prev_hash != self.prev {
            problems.push(format!("event {} does not follow event {last}", event.seq));
        }
        let stored: Option<Hash> = event.hash.as_slice().try_into().ok();
        let own_prev: Option<Hash> = event.prev_hash.as_slice().try_into().ok();
        if stored.is_none() || own_prev.map(|p| event.link(&p)) != stored {
            problems.push(format!("event {} was changed: its content does not fit its hash", event.seq));
        }
        self.prev = stored.unwrap_or(GENESIS);
        self.last = event.seq;
    }
}

/// The events that left the log, through the files they are in; where the log goes on.
fn of_files(files: &[Listed], memory: &Path, problems: &mut Vec<String>) -> Sql<Chain> {
    let mut chain = Chain { last: 0, prev: GENESIS };
    for listed in files {
        let path = archive::file(memory, listed.first);
        let read = match digest(&path) {
            Ok(sha256) if sha256 != listed.sha256 => Err(format!("{} was changed: it is not the file that was written", path.display())),
            Ok(_) => archive::each(&path, |event| {
                chain.step(&event, problems);
                Ok(())
            })
            .map_err(|e| e.named(&path).to_string()),
            Err(e) => Err(format!("{e}; put the file back from a backup of the supervisor")),
        };
        if let Err(problem) = read {
            problems.push(problem);
        } else if (chain.last, chain.prev) != (listed.last, listed.head) {
            problems.push(format!("{} does not end with event {} as it is listed", path.display(), listed.last));
        }
        // What is told of the rest does not depend on one file.
        chain = Chain { last: listed.last, prev: listed.head };
    }
    Ok(chain)
}

/// What the log begins with, as the event of the last compaction tells it.
fn of_base(c: &Connection, files: &[Listed], told: &BTreeMap<i64, String>, problems: &mut Vec<String>) -> Sql<()> {
    let Some(newest) = files.last() else {
        if !compact::base(c)?.is_empty() {
            problems.push("the log begins with a context that nothing left it".into());
        }
        return Ok(());
    };
    let said: Value = told.get(&newest.event).and_then(|v| serde_json::from_str(v).ok()).unwrap_or_default();
    let is = serde_json::json!({
        "first": newest.first,
        "last": newest.last,
        "head": hex(&newest.head),
        "sha256": hex(&newest.sha256),
        "base": hex(&compact::base_hash(c)?),
    });
    if said != is {
        problems.push(format!("what the log begins with is not what event {} says", newest.event));
    }
    Ok(())
}

fn of_context(c: &Connection, context: &BTreeMap<String, i64>, problems: &mut Vec<String>) -> Sql<()> {
    let mut keys = context.keys().cloned().collect::<BTreeSet<_>>();
    let mut statement = c.prepare(
        "SELECT c.key, c.seq, c.value IS coalesce(e.value, b.value)
         FROM context c LEFT JOIN memory_event e ON e.seq = c.seq LEFT JOIN base b ON b.seq = c.seq",
    )?;
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
