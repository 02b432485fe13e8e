//! The rows of steps.

use super::step_place;
use crate::model::ids::OperationId;
use crate::model::operation::{Phase, StepRecord};
use crate::store::codec::{all, int, parse_time, parse_word, time, uint, word};
use crate::store::fault::Sql;
use crate::store::seal::Keys;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};

pub(super) fn last_step(c: &Connection, op: &OperationId) -> Sql<u64> {
    let mut statement = c.prepare_cached("SELECT coalesce(max(seq), 0) FROM step WHERE operation = ?1")?;
    Ok(uint("step", statement.query_row([op.as_str()], |r| r.get(0))?)?)
}

pub(super) fn insert_step(
    c: &Connection,
    op: &OperationId,
    seq: u64,
    phase: Phase,
    key: &str,
    sealed: &[u8],
    now: DateTime<Utc>,
) -> Sql<()> {
    c.prepare_cached("INSERT INTO step (operation, seq, phase, key, sealed_intent, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![op.as_str(), int("step", seq)?, word("step", &phase)?, key, sealed, time(now)])?;
    Ok(())
}

pub(super) fn finish_step(c: &Connection, op: &OperationId, seq: u64, sealed: &[u8], now: DateTime<Utc>) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE step SET sealed_done = ?3, done_at = ?4 WHERE operation = ?1 AND seq = ?2")?;
    Ok(statement.execute(params![op.as_str(), int("step", seq)?, sealed, time(now)])?)
}

pub(super) fn steps(c: &Connection, keys: &Keys, op: &OperationId) -> Sql<Vec<StepRecord>> {
    let mut statement =
        c.prepare_cached("SELECT seq, phase, key, sealed_intent, sealed_done, at, done_at FROM step WHERE operation = ?1 ORDER BY seq")?;
    all(&mut statement, [op.as_str()], |r| {
        let seq = uint("step", r.get(0)?)?;
        let done: Option<Vec<u8>> = r.get(4)?;
        Ok(StepRecord {
            operation: op.clone(),
            seq,
            phase: parse_word("step", &r.get::<_, String>(1)?)?,
            key: r.get(2)?,
            intent: keys.open("step", &step_place(op, seq, "intent"), &r.get::<_, Vec<u8>>(3)?)?,
            done: done.map(|d| keys.open("step", &step_place(op, seq, "done"), &d)).transpose()?,
            at: parse_time("step", &r.get::<_, String>(5)?)?,
            done_at: r.get::<_, Option<String>>(6)?.map(|t| parse_time("step", &t)).transpose()?,
        })
    })
}
