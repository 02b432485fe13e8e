//! Calls that were approved and could not start: the engine was away, the house was frozen, the supervisor ended in between. What a task waits for is
//! tried again until the approval's time is over. Deliberately absent: the first start, which is the business of the door the operator's word came through.

use crate::call::House;
use crate::call::approval::run_approved;
use crate::model::ids::ApprovalId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Pause before the first and between further tries: the door that took the word has had its try by then.
const EVERY: Duration = Duration::from_secs(30);

/// When the call of each approval is tried next, and the try under way.
#[derive(Debug, Default)]
pub(super) struct Starts(BTreeMap<ApprovalId, (Instant, Option<JoinHandle<()>>)>);

impl Starts {
    /// Tries what is due among the approvals that were given and not used.
    pub(super) fn again(&mut self, house: &Arc<House>, at_work: &TaskTracker, given: &[ApprovalId]) {
        let now = Instant::now();
        self.0.retain(|id, _| given.contains(id));
        for id in given {
            let (due, last) = self.0.entry(id.clone()).or_insert_with(|| (now + EVERY, None));
            if *due > now || last.as_ref().is_some_and(|t| !t.is_finished()) {
                continue;
            }
            let (house, id) = (house.clone(), id.clone());
            *due = now + EVERY;
            *last = Some(at_work.spawn(async move {
                match run_approved(&house, &id).await {
                    Ok(_) => tracing::info!(approval = %id, "a call that was approved has started after all"),
                    Err(e) => tracing::warn!(approval = %id, error = %e, "a call that was approved could not start"),
                }
            }));
        }
    }

    #[cfg(test)]
    pub(super) fn hurry(&mut self) {
        self.0.values_mut().for_each(|(due, _)| *due = Instant::now());
    }
}
