//! Whether what a stack binds is there, and can be seen from where the supervisor runs. Deliberately absent: whether it may be bound (the gate's).

use super::error::ErrorCode;
use super::{Call, CallError};
use crate::gate;
use crate::model::spec::StackSpec;
use std::path::PathBuf;

/// Refuses a plan whose bind mounts have no source.
pub(super) fn exist(call: &Call, spec: &StackSpec, facts: &gate::plan::PlanFacts) -> Result<(), CallError> {
    let active = spec.services.iter().filter(|(_, s)| s.active);
    let binds =
        active.flat_map(|(name, s)| s.mounts.iter().map(move |m| (name, m))).filter(|(_, m)| m.kind == crate::model::spec::MountKind::Bind);
    for (service, mount) in binds {
        let Some(source) = &mount.source else { continue };
        let at = |error: CallError| Err(error.field(mount.path.clone()));
        match facts.resolved.get(source) {
            Some(fact) if fact.exists => {}
            // Outside of the allowed roots the gate's finding says more than a missing path would, and tells nothing of the host.
            _ if !in_sight(call, source, facts) => {}
            None => {
                let dir = PathBuf::from(source);
                let root = dir.parent().unwrap_or(&dir).display().to_string();
                let message = format!("the supervisor's container cannot see {source}, bound by service {service}");
                return at(CallError::new(ErrorCode::Preflight, message, format!("add it to the supervisor's mounts: - {root}:{root}:ro")));
            }
            Some(_) => {
                let message = format!("{source}, bound by service {service}, does not exist on the host");
                return at(CallError::new(
                    ErrorCode::Preflight,
                    message,
                    "create it first, or use a named volume: a missing path is never created silently",
                ));
            }
        }
    }
    Ok(())
}

fn in_sight(call: &Call, source: &str, facts: &gate::plan::PlanFacts) -> bool {
    let policy = &call.rulebook.policy;
    let roots = policy.bind_roots_allow.iter().chain(&policy.bind_roots_approval).map(String::as_str).chain(facts.project_dir.as_deref());
    roots.into_iter().any(|root| gate::plan::is_below(source, root))
}
