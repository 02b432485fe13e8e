//! Bearer tokens and operator credentials, kept only as hashes. Deliberately absent: making tokens, hashing passwords.

use super::codec::{all, time};
use super::fault::Sql;
use super::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use subtle::ConstantTimeEq;

impl Store {
    /// Keeps the SHA-256 of a new token for an agent.
    pub async fn put_token(&self, agent: &str, sha256: &[u8; 32], now: DateTime<Utc>) -> StoreResult<()> {
        let (agent, sha256) = (agent.to_owned(), *sha256);
        self.inner.state.write(move |c| insert_token(c, &agent, &sha256, now)).await
    }

    /// Agent a token's SHA-256 belongs to (constant-time comparison), unless revoked.
    pub async fn token_agent(&self, sha256: &[u8; 32]) -> StoreResult<Option<String>> {
        let wanted = *sha256;
        let tokens = self.inner.state.read(valid_tokens).await?;
        // Every token is looked at, so that the time tells nothing about which one was near.
        let mut found = None;
        for (known, agent) in tokens {
            if bool::from(known.ct_eq(&wanted)) {
                found = Some(agent);
            }
        }
        Ok(found)
    }

    /// Revokes all tokens of an agent; how many.
    pub async fn revoke_tokens(&self, agent: &str, now: DateTime<Utc>) -> StoreResult<usize> {
        let agent = agent.to_owned();
        self.inner.state.write(move |c| revoke(c, &agent, now)).await
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

fn valid_tokens(c: &Connection) -> Sql<Vec<([u8; 32], String)>> {
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
