//! What models cost. A question is entered with the most it can cost before it is asked, against the agent's cap; the answer replaces that by what it
//! did cost. What never came back stays at its worst. Deliberately absent: prices, and what a cap is.

use super::codec::{all, int, uint};
use super::fault::Sql;
use super::{Store, StoreResult};
use crate::model::ids::{AgentName, TaskId};
use crate::model::spend::{Spent, Usage};
use rusqlite::{Connection, OptionalExtension, params};

const WHAT: &str = "ledger";

/// A question about to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Month it counts in.
    pub month: String,
    /// Agent that pays.
    pub agent: AgentName,
    /// Model, by its name in the configuration.
    pub model: String,
    /// Task it is for.
    pub task: TaskId,
    /// The most it can cost, millionths of a dollar.
    pub worst: u64,
    /// The most the agent may spend in the month.
    pub cap: Option<u64>,
}

/// What the ledger says to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Ask; the number under which it is settled.
    Ask(i64),
    /// It could go beyond the cap: what is spent.
    OverCap {
        /// Spent so far this month, questions under way included.
        spent: u64,
    },
}

/// What an answer cost, to settle a question with. `id` 0 settles nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// As [`Word::Ask`] gave it.
    pub id: i64,
    /// Tokens.
    pub usage: Usage,
    /// Money.
    pub micro_usd: u64,
    /// Time waited.
    pub millis: u64,
}

fn spent_by(c: &Connection, month: &str, agent: &str) -> Sql<u64> {
    let mut statement = c.prepare_cached(
        "SELECT (SELECT coalesce(sum(micro_usd), 0) FROM ledger WHERE month = ?1 AND agent = ?2)
              + (SELECT coalesce(sum(micro_usd), 0) FROM ledger_open WHERE month = ?1 AND agent = ?2)",
    )?;
    Ok(uint(WHAT, statement.query_row([month, agent], |r| r.get(0))?)?)
}

type Open = (String, String, String, i64);

fn take(c: &Connection, id: i64) -> Sql<Option<Open>> {
    let mut statement = c.prepare_cached("DELETE FROM ledger_open WHERE id = ?1 RETURNING month, agent, model, micro_usd")?;
    Ok(statement.query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))).optional()?)
}

/// Adds to the line of a month, agent and model.
fn add(c: &Connection, (month, agent, model): (&str, &str, &str), s: &Spent) -> Sql<()> {
    let counts = [s.answers, s.errors, s.lost, s.tokens_in, s.tokens_cached, s.tokens_out, s.micro_usd, s.millis];
    let [answers, errors, lost, tokens_in, tokens_cached, tokens_out, micro_usd, millis] = counts.map(|n| int(WHAT, n));
    c.prepare_cached(
        "INSERT INTO ledger (month, agent, model, answers, errors, lost, tokens_in, tokens_cached, tokens_out, micro_usd, millis)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (month, agent, model) DO UPDATE SET answers = answers + ?4, errors = errors + ?5, lost = lost + ?6,
           tokens_in = tokens_in + ?7, tokens_cached = tokens_cached + ?8, tokens_out = tokens_out + ?9,
           micro_usd = micro_usd + ?10, millis = millis + ?11",
    )?
    .execute(params![month, agent, model, answers?, errors?, lost?, tokens_in?, tokens_cached?, tokens_out?, micro_usd?, millis?])?;
    Ok(())
}

/// Replaces a question by what its answer cost.
pub(super) fn settle(c: &Connection, e: &Entry) -> Sql<()> {
    let Some((month, agent, model, _)) = take(c, e.id)? else { return Ok(()) };
    let spent = Spent {
        answers: 1,
        tokens_in: e.usage.input,
        tokens_cached: e.usage.cached,
        tokens_out: e.usage.output,
        micro_usd: e.micro_usd,
        millis: e.millis,
        ..Spent::default()
    };
    add(c, (&month, &agent, &model), &spent)
}

fn lose(c: &Connection, id: i64) -> Sql<()> {
    let Some((month, agent, model, worst)) = take(c, id)? else { return Ok(()) };
    add(c, (&month, &agent, &model), &Spent { lost: 1, micro_usd: uint(WHAT, worst)?, ..Spent::default() })
}

impl Store {
    /// Enters a question before it is asked, unless it could go beyond the cap.
    pub async fn ledger_ask(&self, question: Question) -> StoreResult<Word> {
        let write = move |c: &Connection| {
            let q = &question;
            let spent = spent_by(c, &q.month, q.agent.as_str())?;
            if q.cap.is_some_and(|cap| spent.saturating_add(q.worst) > cap) {
                return Ok(Word::OverCap { spent });
            }
            c.prepare_cached("INSERT INTO ledger_open (month, agent, model, task, micro_usd) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![q.month, q.agent.as_str(), q.model, q.task.as_str(), int(WHAT, q.worst)?])?;
            Ok(Word::Ask(c.last_insert_rowid()))
        };
        self.inner.state.write(write).await
    }

    /// The most a question of a task can cost while it has no answer; `None` when the task has no such question open.
    pub async fn ledger_open(&self, task: &TaskId, id: i64) -> StoreResult<Option<u64>> {
        let task = task.clone();
        let read = move |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT micro_usd FROM ledger_open WHERE id = ?1 AND task = ?2")?;
            let worst: Option<i64> = statement.query_row(params![id, task.as_str()], |r| r.get(0)).optional()?;
            Ok(worst.map(|w| uint(WHAT, w)).transpose()?)
        };
        self.inner.state.read(read).await
    }

    /// A question failed before the model began to answer: it cost nothing and is counted as an error.
    pub async fn ledger_failed(&self, id: i64) -> StoreResult<()> {
        let write = move |c: &Connection| {
            let Some((month, agent, model, _)) = take(c, id)? else { return Ok(()) };
            add(c, (&month, &agent, &model), &Spent { errors: 1, ..Spent::default() })
        };
        self.inner.state.write(write).await
    }

    /// An answer broke off: what the provider charges for it is not known, so it counts at its worst.
    pub async fn ledger_lost(&self, id: i64) -> StoreResult<()> {
        self.inner.state.write(move |c| lose(c, id)).await
    }

    /// The questions of a task that an interruption left open: as [`Store::ledger_lost`].
    pub async fn ledger_lost_of(&self, task: &TaskId) -> StoreResult<usize> {
        let task = task.clone();
        let write = move |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT id FROM ledger_open WHERE task = ?1")?;
            let open: Vec<i64> = all(&mut statement, [task.as_str()], |r| Ok(r.get(0)?))?;
            open.iter().try_for_each(|id| lose(c, *id))?;
            Ok(open.len())
        };
        self.inner.state.write(write).await
    }

    /// What an agent spent in a month, questions under way included; millionths of a dollar.
    pub async fn spent_by(&self, month: &str, agent: &AgentName) -> StoreResult<u64> {
        let (month, agent) = (month.to_owned(), agent.clone());
        self.inner.state.read(move |c| spent_by(c, &month, agent.as_str())).await
    }

    /// What was spent, by agent and model, in a month or in all of them; questions under way are in the money.
    pub async fn spent(&self, month: Option<&str>) -> StoreResult<Vec<Spent>> {
        let month = month.map(str::to_owned);
        let read = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT month, agent, model, sum(answers), sum(errors), sum(lost), sum(tokens_in), sum(tokens_cached), sum(tokens_out),
                        sum(micro_usd), sum(millis) FROM (
                   SELECT month, agent, model, answers, errors, lost, tokens_in, tokens_cached, tokens_out, micro_usd, millis FROM ledger
                   UNION ALL SELECT month, agent, model, 0, 0, 0, 0, 0, 0, micro_usd, 0 FROM ledger_open)
                 WHERE ?1 IS NULL OR month = ?1 GROUP BY month, agent, model ORDER BY month, agent, model",
            )?;
            all(&mut statement, [month], |r| {
                let n = |i: usize| -> Sql<u64> { Ok(uint(WHAT, r.get(i)?)?) };
                Ok(Spent {
                    month: r.get(0)?,
                    agent: r.get(1)?,
                    model: r.get(2)?,
                    answers: n(3)?,
                    errors: n(4)?,
                    lost: n(5)?,
                    tokens_in: n(6)?,
                    tokens_cached: n(7)?,
                    tokens_out: n(8)?,
                    micro_usd: n(9)?,
                    millis: n(10)?,
                })
            })
        };
        self.inner.state.read(read).await
    }

    /// Whether a share of the month's budget was told of already.
    pub async fn budget_told(&self, month: &str, agent: &AgentName, percent: u32, cap: u64) -> StoreResult<bool> {
        let (month, agent) = (month.to_owned(), agent.clone());
        let read = move |c: &Connection| {
            let mut statement =
                c.prepare_cached("SELECT 1 FROM ledger_told WHERE month = ?1 AND agent = ?2 AND percent = ?3 AND cap = ?4")?;
            Ok(statement.exists(params![month, agent.as_str(), percent, int(WHAT, cap)?])?)
        };
        self.inner.state.read(read).await
    }

    /// Notes that it was.
    pub async fn tell_budget(&self, month: &str, agent: &AgentName, percent: u32, cap: u64) -> StoreResult<()> {
        let (month, agent) = (month.to_owned(), agent.clone());
        let write = move |c: &Connection| {
            c.prepare_cached("INSERT OR IGNORE INTO ledger_told (month, agent, percent, cap) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![month, agent.as_str(), percent, int(WHAT, cap)?])?;
            Ok(())
        };
        self.inner.state.write(write).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::open_in;

    fn question(task: &str, worst: u64, cap: Option<u64>) -> Question {
        let agent = AgentName::new("helper").unwrap();
        Question { month: "2026-11".into(), agent, model: "big".into(), task: TaskId::new(task).unwrap(), worst, cap }
    }

    async fn asked(store: &Store, task: &str, worst: u64, cap: Option<u64>) -> i64 {
        match store.ledger_ask(question(task, worst, cap)).await.unwrap() {
            Word::Ask(id) => id,
            Word::OverCap { spent } => panic!("over the cap at {spent}"),
        }
    }

    #[tokio::test]
    async fn a_question_counts_at_its_worst_until_its_answer_says_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let agent = AgentName::new("helper").unwrap();
        let first = asked(&store, "task-1", 600, Some(1000)).await;
        assert_eq!(store.ledger_ask(question("task-2", 401, Some(1000))).await.unwrap(), Word::OverCap { spent: 600 });
        let usage = Usage { input: 90, cached: 40, cache_written: 0, output: 9 };
        store.inner.state.write(move |c| settle(c, &Entry { id: first, usage, micro_usd: 123, millis: 50 })).await.unwrap();
        assert_eq!(store.spent_by("2026-11", &agent).await.unwrap(), 123);
        let second = asked(&store, "task-2", 877, Some(1000)).await;
        store.ledger_failed(second).await.unwrap();
        let third = asked(&store, "task-2", 77, Some(200)).await;
        store.ledger_lost(third).await.unwrap();
        store.ledger_lost(third).await.unwrap();
        let want = Spent {
            month: "2026-11".into(),
            agent: "helper".into(),
            model: "big".into(),
            answers: 1,
            errors: 1,
            lost: 1,
            tokens_in: 90,
            tokens_cached: 40,
            tokens_out: 9,
            micro_usd: 200,
            millis: 50,
        };
        assert_eq!(store.spent(Some("2026-11")).await.unwrap(), [want]);
        assert_eq!(store.spent(Some("2026-10")).await.unwrap(), []);
        assert_eq!(store.ledger_ask(question("task-3", 1, Some(200))).await.unwrap(), Word::OverCap { spent: 200 });
        let last = asked(&store, "task-3", 0, Some(200)).await;
        assert!(last > third, "a number is never given twice");
    }

    #[tokio::test]
    async fn what_an_interruption_left_open_is_lost_for_that_task_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        asked(&store, "task-1", 10, None).await;
        asked(&store, "task-2", 20, None).await;
        assert_eq!(store.ledger_lost_of(&TaskId::new("task-1").unwrap()).await.unwrap(), 1);
        let spent = store.spent(None).await.unwrap();
        assert_eq!((spent[0].lost, spent[0].micro_usd), (1, 30));
    }

    #[tokio::test]
    async fn a_share_is_told_once_a_month() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await.unwrap();
        let agent = AgentName::new("helper").unwrap();
        assert!(!store.budget_told("2026-11", &agent, 50, 20).await.unwrap());
        store.tell_budget("2026-11", &agent, 50, 20).await.unwrap();
        store.tell_budget("2026-11", &agent, 50, 20).await.unwrap();
        assert!(store.budget_told("2026-11", &agent, 50, 20).await.unwrap());
        assert!(!store.budget_told("2026-12", &agent, 50, 20).await.unwrap());
        assert!(!store.budget_told("2026-11", &agent, 50, 40).await.unwrap(), "of another budget");
    }
}
