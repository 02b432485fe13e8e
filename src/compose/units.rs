//! Durations, sizes and other small notations of compose files. Text to numbers only.

use crate::model::spec::written::{Bytes, Span};

/// A Go duration (`1m30s`, `1.5s`, `200ms`, `1h`) in milliseconds; a bare number is refused except 0.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    let nanos = Span::parse(text)?.0;
    // A year is beyond any use; saturating above it would hide a typo.
    if nanos > 32_000_000_000_000_000 {
        return Err(format!("the duration {text:?} is longer than a year"));
    }
    u64::try_from(nanos).map(|n| (n + 500_000) / 1_000_000).map_err(|_| format!("the duration {text:?} is negative"))
}

/// A size (`512m`, `1.5gb`, `64MiB`, `1024`) in bytes; units are powers of 1024, as in compose.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    Bytes::parse(text.trim()).map(|b| b.0.unsigned_abs())
}

/// A number of CPUs (`0.5`, `2`) in billionths.
pub(super) fn nano_cpus(text: &str) -> Result<u64, String> {
    match text.trim().parse::<f64>() {
        Ok(v) if v.is_finite() && (0.0..=1e6).contains(&v) => Ok((v * 1e9).round() as u64),
        _ => Err(format!("{text:?} is no number of CPUs; write e.g. 0.5 or 2")),
    }
}

/// A file mode: `0444` and `0o444` are octal; YAML turned an unquoted `0444` into text already.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let digits = text.trim().trim_start_matches("0o");
    u32::from_str_radix(digits, 8).ok().filter(|m| *m <= 0o7777).ok_or_else(|| format!("{text:?} is no file mode; write e.g. \"0440\""))
}

/// Distance between two words: insertions, deletions, replacements.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// The known word nearest to `word`, when one is near enough to be what was meant.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    known.into_iter().map(|k| (distance(&word, k), k)).filter(|(d, k)| *d <= 1 + k.len() / 4).min().map(|(_, k)| k)
}
