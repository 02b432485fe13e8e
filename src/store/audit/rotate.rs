//! Rotation: when the log in the database is large or old, its closed part becomes a sealed segment, a read-only file with a signed statement of
//! its rows, its head hash and its own hash. The order makes a crash harmless at every point: the copy is complete and on disk before it is
//! sealed, sealed before the database lists it, and listed (in one transaction with a row of the log that tells so) before the first row is deleted.
//! What a crash leaves is taken up by the next rotation. Deliberately absent: ever writing or removing a sealed segment.

use super::rows::{self, NewRow, RawRow};
use super::{checkpoint, segments};
use crate::store::appended::Row;
use crate::store::chain::{Hash, hex};
use crate::store::codec::{parse_time, time};
use crate::store::db::{Undo, used_bytes};
use crate::store::fault::{Sql, corrupt, database, io};
use crate::store::{Inner, Store, StoreResult, migrate, private_dir};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Rows deleted in one transaction: calls that wait for their row wait no longer than for this.
const DELETE_AT_ONCE: i64 = 2_000;

/// When the log in the database is rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// With more bytes than this.
    pub max_bytes: u64,
    /// With a row older than this.
    pub max_age: Option<TimeDelta>,
}

/// What was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Number of its first row.
    pub first: i64,
    /// Number of its last row.
    pub last: i64,
    /// Its file.
    pub file: PathBuf,
}

/// How far a rotation goes: a test stops where a crash could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(test), expect(dead_code, reason = "outside of tests a rotation goes to its end"))]
pub(super) enum Until {
    /// The copy is on disk under a name that means nothing.
    Copied,
    /// It has its name.
    Named,
    /// Its seal is there.
    Sealed,
    /// The database lists it.
    Listed,
    /// Its rows are gone from the database.
    Done,
}

impl Store {
    /// Seals the closed part of the log when it is due. A call whose outcome is not there yet, and what came after it, stay in the database.
    ///
    /// # Errors
    /// `Corrupt` when a row does not fit its chain: a damaged log is never sealed. The file system's, and the database's.
    pub async fn audit_rotate(&self, rotation: &Rotation, now: DateTime<Utc>) -> StoreResult<Option<Sealed>> {
        self.rotate_until(rotation, now, Until::Done).await
    }

    pub(super) async fn rotate_until(&self, rotation: &Rotation, now: DateTime<Utc>, until: Until) -> StoreResult<Option<Sealed>> {
        // Nobody verifies or signs meanwhile.
        let _one = self.inner.checkpoints.lock().await;
        self.delete_sealed().await?;
        let rule = rotation.clone();
        let Some((first, last)) = self.inner.audit.read(move |c| due(c, &rule, now)).await? else { return Ok(None) };
        let (home, inner) = (self.home.clone(), self.inner.clone());
        let made = tokio::task::spawn_blocking(move || make(&home, &inner, (first, last), now, until)).await;
        let made = made.map_err(|e| corrupt("audit segment", format!("making it ended early: {e}")))??;
        let sealed = Sealed { first, last, file: segments::file(&self.home.join(segments::DIR), first) };
        if until < Until::Listed {
            return Ok(Some(sealed));
        }
        self.append(Undo::Savepoint, move |c| enlist(c, &made, now).map(|told| ((), told))).await?;
        if until == Until::Done {
            self.delete_sealed().await?;
        }
        Ok(Some(sealed))
    }

    /// Deletes the rows that are in listed segments, a few at a time.
    async fn delete_sealed(&self) -> StoreResult<()> {
        loop {
            let delete = |c: &Connection| {
                let to = segments::sealed_to(c)?;
                let mut statement = c.prepare_cached("DELETE FROM audit WHERE seq <= ?1 AND seq < (SELECT min(seq) FROM audit) + ?2")?;
                Ok(statement.execute(params![to, DELETE_AT_ONCE])?)
            };
            if self.inner.audit.write(delete).await? == 0 {
                return Ok(());
            }
        }
    }
}

/// The rows to seal, when it is time.
fn due(c: &Connection, rotation: &Rotation, now: DateTime<Utc>) -> Sql<Option<(i64, i64)>> {
    let bytes = used_bytes(c)?;
    let first = segments::sealed_to(c)? + 1;
    let oldest: Option<String> = c.query_row("SELECT at FROM audit WHERE seq = ?1", [first], |r| r.get(0)).optional()?;
    let Some(oldest) = oldest else { return Ok(None) };
    let old = rotation.max_age.is_some_and(|age| parse_time("audit row", &oldest).is_ok_and(|at| now - at > age));
    if bytes <= rotation.max_bytes && !old {
        return Ok(None);
    }
    let (head, _) = rows::head(c)?;
    let open: Option<i64> = c.query_row("SELECT min(seq) FROM open_call", [], |r| r.get(0))?;
    let last = open.map_or(head, |seq| head.min(seq - 1));
    Ok((last >= first).then_some((first, last)))
}

/// A segment whose file and seal are on disk.
struct Made {
    first: i64,
    last: i64,
    head: Hash,
    sha256: Hash,
    from_at: String,
    to_at: String,
}

/// Copies the rows, checks their chain on the way, names and seals the copy.
fn make(home: &Path, inner: &Inner, (first, last): (i64, i64), now: DateTime<Utc>, until: Until) -> StoreResult<Made> {
    let dir = home.join(segments::DIR);
    private_dir(&dir)?;
    let new = dir.join("new.db");
    // Left by a crash; nothing refers to it.
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&new, &e)),
        _ => {}
    }
    let live_path = home.join("audit.db");
    let live = migrate::open_reader(&live_path)?;
    let (head, from_at, to_at) = copy(&live, &new, first, last).map_err(|e| e.named(&live_path))?;
    drop(live);
    let handle = std::fs::File::open(&new).map_err(|e| io(&new, &e))?;
    handle.sync_all().map_err(|e| io(&new, &e))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o400)).map_err(|e| io(&new, &e))?;
    let sha256 = digest(&new)?;
    let made = Made { first, last, head, sha256, from_at, to_at };
    if until < Until::Named {
        return Ok(made);
    }
    let file = segments::file(&dir, first);
    std::fs::rename(&new, &file).map_err(|e| io(&file, &e))?;
    migrate::sync_dir(&file)?;
    if until < Until::Sealed {
        return Ok(made);
    }
    let text = checkpoint::sign(&statement(&checkpoint::origin(&inner.instance), &made, now), inner);
    write_whole(&segments::seal_file(&dir, first), &text)?;
    Ok(made)
}

/// Copies rows in their order; every one must follow the one before.
fn copy(live: &Connection, new: &Path, first: i64, last: i64) -> Sql<(Hash, String, String)> {
    let named = |e| crate::store::fault::Fault::Store(database(new, e));
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(new).map_err(|e| io(new, &e))?;
    let to = Connection::open_with_flags(new, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(named)?;
    // Durable as a whole when it is finished: a half one is thrown away.
    to.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;").map_err(named)?;
    to.execute_batch(migrate::SEGMENT.steps[0]).map_err(named)?;
    to.execute_batch("BEGIN").map_err(named)?;
    let snapshot = live.unchecked_transaction()?;
    let mut prev: Hash = match first {
        1 => crate::store::chain::GENESIS,
        _ => snapshot.query_row("SELECT head FROM segment WHERE last = ?1", [first - 1], |r| r.get(0))?,
    };
    let (mut next, mut from_at, mut to_at) = (first, None::<String>, String::new());
    rows::each_between(&snapshot, first, last, |row: RawRow| {
        let own = row.link(&prev);
        if row.seq != next || row.prev_hash != prev || row.hash != own {
            let detail = format!("row {} does not fit the chain; nothing is sealed, run audit verify", row.seq);
            return Err(corrupt("audit log", detail).into());
        }
        rows::insert(&to, &row).map_err(|e| e.named(new))?;
        (prev, next) = (own, next + 1);
        if from_at.as_ref().is_none_or(|at| row.at < *at) {
            from_at = Some(row.at.clone());
        }
        if row.at > to_at {
            to_at = row.at;
        }
        Ok(())
    })?;
    if next != last + 1 {
        return Err(corrupt("audit log", format!("rows from {next} to {last} are missing; nothing is sealed, run audit verify")).into());
    }
    to.execute_batch("COMMIT").map_err(named)?;
    to.close().map_err(|(_, e)| named(e))?;
    Ok((prev, from_at.unwrap_or_default(), to_at))
}

/// The text a seal signs: origin, what it is, rows, head, the file's hash.
fn statement(origin: &str, made: &Made, now: DateTime<Utc>) -> String {
    let encode = |hash: &Hash| STANDARD.encode(hash);
    format!("{origin}\nsegment {} {}\n{}\nsha256 {}\nat {}\n", made.first, made.last, encode(&made.head), encode(&made.sha256), time(now))
}

/// What a seal says of its segment, when the signature holds.
pub(super) fn read_seal(path: &Path, inner: &Inner) -> Result<(i64, i64, Hash, Hash), String> {
    let note = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let text = checkpoint::verified(note.trim_end_matches('\n'), inner)?;
    let lines: Vec<&str> = text.lines().collect();
    let hash = |text: &str| STANDARD.decode(text).ok().and_then(|b| Hash::try_from(b).ok());
    let parsed = (|| {
        let [_, what, head, sha256, ..] = lines[..] else { return None };
        let (first, last) = what.strip_prefix("segment ")?.split_once(' ')?;
        Some((first.parse().ok()?, last.parse().ok()?, hash(head)?, hash(sha256.strip_prefix("sha256 ")?)?))
    })();
    parsed.ok_or_else(|| "it does not say what a seal says".to_owned())
}

/// Lists the segment, with a row of the log that tells so: the chain vouches for the list.
fn enlist(c: &Connection, made: &Made, now: DateTime<Utc>) -> Sql<Vec<Row>> {
    let detail = json!({"first": made.first, "last": made.last, "head": hex(&made.head), "sha256": hex(&made.sha256)});
    let (_, told) = super::appended(c, &NewRow::event("supervisor", "audit_sealed", None, &detail, now))?;
    let written = c
        .prepare_cached("INSERT INTO segment (first, last, head, sha256, from_at, to_at, sealed_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![made.first, made.last, made.head, made.sha256, made.from_at, made.to_at, time(now)])?;
    rows::one("audit segment", written)?;
    Ok(told)
}

/// SHA-256 of a file.
pub(in crate::store) fn digest(path: &Path) -> StoreResult<Hash> {
    let mut file = std::fs::File::open(path).map_err(|e| io(path, &e))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 128 * 1024]);
    loop {
        match file.read(&mut buffer).map_err(|e| io(path, &e))? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Writes aside and renames: there is a whole seal or none.
fn write_whole(path: &Path, text: &str) -> StoreResult<()> {
    let new = path.with_extension("seal.new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(|e| io(&new, &e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| io(&new, &e))?;
    std::fs::rename(&new, path).map_err(|e| io(path, &e))?;
    migrate::sync_dir(path)
}
