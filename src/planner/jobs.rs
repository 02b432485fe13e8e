//! Jobs: services that may end by themselves, cleanly, and are then finished rather than down. Pure.
//!
//! Compose accepts every clean end. Here only one that nobody can miss counts: a service that is reached by a port, watched by a check or waited for while
//! it runs is not well once it is gone, whatever its exit code says.

use super::front::fronted;
use crate::model::ids::ServiceName;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::plan::Strategy;
use crate::model::spec::{Restart, ServiceSpec, StackSpec};

/// Whether nothing starts a service again that ended with exit code 0: its restart policy is `no`, which is the default, or `on-failure`.
pub fn may_end(spec: &ServiceSpec) -> bool {
    matches!(spec.restart, Restart::No | Restart::OnFailure(_))
}

/// Whether a service that ends with exit code 0 is finished. Those that others wait for to end are [`super::one_shot`]s, which run once.
pub fn job(stack: &StackSpec, service: &ServiceName) -> bool {
    let Some(spec) = stack.services.get(service) else { return false };
    let (own, whole) = (&spec.settings, &stack.settings);
    let of_stack = whole.smoke.iter().map(|t| &t.service).chain(whole.hooks.post.iter().map(|h| &h.service)).any(|s| s == service);
    let of_service = !own.probes.is_empty() || !own.smoke.is_empty() || !own.hooks.post.is_empty();
    let checked = spec.healthcheck.as_ref().is_some_and(|h| h.test.first().is_some_and(|t| t != "NONE"));
    let watched = of_stack || of_service || checked;
    let reached = !spec.ports.is_empty() || !spec.expose.is_empty() || fronted(spec);
    let needed = stack.services.iter().any(|(name, other)| other.active && name != service && other.depends_on.contains_key(service));
    may_end(spec) && !watched && !reached && !needed
}

/// Whether a container has ended cleanly by itself.
pub fn ended_well(c: &ContainerDetail) -> bool {
    c.state == RunState::Exited && c.exit_code == 0 && c.error.is_empty() && !c.oom_killed
}

/// Whether a container is at work.
pub(super) fn at_work(c: &ContainerDetail) -> bool {
    matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused)
}

/// The loss of replacing a job, in words; `None` where the service is no job, or its file says that two of it may run. A canary would do its work beside
/// the run that is at it.
pub(super) fn replaced(stack: &StackSpec, service: &ServiceName, running: &[&ContainerDetail]) -> Option<&'static str> {
    let settings = &stack.services.get(service)?.settings;
    let twice = settings.concurrent || matches!(settings.strategy, Some(Strategy::Handover | Strategy::Alias));
    match running.iter().any(|c| at_work(c)) {
        _ if !job(stack, service) => None,
        true if twice => None,
        true => Some("the run at work is ended within its stop grace before the new one begins; it begins again when the new one fails"),
        false if running.iter().all(|c| ended_well(c)) => Some("none: the one before is finished"),
        false if twice => None,
        false => Some("none: the one before has ended"),
    }
}
