//! A removal of snapshots, planned before it is done: what goes, and the best of each source that stays, under one digest, in the journal and in the audit log.
//! Right before anything goes the plan is held against the repository itself, and a source that would lose what nothing as good stands in for loses nothing.
//! Deliberately absent: the numbers of a schedule (`keep`).

use super::acts::Doer;
use super::{BackupError, SnapshotInfo, SnapshotState, keep, records};
use crate::model::ids::SnapshotId;
use crate::store::StoreError;
use crate::store::backup::BackupRecord;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Audit event of a removal of snapshots that is about to be made.
pub const PLANNED: &str = "forget_planned";
/// Snapshots that one row of the audit log names; the journal names all, and the digest is over all.
const TOLD: usize = 200;

/// One snapshot of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Id in the repository.
    pub snapshot_id: String,
    /// Stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// Volume, directory or output.
    pub source: String,
    /// When the data was read.
    pub at: DateTime<Utc>,
    /// `complete` or `partial`.
    pub state: String,
}

impl Planned {
    fn of(record: &BackupRecord) -> Self {
        let BackupRecord { snapshot_id, stack, volume: source, at, state, .. } = record.clone();
        Self { snapshot_id, stack, source, at, state }
    }

    fn is_of(&self, stack: Option<&str>, source: &str) -> bool {
        self.stack.as_deref() == stack && self.source == source
    }

    fn rank(&self, failed: &BTreeSet<String>) -> u8 {
        keep::rank(self.state == SnapshotState::Complete.as_str(), failed.contains(&self.snapshot_id))
    }
}

/// What a removal takes away and what it leaves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ForgetPlan {
    /// SHA-256 over the rest, hexadecimal.
    pub digest: String,
    /// What goes, oldest first.
    pub going: Vec<Planned>,
    /// Of each of their sources the best that stays.
    pub staying: Vec<Planned>,
}

impl ForgetPlan {
    /// That of the records some go. Of a source that would be left without one as good as the best that goes, none goes. `failed`: those that did not come
    /// back when that was last rehearsed. Pure.
    pub fn new(records: &[BackupRecord], going: &[BackupRecord], failed: &BTreeSet<String>) -> Self {
        let all: Vec<Planned> = records.iter().map(Planned::of).collect();
        Self::among(&all, going.iter().map(Planned::of).collect(), failed).0
    }

    /// The plan, and the sources that keep all they have.
    fn among(all: &[Planned], going: Vec<Planned>, failed: &BTreeSet<String>) -> (Self, Vec<String>) {
        let gone: BTreeSet<&str> = going.iter().map(|p| p.snapshot_id.as_str()).collect();
        let sources: BTreeSet<(Option<&str>, &str)> = going.iter().map(|p| (p.stack.as_deref(), p.source.as_str())).collect();
        let (mut goes, mut staying, mut spared) = (vec![], vec![], vec![]);
        for (stack, source) in sources {
            let of_source = all.iter().filter(|p| p.is_of(stack, source));
            let best = of_source.filter(|p| !gone.contains(p.snapshot_id.as_str())).max_by_key(|p| (p.rank(failed), p.at));
            let mine: Vec<&Planned> = going.iter().filter(|p| p.is_of(stack, source)).collect();
            match best {
                Some(best) if mine.iter().all(|p| p.rank(failed) <= best.rank(failed)) => {
                    staying.push(best.clone());
                    goes.extend(mine.into_iter().cloned());
                }
                Some(_) | None => spared.push(source.to_owned()),
            }
        }
        goes.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.snapshot_id.cmp(&b.snapshot_id)));
        let text = json!({"going": goes, "staying": staying}).to_string();
        let digest = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        (Self { digest, going: goes, staying }, spared)
    }

    /// What of it still holds by what a repository lists. Pure.
    pub fn still(&self, listed: &[SnapshotInfo], instance: &str, failed: &BTreeSet<String>) -> Still {
        let ours = listed.iter().filter(|s| records::is_ours(s, instance));
        // A repository has its own clock: what is as it was planned is told in the same words, under the same digest.
        let as_planned = |p: Planned| {
            let planned = self.staying.iter().chain(&self.going).find(|k| k.snapshot_id == p.snapshot_id && k.state == p.state);
            planned.cloned().unwrap_or(p)
        };
        let there: Vec<Planned> = ours.filter_map(records::of).map(|r| as_planned(Planned::of(&r))).collect();
        let is_there = |p: &Planned| there.iter().any(|t| t.snapshot_id == p.snapshot_id);
        let (going, gone): (Vec<Planned>, Vec<Planned>) = self.going.iter().cloned().partition(is_there);
        let (plan, spared) = Self::among(&there, going, failed);
        Still { plan, spared, gone: gone.into_iter().map(|p| p.snapshot_id).collect() }
    }

    /// Ids of what goes.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.going.iter().map(|p| p.snapshot_id.as_str())
    }
}

/// A plan held against the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Still {
    /// What holds of it.
    pub plan: ForgetPlan,
    /// Sources that keep all they have.
    pub spared: Vec<String>,
    /// What is not there any more: only its record is left to go.
    pub gone: Vec<String>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Digest of the plan as it was carried out.
    pub digest: String,
    /// What went.
    pub snapshots: Vec<String>,
    /// What was planned and stays, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spared: Vec<String>,
}

impl Forgotten {
    /// What stays against the plan, for people.
    pub(super) fn told(&self) -> Option<String> {
        (!self.spared.is_empty()).then(|| format!("not all that the numbers let go was removed: {}", self.spared.join("; ")))
    }
}

/// Carries a plan out; safe to repeat.
pub(super) async fn perform(doer: &Doer<'_>, plan: &ForgetPlan) -> Result<Forgotten, BackupError> {
    let house = &doer.hands.house;
    let failed = doer.store.failed_drills(None).await.map_err(state)?;
    let Still { plan: now, spared, gone } = plan.still(&house.list().await?, &doer.hands.instance, &failed);
    let stays = |source: String| format!("of {source} nothing as good would be left in the repository, so all of it stays");
    let mut spared: Vec<String> = spared.into_iter().map(stays).collect();
    tell(doer, None, &now, Some(&plan.digest)).await?;
    // The records first: one without a snapshot promises what is not there, one that is missing is made again from the repository. What alone holds kept data by
    // now stays, decided in the same write in which that is noted.
    let records = now.ids().map(str::to_owned).chain(gone).collect();
    let kept = doer.store.forget_free_backups(records).await.map_err(state)?;
    spared.extend(kept.iter().map(|id| format!("{id} alone holds data that was kept, or is marked to stay")));
    let going: Vec<&str> = now.ids().filter(|id| !kept.iter().any(|k| k == id)).collect();
    let ids = going.iter().map(|id| SnapshotId::new(*id)).collect::<Result<Vec<_>, _>>()?;
    if !ids.is_empty() {
        house.forget(ids).await?;
    }
    Ok(Forgotten { digest: now.digest.clone(), snapshots: going.into_iter().map(str::to_owned).collect(), spared })
}

/// Writes down what is about to go: no row, no removal. `planned`: the digest under which it was planned.
pub(super) async fn tell(doer: &Doer<'_>, copy: Option<&str>, plan: &ForgetPlan, planned: Option<&str>) -> Result<(), BackupError> {
    if plan.going.is_empty() {
        return Ok(());
    }
    let first = |all: &[Planned]| json!(all.iter().take(TOLD).collect::<Vec<_>>());
    let mut detail = json!({
        "operation": doer.operation, "digest": plan.digest, "snapshots": plan.going.len(), "going": first(&plan.going), "staying": first(&plan.staying),
    });
    if let Some(planned) = planned.filter(|p| *p != plan.digest) {
        detail["planned"] = Value::from(planned);
    }
    if let Some(copy) = copy {
        detail["copy"] = Value::from(copy);
    }
    let stack = doer.stack.as_ref().map(ToString::to_string);
    doer.store.audit_event(&doer.agent, PLANNED, stack.as_deref(), &detail, Utc::now()).await.map_err(|e| BackupError::Io {
        path: "audit.db".to_owned(),
        detail: format!("{e}; what is to be removed could not be written down, and nothing was removed"),
    })?;
    Ok(())
}

fn state(e: StoreError) -> BackupError {
    BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() }
}
