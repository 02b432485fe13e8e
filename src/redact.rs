//! What leaves the house passes here: text of others is stripped and enveloped as untrusted, secrets are masked, sizes are bounded.
//! Pure. It decides nothing about who may see what, and it is no substitute for not putting a secret into a reply in the first place.

pub mod declared;
pub mod words;

pub use words::is_secret_key;

use crate::model::verdict::Finding;
use aho_corasick::{AhoCorasick, MatchKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// What stands in the place of a masked value.
pub const MASK: &str = "[redacted]";

/// Longest string of an argument that is kept in the audit log, in bytes; longer ones are recorded by size and hash.
const MAX_ARGUMENT: usize = 512;

/// Text that came from a container, an image, a label or another agent: data, never instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Untrusted {
    /// Always true.
    pub untrusted: bool,
    /// Where the text came from.
    pub source: String,
    /// The text.
    pub text: String,
}

/// How much more than is kept is looked through for secrets, in bytes: one that begins or ends beyond the cut is still masked. A private key block of
/// 8192 bits has 6.4 KiB.
const SLACK: usize = 8 * 1024;

/// Envelopes a text: stripped (see [`clean`]), secrets masked, cut to `max` bytes from the end (the newest lines of a log are its end).
pub fn envelope(source: impl Into<String>, text: &str, max: usize) -> Untrusted {
    let cleaned = clean(text);
    let mut from = cleaned.len().saturating_sub(max.saturating_add(SLACK));
    while !cleaned.is_char_boundary(from) {
        from += 1;
    }
    Untrusted { untrusted: true, source: source.into(), text: keep_end(&mask(&cleaned[from..]), max).to_owned() }
}

/// One line of untrusted text for a table row: stripped, no line breaks, cut to `max` bytes from the start.
pub fn line(text: &str, max: usize) -> String {
    // What is stripped is at most a few bytes a character of what stays in any honest text; the rest is not worth reading.
    let text = keep_start(text, max.saturating_add(SLACK).saturating_mul(4));
    let cleaned = clean(text);
    let cleaned = mask(keep_start(cleaned.trim(), max.saturating_add(SLACK))).replace(['\n', '\t'], " ");
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

/// Masks credentials in free text: declared secrets by their value, well-known token forms, `user:password@` of URLs, `Bearer ...`, private key blocks, `password=...`. One pass: no byte is
/// looked at more often than a few times, whatever the text.
pub fn mask(text: &str) -> String {
    masked(&declared::mask(text))
}

/// What is a credential by its form.
fn masked(text: &str) -> String {
    let mut out = String::new();
    let mut done = 0;
    for found in TRIGGERS.find_iter(text) {
        if found.start() < done {
            continue;
        }
        if let Some((keep, skip)) = secret(&text[done..], found.start() - done, found.end() - done) {
            out.push_str(&text[done..done + keep]);
            out.push_str(MASK);
            done += skip;
        }
    }
    out.push_str(&text[done..]);
    out
}

/// What every secret begins with or has in it.
static TRIGGERS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let others = [KEY_BLOCK, AUTHORITY, BEARER, ASSIGNED, SAID];
    let all = words::PREFIXES.iter().map(|p| p.text).chain(others);
    // The longest: `sk-ant-` begins as `sk-` does.
    AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(all).expect("forty short patterns fit into an automaton")
});

const KEY_BLOCK: &str = "-----BEGIN ";
const AUTHORITY: &str = "://";
const BEARER: &str = "earer ";
const ASSIGNED: &str = "=";
const SAID: &str = ":";

/// Shortest credential behind a known prefix, in bytes.
const MIN_TOKEN: usize = 12;

/// Whether the trigger at `at..end` begins a secret: how much of the text stays before it, and where it ends. It reads on from the trigger only to where the
/// secret ends or to where the next trigger of its kind can begin, so that all triggers of a text together read it once.
fn secret(text: &str, at: usize, end: usize) -> Option<(usize, usize)> {
    let rest = &text[end..];
    match &text[at..end] {
        KEY_BLOCK => {
            // The longest header has 35 bytes.
            let header = keep_start(rest, 64).lines().next()?;
            header.contains("PRIVATE KEY").then_some(())?;
            let close = rest.find("-----END ").map(|e| rest[e..].find('\n').map_or(text.len(), |newline| end + e + newline));
            Some((at, close.unwrap_or(text.len())))
        }
        AUTHORITY => {
            let authority = &rest[..rest.find(['/', ' ', '\n', '"', '\'', '?', '#']).unwrap_or(rest.len())];
            let (colon, sign) = (authority.find(':')?, authority.rfind('@')?);
            (colon + 1 < sign && &authority[colon + 1..sign] != MASK).then(|| (end + colon + 1, end + sign))
        }
        BEARER => Some(token_len(rest)).filter(|n| *n >= MIN_TOKEN).map(|n| (end, end + n)),
        ASSIGNED => {
            let key = text[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).next().unwrap_or_default();
            is_secret_key(key).then_some(())?;
            let value = &rest[..rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '&' | ',' | ';')).unwrap_or(rest.len())];
            (!value.is_empty() && value != MASK).then(|| (end, end + value.len()))
        }
        SAID => value_said(text, at, end),
        prefix => {
            let least = words::PREFIXES.iter().find(|p| p.text == prefix).map_or(MIN_TOKEN, |p| p.masked);
            let boundary = text[..at].chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric());
            boundary.then(|| token_len(rest)).filter(|n| *n >= least).map(|n| (at, end + n))
        }
    }
}

/// What stands behind a colon after the name of a secret: the value of a member of JSON (also of JSON within JSON), or of a line `password: value`. Names that
/// only speak about secrets, headings (`secrets:`) and places (`environment.TOKEN:`) say none.
fn value_said(text: &str, at: usize, end: usize) -> Option<(usize, usize)> {
    let before = text[..at].trim_end_matches(' ');
    let named = before.trim_end_matches(['"', '\'', '\\']);
    let quoted = named.len() < before.len();
    let key = named.rsplit(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))).next().unwrap_or_default();
    (is_secret_key(key) && !words::is_about(key) && (quoted || !key.contains('.'))).then_some(())?;
    let rest = text[end..].trim_start_matches([' ', '\t']);
    let at = text.len() - rest.len();
    let value = rest.trim_start_matches('\\');
    let escape = &rest[..rest.len() - value.len()];
    if let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let inside = &value[1..];
        let open = text.len() - inside.len();
        let length = if inside.starts_with(MASK) { 0 } else { closing(inside, escape, quote) };
        return (length > 0).then(|| (open, open + length));
    }
    let heading = key.ends_with(['s', 'S']) && !key.to_ascii_uppercase().ends_with("PASS");
    let line =
        named[..named.len() - key.len()].chars().next_back().is_none_or(|c| c.is_whitespace() || matches!(c, '{' | '[' | ',' | '(' | '-'));
    (!heading && (quoted || (line && at > end))).then_some(())?;
    let word = |text: &str| {
        text.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '&' | ',' | ';' | '}' | ']' | ')' | '`')).unwrap_or(text.len())
    };
    let length = word(rest);
    if key.eq_ignore_ascii_case("authorization") || key.eq_ignore_ascii_case("proxy-authorization") {
        // The scheme stays.
        let token = rest[length..].trim_start_matches(' ');
        let from = text.len() - token.len();
        let length = word(token);
        return (length >= MIN_TOKEN && !token.starts_with(MASK)).then(|| (from, from + length));
    }
    let value = &rest[..length];
    let told =
        value.is_empty() || value.starts_with(['[', '{', '$', '?', '<', '*']) || STATES.contains(&value.to_ascii_lowercase().as_str());
    (!told).then(|| (at, at + length))
}

/// What plans and files say of a secret without telling it.
const STATES: [&str; 8] = ["set", "changed", "unset", "null", "true", "false", "none", "required"];

/// Length of what stands before the closing quote of a string, which is escaped as its opening one was; of the line where there is none.
fn closing(inside: &str, escape: &str, quote: char) -> usize {
    let mut from = 0;
    for (found, _) in inside.match_indices([quote, '\n']) {
        if inside[found..].starts_with('\n') {
            return found;
        }
        let slashes = inside[from..found].bytes().rev().take_while(|b| *b == b'\\').count();
        from = found;
        // Fewer than one of the content has, which is escaped once more.
        if slashes <= escape.len() {
            return found - slashes.min(escape.len());
        }
    }
    inside.len()
}

fn token_len(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '+' | '='))).unwrap_or(text.len())
}

/// Most entries of an object or list of arguments that are kept in the audit log, and most bytes of all arguments of a call.
const MAX_ENTRIES: usize = 100;
const MAX_ARGUMENTS: usize = 16 * 1024;

/// A call's arguments as the audit log keeps them, each by itself. Together they are bounded: beyond that each is told by size and hash.
pub fn arguments(input: &Value, hash: &dyn Fn(&str) -> String) -> Value {
    let kept = each_argument(input, hash);
    if kept.to_string().len() <= MAX_ARGUMENTS {
        return kept;
    }
    let Value::Object(map) = input else { return digest(&input.to_string(), hash) };
    let told = map.iter().take(MAX_ENTRIES).map(|(key, value)| (line(key, 64), digest(&value.to_string(), hash)));
    told.collect::<Map<_, _>>().into()
}

/// Each argument: files and variables by size and keyed hash, values of secret-looking keys masked, long strings by size and
/// hash. `hash` is the home's keyed 6-character hash, so that an operator can tell equal values apart from changed ones without seeing them.
fn each_argument(input: &Value, hash: &dyn Fn(&str) -> String) -> Value {
    let Value::Object(map) = input else { return argument(input, hash) };
    map.iter()
        .take(MAX_ENTRIES)
        .map(|(key, value)| {
            let value = match (key.as_str(), value) {
                ("compose", Value::String(text)) => digest(text, hash),
                ("variables" | "files", Value::Object(entries)) => Value::Object(
                    entries
                        .iter()
                        .take(MAX_ENTRIES)
                        .map(|(k, v)| (line(k, 200), v.as_str().map_or(json!("set"), |text| digest(text, hash))))
                        .collect::<Map<_, _>>(),
                ),
                ("images", Value::Object(entries)) => entries
                    .iter()
                    .take(MAX_ENTRIES)
                    .map(|(k, v)| (line(k, 200), v.as_str().map_or_else(|| argument(v, hash), |text| image(text).into())))
                    .collect::<Map<_, _>>()
                    .into(),
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
        Value::Array(items) => items.iter().take(MAX_ENTRIES).map(|v| argument(v, hash)).collect(),
        Value::Object(map) => map
            .iter()
            .take(MAX_ENTRIES)
            .map(|(k, v)| (line(k, 200), if is_secret_key(k) && !v.is_null() { json!(MASK) } else { argument(v, hash) }))
            .collect::<Map<_, _>>()
            .into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// The last word on a reply: every string stripped and masked, whatever a tool forgot, and the keys of objects too.
pub fn reply(value: &mut Value) {
    match value {
        Value::String(text) => last_word(text),
        Value::Array(items) => items.iter_mut().for_each(reply),
        Value::Object(map) => {
            if map.keys().any(|key| !is_clean(key)) {
                *map = std::mem::take(map).into_iter().map(|(key, value)| (said(&key), value)).collect();
            }
            let line = map.get("path").is_some_and(|p| p == IMAGE);
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(text) if (key == IMAGE || (line && (key == "from" || key == "to"))) && is_reference(text) => {
                        *text = image(text);
                    }
                    Value::Object(images) if key == "images" => images.values_mut().for_each(|v| match v {
                        Value::String(text) if is_reference(text) => *text = image(text),
                        _ => reply(v),
                    }),
                    _ => reply(value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The last word on a text: stripped and masked.
pub fn said(text: &str) -> String {
    let mut text = text.to_owned();
    last_word(&mut text);
    text
}

/// The last word on one side of a line of a diff.
pub fn at(path: &str, text: &str) -> String {
    if path == IMAGE { image(text) } else { said(text) }
}

/// Path of a service's image in a diff, and its key in a reply.
const IMAGE: &str = "image";

/// Whether a text can hardly be anything but an image: small letters, a slash or a tag. Where anybody may put anything under such a key, a secret is none.
fn is_reference(text: &str) -> bool {
    let name = text.split('@').next().unwrap_or(text);
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let small = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-:/".contains(&b);
    name.bytes().all(small) && name.bytes().any(|b| b.is_ascii_lowercase()) && (tag.is_some() || name.contains('/'))
}

/// The last word on the image something runs, or shall run: no declared value hides it. Who could choose what is not read there could have anything approved.
pub fn image(text: &str) -> String {
    let reference = |b: u8| b.is_ascii_alphanumeric() || b"._-:/@".contains(&b);
    if text.len() > MAX_ARGUMENT || !text.bytes().all(reference) {
        return said(text);
    }
    masked(text)
}

/// The last word on findings, which quote files and names.
pub fn findings(all: &mut [Finding]) {
    for Finding { rule, verdict: _, service, path, because } in all {
        [Some(rule), service.as_mut(), path.as_mut(), Some(because)].into_iter().flatten().for_each(last_word);
    }
}

fn last_word(text: &mut String) {
    if !is_stripped(text) {
        *text = clean(text);
    }
    if declared::stands_in(text) || TRIGGERS.is_match(text.as_str()) {
        *text = mask(text);
    }
}

fn is_stripped(text: &str) -> bool {
    let plain = text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t'));
    plain || !text.chars().any(|c| (c.is_control() && c != '\n' && c != '\t') || is_invisible(c))
}

fn is_clean(text: &str) -> bool {
    is_stripped(text) && !TRIGGERS.is_match(text) && !declared::stands_in(text)
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
            ("token=[redacted]rest-of-it", "token=[redacted]"),
            ("a ghp_short and ghp_abcdefghijklmnop", "a ghp_short and [redacted]"),
            ("https://a/b https://u:p@h/ pw=x", "https://a/b https://u:[redacted]@h/ pw=[redacted]"),
            ("JWT_KEY=abc ENCRYPTION_KEY=def", "JWT_KEY=[redacted] ENCRYPTION_KEY=[redacted]"),
            (r#"{"user":"app","password":"hunter \"2\"","n":1}"#, r#"{"user":"app","password":"[redacted]","n":1}"#),
            (
                r#"{"spring.datasource.password" : "x", "apiKey":'y'}"#,
                r#"{"spring.datasource.password" : "[redacted]", "apiKey":'[redacted]'}"#,
            ),
            (r#""{\"clientSecret\":\"hunter2\",\"a\":1}""#, r#""{\"clientSecret\":\"[redacted]\",\"a\":1}""#),
            (r#"{"access_token":123456}"#, r#"{"access_token":[redacted]}"#),
            ("db:\n  password: hunter2\n  user: app", "db:\n  password: [redacted]\n  user: app"),
            ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic [redacted]"),
        ];
        for (given, wanted) in cases {
            assert_eq!(mask(given), wanted, "{given:?}");
            assert_eq!(mask(wanted), wanted, "masking twice changes nothing: {wanted:?}");
        }
    }

    #[test]
    fn every_credential_the_gate_knows_is_masked_and_our_own_tokens_are() {
        for prefix in words::PREFIXES {
            let credential = format!("{}{}", prefix.text, "aB3".repeat(20));
            assert_eq!(mask(&format!("uses {credential} now")), "uses [redacted] now", "{credential}");
            assert!(crate::gate::plan::secrets::provider_secret(&credential), "{credential}");
        }
        let tokens: Vec<&str> = words::PREFIXES.iter().map(|p| p.text).filter(|p| p.starts_with("dw")).collect();
        assert_eq!(tokens, ["dw_", "dwo_"]);
    }

    #[test]
    fn what_only_speaks_about_a_secret_stays() {
        for text in [
            "services.web.environment.DB_PASSWORD: this looks like a secret in plain text; use secrets: or an env_file",
            "environment.API_TOKEN: set (a1b2c3) -> changed (d4e5f6)",
            "use secrets: with a file",
            r#"{"max_tokens":4096,"token_ttl":60,"token":null,"secrets":{"db":{"file":"./db"}}}"#,
            "password: ${DB_PASSWORD:?required}",
            "send it as `Authorization: Bearer TOKEN`",
            "by token:ci at 12:30:11",
            "image sk-learn-service and task-runner hf_home dw_ready",
        ] {
            assert_eq!(mask(text), text);
        }
    }

    #[test]
    fn masking_reads_a_text_once() {
        let texts = [
            "\"pw\":\"",
            "pw: ",
            "\"pw\" : \\\\\"",
            "::",
            "pw: [redacted] ",
            "pw=a ",
            "pw=[redacted] ",
            "earer x ",
            "AKIAAKIA",
            "-----BEGIN x",
            "://a:b",
            "a://:@",
            "x=",
            "=",
            "://pw=",
            "a:b@",
            "ghp_short ",
        ];
        // Of this thread alone: another process's turn on this machine is no property of the code.
        let now = || {
            let spent = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux with scheduler statistics");
            std::time::Duration::from_nanos(spent.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds on a processor"))
        };
        let time = |text: &str| {
            let start = now();
            std::hint::black_box(mask(text));
            now() - start
        };
        for text in texts {
            let (one, four) = (text.repeat((256 << 10) / text.len()), text.repeat((1 << 20) / text.len()));
            let (once, fourfold) = (time(&one), time(&four));
            // Linear is a factor of 4, quadratic one of 16.
            assert!(fourfold < once * 10 + std::time::Duration::from_millis(10), "{text:?}: {once:?}, four times as much {fourfold:?}");
        }
    }

    #[test]
    fn a_secret_at_the_cut_is_masked() {
        let text = format!("{} DB_PASSWORD=hunter2-and-more", "x".repeat(20));
        assert_eq!(line(&text, 40), format!("{} DB_PASSWORD=[redact", "x".repeat(20)), "what begins before the cut");
        let text = format!("postgres://app:hunter2{}@db", "y".repeat(100));
        assert_eq!(line(&text, 20), "postgres://app:[reda", "what is only known to be one by what stands behind the cut");
        let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\nafter", "secret\n".repeat(100));
        assert_eq!(envelope("logs", &key, 60).text, "[redacted]\nafter");
    }

    #[test]
    fn a_long_line_costs_no_more_than_its_cut() {
        let start = std::time::Instant::now();
        for _ in 0..50 {
            assert_eq!(line(&"pw=a ".repeat(800_000), 13), "pw=[redacted]");
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
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
    fn arguments_are_bounded_together() {
        let many: Map<String, Value> = (0..50_000).map(|n| (format!("key-{n}"), json!("v"))).collect();
        let deep = json!({"stack": "shop", "a": vec![vec!["x".repeat(500); 100]; 100]});
        for (input, least) in
            [(Value::Object(many.clone()), 100), (json!({"variables": many.clone()}), 1), (json!({"files": many}), 1), (deep, 2)]
        {
            let kept = arguments(&input, &|text| format!("{:06x}", text.len()));
            assert!(kept.to_string().len() <= MAX_ARGUMENTS, "{}", kept.to_string().len());
            assert_eq!(kept.as_object().map(Map::len), Some(least));
        }
    }

    #[test]
    fn a_reply_is_cleaned_at_every_depth() {
        let mut value = json!({"a": ["x\u{202e}y", {"b": "p://u:pw@h"}], "n": 1});
        reply(&mut value);
        assert_eq!(value, json!({"a": ["xy", {"b": "p://u:[redacted]@h"}], "n": 1}));
        let mut keys = json!({"e\u{202e}vil": {"pw=hunter2": "kept"}});
        reply(&mut keys);
        assert_eq!(keys, json!({"evil": {"pw=[redacted]": "kept"}}));
    }
}
