//! The way back of data operations: whatever ends one, held containers run again, nothing half-made stays, and what is still there is recorded.

use super::{LONG_PAUSE, PAUSE, STILL_HELD, TRIES, Work};
use crate::executor::backup::acts::{self, DataAct};
use crate::executor::backup::{BackupError, ServiceCommands, records};
use crate::executor::patience;
use chrono::Utc;
use serde_json::Value;

impl Work {
    /// Takes back what must not outlive the operation: a hold without its resume, a volume that was not filled to its end.
    pub(super) async fn clean(&self, tries: u32) -> Result<(), String> {
        let open: Vec<DataAct> = {
            let journal = self.journal.lock().expect("no panic while held");
            let resumed = journal.get("resume").is_some_and(|(_, done)| *done);
            let after = |c: &ServiceCommands| journal.get(&format!("{}{}", acts::AFTER, c.service)).is_some_and(|(_, done)| *done);
            let open = |act: &DataAct, done: bool| match act {
                DataAct::Hold { .. } => !resumed,
                DataAct::Before { commands } => !after(commands),
                DataAct::Restore { .. } | DataAct::RestoreDirectory { .. } | DataAct::Drill { .. } | DataAct::Export { .. } => !done,
                DataAct::Resume { .. }
                | DataAct::After { .. }
                | DataAct::Output { .. }
                | DataAct::Directory { .. }
                | DataAct::Instance { .. }
                | DataAct::Snapshot { .. }
                | DataAct::Exchange { .. }
                | DataAct::Prove { .. }
                | DataAct::Cover { .. }
                | DataAct::Discard { .. }
                | DataAct::Count { .. }
                | DataAct::Check { .. }
                | DataAct::Copy { .. }
                | DataAct::Forget { .. } => false,
            };
            let mut open: Vec<DataAct> = journal.values().filter(|(act, done)| open(act, *done)).map(|(act, _)| act.clone()).collect();
            // Containers run again before commands are run in them.
            open.sort_by_key(|act| !matches!(act, DataAct::Hold { .. }));
            open
        };
        let mut left = vec![];
        for act in open {
            if let Err(e) = self.take_back(&act, tries).await {
                left.push(e);
            }
        }
        self.still_there().await;
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// A removal that did not come to its end dropped the records first: what the repository holds all the same is recorded again, at the next start if not now.
    async fn still_there(&self) {
        let begun = {
            let journal = self.journal.lock().expect("no panic while held");
            journal.values().any(|(act, done)| matches!(act, DataAct::Forget { .. }) && !done)
        };
        if !begun {
            return;
        }
        let recorded = match self.hands() {
            Ok(hands) => records::record_unknown(&self.exec.store, &hands.house).await,
            Err(e) => Err(e),
        };
        if let Err(e) = recorded {
            tracing::warn!(operation = %self.id, error = %e, "snapshots that were not removed are recorded again at the next start");
        }
    }

    async fn take_back(&self, act: &DataAct, tries: u32) -> Result<(), String> {
        let op = self.operation();
        let intent = serde_json::to_value(act).expect("an act is plain data");
        let key = format!("undo:{}", act.key());
        // Containers are set going again also where that cannot be recorded: a full disk must not leave them paused.
        let seq = match self.exec.store.step_intent(&self.id, op.epoch, op.phase, &key, &intent, Utc::now()).await {
            Ok(seq) => Some(seq),
            Err(e) => {
                tracing::error!(operation = %self.id, step = key, error = %e, "taking back goes on without its record");
                None
            }
        };
        // Nobody else sets held containers going again, and their service is down.
        let held = matches!(act, DataAct::Hold { .. });
        let (mut tried, mut refused, mut pause) = (1, 0, PAUSE);
        loop {
            let judge = self.exec.judge_of(&self.permit);
            let result = acts::take_back((self.exec.around(), &self.exec.store), &self.permit, &self.id, &judge, act).await;
            let Err(e) = result else { break };
            let away = matches!(self.exec.engine.info().await, Err(e) if patience::away(&e));
            refused += u32::from(!away);
            // What a command made of it is its last word: it has run.
            let said = matches!(e, BackupError::Command { .. });
            if said || (tried >= TRIES && self.exec.closing.is_cancelled()) || (refused >= tries && !held) {
                return Err(e.to_string());
            }
            if refused == tries && !away {
                self.still_held(&e).await;
                pause = LONG_PAUSE;
            }
            tracing::warn!(operation = %self.id, step = key, error = %e, tried, away, "taking back failed, trying again");
            let why = if away { "waiting for the engine to answer" } else { "trying again" };
            self.standing.send_modify(|s| s.message = format!("taking back {}: {why} (try {tried} failed)", act.key()));
            tried += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.exec.closing.cancelled(), if pause > PAUSE => pause = PAUSE,
            }
        }
        if let Some(seq) = seq
            && let Err(e) = self.exec.store.step_done(&self.id, seq, &Value::Null).await
        {
            tracing::error!(operation = %self.id, step = key, error = %e, "what was taken back could not be recorded");
        }
        Ok(())
    }

    /// Containers that the engine refuses to set going again: people are told, and the stack is free for whatever they do about it. It is tried on.
    async fn still_held(&self, e: &BackupError) {
        tracing::error!(operation = %self.id, error = %e, "containers are still held; it is tried again until they run");
        let stack = self.operation().stack.map(|s| s.to_string());
        let detail = serde_json::json!({"operation": self.id, "cause": e.to_string()});
        if let Err(e) = self.exec.store.audit_event("supervisor", STILL_HELD, stack.as_deref(), &detail, Utc::now()).await {
            tracing::error!(operation = %self.id, error = %e, "the audit log has no row of containers that are still held");
        }
        if self.operation().epoch > 0
            && let Err(e) = self.let_go().await
        {
            tracing::warn!(operation = %self.id, error = %e, "the stack stays held as well");
        }
    }
}
