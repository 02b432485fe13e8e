//! `canary`: a new version behind a front gets growing shares of new connections and is watched at each. All of it lies before the switch: a failing
//! one, a cancel or a crash gives the shares back and takes the new containers away.

use super::acts::Act;
use super::probe::{self, ProbeError};
use super::run::{Halt, Run};
use crate::engine::EngineError;
use crate::model::front::{Command, Reply, Routes};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::operation::Phase;
use crate::model::plan::{Action, Change, Strategy};
use crate::planner::front::backend;
use std::time::{Duration, Instant};

/// How often a share looks at what it watches.
const LOOK: Duration = Duration::from_millis(500);

impl Run {
    /// Bakes the canaries, in dependency order.
    pub(super) async fn canaries(&self) -> Result<(), Halt> {
        let asked = |c: &&Change| c.action == Action::Update && c.strategy == Strategy::Canary;
        if !self.changes().any(|c| asked(&c)) {
            return Ok(());
        }
        self.enter(Phase::Smoke, 55.0, "canaries").await?;
        let observed = self.observe().await?;
        let order: Vec<&Change> = self.plan.levels.iter().flatten().filter_map(|s| self.changes().find(|c| c.service == *s)).collect();
        for change in order.into_iter().filter(asked) {
            let service = &change.service;
            let old: Vec<EngineName> = self.old_ones(&observed, service).iter().filter_map(backend).collect();
            // What runs does not stand behind this front yet: nothing could be shared.
            let Some(front) = self.front_in_place(&observed, service).filter(|_| !old.is_empty()) else { continue };
            let spec = self.spec(service)?;
            let course = spec.settings.canary.clone().unwrap_or_default();
            let mut from = self.routes_before(service, old.clone());
            for percent in &course.weights {
                let to = self.share(service, old.clone(), *percent)?;
                let act = Act::Route { front: front.clone(), from, to: to.clone() };
                self.say(format!("{percent} % of new connections of {service} go to the new version"));
                self.step(Phase::Smoke, format!("canary:{service}:{percent}"), act).await?;
                self.bake(service, &front, Duration::from_secs(course.bake_s), course.max_failed).await?;
                from = to;
            }
        }
        Ok(())
    }

    fn share(&self, service: &ServiceName, old: Vec<EngineName>, percent: u32) -> Result<Routes, Halt> {
        let replicas = self.spec(service)?.replicas;
        let limits = super::front::limits(&self.plan.desired, service);
        Ok(Routes::shared(old, self.new_backends(service, 1..=replicas), percent, limits))
    }

    /// Routes in force before the switch of a service: those of its last share, where there was one.
    pub(super) fn routes_now(&self, service: &ServiceName, old: Vec<EngineName>) -> Result<Routes, Halt> {
        let course = self.spec(service)?.settings.canary.clone().unwrap_or_default();
        let shared = |percent: &u32| self.journal.lock().expect("no panic while held").contains_key(&format!("canary:{service}:{percent}"));
        match course.weights.iter().rev().find(|p| shared(p)) {
            Some(percent) => self.share(service, old, *percent),
            None => Ok(self.routes_before(service, old)),
        }
    }

    /// Watches one share: the new containers stay well, and the front reaches them.
    async fn bake(&self, service: &ServiceName, front: &EngineName, time: Duration, max_failed: u64) -> Result<(), Halt> {
        let spec = self.spec(service)?;
        let new: Vec<EngineName> = (1..=spec.replicas).filter_map(|n| self.created(&format!("create:{service}:{n}"))).collect();
        let Some(first) = new.first() else { return Ok(()) };
        let names = self.new_backends(service, 1..=spec.replicas);
        let (begun, mut before) = (Instant::now(), None);
        loop {
            for id in &new {
                let reason = match self.exec.engine.container(id).await {
                    Ok(Some(seen)) => probe::alive(&seen).err(),
                    Ok(None) => Some("it disappeared".to_owned()),
                    Err(e) if super::patience::away(&e) => {
                        self.engine_back(Phase::Smoke).await?;
                        None
                    }
                    Err(e) => Some(e.to_string()),
                };
                if let Some(reason) = reason {
                    if Box::pin(self.revive()).await? {
                        continue;
                    }
                    return Err(self.failed_share(id, service, reason).await);
                }
            }
            match self.ask_front(front, &Command::Status).await {
                Ok(Reply::Ok(status)) => {
                    let failed = status.backends.iter().filter(|b| names.contains(&b.name)).map(|b| b.failures).sum::<u64>();
                    // A front counts since its start; one that started again counts from zero.
                    let base = *before.get_or_insert(failed);
                    if failed.saturating_sub(base.min(failed)) > max_failed {
                        let reason = format!("{} connects to it failed behind its front", failed - base.min(failed));
                        return Err(self.failed_share(first, service, reason).await);
                    }
                }
                Ok(other) => return Err(self.failed_share(first, service, format!("its front answers {other:?}")).await),
                Err(EngineError::Unreachable { .. } | EngineError::Timeout { .. }) => self.engine_back(Phase::Smoke).await?,
                Err(e) => return Err(self.failed_share(first, service, format!("its front does not answer: {e}")).await),
            }
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK.min(left)) => {}
                () = self.cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            }
        }
    }

    async fn failed_share(&self, id: &EngineName, service: &ServiceName, reason: String) -> Halt {
        let reason = format!("as a canary: {reason}");
        self.probe_halt(id, service, ProbeError::Failed { reason, output: None }).await
    }
}
