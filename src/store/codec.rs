//! How values look in columns: times as fixed-width text, enums by their wire word, numbers as SQLite's integers, JSON as text.

use super::fault::{Sql, corrupt};
use super::{StoreError, StoreResult};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// RFC 3339 with nine digits: nothing is lost, and text order is time order.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Reads a time back.
pub(super) fn parse_time(what: &'static str, text: &str) -> StoreResult<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).map(|t| t.to_utc()).map_err(|e| corrupt(what, format!("time {text:?}: {e}")))
}

/// Reads a time that may be absent.
pub(super) fn parse_time_opt(what: &'static str, text: Option<&str>) -> StoreResult<Option<DateTime<Utc>>> {
    text.map(|t| parse_time(what, t)).transpose()
}

/// SQLite's integers are signed.
pub(super) fn int(what: &'static str, v: u64) -> StoreResult<i64> {
    i64::try_from(v).map_err(|_| corrupt(what, format!("number {v} is too large")))
}

/// Reads a number that was never negative.
pub(super) fn uint<T: TryFrom<i64>>(what: &'static str, v: i64) -> StoreResult<T> {
    T::try_from(v).map_err(|_| corrupt(what, format!("number {v} is out of range")))
}

/// An enum's wire word, without quotes.
pub(super) fn word<T: Serialize>(what: &'static str, v: &T) -> StoreResult<String> {
    match serde_json::to_value(v) {
        Ok(Value::String(s)) => Ok(s),
        Ok(other) => Err(corrupt(what, format!("{other} is not a word"))),
        Err(e) => Err(corrupt(what, e)),
    }
}

/// Reads an enum by its wire word.
pub(super) fn parse_word<T: DeserializeOwned>(what: &'static str, word: &str) -> StoreResult<T> {
    serde_json::from_value(Value::String(word.into())).map_err(|e| corrupt(what, e))
}

/// JSON text.
pub(super) fn json<T: Serialize>(what: &'static str, v: &T) -> StoreResult<String> {
    serde_json::to_string(v).map_err(|e| corrupt(what, e))
}

/// Reads JSON text.
pub(super) fn parse_json<T: DeserializeOwned>(what: &'static str, text: &str) -> StoreResult<T> {
    serde_json::from_str(text).map_err(|e| corrupt(what, e))
}

/// JSON text with sorted keys: what is hashed must not depend on who built the value.
pub(super) fn canonical(v: &Value) -> String {
    use std::fmt::Write;
    fn put(out: &mut String, v: &Value) -> std::fmt::Result {
        match v {
            Value::Object(map) => {
                let mut ordered: Vec<_> = map.iter().collect();
                ordered.sort_unstable_by_key(|(key, _)| *key);
                for (n, (key, value)) in ordered.into_iter().enumerate() {
                    out.push(if n == 0 { '{' } else { ',' });
                    write!(out, "{}:", Value::from(key.as_str()))?;
                    put(out, value)?;
                }
                out.push_str(if map.is_empty() { "{}" } else { "}" });
            }
            Value::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    put(out, item)?;
                }
                out.push(']');
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => write!(out, "{v}")?,
        }
        Ok(())
    }
    let mut out = String::new();
    put(&mut out, v).expect("writing to a String cannot fail");
    out
}

/// Reads a validated name.
pub(super) fn name<T>(what: &'static str, text: String) -> StoreResult<T>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    T::try_from(text).map_err(|e| corrupt(what, e))
}

/// Reads a validated name that may be absent.
pub(super) fn name_opt<T>(what: &'static str, text: Option<String>) -> StoreResult<Option<T>>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    text.map(|t| name(what, t)).transpose()
}

/// A limit as SQLite takes it.
pub(super) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// All rows of a statement, each turned into a value.
pub(super) fn all<T>(
    statement: &mut rusqlite::Statement<'_>,
    params: impl rusqlite::Params,
    mut make: impl FnMut(&rusqlite::Row<'_>) -> Sql<T>,
) -> Sql<Vec<T>> {
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(make(row)?);
    }
    Ok(found)
}

/// All rows of a statement that can be read: one that is damaged keeps nobody from the others, and the log says that it is left out.
pub(super) fn readable<T>(
    statement: &mut rusqlite::Statement<'_>,
    params: impl rusqlite::Params,
    mut make: impl FnMut(&rusqlite::Row<'_>) -> Sql<T>,
) -> Sql<Vec<T>> {
    let made = all(statement, params, |row| match make(row) {
        Err(e) if e.of_a_row() => {
            tracing::error!(error = ?e, "a stored row cannot be read and is left out");
            Ok(None)
        }
        made => made.map(Some),
    })?;
    Ok(made.into_iter().flatten().collect())
}

/// The first row of a statement, turned into a value.
pub(super) fn first<T>(
    statement: &mut rusqlite::Statement<'_>,
    params: impl rusqlite::Params,
    mut make: impl FnMut(&rusqlite::Row<'_>) -> Sql<T>,
) -> Sql<Option<T>> {
    let mut rows = statement.query(params)?;
    match rows.next()? {
        Some(row) => Ok(Some(make(row)?)),
        None => Ok(None),
    }
}

/// `Missing` unless exactly that row was changed.
pub(super) fn changed(rows: usize, what: &'static str, id: impl std::fmt::Display) -> Result<(), StoreError> {
    if rows == 0 { Err(super::fault::missing(what, id)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_sorts_keys_at_every_depth() {
        let v = serde_json::json!({"b": [{"z": 1, "a": "x"}], "a": null});
        assert_eq!(canonical(&v), r#"{"a":null,"b":[{"a":"x","z":1}]}"#);
        let v = serde_json::json!({"b": {}, "a\"\n": [], "c": [true, 1.5, "ä\u{1}"]});
        assert_eq!(canonical(&v), r#"{"a\"\n":[],"b":{},"c":[true,1.5,"ä\u0001"]}"#);
    }

    #[test]
    fn times_keep_their_nanoseconds_and_sort_as_text() {
        let early = parse_time("t", "2026-01-02T03:04:05.000000009Z").unwrap();
        let late = parse_time("t", "2026-01-02T03:04:05.100000000Z").unwrap();
        assert_eq!(time(early), "2026-01-02T03:04:05.000000009Z");
        assert!(time(early) < time(late));
    }
}
