//! `.env` and env files: `KEY=value`, `export`, quotes, comments, multi-line quoted values, interpolation. Sees declared variables and
//! earlier lines of the same file only.

use super::interpolate;
use std::collections::BTreeMap;

/// All values of one file together, in bytes; bounds lines that repeat each other.
const MAX_TOTAL: usize = 1 << 20;

/// A refused line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadLine {
    pub line: usize,
    pub message: String,
}

/// Parses a file. Declared variables win over earlier lines in references, as the shell's do in compose. A key without `=` takes the declared
/// value and is left out when there is none. `interpolating` is off for `format: raw`.
pub(super) fn parse(input: &str, declared: &BTreeMap<String, String>, interpolating: bool) -> Result<BTreeMap<String, String>, BadLine> {
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    let mut total = 0usize;
    let input = input.strip_prefix('\u{feff}').unwrap_or(input);
    let lines: Vec<&str> = input.lines().collect();
    let mut index = 0;
    while index < lines.len() {
        let line = index + 1;
        let bad = |message: String| BadLine { line, message };
        let trimmed = lines[index].trim_start();
        index += 1;
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let body = trimmed.strip_prefix("export ").unwrap_or(trimmed).trim_start();
        let split = body.find(['=', ':']);
        let (key, rest) = split.map_or((body.trim_end(), None), |at| (body[..at].trim_end(), Some(&body[at + 1..])));
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'[' | b']')) {
            return Err(bad(format!("{:?} is no variable name", key.chars().take(80).collect::<String>())));
        }
        let Some(rest) = rest else {
            if let Some(value) = declared.get(key) {
                out.insert(key.to_owned(), value.clone());
            }
            continue;
        };
        let rest = rest.trim_start_matches([' ', '\t']);
        let quote = if interpolating { rest.chars().next().filter(|c| matches!(c, '\'' | '"')) } else { None };
        let value = if let Some(quote) = quote {
            let mut text = rest[1..].to_owned();
            let end = loop {
                if let Some(end) = closing_quote(&text, quote) {
                    break end;
                }
                let Some(next) = lines.get(index) else {
                    return Err(bad(format!("the quoted value of {key} is not closed")));
                };
                text.push('\n');
                text.push_str(next);
                index += 1;
            };
            text.truncate(end);
            if quote == '\'' { text } else { expand(&unescape(&text), &out, declared).map_err(bad)? }
        } else if interpolating {
            let cut = rest.find(" #").map_or(rest, |at| &rest[..at]);
            expand(cut.trim_end(), &out, declared).map_err(bad)?
        } else {
            rest.to_owned()
        };
        total += value.len();
        if total > MAX_TOTAL {
            return Err(bad(format!("the values are longer than {MAX_TOTAL} bytes together")));
        }
        out.insert(key.to_owned(), value);
    }
    Ok(out)
}

fn expand(text: &str, earlier: &BTreeMap<String, String>, declared: &BTreeMap<String, String>) -> Result<String, String> {
    let lookup = |name: &str| declared.get(name).or_else(|| earlier.get(name)).cloned();
    // Env files are full of passwords with a stray `$`: what is no reference stays as it is.
    match interpolate::text(text, &lookup, &mut Vec::new()) {
        Err(message) if message.starts_with("invalid interpolation") => Ok(text.to_owned()),
        other => other,
    }
}

fn closing_quote(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return Some(index);
        }
    }
    None
}

/// Escapes of a double-quoted value; `\$` becomes a literal `$`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('$') => out.push_str("$$"),
            Some(c @ ('"' | '\\')) => out.push(c),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}
