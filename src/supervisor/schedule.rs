//! What is due by the clock: backups, expired approvals, checkpoints of the audit log, histories that lag behind.

use crate::call::House;
use crate::model::release::StackRecord;
use chrono::{DateTime, Local, Utc};
use croner::Cron;
use serde_json::json;
use std::str::FromStr;
use std::sync::Arc;

/// When stacks with data are backed up unless their file or the configuration says otherwise.
pub const DEFAULT_BACKUP: &str = "17 3 * * *";

/// One round. Each part reports its own failure and does not keep the others from running.
pub async fn tick(house: &Arc<House>) {
    let now = Utc::now();
    if let Err(e) = house.store.approvals(true, now).await {
        tracing::error!(error = %e, "expired approvals could not be closed");
    }
    if let Err(e) = house.store.project_history().await {
        tracing::error!(error = %e, "the agents' histories could not be brought up to date");
    }
    if let Err(e) = checkpoint(house, now).await {
        tracing::error!(error = %e, "the audit checkpoint could not be written");
    }
    match house.store.stacks().await {
        Ok(stacks) => {
            for stack in stacks {
                if let Err(e) = backup(house, &stack, now).await {
                    tracing::warn!(stack = %stack.name, error = %e, "the scheduled backup did not run");
                }
            }
        }
        Err(e) => tracing::error!(error = %e, "the stacks could not be read"),
    }
}

/// A signed checkpoint every ten minutes, when there is anything new.
async fn checkpoint(house: &House, now: DateTime<Utc>) -> Result<(), crate::store::StoreError> {
    const KEY: &str = "audit:checkpoint";
    let last = house.store.value(KEY).await?;
    if noted(last.as_ref(), now).is_some_and(|t| now - t < chrono::TimeDelta::minutes(10)) {
        return Ok(());
    }
    house.store.audit_checkpoint(now).await?;
    house.store.set_value(KEY, &json!({"at": now})).await
}

/// Backs a stack up when its schedule has come due since the last run; a missed run is caught up once.
async fn backup(house: &Arc<House>, stack: &StackRecord, now: DateTime<Utc>) -> Result<(), String> {
    let Some(number) = stack.current else { return Ok(()) };
    if house.backups.is_none() || house.executor.holding(&stack.name).is_some() {
        return Ok(());
    }
    let release = house.store.release(&stack.name, number).await.map_err(|e| e.to_string())?;
    let Some(release) = release.filter(|r| r.spec.volumes.values().any(|v| !v.external)) else { return Ok(()) };
    let settings = release.spec.settings.backup.clone().unwrap_or_default();
    if settings.enable == Some(false) {
        return Ok(());
    }
    let configured = house.config.settings.backup_schedule.clone();
    let schedule = settings.schedule.or(configured).unwrap_or_else(|| DEFAULT_BACKUP.into());
    if schedule == "off" {
        return Ok(());
    }
    let key = format!("backup:{}", stack.name);
    let last = house.store.value(&key).await.map_err(|e| e.to_string())?;
    let Some(last) = noted(last.as_ref(), now) else {
        return house.store.set_value(&key, &json!({"at": now})).await.map_err(|e| e.to_string());
    };
    if !due(&schedule, last, now)? {
        return Ok(());
    }
    // Noted before it runs: a backup that fails is reported and tried at its next time, not every round.
    house.store.set_value(&key, &json!({"at": now})).await.map_err(|e| e.to_string())?;
    super::call(house, "backup", json!({"stack": stack.name, "reason": "scheduled", "wait": false}))
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// The moment a value was noted at. One later than now is from before the clock was set back: it counts as none, and what is noted next is now.
pub(super) fn noted(value: Option<&serde_json::Value>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let at = value.and_then(|v| v["at"].as_str()).and_then(|t| t.parse::<DateTime<Utc>>().ok());
    at.filter(|t| *t <= now)
}

/// Whether now lies within so many minutes after a time of the schedule. Pure.
///
/// # Errors
/// A sentence when the schedule is not valid.
pub fn within(schedule: &str, minutes: u32, now: DateTime<Utc>) -> Result<bool, String> {
    due(schedule, now - chrono::TimeDelta::minutes(i64::from(minutes)), now)
}

/// Whether a cron schedule (five fields, the supervisor's time zone) has a time in `(last, now]`. Pure.
///
/// # Errors
/// A sentence when the schedule is not valid.
pub fn due(schedule: &str, last: DateTime<Utc>, now: DateTime<Utc>) -> Result<bool, String> {
    let cron = Cron::from_str(schedule).map_err(|e| format!("schedule {schedule:?}: {e}"))?;
    let next = cron.find_next_occurrence(&last.with_timezone(&Local), false).map_err(|e| format!("schedule {schedule:?}: {e}"))?;
    Ok(next.with_timezone(&Utc) <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_later_than_now_is_from_before_the_clock_was_set_back() {
        let at = |s: &str| s.parse::<DateTime<Utc>>().unwrap();
        let value = json!({"at": "2026-01-01T10:00:00Z"});
        assert_eq!(noted(Some(&value), at("2026-01-01T10:05:00Z")), Some(at("2026-01-01T10:00:00Z")));
        assert_eq!(noted(Some(&value), at("2026-01-01T09:59:00Z")), None);
        assert_eq!(noted(None, at("2026-01-01T09:59:00Z")), None);
    }

    #[test]
    fn a_missed_time_is_due_once() {
        let at = |s: &str| s.parse::<DateTime<Utc>>().unwrap();
        assert_eq!(due("0 * * * *", at("2026-01-01T10:05:00Z"), at("2026-01-01T10:59:00Z")), Ok(false));
        assert_eq!(due("0 * * * *", at("2026-01-01T10:05:00Z"), at("2026-01-01T14:01:00Z")), Ok(true));
        assert_eq!(due("0 * * * *", at("2026-01-01T14:01:00Z"), at("2026-01-01T14:02:00Z")), Ok(false));
        assert_eq!(within("0 * * * *", 30, at("2026-01-01T10:29:00Z")), Ok(true));
        assert_eq!(within("0 * * * *", 30, at("2026-01-01T10:31:00Z")), Ok(false));
        assert!(due("every day", at("2026-01-01T14:01:00Z"), at("2026-01-01T14:02:00Z")).is_err());
    }
}
