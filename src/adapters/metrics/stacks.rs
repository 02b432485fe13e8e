//! Numbers of what runs: the containers of each stack by how they are, the release that serves, incidents that are open. Taken from the engine and the store
//! when they are asked for. Deliberately absent: containers that are not ours, and more stacks than a scraper can be asked to keep.

use crate::call::{House, observe};
use crate::model::labels;
use crate::model::observed::{ContainerSummary, HealthState, RunState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;

/// Stacks with rows of their own.
const MOST: usize = 200;
/// All that a container can be, so that a state nobody is in is told as 0 and not left out.
const STATES: [&str; 5] = ["healthy", "running", "starting", "unhealthy", "down"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StackLabels {
    stack: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerLabels {
    stack: String,
    state: &'static str,
}

/// A stack as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    release: u32,
    stopped: bool,
    incidents: i64,
}

/// The families.
#[derive(Debug)]
pub struct Stacks {
    engine: Gauge,
    containers: Family<ContainerLabels, Gauge>,
    release: Family<StackLabels, Gauge>,
    stopped: Family<StackLabels, Gauge>,
    incidents: Family<StackLabels, Gauge>,
}

impl Stacks {
    /// Registers every family.
    pub fn new(registry: &mut Registry) -> Self {
        let all = Self {
            engine: Gauge::default(),
            containers: Family::default(),
            release: Family::default(),
            stopped: Family::default(),
            incidents: Family::default(),
        };
        registry.register("engine_up", "Whether the engine answers", all.engine.clone());
        registry.register("stack_containers", "Containers of a stack by how they are", all.containers.clone());
        registry.register("stack_release", "Number of the release that serves; 0 = none", all.release.clone());
        registry.register("stack_stopped", "Whether a stack was stopped on purpose", all.stopped.clone());
        registry.register("stack_incidents_open", "Incidents of a stack that are not over", all.incidents.clone());
        all
    }

    /// Takes everything over as it stands now.
    pub async fn refresh(&self, house: &House) {
        let found = match observe::shown(house, None).await {
            Ok(found) => Some(found),
            Err(e) => {
                tracing::warn!(error = %e.message, "the containers could not be counted");
                None
            }
        };
        match (house.store.stacks().await, house.store.open_incidents_by_stack().await) {
            (Ok(records), Ok(open)) => {
                let standing = records.into_iter().map(|r| {
                    let incidents = open.get(r.name.as_str()).copied().unwrap_or_default();
                    (r.name.to_string(), Standing { release: r.current.unwrap_or_default(), stopped: r.stopped, incidents })
                });
                self.set(&standing.collect(), found.as_deref());
            }
            (Err(e), _) | (_, Err(e)) => tracing::error!(error = %e, "the stacks could not be counted"),
        }
    }

    /// A row of each family.
    #[cfg(test)]
    pub(super) fn sample(&self) {
        self.set(&BTreeMap::from([("shop".to_owned(), Standing { release: 1, stopped: false, incidents: 0 })]), Some(&[]));
    }

    /// Without containers the engine did not answer: how many there are is then not told at all.
    fn set(&self, stacks: &BTreeMap<String, Standing>, found: Option<&[ContainerSummary]>) {
        self.engine.set(i64::from(found.is_some()));
        self.containers.clear();
        for family in [&self.release, &self.stopped, &self.incidents] {
            family.clear();
        }
        for (stack, standing) in stacks.iter().take(MOST) {
            let labels = StackLabels { stack: stack.clone() };
            self.release.get_or_create(&labels).set(i64::from(standing.release));
            self.stopped.get_or_create(&labels).set(i64::from(standing.stopped));
            self.incidents.get_or_create(&labels).set(standing.incidents);
            let Some(found) = found else { continue };
            for state in STATES {
                self.containers.get_or_create(&ContainerLabels { stack: stack.clone(), state }).set(0);
            }
            for c in found.iter().filter(|c| c.labels.get(labels::STACK) == Some(stack)) {
                self.containers.get_or_create(&ContainerLabels { stack: stack.clone(), state: state(c) }).inc();
            }
        }
    }
}

fn state(c: &ContainerSummary) -> &'static str {
    match (c.state, c.health) {
        (RunState::Running, HealthState::Healthy) => "healthy",
        (RunState::Running, HealthState::Starting) => "starting",
        (RunState::Running, HealthState::Unhealthy) => "unhealthy",
        (RunState::Running, HealthState::None) => "running",
        _ => "down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::EngineName;
    use prometheus_client::encoding::text::encode;

    fn container(stack: &str, state: RunState, health: HealthState) -> ContainerSummary {
        ContainerSummary {
            id: EngineName::new("c".repeat(64)).expect("an id"),
            name: "x".into(),
            image: String::new(),
            image_id: String::new(),
            state,
            health,
            status: String::new(),
            labels: [(labels::STACK.to_owned(), stack.to_owned())].into(),
            ports: vec![],
            created: chrono::DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_runs_is_told_as_it_stands_and_not_at_all_while_the_engine_is_away() {
        let mut registry = Registry::with_prefix("dockwarden");
        let stacks = Stacks::new(&mut registry);
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("written");
            text
        };
        let standing = |release, stopped, incidents| Standing { release, stopped, incidents };
        let known = BTreeMap::from([("shop".to_owned(), standing(7, false, 2)), ("wiki".to_owned(), standing(0, true, 0))]);
        let found = [
            container("shop", RunState::Running, HealthState::Healthy),
            container("shop", RunState::Running, HealthState::Unhealthy),
            container("shop", RunState::Exited, HealthState::None),
            container("gone", RunState::Running, HealthState::None),
        ];
        for _ in 0..2 {
            stacks.set(&known, Some(&found));
        }
        let said = text();
        for line in [
            "dockwarden_engine_up 1",
            "dockwarden_stack_containers{stack=\"shop\",state=\"healthy\"} 1",
            "dockwarden_stack_containers{stack=\"shop\",state=\"unhealthy\"} 1",
            "dockwarden_stack_containers{stack=\"shop\",state=\"down\"} 1",
            "dockwarden_stack_containers{stack=\"shop\",state=\"starting\"} 0",
            "dockwarden_stack_release{stack=\"shop\"} 7",
            "dockwarden_stack_stopped{stack=\"wiki\"} 1",
            "dockwarden_stack_incidents_open{stack=\"shop\"} 2",
        ] {
            assert!(said.contains(line), "{line} is not in\n{said}");
        }
        assert!(!said.contains("gone"), "{said}");
        stacks.set(&known, None);
        let said = text();
        assert!(said.contains("dockwarden_engine_up 0") && !said.contains("stack_containers{"), "{said}");
    }
}
