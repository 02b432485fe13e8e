//! What of a project becomes ours: its containers, and the networks and volumes that Compose made for it, as rows of the registry.

use super::{number, ours};
use crate::call::prepare::Desired;
use crate::call::{Call, CallError};
use crate::model::adopted::{AdoptedObject, ObjectKind};
use crate::model::ids::EngineName;
use crate::model::labels;
use crate::model::observed::ContainerDetail;
use crate::planner::Observed;
use std::collections::BTreeMap;

/// A label of the spec hash that equals no hash: the container differs from the files, so the next deploy replaces it.
const DIFFERS: &str = "differs";

/// Networks and volumes of the file that are there and that Compose made for this project.
pub(super) async fn of_project(call: &Call, desired: &Desired) -> Result<(Vec<String>, Vec<String>), CallError> {
    let engine = &call.house.engine;
    let (mut networks, mut volumes) = (vec![], vec![]);
    let project = desired.spec.name.as_str();
    let of_project = |l: &BTreeMap<String, String>| l.get(labels::COMPOSE_PROJECT).is_some_and(|p| p == project);
    let foreign = |l: &BTreeMap<String, String>| !l.contains_key(labels::INSTANCE);
    for network in desired.spec.networks.values().filter(|n| !n.external) {
        let Ok(name) = EngineName::new(network.name.as_str()) else { continue };
        if engine.network(&name).await?.is_some_and(|n| of_project(&n.labels) && foreign(&n.labels)) {
            networks.push(network.name.clone());
        }
    }
    for volume in desired.spec.volumes.values().filter(|v| !v.external) {
        let Ok(name) = EngineName::new(volume.name.as_str()) else { continue };
        if engine.volume(&name).await?.is_some_and(|v| of_project(&v.labels) && foreign(&v.labels)) {
            volumes.push(volume.name.clone());
        }
    }
    networks.sort();
    volumes.sort();
    Ok((networks, volumes))
}

/// The registry rows: for each object the labels it would carry had we made it.
pub(super) fn rows(
    call: &Call,
    release: u32,
    desired: &Desired,
    details: &[ContainerDetail],
    same: &BTreeMap<String, String>,
    networks: &[String],
    volumes: &[String],
) -> Vec<AdoptedObject> {
    let stack = &desired.spec.name;
    let base = || {
        BTreeMap::from([
            (labels::INSTANCE.to_owned(), call.house.store.instance().to_owned()),
            (labels::STACK.to_owned(), stack.to_string()),
        ])
    };
    let object = |kind, id: &str, labels| AdoptedObject { kind, id: id.to_owned(), stack: stack.clone(), labels };
    let containers = details.iter().filter(|c| !ours(call, c)).map(|c| {
        let mut own = base();
        own.extend([
            (labels::SERVICE.to_owned(), c.labels.get(labels::COMPOSE_SERVICE).cloned().unwrap_or_default()),
            (labels::NUMBER.to_owned(), number(c).to_string()),
            (labels::ROLE.to_owned(), labels::ROLE_SERVING.to_owned()),
            (labels::RELEASE.to_owned(), release.to_string()),
            (labels::SPEC.to_owned(), same.get(c.id.as_str()).cloned().unwrap_or_else(|| DIFFERS.to_owned())),
        ]);
        object(ObjectKind::Container, c.id.as_str(), own)
    });
    let networks = networks.iter().map(|n| object(ObjectKind::Network, n, base()));
    let volumes = volumes.iter().map(|v| object(ObjectKind::Volume, v, base()));
    containers.chain(networks).chain(volumes).collect()
}

/// The world as it will be seen once these objects are ours.
pub(super) fn observed(details: &[ContainerDetail], objects: &[AdoptedObject], networks: Vec<String>, volumes: Vec<String>) -> Observed {
    let dressed = details.iter().map(|c| {
        let mut c = c.clone();
        let own = objects.iter().find(|o| o.kind == ObjectKind::Container && o.id == c.id.as_str());
        c.labels.extend(own.into_iter().flat_map(|o| o.labels.clone()));
        c
    });
    Observed { containers: dressed.collect(), networks, volumes, ..Observed::default() }
}
