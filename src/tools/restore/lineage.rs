//! The snapshot of a moment, whatever the volume was called by then: a restore that was taken into use gives the data a volume of another name, and the file
//! goes on naming the first. Reads only.

use crate::call::data;
use crate::call::error::ErrorCode;
use crate::call::{Call, CallError};
use crate::model::release::{Release, ReleaseState};
use crate::store::backup::BackupRecord;
use crate::store::kept::KeptRecord;
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;

/// Snapshots of a volume, and releases of a stack, looked through.
const LOOKED_THROUGH: usize = 1000;

/// Which volume a key of a file was, and since when.
#[derive(Debug, Clone, PartialEq)]
struct Live {
    since: DateTime<Utc>,
    release: u32,
    volume: String,
}

/// Volumes that the data called `name` was in, oldest first, as the releases that served say; empty where none names it. Pure.
fn lives(releases: &[Release], name: &str) -> Vec<Live> {
    let mut served: Vec<&Release> = releases.iter().filter(|r| !matches!(r.state, ReleaseState::Failed | ReleaseState::Pending)).collect();
    served.sort_by_key(|r| r.number);
    let of = |r: &Release| r.spec.volumes.iter().find(|(_, v)| v.name == name || v.declared() == name).map(|(k, _)| k.clone());
    let Some(key) = served.iter().rev().find_map(|r| of(r)) else { return vec![] };
    let mut out: Vec<Live> = vec![];
    for release in served {
        let Some(volume) = release.spec.volumes.get(&key) else { continue };
        if out.last().is_none_or(|l| l.volume != volume.name) {
            out.push(Live { since: release.created_at, release: release.number, volume: volume.name.clone() });
        }
    }
    out
}

/// What is chosen among snapshots: the newest whole one of the data not after a moment, of none that was already replaced when it was read, and of none
/// whose last drill failed. Pure.
fn choose(records: Vec<BackupRecord>, kept: &[KeptRecord], failed: &BTreeSet<String>, at: DateTime<Utc>) -> Option<BackupRecord> {
    let replaced = |b: &BackupRecord| kept.iter().any(|k| k.place == b.volume && k.since < b.at);
    let good = |b: &BackupRecord| b.state == "complete" && b.at <= at && !replaced(b) && !failed.contains(&b.snapshot_id);
    records.into_iter().filter(good).max_by_key(|b| b.at)
}

/// The newest whole snapshot of a volume or directory not after a moment.
pub(super) async fn newest(call: &Call, volume: &str, at: DateTime<Utc>) -> Result<BackupRecord, CallError> {
    let store = &call.house.store;
    let mut history: Vec<Live> = vec![];
    for stack in store.stacks().await? {
        if history.is_empty() {
            history = lives(&store.releases(&stack.name, LOOKED_THROUGH).await?, volume);
        }
    }
    let names: BTreeSet<String> = history.iter().map(|l| l.volume.clone()).chain([volume.to_owned()]).collect();
    let (mut records, mut failed) = (vec![], BTreeSet::new());
    for name in &names {
        records.extend(store.backups(None, Some(name), LOOKED_THROUGH).await?);
        failed.extend(
            store.last_drills(None, Some(name)).await?.into_iter().filter(|d| !d.passed && d.copy.is_none()).map(|d| d.snapshot_id),
        );
    }
    let spoiled = records.iter().filter(|r| failed.contains(&r.snapshot_id) && r.at <= at).count();
    let found = choose(records, &store.kept(None).await?, &failed, at).ok_or_else(|| {
        let why = if spoiled > 0 { format!(" ({spoiled} whose last drill failed are left out)") } else { String::new() };
        CallError::new(ErrorCode::NotFound, format!("there is no such snapshot{why}"), "call `backups` to see them").field("snapshot_id")
    })?;
    data::not_the_houses(&found)?;
    match history.iter().rfind(|l| l.since <= at) {
        // What was restored at that moment is older than the one found would be: it is not what the caller thinks of.
        Some(live) if live.volume != found.volume && found.at < live.since => {
            let message = format!(
                "since release {} of {} this data lives in {}, and no whole snapshot of that is as old as you ask for",
                live.release,
                live.since.format("%Y-%m-%dT%H:%M:%SZ"),
                live.volume
            );
            let hint = format!(
                "snapshot_id {} of {} is what was there before the swap; `backups` lists the others",
                found.snapshot_id, found.volume
            );
            Err(CallError::new(ErrorCode::Conflict, message, hint).field("at"))
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{OperationId, StackName};
    use crate::model::spec::{StackSpec, VolumeSpec};
    use chrono::TimeDelta;
    use std::collections::BTreeMap;

    fn day(n: i64) -> DateTime<Utc> {
        "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(n)
    }

    fn release(number: u32, created: i64, volume: &str) -> Release {
        let name = StackName::new("shop").unwrap();
        let swapped_from = (volume != "shop_data").then(|| "shop_data".to_owned());
        let volume = VolumeSpec { name: volume.into(), swapped_from, ..VolumeSpec::default() };
        let spec = StackSpec { volumes: BTreeMap::from([("data".into(), volume)]), ..StackSpec::new(name) };
        Release { number, created_at: day(created), state: ReleaseState::Good, ..Release::sample(spec) }
    }

    fn record(id: &str, volume: &str, n: i64) -> BackupRecord {
        BackupRecord { at: day(n), ..BackupRecord::sample(id, volume) }
    }

    const RESTORED: &str = "shop_data-restored-ab12cd34-1";

    #[test]
    fn the_name_in_the_file_is_followed_through_swaps_and_failed_releases_are_none() {
        let mut failed = release(3, 25, "shop_data-restored-ff-1");
        failed.state = ReleaseState::Failed;
        let all = [release(1, 0, "shop_data"), release(2, 20, RESTORED), failed, release(4, 30, RESTORED)];
        for asked in ["shop_data", RESTORED] {
            let found: Vec<(u32, String)> = lives(&all, asked).into_iter().map(|l| (l.release, l.volume)).collect();
            assert_eq!(found, [(1, "shop_data".to_owned()), (2, RESTORED.to_owned())], "{asked}");
        }
        assert_eq!(lives(&all, "other"), []);
    }

    #[test]
    fn what_is_chosen_is_the_newest_of_the_data_not_of_the_name() {
        let all = || vec![record("before", "shop_data", 19), record("after", RESTORED, 29), record("later", RESTORED, 35)];
        let id = |records, kept: &[KeptRecord], failed: &[&str], n| {
            let failed = failed.iter().map(|f| (*f).to_owned()).collect();
            choose(records, kept, &failed, day(n)).map(|b| b.snapshot_id)
        };
        assert_eq!(id(all(), &[], &[], 31).as_deref(), Some("after"));
        assert_eq!(id(all(), &[], &[], 19).as_deref(), Some("before"));
        assert_eq!(id(all(), &[], &[], 18), None);
        assert_eq!(id(all(), &[], &["after"], 31).as_deref(), Some("before"), "its last drill failed");
        // Taken of what a restore had taken the place of by then.
        let kept = KeptRecord {
            place: "shop_data".into(),
            source: "shop_data".into(),
            stack: StackName::new("shop").unwrap(),
            release: 2,
            operation: OperationId::new("op-1").unwrap(),
            snapshot_id: "x".into(),
            since: day(20),
            covered: None,
        };
        let mut with = all();
        with.push(record("kept", "shop_data", 30));
        assert_eq!(id(with, &[kept], &[], 31).as_deref(), Some("after"));
        let mut partial = all();
        partial[1].state = "partial".into();
        assert_eq!(id(partial, &[], &[], 31).as_deref(), Some("before"));
    }
}
