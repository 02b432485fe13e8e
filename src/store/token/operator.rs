//! Bearer tokens of operators: a table of their own, so that an agent's token never opens what an operator's does. Every one has an end.
//! Deliberately absent: making tokens and checking who may (`adapters::tokens`).

use super::{Holder, Known, TokenId, TokenRecord, TokenUse, WHAT, records};
use crate::store::codec::{all, parse_time, time};
use crate::store::fault::Sql;
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use std::sync::atomic::AtomicI64;

/// What became of removing an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Removed, with the tokens.
    Gone,
    /// There is none of that name.
    Unknown,
    /// The only one stays.
    Last,
}

impl Store {
    /// Removes an operator and ends the tokens; never the last one.
    pub async fn remove_operator(&self, name: &str, now: DateTime<Utc>) -> StoreResult<Removal> {
        let name = name.to_owned();
        self.change_tokens(move |c| {
            let mut statement = c.prepare_cached("SELECT name FROM operator")?;
            let names: Vec<String> = all(&mut statement, [], |r| Ok(r.get(0)?))?;
            if !names.contains(&name) {
                return Ok(Removal::Unknown);
            }
            if names.len() == 1 {
                return Ok(Removal::Last);
            }
            end_all(c, &name, now)?;
            c.prepare_cached("DELETE FROM operator WHERE name = ?1")?.execute([&name])?;
            Ok(Removal::Gone)
        })
        .await
    }

    /// Keeps the SHA-256 of a new token of an operator. Of those with the same label the newest before it stays valid, older ones end.
    /// Returns its id and those of the ended ones.
    pub async fn put_operator_token(
        &self,
        operator: &str,
        label: &str,
        sha256: &[u8; 32],
        expires_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> StoreResult<(TokenId, Vec<TokenId>)> {
        self.put_token_of(Holder::Operator, operator, label, sha256, Some(expires_at), now).await
    }

    /// Whose a token is by its SHA-256, when it is an operator's that holds. Notes the use.
    pub async fn operator_token_use(&self, sha256: &[u8; 32], now: DateTime<Utc>) -> StoreResult<Option<TokenUse>> {
        self.holder_of(sha256, Holder::Operator, now).await
    }

    /// All tokens of operators, newest first; those that ended too. `agent` of a record is the operator.
    pub async fn operator_tokens(&self) -> StoreResult<Vec<TokenRecord>> {
        self.inner.state.read(|c| records(c, Holder::Operator)).await
    }

    /// Ends one token of an operator by its id; `false` when there is no valid one of that id.
    pub async fn revoke_operator_token(&self, id: &str, now: DateTime<Utc>) -> StoreResult<bool> {
        self.revoke_token_of(Holder::Operator, id, now).await
    }
}

/// Ends every token of an operator: whoever knew the old passphrase may have made one.
pub(super) fn end_all(c: &Connection, operator: &str, now: DateTime<Utc>) -> Sql<usize> {
    let mut statement = c.prepare_cached("UPDATE operator_token SET revoked_at = ?2 WHERE operator = ?1 AND revoked_at IS NULL")?;
    Ok(statement.execute(params![operator, time(now)])?)
}

/// Those that were not revoked, of operators there are.
pub(super) fn valid(c: &Connection) -> Sql<Vec<Known>> {
    let mut statement = c.prepare_cached(
        "SELECT sha256, operator, expires_at FROM operator_token WHERE revoked_at IS NULL AND operator IN (SELECT name FROM operator)",
    )?;
    all(&mut statement, [], |r| {
        let expires_at = Some(parse_time(WHAT, &r.get::<_, String>(2)?)?);
        Ok(Known { sha256: r.get(0)?, holder: Holder::Operator, name: r.get(1)?, expires_at, noted: AtomicI64::new(0) })
    })
}

#[cfg(test)]
mod tests {
    use super::Removal;
    use crate::store::tests::{at, fresh};
    use chrono::TimeDelta;

    #[tokio::test]
    async fn who_is_removed_has_neither_passphrase_nor_token_and_the_last_one_stays() {
        let (_dir, store) = fresh().await;
        store.put_operator("ann", "a", at(0)).await.unwrap();
        assert_eq!(store.remove_operator("ann", at(1)).await.unwrap(), Removal::Last);
        store.put_operator("bob", "b", at(0)).await.unwrap();
        store.put_operator_token("bob", "", &[4; 32], at(99), at(1)).await.unwrap();
        assert!(store.operator_token_use(&[4; 32], at(2)).await.unwrap().is_some());
        assert_eq!(store.remove_operator("bob", at(3)).await.unwrap(), Removal::Gone);
        assert_eq!(store.operator_token_use(&[4; 32], at(4)).await.unwrap(), None);
        assert_eq!(store.operators().await.unwrap(), [("ann".to_owned(), "a".to_owned())]);
        assert!(store.operator_tokens().await.unwrap()[0].revoked_at.is_some());
        assert_eq!(store.remove_operator("bob", at(5)).await.unwrap(), Removal::Unknown);
    }

    #[tokio::test]
    async fn an_operators_token_is_no_agents_ends_by_time_by_word_and_with_the_passphrase() {
        let (_dir, store) = fresh().await;
        store.put_operator("ann", "stored", at(0)).await.unwrap();
        let month = at(0) + TimeDelta::days(30);
        let (id, ended) = store.put_operator_token("ann", "phone", &[1; 32], month, at(1)).await.unwrap();
        assert_eq!(ended, []);
        let found = store.operator_token_use(&[1; 32], at(2)).await.unwrap().unwrap();
        assert_eq!((found.id, found.agent.as_str(), found.expires_at), (id, "ann", Some(month)));
        // Neither opens the other's doors.
        assert_eq!(store.token_use(&[1; 32], at(2)).await.unwrap(), None);
        store.put_token("deployer", "", &[9; 32], None, at(1)).await.unwrap();
        assert_eq!(store.operator_token_use(&[9; 32], at(2)).await.unwrap(), None);
        assert_eq!(store.operator_token_use(&[1; 32], month).await.unwrap(), None, "its time is over");
        // Two of one label, the third ends the first.
        store.put_operator_token("ann", "phone", &[2; 32], month, at(3)).await.unwrap();
        let (_, ended) = store.put_operator_token("ann", "phone", &[3; 32], month, at(4)).await.unwrap();
        assert_eq!(ended, [id]);
        assert_eq!(store.operator_token_use(&[1; 32], at(5)).await.unwrap(), None);
        assert!(
            store
                .revoke_operator_token(&store.operator_token_use(&[2; 32], at(5)).await.unwrap().unwrap().id.to_string(), at(5))
                .await
                .unwrap()
        );
        assert_eq!(store.operator_token_use(&[2; 32], at(6)).await.unwrap(), None);
        assert!(!store.revoke_operator_token("tk-000000000000", at(5)).await.unwrap());
        // A new passphrase ends what is left; nobody else's is touched.
        store.put_operator("bob", "stored", at(0)).await.unwrap();
        store.put_operator_token("bob", "", &[4; 32], month, at(4)).await.unwrap();
        store.put_operator("ann", "another", at(7)).await.unwrap();
        assert_eq!(store.operator_token_use(&[3; 32], at(8)).await.unwrap(), None);
        assert!(store.operator_token_use(&[4; 32], at(8)).await.unwrap().is_some());
        let states: Vec<_> = store.operator_tokens().await.unwrap().into_iter().map(|t| (t.agent, t.revoked_at.is_some())).collect();
        assert_eq!(states.iter().filter(|(who, ended)| who == "ann" && *ended).count(), 3);
        store.close().await;
    }
}
