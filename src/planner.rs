//! Pure planning: (desired, observed, current release) -> [`Plan`]. Deliberately absent: I/O, clocks, policy; the caller adds the gate's findings.

mod content;
pub mod diff;
pub mod drift;
mod follow;
pub mod front;
pub mod hash;
mod jobs;
pub mod levels;
pub mod migrates;
mod namespaces;
pub mod once;
mod only;
mod stands;
pub mod strategies;
pub mod succession;
#[cfg(test)]
mod tests;
mod world;

pub use content::UNKNOWN_DIGEST;
pub use jobs::{ended_well, job, may_end};
pub use stands::{live, standing_for};
pub use world::fingerprint;

use crate::model::labels;
use crate::model::spec::{DependencyCondition, ServiceSpec};
use serde_json::json;

use crate::model::ids::*;
use crate::model::observed::*;
use crate::model::plan::*;
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};

/// What is on the engine for a stack.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Containers of the stack that carry our instance label, running or not.
    pub containers: Vec<ContainerDetail>,
    /// Names of networks of the stack that exist.
    pub networks: Vec<String>,
    /// Names of volumes of the stack that exist.
    pub volumes: Vec<String>,
    /// What each one-shot service last ran to its end for, see [`once::key`].
    pub once: BTreeMap<ServiceName, String>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Want {
    /// Make `desired` the stack (deploy, rollback with `content_of`).
    Release {
        /// The stack as it shall be.
        desired: Box<StackSpec>,
        /// Identities of the images of the active services.
        images: BTreeMap<ServiceName, ImageIdentity>,
        /// For a rollback: the release repeated.
        content_of: Option<u32>,
    },
    /// Another number of containers of a service.
    Scale {
        /// Service.
        service: ServiceName,
        /// Containers.
        replicas: u32,
    },
    /// Restart (or start) in place: all services or one.
    Restart {
        /// Service; all when absent.
        service: Option<ServiceName>,
    },
    /// A new container of the same kind for a service: the release again, under a new number.
    Recreate {
        /// Service.
        service: ServiceName,
    },
    /// The copies of a service that are gone, beside those that run: the release again, under a new number.
    Refill {
        /// Service.
        service: ServiceName,
    },
    /// Stop in place; `remove` also removes containers and networks, never volumes.
    Stop {
        /// Remove.
        remove: bool,
    },
}

/// Everything planning needs; no I/O inside.
pub struct PlanInput<'a> {
    /// Id of the new plan.
    pub id: PlanId,
    /// Stack.
    pub stack: StackName,
    /// Environment.
    pub environment: String,
    /// What is wanted.
    pub want: Want,
    /// What is there.
    pub observed: &'a Observed,
    /// Release that is current.
    pub current: Option<&'a Release>,
    /// Services that get new containers whatever they are: the data below them is another.
    pub anew: &'a BTreeSet<ServiceName>,
    /// Number the next release gets.
    pub next_release: u32,
    /// `Rulebook::version`.
    pub policy_version: &'a str,
    /// Project directory.
    pub project_dir: Option<String>,
    /// Its git state.
    pub git: Option<GitState>,
    /// Keys whose values may be shown.
    pub literal_keys: &'a [String],
    /// Keyed 6-character hash of a secret value.
    pub hash: &'a (dyn Fn(&str) -> String + Send + Sync),
    /// Keyed digest.
    pub digest: &'a (dyn Fn(&[u8]) -> String + Send + Sync),
    /// Now.
    pub now: DateTime<Utc>,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Nothing is deployed under that name.
    #[error("stack {0} is not deployed")]
    NotDeployed(StackName),
    /// No such service.
    #[error("stack {stack} has no service {service}")]
    NoService {
        /// Stack.
        stack: StackName,
        /// Service.
        service: ServiceName,
        /// Services it has.
        known: Vec<ServiceName>,
    },
    /// The services depend on each other in a ring.
    #[error("dependency cycle: {0}")]
    Cycle(String),
    /// Something the service's nature forbids.
    #[error("{0}")]
    Impossible(String),
}

/// Makes a plan. Findings of the gate are added by the caller (`findings`, `verdict` hold only the planner's own).
///
/// # Errors
/// `NotDeployed`, `NoService`, `Cycle` or `Impossible`.
pub fn plan(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    let (kind, desired, images, content_of) = want(input)?;
    let levels = levels::levels(&desired)?;
    if matches!(input.want, Want::Release { .. } | Want::Scale { .. }) {
        strategies::stack_settings(&desired)?;
        front::check(&desired, input.observed, matches!(input.want, Want::Release { content_of: None, .. }))?;
    }
    let mut changes = match &input.want {
        Want::Release { .. } => release_changes(input, &desired, &images, &levels),
        Want::Scale { service, .. } | Want::Recreate { service } | Want::Refill { service } => {
            only::not_newer(input, service)?;
            only::changes(release_changes(input, &desired, &images, &levels), service)
        }
        Want::Restart { service } => in_place(input, &levels, service.as_ref(), Action::Restart),
        Want::Stop { .. } => in_place(input, &levels, None, Action::Stop),
    };
    if !matches!(input.want, Want::Stop { .. } | Want::Restart { .. }) {
        namespaces::follow(&desired, input.observed, &mut changes);
    }
    let makes_way = succession::makes_way(&desired, input.current, input.observed, &changes);
    succession::told(&desired, &makes_way, &mut changes);
    let new_release = matches!(kind, PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale);
    let untouched = changes.iter().all(|c| c.action == Action::Unchanged);
    let text_only = new_release && untouched && input.current.is_some_and(|r| hash::text(&r.spec) != hash::text(&desired));
    let noop = untouched && !text_only;
    let current = input.current.map(|r| r.number);
    let to_release = if new_release && !(noop && current.is_some()) { input.next_release } else { current.unwrap_or(0) };
    let fingerprint = fingerprint(input.current, input.observed, input.digest);
    let remove = matches!(input.want, Want::Stop { remove: true });
    let digest = (input.digest)(
        json!({"kind": kind, "stack": input.stack, "environment": input.environment, "desired": desired, "images": images, "changes": changes,
            "remove": remove, "fingerprint": fingerprint, "policy": input.policy_version})
        .to_string()
        .as_bytes(),
    );
    Ok(Plan {
        id: input.id.clone(),
        kind,
        stack: input.stack.clone(),
        environment: input.environment.clone(),
        given: None,
        from_release: current,
        to_release,
        content_of,
        images,
        levels,
        migrates: if new_release { migrates::reasons(&desired, input.current, &changes, &makes_way) } else { BTreeMap::new() },
        only: match &input.want {
            Want::Scale { service, .. }
            | Want::Recreate { service }
            | Want::Refill { service }
            | Want::Restart { service: Some(service) } => Some(service.clone()),
            Want::Release { .. } | Want::Restart { service: None } | Want::Stop { .. } => None,
        },
        makes_way,
        stack_diff: if new_release { diff::stack(input.current.map(|r| &r.spec), &desired, input.hash) } else { vec![] },
        desired,
        changes,
        text_only,
        remove,
        data: Default::default(),
        findings: vec![],
        verdict: Default::default(),
        asked: vec![],
        weighed: Default::default(),
        real_paths: Default::default(),
        carried: Default::default(),
        left: Default::default(),
        project_dir: input.project_dir.clone(),
        git: input.git.clone(),
        fingerprint,
        digest,
        created_at: input.now,
    })
}

type Wanted = (PlanKind, StackSpec, BTreeMap<ServiceName, ImageIdentity>, Option<u32>);

fn want(input: &PlanInput<'_>) -> Result<Wanted, PlanError> {
    let current = || input.current.ok_or_else(|| PlanError::NotDeployed(input.stack.clone()));
    let known = |release: &Release, service: &ServiceName| {
        if release.spec.services.contains_key(service) {
            return Ok(());
        }
        let known = release.spec.services.keys().cloned().collect();
        Err(PlanError::NoService { stack: input.stack.clone(), service: service.clone(), known })
    };
    Ok(match &input.want {
        Want::Release { desired, images, content_of } => {
            let kind = if content_of.is_some() { PlanKind::Rollback } else { PlanKind::Deploy };
            (kind, (**desired).clone(), images.clone(), *content_of)
        }
        Want::Scale { service, replicas } => {
            let release = current()?;
            known(release, service)?;
            let mut desired = release.spec.clone();
            let spec = desired.services.get_mut(service).expect("checked above");
            scalable(service, spec, *replicas)?;
            spec.replicas = *replicas;
            (PlanKind::Scale, desired, release.images.clone(), None)
        }
        Want::Recreate { service } | Want::Refill { service } => {
            let release = current()?;
            known(release, service)?;
            let content = release.content_of.unwrap_or(release.number);
            (PlanKind::Deploy, release.spec.clone(), release.images.clone(), Some(content))
        }
        Want::Restart { service } => {
            let release = current()?;
            if let Some(service) = service {
                known(release, service)?;
            }
            (PlanKind::Restart, release.spec.clone(), release.images.clone(), None)
        }
        Want::Stop { .. } => {
            let release = current()?;
            (PlanKind::Stop, release.spec.clone(), release.images.clone(), None)
        }
    })
}

/// Several copies of a service that writes data, owns a fixed host port or has a fixed name cannot run.
fn scalable(service: &ServiceName, spec: &ServiceSpec, replicas: u32) -> Result<(), PlanError> {
    if replicas <= 1 {
        return Ok(());
    }
    let fixed_port =
        !front::fronted(spec) && spec.ports.iter().any(|p| p.published.as_deref().is_some_and(|r| port_range_len(r) < replicas));
    let why = if spec.single_writer() {
        "it writes data and two copies would write the same; set x-dockwarden.concurrent: true if that is safe"
    } else if fixed_port {
        "it publishes a fixed host port; publish a range or none"
    } else if spec.container_name.is_some() {
        "it has a fixed container_name"
    } else {
        return Ok(());
    };
    Err(PlanError::Impossible(format!("service {service} cannot run {replicas} copies: {why}")))
}

/// Number of ports in `8000` or `8000-8004`.
fn port_range_len(range: &str) -> u32 {
    let mut ends = range.splitn(2, '-').filter_map(|p| p.parse::<u32>().ok());
    match (ends.next(), ends.next()) {
        (Some(a), Some(b)) if b >= a => b - a + 1,
        _ => 1,
    }
}

/// Serving containers of a service, by number.
pub fn serving<'a>(observed: &'a Observed, service: &ServiceName) -> Vec<&'a ContainerDetail> {
    let label = |c: &'a ContainerDetail, key: &str| c.labels.get(key).map(String::as_str);
    let mut found: Vec<&ContainerDetail> = observed
        .containers
        .iter()
        .filter(|c| label(c, labels::SERVICE) == Some(service.as_str()) && label(c, labels::ROLE) == Some(labels::ROLE_SERVING))
        .collect();
    found.sort_by_key(|c| (c.labels.get(labels::NUMBER).and_then(|n| n.parse::<u32>().ok()).unwrap_or(0), c.id.clone()));
    found
}

/// Whether other services wait for this one to end with exit code 0.
pub fn one_shot(spec: &StackSpec, service: &ServiceName) -> bool {
    spec.services
        .values()
        .any(|s| s.depends_on.get(service).is_some_and(|d| d.condition == DependencyCondition::ServiceCompletedSuccessfully))
}

fn release_changes(
    input: &PlanInput<'_>,
    desired: &StackSpec,
    images: &BTreeMap<ServiceName, ImageIdentity>,
    levels: &[Vec<ServiceName>],
) -> Vec<Change> {
    let mut changes: Vec<Change> = levels
        .iter()
        .flatten()
        .map(|service| match one_shot(desired, service) {
            true => once::change(input, desired, images, service),
            false => service_change(input, desired, images.get(service), service),
        })
        .collect();
    strategies::together(desired, input, &mut changes);
    follow::changed(desired, &mut changes);
    let gone =
        input.observed.containers.iter().filter_map(|c| c.labels.get(labels::SERVICE)).filter_map(|s| ServiceName::new(s.as_str()).ok());
    for service in gone {
        let stays = desired.services.get(&service).is_some_and(|s| s.active);
        if !stays && !changes.iter().any(|c| c.service == service) {
            let old = input.current.and_then(|r| r.spec.services.get(&service));
            changes.push(Change {
                diff: diff::diff(old, None, input.literal_keys, input.hash),
                service,
                action: Action::Remove,
                strategy: Strategy::InPlace,
                expected_loss: "the service ends".into(),
            });
        }
    }
    changes
}

/// Containers a change is judged by. What the current release replaced and keeps until the end of its watch window stands for nothing; what a release made that
/// did not become current is put in order with all there is.
fn standing_of<'a>(input: &PlanInput<'a>, service: &ServiceName) -> Vec<&'a ContainerDetail> {
    let current = input.current.map_or(0, |r| r.number);
    let release = |c: &ContainerDetail| c.labels.get(labels::RELEASE).and_then(|r| r.parse::<u32>().ok());
    let live = live(input.observed, service);
    if live.iter().all(|c| release(c).is_none_or(|r| r <= current)) { live } else { serving(input.observed, service) }
}

fn service_change(input: &PlanInput<'_>, desired: &StackSpec, image: Option<&ImageIdentity>, service: &ServiceName) -> Change {
    let spec = &desired.services[service];
    let old = input.current.and_then(|r| r.spec.services.get(service));
    let running = standing_of(input, service);
    let image_id = image.and_then(|i| i.id.as_deref());
    let hash = image_id.map(|id| hash::spec_hash(desired, service, id, input.digest));
    let same = |c: &&ContainerDetail| hash.is_some() && c.labels.get(labels::SPEC) == hash.as_ref();
    let up = |c: &&ContainerDetail| matches!(c.state, RunState::Running | RunState::Restarting);
    let make = |action, strategy: Strategy, diff| Change {
        service: service.clone(),
        action,
        strategy,
        expected_loss: expected_loss(action, strategy).into(),
        diff,
    };
    let mut lines = diff::diff(old, Some(spec), input.literal_keys, input.hash);
    let standing = front::standing(desired, service, input.observed, input.digest);
    if running.is_empty() {
        if spec.replicas == 0 && matches!(standing, front::Standing::Unwanted | front::Standing::Up) {
            return make(Action::Unchanged, Strategy::InPlace, vec![]);
        }
        content::image_lines(input, image, service, None, &mut lines);
        if lines.is_empty() {
            // It is in the release that runs, and its container is not there: drift.
            lines.push(DiffLine { path: "containers".into(), from: Some("missing".into()), to: Some(spec.replicas.to_string()) });
        }
        return make(Action::Create, Strategy::Start, lines);
    }
    let front_gone = standing == front::Standing::Other || (standing == front::Standing::Down && running.iter().any(up));
    let anew = input.anew.contains(service) || matches!(&input.want, Want::Recreate { service: wanted } if wanted == service);
    if anew || !running.iter().all(same) || front_gone {
        content::image_lines(input, image, service, running.first().copied(), &mut lines);
        if lines.is_empty() {
            let (path, from, to) = match (anew, front_gone) {
                (true, _) => ("containers", "of this release", "made anew"),
                (false, true) => ("front", "down, or another", "as the release says"),
                (false, false) => ("containers", "differ from the release", "as the release says"),
            };
            lines.push(DiffLine { path: path.into(), from: Some(from.into()), to: Some(to.into()) });
        }
        let at_once = anew || matches!(&input.want, Want::Release { content_of: Some(_), .. });
        let carries_data = running.iter().any(|c| c.mounts.iter().any(|m| m.kind == "volume" && m.writable));
        if standing != front::Standing::Unwanted {
            let one_writer = spec.single_writer() || (carries_data && !spec.settings.concurrent);
            let (strategy, expected_loss) = front::update(spec, one_writer, standing, at_once);
            return Change { expected_loss, ..make(Action::Update, strategy, lines) };
        }
        if let Some(loss) = jobs::replaced(desired, service, &running) {
            return Change { expected_loss: loss.into(), ..make(Action::Update, Strategy::Recreate, lines) };
        }
        let strategy = match () {
            () if spec.single_writer() || (carries_data && !spec.settings.concurrent) => Strategy::Recreate,
            () if spec.settings.strategy == Some(Strategy::Recreate) => Strategy::Recreate,
            () if spec.settings.strategy == Some(Strategy::Alias) => Strategy::Alias,
            () => Strategy::Handover,
        };
        return make(Action::Update, strategy, lines);
    }
    if running.len() != spec.replicas as usize {
        lines.retain(|l| l.path == "replicas");
        if lines.is_empty() {
            lines.push(DiffLine { path: "replicas".into(), from: Some(running.len().to_string()), to: Some(spec.replicas.to_string()) });
        }
        return make(Action::Scale, Strategy::InPlace, lines);
    }
    let down = !running.iter().all(|c| up(c) || (may_end(spec) && ended_well(c)));
    if down {
        lines.push(DiffLine { path: "state".into(), from: Some("stopped".into()), to: Some("running".into()) });
        return make(Action::Restart, Strategy::InPlace, lines);
    }
    if let Some(line) = running.iter().find_map(|c| drift::policy(spec, c)) {
        return make(Action::Restart, Strategy::InPlace, vec![line]);
    }
    let off = drift::disconnected(desired, service, input.observed);
    if !off.is_empty() {
        let expected_loss = "none: it is connected again where somebody disconnected it".into();
        return Change { expected_loss, ..make(Action::Restart, Strategy::InPlace, off.into_iter().map(|(_, line)| line).collect()) };
    }
    if front::rebounded(old, spec) {
        let expected_loss = "none: only the bounds of its front change".into();
        return Change { expected_loss, ..make(Action::Scale, Strategy::InPlace, lines) };
    }
    make(Action::Unchanged, Strategy::InPlace, vec![])
}

fn expected_loss(action: Action, strategy: Strategy) -> &'static str {
    match (action, strategy) {
        (Action::Create, _) | (Action::Unchanged, _) => "none",
        (_, Strategy::RunOnce) => "none: it runs once to its end",
        (_, Strategy::Follow) => "down while it restarts, after what it depends on was replaced",
        (Action::Update, Strategy::Handover) => "about 0.2 s while the port and name change hands; a failing version never takes over",
        (Action::Update, Strategy::Alias) => {
            "0.2 to 1 % of new connections while old and new answer to the name; clients that keep DNS answers (up to 600 s) lose until they ask again"
        }
        (Action::Update, Strategy::Recreate) => {
            "down from the stop of the old to the first passed probe of the new; the old starts again on failure"
        }
        (Action::Restart, _) => "down while it restarts",
        (Action::Stop, _) => "down until it is started again",
        (Action::Scale, _) => "none when adding; open connections of the removed copies when reducing",
        (Action::Remove, _) => "the service ends",
        // Told by `front::update`.
        (Action::Update, Strategy::Front | Strategy::Hold | Strategy::Canary | Strategy::BlueGreen) => "none",
        (Action::Update, Strategy::Start | Strategy::InPlace) => "none",
    }
}

fn in_place(input: &PlanInput<'_>, levels: &[Vec<ServiceName>], only: Option<&ServiceName>, action: Action) -> Vec<Change> {
    let mut changes: Vec<Change> = levels
        .iter()
        .flatten()
        .filter(|s| only.is_none_or(|o| o == *s || input.current.is_some_and(|r| follow::restarted(&r.spec, s, o))))
        .map(|service| {
            let running = serving(input.observed, service);
            let idle = running.iter().all(|c| !matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused));
            let nothing = running.is_empty() || (action == Action::Stop && idle);
            let action = if nothing && !matches!(input.want, Want::Stop { remove: true }) { Action::Unchanged } else { action };
            let behind = input.current.filter(|_| action == Action::Restart).and_then(|r| front::restart(&r.spec, service, input.observed));
            Change {
                service: service.clone(),
                action,
                strategy: Strategy::InPlace,
                expected_loss: behind.unwrap_or_else(|| expected_loss(action, Strategy::InPlace).into()),
                diff: vec![],
            }
        })
        .collect();
    if action == Action::Stop {
        changes.reverse();
    }
    changes
}
