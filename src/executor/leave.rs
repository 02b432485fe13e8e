//! What has to leave, when, and what is left: services that make way for their successors, those bound to another's namespace, surplus copies, and what
//! earlier operations could not remove.

use super::acts::Act;
use super::names;
use super::run::{Halt, Run};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, HealthState, RunState};
use crate::model::operation::Phase;
use crate::model::plan::Action;
use crate::model::spec::ServiceSpec;
use crate::planner::Observed;
use std::time::Duration;

/// Grace time of a stop when the file sets none and the service writes data, or not.
const GRACE_DATA: Duration = Duration::from_secs(10);
const GRACE_PLAIN: Duration = Duration::from_secs(2);

impl Run {
    /// Ends services whose data, port or address one of these takes over: those no longer in the file, and those that come again without it.
    pub(super) async fn make_way(&self, level: &[ServiceName], observed: &Observed) -> Result<(), Halt> {
        for (gone, _) in self.plan.makes_way.iter().filter(|(_, heirs)| heirs.iter().any(|h| level.contains(h))) {
            if self.serves_again(gone) {
                // Its own level came first: what had to end has ended.
                continue;
            }
            if self.stays_behind(gone, observed) {
                self.hold_connections(Phase::StartNew, gone, observed).await?;
            } else {
                self.retire_fronts(Phase::StartNew, gone, observed).await?;
            }
            for c in self.old_ones(observed, gone) {
                self.retire(Phase::StartNew, gone, &c).await?;
            }
        }
        Ok(())
    }

    /// Stops what lives in a namespace of a service that is about to stop: it would lose it, and on the way back it can only start after it.
    pub(super) async fn retire_sharers(&self, service: &ServiceName, observed: &Observed) -> Result<(), Halt> {
        let shares = |who: &ServiceName, of: &ServiceName| {
            let specs = [Some(&self.plan.desired), self.current.as_ref().map(|r| &r.spec)];
            specs.into_iter().flatten().any(|stack| stack.services.get(who).is_some_and(|s| s.shares(of)))
        };
        let mut bound = vec![service.clone()];
        let mut at = 0;
        while let Some(of) = bound.get(at).cloned() {
            let changed = self.plan.changes.iter().filter(|c| matches!(c.action, Action::Update | Action::Remove));
            let more: Vec<ServiceName> = changed.map(|c| c.service.clone()).filter(|s| shares(s, &of) && !bound.contains(s)).collect();
            bound.extend(more);
            at += 1;
        }
        for sharer in bound.iter().skip(1).rev() {
            for c in self.old_ones(observed, sharer) {
                self.retire(Phase::StartNew, sharer, &c).await?;
            }
        }
        Ok(())
    }

    /// Grace time of a container this operation made, in ms: the new file's, else by whether it writes data, also in a volume of its image.
    pub(super) fn grace_of_new(&self, c: &ContainerDetail) -> u64 {
        let service = c.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
        let spec = service.and_then(|s| self.plan.desired.services.get(&s));
        grace_ms(spec, c.mounts.iter().any(|m| m.writable && m.kind != "tmpfs"))
    }

    /// Serving containers this operation made for a service, whatever their numbers.
    pub(super) fn made_copies(&self, service: &ServiceName) -> Vec<EngineName> {
        let replicas = self.plan.desired.services.get(service).map_or(0, |s| s.replicas);
        (1..=replicas).filter_map(|n| self.created(&format!("create:{service}:{n}"))).collect()
    }

    /// Removes what a good release replaced. From here a failure is told and never undone: there is nothing left to go back to.
    pub(super) async fn tidy(&self) -> Result<(), Halt> {
        match self.finish().await {
            Err(Halt::Failed { message, .. }) => {
                tracing::warn!(operation = %self.operation_id(), %message, "not everything that was replaced could be removed");
                let note = format!("not everything that was replaced could be removed ({message}); the next deploy tries again");
                Ok(self.update(|op| op.message = Some(op.message.take().map_or(note.clone(), |m| format!("{m}; {note}")))).await?)
            }
            other => other,
        }
    }

    async fn finish(&self) -> Result<(), Halt> {
        let observed = self.observe().await?;
        for change in &self.plan.changes {
            self.remove_fronts(change, &observed).await?;
            let replaced = match change.action {
                Action::Update | Action::Remove => 0,
                Action::Scale => self.plan.desired.services.get(&change.service).map_or(0, |s| s.replicas as usize),
                Action::Create | Action::Restart | Action::Stop | Action::Unchanged => continue,
            };
            let old = self.old_ones(&observed, &change.service);
            for c in by_worth(&old).into_iter().skip(replaced) {
                if matches!(c.state, RunState::Running | RunState::Restarting) {
                    continue;
                }
                self.remove_step(&change.service, c, false).await?;
            }
        }
        if self.plan.only.is_none() {
            self.remove_leftovers(&observed).await?;
        }
        self.remove_colours().await
    }

    /// Canaries, hooks and retired containers of earlier operations: those ended while the engine would not remove them.
    pub(super) async fn remove_leftovers(&self, observed: &Observed) -> Result<(), Halt> {
        let mine = self.operation_id().to_string();
        for c in observed.containers.iter().filter(|c| c.labels.get(labels::OPERATION).is_some_and(|o| *o != mine)) {
            let aside = matches!(c.labels.get(labels::ROLE).map(String::as_str), Some(labels::ROLE_CANARY | labels::ROLE_HOOK));
            let retired = names::is_retired(&c.name) && !matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused);
            let Some(service) = c.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok()) else { continue };
            if aside || retired {
                self.remove_step(&service, c, aside).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn remove_step(&self, service: &ServiceName, c: &ContainerDetail, volumes: bool) -> Result<(), Halt> {
        self.remove_if_possible(Phase::Monitor, format!("remove:{service}:{}", c.id.short()), c.id.clone(), volumes).await
    }

    /// Removes what serves no more. What the engine will not remove is told in the log, and the next deploy tries again.
    pub(super) async fn remove_if_possible(&self, phase: Phase, key: String, id: EngineName, volumes: bool) -> Result<(), Halt> {
        match self.step(phase, key.clone(), Act::Remove { id, volumes }).await {
            Ok(_) | Err(Halt::Cancelled) => Ok(()),
            Err(Halt::Interrupted(why)) => Err(Halt::Interrupted(why)),
            Err(Halt::Failed { message, .. }) => {
                tracing::warn!(operation = %self.operation_id(), step = key, %message, "not removed; the next deploy tries again");
                Ok(())
            }
        }
    }
}

/// Copies in the order they stay when there are to be fewer: those that are up first, the well before the ill, then by number.
pub(super) fn by_worth(old: &[ContainerDetail]) -> Vec<&ContainerDetail> {
    let up = |c: &ContainerDetail| matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused);
    let mut all: Vec<&ContainerDetail> = old.iter().collect();
    all.sort_by_key(|c| (!up(c), c.health == HealthState::Unhealthy, number_of(c)));
    all
}

fn number_of(c: &ContainerDetail) -> u32 {
    c.labels.get(labels::NUMBER).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Numbers to be given to the copies that are missing: the lowest that no copy that stays has.
pub(super) fn missing_numbers(old: &[ContainerDetail], replicas: u32) -> Vec<u32> {
    let stays: Vec<u32> = by_worth(old).into_iter().take(replicas as usize).map(number_of).collect();
    (1..=replicas).filter(|n| !stays.contains(n)).take((replicas as usize).saturating_sub(stays.len())).collect()
}

pub(super) fn grace_ms(spec: Option<&ServiceSpec>, writes: bool) -> u64 {
    let default = if writes { GRACE_DATA } else { GRACE_PLAIN };
    spec.and_then(|s| s.stop_grace_period_ms).unwrap_or_else(|| u64::try_from(default.as_millis()).unwrap_or(u64::MAX))
}
