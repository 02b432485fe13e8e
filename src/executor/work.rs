//! An operation at work: refused where its plan is stale, taken over in place where its state could not be written, letting its stack go however it ends.

use super::recover::Takeover;
use super::run::{Begin, Run};
use super::{Executor, ExecutorError};
use crate::model::ids::{OperationId, StackName};
use crate::model::operation::{Operation, OperationState, Phase, StepRecord};
use crate::model::plan::{Plan, PlanKind};
use crate::{gate, planner, redact};
use chrono::Utc;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// First and longest pause before an operation whose state could not be written is taken over.
const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// An operation at work lets its stack go when its task ends, however that ends.
pub(super) struct Held {
    pub(super) exec: Arc<Executor>,
    pub(super) id: OperationId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.exec.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Executor {
    /// Refuses a plan whose world has moved on: another release serves, its number is taken, or the engine shows something else than it was made against.
    pub(super) async fn still_true(&self, plan: &Plan) -> Result<(), ExecutorError> {
        let stale = |what: String| Err(ExecutorError::Stale(what));
        let current = self.store.stack(&plan.stack).await?.and_then(|s| s.current);
        if current != plan.from_release {
            let word = |r: Option<u32>| r.map_or_else(|| "no release".to_owned(), |r| format!("release {r}"));
            return stale(format!("{} serves, and it was made when {} did", word(current), word(plan.from_release)));
        }
        let last = self.store.last_release_number(&plan.stack).await?;
        if Some(plan.to_release) != plan.from_release && plan.to_release > 0 && plan.to_release <= last {
            return stale(format!("release {} was made meanwhile", plan.to_release));
        }
        let release = match current {
            Some(number) => self.store.release(&plan.stack, number).await?,
            None => None,
        };
        let observed = self.observe(&plan.stack).await?;
        if planner::fingerprint(release.as_ref(), &observed, &|bytes: &[u8]| self.store.keyed_digest(bytes)) != plan.fingerprint {
            return stale("its containers, networks or volumes on the engine are not the ones it was made for".into());
        }
        Ok(())
    }

    /// Runs an operation to its end. One whose state could not be written is taken over here, as the next start would, once it can be: until then
    /// it holds its stack.
    pub(super) async fn work(&self, mut begin: Begin, mut takeover: Takeover) {
        let mut pause = WRITE_AGAIN.0;
        loop {
            let (again, id) = (begin.again(), begin.op.id.clone());
            let run = Run::new(begin);
            if let Err(panic) = AssertUnwindSafe(run.drive(takeover)).catch_unwind().await {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
                drop(panic);
                return self.broken(&again.plan, &id, &text.unwrap_or_else(|| "see the log".into())).await;
            }
            let (op, steps, way) = loop {
                match self.left_open(&again.plan, &id).await {
                    Ok(None) => return,
                    Ok(Some(left)) => break left,
                    Err(e) => tracing::error!(operation = %id, error = %e, "the operation cannot be read; tried again"),
                }
                if !self.waited(pause).await {
                    return;
                }
                pause = (pause * 2).min(WRITE_AGAIN.1);
            };
            if !self.waited(pause).await {
                return;
            }
            pause = (pause * 2).min(WRITE_AGAIN.1);
            takeover = way;
            tracing::warn!(operation = %id, ?takeover, "its state could not be written: it is taken over");
            begin = Begin { permit: gate::permit_takeover(&op), op, steps, ..again };
        }
    }

    /// A defect of ours ended a run: nothing is known of how far it came, so a person decides.
    async fn broken(&self, plan: &Plan, id: &OperationId, what: &str) {
        tracing::error!(operation = %id, %what, "the operation ended by a defect of the supervisor");
        let message = format!(
            "a defect of the supervisor ended it ({}); what runs was left as it is: `deploy`, `rollback` or `stop` supersedes this",
            redact::line(what, 200)
        );
        let in_place = matches!(plan.kind, PlanKind::Restart | PlanKind::Stop);
        let state = if in_place { OperationState::Failed } else { OperationState::NeedsAttention };
        match self.store.operation(id).await {
            Ok(Some(mut op)) if !op.state.is_terminal() => {
                (op.state, op.phase, op.message) = (state, Phase::Finished, Some(message));
                op.settled_at.get_or_insert_with(Utc::now);
                if let Err(e) = self.store.save_operation(&op).await {
                    tracing::error!(operation = %id, error = %e, "its end could not be recorded; the next start takes it over");
                }
            }
            Ok(_) => {}
            Err(e) => tracing::error!(operation = %id, error = %e, "its end could not be recorded; the next start takes it over"),
        }
    }

    /// What is stored of an operation that did not come to its end; `None` = it did, a newer one has its stack, or the supervisor ends.
    async fn left_open(&self, plan: &Plan, id: &OperationId) -> Result<Option<(Operation, Vec<StepRecord>, Takeover)>, ExecutorError> {
        if self.closing.is_cancelled() {
            return Ok(None);
        }
        let Some(op) = self.store.operation(id).await?.filter(|o| !o.state.is_terminal()) else { return Ok(None) };
        if self.superseded(&op).await? {
            return Ok(None);
        }
        let steps = self.store.steps(id).await?;
        let way = self.way_on(plan, &op, &steps).await?;
        Ok(Some((op, steps, way)))
    }

    /// False when the supervisor ends meanwhile.
    async fn waited(&self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.closing() => false,
        }
    }

    /// The operation that holds a stack, whether it is at work here or waits to be taken over.
    ///
    /// # Errors
    /// The store's.
    pub async fn held_by(&self, stack: &StackName) -> Result<Option<OperationId>, ExecutorError> {
        if let Some(id) = self.holding(stack) {
            return Ok(Some(id));
        }
        let open = self.store.open_operations().await?;
        Ok(open.into_iter().find(|o| o.plan.is_some() && o.stack.as_ref() == Some(stack)).map(|o| o.id))
    }
}
