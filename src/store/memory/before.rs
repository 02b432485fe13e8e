//! Back to a moment whose events have left the log: they are read out of their files, each checked against what the log tells of it, so the chain is whole
//! from the first event on. What was set then is set again by new events, with who had said it, and one `restore` event tells what they are; so the log
//! needs none of the files to make its context. Deliberately absent: where a file that is not here comes from.

use super::archive;
use super::compact::{self, Listed};
use super::events::{self, NewEvent, REMOVE, RESTORE, RawEvent, SET};
use super::restore::{MemoryRestored, target};
use crate::model::ids::AgentName;
use crate::store::audit::rotate::digest;
use crate::store::chain::{GENESIS, Hash};
use crate::store::codec::{all, parse_json, time};
use crate::store::fault::{Sql, corrupt, io, missing};
use crate::store::{Store, StoreError, StoreResult, migrate, private_dir};
use chrono::{DateTime, Utc};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const WHAT: &str = "memory archive";

/// A file of events that is listed and not here as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedFile {
    /// Its first event.
    pub first: i64,
    /// Where it belongs.
    pub path: PathBuf,
    /// Where it lies in a copy of the home.
    pub in_copy: PathBuf,
}

impl Store {
    /// Files of events that left an agent's log and are not here as they were written.
    ///
    /// # Errors
    /// The database's.
    pub async fn memory_files_wanted(&self, agent: &AgentName) -> StoreResult<Vec<WantedFile>> {
        let (dir, name) = (self.inner.memory_root.join(agent.as_str()), agent.to_string());
        let wanted = move |c: &Connection| {
            let lost = compact::listed(c)?.into_iter().filter(|f| !here(&dir, f));
            let place = |f: Listed| {
                let path = archive::file(&dir, f.first);
                let in_copy = archive::file(&Path::new("memory").join(&name), f.first);
                WantedFile { first: f.first, path, in_copy }
            };
            Ok(lost.map(place).collect())
        };
        self.memory_db(agent).await?.read(wanted).await
    }

    /// Puts a listed file where it belongs when it is the one that was written; false when it is another.
    ///
    /// # Errors
    /// `Missing` when none is listed under that number; the file system's, and the database's.
    pub async fn memory_file_put(&self, agent: &AgentName, first: i64, from: &Path) -> StoreResult<bool> {
        let (dir, name, from) = (self.inner.memory_root.join(agent.as_str()), agent.to_string(), from.to_owned());
        let put = move |c: &Connection| {
            let listed = compact::listed(c)?.into_iter().find(|f| f.first == first);
            let listed = listed.ok_or_else(|| missing(WHAT, format!("{first} of {name}")))?;
            if digest(&from)? != listed.sha256 {
                return Ok(false);
            }
            let file = archive::file(&dir, first);
            let aside = file.with_extension("put");
            private_dir(&dir.join(archive::DIR))?;
            let told = |e: std::io::Error| io(&file, &e);
            std::fs::copy(&from, &aside).map_err(told)?;
            std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o400)).map_err(told)?;
            std::fs::File::open(&aside).and_then(|f| f.sync_all()).map_err(told)?;
            std::fs::rename(&aside, &file).map_err(told)?;
            migrate::sync_dir(&file)?;
            Ok(true)
        };
        self.memory_db(agent).await?.write(put).await
    }
}

fn here(memory: &Path, listed: &Listed) -> bool {
    digest(&archive::file(memory, listed.first)).is_ok_and(|sha256| sha256 == listed.sha256)
}

/// What the files of an agent say of its context, and up to which event they were read.
pub(super) struct Archived {
    last: i64,
    steps: Vec<RawEvent>,
}

/// Reads the files and checks them, outside of any write: they may be many, and nobody else writes meanwhile in one.
pub(super) fn read(c: &Connection, memory: &Path) -> Sql<Archived> {
    let last = compact::start(c)?.last;
    let files = compact::listed(c)?;
    let lost: Vec<String> =
        files.iter().filter(|f| !here(memory, f)).map(|f| archive::file(memory, f.first).display().to_string()).collect();
    if !lost.is_empty() {
        return Err(StoreError::Absent { what: WHAT, files: lost.join(", ") }.into());
    }
    Ok(Archived { last, steps: steps(&files, memory)? })
}

/// Makes the context what the events that left had made of it by a moment; `None` when more of them have left since the files were read.
pub(super) fn restore(
    c: &Connection,
    archived: &Archived,
    name: &str,
    at: DateTime<Utc>,
    by: String,
    now: DateTime<Utc>,
) -> Sql<Option<MemoryRestored>> {
    if compact::start(c)?.last != archived.last {
        return Ok(None);
    }
    let steps = &archived.steps;
    let at_text = time(at);
    let Some(as_of) = steps.iter().filter(|s| s.ts <= at_text).map(|s| s.seq).max() else {
        return Err(missing("memory", format!("of {name} at {at_text}: it begins later")).into());
    };
    let then = context(steps, as_of)?;
    let is = current(c)?;
    let said = |e: &RawEvent| (e.value.clone(), e.source.clone());
    let keys: BTreeSet<&String> = is.keys().chain(then.keys()).collect();
    let changed: Vec<String> = keys.into_iter().filter(|k| is.get(*k).cloned() != then.get(*k).map(|e| said(e))).cloned().collect();
    for key in &changed {
        let event = match then.get(key) {
            Some(e) => NewEvent::set(key, &parse_json("memory entry", &e.value)?, &e.source, now)?,
            None => NewEvent::set(key, &Value::Null, &by, now)?,
        };
        events::append(c, &event)?;
    }
    // What the new events have made is what it stands for: nothing that left is needed for it.
    let last: Option<i64> = c.query_row("SELECT max(seq) FROM memory_event WHERE op IN ('set', 'remove', 'restore')", [], |r| r.get(0))?;
    let stands = last.unwrap_or(compact::start(c)?.last);
    let seq = events::append(c, &NewEvent::restore(json!({"as_of": stands, "at": at_text, "of": as_of}), by, now))?;
    Ok(Some(MemoryRestored { seq, as_of, keys: then.len(), changed }))
}

/// The events of all files that make a context, oldest first; every event must follow the one before.
fn steps(files: &[Listed], memory: &Path) -> Sql<Vec<RawEvent>> {
    let (mut last, mut head, mut found): (i64, Hash, _) = (0, GENESIS, vec![]);
    for file in files {
        let path = archive::file(memory, file.first);
        archive::each(&path, |event| {
            let own: Option<Hash> = event.hash.as_slice().try_into().ok();
            if event.seq != last + 1 || event.prev_hash != head || own != Some(event.link(&head)) {
                return Err(corrupt(WHAT, format!("{}: event {} does not fit the chain", path.display(), event.seq)).into());
            }
            (last, head) = (event.seq, event.link(&head));
            if matches!(event.op.as_str(), SET | REMOVE | RESTORE) {
                found.push(event);
            }
            Ok(())
        })?;
        if (last, head) != (file.last, file.head) {
            return Err(corrupt(WHAT, format!("{} does not end with event {} as it is listed", path.display(), file.last)).into());
        }
    }
    Ok(found)
}

/// Key -> event that set it, as the events up to one say.
fn context(steps: &[RawEvent], upto: i64) -> Sql<BTreeMap<String, &RawEvent>> {
    let steps = || steps.iter().filter(|s| s.seq <= upto);
    // What later restores go back to is kept when the walk comes by: each goes back only.
    let wanted: BTreeSet<i64> = steps().filter(|s| s.op == RESTORE).filter_map(|s| target(&s.value)).collect();
    let mut wanted = wanted.into_iter().peekable();
    let mut context: BTreeMap<String, &RawEvent> = BTreeMap::new();
    let mut kept: BTreeMap<i64, BTreeMap<String, &RawEvent>> = BTreeMap::new();
    for step in steps() {
        while let Some(passed) = wanted.next_if(|w| *w < step.seq) {
            kept.insert(passed, context.clone());
        }
        match step.op.as_str() {
            SET => drop(context.insert(step.key.clone(), step)),
            REMOVE => drop(context.remove(&step.key)),
            _ => {
                let back = target(&step.value).and_then(|seq| kept.get(&seq));
                context = back.cloned().ok_or_else(|| corrupt(WHAT, format!("event {} goes back to nothing", step.seq)))?;
            }
        }
    }
    Ok(context)
}

/// Key -> value and who said it, as they are now.
fn current(c: &Connection) -> Sql<BTreeMap<String, (String, String)>> {
    let mut statement = c.prepare_cached("SELECT key, value, source FROM context")?;
    let found: Vec<(String, (String, String))> = all(&mut statement, [], |r| Ok((r.get(0)?, (r.get(1)?, r.get(2)?))))?;
    Ok(found.into_iter().collect())
}
