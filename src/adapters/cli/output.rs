//! What people read: a table where a reply is a list, its text otherwise; the structured value with `--json`. Deliberately absent: values
//! that are not in the reply.

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;
use std::io::Write;

/// A list in a reply that people read as a table.
struct List {
    tool: &'static str,
    /// Pointer to it.
    at: &'static str,
    /// Worth a person's look.
    columns: &'static [&'static str],
    /// Line of the text at which its rows begin, one line each; `None` when the text only counts them. Every other line is said beside the table.
    rows: Option<usize>,
}

const fn list(tool: &'static str, at: &'static str, columns: &'static [&'static str], rows: Option<usize>) -> List {
    List { tool, at, columns, rows }
}

const TABLES: &[List] = &[
    list("history", "/releases", &["release", "state", "current", "at", "restorable", "agent", "reason"], Some(1)),
    list("backups", "/snapshots", &["snapshot_id", "at", "stack", "volume", "bytes", "state"], Some(0)),
    list("audit", "/rows", &["seq", "at", "kind", "agent", "tool", "stack", "verdict", "outcome"], Some(0)),
    list("operation", "/operations", &["operation_id", "verb", "stack", "state", "agent", "release", "at", "message"], Some(0)),
    list("operators tokens", "/tokens", &["id", "operator", "label", "state", "created_at", "used_at", "expires_at"], None),
    list("agents tokens", "/tokens", &["id", "agent", "label", "state", "created_at", "used_at", "expires_at"], None),
    list("policy explain", "/rules", &["rule", "verdict", "production", "about"], None),
    list("approvals", "/approvals", &["approval_id", "state", "agent", "tool", "stack", "environment", "expires_at"], None),
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
    let (out, beside) = for_people(tool, value, text);
    say(&out);
    if let Some(beside) = beside {
        eprintln!("{beside}");
    }
}

/// What is printed of a reply, and what is said beside it.
fn for_people<'a>(tool: &str, value: &Value, text: &'a str) -> (String, Option<&'a str>) {
    let listed = |l: &'static List| {
        let items = value.pointer(l.at)?.as_array()?;
        Some((l, items.len(), rows(items, l.columns)?))
    };
    let Some((list, count, table)) = TABLES.iter().find(|l| l.tool == tool).and_then(listed) else { return (text.to_owned(), None) };
    let Some(begin) = list.rows else { return (table, text.lines().next().filter(|l| !l.trim().is_empty())) };
    let all: Vec<&str> = text.lines().collect();
    let before = all.iter().take(begin);
    let after = all.iter().skip(begin + count);
    let parts: Vec<&str> = before.copied().chain([table.as_str()]).chain(after.copied()).collect();
    (parts.join("\n"), None)
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

    #[test]
    fn a_table_stands_for_the_rows_and_for_nothing_else_that_was_said() {
        let value = json!({"snapshots": [{"snapshot_id": "0a", "volume": "v"}, {"snapshot_id": "0b", "volume": "w"}]});
        let text =
            "t 0a v 1 bytes\nt 0b w 1 bytes\ndrill of v at t: FAILED\nNOT COVERED: w of shop/db: never\n(older snapshots: cursor 0b)";
        let (out, beside) = for_people("backups", &value, text);
        let lines: Vec<String> = out.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let after = ["drill of v at t: FAILED", "NOT COVERED: w of shop/db: never", "(older snapshots: cursor 0b)"];
        assert_eq!(lines[..3], ["SNAPSHOT ID VOLUME", "0a v", "0b w"]);
        assert_eq!((&lines[3..], beside), (&after.map(str::to_owned)[..], None));
        let value = json!({"releases": [{"release": 2}], "content": ["web image: x"]});
        let (out, _) = for_people("history", &value, "shop in production\n*r2 good\nweb image: x");
        assert!(out.starts_with("shop in production\n") && out.ends_with("\nweb image: x") && !out.contains("*r2"), "{out}");
        // A plan is its text: digest, diff, checks that do not hold.
        let plan = "plan plan-1 for shop\ndigest abc\nweb update by front\nno port.free: taken";
        assert_eq!(for_people("plan", &json!({"changes": [{"service": "web"}]}), plan), (plan.to_owned(), None));
        assert_eq!(for_people("approvals", &json!({"approvals": [{"approval_id": "ap-1"}]}), "1 approvals").1, Some("1 approvals"));
    }
}
