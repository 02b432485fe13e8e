//! One-shot services at work: run to their end, remembered by their key, never started a second time. The key is durable before anything of the
//! operation is taken back, so that a crash between the end of a run and its record does not lead to another run. Beside them jobs, for whose end nobody
//! waits: an operation that started one tells when it is finished.

use super::acts::Act;
use super::run::{Fail, Halt, Run, failed};
use super::{Executor, probe};
use crate::engine::EngineError;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::observed::RunState;
use crate::model::operation::{Operation, Phase};
use crate::model::plan::{Action, Change};
use crate::model::spec::ServiceSpec;
use crate::planner;
use crate::store::StoreResult;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Grace time of a one-shot that is stopped in the middle: what migrates data gets time to end its transaction.
const GRACE: Duration = Duration::from_secs(10);

fn place(stack: &StackName) -> String {
    format!("once:{stack}")
}

impl Executor {
    /// What each one-shot service of a stack last ran to its end for.
    ///
    /// # Errors
    /// The store's.
    pub async fn once(&self, stack: &StackName) -> StoreResult<BTreeMap<ServiceName, String>> {
        let known = self.store.value(&place(stack)).await?;
        Ok(known.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default())
    }

    async fn remember(&self, stack: &StackName, service: &ServiceName, key: &str) -> StoreResult<()> {
        // One-shots of a level end side by side, and their keys are one value.
        let _one = self.runs.lock().await;
        let mut known = self.once(stack).await?;
        known.insert(service.clone(), key.to_owned());
        self.store.set_value(&place(stack), &json!(known)).await
    }

    /// Forgets all runs of a stack: it was removed.
    pub(super) async fn forget_runs(&self, stack: &StackName) -> StoreResult<()> {
        self.store.set_value(&place(stack), &json!({})).await
    }
}

impl Run {
    /// Makes and runs a one-shot, waits for its end, remembers it.
    pub(super) async fn run_once(&self, service: &ServiceName, spec: &ServiceSpec) -> Result<(), Halt> {
        let id = self.create_step(Phase::StartNew, service, 1, false, None).await?;
        let key = self.once_key(service).await?;
        let act = Act::RunOnce { service: service.clone(), id: id.clone(), key: key.clone() };
        self.step(Phase::StartNew, format!("start:{service}:1"), act).await?;
        self.say(format!("waiting for {service} to end"));
        loop {
            let ended = tokio::select! {
                ended = probe::completed(&*self.exec.engine, &id, spec) => ended,
                () = self.cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            };
            match ended {
                Ok(()) => break,
                Err(e) if e.is_away() => self.engine_back(Phase::StartNew).await?,
                Err(e) => return Err(self.probe_halt(&id, service, e).await),
            }
        }
        self.step(Phase::StartNew, format!("ran:{service}"), Act::Ran { service: service.clone(), key }).await?;
        self.data_path(service).await
    }

    async fn once_key(&self, service: &ServiceName) -> Result<String, Halt> {
        let mut images = self.plan.images.clone();
        for (name, identity) in &mut images {
            if identity.id.is_none() {
                identity.id = Some(self.image_id(name).await.map_err(|e| failed(e.to_string()))?.to_string());
            }
        }
        let digest = |bytes: &[u8]| self.exec.store.keyed_digest(bytes);
        planner::once::key(&self.plan.desired, service, &images, &digest)
            .ok_or_else(|| failed(format!("service {service} waits for a service without an image")))
    }

    /// Starts it unless it was started before, by whichever run of the supervisor.
    pub(super) async fn start_once(&self, id: &EngineName) -> Result<Value, Fail> {
        let seen = self.exec.engine.container(id).await?;
        if seen.is_some_and(|c| c.started_at.is_some()) {
            return Ok(Value::Null);
        }
        self.exec.engine.start(&self.permit, id).await?;
        Ok(Value::Null)
    }

    pub(super) async fn remember_run(&self, service: &ServiceName, key: &str) -> Result<Value, Fail> {
        self.exec.remember(&self.plan.stack, service, key).await?;
        Ok(Value::Null)
    }

    /// Stops a one-shot that is being taken back; one that had ended well counts as run.
    pub(super) async fn stop_once(&self, service: &ServiceName, id: &EngineName, key: &str) -> Result<(), Fail> {
        let Some(seen) = self.exec.engine.container(id).await? else { return Ok(()) };
        let at_work = matches!(seen.state, RunState::Running | RunState::Restarting | RunState::Paused);
        if at_work {
            match self.exec.engine.stop(&self.permit, id, GRACE).await {
                Ok(()) | Err(EngineError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        } else if seen.started_at.is_some() && seen.state == RunState::Exited && seen.exit_code == 0 {
            self.exec.remember(&self.plan.stack, service, key).await?;
        }
        Ok(())
    }

    /// Says which jobs of this operation are finished.
    pub(super) async fn tell_finished(&self) -> Result<(), Halt> {
        let notes = self.finished_jobs().await?;
        if !notes.is_empty() {
            self.update(|op| tell(op, &notes)).await?;
        }
        Ok(())
    }

    /// Jobs this operation started that have ended well, one note each.
    pub(super) async fn finished_jobs(&self) -> Result<Vec<String>, Halt> {
        let started = |c: &&Change| !matches!(c.action, Action::Unchanged | Action::Remove | Action::Stop);
        let jobs: Vec<&ServiceName> =
            self.plan.changes.iter().filter(started).map(|c| &c.service).filter(|s| planner::job(&self.plan.desired, s)).collect();
        if jobs.is_empty() {
            return Ok(vec![]);
        }
        let observed = self.observe().await?;
        let ended = |s: &ServiceName| {
            let live = planner::live(&observed, s);
            !live.is_empty() && self.plan.desired.services.get(s).is_some_and(|spec| live.iter().all(|c| probe::finished(c, spec)))
        };
        Ok(jobs.into_iter().filter(|s| ended(s)).map(|s| format!("service {s} finished: exit code 0")).collect())
    }
}

/// Adds notes to an operation's message, each once.
pub(super) fn tell(op: &mut Operation, notes: &[String]) {
    for note in notes {
        op.message = Some(match op.message.take() {
            Some(m) if m.contains(note.as_str()) => m,
            Some(m) => format!("{m}; {note}"),
            None => note.clone(),
        });
    }
}
