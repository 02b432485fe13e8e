//! Which services stand behind a front, and what that front is like. Pure: the same release always gives the same front.

use super::{Observed, PlanError, one_shot, strategies};
use crate::model::front::{Limits, MAX_DRAIN_MS, ROUTES_VERSION};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::plan::Strategy;
use crate::model::spec::{PortSpec, ServiceSpec, StackSpec};
use serde_json::json;
use std::collections::BTreeSet;

/// Raised when a front must be replaced although nothing in the file changed; each raise costs every fronted service one hand-over.
const FRONT_VERSION: u32 = 1;

/// What a front of a service is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Fronting<'a> {
    /// Ports it publishes on the host.
    pub published: Vec<&'a PortSpec>,
    /// Ports it listens on, published and exposed ones.
    pub targets: BTreeSet<u16>,
    /// Bounds.
    pub limits: Limits,
}

/// Whether a service stands behind a front.
pub fn fronted(spec: &ServiceSpec) -> bool {
    spec.active && matches!(spec.settings.strategy, Some(Strategy::Front | Strategy::Hold | Strategy::Canary | Strategy::BlueGreen))
}

/// The front of a service, when it stands behind one.
pub fn fronting<'a>(stack: &'a StackSpec, service: &ServiceName) -> Option<Fronting<'a>> {
    let spec = stack.services.get(service).filter(|s| fronted(s))?;
    let published: Vec<&PortSpec> = spec.ports.iter().collect();
    let targets = published.iter().map(|p| p.target).chain(spec.expose.iter().flat_map(|e| exposed(e))).collect();
    Some(Fronting { published, targets, limits: limits(spec) })
}

/// `8080`, `8080/tcp`, `8080-8090/tcp`; nothing for other protocols, which a front does not carry.
fn exposed(text: &str) -> Vec<u16> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>(), protocol.eq_ignore_ascii_case("tcp")) {
        (Ok(first), Ok(last), true) => (first..=last).collect(),
        _ => vec![],
    }
}

fn limits(spec: &ServiceSpec) -> Limits {
    let (set, default) = (spec.settings.front.clone().unwrap_or_default(), Limits::default());
    let ms = |s: Option<u64>, default: u64| s.map_or(default, |s| s.saturating_mul(1000));
    Limits {
        max_connections: set.max_connections.unwrap_or(default.max_connections),
        max_held: set.max_held.unwrap_or(default.max_held),
        hold_ms: ms(set.hold_s, default.hold_ms),
        drain_ms: ms(set.drain_s, default.drain_ms).min(MAX_DRAIN_MS),
        idle_ms: ms(set.idle_s, default.idle_ms),
        proxy_protocol: set.proxy_protocol,
        ..default
    }
}

/// Ports a front can carry on its single listener each.
const MAX_PORTS: usize = 64;

/// Refuses what no front can do, naming it. Of what a release had already only that: a file can be corrected, the way back must stay open.
pub(super) fn check(stack: &StackSpec, observed: &Observed, new: bool) -> Result<(), PlanError> {
    for (service, spec) in stack.services.iter().filter(|(_, s)| s.active) {
        strategies::check(stack, service, spec, observed, new)?;
        let refuse = |why: String| Err(PlanError::Impossible(format!("service {service} cannot stand behind a front: {why}")));
        let Some(front) = fronting(stack, service) else { continue };
        if let Some(p) = spec.ports.iter().find(|p| !p.protocol.eq_ignore_ascii_case("tcp")) {
            return refuse(format!(
                "{} is {}, which has no connections that could be handed on; leave out x-dockwarden.strategy, or publish it from a service of its own",
                p.path, p.protocol
            ));
        }
        if let Some(mode) = &spec.network_mode {
            return refuse(format!("with network_mode {mode} it has no network that a front could share; leave out x-dockwarden.strategy"));
        }
        if one_shot(stack, service) {
            return refuse("it runs once to its end; leave out x-dockwarden.strategy".into());
        }
        if front.targets.is_empty() {
            return refuse("it neither publishes a port nor names one under `expose`".into());
        }
        if front.targets.len() > MAX_PORTS {
            return refuse(format!("{} ports; at most {MAX_PORTS}", front.targets.len()));
        }
        let most = MAX_DRAIN_MS / 1000;
        let asked = spec.settings.front.as_ref().and_then(|f| f.drain_s).unwrap_or_default();
        if new && asked > most {
            return refuse(format!("front.drain_s {asked}: a replaced container is kept for its sessions at most {most} s"));
        }
        if let Err(why) = (crate::model::front::Routes::to([], front.limits)).check() {
            return refuse(why);
        }
    }
    Ok(())
}

/// Keyed hash of the front's container: another hash, another container. What goes with the routes does not count.
pub fn hash(stack: &StackSpec, service: &ServiceName, digest: &dyn Fn(&[u8]) -> String) -> Option<String> {
    let front = fronting(stack, service)?;
    let spec = &stack.services[service];
    let ports: Vec<_> = front.published.iter().map(|p| (&p.published, &p.host_ip, p.target)).collect();
    let networks: Vec<_> = spec.networks.iter().map(|(key, n)| (stack.networks.get(key).map(|s| &s.name), n)).collect();
    let whole = json!({"front": FRONT_VERSION, "routes": ROUTES_VERSION, "ports": ports, "targets": front.targets, "networks": networks});
    let mut hash = digest(whole.to_string().as_bytes());
    hash.truncate(32);
    Some(hash)
}

/// Fronts of a service, the current one first: one that was replaced is stopped.
pub fn fronts<'a>(observed: &'a Observed, service: &ServiceName) -> Vec<&'a ContainerDetail> {
    let label = |c: &'a ContainerDetail, key: &str| c.labels.get(key).map(String::as_str);
    let mut found: Vec<&ContainerDetail> = observed
        .containers
        .iter()
        .filter(|c| label(c, labels::SERVICE) == Some(service.as_str()) && label(c, labels::ROLE) == Some(labels::ROLE_FRONT))
        .collect();
    found.sort_by_key(|c| (!up(c), c.id.clone()));
    found
}

fn up(c: &ContainerDetail) -> bool {
    matches!(c.state, RunState::Running | RunState::Restarting)
}

/// Name a front reaches a container under; `None` when it does not stand behind one.
pub fn backend(c: &ContainerDetail) -> Option<EngineName> {
    c.labels.get(labels::BACKEND).and_then(|b| EngineName::new(b.as_str()).ok())
}

/// How the front of a service stands to what the release wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// There shall be none.
    Unwanted,
    /// As wanted, and up.
    Up,
    /// As wanted, but down.
    Down,
    /// None, or another than wanted.
    Other,
}

pub(super) fn standing(stack: &StackSpec, service: &ServiceName, observed: &Observed, digest: &dyn Fn(&[u8]) -> String) -> Standing {
    let Some(wanted) = hash(stack, service, digest) else { return Standing::Unwanted };
    match fronts(observed, service).into_iter().find(|c| c.labels.get(labels::SPEC) == Some(&wanted)) {
        Some(c) if up(c) => Standing::Up,
        Some(_) => Standing::Down,
        None => Standing::Other,
    }
}

/// How an update of a fronted service goes, and what it costs. One writer at a time: then connections wait while it changes.
pub(super) fn update(spec: &ServiceSpec, one_writer: bool, standing: Standing, at_once: bool) -> (Strategy, String) {
    let limits = limits(spec);
    let (hold, drain) = (limits.hold_ms / 1000, limits.drain_ms / 1000);
    let asked_front = spec.settings.strategy == Some(Strategy::Front);
    let strategy = match spec.settings.strategy {
        // What mends or goes back does not wait beside what fails.
        Some(Strategy::Canary) if at_once => Strategy::Front,
        // What writes was refused before.
        Some(asked @ (Strategy::Canary | Strategy::BlueGreen)) => asked,
        Some(Strategy::Front) if !one_writer => Strategy::Front,
        _ => Strategy::Hold,
    };
    let how = match strategy {
        Strategy::Canary if standing == Standing::Other => {
            format!("none: {}; this once without a canary, since what runs does not stand behind the front yet", strategies::canary(spec))
        }
        Strategy::Canary => format!("none: {}; sessions still open {drain} s after the switch are cut", strategies::canary(spec)),
        Strategy::BlueGreen => format!(
            "none: all services of this strategy start anew on a network of their own, then change at once; sessions still open {drain} s after the switch are cut"
        ),
        Strategy::Front => format!("none: old and new run side by side; sessions still open {drain} s after the switch are cut"),
        _ => {
            let why = if asked_front { "it writes data, so `hold` instead of `front`: two copies never run. " } else { "" };
            format!(
                "{why}none: new connections wait up to {hold} s while old and new change places; sessions still open after {drain} s are cut"
            )
        }
    };
    let first = match standing {
        Standing::Other => "about 0.2 s once, while its port and name move to a new front; from then on ",
        Standing::Unwanted | Standing::Up | Standing::Down => "",
    };
    let past = match &spec.container_name {
        Some(name) => format!("; clients that call it {name} instead of by its service's name pass by the front and lose connections"),
        None => String::new(),
    };
    (strategy, format!("{first}{how}{past}"))
}

/// Whether nothing but the bounds of a service's front changes, which goes with its routes.
pub(super) fn rebounded(old: Option<&ServiceSpec>, new: &ServiceSpec) -> bool {
    old.is_some_and(|old| fronted(old) && fronted(new) && limits(old) != limits(new))
}

/// What a restart in place costs clients of a service behind a front that is up.
pub(super) fn restart(stack: &StackSpec, service: &ServiceName, observed: &Observed) -> Option<String> {
    let drain = fronting(stack, service)?.limits.drain_ms / 1000;
    let how = "new connections go to the other copies, or wait, while it restarts";
    let green = |s: &&ServiceSpec| s.active && s.settings.strategy == Some(Strategy::BlueGreen);
    // On their own network services of a colour call each other past their fronts.
    let met = stack.services.get(service).is_some_and(|s| green(&s)) && stack.services.values().filter(green).count() > 1;
    let siblings = if met { "; other blue_green services reach it directly and are refused meanwhile" } else { "" };
    let up = fronts(observed, service).first().is_some_and(|c| up(c));
    up.then(|| format!("none: {how}; sessions still open after {drain} s are cut{siblings}"))
}
