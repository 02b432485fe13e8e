//! Nothing is made beside Compose: where somebody's own `docker compose up` replaced a container of a stack of ours meanwhile, an operation that would make
//! another one ends before its switch and takes back what it made.

use super::run::{Halt, Run, failed};
use crate::model::labels;
use crate::model::observed::ContainerSummary;
use crate::planner::Observed;
use crate::redact;

impl Run {
    /// Directly before the switch: nothing of Compose's runs beside, and what passed its probe is still up. Returns what was seen.
    pub(super) async fn still_well_and_alone(&self) -> Result<Observed, Halt> {
        // Both to their end: nothing may start while it is undone.
        let (alone, observed) = tokio::join!(self.nothing_beside(), Box::pin(self.still_well()));
        alone.and(observed)
    }

    /// Refuses to go on while Compose runs a service that this operation makes or changes.
    pub(super) async fn nothing_beside(&self) -> Result<(), Halt> {
        let filter = [labels::filter(labels::COMPOSE_PROJECT, self.plan.stack.as_str())];
        let phase = self.operation().phase;
        let found = self.asking(phase, || async { self.exec.engine.containers(&filter).await }).await?;
        let label = |c: &ContainerSummary, key: &str| c.labels.get(key).cloned().unwrap_or_default();
        let made = |service: &str| self.changes().any(|c| c.service.as_str() == service);
        let theirs = |c: &&ContainerSummary| {
            let one_off = label(c, labels::COMPOSE_ONEOFF).eq_ignore_ascii_case("true");
            !c.labels.contains_key(labels::INSTANCE) && !one_off && made(&label(c, labels::COMPOSE_SERVICE))
        };
        match found.iter().find(theirs) {
            None => Ok(()),
            Some(c) => Err(failed(format!(
                "service {} is run by Compose now ({}): nothing is made beside it; `dockwarden adopt {}` takes it over",
                redact::line(&label(c, labels::COMPOSE_SERVICE), 80),
                redact::line(&c.name, 80),
                self.plan.stack
            ))),
        }
    }
}
