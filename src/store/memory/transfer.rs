//! Export and import: `context.json` (key -> value) and `history.json` (entries, oldest first). The database stays the truth.

use super::events::{self, NewEvent};
use super::{MemoryEntry, archive, compact};
use crate::model::ids::AgentName;
use crate::store::codec::{parse_json, parse_time};
use crate::store::fault::{Sql, corrupt, io};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
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

    /// Sets every key of a `context.json` (a JSON object), all or none; returns how many. Entries say that they were imported, and of whom where that
    /// is known: to their reader they are another's words.
    ///
    /// # Errors
    /// `Corrupt` when the text is not a JSON object, `TooLarge`, or the database's.
    pub async fn memory_import(
        &self,
        agent: &AgentName,
        context_json: &str,
        of: Option<&AgentName>,
        now: DateTime<Utc>,
    ) -> StoreResult<usize> {
        let source = of.map_or_else(|| SOURCE.to_owned(), |of| format!("{SOURCE}:{of}"));
        let context: Map<String, Value> = serde_json::from_str(context_json)
            .map_err(|e| corrupt("context.json", format!("{e}; it must be one JSON object of key: value")))?;
        let new: Vec<NewEvent> = context.iter().map(|(k, v)| NewEvent::set(k, v, &source, now)).collect::<StoreResult<_>>()?;
        let write = move |c: &rusqlite::Connection| {
            for event in &new {
                events::append(c, event)?;
            }
            Ok(new.len())
        };
        self.memory_db(agent).await?.write(write).await
    }
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
