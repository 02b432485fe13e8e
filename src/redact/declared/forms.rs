//! How a secret may be written where it leaves: plain, stripped, quoted, URL-encoded, in base64. Pure.

use super::{LEAST, words};
use crate::redact::clean;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Everything a value may look like in a text.
pub(super) fn forms(value: &str) -> Vec<String> {
    let mut out = vec![value.to_owned()];
    let cleaned = clean(value);
    if cleaned.trim().len() >= LEAST {
        out.push(cleaned.replace(['\n', '\t'], " "));
        out.push(cleaned);
    }
    let quoted = serde_json::Value::from(value).to_string();
    out.push(quoted[1..quoted.len() - 1].to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    let lenient = |c: char| plain(c) || "!*'()".contains(c);
    let strict = |c: char| c.is_ascii_alphanumeric();
    for keep in [&plain as &dyn Fn(char) -> bool, &lenient, &strict] {
        let upper = percent(value, keep);
        // Digits of escapes only: a capital letter of the value itself stays one.
        out.push(lower_escapes(&upper));
        out.push(upper.replace("%20", "+"));
        out.push(upper);
    }
    out.extend((0..3).filter_map(|before| base64(value, before)).flat_map(|b| [b.replace('+', "-").replace('/', "_"), b]));
    out.retain(|f| f.len() >= LEAST && !words::has(f));
    out
}

pub(super) fn percent(value: &str, keep: &dyn Fn(char) -> bool) -> String {
    let mut out = String::new();
    for c in value.chars() {
        if keep(c) {
            out.push(c);
        } else {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| out.push_str(&format!("%{b:02X}")));
        }
    }
    out
}

pub(super) fn lower_escapes(text: &str) -> String {
    let mut escape = 0;
    text.chars()
        .map(|c| {
            escape = if c == '%' { 2 } else { i32::max(escape - 1, -1) };
            if escape >= 0 && c != '%' { c.to_ascii_lowercase() } else { c }
        })
        .collect()
}

/// The characters of base64 that a value decides alone when `before` bytes stand before it in a group: it is found within longer encodings, too.
fn base64(value: &str, before: usize) -> Option<String> {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(value.as_bytes());
    let (from, to) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
    STANDARD_NO_PAD.encode(&bytes).get(from..to).map(str::to_owned)
}
