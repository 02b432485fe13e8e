//! Sections whose canonical form is a struct of the model (`deploy`, `build`, ...): the tree to that struct, errors with their path.

use super::value::Value;
use super::{Report, at, shellwords};
use serde::de::DeserializeOwned;

/// Reads a section; `x-` keys in it belong to others.
pub(super) fn read<T: DeserializeOwned>(value: Value, path: &str, report: &mut Report) -> Option<T> {
    let json = without_extensions(value).to_json();
    match serde_path_to_error::deserialize(json) {
        Ok(section) => Some(section),
        Err(e) => {
            let inner = e.path().to_string();
            let path = if inner.is_empty() || inner == "." { path.to_owned() } else { at(path, &inner) };
            report.error(&path, e.inner().to_string(), "");
            None
        }
    }
}

fn without_extensions(value: Value) -> Value {
    match value {
        Value::Map(map) => {
            Value::Map(map.into_iter().filter(|(k, _)| !k.starts_with("x-")).map(|(k, v)| (k, without_extensions(v))).collect())
        }
        Value::Seq(items) => Value::Seq(items.into_iter().map(without_extensions).collect()),
        scalar => scalar,
    }
}

/// Turns the text form of `command` in a mapping into words.
pub(super) fn split_command(value: &mut Value, path: &str, report: &mut Report) {
    let Value::Map(map) = value else { return };
    if let Some(command) = map.get_mut("command")
        && let Some(text) = command.scalar()
    {
        match shellwords::split(&text) {
            Ok(words) => *command = Value::Seq(words.into_iter().map(Value::String).collect()),
            Err(why) => report.error(&at(path, "command"), why, "write it as a list: [\"cmd\", \"arg\"]"),
        }
    }
}
