//! Numbers, sizes, durations, texts and mappings in every notation that Compose reads, and in the one it writes.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A number of bytes; text with a unit (`512m`) is read, digits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes(pub i64);

impl Bytes {
    /// Parses a size in powers of 1024, as the engine's own tools do.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no size; write e.g. 512m, 1g or a number of bytes");
        let last = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' ')).ok_or_else(refuse)?;
        let (number, unit) = if text.as_bytes()[last] == b' ' { (&text[..last], &text[last + 1..]) } else { text.split_at(last + 1) };
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let unit = unit.to_ascii_lowercase();
        let power = match unit.as_str() {
            "" | "b" => 0,
            _ => {
                let power = "kmgtp".find(&unit[..1]).filter(|_| matches!(&unit[1..], "" | "b" | "ib")).ok_or_else(refuse)?;
                i32::try_from(power + 1).map_err(|_| refuse())?
            }
        };
        let value = number * 1024f64.powi(power);
        if (0.0..9.2e18).contains(&value) { Ok(Self(value as i64)) } else { Err(refuse()) }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(d)? {
            Scalar::Int(i) => Ok(Self(i)),
            Scalar::Float(_) | Scalar::Bool(_) => Ok(Self(0)),
            // What is written is read again, also where a text must not be negative.
            Scalar::Text(t) => t
                .strip_prefix('-')
                .and_then(|t| t.parse::<i64>().ok())
                .map(|i| Self(-i))
                .map_or_else(|| Self::parse(&t).map_err(D::Error::custom), Ok),
        }
    }
}

/// A duration in nanoseconds, written as Go writes one (`1m30s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub i64);

impl Span {
    /// Parses a duration of Go: numbers with `ns`, `us`, `ms`, `s`, `m`, `h`.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no duration; write e.g. 30s, 1m30s or 500ms");
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        let mut total = 0f64;
        if rest.is_empty() {
            return Err(refuse());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(refuse)?;
            let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
            rest = &rest[digits..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let factor = match &rest[..end] {
                "ns" => 1.0,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 6e10,
                "h" => 3.6e12,
                _ => return Err(refuse()),
            };
            total += number * factor;
            rest = &rest[end..];
        }
        if total > 9.2e18 {
            return Err(refuse());
        }
        Ok(Self(if negative { -(total.round() as i64) } else { total.round() as i64 }))
    }

    /// As Go writes it.
    pub fn text(self) -> String {
        let n = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let fraction = |n: u64, unit: u64, name: &str| {
            let digits = (unit as f64).log10() as usize;
            let rest = format!("{:0digits$}", n % unit);
            let rest = rest.trim_end_matches('0');
            let dot = if rest.is_empty() || unit == 1 { String::new() } else { format!(".{rest}") };
            format!("{sign}{}{dot}{name}", n / unit)
        };
        match n {
            0 => "0s".into(),
            1..1_000 => fraction(n, 1, "ns"),
            1_000..1_000_000 => fraction(n, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => fraction(n, 1_000_000, "ms"),
            _ => {
                let (minutes, nanos) = (n / 60_000_000_000, n % 60_000_000_000);
                let mut out = sign.to_owned();
                if minutes >= 60 {
                    let _ = write!(out, "{}h", minutes / 60);
                }
                if minutes > 0 {
                    let _ = write!(out, "{}m", minutes % 60);
                }
                out + fraction(nanos, 1_000_000_000, "s").trim_start_matches('-')
            }
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&text(d)?).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

pub(super) fn text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(match Scalar::deserialize(d)? {
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => f.to_string(),
        Scalar::Text(t) => t,
    })
}

pub(super) fn some_text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    // An empty text is the same as none, as in everything Compose writes.
    Ok(Option::<Scalar>::deserialize(d)?
        .map(|s| match s {
            Scalar::Bool(b) => b.to_string(),
            Scalar::Int(i) => i.to_string(),
            Scalar::Float(f) => f.to_string(),
            Scalar::Text(t) => t,
        })
        .filter(|t| !t.is_empty()))
}

pub(super) fn int<'de, D: Deserializer<'de>>(d: D) -> Result<Option<i64>, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(None),
        Some(Scalar::Int(i)) => Ok(Some(i)),
        Some(Scalar::Text(t)) => t.parse().map(Some).map_err(|_| D::Error::custom(format_args!("{t:?} is no whole number"))),
        Some(Scalar::Float(f)) if f.fract() == 0.0 && f.abs() < 9e15 => Ok(Some(f as i64)),
        Some(Scalar::Float(f)) => Err(D::Error::custom(format_args!("{f} is no whole number"))),
        Some(Scalar::Bool(b)) => Err(D::Error::custom(format_args!("{b} is no number"))),
    }
}

pub(super) fn float<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f32>, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(None),
        Some(Scalar::Int(i)) => Ok(Some(i as f32)),
        Some(Scalar::Float(f)) => Ok(Some(f as f32)),
        Some(Scalar::Text(t)) => t.parse().map(Some).map_err(|_| D::Error::custom(format_args!("{t:?} is no number"))),
        Some(Scalar::Bool(b)) => Err(D::Error::custom(format_args!("{b} is no number"))),
    }
}

pub(super) fn flag<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(false),
        Some(Scalar::Bool(b)) => Ok(b),
        Some(Scalar::Text(t)) => match t.to_ascii_lowercase().as_str() {
            "true" | "y" | "yes" | "on" => Ok(true),
            "false" | "n" | "no" | "off" => Ok(false),
            _ => Err(D::Error::custom(format_args!("{t:?} is no boolean; write true or false"))),
        },
        Some(Scalar::Int(i)) => Err(D::Error::custom(format_args!("{i} is no boolean"))),
        Some(Scalar::Float(f)) => Err(D::Error::custom(format_args!("{f} is no boolean"))),
    }
}

/// One text or many.
pub(super) fn texts<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        One(Scalar),
        Many(Vec<Scalar>),
    }
    let plain = |s: Scalar| match s {
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => f.to_string(),
        Scalar::Text(t) => t,
    };
    Ok(match Option::<Form>::deserialize(d)? {
        None => Vec::new(),
        Some(Form::One(one)) => vec![plain(one)],
        Some(Form::Many(many)) => many.into_iter().map(plain).collect(),
    })
}

/// A mapping or a list of `key=value`; nothing stays nothing.
pub(super) fn pairs<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, Option<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Map(BTreeMap<String, Option<Scalar>>),
        List(Vec<Scalar>),
    }
    let plain = |s: Scalar| match s {
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => f.to_string(),
        Scalar::Text(t) => t,
    };
    Ok(match Option::<Form>::deserialize(d)? {
        None => BTreeMap::new(),
        Some(Form::Map(map)) => map.into_iter().map(|(k, v)| (k, v.map(plain))).collect(),
        Some(Form::List(items)) => items
            .into_iter()
            .map(plain)
            .map(|t| t.split_once('=').map(|(k, v)| (k.to_owned(), Some(v.to_owned()))).unwrap_or((t, None)))
            .collect(),
    })
}

/// As [`pairs`]; nothing is an empty text.
pub(super) fn mapping<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(pairs(d)?.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect())
}

pub(super) fn as_list<S: Serializer>(map: &BTreeMap<String, Option<String>>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(map.iter().map(|(k, v)| v.as_ref().map_or_else(|| k.clone(), |v| format!("{k}={v}"))))
}

pub(super) fn is_zero(value: &Option<i64>) -> bool {
    value.is_none_or(|v| v == 0)
}

pub(super) fn no_float(value: &Option<f32>) -> bool {
    value.is_none_or(|v| v == 0.0)
}

pub(super) fn shortest<S: Serializer>(value: &Option<f32>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        // The shortest digits of the narrow number, not those of the wide one it becomes.
        Some(v) if v.fract() == 0.0 && v.abs() < 1e15 => s.serialize_i64(*v as i64),
        Some(v) => s.serialize_f64(v.to_string().parse().unwrap_or_else(|_| f64::from(*v))),
        None => s.serialize_none(),
    }
}

pub(super) fn no_bytes(value: &Option<Bytes>) -> bool {
    value.is_none_or(|v| v.0 == 0)
}

pub(super) fn no_span(value: &Option<Span>) -> bool {
    value.is_none_or(|v| v.0 == 0)
}

pub(super) fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, canonical) in [
            ("90s", "1m30s"),
            ("1h", "1h0m0s"),
            ("500ms", "500ms"),
            ("1.5s", "1.5s"),
            ("0", "0s"),
            ("100us", "100\u{b5}s"),
            ("7ns", "7ns"),
            ("-2s", "-2s"),
            ("36h2m", "36h2m0s"),
        ] {
            assert_eq!(Span::parse(text).map(Span::text), Ok(canonical.to_owned()), "{text}");
            assert_eq!(Span::parse(canonical), Span::parse(text), "{text}");
        }
        assert!(["", "5", "1d", "s", "1 s", "x"].iter().all(|t| Span::parse(t).is_err()));
    }

    #[test]
    fn sizes_are_read_as_the_engines_tools_do() {
        let sizes = ["512m", "1gb", "64MiB", "10", "1.5k", "64 m", "3b"].map(|t| Bytes::parse(t).map(|b| b.0));
        assert_eq!(sizes, [Ok(512 << 20), Ok(1 << 30), Ok(64 << 20), Ok(10), Ok(1536), Ok(64 << 20), Ok(3)]);
        assert!(["", "x", "1zb", "-1", "1bb", "m"].iter().all(|t| Bytes::parse(t).is_err()));
    }
}
