//! Own probes: runs a service's health check itself, one at a time, instead of waiting for the engine's interval (which is what makes
//! others slow). Fails fast on exit, restart, OOM, a missing command and `unhealthy`.

use crate::engine::{Engine, EngineError, ExecSpec, LogQuery};
use crate::gate::Permit;
use crate::model::ids::EngineName;
use crate::model::observed::{ContainerDetail, HealthState, RunState};
use crate::model::operation::Evidence;
use crate::model::spec::ServiceSpec;
use crate::planner;
use std::time::{Duration, Instant};

/// A container without a health check counts as up after it ran this long without a restart.
const SETTLE: Duration = Duration::from_secs(1);
/// Default time for a new container to become healthy.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest and longest pause between two probes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// Compose's default time-out of one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Output of a probe that is kept.
const PROBE_OUTPUT: usize = 4096;
/// Log lines kept as evidence, and the most bytes read for them.
const EVIDENCE_LINES: usize = 200;
const EVIDENCE_BYTES: usize = 64 * 1024;

/// Why a probe did not pass.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProbeError {
    /// The container is not what it must be.
    #[error("{reason}")]
    Failed {
        /// In words.
        reason: String,
        /// Output of the last probe.
        output: Option<String>,
    },
    /// The engine did not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn failed(reason: impl Into<String>, output: Option<String>) -> ProbeError {
    ProbeError::Failed { reason: reason.into(), output }
}

/// Waits until a started container is healthy: its health check passes, or without one it stays up for a second. A `job` may also have ended well.
///
/// # Errors
/// `Failed` with the reason as soon as it cannot become healthy any more, or at the time limit.
pub async fn healthy(engine: &dyn Engine, permit: &Permit, id: &EngineName, spec: &ServiceSpec, job: bool) -> Result<(), ProbeError> {
    healthy_after(engine, permit, id, spec, job, 0).await
}

/// As [`healthy`], for a container that may have run before: the engine had restarted it so often by then.
///
/// # Errors
/// As [`healthy`].
pub async fn healthy_after(
    engine: &dyn Engine,
    permit: &Permit,
    id: &EngineName,
    spec: &ServiceSpec,
    job: bool,
    restarts: u64,
) -> Result<(), ProbeError> {
    let start = Instant::now();
    let grace = Duration::from_millis(spec.healthcheck.as_ref().and_then(|h| h.start_period_ms).unwrap_or(0));
    let limit = spec.settings.start_timeout_s.map_or(START_TIMEOUT, Duration::from_secs).saturating_add(grace);
    let mut last = None;
    loop {
        let seen = engine.container(id).await?.ok_or_else(|| failed("the container is gone", last.clone()))?;
        if job && finished(&seen, spec) {
            return Ok(());
        }
        alive_since(&seen, restarts).map_err(|reason| failed(reason, last.clone().or(seen.last_health_output.clone())))?;
        let Some(test) = health_command(&seen, spec) else {
            // Probes of its own say more than a second without a restart.
            if seen.started_at.is_some() && (start.elapsed() >= SETTLE || !spec.settings.probes.is_empty()) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE.0).await;
            continue;
        };
        if seen.health == HealthState::Healthy {
            return Ok(());
        }
        let timeout =
            spec.healthcheck.as_ref().and_then(|h| h.timeout_ms).filter(|ms| *ms > 0).map_or(PROBE_TIMEOUT, Duration::from_millis);
        let began = Instant::now();
        let run = ExecSpec { command: test, user: None, env: vec![], timeout, max_output: PROBE_OUTPUT };
        match engine.exec(permit, id, &run).await {
            Ok(outcome) if outcome.exit_code == Some(0) => return Ok(()),
            Ok(outcome) if matches!(outcome.exit_code, Some(126 | 127)) => {
                return Err(failed(
                    format!("its health check cannot run (exit code {})", outcome.exit_code.unwrap_or(0)),
                    Some(outcome.output),
                ));
            }
            Ok(outcome) => last = Some(outcome.output),
            // It ended between the look and the probe: the next look says how.
            Err(EngineError::Conflict(text) | EngineError::Refused(text)) => last = Some(text),
            Err(e) => return Err(e.into()),
        }
        if start.elapsed() >= limit {
            return Err(failed(format!("not healthy within {} s", limit.as_secs()), last));
        }
        tokio::time::sleep(began.elapsed().clamp(PAUSE.0, PAUSE.1)).await;
    }
}

/// Waits for a one-shot container to end with exit code 0.
///
/// # Errors
/// `Failed` on any other end, or at the time limit.
pub async fn completed(engine: &dyn Engine, id: &EngineName, spec: &ServiceSpec) -> Result<(), ProbeError> {
    let start = Instant::now();
    let limit = spec.settings.start_timeout_s.map_or(Duration::from_secs(600), Duration::from_secs);
    loop {
        let seen = engine.container(id).await?.ok_or_else(|| failed("the container is gone", None))?;
        match (seen.state, seen.exit_code) {
            (RunState::Exited, 0) => return Ok(()),
            (RunState::Exited | RunState::Dead, code) => return Err(failed(format!("it ended with exit code {code}"), None)),
            _ if start.elapsed() >= limit => return Err(failed(format!("it did not end within {} s", limit.as_secs()), None)),
            _ => tokio::time::sleep(PAUSE.0).await,
        }
    }
}

/// A command in a message, cut.
pub(super) fn shortened(text: &str) -> String {
    let cut: String = text.chars().take(120).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}

/// Whether a container that shall be up still can be; the reason when not.
///
/// # Errors
/// The reason in words.
pub fn alive(seen: &ContainerDetail) -> Result<(), String> {
    alive_since(seen, 0)
}

/// As [`alive`], for one that the engine had restarted so often before it was looked after.
pub(super) fn alive_since(seen: &ContainerDetail, restarts: u64) -> Result<(), String> {
    match seen.state {
        RunState::Running if seen.health == HealthState::Unhealthy => Err("its health check fails".into()),
        RunState::Running if seen.restart_count > restarts => Err(format!("it was restarted {} times", seen.restart_count - restarts)),
        RunState::Running => Ok(()),
        RunState::Exited | RunState::Dead if seen.oom_killed => Err("it was killed for want of memory".into()),
        RunState::Exited | RunState::Dead => Err(format!("it ended with exit code {}", seen.exit_code)),
        RunState::Restarting => Err(format!("it keeps restarting (exit code {})", seen.exit_code)),
        RunState::Created => {
            Err(format!("it did not start{}", if seen.error.is_empty() { String::new() } else { format!(": {}", seen.error) }))
        }
        RunState::Paused | RunState::Removing => Err("it is paused or being removed".into()),
    }
}

/// Whether the container of a job is finished: it ended cleanly, and its image asks for no health check, which only what runs can pass.
pub(super) fn finished(seen: &ContainerDetail, spec: &ServiceSpec) -> bool {
    planner::ended_well(seen) && health_command(seen, spec).is_none()
}

/// Whether anything tells that a container is well beside that it runs.
pub(super) fn checked(seen: &ContainerDetail, spec: &ServiceSpec) -> bool {
    health_command(seen, spec).is_some() || !spec.settings.probes.is_empty()
}

/// The health-check command as something to execute; `None` when there is none.
fn health_command(seen: &ContainerDetail, spec: &ServiceSpec) -> Option<Vec<String>> {
    let of_file = spec.healthcheck.as_ref().map(|h| &h.test).filter(|t| !t.is_empty());
    let test = of_file.or(seen.health_test.as_ref())?;
    match test.first().map(String::as_str) {
        Some("CMD") => Some(test[1..].to_vec()).filter(|c| !c.is_empty()),
        Some("CMD-SHELL") => Some(vec!["/bin/sh".into(), "-c".into(), test[1..].join(" ")]),
        _ => None,
    }
}

/// What is kept of a container that failed, taken before it is removed.
pub async fn evidence(engine: &dyn Engine, id: &EngineName, service: &str, error: &ProbeError) -> Evidence {
    let (reason, probe_output) = match error {
        ProbeError::Failed { reason, output } => (reason.clone(), output.clone().filter(|o| !o.is_empty())),
        ProbeError::Engine(e) => (e.to_string(), None),
    };
    let query = LogQuery { tail: Some(EVIDENCE_LINES), since: None, max_bytes: EVIDENCE_BYTES };
    let (seen, logs) = tokio::join!(engine.container(id), engine.logs(id, &query));
    let seen = seen.ok().flatten();
    let logs = match logs {
        Ok(lines) => lines.into_iter().map(|l| l.text).collect(),
        Err(e) => vec![format!("(its log could not be read: {e})")],
    };
    Evidence {
        service: service.to_owned(),
        container: seen.as_ref().map_or_else(|| id.to_string(), |c| c.name.clone()),
        reason,
        exit_code: seen.as_ref().filter(|c| matches!(c.state, RunState::Exited | RunState::Dead)).map(|c| c.exit_code),
        oom_killed: seen.is_some_and(|c| c.oom_killed),
        probe_output,
        logs,
    }
}
