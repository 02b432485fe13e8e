//! Which services of a plan change data in a way the release before may not be able to read. Nothing automatic goes back over such a change. Pure.

use crate::model::ids::{ImageRef, ServiceName};
use crate::model::plan::{Action, Change, Strategy};
use crate::model::release::Release;
use crate::model::spec::{MountKind, ServiceSpec, StackSpec};
use std::collections::BTreeMap;

/// Services whose new containers migrate data, with the reason. Empty on a first deploy: there is nothing to go back to.
/// `makes_way` tells which removed service one of them succeeds.
pub fn reasons(
    desired: &StackSpec,
    current: Option<&Release>,
    changes: &[Change],
    makes_way: &BTreeMap<ServiceName, Vec<ServiceName>>,
) -> BTreeMap<ServiceName, String> {
    let Some(current) = current else { return BTreeMap::new() };
    let replaced = changes.iter().filter(|c| matches!(c.action, Action::Create | Action::Update));
    replaced.filter_map(|c| Some((c.service.clone(), reason(desired, current, c, makes_way)?))).collect()
}

fn reason(desired: &StackSpec, current: &Release, change: &Change, makes_way: &BTreeMap<ServiceName, Vec<ServiceName>>) -> Option<String> {
    let spec = desired.services.get(&change.service)?;
    match (spec.settings.migrates, desired.settings.migrates) {
        (Some(true), _) => return Some("its x-dockwarden says that it migrates".into()),
        (Some(false), _) | (None, Some(false)) => return None,
        (None, Some(true)) => return Some("the stack's x-dockwarden says that it migrates".into()),
        (None, None) => {}
    }
    if change.strategy == Strategy::RunOnce {
        let data = spec.depends_on.keys().find(|d| desired.services.get(*d).is_some_and(writes_volume))?;
        return Some(format!("it runs once beside {data}, which keeps data"));
    }
    let renamed =
        || makes_way.iter().filter(|(_, heirs)| heirs.contains(&change.service)).find_map(|(gone, _)| current.spec.services.get(gone));
    let before = current.spec.services.get(&change.service).or_else(renamed)?;
    let (old, new) = (before.image.as_ref()?, spec.image.as_ref()?);
    (writes_volume(spec) && version(old) != version(new))
        .then(|| format!("it writes a volume and its image goes from {} to {}", version(old), version(new)))
}

/// Whether it keeps data: a writable volume or bind mount.
fn writes_volume(spec: &ServiceSpec) -> bool {
    spec.mounts.iter().any(|m| !m.read_only && matches!(m.kind, MountKind::Volume | MountKind::Bind | MountKind::Cluster))
}

/// Tag of a reference, else its digest, else `latest`: what its maker calls the version.
fn version(image: &ImageRef) -> &str {
    let (name, digest) = image.as_str().split_once('@').map_or((image.as_str(), None), |(n, d)| (n, Some(d)));
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => digest.unwrap_or("latest"),
    }
}
