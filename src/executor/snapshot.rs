//! SNAPSHOT: what a plan does with data before anything is prepared or switched. Snapshots it brings back are put beside the live data and compared;
//! volumes of services about to be replaced are read into the repository while their writers are held still. Deliberately absent: which volumes, and how
//! a restored volume is taken into use (it is a name in the release, switched like everything else of it).

use super::backup::acts::{self, DataAct, Doer};
use super::backup::command;
use super::backup::keep::PRE_UPDATE;
use super::backup::{BackupError, Directory, Hands, Progress, Quiesce, ServiceCommands, SnapshotState, Writer, resume, writers};
use super::restore::RestoreOutcome;
use super::run::{Fail, Halt, Run, failed};
use crate::executor::acts::Act;
use crate::model::ids::{ServiceName, SnapshotId};
use crate::model::observed::{MountInfo, RunState};
use crate::model::operation::Phase;
use crate::model::plan::PlannedDirectory;
use crate::planner;
use crate::store::backup::BackupRecord;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

mod directories;

/// Longest wait for a removal from the repository, with the stack held.
const CALM: Duration = Duration::from_secs(300);

fn directory(planned: &PlannedDirectory) -> Directory {
    Directory { host: planned.host.clone(), here: Some(planned.here.clone()), real: planned.real.clone() }
}

pub(super) use directories::{HOLD, RESUME};

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
        if data.snapshot.is_empty() && data.directories.is_empty() && data.restore.is_empty() && data.exchange.is_empty() {
            return Ok(());
        }
        self.enter(Phase::Snapshot, 3.0, "making the data safe").await?;
        let hands = self.hands().map_err(|e| failed(e.to_string()))?;
        self.interruptible(async { hands.house.ensure().await.map_err(|e| failed(e.to_string())) }).await?;
        for planned in &data.restore {
            let snapshot = self.snapshot_of(&planned.snapshot_id).await?;
            self.say(format!("restoring {} of {}", planned.snapshot_id, planned.source));
            let done = self.data_step(DataAct::Restore { snapshot, into: planned.into.clone(), made: true, path: None, to: None }).await?;
            came_back(done)?;
        }
        self.before_update().await?;
        self.exchange_directories().await
    }

    async fn snapshot_of(&self, id: &str) -> Result<Box<BackupRecord>, Halt> {
        let known = SnapshotId::new(id).map_err(|e| failed(e.to_string()))?;
        let record = self.exec.store.backup(&known).await?;
        record.map(Box::new).ok_or_else(|| failed(format!("snapshot {id} is not recorded any more")))
    }

    async fn before_update(&self) -> Result<(), Halt> {
        let (data, quiesce) = (&self.plan.data, Quiesce::from(self.plan.data.quiesce));
        if data.snapshot.is_empty() && data.directories.is_empty() {
            return Ok(());
        }
        let commands = self.commands().await?;
        // Waited for before anything is asked of the stack: neither its commands' effect nor its pause lasts as long as somebody cleans up the repository.
        let _calm = if quiesce == Quiesce::None && commands.is_empty() {
            None
        } else {
            self.say("waiting until nothing is removed from the repository".to_owned());
            Some(self.calm().await?)
        };
        let around: Vec<&ServiceCommands> = commands.iter().filter(|c| !c.pre.is_empty() || !c.post.is_empty()).collect();
        for commands in &around {
            self.say(format!("running the commands of {} before its snapshot", commands.service));
            self.data_step(DataAct::Before { commands: (*commands).clone() }).await?;
        }
        // Commands are run in containers that run: their output is taken before any is held.
        for commands in commands.iter().filter(|c| c.stdout.is_some()) {
            self.say(format!("storing the output of {} before the update", commands.service));
            let (release, tags) = (self.plan.from_release, vec![PRE_UPDATE.to_owned()]);
            self.data_step(DataAct::Output { commands: commands.clone(), release, tags }).await?;
        }
        // Who writes is asked when all of that is over: it may have taken long.
        let directories: Vec<Directory> = data.directories.iter().map(directory).collect();
        let held = match quiesce {
            Quiesce::None => vec![],
            Quiesce::Pause | Quiesce::Stop => self.writers(&directories).await?,
        };
        if !held.is_empty() {
            self.data_step_to_its_end(DataAct::Hold { writers: held.clone(), quiesce }).await?;
        }
        let (release, tags) = (self.plan.from_release, vec![PRE_UPDATE.to_owned()]);
        let volumes = data.snapshot.iter().map(|volume| DataAct::Snapshot { volume: volume.clone(), release, tags: tags.clone() });
        let directories = directories.into_iter().map(|directory| DataAct::Directory { directory, release, tags: tags.clone() });
        for act in volumes.chain(directories) {
            let key = act.key();
            let source = key.strip_prefix(acts::SNAPSHOT).unwrap_or(&key);
            self.say(format!("snapshot of {source} before the update"));
            let done = match self.data_step(act).await {
                Err(Halt::Interrupted(why)) => {
                    self.let_go(&held, quiesce).await;
                    return Err(Halt::Interrupted(why));
                }
                other => other?,
            };
            if done["snapshot"]["state"] != SnapshotState::Complete.as_str() {
                return Err(failed(format!(
                    "the snapshot of {source} before the update is partial ({} files could not be read, which `backup` of it names): let the supervisor read \
                     them, or have an operator set pre_update = false for the stack in dockwarden.toml to go on without one",
                    done["unreadable_count"]
                )));
            }
        }
        if !held.is_empty() {
            self.data_step_to_its_end(DataAct::Resume { writers: held, quiesce }).await?;
        }
        for commands in around {
            self.data_step_to_its_end(DataAct::After { commands: commands.clone() }).await?;
        }
        Ok(())
    }

    /// Those who write what is read: this stack's, and those of the stacks that the plan names. Nobody else is held for an update of this one.
    async fn writers(&self, directories: &[Directory]) -> Result<Vec<Writer>, Halt> {
        let hosts: Vec<String> = directories.iter().map(|d| d.bound().to_owned()).collect();
        let found = writers(self.exec.around(), &self.plan.data.snapshot, &hosts).await.map_err(|e| failed(e.to_string()))?;
        let ours = |w: &Writer| w.stack.as_ref().is_some_and(|s| *s == self.plan.stack || self.plan.data.also_held.contains(s));
        let (held, others): (Vec<Writer>, Vec<Writer>) = found.into_iter().partition(ours);
        if !others.is_empty() {
            let names: Vec<&str> = others.iter().map(|w| w.name.as_str()).collect();
            tracing::warn!(operation = %self.operation_id(), containers = ?names, "others write what is snapshotted before the update; they are not held");
        }
        Ok(held)
    }

    /// Nothing is removed from the repository as long as it is kept. A removal that takes long is not waited for to its end.
    async fn calm(&self) -> Result<tokio::sync::OwnedRwLockReadGuard<()>, Halt> {
        let house = self.hands().map_err(|e| failed(e.to_string()))?.house;
        let late = || failed("the backup repository is being cleaned up, which takes its time; nothing was changed: deploy again later");
        self.interruptible(async { tokio::time::timeout(CALM, house.calm()).await.map_err(|_| late()) }).await
    }

    /// What the release that runs has run around the reading of its data. In a container that does not run nothing can be asked for: its data is at rest.
    async fn commands(&self) -> Result<Vec<ServiceCommands>, Halt> {
        let Some(current) = self.current.as_ref().filter(|_| !self.plan.data.commands.is_empty()) else { return Ok(vec![]) };
        let observed = self.observe().await?;
        let mut out = vec![];
        for service in &self.plan.data.commands {
            let own = current.spec.services.get(service).and_then(|s| s.settings.backup.clone()).unwrap_or_default();
            let running = planner::serving(&observed, service).into_iter().find(|c| c.state == RunState::Running);
            match running {
                Some(container) => {
                    out.push(ServiceCommands::of(service.clone(), current.environment.clone(), container.id.clone(), own));
                }
                None => self.say(format!("{service} does not run: its data is read without its commands")),
            }
        }
        Ok(out)
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
        command::may_begin(&self.exec.judge_of(&self.permit), &act).map_err(|e| failed(e.to_string()))?;
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
        Ok(Hands { engine, house, instance, operation: self.operation_id().clone(), own: self.exec.own.clone() })
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
            judge: self.exec.judge_of(&self.permit),
        };
        Ok(doer.perform(act).await?)
    }

    /// Takes an act on data back; safe to repeat.
    pub(super) async fn take_back_data(&self, act: &DataAct) -> Result<(), Fail> {
        let judge = self.exec.judge_of(&self.permit);
        Ok(acts::take_back((self.exec.around(), &self.exec.store), &self.permit, self.operation_id(), &judge, act).await?)
    }

    /// Restored volumes take the place of those that have no name in the file. Which they are.
    pub(super) fn put_in_place(&self, service: &ServiceName, inherited: &mut [MountInfo]) -> Vec<String> {
        let mut placed = vec![];
        for restore in self.plan.data.restore.iter().filter(|r| r.service.as_ref() == Some(service)) {
            for mount in inherited.iter_mut().filter(|m| m.kind == "volume" && m.name.as_deref() == Some(restore.live.as_str())) {
                mount.name = Some(restore.into.to_string());
                placed.push(restore.into.to_string());
            }
        }
        placed
    }
}

/// Data that came back is the snapshot's, or is not taken into use.
fn came_back(done: Value) -> Result<(), Halt> {
    let outcome: RestoreOutcome = serde_json::from_value(done).map_err(|e| failed(e.to_string()))?;
    if outcome.verified {
        return Ok(());
    }
    // Names of files are a container's choice: they stay in the journal and in the log.
    tracing::error!(snapshot = outcome.snapshot_id, differences = ?outcome.differences, "a snapshot does not come back equal");
    let (id, count) = (outcome.snapshot_id, outcome.differences.len());
    Err(failed(format!("snapshot {id} does not come back equal ({count} differences, which `restore` of it without swap names)")))
}

#[cfg(test)]
#[cfg(feature = "backup")]
mod tests;
