//! Words agents heard in untrusted output or said themselves, as keyed hashes, so that a restart forgets none. Deliberately absent: the words, and what
//! comes of hearing one (`call::taint`).

use super::codec::{all, parse_time, parse_word, time, word};
use super::fault::Sql;
use super::{Store, StoreResult};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

const WHAT: &str = "heard words";
/// Hashes in one row at most.
const MOST_IN_ROW: usize = 4096;
/// Bytes of a hash.
const WIDTH: usize = 8;
/// Rows written between two looks at what is too much.
const SWEEP: i64 = 64;

/// Whose words they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeardKind {
    /// Of untrusted output that reached the agent.
    Untrusted,
    /// The agent's own.
    Own,
    /// No word: a plan made with words of untrusted output, by its id.
    Plan,
}

/// Words that reached an agent, or came from it, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Agent; empty for plans, which whoever has the id may deploy.
    pub agent: String,
    /// Whose.
    pub kind: HeardKind,
    /// When.
    pub at: DateTime<Utc>,
    /// What kind of output it was, e.g. `logs of stack shop`.
    pub source: String,
    /// Hashes under [`Store::word_key`].
    pub words: Vec<u64>,
}

impl Store {
    /// Key of the hashes: of this home, so that nobody outside finds a word that is taken for another.
    pub fn word_key(&self) -> (u64, u64) {
        self.inner.keys.word_key
    }

    /// Writes what was heard and said, durable on return. Of each agent the newest `most` words of a kind stay, and some more until the next sweep.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep_heard(&self, heard: Vec<Heard>, most: usize) -> StoreResult<()> {
        let write = move |c: &Connection| {
            let mut sweep = false;
            for (one, words) in heard.iter().flat_map(|h| h.words.chunks(MOST_IN_ROW).map(move |words| (h, words))) {
                sweep |= insert(c, one, words)? % SWEEP == 0;
            }
            if sweep { forget(c, most) } else { Ok(()) }
        };
        self.inner.state.write(write).await
    }

    /// Everything that is kept, oldest first.
    ///
    /// # Errors
    /// The database's; `Corrupt`.
    pub async fn heard(&self) -> StoreResult<Vec<Heard>> {
        self.inner.state.read(select).await
    }
}

fn insert(c: &Connection, heard: &Heard, words: &[u64]) -> Sql<i64> {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    c.prepare_cached("INSERT INTO taint (agent, kind, at, source, words) VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        heard.agent,
        word(WHAT, &heard.kind)?,
        time(heard.at),
        heard.source,
        bytes
    ])?;
    Ok(c.last_insert_rowid())
}

/// Rows older than the newest that hold `most` words of their agent and kind.
fn forget(c: &Connection, most: usize) -> Sql<()> {
    c.prepare_cached(
        "DELETE FROM taint WHERE id IN (SELECT id FROM
           (SELECT id, length(words), sum(length(words)) OVER (PARTITION BY agent, kind ORDER BY id DESC) - length(words) AS newer FROM taint)
         WHERE newer >= ?1)",
    )?
    .execute([i64::try_from(most * WIDTH).unwrap_or(i64::MAX)])?;
    Ok(())
}

fn select(c: &Connection) -> Sql<Vec<Heard>> {
    let mut statement = c.prepare("SELECT agent, kind, at, source, words FROM taint ORDER BY id")?;
    all(&mut statement, [], |r| {
        Ok(Heard {
            agent: r.get(0)?,
            kind: parse_word(WHAT, &r.get::<_, String>(1)?)?,
            at: parse_time(WHAT, &r.get::<_, String>(2)?)?,
            source: r.get(3)?,
            words: r.get::<_, Vec<u8>>(4)?.as_chunks::<WIDTH>().0.iter().map(|w| u64::from_le_bytes(*w)).collect(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_are_kept_in_order_and_the_oldest_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let open = async || Store::open(&dir.path().join("home"), &dir.path().join("memory")).await;
        let store = open().await.unwrap();
        let heard = |agent: &str, kind, words: Vec<u64>| Heard {
            agent: agent.into(),
            kind,
            at: DateTime::UNIX_EPOCH,
            source: "logs".into(),
            words,
        };
        let few = vec![
            heard("a", HeardKind::Untrusted, vec![1, u64::MAX]),
            heard("a", HeardKind::Own, vec![3]),
            heard("", HeardKind::Plan, vec![4]),
        ];
        store.keep_heard(few.clone(), 100).await.unwrap();
        let key = store.word_key();
        store.close().await;
        let store = open().await.unwrap();
        assert_eq!((store.heard().await.unwrap(), store.word_key()), (few, key), "the same after a restart, under the same key");
        for n in 0..4 * SWEEP.unsigned_abs() {
            store.keep_heard(vec![heard("b", HeardKind::Untrusted, (n * 10..n * 10 + 10).collect())], 100).await.unwrap();
        }
        let kept = store.heard().await.unwrap();
        let of = |agent: &str| kept.iter().filter(|h| h.agent == agent).flat_map(|h| h.words.clone()).collect::<Vec<_>>();
        let b = of("b");
        assert!(b.len() >= 100 && b.len() < 100 + 10 * SWEEP.unsigned_abs() as usize, "{}", b.len());
        assert_eq!(b.last(), Some(&(40 * SWEEP.unsigned_abs() - 1)), "the newest stay");
        assert_eq!(of("a"), [1, u64::MAX, 3], "one agent's words crowd out no other's");
        let long: Vec<u64> = (0..2 * MOST_IN_ROW as u64 + 1).collect();
        store.keep_heard(vec![heard("c", HeardKind::Own, long.clone())], 100).await.unwrap();
        assert_eq!(store.heard().await.unwrap().into_iter().filter(|h| h.agent == "c").flat_map(|h| h.words).collect::<Vec<_>>(), long);
    }
}
