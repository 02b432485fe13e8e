//! Which volumes the containers of a service have beside its own mounts: those its image declares, which the engine makes, and those that are taken over
//! from the container before. Files beneath them are mounted instead of copied. Reads only.

use crate::call::{CallError, House};
use crate::executor::render;
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::labels;
use crate::model::observed::ImageIdentity;
use crate::model::plan::Carried;
use crate::model::spec::mounts::same_place;
use crate::model::spec::{ServiceSpec, StackSpec};
use crate::planner::Observed;
use std::collections::{BTreeMap, BTreeSet};

/// Services that want configs or secrets: for the others it makes no difference.
pub(super) fn with_files(spec: &StackSpec) -> impl Iterator<Item = (&ServiceName, &ServiceSpec)> {
    spec.services.iter().filter(|(_, s)| !(s.configs.is_empty() && s.secrets.is_empty()))
}

/// What the containers of these services have, and what their next ones get. An image that is still to be pulled tells nothing: its first containers get
/// copies, and the next plan sees what they have.
///
/// # Errors
/// The engine's.
pub(in crate::call) async fn of(
    house: &House,
    (spec, before): (&StackSpec, Option<&StackSpec>),
    images: &BTreeMap<ServiceName, ImageIdentity>,
    observed: &Observed,
) -> Result<Carried, CallError> {
    let volumes = before.into_iter().chain([spec]).flat_map(|s| s.volumes.values());
    let declared: BTreeSet<String> = volumes.map(|v| v.name.clone()).collect();
    let mut all = Carried::new();
    for (service, wanted) in with_files(spec) {
        let mine = observed.containers.iter().filter(|c| c.labels.get(labels::SERVICE).is_some_and(|s| s == service.as_str()));
        let there = mine.flat_map(|c| &c.mounts).filter(|m| render::carries(wanted, &declared, m)).map(|m| m.target.clone());
        let places = all.entry(service.clone()).or_default();
        places.extend(there);
        if let Some(id) = images.get(service).and_then(|i| ImageRef::new(i.id.as_deref()?).ok()) {
            places.extend(house.engine.image(&id).await?.into_iter().flat_map(|i| i.volumes));
        }
        // The service's own mounts are in its text.
        places.retain(|place| !wanted.mounts.iter().any(|m| same_place(&m.target, place)));
    }
    all.retain(|_, places| !places.is_empty());
    Ok(all)
}
