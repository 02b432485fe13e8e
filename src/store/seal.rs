//! stub: encryption of secret values at rest and the keyed hash that replies show
use super::Store;

impl Store {
    /// Keyed 6-character hash of a value, e.g. for `changed (1f09ab)`.
    pub fn keyed_hash(&self, _value: &str) -> String {
        todo!()
    }
    /// Keyed hash (hex, 64 characters) over bytes: plan digests.
    pub fn keyed_digest(&self, _bytes: &[u8]) -> String {
        todo!()
    }
}
