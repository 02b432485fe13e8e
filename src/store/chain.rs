//! The hash of a row in a chain: SHA-256 over a version byte and length-prefixed fields, the previous hash first.
//! Deliberately absent: what the fields mean.

use sha2::{Digest, Sha256};

/// Hash of a row, or of the row before it.
pub(super) type Hash = [u8; 32];

/// What the first row follows.
pub(super) const GENESIS: Hash = [0; 32];

/// Version of the encoding below; another one gets another byte, so that no two encodings share a hash.
const VERSION: u8 = 1;

/// A field of a row.
pub(super) enum Field<'a> {
    /// A number.
    Int(i64),
    /// A text.
    Text(&'a str),
    /// A text that may be absent, which is not the same as empty.
    Maybe(Option<&'a str>),
}

/// Chains a row to the one before. The domain keeps rows of one kind of log out of another.
pub(super) fn link(domain: &str, prev: &Hash, fields: &[Field<'_>]) -> Hash {
    let texts = |f: &Field<'_>| if let Field::Text(t) | Field::Maybe(Some(t)) = f { t.len() } else { 0 };
    let mut all = Vec::with_capacity(64 + domain.len() + prev.len() + fields.iter().map(|f| 16 + texts(f)).sum::<usize>());
    all.push(VERSION);
    put(&mut all, domain.as_bytes());
    put(&mut all, prev);
    all.extend((fields.len() as u64).to_be_bytes());
    for field in fields {
        match field {
            Field::Int(n) => put(&mut all, &n.to_be_bytes()),
            Field::Text(t) | Field::Maybe(Some(t)) => put(&mut all, t.as_bytes()),
            Field::Maybe(None) => all.extend(u64::MAX.to_be_bytes()),
        }
    }
    // At once: what is hashed in pieces costs twice as much.
    Sha256::digest(&all).into()
}

fn put(all: &mut Vec<u8>, bytes: &[u8]) {
    all.extend((bytes.len() as u64).to_be_bytes());
    all.extend(bytes);
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        write!(s, "{b:02x}").expect("writing to a String cannot fail");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_text_between_fields_or_dropping_it_changes_the_hash() {
        let hash = |fields: &[Field<'_>]| hex(&link("t", &GENESIS, fields));
        let all = [
            hash(&[Field::Text("ab"), Field::Text("c")]),
            hash(&[Field::Text("a"), Field::Text("bc")]),
            hash(&[Field::Text("abc")]),
            hash(&[Field::Text("abc"), Field::Maybe(None)]),
            hash(&[Field::Text("abc"), Field::Maybe(Some(""))]),
            hex(&link("u", &GENESIS, &[Field::Text("abc")])),
            hex(&link("t", &[1; 32], &[Field::Text("abc")])),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:#?}");
    }
}
