//! What a person did with the engine's own tools is told and never fought: containers stopped, removed, or a whole stack taken down (`docker compose down`).
//! Seen in the engine's events; what was done while no supervisor looked is recognised where the engine's facts leave no other explanation. What is not certain
//! counts as a failure and is healed.

use super::super::watch::{self, Wake};
use super::{Healer, Look, LookError};
use crate::call::diagnose::Ailment;
use crate::call::hands::{self, Hands, Place};
use crate::engine::EngineError;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::incident::Cause;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::release::StackRecord;
use crate::model::spec::DriftMode;
use crate::planner::Observed;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// A container that is missing is looked for again after so long: the event that tells why may be on its way.
const WAY: Duration = Duration::from_secs(1);
/// What a hand does to a stack takes some time; it is told when nothing was added for so long.
const REST: Duration = Duration::from_secs(3);
/// How often it is waited for a container that does not answer, before what was stopped while no supervisor looked is told without it.
const UNANSWERED_MOST: u32 = 3;

/// What was seen and not yet understood.
#[derive(Debug)]
pub(super) struct Signs {
    /// Containers that ended by a signal through the engine: a `stop` may follow.
    ending: BTreeMap<EngineName, Instant>,
    /// Containers removed, by us or by a hand.
    removed: Vec<(EngineName, Place)>,
    /// Since when a service has no container.
    missing: BTreeMap<(StackName, ServiceName), Instant>,
    /// What a hand did to each stack as last seen, since when, and whether it was told.
    news: BTreeMap<StackName, (Vec<String>, Instant, bool)>,
    /// Stopped, not by us, and when that was seen: the engine may yet end.
    fresh: BTreeMap<EngineName, Instant>,
    /// Marks that the engine is to be asked about, since it may have stopped them itself.
    doubted: BTreeSet<EngineName>,
    /// See [`UNANSWERED_MOST`].
    unanswered: u32,
    /// See [`WAY`].
    pub(super) way: Duration,
    /// See [`REST`].
    pub(super) rest: Duration,
}

impl Signs {
    /// What was not sure when the supervisor before ended may have been stopped by the end of the engine, or of the host.
    pub(super) fn new(hands: &Hands) -> Self {
        Self {
            ending: BTreeMap::new(),
            removed: vec![],
            missing: BTreeMap::new(),
            news: BTreeMap::new(),
            fresh: BTreeMap::new(),
            doubted: hands.unsure.clone(),
            unanswered: 0,
            way: WAY,
            rest: REST,
        }
    }

    pub(super) fn ending(&mut self, id: EngineName, seen: Instant) {
        self.ending.retain(|_, at| at.elapsed() < watch::STOP_FOLLOWS);
        self.ending.insert(id, seen);
    }

    pub(super) fn removed(&mut self, id: EngineName, place: Place) {
        self.removed.push((id, place));
    }

    /// Whether what ails a service is certain by now.
    fn certain(&mut self, stack: &StackName, a: &Ailment, now: Instant) -> bool {
        if a.container.as_ref().and_then(|id| self.ending.get(id)).is_some_and(|at| now - *at < watch::STOP_FOLLOWS) {
            return false;
        }
        if a.cause != Cause::Missing {
            return true;
        }
        now - *self.missing.entry((stack.clone(), a.service.clone())).or_insert(now) >= self.way
    }
}

impl Healer {
    pub(super) async fn keep_hands(&self) {
        if let Err(e) = self.hands.keep(&self.house.store).await {
            tracing::error!(error = %e, "what was stopped by hand could not be kept");
        }
    }

    /// A stack that serves no release, or that a call has stopped: what a hand did to it before says nothing any more.
    pub(super) async fn forget_hands(&mut self, stack: &StackName) {
        self.signs.removed.retain(|(_, place)| place.stack != *stack);
        self.signs.news.remove(stack);
        if self.hands.forget(stack) {
            self.keep_hands().await;
        }
    }

    /// Stacks that were given back or are gone: another life of the name begins anew.
    pub(super) async fn forget_gone(&mut self, stacks: &[StackRecord]) {
        let gone = |name: &StackName| !stacks.iter().any(|s| s.name == *name);
        if let Err(e) = self.incidents.gone(|of, _| gone(of).then_some("its stack is no longer managed here"), Utc::now()).await {
            tracing::error!(error = %e, "incidents of stacks that are gone could not be closed");
        }
        self.signs.news.retain(|name, _| !gone(name));
        self.signs.missing.retain(|(name, _), _| !gone(name));
        self.signs.removed.retain(|(_, place)| !gone(&place.stack));
        let known = self.hands.removed.len();
        self.hands.removed.retain(|name, _| !gone(name));
        if self.hands.removed.len() != known {
            self.keep_hands().await;
        }
    }

    /// A container was stopped: by hand, unless an operation of ours did it. Whether it was by hand.
    pub(super) async fn stopped(&mut self, id: EngineName, place: Place, at: DateTime<Utc>) -> bool {
        match self.house.executor.has_stopped(&place.stack, &id, at).await {
            Ok(false) => {}
            Ok(true) => return false,
            Err(e) => {
                tracing::error!(container = %id, error = %e, "who stopped it could not be read; it counts as failed");
                return false;
            }
        }
        tracing::info!(container = %id, ?place, "stopped by hand: left alone until it is started again");
        self.signs.fresh.insert(id.clone(), Instant::now());
        self.hands.unsure.insert(id.clone());
        self.hands.stopped.insert(id, Some(place));
        self.keep_hands().await;
        true
    }

    /// The engine was lost right after it had stopped these: they are asked about when it is there again.
    pub(super) async fn withdrawn(&mut self, ids: &BTreeSet<EngineName>) {
        let marked: Vec<&EngineName> = ids.iter().filter(|id| self.hands.stopped.contains_key(*id)).collect();
        if marked.is_empty() {
            return;
        }
        tracing::info!(containers = ?marked, "the engine was lost right after these were stopped: it may have done that itself");
        self.engine_lost = true;
        for id in marked {
            self.hands.unsure.insert(id.clone());
            self.signs.fresh.remove(id);
            self.signs.doubted.insert(id.clone());
        }
        self.keep_hands().await;
    }

    /// What was stopped by hand and runs again, or is gone: its event may have passed while nobody listened. A stop that the engine has outlived stands; one it
    /// has not stands only where the engine itself would have started the container again.
    pub(super) async fn reconcile_by_hand(&mut self) -> Result<(), EngineError> {
        if self.hands.stopped.is_empty() {
            return Ok(());
        }
        let ours = self.house.engine.containers(&[labels::filter(labels::INSTANCE, self.house.store.instance())]).await?;
        let (gone, mut changed) = self.hands.reconcile(&ours);
        self.signs.removed.extend(gone);
        for id in std::mem::take(&mut self.signs.doubted) {
            let c = match self.house.engine.container(&id).await {
                Ok(c) => c,
                Err(e) => {
                    self.signs.doubted.insert(id);
                    return Err(e);
                }
            };
            changed = true;
            self.hands.unsure.remove(&id);
            if c.is_some_and(|c| !starts_again(&c)) {
                tracing::info!(container = %id, "the engine stopped it when it ended: not by hand");
                self.hands.stopped.remove(&id);
            }
        }
        let (hands, stands) = (&mut self.hands, |at: &Instant| at.elapsed() >= watch::STANDS);
        self.signs.fresh.retain(|id, at| {
            changed |= stands(at) && hands.unsure.remove(id);
            !stands(at) && hands.stopped.contains_key(id)
        });
        if changed {
            self.keep_hands().await;
        }
        Ok(())
    }

    /// Once, before the first scan: what a person stopped while no supervisor looked is left alone.
    pub(super) async fn absent(&mut self) {
        let Some(seen) = self.seen else { return };
        let filter = [labels::filter(labels::INSTANCE, self.house.store.instance())];
        let found = async {
            let all = self.house.engine.containers(&filter).await?;
            let mut ended = vec![];
            for c in all.iter().filter(|c| c.state == RunState::Exited) {
                match self.house.engine.container(&c.id).await {
                    // One that hangs for good must not keep all others from being healed.
                    Err(EngineError::Timeout { .. }) if self.signs.unanswered >= UNANSWERED_MOST => {
                        tracing::warn!(container = %c.id, "who stopped it is not known: the engine says nothing of it");
                    }
                    Err(e @ EngineError::Timeout { .. }) => {
                        self.signs.unanswered += 1;
                        return Err(e);
                    }
                    found => ended.extend(found?),
                }
            }
            Ok::<_, EngineError>(ended)
        };
        match found.await {
            Ok(ended) => {
                self.seen = None;
                let stopped = stopped(&ended, seen);
                if !stopped.is_empty() {
                    let ids: Vec<&EngineName> = stopped.iter().map(|(id, _)| id).collect();
                    tracing::info!(containers = ?ids, "stopped by hand while no supervisor ran: left alone until they are started again");
                    self.hands.stopped.extend(stopped);
                    self.keep_hands().await;
                }
            }
            // Looked for again at the next look, which is none before that.
            Err(e) => {
                self.engine_lost |= matches!(e, EngineError::Unreachable { .. } | EngineError::Timeout { .. });
                tracing::warn!(error = %e, "what was stopped meanwhile could not be looked for");
            }
        }
    }

    /// Notes, durably, which of the missing services a hand took away: their containers were removed after a stop or kill that no operation of ours asked for,
    /// or nothing is left of the whole stack. It ends with the container being back, or with a newer release.
    pub(super) async fn note_hands(&mut self, look: &Look<'_>, observed: &Observed, ailing: &[Ailment]) -> Result<(), LookError> {
        let stack = look.stack;
        let missing: BTreeSet<&ServiceName> = ailing.iter().filter(|a| a.cause == Cause::Missing).map(|a| &a.service).collect();
        self.signs.missing.retain(|(of, service), _| of != stack || missing.contains(service));
        let before = self.hands.removed.get(stack).cloned().unwrap_or_default();
        let mut removed = before.clone();
        removed.retain(|service, at| missing.contains(service) && *at >= look.release.created_at);
        let (here, elsewhere): (Vec<_>, Vec<_>) = self.signs.removed.iter().cloned().partition(|(_, place)| place.stack == *stack);
        for (id, place) in here.into_iter().filter(|(_, place)| missing.contains(&place.service)) {
            if !self.house.executor.has_removed(stack, &id).await? {
                removed.insert(place.service, look.now);
            }
        }
        self.signs.removed = elsewhere;
        if !missing.is_empty() && hands::taken_down(observed) {
            for service in missing {
                removed.entry(service.clone()).or_insert(look.now);
            }
        }
        if removed == before {
            return Ok(());
        }
        let services: Vec<&ServiceName> = removed.keys().collect();
        tracing::info!(%stack, ?services, "removed by hand: left alone until the stack is deployed or rolled back");
        match removed.is_empty() {
            true => self.hands.removed.remove(stack),
            false => self.hands.removed.insert(stack.clone(), removed),
        };
        self.hands.keep(&self.house.store).await?;
        Ok(())
    }

    /// Tells what a hand did to a stack once it rests, as drift that is never mended; whether there is any.
    pub(super) async fn tell_hands(&mut self, look: &Look<'_>, observed: &Observed, ailing: &[Ailment]) -> Result<bool, LookError> {
        let mut by_hand = self.hands.of(look.stack);
        // What Compose replaced is told as such.
        by_hand.removed.retain(|s| ailing.iter().any(|a| a.service == *s));
        let lines = by_hand.lines(look.release.spec.services.keys(), observed);
        let any = !lines.is_empty();
        let now = Instant::now();
        let news = self.signs.news.entry(look.stack.clone()).or_insert_with(|| (lines.clone(), now, false));
        if news.0 != lines {
            *news = (lines.clone(), now, false);
        }
        if news.2 {
            return Ok(any);
        }
        if any && now - news.1 < self.signs.rest {
            watch::later(self.wake.clone(), Wake::Look(look.stack.clone()), self.signs.rest);
            return Ok(any);
        }
        news.2 = true;
        let mode = match look.release.spec.settings.drift.unwrap_or_default() {
            DriftMode::Off => DriftMode::Off,
            DriftMode::Report | DriftMode::Mend => DriftMode::Report,
        };
        let removed = (!by_hand.removed.is_empty()).then(|| hands::back(look.stack, look.release.number));
        let next = removed.unwrap_or_else(|| hands::again(look.stack));
        self.tell_drift(look, "hands", lines, mode, Some(&next)).await?;
        Ok(any)
    }

    /// What is to be healed: neither what a hand took away, nor what is not certain yet.
    pub(super) fn left_alone(&mut self, look: &Look<'_>, ailing: Vec<Ailment>) -> Vec<Ailment> {
        let (now, removed) = (Instant::now(), self.hands.of(look.stack).removed);
        let mut unsure = false;
        let treat = ailing.into_iter().filter(|a| {
            if a.cause == Cause::Missing && removed.contains(&a.service) {
                return false;
            }
            let certain = self.signs.certain(look.stack, a, now);
            unsure |= !certain;
            certain
        });
        let treat = treat.collect();
        if unsure {
            watch::later(self.wake.clone(), Wake::Look(look.stack.clone()), self.signs.way);
        }
        treat
    }
}

/// Whether the engine starts it again when it starts itself, unless a person has stopped it.
fn starts_again(c: &ContainerDetail) -> bool {
    matches!(c.restart_policy.as_str(), "always" | "unless-stopped")
}

/// Containers that a person stopped after `seen`, the last look of the supervisor before. The engine starts again by itself what ended under `always` and
/// `unless-stopped`, whatever ended it, and says so (`restarting`, or an error); what stays down without an error was stopped through the engine. A SIGKILL
/// may have been a failure that the engine gave up on while it was itself restarted: it is not certain.
fn stopped(containers: &[ContainerDetail], seen: DateTime<Utc>) -> Vec<(EngineName, Option<Place>)> {
    let certain = |c: &&ContainerDetail| {
        c.state == RunState::Exited
            && starts_again(c)
            && c.error.is_empty()
            && !c.oom_killed
            && c.exit_code != 137
            && c.finished_at.is_some_and(|at| at > seen)
    };
    let place = |c: &ContainerDetail| {
        let label = |key| c.labels.get(key).map(String::as_str);
        Some(Place { stack: StackName::new(label(labels::STACK)?).ok()?, service: ServiceName::new(label(labels::SERVICE)?).ok()? })
    };
    containers.iter().filter(certain).map(|c| (c.id.clone(), place(c))).collect()
}

#[cfg(test)]
mod tests;
