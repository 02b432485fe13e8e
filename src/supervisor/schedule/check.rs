//! Looks at the repository every day, and at each of its copies every week: the structure and one part of the data, the next one each time, so that none is left out
//! on a host that is off on the same day of each week. Deliberately absent: what is looked at.

use super::{Due, run};
use crate::call::House;
use crate::tools::verify_backup::PARTS;
use chrono::{DateTime, Utc};
use serde_json::json;
use std::sync::Arc;

/// The repository itself.
const DAILY: &str = "43 4 * * *";
/// A copy: reading from another host may cost money.
const WEEKLY: &str = "13 6 * * 1";

/// Each reports its own failure.
pub(super) async fn tick(house: &Arc<House>, now: DateTime<Utc>) {
    if let Err(e) = repository(house, now).await {
        tracing::warn!(error = %e, "the daily check of the backup repository did not run");
    }
    let names: Vec<String> = house.backups.iter().flat_map(|h| h.copies.iter()).map(|c| c.name.clone()).collect();
    for name in names {
        if let Err(e) = copy(house, &name, now).await {
            tracing::warn!(copy = name, error = %e, "the weekly check of a copy of the backups did not run");
        }
    }
}

/// Once it holds anything.
async fn repository(house: &Arc<House>, now: DateTime<Utc>) -> Result<(), String> {
    if house.backups.is_none() || house.store.backups(None, None, 1).await.map_err(|e| e.to_string())?.is_empty() {
        return Ok(());
    }
    look(house, "check:repository", DAILY, None, now).await
}

/// Once it was good: before, what is to be said of it is why it was not.
async fn copy(house: &Arc<House>, name: &str, now: DateTime<Utc>) -> Result<(), String> {
    if house.store.last_copy(name).await.map_err(|e| e.to_string())?.1.is_none() {
        return Ok(());
    }
    look(house, &format!("check:copy:{name}"), WEEKLY, Some(name), now).await
}

async fn look(house: &Arc<House>, key: &str, schedule: &str, copy: Option<&str>, now: DateTime<Utc>) -> Result<(), String> {
    let turn = format!("{key}:part");
    let last = house.store.value(&turn).await.map_err(|e| e.to_string())?;
    let part = next(last.and_then(|v| v["part"].as_u64()));
    let mut input = json!({"repository_part": part, "wait": false});
    if let Some(copy) = copy {
        input["copy"] = json!(copy);
    }
    if run(house, Due { key: key.to_owned(), schedule, tool: "verify_backup", input, at_once: false }, now).await? {
        house.store.set_value(&turn, &json!({"part": part})).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The part after that one. Pure.
fn next(last: Option<u64>) -> u64 {
    last.map_or(1, |last| last % u64::from(PARTS) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_turn() {
        let mut last = None;
        let turns: Vec<u64> = (0..9)
            .map(|_| {
                last = Some(next(last));
                last.unwrap_or_default()
            })
            .collect();
        assert_eq!(turns, [1, 2, 3, 4, 5, 6, 7, 1, 2]);
    }
}
