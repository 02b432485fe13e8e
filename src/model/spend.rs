//! What a model was paid: tokens, prices, money. Whole numbers throughout; money is in millionths of a US dollar, rounded up once an answer.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Tokens of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Read, cached ones included.
    pub input: u64,
    /// Of `input`, read from the provider's cache.
    pub cached: u64,
    /// Of `input`, written to the provider's cache.
    pub cache_written: u64,
    /// Written.
    pub output: u64,
}

/// Millionths of a US dollar per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Read.
    pub input: u64,
    /// Read from the cache.
    pub cached: u64,
    /// Written to the cache.
    pub cache_write: u64,
    /// Written.
    pub output: u64,
}

impl Price {
    /// What an answer costs, rounded up to a millionth of a dollar.
    pub fn of(&self, usage: &Usage) -> u64 {
        let plain = usage.input.saturating_sub(usage.cached).saturating_sub(usage.cache_written);
        let parts =
            [(plain, self.input), (usage.cached, self.cached), (usage.cache_written, self.cache_write), (usage.output, self.output)];
        let sum: u128 = parts.iter().map(|(tokens, price)| u128::from(*tokens) * u128::from(*price)).sum();
        u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// The most a question of so many tokens can cost, with the longest answer.
    pub fn at_worst(&self, input: u64, max_output: u64) -> u64 {
        let dearest = self.input.max(self.cache_write).max(self.cached);
        Self { input: dearest, ..*self }.of(&Usage { input, output: max_output, ..Usage::default() })
    }
}

/// The month money is counted in: UTC, `2026-11`.
pub fn month(at: DateTime<Utc>) -> String {
    at.format("%Y-%m").to_string()
}

/// An amount as people read it: dollars with as many decimals as it has, two at least.
pub fn dollars(micro_usd: u64) -> String {
    let text = format!("{}.{:06}", micro_usd / 1_000_000, micro_usd % 1_000_000);
    let short = text.trim_end_matches('0');
    let point = text.find('.').unwrap_or(0);
    text[..short.len().max(point + 3)].to_owned()
}

/// What one agent spent on one model in one month.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Month.
    pub month: String,
    /// Agent.
    pub agent: String,
    /// Model, by its name in the configuration.
    pub model: String,
    /// Answers.
    pub answers: u64,
    /// Questions that failed and cost nothing.
    pub errors: u64,
    /// Answers that never came, counted at the most they can have cost.
    pub lost: u64,
    /// Tokens read.
    pub tokens_in: u64,
    /// Of these, from the provider's cache.
    pub tokens_cached: u64,
    /// Tokens written.
    pub tokens_out: u64,
    /// Money, millionths of a dollar, questions under way included.
    pub micro_usd: u64,
    /// Time waited for answers, milliseconds.
    pub millis: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price { input: 3_000_000, cached: 300_000, cache_write: 3_750_000, output: 15_000_000 };

    #[test]
    fn an_answer_costs_exactly_what_its_tokens_cost_rounded_up_once() {
        let usage = Usage { input: 10_000, cached: 6_000, cache_written: 1_000, output: 333 };
        // 3000 * 3 + 6000 * 0.3 + 1000 * 3.75 + 333 * 15 = 9000 + 1800 + 3750 + 4995 millionths.
        assert_eq!(PRICE.of(&usage), 19_545);
        assert_eq!(PRICE.of(&Usage { cached: 1, input: 1, ..Usage::default() }), 1, "0.3 millionths round up");
        assert_eq!(PRICE.of(&Usage::default()), 0);
    }

    #[test]
    fn the_worst_case_is_never_below_what_it_costs() {
        let worst = PRICE.at_worst(1_000, 100);
        for (cached, cache_written, output) in [(0, 0, 0), (1_000, 0, 100), (0, 1_000, 100), (500, 500, 99)] {
            assert!(PRICE.of(&Usage { input: 1_000, cached, cache_written, output }) <= worst);
        }
        assert_eq!(worst, 1_000 * 375 / 100 + 100 * 15);
    }

    #[test]
    fn amounts_read_as_dollars() {
        assert_eq!([0, 19_545, 1_500_000, 20_000_000, 1].map(dollars), ["0.00", "0.019545", "1.50", "20.00", "0.000001"]);
    }
}
