//! The world a plan is made against, as one value: another value, another world, and the plan is stale. Pure.

use super::{Observed, live};
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::release::Release;
use serde_json::json;
use std::collections::BTreeSet;

/// What a plan is made against: release, containers by service with their hash and image, networks, volumes. Never ids, health or times, so that
/// healing does not make a plan stale; nor what was replaced and only waits for the end of a watch window.
pub fn fingerprint(current: Option<&Release>, observed: &Observed, digest: &dyn Fn(&[u8]) -> String) -> String {
    let up = |c: &&ContainerDetail| matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused);
    let services: BTreeSet<&String> = observed.containers.iter().filter_map(|c| c.labels.get(labels::SERVICE)).collect();
    let stand = |service: ServiceName| {
        let mut live = live(observed, &service);
        match current.and_then(|r| r.spec.services.get(&service)) {
            Some(spec) => {
                live.sort_by_key(|c| !up(c));
                live.truncate(spec.replicas as usize);
            }
            None => live.retain(up),
        }
        live
    };
    let mut containers: Vec<_> = services
        .into_iter()
        .filter_map(|s| ServiceName::new(s.as_str()).ok())
        .flat_map(stand)
        .map(|c| (c.labels.get(labels::SERVICE), c.labels.get(labels::NUMBER), c.labels.get(labels::SPEC), &c.image_id))
        .collect();
    containers.sort();
    let (mut networks, mut volumes) = (observed.networks.clone(), observed.volumes.clone());
    networks.sort();
    volumes.sort();
    let whole = json!({"release": current.map(|r| r.number), "containers": containers, "networks": networks, "volumes": volumes});
    let mut print = digest(whole.to_string().as_bytes());
    print.truncate(32);
    print
}
