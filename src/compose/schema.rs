//! Checks a merged tree against the JSON schema of the compose specification (`schema/compose-spec.json`, Apache-2.0, the version that the
//! reference Compose carries), as Compose does after every file. Understands the few words of JSON schema which that document uses.

use super::units::nearest;
use super::value::{Map, Value};
use super::{Report, at};
use serde_json::Value as Json;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Json> =
    LazyLock::new(|| serde_json::from_str(include_str!("schema/compose-spec.json")).expect("the schema is a part of this program"));

/// Keys that compose has by now and the reference's schema has not: read, judged and reported. `*` stands for any name.
const NEWER: &[(&[&str], &[&str])] = &[
    (&[], &["models"]),
    (&["services", "*"], &["provider", "models", "use_api_socket"]),
    (&["secrets", "*"], &["content"]),
    (&["services", "*", "build"], &["provenance", "sbom", "no_cache_filter"]),
    (&["services", "*", "volumes", "*"], &["image"]),
    (&["services", "*", "networks", "*"], &["interface_name"]),
    (&["services", "*", "develop", "watch", "*"], &["include", "initial_sync"]),
];

/// Reports what does not fit.
pub(super) fn check(tree: &Map, report: &mut Report) {
    let mut walk = Walk { segments: Vec::new(), report };
    walk.object(tree, &SCHEMA, "");
}

struct Walk<'r> {
    segments: Vec<String>,
    report: &'r mut Report,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value, schema: &Json, path: &str) {
        let schema = resolve(schema);
        if let Some(branches) = schema.get("oneOf").and_then(Json::as_array) {
            let fitting = branches.iter().map(resolve).find(|b| has_type(value, b));
            return match fitting {
                Some(branch) => self.value(value, branch, path),
                None => self.wrong_type(value, branches.iter().map(resolve).collect(), path),
            };
        }
        if !has_type(value, schema) {
            return self.wrong_type(value, vec![schema], path);
        }
        match value {
            Value::Map(map) => self.object(map, schema, path),
            Value::Seq(items) => self.list(items, schema, path),
            scalar => self.scalar(scalar, schema, path),
        }
    }

    fn wrong_type(&mut self, value: &Value, schemas: Vec<&Json>, path: &str) {
        let mut wanted: Vec<&str> = Vec::new();
        for word in schemas.iter().flat_map(|s| types(s)).map(words) {
            if !wanted.contains(&word) {
                wanted.push(word);
            }
        }
        let hint = if *value == Value::Null { "remove the key, or give it a value" } else { "" };
        self.report.error(path, format!("{} is needed, found {}", wanted.join(" or "), value.kind()), hint);
    }

    fn scalar(&mut self, value: &Value, schema: &Json, path: &str) {
        if let Some(allowed) = schema.get("enum").and_then(Json::as_array) {
            let text = value.scalar().unwrap_or_default();
            let allowed: Vec<&str> = allowed.iter().filter_map(Json::as_str).collect();
            if !allowed.contains(&text.as_str()) {
                let hint = nearest(&text, allowed.iter().copied()).map(|n| format!("did you mean `{n}`?")).unwrap_or_default();
                self.report.error(path, format!("{text:?} is not one of {}", allowed.join(", ")), hint);
            }
        }
        let number = match value {
            Value::Int(i) => *i as f64,
            Value::Float(f) => *f,
            _ => return,
        };
        let bound = |key: &str| schema.get(key).and_then(Json::as_f64);
        if bound("minimum").is_some_and(|least| number < least) || bound("maximum").is_some_and(|most| number > most) {
            let range = (bound("minimum").unwrap_or(f64::MIN), bound("maximum").unwrap_or(f64::MAX));
            let most = if range.1 == f64::MAX { "any number".to_owned() } else { range.1.to_string() };
            self.report.error(path, format!("{number} is not between {} and {most}", range.0), "");
        }
    }

    fn list(&mut self, items: &[Value], schema: &Json, path: &str) {
        if let Some(inner) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.segments.push("*".into());
                self.value(item, inner, &format!("{path}[{index}]"));
                self.segments.pop();
            }
        }
        if schema.get("uniqueItems").and_then(Json::as_bool) == Some(true) {
            let mut seen = std::collections::BTreeMap::new();
            for (index, item) in items.iter().enumerate() {
                if let Some(first) = seen.insert(item.to_json().to_string(), index) {
                    self.report.error(
                        &format!("{path}[{index}]"),
                        format!("the same entry is given twice, also as [{first}]"),
                        "remove one of them",
                    );
                }
            }
        }
    }

    fn object(&mut self, map: &Map, schema: &Json, path: &str) {
        for key in schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
            if !map.contains_key(key) {
                self.report.error(path, format!("`{key}` is missing"), format!("add `{key}:`"));
            }
        }
        let properties = schema.get("properties").and_then(Json::as_object);
        let patterns = schema.get("patternProperties").and_then(Json::as_object);
        let closed = schema.get("additionalProperties").and_then(Json::as_bool) == Some(false);
        for (key, value) in map {
            let below = at(path, key);
            let named = properties.and_then(|p| p.get(key));
            let matched = || patterns.and_then(|p| p.iter().find(|(pattern, _)| fits(pattern, key)).map(|(_, s)| s));
            match named.or_else(matched) {
                Some(inner) => {
                    self.segments.push(key.clone());
                    self.value(value, inner, &below);
                    self.segments.pop();
                }
                None if closed && newer(&self.segments).contains(&key.as_str()) => self.report.newer.push(below),
                None if closed && properties.is_none() => {
                    self.report.error(&below, format!("{key:?} cannot be a name here"), "use letters, digits, `.`, `_` and `-`");
                }
                None if closed => {
                    let known = properties.into_iter().flatten().map(|(k, _)| k.as_str()).chain(newer(&self.segments).iter().copied());
                    let hint = nearest(key, known)
                        .map_or_else(|| "remove it, or start it with `x-`".to_owned(), |near| format!("did you mean `{near}`?"));
                    self.report.error(&below, format!("unknown key `{key}`"), hint);
                }
                None => {}
            }
        }
    }
}

fn newer(segments: &[String]) -> &'static [&'static str] {
    let same = |pattern: &[&str]| pattern.len() == segments.len() && pattern.iter().zip(segments).all(|(p, s)| *p == "*" || p == s);
    NEWER.iter().find(|(pattern, _)| same(pattern)).map_or(&[], |(_, keys)| keys)
}

fn resolve(schema: &Json) -> &Json {
    match schema.get("$ref").and_then(Json::as_str).and_then(|r| r.strip_prefix("#/definitions/")) {
        Some(name) => SCHEMA.get("definitions").and_then(|d| d.get(name)).map_or(schema, resolve),
        None => schema,
    }
}

fn types(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
        _ => schema.get("oneOf").and_then(Json::as_array).into_iter().flatten().map(resolve).flat_map(types).collect(),
    }
}

fn has_type(value: &Value, schema: &Json) -> bool {
    let types = types(schema);
    types.is_empty()
        || types.iter().any(|wanted| match value {
            Value::Null => *wanted == "null",
            Value::Bool(_) => *wanted == "boolean",
            Value::Int(_) => matches!(*wanted, "integer" | "number"),
            Value::Float(f) => *wanted == "number" || (*wanted == "integer" && f.fract() == 0.0),
            Value::String(_) => *wanted == "string",
            Value::Seq(_) => *wanted == "array",
            Value::Map(_) => *wanted == "object",
            Value::Tagged(..) => false,
        })
}

fn words(kind: &str) -> &str {
    match kind {
        "string" => "text",
        "object" => "a mapping",
        "array" => "a list",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "a boolean",
        "null" => "nothing",
        other => other,
    }
}

/// The patterns of the document, each of them a character class.
fn fits(pattern: &str, key: &str) -> bool {
    match pattern {
        "^x-" => key.starts_with("x-"),
        "^[a-z]+$" => !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase()),
        "^[a-zA-Z0-9._-]+$" => !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')),
        _ => !key.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of JSON schema in the document are those that are understood; another version of it may have more.
    #[test]
    fn every_word_of_the_document_is_understood() {
        fn walk(schema: &Json, patterns: &mut std::collections::BTreeSet<String>) {
            let Some(map) = schema.as_object() else { return };
            for (word, inner) in map {
                match word.as_str() {
                    "properties" | "definitions" => inner.as_object().into_iter().flatten().for_each(|(_, s)| walk(s, patterns)),
                    "patternProperties" => inner.as_object().into_iter().flatten().for_each(|(p, s)| {
                        patterns.insert(p.clone());
                        walk(s, patterns);
                    }),
                    "oneOf" => inner.as_array().into_iter().flatten().for_each(|s| walk(s, patterns)),
                    "items" => walk(inner, patterns),
                    "additionalProperties" => assert!(inner.is_boolean()),
                    "type" | "enum" | "required" | "minimum" | "maximum" | "uniqueItems" | "$ref" => {}
                    "$schema" | "$id" | "title" | "description" | "default" | "deprecated" => {}
                    other => panic!("{other} is not understood"),
                }
            }
        }
        let mut patterns = std::collections::BTreeSet::new();
        walk(&SCHEMA, &mut patterns);
        assert_eq!(patterns.into_iter().collect::<Vec<_>>(), [".+", "^.+$", "^[a-zA-Z0-9._-]+$", "^[a-z]+$", "^x-"]);
    }
}
