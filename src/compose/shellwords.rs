//! A command line to words, exactly as Compose does it (the `go-shellwords` library): quotes and backslashes are understood, nothing is run
//! or replaced. What follows an unquoted `;`, `&`, `|`, `<` or `>` is cut off there too, so a file means the same under both.

/// Splits a command line.
///
/// # Errors
/// Why it is none, for the person who wrote it.
pub(super) fn split(line: &str) -> Result<Vec<String>, &'static str> {
    const OPEN: &str = "the quotes or brackets do not match";
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut escaped, mut double, mut single, mut backtick, mut dollar) = (false, false, false, false, false);
    // Whether a word was begun: `""` is one, empty.
    let mut begun = false;
    for c in line.chars() {
        if escaped {
            word.push(c);
            escaped = false;
            begun = true;
            continue;
        }
        match c {
            '\\' if single => word.push(c),
            '\\' => escaped = true,
            ' ' | '\t' | '\r' | '\n' if single || double || backtick || dollar => word.push(c),
            ' ' | '\t' | '\r' | '\n' => {
                if begun {
                    words.push(std::mem::take(&mut word));
                    begun = false;
                }
            }
            '(' if !single && !double && !backtick => {
                if dollar || !word.ends_with('$') {
                    return Err("an unquoted `(` has no meaning here");
                }
                dollar = true;
                word.push(c);
            }
            '"' if !single && !dollar => {
                begun |= double;
                double = !double;
            }
            '\'' if !double && !dollar => {
                begun |= single;
                single = !single;
            }
            ';' | '&' | '|' | '<' | '>' if !(single || double || backtick || dollar) => {
                // `2>file`: the number belongs to what is cut off.
                if c == '>' && word.starts_with(|d: char| d.is_ascii_digit()) {
                    begun = false;
                }
                break;
            }
            _ => {
                if c == '`' && !single && !double && !dollar {
                    backtick = !backtick;
                } else if c == ')' && !single && !double && !backtick {
                    dollar = !dollar;
                }
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    if escaped || double || single || backtick || dollar { Err(OPEN) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_split_as_compose_splits_them() {
        let words = |line| split(line).map(|w| w.join("|"));
        let cases = [
            ("sh -c 'a b' \"c\\\"d\" e\\ f", Ok("sh|-c|a b|c\"d|e f".to_owned())),
            ("a # b", Ok("a|#|b".to_owned())),
            ("a '' b", Ok("a||b".to_owned())),
            ("sh -c \"x\" && y", Ok("sh|-c|x".to_owned())),
            ("run 2>log", Ok("run".to_owned())),
            ("x $(date +%s) y", Ok("x|$(date +%s)|y".to_owned())),
            ("", Ok(String::new())),
        ];
        for (line, expected) in cases {
            assert_eq!(words(line), expected, "{line:?}");
        }
        assert!(["'a", "\"a", "a\\", "(a)", "a)", "`a"].iter().all(|l| split(l).is_err()));
    }
}
