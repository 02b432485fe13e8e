//! Bearer tokens and operator credentials, kept only as hashes. Deliberately absent: making tokens, hashing passwords.

use super::codec::{all, time};
use super::fault::Sql;
use super::{Store, StoreError, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A token's SHA-256 and the agent it belongs to.
pub(super) type Token = ([u8; 32], String);

impl Store {
    /// Keeps the SHA-256 of a new token for an agent.
    pub async fn put_token(&self, agent: &str, sha256: &[u8; 32], now: DateTime<Utc>) -> StoreResult<()> {
        let (agent, sha256) = (agent.to_owned(), *sha256);
        self.change_tokens(move |c| insert_token(c, &agent, &sha256, now)).await
    }

    /// Agent a token's SHA-256 belongs to (constant-time comparison), unless revoked.
    pub async fn token_agent(&self, sha256: &[u8; 32]) -> StoreResult<Option<String>> {
        let wanted = *sha256;
        let tokens = self.valid_tokens().await?;
        // Every token is looked at, so that the time tells nothing about which one was near.
        let mut found = None;
        for (known, agent) in tokens.iter() {
            if bool::from(known.ct_eq(&wanted)) {
                found = Some(agent.clone());
            }
        }
        Ok(found)
    }

    /// The valid tokens, read once and kept until one is added or revoked: every HTTP request asks for them.
    async fn valid_tokens(&self) -> StoreResult<Arc<Vec<Token>>> {
        let mut known = self.inner.tokens.lock().await;
        if let Some(tokens) = known.as_ref() {
            return Ok(Arc::clone(tokens));
        }
        let tokens = Arc::new(self.inner.state.read(valid_tokens).await?);
        *known = Some(Arc::clone(&tokens));
        Ok(tokens)
    }

    /// Changes tokens while nobody reads them, so that a revoked one is in no list that is read afterwards. A task of its own: a caller
    /// that goes away must not give the list free before the change is in the database.
    async fn change_tokens<T: Send + 'static>(&self, change: impl FnOnce(&Connection) -> Sql<T> + Send + 'static) -> StoreResult<T> {
        let inner = Arc::clone(&self.inner);
        let changing = tokio::spawn(async move {
            let mut known = inner.tokens.lock().await;
            *known = None;
            inner.state.write(change).await
        });
        changing.await.map_err(|_| StoreError::Closed)?
    }

    /// Revokes all tokens of an agent; how many.
    pub async fn revoke_tokens(&self, agent: &str, now: DateTime<Utc>) -> StoreResult<usize> {
        let agent = agent.to_owned();
        self.change_tokens(move |c| revoke(c, &agent, now)).await
    }

    /// Keeps an operator's credential (a password hash string); a new one replaces the old.
    pub async fn put_operator(&self, name: &str, credential: &str, now: DateTime<Utc>) -> StoreResult<()> {
        let (name, credential) = (name.to_owned(), credential.to_owned());
        self.inner.state.write(move |c| put_operator(c, &name, &credential, now)).await
    }

    /// Operators and their credential hashes, by name.
    pub async fn operators(&self) -> StoreResult<Vec<(String, String)>> {
        self.inner.state.read(operators).await
    }
}

fn insert_token(c: &Connection, agent: &str, sha256: &[u8; 32], now: DateTime<Utc>) -> Sql<()> {
    c.prepare_cached("INSERT INTO token (sha256, agent, created_at) VALUES (?1, ?2, ?3)")?.execute(params![sha256, agent, time(now)])?;
    Ok(())
}

fn valid_tokens(c: &Connection) -> Sql<Vec<Token>> {
    let mut statement = c.prepare_cached("SELECT sha256, agent FROM token WHERE revoked_at IS NULL")?;
    all(&mut statement, [], |r| Ok((r.get(0)?, r.get(1)?)))
}

fn revoke(c: &Connection, agent: &str, now: DateTime<Utc>) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE token SET revoked_at = ?2 WHERE agent = ?1 AND revoked_at IS NULL")?;
    Ok(statement.execute(params![agent, time(now)])?)
}

fn put_operator(c: &Connection, name: &str, credential: &str, now: DateTime<Utc>) -> Sql<()> {
    c.prepare_cached("INSERT OR REPLACE INTO operator (name, credential, created_at) VALUES (?1, ?2, ?3)")?.execute(params![
        name,
        credential,
        time(now)
    ])?;
    Ok(())
}

fn operators(c: &Connection) -> Sql<Vec<(String, String)>> {
    let mut statement = c.prepare_cached("SELECT name, credential FROM operator ORDER BY name")?;
    all(&mut statement, [], |r| Ok((r.get(0)?, r.get(1)?)))
}
