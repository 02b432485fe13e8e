//! Stacks, their releases, plans, the loop's healing budget and small values. Release and plan contents are encrypted: they carry
//! environment values, configs and secrets. Deliberately absent: deciding which release is a good one to go back to.

use super::codec::{all, changed, first, json, limit, name, parse_json, parse_time, parse_word, time, uint, word};
use super::fault::{Sql, missing};
use super::journal::hold;
use super::seal::Keys;
use super::{Store, StoreError, StoreResult};
use crate::model::ids::*;
use crate::model::plan::Plan;
use crate::model::release::*;
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// How long a stored plan can be deployed by its id.
const PLAN_HOURS: i64 = 24;
/// How long healing actions are kept: far beyond every budget window.
const HEAL_DAYS: i64 = 7;
const RELEASE: &str =
    "stack, number, state, environment, sealed_spec, images, agent, operation, reason, content_of, project_dir, git, created_at";

fn spec_place(stack: &StackName, number: u32) -> String {
    format!("release/{stack}/{number}")
}

fn plan_place(id: &PlanId) -> String {
    format!("plan/{id}")
}

impl Store {
    /// One stack.
    pub async fn stack(&self, name: &StackName) -> StoreResult<Option<StackRecord>> {
        let name = name.clone();
        self.inner.state.read(move |c| stack(c, &name)).await
    }

    /// All stacks, by name; also one whose first operation has made no release yet (its environment is empty then).
    pub async fn stacks(&self) -> StoreResult<Vec<StackRecord>> {
        self.inner.state.read(stacks).await
    }

    /// Marks a stack as stopped by a call of ours, or not.
    ///
    /// # Errors
    /// `Missing`, or the database's.
    pub async fn set_stopped(&self, name: &StackName, stopped: bool) -> StoreResult<()> {
        let name = name.clone();
        self.inner.state.write(move |c| Ok(changed(set_stopped(c, &name, stopped)?, "stack", &name)?)).await
    }

    /// Inserts or replaces a release (spec encrypted with the home's key).
    pub async fn put_release(&self, release: &Release) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&spec_place(&release.stack, release.number), &release.spec)?;
        let release = release.clone();
        self.inner.state.write(move |c| put_release(c, &release, &sealed)).await
    }

    /// Records a release under a new number; again by the same operation changes nothing.
    ///
    /// # Errors
    /// `Taken` when another operation recorded that number, or the database's.
    pub async fn add_release(&self, release: &Release) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&spec_place(&release.stack, release.number), &release.spec)?;
        let release = release.clone();
        let write = move |c: &Connection| match release_origin(c, &release.stack, release.number)? {
            Some((_, operation)) if operation == release.operation.as_str() => Ok(()),
            Some((_, operation)) => {
                Err(StoreError::Taken { what: format!("release {} of stack {}", release.number, release.stack), by: operation }.into())
            }
            None => put_release(c, &release, &sealed),
        };
        self.inner.state.write(write).await
    }

    /// Makes a release current in one transaction: stack.current, stack.environment, release.state = monitoring, operation's release; with `runs`, what was
    /// stopped by a call runs again. Refused as `Superseded` with an old epoch.
    ///
    /// # Errors
    /// `Superseded`, `Missing`, or the database's.
    pub async fn make_current(&self, name: &StackName, number: u32, runs: bool, epoch: u64) -> StoreResult<()> {
        let name = name.clone();
        let write = move |c: &Connection| {
            hold(c, &name, epoch)?;
            let (environment, operation) =
                release_origin(c, &name, number)?.ok_or_else(|| missing("release", format!("{number} of stack {name}")))?;
            changed(set_current_in(c, &name, number, &environment)?, "stack", &name)?;
            set_release_state(c, &name, number, ReleaseState::Monitoring)?;
            if runs {
                set_stopped(c, &name, false)?;
            }
            set_operation_release(c, &operation, number)?;
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// Sets back the current release (undo after a failed monitor); `None` = no release serves.
    ///
    /// # Errors
    /// `Superseded`, `Missing`, or the database's.
    pub async fn set_current(&self, name: &StackName, number: Option<u32>, epoch: u64) -> StoreResult<()> {
        let name = name.clone();
        let write = move |c: &Connection| {
            hold(c, &name, epoch)?;
            let Some(number) = number else { return Ok(changed(clear_current(c, &name)?, "stack", &name)?) };
            let (environment, _) =
                release_origin(c, &name, number)?.ok_or_else(|| missing("release", format!("{number} of stack {name}")))?;
            Ok(changed(set_current_in(c, &name, number, &environment)?, "stack", &name)?)
        };
        self.inner.state.write(write).await
    }

    /// Sets a release's state.
    ///
    /// # Errors
    /// `Missing`, or the database's.
    pub async fn set_release_state(&self, name: &StackName, number: u32, state: ReleaseState) -> StoreResult<()> {
        let name = name.clone();
        let write =
            move |c: &Connection| Ok(changed(set_release_state(c, &name, number, state)?, "release", format!("{number} of stack {name}"))?);
        self.inner.state.write(write).await
    }

    /// One release.
    pub async fn release(&self, name: &StackName, number: u32) -> StoreResult<Option<Release>> {
        let (name, inner) = (name.clone(), self.inner.clone());
        self.inner.state.read(move |c| release(c, &inner.keys, &name, number)).await
    }

    /// Newest releases, newest first.
    pub async fn releases(&self, name: &StackName, limit: usize) -> StoreResult<Vec<Release>> {
        let (name, inner) = (name.clone(), self.inner.clone());
        self.inner.state.read(move |c| releases(c, &inner.keys, &name, limit)).await
    }

    /// Highest release number ever used for the stack, 0 when none.
    pub async fn last_release_number(&self, name: &StackName) -> StoreResult<u32> {
        let name = name.clone();
        self.inner.state.read(move |c| last_release_number(c, &name)).await
    }

    /// Stores a plan (encrypted); plans older than 24 h are dropped, except where an open operation or approval needs them.
    pub async fn put_plan(&self, plan: &Plan) -> StoreResult<()> {
        let sealed = self.inner.keys.seal(&plan_place(&plan.id), plan)?;
        let (id, stack, digest, at) = (plan.id.clone(), plan.stack.clone(), plan.digest.clone(), plan.created_at);
        let write = move |c: &Connection| {
            drop_plans(c, at - TimeDelta::hours(PLAN_HOURS))?;
            put_plan(c, &id, &stack, &digest, &sealed, at)
        };
        self.inner.state.write(write).await
    }

    /// Notes whose a stored plan is; of an agent's plans the newest `most` are kept, and those that an open operation or approval needs.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep_plans(&self, agent: &str, id: &PlanId, most: usize) -> StoreResult<()> {
        let (key, id) = (format!("plans:{agent}"), id.to_string());
        let write = move |c: &Connection| {
            let mut ids: Vec<String> = value(c, &key)?.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
            ids.retain(|known| *known != id);
            ids.push(id.clone());
            for old in ids.drain(..ids.len().saturating_sub(most)) {
                drop_plan(c, &old)?;
            }
            set_value(c, &key, &serde_json::Value::from(ids.clone()).to_string())
        };
        self.inner.state.write(write).await
    }

    /// A stored plan.
    pub async fn plan(&self, id: &PlanId) -> StoreResult<Option<Plan>> {
        let (id, inner) = (id.clone(), self.inner.clone());
        self.inner.state.read(move |c| plan(c, &inner.keys, &id)).await
    }

    /// Records a healing action of the loop and returns how many there were for (stack, service) since `since`, this one included.
    pub async fn heal_action(&self, stack: &StackName, service: &str, now: DateTime<Utc>, since: DateTime<Utc>) -> StoreResult<u32> {
        let (stack, service) = (stack.clone(), service.to_owned());
        let write = move |c: &Connection| {
            drop_heals(c, now - TimeDelta::days(HEAL_DAYS))?;
            insert_heal(c, &stack, &service, now)?;
            count_heals(c, &stack, &service, since)
        };
        self.inner.state.write(write).await
    }

    /// Healing actions for (stack, service) since a moment.
    pub async fn heal_count(&self, stack: &StackName, service: &str, since: DateTime<Utc>) -> StoreResult<u32> {
        let (stack, service) = (stack.clone(), service.to_owned());
        self.inner.state.read(move |c| count_heals(c, &stack, &service, since)).await
    }

    /// A small durable value by key (loop state, last backup time), or `None`.
    pub async fn value(&self, key: &str) -> StoreResult<Option<serde_json::Value>> {
        let key = key.to_owned();
        self.inner.state.read(move |c| value(c, &key)).await
    }

    /// Sets a small durable value.
    pub async fn set_value(&self, key: &str, value: &serde_json::Value) -> StoreResult<()> {
        let (key, text) = (key.to_owned(), json("value", value)?);
        self.inner.state.write(move |c| set_value(c, &key, &text)).await
    }
}

fn stack(c: &Connection, name: &StackName) -> Sql<Option<StackRecord>> {
    let mut statement = c.prepare_cached("SELECT name, environment, current, stopped, epoch FROM stack WHERE name = ?1")?;
    first(&mut statement, [name.as_str()], read_stack)
}

fn stacks(c: &Connection) -> Sql<Vec<StackRecord>> {
    let mut statement = c.prepare_cached("SELECT name, environment, current, stopped, epoch FROM stack ORDER BY name")?;
    all(&mut statement, [], read_stack)
}

fn read_stack(r: &Row<'_>) -> Sql<StackRecord> {
    Ok(StackRecord {
        name: name("stack", r.get(0)?)?,
        environment: r.get(1)?,
        current: r.get(2)?,
        stopped: r.get(3)?,
        epoch: uint("stack", r.get(4)?)?,
    })
}

fn set_stopped(c: &Connection, name: &StackName, stopped: bool) -> Sql<usize> {
    Ok(c.prepare_cached("UPDATE stack SET stopped = ?2 WHERE name = ?1")?.execute(params![name.as_str(), stopped])?)
}

fn set_current_in(c: &Connection, name: &StackName, number: u32, environment: &str) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE stack SET current = ?2, environment = ?3 WHERE name = ?1")?;
    Ok(statement.execute(params![name.as_str(), number, environment])?)
}

fn clear_current(c: &Connection, name: &StackName) -> Sql<usize> {
    Ok(c.prepare_cached("UPDATE stack SET current = NULL WHERE name = ?1")?.execute([name.as_str()])?)
}

fn put_release(c: &Connection, release: &Release, sealed: &[u8]) -> Sql<()> {
    c.prepare_cached(&format!(
        "INSERT OR REPLACE INTO release ({RELEASE}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
    ))?
    .execute(params![
        release.stack.as_str(),
        release.number,
        word("release", &release.state)?,
        release.environment,
        sealed,
        json("release", &release.images)?,
        release.agent,
        release.operation.as_str(),
        release.reason,
        release.content_of,
        release.project_dir,
        release.git.as_ref().map(|g| json("release", g)).transpose()?,
        time(release.created_at),
    ])?;
    Ok(())
}

fn release_origin(c: &Connection, name: &StackName, number: u32) -> Sql<Option<(String, String)>> {
    let mut statement = c.prepare_cached("SELECT environment, operation FROM release WHERE stack = ?1 AND number = ?2")?;
    Ok(statement.query_row(params![name.as_str(), number], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
}

fn set_release_state(c: &Connection, name: &StackName, number: u32, state: ReleaseState) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE release SET state = ?3 WHERE stack = ?1 AND number = ?2")?;
    Ok(statement.execute(params![name.as_str(), number, word("release", &state)?])?)
}

fn set_operation_release(c: &Connection, operation: &str, number: u32) -> Sql<()> {
    c.prepare_cached("UPDATE operation SET release = ?2 WHERE id = ?1")?.execute(params![operation, number])?;
    Ok(())
}

fn release(c: &Connection, keys: &Keys, name: &StackName, number: u32) -> Sql<Option<Release>> {
    let mut statement = c.prepare_cached(&format!("SELECT {RELEASE} FROM release WHERE stack = ?1 AND number = ?2"))?;
    first(&mut statement, params![name.as_str(), number], |r| read_release(r, keys))
}

fn releases(c: &Connection, keys: &Keys, name: &StackName, n: usize) -> Sql<Vec<Release>> {
    let mut statement = c.prepare_cached(&format!("SELECT {RELEASE} FROM release WHERE stack = ?1 ORDER BY number DESC LIMIT ?2"))?;
    all(&mut statement, params![name.as_str(), limit(n)], |r| read_release(r, keys))
}

fn last_release_number(c: &Connection, name: &StackName) -> Sql<u32> {
    let mut statement = c.prepare_cached("SELECT coalesce(max(number), 0) FROM release WHERE stack = ?1")?;
    Ok(statement.query_row([name.as_str()], |r| r.get(0))?)
}

fn read_release(r: &Row<'_>, keys: &Keys) -> Sql<Release> {
    const WHAT: &str = "release";
    let stack: StackName = name(WHAT, r.get(0)?)?;
    let number: u32 = r.get(1)?;
    let spec = keys.open(WHAT, &spec_place(&stack, number), &r.get::<_, Vec<u8>>(4)?)?;
    Ok(Release {
        stack,
        number,
        state: parse_word(WHAT, &r.get::<_, String>(2)?)?,
        environment: r.get(3)?,
        spec,
        images: parse_json(WHAT, &r.get::<_, String>(5)?)?,
        agent: r.get(6)?,
        operation: name(WHAT, r.get(7)?)?,
        reason: r.get(8)?,
        content_of: r.get(9)?,
        project_dir: r.get(10)?,
        git: r.get::<_, Option<String>>(11)?.map(|g| parse_json(WHAT, &g)).transpose()?,
        created_at: parse_time(WHAT, &r.get::<_, String>(12)?)?,
    })
}

fn put_plan(c: &Connection, id: &PlanId, stack: &StackName, digest: &str, sealed: &[u8], at: DateTime<Utc>) -> Sql<()> {
    c.prepare_cached("INSERT OR REPLACE INTO plan (id, stack, digest, sealed_plan, created_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![id.as_str(), stack.as_str(), digest, sealed, time(at)])?;
    Ok(())
}

fn drop_plan(c: &Connection, id: &str) -> Sql<usize> {
    let rows = c
        .prepare_cached(
            "DELETE FROM plan WHERE id = ?1
               AND id NOT IN (SELECT plan FROM operation WHERE terminal = 0 AND plan IS NOT NULL)
               AND id NOT IN (SELECT plan FROM approval WHERE state IN ('pending', 'approved') AND plan IS NOT NULL)",
        )?
        .execute([id])?;
    Ok(rows)
}

fn drop_plans(c: &Connection, before: DateTime<Utc>) -> Sql<usize> {
    let rows = c
        .prepare_cached(
            "DELETE FROM plan WHERE created_at < ?1
               AND id NOT IN (SELECT plan FROM operation WHERE terminal = 0 AND plan IS NOT NULL)
               AND id NOT IN (SELECT plan FROM approval WHERE state IN ('pending', 'approved') AND plan IS NOT NULL)",
        )?
        .execute([time(before)])?;
    Ok(rows)
}

fn plan(c: &Connection, keys: &Keys, id: &PlanId) -> Sql<Option<Plan>> {
    let sealed: Option<Vec<u8>> =
        c.prepare_cached("SELECT sealed_plan FROM plan WHERE id = ?1")?.query_row([id.as_str()], |r| r.get(0)).optional()?;
    Ok(sealed.map(|s| keys.open("plan", &plan_place(id), &s)).transpose()?)
}

fn insert_heal(c: &Connection, stack: &StackName, service: &str, now: DateTime<Utc>) -> Sql<()> {
    c.prepare_cached("INSERT INTO heal (stack, service, at) VALUES (?1, ?2, ?3)")?.execute(params![stack.as_str(), service, time(now)])?;
    Ok(())
}

fn drop_heals(c: &Connection, before: DateTime<Utc>) -> Sql<usize> {
    Ok(c.prepare_cached("DELETE FROM heal WHERE at < ?1")?.execute([time(before)])?)
}

fn count_heals(c: &Connection, stack: &StackName, service: &str, since: DateTime<Utc>) -> Sql<u32> {
    let mut statement = c.prepare_cached("SELECT count(*) FROM heal WHERE stack = ?1 AND service = ?2 AND at >= ?3")?;
    Ok(statement.query_row(params![stack.as_str(), service, time(since)], |r| r.get(0))?)
}

pub(super) fn value(c: &Connection, key: &str) -> Sql<Option<serde_json::Value>> {
    let text: Option<String> = c.prepare_cached("SELECT json FROM value WHERE key = ?1")?.query_row([key], |r| r.get(0)).optional()?;
    Ok(text.map(|t| parse_json("value", &t)).transpose()?)
}

/// Asked in the transaction that begins an operation: nothing that came in before a freeze begins after it.
pub(super) fn not_frozen(c: &Connection) -> Sql<()> {
    match value(c, super::FREEZE)? {
        Some(serde_json::Value::Object(_)) => Err(StoreError::Frozen.into()),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn set_value(c: &Connection, key: &str, text: &str) -> Sql<()> {
    c.prepare_cached("INSERT OR REPLACE INTO value (key, json) VALUES (?1, ?2)")?.execute([key, text])?;
    Ok(())
}
