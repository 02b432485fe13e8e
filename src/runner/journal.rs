//! Where a run writes down what its model said and what it costs: in the house the store itself, in a process of its own the supervisor. Nothing is asked
//! without [`Journal::question`], and no call is made before [`Journal::begin`] returned. Deliberately absent: what a turn means.

use super::hands::Away;
use super::models::Model;
use crate::model::ids::{AgentName, TaskId};
use crate::model::spend::{self, Price, Usage};
use crate::model::task::Turn;
use crate::store::ledger::{self, Entry};
use crate::store::{Store, StoreError};
use async_trait::async_trait;
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Shares of a month's budget that somebody is told about, percent.
const SHARES: [u32; 3] = [50, 80, 100];
/// Where it is noted that a refusal was told: no share.
const REFUSED: u32 = 0;

/// What the ledger says to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Ask; the number under which it is settled.
    Ask(i64),
    /// It could go beyond the cap. Millionths of a dollar.
    OverCap {
        /// Spent this month.
        spent: u64,
        /// The most this question could cost.
        worst: u64,
        /// The cap.
        cap: u64,
    },
}

/// An answer that came: which question it settles, and what the provider counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// As [`Word::Ask`] gave it.
    pub id: i64,
    /// Tokens.
    pub usage: Usage,
    /// Time waited.
    pub millis: u64,
}

/// The journal and the ledger of one task's run.
#[async_trait]
pub trait Journal: Send + Sync {
    /// What was said so far. Questions an interruption left open count at the most they can have cost.
    ///
    /// # Errors
    /// `Away`.
    async fn turns(&self) -> Result<Vec<Turn>, Away>;

    /// Enters a question of so many tokens, with an answer of so many at most, before it is asked.
    ///
    /// # Errors
    /// `Away`: then nothing is asked.
    async fn question(&self, input: u64, max_output: u32) -> Result<Word, Away>;

    /// A question has no answer: it cost nothing, or (`may_cost`) nobody knows and it counts at its worst.
    ///
    /// # Errors
    /// `Away`.
    async fn unanswered(&self, id: i64, may_cost: bool) -> Result<(), Away>;

    /// Writes a new turn with what it cost, durable on return; the turn as it was written.
    ///
    /// # Errors
    /// `Away`: then none of its calls may be made.
    async fn begin(&self, turn: Turn, counted: Counted) -> Result<Turn, Away>;

    /// Writes what the call at `index` of a turn was answered.
    ///
    /// # Errors
    /// `Away`.
    async fn answered(&self, turn: &Turn, index: usize) -> Result<(), Away>;
}

/// The journal in the house.
pub struct HouseJournal<'a> {
    /// Where it is kept.
    pub store: &'a Store,
    /// Who pays.
    pub agent: AgentName,
    /// For what.
    pub task: TaskId,
    /// The most the agent may spend in a month as it stands now, millionths of a dollar.
    pub cap: Box<dyn Fn() -> Option<u64> + Send + Sync + 'a>,
    /// The model, by its name in the configuration.
    pub model: String,
    /// Its price.
    pub price: Option<Price>,
}

impl std::fmt::Debug for HouseJournal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HouseJournal").field("agent", &self.agent).field("task", &self.task).finish_non_exhaustive()
    }
}

impl<'a> HouseJournal<'a> {
    /// The journal of a task of an agent with this budget.
    pub fn new(store: &'a Store, agent: AgentName, task: TaskId, cap: impl Fn() -> Option<u64> + Send + Sync + 'a, model: &Model) -> Self {
        Self { store, agent, task, cap: Box::new(cap), model: model.name.clone(), price: model.price }
    }

    /// The most a question can cost.
    pub fn worst(&self, input: u64, max_output: u32) -> u64 {
        self.price.map_or(0, |p| p.at_worst(input, u64::from(max_output)))
    }

    /// As [`Journal::begin`], for no less than this.
    ///
    /// # Errors
    /// `Away`.
    pub async fn begin_at(&self, mut turn: Turn, counted: Counted, least: u64) -> Result<Turn, Away> {
        let Counted { id, usage, millis } = counted;
        let micro_usd = self.price.map_or(0, |p| p.of(&usage)).max(least);
        (turn.tokens_in, turn.tokens_cached, turn.tokens_out, turn.micro_usd) = (usage.input, usage.cached, usage.output, micro_usd);
        self.store.begin_turn(&self.task, &turn, Entry { id, usage, micro_usd, millis }).await?;
        self.watch_budget().await;
        Ok(turn)
    }

    /// Tells, once a month each, that half, four fifths or all of the budget is spent.
    async fn watch_budget(&self) {
        let Some(cap) = (self.cap)() else { return };
        let spent = match self.store.spent_by(&spend::month(Utc::now()), &self.agent).await {
            Ok(spent) => spent,
            Err(e) => return tracing::error!(agent = %self.agent, error = %e, "what the agent spent could not be read"),
        };
        for share in SHARES {
            if u128::from(spent) * 100 >= u128::from(cap) * u128::from(share) {
                self.tell(share, spent, cap, None).await;
            }
        }
    }

    /// Recorded first and noted as told after: told twice after a crash between is better than never. Once for each cap: a higher one is reached anew.
    /// `worst`: the question that could have gone beyond it was not asked.
    async fn tell(&self, percent: u32, spent: u64, cap: u64, worst: Option<u64>) {
        let (now, agent) = (Utc::now(), self.agent.as_str());
        let month = spend::month(now);
        let told = async {
            if self.store.budget_told(&month, &self.agent, percent, cap).await? {
                return Ok(());
            }
            let mut detail = json!({"agent": agent, "month": month, "spent_usd": spend::dollars(spent), "cap_usd": spend::dollars(cap)});
            let what = match worst {
                None => ("budget_share", "percent", json!(percent)),
                Some(worst) => ("budget_refused", "worst_usd", json!(spend::dollars(worst))),
            };
            detail[what.1] = what.2;
            self.store.audit_event("supervisor", what.0, None, &detail, now).await?;
            tracing::warn!(
                agent,
                percent,
                spent = spend::dollars(spent),
                cap = spend::dollars(cap),
                what = what.0,
                "an agent's budget of the month"
            );
            self.store.tell_budget(&month, &self.agent, percent, cap).await
        };
        if let Err(e) = told.await {
            let e: StoreError = e;
            tracing::error!(agent, percent, error = %e, "a share of a budget could not be recorded");
        }
    }
}

#[async_trait]
impl Journal for HouseJournal<'_> {
    async fn turns(&self) -> Result<Vec<Turn>, Away> {
        let lost = self.store.ledger_lost_of(&self.task).await?;
        if lost > 0 {
            tracing::warn!(task = %self.task, answers = lost, "answers of an interrupted run are lost; they count at the most they can have cost");
        }
        Ok(self.store.turns(&self.task).await?)
    }

    async fn question(&self, input: u64, max_output: u32) -> Result<Word, Away> {
        let (worst, cap) = (self.worst(input, max_output), (self.cap)());
        let question = ledger::Question {
            month: spend::month(Utc::now()),
            agent: self.agent.clone(),
            model: self.model.clone(),
            task: self.task.clone(),
            worst,
            cap,
        };
        match self.store.ledger_ask(question).await? {
            ledger::Word::Ask(id) => Ok(Word::Ask(id)),
            ledger::Word::OverCap { spent } => {
                let cap = cap.unwrap_or(0);
                self.tell(REFUSED, spent, cap, Some(worst)).await;
                Ok(Word::OverCap { spent, worst, cap })
            }
        }
    }

    async fn unanswered(&self, id: i64, may_cost: bool) -> Result<(), Away> {
        let entered = if may_cost { self.store.ledger_lost(id).await } else { self.store.ledger_failed(id).await };
        Ok(entered?)
    }

    async fn begin(&self, turn: Turn, counted: Counted) -> Result<Turn, Away> {
        self.begin_at(turn, counted, 0).await
    }

    async fn answered(&self, turn: &Turn, _: usize) -> Result<(), Away> {
        Ok(self.store.save_turn(&self.task, turn).await?)
    }
}
