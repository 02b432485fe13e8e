//! SMOKE: tests of the changed services against their new containers, made once, when all have passed their probes and before any is switched. A
//! failing one undoes the whole operation; the old release was never touched, or starts again where it had to stop for the new one.

use super::apply::REVIVALS;
use super::checks::Outcome;
use super::probe::ProbeError;
use super::run::{Halt, Run, failed};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::operation::Phase;
use crate::model::plan::{Action, Change, Strategy};
use crate::model::spec::Probe;

impl Run {
    /// Makes the smoke tests, in dependency order, each once.
    pub(super) async fn smoke(&self) -> Result<(), Halt> {
        let order: Vec<&Change> = self.plan.levels.iter().flatten().filter_map(|s| self.changes().find(|c| c.service == *s)).collect();
        let tested = |c: &&Change| {
            let made = matches!(c.action, Action::Create | Action::Update) && c.strategy != Strategy::RunOnce;
            made && self.plan.desired.services.get(&c.service).is_some_and(|s| !s.settings.smoke.is_empty())
        };
        let order: Vec<&Change> = order.into_iter().filter(tested).collect();
        let of_stack = if self.changes().next().is_some() { self.plan.desired.settings.smoke.as_slice() } else { &[] };
        if order.is_empty() && of_stack.is_empty() {
            return Ok(());
        }
        self.enter(Phase::Smoke, 50.0, "smoke tests").await?;
        for change in order {
            let service = &change.service;
            let spec = self.spec(service)?;
            let target = self.created(&format!("create:{service}:canary")).or_else(|| self.created(&format!("create:{service}:1")));
            let Some(id) = target else { continue };
            for (i, test) in spec.settings.smoke.iter().enumerate() {
                self.smoke_test(service, &id, test, &format!("smoke test {}", i + 1)).await?;
            }
        }
        for (i, t) in of_stack.iter().enumerate() {
            let id = self.stands_for(&t.service).await?;
            let id = id.ok_or_else(|| failed(format!("service {} has no container for a smoke test of the stack", t.service)))?;
            self.smoke_test(&t.service, &id, &t.test, &format!("smoke test {} of the stack", i + 1)).await?;
        }
        Ok(())
    }

    async fn smoke_test(&self, service: &ServiceName, id: &EngineName, test: &Probe, called: &str) -> Result<(), Halt> {
        let spec = self.spec(service)?;
        self.say(format!("{called}, {service}: {}", test.check));
        let mut revivals = REVIVALS;
        let outcome = loop {
            let made = tokio::select! {
                made = self.attempt(id, spec, test) => made,
                () = self.cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            };
            if let Err(e) = &made
                && super::patience::away(e)
            {
                self.engine_back(Phase::Smoke).await?;
                continue;
            }
            // What is tested, or what it needs, may have ended with the engine.
            if !matches!(made, Ok(Outcome::Passed(_))) && revivals > 0 && Box::pin(self.revive()).await? {
                revivals -= 1;
                continue;
            }
            match made {
                Ok(outcome) => break outcome,
                Err(e) => return Err(self.probe_halt(id, service, e.into()).await),
            }
        };
        let (reason, output) = match outcome {
            Outcome::Passed(how) => {
                tracing::info!(operation = %self.operation_id(), %service, test = %how, "smoke test passed");
                return Ok(());
            }
            Outcome::Failed { reason, output } => (reason, output),
            Outcome::Impossible(reason) => (reason, None),
        };
        let error = ProbeError::Failed { reason: format!("{called} failed: {reason}"), output };
        Err(self.probe_halt(id, service, error).await)
    }
}
