//! Approvals: asked for by a call, decided by operators, used once, void after their time. The call's input is encrypted.
//! Deliberately absent: who may decide (the gate's matter) and running what was approved.

use super::codec::{all, changed, first, json, name, name_opt, parse_json, parse_time, parse_word, readable, time, word};
use super::fault::{Sql, corrupt};
use super::release::{set_value, value};
use super::seal::Keys;
use super::{Store, StoreResult};
use crate::model::ids::*;
use crate::model::operation::Operation;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

/// State of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ApprovalState {
    /// Waits for a human.
    Pending,
    /// Given, not used yet.
    Approved,
    /// Refused by a human.
    Denied,
    /// Its time ran out.
    Expired,
    /// Its operation started.
    Used,
    /// The world moved since.
    Stale,
}

/// One approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Id.
    pub id: ApprovalId,
    /// Who asked.
    pub agent: String,
    /// On whose behalf, outermost first.
    #[serde(default)]
    pub on_behalf: Vec<String>,
    /// Tool.
    pub tool: String,
    /// Stack.
    pub stack: Option<StackName>,
    /// Environment.
    pub environment: Option<String>,
    /// Plan it is bound to, when the tool has one.
    pub plan: Option<PlanId>,
    /// Digest it is bound to: plan digest, or hash of the arguments for a tool without plan.
    pub digest: String,
    /// The call as parsed, to run it as the requester later (encrypted at rest); null in lists, and once it is settled: nothing runs it any more.
    pub input: serde_json::Value,
    /// Call that asked.
    pub call: CallId,
    /// Reason the requester gave, untrusted.
    pub reason: Option<String>,
    /// State.
    pub state: ApprovalState,
    /// Approvals needed.
    pub needed: u32,
    /// Who approved.
    pub approved_by: Vec<String>,
    /// Who denied, and why.
    pub denied_by: Option<String>,
    /// Operation it started.
    pub operation: Option<OperationId>,
    /// Asked for at the command line: it may be the call of the very operator who decides.
    #[serde(default)]
    pub at_terminal: bool,
    /// The answer of the person at the client that asked counts.
    #[serde(default)]
    pub by_client: bool,
    /// Asked.
    pub created_at: DateTime<Utc>,
    /// Void after.
    pub expires_at: DateTime<Utc>,
}

const WHAT: &str = "approval";
const COLUMNS: &str = "id, agent, tool, stack, environment, plan, digest, sealed_input, call, reason, state, needed, approved_by, denied_by, operation, \
                       created_at, expires_at, on_behalf, at_terminal, by_client";
/// The same places without the input, which is large and secret.
const WITHOUT_INPUT: &str = "id, agent, tool, stack, environment, plan, digest, NULL, call, reason, state, needed, approved_by, denied_by, operation, \
                             created_at, expires_at, on_behalf, at_terminal, by_client";
/// Most approvals in a list.
pub const LISTED: usize = 500;

fn input_place(id: &ApprovalId) -> String {
    format!("approval/{id}")
}

/// Key under which it is kept what the arguments of a call without plan meant; forgotten with them.
pub fn resolved_place(id: &ApprovalId) -> String {
    format!("resolved:{id}")
}

fn call_place(id: &ApprovalId) -> String {
    format!("approved-call:{id}")
}

impl Store {
    /// Inserts, or returns the pending or approved one that (agent, tool, digest) already has; of how both may be decided the stricter holds.
    pub async fn request_approval(&self, approval: Approval) -> StoreResult<Approval> {
        let sealed = self.inner.keys.seal(&input_place(&approval.id), &approval.input)?;
        let inner = self.inner.clone();
        let write = move |c: &Connection| {
            expire(c, approval.created_at)?;
            if let Some(mut same) = live_same(c, &inner.keys, &approval)? {
                let terms = (same.at_terminal || approval.at_terminal, same.by_client && approval.by_client);
                if terms != (same.at_terminal, same.by_client) {
                    (same.at_terminal, same.by_client) = terms;
                    store_terms(c, &same)?;
                }
                return Ok(same);
            }
            insert(c, &approval, &sealed)?;
            Ok(approval)
        };
        self.inner.state.write(write).await
    }

    /// One approval; a pending (or approved and unused) one past its time is returned (and stored) as expired.
    pub async fn approval(&self, id: &ApprovalId, now: DateTime<Utc>) -> StoreResult<Option<Approval>> {
        let (wanted, inner) = (id.clone(), self.inner.clone());
        let found = self.inner.state.read(move |c| by_id(c, &inner.keys, &wanted)).await?;
        if !found.as_ref().is_some_and(|a| a.overdue(now)) {
            return Ok(found);
        }
        let (wanted, inner) = (id.clone(), self.inner.clone());
        let write = move |c: &Connection| {
            expire(c, now)?;
            by_id(c, &inner.keys, &wanted)
        };
        self.inner.state.write(write).await
    }

    /// The newest [`LISTED`], newest first and without their input; `pending_only` for the queue.
    pub async fn approvals(&self, pending_only: bool, now: DateTime<Utc>) -> StoreResult<Vec<Approval>> {
        let list = move |c: &Connection| if pending_only { pending(c) } else { every(c) };
        let found = self.inner.state.read(list).await?;
        if !found.iter().any(|a| a.overdue(now)) {
            return Ok(found);
        }
        let write = move |c: &Connection| {
            expire(c, now)?;
            list(c)
        };
        self.inner.state.write(write).await
    }

    /// How many of an agent's approvals wait.
    ///
    /// # Errors
    /// The database's.
    pub async fn waiting_of(&self, agent: &str, now: DateTime<Utc>) -> StoreResult<usize> {
        let agent = agent.to_owned();
        self.inner.state.read(move |c| waiting_of(c, &agent, now)).await
    }

    /// What an agent asked for with a tool and what is not used, refused or void: newest first.
    pub async fn open_approvals(&self, agent: &str, tool: &str, now: DateTime<Utc>) -> StoreResult<Vec<Approval>> {
        let (agent, tool, inner) = (agent.to_owned(), tool.to_owned(), self.inner.clone());
        let mut found = self.inner.state.read(move |c| open_of(c, &inner.keys, &agent, &tool)).await?;
        found.retain(|a| !a.overdue(now));
        Ok(found)
    }

    /// Adds an operator's word; becomes `Approved` with enough different operators, `Denied` with one no. Returns the new state of it, or `None` when it is not pending.
    pub async fn decide_approval(
        &self,
        id: &ApprovalId,
        operator: &str,
        approve: bool,
        now: DateTime<Utc>,
    ) -> StoreResult<Option<Approval>> {
        self.decided(id, operator, (approve, false), now).await
    }

    /// As [`Store::decide_approval`], of the person at the client: only where their word still counts by the time it is written.
    ///
    /// # Errors
    /// The database's.
    pub async fn decide_at_client(&self, id: &ApprovalId, name: &str, approve: bool, now: DateTime<Utc>) -> StoreResult<Option<Approval>> {
        self.decided(id, name, (approve, true), now).await
    }

    async fn decided(
        &self,
        id: &ApprovalId,
        operator: &str,
        (approve, at_client): (bool, bool),
        now: DateTime<Utc>,
    ) -> StoreResult<Option<Approval>> {
        let (id, operator, inner) = (id.clone(), operator.to_owned(), self.inner.clone());
        let write = move |c: &Connection| {
            expire(c, now)?;
            let counts = |a: &Approval| a.state == ApprovalState::Pending && (!at_client || (a.by_client && !a.at_terminal));
            let Some(mut approval) = by_id(c, &inner.keys, &id)?.filter(counts) else { return Ok(None) };
            if approve {
                if !approval.approved_by.contains(&operator) {
                    approval.approved_by.push(operator);
                }
                if approval.approved_by.len() >= approval.needed.max(1) as usize {
                    approval.state = ApprovalState::Approved;
                }
            } else {
                approval.denied_by = Some(operator);
                approval.state = ApprovalState::Denied;
            }
            store_decision(c, &approval)?;
            Ok(Some(approval))
        };
        self.inner.state.write(write).await
    }

    /// Takes an operator's word back while nothing has started: an approved one is denied by it, a pending one loses this operator's approval.
    /// Returns the new state, or `None` when there is nothing to take back.
    pub async fn revoke_approval(&self, id: &ApprovalId, operator: &str, now: DateTime<Utc>) -> StoreResult<Option<Approval>> {
        let (id, operator, inner) = (id.clone(), operator.to_owned(), self.inner.clone());
        let write = move |c: &Connection| {
            expire(c, now)?;
            let Some(mut approval) = by_id(c, &inner.keys, &id)? else { return Ok(None) };
            match approval.state {
                ApprovalState::Approved => {
                    approval.denied_by = Some(operator);
                    approval.state = ApprovalState::Denied;
                }
                ApprovalState::Pending if approval.approved_by.contains(&operator) => approval.approved_by.retain(|o| *o != operator),
                ApprovalState::Pending | ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Used | ApprovalState::Stale => {
                    return Ok(None);
                }
            }
            store_decision(c, &approval)?;
            Ok(Some(approval))
        };
        self.inner.state.write(write).await
    }

    /// Uses an approved one up (single use): `true` exactly once, and only within its time. The call it lets through is kept, so that what came of it
    /// can be found.
    pub async fn use_approval(&self, id: &ApprovalId, call: &CallId, now: DateTime<Utc>) -> StoreResult<bool> {
        let (id, call) = (id.clone(), json(WHAT, call)?);
        let write = move |c: &Connection| {
            expire(c, now)?;
            let used = use_up(c, &id)? == 1;
            if used {
                forget_resolved(c, &id)?;
                set_value(c, &call_place(&id), &call)?;
            }
            Ok(used)
        };
        self.inner.state.write(write).await
    }

    /// The operation that an approval started.
    ///
    /// # Errors
    /// The database's.
    pub async fn operation_of_approval(&self, id: &ApprovalId) -> StoreResult<Option<OperationId>> {
        let id = id.clone();
        self.inner.state.read(move |c| operation_of(c, &id)).await
    }

    /// The call that a used one let through.
    ///
    /// # Errors
    /// The database's.
    pub async fn approved_call(&self, id: &ApprovalId) -> StoreResult<Option<CallId>> {
        let place = call_place(id);
        let read =
            move |c: &Connection| Ok(value(c, &place)?.map(|v| serde_json::from_value(v).map_err(|e| corrupt(WHAT, e))).transpose()?);
        self.inner.state.read(read).await
    }

    /// Sets state (stale, expired).
    ///
    /// # Errors
    /// `Missing`, or the database's.
    pub async fn set_approval_state(&self, id: &ApprovalId, state: ApprovalState) -> StoreResult<()> {
        let id = id.clone();
        let write = move |c: &Connection| {
            changed(set_state(c, &id, state)?, WHAT, &id)?;
            forget_input(c, &id)
        };
        self.inner.state.write(write).await
    }
}

impl Approval {
    /// Whether a name is one of those who ask: none of them approves.
    pub fn asked_by(&self, name: &str) -> bool {
        self.agent == name || self.on_behalf.iter().any(|a| a == name)
    }

    /// Still stored as open although its time ran out.
    fn overdue(&self, now: DateTime<Utc>) -> bool {
        matches!(self.state, ApprovalState::Pending | ApprovalState::Approved) && self.expires_at <= now
    }
}

fn expire(c: &Connection, now: DateTime<Utc>) -> Sql<usize> {
    let mut statement = c.prepare_cached(
        "UPDATE approval SET state = 'expired', sealed_input = x'' WHERE state IN ('pending', 'approved') AND expires_at <= ?1",
    )?;
    let expired = statement.execute([time(now)])?;
    if expired > 0 {
        c.prepare_cached("DELETE FROM value WHERE key IN (SELECT 'resolved:' || id FROM approval WHERE state = 'expired')")?.execute([])?;
    }
    Ok(expired)
}

fn live_same(c: &Connection, keys: &Keys, wanted: &Approval) -> Sql<Option<Approval>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM approval WHERE agent = ?1 AND tool = ?2 AND digest = ?3 AND state IN ('pending', 'approved')
         ORDER BY created_at DESC LIMIT 1"
    ))?;
    first(&mut statement, params![wanted.agent, wanted.tool, wanted.digest], |r| read(r, keys))
}

fn insert(c: &Connection, a: &Approval, sealed: &[u8]) -> Sql<()> {
    c.prepare_cached(&format!(
        "INSERT INTO approval ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"
    ))?
    .execute(params![
        a.id.as_str(),
        a.agent,
        a.tool,
        a.stack.as_ref().map(StackName::as_str),
        a.environment,
        a.plan.as_ref().map(PlanId::as_str),
        a.digest,
        sealed,
        a.call.as_str(),
        a.reason,
        word(WHAT, &a.state)?,
        a.needed,
        json(WHAT, &a.approved_by)?,
        a.denied_by,
        a.operation.as_ref().map(OperationId::as_str),
        time(a.created_at),
        time(a.expires_at),
        json(WHAT, &a.on_behalf)?,
        a.at_terminal,
        a.by_client,
    ])?;
    Ok(())
}

fn by_id(c: &Connection, keys: &Keys, id: &ApprovalId) -> Sql<Option<Approval>> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM approval WHERE id = ?1"))?;
    first(&mut statement, [id.as_str()], |r| read(r, keys))
}

fn pending(c: &Connection) -> Sql<Vec<Approval>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {WITHOUT_INPUT} FROM approval WHERE state = 'pending' ORDER BY created_at DESC, rowid DESC LIMIT {LISTED}"
    ))?;
    readable(&mut statement, [], |r| read_with(r, serde_json::Value::Null))
}

fn waiting_of(c: &Connection, agent: &str, now: DateTime<Utc>) -> Sql<usize> {
    let mut statement = c.prepare_cached("SELECT count(*) FROM approval WHERE agent = ?1 AND state = 'pending' AND expires_at > ?2")?;
    Ok(usize::try_from(statement.query_row(params![agent, time(now)], |r| r.get::<_, i64>(0))?).unwrap_or(0))
}

fn open_of(c: &Connection, keys: &Keys, agent: &str, tool: &str) -> Sql<Vec<Approval>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM approval WHERE agent = ?1 AND tool = ?2 AND state IN ('pending', 'approved') ORDER BY created_at DESC"
    ))?;
    all(&mut statement, params![agent, tool], |r| read(r, keys))
}

fn every(c: &Connection) -> Sql<Vec<Approval>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {WITHOUT_INPUT} FROM approval ORDER BY created_at DESC, rowid DESC LIMIT {LISTED}"))?;
    readable(&mut statement, [], |r| read_with(r, serde_json::Value::Null))
}

fn store_decision(c: &Connection, a: &Approval) -> Sql<()> {
    c.prepare_cached("UPDATE approval SET state = ?2, approved_by = ?3, denied_by = ?4 WHERE id = ?1")?.execute(params![
        a.id.as_str(),
        word(WHAT, &a.state)?,
        json(WHAT, &a.approved_by)?,
        a.denied_by
    ])?;
    forget_input(c, &a.id)
}

fn store_terms(c: &Connection, a: &Approval) -> Sql<()> {
    c.prepare_cached("UPDATE approval SET at_terminal = ?2, by_client = ?3 WHERE id = ?1")?.execute(params![
        a.id.as_str(),
        a.at_terminal,
        a.by_client
    ])?;
    Ok(())
}

/// Notes with its approval, where it has one, that an operation begins: within the transaction that begins it.
pub(super) fn started(c: &Connection, operation: &Operation) -> Sql<()> {
    if let Some(approval) = &operation.approval {
        c.prepare_cached("UPDATE approval SET operation = ?2 WHERE id = ?1")?.execute([approval.as_str(), operation.id.as_str()])?;
    }
    Ok(())
}

fn operation_of(c: &Connection, id: &ApprovalId) -> Sql<Option<OperationId>> {
    let mut statement = c.prepare_cached("SELECT operation FROM approval WHERE id = ?1")?;
    Ok(first(&mut statement, [id.as_str()], |r| Ok(name_opt(WHAT, r.get(0)?)?))?.flatten())
}

/// Nothing runs a settled one any more, so what it would have run is not kept.
fn forget_input(c: &Connection, id: &ApprovalId) -> Sql<()> {
    let settled = c
        .prepare_cached("UPDATE approval SET sealed_input = x'' WHERE id = ?1 AND state NOT IN ('pending', 'approved')")?
        .execute([id.as_str()])?;
    if settled > 0 {
        forget_resolved(c, id)?;
    }
    Ok(())
}

fn forget_resolved(c: &Connection, id: &ApprovalId) -> Sql<()> {
    c.prepare_cached("DELETE FROM value WHERE key = ?1")?.execute([resolved_place(id)])?;
    Ok(())
}

fn use_up(c: &Connection, id: &ApprovalId) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE approval SET state = 'used', sealed_input = x'' WHERE id = ?1 AND state = 'approved'")?;
    Ok(statement.execute([id.as_str()])?)
}

fn set_state(c: &Connection, id: &ApprovalId, state: ApprovalState) -> Sql<usize> {
    Ok(c.prepare_cached("UPDATE approval SET state = ?2 WHERE id = ?1")?.execute(params![id.as_str(), word(WHAT, &state)?])?)
}

fn read(r: &Row<'_>, keys: &Keys) -> Sql<Approval> {
    let id: ApprovalId = name(WHAT, r.get(0)?)?;
    let sealed = r.get::<_, Vec<u8>>(7)?;
    let input = if sealed.is_empty() { serde_json::Value::Null } else { keys.open(WHAT, &input_place(&id), &sealed)? };
    read_with(r, input)
}

fn read_with(r: &Row<'_>, input: serde_json::Value) -> Sql<Approval> {
    Ok(Approval {
        id: name(WHAT, r.get(0)?)?,
        agent: r.get(1)?,
        tool: r.get(2)?,
        stack: name_opt(WHAT, r.get(3)?)?,
        environment: r.get(4)?,
        plan: name_opt(WHAT, r.get(5)?)?,
        digest: r.get(6)?,
        input,
        call: name(WHAT, r.get(8)?)?,
        reason: r.get(9)?,
        state: parse_word(WHAT, &r.get::<_, String>(10)?)?,
        needed: r.get(11)?,
        approved_by: parse_json(WHAT, &r.get::<_, String>(12)?)?,
        denied_by: r.get(13)?,
        operation: name_opt(WHAT, r.get(14)?)?,
        created_at: parse_time(WHAT, &r.get::<_, String>(15)?)?,
        expires_at: parse_time(WHAT, &r.get::<_, String>(16)?)?,
        on_behalf: parse_json(WHAT, &r.get::<_, String>(17)?)?,
        at_terminal: r.get(18)?,
        by_client: r.get(19)?,
    })
}
