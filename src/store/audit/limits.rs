//! Sliding-window counters beside the log. A call counts at the moment of its intent; a refused one does not count.

use crate::gate::RateLimit;
use crate::store::fault::Sql;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};

/// The limit that stands in the way the longest, and the seconds until a call fits again.
pub(super) fn exceeded(c: &Connection, limits: &[RateLimit], now: DateTime<Utc>) -> Sql<Option<(RateLimit, u64)>> {
    let mut worst: Option<(RateLimit, u64)> = None;
    for limit in limits {
        let used = used(c, limit, now)?;
        if used < i64::from(limit.max) {
            continue;
        }
        // The call fits when so many have left the window that one less than `max` is in it.
        let leaves = oldest(c, limit, now, used - i64::from(limit.max))?;
        let wait_ms = leaves.map_or(window_ms(limit), |at| at + window_ms(limit) - now.timestamp_millis());
        let wait_s = u64::try_from(wait_ms).unwrap_or(0).div_ceil(1000).max(1);
        if worst.as_ref().is_none_or(|(_, s)| *s < wait_s) {
            worst = Some((limit.clone(), wait_s));
        }
    }
    Ok(worst)
}

/// Counts a call under every limit, and drops what has left the windows.
pub(super) fn count(c: &Connection, limits: &[RateLimit], now: DateTime<Utc>) -> Sql<()> {
    for limit in limits {
        forget(c, limit, now)?;
        insert(c, limit, now)?;
    }
    Ok(())
}

/// Takes a call that was counted at that moment out of the limits again.
pub(super) fn forgive(c: &Connection, limits: &[RateLimit], at: DateTime<Utc>) -> Sql<()> {
    for limit in limits {
        c.prepare_cached(
            "DELETE FROM rate WHERE rowid IN (SELECT rowid FROM rate WHERE key = ?1 AND window_s = ?2 AND at_ms = ?3 LIMIT 1)",
        )?
        .execute(params![limit.key, limit.window_s, at.timestamp_millis()])?;
    }
    Ok(())
}

fn window_ms(limit: &RateLimit) -> i64 {
    i64::from(limit.window_s) * 1000
}

/// The kept total without those that have left the window since the last call was counted: what is looked at is the few that left, not all that are in it.
fn used(c: &Connection, limit: &RateLimit, now: DateTime<Utc>) -> Sql<i64> {
    let mut statement = c.prepare_cached(
        "SELECT coalesce((SELECT n FROM rate_total WHERE key = ?1 AND window_s = ?2), 0)
              - (SELECT count(*) FROM rate WHERE key = ?1 AND window_s = ?2 AND at_ms <= ?3)",
    )?;
    Ok(statement.query_row(params![limit.key, limit.window_s, now.timestamp_millis() - window_ms(limit)], |r| r.get(0))?)
}

fn oldest(c: &Connection, limit: &RateLimit, now: DateTime<Utc>, skip: i64) -> Sql<Option<i64>> {
    let mut statement =
        c.prepare_cached("SELECT at_ms FROM rate WHERE key = ?1 AND window_s = ?2 AND at_ms > ?3 ORDER BY at_ms LIMIT 1 OFFSET ?4")?;
    let params = params![limit.key, limit.window_s, now.timestamp_millis() - window_ms(limit), skip];
    Ok(statement.query_row(params, |r| r.get(0)).optional()?)
}

fn forget(c: &Connection, limit: &RateLimit, now: DateTime<Utc>) -> Sql<usize> {
    let mut statement = c.prepare_cached("DELETE FROM rate WHERE key = ?1 AND window_s = ?2 AND at_ms <= ?3")?;
    Ok(statement.execute(params![limit.key, limit.window_s, now.timestamp_millis() - window_ms(limit)])?)
}

fn insert(c: &Connection, limit: &RateLimit, now: DateTime<Utc>) -> Sql<()> {
    let mut statement = c.prepare_cached("INSERT INTO rate (key, window_s, at_ms) VALUES (?1, ?2, ?3)")?;
    super::rows::one("rate counter", statement.execute(params![limit.key, limit.window_s, now.timestamp_millis()])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrate::AUDIT;
    use crate::store::tests::at;

    fn in_window(c: &Connection, limit: &RateLimit, now: DateTime<Utc>) -> i64 {
        let sql = "SELECT count(*) FROM rate WHERE key = ?1 AND window_s = ?2 AND at_ms > ?3";
        c.query_row(sql, params![limit.key, limit.window_s, now.timestamp_millis() - window_ms(limit)], |r| r.get(0)).unwrap()
    }

    #[test]
    fn the_kept_total_is_what_counting_anew_would_give_also_for_calls_from_before_it_was_kept() {
        let c = Connection::open_in_memory().unwrap();
        let limits = [RateLimit { key: "a".into(), max: 9, window_s: 60 }, RateLimit { key: "a".into(), max: 9, window_s: 7 }];
        for step in &AUDIT.steps[..2] {
            c.execute_batch(step).unwrap();
        }
        c.execute("INSERT INTO rate (key, window_s, at_ms) VALUES ('a', 60, ?1), ('b', 60, ?1)", [at(0).timestamp_millis()]).unwrap();
        for step in &AUDIT.steps[2..] {
            c.execute_batch(step).unwrap();
        }
        for n in 0..100_i64 {
            // Calls come in bursts with gaps, some are forgiven, the clock goes back once.
            let now = at(if n == 60 { 20 } else { n * n % 13 + n * 2 });
            count(&c, &limits[..usize::from(n % 3 != 0) + 1], now).unwrap();
            if n % 5 == 0 {
                forgive(&c, &limits, now).unwrap();
            }
            for limit in &limits {
                assert_eq!(used(&c, limit, now).unwrap(), in_window(&c, limit, now), "{limit:?} at call {n}");
                assert_eq!(used(&c, limit, at(500)).unwrap(), 0);
            }
        }
    }
}
