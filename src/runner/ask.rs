//! Asks a model once: enters the most it can cost against the cap, asks, and asks again after a pause where that can help. Deliberately absent: the
//! conversation, and what is done with the answer.

use super::hands::Away;
use super::journal::{Counted, Journal, Word};
use super::models::Model;
use super::provider::{Provider, ProviderError, Request, Spoken, listen};
use super::window;
use crate::model::spend::Usage;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

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
    Away(Away),
}

impl From<Away> for NoAnswer {
    fn from(e: Away) -> Self {
        Self::Away(e)
    }
}

/// Tokens a question may be at most: bytes say it roughly only (base64 and identifiers have two bytes a token, a provider adds words of its own for tools),
/// so what the last one was thought to be and was counts, and half as much again where nothing is known. Pure.
pub fn generously(estimate: u64, before: Option<(u64, u64)>) -> u64 {
    match before {
        Some((thought, was)) if thought > 0 && was > thought => {
            u64::try_from(u128::from(estimate) * u128::from(was) / u128::from(thought)).unwrap_or(u64::MAX)
        }
        Some(_) => estimate,
        None => estimate.saturating_add(estimate / 2),
    }
}

/// Asks. The answer comes with what settles its cost, to be written with the turn. `worst`: tokens the question may be at most.
///
/// # Errors
/// `NoAnswer`.
pub async fn ask(
    journal: &dyn Journal,
    provider: &dyn Provider,
    model: &Model,
    request: &Request,
    worst: u64,
    patience: &Patience,
    stop: &CancellationToken,
) -> Result<(Spoken, Counted), NoAnswer> {
    let input = window::size_of(request);
    let mut attempt = 1;
    loop {
        let id = match journal.question(worst, request.max_tokens).await? {
            Word::Ask(id) => id,
            Word::OverCap { spent, worst, cap } => return Err(NoAnswer::OverBudget { spent, worst, cap }),
        };
        let began = Instant::now();
        let answer = tokio::select! {
            answer = listen(provider.ask(request.clone()), model.timeout.saturating_mul(5)) => answer,
            () = stop.cancelled() => {
                journal.unanswered(id, true).await?;
                return Err(NoAnswer::Stopped);
            }
        };
        let error = match answer {
            Ok(spoken) => {
                let usage = spoken.usage.unwrap_or_else(|| estimated(input, &spoken));
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok((spoken, Counted { id, usage, millis }));
            }
            Err(e) => e,
        };
        journal.unanswered(id, error.may_cost()).await?;
        let pause = error.retry_after().unwrap_or_else(|| patience.pause(attempt));
        if !error.may_pass() || attempt >= patience.tries || pause > patience.most {
            return Err(NoAnswer::Provider(error));
        }
        tracing::warn!(model = model.name, attempt, error = %error, pause_ms = pause.as_millis(), "the model is asked again");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_counts_for_what_the_last_one_turned_out_to_be() {
        assert_eq!(generously(1_000, None), 1_500);
        assert_eq!(generously(1_000, Some((500, 700))), 1_400);
        assert_eq!(generously(1_000, Some((500, 300))), 1_000, "fewer than thought is no reason to hope");
        assert_eq!((generously(u64::MAX, Some((1, 2))), generously(10, Some((0, 5)))), (u64::MAX, 10));
    }
}
