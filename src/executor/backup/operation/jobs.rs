//! The order of acts of each job. Whatever was begun when one of them stops is taken back by the operation around it.

use super::super::acts::DataAct;
use super::super::{DataJob, Quiesce, SnapshotState, keep, writers};
use super::{Stop, Work};
use crate::executor::restore::{self, RestoreOutcome};
use crate::model::ids::{EngineName, ServiceName, SnapshotId};
use crate::model::operation::{OperationState, Phase};
use crate::model::spec::Keep;
use crate::store::backup::{BackupRecord, DrillRecord};
use chrono::Utc;
use serde_json::Value;

impl Work {
    pub(super) async fn go(&self, job: &DataJob) -> Result<Option<String>, Stop> {
        let phase = match job {
            DataJob::Backup { .. } => Phase::Snapshot,
            DataJob::Restore { .. } | DataJob::Drill { .. } => Phase::Prepare,
        };
        self.update(|op| (op.state, op.phase) = (OperationState::Running, phase)).await?;
        match job {
            DataJob::Backup { volumes, quiesce, release, tags, keep, timeout: _ } => {
                let warning = self.backup(volumes, *quiesce, *release, tags).await?;
                if let (Some(keep), None) = (keep, &warning) {
                    self.forget(keep).await?;
                }
                Ok(warning)
            }
            DataJob::Drill { snapshots } => self.drill(snapshots).await,
            DataJob::Restore { snapshot, into } => self.restore(snapshot, into.clone()).await,
        }
    }

    async fn backup(
        &self,
        volumes: &[EngineName],
        quiesce: Quiesce,
        release: Option<u32>,
        tags: &[String],
    ) -> Result<Option<String>, Stop> {
        let hands = self.hands()?;
        self.interruptible(async { Ok(hands.house.ensure().await?) }).await?;
        let held = match quiesce {
            Quiesce::None => vec![],
            Quiesce::Pause | Quiesce::Stop => writers(self.exec.engine.as_ref(), volumes).await?,
        };
        if !held.is_empty() {
            self.say(0.0, format!("holding {} containers still", held.len()));
            self.step(DataAct::Hold { writers: held.clone(), quiesce }).await?;
        }
        let mut partial = vec![];
        for (n, volume) in volumes.iter().enumerate() {
            self.say(100.0 * n as f64 / volumes.len() as f64, format!("reading {volume}"));
            let act = DataAct::Snapshot { volume: volume.clone(), release, tags: tags.to_vec() };
            let done = self.interruptible(self.step(act)).await?;
            if done["snapshot"]["state"] == SnapshotState::Partial.as_str() {
                let unreadable: Vec<&str> = done["unreadable"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                partial.push(format!("{volume} ({})", unreadable.join(", ")));
            }
        }
        if !held.is_empty() {
            self.step(DataAct::Resume { writers: held, quiesce }).await?;
        }
        let warning = format!(
            "PARTIAL: not everything could be read of {}; let the supervisor read these files and back up again",
            partial.join("; ")
        );
        Ok((!partial.is_empty()).then_some(warning))
    }

    /// All of them, also after one has failed: which come back and which do not is what a drill is for.
    async fn drill(&self, snapshots: &[(BackupRecord, Option<ServiceName>)]) -> Result<Option<String>, Stop> {
        let mut failed = vec![];
        for (n, (snapshot, service)) in snapshots.iter().enumerate() {
            self.say(100.0 * n as f64 / snapshots.len() as f64, format!("rehearsing the restore of {}", snapshot.volume));
            let name = format!("dockwarden-drill-{}", ulid::Ulid::generate().to_string().to_lowercase());
            let scratch = EngineName::new(name).map_err(|e| Stop::Failed(e.to_string()))?;
            let act = DataAct::Drill { snapshot: Box::new(snapshot.clone()), scratch, service: service.clone() };
            let done: DrillRecord =
                serde_json::from_value(self.interruptible(self.step(act)).await?).map_err(|e| Stop::Failed(e.to_string()))?;
            if !done.passed {
                failed.push(format!("{} of {} ({})", done.snapshot_id, done.volume, done.detail));
            }
        }
        if failed.is_empty() { Ok(None) } else { Err(Stop::Failed(format!("the drill FAILED for {}", failed.join("; ")))) }
    }

    /// What the schedule no longer needs goes; nothing does after a backup that was not whole.
    async fn forget(&self, keep: &Keep) -> Result<(), Stop> {
        let Some(stack) = self.operation().stack else { return Ok(()) };
        let records = self.exec.store.backups(Some(&stack), None, usize::MAX).await?;
        let gone = keep::forgettable_here(&records, keep, Utc::now());
        let snapshots: Vec<SnapshotId> = gone.iter().filter_map(|r| SnapshotId::new(r.snapshot_id.as_str()).ok()).collect();
        if !snapshots.is_empty() {
            self.say(99.0, format!("removing {} snapshots the schedule no longer needs", snapshots.len()));
            self.interruptible(self.step(DataAct::Forget { snapshots })).await?;
        }
        Ok(())
    }

    async fn restore(&self, snapshot: &BackupRecord, into: Option<EngineName>) -> Result<Option<String>, Stop> {
        let target = restore::target(&self.hands()?, snapshot, into).await?;
        self.say(0.0, format!("restoring {} bytes of {} into {}", snapshot.bytes, snapshot.volume, target.name));
        let act = DataAct::Restore { snapshot: Box::new(snapshot.clone()), into: target.name, made: target.made };
        let done = self.interruptible(self.step(act)).await?;
        let outcome: RestoreOutcome = serde_json::from_value(done).map_err(|e| Stop::Failed(e.to_string()))?;
        if outcome.verified {
            return Ok(None);
        }
        // The volume stays, to be looked at.
        Err(Stop::Failed(format!(
            "{} does not equal the snapshot: {}",
            outcome.volume,
            outcome.differences.iter().take(10).cloned().collect::<Vec<_>>().join("; ")
        )))
    }
}
