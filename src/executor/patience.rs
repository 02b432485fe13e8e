//! An engine that goes away in the middle: acts and looks wait until it answers again and are then repeated, which every one of them allows.
//! A dead engine says nothing about a release.

use super::acts::Act;
use super::run::{Fail, Halt, Run, failed};
use crate::engine::EngineError;
use crate::model::operation::Phase;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long an operation waits for its engine before it counts as failed. Undoing waits on: there is nothing better to do.
const AWAY: Duration = Duration::from_secs(15 * 60);
/// First and longest pause between two looks whether it is back.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Repetitions of one act over an engine that comes and goes.
const REPEATS: u32 = 20;
/// Repetitions of a pull that stood still, with an engine that answers: then it is the registry.
const STALLS: u32 = 2;
/// Said while it is away.
const WAITING: &str = "waiting for the engine to answer";
/// Pause before an act that was refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// Whether an error says that the engine is away, rather than that it refuses.
pub(super) fn away(e: &EngineError) -> bool {
    matches!(e, EngineError::Unreachable { .. } | EngineError::Timeout { .. })
}

impl Run {
    /// Does an act, repeated while the engine is away, once more where that may help.
    pub(super) async fn perform_patiently(&self, phase: Phase, key: &str, act: &Act) -> Result<Value, Halt> {
        let (mut repeats, mut refused) = (0, 0);
        let registry = match act {
            Act::Pull { image, .. } => Some(format!("the registry of {image}")),
            _ => None,
        };
        loop {
            match self.perform_or_leave(phase, act).await? {
                Ok(done) => return Ok(done),
                Err(Fail::Store(e)) => return Err(e.into()),
                Err(Fail::Engine(EngineError::Timeout { after, .. })) if repeats >= STALLS && registry.is_some() => {
                    return Err(failed(format!(
                        "{key}: {} sent nothing for {} s, {} times; see whether it can be reached, then deploy again",
                        registry.as_deref().unwrap_or_default(),
                        after.as_secs(),
                        repeats + 1
                    )));
                }
                Err(Fail::Engine(e)) if away(&e) && repeats < REPEATS => {
                    repeats += 1;
                    tracing::warn!(operation = %self.operation_id(), step = key, error = %e, "the engine is away; the step is repeated when it is back");
                    self.engine_back(phase).await?;
                }
                // After the switch everything is worth a second try: the way back costs more.
                Err(first) if refused == 0 && phase >= Phase::Switch => {
                    refused += 1;
                    tracing::warn!(operation = %self.operation_id(), step = key, error = %first, "step failed once");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(e) => return Err(failed(format!("{key}: {e}"))),
            }
        }
    }

    /// Does an act. A pull, which may take hours, is left when a caller cancels or the supervisor ends: the engine gives it up with its connection. So is the
    /// waiting for a hook's container, which is found again, or removed by the undo.
    async fn perform_or_leave(&self, phase: Phase, act: &Act) -> Result<Result<Value, Fail>, Halt> {
        match act {
            Act::Pull { .. } => tokio::select! {
                done = self.perform(act) => Ok(done),
                halt = self.asked_to_leave(phase) => Err(halt),
            },
            Act::HookOnce { name, .. } => {
                let done = self.perform(act).await;
                if !matches!(&done, Ok(done) if done["left"] == true) {
                    return Ok(done);
                }
                tracing::info!(operation = %self.operation_id(), container = %name, "left a hook that is at work");
                Err(self.asked_to_leave(self.operation().phase).await)
            }
            _ => Ok(self.perform(act).await),
        }
    }

    /// Until a caller cancels, where that is still possible, or the supervisor ends.
    pub(super) async fn asked_to_leave(&self, phase: Phase) -> Halt {
        tokio::select! {
            () = self.cancel.cancelled(), if phase < Phase::Switch => Halt::Cancelled,
            () = self.exec.closing() => Halt::Interrupted("the supervisor is shutting down".into()),
        }
    }

    /// Asks the engine, again when it was away.
    pub(super) async fn asking<T, F, A>(&self, phase: Phase, ask: F) -> Result<T, Halt>
    where
        F: Fn() -> A,
        A: Future<Output = Result<T, EngineError>>,
    {
        for _ in 0..REPEATS {
            match ask().await {
                Err(e) if away(&e) => self.engine_back(phase).await?,
                other => return other.map_err(|e| failed(e.to_string())),
            }
        }
        ask().await.map_err(|e| failed(e.to_string()))
    }

    /// Waits until the engine answers.
    ///
    /// # Errors
    /// Failed after a quarter of an hour (never while undoing), cancelled before the switch, interrupted at shutdown.
    pub(super) async fn engine_back(&self, phase: Phase) -> Result<(), Halt> {
        let start = Instant::now();
        let mut pause = LOOK.0;
        let before = self.standing.borrow().message.clone();
        self.standing.send_modify(|s| s.message = WAITING.into());
        loop {
            self.exec.may_go_on()?;
            match self.exec.engine.info().await {
                Err(e) if away(&e) => {}
                Ok(_) | Err(_) => break,
            }
            if start.elapsed() >= AWAY && phase != Phase::Finished {
                return Err(failed(format!("the engine did not answer for {} minutes", AWAY.as_secs() / 60)));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOOK.1),
                () = self.cancel.cancelled(), if phase < Phase::Switch => return Err(Halt::Cancelled),
                () = self.exec.closing() => return Err(Halt::Interrupted("the supervisor is shutting down".into())),
            }
        }
        self.note_away();
        // An engine that answers and fails at once again must not be asked without end.
        tokio::time::sleep(LOOK.0).await;
        // Unless another step of this operation has said something since.
        self.standing.send_modify(|s| {
            if s.message == WAITING {
                s.message = before;
            }
        });
        Ok(())
    }
}
