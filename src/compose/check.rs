//! What must hold between the parts of a stack: references, cycles, ports claimed twice. Judges active services only, as compose does.

use super::Report;
use super::units::nearest;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::spec::{MountKind, ServiceSpec, StackSpec};
use std::collections::BTreeMap;

/// Checks a typed stack.
pub(super) fn stack(spec: &StackSpec, report: &mut Report) {
    let active: BTreeMap<&ServiceName, &ServiceSpec> = spec.services.iter().filter(|(_, s)| s.active).collect();
    for (name, service) in &active {
        references(name, service, spec, &active, report);
    }
    ports(&active, report);
    container_names(&active, report);
    cycles(&active, report);
}

fn undefined(report: &mut Report, path: &str, kind: &str, name: &str, known: &mut dyn Iterator<Item = &str>) {
    let hint = match nearest(name, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("define it under `{kind}s:` at the top of the file"),
    };
    report.error(path, format!("undefined {kind} {name:?}"), hint);
}

fn references(
    name: &ServiceName,
    service: &ServiceSpec,
    spec: &StackSpec,
    active: &BTreeMap<&ServiceName, &ServiceSpec>,
    report: &mut Report,
) {
    let path = format!("services.{name}");
    // A provider stands in for the image; the gate refuses it by name.
    if service.image.is_none() && service.build.is_none() && !service.other.contains_key("provider") {
        report.error(&path, "the service has neither an image nor a build", "add `image:`");
    }
    for network in service.networks.keys().filter(|n| !spec.networks.contains_key(*n)) {
        undefined(report, &format!("{path}.networks.{network}"), "network", network, &mut spec.networks.keys().map(String::as_str));
    }
    for mount in service.mounts.iter().filter(|m| m.kind == MountKind::Volume) {
        if let Some(source) = mount.source.as_deref().filter(|s| !spec.volumes.contains_key(*s)) {
            undefined(report, &mount.path, "volume", source, &mut spec.volumes.keys().map(String::as_str));
        }
    }
    for (kind, used, known) in [("config", &service.configs, &spec.configs), ("secret", &service.secrets, &spec.secrets)] {
        for (index, file) in used.iter().enumerate().filter(|(_, f)| !known.contains_key(&f.source)) {
            undefined(report, &format!("{path}.{kind}s[{index}]"), kind, &file.source, &mut known.keys().map(String::as_str));
        }
    }
    let service_reference = |target: &str, at: &str, report: &mut Report| {
        let known = ServiceName::new(target).is_ok_and(|t| active.contains_key(&t));
        if known {
            return;
        }
        let inactive = ServiceName::new(target).is_ok_and(|t| spec.services.contains_key(&t));
        if inactive {
            report.error(at, format!("service {target:?} is not active"), "activate one of its profiles, or write `required: false`");
        } else {
            undefined(report, at, "service", target, &mut spec.services.keys().map(ServiceName::as_str));
        }
    };
    for (dependency, _) in service.depends_on.iter().filter(|(_, d)| d.required) {
        service_reference(dependency.as_str(), &format!("{path}.depends_on.{dependency}"), report);
    }
    for (index, link) in service.links.iter().enumerate() {
        service_reference(link.split(':').next().unwrap_or_default(), &format!("{path}.links[{index}]"), report);
    }
    for (index, from) in service.volumes_from.iter().enumerate().filter(|(_, f)| !f.starts_with("container:")) {
        service_reference(from.split(':').next().unwrap_or_default(), &format!("{path}.volumes_from[{index}]"), report);
    }
    for (key, mode) in [("network_mode", &service.network_mode), ("pid", &service.pid), ("ipc", &service.ipc)] {
        if let Some(target) = mode.as_deref().and_then(|m| m.strip_prefix("service:")) {
            service_reference(target, &format!("{path}.{key}"), report);
        }
    }
    if let Some(container) = &service.container_name {
        if let Err(e) = EngineName::new(container.clone()) {
            report.error(&format!("{path}.container_name"), e.to_string(), "choose another name");
        }
        if service.replicas > 1 {
            let message = format!("container_name {container:?} is for one container, and {} replicas are asked for", service.replicas);
            report.error(&format!("{path}.container_name"), message, "remove container_name");
        }
    }
}

/// Who holds a port so far: address and path in the file.
type Holders<'a> = Vec<(Option<&'a str>, &'a str)>;

/// A fixed host port can be bound once: twice would fail at start, after the old release was touched.
fn ports(active: &BTreeMap<&ServiceName, &ServiceSpec>, report: &mut Report) {
    let mut taken: BTreeMap<(String, &str), Holders<'_>> = BTreeMap::new();
    for port in active.values().flat_map(|s| &s.ports) {
        let Some(published) = port.published.as_ref().filter(|p| !p.contains('-') && *p != "0") else { continue };
        let holders = taken.entry((published.clone(), port.protocol.as_str())).or_default();
        let ip = port.host_ip.as_deref().filter(|ip| !matches!(*ip, "0.0.0.0" | "::"));
        let clash = holders.iter().find(|(other, _)| other.is_none() || ip.is_none() || *other == ip);
        if let Some((_, other)) = clash {
            report.error(
                &port.path,
                format!("host port {published}/{} is published twice, also by {other}", port.protocol),
                "publish another host port",
            );
        }
        holders.push((ip, &port.path));
    }
}

fn container_names(active: &BTreeMap<&ServiceName, &ServiceSpec>, report: &mut Report) {
    let mut seen: BTreeMap<&str, &ServiceName> = BTreeMap::new();
    for (name, service) in active {
        if let Some(container) = service.container_name.as_deref()
            && let Some(other) = seen.insert(container, name)
        {
            let message = format!("container_name {container:?} is also that of service {other:?}", other = other.as_str());
            report.error(&format!("services.{name}.container_name"), message, "choose another name");
        }
    }
}

/// Services whose start waits for another one: `depends_on`, links, shared namespaces and volumes.
fn waits_for(service: &ServiceSpec) -> Vec<ServiceName> {
    let shared = [&service.network_mode, &service.pid, &service.ipc];
    let named = shared.into_iter().filter_map(|m| m.as_deref()?.strip_prefix("service:"));
    let linked = service.links.iter().chain(&service.volumes_from).filter_map(|l| l.split(':').next());
    let mut out: Vec<ServiceName> = service.depends_on.keys().cloned().collect();
    out.extend(named.chain(linked).filter_map(|n| ServiceName::new(n).ok()));
    out
}

/// Names one cycle. Iterative: a chain may be as long as the file.
fn cycles(active: &BTreeMap<&ServiceName, &ServiceSpec>, report: &mut Report) {
    let mut done: std::collections::BTreeSet<ServiceName> = std::collections::BTreeSet::new();
    for start in active.keys() {
        let mut stack: Vec<(ServiceName, Vec<ServiceName>)> = Vec::new();
        let enter = |name: &ServiceName| (name.clone(), active.get(name).map(|s| waits_for(s)).unwrap_or_default());
        if !done.contains(*start) {
            stack.push(enter(start));
        }
        while let Some((name, rest)) = stack.last_mut() {
            let Some(next) = rest.pop() else {
                done.insert(name.clone());
                stack.pop();
                continue;
            };
            if let Some(from) = stack.iter().position(|(n, _)| *n == next) {
                let mut circle: Vec<&str> = stack[from..].iter().map(|(n, _)| n.as_str()).collect();
                circle.push(next.as_str());
                report.error(
                    &format!("services.{next}.depends_on"),
                    format!("services wait for each other: {}", circle.join(" -> ")),
                    "remove one dependency",
                );
                return;
            }
            if active.contains_key(&next) && !done.contains(&next) {
                stack.push(enter(&next));
            }
        }
    }
}
