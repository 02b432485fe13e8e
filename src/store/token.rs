//! stub: bearer tokens and operator credentials
use super::{Store, StoreResult};
use chrono::{DateTime, Utc};

impl Store {
    /// Keeps the SHA-256 of a new token for an agent.
    pub async fn put_token(&self, _agent: &str, _sha256: &[u8; 32], _now: DateTime<Utc>) -> StoreResult<()> {
        todo!()
    }
    /// Agent a token's SHA-256 belongs to (constant-time comparison), unless revoked.
    pub async fn token_agent(&self, _sha256: &[u8; 32]) -> StoreResult<Option<String>> {
        todo!()
    }
    /// Revokes all tokens of an agent; how many.
    pub async fn revoke_tokens(&self, _agent: &str, _now: DateTime<Utc>) -> StoreResult<usize> {
        todo!()
    }
    /// Keeps an operator's credential (a password hash string).
    pub async fn put_operator(&self, _name: &str, _credential: &str, _now: DateTime<Utc>) -> StoreResult<()> {
        todo!()
    }
    /// Operators and their credential hashes.
    pub async fn operators(&self) -> StoreResult<Vec<(String, String)>> {
        todo!()
    }
}
