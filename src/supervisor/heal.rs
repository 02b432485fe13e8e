//! Healing: what is not well is restarted, recreated or rolled back through the line, as the policy says, within a persisted budget; then
//! the loop gives up loudly. Silent while an operation holds the stack, when a human stopped it, when the root cause is a dependency, in a
//! maintenance window, when the host itself fails, and while an engine that was away settles. While an operation needs attention it only restarts.

mod by_hand;
mod drift;
mod host;
mod loops;
mod memory;
mod patients;
mod slow;
mod successor;
mod uncharge;

use super::incidents::Incidents;
use super::policy::{self, Act, Circumstances, Course, Step};
use super::watch::{self, Wake};
use crate::call::House;
use crate::call::diagnose::{self, Ailment};
use crate::call::hands::Hands;
use crate::call::spare;
use crate::engine::EngineError;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::incident::Cause;
use crate::model::labels;
use crate::model::release::{Release, ReleaseState, StackRecord};
use crate::model::spec::HealMode;
use crate::planner;
use crate::store::StoreResult;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc::Sender;

/// Operations that may have helped a service the loop has given up. An export or a drill changes nothing for it.
const HELPS: [&str; 5] = ["deploy", "rollback", "restart", "scale", "stop"];
/// When the loop last looked at everything.
const SEEN: &str = "loop:seen";
/// When the host as a whole was last reported.
const HOST: &str = "loop:host_failing";
/// After the engine was away, or the host has just booted, its own restart policies and the start periods come first.
const SETTLING: TimeDelta = TimeDelta::seconds(20);
/// A host up for less has just booted.
const BOOT: f64 = 120.0;

/// The healer's memory between looks; what must outlive a restart is in the store.
#[derive(Debug)]
pub struct Healer {
    house: Arc<House>,
    wake: Sender<Wake>,
    incidents: Incidents,
    hands: Hands,
    signs: by_hand::Signs,
    engine_lost: bool,
    quiet_until: Option<DateTime<Utc>>,
    /// Last look of the supervisor before this one, until its stops by hand were looked for.
    seen: Option<DateTime<Utc>>,
    /// Stacks that did not answer while the engine did.
    slow: slow::Slow,
    scans: u32,
    high: memory::High,
    /// Since when services are down.
    down: host::Down,
    restarts: loops::Restarts,
    /// Containers of Compose that were told of as successors of ours.
    replaced: BTreeSet<EngineName>,
}

/// One look at a stack.
struct Look<'a> {
    stack: &'a StackName,
    release: &'a Release,
    now: DateTime<Utc>,
}

impl Healer {
    /// A healer over a house; remembers what was stopped by hand before a restart of the supervisor. `wake` is how it calls itself back.
    pub async fn new(house: Arc<House>, wake: Sender<Wake>) -> Self {
        let hands = Hands::read(&house.store).await.unwrap_or_else(|e| {
            tracing::error!(error = %e, "what was stopped by hand could not be read");
            Hands::default()
        });
        let signs = by_hand::Signs::new(&hands);
        let quiet_until = booted_just_now().then(|| Utc::now() + SETTLING);
        let incidents = Incidents::new(house.clone());
        let seen = match house.store.value(SEEN).await {
            Ok(at) => at.and_then(|v| v["at"].as_str().and_then(|t| t.parse().ok())),
            Err(e) => {
                tracing::error!(error = %e, "the time of the last look could not be read; containers stopped since count as failed");
                None
            }
        };
        Self {
            house,
            wake,
            incidents,
            hands,
            signs,
            engine_lost: false,
            quiet_until,
            seen,
            slow: slow::Slow::default(),
            scans: 0,
            high: memory::High::new(),
            down: host::Down::default(),
            restarts: loops::Restarts::default(),
            replaced: BTreeSet::new(),
        }
    }

    /// Takes a wake-up.
    pub async fn woken(&mut self, wake: Wake) {
        let stack = match wake {
            Wake::Stopped(id, place, at) => {
                let stack = place.stack.clone();
                if self.stopped(id, place, at).await {
                    // Whoever stops one often stops more: those that have ended may not have been told of yet.
                    watch::later(self.wake.clone(), Wake::Look(stack), watch::STOP_FOLLOWS);
                }
                return;
            }
            Wake::Withdrawn(ids) => return self.withdrawn(&ids).await,
            Wake::Started(_, id) => {
                if self.hands.started(&id) {
                    self.keep_hands().await;
                }
                return;
            }
            Wake::Ending(id, seen) => return self.signs.ending(id, seen),
            Wake::Removed(id, place) => {
                let stack = place.stack.clone();
                self.signs.removed(id, place);
                stack
            }
            Wake::Look(stack) => stack,
        };
        self.look_and_say(&stack, false).await;
        self.house.executor.reactions().looked(&stack);
    }

    /// Looks at every stack.
    pub async fn scan(&mut self) {
        match self.house.store.stacks().await {
            Ok(stacks) => {
                self.forget_gone(&stacks).await;
                for stack in stacks {
                    self.look_and_say(&stack.name, true).await;
                }
            }
            Err(e) => tracing::error!(error = %e, "the stacks could not be read"),
        }
        if self.scans.is_multiple_of(drift::EVERY)
            && self.seen.is_none()
            && let Err(e) = self.house.store.set_value(SEEN, &json!({"at": Utc::now()})).await
        {
            tracing::error!(error = %e, "the time of this look could not be kept");
        }
        self.scans = self.scans.wrapping_add(1);
    }

    async fn look_and_say(&mut self, stack: &StackName, scan: bool) {
        // Before it is known what a person stopped meanwhile, everything that is down looks like a failure.
        self.absent().await;
        if self.seen.is_some() {
            return;
        }
        match self.look(stack, scan).await {
            Ok(()) => {}
            // The engine answers, and something of this stack does not: the others are looked at all the same.
            Err(LookError::Engine(EngineError::Timeout { .. })) if self.answers().await => self.does_not_answer(stack).await,
            // One that hangs is as far away as one that is gone: what it says first afterwards is as little to be trusted.
            Err(LookError::Engine(e @ (EngineError::Unreachable { .. } | EngineError::Timeout { .. }))) => {
                if !self.engine_lost {
                    tracing::warn!(error = %e, "the engine does not answer; nothing is healed until it does");
                }
                self.engine_lost = true;
            }
            Err(e) => tracing::warn!(%stack, error = %e, "could not look at the stack"),
        }
    }

    async fn look(&mut self, name: &StackName, scan: bool) -> Result<(), LookError> {
        if self.slow.rests(name) {
            return Ok(());
        }
        let Some(stack) = self.house.store.stack(name).await? else { return Ok(()) };
        let latest = Utc::now() + SETTLING;
        self.quiet_until = self.quiet_until.map(|t| t.min(latest));
        let (Some(current), false) = (stack.current, stack.stopped) else {
            self.forget_hands(name).await;
            let why = if stack.stopped { "its stack was stopped" } else { "its stack has no release" };
            self.incidents.gone(|of, _| (of == name).then_some(why), Utc::now()).await?;
            return Ok(());
        };
        if self.house.executor.held_by(name).await?.is_some() {
            return Ok(());
        }
        let Some(release) = self.house.store.release(name, current).await? else { return Ok(()) };
        let runs = |service: &ServiceName| release.spec.services.get(service).is_some_and(|s| s.active);
        self.incidents
            .gone(|of, service| (of == name && !runs(service)).then_some("its stack has no such service any more"), Utc::now())
            .await?;
        let observed = self.house.executor.observe(name).await?;
        self.slow.answered(name);
        self.reconcile_by_hand().await?;
        let now = Utc::now();
        if std::mem::take(&mut self.engine_lost) {
            tracing::info!("the engine answers again");
            self.quiet_until = Some(now + SETTLING);
        }
        let look = Look { stack: name, release: &release, now };
        let lately = self.restarts.lately(&observed.containers, now - release.created_at < loops::WINDOW, now);
        let restarts = |c: &crate::model::observed::ContainerDetail| lately.get(&c.id).copied().unwrap_or_default();
        let mut ailing = diagnose::ailments(&release, &observed, &self.hands.ids(), &restarts, now);
        self.note_hands(&look, &observed, &ailing).await?;
        if scan {
            // One that was given up ails for ever, and is no reason to let the others grow.
            let large = self.too_large(&look, &observed).await;
            ailing.extend(large.into_iter().filter(|l| !ailing.iter().any(|a| a.service == l.service)).collect::<Vec<_>>());
        }
        for service in release.spec.services.keys() {
            if !ailing.iter().any(|a| a.service == *service) {
                self.well(&look, service).await?;
            }
        }
        // While nothing may be changed nothing is tried, and nothing is used up.
        let frozen = crate::call::approval::frozen(&self.house.store).await.map_err(|e| LookError::Frozen(e.to_string()))?.is_some();
        if frozen || self.quiet_until.is_some_and(|t| t > now) || self.in_maintenance(name, now) {
            return Ok(());
        }
        let ailing = self.without_successor(&look, ailing).await?;
        let by_hand = self.tell_hands(&look, &observed, &ailing).await?;
        let ailing = self.left_alone(&look, ailing);
        if ailing.is_empty() {
            return if scan && !by_hand && self.scans.is_multiple_of(drift::EVERY) { self.drift(&look).await } else { Ok(()) };
        }
        if self.host_failing(now).await? {
            return Ok(());
        }
        for patient in self.patients(&look, &ailing).await? {
            // The first act holds the stack; its end wakes the loop for the others, and an act that could not begin is not to be charged to them.
            if self.treat(&look, &patient, &observed).await? {
                break;
            }
        }
        Ok(())
    }

    fn in_maintenance(&self, stack: &StackName, now: DateTime<Utc>) -> bool {
        let covering = self.house.config.settings.maintenance.iter().filter(|w| w.covers(stack.as_str()));
        covering.into_iter().any(|w| {
            super::schedule::within(&w.schedule, w.minutes, now).unwrap_or_else(|e| {
                tracing::error!(error = %e, "a maintenance window cannot be read");
                false
            })
        })
    }

    /// Whether more than half of all services went down at once, and still are; said once for each time.
    async fn host_failing(&mut self, now: DateTime<Utc>) -> Result<bool, LookError> {
        let left_out = |s: &StackRecord| s.stopped || s.current.is_none() || self.house.executor.holding(&s.name).is_some();
        let (left_out, stacks): (Vec<_>, Vec<_>) = self.house.store.stacks().await?.into_iter().partition(left_out);
        let left_out: BTreeSet<StackName> = left_out.into_iter().map(|s| s.name).collect();
        let found = self.house.engine.containers(&[labels::filter(labels::INSTANCE, self.house.store.instance())]).await?;
        let mut seen = host::seen(&found, &left_out, &self.hands.ids());
        for stack in stacks {
            let Some(release) = self.house.store.release(&stack.name, stack.current.unwrap_or_default()).await? else { continue };
            let look = Look { stack: &stack.name, release: &release, now };
            let mut given_up = BTreeSet::new();
            for service in release.spec.services.keys() {
                if self.course(&look, service).await?.quarantined.is_some() {
                    given_up.insert(service.clone());
                }
            }
            host::leave_out(&mut seen, &release.spec, &given_up, self.in_maintenance(&stack.name, now));
        }
        let (sick, all) = self.down.at_once(&seen, now);
        if !policy::host_failing(sick, all) {
            return Ok(false);
        }
        let store = &self.house.store;
        let last = super::schedule::noted(store.value(HOST).await?.as_ref(), now);
        let detail = json!({"at": now, "cause": Cause::Host, "services_down": sick, "services": all});
        // Noted while it lasts, so that its end is known by the silence.
        if last.is_none_or(|t| now - t >= TimeDelta::minutes(1)) {
            store.set_value(HOST, &detail).await?;
        }
        if last.is_none_or(|t| now - t >= policy::WINDOW) {
            tracing::error!(
                sick,
                all,
                "more than half of all services went down at once: this is the host or the engine, nothing is restarted"
            );
            store.audit_event(super::WARDEN, "host_failing", None, &detail, now).await?;
        }
        Ok(true)
    }

    /// Read each time: what the store no longer has, since the stack was given back, is not remembered here either.
    async fn course(&self, look: &Look<'_>, service: &ServiceName) -> StoreResult<Course> {
        let stored = self.house.store.value(&place(look.stack, service)).await?;
        let kept: Course = stored.map_or_else(Course::default, |v| {
            serde_json::from_value(v).unwrap_or_else(|e| {
                tracing::error!(error = %e, "the course of a service is unreadable; it begins anew");
                Course::default()
            })
        });
        let fresh = Course { release: look.release.number, ..Course::default() };
        // A release made by somebody else, or a hand that helped since, begins anew; one the loop made itself is part of the course.
        if kept.release != look.release.number && look.release.agent != super::WARDEN {
            return self.anew(look, service, &kept, fresh).await;
        }
        if let Some(given_up) = kept.quarantined {
            let operations = self.house.store.operations(Some(look.stack), 5).await?;
            if operations.iter().any(|o| o.agent != super::WARDEN && o.created_at > given_up && HELPS.contains(&o.verb.as_str())) {
                return self.anew(look, service, &kept, fresh).await;
            }
        }
        Ok(kept)
    }

    /// Kept at once: what else is done to the stack later must not hide that it began anew.
    async fn anew(&self, look: &Look<'_>, service: &ServiceName, kept: &Course, fresh: Course) -> StoreResult<Course> {
        if *kept != Course::default() {
            self.keep(look, service, fresh.clone()).await?;
        }
        Ok(fresh)
    }

    async fn keep(&self, look: &Look<'_>, service: &ServiceName, course: Course) -> StoreResult<()> {
        self.house.store.set_value(&place(look.stack, service), &json!(course)).await
    }

    /// Ends the course and the incident of a service that is well, when it has been for long enough.
    async fn well(&mut self, look: &Look<'_>, service: &ServiceName) -> StoreResult<()> {
        let mut course = self.course(look, service).await?;
        if course.acts.is_empty() && course.quarantined.is_none() {
            return self.incidents.well(look.stack, service, look.now, true).await;
        }
        let before = course.clone();
        let over = course.well(look.now);
        self.incidents.well(look.stack, service, look.now, over).await?;
        if over {
            return self.keep(look, service, Course { release: look.release.number, ..Course::default() }).await;
        }
        if course == before { Ok(()) } else { self.keep(look, service, course).await }
    }

    /// The next step for an ailing service; whether an act began.
    async fn treat(&mut self, look: &Look<'_>, patient: &Ailment, observed: &planner::Observed) -> Result<bool, LookError> {
        let spec = look.release.spec.services.get(&patient.service);
        let mode = spec.and_then(|s| s.settings.heal).or(look.release.spec.settings.heal).unwrap_or(HealMode::Full);
        let mut course = self.course(look, &patient.service).await?;
        if memory::sampled(patient) {
            return self.shrink(look, patient, &course, mode).await;
        }
        // A person works on this stack: nothing is done that would start again what was stopped.
        let hands = self.hands.of(look.stack);
        let stopped = planner::live(observed, &patient.service).iter().any(|c| hands.stopped.contains(&c.id));
        let protected = stopped || spare::enough_up(look.release, observed, &patient.service);
        let exposed = course.exposed(protected);
        if course.ails() || exposed {
            self.keep(look, &patient.service, course.clone()).await?;
        }
        let circumstances = Circumstances {
            mode,
            crash_loop: patient.looping,
            deployed_at: self.deployed_at(look).await?,
            can_roll_back: hands == crate::call::hands::ByHand::default() && self.can_roll_back(look).await?,
            attention: self.house.store.attention(look.stack).await?.is_some(),
            missing: patient.cause == Cause::Missing,
            protected,
            now: look.now,
        };
        let signed =
            async { if mode == HealMode::Off { Ok(()) } else { self.incidents.sign(look.stack, look.release, patient, look.now).await } };
        match course.next(&circumstances) {
            Step::Wait => Ok(signed.await.map(|()| false)?),
            Step::Quarantine => {
                signed.await?;
                course.give_up(&circumstances);
                let spent = course.acts.len();
                self.keep(look, &patient.service, course).await?;
                self.give_up(look, patient, spent).await?;
                Ok(false)
            }
            Step::Do(act) => {
                let act = if patient.cause == Cause::Missing && act == Act::Restart { Act::Recreate } else { act };
                course.took(act, look.now, jitter());
                course.release = look.release.number;
                let count = course.acts.len();
                // The budget and the incident are both on disk before the act, and get there together: it waits for them.
                let noted = async {
                    signed.await?;
                    self.incidents.took(look.stack, &patient.service, act.as_str(), look.now).await
                };
                tokio::try_join!(self.keep(look, &patient.service, course), noted)?;
                tracing::warn!(stack = %look.stack, service = %patient.service, reason = %patient.reason, action = count, budget = policy::BUDGET, act = act.as_str(), "healing");
                self.house.executor.reactions().begins(look.stack);
                self.act(look, patient, act);
                Ok(true)
            }
        }
    }

    /// When what runs was deployed: the loop's own releases of the same content make nothing younger.
    async fn deployed_at(&self, look: &Look<'_>) -> StoreResult<DateTime<Utc>> {
        let content = |r: &Release| r.content_of.unwrap_or(r.number);
        if look.release.agent != super::WARDEN {
            return Ok(look.release.created_at);
        }
        let releases = self.house.store.releases(look.stack, 100).await?;
        let theirs = releases.iter().filter(|r| r.agent != super::WARDEN && content(r) == content(look.release));
        // One older than all that are looked at is not young.
        Ok(theirs.map(|r| r.created_at).max().unwrap_or(DateTime::<Utc>::MIN_UTC))
    }

    /// A good release with other content lies before this one, and none of its data moved on.
    async fn can_roll_back(&self, look: &Look<'_>) -> StoreResult<bool> {
        let content = look.release.content_of.unwrap_or(look.release.number);
        let releases = self.house.store.releases(look.stack, 20).await?;
        Ok(releases.iter().any(|r| r.state == ReleaseState::Good && r.content_of.unwrap_or(r.number) < content))
    }

    /// Begins an act that its incident knows of.
    fn act(&self, look: &Look<'_>, patient: &Ailment, act: Act) {
        let (tool, input) = match act {
            Act::Restart => ("restart", json!({"stack": look.stack, "service": patient.service})),
            Act::Recreate => ("restart", json!({"stack": look.stack, "service": patient.service, "recreate": true})),
            Act::Rollback => {
                let reason = format!("healing {}: {}", patient.service, patient.reason);
                ("rollback", json!({"stack": look.stack, "reason": reason}))
            }
        };
        let (house, incidents, wake) = (self.house.clone(), self.incidents.clone(), self.wake.clone());
        let (stack, service, at) = (look.stack.clone(), patient.service.clone(), look.now);
        // Beside the loop: a slow restart of one stack must not keep it from the others; the stack is held by the operation meanwhile. Among the calls of the
        // house from the start: who waits for those after the loop has ended finds nothing begun later.
        self.house.calls.spawn(async move {
            let called = super::call(&house, tool, input).await;
            house.executor.reactions().ended(&stack);
            let outcome = match called {
                Ok(reply) => reply["state"].as_str().unwrap_or("done").to_owned(),
                Err(e) => {
                    tracing::warn!(%stack, %service, act = act.as_str(), error = %e, "the healing did not succeed");
                    if let Err(e) = uncharge::uncharge(&house, &stack, &service, at, e.code).await {
                        tracing::error!(%stack, %service, error = %e, "an act that did not begin stays charged");
                    }
                    format!("failed: {}", e.message)
                }
            };
            if let Err(e) = incidents.outcome(&stack, &service, outcome).await {
                tracing::error!(%stack, %service, error = %e, "the incident could not be kept");
            }
            if let Err(e) = wake.send(Wake::Look(stack)).await {
                tracing::debug!(wake = ?e.0, "the loop has ended");
            }
        });
    }

    /// Says so once, in the audit log, in the incident and in the log.
    async fn give_up(&self, look: &Look<'_>, patient: &Ailment, spent: usize) -> StoreResult<()> {
        tracing::error!(stack = %look.stack, service = %patient.service, reason = %patient.reason, spent, "healing gave up: a person must look");
        let incident = self.incidents.quarantine(look.stack, &patient.service, look.now).await?;
        let detail = json!({"at": look.now, "service": patient.service, "reason": patient.reason, "cause": patient.cause, "actions": spent, "incident": incident});
        self.house.store.audit_event(super::WARDEN, "healing_gave_up", Some(look.stack.as_str()), &detail, look.now).await?;
        Ok(())
    }
}

fn place(stack: &StackName, service: &ServiceName) -> String {
    format!("course:{stack}/{service}")
}

/// From 0 to 1, so that many services do not come back in step.
fn jitter() -> f64 {
    (ulid::Ulid::generate().random() % 1000) as f64 / 1000.0
}

fn booted_just_now() -> bool {
    let uptime = std::fs::read_to_string("/proc/uptime").ok();
    uptime.and_then(|t| t.split(' ').next().and_then(|s| s.parse::<f64>().ok())).is_some_and(|s| s < BOOT)
}

/// Why a look was not possible.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Executor(#[from] crate::executor::ExecutorError),
    #[error("whether the house is frozen could not be read: {0}")]
    Frozen(String),
    #[error("containers of Compose could not be looked for: {0}")]
    Successors(String),
}

#[cfg(test)]
mod tests {
    use crate::model::observed::ContainerDetail;

    /// A container of which nothing is known but its id.
    pub(super) fn detail(id: &str) -> ContainerDetail {
        ContainerDetail::running(id, id, "hello:1")
    }
}

#[cfg(test)]
mod keeps_back;
