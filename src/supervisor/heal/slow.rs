//! Stacks that do not answer while the engine does: a container whose inspection hangs keeps nobody but its own stack from being looked at. Told once, looked at
//! again after a while. Deliberately absent: an engine that is away as a whole.

use super::Healer;
use crate::model::ids::StackName;
use crate::model::labels;
use chrono::Utc;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Each look at such a stack costs the loop as long as the engine is waited for.
const REST: Duration = Duration::from_secs(120);

/// Since when they are left alone, until the first look that succeeds.
#[derive(Debug, Default)]
pub(super) struct Slow(BTreeMap<StackName, Instant>);

impl Slow {
    /// Whether it is too early for another look.
    pub(super) fn rests(&self, stack: &StackName) -> bool {
        self.0.get(stack).is_some_and(|at| at.elapsed() < REST)
    }

    pub(super) fn answered(&mut self, stack: &StackName) {
        if self.0.remove(stack).is_some() {
            tracing::info!(%stack, "the stack answers again");
        }
    }

    /// Notes it; whether that is news.
    fn silent(&mut self, stack: &StackName) -> bool {
        self.0.insert(stack.clone(), Instant::now()).is_none()
    }
}

impl Healer {
    /// Whether the engine itself answers.
    pub(super) async fn answers(&self) -> bool {
        self.house.engine.containers(&[labels::filter(labels::INSTANCE, self.house.store.instance())]).await.is_ok()
    }

    /// Nothing is healed in this stack until it answers: a person is told.
    pub(super) async fn does_not_answer(&mut self, stack: &StackName) {
        if !self.slow.silent(stack) {
            return;
        }
        tracing::error!(%stack, rest_s = REST.as_secs(), "the engine answers, but not about this stack: it is not healed meanwhile");
        let detail = json!({"next": "a container, volume or network of it does not answer: find it with `docker inspect`"});
        let told =
            self.house.store.audit_event(super::super::WARDEN, "stack_does_not_answer", Some(stack.as_str()), &detail, Utc::now()).await;
        if let Err(e) = told {
            tracing::error!(%stack, error = %e, "that it does not answer could not be recorded");
        }
    }
}
