//! Which snapshots stay: grandfather, father, son, per source, decided over what was recorded. Pure: `now` is an argument, and the answer is a list of ids.
//! Deliberately absent: removing anything.

use super::Keeping;
use crate::model::spec::Keep;
use crate::store::backup::BackupRecord;
use crate::store::kept::KeptRecord;
use chrono::{DateTime, Datelike, Local, TimeDelta, TimeZone, Utc};
use std::collections::{BTreeMap, BTreeSet};

/// Tag of snapshots taken before an update.
pub const PRE_UPDATE: &str = "pre-update";
/// Tag of a snapshot of a directory that a restored one takes the place of.
pub const PRE_RESTORE: &str = "pre-restore";
/// Snapshots with this tag are never forgotten by a schedule.
pub const KEPT: &str = "keep";
/// Snapshots before an update stay at least so long, and the newest of them whatever their age.
const PRE_UPDATE_DAYS: i64 = 7;

/// How good a snapshot is: not whole, whole, or whole and not one of those that did not come back when that was last rehearsed.
pub(super) fn rank(whole: bool, failed: bool) -> u8 {
    match (whole, failed) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => 2,
    }
}

/// Snapshots that a schedule no longer needs, oldest first. Of each source the newest whole one stays whatever the numbers say, and the newest that is good
/// beside it (`failed` are those whose last rehearsal was not), so that a source is never without one. Hours, days, weeks and months are those of `zone`.
pub fn forgettable<Z: TimeZone>(
    records: &[BackupRecord],
    keep: &Keep,
    failed: &BTreeSet<String>,
    now: DateTime<Utc>,
    zone: &Z,
) -> Vec<BackupRecord> {
    let mut sources: BTreeMap<(Option<&str>, &str), Vec<&BackupRecord>> = BTreeMap::new();
    for record in records {
        sources.entry((record.stack.as_deref(), record.volume.as_str())).or_default().push(record);
    }
    let mut out: Vec<BackupRecord> = vec![];
    for (_, mut of_source) in sources {
        of_source.sort_by_key(|r| std::cmp::Reverse(r.at));
        let stays = staying(&of_source, keep, failed, now, zone);
        out.extend(of_source.into_iter().filter(|r| !stays.contains(r.snapshot_id.as_str())).cloned());
    }
    out.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.snapshot_id.cmp(&b.snapshot_id)));
    out
}

/// [`forgettable`] in the supervisor's own time zone, each source by its own numbers.
pub fn forgettable_here(records: &[BackupRecord], keep: &Keeping, failed: &BTreeSet<String>, now: DateTime<Utc>) -> Vec<BackupRecord> {
    let of = |own: &dyn Fn(&BackupRecord) -> bool| records.iter().filter(|r| own(r)).cloned().collect::<Vec<_>>();
    let rest = of(&|r| !keep.own.contains_key(&r.volume));
    let mut out = forgettable(&rest, &keep.rest, failed, now, &Local);
    for (source, keep) in &keep.own {
        out.extend(forgettable(&of(&|r| r.volume == *source), keep, failed, now, &Local));
    }
    out.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.snapshot_id.cmp(&b.snapshot_id)));
    out
}

/// Without the snapshots that hold what is kept since a restore took its place, taken right before or found to hold it since: those stay as long as the data
/// is kept.
pub fn uncovering(mut records: Vec<BackupRecord>, kept: &[KeptRecord]) -> Vec<BackupRecord> {
    let found = |k: &KeptRecord, r: &BackupRecord| k.covered.as_deref() == Some(r.snapshot_id.as_str());
    records.retain(|r| !kept.iter().any(|k| covers(k, r) || found(k, r)));
    records
}

/// Whether a snapshot was taken of a directory right before a restored one took its place.
pub fn covers(kept: &KeptRecord, record: &BackupRecord) -> bool {
    let before = record.tags.iter().any(|t| t == PRE_RESTORE) && record.operation.as_deref() == Some(kept.operation.as_str());
    before && record.volume == kept.source
}

/// Of one source, newest first.
fn staying<'a, Z: TimeZone>(
    newest_first: &[&'a BackupRecord],
    keep: &Keep,
    failed: &BTreeSet<String>,
    now: DateTime<Utc>,
    zone: &Z,
) -> BTreeSet<&'a str> {
    let mut stays = BTreeSet::new();
    let tagged = |r: &BackupRecord, tag: &str| r.tags.iter().any(|t| t == tag);
    let whole = |r: &BackupRecord| r.state == "complete";
    let rank = |r: &BackupRecord| rank(whole(r), failed.contains(&r.snapshot_id));
    let newest = newest_first.iter().find(|r| whole(r)).or(newest_first.first());
    // Of equals the last is the greatest: the newest.
    let best = newest_first.iter().rev().max_by_key(|r| rank(r));
    stays.extend(newest.into_iter().chain(best).map(|r| r.snapshot_id.as_str()));
    stays.extend(newest_first.iter().filter(|r| tagged(r, KEPT)).map(|r| r.snapshot_id.as_str()));
    let before_updates = newest_first.iter().filter(|r| tagged(r, PRE_UPDATE)).enumerate();
    let recent = |r: &BackupRecord| now - r.at < TimeDelta::days(PRE_UPDATE_DAYS);
    stays.extend(before_updates.filter(|(n, r)| *n < keep.pre_update as usize || recent(r)).map(|(_, r)| r.snapshot_id.as_str()));
    type Period<Z> = fn(&DateTime<Z>) -> (i32, u32, u32);
    let periods: [(u32, Period<Z>); 4] = [
        (keep.hourly, |t| (t.year(), t.ordinal(), chrono::Timelike::hour(t))),
        (keep.daily, |t| (t.year(), t.ordinal(), 0)),
        (keep.weekly, |t| (t.iso_week().year(), t.iso_week().week(), 0)),
        (keep.monthly, |t| (t.year(), t.month(), 0)),
    ];
    for (most, period) in periods {
        // The newest of the best of each of the newest periods that have one; a partial one only where a period has nothing better.
        let mut best: BTreeMap<(i32, u32, u32), &BackupRecord> = BTreeMap::new();
        for record in newest_first {
            let slot = best.entry(period(&record.at.with_timezone(zone))).or_insert(record);
            if rank(record) > rank(slot) {
                *slot = record;
            }
        }
        stays.extend(best.values().rev().take(most as usize).map(|r| r.snapshot_id.as_str()));
    }
    stays
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::FixedOffset;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn record(id: &str, when: DateTime<Utc>, tags: &[&str]) -> BackupRecord {
        BackupRecord {
            snapshot_id: id.into(),
            stack: Some("shop".into()),
            volume: "data".into(),
            bytes: 1,
            added: 1,
            files: 1,
            state: "complete".into(),
            at: when,
            agent: "warden".into(),
            release: None,
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            operation: None,
            copies: vec![],
        }
    }

    fn keep(hourly: u32, daily: u32, weekly: u32, monthly: u32) -> Keep {
        Keep { hourly, daily, weekly, monthly, pre_update: 2 }
    }

    fn left(records: &[BackupRecord], keep: &Keep, now: DateTime<Utc>) -> Vec<String> {
        let gone = forgettable(records, keep, &BTreeSet::new(), now, &Utc);
        records.iter().filter(|r| !gone.contains(r)).map(|r| r.snapshot_id.clone()).collect()
    }

    #[test]
    fn what_alone_holds_a_kept_directory_is_not_forgotten_while_it_is_kept() {
        let now = at("2026-06-30T12:00:00Z");
        let mut before = record("before", now - TimeDelta::days(40), &[PRE_RESTORE]);
        before.operation = Some("op-swap".into());
        let later = record("later", now, &[]);
        let mut kept = KeptRecord {
            place: "/srv/data-before-op-swap".into(),
            source: "data".into(),
            stack: crate::model::ids::StackName::new("shop").unwrap(),
            release: 2,
            operation: crate::model::ids::OperationId::new("op-swap").unwrap(),
            snapshot_id: "ab".into(),
            since: now,
            covered: None,
        };
        let gone = |kept: &[KeptRecord]| {
            let records = uncovering(vec![before.clone(), later.clone()], kept);
            forgettable(&records, &keep(1, 1, 0, 0), &BTreeSet::new(), now, &Utc).into_iter().map(|r| r.snapshot_id).collect::<Vec<_>>()
        };
        assert_eq!(gone(std::slice::from_ref(&kept)), Vec::<String>::new());
        assert_eq!(gone(&[]), ["before"]);
        kept.operation = crate::model::ids::OperationId::new("op-other").unwrap();
        assert_eq!(gone(std::slice::from_ref(&kept)), ["before"], "of another operation");
        kept.covered = Some("before".into());
        assert_eq!(gone(&[kept]), Vec::<String>::new(), "it was found to hold what is kept");
    }

    #[test]
    fn a_year_of_nights_is_thinned_to_days_weeks_and_months() {
        let now = at("2026-06-30T12:00:00Z");
        let nights: Vec<_> = (0..400).map(|n| record(&format!("n{n:03}"), at("2026-06-30T03:17:00Z") - TimeDelta::days(n), &[])).collect();
        let stays = left(&nights, &Keep::default(), now);
        // 24 hours that hold one each are 24 nights; months go on to the last night of each of the months before.
        assert_eq!(stays[..24], (0..24).map(|n| format!("n{n:03}")).collect::<Vec<_>>());
        let months: Vec<_> = nights.iter().filter(|r| stays.contains(&r.snapshot_id)).map(|r| r.at.format("%Y-%m").to_string()).collect();
        assert_eq!(months.iter().collect::<BTreeSet<_>>().len(), 12);
        assert_eq!(left(&nights, &keep(0, 3, 0, 0), now), ["n000", "n001", "n002"]);
        assert_eq!(
            left(&nights, &keep(0, 0, 2, 0), now),
            ["n000", "n002"],
            "the newest of this week (Tuesday) and of the week before (Sunday)"
        );
        assert_eq!(left(&nights, &keep(0, 0, 0, 2), now), ["n000", "n030"]);
    }

    #[test]
    fn a_source_is_never_without_a_snapshot_and_sources_do_not_count_for_each_other() {
        let old = at("2020-01-01T00:00:00Z");
        let mut other = record("other", old, &[]);
        other.volume = "logs".into();
        let mut partial = record("partial", old + TimeDelta::days(9), &[]);
        partial.state = "partial".into();
        let records = [record("whole", old, &[]), partial, record("older", old - TimeDelta::days(9), &[]), other];
        assert_eq!(left(&records, &keep(0, 0, 0, 0), at("2026-01-01T00:00:00Z")), ["whole", "other"]);
    }

    #[test]
    fn what_is_marked_stays_and_updates_keep_their_last_ones() {
        let now = at("2026-01-31T00:00:00Z");
        let day = |n| now - TimeDelta::days(n);
        let records = [
            record("night", day(0), &[]),
            record("u1", day(3), &[PRE_UPDATE]),
            record("u2", day(6), &[PRE_UPDATE]),
            record("u3", day(6) - TimeDelta::hours(1), &[PRE_UPDATE]),
            record("u4", day(20), &[PRE_UPDATE]),
            record("mark", day(300), &[KEPT]),
        ];
        assert_eq!(left(&records, &keep(0, 1, 0, 0), now), ["night", "u1", "u2", "u3", "mark"]);
        let later = now + TimeDelta::days(60);
        assert_eq!(left(&records, &keep(0, 1, 0, 0), later), ["night", "u1", "u2", "mark"], "the last two whatever their age");
    }

    #[test]
    fn a_day_is_one_of_the_time_zone() {
        let records = [record("b", at("2026-01-01T23:30:00Z"), &[]), record("a", at("2026-01-01T20:00:00Z"), &[])];
        let now = at("2026-01-02T12:00:00Z");
        let none = BTreeSet::new();
        assert_eq!(forgettable(&records, &keep(0, 9, 0, 0), &none, now, &Utc), [records[1].clone()]);
        assert_eq!(forgettable(&records, &keep(0, 9, 0, 0), &none, now, &FixedOffset::east_opt(3600).unwrap()), vec![]);
    }

    #[test]
    fn what_did_not_come_back_when_that_was_rehearsed_stands_in_for_no_other() {
        let now = at("2026-01-31T12:00:00Z");
        let records = [0, 1, 2, 3].map(|n| record(&format!("n{n}"), now - TimeDelta::minutes(n), &[]));
        let failed = BTreeSet::from(["n0".to_owned(), "n1".to_owned()]);
        let gone = |failed: &BTreeSet<String>| {
            let gone = forgettable(&records, &keep(1, 1, 1, 1), failed, now, &Utc);
            gone.into_iter().map(|r| r.snapshot_id).collect::<Vec<_>>()
        };
        assert_eq!(gone(&BTreeSet::new()), ["n3", "n2", "n1"]);
        assert_eq!(gone(&failed), ["n3", "n1"], "the newest, and the newest that is good");
    }
}
