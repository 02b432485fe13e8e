//! Services that give up data, a host port or a fixed address which a new container of another service takes over, because they are no longer in the
//! file or because the file says otherwise of them now: they end before it starts. Pure.

use super::Observed;
use super::front::fronted;
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, PublishedPort, RunState};
use crate::model::plan::{Action, Change, Strategy};
use crate::model::release::Release;
use crate::model::spec::{MountKind, PortSpec, ServiceSpec, StackSpec};
use std::collections::BTreeMap;

/// Removed services, and updated ones that no longer claim it, each with the created and updated ones it must not run beside.
pub fn makes_way(
    desired: &StackSpec,
    current: Option<&Release>,
    observed: &Observed,
    changes: &[Change],
) -> BTreeMap<ServiceName, Vec<ServiceName>> {
    let of = |service: &ServiceName| -> Vec<&ContainerDetail> {
        observed.containers.iter().filter(|c| c.labels.get(labels::SERVICE).map(String::as_str) == Some(service.as_str())).collect()
    };
    let heirs = |gone: &ServiceName, stays: Option<&ServiceSpec>| -> Vec<ServiceName> {
        let (old, containers) = (current.and_then(|r| r.spec.services.get(gone)), of(gone));
        let renewed = changes.iter().filter(|c| matches!(c.action, Action::Create | Action::Update) && c.service != *gone);
        let clashes = |new: &ServiceSpec| {
            containers.iter().any(|c| clash(desired, new, (old, stays), c, stays.is_some_and(fronted)))
                || old.is_some_and(|o| claims(o, new) && !stays.is_some_and(|s| claims(o, s)))
        };
        renewed.filter(|c| desired.services.get(&c.service).is_some_and(clashes)).map(|c| c.service.clone()).collect()
    };
    let leave = changes.iter().filter_map(|c| match c.action {
        Action::Remove => Some((&c.service, None)),
        Action::Update if !matches!(c.strategy, Strategy::RunOnce | Strategy::Follow) => {
            desired.services.get(&c.service).map(|spec| (&c.service, Some(spec)))
        }
        _ => None,
    });
    leave.map(|(service, stays)| (service.clone(), heirs(service, stays))).filter(|(_, heirs)| !heirs.is_empty()).collect()
}

/// Tells what the others' coming costs a service: one that stays stops before they start, so nothing of it runs meanwhile. Behind a front its connections
/// wait for that long.
pub fn told(desired: &StackSpec, makes_way: &BTreeMap<ServiceName, Vec<ServiceName>>, changes: &mut [Change]) {
    for change in changes {
        let Some(heirs) = makes_way.get(&change.service) else { continue };
        let heirs: Vec<&str> = heirs.iter().map(|s| s.as_str()).collect();
        let heirs = heirs.join(", ");
        let behind = desired.services.get(&change.service).is_some_and(fronted);
        change.expected_loss = if change.action == Action::Update && behind {
            change.strategy = Strategy::Hold;
            format!("new connections wait from before {heirs} starts, which takes over its data or device, until its new container is up")
        } else if change.action == Action::Update {
            change.strategy = Strategy::Recreate;
            format!(
                "the service is down from before {heirs} starts, which takes over its data, port or address, until its new container is up"
            )
        } else {
            format!("the service ends before {heirs} starts, which takes over its data, port or address")
        };
    }
}

/// Whether a container of the old service must be gone before one of the new service starts. What the service `stays` with is not given up: the two
/// share it, or the preflight refuses both. One that goes or stays `behind` a front shares ports and addresses with it: that change of hands is the front's.
fn clash(
    desired: &StackSpec,
    new: &ServiceSpec,
    (old, stays): (Option<&ServiceSpec>, Option<&ServiceSpec>),
    c: &ContainerDetail,
    behind: bool,
) -> bool {
    let both_may = new.settings.concurrent && old.is_some_and(|o| o.settings.concurrent);
    let writes = |source: &str| c.mounts.iter().any(|m| m.writable && (m.name.as_deref() == Some(source) || m.source == source));
    let kept = |source: &str| stays.is_some_and(|s| sources(desired, s).any(|own| own == source));
    let data = !both_may && sources(desired, new).any(|source| writes(source) && !kept(source));
    if behind || !matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused) {
        return data;
    }
    let wants = |spec: &ServiceSpec, held: &PublishedPort| {
        spec.ports.iter().any(|p| held.protocol == p.protocol && held_by(p, held.host_port, &held.host_ip))
    };
    let port = c.ports.iter().any(|held| wants(new, held) && !stays.is_some_and(|s| wants(s, held)));
    let fixed = |spec: &ServiceSpec| {
        spec.networks.iter().any(|(key, n)| {
            let name = desired.networks.get(key).map_or(key.as_str(), |s| s.name.as_str());
            n.ipv4_address.as_ref().is_some_and(|ip| c.addresses.get(name) == Some(ip))
        })
    };
    data || port || (fixed(new) && !stays.is_some_and(fixed))
}

/// Engine names and host paths a service writes.
fn sources<'a>(stack: &'a StackSpec, spec: &'a ServiceSpec) -> impl Iterator<Item = &'a str> {
    let written = spec.mounts.iter().filter(|m| !m.read_only);
    written.filter_map(|m| {
        let source = m.source.as_deref()?;
        match m.kind {
            MountKind::Volume | MountKind::Cluster => Some(stack.volumes.get(source).map_or(source, |v| v.name.as_str())),
            MountKind::Bind => Some(source),
            MountKind::Tmpfs | MountKind::Npipe | MountKind::Image => None,
        }
    })
}

/// Devices, the host's network, fixed addresses of version 6: what containers do not show.
fn claims(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let host = |s: &ServiceSpec| s.network_mode.as_deref() == Some("host");
    let device = old.devices.iter().any(|d| new.devices.iter().any(|n| n.source == d.source));
    let address = old.networks.iter().any(|(key, o)| {
        let of = new.networks.get(key).and_then(|n| n.ipv6_address.as_ref());
        of.is_some() && of == o.ipv6_address.as_ref()
    });
    (host(old) && host(new)) || device || address
}

fn held_by(wanted: &PortSpec, port: u16, ip: &str) -> bool {
    let Some(range) = wanted.published.as_deref() else { return false };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let within = matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(a), Ok(b)) if a <= port && port <= b);
    let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    let wanted = wanted.host_ip.as_deref().unwrap_or("");
    within && (any(ip) || any(wanted) || ip == wanted)
}

/// Whether two containers write the same volume or host path.
pub fn write_the_same(a: &ContainerDetail, b: &ContainerDetail) -> bool {
    let written = |c: &ContainerDetail| -> Vec<String> {
        c.mounts.iter().filter(|m| m.writable).map(|m| m.name.clone().unwrap_or_else(|| m.source.clone())).collect()
    };
    let (a, b) = (written(a), written(b));
    a.iter().any(|s| !s.is_empty() && b.contains(s))
}
