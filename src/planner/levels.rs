//! Dependency levels: which services may start together. Pure.

use super::PlanError;
use crate::model::ids::ServiceName;
use crate::model::spec::StackSpec;
use std::collections::{BTreeMap, BTreeSet};

/// Active services in levels: every dependency of a service lies in an earlier level.
///
/// # Errors
/// `Cycle` names the services of a ring.
pub fn levels(spec: &StackSpec) -> Result<Vec<Vec<ServiceName>>, PlanError> {
    let active: BTreeMap<_, _> = spec.services.iter().filter(|(_, s)| s.active).collect();
    let mut placed: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut out = Vec::new();
    while placed.len() < active.len() {
        let level: Vec<&ServiceName> = active
            .iter()
            .filter(|(name, service)| {
                !placed.contains(**name) && service.depends_on.keys().all(|d| placed.contains(d) || !active.contains_key(d))
            })
            .map(|(name, _)| *name)
            .collect();
        if level.is_empty() {
            let ring: Vec<&str> = active.keys().filter(|n| !placed.contains(**n)).map(|n| n.as_str()).collect();
            return Err(PlanError::Cycle(ring.join(" -> ")));
        }
        placed.extend(level.iter().copied());
        out.push(level.into_iter().cloned().collect());
    }
    Ok(out)
}
