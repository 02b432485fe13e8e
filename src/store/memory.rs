//! Agents' memory: one file per agent with an append-only event log; context, history and search are projections of it.
//! Deliberately absent: who may read whose memory (a caller only ever gets its own), and redaction.

pub(super) mod archive;
pub mod before;
pub mod compact;
mod events;
mod history;
mod restore;
pub(super) mod search;
mod transfer;
mod verify;

pub use restore::MemoryRestored;

use super::appended::Part;
use super::db::{Database, used_bytes};
use super::{Store, StoreError, StoreResult, fault, migrate};
use crate::model::ids::AgentName;
use chrono::{DateTime, Utc};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest value, in bytes of JSON: memory is for notes; files belong elsewhere.
pub const MAX_VALUE: usize = 64 * 1024;
/// Longest key, in bytes.
pub const MAX_KEY: usize = 512;
/// Pause before histories are projected: longer than a burst of calls takes between two of its calls, shorter than a model thinks.
const PROJECT_AFTER: Duration = Duration::from_millis(200);
/// Keys returned when none is asked for.
const MOST_KEYS: usize = 200;

/// Refuses where the notes fill more than their half of a memory: they never leave it.
fn notes_fit(c: &Connection, most: u64) -> fault::Sql<()> {
    // The sum reads every key: asked only when the file is so large that they could.
    if used_bytes(c)? <= most / 2 {
        return Ok(());
    }
    let size = events::context_bytes(c)?;
    if size <= most / 2 {
        return Ok(());
    }
    let [size, max] = [size, most / 2].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Err(StoreError::TooLarge { what: "memory of notes (remove keys that are of no more use, with null)", size, max }.into())
}

/// One entry of an agent's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct MemoryEntry {
    /// Order in the agent's event log.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// `context`, `history`, or `incident`.
    pub kind: String,
    /// Key.
    pub key: String,
    /// Value, JSON.
    pub value: Value,
    /// Where it came from: the agent itself, `audit:<seq>`, or `import` and of whom.
    pub source: String,
}

impl Store {
    /// Current value of a key, or all keys (bounded to 200, newest first) with `None`.
    pub async fn memory_read(&self, agent: &AgentName, key: Option<&str>) -> StoreResult<Vec<MemoryEntry>> {
        let key = key.map(str::to_owned);
        let read = move |c: &Connection| match &key {
            Some(key) => events::context_key(c, key),
            None => events::context_newest(c, MOST_KEYS),
        };
        self.memory_db(agent).await?.read(read).await
    }

    /// Appends; durable on return. A `Null` value removes the key from the context.
    ///
    /// # Errors
    /// `TooLarge` beyond `MAX_KEY` or `MAX_VALUE`, or the database's.
    pub async fn memory_write(&self, agent: &AgentName, key: &str, value: &Value, now: DateTime<Utc>) -> StoreResult<i64> {
        self.memory_write_within(agent, key, value, u64::MAX, now).await
    }

    /// As [`Store::memory_write`], in a memory that may have so many bytes: notes, which never leave the database, may fill half of it.
    ///
    /// # Errors
    /// As there; `TooLarge` also when the notes fill their half.
    pub async fn memory_write_within(
        &self,
        agent: &AgentName,
        key: &str,
        value: &Value,
        most: u64,
        now: DateTime<Utc>,
    ) -> StoreResult<i64> {
        self.memory_write_as(agent, agent.as_str(), key, value, most, now).await
    }

    /// As [`Store::memory_write_within`], with whose words they are.
    ///
    /// # Errors
    /// The same.
    pub async fn memory_write_as(
        &self,
        agent: &AgentName,
        source: &str,
        key: &str,
        value: &Value,
        most: u64,
        now: DateTime<Utc>,
    ) -> StoreResult<i64> {
        let event = events::NewEvent::set(key, value, source, now)?;
        let write = move |c: &Connection| {
            if !event.removes() {
                notes_fit(c, most)?;
            }
            events::append(c, &event)
        };
        self.remember(agent, Part::Context, write).await
    }

    /// Full-text search over context and history, best first. Any text is a valid query: its words are looked for in any form, all of them, else by their
    /// beginnings, else any of them. History that left the database follows, newest first, where it holds the beginnings of all words.
    pub async fn memory_search(&self, agent: &AgentName, query: &str, limit: usize) -> StoreResult<Vec<MemoryEntry>> {
        if self.inner.projection_due.load(Ordering::Acquire)
            && let Err(e) = self.project_history().await
        {
            tracing::warn!(error = %e, "history was not projected before a search; the next call catches up");
        }
        let (queries, text) = (search::queries(query, true), query.to_owned());
        let memory = self.inner.memory_root.join(agent.as_str());
        let read = move |c: &Connection| {
            let mut found = search::search(c, &queries, limit)?;
            let room = limit.saturating_sub(found.len());
            found.extend(search::archived(c, &memory, &text, room)?);
            Ok(found)
        };
        self.memory_db(agent).await?.read(read).await
    }

    /// Newest history entries, newest first.
    pub async fn memory_history(&self, agent: &AgentName, limit: usize) -> StoreResult<Vec<MemoryEntry>> {
        self.memory_history_page(agent, None, None, limit).await
    }

    /// What an agent did, newest first: only under a key, only before an entry.
    ///
    /// # Errors
    /// The database's.
    pub async fn memory_history_page(
        &self,
        agent: &AgentName,
        key: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<MemoryEntry>> {
        let key = key.map(str::to_owned);
        self.memory_db(agent).await?.read(move |c| events::history_newest(c, key.as_deref(), before, limit)).await
    }

    /// Has [`Store::project_history`] run in a moment, once for all calls that end until then: it has the disk to itself instead of
    /// competing with the next call's audit row. What an end of the process prevents is caught up on at the next start.
    pub fn project_history_soon(&self) {
        if self.inner.projection_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PROJECT_AFTER).await;
            store.inner.projection_due.store(false, Ordering::Release);
            match store.project_history().await {
                Ok(()) | Err(StoreError::Closed) => {}
                Err(e) => tracing::warn!(error = %e, "history was not projected; the next call catches up"),
            }
        });
    }

    /// Projects audit rows not yet seen into the agents' histories (each memory.db keeps the last seq it saw). Called after replies and on start.
    ///
    /// # Errors
    /// The first failure; the other agents' histories are written nevertheless, and the failed one is tried again next time.
    pub async fn project_history(&self) -> StoreResult<()> {
        if self.is_full() {
            // What is left of the disk is kept for the log itself; the history is made of it later.
            return Ok(());
        }
        history::project(self).await
    }

    /// Checks an agent's event chain, and its context and history against it; problems in words, empty = intact.
    pub async fn memory_verify(&self, agent: &AgentName) -> StoreResult<Vec<String>> {
        let dir = self.inner.memory_root.join(agent.as_str());
        self.memory_db(agent).await?.read(move |c| verify::verify(c, &dir)).await
    }

    /// The agent's database, opened (and made) when first used.
    pub(super) async fn memory_db(&self, agent: &AgentName) -> StoreResult<Arc<Database>> {
        let mut memories = self.inner.memories.lock().await;
        if memories.closed {
            return Err(StoreError::Closed);
        }
        if let Some(db) = memories.open.get(agent) {
            return Ok(Arc::clone(db));
        }
        let dir = self.inner.memory_root.join(agent.as_str());
        let opening = tokio::task::spawn_blocking(move || {
            // Only made private when made here: a mounted volume belongs to whoever mounted it; the file in it is private anyhow.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| fault::io(&dir, &e))?;
            Database::open(&dir.join("memory.db"), &migrate::MEMORY, None)
        });
        let db = opening.await.map_err(|e| fault::corrupt("memory", format!("opening it ended early: {e}")))??;
        memories.open.insert(agent.clone(), Arc::clone(&db));
        Ok(db)
    }
}

#[cfg(test)]
mod compact_tests;
#[cfg(test)]
mod tests;
