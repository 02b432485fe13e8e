//! The log read from its beginning to its end: pages for an export, a tail and a report, and what was never seen before.

use super::segments::Log;
use super::{AuditRow, rows};
use crate::store::codec::{all, parse_time};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

/// Something an agent did for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// Agent.
    pub agent: String,
    /// Tool.
    pub tool: String,
    /// Stack, when the call named one.
    pub stack: Option<String>,
    /// When.
    pub at: DateTime<Utc>,
}

impl Store {
    /// At most `n` rows after a row, not before `since`, oldest first.
    pub async fn audit_after(&self, seq: i64, since: Option<DateTime<Utc>>, n: usize) -> StoreResult<Vec<AuditRow>> {
        let dir = self.segments_dir();
        self.inner.audit.read(move |c| Log::new(c, &dir)?.after(seq, since, n)).await
    }

    /// Number of the last row; 0 before the first.
    pub async fn audit_head(&self) -> StoreResult<i64> {
        self.inner.audit.read(|c| Ok(rows::head(c)?.0)).await
    }

    /// What agents did first since a moment: a tool, or a tool on a stack, that none of their earlier rows has. Reads the whole log.
    pub async fn audit_firsts(&self, since: DateTime<Utc>) -> StoreResult<Vec<First>> {
        let dir = self.segments_dir();
        self.inner.audit.read(move |c| Log::new(c, &dir)?.firsts(since)).await
    }
}

/// When each agent first called each tool on each stack, in one part of the log.
pub(super) fn earliest(c: &Connection) -> super::super::fault::Sql<Vec<First>> {
    let mut statement =
        c.prepare_cached("SELECT agent, tool, stack, min(at) FROM audit WHERE kind IN ('read', 'intent') GROUP BY agent, tool, stack")?;
    all(&mut statement, [], |r| {
        Ok(First { agent: r.get(0)?, tool: r.get(1)?, stack: r.get(2)?, at: parse_time("audit row", &r.get::<_, String>(3)?)? })
    })
}
