//! Makes history out of the audit log: one event per finished call of an agent, without the agent's doing. The position is kept in
//! each memory file, moved in the transaction that appends the events, so that a crash neither loses nor repeats one.

use super::events::{self, NewEvent};
use crate::model::ids::AgentName;
use crate::store::appended::{Part, looks};
use crate::store::audit::AuditRow;
use crate::store::audit::segments::Log;
use crate::store::codec::canonical;
use crate::store::fault::Sql;
use crate::store::{Store, StoreResult};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

/// Rows taken over in one transaction.
const CHUNK: usize = 500;
/// Longest detail kept in a history entry, in bytes of JSON; the audit row has all of it.
const MOST_DETAIL: usize = 2048;

/// Brings every agent's history up to the audit log.
pub(super) async fn project(store: &Store) -> StoreResult<()> {
    // One at a time: two would read the same rows.
    let mut projection = store.inner.projection.lock().await;
    let after = projection.seen;
    let dir = store.segments_dir();
    let (head, agents) = store.inner.audit.read(move |c| Log::new(c, &dir)?.agents_after(after)).await?;
    // Operators and other principals without a memory of their own are not agents' names.
    let named = agents.into_iter().filter_map(|a| AgentName::new(a).ok());
    projection.behind.extend(named);
    projection.seen = head;
    let mut failed = None;
    for agent in projection.behind.clone() {
        match catch_up(store, &agent).await {
            Ok(()) => {
                projection.behind.remove(&agent);
            }
            Err(e) => {
                tracing::error!(agent = %agent, error = %e, "the agent's history is behind the audit log");
                failed.get_or_insert(e);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn catch_up(store: &Store, agent: &AgentName) -> StoreResult<()> {
    let db = store.memory_db(agent).await?;
    loop {
        let instance = store.instance().to_owned();
        let seen = db.read(move |c| position(c, &instance)).await?;
        let name = agent.to_string();
        let dir = store.segments_dir();
        let found = store.inner.audit.read(move |c| Log::new(c, &dir)?.finished_of(&name, seen, CHUNK)).await?;
        let more = found.len() == CHUNK;
        if found.is_empty() {
            return Ok(());
        }
        let instance = store.instance().to_owned();
        // Histories that grow by looks alone are no news.
        match found.iter().all(|row| looks(&row.tool)) {
            true => db.write(move |c| take_over(c, &instance, &found)).await?,
            false => store.remember(agent, Part::History, move |c| take_over(c, &instance, &found)).await?,
        }
        if !more {
            return Ok(());
        }
    }
}

fn take_over(c: &Connection, instance: &str, found: &[AuditRow]) -> Sql<()> {
    let mut seen = position(c, instance)?;
    for row in found.iter().filter(|r| r.seq > seen) {
        events::append(c, &NewEvent::history(&row.tool, entry(row), format!("audit:{}", row.seq), row.at))?;
    }
    if let Some(last) = found.last() {
        seen = seen.max(last.seq);
    }
    set_position(c, instance, seen)
}

/// What a history entry says of a call.
fn entry(row: &AuditRow) -> Value {
    let detail = &row.detail["detail"];
    let text = canonical(detail);
    let short = if text.len() <= MOST_DETAIL { detail.clone() } else { json!({"truncated": cut(&text, MOST_DETAIL)}) };
    json!({
        "tool": row.tool,
        "stack": row.stack,
        "environment": row.environment,
        "verdict": row.verdict,
        "outcome": row.outcome,
        "code": row.detail["code"],
        "detail": short,
    })
}

/// At most `max` bytes, whole characters.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn position(c: &Connection, instance: &str) -> Sql<i64> {
    let seq = c.prepare_cached("SELECT seq FROM projected WHERE instance = ?1")?.query_row([instance], |r| r.get(0)).optional()?;
    Ok(seq.unwrap_or(0))
}

fn set_position(c: &Connection, instance: &str, seq: i64) -> Sql<()> {
    c.prepare_cached("INSERT OR REPLACE INTO projected (instance, seq) VALUES (?1, ?2)")?.execute(params![instance, seq])?;
    Ok(())
}
