//! Asks a model once: enters the most it can cost against the cap, asks, and asks again after a pause where that can help. Deliberately absent: the
//! conversation, and what is done with the answer.

use super::models::Model;
use super::provider::{Provider, ProviderError, Request, Spoken, listen};
use super::window;
use crate::model::ids::{AgentName, TaskId};
use crate::model::spend::{self, Usage};
use crate::store::ledger::{Entry, Question, Word};
use crate::store::{Store, StoreError};
use chrono::Utc;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Shares of a month's budget that somebody is told about, percent.
const SHARES: [u32; 3] = [50, 80, 100];

/// How often and how long is waited for a provider that is away.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts in all.
    pub tries: u32,
    /// First pause; each further one is twice as long.
    pub first: Duration,
    /// Longest pause. A provider that wants to be left alone for longer ends the try of the task.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { tries: 5, first: Duration::from_secs(1), most: Duration::from_secs(60) }
    }
}

impl Patience {
    /// The pause after attempt `n` (from 1): between a half and the whole of the doubled one, so that many agents do not come back at once.
    fn pause(&self, n: u32) -> Duration {
        let whole = self.first.saturating_mul(1 << (n - 1).min(16)).min(self.most);
        let share = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        whole.mul_f64(0.5 + share / 2.0)
    }
}

/// Who pays.
#[derive(Debug, Clone)]
pub struct Payer {
    /// Agent.
    pub agent: AgentName,
    /// Task.
    pub task: TaskId,
    /// The most the agent may spend in a month, millionths of a dollar.
    pub cap: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// It was stopped.
    Stopped,
    /// It could go beyond the cap.
    OverBudget {
        /// Spent this month, millionths of a dollar.
        spent: u64,
        /// The most this question could cost.
        worst: u64,
        /// The cap.
        cap: u64,
    },
    /// The provider, after all attempts or for a reason that stays.
    Provider(ProviderError),
    /// The ledger could not be read or written: without an entry nothing is asked.
    Store(StoreError),
}

impl From<StoreError> for NoAnswer {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// Asks. The answer comes with the entry that settles its cost, to be written with the turn.
///
/// # Errors
/// `NoAnswer`.
pub async fn ask(
    store: &Store,
    provider: &dyn Provider,
    model: &Model,
    payer: &Payer,
    request: &Request,
    patience: &Patience,
    stop: &CancellationToken,
) -> Result<(Spoken, Entry), NoAnswer> {
    let input = window::size_of(request);
    let worst = model.price.map_or(0, |p| p.at_worst(input, u64::from(request.max_tokens)));
    let mut attempt = 1;
    loop {
        let month = spend::month(Utc::now());
        let question =
            Question { month, agent: payer.agent.clone(), model: model.name.clone(), task: payer.task.clone(), worst, cap: payer.cap };
        let id = match store.ledger_ask(question).await? {
            Word::Ask(id) => id,
            Word::OverCap { spent } => {
                tell(store, payer, 100, spent).await;
                return Err(NoAnswer::OverBudget { spent, worst, cap: payer.cap.unwrap_or(0) });
            }
        };
        let began = Instant::now();
        let answer = tokio::select! {
            answer = listen(provider.ask(request.clone()), model.timeout.saturating_mul(5)) => answer,
            () = stop.cancelled() => {
                store.ledger_lost(id).await?;
                return Err(NoAnswer::Stopped);
            }
        };
        let error = match answer {
            Ok(spoken) => {
                let usage = spoken.usage.unwrap_or_else(|| estimated(input, &spoken));
                let micro_usd = model.price.map_or(0, |p| p.of(&usage));
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok((spoken, Entry { id, usage, micro_usd, millis }));
            }
            Err(e) => e,
        };
        if error.may_cost() {
            store.ledger_lost(id).await?;
        } else {
            store.ledger_failed(id).await?;
        }
        let pause = error.retry_after().unwrap_or_else(|| patience.pause(attempt));
        if !error.may_pass() || attempt >= patience.tries || pause > patience.most {
            return Err(NoAnswer::Provider(error));
        }
        tracing::warn!(model = model.name, task = %payer.task, attempt, error = %error, pause_ms = pause.as_millis(), "the model is asked again");
        attempt += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Err(NoAnswer::Stopped),
        }
    }
}

/// Tokens of an answer whose provider did not count them.
fn estimated(input: u64, spoken: &Spoken) -> Usage {
    let calls = spoken.calls.iter().map(|c| window::weight(&c.tool) + window::weight(&c.input.to_string())).sum::<usize>();
    let written = window::weight(&spoken.text) + calls;
    Usage { input, output: window::tokens(written), ..Usage::default() }
}

/// Tells, once a month each, that half, four fifths or all of the budget is spent.
pub async fn watch_budget(store: &Store, payer: &Payer) {
    let Some(cap) = payer.cap else { return };
    let spent = match store.spent_by(&spend::month(Utc::now()), &payer.agent).await {
        Ok(spent) => spent,
        Err(e) => return tracing::error!(agent = %payer.agent, error = %e, "what the agent spent could not be read"),
    };
    for share in SHARES {
        if u128::from(spent) * 100 >= u128::from(cap) * u128::from(share) {
            tell(store, payer, share, spent).await;
        }
    }
}

/// Recorded first and noted as told after: told twice after a crash between is better than never.
async fn tell(store: &Store, payer: &Payer, percent: u32, spent: u64) {
    let (now, agent, cap) = (Utc::now(), payer.agent.as_str(), payer.cap.unwrap_or(0));
    let month = spend::month(now);
    let told = async {
        if store.budget_told(&month, &payer.agent, percent).await? {
            return Ok(());
        }
        let detail =
            json!({"agent": agent, "month": month, "percent": percent, "spent_usd": spend::dollars(spent), "cap_usd": spend::dollars(cap)});
        store.audit_event("supervisor", "budget_share", None, &detail, now).await?;
        tracing::warn!(agent, percent, spent = spend::dollars(spent), cap = spend::dollars(cap), "an agent's budget of the month");
        store.tell_budget(&month, &payer.agent, percent).await
    };
    if let Err(e) = told.await {
        tracing::error!(agent, percent, error = %e, "a share of a budget could not be recorded");
    }
}
