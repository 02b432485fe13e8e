//! `$V`, `${V}`, `${V:-default}`, `${V-default}`, `${V:?message}`, `${V?message}`, `${V:+other}`, `${V+other}`, nested, and `$$`.
//! Sees only what the caller's lookup gives, never the process environment.

use super::value::{Map, Value};
use super::{Report, at, cast};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Nesting of `${A:-${B:-...}}`; real files use two or three.
const MAX_NESTING: usize = 32;
/// Longest text one value may become, in bytes: references repeat a long variable without costing file bytes.
pub(super) const MAX_TEXT: usize = 1 << 20;

/// Stands for a declared value where only the text around it matters: set, and nothing a file can contain.
const BLANK: &str = "\u{0}";

/// Looks a variable up; `None` = not declared.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Interpolates one text; names of unset variables are pushed to `unset`.
pub(super) fn text(input: &str, lookup: Lookup<'_>, unset: &mut Vec<String>) -> Result<String, String> {
    if !input.contains('$') {
        return Ok(input.to_owned());
    }
    expand(input, lookup, unset, 0)
}

fn expand(input: &str, lookup: Lookup<'_>, unset: &mut Vec<String>, depth: usize) -> Result<String, String> {
    if depth > MAX_NESTING {
        return Err(format!("variables are nested deeper than {MAX_NESTING} levels"));
    }
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(start) = rest.find('$') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing_brace(after).ok_or_else(|| invalid(input))?;
            out.push_str(&braced(&after[..end], input, lookup, unset, depth)?);
            rest = &after[end + 1..];
        } else {
            let name = name_of(rest);
            // Compose leaves a `$` that begins no variable as it is: `$(date)`, `$1`, a closing `$`.
            if name.is_empty() {
                out.push('$');
            } else {
                out.push_str(&value_or_empty(name, lookup, unset));
                rest = &rest[name.len()..];
            }
        }
        if out.len() > MAX_TEXT {
            return Err(format!("the text is longer than {MAX_TEXT} bytes after interpolation"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn invalid(input: &str) -> String {
    let shown: String = input.chars().take(120).collect();
    format!("invalid interpolation in {shown:?}; write $$ for a literal $")
}

fn name_of(text: &str) -> &str {
    let mut end = 0;
    for (index, c) in text.bytes().enumerate() {
        if c == b'_' || c.is_ascii_alphabetic() || (index > 0 && c.is_ascii_digit()) {
            end = index + 1;
        } else {
            break;
        }
    }
    &text[..end]
}

/// Index of the brace that closes the one just read; braces within nest, as compose counts them.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(index),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn value_or_empty(name: &str, lookup: Lookup<'_>, unset: &mut Vec<String>) -> String {
    lookup(name).unwrap_or_else(|| {
        if !unset.iter().any(|u| u == name) {
            unset.push(name.to_owned());
        }
        String::new()
    })
}

fn braced(body: &str, whole: &str, lookup: Lookup<'_>, unset: &mut Vec<String>, depth: usize) -> Result<String, String> {
    let name = name_of(body);
    if name.is_empty() {
        return Err(invalid(whole));
    }
    let rest = &body[name.len()..];
    if rest.is_empty() {
        return Ok(value_or_empty(name, lookup, unset));
    }
    let (empty_counts, operator_and_word) = rest.strip_prefix(':').map_or((false, rest), |r| (true, r));
    let value = lookup(name);
    let usable = value.filter(|v| !(empty_counts && v.is_empty()));
    let mut operator = operator_and_word.chars();
    let kind = operator.next();
    // Compose looks for the closing brace on the same line only.
    if operator.as_str().contains('\n') {
        return Err(invalid(whole));
    }
    // The word is expanded whether it is used or not, so that what is wrong in it is wrong always.
    let word = expand(operator.as_str(), lookup, unset, depth + 1)?;
    match (kind, usable) {
        (Some('-' | '?'), Some(value)) => Ok(value),
        (Some('-'), None) | (Some('+'), Some(_)) => Ok(word),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => {
            let reason = if word.is_empty() { String::new() } else { format!(": {word}") };
            Err(format!("required variable {name} is missing a value{reason}"))
        }
        _ => Err(invalid(whole)),
    }
}

/// Interpolates every text of a tree; problems and unset variables go to the report with their path. Texts at places that have a type are cast
/// to it; `segments` are the keys down to here, `[]` for an entry of a list.
pub(super) fn tree(
    value: Value,
    path: &str,
    segments: &mut Vec<String>,
    variables: &BTreeMap<String, String>,
    report: &mut Report,
) -> Value {
    match value {
        Value::String(s) => match one(&s, path, variables, report) {
            Some(done) => cast::text(done, segments).unwrap_or_else(|message| {
                report.error(path, message, "");
                Value::Null
            }),
            None => Value::Null,
        },
        Value::Seq(items) => {
            segments.push("[]".into());
            let items = items.into_iter().enumerate().map(|(i, v)| tree(v, &format!("{path}[{i}]"), segments, variables, report)).collect();
            segments.pop();
            Value::Seq(items)
        }
        Value::Map(map) => {
            let mut inner = |(k, v): (String, Value)| {
                segments.push(k);
                let below = at(path, segments.last().map_or("", String::as_str));
                let v = tree(v, &below, segments, variables, report);
                (segments.pop().unwrap_or_default(), v)
            };
            Value::Map(map.into_iter().map(&mut inner).collect::<Map>())
        }
        Value::Tagged(tag, inner) => Value::Tagged(tag, Box::new(tree(*inner, path, segments, variables, report))),
        other @ (Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_)) => other,
    }
}

fn one(s: &str, path: &str, variables: &BTreeMap<String, String>, report: &mut Report) -> Option<String> {
    let mut unset = Vec::new();
    let seen = RefCell::new(BTreeSet::new());
    let look = |name: &str| {
        seen.borrow_mut().insert(name.to_owned());
        variables.get(name).cloned()
    };
    let result = text(s, &look, &mut unset);
    let seen = seen.into_inner();
    if let (Ok(done), true) = (&result, seen.iter().any(|name| variables.get(name).is_some_and(|v| !v.is_empty()))) {
        // The same text with declared variables as nothing: what remains was written by the author of the file.
        let bare =
            text(s, &|name| variables.get(name).map(|v| if v.is_empty() { String::new() } else { BLANK.to_owned() }), &mut Vec::new());
        report.substituted.insert(done.clone(), bare.unwrap_or_default().replace(BLANK, ""));
    }
    for name in seen {
        report.references.entry(name).or_insert_with(|| path.to_owned());
    }
    for name in unset {
        report.note(path, format!("variable {name} is not set; an empty text is used"));
    }
    match result {
        Ok(done) if report.spend(done.len()) => Some(done),
        Ok(_) => {
            report.broken(path, Some("yaml.bomb"), "the file is too large after interpolation", "shorten the variables that are repeated");
            None
        }
        Err(message) => {
            let hint =
                if message.starts_with("required") { "declare the variable in `variables`, `.env` or an environment file" } else { "" };
            report.error(path, message, hint);
            None
        }
    }
}
