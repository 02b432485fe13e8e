//! Operations and the journal of their steps. A stack's epoch rises with every operation on it, so that a late writer of an older one is
//! refused. Deliberately absent: what the steps mean.

mod settled;
mod steps;

use super::codec::{all, changed, first, int, limit, name, name_opt, parse_time, parse_time_opt, parse_word, time, uint, word};
use super::fault::{Sql, corrupt};
use super::seal::Keys;
use super::{Store, StoreError, StoreResult};
use crate::model::ids::*;
use crate::model::operation::*;
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;
use steps::{finish_step, insert_step, last_step, steps};

const WHAT: &str = "operation";
/// How long an idempotency key is remembered.
const KEY_DAYS: i64 = 7;
/// Epoch of an operation beside its stack; those that hold one count from 1.
const BESIDE: u64 = 0;
const COLUMNS: &str = "id, verb, stack, plan, agent, call, idempotency_key, state, phase, epoch, release, reason, message, sealed_evidence, \
                       approval, cancel_requested, created_at, settled_at";

/// An operation with its evidence already encrypted: what the writer thread gets.
struct Sealed {
    op: Operation,
    evidence: Vec<u8>,
}

fn evidence_place(id: &OperationId) -> String {
    format!("operation/{id}/evidence")
}

fn step_place(op: &OperationId, seq: u64, part: &str) -> String {
    format!("step/{op}/{seq}/{part}")
}

impl Store {
    /// Inserts an operation and raises its stack's epoch in one transaction (creating the stack row); returns it with `epoch` set. When `idempotency_key` (per agent, 7 days) is known:
    /// the earlier operation is returned unchanged as `Err(operation)` inside the Ok; same key with another `args_hash` is `KeyReused`.
    ///
    /// # Errors
    /// `KeyReused`, or the database's.
    pub async fn begin_operation(&self, op: Operation, args_hash: &str) -> StoreResult<Result<Operation, Operation>> {
        self.begin(op, args_hash, true).await
    }

    /// As [`Store::begin_operation`] for work beside the stack that neither holds it nor is superseded: its epoch stays 0, which no holder has.
    ///
    /// # Errors
    /// `KeyReused`, or the database's.
    pub async fn begin_aside(&self, op: Operation, args_hash: &str) -> StoreResult<Result<Operation, Operation>> {
        self.begin(op, args_hash, false).await
    }

    async fn begin(&self, op: Operation, args_hash: &str, holds: bool) -> StoreResult<Result<Operation, Operation>> {
        let args_hash = args_hash.to_owned();
        let mut sealed = self.seal_evidence(op)?;
        let inner = self.inner.clone();
        let write = move |c: &Connection| {
            let known = |key: &String| known_key(c, &sealed.op.agent, key, sealed.op.created_at, &args_hash);
            let earlier = sealed.op.idempotency_key.as_ref().map(known).transpose()?.flatten();
            if let Some(earlier) = earlier {
                return match operation(c, &inner.keys, &earlier)? {
                    Some(op) => Ok(Err(op)),
                    None => Err(corrupt(WHAT, format!("{earlier} vanished")).into()),
                };
            }
            super::release::not_frozen(c)?;
            sealed.op.epoch = match &sealed.op.stack {
                Some(stack) if holds => raise_epoch(c, stack)?,
                _ => 0,
            };
            insert_operation(c, &sealed, &args_hash)?;
            Ok(Ok(sealed.op))
        };
        let begun = self.inner.state.write(write).await?;
        if let Ok(op) = &begun {
            self.tell(op.stack.as_ref());
        }
        Ok(begun)
    }

    /// Stacks of which an operation was begun or changed, from now on. One who is too far behind misses some and is told so.
    pub fn moved(&self) -> tokio::sync::broadcast::Receiver<StackName> {
        self.inner.moved.subscribe()
    }

    fn tell(&self, stack: Option<&StackName>) {
        if let Some(stack) = stack {
            let _nobody_listens = self.inner.moved.send(stack.clone());
        }
    }

    /// The operation an agent's earlier call with this key began (7 days), or ran this plan; `None` when there is none.
    ///
    /// # Errors
    /// `KeyReused` when the key was used with other arguments, or the database's.
    pub async fn earlier_operation(
        &self,
        agent: &str,
        key: Option<&str>,
        args_hash: &str,
        plan: Option<&PlanId>,
        now: DateTime<Utc>,
    ) -> StoreResult<Option<Operation>> {
        let (agent, key, args_hash) = (agent.to_owned(), key.map(str::to_owned), args_hash.to_owned());
        let (plan, inner) = (plan.cloned(), self.inner.clone());
        let read = move |c: &Connection| {
            let by_key = match &key {
                Some(key) => known_key(c, &agent, key, now, &args_hash)?,
                None => None,
            };
            let found = match (by_key, &plan) {
                (Some(id), _) => Some(id),
                (None, Some(plan)) => runner_of(c, &agent, plan)?,
                (None, None) => None,
            };
            match found {
                Some(id) => operation(c, &inner.keys, &id),
                None => Ok(None),
            }
        };
        self.inner.state.read(read).await
    }

    /// Overwrites state, phase, release, message, evidence and settled_at; a cancel that was asked for stays asked for, whatever `op` says. `Superseded` when the stack's epoch is newer
    /// than `op.epoch` and the operation is not terminal in the store.
    ///
    /// # Errors
    /// `Superseded`, `Missing`, or the database's.
    pub async fn save_operation(&self, op: &Operation) -> StoreResult<()> {
        let sealed = self.seal_evidence(op.clone())?;
        let write = move |c: &Connection| {
            let op = &sealed.op;
            if let Some(stack) = &op.stack
                && op.epoch != BESIDE
                && !is_terminal(c, &op.id)?
            {
                hold(c, stack, op.epoch)?;
            }
            Ok(changed(update_operation(c, &sealed)?, WHAT, &op.id)?)
        };
        self.inner.state.write(write).await?;
        self.tell(op.stack.as_ref());
        Ok(())
    }

    /// An operation that has held its stack goes on beside it, like one of [`Store::begin_aside`].
    ///
    /// # Errors
    /// `Missing`, or the database's.
    pub async fn step_beside(&self, id: &OperationId) -> StoreResult<()> {
        let id = id.clone();
        self.inner.state.write(move |c| Ok(changed(set_beside(c, &id)?, WHAT, &id)?)).await
    }

    /// Ends an operation that a newer one on its stack superseded: the one change to it that needs no epoch. `false` when it was terminal already.
    pub async fn end_superseded(&self, id: &OperationId, state: OperationState, message: &str, now: DateTime<Utc>) -> StoreResult<bool> {
        let (id, message) = (id.clone(), message.to_owned());
        self.inner.state.write(move |c| Ok(end_operation(c, &id, state, &message, now)? == 1)).await
    }

    /// Closes what needed attention on a stack before an operation that settled it; returns how many. They become `failed`, with the operation named.
    ///
    /// # Errors
    /// The database's.
    pub async fn close_attention(&self, stack: &StackName, by: &OperationId) -> StoreResult<usize> {
        let (of, by) = (stack.clone(), by.clone());
        let closed = self.inner.state.write(move |c| settle_attention(c, &of, &by)).await?;
        self.tell(Some(stack));
        Ok(closed)
    }

    /// The newest deploy or rollback of a stack that waits for a person's decision.
    ///
    /// # Errors
    /// The database's.
    pub async fn attention(&self, stack: &StackName) -> StoreResult<Option<OperationId>> {
        let stack = stack.clone();
        self.inner.state.read(move |c| attention(c, &stack)).await
    }

    /// One operation.
    pub async fn operation(&self, id: &OperationId) -> StoreResult<Option<Operation>> {
        let (id, inner) = (id.clone(), self.inner.clone());
        self.inner.state.read(move |c| operation(c, &inner.keys, &id)).await
    }

    /// All operations not in a terminal state, oldest first.
    pub async fn open_operations(&self) -> StoreResult<Vec<Operation>> {
        let inner = self.inner.clone();
        self.inner.state.read(move |c| open_operations(c, &inner.keys)).await
    }

    /// Newest operations of a stack (or of all), newest first.
    pub async fn operations(&self, stack: Option<&StackName>, limit: usize) -> StoreResult<Vec<Operation>> {
        let (stack, inner) = (stack.cloned(), self.inner.clone());
        let read = move |c: &Connection| match &stack {
            Some(stack) => operations_of(c, &inner.keys, stack, limit),
            None => operations(c, &inner.keys, limit),
        };
        self.inner.state.read(read).await
    }

    /// A page of operations, newest first: of a stack, in a state, older than one of them.
    ///
    /// # Errors
    /// The database's.
    pub async fn operations_page(
        &self,
        stack: Option<&StackName>,
        state: Option<OperationState>,
        after: Option<&OperationId>,
        limit: usize,
    ) -> StoreResult<Vec<Operation>> {
        let (stack, after, inner) = (stack.cloned(), after.cloned(), self.inner.clone());
        self.inner.state.read(move |c| operations_page(c, &inner.keys, stack.as_ref(), state, after.as_ref(), limit)).await
    }

    /// Sets the cancel flag; `false` when there is no such open operation.
    pub async fn request_cancel(&self, id: &OperationId) -> StoreResult<bool> {
        let id = id.clone();
        self.inner.state.write(move |c| Ok(set_cancel(c, &id)? == 1)).await
    }

    /// Writes a step's intent (encrypted: it may carry environment values), durable on return; returns its seq. Refused with `Superseded` when the epoch moved on.
    ///
    /// # Errors
    /// `Superseded`, `Missing`, or the database's.
    pub async fn step_intent(
        &self,
        op: &OperationId,
        epoch: u64,
        phase: Phase,
        key: &str,
        intent: &Value,
        now: DateTime<Utc>,
    ) -> StoreResult<u64> {
        let (op, key, intent, inner) = (op.clone(), key.to_owned(), intent.clone(), self.inner.clone());
        let write = move |c: &Connection| {
            let (stack, own_epoch) = held_by(c, &op)?.ok_or_else(|| super::fault::missing(WHAT, &op))?;
            if let Some(stack) = stack {
                let stack: StackName = name(WHAT, stack)?;
                // The operation's own epoch counts too: a caller with a wrong one must not write under another's.
                if own_epoch != int(WHAT, epoch)? {
                    return Err(StoreError::Superseded { stack: stack.to_string() }.into());
                }
                if epoch != BESIDE {
                    hold(c, &stack, epoch)?;
                }
            }
            let seq = last_step(c, &op)? + 1;
            let sealed = inner.keys.seal(&step_place(&op, seq, "intent"), &intent)?;
            insert_step(c, &op, seq, phase, &key, &sealed, now)?;
            Ok(seq)
        };
        self.inner.state.write(write).await
    }

    /// Writes a step's result, durable on return.
    ///
    /// # Errors
    /// `Missing`, or the database's.
    pub async fn step_done(&self, op: &OperationId, seq: u64, result: &Value) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&step_place(op, seq, "done"), result)?;
        let op = op.clone();
        self.inner.state.write(move |c| Ok(changed(finish_step(c, &op, seq, &sealed, Utc::now())?, "step", format!("{op}/{seq}"))?)).await
    }

    /// All steps of an operation in order.
    pub async fn steps(&self, op: &OperationId) -> StoreResult<Vec<StepRecord>> {
        let (op, inner) = (op.clone(), self.inner.clone());
        self.inner.state.read(move |c| steps(c, &inner.keys, &op)).await
    }

    fn seal_evidence(&self, op: Operation) -> StoreResult<Sealed> {
        let evidence = self.inner.keys.seal(&evidence_place(&op.id), &op.evidence)?;
        Ok(Sealed { op, evidence })
    }
}

/// `Superseded` when a newer operation has raised the stack's epoch.
pub(super) fn hold(c: &Connection, stack: &StackName, epoch: u64) -> Sql<()> {
    let current: Option<i64> =
        c.prepare_cached("SELECT epoch FROM stack WHERE name = ?1")?.query_row([stack.as_str()], |r| r.get(0)).optional()?;
    if current.unwrap_or(0) > int("epoch", epoch)? {
        return Err(StoreError::Superseded { stack: stack.to_string() }.into());
    }
    Ok(())
}

fn runner_of(c: &Connection, agent: &str, plan: &PlanId) -> Sql<Option<OperationId>> {
    let found: Option<String> = c
        .prepare_cached("SELECT id FROM operation WHERE agent = ?1 AND plan = ?2 ORDER BY created_at DESC LIMIT 1")?
        .query_row(params![agent, plan.as_str()], |r| r.get(0))
        .optional()?;
    Ok(found.map(|id| name(WHAT, id)).transpose()?)
}

fn known_key(c: &Connection, agent: &str, key: &str, now: DateTime<Utc>, args_hash: &str) -> Sql<Option<OperationId>> {
    let since = time(now - TimeDelta::days(KEY_DAYS));
    let earlier: Option<(String, String)> = c
        .prepare_cached(
            "SELECT id, args_hash FROM operation WHERE agent = ?1 AND idempotency_key = ?2 AND created_at >= ?3
             ORDER BY created_at DESC LIMIT 1",
        )?
        .query_row(params![agent, key, since], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    match earlier {
        Some((_, known)) if known != args_hash => Err(StoreError::KeyReused { key: key.to_owned() }.into()),
        Some((id, _)) => Ok(Some(name(WHAT, id)?)),
        None => Ok(None),
    }
}

fn raise_epoch(c: &Connection, stack: &StackName) -> Sql<u64> {
    let epoch: i64 = c
        .prepare_cached(
            "INSERT INTO stack (name, epoch) VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
        )?
        .query_row([stack.as_str()], |r| r.get(0))?;
    Ok(uint("epoch", epoch)?)
}

fn insert_operation(c: &Connection, sealed: &Sealed, args_hash: &str) -> Sql<()> {
    let op = &sealed.op;
    c.prepare_cached(&format!(
        "INSERT INTO operation ({COLUMNS}, args_hash, terminal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"
    ))?
    .execute(params![
        op.id.as_str(),
        op.verb,
        op.stack.as_ref().map(StackName::as_str),
        op.plan.as_ref().map(PlanId::as_str),
        op.agent,
        op.call.as_str(),
        op.idempotency_key,
        op.state.as_str(),
        word(WHAT, &op.phase)?,
        int(WHAT, op.epoch)?,
        op.release,
        op.reason,
        op.message,
        sealed.evidence,
        op.approval.as_ref().map(ApprovalId::as_str),
        op.cancel_requested,
        time(op.created_at),
        op.settled_at.map(time),
        args_hash,
        op.state.is_terminal(),
    ])?;
    super::approval::started(c, op)
}

fn update_operation(c: &Connection, sealed: &Sealed) -> Sql<usize> {
    let op = &sealed.op;
    // max(): a cancel may arrive between the executor's read and its write.
    let rows = c
        .prepare_cached(
            "UPDATE operation SET state = ?2, terminal = ?3, phase = ?4, release = ?5, message = ?6, sealed_evidence = ?7, settled_at = ?8,
               cancel_requested = max(cancel_requested, ?9) WHERE id = ?1",
        )?
        .execute(params![
            op.id.as_str(),
            op.state.as_str(),
            op.state.is_terminal(),
            word(WHAT, &op.phase)?,
            op.release,
            op.message,
            sealed.evidence,
            op.settled_at.map(time),
            op.cancel_requested,
        ])?;
    Ok(rows)
}

fn set_beside(c: &Connection, id: &OperationId) -> Sql<usize> {
    Ok(c.prepare_cached("UPDATE operation SET epoch = ?2 WHERE id = ?1")?.execute(params![id.as_str(), int("epoch", BESIDE)?])?)
}

fn end_operation(c: &Connection, id: &OperationId, state: OperationState, message: &str, now: DateTime<Utc>) -> Sql<usize> {
    let rows = c
        .prepare_cached(
            "UPDATE operation SET state = ?2, terminal = ?3, message = ?4, settled_at = coalesce(settled_at, ?5) WHERE id = ?1 AND terminal = 0",
        )?
        .execute(params![id.as_str(), state.as_str(), state.is_terminal(), message, time(now)])?;
    Ok(rows)
}

fn settle_attention(c: &Connection, stack: &StackName, by: &OperationId) -> Sql<usize> {
    let rows = c
        .prepare_cached(
            "UPDATE operation SET state = ?3, message = coalesce(message || '. ', '') || 'Settled by ' || ?2
             WHERE stack = ?1 AND id <> ?2 AND state = ?4",
        )?
        .execute(params![stack.as_str(), by.as_str(), OperationState::Failed.as_str(), OperationState::NeedsAttention.as_str()])?;
    Ok(rows)
}

fn attention(c: &Connection, stack: &StackName) -> Sql<Option<OperationId>> {
    let found: Option<String> = c
        .prepare_cached("SELECT id FROM operation WHERE stack = ?1 AND state = ?2 AND plan IS NOT NULL ORDER BY created_at DESC LIMIT 1")?
        .query_row(params![stack.as_str(), OperationState::NeedsAttention.as_str()], |r| r.get(0))
        .optional()?;
    Ok(found.map(|id| name(WHAT, id)).transpose()?)
}

fn is_terminal(c: &Connection, id: &OperationId) -> Sql<bool> {
    let terminal = c.prepare_cached("SELECT terminal FROM operation WHERE id = ?1")?.query_row([id.as_str()], |r| r.get(0)).optional()?;
    Ok(terminal.ok_or_else(|| super::fault::missing(WHAT, id))?)
}

fn held_by(c: &Connection, id: &OperationId) -> Sql<Option<(Option<String>, i64)>> {
    let mut statement = c.prepare_cached("SELECT stack, epoch FROM operation WHERE id = ?1")?;
    Ok(statement.query_row([id.as_str()], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
}

fn set_cancel(c: &Connection, id: &OperationId) -> Sql<usize> {
    Ok(c.prepare_cached("UPDATE operation SET cancel_requested = 1 WHERE id = ?1 AND terminal = 0")?.execute([id.as_str()])?)
}

fn operation(c: &Connection, keys: &Keys, id: &OperationId) -> Sql<Option<Operation>> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM operation WHERE id = ?1"))?;
    first(&mut statement, [id.as_str()], |r| read_operation(r, keys))
}

fn open_operations(c: &Connection, keys: &Keys) -> Sql<Vec<Operation>> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM operation WHERE terminal = 0 ORDER BY created_at, rowid"))?;
    all(&mut statement, [], |r| read_operation(r, keys))
}

fn operations(c: &Connection, keys: &Keys, n: usize) -> Sql<Vec<Operation>> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM operation ORDER BY created_at DESC, rowid DESC LIMIT ?1"))?;
    all(&mut statement, [limit(n)], |r| read_operation(r, keys))
}

fn operations_of(c: &Connection, keys: &Keys, stack: &StackName, n: usize) -> Sql<Vec<Operation>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {COLUMNS} FROM operation WHERE stack = ?1 ORDER BY created_at DESC, rowid DESC LIMIT ?2"))?;
    all(&mut statement, params![stack.as_str(), limit(n)], |r| read_operation(r, keys))
}

fn operations_page(
    c: &Connection,
    keys: &Keys,
    stack: Option<&StackName>,
    state: Option<OperationState>,
    after: Option<&OperationId>,
    n: usize,
) -> Sql<Vec<Operation>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM operation
         WHERE (?1 IS NULL OR stack = ?1) AND (?2 IS NULL OR state = ?2)
           AND (?3 IS NULL OR (created_at, rowid) < (SELECT created_at, rowid FROM operation WHERE id = ?3))
         ORDER BY created_at DESC, rowid DESC LIMIT ?4"
    ))?;
    let params = params![stack.map(StackName::as_str), state.map(OperationState::as_str), after.map(OperationId::as_str), limit(n)];
    all(&mut statement, params, |r| read_operation(r, keys))
}

fn read_operation(r: &Row<'_>, keys: &Keys) -> Sql<Operation> {
    let id: OperationId = name(WHAT, r.get(0)?)?;
    let evidence = keys.open(WHAT, &evidence_place(&id), r.get_ref(13)?.as_blob().map_err(rusqlite::Error::from)?)?;
    Ok(Operation {
        id,
        verb: r.get(1)?,
        stack: name_opt(WHAT, r.get(2)?)?,
        plan: name_opt(WHAT, r.get(3)?)?,
        agent: r.get(4)?,
        call: name(WHAT, r.get(5)?)?,
        idempotency_key: r.get(6)?,
        state: parse_word(WHAT, &r.get::<_, String>(7)?)?,
        phase: parse_word(WHAT, &r.get::<_, String>(8)?)?,
        epoch: uint(WHAT, r.get(9)?)?,
        release: r.get(10)?,
        reason: r.get(11)?,
        message: r.get(12)?,
        evidence,
        approval: name_opt(WHAT, r.get(14)?)?,
        cancel_requested: r.get(15)?,
        created_at: parse_time(WHAT, &r.get::<_, String>(16)?)?,
        settled_at: parse_time_opt(WHAT, r.get::<_, Option<String>>(17)?.as_deref())?,
    })
}
