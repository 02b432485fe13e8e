//! Full text over incidents, in memory alone: their bodies are sealed, so none of their words may lie on the disk in the clear. Made of the sealed bodies
//! by the first search, kept up by every write after it. Deliberately absent: the incidents themselves.

use crate::model::ids::StackName;
use crate::model::incident::Incident;
use crate::store::codec::{all, limit, time};
use crate::store::fault::Sql;
use rusqlite::{Connection, params};

/// As agents' memory is searched: by stems, without diacritics.
const SCHEMA: &str = "CREATE TABLE incident (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, stack TEXT NOT NULL, opened_at TEXT NOT NULL);
CREATE VIRTUAL TABLE words USING fts5 (
  head, body, content='', contentless_delete=1, prefix='2 3', tokenize='porter unicode61 remove_diacritics 2'
);";

/// The index.
pub(in crate::store) struct Index(Connection);

impl Index {
    /// An empty one.
    pub(super) fn empty() -> Sql<Self> {
        let conn = Connection::open_in_memory()?;
        conn.execute_batch(SCHEMA)?;
        Ok(Self(conn))
    }

    /// Makes an incident findable by what its report says now.
    pub(super) fn put(&self, incident: &Incident) -> Sql<()> {
        self.remove(incident.id.as_str())?;
        self.0.prepare_cached("INSERT INTO incident (id, stack, opened_at) VALUES (?1, ?2, ?3)")?.execute(params![
            incident.id.as_str(),
            incident.stack.as_str(),
            time(incident.opened_at)
        ])?;
        let n = self.0.last_insert_rowid();
        let head = format!("{} {} {} {}", incident.stack, incident.service, incident.cause.as_str(), incident.reason);
        let body = incident.markdown(incident.closed_at.unwrap_or(incident.opened_at));
        self.0.prepare_cached("INSERT INTO words (rowid, head, body) VALUES (?1, ?2, ?3)")?.execute(params![n, head, body])?;
        Ok(())
    }

    /// Makes one unfindable.
    pub(super) fn remove(&self, id: &str) -> Sql<()> {
        self.0.prepare_cached("DELETE FROM words WHERE rowid = (SELECT n FROM incident WHERE id = ?1)")?.execute([id])?;
        self.0.prepare_cached("DELETE FROM incident WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// Ids of the incidents of these stacks that the first query with any result finds: best first, of equal ones the newest.
    pub(super) fn search(&self, stacks: &[StackName], queries: &[String], n: usize) -> Sql<Vec<String>> {
        let stacks = serde_json::json!(stacks).to_string();
        // A word in what the incident is about says more than one in its evidence.
        let mut statement = self.0.prepare_cached(
            "SELECT i.id FROM words JOIN incident i ON i.n = words.rowid
             WHERE words MATCH ?1 AND i.stack IN (SELECT value FROM json_each(?2))
             ORDER BY bm25(words, 4.0, 1.0), i.opened_at DESC, i.id DESC LIMIT ?3",
        )?;
        for query in queries {
            let found: Vec<String> = all(&mut statement, params![query, stacks, limit(n)], |r| Ok(r.get(0)?))?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }
}
