//! Takeover on start: what a crash interrupted is undone before the switch and finished after it. An intent without a result means: look at
//! the engine and decide; every act and every taking back does that by itself.

use super::backup::DataJob;
use super::{Executor, ExecutorError};
use crate::gate;
use crate::model::ids::{OperationId, StackName};
use crate::model::operation::{Operation, OperationState, Phase, StepRecord};
use crate::model::plan::{Plan, PlanKind};
use crate::model::release::ReleaseState;
use chrono::Utc;
use std::sync::Arc;

/// How an interrupted operation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takeover {
    /// It is new.
    None,
    /// After the switch: forward.
    Forward,
    /// The release is recorded as good: only what it replaced is left to be removed.
    Finish,
    /// Before the switch, or already undoing: back.
    Undo,
    /// Restart, stop, and a release whose data is migrated: again from the start, done steps are skipped.
    Again,
}

fn way(plan_kind: PlanKind, steps: &[StepRecord]) -> Takeover {
    let undoing = steps.iter().any(|s| s.key.starts_with("undo:"));
    let switched = steps.iter().any(|s| s.key == "switch");
    // Its old version must not see the data again: only forward leads to one release.
    let migrated = super::datapath::taken(steps);
    match plan_kind {
        PlanKind::Restart | PlanKind::Stop => Takeover::Again,
        PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale if switched && !undoing => Takeover::Forward,
        PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale if migrated && !undoing => Takeover::Again,
        PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale => Takeover::Undo,
    }
}

impl Executor {
    /// How an operation whose journal is `steps` goes on.
    pub(super) async fn way_on(&self, plan: &Plan, op: &Operation, steps: &[StepRecord]) -> Result<Takeover, ExecutorError> {
        let made = self.store.release(&plan.stack, plan.to_release).await?.filter(|r| r.operation == op.id);
        let good = made.is_some_and(|r| matches!(r.state, ReleaseState::Good | ReleaseState::Unproven));
        Ok(if good { Takeover::Finish } else { way(plan.kind, steps) })
    }

    /// Takes over every operation a restart interrupted: undoes before the switch, goes forward after it. Returns what was taken over.
    ///
    /// # Errors
    /// `Store`.
    pub async fn recover(self: &Arc<Self>) -> Result<Vec<OperationId>, ExecutorError> {
        let mut taken = vec![];
        for op in self.store.open_operations().await? {
            if self.standing(&op.id).is_some() {
                // Taken over by an earlier round that did not get to its end.
                continue;
            }
            let plan = match &op.plan {
                Some(id) => self.store.plan(id).await?,
                None => None,
            };
            if self.superseded(&op).await? {
                continue;
            }
            let steps = self.store.steps(&op.id).await?;
            match plan {
                None if DataJob::VERBS.contains(&op.verb.as_str()) => {
                    tracing::info!(operation = %op.id, verb = %op.verb, "closing interrupted work on data");
                    taken.push(op.id.clone());
                    self.take_over_data(op, steps);
                }
                Some(plan) => {
                    let takeover = self.way_on(&plan, &op, &steps).await?;
                    tracing::info!(operation = %op.id, stack = %plan.stack, ?takeover, "taking over an interrupted operation");
                    taken.push(op.id.clone());
                    let permit = gate::permit_takeover(&op);
                    let current = self.release_before(&plan).await?;
                    self.spawn(op, plan, permit, steps, current, takeover);
                }
                None => self.close_planless(op, steps.is_empty()).await?,
            }
        }
        Ok(taken)
    }

    /// Ends an operation whose stack a newer one has taken: it can write nothing any more, and what it left the newer one has found.
    pub(super) async fn superseded(&self, op: &Operation) -> Result<bool, ExecutorError> {
        // Without an epoch it works beside its stack: nothing newer takes that from it.
        let Some(stack) = op.stack.as_ref().filter(|_| op.epoch > 0) else { return Ok(false) };
        let newer = self.store.stack(stack).await?.is_some_and(|s| s.epoch > op.epoch);
        if newer {
            let message = "interrupted, and superseded by a newer operation on its stack";
            self.store.end_superseded(&op.id, OperationState::Failed, message, Utc::now()).await?;
        }
        Ok(newer)
    }

    /// Ends what an earlier run left open on a stack that nothing works at: the operation that begins now takes the stack over.
    pub(super) async fn close_abandoned(&self, stack: &StackName) -> Result<(), ExecutorError> {
        let open = self.store.open_operations().await?;
        // Without a plan it is no deploy: backups run beside the operations that are at work here.
        for op in open.into_iter().filter(|o| o.plan.is_some() && o.stack.as_ref() == Some(stack) && self.standing(&o.id).is_none()) {
            let message = "interrupted, and superseded by a newer operation on its stack";
            self.store.end_superseded(&op.id, OperationState::Failed, message, Utc::now()).await?;
        }
        Ok(())
    }

    /// An operation whose plan is gone (it never had one, or it outlived its keeping) cannot go on.
    async fn close_planless(&self, mut op: Operation, untouched: bool) -> Result<(), ExecutorError> {
        op.state = if untouched { OperationState::Failed } else { OperationState::NeedsAttention };
        op.phase = Phase::Finished;
        op.message = Some("the supervisor was restarted while it ran".into());
        op.settled_at.get_or_insert_with(Utc::now);
        self.store.save_operation(&op).await?;
        Ok(())
    }
}
