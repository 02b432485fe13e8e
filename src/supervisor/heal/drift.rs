//! Drift: what runs is not what the current release says, though every service is well. Found by the scan, told once, and mended where the stack's file
//! says `x-dockwarden: {drift: mend}`. Deliberately absent: files that changed since the deploy (`status` and `plan` tell those): only a deploy takes them.

use super::{Healer, Look, LookError};
use crate::call::judge;
use crate::model::spec::DriftMode;
use crate::model::trigger::{EventKind, Happened};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

/// Scans between two looks for drift: planning asks the engine for more than a look does.
pub(super) const EVERY: u32 = 10;
/// A drift that comes back within this time after it was mended is somebody's wish, or not ours to mend: it is only told.
const REST: TimeDelta = TimeDelta::hours(1);

/// What was told and done about the drift of a stack; persisted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// The drift in words, as it was told; empty = none.
    told: Vec<String>,
    /// When it was last mended.
    mended: Option<DateTime<Utc>>,
}

/// What to do about a drift. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Tell,
    TellAndMend,
}

fn step(mode: DriftMode, known: &Known, found: &[String], now: DateTime<Utc>) -> Step {
    let rested = known.mended.is_none_or(|at| now - at >= REST);
    match mode {
        DriftMode::Off => Step::Nothing,
        _ if found.is_empty() => Step::Nothing,
        DriftMode::Mend if rested => Step::TellAndMend,
        DriftMode::Mend | DriftMode::Report if known.told == found => Step::Nothing,
        DriftMode::Mend | DriftMode::Report => Step::Tell,
    }
}

impl Healer {
    /// Looks for drift of a stack whose services are all well.
    pub(super) async fn drift(&self, look: &Look<'_>) -> Result<(), LookError> {
        let mode = look.release.spec.settings.drift.unwrap_or_default();
        if mode == DriftMode::Off {
            return Ok(());
        }
        let found = match judge::drift(&self.house, look.stack, look.release.number).await {
            Ok(found) => found,
            Err(e) => {
                tracing::debug!(stack = %look.stack, error = %e, "drift could not be looked for");
                return Ok(());
            }
        };
        if self.tell_drift(look, "drift", found, mode, None).await? {
            let (house, stack, release) = (self.house.clone(), look.stack.clone(), look.release.number);
            self.house.calls.spawn(async move {
                let input = json!({"stack": stack, "to_release": release, "data": "code_only", "reason": "drift: the release that runs is made whole"});
                if let Err(e) = super::super::call(&house, "rollback", input).await {
                    tracing::error!(%stack, error = %e, "the drift could not be mended");
                }
            });
        }
        Ok(())
    }

    /// Tells a drift once, in the audit log and to triggers; whether it is to be mended now. `next` is what a person may do about it.
    pub(super) async fn tell_drift(
        &self,
        look: &Look<'_>,
        kind: &str,
        found: Vec<String>,
        mode: DriftMode,
        next: Option<&str>,
    ) -> Result<bool, LookError> {
        let key = format!("{kind}:{}", look.stack);
        let store = &self.house.store;
        let mut known: Known = store.value(&key).await?.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
        if found.is_empty() {
            if !known.told.is_empty() {
                known.told.clear();
                store.set_value(&key, &json!(known)).await?;
            }
            return Ok(false);
        }
        let step = step(mode, &known, &found, look.now);
        if step == Step::Nothing {
            return Ok(false);
        }
        let mends = step == Step::TellAndMend;
        tracing::warn!(stack = %look.stack, drift = ?found, mends, "what runs is not what was deployed");
        known.told.clone_from(&found);
        if mends {
            // Noted before it is done: killed in between, it is not mended again at once.
            known.mended = Some(look.now);
        }
        store.set_value(&key, &json!(known)).await?;
        let mut detail = json!({"release": look.release.number, "drift": found, "mends": mends});
        if let Some(next) = next {
            detail["next"] = json!(next);
        }
        store.audit_event(super::super::WARDEN, "drift_found", Some(look.stack.as_str()), &detail, look.now).await?;
        self.house.desk.happened(Happened {
            id: format!("drift_found:{}:{}", look.stack, look.now.timestamp_millis()),
            kind: EventKind::DriftFound,
            stack: Some(look.stack.clone()),
            service: None,
            facts: Map::from_iter([("drift".to_owned(), json!(found)), ("release".to_owned(), json!(look.release.number))]),
        });
        Ok(mends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_told_once_and_mended_only_where_asked_and_not_again_and_again() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("valid");
        let found = vec!["web replicas 1 -> 2".to_owned()];
        let known =
            |told: &[String], minutes: Option<i64>| Known { told: told.to_vec(), mended: minutes.map(|m| now - TimeDelta::minutes(m)) };
        let of = |mode, k: Known, f: &[String]| step(mode, &k, f, now);
        assert_eq!(of(DriftMode::Report, known(&[], None), &found), Step::Tell);
        assert_eq!(of(DriftMode::Report, known(&found, None), &found), Step::Nothing);
        assert_eq!(of(DriftMode::Off, known(&[], None), &found), Step::Nothing);
        assert_eq!(of(DriftMode::Mend, known(&[], None), &[]), Step::Nothing);
        assert_eq!(of(DriftMode::Mend, known(&[], None), &found), Step::TellAndMend);
        assert_eq!(
            of(DriftMode::Mend, known(&found, Some(5)), &found),
            Step::Nothing,
            "it came back at once: told before, not mended again"
        );
        assert_eq!(of(DriftMode::Mend, known(&[], Some(5)), &found), Step::Tell, "another drift so soon is told only");
        assert_eq!(of(DriftMode::Mend, known(&found, Some(61)), &found), Step::TellAndMend);
    }

    #[tokio::test]
    async fn a_deploy_has_no_drift_and_a_container_somebody_changed_has() {
        use crate::model::ids::{AgentName, StackName};
        let b = crate::supervisor::tasks::tests::Bench::with(|_| {}).await;
        let agent = AgentName::new("a0").expect("valid");
        let who = crate::call::Principal { agent, door: crate::call::Door::Cli, client: None, read_only: false, on_behalf: vec![] };
        let input = json!({"stack": "shop", "compose": "x-dockwarden: {monitor_s: 0}\nservices:\n  web:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.5\n"});
        let reply = crate::call::dispatch::dispatch(&b.house, &who, "deploy", input, None).await.expect("deployed");
        let stack = StackName::new("shop").expect("valid");
        assert_eq!(judge::drift(&b.house, &stack, 1).await.expect("looked"), Vec::<String>::new(), "{}", reply.value);
        let operation = b.house.store.operations(Some(&stack), 1).await.expect("read").remove(0);
        let permit = crate::gate::permit_takeover(&operation);
        let container = b.house.engine.containers(&[]).await.expect("listed").remove(0);
        b.house.engine.set_restart(&permit, &container.id, crate::model::spec::Restart::Always).await.expect("changed");
        let found = judge::drift(&b.house, &stack, 1).await.expect("looked");
        assert!(matches!(found.as_slice(), [line] if line.starts_with("web: ") && line.contains("restart")), "{found:?}");
    }
}
