//! Second repositories: each gets the snapshots of ours that it should hold and lacks, and loses by its own numbers those it no longer needs, whatever becomes
//! of them in the repository. What went wrong is recorded and never fails the backup. Deliberately absent: when, and telling anybody.

use super::acts::Doer;
use super::{BackupError, BackupHouse, ForgetPlan, Hands, Remote, SnapshotInfo, forget, keep, records};
use crate::executor::worker::Claim;
use crate::model::ids::SnapshotId;
use crate::model::spec::Keep;
use crate::model::target::{BackupSettings, Location, Target};
use crate::store::StoreError;
use crate::store::backup::BackupRecord;
use crate::store::backup::copies::CopyRecord;
use chrono::{DateTime, TimeZone, Utc};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A second repository.
#[derive(Debug, Clone)]
pub struct SecondCopy {
    /// Name in the configuration.
    pub name: String,
    /// The repository.
    pub house: BackupHouse,
    /// Which snapshots stay in it; see [`difference`].
    pub keep: Option<Keep>,
}

/// What one run adds and removes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Snapshots of the repository to add, oldest first.
    pub add: Vec<SnapshotId>,
    /// Snapshots of the copy to remove.
    pub remove: Vec<SnapshotId>,
}

impl BackupHouse {
    /// The house as it is configured: a repository on another host, and copies. `instance` is who writes there.
    pub fn configured(mut self, settings: &BackupSettings, instance: &str) -> Self {
        let home = self.beside.clone();
        self.memory_mib = settings.worker_memory_mib;
        if let Some(target) = &settings.repository {
            self = self.at(target.clone(), &home.join("backups"), Some(instance));
        }
        let second = |(name, copy): (&String, &crate::model::target::CopySettings)| SecondCopy {
            name: name.clone(),
            house: Self { key_file: copy.key_file.clone().unwrap_or_else(|| self.key_file.clone()), ..self.clone() }.at(
                copy.target(),
                &home.join("copies").join(name),
                Some(instance),
            ),
            keep: copy.keep.clone(),
        };
        let copies = settings.copies.iter().map(second).collect();
        Self { copies: Arc::new(copies), ..self }
    }

    /// The same house with its repository elsewhere; `lock` names the lock of one on another host.
    pub fn at(self, target: Target, lock: &Path, owner: Option<&str>) -> Self {
        let copies = Arc::default();
        match &target.at {
            Location::Directory(path) => {
                let claim = owner.map(|o| Claim { instance: o.to_owned(), replaces: target.replaces.clone() });
                Self { repo: path.clone(), remote: None, claim, copies, calm: Arc::default(), ..self }
            }
            Location::S3 { .. } | Location::Sftp { .. } => {
                let remote = Some(Remote { target, owner: owner.map(str::to_owned) });
                Self { repo: lock.to_owned(), remote, claim: None, copies, calm: Arc::default(), ..self }
            }
        }
    }

    /// One of its copies.
    ///
    /// # Errors
    /// `NoCopy` naming those there are.
    pub fn second(&self, name: &str) -> Result<&SecondCopy, BackupError> {
        let known = || self.copies.iter().map(|c| c.name.clone()).collect();
        self.copies.iter().find(|c| c.name == name).ok_or_else(|| BackupError::NoCopy { copy: name.to_owned(), known: known() })
    }
}

/// What a copy lacks of what it should hold, and what it holds and need not. Without numbers of its own it holds all that the repository does, and of what
/// the repository has lost as much as the house's numbers keep. Pure; hours, days and weeks are those of `zone`. Both lists are of snapshots of any
/// kind, those that are not ours stay as they are. `failed`: those of the copy that did not come back when that was last rehearsed, by the ids they were
/// copied from.
pub fn difference<Z: TimeZone>(
    main: &[SnapshotInfo],
    copy: &[SnapshotInfo],
    keep: Option<&Keep>,
    failed: &BTreeSet<String>,
    now: DateTime<Utc>,
    zone: &Z,
) -> Difference {
    let has = |all: &[SnapshotInfo], s: &SnapshotInfo| all.iter().any(|o| o.original == s.original);
    let missing: Vec<&SnapshotInfo> = main.iter().filter(|s| !has(copy, s)).collect();
    let both: Vec<BackupRecord> = missing.iter().copied().chain(copy).filter_map(records::of).collect();
    let gone = keep::forgettable(&both, &keep.cloned().unwrap_or_default(), &in_copy(copy, failed), now, zone);
    let needed = |s: &SnapshotInfo| keep.is_none() && has(main, s);
    let stays = |s: &&SnapshotInfo| s.volume.is_some() && (needed(s) || !gone.iter().any(|g| g.snapshot_id == s.snapshot_id.as_str()));
    let mut add: Vec<&SnapshotInfo> = missing.into_iter().filter(stays).collect();
    add.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.snapshot_id.cmp(&b.snapshot_id)));
    let removed = |s: &&SnapshotInfo| s.volume.is_some() && !stays(s);
    Difference {
        add: add.into_iter().map(|s| s.snapshot_id.clone()).collect(),
        remove: copy.iter().filter(removed).map(|s| s.snapshot_id.clone()).collect(),
    }
}

/// The ids that a copy has for snapshots, by those they were copied from.
fn in_copy(copy: &[SnapshotInfo], of: &BTreeSet<String>) -> BTreeSet<String> {
    copy.iter().filter(|s| of.contains(s.original.as_str())).map(|s| s.snapshot_id.to_string()).collect()
}

/// Brings a copy up to date and records what came of it. A copy that cannot be had is a result, not an error.
pub(super) async fn run(doer: &Doer<'_>, name: &str) -> Result<CopyRecord, BackupError> {
    let begun = Utc::now();
    let copy = doer.hands.house.second(name)?;
    let mut record = CopyRecord {
        copy: name.to_owned(),
        at: begun,
        passed: false,
        copied: 0,
        removed: 0,
        held: 0,
        bytes: 0,
        duration_ms: 0,
        detail: String::new(),
        operation: doer.operation.to_string(),
    };
    let pairs = match bring(doer, copy, &mut record).await {
        Ok(pairs) => {
            (record.passed, record.held) = (true, pairs.len() as u64);
            Some(pairs)
        }
        Err(e) => {
            tracing::error!(copy = name, error = %e, "a copy is not up to date");
            record.detail = crate::redact::line(&e.to_string(), 1000);
            None
        }
    };
    record.duration_ms = u64::try_from((Utc::now() - begun).num_milliseconds()).unwrap_or_default();
    doer.store.put_copy(&record, pairs).await.map_err(state)?;
    Ok(record)
}

/// Snapshots of ours in the copy afterwards: id in the repository, id in the copy.
async fn bring(doer: &Doer<'_>, copy: &SecondCopy, record: &mut CopyRecord) -> Result<Vec<(String, String)>, BackupError> {
    let main = &doer.hands.house;
    copy.house.ensure().await?;
    copy.house.room()?;
    let listed = main.list().await?;
    let failed = doer.store.failed_drills(Some(&copy.name)).await.map_err(state)?;
    let change = difference(&listed, &copy.house.list().await?, copy.keep.as_ref(), &failed, record.at, &chrono::Local);
    if !change.add.is_empty() {
        let report = main.copy_to(&copy.house, change.add, doer.progress.clone()).await?;
        (record.copied, record.bytes) = (report.snapshots, report.bytes);
    }
    let mut there = copy.house.list().await?;
    if !change.remove.is_empty() {
        record.removed = thin(doer, copy, &there, &change.remove, &in_copy(&there, &failed)).await?;
        there = copy.house.list().await?;
    }
    let pair = |s: &SnapshotInfo| {
        let of = there.iter().find(|t| t.original == s.original)?;
        Some((s.snapshot_id.to_string(), of.snapshot_id.to_string()))
    };
    Ok(listed.iter().filter_map(pair).collect())
}

/// Removes from a copy what it need not hold, by what it holds now: written down first, as in the repository itself.
async fn thin(
    doer: &Doer<'_>,
    copy: &SecondCopy,
    there: &[SnapshotInfo],
    remove: &[SnapshotId],
    failed: &BTreeSet<String>,
) -> Result<u64, BackupError> {
    let (mut records, mut going) = (vec![], vec![]);
    for s in there {
        let Some(record) = records::of(s) else { continue };
        if remove.contains(&s.snapshot_id) {
            going.push(record.clone());
        }
        records.push(record);
    }
    let plan = ForgetPlan::new(&records, &going, failed);
    forget::tell(doer, Some(&copy.name), &plan, None).await?;
    let ids = plan.ids().map(SnapshotId::new).collect::<Result<Vec<_>, _>>()?;
    if ids.is_empty() { Ok(0) } else { copy.house.forget(ids).await }
}

/// The hands that reach into a copy instead of the repository, and the record of a snapshot as the copy holds it.
pub(super) async fn instead(doer: &Doer<'_>, name: &str, record: &BackupRecord) -> Result<(Hands, BackupRecord), BackupError> {
    let house = doer.hands.house.second(name)?.house.clone();
    let held = doer.store.copied_as(name, &record.snapshot_id).await.map_err(state)?;
    let snapshot_id = held.ok_or_else(|| BackupError::NotCopied { copy: name.to_owned(), snapshot: record.snapshot_id.clone() })?;
    Ok((Hands { house, ..doer.hands.clone() }, BackupRecord { snapshot_id, ..record.clone() }))
}

fn state(e: StoreError) -> BackupError {
    BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() }
}

/// Where the lock of a repository lies that only a command reads.
pub fn lock_of_reader(home: &Path) -> PathBuf {
    home.join("copies/reader")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::backup::SnapshotState;
    use chrono::TimeDelta;

    fn info(id: &str, original: &str, days_ago: i64) -> SnapshotInfo {
        SnapshotInfo {
            snapshot_id: SnapshotId::new(id).unwrap(),
            at: now() - TimeDelta::days(days_ago),
            volume: Some("data".into()),
            stack: None,
            state: SnapshotState::Complete,
            host: "dockwarden-x".into(),
            tags: vec![],
            bytes: 1,
            files: 1,
            original: SnapshotId::new(original).unwrap(),
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-06-30T12:00:00Z".parse().unwrap()
    }

    fn ids(list: &[SnapshotId]) -> Vec<&str> {
        list.iter().map(SnapshotId::as_str).collect()
    }

    #[test]
    fn a_copy_gets_what_it_lacks_oldest_first_and_keeps_what_the_repository_has_lost() {
        let keep = Keep { hourly: 0, daily: 3, weekly: 0, monthly: 0, pre_update: 0 };
        let main = [info("m0", "m0", 0), info("m1", "m1", 1)];
        // c1 is m1; c2 was copied before the repository lost it; c9 is older than three days.
        let copy = [info("c1", "m1", 1), info("c2", "m2", 2), info("c9", "m9", 9)];
        let change = difference(&main, &copy, Some(&keep), &BTreeSet::new(), now(), &Utc);
        assert_eq!((ids(&change.add), ids(&change.remove)), (vec!["m0"], vec!["c9"]));
        let empty = difference(&main, &[], Some(&keep), &BTreeSet::new(), now(), &Utc);
        assert_eq!((ids(&empty.add), ids(&empty.remove)), (vec!["m1", "m0"], vec![]));
        // A repository that was emptied takes nothing with it.
        let wide = Keep { daily: 30, ..keep };
        assert_eq!(difference(&[], &copy, Some(&wide), &BTreeSet::new(), now(), &Utc), Difference::default());
    }

    #[test]
    fn without_numbers_of_its_own_a_copy_holds_all_that_the_repository_does() {
        // Two of one hour: of what the repository has lost the older one goes, of what it holds neither.
        let main = [info("m0", "m0", 0), info("m1", "m1", 0)];
        let all = difference(&main, &[], None, &BTreeSet::new(), now(), &Utc);
        assert_eq!((ids(&all.add), ids(&all.remove)), (vec!["m0", "m1"], vec![]));
        let copy = [info("c0", "m0", 0), info("c1", "m1", 0)];
        assert_eq!(difference(&main, &copy, None, &BTreeSet::new(), now(), &Utc), Difference::default());
        let lost = difference(&[], &copy, None, &BTreeSet::new(), now(), &Utc);
        assert_eq!((lost.add.len(), lost.remove.len()), (0, 1), "{lost:?}");
    }

    #[test]
    fn what_the_copy_would_remove_at_once_is_never_added_and_what_is_not_ours_is_left_alone() {
        let keep = Keep { hourly: 0, daily: 1, weekly: 0, monthly: 0, pre_update: 0 };
        let foreign = SnapshotInfo { volume: None, ..info("f", "f", 50) };
        let main = [info("m0", "m0", 0), info("m5", "m5", 5), foreign.clone()];
        let change = difference(
            &main,
            &[SnapshotInfo { original: SnapshotId::new("g").unwrap(), ..foreign }],
            Some(&keep),
            &BTreeSet::new(),
            now(),
            &Utc,
        );
        assert_eq!((ids(&change.add), ids(&change.remove)), (vec!["m0"], vec![]));
    }
}
