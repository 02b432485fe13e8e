//! The house's own words: keys and words of replies, tools, rules, codes. A value that is a part of one of them is masked nowhere: who declares it a
//! secret would blind every reader of a reply, an audit row or an approval. A test of the catalogue says when one is missing.

/// One a line. Plain small words shorter than what counts as a secret are left out.
const WORDS: &str = include_str!("../words.txt");

/// Whether a value is a word of the house, or a part of one.
pub(super) fn has(value: &str) -> bool {
    !value.contains('\n') && WORDS.contains(value)
}

/// Whether a token is an id the house gave: a short word and a ULID in small letters.
pub(super) fn is_id(token: &str) -> bool {
    let Some((kind, rest)) = token.split_once('-') else { return false };
    (2..=8).contains(&kind.len())
        && kind.bytes().all(|b| b.is_ascii_lowercase())
        && rest.len() == ID
        && rest.bytes().all(|b| b.is_ascii_digit() || (b.is_ascii_lowercase() && !matches!(b, b'i' | b'l' | b'o' | b'u')))
}

/// Characters of a ULID.
pub(super) const ID: usize = 26;
