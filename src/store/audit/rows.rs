//! Rows of the audit log: how each kind is made, hashed, appended and read back.

use super::{AtWork, AuditQuery, AuditRow, Intent, Outcome};
use crate::gate::RateLimit;
use crate::model::ids::CallId;
use crate::model::verdict::{Finding, Verdict};
use crate::store::appended::{Row as Told, looks};
use crate::store::chain::{self, Field, GENESIS, Hash, hex};
use crate::store::codec::{all, canonical, first, limit, parse_json, parse_time, parse_word, time};
use crate::store::fault::{Sql, corrupt};
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Value, json};

const WHAT: &str = "audit row";
const DOMAIN: &str = "dockwarden audit";
/// Columns as `RawRow` reads them.
const COLUMNS: &str = "seq, at, kind, call, agent, door, tool, stack, environment, verdict, outcome, detail, prev_hash, hash";

/// A row to append.
#[derive(Debug, Clone)]
pub(super) struct NewRow {
    /// As it stands in the row.
    pub at: String,
    pub kind: &'static str,
    pub call: String,
    pub agent: String,
    pub door: String,
    pub tool: String,
    pub stack: Option<String>,
    pub environment: Option<String>,
    pub verdict: Verdict,
    pub outcome: Option<String>,
    /// Canonical JSON.
    pub detail: String,
}

impl NewRow {
    /// What is told of it to those who listen; nothing of a look at the records.
    pub(super) fn told(&self) -> Option<Told> {
        (self.kind != "read" || !looks(&self.tool)).then(|| Told {
            agent: self.agent.clone(),
            tool: self.tool.clone(),
            stack: self.stack.clone(),
            verdict: self.verdict,
            outcome: self.outcome.clone(),
        })
    }

    fn of_call(kind: &'static str, i: &Intent, mut detail: Value) -> Self {
        if !i.delegated_by.is_empty() {
            detail["delegated_by"] = json!(i.delegated_by);
        }
        Self {
            at: time(i.at),
            kind,
            call: i.call.to_string(),
            agent: i.agent.clone(),
            door: i.door.clone(),
            tool: i.tool.clone(),
            stack: i.stack.clone(),
            environment: i.environment.clone(),
            verdict: i.verdict,
            outcome: None,
            detail: canonical(&detail),
        }
    }

    /// A mutation begins.
    pub(super) fn intent(i: &Intent) -> Self {
        Self::of_call("intent", i, json!({"arguments": i.arguments, "findings": i.findings}))
    }

    /// A read, or a call that was denied at once.
    pub(super) fn read(i: &Intent, o: &Outcome) -> Self {
        let findings: Vec<&Finding> = i.findings.iter().chain(&o.findings).collect();
        let detail =
            json!({"arguments": i.arguments, "findings": findings, "code": o.code, "detail": o.detail, "duration_ms": o.duration_ms});
        let verdict = i.verdict.max(o.verdict);
        Self { at: time(o.at), verdict, outcome: Some(o.outcome.clone()), ..Self::of_call("read", i, detail) }
    }

    /// A call that a limit turned into a denial.
    pub(super) fn limited(i: &Intent, limit: &RateLimit, retry_after_s: u64) -> Self {
        let because = format!("at most {} calls in {} s; a call fits again in {retry_after_s} s", limit.max, limit.window_s);
        let finding = Finding { rule: limit.key.clone(), verdict: Verdict::Deny, service: None, path: None, because };
        let findings: Vec<&Finding> = i.findings.iter().chain([&finding]).collect();
        let detail = json!({"arguments": i.arguments, "findings": findings, "code": "rate_limited", "detail": {"retry_after_s": retry_after_s}, "duration_ms": 0});
        Self { verdict: Verdict::Deny, outcome: Some("denied".into()), ..Self::of_call("read", i, detail) }
    }

    fn closing(intent: &AuditRow, at: DateTime<Utc>, detail: &Value) -> Self {
        Self {
            at: time(at),
            kind: "outcome",
            call: intent.call.clone(),
            agent: intent.agent.clone(),
            door: intent.door.clone(),
            tool: intent.tool.clone(),
            stack: intent.stack.clone(),
            environment: intent.environment.clone(),
            verdict: intent.verdict,
            outcome: None,
            detail: canonical(detail),
        }
    }

    /// A mutation's end.
    pub(super) fn outcome(intent: &AuditRow, o: &Outcome) -> Self {
        let detail = json!({"findings": o.findings, "code": o.code, "detail": o.detail, "duration_ms": o.duration_ms});
        Self { verdict: o.verdict, outcome: Some(o.outcome.clone()), ..Self::closing(intent, o.at, &detail) }
    }

    /// A mutation whose end nobody saw.
    pub(super) fn orphan(intent: &AuditRow, at: DateTime<Utc>) -> Self {
        let note = "the supervisor ended before the call did; `operation` tells what became of its effects";
        let detail = json!({"findings": [], "code": null, "detail": {"note": note, "intent": intent.seq}, "duration_ms": null});
        Self { outcome: Some("unknown".into()), ..Self::closing(intent, at, &detail) }
    }

    /// Something that is not a call; `what` stands in the tool's column.
    pub(super) fn event(agent: &str, what: &str, stack: Option<&str>, detail: &Value, at: DateTime<Utc>) -> Self {
        Self {
            at: time(at),
            kind: "event",
            call: String::new(),
            agent: agent.into(),
            door: String::new(),
            tool: what.into(),
            stack: stack.map(Into::into),
            environment: None,
            verdict: Verdict::Allow,
            outcome: None,
            detail: canonical(detail),
        }
    }
}

/// A row as stored, before anything in it is believed.
pub(super) struct RawRow {
    pub seq: i64,
    pub at: String,
    pub kind: String,
    pub call: String,
    pub agent: String,
    pub door: String,
    pub tool: String,
    pub stack: Option<String>,
    pub environment: Option<String>,
    pub verdict: String,
    pub outcome: Option<String>,
    pub detail: String,
    pub prev_hash: Vec<u8>,
    pub hash: Vec<u8>,
}

/// What a row says, and its hash is made of.
struct Content<'a> {
    seq: i64,
    at: &'a str,
    kind: &'a str,
    call: &'a str,
    agent: &'a str,
    door: &'a str,
    tool: &'a str,
    stack: Option<&'a str>,
    environment: Option<&'a str>,
    verdict: &'a str,
    outcome: Option<&'a str>,
    detail: &'a str,
}

impl Content<'_> {
    fn link(&self, prev: &Hash) -> Hash {
        let fields = [
            Field::Int(self.seq),
            Field::Text(self.at),
            Field::Text(self.kind),
            Field::Text(self.call),
            Field::Text(self.agent),
            Field::Text(self.door),
            Field::Text(self.tool),
            Field::Maybe(self.stack),
            Field::Maybe(self.environment),
            Field::Text(self.verdict),
            Field::Maybe(self.outcome),
            Field::Text(self.detail),
        ];
        chain::link(DOMAIN, prev, &fields)
    }

    /// # Errors
    /// `Corrupt` when the database took the statement and not the row: a trigger of somebody swallows what should be recorded.
    fn insert(&self, c: &Connection, prev: &[u8], hash: &[u8]) -> Sql<()> {
        let mut statement = c.prepare_cached(
            "INSERT INTO audit (seq, at, kind, call, agent, door, tool, stack, environment, verdict, outcome, detail, prev_hash, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?;
        let written = statement.execute(params![
            self.seq,
            self.at,
            self.kind,
            self.call,
            self.agent,
            self.door,
            self.tool,
            self.stack,
            self.environment,
            self.verdict,
            self.outcome,
            self.detail,
            prev,
            hash
        ])?;
        one("audit log", written)
    }
}

impl RawRow {
    fn content(&self) -> Content<'_> {
        Content {
            seq: self.seq,
            at: &self.at,
            kind: &self.kind,
            call: &self.call,
            agent: &self.agent,
            door: &self.door,
            tool: &self.tool,
            stack: self.stack.as_deref(),
            environment: self.environment.as_deref(),
            verdict: &self.verdict,
            outcome: self.outcome.as_deref(),
            detail: &self.detail,
        }
    }

    /// The hash this row must have after `prev`.
    pub(super) fn link(&self, prev: &Hash) -> Hash {
        self.content().link(prev)
    }

    fn read(r: &Row<'_>) -> Sql<Self> {
        Ok(Self {
            seq: r.get(0)?,
            at: r.get(1)?,
            kind: r.get(2)?,
            call: r.get(3)?,
            agent: r.get(4)?,
            door: r.get(5)?,
            tool: r.get(6)?,
            stack: r.get(7)?,
            environment: r.get(8)?,
            verdict: r.get(9)?,
            outcome: r.get(10)?,
            detail: r.get(11)?,
            prev_hash: r.get(12)?,
            hash: r.get(13)?,
        })
    }

    fn parse(self) -> Sql<AuditRow> {
        Ok(AuditRow {
            seq: self.seq,
            at: parse_time(WHAT, &self.at)?,
            verdict: parse_word(WHAT, &self.verdict)?,
            detail: parse_json(WHAT, &self.detail)?,
            hash: hex(&self.hash),
            kind: self.kind,
            call: self.call,
            agent: self.agent,
            door: self.door,
            tool: self.tool,
            stack: self.stack,
            environment: self.environment,
            outcome: self.outcome,
        })
    }
}

/// Appends a row after the head. All of it that does not depend on the head was made by the caller: the one writer thread has no time for it.
pub(super) fn append(c: &Connection, new: &NewRow) -> Sql<i64> {
    let (last, prev) = head(c)?;
    let row = Content {
        seq: last + 1,
        at: &new.at,
        kind: new.kind,
        call: &new.call,
        agent: &new.agent,
        door: &new.door,
        tool: &new.tool,
        stack: new.stack.as_deref(),
        environment: new.environment.as_deref(),
        verdict: new.verdict.as_str(),
        outcome: new.outcome.as_deref(),
        detail: &new.detail,
    };
    row.insert(c, &prev, &row.link(&prev))?;
    Ok(row.seq)
}

/// Writes a row as it is; only the next one after the head is taken.
///
/// # Errors
/// As [`Content::insert`].
pub(super) fn insert(c: &Connection, r: &RawRow) -> Sql<()> {
    r.content().insert(c, &r.prev_hash, &r.hash)
}

/// What was written has to be one row.
pub(super) fn one(what: &'static str, written: usize) -> Sql<()> {
    match written {
        1 => Ok(()),
        n => Err(corrupt(what, format!("a row was given and {n} were written: something was added to the file, run audit verify")).into()),
    }
}

/// Number and hash of the last row; zeros before the first.
pub(super) fn head(c: &Connection) -> Sql<(i64, Hash)> {
    let mut statement = c.prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?;
    Ok(statement.query_row([], |r| Ok((r.get(0)?, r.get(1)?))).optional()?.unwrap_or((0, GENESIS)))
}

/// Stored hash of one row.
pub(super) fn hash_of(c: &Connection, seq: i64) -> Sql<Option<Vec<u8>>> {
    Ok(c.prepare_cached("SELECT hash FROM audit WHERE seq = ?1")?.query_row([seq], |r| r.get(0)).optional()?)
}

/// Calls `see` with every row, oldest first.
pub(super) fn each(c: &Connection, mut see: impl FnMut(RawRow) -> Sql<()>) -> Sql<()> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        see(RawRow::read(row)?)?;
    }
    Ok(())
}

/// Calls `see` with the rows from one to another, oldest first.
pub(super) fn each_between(c: &Connection, first: i64, last: i64, mut see: impl FnMut(RawRow) -> Sql<()>) -> Sql<()> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM audit WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq"))?;
    let mut rows = statement.query([first, last])?;
    while let Some(row) = rows.next()? {
        see(RawRow::read(row)?)?;
    }
    Ok(())
}

/// Newest intent of a call.
pub(super) fn intent_of(c: &Connection, call: &str) -> Sql<Option<AuditRow>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {COLUMNS} FROM audit WHERE kind = 'intent' AND call = ?1 ORDER BY seq DESC LIMIT 1"))?;
    first(&mut statement, [call], |r| RawRow::read(r)?.parse())
}

/// The intent of a call and the first row that closes it.
pub(super) fn of_call(c: &Connection, call: &str) -> Sql<Vec<AuditRow>> {
    let Some(intent) = intent_of(c, call)? else { return Ok(vec![]) };
    let outcome = outcome_of(c, &intent)?;
    Ok([Some(intent), outcome].into_iter().flatten().collect())
}

/// The first row of this part that closes a call.
pub(super) fn outcome_of(c: &Connection, intent: &AuditRow) -> Sql<Option<AuditRow>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE agent = ?1 AND seq > ?2 AND call = ?3 AND kind = 'outcome' ORDER BY seq LIMIT 1"
    ))?;
    first(&mut statement, params![intent.agent, intent.seq, intent.call], |r| RawRow::read(r)?.parse())
}

/// No row of a call is older: its id, or that of its task in it, tells when it was made. A clock that was set back by less than an hour hides nothing.
pub(super) fn not_before(call: &CallId) -> Option<DateTime<Utc>> {
    let made = ulid::Ulid::from_string(&call.as_str().split('-').nth(1)?.to_ascii_uppercase()).ok()?;
    DateTime::from_timestamp_millis(i64::try_from(made.timestamp_ms()).ok()?).map(|at| at - TimeDelta::hours(1))
}

/// Notes that a call has begun.
pub(super) fn open_call(c: &Connection, call: &str, seq: i64) -> Sql<()> {
    one("audit log", c.prepare_cached("INSERT OR REPLACE INTO open_call (call, seq) VALUES (?1, ?2)")?.execute(params![call, seq])?)
}

/// Notes that a call has ended.
pub(super) fn close_call(c: &Connection, call: &str) -> Sql<usize> {
    Ok(c.prepare_cached("DELETE FROM open_call WHERE call = ?1")?.execute([call])?)
}

/// Calls of an agent that have begun and not ended, oldest first: since when, tool, stack.
pub(super) fn calls_at_work(c: &Connection, agent: &str) -> Sql<Vec<AtWork>> {
    let mut statement =
        c.prepare_cached("SELECT a.at, a.tool, a.stack FROM open_call o JOIN audit a ON a.seq = o.seq WHERE a.agent = ?1 ORDER BY o.seq")?;
    all(&mut statement, [agent], |r| Ok((parse_time(WHAT, &r.get::<_, String>(0)?)?, r.get(1)?, r.get(2)?)))
}

/// Calls that have begun and not ended, oldest first.
pub(super) fn open_calls(c: &Connection) -> Sql<Vec<String>> {
    let mut statement = c.prepare_cached("SELECT call FROM open_call ORDER BY seq")?;
    all(&mut statement, [], |r| Ok(r.get(0)?))
}

/// Rows by filter that come after a row, newest first.
pub(super) fn select(c: &Connection, q: &AuditQuery, floor: i64) -> Sql<Vec<AuditRow>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit
         WHERE (?1 IS NULL OR agent = ?1) AND (?2 IS NULL OR tool = ?2) AND (?3 IS NULL OR stack = ?3) AND (?4 IS NULL OR verdict = ?4)
           AND (?5 IS NULL OR outcome = ?5) AND (?6 IS NULL OR at >= ?6) AND (?7 IS NULL OR at < ?7) AND seq < ?8 AND seq > ?10
         ORDER BY seq DESC LIMIT ?9"
    ))?;
    let params = params![
        q.agent,
        q.tool,
        q.stack,
        q.verdict.map(Verdict::as_str),
        q.outcome,
        q.since.map(time),
        q.until.map(time),
        q.before_seq.unwrap_or(i64::MAX),
        limit(q.limit),
        floor
    ];
    all(&mut statement, params, |r| RawRow::read(r)?.parse())
}

/// Rows after a row, oldest first.
pub(super) fn after(c: &Connection, seq: i64, since: Option<DateTime<Utc>>, n: usize) -> Sql<Vec<AuditRow>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {COLUMNS} FROM audit WHERE seq > ?1 AND (?2 IS NULL OR at >= ?2) ORDER BY seq LIMIT ?3"))?;
    all(&mut statement, params![seq, since.map(time), limit(n)], |r| RawRow::read(r)?.parse())
}

/// Finished calls of an agent after a row, oldest first, at most `n`: what its history is made of.
pub(in crate::store) fn finished_of(c: &Connection, agent: &str, after: i64, n: usize) -> Sql<Vec<AuditRow>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE agent = ?1 AND seq > ?2 AND kind IN ('read', 'outcome') ORDER BY seq LIMIT ?3"
    ))?;
    all(&mut statement, params![agent, after, limit(n)], |r| RawRow::read(r)?.parse())
}

/// Agents with rows after a row, and the head they were read at.
pub(in crate::store) fn agents_after(c: &Connection, after: i64) -> Sql<(i64, Vec<String>)> {
    let (head, _) = head(c)?;
    if after == 0 {
        // Walks from agent to agent in the index: a long log has many rows and few agents.
        let mut statement = c.prepare_cached(
            "WITH RECURSIVE a (agent) AS (
               SELECT min(agent) FROM audit UNION ALL SELECT (SELECT min(agent) FROM audit WHERE agent > a.agent) FROM a WHERE agent IS NOT NULL
             ) SELECT agent FROM a WHERE agent IS NOT NULL",
        )?;
        return Ok((head, all(&mut statement, [], |r| Ok(r.get(0)?))?));
    }
    let mut statement = c.prepare_cached("SELECT DISTINCT agent FROM audit NOT INDEXED WHERE seq > ?1")?;
    Ok((head, all(&mut statement, [after], |r| Ok(r.get(0)?))?))
}
