//! The one form of keys that may be written in several: text to mapping, list to mapping, with the defaults of that form. Runs after each file,
//! so that the next one merges with the canonical form, as in Compose. Ports and mounts keep their form: their readers know both.

use super::value::{Map, Value};
use super::{Report, at};

/// Shapes a checked tree.
pub(super) fn tree(tree: &mut Map, report: &mut Report) {
    if let Some(Value::Map(services)) = tree.get_mut("services") {
        for (name, value) in services.iter_mut() {
            if let Value::Map(map) = value {
                service(map, &at("services", name), report);
            }
        }
    }
    for kind in ["networks", "volumes", "configs", "secrets"] {
        if let Some(Value::Map(objects)) = tree.get_mut(kind) {
            for (key, value) in objects.iter_mut() {
                if let Value::Map(map) = value {
                    external(map, &at(kind, key), report);
                }
            }
        }
    }
}

fn service(map: &mut Map, path: &str, report: &mut Report) {
    if let Some(value) = map.get_mut("build") {
        if value.scalar().is_some() {
            *value = mapping("context", std::mem::replace(value, Value::Null));
        }
        if let Value::Map(build) = value {
            let path = at(path, "build");
            contexts(build, &path, report);
            ssh(build, &path, report);
            each(build, "secrets", &|v| wrapped(v, "source"));
        }
    }
    match map.get_mut("depends_on") {
        Some(Value::Map(dependencies)) => {
            for dependency in dependencies.values_mut() {
                if let Value::Map(d) = dependency {
                    d.entry("condition".into()).or_insert_with(|| Value::String("service_started".into()));
                    d.entry("required".into()).or_insert(Value::Bool(true));
                }
            }
        }
        Some(value @ Value::Seq(_)) => {
            let Value::Seq(names) = std::mem::replace(value, Value::Null) else { return };
            let inner = || {
                let condition = ("condition".to_owned(), Value::String("service_started".into()));
                Value::Map(Map::from([condition, ("required".to_owned(), Value::Bool(true))]))
            };
            *value = Value::Map(names.iter().filter_map(Value::scalar).map(|name| (name, inner())).collect());
        }
        _ => {}
    }
    for key in ["env_file", "label_file", "dns"] {
        if let Some(value) = map.get_mut(key)
            && value.scalar().is_some()
        {
            *value = Value::Seq(vec![std::mem::replace(value, Value::Null)]);
        }
    }
    each(map, "env_file", &|v| {
        let mut entry = wrapped(v, "path");
        if let Value::Map(m) = &mut entry {
            m.entry("required".into()).or_insert(Value::Bool(true));
        }
        entry
    });
    if let Some(Value::Seq(dns)) = map.get_mut("dns") {
        dns.retain(|v| !matches!(v, Value::Null) && *v != Value::String(String::new()));
    }
    if let Some(value) = map.get_mut("gpus")
        && value.scalar().is_some()
    {
        *value = Value::Seq(vec![mapping("count", Value::String("all".into()))]);
    }
    if let Some(value) = map.get_mut("networks")
        && let Value::Seq(names) = value
    {
        *value = Value::Map(names.iter().filter_map(Value::scalar).map(|name| (name, Value::Null)).collect());
    }
    each(map, "secrets", &|v| wrapped(v, "source"));
    each(map, "configs", &|v| wrapped(v, "source"));
    let devices = at(path, "devices");
    if let Some(Value::Seq(items)) = map.get_mut("devices") {
        for (index, item) in items.iter_mut().enumerate() {
            if let Some(text) = item.scalar() {
                *item = device(&text, &format!("{devices}[{index}]"), report);
            }
        }
    }
}

fn mapping(key: &str, value: Value) -> Value {
    Value::Map(Map::from([(key.to_owned(), value)]))
}

fn wrapped(value: Value, key: &str) -> Value {
    if value.scalar().is_some() { mapping(key, value) } else { value }
}

fn each(map: &mut Map, key: &str, shape: &dyn Fn(Value) -> Value) {
    if let Some(Value::Seq(items)) = map.get_mut(key) {
        items.iter_mut().for_each(|item| *item = shape(std::mem::replace(item, Value::Null)));
    }
}

fn device(text: &str, path: &str, report: &mut Report) -> Value {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 3 {
        report.error(path, format!("{text:?} has too many colons"), "use the long form {source: ..., target: ..., permissions: rwm}");
    }
    let part = |index: usize| parts.get(index).copied().filter(|p| !p.is_empty());
    let source = parts.first().copied().unwrap_or_default();
    let entry = |key: &str, value: &str| (key.to_owned(), Value::String(value.to_owned()));
    let permissions = parts.get(2).copied().unwrap_or("rwm");
    Value::Map(Map::from([entry("source", source), entry("target", part(1).unwrap_or(source)), entry("permissions", permissions)]))
}

fn contexts(build: &mut Map, path: &str, report: &mut Report) {
    let Some(value @ Value::Seq(_)) = build.get_mut("additional_contexts") else { return };
    let Value::Seq(items) = std::mem::replace(value, Value::Null) else { return };
    let mut out = Map::new();
    for (index, text) in items.iter().filter_map(Value::scalar).enumerate() {
        match text.split_once('=') {
            Some((name, from)) => {
                out.insert(name.to_owned(), Value::String(from.to_owned()));
            }
            None => report.error(&format!("{path}.additional_contexts[{index}]"), format!("{text:?} has no `=`"), "write NAME=PLACE"),
        }
    }
    *value = Value::Map(out);
}

fn ssh(build: &mut Map, path: &str, report: &mut Report) {
    let Some(value @ Value::Seq(_)) = build.get_mut("ssh") else { return };
    let Value::Seq(items) = std::mem::replace(value, Value::Null) else { return };
    let mut out = Map::new();
    for (index, text) in items.iter().filter_map(Value::scalar).enumerate() {
        match text.split_once('=') {
            Some((id, file)) => out.insert(id.to_owned(), Value::String(file.to_owned())),
            None if text == "default" => out.insert(text, Value::Null),
            None => {
                report.error(&format!("{path}.ssh[{index}]"), format!("{text:?} has no key"), "write ID=PATH, or `default`");
                None
            }
        };
    }
    *value = Value::Map(out);
}

/// `external: {name: x}` is an old form of `external: true` beside `name: x`.
fn external(map: &mut Map, path: &str, report: &mut Report) {
    let Some(Value::Map(old)) = map.get("external") else { return };
    let inner = old.get("name").cloned();
    map.insert("external".into(), Value::Bool(true));
    match (inner, map.get("name")) {
        (Some(inner), Some(outer)) if inner != *outer => {
            report.error(path, "`name` and `external.name` differ", "keep `name` and write `external: true`");
        }
        (Some(inner), None) => {
            map.insert("name".into(), inner);
        }
        _ => {}
    }
}
