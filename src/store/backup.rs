//! Records of backups: what was read, when, and for whom. Deliberately absent: the repository itself, which is the truth about content.

pub mod copies;
pub mod figures;

use super::codec::{all, int, limit, parse_time, time, uint};
use super::fault::Sql;
use super::{Store, StoreResult};
use crate::model::ids::*;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One snapshot as we recorded it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct BackupRecord {
    /// Id in the repository.
    pub snapshot_id: String,
    /// Stack it belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// Volume.
    pub volume: String,
    /// Bytes of data read.
    pub bytes: u64,
    /// Bytes new in the repository.
    pub added: u64,
    /// Files.
    pub files: u64,
    /// `complete`, or `partial` when a file could not be read.
    pub state: String,
    /// When the data was read.
    pub at: DateTime<Utc>,
    /// Agent that asked.
    pub agent: String,
    /// Release that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// Why it was taken, e.g. `pre-update`; tags of the snapshot in the repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Operation that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Copies that hold it, too; read from their own records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    pub copies: Vec<String>,
}

/// What came of rehearsing a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct DrillRecord {
    /// Snapshot that was restored.
    pub snapshot_id: String,
    /// Its stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// Its volume.
    pub volume: String,
    /// When.
    pub at: DateTime<Utc>,
    /// It came back equal, and the service ran on it where that was asked for.
    pub passed: bool,
    /// Files that came back.
    pub files: u64,
    /// Bytes that came back.
    pub bytes: u64,
    /// How long it took, ms.
    pub duration_ms: u64,
    /// Service that was started on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed: Option<String>,
    /// Why it failed, without text of the container; empty when it passed.
    pub detail: String,
    /// What the container said when it did not run on the data: with the operation alone, not in the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub evidence: Option<crate::redact::Untrusted>,
    /// Operation.
    pub operation: String,
    /// The copy it was restored from, instead of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

/// What came of looking at the repository itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct CheckRecord {
    /// 1: the snapshots just taken are listed with their counts; 2: structure and a part of the data.
    pub level: u32,
    /// When.
    pub at: DateTime<Utc>,
    /// Nothing was wrong.
    pub passed: bool,
    /// Which part of the data was read, e.g. `3/7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// How long it took, ms.
    pub duration_ms: u64,
    /// What was wrong; empty when it passed.
    pub detail: String,
    /// Operation.
    pub operation: String,
    /// The copy that was looked at, instead of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

#[cfg(test)]
impl BackupRecord {
    /// A whole one of `shop`.
    pub(crate) fn sample(id: &str, volume: &str) -> Self {
        Self {
            snapshot_id: id.into(),
            stack: Some("shop".into()),
            volume: volume.into(),
            bytes: 1,
            added: 1,
            files: 1,
            state: "complete".into(),
            at: Utc::now(),
            agent: "warden".into(),
            release: None,
            tags: vec![],
            operation: None,
            copies: vec![],
        }
    }
}

const WHAT: &str = "backup";
const DRILL: &str = "operation, snapshot_id, stack, volume, at, passed, files, bytes, duration_ms, probed, detail, copy";
const COLUMNS: &str = "snapshot_id, stack, volume, bytes, added, files, state, at, agent, release, tags, operation";
/// Copies that hold a snapshot, beside the columns of its own.
const COPIES: &str = "(SELECT group_concat(copy) FROM backup_copy AS k WHERE k.snapshot_id = backup.snapshot_id)";

impl Store {
    /// Records a snapshot.
    pub async fn put_backup(&self, record: &BackupRecord) -> StoreResult<()> {
        let (record, now) = (record.clone(), Utc::now());
        self.inner.state.write(move |c| put(c, &record, now)).await
    }

    /// Snapshots of a stack or volume (or all), newest first.
    pub async fn backups(&self, stack: Option<&StackName>, volume: Option<&str>, limit: usize) -> StoreResult<Vec<BackupRecord>> {
        let (stack, volume) = (stack.cloned(), volume.map(str::to_owned));
        self.inner.state.read(move |c| list(c, stack.as_ref(), volume.as_deref(), limit)).await
    }

    /// When a snapshot was last recorded, which may be long after its data was read.
    pub async fn last_backup_recorded(&self) -> StoreResult<Option<DateTime<Utc>>> {
        self.inner.state.read(last_recorded).await
    }

    /// Records a drill.
    pub async fn put_drill(&self, record: &DrillRecord) -> StoreResult<()> {
        let record = record.clone();
        self.inner.state.write(move |c| put_drill(c, &record)).await
    }

    /// The last drill of each volume of a stack (or of all), newest first.
    pub async fn last_drills(&self, stack: Option<&StackName>, volume: Option<&str>) -> StoreResult<Vec<DrillRecord>> {
        let (stack, volume) = (stack.cloned(), volume.map(str::to_owned));
        self.inner.state.read(move |c| last_drills(c, stack.as_ref(), volume.as_deref())).await
    }

    /// Records a check of the repository.
    pub async fn put_check(&self, record: &CheckRecord) -> StoreResult<()> {
        let record = record.clone();
        self.inner.state.write(move |c| put_check(c, &record)).await
    }

    /// The last check of each level.
    pub async fn last_checks(&self) -> StoreResult<Vec<CheckRecord>> {
        self.inner.state.read(last_checks).await
    }

    /// Drops the records of snapshots that were forgotten.
    pub async fn forget_backups(&self, ids: Vec<String>) -> StoreResult<()> {
        let write = move |c: &Connection| {
            for id in &ids {
                forget(c, id)?;
            }
            Ok(())
        };
        self.inner.state.write(write).await
    }

    /// Drops the records of snapshots that may go, and answers with those that stay: what is marked so, and what was found to hold data that is kept.
    pub async fn forget_free_backups(&self, ids: Vec<String>) -> StoreResult<Vec<String>> {
        let write = move |c: &Connection| {
            let mut stay = vec![];
            for id in &ids {
                if holds(c, id)? {
                    stay.push(id.clone());
                } else {
                    forget(c, id)?;
                }
            }
            Ok(stay)
        };
        self.inner.state.write(write).await
    }

    /// Snapshots whose last drill failed: from the repository, or from one of its copies.
    pub async fn failed_drills(&self, copy: Option<&str>) -> StoreResult<BTreeSet<String>> {
        let copy = copy.map(str::to_owned);
        self.inner.state.read(move |c| failed_drills(c, copy.as_deref())).await
    }

    /// One by id or unambiguous prefix; `None` when several begin with it.
    pub async fn backup(&self, id: &SnapshotId) -> StoreResult<Option<BackupRecord>> {
        let id = id.clone();
        let read = move |c: &Connection| {
            let mut found = by_prefix(c, &id)?;
            if let Some(exact) = found.iter().position(|b| b.snapshot_id == id.as_str()) {
                return Ok(Some(found.swap_remove(exact)));
            }
            Ok(if found.len() == 1 { found.pop() } else { None })
        };
        self.inner.state.read(read).await
    }
}

fn put(c: &Connection, b: &BackupRecord, recorded: DateTime<Utc>) -> Sql<()> {
    let columns = format!("{COLUMNS}, recorded_at");
    c.prepare_cached(&format!(
        "INSERT OR REPLACE INTO backup ({columns}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
    ))?
    .execute(params![
        b.snapshot_id,
        b.stack,
        b.volume,
        int(WHAT, b.bytes)?,
        int(WHAT, b.added)?,
        int(WHAT, b.files)?,
        b.state,
        time(b.at),
        b.agent,
        b.release,
        b.tags.join(","),
        b.operation,
        time(recorded),
    ])?;
    Ok(())
}

fn last_recorded(c: &Connection) -> Sql<Option<DateTime<Utc>>> {
    let newest: Option<String> = c.prepare_cached("SELECT max(recorded_at) FROM backup")?.query_row([], |r| r.get(0))?;
    Ok(newest.map(|t| parse_time(WHAT, &t)).transpose()?)
}

fn put_drill(c: &Connection, d: &DrillRecord) -> Sql<()> {
    c.prepare_cached(&format!("INSERT OR REPLACE INTO drill ({DRILL}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"))?
        .execute(params![
            d.operation,
            d.snapshot_id,
            d.stack,
            d.volume,
            time(d.at),
            d.passed,
            int("drill", d.files)?,
            int("drill", d.bytes)?,
            int("drill", d.duration_ms)?,
            d.probed,
            d.detail,
            d.copy,
        ])?;
    Ok(())
}

fn last_drills(c: &Connection, stack: Option<&StackName>, volume: Option<&str>) -> Sql<Vec<DrillRecord>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {DRILL} FROM drill AS d WHERE (?1 IS NULL OR stack = ?1) AND (?2 IS NULL OR volume = ?2)
           AND NOT EXISTS (SELECT 1 FROM drill AS n WHERE n.volume = d.volume AND n.stack IS d.stack AND n.copy IS d.copy AND n.at > d.at)
         ORDER BY at DESC, volume"
    ))?;
    all(&mut statement, params![stack.map(StackName::as_str), volume], |r| {
        Ok(DrillRecord {
            operation: r.get(0)?,
            snapshot_id: r.get(1)?,
            stack: r.get(2)?,
            volume: r.get(3)?,
            at: parse_time("drill", &r.get::<_, String>(4)?)?,
            passed: r.get(5)?,
            files: uint("drill", r.get(6)?)?,
            bytes: uint("drill", r.get(7)?)?,
            duration_ms: uint("drill", r.get(8)?)?,
            probed: r.get(9)?,
            detail: r.get(10)?,
            copy: r.get(11)?,
            evidence: None,
        })
    })
}

fn put_check(c: &Connection, r: &CheckRecord) -> Sql<()> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO backup_check (operation, level, at, passed, part, duration_ms, detail, copy) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![r.operation, r.level, time(r.at), r.passed, r.part, int("backup_check", r.duration_ms)?, r.detail, r.copy])?;
    Ok(())
}

fn last_checks(c: &Connection) -> Sql<Vec<CheckRecord>> {
    let mut statement = c.prepare_cached(
        "SELECT level, at, passed, part, duration_ms, detail, operation, copy FROM backup_check AS b
         WHERE NOT EXISTS (SELECT 1 FROM backup_check AS n WHERE n.level = b.level AND n.copy IS b.copy AND n.at > b.at)
         ORDER BY copy, level",
    )?;
    all(&mut statement, [], |r| {
        Ok(CheckRecord {
            level: r.get(0)?,
            at: parse_time("backup_check", &r.get::<_, String>(1)?)?,
            passed: r.get(2)?,
            part: r.get(3)?,
            duration_ms: uint("backup_check", r.get(4)?)?,
            detail: r.get(5)?,
            operation: r.get(6)?,
            copy: r.get(7)?,
        })
    })
}

fn forget(c: &Connection, id: &str) -> Sql<usize> {
    Ok(c.prepare_cached("DELETE FROM backup WHERE snapshot_id = ?1")?.execute([id])?)
}

/// Whether a snapshot is marked to stay, or was found to hold data that is kept.
fn holds(c: &Connection, id: &str) -> Sql<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM backup WHERE snapshot_id = ?1 AND instr(',' || tags || ',', ',keep,') > 0)
             OR EXISTS (SELECT 1 FROM kept WHERE covered = ?1)",
    )?
    .query_row([id], |r| r.get(0))
    .map_err(Into::into)
}

fn failed_drills(c: &Connection, copy: Option<&str>) -> Sql<BTreeSet<String>> {
    let mut statement = c.prepare_cached(
        "SELECT DISTINCT snapshot_id FROM drill AS d WHERE copy IS ?1 AND NOT passed
           AND NOT EXISTS (SELECT 1 FROM drill AS n WHERE n.snapshot_id = d.snapshot_id AND n.copy IS d.copy AND n.at > d.at)",
    )?;
    Ok(all(&mut statement, [copy], |r| Ok(r.get::<_, String>(0)?))?.into_iter().collect())
}

fn list(c: &Connection, stack: Option<&StackName>, volume: Option<&str>, n: usize) -> Sql<Vec<BackupRecord>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS}, {COPIES} FROM backup WHERE (?1 IS NULL OR stack = ?1) AND (?2 IS NULL OR volume = ?2) ORDER BY at DESC, rowid DESC LIMIT ?3"
    ))?;
    all(&mut statement, params![stack.map(StackName::as_str), volume, limit(n)], read)
}

fn by_prefix(c: &Connection, id: &SnapshotId) -> Sql<Vec<BackupRecord>> {
    // Not LIKE: an id may hold its wildcard `_`.
    let mut statement =
        c.prepare_cached(&format!("SELECT {COLUMNS}, {COPIES} FROM backup WHERE substr(snapshot_id, 1, length(?1)) = ?1"))?;
    all(&mut statement, [id.as_str()], read)
}

fn read(r: &Row<'_>) -> Sql<BackupRecord> {
    Ok(BackupRecord {
        snapshot_id: r.get(0)?,
        stack: r.get(1)?,
        volume: r.get(2)?,
        bytes: uint(WHAT, r.get(3)?)?,
        added: uint(WHAT, r.get(4)?)?,
        files: uint(WHAT, r.get(5)?)?,
        state: r.get(6)?,
        at: parse_time(WHAT, &r.get::<_, String>(7)?)?,
        agent: r.get(8)?,
        release: r.get(9)?,
        tags: r.get::<_, String>(10)?.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
        operation: r.get(11)?,
        copies: r.get::<_, Option<String>>(12)?.unwrap_or_default().split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
    })
}
