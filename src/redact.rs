//! What leaves the house passes here: text of others is stripped and enveloped as untrusted, secrets are masked, sizes are bounded.
//! Pure. It decides nothing about who may see what, and it is no substitute for not putting a secret into a reply in the first place.

pub mod declared;

use aho_corasick::AhoCorasick;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// What stands in the place of a masked value.
pub const MASK: &str = "[redacted]";

/// Longest string of an argument that is kept in the audit log, in bytes; longer ones are recorded by size and hash.
const MAX_ARGUMENT: usize = 512;

/// Text that came from a container, an image, a label or another agent: data, never instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Untrusted {
    /// Always true.
    pub untrusted: bool,
    /// Where the text came from.
    pub source: String,
    /// The text.
    pub text: String,
}

/// Envelopes a text: stripped (see [`clean`]), secrets masked, cut to `max` bytes from the end (the newest lines of a log are its end).
pub fn envelope(source: impl Into<String>, text: &str, max: usize) -> Untrusted {
    Untrusted { untrusted: true, source: source.into(), text: keep_end(&mask(&clean(text)), max).to_owned() }
}

/// One line of untrusted text for a table row: stripped, no line breaks, cut to `max` bytes from the start.
pub fn line(text: &str, max: usize) -> String {
    let cleaned = mask(&clean(text)).replace(['\n', '\t'], " ");
    keep_start(cleaned.trim(), max).to_owned()
}

/// The last `max` bytes of a text, cut at a character and, where one is near, at a line.
fn keep_end(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut at = text.len() - max;
    while !text.is_char_boundary(at) {
        at += 1;
    }
    match text[at..].find('\n') {
        Some(newline) if newline + 1 < text.len() - at => &text[at + newline + 1..],
        _ => &text[at..],
    }
}

/// The first `max` bytes of a text, cut at a character.
pub fn keep_start(text: &str, max: usize) -> &str {
    let mut at = max.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    &text[..at]
}

/// Removes what a terminal or a model would obey instead of read: ANSI escape sequences, control characters (line feed and tab stay), and
/// invisible characters (bidi controls, zero-width, Unicode tags, variation selectors, BOM, soft hyphen). CR LF becomes LF; a lone CR, used by
/// progress bars to overwrite a line, becomes LF.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\u{9b}' => skip_csi(&mut chars),
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    out.push('\n');
                }
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() || is_invisible(c) => {}
            c => out.push(c),
        }
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// After ESC: a CSI sequence, a string sequence (OSC, DCS, SOS, PM, APC) up to its end, or one more character.
fn skip_escape(chars: &mut Chars<'_>) {
    match chars.next() {
        Some('[') => skip_csi(chars),
        Some(']' | 'P' | 'X' | '^' | '_') => {
            // A string sequence that never ends must not swallow the rest of a log: it ends at the line at the latest.
            while let Some(&c) = chars.peek() {
                if c == '\n' {
                    return;
                }
                chars.next();
                if c == '\u{7}' || c == '\u{9c}' {
                    return;
                }
                if c == '\u{1b}' {
                    chars.next_if_eq(&'\\');
                    return;
                }
            }
        }
        Some('(' | ')' | '*' | '+' | '#' | ' ' | '%') => {
            chars.next_if(|c| *c != '\n');
        }
        _ => {}
    }
}

/// Parameters and intermediates (0x20..=0x3f), then one final character (0x40..=0x7e).
fn skip_csi(chars: &mut Chars<'_>) {
    while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
    chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether a key names a secret by its words.
pub fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace(['-', '.'], "_");
    ["password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "access_key", "private_key", "credential", "authorization"]
        .iter()
        .any(|word| key.contains(word))
        || key.split('_').any(|part| matches!(part, "pass" | "pwd" | "pw"))
}

/// Prefixes of well-known credentials; what follows them, up to a character no credential has, is masked. From the providers' own documentation.
const PREFIXES: [&str; 16] = [
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "sk-ant-",
    "sk-proj-",
    "sk_live_",
    "dckr_pat_",
    "npm_",
];

/// Masks credentials in free text: declared secrets by their value, well-known token forms, `user:password@` of URLs, `Bearer ...`, private key blocks, `password=...`.
pub fn mask(text: &str) -> String {
    let known = declared::mask(text);
    let mut out = String::with_capacity(known.len());
    let mut rest = &*known;
    while let Some((at, skip, keep)) = next_secret(rest) {
        out.push_str(&rest[..at + keep]);
        out.push_str(MASK);
        rest = &rest[at + skip..];
    }
    out.push_str(rest);
    out
}

/// What every secret begins with or has in it. Most texts have none of these, and one pass over them is all they cost.
static TRIGGERS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let others = ["-----BEGIN ", "://", "earer ", "="];
    AhoCorasick::new(PREFIXES.iter().chain(&others)).expect("twenty short patterns fit into an automaton")
});

/// Position of the next secret, its whole length, and how many bytes of it stay.
fn next_secret(text: &str) -> Option<(usize, usize, usize)> {
    if !TRIGGERS.is_match(text) {
        return None;
    }
    let mut best: Option<(usize, usize, usize)> = None;
    let mut offer = |at: usize, skip: usize, keep: usize| {
        if best.is_none_or(|b| at < b.0) {
            best = Some((at, skip, keep));
        }
    };
    for prefix in PREFIXES {
        for (at, _) in text.match_indices(prefix) {
            let boundary = text[..at].chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric());
            let body = token_len(&text[at + prefix.len()..]);
            if boundary && body >= 12 {
                offer(at, prefix.len() + body, 0);
                break;
            }
        }
    }
    if let Some(at) = text.find("-----BEGIN ")
        && text[at..].lines().next().is_some_and(|l| l.contains("PRIVATE KEY"))
    {
        let end = text[at..].find("-----END ").map_or(text.len() - at, |e| e + text[at + e..].find('\n').unwrap_or(text.len() - at - e));
        offer(at, end, 0);
    }
    for (at, _) in text.match_indices("://") {
        let authority = &text[at + 3..];
        let authority = &authority[..authority.find(['/', ' ', '\n', '"', '\'', '?', '#']).unwrap_or(authority.len())];
        if let (Some(colon), Some(sign)) = (authority.find(':'), authority.rfind('@'))
            && colon + 1 < sign
            && &authority[colon + 1..sign] != MASK
        {
            offer(at, 3 + sign, 3 + colon + 1);
            break;
        }
    }
    for (at, word) in text.match_indices("earer ") {
        let body = token_len(&text[at + word.len()..]);
        if body >= 12 {
            offer(at, word.len() + body, word.len());
            break;
        }
    }
    for (at, _) in text.match_indices('=') {
        let key = text[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).next().unwrap_or_default();
        let value =
            text[at + 1..].find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '&' | ',' | ';')).unwrap_or(text.len() - at - 1);
        if value > 0 && is_secret_key(key) && !text[at + 1..].starts_with(MASK) {
            offer(at, 1 + value, 1);
            break;
        }
    }
    best
}

fn token_len(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '+' | '='))).unwrap_or(text.len())
}

/// A call's arguments as the audit log keeps them: files and variables by size and keyed hash, values of secret-looking keys masked, long strings by size and
/// hash. `hash` is the home's keyed 6-character hash, so that an operator can tell equal values apart from changed ones without seeing them.
pub fn arguments(input: &Value, hash: &dyn Fn(&str) -> String) -> Value {
    let Value::Object(map) = input else { return argument(input, hash) };
    map.iter()
        .map(|(key, value)| {
            let value = match (key.as_str(), value) {
                ("compose", Value::String(text)) => digest(text, hash),
                ("variables" | "files", Value::Object(entries)) => Value::Object(
                    entries
                        .iter()
                        .map(|(k, v)| (line(k, 200), v.as_str().map_or(json!("set"), |text| digest(text, hash))))
                        .collect::<Map<_, _>>(),
                ),
                (key, value) if is_secret_key(key) && !value.is_null() => json!(MASK),
                (_, value) => argument(value, hash),
            };
            (line(key, 200), value)
        })
        .collect::<Map<_, _>>()
        .into()
}

fn digest(text: &str, hash: &dyn Fn(&str) -> String) -> Value {
    json!(format!("{} bytes ({})", text.len(), hash(text)))
}

fn argument(value: &Value, hash: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) if text.len() > MAX_ARGUMENT => digest(text, hash),
        Value::String(text) => json!(mask(&clean(text))),
        Value::Array(items) => items.iter().take(100).map(|v| argument(v, hash)).collect(),
        Value::Object(map) => map
            .iter()
            .take(100)
            .map(|(k, v)| (line(k, 200), if is_secret_key(k) && !v.is_null() { json!(MASK) } else { argument(v, hash) }))
            .collect::<Map<_, _>>()
            .into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// The last word on a reply: every string stripped and masked, whatever a tool forgot.
pub fn reply(value: &mut Value) {
    match value {
        Value::String(text) => {
            let plain = text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t'));
            if !plain && text.chars().any(|c| (c.is_control() && c != '\n' && c != '\t') || is_invisible(c)) {
                *text = clean(text);
            }
            if declared::stands_in(text) || next_secret(text).is_some() {
                *text = mask(text);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(reply),
        Value::Object(map) => {
            if map.keys().any(|k| declared::stands_in(k)) {
                *map = std::mem::take(map).into_iter().map(|(k, v)| (declared::mask(&k).into_owned(), v)).collect();
            }
            map.values_mut().for_each(reply);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_or_a_model_would_obey_is_removed() {
        let cases = [
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "link"),
            ("\u{1b}]never ends\nnext line", "\nnext line"),
            ("a\u{0}b\u{8}c", "abc"),
            ("safe\u{202e}evil\u{202c}", "safeevil"),
            ("zero\u{200b}width\u{feff}", "zerowidth"),
            ("tag\u{e0041}\u{e0042}s", "tags"),
            ("one\r\ntwo\rthree\tfour", "one\ntwo\nthree\tfour"),
            ("naïve 日本", "naïve 日本"),
        ];
        for (given, wanted) in cases {
            assert_eq!(clean(given), wanted, "{given:?}");
        }
    }

    #[test]
    fn credentials_in_free_text_are_masked() {
        let cases = [
            ("key AKIAIOSFODNN7EXAMPLE used", "key [redacted] used"),
            ("postgres://app:hunter2@db:5432/x", "postgres://app:[redacted]@db:5432/x"),
            ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [redacted]"),
            ("DB_PASSWORD=hunter2 next", "DB_PASSWORD=[redacted] next"),
            ("a=1&api_key=xyz&b=2", "a=1&api_key=[redacted]&b=2"),
            ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nafter", "[redacted]\nafter"),
            ("http://host:80/path@x", "http://host:80/path@x"),
            ("nothing to hide", "nothing to hide"),
        ];
        for (given, wanted) in cases {
            assert_eq!(mask(given), wanted, "{given:?}");
            assert_eq!(mask(wanted), wanted, "masking twice changes nothing: {wanted:?}");
        }
    }

    #[test]
    fn an_envelope_keeps_the_newest_whole_lines() {
        let got = envelope("logs:web", "first\nsecond\nthird", 11);
        assert_eq!(got, Untrusted { untrusted: true, source: "logs:web".into(), text: "third".into() });
    }

    #[test]
    fn the_audit_log_never_sees_a_variable_or_a_file() {
        let input =
            json!({"stack": "shop", "compose": "services: {}", "variables": {"TOKEN": "s3cret"}, "password": "x", "note": "see\u{1b}[0m"});
        let got = arguments(&input, &|text| format!("h{}", text.len()));
        assert_eq!(
            got,
            json!({"stack": "shop", "compose": "12 bytes (h12)", "variables": {"TOKEN": "6 bytes (h6)"}, "password": "[redacted]", "note": "see"})
        );
    }

    #[test]
    fn a_reply_is_cleaned_at_every_depth() {
        let mut value = json!({"a": ["x\u{202e}y", {"b": "p://u:pw@h"}], "n": 1});
        reply(&mut value);
        assert_eq!(value, json!({"a": ["xy", {"b": "p://u:[redacted]@h"}], "n": 1}));
    }
}
