//! STOP_OLD: what served before loses its restart policy, stops, and gives its name to what serves now. A failure here is reported and left to the next
//! operation, never an undo: the new release already serves. Deliberately absent: removing (`leave`).

use super::acts::Act;
use super::leave::by_worth;
use super::names;
use super::run::{Halt, Run, failed};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::operation::Phase;
use crate::model::plan::{Action, Change, Strategy};
use crate::model::spec::Restart;
use crate::planner::{self, Observed};

impl Run {
    /// Canaries go, services no longer in the file and surplus copies stop, names change hands. A failure here is reported, never an
    /// undo: the new release already serves.
    pub(super) async fn stop_old(&self) -> Result<(), Halt> {
        let observed = self.observe().await?;
        // What leaves goes first: a successor may carry its name. Services of one colour call each other past their fronts: who calls goes before who is called.
        let (leaving, staying): (Vec<_>, Vec<_>) = self.plan.changes.iter().partition(|c| c.action == Action::Remove);
        let (coloured, plain): (Vec<_>, Vec<_>) = staying.into_iter().partition(|c| c.strategy == Strategy::BlueGreen);
        for change in leaving.into_iter().chain(plain).chain(coloured.into_iter().rev()) {
            match self.retire_service(change, &observed).await {
                Ok(()) => {}
                Err(Halt::Failed { message, .. }) => {
                    tracing::warn!(operation = %self.operation_id(), service = %change.service, %message, "retiring is left to the next operation");
                    let note =
                        format!("{}: the old container could not be retired ({message}); the next operation tries again", change.service);
                    self.update(|op| super::once::tell(op, &[note])).await?;
                }
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }

    async fn retire_service(&self, change: &Change, observed: &Observed) -> Result<(), Halt> {
        let service = &change.service;
        let phase = Phase::StopOld;
        if let Some(id) = self.created(&format!("create:{service}:canary")) {
            self.remove_if_possible(phase, format!("remove:{service}:canary"), id, true).await?;
        }
        let old = self.old_ones(observed, service);
        if change.action == Action::Update {
            // Beside each other: a name is free once its holder has another, whether it still runs or not.
            let names = async {
                self.name_old(phase, service, &old).await?;
                self.name_new_of(phase, service).await
            };
            let (retired, named) = tokio::join!(Box::pin(self.retire_behind(change, observed)), Box::pin(names));
            return retired.and(named);
        }
        self.retire_behind(change, observed).await?;
        let replicas = self.plan.desired.services.get(service).map_or(0, |s| s.replicas as usize);
        match change.action {
            Action::Remove => {
                let wanted =
                    |name: &str| self.plan.desired.services.values().any(|s| s.active && s.container_name.as_deref() == Some(name));
                for (i, c) in old.iter().enumerate() {
                    self.retire(phase, service, c).await?;
                    if wanted(&c.name) {
                        let to = names::retired(self.operation_id(), service, u32::try_from(i).unwrap_or(0) + 1);
                        self.rename_step(phase, service, &c.id, &c.name, to).await?;
                    }
                }
            }
            Action::Scale => {
                for c in by_worth(&old).into_iter().skip(replicas) {
                    self.retire(phase, service, c).await?;
                }
            }
            Action::Create | Action::Update | Action::Restart | Action::Stop | Action::Unchanged => {}
        }
        if change.action == Action::Create || change.action == Action::Scale {
            return self.name_new_of(phase, service).await;
        }
        Ok(())
    }

    /// Old containers give their names up.
    pub(super) async fn name_old(&self, phase: Phase, service: &ServiceName, old: &[ContainerDetail]) -> Result<(), Halt> {
        for (i, c) in old.iter().enumerate() {
            let to = names::retired(self.operation_id(), service, u32::try_from(i).unwrap_or(0) + 1);
            self.rename_step(phase, service, &c.id, &c.name, to).await?;
        }
        Ok(())
    }

    /// The new containers of a service take the names that are free now.
    pub(super) async fn name_new_of(&self, phase: Phase, service: &ServiceName) -> Result<(), Halt> {
        let spec = self.spec(service)?;
        for number in 1..=spec.replicas {
            if let Some(id) = self.created(&format!("create:{service}:{number}")) {
                let from = names::working(self.operation_id(), service, number);
                let to = names::canonical(&self.plan.stack, service, spec, number);
                self.rename_step(phase, service, &id, from.as_str(), to).await?;
            }
        }
        Ok(())
    }

    /// Names given beside the switch: labels are the keys, so one that is taken undoes nothing. STOP_OLD asks for the same names again and notes what stays.
    pub(super) fn names_later(&self, service: &ServiceName, named: Result<(), Halt>) -> Result<(), Halt> {
        match named {
            Err(Halt::Failed { message, .. }) => {
                tracing::warn!(operation = %self.operation_id(), %service, %message, "names are left to the end");
                Ok(())
            }
            other => other,
        }
    }

    pub(super) async fn rename_step(
        &self,
        phase: Phase,
        service: &ServiceName,
        id: &EngineName,
        from: &str,
        to: EngineName,
    ) -> Result<(), Halt> {
        if from == to.as_str() {
            return Ok(());
        }
        let from = EngineName::new(from).map_err(|e| failed(e.to_string()))?;
        self.step(phase, format!("rename:{service}:{}", id.short()), Act::Rename { id: id.clone(), from, to }).await?;
        Ok(())
    }

    /// Stops an old container so that nothing starts it again: its restart policy goes first.
    pub(super) async fn retire(&self, phase: Phase, service: &ServiceName, old: &ContainerDetail) -> Result<(), Halt> {
        // Also of one that does not run: the engine starts those of some policies when it starts itself.
        self.unpolicy(phase, service, old).await?;
        if !matches!(old.state, RunState::Running | RunState::Restarting | RunState::Paused) {
            return Ok(());
        }
        let (id, short) = (&old.id, old.id.short());
        let act = Act::Stop { id: id.clone(), grace_ms: self.grace(service) };
        self.step(phase, format!("stop:{service}:{short}"), act).await?;
        Ok(())
    }

    /// Runs of a job that are not over yet: one that ended meanwhile is not stopped, so that no way back starts it again.
    pub(super) async fn at_work(&self, old: &[ContainerDetail]) -> Result<Vec<ContainerDetail>, Halt> {
        let now = self.observe().await?;
        let runs = |c: &ContainerDetail| matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused);
        Ok(now.containers.into_iter().filter(|c| runs(c) && old.iter().any(|o| o.id == c.id)).collect())
    }

    /// Takes an old container's restart policy away.
    pub(super) async fn unpolicy(&self, phase: Phase, service: &ServiceName, old: &ContainerDetail) -> Result<(), Halt> {
        let from = self.policy_of(service, old);
        if from != Restart::No {
            // What ends by itself when its work is done must not begin it again.
            let ends = self.current.as_ref().is_some_and(|r| planner::job(&r.spec, service) || planner::one_shot(&r.spec, service));
            let up = !ends && matches!(old.state, RunState::Running | RunState::Restarting | RunState::Paused);
            let act = Act::SetRestart { id: old.id.clone(), from, to: Restart::No, up };
            self.step(phase, format!("unpolicy:{service}:{}", old.id.short()), act).await?;
        }
        Ok(())
    }

    /// Takes the restart policies of old containers away.
    pub(super) async fn unpolicy_all(&self, phase: Phase, service: &ServiceName, old: &[&ContainerDetail]) -> Result<(), Halt> {
        for c in old {
            self.unpolicy(phase, service, c).await?;
        }
        Ok(())
    }
}
