//! One run of an operation: the journal around every act, cancel and shutdown between acts, and the way from a plan to a settled state.

use super::acts::Act;
use super::probe::ProbeError;
use super::recover::Takeover;
use super::render::{self, Rendering, Role};
use super::{Executor, Standing};
use crate::engine::{ContainerSpec, EngineError};
use crate::gate::Permit;
use crate::model::ids::*;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, MountInfo};
use crate::model::operation::*;
use crate::model::plan::{Plan, PlanKind};
use crate::model::release::Release;
use crate::model::verdict::{Finding, Verdict};
use crate::planner::{self, Observed};
use crate::store::StoreError;
use chrono::Utc;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// Why an act could not be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fail {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Our own state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// We do not do that.
    #[error("{0}")]
    Refused(String),
}

/// Why a run stops before its end.
#[derive(Debug, Clone)]
pub enum Halt {
    /// Something failed: undo.
    Failed {
        /// Why, in words.
        message: String,
        /// What was kept.
        evidence: Vec<Evidence>,
    },
    /// A caller asked to cancel: undo.
    Cancelled,
    /// The supervisor ends or the journal cannot be written: nothing more is done by this run; a takeover goes on, here or at the next start.
    Interrupted(String),
}

impl From<StoreError> for Halt {
    fn from(e: StoreError) -> Self {
        // No journal row, no action.
        Halt::Interrupted(e.to_string())
    }
}

pub(super) fn failed(message: impl Into<String>) -> Halt {
    Halt::Failed { message: message.into(), evidence: vec![] }
}

/// One operation at work.
#[derive(Debug)]
pub struct Run {
    pub(super) exec: Arc<Executor>,
    pub(super) plan: Plan,
    pub(super) permit: Permit,
    pub(super) current: Option<Release>,
    pub(super) epoch: u64,
    pub(super) op: Mutex<Operation>,
    pub(super) journal: Mutex<BTreeMap<String, StepRecord>>,
    pub(super) standing: tokio::sync::watch::Sender<Standing>,
    pub(super) cancel: CancellationToken,
    pub(super) conclude: CancellationToken,
    /// What the old containers used before anything was changed, by service.
    pub(super) usage: Mutex<BTreeMap<ServiceName, super::triggers::Usage>>,
    /// Containers made by this run that have no bind mount: no path of theirs can lead elsewhere by the time they start.
    pub(super) unbound: Mutex<BTreeSet<EngineName>>,
    pub(super) seen: super::revive::Seen,
    pub(super) undoing: Mutex<super::undo::Undoing>,
    id: OperationId,
}

/// What a run begins with.
pub(super) struct Begin {
    pub(super) exec: Arc<Executor>,
    pub(super) plan: Plan,
    pub(super) permit: Permit,
    pub(super) current: Option<Release>,
    pub(super) op: Operation,
    /// Journal of an interrupted run.
    pub(super) steps: Vec<StepRecord>,
    pub(super) standing: tokio::sync::watch::Sender<Standing>,
    pub(super) cancel: CancellationToken,
    pub(super) conclude: CancellationToken,
}

impl Begin {
    /// The same once more: for a takeover, with a fresh operation, journal and permit.
    pub(super) fn again(&self) -> Begin {
        Begin {
            exec: self.exec.clone(),
            plan: self.plan.clone(),
            permit: crate::gate::permit_takeover(&self.op),
            current: self.current.clone(),
            op: self.op.clone(),
            steps: vec![],
            standing: self.standing.clone(),
            cancel: self.cancel.clone(),
            conclude: self.conclude.clone(),
        }
    }
}

impl Run {
    pub(super) fn new(begin: Begin) -> Self {
        let Begin { exec, plan, permit, current, op, steps, standing, cancel, conclude } = begin;
        let seen = super::revive::Seen::after(steps.iter().map(|s| s.seq).max().unwrap_or(0));
        let journal = steps.into_iter().map(|s| (s.key.clone(), s)).collect();
        let (id, epoch) = (op.id.clone(), op.epoch);
        Self {
            exec,
            plan,
            permit,
            current,
            epoch,
            op: Mutex::new(op),
            journal: Mutex::new(journal),
            standing,
            cancel,
            conclude,
            usage: Mutex::default(),
            unbound: Mutex::default(),
            seen,
            undoing: Mutex::default(),
            id,
        }
    }

    pub(super) fn operation_id(&self) -> &OperationId {
        &self.id
    }
    pub(super) fn operation(&self) -> Operation {
        self.op.lock().expect("no panic while held").clone()
    }

    /// Drives the operation to a settled and then a terminal state.
    pub(super) async fn drive(&self, takeover: Takeover) {
        if takeover != Takeover::None && self.worked_on_data() {
            self.exec.sweep_helpers(&self.permit, &self.id).await;
        }
        let result = match (takeover, self.plan.kind) {
            (Takeover::Undo, _) => Err(self.cause_of_undo()),
            (Takeover::Finish, _) => self.tidy().await,
            (_, PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale) => self.release(takeover == Takeover::Forward).await,
            (_, PlanKind::Restart) => self.restart().await,
            (_, PlanKind::Stop) => self.stop().await,
        };
        let end = match result {
            Ok(()) => self.done().await,
            Err(halt) => self.end(halt).await,
        };
        if let Err(e) = end {
            tracing::error!(operation = %self.id, error = %e, "the end of the operation could not be recorded; the next start takes it over");
        }
    }

    /// Whether it snapshots, brings back or exchanges data: then helpers of its own may be left.
    fn worked_on_data(&self) -> bool {
        let journal = self.journal.lock().expect("no panic while held");
        journal.values().any(|s| matches!(serde_json::from_value(s.intent.clone()), Ok(Act::Data { .. })))
    }

    /// Why a takeover undoes: what was recorded when the undo began, else that the run was interrupted.
    fn cause_of_undo(&self) -> Halt {
        let op = self.operation();
        let begun = self.journal.lock().expect("no panic while held").keys().any(|k| k.starts_with(super::undo::PREFIX));
        let interrupted = || "the supervisor was restarted, or could not write its state, before the switch".to_owned();
        let message = op.message.filter(|_| begun || !op.evidence.is_empty()).unwrap_or_else(interrupted);
        Halt::Failed { message, evidence: op.evidence }
    }

    /// It is done; what needed attention on the stack before is settled by it.
    async fn done(&self) -> Result<(), StoreError> {
        self.settle(OperationState::Done, None, vec![]).await?;
        let whole = self.plan.only.is_none();
        if whole && matches!(self.plan.kind, PlanKind::Deploy | PlanKind::Rollback | PlanKind::Stop) {
            self.exec.store.close_attention(&self.plan.stack, &self.id).await?;
        }
        Ok(())
    }

    /// What follows a halt: undo where there is something to undo, then the matching state.
    pub(super) async fn end(&self, halt: Halt) -> Result<(), StoreError> {
        let (state, message, evidence) = match halt {
            Halt::Interrupted(why) => {
                tracing::warn!(operation = %self.id, %why, "operation interrupted; the next start takes it over");
                self.standing.send_modify(|s| s.message = format!("interrupted: {why}"));
                return Ok(());
            }
            Halt::Cancelled => (OperationState::Cancelled, "cancelled by a caller".to_owned(), vec![]),
            Halt::Failed { message, evidence } => (OperationState::RolledBack, message, evidence),
        };
        let in_place = matches!(self.plan.kind, PlanKind::Restart | PlanKind::Stop);
        if in_place || self.journal.lock().expect("no panic while held").is_empty() {
            let state = if state == OperationState::Cancelled { state } else { OperationState::Failed };
            return self.settle(state, Some(message), evidence).await;
        }
        // Evidence is durable before anything it speaks of is removed.
        self.update(|op| {
            op.message = Some(message.clone());
            op.evidence = evidence.clone();
        })
        .await?;
        let stopped = self.stops_before_data();
        let keep = stopped.as_ref().map(|s| s.keep.clone()).unwrap_or_default();
        let undone = match &stopped {
            Some(s) if s.switched => Ok(()),
            Some(_) | None => self.undo(&keep).await,
        };
        let undone = match undone {
            Ok(()) => self.keep_serving(&keep).await,
            halt => halt,
        };
        let message = self.with_notes(message);
        match undone {
            Ok(()) => {
                if self.plan.to_release > 0 && Some(self.plan.to_release) != self.plan.from_release {
                    let failed = crate::model::release::ReleaseState::Failed;
                    self.exec.store.set_release_state(&self.plan.stack, self.plan.to_release, failed).await?;
                }
                match stopped {
                    Some(s) => {
                        let message = format!("{message}; {}", s.message);
                        self.settle(OperationState::NeedsAttention, Some(message), evidence).await
                    }
                    None => self.settle(state, Some(message), evidence).await,
                }
            }
            Err(Halt::Interrupted(why)) => {
                tracing::warn!(operation = %self.id, %why, "undo interrupted; the next start takes it over");
                Ok(())
            }
            Err(Halt::Failed { message: why, .. }) => {
                let message = format!(
                    "{message}; undoing it failed too: {why}. What is healthy keeps the traffic; deploy, rollback or stop supersedes this"
                );
                self.settle(OperationState::NeedsAttention, Some(message), evidence).await
            }
            Err(Halt::Cancelled) => Ok(()),
        }
    }

    /// Changes the operation and stores it, durable on return.
    pub(super) async fn update(&self, change: impl FnOnce(&mut Operation)) -> Result<(), StoreError> {
        let op = {
            let mut op = self.op.lock().expect("no panic while held");
            change(&mut op);
            op.clone()
        };
        self.exec.store.save_operation(&op).await?;
        self.standing.send_modify(|s| {
            s.state = op.state;
            s.phase = op.phase;
        });
        Ok(())
    }

    pub(super) async fn settle(&self, state: OperationState, message: Option<String>, evidence: Vec<Evidence>) -> Result<(), StoreError> {
        self.update(|op| {
            op.state = state;
            op.phase = Phase::Finished;
            op.message = message.or(op.message.take());
            if !evidence.is_empty() {
                op.evidence = evidence;
            }
            op.settled_at.get_or_insert_with(Utc::now);
        })
        .await
    }

    /// Enters a phase; nothing of it is done before it is recorded.
    pub(super) async fn enter(&self, phase: Phase, percent: f64, message: &str) -> Result<(), Halt> {
        self.update(|op| {
            op.phase = phase;
            if op.state == OperationState::Queued {
                op.state = OperationState::Running;
            }
        })
        .await?;
        self.standing.send_modify(|s| {
            s.percent = percent;
            s.message = message.to_owned();
        });
        Ok(())
    }

    /// Says what is being done, for progress lines.
    pub(super) fn say(&self, message: String) {
        self.standing.send_modify(|s| {
            s.percent = (s.percent + 0.5).min(99.0);
            s.message = message;
        });
    }

    /// One journaled act: intent, act, done. A step done before is not done again.
    pub(super) async fn step(&self, phase: Phase, key: String, act: Act) -> Result<Value, Halt> {
        let known = self.journal.lock().expect("no panic while held").get(&key).cloned();
        if let Some(done) = known.as_ref().and_then(|s| s.done.clone()) {
            return Ok(done);
        }
        if phase < Phase::Switch && self.cancel.is_cancelled() {
            return Err(Halt::Cancelled);
        }
        self.exec.may_go_on()?;
        let (seq, act) = match &known {
            // The intent as it was written decides: what it undoes must match what was done.
            Some(step) => (step.seq, serde_json::from_value(step.intent.clone()).map_err(|e| failed(format!("journal step {key}: {e}")))?),
            None => {
                let intent = serde_json::to_value(&act).expect("an act is plain data");
                let now = Utc::now();
                let seq = self.exec.store.step_intent(&self.id, self.epoch, phase, &key, &intent, now).await?;
                let step =
                    StepRecord { operation: self.id.clone(), seq, phase, key: key.clone(), intent, done: None, at: now, done_at: None };
                self.journal.lock().expect("no panic while held").insert(key.clone(), step);
                self.exec.recorded()?;
                (seq, act)
            }
        };
        self.exec.reactions.acts(&self.plan.stack, std::time::Instant::now());
        // Boxed: every caller of a step would carry the largest act on its stack, several times where steps run beside each other.
        let done = Box::pin(self.perform_patiently(phase, &key, &act)).await?;
        self.exec.recorded()?;
        self.exec.store.step_done(&self.id, seq, &done).await?;
        if let Some(step) = self.journal.lock().expect("no panic while held").get_mut(&key) {
            step.done = Some(done.clone());
        }
        self.exec.recorded()?;
        Ok(done)
    }

    /// Id that a `Create` step recorded.
    pub(super) fn created(&self, key: &str) -> Option<EngineName> {
        let journal = self.journal.lock().expect("no panic while held");
        journal.get(key)?.done.as_ref()?["id"].as_str().and_then(|id| EngineName::new(id).ok())
    }

    /// Containers of the stack that are ours: claim and canaries left out by `planner::serving`.
    pub(super) async fn observe(&self) -> Result<Observed, Halt> {
        let phase = self.operation().phase;
        let observed = self.asking(phase, || self.exec.observe(&self.plan.stack)).await?;
        self.seen.look(&observed);
        Ok(observed)
    }

    /// Serving containers of a service that this operation did not make.
    pub(super) fn old_ones(&self, observed: &Observed, service: &ServiceName) -> Vec<ContainerDetail> {
        let mine = self.id.to_string();
        planner::serving(observed, service).into_iter().filter(|c| c.labels.get(labels::OPERATION) != Some(&mine)).cloned().collect()
    }

    /// Turns findings of the second judgement into a refusal.
    pub(super) fn judge(&self, findings: Vec<Finding>) -> Result<(), Fail> {
        match findings.into_iter().find(|f| f.verdict == Verdict::Deny) {
            Some(f) => Err(Fail::Refused(format!("refused on the way to the engine by rule {}: {}", f.rule, f.because))),
            None => Ok(()),
        }
    }

    /// The engine request for one container of the new release.
    pub(super) async fn render(
        &self,
        service: &ServiceName,
        number: u32,
        canary: bool,
        inherited: &[MountInfo],
    ) -> Result<ContainerSpec, Fail> {
        let image = self.image_id(service).await?;
        let spec = self.plan.desired.services.get(service).ok_or_else(|| Fail::Refused(format!("the release has no service {service}")))?;
        let mut joined = BTreeMap::new();
        for other in render::shared_with(spec) {
            if let Some(id) = self.serving_id(other).await? {
                joined.insert(other.to_owned(), id);
            }
        }
        // A driver is set by the engine's configuration: it does not change while the engine runs.
        let log_driver = self.exec.engine.about().await?.log_driver;
        let digest = |bytes: &[u8]| self.exec.store.keyed_digest(bytes);
        let hash = planner::hash::spec_hash(&self.plan.desired, service, image.as_str(), &digest);
        render::container(&Rendering {
            instance: self.exec.store.instance(),
            stack: &self.plan.desired,
            service,
            number,
            role: if canary { Role::Canary } else { Role::Serving },
            operation: &self.id,
            release: self.plan.to_release,
            image,
            hash,
            inherited,
            carried: self.plan.carried.get(service).cloned().unwrap_or_default(),
            declared: self.declared_volumes(),
            joined,
            log_driver: &log_driver,
        })
        .map_err(Fail::Refused)
    }

    /// Engine names of the volumes that this release or the one before declares.
    pub(super) fn declared_volumes(&self) -> BTreeSet<String> {
        let stacks = [Some(&self.plan.desired), self.current.as_ref().map(|r| &r.spec)];
        stacks.into_iter().flatten().flat_map(|stack| stack.volumes.values().map(|v| v.name.clone())).collect()
    }

    async fn serving_id(&self, service: &str) -> Result<Option<EngineName>, Fail> {
        let service = ServiceName::new(service).map_err(|e| Fail::Refused(e.to_string()))?;
        let observed = self.exec.observe(&self.plan.stack).await?;
        let mine = self.id.to_string();
        let found = planner::live(&observed, &service);
        Ok(found.iter().find(|c| c.labels.get(labels::OPERATION) == Some(&mine)).or(found.first()).map(|c| c.id.clone()))
    }

    /// Image id of a service: the plan's, else what this operation pulled.
    pub(super) async fn image_id(&self, service: &ServiceName) -> Result<ImageRef, Fail> {
        let identity = self.plan.images.get(service).ok_or_else(|| Fail::Refused(format!("service {service} has no image")))?;
        if let Some(id) = &identity.id {
            return ImageRef::new(id.as_str()).map_err(|e| Fail::Refused(e.to_string()));
        }
        if let Some((id, _)) = self.pulled(service) {
            return Ok(id);
        }
        // A pull journaled before its result was.
        let info = self.exec.engine.image(&identity.reference).await?;
        let info = info.ok_or_else(|| Fail::Refused(format!("image {} is not on the engine", identity.reference)))?;
        ImageRef::new(info.id).map_err(|e| Fail::Refused(e.to_string()))
    }

    /// Turns a failed probe into a halt with evidence, taken now.
    pub(super) async fn probe_halt(&self, id: &EngineName, service: &ServiceName, error: ProbeError) -> Halt {
        let evidence = super::probe::evidence(&*self.exec.engine, id, service.as_str(), &error).await;
        Halt::Failed { message: format!("service {service}: {error}"), evidence: vec![evidence] }
    }
}
