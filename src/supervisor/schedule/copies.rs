//! Copies of the repository that are due: after each backup or by a schedule of their own, and again a while after a failure. Deliberately absent: what is copied.

use super::{due, noted};
use crate::call::House;
use crate::model::ids::OperationId;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use std::sync::Arc;

/// Before one that failed is tried again.
const AGAIN: TimeDelta = TimeDelta::minutes(15);
/// Rest after a backup before its copy: stacks that are backed up together are copied together.
const REST: TimeDelta = TimeDelta::minutes(1);

/// What is known of a copy when it is asked whether it is due.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Known {
    /// When a snapshot was last recorded: one that is long in the reading is missing in a copy made meanwhile.
    newest: Option<DateTime<Utc>>,
    /// When the last run that passed was begun.
    good: Option<DateTime<Utc>>,
    /// When it was last tried, whatever came of it.
    tried: Option<DateTime<Utc>>,
}

/// Whether a copy is due. Pure.
fn is_due(schedule: Option<&str>, known: Known, now: DateTime<Utc>) -> Result<bool, String> {
    let Some(newest) = known.newest.filter(|_| schedule != Some("off")) else { return Ok(false) };
    let failed = known.tried.filter(|t| known.good.is_none_or(|g| g < *t));
    if let Some(tried) = failed {
        return Ok(now - tried >= AGAIN);
    }
    match (schedule, known.good) {
        (Some(schedule), Some(good)) => due(schedule, good, now),
        (Some(_), None) => Ok(true),
        (None, good) => Ok(good.is_none_or(|g| newest > g) && now - newest >= REST),
    }
}

/// Begins what is due; each reports its own failure.
pub(super) async fn tick(house: &Arc<House>, now: DateTime<Utc>) {
    let names: Vec<String> = house.backups.iter().flat_map(|h| h.copies.iter()).map(|c| c.name.clone()).collect();
    for name in names {
        if let Err(e) = one(house, &name, now).await {
            tracing::warn!(copy = name, error = %e, "a copy of the backups was not begun");
        }
    }
}

async fn one(house: &Arc<House>, name: &str, now: DateTime<Utc>) -> Result<(), String> {
    let key = format!("copy:{name}");
    let note = house.store.value(&key).await.map_err(|e| e.to_string())?;
    if at_work(house, note.as_ref()).await? {
        return Ok(());
    }
    let newest = house.store.last_backup_recorded().await.map_err(|e| e.to_string())?.filter(|t| *t <= now);
    let (last, good) = house.store.last_copy(name).await.map_err(|e| e.to_string())?;
    let tried = noted(note.as_ref(), now).max(last.map(|l| l.at).filter(|t| *t <= now));
    // What passed was noted a moment before it was begun.
    let good = good.map(|g| g.at).filter(|t| *t <= now);
    let schedule = house.config.settings.backup.copies.get(name).and_then(|c| c.schedule.as_deref());
    if !is_due(schedule, Known { newest, good, tried }, now)? {
        return Ok(());
    }
    house.store.set_value(&key, &json!({"at": now})).await.map_err(|e| e.to_string())?;
    let begun = crate::supervisor::call(house, "backup", json!({"copy": name, "reason": "scheduled", "wait": false})).await;
    let begun = begun.map_err(|e| e.to_string())?;
    let operation = begun["operation_id"].clone();
    house.store.set_value(&key, &json!({"at": now, "operation": operation})).await.map_err(|e| e.to_string())
}

/// Whether the run that was begun last has not ended yet.
async fn at_work(house: &House, note: Option<&Value>) -> Result<bool, String> {
    let Some(id) = note.and_then(|n| n["operation"].as_str()).and_then(|id| OperationId::new(id).ok()) else { return Ok(false) };
    Ok(house.store.operation(&id).await.map_err(|e| e.to_string())?.is_some_and(|o| !o.state.is_terminal()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_due_after_each_backup_and_again_a_while_after_a_failure() {
        let now: DateTime<Utc> = "2026-01-01T12:00:00Z".parse().unwrap();
        let ago = |m: i64| Some(now - TimeDelta::minutes(m));
        let is = |newest, good, tried| is_due(None, Known { newest, good, tried }, now).unwrap();
        assert!(!is(None, None, None), "nothing to copy");
        assert!(is(ago(5), None, None));
        assert!(!is(Some(now), None, None), "others may be backed up just now");
        assert!(!is(ago(60), ago(30), ago(30)), "all of it is there");
        assert!(is(ago(5), ago(30), ago(30)), "a newer one is not");
        assert!(!is(ago(60), ago(120), ago(14)), "failed just now");
        assert!(is(ago(60), ago(120), ago(15)));
        assert!(!is(ago(60), None, ago(14)), "never good, failed just now");
    }

    #[test]
    fn a_schedule_of_its_own_is_kept_and_a_failure_does_not_wait_for_its_next_time() {
        let now: DateTime<Utc> = "2026-01-01T12:00:00Z".parse().unwrap();
        let ago = |m: i64| Some(now - TimeDelta::minutes(m));
        let is = |s, good, tried| is_due(Some(s), Known { newest: ago(5), good, tried }, now).unwrap();
        assert!(is("0 * * * *", None, None), "the first at once");
        assert!(is("0 * * * *", ago(30), ago(30)));
        assert!(!is("30 * * * *", ago(20), ago(20)));
        assert!(is("30 * * * *", ago(600), ago(20)), "it failed");
        assert!(!is("off", ago(600), ago(600)), "by hand only");
        assert!(!is("off", ago(600), ago(20)), "also after one by hand has failed");
        assert!(is_due(Some("never"), Known { newest: ago(5), good: ago(9), tried: None }, now).is_err());
    }
}
