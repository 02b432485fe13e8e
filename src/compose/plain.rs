//! Plain scalars as Compose's YAML parser resolves them where the parser underneath leaves text: octal numbers with a leading zero, `_` between
//! digits, dates. And numbers as text, in the notation of Go, in which everything that Compose prints is written.

use super::value::Value;
use chrono::{NaiveDate, NaiveDateTime};

/// What a plain scalar means; `None` = text.
pub(super) fn resolve(text: &str) -> Option<Value> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) || text.len() > 64 {
        return None;
    }
    if let Some(time) = timestamp(text) {
        return Some(Value::String(time));
    }
    let plain = text.replace('_', "");
    integer(&plain).map(Value::Int).or_else(|| float(&plain).map(Value::Float))
}

/// An integer with the prefixes of Go: `0x`, `0b`, `0o`, and a leading zero for octal.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, rest) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(rest, radix).ok()?;
    let value = if negative { -value } else { value };
    (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&value).then_some(value)
}

fn float(text: &str) -> Option<f64> {
    let ok = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'))
        && text.bytes().any(|b| b.is_ascii_digit());
    if ok { text.parse().ok() } else { None }
}

/// A date or a time, printed as Go prints one.
fn timestamp(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if bytes.len() < 8 || !bytes[..4].iter().all(u8::is_ascii_digit) || bytes[4] != b'-' {
        return None;
    }
    if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Some(format!("{day} 00:00:00 +0000 UTC"));
    }
    if let Ok(time) = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f") {
        return Some(format!("{} +0000 UTC", clock(&time)));
    }
    let time = chrono::DateTime::parse_from_str(&text.replacen('t', "T", 1), "%Y-%m-%dT%H:%M:%S%.f%:z").ok();
    let time = time.or_else(|| chrono::DateTime::parse_from_rfc3339(text).ok())?;
    let zone = if time.offset().local_minus_utc() == 0 { "+0000 UTC".to_owned() } else { time.format("%z %z").to_string() };
    Some(format!("{} {zone}", clock(&time.naive_local())))
}

fn clock(time: &NaiveDateTime) -> String {
    let text = time.format("%Y-%m-%d %H:%M:%S%.f").to_string();
    if text.contains('.') { text.trim_end_matches('0').to_owned() } else { text }
}

/// A floating-point number as Go prints it: the shortest digits, with an exponent below 1e-4 and from 1e6 on.
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_what_compose_reads() {
        for (text, expected) in [
            ("0440", Some(Value::Int(288))),
            ("022", Some(Value::Int(18))),
            ("1_000", Some(Value::Int(1000))),
            ("-0x1F", Some(Value::Int(-31))),
            ("08", Some(Value::Float(8.0))),
            ("1_0.5", Some(Value::Float(10.5))),
            ("2020-01-02", Some(Value::String("2020-01-02 00:00:00 +0000 UTC".into()))),
            ("10.0.0.1", None),
            ("1.2.3", None),
            ("0x", None),
            ("-", None),
            ("8080:80", None),
            ("0abc", None),
            ("12-34", None),
        ] {
            assert_eq!(resolve(text), expected, "{text}");
        }
    }

    #[test]
    fn floats_are_printed_as_go_prints_them() {
        let all = [1.0, 1.1, 0.5, 1e21, 1.5e-7, 123456789.0, -2.5, 100000.0].map(float_text);
        assert_eq!(all, ["1", "1.1", "0.5", "1e+21", "1.5e-07", "1.23456789e+08", "-2.5", "100000"]);
    }
}
