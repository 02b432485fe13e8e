//! Attachments that a running container of the release has lost by somebody's hand. Pure.

use super::{Observed, front, serving};
use crate::model::ids::ServiceName;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::plan::DiffLine;
use crate::model::spec::{Restart, ServiceSpec, StackSpec};

/// Networks a service's running containers and its front should stand on and do not, with the line that says so.
pub fn disconnected<'a>(
    stack: &StackSpec,
    service: &ServiceName,
    observed: &'a Observed,
) -> Vec<((&'a ContainerDetail, String), DiffLine)> {
    let Some(spec) = stack.services.get(service).filter(|s| s.network_mode.is_none()) else { return vec![] };
    let wanted: Vec<(&String, String)> =
        spec.networks.keys().map(|key| (key, stack.networks.get(key).map_or_else(|| key.clone(), |n| n.name.clone()))).collect();
    let fronts = if front::fronted(spec) { front::fronts(observed, service) } else { vec![] };
    let up = serving(observed, service).into_iter().chain(fronts).filter(|c| c.state == RunState::Running);
    let mut out = vec![];
    for c in up {
        for (key, name) in wanted.iter().filter(|(_, name)| !c.networks.contains_key(name)) {
            let line =
                DiffLine { path: format!("networks.{key}"), from: Some(format!("{} disconnected", c.name)), to: Some("connected".into()) };
            out.push(((c, name.clone()), line));
        }
    }
    out
}

/// A restart policy that someone changed behind our back, of a container that runs.
pub(super) fn policy(spec: &ServiceSpec, c: &ContainerDetail) -> Option<DiffLine> {
    let wanted = match spec.restart {
        Restart::No => "no",
        Restart::Always => "always",
        Restart::OnFailure(_) => "on-failure",
        Restart::UnlessStopped => "unless-stopped",
    };
    (c.state == RunState::Running && c.restart_policy != wanted).then(|| DiffLine {
        path: "restart".into(),
        from: Some(c.restart_policy.clone()),
        to: Some(wanted.into()),
    })
}
