//! The audit log: append-only, hash-chained rows, a rate count in the same transaction, signed checkpoints beside it, its closed part in sealed
//! segments.
//! Deliberately absent: redaction (what comes in is redacted already) and deciding what is limited.

mod checkpoint;
pub mod export;
mod limits;
pub mod rotate;
pub(super) mod rows;
pub(super) mod segments;
mod verify;

use super::appended::Row;
use super::db::Undo;
use super::fault::{Sql, corrupt};
use super::{Store, StoreError, StoreResult};
use crate::gate::RateLimit;
use crate::model::ids::*;
use crate::model::verdict::{Finding, Verdict};
use chrono::{DateTime, Utc};
use rows::NewRow;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// A row to be written when a call begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    /// Call.
    pub call: CallId,
    /// Agent.
    pub agent: String,
    /// Who gave it this work, outermost first.
    #[serde(default)]
    pub delegated_by: Vec<String>,
    /// Door: `mcp-stdio`, `mcp-http`, `cli`, `loop`.
    pub door: String,
    /// Tool.
    pub tool: String,
    /// Stack.
    pub stack: Option<String>,
    /// Environment.
    pub environment: Option<String>,
    /// Arguments, already redacted.
    pub arguments: Value,
    /// It is recorded even when the disk is full, out of the reserve kept for it.
    #[serde(default)]
    pub essential: bool,
    /// Verdict of the call gate.
    pub verdict: Verdict,
    /// Findings behind it.
    pub findings: Vec<Finding>,
    /// When.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
impl Intent {
    /// A deploy of stack `shop` from the command line, for tests to change what they are about.
    pub(crate) fn sample(call: &str, agent: &str, at: DateTime<Utc>) -> Self {
        Self {
            call: CallId::new(call).expect("a valid id"),
            agent: agent.into(),
            delegated_by: vec![],
            door: "cli".into(),
            tool: "deploy".into(),
            stack: Some("shop".into()),
            environment: None,
            arguments: Value::Object(Default::default()),
            essential: false,
            verdict: Verdict::Allow,
            findings: vec![],
            at,
        }
    }
}

/// A call that has begun and not ended: since when, its tool, its stack.
pub type AtWork = (DateTime<Utc>, String, Option<String>);

/// What came of recording an intent.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// Written and durable.
    Ok {
        /// Its number.
        seq: i64,
    },
    /// A limit was reached: a denial was written instead.
    Limited {
        /// Its number.
        seq: i64,
        /// Limit that stood in the way.
        limit: RateLimit,
        /// Seconds until a call fits again.
        retry_after_s: u64,
    },
}

/// How a call ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Call.
    pub call: CallId,
    /// `ok`, `error`, `denied`, `pending_approval`, `unknown`.
    pub outcome: String,
    /// Error code, when there is one.
    pub code: Option<String>,
    /// Strictest verdict at the end.
    pub verdict: Verdict,
    /// Findings of the plan gate.
    pub findings: Vec<Finding>,
    /// Operation, digest, approval, release, redacted summary.
    pub detail: Value,
    /// How long, ms.
    pub duration_ms: u64,
    /// When.
    pub at: DateTime<Utc>,
}

/// One row as read back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct AuditRow {
    /// Number, from 1 without gaps.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// `intent`, `outcome`, `read`, `event`.
    pub kind: String,
    /// Call.
    pub call: String,
    /// Agent.
    pub agent: String,
    /// Door.
    pub door: String,
    /// Tool.
    pub tool: String,
    /// Stack.
    pub stack: Option<String>,
    /// Environment.
    pub environment: Option<String>,
    /// Verdict.
    pub verdict: Verdict,
    /// Outcome.
    pub outcome: Option<String>,
    /// The rest: arguments, findings, detail.
    pub detail: Value,
    /// Hash of the row, hexadecimal.
    pub hash: String,
}

/// Filter of a query.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// Agent.
    pub agent: Option<String>,
    /// Tool.
    pub tool: Option<String>,
    /// Stack.
    pub stack: Option<String>,
    /// Verdict.
    pub verdict: Option<Verdict>,
    /// Outcome.
    pub outcome: Option<String>,
    /// Not before.
    pub since: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
    /// Rows with a smaller number than this (newest first paging).
    pub before_seq: Option<i64>,
    /// Most rows.
    pub limit: usize,
}

/// Result of `audit verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Rows checked.
    pub rows: i64,
    /// Hash of the last row.
    pub head: String,
    /// Checkpoints checked.
    pub checkpoints: usize,
    /// Sealed segments checked.
    #[serde(default)]
    pub segments: usize,
    /// What is wrong, in words with row numbers; empty = intact.
    pub problems: Vec<String>,
}

impl Store {
    /// Writes a mutation's intent and counts it against `limits` in one transaction, durable on return. An intent whose verdict is `Deny` is not counted.
    pub async fn audit_intent(&self, intent: &Intent, limits: &[RateLimit]) -> StoreResult<Recorded> {
        let row = NewRow::intent(intent);
        self.record(row, intent.clone(), limits.to_vec()).await
    }

    /// Writes a read's (or a denied call's) single row, counted like an intent unless it was denied, durable on return.
    pub async fn audit_read(&self, intent: &Intent, outcome: &Outcome, limits: &[RateLimit]) -> StoreResult<Recorded> {
        let row = NewRow::read(intent, outcome);
        self.record(row, intent.clone(), limits.to_vec()).await
    }

    /// Whether a call would go beyond its limits: then the row of its denial is written. A call that fits is not counted and leaves nothing.
    ///
    /// # Errors
    /// The database's.
    pub async fn audit_limited(&self, intent: &Intent, limits: &[RateLimit]) -> StoreResult<Option<Recorded>> {
        let (looked, at) = (limits.to_vec(), intent.at);
        let Some((limit, retry_after_s)) = self.inner.audit.read(move |c| limits::exceeded(c, &looked, at)).await? else { return Ok(None) };
        let row = NewRow::limited(intent, &limit, retry_after_s);
        let seq = self.append(Undo::Itself, move |c| appended(c, &row)).await?;
        Ok(Some(Recorded::Limited { seq, limit, retry_after_s }))
    }

    /// Counts a call whose intent was written before, in one transaction with the look whether it fits; the limit that stands in the way when it does not.
    ///
    /// # Errors
    /// The database's.
    pub async fn audit_count(&self, limits: &[RateLimit], at: DateTime<Utc>) -> StoreResult<Option<(RateLimit, u64)>> {
        let limits = limits.to_vec();
        let write = move |c: &Connection| match limits::exceeded(c, &limits, at)? {
            Some(exceeded) => Ok(Some(exceeded)),
            None => limits::count(c, &limits, at).map(|()| None),
        };
        self.inner.audit.write(write).await
    }

    async fn record(&self, row: NewRow, intent: Intent, limits: Vec<RateLimit>) -> StoreResult<Recorded> {
        if !intent.essential {
            return self.record_once((row, intent, limits)).await;
        }
        let once = (row, intent, limits);
        match self.record_once(once.clone()).await {
            // The reserve was given up meanwhile.
            Err(StoreError::Full { .. }) => self.record_once(once).await,
            result => result,
        }
    }

    async fn record_once(&self, (row, intent, limits): (NewRow, Intent, Vec<RateLimit>)) -> StoreResult<Recorded> {
        let reserve = Arc::clone(&self.inner.reserve);
        // Then all it does is append a row.
        let only_row = limits.is_empty() && row.kind != "intent";
        let write = move |c: &Connection| {
            if !intent.essential && reserve.is_given_up() {
                return Err(StoreError::Full { detail: "what is left of it is kept for calls that help".into() }.into());
            }
            if row.verdict != Verdict::Deny && row.outcome.as_deref() != Some("denied") {
                if let Some((limit, retry_after_s)) = limits::exceeded(c, &limits, intent.at)? {
                    let (seq, told) = appended(c, &NewRow::limited(&intent, &limit, retry_after_s))?;
                    return Ok((Recorded::Limited { seq, limit, retry_after_s }, told));
                }
                limits::count(c, &limits, intent.at)?;
            }
            let (seq, told) = appended(c, &row)?;
            if row.kind == "intent" {
                rows::open_call(c, &row.call, seq)?;
            }
            Ok((Recorded::Ok { seq }, told))
        };
        self.append(if only_row { Undo::Itself } else { Undo::Savepoint }, write).await
    }

    /// Writes a mutation's outcome, durable on return. Agent, door, tool, stack and environment are those of its intent. The intent no longer
    /// counts under `forgiven`, limits it was counted under.
    ///
    /// # Errors
    /// `Missing` when the call has no intent, or the database's.
    pub async fn audit_outcome(&self, outcome: &Outcome, forgiven: &[RateLimit]) -> StoreResult<i64> {
        // Its intent was taken, so its end is told, out of the reserve if need be.
        match self.outcome_once(outcome.clone(), forgiven.to_vec()).await {
            Err(StoreError::Full { .. }) => self.outcome_once(outcome.clone(), forgiven.to_vec()).await,
            result => result,
        }
    }

    async fn outcome_once(&self, outcome: Outcome, forgiven: Vec<RateLimit>) -> StoreResult<i64> {
        let write = move |c: &Connection| {
            let call = outcome.call.as_str();
            let intent = rows::intent_of(c, call)?.ok_or_else(|| super::fault::missing("audit intent of call", call))?;
            let written = appended(c, &NewRow::outcome(&intent, &outcome))?;
            rows::close_call(c, call)?;
            limits::forgive(c, &forgiven, intent.at)?;
            Ok(written)
        };
        self.append(Undo::Savepoint, write).await
    }

    /// Writes an event that is not a call (policy reloaded, loop gave up, approval given).
    pub async fn audit_event(&self, agent: &str, what: &str, stack: Option<&str>, detail: &Value, now: DateTime<Utc>) -> StoreResult<i64> {
        let row = NewRow::event(agent, what, stack, detail, now);
        let again = row.clone();
        match self.append(Undo::Itself, move |c| appended(c, &row)).await {
            Err(StoreError::Full { .. }) => self.append(Undo::Itself, move |c| appended(c, &again)).await,
            result => result,
        }
    }

    /// Directory of the sealed segments.
    pub(super) fn segments_dir(&self) -> std::path::PathBuf {
        self.home.join(segments::DIR)
    }

    /// Rows, newest first.
    pub async fn audit_rows(&self, query: &AuditQuery) -> StoreResult<Vec<AuditRow>> {
        let query = query.clone();
        let dir = self.segments_dir();
        self.inner.audit.read(move |c| segments::Log::new(c, &dir)?.select(&query)).await
    }

    /// The rows of a call that has an intent: that, and its outcome when there is one. Nothing for a read, or a call that never began.
    pub async fn audit_of_call(&self, call: &CallId) -> StoreResult<Vec<AuditRow>> {
        let (call, dir) = (call.clone(), self.segments_dir());
        let since = rows::not_before(&call);
        self.inner.audit.read(move |c| segments::Log::new(c, &dir)?.of_call(call.as_str(), since)).await
    }

    /// Changes an agent is at: since when, tool, stack; oldest first. Reads are not among them, nor operations that go on after their call.
    pub async fn calls_at_work(&self, agent: &str) -> StoreResult<Vec<AtWork>> {
        let agent = agent.to_owned();
        self.inner.audit.read(move |c| rows::calls_at_work(c, &agent)).await
    }

    /// Closes intents without outcome as `unknown`; returns how many. `live` = calls still running.
    pub async fn audit_close_orphans(&self, live: &[CallId], now: DateTime<Utc>) -> StoreResult<usize> {
        let live: std::collections::BTreeSet<String> = live.iter().map(|c| c.as_str().to_owned()).collect();
        let write = move |c: &Connection| {
            let (mut closed, mut told) = (0, vec![]);
            for call in rows::open_calls(c)?.into_iter().filter(|call| !live.contains(call)) {
                let intent = rows::intent_of(c, &call)?
                    .ok_or_else(|| corrupt("audit log", format!("the intent of {call} is gone: run audit verify")))?;
                told.extend(appended(c, &NewRow::orphan(&intent, now))?.1);
                rows::close_call(c, &call)?;
                closed += 1;
            }
            Ok((closed, told))
        };
        self.append(Undo::Savepoint, write).await
    }

    /// Checks chain, numbers, triggers and checkpoints.
    pub async fn audit_verify(&self) -> StoreResult<AuditReport> {
        self.audit_verify_against(String::new()).await
    }

    /// As [`Store::audit_verify`], and against checkpoints that were kept elsewhere, in the text they were printed in: whoever can write the home can cut the
    /// log and all that is kept beside it, but not these.
    pub async fn audit_verify_against(&self, kept: String) -> StoreResult<AuditReport> {
        // No checkpoint is written meanwhile: it could state rows that the snapshot read here does not have yet.
        let _one = self.inner.checkpoints.lock().await;
        let noted = self.value(checkpoint::NOTED).await?;
        let (inner, file, dir) = (self.inner.clone(), self.home.join(checkpoint::FILE), self.segments_dir());
        self.inner.audit.read(move |c| verify::verify(&segments::Log::new(c, &dir)?, c, &dir, &file, &inner, noted, &kept)).await
    }

    /// Writes a signed checkpoint of the head to `checkpoints` under the home; nothing when the head has one already.
    ///
    /// # Errors
    /// `Corrupt` when the log does not continue what the last checkpoint says: a damaged log is never signed.
    pub async fn audit_checkpoint(&self, now: DateTime<Utc>) -> StoreResult<()> {
        let _one = self.inner.checkpoints.lock().await;
        let (inner, file, dir) = (self.inner.clone(), self.home.join(checkpoint::FILE), self.segments_dir());
        let written = self.inner.audit.read(move |c| checkpoint::write(&segments::Log::new(c, &dir)?, c, &file, &inner, now)).await?;
        match written {
            // Noted in the other database too, so that a removed file is missed.
            Some(head) => {
                let before = self.value(checkpoint::NOTED).await?;
                let mut sizes = before.map(|n| checkpoint::noted_sizes(&n)).unwrap_or_default();
                sizes.push(head.size);
                let kept = &sizes[sizes.len().saturating_sub(checkpoint::MOST_NOTED)..];
                self.set_value(checkpoint::NOTED, &json!({"size": head.size, "hash": super::chain::hex(&head.hash), "sizes": kept})).await
            }
            None => Ok(()),
        }
    }

    /// The newest checkpoint with the head as it is now, as text to be kept elsewhere, and the key that signs: a verifier key as signed notes have it.
    ///
    /// # Errors
    /// As [`Store::audit_checkpoint`].
    pub async fn audit_signed_head(&self, now: DateTime<Utc>) -> StoreResult<(String, String)> {
        self.audit_checkpoint(now).await?;
        let text = checkpoint::read(&self.home.join(checkpoint::FILE))?;
        let newest = checkpoint::newest(&text).ok_or_else(|| corrupt("checkpoint", "the log has no row yet".to_owned()))?;
        Ok((newest.to_owned(), checkpoint::verifier_key(&self.inner)))
    }
}

/// Appends a row; its number, and what is told of it.
fn appended(c: &Connection, row: &NewRow) -> Sql<(i64, Vec<Row>)> {
    Ok((rows::append(c, row)?, row.told().into_iter().collect()))
}

#[cfg(test)]
mod forging_tests;
#[cfg(test)]
mod segment_tests;
#[cfg(test)]
mod tests;
