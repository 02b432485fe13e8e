//! Files of events that left a memory's log: one line of JSON an event, compressed, with the hashes they had, so that the chain goes on through them. A file
//! is whole when it has its name. Deliberately absent: which events leave.

use super::events::{self, RawEvent};
use crate::store::audit::rotate::digest;
use crate::store::chain::{Hash, hex};
use crate::store::fault::{Fault, Sql, corrupt, io};
use crate::store::{StoreResult, migrate, private_dir};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directory of the files beside a memory's database.
pub(in crate::store) const DIR: &str = "archive";
const WHAT: &str = "memory archive";
/// Text of this kind shrinks to a tenth; more effort wins little.
const LEVEL: i32 = 6;

/// File of the events that begin with one, in the directory of a memory.
pub(super) fn file(memory: &Path, first: i64) -> PathBuf {
    memory.join(DIR).join(format!("events-{first:012}.jsonl.zst"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    seq: i64,
    ts: String,
    op: String,
    key: String,
    value: String,
    source: String,
    prev_hash: String,
    hash: String,
}

/// What was written.
pub(super) struct Written {
    /// Hash of the last event.
    pub head: Hash,
    /// SHA-256 of the file.
    pub sha256: Hash,
    /// Time of the last event.
    pub to_at: String,
}

/// Copies events into a file without a name; every one must follow the one before, beginning after `prev`. On disk when this returns.
pub(super) fn write(c: &Connection, memory: &Path, (first, last): (i64, i64), prev: Hash) -> Sql<Written> {
    let new = unnamed(memory);
    private_dir(&memory.join(DIR))?;
    // Left by a crash; nothing refers to it.
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&new, &e).into()),
        _ => {}
    }
    let told = |e: std::io::Error| Fault::Store(io(&new, &e));
    let handle = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(told)?;
    let mut to = zstd::stream::write::Encoder::new(BufWriter::new(handle), LEVEL).map_err(told)?;
    let (mut next, mut head, mut to_at) = (first, prev, String::new());
    events::each(c, first, last, |e| {
        if e.seq != next || e.prev_hash != head || e.hash != e.link(&head) {
            return Err(unfit(e.seq));
        }
        let line = Line {
            seq: e.seq,
            ts: e.ts.clone(),
            op: e.op,
            key: e.key,
            value: e.value,
            source: e.source,
            prev_hash: hex(&e.prev_hash),
            hash: hex(&e.hash),
        };
        let text = serde_json::to_string(&line).map_err(|e| Fault::Store(corrupt(WHAT, e)))?;
        writeln!(to, "{text}").map_err(told)?;
        (next, to_at) = (next + 1, e.ts);
        head = e.hash.as_slice().try_into().map_err(|_| unfit(e.seq))?;
        Ok(())
    })?;
    if next != last + 1 {
        return Err(unfit(next));
    }
    let handle = to.finish().map_err(told)?.into_inner().map_err(|e| told(e.into_error()))?;
    handle.set_permissions(std::fs::Permissions::from_mode(0o400)).and_then(|()| handle.sync_all()).map_err(told)?;
    Ok(Written { head, sha256: digest(&new)?, to_at })
}

fn unfit(seq: i64) -> Fault {
    Fault::Store(corrupt("memory", format!("event {seq} does not fit the chain; nothing is compacted, run memory verify")))
}

fn unnamed(memory: &Path) -> PathBuf {
    memory.join(DIR).join("new.jsonl.zst")
}

/// Gives the written file its name. One of that name that nothing lists was left by a crash, and is replaced.
pub(super) fn name(memory: &Path, first: i64) -> StoreResult<()> {
    let (new, file) = (unnamed(memory), file(memory, first));
    std::fs::rename(&new, &file).map_err(|e| io(&file, &e))?;
    migrate::sync_dir(&file)
}

/// Calls `see` with every event of a file.
pub(super) fn each(path: &Path, mut see: impl FnMut(RawEvent) -> Sql<()>) -> Sql<()> {
    let told = |e: std::io::Error| Fault::Store(io(path, &e));
    let bad = |detail: String| Fault::Store(corrupt(WHAT, format!("{}: {detail}", path.display())));
    let from = zstd::stream::read::Decoder::new(std::fs::File::open(path).map_err(told)?).map_err(told)?;
    for line in BufReader::new(from).lines() {
        let line: Line = serde_json::from_str(&line.map_err(told)?).map_err(|e| bad(e.to_string()))?;
        let hash = |text: &str| unhex(text).ok_or_else(|| bad(format!("event {} has no hash", line.seq)));
        let (prev_hash, hash) = (hash(&line.prev_hash)?, hash(&line.hash)?);
        let Line { seq, ts, op, key, value, source, .. } = line;
        see(RawEvent { seq, ts, op, key, value, source, prev_hash, hash })?;
    }
    Ok(())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
    if text.len().is_multiple_of(2) { (0..text.len()).step_by(2).map(digit).collect() } else { None }
}
