//! What was appended to the audit log and to memories, told to those who listen as soon as it is durable. Deliberately absent: what was written; the
//! tools read that, with their gate.

use super::db::Undo;
use super::fault::Sql;
use super::{Store, StoreResult};
use crate::model::ids::AgentName;
use crate::model::verdict::Verdict;
use rusqlite::Connection;
use tokio::sync::broadcast;

/// Tools that look at these records. What such a call leaves is told to nobody: who looks when told would be told of that look, and look for ever.
const LOOKING: [&str; 2] = ["audit", "memory_read"];

/// One who is further behind is told that some were missed.
pub(super) const BACKLOG: usize = 1024;

/// Something that was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// A row of the audit log.
    Row(Row),
    /// To an agent's memory.
    Memory(AgentName, Part),
}

/// What of a row of the audit log a filter can ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Agent.
    pub agent: String,
    /// Tool, or what happened.
    pub tool: String,
    /// Stack.
    pub stack: Option<String>,
    /// Verdict.
    pub verdict: Verdict,
    /// Outcome.
    pub outcome: Option<String>,
}

/// Which part of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Notes.
    Context,
    /// Past calls.
    History,
}

/// Whether calls of a tool are looks at the records.
pub fn looks(tool: &str) -> bool {
    LOOKING.contains(&tool)
}

impl Store {
    /// What is appended from now on. One who is too far behind misses some and is told so.
    pub fn appended(&self) -> broadcast::Receiver<Appended> {
        self.inner.appended.subscribe()
    }

    /// Writes to the audit log by `f`, which also gives the rows it appended for those who listen.
    pub(super) async fn append<T, F>(&self, undo: Undo, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Sql<(T, Vec<Row>)> + Send + 'static,
    {
        let to = self.inner.appended.clone();
        let told = move |(_, rows): &(T, Vec<Row>)| rows.iter().for_each(|row| tell(&to, Appended::Row(row.clone())));
        self.inner.audit.write_told(undo, f, told).await.map(|(value, _)| value)
    }

    /// Writes to a part of an agent's memory.
    pub(super) async fn remember<T, F>(&self, agent: &AgentName, part: Part, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Sql<T> + Send + 'static,
    {
        let (to, whose) = (self.inner.appended.clone(), agent.clone());
        self.memory_db(agent).await?.write_told(Undo::Savepoint, f, move |_| tell(&to, Appended::Memory(whose, part))).await
    }
}

fn tell(to: &broadcast::Sender<Appended>, what: Appended) {
    let _nobody_listens = to.send(what);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::audit::{Intent, Outcome};
    use chrono::{DateTime, Utc};
    use serde_json::{Value, json};

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.expect("a store");
        (dir, store)
    }

    fn read(store: &Store, tool: &str, call: &str, at: DateTime<Utc>) -> (Store, Intent, Outcome) {
        let intent = Intent { tool: tool.into(), ..Intent::sample(call, "observer", at) };
        let (outcome, call) = ("ok".to_owned(), intent.call.clone());
        let (verdict, detail) = (Verdict::Allow, Value::Null);
        (store.clone(), intent, Outcome { call, outcome, code: None, verdict, findings: vec![], detail, duration_ms: 1, at })
    }

    #[tokio::test]
    async fn a_row_is_told_when_it_is_durable_even_if_its_writer_has_gone_and_a_refused_one_is_not() {
        let (_dir, store) = store().await;
        let mut heard = store.appended();
        let now = Utc::now();
        let (s, intent, outcome) = read(&store, "status", "call-1", now);
        {
            let write = s.audit_read(&intent, &outcome, &[]);
            let mut write = Box::pin(write);
            // Queued, and nobody waits for it any more.
            assert!(futures_util::poll!(&mut write).is_pending());
        }
        let row = Row {
            agent: "observer".into(),
            tool: "status".into(),
            stack: Some("shop".into()),
            verdict: Verdict::Allow,
            outcome: Some("ok".into()),
        };
        assert_eq!(heard.recv().await.expect("told"), Appended::Row(row));
        // An outcome without its intent is refused: nothing is told of it, the next is.
        let (_, intent, outcome) = read(&store, "deploy", "call-2", now);
        assert!(store.audit_outcome(&outcome, &[]).await.is_err());
        store.audit_intent(&intent, &[]).await.expect("written");
        assert!(matches!(heard.recv().await.expect("told"), Appended::Row(r) if r.tool == "deploy" && r.outcome.is_none()));
        store.audit_outcome(&outcome, &[]).await.expect("written");
        assert!(matches!(heard.recv().await.expect("told"), Appended::Row(r) if r.tool == "deploy" && r.outcome.as_deref() == Some("ok")));
        store.audit_event("warden", "gave_up", None, &json!({}), now).await.expect("written");
        assert!(matches!(heard.recv().await.expect("told"), Appended::Row(r) if r.tool == "gave_up"));
    }

    #[tokio::test]
    async fn who_looks_when_told_is_not_told_of_the_look() {
        let (_dir, store) = store().await;
        let mut heard = store.appended();
        let agent = AgentName::new("observer").expect("valid");
        for (n, tool) in LOOKING.iter().enumerate() {
            let (s, intent, outcome) = read(&store, tool, &format!("call-{n}"), Utc::now());
            s.audit_read(&intent, &outcome, &[]).await.expect("written");
        }
        store.project_history().await.expect("projected");
        assert!(heard.try_recv().is_err(), "looks alone");
        let (s, intent, outcome) = read(&store, "status", "call-9", Utc::now());
        s.audit_read(&intent, &outcome, &[]).await.expect("written");
        store.project_history().await.expect("projected");
        assert!(matches!(heard.recv().await.expect("told"), Appended::Row(r) if r.tool == "status"));
        assert_eq!(heard.recv().await.expect("told"), Appended::Memory(agent.clone(), Part::History));
        store.memory_write(&agent, "note", &json!("x"), Utc::now()).await.expect("written");
        assert_eq!(heard.recv().await.expect("told"), Appended::Memory(agent, Part::Context));
    }
}
