//! What a request of `/mcp` will hold, read from its body: headers are the client's to choose, and rmcp goes by the body, too. And how many
//! streams are held. Deliberately absent: sessions, which rmcp counts.

use crate::store::token::TokenId;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a request holds when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A session: `initialize`, whatever version it names.
    Session,
    /// A connection for as long as the client likes.
    Stream,
    /// Nothing.
    Other,
}

impl Kind {
    /// The strictest that a body may be read as. What is no object is refused by who reads it, and holds nothing.
    pub fn of(body: &[u8]) -> Self {
        let mut read = serde_json::Deserializer::from_slice(body);
        read.deserialize_map(Methods).unwrap_or(Self::Other)
    }
}

/// Looks at every `method` of an object: of several, readers take the first or the last.
struct Methods;

impl<'de> Visitor<'de> for Methods {
    type Value = Kind;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut found = Kind::Other;
        while let Some(key) = map.next_key::<String>()? {
            if key != "method" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match map.next_value::<serde_json::Value>()?.as_str() {
                Some("initialize") => found = Kind::Session,
                Some("subscriptions/listen") if found == Kind::Other => found = Kind::Stream,
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Streams that are open, by token.
#[derive(Debug, Clone)]
pub struct Streams {
    most: usize,
    most_of_token: usize,
    open: Arc<Mutex<BTreeMap<TokenId, usize>>>,
}

/// One stream's place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    token: TokenId,
    open: Arc<Mutex<BTreeMap<TokenId, usize>>>,
}

impl Streams {
    /// At most `most`, and of one token `most_of_token`.
    pub fn new(most: usize, most_of_token: usize) -> Self {
        Self { most, most_of_token, open: Arc::default() }
    }

    /// A place for one more.
    ///
    /// # Errors
    /// In words, when there is none.
    pub fn take(&self, token: TokenId) -> Result<Place, &'static str> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= self.most {
            return Err("too many streams are open");
        }
        let of_token = open.entry(token).or_default();
        if *of_token >= self.most_of_token {
            return Err("this token has too many streams open");
        }
        *of_token += 1;
        Ok(Place { token, open: Arc::clone(&self.open) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_holds_is_read_from_its_body() {
        for (body, kind) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2026-07-28"}}"#, Kind::Session),
            (r#"{"params":{"method":"ping"},"method":"initialize"}"#, Kind::Session),
            (r#"{"method":"ping","method":"initialize"}"#, Kind::Session),
            (r#"{"method":"initialize","method":"subscriptions/listen"}"#, Kind::Session),
            (r#"{"m\u0065thod":"initialize"}"#, Kind::Session),
            (r#"{"method":"subscriptions/listen","params":{}}"#, Kind::Stream),
            (r#"{"method":"tools/call","params":{"name":"initialize","method":"initialize"}}"#, Kind::Other),
            (r#"{"method":7}"#, Kind::Other),
            ("[]", Kind::Other),
            ("", Kind::Other),
            ("initialize", Kind::Other),
        ] {
            assert_eq!(Kind::of(body.as_bytes()), kind, "{body}");
        }
    }

    #[test]
    fn streams_are_bounded_in_all_and_by_token_and_give_their_places_back() {
        let (one, other, third) = (TokenId::numbered(1), TokenId::numbered(2), TokenId::numbered(3));
        let streams = Streams::new(3, 2);
        let held = [streams.take(one), streams.take(one)];
        assert_eq!(streams.take(one).err(), Some("this token has too many streams open"));
        let more = streams.take(other).expect("another token has its own");
        assert_eq!(streams.take(third).err(), Some("too many streams are open"));
        drop(held);
        assert_eq!(streams.open.lock().expect("open").len(), 1, "what nobody holds is forgotten");
        let _again = [streams.take(one).expect("free again"), streams.take(third).expect("free again")];
        drop(more);
        assert!(streams.take(one).is_ok());
    }
}
