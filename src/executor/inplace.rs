//! Restart and stop: the containers stay the same. No undo: the way back from a stop is a restart.

use super::acts::Act;
use super::names;
use super::run::{Halt, Run};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::operation::Phase;
use crate::model::plan::Action;
use crate::model::spec::Restart;
use crate::planner;

fn up(c: &ContainerDetail) -> bool {
    matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused)
}

impl Run {
    /// Restarts what runs and starts what does not, level by level, each probed before the next.
    pub(super) async fn restart(&self) -> Result<(), Halt> {
        self.enter(Phase::StartNew, 10.0, "restarting").await?;
        let observed = self.observe().await?;
        match self.restart_all(&observed).await {
            Ok(()) => {
                // One service of a stopped stack does not bring the others back.
                if self.plan.only.is_none() {
                    self.exec.store.set_stopped(&self.plan.stack, false).await?;
                }
                self.tell_finished().await
            }
            // The next start goes on with it.
            Err(Halt::Interrupted(why)) => Err(Halt::Interrupted(why)),
            Err(halt) => {
                self.let_connections_on(&observed).await?;
                Err(halt)
            }
        }
    }

    async fn restart_all(&self, observed: &planner::Observed) -> Result<(), Halt> {
        let changed = |s: &ServiceName| self.plan.changes.iter().any(|c| c.service == *s && c.action == Action::Restart);
        for service in self.plan.levels.iter().flatten().filter(|s| changed(s)) {
            let Some(spec) = self.plan.desired.services.get(service) else { continue };
            // What was stopped and kept beside them is not started: two would write.
            for c in planner::live(observed, service) {
                let short = c.id.short();
                if planner::one_shot(&self.plan.desired, service) || self.plan.left.contains(&c.id) {
                    continue;
                }
                if let Some(writer) = self.succeeded_by(c, observed) {
                    let note = format!(
                        "{service} was not started: {writer} has taken its data over; `deploy` or `rollback` decides which one stays"
                    );
                    self.update(|op| op.message = Some(note)).await?;
                    continue;
                }
                if spec.restart != Restart::No && c.restart_policy == "no" {
                    let act = Act::SetRestart { id: c.id.clone(), from: Restart::No, to: spec.restart, up: false };
                    self.step(Phase::StartNew, format!("policy:{service}:{short}"), act).await?;
                }
                self.route_around(service, c, observed).await?;
                self.say(format!("restarting {service}"));
                let act =
                    if up(c) { Act::Restart { id: c.id.clone(), grace_ms: self.grace(service) } } else { Act::Start { id: c.id.clone() } };
                self.step(Phase::StartNew, format!("restart:{service}:{short}"), act).await?;
                self.probe(&c.id, service, spec).await?;
            }
            self.route_again(Phase::StartNew, service, observed).await?;
        }
        Ok(())
    }

    /// A restart that ends in the middle leaves no front holding connections: they go to what there is.
    async fn let_connections_on(&self, observed: &planner::Observed) -> Result<(), Halt> {
        let aside = |s: &&ServiceName| {
            let journal = self.journal.lock().expect("no panic while held");
            journal.keys().any(|k| k.starts_with(&format!("aside:{s}:")))
        };
        let touched: Vec<&ServiceName> = self.plan.levels.iter().flatten().filter(aside).collect();
        for service in touched {
            // Past the point where a cancel keeps a step from being done.
            match self.route_again(Phase::Switch, service, observed).await {
                Ok(()) | Err(Halt::Cancelled) => {}
                Err(Halt::Failed { message, .. }) => {
                    tracing::error!(operation = %self.operation_id(), %service, %message, "its front still holds connections; `restart` or `deploy` lets them go on")
                }
                Err(Halt::Interrupted(why)) => return Err(Halt::Interrupted(why)),
            }
        }
        Ok(())
    }

    /// The container of a service this release does not have that writes what a stopped one would write: its successor on the same data.
    fn succeeded_by(&self, c: &ContainerDetail, observed: &planner::Observed) -> Option<String> {
        let unknown = |o: &&ContainerDetail| {
            let service = o.labels.get(labels::SERVICE).map(String::as_str);
            service.is_some_and(|s| !self.plan.desired.services.keys().any(|k| k.as_str() == s))
        };
        let mut others = observed.containers.iter().filter(unknown);
        others.find(|o| !up(c) && planner::succession::write_the_same(c, o)).map(|o| o.name.clone())
    }

    /// Stops in reverse dependency order; with `remove` also removes containers and networks, never volumes.
    pub(super) async fn stop(&self) -> Result<(), Halt> {
        self.enter(Phase::StopOld, 10.0, "stopping").await?;
        // The loop must not heal what is being stopped, also after a crash in between.
        self.exec.store.set_stopped(&self.plan.stack, true).await?;
        let observed = self.observe().await?;
        for service in self.plan.levels.iter().rev().flatten() {
            for front in planner::front::fronts(&observed, service) {
                self.retire_front(Phase::StopOld, service, front).await?;
            }
            for c in planner::serving(&observed, service) {
                self.stop_one(service, c).await?;
            }
        }
        // What an operation in need of attention left running under a name that no release knows.
        for c in observed.containers.iter().filter(|c| c.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_SERVING)) {
            let service = c.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
            if let Some(service) = service.filter(|s| !self.plan.levels.iter().flatten().any(|known| known == s)) {
                self.stop_one(&service, c).await?;
            }
        }
        if self.plan.remove { self.remove(&observed).await } else { Ok(()) }
    }

    async fn stop_one(&self, service: &ServiceName, c: &ContainerDetail) -> Result<(), Halt> {
        let (id, short) = (&c.id, c.id.short());
        let policy = self.policy_of(service, c);
        if policy != Restart::No {
            let act = Act::SetRestart { id: id.clone(), from: policy, to: Restart::No, up: false };
            self.step(Phase::StopOld, format!("unpolicy:{service}:{short}"), act).await?;
        }
        if up(c) {
            self.say(format!("stopping {service}"));
            let act = Act::Stop { id: id.clone(), grace_ms: self.grace(service) };
            self.step(Phase::StopOld, format!("stop:{service}:{short}"), act).await?;
        }
        Ok(())
    }

    async fn remove(&self, observed: &planner::Observed) -> Result<(), Halt> {
        for c in &observed.containers {
            if up(c) && c.labels.get(labels::ROLE).map(String::as_str) != Some(labels::ROLE_CLAIM) {
                self.step(Phase::StopOld, format!("stop:{}", c.id.short()), Act::Stop { id: c.id.clone(), grace_ms: 2000 }).await?;
            }
            // A front's volume holds nothing but its routes.
            let volumes = c.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_FRONT);
            self.step(Phase::StopOld, format!("remove:{}", c.id.short()), Act::Remove { id: c.id.clone(), volumes }).await?;
        }
        for network in &observed.networks {
            if let Ok(name) = EngineName::new(network.as_str()) {
                self.step(Phase::StopOld, format!("remove-network:{name}"), Act::RemoveNetwork { name }).await?;
            }
        }
        let claim = names::claim(&self.plan.stack);
        if !observed.containers.iter().any(|c| c.name == claim.as_str()) {
            self.step(Phase::StopOld, "remove:claim".into(), Act::Remove { id: claim, volumes: false }).await?;
        }
        self.exec.forget_runs(&self.plan.stack).await?;
        self.exec.store.set_current(&self.plan.stack, None, self.epoch).await?;
        Ok(())
    }
}
