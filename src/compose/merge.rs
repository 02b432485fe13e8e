//! Compose's merge rules, for override files, `extends` and `include`: mappings merge by key, lists append, a few keys replace, and lists
//! with an identity (ports, volumes, `KEY=value`) keep the later entry. `!reset` removes, `!override` replaces.

use super::value::{Map, Tag, Value};

/// Lists that may also be written as mappings; merged as mappings. `=` splits an entry, a bare name stands for nothing.
const PAIRS: &[&str] = &["environment", "labels", "annotations", "args", "sysctls", "driver_opts", "storage_opt"];
/// Keys whose later value replaces the earlier one whole.
const REPLACED: &[&str] = &["command", "entrypoint", "test", "extends"];

/// Merges `over` onto `base`; `path` is the list of keys down to here.
pub(super) fn merge(base: Value, over: Value, path: &mut Vec<String>) -> Value {
    let key = path.last().map_or("", String::as_str);
    let in_service = path.len() == 3 && path[0] == "services";
    let (base, over) = match (base, over) {
        (_, Value::Tagged(Tag::Reset, _)) => return Value::Null,
        (_, Value::Tagged(Tag::Override, value)) => return *value,
        // A pair without a value is a value: it hands the variable through.
        (base, Value::Null) if path.len() >= 2 && !PAIRS.contains(&path[path.len() - 2].as_str()) => return base,
        (base, Value::Null) if path.len() < 2 => return base,
        (Value::Null, over) => return over,
        (base, over) => (base, over),
    };
    if REPLACED.contains(&key) {
        return over;
    }
    if key == "logging" && in_service && driver_differs(&base, &over) {
        return over;
    }
    let (base, over) = if PAIRS.contains(&key) {
        (pairs_to_map(base), pairs_to_map(over))
    } else if in_service && matches!(key, "networks" | "depends_on") {
        (names_to_map(base, key), names_to_map(over, key))
    } else if in_service && key == "build" {
        (text_to_map(base, "context"), text_to_map(over, "context"))
    } else if in_service && key == "extra_hosts" {
        (map_to_pairs(base), map_to_pairs(over))
    } else if in_service && matches!(key, "env_file" | "dns" | "dns_search" | "tmpfs") {
        (to_list(base), to_list(over))
    } else {
        (base, over)
    };
    match (base, over) {
        (Value::Map(mut base), Value::Map(over)) => {
            for (key, value) in over {
                path.push(key.clone());
                match (base.remove(&key), value) {
                    (_, Value::Tagged(Tag::Reset, _)) => {}
                    (Some(old), value) => {
                        base.insert(key, merge(old, value, path));
                    }
                    (None, value) => {
                        base.insert(key, settle(value));
                    }
                }
                path.pop();
            }
            Value::Map(base)
        }
        (Value::Seq(mut base), Value::Seq(over)) => {
            for item in over {
                if base.contains(&item) {
                    continue;
                }
                let id = identity(key, &item);
                match base.iter_mut().find(|old| id.is_some() && identity(key, old) == id) {
                    // Long-form mounts merge by key in compose; the later entry says all that matters to us.
                    Some(old) => *old = item,
                    None => base.push(item),
                }
            }
            Value::Seq(base)
        }
        (_, over) => over,
    }
}

/// Removes tags where there is nothing to merge with.
pub(super) fn settle(value: Value) -> Value {
    match value {
        Value::Tagged(Tag::Reset, _) => Value::Null,
        Value::Tagged(Tag::Override, inner) => settle(*inner),
        Value::Seq(items) => Value::Seq(items.into_iter().filter(|v| !matches!(v, Value::Tagged(Tag::Reset, _))).map(settle).collect()),
        Value::Map(map) => {
            Value::Map(map.into_iter().filter(|(_, v)| !matches!(v, Value::Tagged(Tag::Reset, _))).map(|(k, v)| (k, settle(v))).collect())
        }
        plain => plain,
    }
}

/// What makes two entries of a list the same thing.
fn identity(key: &str, item: &Value) -> Option<String> {
    let field = |name: &str| match item {
        Value::Map(map) => map.get(name).and_then(Value::scalar),
        _ => None,
    };
    match key {
        "volumes" => field("target").or_else(|| {
            let text = item.scalar()?;
            let mut parts = text.split(':');
            let first = parts.next()?.to_owned();
            Some(parts.next().map_or(first, str::to_owned))
        }),
        "secrets" | "configs" => field("target").or_else(|| field("source")).or_else(|| item.scalar()),
        "devices" => {
            let text = item.scalar()?;
            Some(text.split(':').nth(1).unwrap_or(&text).to_owned())
        }
        _ => None,
    }
}

fn driver_differs(base: &Value, over: &Value) -> bool {
    let driver = |v: &Value| match v {
        Value::Map(m) => m.get("driver").and_then(Value::scalar),
        _ => None,
    };
    matches!((driver(base), driver(over)), (Some(a), Some(b)) if a != b)
}

fn pairs_to_map(value: Value) -> Value {
    let Value::Seq(items) = value else { return value };
    if items.iter().any(|i| i.scalar().is_none()) {
        return Value::Seq(items);
    }
    let entry = |text: String| match text.split_once('=') {
        Some((k, v)) => (k.to_owned(), Value::String(v.to_owned())),
        None => (text, Value::Null),
    };
    Value::Map(items.iter().filter_map(Value::scalar).map(entry).collect())
}

fn names_to_map(value: Value, key: &str) -> Value {
    let Value::Seq(items) = value else { return value };
    if items.iter().any(|i| i.scalar().is_none()) {
        return Value::Seq(items);
    }
    let inner = || match key {
        "depends_on" => Value::Map(Map::from([("condition".to_owned(), Value::String("service_started".into()))])),
        _ => Value::Null,
    };
    Value::Map(items.iter().filter_map(Value::scalar).map(|name| (name, inner())).collect())
}

fn text_to_map(value: Value, key: &str) -> Value {
    match value {
        Value::String(_) => Value::Map(Map::from([(key.to_owned(), value)])),
        other => other,
    }
}

fn map_to_pairs(value: Value) -> Value {
    let Value::Map(map) = value else { return value };
    let entry = |(k, v): (String, Value)| match v {
        Value::Seq(many) => many.iter().filter_map(Value::scalar).map(|v| Value::String(format!("{k}={v}"))).collect(),
        one => vec![Value::String(format!("{k}={}", one.scalar().unwrap_or_default()))],
    };
    Value::Seq(map.into_iter().flat_map(entry).collect())
}

fn to_list(value: Value) -> Value {
    match value {
        list @ (Value::Seq(_) | Value::Null) => list,
        one => Value::Seq(vec![one]),
    }
}
