//! Undo: the journal backwards, each act taken back, journaled itself so that a crash in the middle goes on where it was.

use super::acts::Act;
use super::backup::acts::{AFTER, BEFORE};
use super::patience::away;
use super::probe;
use super::run::{Fail, Halt, Run, failed};
use crate::engine::EngineError;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::RunState;
use crate::model::operation::{Phase, StepRecord};
use crate::planner;
use chrono::Utc;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Tries per act before the operation needs attention, and the pause between them.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Connections lost to an engine that answers at once, before that counts like a refusal.
const LOST: u32 = 20;
/// Marks the records of undoing.
pub(super) const PREFIX: &str = "undo:";

/// Longest wait for one container that was started again to be well, and for all of an undo.
const WELL: Duration = Duration::from_secs(30);
const WELL_IN_ALL: Duration = Duration::from_secs(60);

/// What an undo gathers on its way.
#[derive(Debug, Default)]
pub(super) struct Undoing {
    /// Told with the end of the operation.
    notes: Vec<String>,
    /// Time waited for containers to be well again.
    waited: Duration,
}

/// What the failure of taking an act back means for the acts before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Those before it rest on it: nothing more is taken back.
    Holds,
    /// The others are taken back; what stays is a matter for a person.
    Attention,
    /// A name, a tag or an empty thing stays: it is told.
    Told,
}

fn weight(act: &Act) -> Weight {
    match act {
        Act::Rename { .. }
        | Act::Tag { .. }
        | Act::Claim { .. }
        | Act::Network { .. }
        | Act::Colour { .. }
        | Act::Keep { .. }
        | Act::CreateFront { .. }
        | Act::FrontImage { .. } => Weight::Told,
        // It does not run: its start was taken back before it, and that holds.
        Act::Create { .. } | Act::Volume { .. } => Weight::Attention,
        Act::Switch
        | Act::DataPath { .. }
        | Act::RunOnce { .. }
        | Act::Ran { .. }
        | Act::HookOnce { .. }
        | Act::HookExec { .. }
        | Act::Pull { .. }
        | Act::Start { .. }
        | Act::Stop { .. }
        | Act::Restart { .. }
        | Act::SetRestart { .. }
        | Act::Connect { .. }
        | Act::Remove { .. }
        | Act::RemoveNetwork { .. }
        | Act::Data { .. }
        | Act::Route { .. }
        | Act::Current { .. } => Weight::Holds,
    }
}

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
        let mut attention = None;
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
            match self.take_back_with_patience(&step.key, &act, step.done.as_ref()).await {
                Ok(()) => {}
                // Its record stays without a result: a takeover tries again.
                Err(Halt::Failed { message, .. }) if weight(&act) == Weight::Told => {
                    self.note(format!("left behind: {message}"));
                    continue;
                }
                Err(Halt::Failed { message, .. }) if weight(&act) == Weight::Attention => {
                    attention.get_or_insert(message);
                    continue;
                }
                Err(halt) => return Err(halt),
            }
            self.exec.recorded()?;
            self.exec.store.step_done(self.operation_id(), seq, &Value::Null).await?;
            self.exec.recorded()?;
        }
        attention.map_or(Ok(()), |message| Err(failed(message)))
    }

    fn note(&self, note: String) {
        tracing::warn!(operation = %self.operation_id(), note, "undoing");
        self.undoing.lock().expect("no panic while held").notes.push(note);
    }

    /// The message of an operation, with what its undo has to tell.
    pub(super) fn with_notes(&self, message: String) -> String {
        let notes = &self.undoing.lock().expect("no panic while held").notes;
        std::iter::once(&message).chain(notes).map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    /// Starts what was stopped, and waits until it is well: what led away from it is taken back after it.
    pub(super) async fn serve_again(&self, id: &EngineName) -> Result<(), Fail> {
        self.same_paths(id).await?;
        match self.exec.engine.start(&self.permit, id).await {
            Ok(()) => {
                self.well_again(id).await;
                Ok(())
            }
            Err(EngineError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// As [`Run::serve_again`], of one that has ended by itself meanwhile.
    pub(super) async fn serve_again_if_ended(&self, id: &EngineName) -> Result<(), Fail> {
        let seen = self.exec.engine.container(id).await?;
        if seen.is_some_and(|c| matches!(c.state, RunState::Exited | RunState::Dead)) { self.serve_again(id).await } else { Ok(()) }
    }

    /// Waits within bounds until a container of the release before answers again. Never a failure: there is nothing better to go back to.
    async fn well_again(&self, id: &EngineName) {
        let Ok(Some(seen)) = self.exec.engine.container(id).await else { return };
        let serving = seen.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_SERVING);
        let service = seen.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
        let (Some(release), Some(service)) = (&self.current, service.filter(|_| serving)) else { return };
        let Some(spec) = release.spec.services.get(&service).filter(|spec| probe::checked(&seen, spec)) else { return };
        if planner::one_shot(&release.spec, &service) || planner::job(&release.spec, &service) {
            return;
        }
        let asked = spec.settings.start_timeout_s.map_or(probe::START_TIMEOUT, Duration::from_secs);
        let left = WELL_IN_ALL.saturating_sub(self.undoing.lock().expect("no panic while held").waited);
        let within = asked.saturating_add(Duration::from_millis(spec.healthcheck.as_ref().and_then(|h| h.start_period_ms).unwrap_or(0)));
        self.standing.send_modify(|s| s.message = format!("undoing: waiting for {service} to be well again"));
        let begun = Instant::now();
        let proving = async {
            probe::healthy(&*self.exec.engine, &self.permit, id, spec, false).await?;
            self.own_probes(id, spec).await
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(within.min(WELL).min(left), proving) => outcome,
            () = self.exec.closing() => return,
        };
        self.undoing.lock().expect("no panic while held").waited += begun.elapsed();
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.note(format!("service {service}, started again, is not well: {e}")),
            Err(_) => self.note(format!("service {service}, started again, was not well after {} s", begun.elapsed().as_secs())),
        }
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
