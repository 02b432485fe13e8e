//! Holding the writers of a volume still while it is read: pause or stop, and set going again. Deliberately absent: the journal record of it, which
//! the caller writes before (`writers` tells what will be held) so that neither a failure nor a crash leaves a container paused.

use super::reach::Devices;
use super::{Around, BackupError};
use crate::engine::{Engine, EngineError};
use crate::gate::Permit;
use crate::model::ids::{EngineName, StackName};
use crate::model::observed::{ContainerDetail, MountInfo, RunState};
use std::time::Duration;

/// Longest wait for a container to stop before it is killed. Databases need their time to flush.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// Longest wait for one that the engine is just starting again, which cannot be paused, and the pause between two looks at it.
const STARTING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

/// What is done to the containers that write a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quiesce {
    /// Nothing: the snapshot is what a crash at that moment would have left.
    #[default]
    None,
    /// Paused: no write happens during the backup; what the process holds in memory is not in it.
    Pause,
    /// Stopped with their grace time, started again afterwards.
    Stop,
}

impl From<crate::model::spec::Quiesce> for Quiesce {
    fn from(asked: crate::model::spec::Quiesce) -> Self {
        match asked {
            crate::model::spec::Quiesce::None => Self::None,
            crate::model::spec::Quiesce::Pause => Self::Pause,
            crate::model::spec::Quiesce::Stop => Self::Stop,
        }
    }
}

/// A container that can write one of the volumes, running when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Writer {
    /// Container id.
    pub id: EngineName,
    /// Its name, for messages.
    pub name: String,
    /// The engine was starting it again and again: it cannot be paused, so it is stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub looping: bool,
    /// Stack it is of, where this home made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<StackName>,
}

impl Writer {
    /// One that runs.
    pub fn of(id: EngineName, name: String) -> Self {
        Self { id, name, looping: false, stack: None }
    }

    /// As it is seen now.
    pub(super) fn seen(around: Around<'_>, detail: ContainerDetail) -> Self {
        Self { stack: around.stack(&detail.labels), ..Self::of(detail.id, detail.name) }
    }

    /// How it is held.
    fn how(&self, quiesce: Quiesce) -> Quiesce {
        if self.looping && quiesce == Quiesce::Pause { Quiesce::Stop } else { quiesce }
    }
}

/// Running containers that have one of the volumes mounted writable, or one of the host's directories (or a part of it, or what it is a part of), ours or
/// not, but the supervisor's own container.
///
/// # Errors
/// What the engine answered.
pub async fn writers(around: Around<'_>, volumes: &[EngineName], directories: &[String]) -> Result<Vec<Writer>, EngineError> {
    let devices = if directories.is_empty() { Devices::default() } else { Devices::of(around.engine).await? };
    let mut found = Vec::new();
    for summary in around.others().await? {
        if !matches!(summary.state, RunState::Running | RunState::Restarting) {
            continue;
        }
        // Gone between list and look: it writes no more.
        let Some(detail) = around.engine.container(&summary.id).await? else { continue };
        let volume = |m: &MountInfo| m.name.as_deref().is_some_and(|n| volumes.iter().any(|v| v.as_str() == n));
        let directory = |m: &MountInfo| directories.iter().any(|d| devices.touches(m, d));
        let writes = detail.mounts.iter().any(|m| m.writable && (volume(m) || directory(m)));
        if writes {
            found.push(Writer { looping: detail.state == RunState::Restarting, ..Writer::seen(around, detail) });
        }
    }
    Ok(found)
}

/// Sets containers going again after a hold. Harmless for those that run; those that are gone are left out.
///
/// # Errors
/// `NotResumed` naming every container that could not be resumed; all are tried.
pub async fn resume(engine: &dyn Engine, permit: &Permit, held: &[Writer], quiesce: Quiesce) -> Result<(), BackupError> {
    let mut failed = Vec::new();
    for writer in held {
        let result = match (writer.how(quiesce), engine.container(&writer.id).await) {
            (Quiesce::None, _) | (_, Ok(None)) => Ok(()),
            (Quiesce::Pause, Ok(Some(now))) if now.state == RunState::Paused => engine.pause(permit, &writer.id, false).await,
            (Quiesce::Stop, Ok(Some(now))) if now.state != RunState::Running => engine.start(permit, &writer.id).await,
            (Quiesce::Pause | Quiesce::Stop, Ok(Some(_))) => Ok(()),
            (_, Err(e)) => Err(e),
        };
        if let Err(cause) = result {
            failed.push(format!("{} ({cause})", writer.name));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(BackupError::NotResumed { containers: failed.join(", ") }) }
}

/// Holds containers still, one after the other. On an error some are held: whoever journaled the hold resumes all of them.
///
/// # Errors
/// `NotQuiet`, before any is held where one of them is, or may be, the supervisor's own container.
pub(super) async fn hold(around: Around<'_>, permit: &Permit, held: &[Writer], quiesce: Quiesce) -> Result<(), BackupError> {
    let engine = around.engine;
    for writer in held.iter().filter(|_| quiesce != Quiesce::None) {
        around.may_hold(&writer.id, &writer.name, writer.stack.as_ref(), "held")?;
    }
    for writer in held {
        let (result, verb) = match (writer.how(quiesce), settled(engine, writer).await) {
            (Quiesce::None, _) => (Ok(()), "held"),
            // Ended or held since it was listed: it writes no more.
            (_, Ok(None)) => (Ok(()), "held"),
            (_, Ok(Some(now))) if !matches!(now.state, RunState::Running | RunState::Restarting) => (Ok(()), "held"),
            (Quiesce::Pause, Ok(Some(_))) => (engine.pause(permit, &writer.id, true).await, "paused"),
            (Quiesce::Stop, Ok(Some(_))) => (engine.stop(permit, &writer.id, STOP_GRACE).await, "stopped"),
            (_, Err(e)) => (Err(e), "looked at"),
        };
        result.map_err(|cause| BackupError::NotQuiet { container: writer.name.clone(), verb, cause })?;
    }
    Ok(())
}

/// A container as it is, one that is just being started again a moment later.
async fn settled(engine: &dyn Engine, writer: &Writer) -> Result<Option<ContainerDetail>, EngineError> {
    let mut found = engine.container(&writer.id).await?;
    for _ in 0..STARTING.as_millis() / LOOK.as_millis() {
        if found.as_ref().is_none_or(|c| writer.looping || c.state != RunState::Restarting) {
            break;
        }
        tokio::time::sleep(LOOK).await;
        found = engine.container(&writer.id).await?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::{Behaviour, FakeEngine};
    use crate::engine::{ContainerSpec, EngineError, EngineMount};
    use crate::executor::backup::test_permit;
    use crate::model::config::OwnContainer;
    use crate::model::ids::ImageRef;
    use crate::model::spec::MountKind;
    use std::sync::Arc;

    fn around(engine: &FakeEngine) -> Around<'_> {
        Around { engine, instance: "i", own: &OwnContainer::None }
    }

    async fn container(engine: &FakeEngine, name: &str, volume: &str, read_only: bool, started: bool) {
        let mount = EngineMount { source: Some(volume.to_owned()), read_only, ..EngineMount::new(MountKind::Volume, "/data".to_owned()) };
        let name = EngineName::new(name).unwrap();
        let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::new(name.clone(), ImageRef::new("db:1").unwrap()) };
        let id = engine.create_container(&test_permit(), &spec).await.unwrap();
        if started {
            engine.start(&test_permit(), &id).await.unwrap();
        }
    }

    /// Two writers of `data`; a reader, a stopped writer and a writer of something else besides.
    async fn world() -> Arc<FakeEngine> {
        let engine = Arc::new(FakeEngine::new());
        engine.add_image("db:1", Behaviour::running());
        for (name, volume, read_only, started) in [
            ("one", "data", false, true),
            ("reader", "data", true, true),
            ("off", "data", false, false),
            ("other", "else", false, true),
            ("two", "data", false, true),
        ] {
            container(&engine, name, volume, read_only, started).await;
        }
        engine
    }

    async fn states(engine: &FakeEngine) -> Vec<(String, RunState)> {
        let mut all: Vec<_> = engine.containers(&[]).await.unwrap().into_iter().map(|c| (c.name, c.state)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn expected(one: RunState, two: RunState) -> Vec<(String, RunState)> {
        use RunState::{Created, Running};
        [("off", Created), ("one", one), ("other", Running), ("reader", Running), ("two", two)].map(|(n, s)| (n.to_owned(), s)).to_vec()
    }

    fn data() -> Vec<EngineName> {
        vec![EngineName::new("data").unwrap()]
    }

    #[tokio::test]
    async fn running_writers_are_held_and_resumed_and_nobody_else() {
        let engine = world().await;
        for (quiesce, state) in [(Quiesce::None, RunState::Running), (Quiesce::Pause, RunState::Paused), (Quiesce::Stop, RunState::Exited)]
        {
            let found = writers(around(&engine), &data(), &[]).await.unwrap();
            hold(around(&engine), &test_permit(), &found, quiesce).await.unwrap();
            assert_eq!(states(&engine).await, expected(state, state), "{quiesce:?}");
            resume(engine.as_ref(), &test_permit(), &found, quiesce).await.unwrap();
            assert_eq!(states(&engine).await, expected(RunState::Running, RunState::Running), "{quiesce:?}");
        }
    }

    #[tokio::test]
    async fn one_that_cannot_be_held_is_named_and_all_can_be_resumed() {
        let engine = world().await;
        let found = writers(around(&engine), &data(), &[]).await.unwrap();
        engine.fail_next("stop", EngineError::Refused("no".to_owned()));
        let refused = hold(around(&engine), &test_permit(), &found, Quiesce::Stop).await.unwrap_err().to_string();
        assert!(refused.contains("could not be stopped before the backup: the engine refused it: no"), "{refused}");
        resume(engine.as_ref(), &test_permit(), &found, Quiesce::Stop).await.unwrap();
        assert_eq!(states(&engine).await, expected(RunState::Running, RunState::Running));
    }

    #[tokio::test]
    async fn one_that_cannot_be_resumed_is_named() {
        let engine = world().await;
        let found = writers(around(&engine), &data(), &[]).await.unwrap();
        hold(around(&engine), &test_permit(), &found, Quiesce::Pause).await.unwrap();
        engine.fail_next("pause", EngineError::Refused("frozen".to_owned()));
        let error = resume(engine.as_ref(), &test_permit(), &found, Quiesce::Pause).await.unwrap_err().to_string();
        assert!(error.contains("one (the engine refused it: frozen)") ^ error.contains("two (the engine refused it: frozen)"), "{error}");
    }

    #[tokio::test]
    async fn one_that_is_started_again_and_again_is_stopped_since_it_cannot_be_paused() {
        let engine = world().await;
        engine.loop_container("two");
        let found = writers(around(&engine), &data(), &[]).await.unwrap();
        assert_eq!(found.iter().filter(|w| w.looping).map(|w| w.name.as_str()).collect::<Vec<_>>(), ["two"]);
        hold(around(&engine), &test_permit(), &found, Quiesce::Pause).await.unwrap();
        assert_eq!(states(&engine).await, expected(RunState::Paused, RunState::Exited));
        resume(engine.as_ref(), &test_permit(), &found, Quiesce::Pause).await.unwrap();
        assert_eq!(states(&engine).await, expected(RunState::Running, RunState::Running));
    }

    #[tokio::test]
    async fn a_volume_that_stands_for_a_directory_is_a_mount_of_it() {
        let engine = world().await;
        let options = [("type", "none"), ("o", "bind"), ("device", "/srv/shop/data/below")];
        let volume = crate::engine::VolumeCreate {
            name: EngineName::new("bound").unwrap(),
            driver: None,
            driver_opts: options.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            labels: Default::default(),
        };
        engine.create_volume(&test_permit(), &volume).await.unwrap();
        container(&engine, "by-volume", "bound", false, true).await;
        let found = writers(around(&engine), &[], &["/srv/shop/data".to_owned()]).await.unwrap();
        assert_eq!(found.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["by-volume"]);
        let users = super::super::exchange::users(around(&engine), "/srv/shop/data").await.unwrap();
        assert_eq!(users, found);
    }
}
