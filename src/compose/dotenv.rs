//! `.env` and env files as Compose reads them: `KEY=value`, `KEY: value`, `export`, quotes, comments, values over several lines, escapes,
//! interpolation. Sees declared variables and earlier lines of the same file only.

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
    let text = input.strip_prefix('\u{feff}').unwrap_or(input);
    let mut values = Values { declared, out: BTreeMap::new(), total: 0 };
    let mut rest = text;
    while let Some(statement) = next_statement(rest) {
        let read = if interpolating { quoted_statement(statement, &mut values) } else { raw_statement(statement, &mut values) };
        match read {
            Ok(left) => rest = left,
            Err(message) => {
                let before = &text[..text.len() - statement.len()];
                return Err(BadLine { line: before.bytes().filter(|b| *b == b'\n').count() + 1, message });
            }
        }
    }
    Ok(values.out)
}

struct Values<'a> {
    declared: &'a BTreeMap<String, String>,
    out: BTreeMap<String, String>,
    total: usize,
}

impl Values<'_> {
    fn put(&mut self, key: String, value: String) -> Result<(), String> {
        self.total += value.len();
        if self.total > MAX_TOTAL {
            return Err(format!("the values are longer than {MAX_TOTAL} bytes together"));
        }
        self.out.insert(key, value);
        Ok(())
    }

    fn inherit(&mut self, key: String) -> Result<(), String> {
        match self.declared.get(&key).cloned() {
            Some(value) => self.put(key, value),
            None => Ok(()),
        }
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        let lookup = |name: &str| self.declared.get(name).or_else(|| self.out.get(name)).cloned();
        // Whoever is told of a problem may name the file and not read it: its text is not repeated.
        interpolate::text(text, &lookup, &mut Vec::new()).map_err(|message| match message.split_once(" is missing a value") {
            Some((what, _)) if what.starts_with("required variable ") => format!("{what} is missing a value"),
            _ => "a reference to a variable is malformed".to_owned(),
        })
    }
}

/// Skips white space and comments.
fn next_statement(mut rest: &str) -> Option<&str> {
    loop {
        rest = rest.trim_start();
        if !rest.starts_with('#') {
            return if rest.is_empty() { None } else { Some(rest) };
        }
        rest = &rest[rest.find('\n')?..];
    }
}

/// White space that ends no line.
fn blank(c: char) -> bool {
    c != '\n' && c.is_whitespace()
}

fn valid(key: &str) -> Result<String, String> {
    let ok = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']'));
    if ok { Ok(key.to_owned()) } else { Err("what stands before = is no variable name".to_owned()) }
}

/// `format: raw`: what follows the first `=` is the value, as it stands.
fn raw_statement<'t>(statement: &'t str, values: &mut Values<'_>) -> Result<&'t str, String> {
    let (line, rest) = statement.split_once('\n').unwrap_or((statement, ""));
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line.split_once('=') {
        Some((key, value)) => values.put(valid(key.trim())?, value.to_owned())?,
        None => values.inherit(valid(line.trim())?)?,
    }
    Ok(rest)
}

/// One statement; returns what follows it, which may stand on the same line after a quoted value.
fn quoted_statement<'t>(statement: &'t str, values: &mut Values<'_>) -> Result<&'t str, String> {
    let body = match statement.strip_prefix("export") {
        Some(after) if after.starts_with(char::is_whitespace) => after.trim_start_matches(blank),
        _ => statement,
    };
    let end = body.find(['=', ':', '\n']).unwrap_or(body.len());
    let key = valid(body[..end].trim_end())?;
    if body[end..].is_empty() || body[end..].starts_with('\n') {
        values.inherit(key)?;
        return Ok(&body[end..]);
    }
    let rest = body[end + 1..].trim_start_matches(blank);
    let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        let (line, left) = rest.split_once('\n').unwrap_or((rest, ""));
        let value = line.split_once(" #").map_or(line, |(value, _)| value).trim_end();
        let value = values.expand(value)?;
        values.put(key, value)?;
        return Ok(left);
    };
    let (text, left) = quoted(&rest[1..], quote).ok_or_else(|| format!("the quoted value of {key} is not closed"))?;
    let value = if quote == '"' { values.expand(&unescape(&text))? } else { text };
    values.put(key, value)?;
    Ok(left)
}

/// The text up to the closing quote, with escaped quotes resolved and every other backslash kept, and what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        if c == quote {
            if !escaped {
                return Some((out, &text[index + 1..]));
            }
            escaped = false;
        } else if c == '\\' && !escaped {
            escaped = true;
            continue;
        } else if escaped {
            escaped = false;
            out.push('\\');
        }
        out.push(c);
    }
    None
}

/// Escapes of a double-quoted value; `\$` becomes a literal `$`. What is none stays as it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            out.push('\\');
            break;
        };
        let plain = match c {
            'a' => "\u{7}",
            'b' => "\u{8}",
            'f' => "\u{c}",
            'n' => "\n",
            'r' => "\r",
            't' => "\t",
            'v' => "\u{b}",
            '$' => "$$",
            '"' => "\"",
            '\\' => "\\",
            '0' => {
                let digits = &rest[1..];
                let digits = &digits[..digits.bytes().take(3).take_while(|b| matches!(b, b'0'..=b'7')).count()];
                let code = u32::from_str_radix(digits, 8).ok().filter(|_| digits.len() == 3).and_then(char::from_u32);
                match code.filter(|c| (*c as u32) < 256) {
                    Some(code) => {
                        out.push(code);
                        rest = &rest[1 + digits.len()..];
                    }
                    None => {
                        out.push_str("\\0");
                        rest = &rest[1..];
                    }
                }
                continue;
            }
            other => {
                out.extend(['\\', other]);
                rest = &rest[other.len_utf8()..];
                continue;
            }
        };
        out.push_str(plain);
        rest = &rest[c.len_utf8()..];
    }
    out.push_str(rest);
    out
}
