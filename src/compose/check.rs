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
    cycles(&active, report);
}

/// Checks what Compose finds out when it starts a stack: names and ports claimed twice.
pub(super) fn deployable(spec: &StackSpec, report: &mut Report) {
    let active: BTreeMap<&ServiceName, &ServiceSpec> = spec.services.iter().filter(|(_, s)| s.active).collect();
    for (name, service) in &active {
        if let Some(Err(e)) = service.container_name.clone().map(EngineName::new) {
            report.error(&format!("services.{name}.container_name"), e.to_string(), "choose another name");
        }
    }
    ports(&active, report);
    container_names(&active, report);
    subnets(spec, report);
}

/// A subnet in CIDR notation as its first and last address.
fn cidr(text: &str) -> Option<(u128, u128)> {
    let (address, bits) = text.split_once('/')?;
    let (address, width) = match address.parse().ok()? {
        // Apart from all addresses of the other family.
        std::net::IpAddr::V4(a) => (u128::from(u32::from(a)) | (0xffff << 32), 32),
        std::net::IpAddr::V6(a) => (u128::from(a), 128),
    };
    let host = width - bits.parse::<u32>().ok().filter(|b| *b <= width)?;
    let mask = if host == 128 { u128::MAX } else { (1u128 << host) - 1 };
    Some((address & !mask, address | mask))
}

/// Address pools that are none, or that the engine would refuse because they overlap.
fn subnets(spec: &StackSpec, report: &mut Report) {
    let mut seen: Vec<((u128, u128), String)> = Vec::new();
    for (key, network) in spec.networks.iter().filter(|(_, n)| !n.external) {
        for (index, pool) in network.ipam.iter().enumerate() {
            let path = format!("networks.{key}.ipam.config[{index}]");
            let Some(text) = &pool.subnet else { continue };
            let Some(range) = cidr(text) else {
                report.error(&format!("{path}.subnet"), format!("{text:?} is no subnet"), "write e.g. 172.28.0.0/16");
                continue;
            };
            if let Some((_, other)) = seen.iter().find(|((first, last), _)| *first <= range.1 && range.0 <= *last) {
                report.error(&format!("{path}.subnet"), format!("{text} overlaps the subnet of {other}"), "choose another one");
            }
            seen.push((range, path));
        }
    }
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
    if service.image.is_none() && service.written.image.is_none() && service.build.is_none() && !service.other.contains_key("provider") {
        report.error(&path, "the service has neither an image nor a build", "add `image:`");
    }
    if let Some(build) = &service.written.build {
        for (context, from) in build.additional_contexts.iter().filter_map(|(c, f)| Some((c, f.strip_prefix("service:")?))) {
            let built = ServiceName::new(from).ok().and_then(|n| spec.services.get(&n)).is_some_and(|s| s.build.is_some());
            if !built {
                let message = format!("no service {from:?} is built here");
                report.broken(&format!("{path}.build.additional_contexts.{context}"), None, message, "name a service with `build:`");
            }
        }
        if let Some(platform) = service.platform.as_ref().filter(|p| !build.platforms.is_empty() && !build.platforms.contains(p)) {
            report.error(&format!("{path}.platform"), format!("{platform:?} is not one of build.platforms"), "add it there");
        }
        for (index, secret) in build.secrets.iter().enumerate() {
            let source = secret.source.as_deref().unwrap_or_default();
            if !spec.secrets.contains_key(source) {
                let known = &mut spec.secrets.keys().map(String::as_str);
                undefined(report, &format!("{path}.build.secrets[{index}]"), "secret", source, known);
            }
        }
    }
    if let Some(deploy) = &service.written.deploy {
        let w = &service.written;
        let (limits, reservations) = (&deploy.resources.limits, &deploy.resources.reservations);
        let limit = limits.as_ref();
        let bytes = |b: &Option<crate::model::spec::written::Bytes>| b.map_or(0, |b| b.0);
        for (differ, key, group, other) in [
            (w.cpus.is_some_and(|c| c != 0.0 && limit.is_some_and(|l| l.cpus.unwrap_or(0.0) != c)), "cpus", "limits", "cpus"),
            (bytes(&w.mem_limit) != 0 && limit.is_some_and(|l| bytes(&l.memory) != bytes(&w.mem_limit)), "mem_limit", "limits", "memory"),
            (
                bytes(&w.mem_reservation) != 0 && reservations.as_ref().is_some_and(|r| bytes(&r.memory) != bytes(&w.mem_reservation)),
                "mem_reservation",
                "reservations",
                "memory",
            ),
        ] {
            if differ {
                let message = format!("`{key}` and `deploy.resources.{group}.{other}` differ");
                report.stricter(&format!("{path}.{key}"), &message, "the one below `deploy` is used where it is given");
            }
        }
        // Two numbers of processes are an error to whoever deploys, too.
        if w.pids_limit.is_some_and(|p| p != 0 && limit.is_some_and(|l| l.pids.unwrap_or(0) != p)) {
            let hint = "keep one of them, or write the same in both";
            report.error(&format!("{path}.pids_limit"), "`pids_limit` and `deploy.resources.limits.pids` differ", hint);
        }
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
            let message = format!("service {name:?} depends on service {target:?}, which is not active", name = name.as_str());
            report.broken(at, None, message, "activate one of its profiles, or write `required: false`");
        } else {
            let hint = match nearest(target, spec.services.keys().map(ServiceName::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "define it under `services:` at the top of the file".to_owned(),
            };
            report.broken(at, None, format!("service {:?} depends on undefined service {target:?}", name.as_str()), hint);
        }
    };
    // A dependency that is not required may be switched off, but must be there.
    for (dependency, _) in service.depends_on.iter().filter(|(n, d)| !d.required && !spec.services.contains_key(*n)) {
        service_reference(dependency.as_str(), &format!("{path}.depends_on.{dependency}"), report);
    }
    let implied = &service.written.implied_dependencies;
    for (dependency, _) in service.depends_on.iter().filter(|(n, d)| d.required && !implied.contains(n.as_str())) {
        service_reference(dependency.as_str(), &format!("{path}.depends_on.{dependency}"), report);
    }
    for (index, link) in service.links.iter().enumerate() {
        service_reference(link.split(':').next().unwrap_or_default(), &format!("{path}.links[{index}]"), report);
    }
    for (index, from) in service.volumes_from.iter().enumerate().filter(|(_, f)| !f.starts_with("container:")) {
        service_reference(from.split(':').next().unwrap_or_default(), &format!("{path}.volumes_from[{index}]"), report);
    }
    for (key, mode) in [
        ("network_mode", &service.network_mode),
        ("pid", &service.pid),
        ("ipc", &service.ipc),
        ("uts", &service.uts),
        ("cgroup", &service.cgroup),
    ] {
        if let Some(target) = mode.as_deref().and_then(|m| m.strip_prefix("service:")) {
            service_reference(target, &format!("{path}.{key}"), report);
        }
    }
    if let Some(container) = service.container_name.as_ref().filter(|_| service.replicas > 1) {
        let message = format!("container_name {container:?} is for one container, and {} replicas are asked for", service.replicas);
        report.error(&format!("{path}.container_name"), message, "remove container_name");
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

/// Names one cycle. Iterative: a chain may be as long as the file.
fn cycles(active: &BTreeMap<&ServiceName, &ServiceSpec>, report: &mut Report) {
    let mut done: std::collections::BTreeSet<ServiceName> = std::collections::BTreeSet::new();
    for start in active.keys() {
        let mut stack: Vec<(ServiceName, Vec<ServiceName>)> = Vec::new();
        let enter =
            |name: &ServiceName| (name.clone(), active.get(name).map(|s| s.depends_on.keys().cloned().collect()).unwrap_or_default());
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
