//! A release put in place: PREFLIGHT, PREPARE, START_NEW with probes, SWITCH, STOP_OLD, MONITOR. All changed services pass their probes
//! before any is switched. Chooses nothing: strategies and order are the plan's.

use super::acts::Act;
use super::leave::{by_worth, grace_ms, missing_numbers};
use super::patience::away;
use super::prepare::side_by_side;
use super::run::{Halt, Run, failed};
use super::triggers::Watch;
use super::{names, once, preflight, probe};
use crate::engine::EngineError;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::operation::{OperationState, Phase};
use crate::model::plan::{Action, Change, Strategy};
use crate::model::release::ReleaseState;
use crate::model::spec::{Restart, ServiceSpec};
use crate::planner::{self, Observed};
use chrono::Utc;
use std::time::{Duration, Instant};

/// Default watch window after a deploy.
const MONITOR: Duration = Duration::from_secs(10);
/// How often the watch window looks.
const MONITOR_LOOK: Duration = Duration::from_millis(500);
/// How often one probe begins again because the engine ended what it probes.
pub(super) const REVIVALS: u32 = 3;

impl Run {
    /// The whole way of a release. `forward` = a takeover after the switch began: what lies before it was done.
    pub(super) async fn release(&self, forward: bool) -> Result<(), Halt> {
        let mut before_switch = None;
        if !forward {
            self.enter(Phase::Preflight, 2.0, "checking").await?;
            let (checked, alone) = tokio::join!(Box::pin(preflight::check(self)), self.nothing_beside());
            checked.and(alone)?;
            self.record_release().await?;
            Box::pin(self.make_safe()).await?;
            self.enter(Phase::Prepare, 5.0, "preparing images, networks, volumes").await?;
            self.prepare().await?;
            self.enter(Phase::StartNew, 20.0, "starting the new release").await?;
            self.stack_pre_hooks().await?;
            tokio::select! {
                // Measured beside the start: a sample takes its time, and no deploy waits for it.
                biased;
                started = Box::pin(self.start_new()) => started?,
                () = async { self.measure_old().await; std::future::pending().await } => {}
            }
            self.smoke().await?;
            self.canaries().await?;
            before_switch = Some(self.still_well_and_alone().await?);
        }
        self.enter(Phase::Switch, 60.0, "switching to the new release").await?;
        if !forward && self.cancel.is_cancelled() {
            // Accepted before the phase was told, and nothing has been switched yet.
            return Err(Halt::Cancelled);
        }
        self.step(Phase::Switch, "switch".into(), Act::Switch).await?;
        let observed = match before_switch {
            Some(observed) => observed,
            None => {
                // The host may have ended, and with it what was to be switched to.
                Box::pin(self.revive()).await?;
                self.observe().await?
            }
        };
        Box::pin(self.switch(&observed)).await?;
        self.post_hooks().await?;
        self.stack_post_hooks().await?;
        self.enter(Phase::StopOld, 85.0, "retiring the old release").await?;
        Box::pin(self.stop_old()).await?;
        let finished = self.finished_jobs().await?;
        self.update(|op| {
            op.state = OperationState::Monitoring;
            op.phase = Phase::Monitor;
            once::tell(op, &Vec::from_iter(self.data_left()));
            once::tell(op, &finished);
            op.settled_at.get_or_insert_with(Utc::now);
        })
        .await?;
        self.standing.send_modify(|s| {
            s.percent = 95.0;
            s.message = "watching the new release".into();
        });
        let passed = self.monitor().await?;
        self.tell_finished().await?;
        // One that was not watched to its end serves, and is nothing to go back to while there is a better one.
        let state = if passed { ReleaseState::Good } else { ReleaseState::Unproven };
        self.exec.store.set_release_state(&self.plan.stack, self.plan.to_release, state).await?;
        self.tidy().await
    }

    /// Services the plan changes with a new container, in level order.
    pub(super) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.plan.changes.iter().filter(|c| !matches!(c.action, Action::Unchanged | Action::Remove))
    }
    pub(super) fn spec(&self, service: &ServiceName) -> Result<&ServiceSpec, Halt> {
        self.plan.desired.services.get(service).ok_or_else(|| failed(format!("the release has no service {service}")))
    }

    /// Levels one after the other, the services of a level side by side. The first failure is reported when all of its level have ended,
    /// so that nothing starts while it is undone.
    async fn start_new(&self) -> Result<(), Halt> {
        let observed = self.observe().await?;
        for level in &self.plan.levels {
            self.make_way(level, &observed).await?;
            side_by_side(self.changes().filter(|c| level.contains(&c.service)).map(|change| self.start_service(change, &observed))).await?;
        }
        Ok(())
    }

    async fn start_service(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        let service = &change.service;
        let spec = self.spec(service)?;
        let old = self.old_ones(observed, service);
        if (change.action, change.strategy) == (Action::Restart, Strategy::InPlace) {
            self.connect_lost(service, observed).await?;
        }
        if matches!(change.strategy, Strategy::Recreate | Strategy::Hold) {
            self.retire_sharers(service, observed).await?;
        }
        if Box::pin(self.start_behind(change, spec, observed)).await? {
            return Ok(());
        }
        match (change.action, change.strategy) {
            // It follows at the switch.
            (Action::Restart, Strategy::Follow) => Ok(()),
            (Action::Restart, _) => {
                for c in &old {
                    self.step(Phase::StartNew, format!("start:{service}:{}", c.id.short()), Act::Start { id: c.id.clone() }).await?;
                    self.probe_after(&c.id, service, spec, before(c)).await?;
                }
                Ok(())
            }
            (Action::Scale, _) => {
                for number in missing_numbers(&old, spec.replicas) {
                    self.start_serving(Phase::StartNew, service, spec, number, None).await?;
                }
                Ok(())
            }
            (_, Strategy::RunOnce) => {
                for c in &self.at_work(&old).await? {
                    self.retire(Phase::StartNew, service, c).await?;
                }
                self.pre_hooks(service, spec).await?;
                self.run_once(service, spec).await
            }
            (_, Strategy::Handover | Strategy::Alias) => {
                self.pre_hooks(service, spec).await?;
                let id = self.create_step(Phase::StartNew, service, 1, true, None).await?;
                self.step(Phase::StartNew, format!("start:{service}:canary"), Act::Start { id: id.clone() }).await?;
                self.say(format!("probing the canary of {service}"));
                self.probe(&id, service, spec).await?;
                self.data_path(service).await
            }
            (_, Strategy::Recreate) => {
                // Made before the old ones stop: what the engine refuses to make must not cost the service.
                for number in 1..=spec.replicas {
                    let inherits = old.get(number as usize - 1).map(|c| &c.id);
                    self.create_step(Phase::StartNew, service, number, false, inherits).await?;
                }
                self.retire_fronts(Phase::StartNew, service, observed).await?;
                let retiring = if planner::job(&self.plan.desired, service) { self.at_work(&old).await? } else { old.clone() };
                side_by_side(retiring.iter().map(|c| self.retire(Phase::StartNew, service, c))).await?;
                self.pre_hooks(service, spec).await?;
                for number in 1..=spec.replicas {
                    let inherits = old.get(number as usize - 1).map(|c| &c.id);
                    self.start_serving(Phase::StartNew, service, spec, number, inherits).await?;
                }
                self.data_path(service).await
            }
            (
                _,
                Strategy::Start
                | Strategy::InPlace
                | Strategy::Front
                | Strategy::Hold
                | Strategy::Canary
                | Strategy::BlueGreen
                | Strategy::Follow,
            ) => {
                self.retire_fronts(Phase::StartNew, service, observed).await?;
                self.pre_hooks(service, spec).await?;
                for number in 1..=spec.replicas {
                    self.start_serving(Phase::StartNew, service, spec, number, None).await?;
                }
                self.data_path(service).await
            }
        }
    }

    pub(super) async fn create_step(
        &self,
        phase: Phase,
        service: &ServiceName,
        number: u32,
        canary: bool,
        inherits: Option<&EngineName>,
    ) -> Result<EngineName, Halt> {
        let (key, name) = if canary {
            (format!("create:{service}:canary"), names::canary(self.operation_id(), service))
        } else {
            (format!("create:{service}:{number}"), names::working(self.operation_id(), service, number))
        };
        let act = Act::Create { service: service.clone(), number, canary, inherits: inherits.cloned(), name };
        self.step(phase, key.clone(), act).await?;
        self.created(&key).ok_or_else(|| failed(format!("step {key} recorded no container")))
    }

    pub(super) async fn start_serving(
        &self,
        phase: Phase,
        service: &ServiceName,
        spec: &ServiceSpec,
        number: u32,
        inherits: Option<&EngineName>,
    ) -> Result<(), Halt> {
        let id = self.create_step(phase, service, number, false, inherits).await?;
        self.step(phase, format!("start:{service}:{number}"), Act::Start { id: id.clone() }).await?;
        self.say(format!("probing {service}"));
        self.probe(&id, service, spec).await
    }

    /// PROBE of one container: its health check, then the probes of `x-dockwarden`.
    pub(super) async fn probe(&self, id: &EngineName, service: &ServiceName, spec: &ServiceSpec) -> Result<(), Halt> {
        self.probe_after(id, service, spec, 0).await
    }

    /// As [`Run::probe`], for a container that may have run before: the engine had restarted it so often by then.
    pub(super) async fn probe_after(&self, id: &EngineName, service: &ServiceName, spec: &ServiceSpec, restarts: u64) -> Result<(), Halt> {
        self.prove(id, service, spec, restarts, REVIVALS).await
    }

    /// As [`Run::probe_after`]; so often what ended with the engine is started again instead of failing the release.
    pub(super) async fn prove(
        &self,
        id: &EngineName,
        service: &ServiceName,
        spec: &ServiceSpec,
        restarts: u64,
        mut revivals: u32,
    ) -> Result<(), Halt> {
        let phase = self.operation().phase;
        loop {
            let probing = async {
                let job = planner::job(&self.plan.desired, service);
                probe::healthy_after(&*self.exec.engine, &self.permit, id, spec, job, restarts).await?;
                self.own_probes(id, spec).await
            };
            let outcome = tokio::select! {
                outcome = probing => outcome,
                () = self.cancel.cancelled(), if phase < Phase::Switch => return Err(Halt::Cancelled),
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(e) if e.is_away() => self.engine_back(phase).await?,
                Err(e) => {
                    if revivals == 0 || !Box::pin(self.revive()).await? {
                        return Err(self.probe_halt(id, service, e).await);
                    }
                    revivals -= 1;
                }
            }
        }
    }

    /// Policy an old container has, for the way back: the release's text where we have it, since the engine's word loses the retry count.
    pub(super) fn policy_of(&self, service: &ServiceName, old: &ContainerDetail) -> Restart {
        let of_release = self.current.as_ref().and_then(|r| r.spec.services.get(service)).map(|s| s.restart);
        let of_engine = match old.restart_policy.as_str() {
            "always" => Restart::Always,
            "unless-stopped" => Restart::UnlessStopped,
            "on-failure" => Restart::OnFailure(0),
            _ => Restart::No,
        };
        match (of_release, of_engine) {
            (Some(Restart::OnFailure(n)), Restart::OnFailure(_)) => Restart::OnFailure(n),
            (_, engine) => engine,
        }
    }

    /// Grace time of a stop in ms: the file's, else by whether the service writes data.
    pub(super) fn grace(&self, service: &ServiceName) -> u64 {
        let of = |r: &crate::model::spec::StackSpec| r.services.get(service).cloned();
        let spec = self.current.as_ref().and_then(|r| of(&r.spec)).or_else(|| of(&self.plan.desired));
        grace_ms(spec.as_ref(), spec.as_ref().is_some_and(ServiceSpec::single_writer))
    }

    async fn switch(&self, observed: &Observed) -> Result<(), Halt> {
        let order: Vec<&Change> = self.plan.levels.iter().flatten().filter_map(|s| self.changes().find(|c| c.service == *s)).collect();
        for change in &order {
            self.switch_service(change, observed).await?;
        }
        let current = async {
            let stopped = self.exec.store.stack(&self.plan.stack).await?.is_some_and(|s| s.stopped);
            let act = Act::Current { release: self.plan.to_release, previous: self.plan.from_release, stopped };
            self.step(Phase::Switch, "current".into(), act).await.map(|_| ())
        };
        // What serves behind a front has all connections by now, what was started beside nothing has run since StartNew. Both to their end: nothing may
        // change while it is undone.
        let settled = side_by_side(order.into_iter().filter(|c| !settled_alone(c)).map(|change| self.settle_service(change, observed)));
        let (current, settled) = tokio::join!(Box::pin(current), Box::pin(settled));
        current.and(settled)?;
        let kept = self.data_kept();
        if !kept.is_empty() {
            self.step(Phase::Switch, "kept".into(), Act::Keep { kept }).await?;
        }
        Ok(())
    }

    async fn switch_service(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        let service = &change.service;
        let spec = self.spec(service)?;
        let old = self.old_ones(observed, service);
        if change.strategy == Strategy::Follow {
            return self.follow(service, spec, &old).await;
        }
        Box::pin(self.switch_behind(change, observed)).await?;
        if routed(change) {
            return Ok(());
        }
        if change.strategy == Strategy::Handover && change.action == Action::Update {
            // All successors exist before the first predecessor stops: the gap is one stop and one start.
            for number in 1..=spec.replicas {
                self.create_step(Phase::Switch, service, number, false, None).await?;
            }
            self.retire_fronts(Phase::Switch, service, observed).await?;
            // Those that stood behind a front hold no port: they stop when their successors serve.
            // Those that are up come first: what an earlier operation left behind frees no port, and would shift the pairs.
            let (behind, old): (Vec<_>, Vec<_>) = by_worth(&old).into_iter().partition(|c| planner::front::backend(c).is_some());
            let pairs = old.len().max(spec.replicas as usize);
            for i in 0..pairs {
                if let Some(c) = old.get(i) {
                    self.retire(Phase::Switch, service, c).await?;
                }
                if i < spec.replicas as usize {
                    self.start_serving(Phase::Switch, service, spec, u32::try_from(i).unwrap_or(0) + 1, None).await?;
                }
            }
            for c in behind {
                self.retire(Phase::Switch, service, c).await?;
            }
        }
        if change.strategy == Strategy::Alias && change.action == Action::Update {
            self.retire_fronts(Phase::Switch, service, observed).await?;
            for number in 1..=spec.replicas {
                self.start_serving(Phase::Switch, service, spec, number, None).await?;
            }
            for c in &old {
                self.retire(Phase::Switch, service, c).await?;
            }
        }
        if settled_alone(change) { self.policies(change, spec, &old).await } else { Ok(()) }
    }

    /// What is left of the switch of a service once all have switched.
    async fn settle_service(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        if routed(change) {
            return self.settle_behind(change, observed).await;
        }
        self.policies(change, self.spec(&change.service)?, &self.old_ones(observed, &change.service)).await
    }

    /// What is left of the switch of a service behind a front once its routes have changed: the restart policies, and of what has stopped the name.
    async fn settle_behind(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        let (service, phase) = (&change.service, Phase::Switch);
        let old = self.old_ones(observed, service);
        let leaving: Vec<&ContainerDetail> = if change.action == Action::Update { old.iter().collect() } else { vec![] };
        let named = async {
            if change.strategy == Strategy::Hold && change.action == Action::Update {
                self.name_old(phase, service, &old).await?;
                self.name_new_of(phase, service).await?;
            }
            Ok(())
        };
        let (set, taken, named) = tokio::join!(
            self.policies(change, self.spec(service)?, &old),
            // Before it is stopped: what leaves must not come back by itself.
            self.unpolicy_all(phase, service, &leaving),
            named
        );
        set.and(taken).and(self.names_later(service, named))
    }

    /// The file's restart policy for what serves now.
    async fn policies(&self, change: &Change, spec: &ServiceSpec, old: &[ContainerDetail]) -> Result<(), Halt> {
        let service = &change.service;
        if change.strategy == Strategy::RunOnce || spec.restart == Restart::No {
            return Ok(());
        }
        let new: Vec<(String, EngineName)> =
            (1..=spec.replicas).filter_map(|n| self.created(&format!("create:{service}:{n}")).map(|id| (n.to_string(), id))).collect();
        let revived = old.iter().filter(|_| change.action == Action::Restart).map(|c| (c.id.short().to_owned(), c.id.clone()));
        side_by_side(new.into_iter().chain(revived).map(|(tag, id)| async move {
            let act = Act::SetRestart { id, from: Restart::No, to: spec.restart, up: false };
            self.step(Phase::Switch, format!("policy:{service}:{tag}"), act).await.map(|_| ())
        }))
        .await
    }

    /// Restarted after what it depends on: levels come one after the other.
    async fn follow(&self, service: &ServiceName, spec: &ServiceSpec, old: &[ContainerDetail]) -> Result<(), Halt> {
        for c in old.iter().filter(|c| c.state == RunState::Running) {
            self.say(format!("restarting {service}"));
            let act = Act::Restart { id: c.id.clone(), grace_ms: self.grace(service) };
            self.step(Phase::Switch, format!("follow:{service}:{}", c.id.short()), act).await?;
            self.probe(&c.id, service, spec).await?;
        }
        Ok(())
    }

    /// The watch window: what was started must stay up. Ends early when a newer operation wants the stack; whether it passed whole.
    async fn monitor(&self) -> Result<bool, Halt> {
        let window = self.plan.desired.settings.window_s().map_or(MONITOR, Duration::from_secs);
        let start = Instant::now();
        let watched: Vec<(&ServiceName, EngineName)> = self
            .changes()
            .filter(|c| c.strategy != Strategy::RunOnce)
            .flat_map(|c| self.made_copies(&c.service).into_iter().map(move |id| (&c.service, id)))
            .collect();
        if watched.is_empty() {
            return Ok(true);
        }
        // Without a window one look remains: nothing that has ended already is called good.
        let mut watch = if window.is_zero() { Watch::of_nothing() } else { self.begin_watch().await? };
        loop {
            tokio::select! {
                () = tokio::time::sleep(MONITOR_LOOK.min(window.saturating_sub(start.elapsed()))) => {}
                () = self.conclude.cancelled(), if !window.is_zero() => {
                    self.say("the watch window was ended by a newer operation".into());
                    return Ok(false);
                }
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            }
            let due = !window.is_zero() && Self::due(&mut watch, start.elapsed() >= window);
            self.watch_fronts().await?;
            for (service, id) in &watched {
                let spec = self.spec(service)?;
                let looking = self.exec.engine.container(id);
                let looked = if window.is_zero() { Some(looking.await) } else { self.looked(looking).await };
                let Some(seen) = looked else { break };
                match seen {
                    Ok(Some(seen)) => {
                        if let Err(reason) = probe::alive(&seen)
                            && !self.is_finished(service, &seen)
                        {
                            if Box::pin(self.revive()).await? {
                                continue;
                            }
                            self.ailing(&mut watch, service, &seen, reason).await?;
                        } else if due && seen.state == RunState::Running {
                            self.triggers(&mut watch, service, id, spec).await?;
                        }
                    }
                    Ok(None) => return Err(failed(format!("service {service}: its container disappeared in the watch window"))),
                    Err(e) => self.could_not_look(&e),
                }
            }
            if start.elapsed() >= window {
                return Ok(true);
            }
        }
    }

    /// An engine that does not answer says nothing about the release.
    pub(super) fn could_not_look(&self, error: &EngineError) {
        if away(error) {
            self.note_away();
        }
        tracing::warn!(operation = %self.operation_id(), %error, "the watch window could not look");
    }
}

/// Whether a change stands behind a front for good, and its routes are its switch.
fn routed(change: &Change) -> bool {
    matches!(change.strategy, Strategy::Front | Strategy::Hold | Strategy::Canary | Strategy::BlueGreen)
}

/// Whether a change settles by itself before the next service switches: what it stopped serves from the new container alone, which must come back with the engine.
fn settled_alone(change: &Change) -> bool {
    let takes_over = matches!(change.strategy, Strategy::Handover | Strategy::Alias) && change.action == Action::Update;
    change.strategy == Strategy::Follow || takes_over
}

/// Restarts that do not count against a container: those of the life it is in. One that has to be started begins a new one.
pub(super) fn before(c: &ContainerDetail) -> u64 {
    if c.state == RunState::Running { c.restart_count } else { 0 }
}
