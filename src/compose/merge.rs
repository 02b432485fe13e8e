//! Compose's merge rules, for override files and `extends`: mappings merge by key, lists append, a few keys have a rule of their own. Which
//! entries of a list are the same thing says `unique`. `!reset` and `!override` are taken out before, see [`take_tags`].

use super::value::{Map, Tag, Value};
use super::{Report, at};

/// The rule of a key that does not merge by its type.
enum Rule {
    /// The later value replaces the earlier one.
    Replace,
    /// Both become lists of `key=value`, appended.
    Sequence,
    /// As `Sequence`; what is there already is not repeated.
    Hosts,
    Build,
    DependsOn,
    Networks,
    Logging,
    IpamConfig,
    ByType,
}

fn rule(path: &[String]) -> Rule {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["networks", _, "ipam", "config"] => Rule::IpamConfig,
        ["networks" | "volumes", _, "labels"] => Rule::Sequence,
        ["services", _, "command" | "entrypoint"] | ["services", _, "healthcheck", "test"] | ["services", _, "ulimits", _] => Rule::Replace,
        ["services", _, "build"] => Rule::Build,
        ["services", _, "build", "args" | "additional_contexts" | "labels"] => Rule::Sequence,
        ["services", _, "extra_hosts"] | ["services", _, "build", "extra_hosts"] => Rule::Hosts,
        ["services", _, "depends_on"] => Rule::DependsOn,
        ["services", _, "networks"] => Rule::Networks,
        ["services", _, "logging"] => Rule::Logging,
        ["services", _, "deploy", "labels"] => Rule::Sequence,
        [
            "services",
            _,
            "annotations" | "dns" | "dns_opt" | "dns_search" | "env_file" | "label_file" | "environment" | "labels" | "sysctls" | "tmpfs",
        ] => Rule::Sequence,
        _ => Rule::ByType,
    }
}

/// Merges `over` onto `base`; `path` is the list of keys down to here. Two values that cannot be merged are reported.
pub(super) fn merge(base: Value, over: Value, path: &mut Vec<String>, report: &mut Report) -> Value {
    match rule(path) {
        Rule::Replace => over,
        Rule::Sequence => append(sequence(base), sequence(over)),
        Rule::Hosts => {
            let base = sequence(base);
            let over = sequence(over).into_iter().filter(|v| !base.contains(v)).collect();
            append(base, over)
        }
        Rule::Build => mappings(context(base), context(over), path, report),
        Rule::DependsOn => mappings(named(base, true), named(over, true), path, report),
        Rule::Networks => mappings(named(base, false), named(over, false), path, report),
        Rule::Logging => match (base, over) {
            (Value::Map(base), Value::Map(over)) if !drivers_differ(&base, &over) => mappings(base, over, path, report),
            (_, over) => over,
        },
        Rule::IpamConfig => match (base, over) {
            (Value::Seq(base), Value::Seq(over)) => pools(base, over, path, report),
            (_, over) => over,
        },
        Rule::ByType => match (base, over) {
            (base, Value::Null) => base,
            (Value::Map(base), Value::Map(over)) => mappings(base, over, path, report),
            (Value::Seq(base), Value::Seq(over)) => append(base, over),
            (base @ (Value::Map(_) | Value::Seq(_)), over) => {
                let path = path.iter().fold(String::new(), |all, key| at(&all, key));
                report.error(&path, format!("{} cannot be merged with {}", base.kind(), over.kind()), "write both in the same form");
                base
            }
            (_, over) => over,
        },
    }
}

fn append(mut base: Vec<Value>, over: Vec<Value>) -> Value {
    base.extend(over);
    Value::Seq(base)
}

fn mappings(mut base: Map, over: Map, path: &mut Vec<String>, report: &mut Report) -> Value {
    for (key, value) in over {
        let merged = match base.remove(&key) {
            Some(old) if !key.starts_with("x-") => {
                path.push(key.clone());
                let merged = merge(old, value, path, report);
                path.pop();
                merged
            }
            _ => value,
        };
        base.insert(key, merged);
    }
    Value::Map(base)
}

/// A list of `key=value` of a mapping, sorted; a list stays.
fn sequence(value: Value) -> Vec<Value> {
    match value {
        Value::Seq(items) => items,
        Value::Map(map) => {
            let mut out: Vec<String> = Vec::new();
            for (key, value) in map {
                match value {
                    Value::Null => out.push(key),
                    Value::Seq(many) => out.extend(many.iter().filter_map(Value::scalar).map(|v| format!("{key}={v}"))),
                    one => out.push(format!("{key}={}", one.scalar().unwrap_or_default())),
                }
            }
            out.sort();
            out.into_iter().map(Value::String).collect()
        }
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

fn context(value: Value) -> Map {
    match value {
        Value::Map(map) => map,
        Value::Null => Map::new(),
        text => Map::from([("context".to_owned(), text)]),
    }
}

/// A mapping of a list of names.
fn named(value: Value, conditions: bool) -> Map {
    let inner = || {
        let condition = ("condition".to_owned(), Value::String("service_started".into()));
        if conditions { Value::Map(Map::from([condition, ("required".to_owned(), Value::Bool(true))])) } else { Value::Null }
    };
    match value {
        Value::Map(map) => map,
        Value::Seq(items) => items.iter().filter_map(Value::scalar).map(|name| (name, inner())).collect(),
        _ => Map::new(),
    }
}

fn drivers_differ(base: &Map, over: &Map) -> bool {
    matches!((base.get("driver"), over.get("driver")), (Some(a), Some(b)) if a != b)
}

/// Address pools are the same when their subnet is.
fn pools(base: Vec<Value>, over: Vec<Value>, path: &mut Vec<String>, report: &mut Report) -> Value {
    let subnet = |v: &Value| match v {
        Value::Map(m) => m.get("subnet").cloned(),
        _ => None,
    };
    let mut out: Vec<Value> = Vec::new();
    for old in base {
        for new in &over {
            if subnet(new) != subnet(&old) && !out.iter().any(|p| subnet(p) == subnet(new)) {
                out.push(new.clone());
                continue;
            }
            let (Value::Map(old), Value::Map(new)) = (&old, new) else { continue };
            let merged = mappings(old.clone(), new.clone(), path, report);
            match out.iter_mut().find(|p| subnet(p) == subnet(&merged)) {
                Some(same) => *same = merged,
                None => out.push(merged),
            }
        }
    }
    Value::Seq(out)
}

/// Takes the tags out of a parsed file; `paths` are the places whose earlier value goes away before the file is merged.
pub(super) fn take_tags(value: Value, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> Option<Value> {
    match value {
        Value::Tagged(tag, inner) => {
            paths.push(path.clone());
            match tag {
                Tag::Reset => None,
                Tag::Override => Some(plain(*inner)),
            }
        }
        Value::Seq(items) => Some(Value::Seq(
            items
                .into_iter()
                .enumerate()
                .filter_map(|(index, item)| {
                    path.push(format!("[{index}]"));
                    let item = take_tags(item, path, paths);
                    path.pop();
                    item
                })
                .collect(),
        )),
        Value::Map(map) => Some(Value::Map(
            map.into_iter()
                .filter_map(|(key, value)| {
                    path.push(key.clone());
                    let value = take_tags(value, path, paths);
                    path.pop();
                    value.map(|v| (key, v))
                })
                .collect(),
        )),
        scalar => Some(scalar),
    }
}

/// Tags within a replaced value have nothing to act on.
fn plain(value: Value) -> Value {
    take_tags(value, &mut Vec::new(), &mut Vec::new()).unwrap_or(Value::Null)
}

/// Removes the places from what earlier files said.
pub(super) fn clear(tree: &mut Map, paths: &[Vec<String>]) {
    for path in paths {
        let Some((last, way)) = path.split_last() else { continue };
        let mut here = Some(&mut *tree);
        for key in way {
            here = match here.and_then(|m| m.get_mut(key)) {
                Some(Value::Map(inner)) => Some(inner),
                _ => None,
            };
        }
        if let Some(map) = here {
            map.remove(last);
        }
    }
}
