//! What operations of ours removed, by their journal: an event of the engine does not say who asked for it.

use super::acts::Act;
use super::{Executor, ExecutorError, undo};
use crate::model::ids::{EngineName, StackName};
use crate::model::operation::StepRecord;

/// Operations of a stack looked at: no event of the engine comes later than that.
const LATE: usize = 8;

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
}
