//! Jobs: services that may end by themselves, cleanly, and are then finished rather than down. Pure.
//!
//! Compose accepts every clean end. Here only one that nobody can miss counts: a service that is reached by a port, watched by a check or waited for while
//! it runs is not well once it is gone, whatever its exit code says.

use super::front::fronted;
use crate::model::ids::ServiceName;
use crate::model::observed::{ContainerDetail, RunState};
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
