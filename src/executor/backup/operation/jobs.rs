//! The order of acts of each job. Whatever was begun when one of them stops is taken back by the operation around it.

use super::super::acts::{DataAct, INSTANCE, SNAPSHOT};
use super::super::reach;
use super::super::{
    BackupError, BackupJob, DataJob, Directory, ForgetPlan, Forgotten, Keeping, PARTIAL, Quiesce, ServiceCommands, Silent, SnapshotState,
    export, keep, named, writers,
};
use super::{Stop, Work};
use crate::executor::restore::{self, RestoreOutcome};
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::observed::RunState;
use crate::model::operation::{OperationState, Phase};
use crate::store::backup::copies::CopyRecord;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
use crate::store::kept::KeptRecord;
use chrono::Utc;
use serde_json::Value;
use std::path::PathBuf;

impl Work {
    pub(super) async fn go(&self, job: &DataJob) -> Result<Option<String>, Stop> {
        let phase = match job {
            DataJob::Backup(_) => Phase::Snapshot,
            DataJob::Restore { .. }
            | DataJob::RestoreDirectory { .. }
            | DataJob::Drill { .. }
            | DataJob::Discard { .. }
            | DataJob::Check { .. }
            | DataJob::Copy { .. }
            | DataJob::Export { .. }
            | DataJob::Forget { .. } => Phase::Prepare,
        };
        self.update(|op| (op.state, op.phase) = (OperationState::Running, phase)).await?;
        match job {
            DataJob::Backup(job) => {
                let warning = self.backup(job).await?;
                let Some(keep) = &job.keep else { return Ok(warning) };
                let and = |more: String| Some(warning.as_ref().map_or_else(|| more.clone(), |w| format!("{w}; {more}")));
                match self.forget(keep).await {
                    Ok(None) => Ok(warning),
                    Ok(Some(spared)) => Ok(and(spared)),
                    // The data is safe: what could not be thinned out says nothing of it.
                    Err(Stop::Failed(why, _)) => {
                        tracing::warn!(operation = %self.id, why, "snapshots that a schedule no longer needs were not removed");
                        Ok(and(format!("snapshots that the schedule no longer needs were not removed: {why}")))
                    }
                    Err(other) => Err(other),
                }
            }
            DataJob::Drill { snapshots, copy } => self.drill(snapshots, copy.as_ref()).await,
            DataJob::Check { part, copy } => {
                let which = copy.as_ref().map_or_else(|| "the repository".to_owned(), |c| format!("the copy {c}"));
                self.say(0.0, format!("checking {which} and reading part {} of {} of its data", part.0, part.1));
                let done = self.interruptible(self.step(DataAct::Check { part: *part, copy: copy.clone() })).await?;
                sound(&done)
            }
            DataJob::Copy { copy } => self.copy(copy).await,
            DataJob::Export { snapshots } => {
                let exports = self.hands()?.house.exports();
                for (n, snapshot) in snapshots.iter().enumerate() {
                    self.say(100.0 * n as f64 / snapshots.len() as f64, format!("exporting {}", snapshot.volume));
                    let file = export::place(&exports, snapshot, &self.id);
                    self.interruptible(self.step(DataAct::Export { snapshot: Box::new(snapshot.clone()), file })).await?;
                }
                Ok(None)
            }
            DataJob::Forget { plan } => self.remove(plan.as_ref().clone()).await,
            DataJob::Restore { snapshot, into, path, to } => self.restore(snapshot, into.clone(), path.clone(), to.clone()).await,
            DataJob::Discard { kept, host, snapshot } => self.discard(kept, host, snapshot.as_deref()).await,
            DataJob::RestoreDirectory { snapshot, directory, path } => self.restore_beside(snapshot, directory, path.clone()).await,
        }
    }

    async fn backup(&self, job: &BackupJob) -> Result<Option<String>, Stop> {
        let (quiesce, release) = (job.quiesce, job.release);
        let hands = self.hands()?;
        self.interruptible(async { Ok(hands.house.ensure().await?) }).await?;
        let (commands, silent) = self.runnable(job).await?;
        // Before anything is asked of the stack: neither its commands' effect nor its pause lasts as long as somebody cleans up the repository.
        let calm = match quiesce {
            Quiesce::None if commands.is_empty() => None,
            Quiesce::None | Quiesce::Pause | Quiesce::Stop => {
                self.say(0.0, "waiting until nothing is removed from the repository".to_owned());
                Some(self.interruptible(async { Ok(hands.house.calm().await) }).await?)
            }
        };
        let around = || commands.iter().filter(|c| !c.pre.is_empty() || !c.post.is_empty());
        for commands in around() {
            self.say(0.0, format!("running the commands of {} before its backup", commands.service));
            self.interruptible(self.step(DataAct::Before { commands: commands.clone() })).await?;
        }
        // Commands are run in containers that run: their output is taken before any is held.
        let outputs = commands.iter().filter(|c| c.stdout.is_some());
        let outputs = outputs.map(|c| DataAct::Output { commands: c.clone(), release, tags: job.tags.clone() });
        let volumes = job.volumes.iter().map(|v| DataAct::Snapshot { volume: v.clone(), release, tags: job.tags.clone() });
        let directories = job.directories.iter().map(|d| DataAct::Directory { directory: d.clone(), release, tags: job.tags.clone() });
        let (mut taken, mut partial) = (vec![], vec![]);
        partial.extend(
            silent.iter().filter(|s| s.output).map(|s| format!("{} (it does not run: what its command writes is not stored)", s.service)),
        );
        let own = job.instance.then(|| DataAct::Instance { tags: job.tags.clone() });
        let outputs = own.into_iter().chain(outputs);
        let all = outputs.clone().count() + job.volumes.len() + job.directories.len();
        for act in outputs {
            let n = taken.len();
            taken.push(self.read(act, (n, all), &mut partial).await?);
        }
        let hosts: Vec<String> = job.directories.iter().map(|d| d.bound().to_owned()).collect();
        let held = match quiesce {
            Quiesce::None => vec![],
            Quiesce::Pause | Quiesce::Stop => writers(self.exec.around(), &job.volumes, &hosts).await.map_err(BackupError::from)?,
        };
        if !held.is_empty() {
            self.say(0.0, format!("holding {} containers still", held.len()));
            self.step(DataAct::Hold { writers: held.clone(), quiesce }).await?;
        }
        for act in volumes.chain(directories) {
            let n = taken.len();
            taken.push(self.read(act, (n, all), &mut partial).await?);
        }
        if !held.is_empty() {
            self.step(DataAct::Resume { writers: held, quiesce }).await?;
        }
        drop(calm);
        for commands in around() {
            self.step(DataAct::After { commands: commands.clone() }).await?;
        }
        let counted = self.interruptible(self.step(DataAct::Count { snapshots: taken })).await?;
        sound(&counted)?;
        let warning = format!(
            "{PARTIAL} not everything could be read of {}; `operation` names what: let the supervisor read it and back up again",
            partial.join(", ")
        );
        let rest: Vec<&str> = silent.iter().filter(|s| !s.output).map(|s| s.service.as_str()).collect();
        let rest = format!("{} does not run: its data was read without its commands", rest.join(", "));
        let rest = silent.iter().any(|s| !s.output).then_some(rest);
        let said: Vec<String> = (!partial.is_empty()).then_some(warning).into_iter().chain(rest).collect();
        Ok((!said.is_empty()).then(|| said.join("; ")))
    }

    /// The commands that can be run, and the services that do not run: what is to be asked for in their containers must not keep the others' data from
    /// being read.
    async fn runnable(&self, job: &BackupJob) -> Result<(Vec<ServiceCommands>, Vec<Silent>), Stop> {
        let (mut commands, mut silent) = (vec![], job.silent.clone());
        for of in &job.commands {
            let found = self.exec.engine.container(&of.container).await.map_err(BackupError::from)?;
            if found.is_some_and(|c| c.state == RunState::Running) {
                commands.push(of.clone());
            } else {
                silent.push(Silent { service: of.service.clone(), output: of.stdout.is_some() });
            }
        }
        Ok((commands, silent))
    }

    /// One source, the `n`th of so many; what could not be read of it is added to `partial`.
    async fn read(&self, act: DataAct, (n, all): (usize, usize), partial: &mut Vec<String>) -> Result<BackupRecord, Stop> {
        let key = act.key();
        let source = key.strip_prefix(SNAPSHOT).unwrap_or(&key);
        self.say(100.0 * n as f64 / all as f64, format!("reading {source}"));
        let done = self.interruptible(self.step(act)).await?;
        if done["snapshot"]["state"] == SnapshotState::Partial.as_str() {
            let unreadable = done["unreadable"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
            let count = done["unreadable_count"].as_u64().unwrap_or_default();
            // Names that a container may have chosen.
            let shown = named(source, format!("{count} files could not be read"), unreadable);
            self.evidence.lock().expect("no panic while held").push(shown);
            partial.push(format!("{source} ({count} files)"));
        }
        serde_json::from_value(done["snapshot"].clone()).map_err(|e| Stop::failed(e.to_string()))
    }

    /// All of them, also after one has failed: which come back and which do not is what a drill is for.
    async fn drill(&self, snapshots: &[(BackupRecord, Option<ServiceName>)], copy: Option<&String>) -> Result<Option<String>, Stop> {
        let mut failed = vec![];
        for (n, (snapshot, service)) in snapshots.iter().enumerate() {
            self.say(100.0 * n as f64 / snapshots.len() as f64, format!("rehearsing the restore of {}", snapshot.volume));
            let name = format!("dockwarden-drill-{}", ulid::Ulid::generate().to_string().to_lowercase());
            let scratch = EngineName::new(name).map_err(|e| Stop::failed(e.to_string()))?;
            let act = DataAct::Drill { snapshot: Box::new(snapshot.clone()), scratch, service: service.clone(), copy: copy.cloned() };
            let done: DrillRecord =
                serde_json::from_value(self.interruptible(self.step(act)).await?).map_err(|e| Stop::failed(e.to_string()))?;
            if !done.passed {
                failed.push(format!("{} of {} ({})", done.snapshot_id, done.volume, done.detail));
            }
        }
        if failed.is_empty() { Ok(None) } else { Err(Stop::failed(format!("the drill FAILED for {}", failed.join("; ")))) }
    }

    /// A copy that failed is recorded like one that did not.
    async fn copy(&self, copy: &str) -> Result<Option<String>, Stop> {
        self.say(0.0, format!("bringing the copy {copy} up to date"));
        let done = self.interruptible(self.step(DataAct::Copy { copy: copy.to_owned() })).await?;
        let record: CopyRecord = serde_json::from_value(done).map_err(|e| Stop::failed(e.to_string()))?;
        if record.passed {
            Ok(Some(record.told()))
        } else {
            Err(Stop::failed(format!("the copy {copy} is not up to date: {}", record.detail)))
        }
    }

    /// What the schedule no longer needs goes, also after a backup that was not whole: of each source and each period the newest whole snapshot stays. The
    /// data is safe, so the stack is let go before: this may wait for others and take long.
    async fn forget(&self, keep: &Keeping) -> Result<Option<String>, Stop> {
        let (stack, own) = (self.operation().stack, Some(INSTANCE));
        let own = if stack.is_none() { own } else { None };
        let records = self.exec.store.backups(stack.as_ref(), own, usize::MAX).await?;
        let kept = self.exec.store.kept(stack.as_ref()).await?;
        let failed = self.exec.store.failed_drills(None).await?;
        let gone = keep::forgettable_here(&keep::uncovering(records.clone(), &kept), keep, &failed, Utc::now());
        let plan = ForgetPlan::new(&records, &gone, &failed);
        if plan.going.is_empty() {
            return Ok(None);
        }
        self.let_go().await?;
        self.remove(plan).await
    }

    /// What is planned to go goes; what stays all the same, in words.
    async fn remove(&self, plan: ForgetPlan) -> Result<Option<String>, Stop> {
        self.say(99.0, format!("removing {} snapshots the schedule no longer needs", plan.going.len()));
        let done = self.interruptible(self.step(DataAct::Forget { plan: Box::new(plan) })).await?;
        let done: Forgotten = serde_json::from_value(done).map_err(|e| Stop::failed(e.to_string()))?;
        Ok(done.told())
    }

    async fn restore_beside(&self, snapshot: &BackupRecord, directory: &Directory, path: Option<PathBuf>) -> Result<Option<String>, Stop> {
        let into = restore::beside(directory, snapshot, &self.id)?;
        reach::unmoved(self.exec.around(), directory).await?;
        self.say(0.0, format!("restoring {} bytes of {} into {}", snapshot.bytes, snapshot.volume, into.display()));
        let act = DataAct::RestoreDirectory { snapshot: Box::new(snapshot.clone()), into, path };
        let done = self.interruptible(self.step(act)).await?;
        self.compared(done)
    }

    async fn discard(&self, kept: &KeptRecord, host: &str, snapshot: Option<&BackupRecord>) -> Result<Option<String>, Stop> {
        let (boxed, place) = (Box::new(kept.clone()), &kept.place);
        if let Some(snapshot) = snapshot {
            self.say(0.0, format!("comparing {place} with snapshot {}", snapshot.snapshot_id));
            let act = DataAct::Cover { kept: boxed.clone(), host: host.to_owned(), snapshot: Box::new(snapshot.clone()) };
            self.interruptible(self.step(act)).await?;
        }
        let holds = snapshot.map(|s| s.snapshot_id.clone()).or_else(|| kept.covered.clone()).unwrap_or_default();
        self.say(80.0, format!("removing {place}"));
        let compared = snapshot.map(|s| s.snapshot_id.clone());
        self.step(DataAct::Discard { kept: boxed, host: host.to_owned(), compared }).await?;
        Ok(Some(match holds.as_str() {
            "" => format!("{place} was gone already: its record is removed"),
            holds => format!("{place} is removed; snapshot {holds} holds all that was in it and is marked `keep`: no schedule removes it"),
        }))
    }

    async fn restore(
        &self,
        snapshot: &BackupRecord,
        into: Option<EngineName>,
        path: Option<PathBuf>,
        to: Option<StackName>,
    ) -> Result<Option<String>, Stop> {
        let target = restore::target(&self.hands()?, snapshot, into, to.as_ref()).await?;
        self.say(0.0, format!("restoring {} bytes of {} into {}", snapshot.bytes, snapshot.volume, target.name));
        let act = DataAct::Restore { snapshot: Box::new(snapshot.clone()), into: target.name, made: target.made, path, to };
        let done = self.interruptible(self.step(act)).await?;
        self.compared(done)
    }

    fn compared(&self, done: Value) -> Result<Option<String>, Stop> {
        let outcome: RestoreOutcome = serde_json::from_value(done).map_err(|e| Stop::failed(e.to_string()))?;
        if outcome.verified {
            return Ok(None);
        }
        // The volume stays, to be looked at.
        let count = outcome.differences.len();
        let why = format!("{} does not equal the snapshot ({count} differences, which `operation` names)", outcome.volume);
        Err(Stop::Failed(why, vec![named(&outcome.volume, format!("{count} differences"), outcome.differences)]))
    }
}

/// A failed look at the repository is the operation's failure; its record is kept.
fn sound(done: &Value) -> Result<Option<String>, Stop> {
    let record: CheckRecord = serde_json::from_value(done.clone()).map_err(|e| Stop::failed(e.to_string()))?;
    if record.passed {
        return Ok((!record.detail.is_empty()).then(|| format!("sound; strange, and no harm to any snapshot: {}", record.detail)));
    }
    Err(Stop::failed(format!(
        "{} is NOT sound: {}; take no comfort in its snapshots before `restic check` says why",
        record.copy.as_ref().map_or_else(|| "the backup repository".to_owned(), |c| format!("the copy {c}")),
        record.detail
    )))
}
