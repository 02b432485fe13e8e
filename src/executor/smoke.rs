//! SMOKE: tests of the changed services against their new containers, made once, when all have passed their probes and before any is switched. A
//! failing one undoes the whole operation; the old release was never touched, or starts again where it had to stop for the new one.

use super::checks::Outcome;
use super::probe::ProbeError;
use super::run::{Halt, Run};
use crate::model::operation::Phase;
use crate::model::plan::{Action, Change, Strategy};

impl Run {
    /// Makes the smoke tests, in dependency order, each once.
    pub(super) async fn smoke(&self) -> Result<(), Halt> {
        let order: Vec<&Change> = self.plan.levels.iter().flatten().filter_map(|s| self.changes().find(|c| c.service == *s)).collect();
        let tested = |c: &&Change| {
            let made = matches!(c.action, Action::Create | Action::Update) && c.strategy != Strategy::RunOnce;
            made && self.plan.desired.services.get(&c.service).is_some_and(|s| !s.settings.smoke.is_empty())
        };
        let order: Vec<&Change> = order.into_iter().filter(tested).collect();
        if order.is_empty() {
            return Ok(());
        }
        self.enter(Phase::Smoke, 50.0, "smoke tests").await?;
        for change in order {
            let service = &change.service;
            let spec = self.spec(service)?;
            let target = self.created(&format!("create:{service}:canary")).or_else(|| self.created(&format!("create:{service}:1")));
            let Some(id) = target else { continue };
            for (i, test) in spec.settings.smoke.iter().enumerate() {
                self.say(format!("smoke test {} of {service}: {}", i + 1, test.check));
                let outcome = loop {
                    let made = tokio::select! {
                        made = self.attempt(&id, spec, test) => made,
                        () = self.cancel.cancelled() => return Err(Halt::Cancelled),
                        () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
                    };
                    match made {
                        Ok(outcome) => break outcome,
                        Err(e) if super::patience::away(&e) => self.engine_back(Phase::Smoke).await?,
                        Err(e) => return Err(self.probe_halt(&id, service, e.into()).await),
                    }
                };
                let (reason, output) = match outcome {
                    Outcome::Passed(how) => {
                        tracing::info!(operation = %self.operation_id(), %service, test = %how, "smoke test passed");
                        continue;
                    }
                    Outcome::Failed { reason, output } => (reason, output),
                    Outcome::Impossible(reason) => (reason, None),
                };
                let error = ProbeError::Failed { reason: format!("smoke test {} failed: {reason}", i + 1), output };
                return Err(self.probe_halt(&id, service, error).await);
            }
        }
        Ok(())
    }
}
