//! stub: agents' memory
use super::{Store, StoreResult};
use crate::model::ids::AgentName;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One entry of an agent's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct MemoryEntry {
    /// Order in the agent's event log.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// `context` or `history`.
    pub kind: String,
    /// Key.
    pub key: String,
    /// Value, JSON.
    pub value: Value,
    /// Where it came from: the agent itself, or `audit:<seq>`.
    pub source: String,
}

impl Store {
    /// Current value of a key, or all keys (bounded to 200, newest first) with `None`.
    pub async fn memory_read(&self, _agent: &AgentName, _key: Option<&str>) -> StoreResult<Vec<MemoryEntry>> {
        todo!()
    }
    /// Appends; durable on return. A `Null` value removes the key from the context.
    pub async fn memory_write(&self, _agent: &AgentName, _key: &str, _value: &Value, _now: DateTime<Utc>) -> StoreResult<i64> {
        todo!()
    }
    /// Full-text search over context and history, best first.
    pub async fn memory_search(&self, _agent: &AgentName, _query: &str, _limit: usize) -> StoreResult<Vec<MemoryEntry>> {
        todo!()
    }
    /// Newest history entries, newest first.
    pub async fn memory_history(&self, _agent: &AgentName, _limit: usize) -> StoreResult<Vec<MemoryEntry>> {
        todo!()
    }
    /// Projects audit rows not yet seen into the agents' histories (each memory.db keeps the last seq it saw). Called after replies and on start.
    pub async fn project_history(&self) -> StoreResult<()> {
        todo!()
    }
    /// Checks an agent's event chain; problems in words, empty = intact.
    pub async fn memory_verify(&self, _agent: &AgentName) -> StoreResult<Vec<String>> {
        todo!()
    }
}
