//! What is due by the clock: backups, expired approvals, checkpoints of the audit log.

mod check;
mod copies;

use crate::call::error::ErrorCode;
use crate::call::{House, sources};
use crate::executor::backup::interrupted;
use crate::model::ids::OperationId;
use crate::model::release::StackRecord;
use chrono::{DateTime, Local, TimeZone, Utc};
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
    if let Err(e) = checkpoint(house, now).await {
        tracing::error!(error = %e, "the audit checkpoint could not be written");
    }
    if let Err(e) = own(house, now).await {
        tracing::warn!(error = %e, "the supervisor's own databases were not backed up");
    }
    check::tick(house, now).await;
    copies::tick(house, now).await;
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

/// What is done with data by the clock, and the key under which its last run is noted.
struct Due<'a> {
    key: String,
    schedule: &'a str,
    tool: &'static str,
    input: serde_json::Value,
    /// When it never ran: at once, or at its next time.
    at_once: bool,
}

/// Weekly: a rehearsed restore of the newest snapshots.
const DRILL: &str = "7 5 * * 0";
/// Weekly: the newest snapshots as plain files.
const EXPORT: &str = "37 5 * * 0";
/// A stack's first snapshot is taken when its release has been good for so long: whoever deploys it may deploy again at once.
const FIRST_AFTER: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// The supervisor's own databases, keys and memories.
async fn own(house: &Arc<House>, now: DateTime<Utc>) -> Result<(), String> {
    let schedule = house.config.settings.backup_schedule.clone().unwrap_or_else(|| DEFAULT_BACKUP.into());
    if house.backups.is_none() || schedule == "off" {
        return Ok(());
    }
    let input = json!({"reason": "scheduled", "wait": false});
    run(house, Due { key: "backup:instance".into(), schedule: &schedule, tool: "backup", input, at_once: false }, now).await.map(|_| ())
}

/// Backups, drills and exports of a stack whose time has come since their last run; a missed run is caught up once.
async fn backup(house: &Arc<House>, stack: &StackRecord, now: DateTime<Utc>) -> Result<(), String> {
    let Some(number) = stack.current else { return Ok(()) };
    if house.backups.is_none() || house.executor.holding(&stack.name).is_some() {
        return Ok(());
    }
    let release = house.store.release(&stack.name, number).await.map_err(|e| e.to_string())?;
    let Some(release) = release else { return Ok(()) };
    let settings = sources::of_stack(&house.config, &release.spec);
    let mut failed = vec![];
    // One that has just begun holds the stack. What else is due begins when it has ended.
    let free = || house.executor.holding(&stack.name).is_none();
    let own = sources::own_schedules(house, &release);
    for (service, schedule) in own.iter().filter(|(_, s)| *s != "off") {
        let input = json!({"stack": stack.name, "service": service, "reason": "scheduled", "wait": false});
        if !free() {
            break;
        }
        let key = format!("backup:{}/{service}", stack.name);
        failed.extend(run(house, Due { key, schedule, tool: "backup", input, at_once: true }, now).await.err());
    }
    for (volume, schedule) in sources::volume_schedules(&release).iter().filter(|(_, s)| *s != "off") {
        let input = json!({"stack": stack.name, "volume": volume, "reason": "scheduled", "wait": false});
        if !free() {
            break;
        }
        let key = format!("backup:{}/volume/{volume}", stack.name);
        failed.extend(run(house, Due { key, schedule, tool: "backup", input, at_once: true }, now).await.err());
    }
    let configured = house.config.settings.backup_schedule.clone();
    let schedule = settings.schedule.or(configured).unwrap_or_else(|| DEFAULT_BACKUP.into());
    let wanted = settings.enable != Some(false) && schedule != "off" && sources::has_data(house, &release);
    if wanted && now - release.created_at >= FIRST_AFTER && free() {
        let input = json!({"stack": stack.name, "reason": "scheduled", "wait": false});
        let due = Due { key: format!("backup:{}", stack.name), schedule: &schedule, tool: "backup", input, at_once: true };
        failed.extend(run(house, due, now).await.err());
    }
    let taken = house.store.backups(Some(&stack.name), None, 1).await.map_err(|e| e.to_string())?;
    if settings.enable != Some(false) && !taken.is_empty() {
        let drill = json!({"stack": stack.name, "probe": true, "wait": false});
        let (key, tool) = (format!("drill:{}", stack.name), "verify_backup");
        failed.extend(run(house, Due { key, schedule: DRILL, tool, input: drill, at_once: false }, now).await.err());
        let (key, tool, input) = (format!("export:{}", stack.name), "export", json!({"stack": stack.name, "wait": false}));
        failed.extend(run(house, Due { key, schedule: EXPORT, tool, input, at_once: false }, now).await.err());
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// Before a run that an end of the supervisor interrupted, or that could not begin, is made up for, and how often.
const AGAIN: chrono::TimeDelta = chrono::TimeDelta::minutes(15);
const AGAIN_MOST: u64 = 3;

/// Which try to make up for the noted run is due, when an end of the supervisor interrupted it or it never began.
async fn again(house: &House, note: Option<&serde_json::Value>, now: DateTime<Utc>) -> Result<Option<u64>, String> {
    let Some(note) = note else { return Ok(None) };
    let tries = note["again"].as_u64().unwrap_or_default();
    if tries >= AGAIN_MOST {
        return Ok(None);
    }
    if note["begun"] == false {
        return Ok(noted(Some(note), now).filter(|at| now - *at >= AGAIN).map(|_| tries + 1));
    }
    let Some(id) = note["operation"].as_str().and_then(|id| OperationId::new(id).ok()) else { return Ok(None) };
    let ended = house.store.operation(&id).await.map_err(|e| e.to_string())?.filter(interrupted).and_then(|o| o.settled_at);
    Ok(ended.filter(|e| now - *e >= AGAIN).map(|_| tries + 1))
}

/// Runs what is due; whether it was begun.
async fn run(house: &Arc<House>, what: Due<'_>, now: DateTime<Utc>) -> Result<bool, String> {
    let last = house.store.value(&what.key).await.map_err(|e| e.to_string())?;
    let (due, note) = match noted(last.as_ref(), now) {
        None => (what.at_once, true),
        Some(last) => due(what.schedule, last, now).map(|d| (d, d))?,
    };
    let again = if due { None } else { again(house, last.as_ref(), now).await? };
    let tries = again.unwrap_or_default();
    if due || again.is_some() {
        // Noted before it runs: what a kill, or the engine, keeps from beginning is tried again a few times, not every round and not only at its next time.
        let begins = json!({"at": now, "begun": false, "again": tries});
        house.store.set_value(&what.key, &begins).await.map_err(|e| e.to_string())?;
    } else {
        if note {
            house.store.set_value(&what.key, &json!({"at": now})).await.map_err(|e| e.to_string())?;
        }
        return Ok(false);
    }
    match super::call(house, what.tool, what.input).await {
        // Nothing was tried: whoever is at work ends, and then it is still due.
        Err(e) if e.code == ErrorCode::Busy => {
            let before = last.unwrap_or_default();
            house.store.set_value(&what.key, &before).await.map_err(|e| e.to_string())?;
            Err(format!("{}: {e}", what.tool))
        }
        // Written wrongly, or not allowed: the same call says the same until somebody changes that.
        Err(e)
            if matches!(e.code, ErrorCode::InvalidArgument | ErrorCode::NotFound | ErrorCode::UnknownTool)
                || forbidden(house, &e).await =>
        {
            house.store.set_value(&what.key, &json!({"at": now})).await.map_err(|e| e.to_string())?;
            Err(format!("{}: {e}", what.tool))
        }
        done => {
            let begun = done.map_err(|e| format!("{}: {e}", what.tool))?;
            let note = json!({"at": now, "operation": begun["operation_id"], "again": tries});
            house.store.set_value(&what.key, &note).await.map_err(|e| e.to_string())?;
            Ok(true)
        }
    }
}

/// Denied by a rule, and not because the house is frozen for now.
async fn forbidden(house: &House, e: &crate::call::CallError) -> bool {
    e.code == ErrorCode::Denied && matches!(crate::call::approval::frozen(&house.store).await, Ok(None))
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

/// Whether a schedule (five cron fields, or `hourly`, `daily`, `weekly`, `monthly`, the supervisor's time zone) has a time in `(last, now]`. Pure.
///
/// # Errors
/// A sentence when the schedule is not valid.
pub fn due(schedule: &str, last: DateTime<Utc>, now: DateTime<Utc>) -> Result<bool, String> {
    due_in(schedule, last, now, &Local)
}

/// [`due`] in a time zone. A time the clock jumps over is due right after the jump; one it passes twice is due once.
fn due_in<Z: TimeZone>(schedule: &str, last: DateTime<Utc>, now: DateTime<Utc>, zone: &Z) -> Result<bool, String> {
    let cron = Cron::from_str(crate::model::config::schedule_line(schedule)).map_err(|e| format!("schedule {schedule:?}: {e}"))?;
    let next = cron.find_next_occurrence(&last.with_timezone(zone), false).map_err(|e| format!("schedule {schedule:?}: {e}"))?;
    Ok(next.with_timezone(&Utc) <= now)
}

#[cfg(test)]
#[cfg(feature = "backup")]
mod together_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime};

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
        assert_eq!(due("hourly", at("2026-01-01T10:20:00Z"), at("2026-01-01T11:18:00Z")), Ok(true));
        assert!(due("every day", at("2026-01-01T14:01:00Z"), at("2026-01-01T14:02:00Z")).is_err());
    }
    /// A zone like Berlin's in 2026: one hour east, in summer two; the clock jumps on 29 March at 02:00 and goes back on 25 October at 03:00.
    #[derive(Debug, Clone, Copy)]
    struct Summer;

    impl Summer {
        fn at(utc: NaiveDateTime) -> FixedOffset {
            let change = |month, day| NaiveDate::from_ymd_opt(2026, month, day).unwrap().and_hms_opt(1, 0, 0).unwrap();
            let summer = utc >= change(3, 29) && utc < change(10, 25);
            FixedOffset::east_opt(if summer { 7200 } else { 3600 }).unwrap()
        }
    }

    impl TimeZone for Summer {
        type Offset = FixedOffset;

        fn from_offset(_: &FixedOffset) -> Self {
            Self
        }
        fn offset_from_local_date(&self, local: &NaiveDate) -> MappedLocalTime<FixedOffset> {
            self.offset_from_local_datetime(&local.and_hms_opt(12, 0, 0).unwrap())
        }
        fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> MappedLocalTime<FixedOffset> {
            let fits: Vec<FixedOffset> =
                [7200, 3600].map(|s| FixedOffset::east_opt(s).unwrap()).into_iter().filter(|o| Self::at(*local - *o) == *o).collect();
            match fits.as_slice() {
                [] => MappedLocalTime::None,
                [one] => MappedLocalTime::Single(*one),
                more => MappedLocalTime::Ambiguous(more[0], more[1]),
            }
        }
        fn offset_from_utc_date(&self, utc: &NaiveDate) -> FixedOffset {
            Self::at(utc.and_hms_opt(12, 0, 0).unwrap())
        }
        fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> FixedOffset {
            Self::at(*utc)
        }
    }

    /// How often a schedule runs when it is looked at every 20 seconds, as the loop does.
    fn runs(schedule: &str, from: &str, to: &str) -> Vec<String> {
        let (mut last, mut now, end): (DateTime<Utc>, DateTime<Utc>, DateTime<Utc>) =
            (from.parse().unwrap(), from.parse().unwrap(), to.parse().unwrap());
        let mut ran = vec![];
        while now <= end {
            if due_in(schedule, last, now, &Summer).unwrap() {
                last = now;
                ran.push(now.with_timezone(&Summer).format("%d %H:%M %z").to_string());
            }
            now += chrono::TimeDelta::seconds(20);
        }
        ran
    }

    #[test]
    fn a_nightly_run_happens_once_on_every_day_also_when_the_clock_jumps() {
        // 02:30 does not exist on 29 March and exists twice on 25 October.
        let spring = runs("30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z");
        assert_eq!(spring.iter().map(|r| &r[..2]).collect::<Vec<_>>(), ["29", "30"], "{spring:?}");
        let autumn = runs("30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
        assert_eq!(autumn.iter().map(|r| &r[..2]).collect::<Vec<_>>(), ["25", "26"], "{autumn:?}");
        assert_eq!(runs("17 3 * * *", "2026-07-01T00:00:00Z", "2026-07-02T00:00:00Z"), ["01 03:17 +0200"]);
        let hourly = runs("hourly", "2026-03-28T23:30:00Z", "2026-03-29T03:30:00Z");
        assert_eq!(hourly, ["29 01:17 +0100", "29 03:17 +0200", "29 04:17 +0200", "29 05:17 +0200"]);
    }
}
