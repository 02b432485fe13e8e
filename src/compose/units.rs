//! Durations, sizes and other small notations of compose files. Text to numbers only.

/// A Go duration (`1m30s`, `1.5s`, `200ms`, `1h`) in milliseconds; a bare number is refused except 0.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    let refuse = || format!("{text:?} is no duration; write e.g. 30s, 1m30s or 500ms");
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(0);
    }
    let mut rest = trimmed;
    if rest.is_empty() {
        return Err(refuse());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(refuse)?;
        let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..unit_len] {
            "ns" => 1e-6,
            "us" | "µs" | "μs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 6e4,
            "h" => 3.6e6,
            "d" => 8.64e7,
            "w" => 6.048e8,
            _ => return Err(refuse()),
        };
        total += number * factor;
        rest = &rest[unit_len..];
    }
    // A year is beyond any use; saturating above it would hide a typo.
    if total > 3.2e10 { Err(format!("the duration {text:?} is longer than a year")) } else { Ok(total.round() as u64) }
}

/// A size (`512m`, `1.5gb`, `64MiB`, `1024`) in bytes; units are powers of 1024, as in compose.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let refuse = || format!("{text:?} is no size; write e.g. 512m, 1g or a number of bytes");
    let trimmed = text.trim().to_ascii_lowercase();
    let digits = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let number: f64 = trimmed[..digits].parse().map_err(|_| refuse())?;
    let power = match trimmed[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(refuse()),
    };
    let value = number * 1024f64.powi(power);
    if value.is_finite() && value < 9.2e18 { Ok(value as u64) } else { Err(refuse()) }
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
