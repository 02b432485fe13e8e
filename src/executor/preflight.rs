//! Read-only checks before anything is touched, each with an id, all reported at once.

use super::run::{Halt, Run, failed};
use crate::engine::EngineError;
use crate::model::ids::EngineName;
use crate::model::labels;
use crate::model::observed::{ContainerSummary, RunState};
use crate::model::plan::Action;
use crate::model::spec::{PortSpec, ServiceSpec};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// Fails with every check that does not pass.
pub(super) async fn check(run: &Run) -> Result<(), Halt> {
    match problems(run).await {
        Ok(problems) if problems.is_empty() => Ok(()),
        Ok(problems) => Err(failed(format!("preflight: {}", problems.join("; ")))),
        Err(e) => Err(failed(format!("preflight: {e}"))),
    }
}

async fn problems(run: &Run) -> Result<Vec<String>, EngineError> {
    let mut out = vec![];
    let engine = &*run.exec.engine;
    for (service, identity) in &run.plan.images {
        // Without an id the image is pulled; with one it must still be there.
        let Some(id) = identity.id.as_deref().and_then(|id| crate::model::ids::ImageRef::new(id).ok()) else { continue };
        if engine.image(&id).await?.is_none() {
            out.push(format!("image.present: image {id} of service {service} ({}) is not on the engine any more", identity.reference));
        }
    }
    for network in run.plan.desired.networks.values().filter(|n| n.external) {
        if let Ok(name) = EngineName::new(network.name.as_str())
            && engine.network(&name).await?.is_none()
        {
            out.push(format!("network.external: network {name} does not exist; create it or correct its name"));
        }
    }
    for volume in run.plan.desired.volumes.values().filter(|v| v.external) {
        if let Ok(name) = EngineName::new(volume.name.as_str())
            && engine.volume(&name).await?.is_none()
        {
            out.push(format!("volume.external: volume {name} does not exist; create it or correct its name"));
        }
    }
    let containers = engine.containers(&[]).await?;
    for change in run.plan.changes.iter().filter(|c| !matches!(c.action, Action::Unchanged | Action::Remove | Action::Stop)) {
        if let Some(spec) = run.plan.desired.services.get(&change.service) {
            out.extend(taken_ports(run, change.service.as_str(), spec, &containers));
        }
    }
    Ok(out)
}

fn taken_ports(run: &Run, service: &str, spec: &ServiceSpec, containers: &[ContainerSummary]) -> Vec<String> {
    let mut out = vec![];
    for port in &spec.ports {
        let Some(number) = port.published.as_deref().and_then(|p| p.parse::<u16>().ok()).filter(|p| *p != 0) else { continue };
        let holder = containers
            .iter()
            .filter(|c| c.state == RunState::Running)
            .find(|c| c.ports.iter().any(|p| p.host_port == number && p.protocol == port.protocol && overlaps(&p.host_ip, port)));
        match holder {
            Some(c) if ours(run, c) => {}
            Some(c) => out.push(format!("port.free: port {number}/{} of service {service} is held by container {}", port.protocol, c.name)),
            None if run.exec.probes_host_ports() && port.protocol == "tcp" && !bindable(port, number) => {
                out.push(format!("port.free: port {number}/tcp of service {service} is held by a process on the host"));
            }
            None => {}
        }
    }
    out
}

fn ours(run: &Run, c: &ContainerSummary) -> bool {
    c.labels.get(labels::INSTANCE).is_some_and(|i| i == run.exec.store.instance())
        && c.labels.get(labels::STACK).is_some_and(|s| *s == run.plan.stack.to_string())
}

fn overlaps(held: &str, wanted: &PortSpec) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let wanted = wanted.host_ip.as_deref().unwrap_or("");
    any(held) || any(wanted) || held == wanted
}

fn bindable(port: &PortSpec, number: u16) -> bool {
    let ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    match TcpListener::bind(SocketAddr::new(ip, number)) {
        Ok(_) => true,
        Err(e) => e.kind() != std::io::ErrorKind::AddrInUse,
    }
}
