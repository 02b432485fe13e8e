//! Full-text search (FTS5). A user's text never reaches the query parser as syntax: its words are cut out and quoted.

use super::{MemoryEntry, archive, compact, events};
use crate::store::codec::{all, limit, parse_json, parse_time};
use crate::store::fault::Sql;
use rusqlite::{Connection, params};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::Path;

const WHAT: &str = "memory entry";
/// Bytes of archived history, compressed, that a search reads.
const MOST_ARCHIVED: u64 = 16 * 1024 * 1024;

/// Words looked at in a query; more only slow it down.
const MOST_WORDS: usize = 32;

/// Letters a beginning gives up, since the index knows stems: "connecti" is the beginning of no stem, and of many words.
const ENDING: usize = 3;
/// Shortest word that gives them up.
const LONG: usize = 7;

/// The queries to try in turn: all words in any form of them, all beginnings, all beginnings without their endings, and with `any` any beginning. Empty when
/// the text has no word.
pub(in crate::store) fn queries(text: &str, any: bool) -> Vec<String> {
    let words: Vec<&str> = words(text).collect();
    if words.is_empty() {
        return Vec::new();
    }
    let quoted = |suffix: &str, between: &str| words.iter().map(|w| format!("\"{w}\"{suffix}")).collect::<Vec<_>>().join(between);
    let mut queries = vec![quoted("", " AND "), quoted("*", " AND ")];
    if words.iter().any(|w| w.chars().count() >= LONG) {
        queries.push(words.iter().map(|w| format!("\"{}\"*", without_ending(w))).collect::<Vec<_>>().join(" AND "));
    }
    if any && words.len() > 1 {
        queries.push(quoted("*", " OR "));
    }
    queries
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).take(MOST_WORDS)
}

fn without_ending(word: &str) -> &str {
    match word.char_indices().rev().nth(ENDING - 1) {
        Some((at, _)) if word.chars().count() >= LONG => &word[..at],
        _ => word,
    }
}

/// The entries of the first query that finds any, best first.
pub(super) fn search(c: &Connection, queries: &[String], n: usize) -> Sql<Vec<MemoryEntry>> {
    for query in queries {
        let found = matching(c, query, n)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn matching(c: &Connection, query: &str, n: usize) -> Sql<Vec<MemoryEntry>> {
    // A word in the key says more than one in the text.
    let mut statement =
        c.prepare_cached("SELECT rowid FROM search WHERE search MATCH ?1 ORDER BY bm25(search, 4.0, 1.0), rowid DESC LIMIT ?2")?;
    let best: Vec<i64> = all(&mut statement, params![query, limit(n)], |r| Ok(r.get(0)?))?;
    let mut found = Vec::with_capacity(best.len());
    for seq in best {
        found.extend(events::entry(c, seq)?);
    }
    Ok(found)
}

/// History that left the database and holds the beginnings of all words, newest first. Files that are not there are nobody's to search, and not an error:
/// `memory verify` names them.
pub(super) fn archived(c: &Connection, memory: &Path, text: &str, n: usize) -> Sql<Vec<MemoryEntry>> {
    let words: Vec<String> = words(text).map(|w| without_ending(w).to_lowercase()).collect();
    let mut found: VecDeque<MemoryEntry> = VecDeque::new();
    if words.is_empty() || n == 0 {
        return Ok(vec![]);
    }
    // The newest files that fit: what was longest ago is given up first.
    let mut files = vec![];
    let mut bytes = 0;
    for listed in compact::listed(c)?.into_iter().rev() {
        let file = archive::file(memory, listed.first);
        let Ok(meta) = std::fs::metadata(&file) else { continue };
        bytes += meta.len();
        if bytes > MOST_ARCHIVED {
            break;
        }
        files.push(file);
    }
    for file in files.into_iter().rev() {
        let searched = archive::each(&file, |e| {
            let said = format!("{} {}", e.key, e.value).to_lowercase();
            if e.op == events::HISTORY && words.iter().all(|w| begins_in(&said, w)) {
                let value = parse_json(WHAT, &e.value)?;
                let at = parse_time(WHAT, &e.ts)?;
                found.push_front(MemoryEntry { seq: e.seq, at, kind: "history".into(), key: e.key, value, source: e.source });
                found.truncate(n);
            }
            Ok(())
        });
        // One that is damaged keeps nobody from what is in the others.
        if let Err(e) = searched {
            tracing::warn!(file = %file.display(), error = ?e, "a part of the history was not searched to its end");
        }
    }
    Ok(found.into())
}

/// Whether a word of a text begins so.
fn begins_in(text: &str, beginning: &str) -> bool {
    text.match_indices(beginning).any(|(at, _)| !text[..at].chars().next_back().is_some_and(char::is_alphanumeric))
}

/// Makes an event findable.
pub(super) fn insert(c: &Connection, seq: i64, key: &str, value: &Value) -> Sql<usize> {
    let mut body = String::new();
    flatten(value, &mut body);
    Ok(c.prepare_cached("INSERT INTO search (rowid, key, body) VALUES (?1, ?2, ?3)")?.execute(params![seq, key, body])?)
}

/// Makes an event unfindable: its key has another value now.
pub(super) fn remove(c: &Connection, seq: i64) -> Sql<usize> {
    Ok(c.prepare_cached("DELETE FROM search WHERE rowid = ?1")?.execute([seq])?)
}

/// The words of a value without JSON's punctuation and escapes.
fn flatten(value: &Value, out: &mut String) {
    match value {
        Value::Null => {}
        Value::Bool(b) => push(out, if *b { "true" } else { "false" }),
        Value::Number(n) => push(out, &n.to_string()),
        Value::String(s) => push(out, s),
        Value::Array(items) => items.iter().for_each(|v| flatten(v, out)),
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            push(out, k);
            flatten(v, out);
        }),
    }
}

fn push(out: &mut String, text: &str) {
    if !out.is_empty() {
        out.push(' ');
    }
    out.push_str(text);
}
