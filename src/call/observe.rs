//! What is on the engine for our stacks, and what it means: one reading shared by status, health, stats, logs and planning. Reads only; ownership is
//! our instance label plus our own registry, never a name. Deliberately absent: healing, and any guess about what was not measured.

use super::hands::{self, ByHand, Hands};
use super::{CallError, House};
use crate::executor::names;
use crate::model::ids::{ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, ContainerSummary, HealthState, RunState};
use crate::model::release::Release;
use crate::model::spec::{Restart, ServiceSpec};
use crate::planner::{self, Observed};
use crate::redact::{self, Untrusted};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::Serialize;

/// Inspects under way at once: enough to hide the engine's latency, few enough not to starve its other clients.
const PARALLEL: usize = 16;

/// A container without health check counts as healthy after it ran so long.
const SETTLED: TimeDelta = TimeDelta::seconds(1);

/// Our containers, of one stack or of all, without canaries and claims.
///
/// # Errors
/// The engine's.
pub async fn serving(house: &House, stack: Option<&StackName>) -> Result<Vec<ContainerSummary>, CallError> {
    let mut found = house.engine.containers(&ours(house, stack)).await?;
    found.retain(serves);
    found.sort_by(|a, b| key(&a.labels).cmp(&key(&b.labels)));
    Ok(found)
}

/// As [`serving`], and the fronts before them.
///
/// # Errors
/// The engine's.
pub async fn shown(house: &House, stack: Option<&StackName>) -> Result<Vec<ContainerSummary>, CallError> {
    let mut found = house.engine.containers(&ours(house, stack)).await?;
    found.retain(shows);
    found.sort_by(|a, b| key(&a.labels).cmp(&key(&b.labels)));
    Ok(found)
}

fn shows(c: &ContainerSummary) -> bool {
    serves(c) || (is_front(&c.labels) && !names::is_retired(&c.name))
}

fn is_front(of: &std::collections::BTreeMap<String, String>) -> bool {
    of.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_FRONT)
}

fn serves(c: &ContainerSummary) -> bool {
    // A replaced one, kept for a way back, serves no more than a canary does.
    c.labels.get(labels::ROLE).is_none_or(|role| role == labels::ROLE_SERVING) && !names::is_retired(&c.name)
}

fn key(labels: &std::collections::BTreeMap<String, String>) -> (&str, &str, u32) {
    let text = |k| labels.get(k).map(String::as_str).unwrap_or_default();
    (text(labels::STACK), text(labels::SERVICE), text(labels::NUMBER).parse().unwrap_or_default())
}

/// Labels that all objects of ours carry.
pub fn ours(house: &House, stack: Option<&StackName>) -> Vec<String> {
    let mut filter = vec![labels::filter(labels::INSTANCE, house.store.instance())];
    filter.extend(stack.map(|s| labels::filter(labels::STACK, s.as_str())));
    filter
}

/// The same containers in detail, in order; what is gone meanwhile is left out.
///
/// # Errors
/// The engine's.
pub async fn details(house: &House, summaries: &[ContainerSummary]) -> Result<Vec<ContainerDetail>, CallError> {
    let inspects: Vec<_> = summaries.iter().map(|c| house.engine.container(&c.id)).collect();
    let found: Vec<Option<ContainerDetail>> = stream::iter(inspects).buffered(PARALLEL).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Everything of a stack, as planning needs it.
///
/// # Errors
/// The engine's.
pub async fn stack(house: &House, name: &StackName) -> Result<Observed, CallError> {
    let filter = ours(house, Some(name));
    let (containers, networks, volumes) =
        tokio::join!(house.engine.containers(&filter), house.engine.networks(&filter), house.engine.volumes(&filter));
    let mut containers = details(house, &containers?).await?;
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut networks: Vec<String> = networks?.into_iter().map(|n| n.name).collect();
    let mut volumes: Vec<String> = volumes?.into_iter().map(|v| v.name.to_string()).collect();
    networks.sort();
    volumes.sort();
    Ok(Observed { containers, networks, volumes, once: house.executor.once(name).await? })
}

/// Containers of a Compose project of that name that we did not make.
///
/// # Errors
/// The engine's.
pub async fn unmanaged(house: &House, project: Option<&StackName>) -> Result<Vec<ContainerSummary>, CallError> {
    let filter = match project {
        Some(name) => vec![labels::filter(labels::COMPOSE_PROJECT, name.as_str())],
        None => vec![],
    };
    let mut found = house.engine.containers(&filter).await?;
    found.retain(|c| c.labels.get(labels::INSTANCE).is_none_or(|i| i != house.store.instance()));
    Ok(found)
}

/// Ours as [`shown`] gives them and the others as [`unmanaged`] does, from one list: listing is what the engine takes its time for.
///
/// # Errors
/// The engine's.
pub async fn everything(house: &House) -> Result<(Vec<ContainerSummary>, Vec<ContainerSummary>), CallError> {
    let found = house.engine.containers(&[]).await?;
    let (mut ours, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|c| c.labels.get(labels::INSTANCE).is_some_and(|i| i == house.store.instance()));
    ours.retain(shows);
    ours.sort_by(|a, b| key(&a.labels).cmp(&key(&b.labels)));
    Ok((ours, others))
}

/// Who says that a service is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Source {
    /// The engine's own state or health check.
    Engine,
    /// Our probe during the deploy, while the engine still says `starting`.
    Probe,
}

/// Health of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ServiceHealth {
    /// Service.
    pub service: ServiceName,
    /// Containers that shall run.
    pub desired: u32,
    /// Containers that run.
    pub running: u32,
    /// All that shall run is well.
    pub healthy: bool,
    /// `running starting unhealthy restarting paused created exited finished stopped missing`.
    pub state: String,
    /// Why it is not healthy, or what is worth knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the last health check wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Untrusted>,
    /// Who says so.
    pub source: Source,
    /// Since when it runs, or when it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

/// What is known of a stack beside its containers.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Stopped by a call of ours.
    pub stopped: bool,
    /// What a hand did to it.
    pub by_hand: ByHand,
    /// When the current release passed its probes.
    pub probed_at: Option<DateTime<Utc>>,
    /// Now.
    pub now: DateTime<Utc>,
}

/// Reads where a stack stands from our records.
///
/// # Errors
/// The store's.
pub async fn standing(house: &House, release: &Release, stopped: bool, now: DateTime<Utc>) -> Result<Standing, CallError> {
    let operation = house.store.operation(&release.operation).await?;
    let by_hand = Hands::read(&house.store).await?.of(&release.stack);
    Ok(Standing { stopped, by_hand, probed_at: operation.and_then(|o| o.settled_at), now })
}

/// Health of every active service of a release, by what the engine shows of [`shown`].
pub fn health(release: &Release, containers: &[ContainerDetail], standing: &Standing) -> Vec<ServiceHealth> {
    let active = release.spec.services.iter().filter(|(_, spec)| spec.active);
    active
        .map(|(name, spec)| {
            let all = containers.iter().filter(|c| c.labels.get(labels::SERVICE).is_some_and(|s| s == name.as_str()));
            let (fronts, mine): (Vec<&ContainerDetail>, Vec<&ContainerDetail>) = all.partition(|c| is_front(&c.labels));
            let mut row = service(name, spec, &mine, standing, release);
            let wanted = planner::front::fronted(spec) && !standing.stopped;
            if row.healthy && wanted && !fronts.iter().any(|c| c.state == RunState::Running) {
                row.healthy = false;
                row.reason = Some("its front does not run, so nobody reaches it; `deploy` brings it back".into());
            }
            row
        })
        .collect()
}

struct One {
    healthy: bool,
    state: &'static str,
    reason: Option<String>,
    source: Source,
}

fn service(
    name: &ServiceName,
    spec: &ServiceSpec,
    containers: &[&ContainerDetail],
    standing: &Standing,
    release: &Release,
) -> ServiceHealth {
    let running = u32::try_from(containers.iter().filter(|c| c.state == RunState::Running).count()).unwrap_or(u32::MAX);
    let mut row = ServiceHealth {
        service: name.clone(),
        desired: if standing.stopped { 0 } else { spec.replicas },
        running,
        healthy: false,
        state: "missing".into(),
        reason: None,
        output: None,
        source: Source::Engine,
        since: None,
    };
    let judged: Vec<(&ContainerDetail, One)> = containers.iter().map(|c| (*c, one(spec, c, standing, &release.stack))).collect();
    // The one that is not well speaks for the service; all being well, the first does.
    let Some((container, verdict)) = judged.iter().find(|(_, o)| !o.healthy).or_else(|| judged.first()) else {
        row.healthy = spec.replicas == 0;
        let (state, reason) = if standing.stopped {
            ("stopped", "stopped by a call; `restart` starts it".to_owned())
        } else if standing.by_hand.removed.contains(name) {
            ("missing", format!("{}: {}", hands::REMOVED, hands::back(&release.stack, release.number)))
        } else {
            ("missing", "it has no container".to_owned())
        };
        row.state = state.into();
        row.reason = (!row.healthy).then_some(reason);
        return row;
    };
    row.state = verdict.state.into();
    row.healthy = verdict.healthy;
    row.reason.clone_from(&verdict.reason);
    row.source = verdict.source;
    row.since = if container.state == RunState::Running { container.started_at } else { container.finished_at.or(container.started_at) };
    if !verdict.healthy && container.state == RunState::Running {
        row.output = container
            .last_health_output
            .as_deref()
            .filter(|o| !o.trim().is_empty())
            .map(|o| redact::envelope(format!("health check of {}", container.name), o, 500));
    }
    if !verdict.healthy && container.state != RunState::Running && !container.error.is_empty() {
        row.output = Some(redact::envelope(format!("engine, of the start of {}", container.name), &container.error, 500));
    }
    if row.healthy && verdict.state != "finished" && running < spec.replicas {
        row.healthy = false;
        row.reason = Some(format!("{running} of {} run", spec.replicas));
    }
    row
}

fn one(spec: &ServiceSpec, c: &ContainerDetail, standing: &Standing, stack: &StackName) -> One {
    let bad = |state, reason: String| One { healthy: false, state, reason: Some(reason), source: Source::Engine };
    let well = |reason: Option<&str>, source| One { healthy: true, state: "running", reason: reason.map(str::to_owned), source };
    let ended = || {
        let oom = if c.oom_killed { ", killed by the out-of-memory killer" } else { "" };
        let error = if c.error.is_empty() { "" } else { "; the engine says why in `output`" };
        format!("exit code {}{oom}{error}", c.exit_code)
    };
    match c.state {
        RunState::Running => match c.health {
            HealthState::Healthy => well(None, Source::Engine),
            HealthState::Unhealthy => bad("unhealthy", "its health check fails".into()),
            HealthState::Starting if c.started_at.zip(standing.probed_at).is_some_and(|(started, probed)| started <= probed) => {
                well(Some("the engine has not finished its first check; ours passed since this start"), Source::Probe)
            }
            HealthState::Starting => bad("starting", "its health check has not passed yet".into()),
            HealthState::None if c.started_at.is_some_and(|started| standing.now - started >= SETTLED) => {
                let reason = if c.restart_count > 0 {
                    format!("no health check; restarted {} times", c.restart_count)
                } else {
                    "no health check".into()
                };
                well(Some(&reason), Source::Engine)
            }
            HealthState::None => bad("starting", "it has no health check and runs for less than a second".into()),
        },
        RunState::Restarting => bad("restarting", format!("{}; restarted {} times", ended(), c.restart_count)),
        RunState::Paused => bad("paused", "it is paused".into()),
        RunState::Created => bad(
            "created",
            if c.error.is_empty() {
                "it was never started".into()
            } else {
                "the engine could not start it; it says why in `output`".into()
            },
        ),
        RunState::Removing => bad("exited", "it is being removed".into()),
        RunState::Exited | RunState::Dead if standing.stopped => bad("stopped", "stopped by a call; `restart` starts it".into()),
        RunState::Exited | RunState::Dead if standing.by_hand.stopped.contains(&c.id) => {
            bad("stopped", format!("{}: {}", hands::STOPPED, hands::again(stack)))
        }
        RunState::Exited if c.exit_code == 0 && matches!(spec.restart, Restart::No | Restart::OnFailure(_)) => {
            One { healthy: true, state: "finished", reason: Some("ran to its end".into()), source: Source::Engine }
        }
        RunState::Exited | RunState::Dead => bad("exited", ended()),
    }
}
