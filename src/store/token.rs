//! Bearer tokens and operator credentials, kept only as hashes. Deliberately absent: making tokens, hashing passwords.

mod operator;

pub use operator::Removal;

use super::codec::{all, parse_time, parse_time_opt, time};
use super::fault::Sql;
use super::{Store, StoreError, StoreResult};
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, params};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use subtle::ConstantTimeEq;

const WHAT: &str = "token";

/// Pause between notes of a token's last use: who looks wants the hour, and each note is a durable write.
const NOTE_EVERY: TimeDelta = TimeDelta::minutes(1);
/// Valid tokens of one agent with one label: the one in use and its successor.
pub const AT_ONCE: usize = 2;

/// Id of a token: `tk-` and the first 12 hexadecimal digits of its SHA-256. It names the token and does not help to guess it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; 6]);

impl TokenId {
    fn of(sha256: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, ..] = *sha256;
        Self([a, b, c, d, e, f])
    }

    /// One of several that differ.
    #[cfg(test)]
    pub(crate) fn numbered(n: u8) -> Self {
        Self([0, 0, 0, 0, 0, n])
    }
}

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tk-")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A token as lists show it: never the token, nor its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenRecord {
    /// Id.
    pub id: String,
    /// Agent it acts as, or operator it stands for.
    pub agent: String,
    /// What it is for.
    pub label: String,
    /// Made.
    pub created_at: DateTime<Utc>,
    /// Last used, to the minute; absent when it never was.
    pub used_at: Option<DateTime<Utc>>,
    /// Void after.
    pub expires_at: Option<DateTime<Utc>>,
    /// Ended by an operator.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Whose token a caller showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// Which.
    pub id: TokenId,
    /// Agent it acts as, or operator it stands for.
    pub agent: String,
    /// Void after.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What kind of principal a token is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Agent,
    Operator,
}

impl Holder {
    /// Table of the tokens and its column with the holder's name. Two tables, so that an agent's token never opens what an operator's does.
    const fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::Agent => ("token", "agent"),
            Self::Operator => ("operator_token", "operator"),
        }
    }
}

/// A valid token as it is kept in memory.
#[derive(Debug)]
pub(super) struct Known {
    sha256: [u8; 32],
    holder: Holder,
    name: String,
    expires_at: Option<DateTime<Utc>>,
    /// Last note of a use, seconds since 1970.
    noted: AtomicI64,
}

impl Store {
    /// Keeps the SHA-256 of a new token for an agent. Of the tokens with the same agent and label the newest before it stays valid, so that a
    /// client can move over; older ones end. Returns its id and those of the ended ones.
    pub async fn put_token(
        &self,
        agent: &str,
        label: &str,
        sha256: &[u8; 32],
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> StoreResult<(TokenId, Vec<TokenId>)> {
        self.put_token_of(Holder::Agent, agent, label, sha256, expires_at, now).await
    }

    async fn put_token_of(
        &self,
        holder: Holder,
        name: &str,
        label: &str,
        sha256: &[u8; 32],
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> StoreResult<(TokenId, Vec<TokenId>)> {
        let (name, label, sha256) = (name.to_owned(), label.to_owned(), *sha256);
        self.change_tokens(move |c| {
            let (table, whose) = holder.table();
            let put = format!("INSERT INTO {table} (sha256, {whose}, label, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)");
            c.prepare_cached(&put)?.execute(params![sha256, name, label, time(now), expires_at.map(time)])?;
            let newest_first = format!(
                "SELECT sha256 FROM {table} WHERE {whose} = ?1 AND label = ?2 AND revoked_at IS NULL
                   AND (expires_at IS NULL OR expires_at > ?3) ORDER BY created_at DESC, rowid DESC"
            );
            let mut same = hashes(c, &newest_first, params![name, label, time(now)])?;
            let ended = same.split_off(AT_ONCE.min(same.len()));
            for old in &ended {
                end(c, holder, old, now)?;
            }
            Ok((TokenId::of(&sha256), ended.iter().map(TokenId::of).collect()))
        })
        .await
    }

    /// Whose a token is by its SHA-256 (constant-time comparison), when it is an agent's, unless revoked or expired. Notes the use.
    pub async fn token_use(&self, sha256: &[u8; 32], now: DateTime<Utc>) -> StoreResult<Option<TokenUse>> {
        self.holder_of(sha256, Holder::Agent, now).await
    }

    async fn holder_of(&self, sha256: &[u8; 32], holder: Holder, now: DateTime<Utc>) -> StoreResult<Option<TokenUse>> {
        let wanted = *sha256;
        let tokens = self.valid_tokens().await?;
        // Every token is looked at, so that the time tells nothing about which one was near.
        let mut found = None;
        for known in tokens.iter() {
            if bool::from(known.sha256.ct_eq(&wanted)) {
                found = Some(known);
            }
        }
        let holds = |k: &&Known| k.holder == holder && k.expires_at.is_none_or(|e| e > now);
        let Some(known) = found.filter(holds) else { return Ok(None) };
        let last = known.noted.load(Ordering::Relaxed);
        if now.timestamp() - last >= NOTE_EVERY.num_seconds()
            && known.noted.compare_exchange(last, now.timestamp(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            // Beside the call: nobody waits for a note, and losing one in a crash costs nothing.
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                if let Err(e) = inner.state.write(move |c| note_use(c, holder, &wanted, now)).await {
                    tracing::warn!(error = %e, "the use of a token could not be noted");
                }
            });
        }
        Ok(Some(TokenUse { id: TokenId::of(&wanted), agent: known.name.clone(), expires_at: known.expires_at }))
    }

    /// All tokens, newest first; those that ended too.
    pub async fn tokens(&self) -> StoreResult<Vec<TokenRecord>> {
        self.inner.state.read(|c| records(c, Holder::Agent)).await
    }

    /// Ends one token by its id; `false` when there is no valid one of that id.
    pub async fn revoke_token(&self, id: &str, now: DateTime<Utc>) -> StoreResult<bool> {
        self.revoke_token_of(Holder::Agent, id, now).await
    }

    async fn revoke_token_of(&self, holder: Holder, id: &str, now: DateTime<Utc>) -> StoreResult<bool> {
        let id = id.to_owned();
        self.change_tokens(move |c| {
            let found = hashes(c, &format!("SELECT sha256 FROM {} WHERE revoked_at IS NULL", holder.table().0), [])?;
            let Some(found) = found.into_iter().find(|h| TokenId::of(h).to_string() == id) else { return Ok(false) };
            Ok(end(c, holder, &found, now)? == 1)
        })
        .await
    }

    /// The valid tokens, read once and kept until one is added or revoked: every HTTP request asks for them.
    async fn valid_tokens(&self) -> StoreResult<Arc<Vec<Known>>> {
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

    /// Revokes all tokens of an agent; their ids.
    pub async fn revoke_tokens(&self, agent: &str, now: DateTime<Utc>) -> StoreResult<Vec<TokenId>> {
        let agent = agent.to_owned();
        self.change_tokens(move |c| {
            let all = hashes(c, "SELECT sha256 FROM token WHERE agent = ?1 AND revoked_at IS NULL", [&agent])?;
            for hash in &all {
                end(c, Holder::Agent, hash, now)?;
            }
            Ok(all.iter().map(TokenId::of).collect())
        })
        .await
    }

    /// Keeps an operator's credential (a password hash string); a new one replaces the old and ends the operator's tokens.
    pub async fn put_operator(&self, name: &str, credential: &str, now: DateTime<Utc>) -> StoreResult<()> {
        let (name, credential) = (name.to_owned(), credential.to_owned());
        self.change_tokens(move |c| {
            put_operator(c, &name, &credential, now)?;
            operator::end_all(c, &name, now)?;
            Ok(())
        })
        .await
    }

    /// Operators and their credential hashes, by name.
    pub async fn operators(&self) -> StoreResult<Vec<(String, String)>> {
        self.inner.state.read(operators).await
    }
}

fn valid_tokens(c: &Connection) -> Sql<Vec<Known>> {
    let mut statement = c.prepare_cached("SELECT sha256, agent, expires_at FROM token WHERE revoked_at IS NULL")?;
    let mut known = all(&mut statement, [], |r| {
        let expires_at = parse_time_opt(WHAT, r.get::<_, Option<String>>(2)?.as_deref())?;
        Ok(Known { sha256: r.get(0)?, holder: Holder::Agent, name: r.get(1)?, expires_at, noted: AtomicI64::new(0) })
    })?;
    known.extend(operator::valid(c)?);
    Ok(known)
}

fn moment(r: &rusqlite::Row<'_>, column: usize) -> Sql<Option<DateTime<Utc>>> {
    Ok(parse_time_opt(WHAT, r.get::<_, Option<String>>(column)?.as_deref())?)
}

fn hashes(c: &Connection, sql: &str, params: impl rusqlite::Params) -> Sql<Vec<[u8; 32]>> {
    let mut statement = c.prepare_cached(sql)?;
    all(&mut statement, params, |r| Ok(r.get(0)?))
}

fn end(c: &Connection, holder: Holder, sha256: &[u8; 32], now: DateTime<Utc>) -> Sql<usize> {
    let end = format!("UPDATE {} SET revoked_at = ?2 WHERE sha256 = ?1 AND revoked_at IS NULL", holder.table().0);
    Ok(c.prepare_cached(&end)?.execute(params![sha256, time(now)])?)
}

fn note_use(c: &Connection, holder: Holder, sha256: &[u8; 32], now: DateTime<Utc>) -> Sql<usize> {
    let note = format!("UPDATE {} SET used_at = ?2 WHERE sha256 = ?1", holder.table().0);
    Ok(c.prepare_cached(&note)?.execute(params![sha256, time(now)])?)
}

fn records(c: &Connection, holder: Holder) -> Sql<Vec<TokenRecord>> {
    let (table, whose) = holder.table();
    let columns = "label, created_at, used_at, expires_at, revoked_at";
    let mut statement =
        c.prepare_cached(&format!("SELECT sha256, {whose}, {columns} FROM {table} ORDER BY created_at DESC, rowid DESC"))?;
    all(&mut statement, [], |r| {
        Ok(TokenRecord {
            id: TokenId::of(&r.get(0)?).to_string(),
            agent: r.get(1)?,
            label: r.get(2)?,
            created_at: parse_time(WHAT, &r.get::<_, String>(3)?)?,
            used_at: moment(r, 4)?,
            expires_at: moment(r, 5)?,
            revoked_at: moment(r, 6)?,
        })
    })
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
