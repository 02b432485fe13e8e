//! Reads typed values out of a mapping and reports what does not fit, with path and nearest known key. A key nobody asked for is an error.

use super::units;
use super::value::{Map, Value};
use super::{Report, at};
use std::collections::BTreeMap;

/// A mapping being read. Call `finish` at the end: it reports unknown keys.
pub(super) struct Reader {
    pub path: String,
    map: Map,
    known: Vec<&'static str>,
}

impl Reader {
    /// A mapping, or nothing (= empty). Anything else is reported.
    pub(super) fn new(value: Value, path: &str, report: &mut Report) -> Self {
        let map = match value {
            Value::Map(map) => map,
            Value::Null => Map::new(),
            other => {
                report.error(path, format!("a mapping is needed, found {}", other.kind()), "write `key: value` lines below it");
                Map::new()
            }
        };
        Self { path: path.to_owned(), map, known: Vec::new() }
    }

    pub(super) fn at(&self, key: &str) -> String {
        at(&self.path, key)
    }

    /// The raw value, `Value::Null` included.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.map.remove(key)
    }

    /// The value unless it is missing or null.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.raw(key).filter(|v| *v != Value::Null)
    }

    /// Declares keys that are kept as canonical JSON.
    pub(super) fn keep(&mut self, keys: &[&'static str], into: &mut BTreeMap<String, serde_json::Value>, prefix: &str) {
        for key in keys {
            if let Some(value) = self.take(key) {
                into.insert(format!("{prefix}{key}"), value.to_json());
            }
        }
    }

    pub(super) fn string(&mut self, key: &'static str, report: &mut Report) -> Option<String> {
        let value = self.take(key)?;
        scalar(&value, &self.at(key), report)
    }

    pub(super) fn parsed<T>(&mut self, key: &'static str, report: &mut Report, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.string(key, report)?;
        // An unset variable leaves an empty text; compose reads it as not given.
        if text.is_empty() {
            return None;
        }
        match parse(&text) {
            Ok(v) => Some(v),
            Err(message) => {
                report.error(&self.at(key), message, "");
                None
            }
        }
    }

    /// A duration in milliseconds; an empty text is none.
    pub(super) fn duration(&mut self, key: &'static str, report: &mut Report) -> Option<u64> {
        let text = self.string(key, report)?;
        units::duration_ms(&text).map_err(|message| report.error(&self.at(key), message, "")).ok()
    }

    pub(super) fn int(&mut self, key: &'static str, report: &mut Report) -> Option<i64> {
        self.parsed(key, report, |t| {
            // Compose cuts the fraction off.
            t.trim()
                .parse::<i64>()
                .or_else(|_| t.trim().parse::<f64>().ok().filter(|f| f.abs() < 9e15).map(|f| f as i64).ok_or(()))
                .map_err(|()| format!("{t:?} is no whole number"))
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str, report: &mut Report) -> Option<bool> {
        self.parsed(key, report, |t| match t.to_ascii_lowercase().as_str() {
            "true" | "yes" | "y" | "on" | "1" => Ok(true),
            "false" | "no" | "n" | "off" | "0" => Ok(false),
            _ => Err(format!("{t:?} is no boolean; write true or false")),
        })
    }

    /// A list of texts, or one text.
    pub(super) fn strings(&mut self, key: &'static str, report: &mut Report) -> Vec<String> {
        let path = self.at(key);
        self.take(key).map(|v| strings(v, &path, report)).unwrap_or_default()
    }

    /// A mapping or a list of `key=value`; nothing = empty text.
    pub(super) fn text_map(&mut self, key: &'static str, report: &mut Report) -> BTreeMap<String, String> {
        self.optional_map(key, report).into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect()
    }

    /// As [`Self::text_map`], telling an empty text from nothing.
    pub(super) fn optional_map(&mut self, key: &'static str, report: &mut Report) -> BTreeMap<String, Option<String>> {
        let path = self.at(key);
        self.take(key).map(|v| pairs(v, &path, report)).unwrap_or_default()
    }

    /// The `x-` keys that nobody asked for.
    pub(super) fn extensions(&mut self) -> BTreeMap<String, serde_json::Value> {
        self.map.iter().filter(|(k, _)| k.starts_with("x-")).map(|(k, v)| (k.clone(), v.to_json())).collect()
    }

    /// Whether a key is there that was not read yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A copy of a value that is read in two ways.
    pub(super) fn peek(&self, key: &str) -> Option<Value> {
        self.map.get(key).filter(|v| **v != Value::Null).cloned()
    }

    /// Reports keys that nothing asked for; `x-` keys belong to others.
    pub(super) fn finish(self, report: &mut Report) {
        for key in self.map.keys().filter(|k| !k.starts_with("x-")) {
            let hint = units::nearest(key, self.known.iter().copied())
                .map_or_else(|| "remove it, or start it with `x-`".to_owned(), |near| format!("did you mean `{near}`?"));
            report.error(&at(&self.path, key), format!("unknown key `{key}`"), hint);
        }
    }
}

/// A scalar as text; anything else is reported.
pub(super) fn scalar(value: &Value, path: &str, report: &mut Report) -> Option<String> {
    let text = value.scalar();
    if text.is_none() {
        report.error(path, format!("text is needed, found {}", value.kind()), "");
    }
    text
}

/// A list of scalars, or one scalar.
pub(super) fn strings(value: Value, path: &str, report: &mut Report) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Seq(items) => items.iter().enumerate().filter_map(|(i, v)| scalar(v, &format!("{path}[{i}]"), report)).collect(),
        other => scalar(&other, path, report).into_iter().collect(),
    }
}

/// A mapping of scalars, or a list of `key=value`.
pub(super) fn pairs(value: Value, path: &str, report: &mut Report) -> BTreeMap<String, Option<String>> {
    match value {
        Value::Null => BTreeMap::new(),
        Value::Map(map) => map
            .into_iter()
            .map(|(k, v)| {
                let text = if v == Value::Null { None } else { scalar(&v, &at(path, &k), report) };
                (k, text)
            })
            .collect(),
        Value::Seq(items) => {
            let mut out = BTreeMap::new();
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                if let Some(text) = scalar(item, &path, report) {
                    let (key, value) = text.split_once('=').map_or((text.as_str(), None), |(k, v)| (k, Some(v.to_owned())));
                    if key.is_empty() {
                        report.later(&path, Some(super::INVALID), format!("{text:?} has no name before `=`"), "write NAME=value");
                    }
                    out.insert(key.to_owned(), value);
                }
            }
            out
        }
        other => {
            report.error(path, format!("a mapping or a list of KEY=value is needed, found {}", other.kind()), "");
            BTreeMap::new()
        }
    }
}
