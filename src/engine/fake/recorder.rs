//! What the fake engine notes for tests: broken invariants, who serves a service, and events to whoever listens.
//! It never refuses anything: a broken invariant is recorded, not prevented.

use super::world::{Container, World, matches};
use crate::model::ids::EngineName;
use crate::model::labels;
use crate::model::observed::{EngineEvent, PublishedPort};

const STACK: &str = "dockwarden.stack";
const SERVICE: &str = "dockwarden.service";

impl World {
    /// Notes an event and hands it to the listeners whose labels it carries.
    pub fn emit(&mut self, id: &EngineName, action: &str) {
        let at = self.now();
        let Some(labels) = self.containers.get(id).map(|c| c.spec.labels.clone()) else { return };
        let event = EngineEvent { action: action.to_owned(), container: id.clone(), labels, at };
        self.listeners.retain(|(filter, to)| !to.is_closed() && (!matches(&event.labels, filter) || to.send(Ok(event.clone())).is_ok()));
        self.history.push(event);
    }

    /// Looks at a container that was just started, beside all others that are up.
    pub fn check_invariants(&mut self, id: &EngineName) {
        let Some(new) = self.containers.get(id) else { return };
        let mut found = Vec::new();
        for other in self.containers.values().filter(|c| c.is_up() && c.id != *id) {
            if same_service(new, other) {
                found.extend(shared_writable(new, other).map(|what| format!("two writers: {} and {} share {what}", other.name, new.name)));
            }
            for p in &new.bound {
                if other.bound.iter().any(|q| overlap(p, q)) {
                    found.push(format!("two holders: {} and {} hold host port {}/{}", other.name, new.name, p.host_port, p.protocol));
                }
            }
        }
        self.violations.extend(found);
    }

    /// Running containers of `stack` that hold the alias `service`.
    pub fn serving(&self, stack: &str, service: &str) -> Vec<String> {
        // On the network of a colour its services know each other past their fronts.
        let own = |network: &String| {
            self.networks
                .get(network)
                .is_some_and(|n| n.labels.get(crate::model::labels::ROLE).map(String::as_str) == Some(crate::model::labels::ROLE_COLOUR))
        };
        let holds = |c: &&Container| {
            c.is_up()
                && c.spec.labels.get(STACK).is_some_and(|s| s == stack)
                && c.networks.iter().any(|(n, e)| !own(n) && e.aliases.iter().any(|a| a == service))
        };
        let mut names: Vec<String> = self.containers.values().filter(holds).map(|c| c.name.clone()).collect();
        names.sort();
        names
    }
}

fn same_service(a: &Container, b: &Container) -> bool {
    // One that Compose made carries only Compose's labels, a canary only ours.
    let either = |c: &Container, ours: &str, composes: &str| c.spec.labels.get(ours).or_else(|| c.spec.labels.get(composes)).cloned();
    let of = |c: &Container| Some((either(c, STACK, labels::COMPOSE_PROJECT)?, either(c, SERVICE, labels::COMPOSE_SERVICE)?));
    of(a).is_some() && of(a) == of(b)
}

/// Volumes and bind sources both may write.
fn shared_writable<'a>(a: &'a Container, b: &'a Container) -> impl Iterator<Item = String> + 'a {
    a.mounts.iter().filter(|m| m.writable && m.kind != "tmpfs").filter_map(|m| {
        let same = b.mounts.iter().any(|o| o.writable && o.kind == m.kind && o.source == m.source);
        same.then(|| format!("{} {}", m.kind, m.name.as_deref().unwrap_or(&m.source)))
    })
}

/// Whether two bindings would hold the same port of the host.
pub(super) fn overlap(a: &PublishedPort, b: &PublishedPort) -> bool {
    let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    a.host_port != 0
        && a.host_port == b.host_port
        && a.protocol == b.protocol
        && (a.host_ip == b.host_ip || any(&a.host_ip) || any(&b.host_ip))
}
