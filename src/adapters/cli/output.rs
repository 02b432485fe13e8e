//! What people read: a table where a reply is a list, its text otherwise; the structured value with `--json`. Deliberately absent: values
//! that are not in the reply.

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;
use std::io::Write;

/// The list in a tool's reply and the columns worth a person's look: (tool, pointer to the list, columns).
const TABLES: &[(&str, &str, &[&str])] = &[
    ("plan", "/changes", &["service", "action", "strategy", "expected_loss"]),
    ("plan", "/findings", &["verdict", "rule", "service", "because"]),
    ("history", "/releases", &["release", "state", "current", "at", "restorable", "agent", "reason"]),
    ("stats", "/containers", &["service", "container", "cpu_percent", "memory_bytes", "memory_limit"]),
    ("backup", "/snapshots", &["snapshot_id", "volume", "bytes", "added", "files", "state"]),
    ("backups", "/snapshots", &["snapshot_id", "at", "stack", "volume", "bytes", "state"]),
    ("audit", "/rows", &["seq", "at", "kind", "agent", "tool", "stack", "verdict", "outcome"]),
    ("operation", "/operations", &["operation_id", "verb", "stack", "state", "agent", "release", "at", "message"]),
    ("agents", "/agents", &["name", "tier", "description"]),
    ("operators tokens", "/tokens", &["id", "operator", "label", "state", "created_at", "used_at", "expires_at"]),
    ("agents tokens", "/tokens", &["id", "agent", "label", "state", "created_at", "used_at", "expires_at"]),
    ("policy explain", "/rules", &["rule", "verdict", "production", "about"]),
    ("approvals", "/approvals", &["approval_id", "state", "agent", "tool", "stack", "environment", "expires_at"]),
];

fn say(text: &str) {
    // A closed pipe (`| head`) is the reader's choice, not a failure.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// Prints a value as JSON.
pub fn json(value: &Value) {
    say(&serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string()));
}

/// Prints a line for people.
pub fn line(text: impl AsRef<str>) {
    say(text.as_ref());
}

/// Prints what a tool answered.
pub fn reply(as_json: bool, tool: &str, value: &Value, text: &str) {
    if as_json {
        return json(value);
    }
    let tables: Vec<String> =
        TABLES.iter().filter(|(t, ..)| *t == tool).filter_map(|(_, at, columns)| rows(value.pointer(at)?.as_array()?, columns)).collect();
    let listing = tool == "status" || tool == "health";
    if !listing && !tables.is_empty() {
        say(&tables.join("\n\n"));
        if let Some(first) = text.lines().next().filter(|l| !l.trim().is_empty()) {
            eprintln!("{first}");
        }
    } else {
        say(text);
    }
}

/// A table of the columns that any row has; `None` for an empty list.
pub fn rows(list: &[Value], columns: &[&str]) -> Option<String> {
    let used: Vec<&str> = columns.iter().copied().filter(|c| list.iter().any(|row| row.get(*c).is_some_and(|v| !v.is_null()))).collect();
    if used.is_empty() {
        return None;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(used.iter().map(|c| c.to_uppercase().replace('_', " ")));
    for row in list {
        table.add_row(used.iter().map(|c| cell(row.get(*c).unwrap_or(&Value::Null))));
    }
    Some(table.to_string())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map.get("text").map_or_else(|| value.to_string(), cell),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Prints a `CallError` for people, on stderr.
pub fn refusal(error: &Value) {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    eprintln!("error ({}): {}", text("code"), text("message"));
    for finding in error.get("findings").and_then(Value::as_array).into_iter().flatten() {
        eprintln!("  {} [{}]: {}", cell(&finding["rule"]), cell(&finding["verdict"]), cell(&finding["because"]));
    }
    eprintln!("hint: {}", text("hint"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_only_columns_somebody_fills_and_no_control_characters() {
        let list = [json!({"a": "x\u{1b}[31m", "b": null, "c": 1}), json!({"a": null, "c": {"untrusted": true, "text": "t"}})];
        let table = rows(&list, &["a", "b", "c"]).expect("a table");
        let lines: Vec<String> = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["A C", "x [31m 1", "t"]);
        assert_eq!(rows(&[], &["a"]), None);
    }
}
