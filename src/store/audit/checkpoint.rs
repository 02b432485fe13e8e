//! Signed statements of how long the log was and which hash it ended with, in a text file outside of the database. The text is that of
//! C2SP tlog-checkpoint and signed-note (origin, size, head hash, signature line); the head is that of a hash chain, not of a tree.

use super::rows;
use super::segments::Log;
use crate::store::chain::Hash;
use crate::store::fault::{Sql, corrupt, io};
use crate::store::{Inner, StoreResult, codec, migrate};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// File under the home.
pub(super) const FILE: &str = "checkpoints";
/// Key of the small value that notes the last checkpoint in the state database.
pub(super) const NOTED: &str = "audit.checkpoint";
/// Checkpoints noted there by their size, the newest: two weeks of one every ten minutes.
pub(super) const MOST_NOTED: usize = 2016;
/// Algorithm byte of Ed25519 in signed-note key ids.
const ED25519: u8 = 1;

/// What a checkpoint states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Rows.
    pub size: i64,
    /// Hash of the last.
    pub hash: Hash,
}

/// Sizes of the checkpoints a note knows of, oldest first.
pub(super) fn noted_sizes(note: &serde_json::Value) -> Vec<i64> {
    let listed = note["sizes"].as_array().map(|s| s.iter().filter_map(serde_json::Value::as_i64).collect::<Vec<_>>());
    listed.unwrap_or_else(|| note["size"].as_i64().into_iter().collect())
}

/// The newest checkpoint a note knows of.
pub(super) fn noted_head(note: &serde_json::Value) -> Option<(i64, Hash)> {
    let hash =
        (0..64).step_by(2).map(|i| u8::from_str_radix(note["hash"].as_str()?.get(i..i + 2)?, 16).ok()).collect::<Option<Vec<u8>>>()?;
    Some((note["size"].as_i64()?, hash.try_into().ok()?))
}

/// First line of whatever this home signs.
pub(super) fn origin(instance: &str) -> String {
    format!("dockwarden/{instance}")
}

/// First four bytes of SHA-256 over name, newline, algorithm and public key.
fn key_id(name: &str, key: &VerifyingKey) -> [u8; 4] {
    let hash: Hash = Sha256::new().chain_update(name).chain_update([b'\n', ED25519]).chain_update(key.as_bytes()).finalize().into();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// The public half as a signed note's verifier key: name, key id, algorithm and key.
pub(super) fn verifier_key(inner: &Inner) -> String {
    let (name, key) = (origin(&inner.instance), inner.keys.checkpoint.verifying_key());
    let id: String = key_id(&name, &key).iter().map(|b| format!("{b:02x}")).collect();
    let mut bytes = vec![ED25519];
    bytes.extend_from_slice(key.as_bytes());
    format!("{name}+{id}+{}", STANDARD.encode(bytes))
}

/// The last complete checkpoint of a file's text, with the empty line that ends it.
pub(super) fn newest(text: &str) -> Option<&str> {
    let end = text.rfind("\n\n")? + 2;
    let blank = text[..end - 2].rfind("\n\n")?;
    let start = text[..blank].rfind("\n\n").map_or(0, |i| i + 2);
    Some(&text[start..end])
}

/// The text of a checkpoint; `at` is an extension line.
fn text(head: &Head, inner: &Inner, at: DateTime<Utc>) -> String {
    format!("{}\n{}\n{}\nat {}\n", origin(&inner.instance), head.size, STANDARD.encode(head.hash), codec::time(at))
}

/// A text with its signature. Its first line has to be the origin.
pub(super) fn sign(text: &str, inner: &Inner) -> String {
    let name = origin(&inner.instance);
    let key = &inner.keys.checkpoint;
    let mut signature = key_id(&name, &key.verifying_key()).to_vec();
    signature.extend_from_slice(&key.sign(text.as_bytes()).to_bytes());
    format!("{text}\n\u{2014} {name} {}\n\n", STANDARD.encode(signature))
}

/// The text of a signed note, without its trailing empty line, when the signature is ours and fits.
pub(super) fn verified(note: &str, inner: &Inner) -> Result<String, String> {
    let (text, signatures) = note.split_once("\n\n").ok_or("it has no signature")?;
    let text = format!("{text}\n");
    let name = origin(&inner.instance);
    let key = inner.keys.checkpoint.verifying_key();
    let line = signatures
        .lines()
        .find_map(|l| l.strip_prefix("\u{2014} ")?.strip_prefix(name.as_str())?.strip_prefix(' '))
        .ok_or_else(|| format!("it is not signed by {name}"))?;
    let bytes = STANDARD.decode(line).map_err(|e| format!("its signature is not base64: {e}"))?;
    let signature = match bytes.split_first_chunk::<4>() {
        Some((id, rest)) if *id == key_id(&name, &key) => {
            Signature::from_slice(rest).map_err(|e| format!("its signature is malformed: {e}"))?
        }
        _ => return Err("it is signed with another key than keys/checkpoint.key".into()),
    };
    key.verify_strict(text.as_bytes(), &signature).map_err(|_| "its signature does not fit its text".to_owned())?;
    if text.lines().next() != Some(name.as_str()) {
        return Err(format!("its origin is not {name}"));
    }
    Ok(text)
}

/// Checks one checkpoint, without its trailing empty line.
fn parse(note: &str, inner: &Inner) -> Result<Head, String> {
    let text = verified(note, inner)?;
    let mut lines = text.lines().skip(1);
    let size = lines.next().and_then(|l| l.parse().ok()).filter(|s| *s >= 0).ok_or("its size is not a number")?;
    let hash = lines.next().and_then(|l| STANDARD.decode(l).ok()).and_then(|b| b.try_into().ok()).ok_or("its hash is malformed")?;
    Ok(Head { size, hash })
}

/// All complete checkpoints of a file's text, and the bytes they take. What follows them is a write that a crash cut off.
pub(super) fn parse_all(text: &str, inner: &Inner) -> (Vec<Result<Head, String>>, usize) {
    let mut found = Vec::new();
    let mut at = 0;
    // A note is its text, an empty line, its signature, an empty line.
    while let Some(blank) = text[at..].find("\n\n").map(|i| at + i)
        && let Some(end) = text[blank + 2..].find("\n\n").map(|i| blank + 2 + i)
    {
        found.push(parse(&text[at..end], inner));
        at = end + 2;
    }
    (found, at)
}

/// The file's text; empty when there is none. Bytes that are not text cannot carry a valid signature.
pub(super) fn read(file: &Path) -> StoreResult<String> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(io(file, &e)),
    }
}

/// Signs the head, unless the last checkpoint says it already. `None` = nothing was written.
pub(super) fn write(log: &Log<'_>, c: &Connection, file: &Path, inner: &Inner, now: DateTime<Utc>) -> Sql<Option<Head>> {
    let (size, hash) = rows::head(c)?;
    let head = Head { size, hash };
    let there = read(file)?;
    let (known, complete) = parse_all(&there, inner);
    if let Some(last) = known.last() {
        let last =
            last.as_ref().map_err(|e| corrupt("checkpoint", format!("the last one in {}: {e}; run audit verify", file.display())))?;
        if *last == head {
            return Ok(None);
        }
        if last.size > 0 && log.hash_of(last.size)?.as_deref() != Some(last.hash.as_slice()) {
            let detail = format!("row {} is not the one the last checkpoint was made of; nothing is signed, run audit verify", last.size);
            return Err(corrupt("audit log", detail).into());
        }
    }
    if size == 0 {
        return Ok(None);
    }
    append(file, complete, &sign(&text(&head, inner, now), inner))?;
    Ok(Some(head))
}

fn append(file: &Path, at: usize, note: &str) -> StoreResult<()> {
    let fail = |e: std::io::Error| io(file, &e);
    let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file).map_err(fail)?;
    let at = at as u64;
    if out.metadata().map_err(fail)?.len() > at {
        out.set_len(at).map_err(fail)?;
    }
    out.seek(SeekFrom::End(0)).and_then(|_| out.write_all(note.as_bytes())).and_then(|()| out.sync_all()).map_err(fail)?;
    migrate::sync_dir(file)
}
