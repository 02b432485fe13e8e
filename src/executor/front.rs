//! Services behind a front, where their way differs from the others': `front` (old and new side by side, then the routes change) and `hold`
//! (connections wait while old and new change places); moving behind a front and away from one; restart, scale and stop with one. Every
//! change of routes is a journaled act whose undo is the routes before. Deliberately absent: the proxy itself (`crate::front`).

use super::acts::Act;
use super::control::LOOK;
use super::leave::{by_worth, missing_numbers};
use super::names;
use super::prepare::side_by_side;
use super::probe::{self, ProbeError};
use super::run::{Halt, Run, failed};
use crate::engine::EngineError;
use crate::model::front::{Command, Limits, Reply, Routes, Status};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, HealthState, RunState};
use crate::model::operation::Phase;
use crate::model::plan::{Action, Change, Strategy};
use crate::model::spec::{Restart, ServiceSpec, StackSpec};
use crate::planner::front::{backend, fronted, fronting, fronts, hash};
use crate::planner::{self, Observed};
use std::time::{Duration, Instant};

/// Time for a started front to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// Grace time of a front's stop, ms: its port is free only after it, and the next holder waits for that.
const GRACE_MS: u64 = 1000;

fn up(c: &ContainerDetail) -> bool {
    matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused)
}

/// Whether it serves, or is about to: one that is paused takes no connection and is to be started.
fn runs(c: &ContainerDetail) -> bool {
    up(c) && c.state != RunState::Paused
}

pub(super) fn limits(stack: &StackSpec, service: &ServiceName) -> Limits {
    fronting(stack, service).map(|f| f.limits).unwrap_or_default()
}

impl Run {
    /// Routes of the new release.
    fn routes(&self, service: &ServiceName, backends: Vec<EngineName>) -> Routes {
        Routes::to(backends, limits(&self.plan.desired, service))
    }

    /// Routes as the release before had them.
    pub(super) fn routes_before(&self, service: &ServiceName, backends: Vec<EngineName>) -> Routes {
        Routes::to(backends, self.current.as_ref().map(|r| limits(&r.spec, service)).unwrap_or_default())
    }

    /// Names of the new containers of a service.
    pub(super) fn new_backends(&self, service: &ServiceName, numbers: std::ops::RangeInclusive<u32>) -> Vec<EngineName> {
        numbers.map(|n| names::backend(self.operation_id(), service, n)).collect()
    }

    /// Fronts of a service that this operation did not make.
    fn old_fronts(&self, observed: &Observed, service: &ServiceName) -> Vec<ContainerDetail> {
        let mine = self.operation_id().to_string();
        fronts(observed, service).into_iter().filter(|c| c.labels.get(labels::OPERATION) != Some(&mine)).cloned().collect()
    }

    /// The front that is there already and is as the release wants it.
    fn kept_front(&self, observed: &Observed, service: &ServiceName) -> Option<ContainerDetail> {
        let digest = |bytes: &[u8]| self.exec.store.keyed_digest(bytes);
        let wanted = hash(&self.plan.desired, service, &digest)?;
        self.old_fronts(observed, service).into_iter().find(|c| c.labels.get(labels::SPEC) == Some(&wanted))
    }

    /// The front that stays and runs.
    pub(super) fn front_in_place(&self, observed: &Observed, service: &ServiceName) -> Option<EngineName> {
        self.kept_front(observed, service).filter(|c| up(c) && self.new_front(service).is_none()).map(|c| c.id)
    }

    /// Whether the service stays behind the front it has.
    pub(super) fn stays_behind(&self, service: &ServiceName, observed: &Observed) -> bool {
        self.kept_front(observed, service).is_some()
    }

    /// Whether a service whose connections waited has got its new routes.
    pub(super) fn serves_again(&self, service: &ServiceName) -> bool {
        self.journal.lock().expect("no panic while held").contains_key(&format!("serve:{service}"))
    }

    fn new_front(&self, service: &ServiceName) -> Option<EngineName> {
        self.created(&format!("create:{service}:front"))
    }

    /// Start and probe of a service behind a front; false when it does not stand behind one, or starts like any other.
    pub(super) async fn start_behind(&self, change: &Change, spec: &ServiceSpec, observed: &Observed) -> Result<bool, Halt> {
        if !fronted(spec) {
            return Ok(false);
        }
        let service = &change.service;
        let old = self.old_ones(observed, service);
        let kept = self.kept_front(observed, service);
        match (change.action, change.strategy) {
            (_, Strategy::Follow) => {}
            (Action::Create, _) => {
                self.pre_hooks(service, spec).await?;
                for number in 1..=spec.replicas {
                    self.start_serving(Phase::StartNew, service, spec, number, None).await?;
                }
                let to = self.new_backends(service, 1..=spec.replicas);
                match kept {
                    Some(front) => {
                        let before = self.routes_before(service, vec![]);
                        self.route_step(Phase::StartNew, format!("route:{service}"), &front.id, before, self.routes(service, to)).await?;
                        self.start_front(Phase::StartNew, service, &front.id, runs(&front)).await
                    }
                    None => {
                        let front = self.make_front(service, to).await?;
                        self.retire_fronts(Phase::StartNew, service, observed).await?;
                        self.start_front(Phase::StartNew, service, &front, false).await
                    }
                }?;
                self.data_path(service).await?;
            }
            (Action::Restart, _) => {
                for c in &old {
                    self.step(Phase::StartNew, format!("start:{service}:{}", c.id.short()), Act::Start { id: c.id.clone() }).await?;
                    self.probe_after(&c.id, service, spec, super::apply::before(c)).await?;
                }
                if let Some(front) = kept {
                    self.start_front(Phase::StartNew, service, &front.id, runs(&front)).await?;
                }
            }
            (Action::Update, Strategy::Front | Strategy::Canary | Strategy::BlueGreen) => {
                self.pre_hooks(service, spec).await?;
                for number in 1..=spec.replicas {
                    self.start_serving(Phase::StartNew, service, spec, number, None).await?;
                }
                if kept.is_none() {
                    self.make_front(service, self.new_backends(service, 1..=spec.replicas)).await?;
                }
                self.data_path(service).await?;
            }
            (Action::Update, Strategy::Hold) => Box::pin(self.hold(service, spec, observed, &old, kept.as_ref())).await?,
            // More or fewer of the same start like any other; their routes change at the switch.
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Connections wait, the old containers stop, the new ones start and pass their probes, connections go on.
    async fn hold(
        &self,
        service: &ServiceName,
        spec: &ServiceSpec,
        observed: &Observed,
        old: &[ContainerDetail],
        kept: Option<&ContainerDetail>,
    ) -> Result<(), Halt> {
        let phase = Phase::StartNew;
        // Made before the waiting begins: what is not running writes nothing.
        for number in 1..=spec.replicas {
            let inherits = old.get(number as usize - 1).map(|c| &c.id);
            self.create_step(phase, service, number, false, inherits).await?;
        }
        let (front, running) = match kept {
            Some(front) => (front.id.clone(), runs(front)),
            None => (self.make_front(service, vec![]).await?, false),
        };
        let held = self.routes(service, vec![]);
        if kept.is_some() {
            // Beside each other: both only prepare the stop.
            let whole: Vec<&ContainerDetail> = old.iter().collect();
            let (held_now, unpoliced) =
                tokio::join!(self.hold_connections(phase, service, observed), self.unpolicy_all(phase, service, &whole));
            held_now.and(unpoliced)?;
        } else {
            self.retire_fronts(phase, service, observed).await?;
        }
        side_by_side(old.iter().map(|c| self.retire(phase, service, c))).await?;
        let starting = async {
            self.start_front(phase, service, &front, running).await?;
            self.pre_hooks(service, spec).await?;
            for number in 1..=spec.replicas {
                let inherits = old.get(number as usize - 1).map(|c| &c.id);
                self.start_serving(phase, service, spec, number, inherits).await?;
            }
            Ok(())
        };
        // While connections wait nothing else is waited for: those that stopped give their names up beside the start.
        let (started, named) = tokio::join!(Box::pin(starting), Box::pin(self.name_old(phase, service, old)));
        started.and(self.names_later(service, named))?;
        let to = self.routes(service, self.new_backends(service, 1..=spec.replicas));
        self.data_path(service).await?;
        self.route_step(phase, format!("serve:{service}"), &front, held, to).await
    }

    /// New connections to a service behind a front that stays wait from here on, and open sessions end within their bound.
    pub(super) async fn hold_connections(&self, phase: Phase, service: &ServiceName, observed: &Observed) -> Result<(), Halt> {
        let Some(front) = self.kept_front(observed, service) else { return Ok(()) };
        self.say(format!("holding connections of {service}"));
        let before = self.routes_before(service, self.old_ones(observed, service).iter().filter_map(backend).collect());
        let key = format!("hold:{service}");
        self.route_step(phase, key.clone(), &front.id, before, self.routes(service, vec![])).await?;
        if runs(&front) && !self.emptied(&key) { self.drain(&front.id, service, vec![]).await } else { Ok(()) }
    }

    /// The switch of a service behind a front: its routes change.
    pub(super) async fn switch_behind(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        let service = &change.service;
        let Some(spec) = self.plan.desired.services.get(service).filter(|s| fronted(s)) else { return Ok(()) };
        let (phase, old) = (Phase::Switch, self.old_ones(observed, service));
        let (made, kept) = (self.new_front(service), self.kept_front(observed, service));
        let before: Vec<EngineName> = old.iter().filter_map(backend).collect();
        match (change.action, change.strategy, &made, &kept) {
            (Action::Update, Strategy::Front | Strategy::Canary | Strategy::BlueGreen, Some(front), _) => {
                // The port changes hands once: from the front before, or from containers that published it themselves.
                self.retire_fronts(phase, service, observed).await?;
                for c in old.iter().filter(|c| backend(c).is_none()) {
                    self.retire(phase, service, c).await?;
                }
                self.start_front(phase, service, front, false).await?;
            }
            (Action::Update, Strategy::Front | Strategy::Canary | Strategy::BlueGreen, None, Some(front)) => {
                let to = self.routes(service, self.new_backends(service, 1..=spec.replicas));
                self.route_step(phase, format!("route:{service}"), &front.id, self.routes_now(service, before)?, to).await?;
                self.start_front(phase, service, &front.id, runs(front)).await?;
            }
            (Action::Scale, _, None, Some(front)) => {
                let stay = by_worth(&old).into_iter().take(spec.replicas as usize).filter_map(backend);
                let added = missing_numbers(&old, spec.replicas).into_iter().map(|n| names::backend(self.operation_id(), service, n));
                let to: Vec<EngineName> = stay.chain(added).collect();
                let before = self.routes_before(service, before);
                self.route_step(phase, format!("route:{service}"), &front.id, before, self.routes(service, to)).await?;
                self.start_front(phase, service, &front.id, runs(front)).await?;
            }
            (Action::Update, Strategy::Front | Strategy::Canary | Strategy::BlueGreen, None, None) | (Action::Scale, _, None, None) => {
                return Err(failed(format!("the front of service {service} is gone; deploy again")));
            }
            _ => {}
        }
        let policy = match (&made, &kept) {
            (Some(front), _) => Some(front),
            (None, Some(front)) if front.restart_policy == "no" => Some(&front.id),
            _ => None,
        };
        if let Some(id) = policy {
            // Whatever the service's own policy: its front comes back with the engine.
            let act = Act::SetRestart { id: id.clone(), from: Restart::No, to: Restart::UnlessStopped, up: false };
            self.step(phase, format!("policy:{service}:front"), act).await?;
        }
        Ok(())
    }

    /// What has to happen behind a front before old containers go: their sessions end, within their bound.
    pub(super) async fn retire_behind(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        let (service, phase) = (&change.service, Phase::StopOld);
        let old = self.old_ones(observed, service);
        let stays = match change.action {
            Action::Remove => return self.retire_fronts(phase, service, observed).await,
            Action::Restart | Action::Stop | Action::Unchanged => return Ok(()),
            Action::Scale => self.plan.desired.services.get(service).map_or(0, |s| s.replicas as usize),
            Action::Create | Action::Update => 0,
        };
        let leaving: Vec<&ContainerDetail> = by_worth(&old).into_iter().skip(stays).filter(|c| backend(c).is_some() && up(c)).collect();
        let front = self.new_front(service).or_else(|| self.kept_front(observed, service).map(|c| c.id));
        if let Some(front) = front.filter(|_| !leaving.is_empty()) {
            // Nothing starts them again while their sessions end.
            let unpolicy = self.unpolicy_all(phase, service, &leaving);
            let draining = async {
                if self.emptied(&format!("route:{service}")) {
                    return Ok(());
                }
                self.drain(&front, service, leaving.iter().filter_map(|c| backend(c)).collect()).await
            };
            let (drained, unpoliced) = tokio::join!(draining, unpolicy);
            drained.and(unpoliced)?;
        }
        side_by_side(leaving.into_iter().map(|c| self.retire(phase, service, c))).await?;
        for (i, front) in self.leaving_fronts(change, observed).iter().enumerate() {
            // Numbers of containers begin at 1; those of fronts lie far from them.
            let to = names::retired(self.operation_id(), service, 1000 + u32::try_from(i).unwrap_or(0));
            self.rename_step(phase, service, &front.id, &front.name, to).await?;
        }
        match self.new_front(service) {
            Some(id) => {
                let from = names::front_working(self.operation_id(), service);
                self.rename_step(phase, service, &id, from.as_str(), names::front(&self.plan.stack, service)).await
            }
            None => Ok(()),
        }
    }

    /// Fronts that this operation replaces or no longer wants.
    fn leaving_fronts(&self, change: &Change, observed: &Observed) -> Vec<ContainerDetail> {
        let kept = match (change.action, self.new_front(&change.service)) {
            (Action::Remove, _) | (_, Some(_)) => None,
            _ => self.kept_front(observed, &change.service).map(|c| c.id),
        };
        self.old_fronts(observed, &change.service).into_iter().filter(|c| Some(&c.id) != kept.as_ref()).collect()
    }

    /// Removes fronts that were replaced, with the volume that holds nothing but their routes.
    pub(super) async fn remove_fronts(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        for front in self.leaving_fronts(change, observed).iter().filter(|c| !up(c)) {
            self.remove_step(&change.service, front, true).await?;
        }
        Ok(())
    }

    /// In the watch window a front of ours must stay up like what stands behind it.
    pub(super) async fn watch_fronts(&self) -> Result<(), Halt> {
        for service in self.plan.changes.iter().map(|c| &c.service) {
            let Some(id) = self.new_front(service) else { continue };
            let reason = match self.exec.engine.container(&id).await {
                Ok(Some(seen)) => probe::alive(&seen).err(),
                Ok(None) => Some("it disappeared".into()),
                Err(e) => {
                    self.could_not_look(&e);
                    None
                }
            };
            if let Some(reason) = reason {
                if Box::pin(self.revive()).await? {
                    continue;
                }
                let reason = format!("its front, in the watch window: {reason}");
                return Err(self.probe_halt(&id, service, ProbeError::Failed { reason, output: None }).await);
            }
        }
        Ok(())
    }

    /// Stops every old front of a service: whoever owns the ports next can have them.
    pub(super) async fn retire_fronts(&self, phase: Phase, service: &ServiceName, observed: &Observed) -> Result<(), Halt> {
        for front in self.old_fronts(observed, service) {
            self.retire_front(phase, service, &front).await?;
        }
        Ok(())
    }

    /// Stops a front so that nothing starts it again.
    pub(super) async fn retire_front(&self, phase: Phase, service: &ServiceName, front: &ContainerDetail) -> Result<(), Halt> {
        let (id, short) = (&front.id, front.id.short());
        let from = self.policy_of(service, front);
        if from != Restart::No {
            let act = Act::SetRestart { id: id.clone(), from, to: Restart::No, up: up(front) };
            self.step(phase, format!("unpolicy:{service}:{short}"), act).await?;
        }
        if up(front) {
            self.step(phase, format!("stop:{service}:{short}"), Act::Stop { id: id.clone(), grace_ms: GRACE_MS }).await?;
        }
        Ok(())
    }

    /// Makes the front of a service, not started.
    async fn make_front(&self, service: &ServiceName, backends: Vec<EngineName>) -> Result<EngineName, Halt> {
        let image = self.exec.front_tag().await.map_err(|e| failed(e.to_string()))?;
        self.step(Phase::StartNew, format!("front-image:{service}"), Act::FrontImage { image: image.clone() }).await?;
        let name = names::front_working(self.operation_id(), service);
        let act = Act::CreateFront { service: service.clone(), image, name, routes: self.routes(service, backends) };
        self.step(Phase::StartNew, format!("create:{service}:front"), act).await?;
        self.new_front(service).ok_or_else(|| failed(format!("the front of {service} was not recorded")))
    }

    /// Starts a front unless it runs, and waits until it answers.
    async fn start_front(&self, phase: Phase, service: &ServiceName, id: &EngineName, running: bool) -> Result<(), Halt> {
        if running {
            return Ok(());
        }
        self.step(phase, format!("start:{service}:front"), Act::Start { id: id.clone() }).await?;
        self.front_answers(id, service, ANSWER).await
    }

    /// Waits until a front that was started answers.
    pub(super) async fn front_answers(&self, id: &EngineName, service: &ServiceName, within: Duration) -> Result<(), Halt> {
        let begun = Instant::now();
        loop {
            let reason = match self.ask_front(id, &Command::Status).await {
                Ok(Reply::Ok(_)) => return Ok(()),
                Ok(other) => format!("its front answers {other:?}"),
                Err(e) => format!("its front does not answer: {e}"),
            };
            if begun.elapsed() >= within {
                return Err(self.probe_halt(id, service, ProbeError::Failed { reason, output: None }).await);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            }
        }
    }

    async fn route_step(&self, phase: Phase, key: String, front: &EngineName, from: Routes, to: Routes) -> Result<(), Halt> {
        self.step(phase, key, Act::Route { front: front.clone(), from, to }).await.map(|_| ())
    }

    /// Whether the front said, when it took the routes of that step, that no session is left on what they no longer name. Nothing new goes there since.
    fn emptied(&self, key: &str) -> bool {
        let journal = self.journal.lock().expect("no panic while held");
        journal.get(key).and_then(|s| s.done.as_ref()).is_some_and(|done| done["open"] == 0)
    }

    /// Waits until the sessions of containers that left the routes have ended, within their bound. A front that does not answer ends nothing: the
    /// bound is its own.
    async fn drain(&self, front: &EngineName, service: &ServiceName, backends: Vec<EngineName>) -> Result<(), Halt> {
        self.say(format!("waiting for open sessions of {service} to end"));
        let before_switch = self.operation().phase < Phase::Switch;
        let draining = self.drained(front, backends, limits(&self.plan.desired, service).drain_ms);
        let state: Result<Status, EngineError> = tokio::select! {
            state = draining => state,
            () = self.cancel.cancelled(), if before_switch => return Err(Halt::Cancelled),
            () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
        };
        match state {
            Ok(status) => {
                let open = status.open();
                if open > 0 {
                    tracing::warn!(operation = %self.operation_id(), %service, open, "sessions still open are cut");
                }
            }
            Err(e) => {
                tracing::warn!(operation = %self.operation_id(), %service, error = %e, "the front could not be asked about open sessions")
            }
        }
        Ok(())
    }

    /// Before a container restarts in place: new connections go to the others, or wait.
    pub(super) async fn route_around(&self, service: &ServiceName, c: &ContainerDetail, observed: &Observed) -> Result<(), Halt> {
        let Some(front) = self.kept_front(observed, service).filter(up) else { return Ok(()) };
        let all = planner::live(observed, service);
        let others = all.iter().filter(|o| o.id != c.id && up(o)).filter_map(|o| backend(o)).collect();
        let from = self.routes(service, all.iter().filter_map(|o| backend(o)).collect());
        let key = format!("aside:{service}:{}", c.id.short());
        self.route_step(Phase::StartNew, key, &front.id, from, self.routes(service, others)).await?;
        // What hangs ends no session by itself.
        if c.health == HealthState::Unhealthy { Ok(()) } else { self.drain(&front.id, service, vec![]).await }
    }

    /// After all of a service have restarted: connections go to each of them, and a front that was stopped runs again.
    pub(super) async fn route_again(&self, phase: Phase, service: &ServiceName, observed: &Observed) -> Result<(), Halt> {
        let Some(front) = self.kept_front(observed, service) else {
            if self.plan.desired.services.get(service).is_some_and(fronted) {
                let note = format!("the front of {service} is gone: deploy makes a new one");
                self.update(|op| op.message = Some(note)).await?;
            }
            return Ok(());
        };
        let all: Vec<EngineName> = planner::live(observed, service).into_iter().filter_map(backend).collect();
        let (from, to) = (self.routes(service, vec![]), self.routes(service, all));
        self.route_step(phase, format!("again:{service}"), &front.id, from, to).await?;
        if front.restart_policy == "no" {
            let act = Act::SetRestart { id: front.id.clone(), from: Restart::No, to: Restart::UnlessStopped, up: false };
            self.step(phase, format!("policy:{service}:{}", front.id.short()), act).await?;
        }
        self.start_front(phase, service, &front.id, runs(&front)).await
    }
}
