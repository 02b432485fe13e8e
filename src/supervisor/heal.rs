//! Healing: an unhealthy or dead container of a deployed stack is restarted through the line, within a persisted budget; then the loop
//! gives up loudly. Silent while an operation holds the stack, when a human stopped it, when the root cause is a dependency.

use super::watch::Wake;
use crate::call::House;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::observed::{ContainerDetail, HealthState, RunState};
use crate::model::release::Release;
use crate::model::spec::{HealMode, Restart, StackSpec};
use crate::planner::{self, Observed};
use crate::store::StoreResult;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most healing actions per service within the window.
pub const BUDGET: u32 = 5;
/// Where the containers stopped by hand are kept.
const BY_HAND: &str = "loop:stopped_by_hand";
/// The window.
pub const WINDOW: TimeDelta = TimeDelta::minutes(5);

/// The healer's memory between looks; what must outlive a restart is in the store.
#[derive(Debug)]
pub struct Healer {
    house: Arc<House>,
    by_hand: BTreeSet<EngineName>,
    not_before: BTreeMap<(StackName, ServiceName), DateTime<Utc>>,
}

/// One service that needs something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sick {
    /// Service.
    pub service: ServiceName,
    /// Why.
    pub reason: String,
}

impl Healer {
    /// A healer over a house; remembers what was stopped by hand before a restart of the supervisor.
    pub async fn new(house: Arc<House>) -> Self {
        let by_hand = match house.store.value(BY_HAND).await {
            Ok(Some(ids)) => serde_json::from_value(ids).unwrap_or_else(|e| {
                tracing::error!(error = %e, "the list of containers stopped by hand is unreadable");
                BTreeSet::new()
            }),
            Ok(None) => BTreeSet::new(),
            Err(e) => {
                tracing::error!(error = %e, "the list of containers stopped by hand could not be read");
                BTreeSet::new()
            }
        };
        Self { house, by_hand, not_before: BTreeMap::new() }
    }

    async fn keep_by_hand(&self) {
        if let Err(e) = self.house.store.set_value(BY_HAND, &json!(self.by_hand)).await {
            tracing::error!(error = %e, "the list of containers stopped by hand could not be kept");
        }
    }

    /// Takes a wake-up.
    pub async fn woken(&mut self, wake: Wake) {
        let stack = match wake {
            Wake::StoppedByHand(stack, id) => {
                tracing::info!(%stack, container = %id, "stopped by hand: left alone until it is started again");
                self.by_hand.insert(id);
                return self.keep_by_hand().await;
            }
            Wake::Started(_, id) => {
                if self.by_hand.remove(&id) {
                    self.keep_by_hand().await;
                }
                return;
            }
            Wake::Look(stack) => stack,
        };
        if let Err(e) = self.look(&stack).await {
            tracing::warn!(%stack, error = %e, "could not look at the stack");
        }
    }

    /// Looks at every stack.
    pub async fn scan(&mut self) {
        match self.house.store.stacks().await {
            Ok(stacks) => {
                for stack in stacks {
                    if let Err(e) = self.look(&stack.name).await {
                        tracing::warn!(stack = %stack.name, error = %e, "could not look at the stack");
                    }
                }
            }
            Err(e) => tracing::error!(error = %e, "the stacks could not be read"),
        }
    }

    async fn look(&mut self, name: &StackName) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let Some(stack) = self.house.store.stack(name).await.map_err(|e| text(&e))? else { return Ok(()) };
        let (Some(current), false) = (stack.current, stack.stopped || self.house.executor.holding(name).is_some()) else { return Ok(()) };
        let Some(release) = self.house.store.release(name, current).await.map_err(|e| text(&e))? else { return Ok(()) };
        let observed = self.house.executor.observe(name).await.map_err(|e| text(&e))?;
        let all = sick(&release, &observed, &self.by_hand);
        for patient in roots(&release.spec, &all) {
            self.treat(name, &patient, Utc::now()).await.map_err(|e| text(&e))?;
        }
        Ok(())
    }

    async fn treat(&mut self, stack: &StackName, patient: &Sick, now: DateTime<Utc>) -> StoreResult<()> {
        let key = (stack.clone(), patient.service.clone());
        if self.not_before.get(&key).is_some_and(|t| *t > now) {
            return Ok(());
        }
        let store = &self.house.store;
        let spent = store.heal_count(stack, patient.service.as_str(), now - WINDOW).await?;
        if spent >= BUDGET {
            return self.give_up(stack, patient, spent, now).await;
        }
        let count = store.heal_action(stack, patient.service.as_str(), now, now - WINDOW).await?;
        // 1, 2, 4, 8, 16 s between actions on one service.
        self.not_before.insert(key, now + TimeDelta::seconds(1 << count.min(6).saturating_sub(1)));
        tracing::warn!(%stack, service = %patient.service, reason = %patient.reason, action = count, budget = BUDGET, "healing: restart");
        let house = self.house.clone();
        let input = json!({"stack": stack, "service": patient.service});
        let patient = patient.clone();
        let stack = stack.clone();
        // Beside the loop: a slow restart of one stack must not keep it from the others; the stack is held by the operation meanwhile.
        tokio::spawn(async move {
            if let Err(e) = super::call(&house, "restart", input).await {
                tracing::warn!(%stack, service = %patient.service, error = %e, "the healing restart did not succeed");
            }
        });
        Ok(())
    }

    /// Says so once per window, in the audit log and in the state that `health` shows.
    async fn give_up(&mut self, stack: &StackName, patient: &Sick, spent: u32, now: DateTime<Utc>) -> StoreResult<()> {
        let key = format!("gave_up:{stack}/{}", patient.service);
        let before = self.house.store.value(&key).await?;
        let since = before.as_ref().and_then(|v| v["at"].as_str()).and_then(|t| t.parse::<DateTime<Utc>>().ok());
        self.not_before.insert((stack.clone(), patient.service.clone()), now + TimeDelta::seconds(30));
        if since.is_some_and(|t| now - t < WINDOW) {
            return Ok(());
        }
        tracing::error!(%stack, service = %patient.service, reason = %patient.reason, spent, "healing gave up: a person must look");
        let detail =
            json!({"at": now, "service": patient.service, "reason": patient.reason, "actions": spent, "window_s": WINDOW.num_seconds()});
        self.house.store.set_value(&key, &detail).await?;
        self.house.store.audit_event(super::WARDEN, "healing_gave_up", Some(stack.as_str()), &detail, now).await?;
        Ok(())
    }
}

/// Services with a container that is unhealthy, or dead although it is meant to run. A one-shot, or exit 0 under `no` and `on-failure`,
/// is finished, not dead. What a human stopped is left alone. Pure.
pub fn sick(release: &Release, observed: &Observed, by_hand: &BTreeSet<EngineName>) -> Vec<Sick> {
    let mut out = vec![];
    for (service, spec) in release.spec.services.iter().filter(|(_, s)| s.active) {
        let mode = spec.settings.heal.or(release.spec.settings.heal).unwrap_or(HealMode::Restart);
        if mode == HealMode::Off || planner::one_shot(&release.spec, service) {
            continue;
        }
        let reason =
            planner::live(observed, service).into_iter().filter(|c| !by_hand.contains(&c.id)).find_map(|c| ailment(c, spec.restart));
        if let Some(reason) = reason {
            out.push(Sick { service: service.clone(), reason });
        }
    }
    out
}

fn ailment(c: &ContainerDetail, restart: Restart) -> Option<String> {
    match c.state {
        RunState::Running if c.health == HealthState::Unhealthy => Some("its health check fails".into()),
        RunState::Exited if c.exit_code == 0 && matches!(restart, Restart::No | Restart::OnFailure(_)) => None,
        RunState::Exited if c.oom_killed => Some("it was killed for want of memory".into()),
        RunState::Exited | RunState::Dead => Some(format!("it ended with exit code {}", c.exit_code)),
        RunState::Created | RunState::Running | RunState::Paused | RunState::Restarting | RunState::Removing => None,
    }
}

/// The sick services whose dependencies are all well: the root causes come first. Pure.
pub fn roots(spec: &StackSpec, sick: &[Sick]) -> Vec<Sick> {
    let is_sick = |s: &ServiceName| sick.iter().any(|p| p.service == *s);
    sick.iter().filter(|p| spec.services.get(&p.service).is_none_or(|s| !s.depends_on.keys().any(is_sick))).cloned().collect()
}
