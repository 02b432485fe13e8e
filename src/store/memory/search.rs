//! Full-text search (FTS5). A user's text never reaches the query parser as syntax: its words are cut out and quoted.

use super::{MemoryEntry, events};
use crate::store::codec::{all, limit};
use crate::store::fault::Sql;
use rusqlite::{Connection, params};
use serde_json::Value;

/// Words looked at in a query; more only slow it down.
const MOST_WORDS: usize = 32;

/// Letters a beginning gives up, since the index knows stems: "connecti" is the beginning of no stem, and of many words.
const ENDING: usize = 3;
/// Shortest word that gives them up.
const LONG: usize = 7;

/// The queries to try in turn: all words in any form of them, all beginnings, all beginnings without their endings, and with `any` any beginning. Empty when
/// the text has no word.
pub(in crate::store) fn queries(text: &str, any: bool) -> Vec<String> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).take(MOST_WORDS).collect();
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
