//! Holding the writers of a volume still while it is read: pause or stop, and always set going again. Deliberately absent: the journal
//! record of it, which the caller writes before (`writers` tells what will be held) so that a crash leaves no container paused.

use super::BackupError;
use crate::engine::Engine;
use crate::gate::Permit;
use crate::model::ids::EngineName;
use crate::model::observed::RunState;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a container to stop before it is killed. Databases need their time to flush.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// What is done to the containers that write a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
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

/// A container that can write one of the volumes, running when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Writer {
    /// Container id.
    pub id: EngineName,
    /// Its name, for messages.
    pub name: String,
}

/// Running containers that have one of the volumes mounted writable, ours or not.
///
/// # Errors
/// What the engine answered.
pub async fn writers(engine: &dyn Engine, volumes: &[EngineName]) -> Result<Vec<Writer>, BackupError> {
    let mut found = Vec::new();
    for summary in engine.containers(&[]).await? {
        if !matches!(summary.state, RunState::Running | RunState::Restarting) {
            continue;
        }
        // Gone between list and look: it writes no more.
        let Some(detail) = engine.container(&summary.id).await? else { continue };
        let writes = detail.mounts.iter().any(|m| m.writable && m.name.as_deref().is_some_and(|n| volumes.iter().any(|v| v.as_str() == n)));
        if writes {
            found.push(Writer { id: detail.id, name: detail.name });
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
        let result = match (quiesce, engine.container(&writer.id).await) {
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

/// Writers held still. Released explicitly; dropped instead (a cancelled call), it releases them in the background.
pub(super) struct Held {
    engine: Arc<dyn Engine>,
    permit: Permit,
    writers: Vec<Writer>,
    quiesce: Quiesce,
}

impl Held {
    pub(super) async fn release(mut self) -> Result<(), BackupError> {
        // Emptied only afterwards: cancelled in the middle, the drop resumes once more.
        let result = resume(self.engine.as_ref(), &self.permit, &self.writers, self.quiesce).await;
        self.writers.clear();
        result
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.writers.is_empty() {
            return;
        }
        let (engine, permit, writers, quiesce) = (self.engine.clone(), self.permit.clone(), std::mem::take(&mut self.writers), self.quiesce);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    if let Err(error) = resume(engine.as_ref(), &permit, &writers, quiesce).await {
                        tracing::error!(%error, "containers are still held after a cancelled backup");
                    }
                });
            }
            Err(_) => tracing::error!(?writers, "containers are still held: the supervisor is ending; its next start resumes them"),
        }
    }
}

/// Holds all writers of the volumes; all or none.
pub(super) async fn hold(engine: &Arc<dyn Engine>, permit: &Permit, volumes: &[EngineName], quiesce: Quiesce) -> Result<Held, BackupError> {
    let mut held = Held { engine: engine.clone(), permit: permit.clone(), writers: Vec::new(), quiesce };
    if quiesce == Quiesce::None {
        return Ok(held);
    }
    for writer in writers(engine.as_ref(), volumes).await? {
        // Counted as held before it is: an unclear answer is resumed rather than left.
        held.writers.push(writer.clone());
        let (result, verb) = match quiesce {
            Quiesce::None => (Ok(()), "held"),
            Quiesce::Pause => (engine.pause(permit, &writer.id, true).await, "paused"),
            Quiesce::Stop => (engine.stop(permit, &writer.id, STOP_GRACE).await, "stopped"),
        };
        if let Err(cause) = result {
            held.release().await?;
            return Err(BackupError::NotQuiet { container: writer.name, verb, cause });
        }
    }
    Ok(held)
}
