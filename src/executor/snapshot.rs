//! SNAPSHOT: what a plan does with data before anything is prepared or switched. Snapshots it brings back are put beside the live data and compared;
//! volumes of services about to be replaced are read into the repository while their writers are held still. Deliberately absent: which volumes, and how
//! a restored volume is taken into use (it is a name in the release, switched like everything else of it).

use super::backup::acts::{self, DataAct, Doer};
use super::backup::keep::PRE_UPDATE;
use super::backup::{BackupError, Hands, Progress, Quiesce, SnapshotState, Writer, resume, writers};
use super::restore::RestoreOutcome;
use super::run::{Fail, Halt, Run, failed};
use crate::executor::acts::Act;
use crate::model::ids::SnapshotId;
use crate::model::operation::Phase;
use serde_json::Value;
use std::sync::Arc;

impl From<BackupError> for Fail {
    fn from(e: BackupError) -> Self {
        match e {
            BackupError::Engine(e) => Fail::Engine(e),
            other => Fail::Refused(other.to_string()),
        }
    }
}

impl Run {
    /// The whole phase; nothing where the plan asks for nothing.
    pub(super) async fn make_safe(&self) -> Result<(), Halt> {
        let data = &self.plan.data;
        if data.snapshot.is_empty() && data.restore.is_empty() {
            return Ok(());
        }
        self.enter(Phase::Snapshot, 3.0, "making the data safe").await?;
        let hands = self.hands().map_err(|e| failed(e.to_string()))?;
        self.interruptible(async { hands.house.ensure().await.map_err(|e| failed(e.to_string())) }).await?;
        for planned in &data.restore {
            let unknown = || failed(format!("snapshot {} is not recorded any more", planned.snapshot_id));
            let id = SnapshotId::new(planned.snapshot_id.as_str()).map_err(|e| failed(e.to_string()))?;
            let snapshot = Box::new(self.exec.store.backup(&id).await?.ok_or_else(unknown)?);
            self.say(format!("restoring {} of {}", planned.snapshot_id, planned.source));
            let done = self.data_step(DataAct::Restore { snapshot, into: planned.into.clone(), made: true }).await?;
            let outcome: RestoreOutcome = serde_json::from_value(done).map_err(|e| failed(e.to_string()))?;
            if !outcome.verified {
                return Err(failed(format!(
                    "snapshot {} does not come back equal: {}",
                    planned.snapshot_id,
                    outcome.differences.join("; ")
                )));
            }
        }
        self.before_update().await
    }

    async fn before_update(&self) -> Result<(), Halt> {
        let (data, quiesce) = (&self.plan.data, Quiesce::from(self.plan.data.quiesce));
        if data.snapshot.is_empty() {
            return Ok(());
        }
        let (held, _calm) = match quiesce {
            Quiesce::None => (vec![], None),
            Quiesce::Pause | Quiesce::Stop => {
                let house = self.hands().map_err(|e| failed(e.to_string()))?.house;
                let calm = self.interruptible(async { Ok(house.calm().await) }).await?;
                (writers(&*self.exec.engine, &data.snapshot, &[]).await.map_err(|e| failed(e.to_string()))?, Some(calm))
            }
        };
        if !held.is_empty() {
            self.data_step_to_its_end(DataAct::Hold { writers: held.clone(), quiesce }).await?;
        }
        for volume in &data.snapshot {
            self.say(format!("snapshot of {volume} before the update"));
            let act = DataAct::Snapshot { volume: volume.clone(), release: self.plan.from_release, tags: vec![PRE_UPDATE.to_owned()] };
            let done = match self.data_step(act).await {
                Err(Halt::Interrupted(why)) => {
                    self.let_go(&held, quiesce).await;
                    return Err(Halt::Interrupted(why));
                }
                other => other?,
            };
            if done["snapshot"]["state"] != SnapshotState::Complete.as_str() {
                return Err(failed(format!(
                    "the snapshot of {volume} before the update is partial ({}): let the supervisor read these files, or set \
                     x-dockwarden.backup.pre_update: false to go on without one",
                    done["unreadable"]
                )));
            }
        }
        if !held.is_empty() {
            self.data_step_to_its_end(DataAct::Resume { writers: held, quiesce }).await?;
        }
        Ok(())
    }

    /// The supervisor ends in order: its next start undoes the operation, but nobody waits for that. A crash test leaves everything as a crash does.
    async fn let_go(&self, held: &[Writer], quiesce: Quiesce) {
        if self.exec.stop_after.is_some() {
            return;
        }
        if let Err(e) = resume(&*self.exec.engine, &self.permit, held, quiesce).await {
            tracing::error!(operation = %self.operation_id(), error = %e, "containers are still held; the next start resumes them");
        }
    }

    /// A step whose worker a cancel or the end of the supervisor may end in the middle.
    async fn data_step(&self, act: DataAct) -> Result<Value, Halt> {
        self.interruptible(self.data_step_to_its_end(act)).await
    }

    async fn data_step_to_its_end(&self, act: DataAct) -> Result<Value, Halt> {
        self.step(Phase::Snapshot, act.key(), Act::Data { data: act }).await
    }

    async fn interruptible<T>(&self, work: impl Future<Output = Result<T, Halt>>) -> Result<T, Halt> {
        tokio::select! {
            done = work => done,
            () = self.cancel.cancelled() => Err(Halt::Cancelled),
            () = self.exec.closing() => Err(Halt::Interrupted("the supervisor is shutting down".into())),
        }
    }

    fn hands(&self) -> Result<Hands, BackupError> {
        let house = self.exec.backups.clone().ok_or(BackupError::Worker(super::backup::Failure::NotBuilt))?;
        let (engine, instance) = (self.exec.engine.clone(), self.exec.store.instance().to_owned());
        Ok(Hands { engine, house, instance, operation: self.operation_id().clone() })
    }

    /// Does an act on data; safe to repeat.
    pub(super) async fn perform_data(&self, act: &DataAct) -> Result<Value, Fail> {
        let standing = self.standing.clone();
        let progress = Arc::new(move |p: Progress| standing.send_modify(|s| s.message = format!("{} bytes, {} files", p.bytes, p.files)));
        let doer = Doer {
            hands: self.hands()?,
            store: &self.exec.store,
            permit: &self.permit,
            operation: self.operation_id(),
            stack: Some(self.plan.stack.clone()),
            agent: self.operation().agent,
            progress,
            judge: self.exec.commands.clone(),
        };
        Ok(doer.perform(act).await?)
    }

    /// Takes an act on data back; safe to repeat.
    pub(super) async fn take_back_data(&self, act: &DataAct) -> Result<(), Fail> {
        Ok(acts::take_back(&*self.exec.engine, self.exec.store.instance(), &self.permit, self.operation_id(), &self.exec.commands, act)
            .await?)
    }

    /// Where the data is that a release with restored volumes took the place of.
    pub(super) fn data_left(&self) -> Option<String> {
        let left = self.plan.data.restore.iter().map(|r| format!("the data before is kept in volume {} ({} is used now)", r.live, r.into));
        let left: Vec<String> = left.collect();
        (!left.is_empty()).then(|| left.join("; "))
    }
}

#[cfg(test)]
#[cfg(feature = "backup")]
mod tests;
