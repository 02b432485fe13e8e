//! Name globs of rules: `*` stands for any text, `?` for one character, everything else for itself. Names have no path separators and
//! patterns are a few characters, so that neither a regex engine nor a compiled form is worth its cost in a decision of microseconds.

/// Whether `name` fits `pattern`. Linear in practice, never recursive.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (p, n) = (pattern.as_bytes(), name.as_bytes());
    let (mut pi, mut ni) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while ni < n.len() {
        match p.get(pi) {
            Some(b'*') => {
                star = Some((pi, ni));
                pi += 1;
            }
            Some(c) if *c == b'?' || *c == n[ni] => {
                pi += 1;
                ni += 1;
            }
            Some(_) | None => match star {
                Some((s, m)) => {
                    star = Some((s, m + 1));
                    pi = s + 1;
                    ni = m + 1;
                }
                None => return false,
            },
        }
    }
    p[pi..].iter().all(|c| *c == b'*')
}

/// Why a pattern can match no name, or `None` when it can.
pub fn impossible(pattern: &str) -> Option<&'static str> {
    if pattern.is_empty() {
        return Some("an empty pattern matches nothing");
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '*' | '?');
    (!pattern.chars().all(fits)).then_some("names hold letters, digits, '_', '-' and '.' only; '*' and '?' are the wildcards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        let cases = [
            ("*", "", true),
            ("*", "shop", true),
            ("web-*", "web-", true),
            ("web-*", "web-shop", true),
            ("web-*", "web", false),
            ("web-*", "my-web-shop", false),
            ("*-db", "shop-db-db", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("w?b", "web", true),
            ("w?b", "wb", false),
            ("shop", "shop", true),
            ("shop", "shop2", false),
            ("", "", true),
            ("", "x", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} against {name:?}");
        }
    }

    #[test]
    fn a_pattern_no_name_can_fit_is_told() {
        assert_eq!(impossible("web-*"), None);
        assert!(impossible("").is_some() && impossible("web/*").is_some() && impossible("web[12]").is_some());
    }
}
