//! Difference of two services in words a person can review. Values of environment variables, configs and secrets are never text: a keyed
//! hash tells whether they changed. Pure.

use crate::model::plan::DiffLine;
use crate::model::spec::ServiceSpec;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most characters of a value in a diff.
const VALUE_CHARS: usize = 200;

/// Lines of difference between an old and a new service; `None` = it was (or is) not there.
pub fn diff(old: Option<&ServiceSpec>, new: Option<&ServiceSpec>, literal: &[String], hash: &dyn Fn(&str) -> String) -> Vec<DiffLine> {
    let flat = |s: Option<&ServiceSpec>| s.map(|s| flatten(s, literal, hash)).unwrap_or_default();
    let (old, new) = (flat(old), flat(new));
    let mut lines = Vec::new();
    for path in old.keys().chain(new.keys().filter(|k| !old.contains_key(*k))) {
        let (from, to) = (old.get(path), new.get(path));
        if from != to {
            lines.push(DiffLine { path: path.clone(), from: from.cloned(), to: to.cloned() });
        }
    }
    for line in lines.iter_mut().filter(|l| l.path.starts_with("environment.") && l.from.is_some()) {
        line.to = Some(match line.to.take() {
            Some(to) => to.replacen("set", "changed", 1),
            None => "unset".into(),
        });
    }
    lines
}

fn flatten(service: &ServiceSpec, literal: &[String], hash: &dyn Fn(&str) -> String) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut value = serde_json::to_value(service).expect("a service spec is plain data");
    if let Value::Object(map) = &mut value {
        for key in ["active", "environment", "written"] {
            map.remove(key);
        }
    }
    walk(&value, String::new(), &mut out);
    if service.other.contains_key("label_file") {
        // Which of them came from the file is not known any more, and the file may hold anything.
        for text in out.iter_mut().filter(|(path, _)| path.starts_with("labels.")).map(|(_, text)| text) {
            *text = format!("set ({})", hash(text));
        }
    }
    for (key, value) in &service.environment {
        let text = match value {
            None => "unset".to_owned(),
            Some(v) if literal.contains(key) => v.clone(),
            Some(v) => format!("set ({})", hash(v)),
        };
        out.insert(format!("environment.{key}"), text);
    }
    out
}

fn walk(value: &Value, path: String, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Object(map) => {
            for (key, inner) in map.iter().filter(|(k, _)| *k != "path") {
                walk(inner, if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, out);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                walk(inner, format!("{path}[{i}]"), out);
            }
        }
        Value::Bool(true) | Value::Number(_) => {
            out.insert(path, value.to_string());
        }
        Value::String(text) => {
            out.insert(path, text.chars().take(VALUE_CHARS).collect());
        }
    }
}
