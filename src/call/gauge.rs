//! How many calls an agent makes in a minute, whatever becomes of them: counted first, before arguments are read and anything is done or written, since what
//! is denied or cannot be read costs as well. What is refused here leaves one row a minute, which counts the others. Deliberately absent: the hourly limits
//! of rules and what survives a restart (`store::audit` counts both in the row's own transaction).

use crate::gate::RateLimit;
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

/// Calls by agent.
#[derive(Debug, Default)]
pub struct Gauge {
    agents: Mutex<BTreeMap<String, Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Calls let through within the window, oldest first; never more than the limit.
    calls: VecDeque<DateTime<Utc>>,
    /// When a refusal was last written down.
    told: Option<DateTime<Utc>>,
    /// Refused since, without a row.
    untold: u64,
}

/// A call too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    /// Seconds until one fits again.
    pub retry_after_s: u64,
    /// Whether this refusal is written down, with how many before it were not.
    pub told: Option<u64>,
}

impl Gauge {
    /// Nothing counted yet.
    pub const fn new() -> Self {
        Self { agents: Mutex::new(BTreeMap::new()) }
    }

    /// Counts a call, or refuses it.
    ///
    /// # Errors
    /// `TooMany`; such a call does not count.
    pub fn count(&self, agent: &str, limit: &RateLimit, now: DateTime<Utc>) -> Result<(), TooMany> {
        let window = TimeDelta::seconds(i64::from(limit.window_s));
        let mut agents = self.agents.lock().expect("no panic while held");
        let seen = agents.entry(agent.to_owned()).or_default();
        while seen.calls.front().is_some_and(|at| now - *at >= window) {
            seen.calls.pop_front();
        }
        if seen.calls.len() < limit.max as usize {
            seen.calls.push_back(now);
            return Ok(());
        }
        let fits = seen.calls.front().map_or(now, |at| *at + window);
        let retry_after_s = u64::try_from((fits - now).num_milliseconds()).unwrap_or(0).div_ceil(1000).max(1);
        if seen.told.is_some_and(|at| now - at < window) {
            seen.untold += 1;
            return Err(TooMany { retry_after_s, told: None });
        }
        seen.told = Some(now);
        Err(TooMany { retry_after_s, told: Some(std::mem::take(&mut seen.untold)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_holds_so_many_calls_and_one_row_for_those_too_many() {
        let gauge = Gauge::default();
        let limit = RateLimit { key: "a/*".into(), max: 2, window_s: 60 };
        let at = |s: i64| DateTime::UNIX_EPOCH + TimeDelta::seconds(s);
        let count = |agent: &str, s| gauge.count(agent, &limit, at(s));
        assert_eq!((count("a", 0), count("a", 30)), (Ok(()), Ok(())));
        assert_eq!(count("a", 31), Err(TooMany { retry_after_s: 29, told: Some(0) }));
        assert_eq!(count("a", 32), Err(TooMany { retry_after_s: 28, told: None }));
        assert_eq!(count("a", 33), Err(TooMany { retry_after_s: 27, told: None }));
        assert_eq!(count("b", 33), Ok(()), "each agent has its own minute");
        assert_eq!(count("a", 60), Ok(()), "the first has left the window");
        assert_eq!(count("a", 89), Err(TooMany { retry_after_s: 1, told: None }));
        assert_eq!(count("a", 90), Ok(()));
        assert_eq!(count("a", 91), Err(TooMany { retry_after_s: 29, told: Some(3) }));
    }
}
