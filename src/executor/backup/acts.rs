//! The acts on data, as the journal keeps them: writers held and resumed, a volume read into the repository, a snapshot brought back beside the live
//! data. Each is safe to repeat and has its way back beside it. Used by backups and restores and by deploys that make data safe first. Deliberately
//! absent: the order of acts and the journal itself.

use super::command::{self, ServiceCommands};
use super::exchange::{self, Exchange};
use super::quiesce::{Quiesce, Writer, hold, resume};
use super::{
    Around, BackupError, BackupReason, Directory, ForgetPlan, Hands, ProgressSink, SnapshotReport, SnapshotState, copies, definition,
    discard, drill, export, forget, helper, read_directory, snapshot, snapshot_directory,
};
use crate::engine::Engine;
use crate::executor::{CommandGate, restore};
use crate::gate::Permit;
use crate::model::ids::{EngineName, OperationId, ServiceName, SnapshotId, StackName};
use crate::model::labels;
use crate::store::Store;
use crate::store::backup::BackupRecord;
use crate::store::kept::KeptRecord;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One act on data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum DataAct {
    /// Containers that write the volumes are held still. Undo: they are set going again.
    Hold {
        /// Which.
        writers: Vec<Writer>,
        /// How.
        quiesce: Quiesce,
    },
    /// They are set going again. Undo: none.
    Resume {
        /// Which.
        writers: Vec<Writer>,
        /// How they were held.
        quiesce: Quiesce,
    },
    /// A volume is read into the repository and the snapshot recorded. Undo: none (a snapshot harms nobody).
    Snapshot {
        /// Volume.
        volume: EngineName,
        /// Release that wrote it.
        release: Option<u32>,
        /// Further tags.
        tags: Vec<String>,
    },
    /// The `pre` commands of a service's backup. Undo: its `post` commands.
    Before {
        /// Which service, where, what.
        commands: ServiceCommands,
    },
    /// The `post` commands of a service's backup. Undo: none.
    After {
        /// Which service, where, what.
        commands: ServiceCommands,
    },
    /// The output of a service's command is stored and the snapshot recorded. Undo: none.
    Output {
        /// Which service, where, what.
        commands: ServiceCommands,
        /// Release that runs.
        release: Option<u32>,
        /// Further tags.
        tags: Vec<String>,
    },
    /// The supervisor's own databases, keys and memories are copied, checked and stored. Undo: none.
    Instance {
        /// Further tags.
        tags: Vec<String>,
    },
    /// A directory of the host is read into the repository and the snapshot recorded. Undo: none.
    Directory {
        /// Which.
        directory: Directory,
        /// Release that runs.
        release: Option<u32>,
        /// Further tags.
        tags: Vec<String>,
    },
    /// A snapshot is written into a new directory beside the one it was taken of, and compared. Undo: the new directory is removed.
    RestoreDirectory {
        /// Snapshot.
        snapshot: Box<BackupRecord>,
        /// The new directory; its name holds the operation's id, so that it is nobody else's.
        into: PathBuf,
        /// Only what lies at this path of it.
        #[serde(default)]
        path: Option<PathBuf>,
    },
    /// A directory and the one restored beside it change places. Undo: they change back, containers stopped meanwhile.
    Exchange {
        /// Which.
        exchange: Exchange,
    },
    /// Containers of others that were stopped for an exchange are well on what they have now. Undo: none.
    Prove {
        /// Which.
        users: Vec<Writer>,
    },
    /// Kept data is compared with the snapshot that shall hold all of it; noted. Undo: none.
    Cover {
        /// Which.
        kept: Box<KeptRecord>,
        /// Its place as the engine's host names it.
        host: String,
        /// Snapshot.
        snapshot: Box<BackupRecord>,
    },
    /// Kept data that a snapshot holds is removed. Undo: none.
    Discard {
        /// Which.
        kept: Box<KeptRecord>,
        /// Its place as the engine's host names it.
        host: String,
        /// Snapshot that was found to hold all of it, by this operation.
        #[serde(default)]
        compared: Option<String>,
    },
    /// The repository lists the snapshots just taken, with their counts; recorded. Undo: none.
    Count {
        /// Which.
        snapshots: Vec<BackupRecord>,
    },
    /// The repository is checked and a part of its data read; recorded. Undo: none.
    Check {
        /// The `n`th of so many parts.
        part: (u32, u32),
        /// A copy instead of the repository.
        #[serde(default)]
        copy: Option<String>,
    },
    /// A second repository gets the snapshots it lacks and loses those it no longer needs; recorded, also when it fails. Undo: none.
    Copy {
        /// Which.
        copy: String,
    },
    /// A snapshot is written as a plain file that no tool of ours is needed for. Undo: the file is removed.
    Export {
        /// Snapshot.
        snapshot: Box<BackupRecord>,
        /// The file.
        file: PathBuf,
    },
    /// Snapshots that a schedule no longer needs are removed from the repository and the records. Undo: none.
    Forget {
        /// Which, and what stays.
        // One that an earlier version began names none: it is taken over to its end and never begun again.
        #[serde(default)]
        plan: Box<ForgetPlan>,
    },
    /// A restore is rehearsed in a scratch volume and the result recorded. Undo: what it made is removed.
    Drill {
        /// Snapshot.
        snapshot: Box<BackupRecord>,
        /// Name of the scratch volume, and of the container that uses it.
        scratch: EngineName,
        /// Service to start on it.
        service: Option<ServiceName>,
        /// The copy it is taken from, instead of the repository.
        #[serde(default)]
        copy: Option<String>,
    },
    /// A snapshot's data is put into a volume beside the live one and compared. Undo: the volume is removed when this operation made it.
    Restore {
        /// Snapshot.
        snapshot: Box<BackupRecord>,
        /// Volume it is put into.
        into: EngineName,
        /// Whether that volume is made for it.
        made: bool,
        /// Only what lies at this path of it.
        #[serde(default)]
        path: Option<PathBuf>,
        /// Stack the volume is made for, where it is another than the snapshot's.
        #[serde(default)]
        to: Option<StackName>,
    },
}

/// Source of the supervisor's own databases, keys and memories.
pub const INSTANCE: &str = "dockwarden.instance";
/// Step keys of snapshots begin so; the rest is the volume.
pub const SNAPSHOT: &str = "snapshot:";
/// Step keys of exchanges begin so; the rest is the live path.
pub const EXCHANGE: &str = "exchange:";
/// Step keys of commands before a backup begin so; the rest is the service.
pub const BEFORE: &str = "before:";
/// Step keys of commands after a backup begin so; the rest is the service.
pub const AFTER: &str = "after:";
/// Step keys of drills begin so; the rest is the snapshot.
pub const DRILL: &str = "drill:";
/// Step keys of exports begin so; the rest is the snapshot.
pub const EXPORT: &str = "export:";
/// Step key of a removal of snapshots.
pub const FORGET: &str = "forget";
/// Step keys of copies begin so; the rest is the copy.
pub const COPY: &str = "copy:";
/// Step keys of restores begin so; the rest is the volume filled.
pub const RESTORE: &str = "restore:";

impl DataAct {
    /// Key of its step within an operation.
    pub fn key(&self) -> String {
        match self {
            Self::Hold { .. } => "hold".to_owned(),
            Self::Resume { .. } => "resume".to_owned(),
            Self::Snapshot { volume, .. } => format!("{SNAPSHOT}{volume}"),
            Self::Before { commands } => format!("{BEFORE}{}", commands.service),
            Self::After { commands } => format!("{AFTER}{}", commands.service),
            Self::Output { commands, .. } => format!("{SNAPSHOT}stdout:{}", commands.service),
            Self::Instance { .. } => format!("{SNAPSHOT}{INSTANCE}"),
            Self::Directory { directory, .. } => format!("{SNAPSHOT}{}", directory.host),
            Self::RestoreDirectory { into, .. } => format!("{RESTORE}{}", into.display()),
            Self::Exchange { exchange } => format!("{EXCHANGE}{}", exchange.live.display()),
            Self::Prove { .. } => "prove".to_owned(),
            Self::Cover { kept, .. } => format!("cover:{}", kept.place),
            Self::Discard { kept, .. } => format!("discard:{}", kept.place),
            Self::Count { .. } => "count".to_owned(),
            Self::Check { .. } => "check".to_owned(),
            Self::Copy { copy } => format!("{COPY}{copy}"),
            Self::Export { snapshot, .. } => format!("{EXPORT}{}", snapshot.snapshot_id),
            Self::Forget { .. } => FORGET.to_owned(),
            Self::Drill { snapshot, .. } => format!("{DRILL}{}", snapshot.snapshot_id),
            Self::Restore { into, .. } => format!("{RESTORE}{into}"),
        }
    }
}

/// Does acts on data for one operation.
pub(crate) struct Doer<'a> {
    pub(crate) hands: Hands,
    pub(crate) store: &'a Store,
    pub(crate) permit: &'a Permit,
    pub(crate) operation: &'a OperationId,
    pub(crate) stack: Option<StackName>,
    pub(crate) agent: String,
    pub(crate) progress: ProgressSink,
    pub(crate) judge: CommandGate,
}

impl Doer<'_> {
    /// Does an act; safe to repeat.
    pub(crate) async fn perform(&self, act: &DataAct) -> Result<Value, BackupError> {
        match act {
            DataAct::Hold { writers, quiesce } => hold(self.hands.around(), self.permit, writers, *quiesce).await.map(|()| Value::Null),
            DataAct::Resume { writers, quiesce } => {
                resume(self.hands.engine.as_ref(), self.permit, writers, *quiesce).await.map(|()| Value::Null)
            }
            DataAct::Snapshot { volume, release, tags } => self.snapshot(volume, *release, tags).await,
            DataAct::Before { commands } => command::begin(self.hands.engine.as_ref(), self.permit, &self.judge, commands).await,
            DataAct::After { commands } => {
                let world = (self.hands.engine.as_ref(), self.store);
                command::end(world, self.permit, self.operation, &self.judge, commands).await
            }
            DataAct::Output { commands, release, tags } => {
                self.hands.house.room()?;
                let at = Utc::now();
                let stack = self.stack.clone();
                let source = stack.as_ref().map(|s| commands.source(s)).unwrap_or_default();
                let reason = BackupReason { stack, tags: self.tags(*release, tags), definition: self.definition(*release, &source).await? };
                let (source, report) = command::store_output(self, commands, reason).await?;
                self.record(source, report, at, *release, tags).await
            }
            DataAct::Instance { tags } => {
                self.hands.house.room()?;
                let (dir, at) = (helper::SpoolDir::new(&self.hands)?, Utc::now());
                self.store
                    .copy_into(dir.path())
                    .await
                    .map_err(|e| BackupError::Io { path: "the copy of the databases".to_owned(), detail: e.to_string() })?;
                let (reason, progress) = (BackupReason { tags: self.tags(None, tags), ..BackupReason::default() }, self.progress.clone());
                let report = read_directory(&self.hands, reason, INSTANCE, dir.path().to_owned(), progress).await?;
                dir.remove()?;
                self.record(INSTANCE.to_owned(), report, at, None, tags).await
            }
            DataAct::Directory { directory, release, tags } => {
                self.hands.house.room()?;
                let definition = self.definition(*release, &directory.host).await?;
                let reason = BackupReason { stack: self.stack.clone(), tags: self.tags(*release, tags), definition };
                let at = Utc::now();
                let report = snapshot_directory(&self.hands, self.permit, &reason, directory, self.progress.clone()).await?;
                self.record(directory.host.clone(), report, at, *release, tags).await
            }
            DataAct::RestoreDirectory { snapshot, into, path } => {
                Ok(json!(restore::restore_beside(&self.hands, snapshot, into, path.as_deref()).await?))
            }
            DataAct::Exchange { exchange } => exchange.forward().map(|()| json!({"kept": exchange.kept})),
            DataAct::Prove { users } => exchange::prove(self, users).await,
            DataAct::Cover { kept, host, snapshot } => discard::cover(self, kept, host, snapshot).await,
            DataAct::Discard { kept, host, compared } => discard::discard(self, kept, host, compared.as_deref()).await,
            DataAct::Count { snapshots } => drill::count(self, snapshots).await.map(|r| json!(r)),
            DataAct::Check { part, copy } => drill::check(self, *part, copy.as_deref()).await.map(|r| json!(r)),
            DataAct::Copy { copy } => copies::run(self, copy).await.map(|r| json!(r)),
            DataAct::Export { snapshot, file } => export::write(self, snapshot, file).await.map(|r| json!(r)),
            DataAct::Forget { plan } => forget::perform(self, plan).await.map(|r| json!(r)),
            DataAct::Drill { snapshot, scratch, service, copy } => {
                Ok(json!(drill::run(self, snapshot, scratch, service.as_ref(), copy.as_deref()).await?))
            }
            DataAct::Restore { snapshot, into, made, path, to } => {
                let outcome = self.restore(snapshot, into, *made, path.as_deref(), to.as_ref()).await?;
                Ok(json!(outcome))
            }
        }
    }

    /// Tags of a snapshot in the repository: those asked for and where it comes from.
    fn tags(&self, release: Option<u32>, asked: &[String]) -> Vec<String> {
        let own = release.map(|r| format!("release={r}")).into_iter().chain([format!("operation={}", self.operation)]);
        asked.iter().cloned().chain(own).collect()
    }

    /// What a source of a release is part of.
    async fn definition(&self, release: Option<u32>, source: &str) -> Result<Option<String>, BackupError> {
        let (Some(stack), Some(number)) = (&self.stack, release) else { return Ok(None) };
        let failed = |e: crate::store::StoreError| BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() };
        Ok(self.store.release(stack, number).await.map_err(failed)?.map(|r| definition::of(&r, source)))
    }

    async fn snapshot(&self, name: &EngineName, release: Option<u32>, tags: &[String]) -> Result<Value, BackupError> {
        self.hands.house.room()?;
        let volume = self.hands.engine.volume(name).await?.ok_or_else(|| BackupError::NoVolume { volume: name.to_string() })?;
        let definition = self.definition(release, name.as_str()).await?;
        let reason = BackupReason { stack: self.stack.clone(), tags: self.tags(release, tags), definition };
        let at = Utc::now();
        let report = snapshot(&self.hands, self.permit, &reason, &volume, self.progress.clone()).await?;
        self.record(name.to_string(), report, at, release, tags).await
    }

    async fn record(
        &self,
        source: String,
        report: SnapshotReport,
        at: DateTime<Utc>,
        release: Option<u32>,
        tags: &[String],
    ) -> Result<Value, BackupError> {
        if report.state == SnapshotState::Partial {
            tracing::error!(source, snapshot = %report.snapshot_id, unreadable = ?report.unreadable, "the backup is partial");
        }
        let record = BackupRecord {
            snapshot_id: report.snapshot_id.to_string(),
            stack: self.stack.as_ref().map(ToString::to_string),
            volume: source,
            bytes: report.bytes,
            added: report.added,
            files: report.files,
            state: report.state.as_str().to_owned(),
            at,
            agent: self.agent.clone(),
            release,
            tags: tags.to_vec(),
            operation: Some(self.operation.to_string()),
            copies: vec![],
        };
        self.store.put_backup(&record).await.map_err(|cause| BackupError::Unrecorded { snapshot: record.snapshot_id.clone(), cause })?;
        let unreadable: Vec<&String> = report.unreadable.iter().take(10).collect();
        Ok(json!({"snapshot": record, "unreadable": unreadable, "unreadable_count": report.unreadable.len()}))
    }

    async fn restore(
        &self,
        record: &BackupRecord,
        into: &EngineName,
        made: bool,
        path: Option<&Path>,
        to: Option<&StackName>,
    ) -> Result<restore::RestoreOutcome, BackupError> {
        if made {
            // Left by an earlier try of this very step.
            remove_made(self.hands.engine.as_ref(), &self.hands.instance, self.permit, self.operation, into).await?;
        }
        let marks = made.then(|| self.marks(record, into, to));
        let mut outcome = restore::restore_into(&self.hands, self.permit, record, into, marks, path).await?;
        if let Some(to) = to.filter(|_| outcome.verified) {
            outcome.next = self.elsewhere(record, into, to).await?;
        }
        Ok(outcome)
    }

    /// Labels of a volume made here: ours, and none of Compose's, so that Compose takes it for nobody's; made for another stack under the name its file
    /// gives it, it carries what a volume of that stack carries.
    fn marks(&self, record: &BackupRecord, into: &EngineName, to: Option<&StackName>) -> BTreeMap<String, String> {
        let mut marks = BTreeMap::from([
            (labels::INSTANCE.to_owned(), self.hands.instance.clone()),
            (labels::OPERATION.to_owned(), self.operation.to_string()),
            (restore::RESTORED_FROM.to_owned(), record.snapshot_id.clone()),
        ]);
        if let Some(stack) = to.or(self.stack.as_ref()) {
            marks.insert(labels::STACK.to_owned(), stack.to_string());
        }
        if let Some(to) = to {
            let (name, key) = restore::named_for(record, to);
            if name == into.as_str() {
                marks.insert(labels::COMPOSE_PROJECT.to_owned(), to.to_string());
                marks.insert(labels::COMPOSE_VOLUME.to_owned(), key);
            }
        }
        marks
    }

    /// What comes next where data was restored for another stack; the file of the stack it is of is laid beside the exports.
    async fn elsewhere(&self, record: &BackupRecord, into: &EngineName, to: &StackName) -> Result<String, BackupError> {
        let house = &self.hands.house;
        let text = house.definition(&SnapshotId::new(record.snapshot_id.as_str())?).await?.unwrap_or_default();
        let exports = house.exports();
        let file = definition::written(&exports, to.as_str(), &record.snapshot_id, &text).map_err(|e| BackupError::io(&exports, &e))?;
        let file = file.map_or_else(String::new, |f| format!(" The file of the stack it was taken of is {} on the host.", f.display()));
        let (name, key) = restore::named_for(record, to);
        let how = if name == into.as_str() {
            format!("a deploy of stack {to} whose file declares the volume {key} uses it")
        } else {
            format!("{name} was there before and stays; name {into} as an external volume in the file of {to} to use it")
        };
        Ok(format!("{} is untouched and {into} of stack {to} holds the data: {how}.{file}", record.volume))
    }
}

/// Takes an act back; safe to repeat, also when the act itself was never done.
pub(crate) async fn take_back(
    (around, store): (Around<'_>, &Store),
    permit: &Permit,
    operation: &OperationId,
    judge: &CommandGate,
    act: &DataAct,
) -> Result<(), BackupError> {
    let Around { engine, instance, .. } = around;
    match act {
        DataAct::Hold { writers, quiesce } => resume(engine, permit, writers, *quiesce).await,
        DataAct::Export { file, .. } => export::remove(file),
        DataAct::Before { commands } => command::undo((engine, store), permit, operation, judge, commands).await,
        DataAct::RestoreDirectory { into, .. } => restore::remove_beside(into, operation).await,
        DataAct::Exchange { exchange } => exchange::take_back(around, permit, exchange).await,
        DataAct::Restore { into, made: true, .. } => remove_made(engine, instance, permit, operation, into).await,
        DataAct::Drill { scratch, .. } => drill::remove(engine, instance, permit, operation, scratch).await,
        DataAct::Resume { .. }
        | DataAct::After { .. }
        | DataAct::Output { .. }
        | DataAct::Directory { .. }
        | DataAct::Instance { .. }
        | DataAct::Snapshot { .. }
        | DataAct::Prove { .. }
        | DataAct::Cover { .. }
        | DataAct::Discard { .. }
        | DataAct::Count { .. }
        | DataAct::Check { .. }
        | DataAct::Copy { .. }
        | DataAct::Forget { .. }
        | DataAct::Restore { made: false, .. } => Ok(()),
    }
}

/// Removes a volume when this operation made it. A helper of the operation that was killed, or could not be removed, would hold it: those go first.
pub(super) async fn remove_made(
    engine: &dyn Engine,
    instance: &str,
    permit: &Permit,
    operation: &OperationId,
    name: &EngineName,
) -> Result<(), BackupError> {
    let Some(volume) = engine.volume(name).await? else { return Ok(()) };
    let has = |key: &str, value: &str| volume.labels.get(key).is_some_and(|v| v == value);
    if has(labels::INSTANCE, instance) && has(labels::OPERATION, operation.as_str()) {
        helper::sweep(engine, permit, instance, &|at_work| at_work != operation.as_str()).await?;
        engine.remove_volume(permit, name).await?;
    }
    Ok(())
}
