//! Values of declared secrets: environment values of secret-looking names, contents of `secrets:`, passwords in URLs. Wherever one of them stands in a text that
//! leaves, plain, in base64, URL-encoded or escaped, it is masked. The corpus is the process's own: log, audit, memory and replies must share one, and it can
//! only make them say less. Deliberately absent: forgetting; what was a secret once stays masked until a restart.
//!
//! A weak secret that is an ordinary small word (`postgres`) or a short number is not masked by its value: half of every reply would go with it. Its key still
//! masks it, and plans show no values at all.

use super::{MASK, clean, is_secret_key};
use crate::model::spec::StackSpec;
use aho_corasick::{AhoCorasick, MatchKind};
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Shortest value that is masked, bytes.
const LEAST: usize = 6;
/// Longest, bytes; an engine's own limit of a secret is far above, and no log carries such a one whole.
const MOST: usize = 4096;
/// Values kept; more are not declared by any host we know of. Beyond it the ones that are there stay.
const MOST_VALUES: usize = 4096;
/// Ends of keys whose value only says where the secret is.
const PLACES: &[&str] = &["_file", "_path", "_dir", "_id", "_name"];

struct Corpus {
    values: BTreeSet<String>,
    finder: AhoCorasick,
}

static CORPUS: LazyLock<ArcSwapOption<Corpus>> = LazyLock::new(ArcSwapOption::empty);
static ADDING: Mutex<()> = Mutex::new(());

/// Declares what a stack's spec holds.
pub fn spec(spec: &StackSpec) {
    let environment = spec.services.values().flat_map(|s| &s.environment).filter_map(|(k, v)| Some((k.as_str(), v.as_deref()?)));
    let mut found: Vec<&str> = environment.flat_map(|(k, v)| of_pair(k, v)).collect();
    found.extend(spec.secrets.values().filter_map(|s| s.content.as_deref()).flat_map(|c| [c, c.trim()]));
    declare(found);
}

/// Declares variables by name.
pub fn variables<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) {
    declare(pairs.into_iter().flat_map(|(k, v)| of_pair(k, v)).collect());
}

/// The secrets in one variable: its value when its name says so, and the password of a URL.
fn of_pair<'a>(key: &str, value: &'a str) -> Vec<&'a str> {
    let place = (PLACES.iter().any(|p| key.to_ascii_lowercase().ends_with(p)) && !super::words::holds(key))
        || (value.starts_with("http") && !value.contains('@'));
    let whole = (is_secret_key(key) && !place).then_some(value);
    let password = value.split_once("://").and_then(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, _) = authority.rsplit_once('@')?;
        user.split_once(':').map(|(_, password)| password)
    });
    whole.into_iter().chain(password).collect()
}

fn worth(value: &str) -> bool {
    let word = value.bytes().all(|b| b.is_ascii_lowercase()) && value.len() < 12;
    let number = value.bytes().all(|b| b.is_ascii_digit()) && value.len() < 8;
    (LEAST..=MOST).contains(&value.len()) && value.trim().len() >= LEAST && !word && !number && !MASK.contains(value)
}

fn declare(found: Vec<&str>) {
    let new: Vec<&str> = found.into_iter().filter(|v| worth(v)).collect();
    let _one = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = CORPUS.load_full();
    let mut values = before.as_ref().map(|c| c.values.clone()).unwrap_or_default();
    let count = values.len();
    values.extend(new.into_iter().map(str::to_owned));
    if values.len() == count || count >= MOST_VALUES {
        return;
    }
    let forms: BTreeSet<String> = values.iter().flat_map(|v| forms(v)).collect();
    match AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms) {
        Ok(finder) => CORPUS.store(Some(Arc::new(Corpus { values, finder }))),
        // Only by sizes the bounds above exclude.
        Err(e) => tracing::error!(error = %e, "declared secrets could not be taken into the filter of what leaves"),
    }
}

/// Everything a value may look like in a text.
fn forms(value: &str) -> Vec<String> {
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
    out.retain(|f| f.len() >= LEAST);
    out
}

fn percent(value: &str, keep: &dyn Fn(char) -> bool) -> String {
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

fn lower_escapes(text: &str) -> String {
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

/// Masks every declared secret in a text.
pub(super) fn mask(text: &str) -> Cow<'_, str> {
    let corpus = CORPUS.load();
    match corpus.as_deref() {
        Some(c) if c.finder.is_match(text) => {
            let mut out = String::with_capacity(text.len());
            c.finder.replace_all_with(text, &mut out, |_, _, out| {
                out.push_str(MASK);
                true
            });
            Cow::Owned(out)
        }
        Some(_) | None => Cow::Borrowed(text),
    }
}

/// Whether a text has a declared secret in it.
pub(super) fn stands_in(text: &str) -> bool {
    CORPUS.load().as_deref().is_some_and(|c| c.finder.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::super::{arguments, envelope, line, reply};
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;
    use serde_json::json;

    fn pair(key: &str, value: &str) {
        variables([(&key.to_owned(), &value.to_owned())]);
    }

    #[test]
    fn which_values_are_secrets() {
        let cases = [
            ("DB_PASSWORD", "Hunter-2!", vec!["Hunter-2!"]),
            ("DB_PASSWORD_FILE", "/run/secrets/db", vec![]),
            ("TOKEN_URL", "https://login.example/x", vec![]),
            ("DATABASE_URL", "postgres://app:p4ss:w0rd@db:5432/x?y=@", vec!["p4ss:w0rd"]),
            ("GREETING", "Hunter-2!", vec![]),
        ];
        for (key, value, expected) in cases {
            assert_eq!(of_pair(key, value), expected, "{key}");
        }
        for (value, expected) in
            [("postgres", false), ("short", false), ("1234567", false), ("redacted", false), ("Postgres", true), ("12345678", true)]
        {
            assert_eq!(worth(value), expected, "{value}");
        }
    }

    #[test]
    fn a_declared_secret_is_masked_in_every_form() {
        let secret = "zN9/+ q\"x~é-decl4red";
        pair("API_KEY", secret);
        let cases = [
            format!("it is {secret}."),
            format!("Basic {}", STANDARD.encode(format!("user:{secret}"))),
            format!("x {} y", URL_SAFE.encode(format!("{{\"a\":\"{secret}\"}}"))),
            format!("https://h/?k={}", percent(secret, &|c| c.is_ascii_alphanumeric())),
            json!({"log": secret}).to_string(),
        ];
        for text in cases {
            let masked = super::super::mask(&text);
            assert!(masked.contains(MASK) && !masked.contains("decl4red"), "{text} -> {masked}");
        }
        let mut value = json!({"a": [{secret: 1, "b": format!("x{secret}y")}]});
        reply(&mut value);
        assert_eq!(value, json!({"a": [{MASK: 1, "b": format!("x{MASK}y")}]}));
    }

    proptest! {
        /// No declared secret ever leaves: not through a reply, an envelope, a line, an audit argument or the log, in whatever text it stands.
        #[test]
        fn no_declared_secret_ever_leaves(secret in "[ -~\u{e9}\n\u{200b}]{6,40}", before in "[ -~]{0,20}", after in "[ -~]{0,20}", form in 0..5usize) {
            prop_assume!(worth(&secret) && worth(clean(&secret).trim()));
            pair("SECRET", &secret);
            let carried = match form {
                0 => secret.clone(),
                1 => STANDARD.encode(&secret),
                2 => URL_SAFE.encode(format!("{before}{secret}{after}")),
                3 => percent(&secret, &|c| c.is_ascii_alphanumeric() || "-_.~".contains(c)),
                _ => lower_escapes(&percent(&secret, &|c| c.is_ascii_alphanumeric() || "-_.~".contains(c))),
            };
            let text = format!("{before} {carried} {after}");
            let mut value = json!({"deep": [{"text": text, text.as_str(): "k"}]});
            reply(&mut value);
            let hash = |_: &str| "h".to_owned();
            let leaves = [
                value.to_string(),
                envelope("logs", &text, 10_000).text,
                line(&text, 10_000),
                arguments(&json!({"note": text, "deep": {"note": text}}), &hash).to_string(),
                super::super::mask(&text),
            ];
            for out in leaves {
                prop_assert!(!out.contains(&carried), "{out:?} has {carried:?}");
                prop_assert!(!out.contains(&secret) && !out.contains(&clean(&secret)), "{out:?} has {secret:?}");
            }
        }
    }
}
