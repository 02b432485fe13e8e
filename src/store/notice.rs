//! What a person outside is to be told and was not told yet. A row is there from the moment it was decided, in one transaction with the note that it was, until
//! it was delivered or given up: a kill in between tells it again, never not at all. Deliberately absent: what is worth telling, and to whom.

use super::codec::{all, json, parse_json};
use super::fault::Sql;
use super::release::set_value;
use super::{Store, StoreResult};
use rusqlite::{Connection, params};
use serde_json::Value;

const WHAT: &str = "notice";

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Names it for ever.
    pub id: String,
    /// It is told before, and whatever becomes of, those that are not.
    pub urgent: bool,
    /// It waits for room.
    pub held: bool,
    /// What it is about.
    pub body: Value,
}

impl Store {
    /// Keeps what was decided, and the note of it under `key`, in one transaction, durable on return. What is there under an id is replaced, `gone` is removed. Of
    /// each kind at most `most` wait to be delivered: the oldest beyond that are dropped. Returns how many.
    ///
    /// # Errors
    /// The database's: then nothing was decided.
    pub async fn decide_notices(
        &self,
        (key, note): (&str, &Value),
        new: Vec<Notice>,
        gone: Vec<String>,
        most: usize,
    ) -> StoreResult<usize> {
        let (key, note) = (key.to_owned(), json("value", note)?);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let write = move |c: &Connection| {
            for id in &gone {
                remove(c, id)?;
            }
            for n in &new {
                // Anew, behind those that wait already: its turn is when it may be told.
                remove(c, &n.id)?;
                c.prepare_cached("INSERT INTO notice (id, urgent, held, body) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                    n.id,
                    n.urgent,
                    n.held,
                    json(WHAT, &n.body)?
                ])?;
            }
            let mut dropped = 0;
            for urgent in [false, true] {
                let over = "DELETE FROM notice WHERE urgent = ?1 AND held = 0 AND n NOT IN (SELECT n FROM notice WHERE urgent = ?1 AND held = 0 ORDER BY n DESC LIMIT ?2)";
                dropped += c.prepare_cached(over)?.execute(params![urgent, most])?;
            }
            set_value(c, &key, &note)?;
            Ok(dropped)
        };
        self.inner.state.write(write).await
    }

    /// What waits for room, or (not `held`) to be delivered, in the order it came. A row that cannot be read is removed: it can never be told.
    ///
    /// # Errors
    /// The database's.
    pub async fn notices(&self, urgent: bool, held: bool) -> StoreResult<Vec<Notice>> {
        let read = move |c: &Connection| {
            let mut s = c.prepare_cached("SELECT id, body FROM notice WHERE urgent = ?1 AND held = ?2 ORDER BY n")?;
            all(&mut s, params![urgent, held], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?)))
        };
        let mut found = vec![];
        for (id, body) in self.inner.state.read(read).await? {
            match parse_json(WHAT, &body) {
                Ok(body) => found.push(Notice { id, urgent, held, body }),
                Err(e) => {
                    tracing::error!(event = id, error = %e, "a notification cannot be read and is given up");
                    self.notice_over(&id).await?;
                }
            }
        }
        Ok(found)
    }

    /// It was delivered, given up, or is of no use any more.
    ///
    /// # Errors
    /// The database's.
    pub async fn notice_over(&self, id: &str) -> StoreResult<()> {
        let id = id.to_owned();
        self.inner.state.write(move |c| remove(c, &id)).await
    }
}

fn remove(c: &Connection, id: &str) -> Sql<()> {
    c.prepare_cached("DELETE FROM notice WHERE id = ?1")?.execute([id])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{fresh, open_in};
    use serde_json::json;

    fn notice(id: &str, urgent: bool, held: bool) -> Notice {
        Notice { id: id.into(), urgent, held, body: json!({"of": id}) }
    }

    #[tokio::test]
    async fn what_is_to_be_told_outlives_the_process_until_it_was_told() {
        let (dir, store) = fresh().await;
        let new = vec![notice("a", true, false), notice("b", false, false), notice("c", true, true)];
        assert_eq!(store.decide_notices(("told", &json!({"seq": 1})), new, vec![], 9).await.unwrap(), 0);
        store.close().await;
        let store = open_in(&dir).await.unwrap();
        assert_eq!(store.value("told").await.unwrap(), Some(json!({"seq": 1})));
        assert_eq!(store.notices(true, false).await.unwrap(), [notice("a", true, false)]);
        assert_eq!(store.notices(false, false).await.unwrap(), [notice("b", false, false)]);
        store.notice_over("a").await.unwrap();
        // What waited for room is let go, behind what came meanwhile.
        let new = vec![notice("d", true, false), notice("c", true, false)];
        store.decide_notices(("told", &json!({"seq": 2})), new, vec!["b".into()], 9).await.unwrap();
        assert_eq!(store.notices(true, false).await.unwrap(), [notice("d", true, false), notice("c", true, false)]);
        assert!(store.notices(true, true).await.unwrap().is_empty() && store.notices(false, false).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_beyond_the_bound_is_dropped_oldest_first_and_each_kind_by_itself() {
        let (_dir, store) = fresh().await;
        let new: Vec<Notice> =
            (0..5).map(|n| notice(&format!("o{n}"), false, false)).chain([notice("u", true, false), notice("h", true, true)]).collect();
        assert_eq!(store.decide_notices(("told", &json!(1)), new, vec![], 2).await.unwrap(), 3);
        let ids = |found: Vec<Notice>| found.into_iter().map(|n| n.id).collect::<Vec<_>>();
        assert_eq!(ids(store.notices(false, false).await.unwrap()), ["o3", "o4"]);
        assert_eq!(ids(store.notices(true, false).await.unwrap()), ["u"]);
        assert_eq!(ids(store.notices(true, true).await.unwrap()), ["h"]);
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_is_given_up_and_the_others_are_told() {
        let (_dir, store) = fresh().await;
        let new = vec![notice("bad", false, false), notice("good", false, false)];
        store.decide_notices(("told", &json!(1)), new, vec![], 9).await.unwrap();
        let damage = |c: &Connection| Ok(c.execute("UPDATE notice SET body = '{' WHERE id = 'bad'", [])?);
        assert_eq!(store.inner.state.write(damage).await.unwrap(), 1);
        for _ in 0..2 {
            assert_eq!(store.notices(false, false).await.unwrap(), [notice("good", false, false)]);
        }
    }
}
