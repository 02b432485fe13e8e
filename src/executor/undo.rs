//! Undo: the journal backwards, each act taken back, journaled itself so that a crash in the middle goes on where it was.

use super::acts::Act;
use super::backup::acts::{AFTER, BEFORE};
use super::patience::away;
use super::run::{Fail, Halt, Run, failed};
use crate::engine::EngineError;
use crate::model::operation::{Phase, StepRecord};
use chrono::Utc;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Tries per act before the operation needs attention, and the pause between them.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Connections lost to an engine that answers at once, before that counts like a refusal.
const LOST: u32 = 20;
/// Marks the records of undoing.
pub(super) const PREFIX: &str = "undo:";

impl Run {
    /// Takes back every act of this operation, newest first. An intent without a result is taken back as well: taking back looks at
    /// the engine by label and name and does nothing where nothing was done. The services of `keep` stay as they are.
    pub(super) async fn undo(&self, keep: &BTreeSet<String>) -> Result<(), Halt> {
        self.standing.send_modify(|s| s.message = "undoing".into());
        let steps = self.exec.store.steps(self.operation_id()).await?;
        let done: BTreeSet<String> =
            steps.iter().filter(|s| s.done.is_some()).filter_map(|s| s.key.strip_prefix(PREFIX).map(str::to_owned)).collect();
        // Whom a hold held runs again since its resume; who was stopped after that is not the hold's to start.
        let resumed = |s: &StepRecord| {
            let by = match s.key.as_str() {
                "hold" => "resume",
                super::snapshot::HOLD => super::snapshot::RESUME,
                _ => return false,
            };
            steps.iter().any(|s| s.key == by && s.done.is_some())
        };
        // The same holds for what a service has run before and after the reading of its data.
        let followed = |s: &StepRecord| {
            let after = s.key.strip_prefix(BEFORE).map(|service| format!("{AFTER}{service}"));
            after.is_some_and(|after| steps.iter().any(|s| s.key == after && s.done.is_some()))
        };
        let over = |s: &StepRecord| done.contains(&s.key) || self.kept(keep, s) || resumed(s) || followed(s);
        for step in steps.iter().rev().filter(|s| !s.key.starts_with(PREFIX) && !over(s)) {
            let act: Act = serde_json::from_value(step.intent.clone()).map_err(|e| failed(format!("journal step {}: {e}", step.key)))?;
            self.exec.may_go_on()?;
            let key = format!("{PREFIX}{}", step.key);
            let known = steps.iter().find(|s| s.key == key).map(|s| s.seq);
            let seq = match known {
                Some(seq) => seq,
                None => {
                    let seq = self
                        .exec
                        .store
                        .step_intent(self.operation_id(), self.epoch, Phase::Finished, &key, &step.intent, Utc::now())
                        .await?;
                    self.exec.recorded()?;
                    seq
                }
            };
            self.take_back_with_patience(&step.key, &act, step.done.as_ref()).await?;
            self.exec.recorded()?;
            self.exec.store.step_done(self.operation_id(), seq, &Value::Null).await?;
            self.exec.recorded()?;
        }
        Ok(())
    }

    async fn take_back_with_patience(&self, key: &str, act: &Act, done: Option<&Value>) -> Result<(), Halt> {
        let (mut tries, mut lost) = (1, 0);
        loop {
            let error = match self.take_back(act, done).await {
                Ok(()) => return Ok(()),
                Err(Fail::Store(e)) => return Err(e.into()),
                Err(Fail::Engine(e)) if away(&e) && self.exec.engine.info().await.is_err() => {
                    // However long it takes: while the engine is away there is nothing else to do.
                    self.engine_back(Phase::Finished).await?;
                    continue;
                }
                // It answers, so it is this very request that it loses: not without end.
                Err(Fail::Engine(e @ EngineError::Unreachable { .. })) if lost < LOST => {
                    lost += 1;
                    tries = 0;
                    Fail::Engine(e)
                }
                Err(e) => e,
            };
            if tries >= TRIES {
                return Err(failed(format!("{key}: {error}")));
            }
            tracing::warn!(operation = %self.operation_id(), step = key, %error, tries, "taking back failed, trying again");
            self.exec.may_go_on()?;
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}
