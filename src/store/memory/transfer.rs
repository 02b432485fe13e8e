//! Export and import: `context.json` (key -> value) and `history.json` (entries, oldest first). The database stays the truth.

use super::events::{self, NewEvent};
use super::{MemoryEntry, archive, compact};
use crate::model::ids::AgentName;
use crate::store::appended::Part;
use crate::store::codec::{canonical, parse_json, parse_time};
use crate::store::fault::{Sql, corrupt, io};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Source of entries that came from a file.
const SOURCE: &str = "import";

impl Store {
    /// Writes `context.json` and `history.json` into a directory (created when it is missing), each replaced as a whole.
    ///
    /// # Errors
    /// `Io`, or the database's.
    pub async fn memory_export(&self, agent: &AgentName, dir: &Path) -> StoreResult<()> {
        let memory = self.inner.memory_root.join(agent.as_str());
        let read = move |c: &rusqlite::Connection| {
            let mut history = archived_history(c, &memory)?;
            history.extend(events::history_all(c)?);
            Ok((events::context_all(c)?, history))
        };
        let (context, history) = self.memory_db(agent).await?.read(read).await?;
        let context: Map<String, Value> = context.into_iter().map(|e| (e.key, e.value)).collect();
        let context = serde_json::to_vec_pretty(&context).map_err(|e| corrupt("context", e))?;
        let history = serde_json::to_vec_pretty(&history).map_err(|e| corrupt("history", e))?;
        let dir = dir.to_path_buf();
        let task = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&dir).map_err(|e| io(&dir, &e))?;
            replace(&dir.join("context.json"), &context)?;
            replace(&dir.join("history.json"), &history)
        });
        task.await.map_err(|e| corrupt("memory", format!("the export ended early: {e}")))?
    }

    /// Sets every key of a `context.json` (a JSON object), all or none, or adds the entries of a `history.json` (a JSON array) that are not there yet, each
    /// with the moment it tells of; returns how many. Entries say that they were imported, and of whom where that is known: to their reader they are
    /// another's words. Notes may fill half of the `most` bytes that the memory may have, as when they are written one by one.
    ///
    /// # Errors
    /// `Corrupt` when the text is neither, `TooLarge`, or the database's.
    pub async fn memory_import(
        &self,
        agent: &AgentName,
        json: &str,
        of: Option<&AgentName>,
        most: u64,
        now: DateTime<Utc>,
    ) -> StoreResult<usize> {
        let source = of.map_or_else(|| SOURCE.to_owned(), |of| format!("{SOURCE}:{of}"));
        if json.trim_start().starts_with('[') {
            let new = told(json, &source, now)?;
            return self.remember(agent, Part::History, move |c| add_history(c, new)).await;
        }
        let context: Map<String, Value> =
            serde_json::from_str(json).map_err(|e| corrupt("context.json", format!("{e}; it must be one JSON object of key: value")))?;
        let new: Vec<NewEvent> = context.iter().map(|(k, v)| NewEvent::set(k, v, &source, now)).collect::<StoreResult<_>>()?;
        let write = move |c: &rusqlite::Connection| {
            for event in &new {
                events::append(c, event)?;
            }
            super::notes_fit(c, most)?;
            Ok(new.len())
        };
        self.remember(agent, Part::Context, write).await
    }
}

/// The entries of a `history.json`, oldest first.
fn told(json: &str, source: &str, now: DateTime<Utc>) -> StoreResult<Vec<NewEvent>> {
    let wrong = |e: String| corrupt("history.json", format!("{e}; it must be an array of entries as `memory export` writes them"));
    let entries: Vec<MemoryEntry> = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
    let mut new = vec![];
    for e in entries {
        if e.kind != "history" {
            return Err(wrong(format!("entry {} is of kind {:?}", e.seq, crate::redact::line(&e.kind, 40))));
        }
        // What is said to be later than now would be the newest for ever.
        new.push(NewEvent::past(&e.key, &e.value, source, e.at.min(now))?);
    }
    Ok(new)
}

/// Adds what is not there yet: a file that is imported again adds nothing.
fn add_history(c: &rusqlite::Connection, new: Vec<NewEvent>) -> Sql<usize> {
    let mut there: BTreeSet<_> = events::history_all(c)?.into_iter().map(|e| (e.at, e.key, canonical(&e.value))).collect();
    let mut added = 0;
    for event in new {
        if there.insert(event.says()) {
            events::append(c, &event)?;
            added += 1;
        }
    }
    Ok(added)
}

/// What happened so long ago that it is no longer in the database, oldest first.
fn archived_history(c: &rusqlite::Connection, memory: &Path) -> Sql<Vec<MemoryEntry>> {
    let mut history = vec![];
    for listed in compact::listed(c)? {
        archive::each(&archive::file(memory, listed.first), |e| {
            if e.op == events::HISTORY {
                history.push(MemoryEntry {
                    seq: e.seq,
                    at: parse_time("memory entry", &e.ts)?,
                    kind: "history".into(),
                    key: e.key,
                    value: parse_json("memory entry", &e.value)?,
                    source: e.source,
                });
            }
            Ok(())
        })?;
    }
    Ok(history)
}

/// Written aside and renamed: a reader sees the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> StoreResult<()> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(|e| io(&new, &e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| io(&new, &e))?;
    std::fs::rename(&new, path).map_err(|e| io(path, &e))
}
