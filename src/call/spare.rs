//! What the loop leaves alone when it acts on a service by itself: containers a person stopped, and, where the file says how many copies must stay up
//! (`heal_instances`) and so many are well, the well ones. Deliberately absent: any bound on what a person or another agent asks for.

use super::diagnose;
use super::hands::Hands;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::release::Release;
use crate::planner::{self, Observed, Want};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;

/// What is left alone.
#[derive(Debug, Default)]
pub(super) struct Spared {
    /// Containers that a restart passes over.
    pub(super) left: BTreeSet<EngineName>,
    /// What is done instead of what was asked for.
    pub(super) instead: Option<Want>,
}

/// What the loop leaves alone of what it asks for.
///
/// # Errors
/// The store's.
pub(super) async fn of(
    store: &Store,
    release: &Release,
    observed: &Observed,
    want: Option<&Want>,
    now: DateTime<Utc>,
) -> StoreResult<Spared> {
    match want {
        Some(Want::Restart { service }) => {
            let mut left = Hands::read(store).await?.of(&release.stack).stopped;
            if let Some(service) = service.as_ref().filter(|s| enough_up(release, observed, s)) {
                left.extend(diagnose::well_beside_ill(service, &release.spec.services[service], observed, &left, now));
            }
            Ok(Spared { left, instead: None })
        }
        Some(Want::Recreate { service }) => {
            let by_hand = Hands::read(store).await?.of(&release.stack).stopped;
            // Made anew, what a person stopped would run again.
            let stopped = planner::live(observed, service).iter().any(|c| by_hand.contains(&c.id));
            let instead = (stopped || enough_up(release, observed, service)).then(|| Want::Refill { service: service.clone() });
            Ok(Spared { instead, ..Spared::default() })
        }
        _ => Ok(Spared::default()),
    }
}

/// Whether so many copies of a service are up as its file asks the loop to leave alone; a service whose file asks for none has never enough.
pub fn enough_up(release: &Release, observed: &Observed, service: &ServiceName) -> bool {
    let Some(spec) = release.spec.services.get(service) else { return false };
    let Some(least) = spec.settings.heal_instances else { return false };
    diagnose::serving(service, spec, observed) >= least as usize
}
