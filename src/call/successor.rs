//! Containers by which somebody's own `docker compose up` replaced containers of a stack of ours: with Compose's labels for the project and service, and
//! not ours. They are left alone: nothing is made beside them, until an operator adopts the stack again or the service ends there. Deliberately absent:
//! taking them over (`adopt` does).

use super::error::ErrorCode;
use super::{CallError, House, adopt, observe};
use crate::model::ids::{ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::ContainerSummary;
use crate::model::spec::StackSpec;
use crate::redact;
use std::collections::BTreeMap;

/// One for each service that has any, in whatever state: Compose makes it before it removes ours, and starts it after.
///
/// # Errors
/// The engine's.
pub async fn of(house: &House, stack: &StackName) -> Result<BTreeMap<ServiceName, ContainerSummary>, CallError> {
    let found = observe::unmanaged(house, Some(stack)).await?;
    let service = |c: &ContainerSummary| c.labels.get(labels::COMPOSE_SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
    Ok(found.into_iter().filter(|c| !adopt::one_off(c)).filter_map(|c| Some((service(&c)?, c))).collect())
}

/// Refuses to make containers of a service beside Compose's.
///
/// # Errors
/// `Conflict` that names one and the way on; the engine's.
pub async fn refuse(house: &House, stack: &StackName, spec: &StackSpec, only: Option<&ServiceName>) -> Result<(), CallError> {
    let wanted = |s: &ServiceName| spec.services.get(s).is_some_and(|s| s.active) && only.is_none_or(|o| o == s);
    let Some((service, c)) = of(house, stack).await?.into_iter().find(|(s, _)| wanted(s)) else { return Ok(()) };
    let message =
        format!("service {service} of {stack} is run by Compose since somebody replaced our container: {}", redact::line(&c.name, 80));
    let hint = format!("an operator takes it over with `dockwarden adopt {stack}` (nothing is restarted), or removes it");
    Err(CallError::new(ErrorCode::Conflict, message, hint).field("stack"))
}
