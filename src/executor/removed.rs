//! What operations of ours removed or stopped, by their journal: an event of the engine does not say who asked for it.

use super::acts::Act;
use super::backup::DataAct;
use super::{Executor, ExecutorError, undo};
use crate::model::ids::{EngineName, StackName};
use crate::model::operation::StepRecord;
use chrono::{DateTime, TimeDelta, Utc};

/// Operations of a stack looked at: no event of the engine comes later than that.
const LATE: usize = 8;
/// Between our clock and the engine's.
const CLOCKS: TimeDelta = TimeDelta::seconds(2);
/// How long after its intent an act may stop what it stops, where no record says when it was done.
const UNDER_WAY: TimeDelta = TimeDelta::minutes(10);

impl Executor {
    /// Whether a late operation of ours on the stack removed a container, or was about to: the journal says so before it is done.
    ///
    /// # Errors
    /// `Store`.
    pub async fn has_removed(&self, stack: &StackName, id: &EngineName) -> Result<bool, ExecutorError> {
        for op in self.store.operations(Some(stack), LATE).await? {
            let steps = self.store.steps(&op.id).await?;
            let made = |s: &StepRecord| s.done.as_ref().and_then(|d| d["id"].as_str()) == Some(id.as_str());
            let undone = |s: &StepRecord| steps.iter().any(|u| u.key.strip_prefix(undo::PREFIX) == Some(&s.key));
            let removes = |s: &StepRecord| match serde_json::from_value(s.intent.clone()) {
                Ok(Act::Remove { id: of, .. }) => of == *id,
                Ok(Act::Create { .. } | Act::CreateFront { .. }) => made(s) && undone(s),
                _ => false,
            };
            if steps.iter().any(removes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an operation of ours on the stack stopped a container at that time: between the intent and the record of an act that does.
    ///
    /// # Errors
    /// `Store`.
    pub async fn has_stopped(&self, stack: &StackName, id: &EngineName, at: DateTime<Utc>) -> Result<bool, ExecutorError> {
        for op in self.store.operations(Some(stack), LATE).await? {
            let steps = self.store.steps(&op.id).await?;
            let then = |s: &&StepRecord| s.at - CLOCKS <= at && at <= s.done_at.unwrap_or(s.at + UNDER_WAY) + CLOCKS;
            if steps.iter().filter(then).any(|s| stops(s, &steps, id)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a step stops a container.
fn stops(step: &StepRecord, steps: &[StepRecord], id: &EngineName) -> bool {
    let undone = step.key.strip_prefix(undo::PREFIX);
    let made = |key: &str| steps.iter().find(|s| s.key == key).and_then(|s| s.done.as_ref()).and_then(|d| d["id"].as_str());
    match (serde_json::from_value(step.intent.clone()), undone) {
        (Ok(Act::Stop { id: of, .. } | Act::Restart { id: of, .. } | Act::Remove { id: of, .. }), None) => of == *id,
        (Ok(Act::Start { id: of } | Act::RunOnce { id: of, .. }), Some(_)) => of == *id,
        (Ok(Act::Create { .. } | Act::CreateFront { .. }), Some(key)) => made(key) == Some(id.as_str()),
        (Ok(Act::Data { data: DataAct::Hold { writers, .. } }), None) => writers.iter().any(|w| w.id == *id),
        (Ok(Act::Data { data: DataAct::Exchange { exchange } }), _) => exchange.users.iter().any(|w| w.id == *id),
        _ => false,
    }
}
