//! Whom the loop treats: what ails by itself, and not since what it depends on does. A dependency that nobody may heal, or that was given up, shields only those
//! that still run and say what it says.

use super::{Healer, Look, LookError};
use crate::call::diagnose::{self, Ailment};
use crate::model::ids::ServiceName;
use crate::model::incident::Cause;
use crate::model::spec::{HealMode, StackSpec};
use std::collections::BTreeSet;

impl Healer {
    /// The ailing services to be treated now.
    pub(super) async fn patients(&self, look: &Look<'_>, ailing: &[Ailment]) -> Result<Vec<Ailment>, LookError> {
        let spec = &look.release.spec;
        let mut left = BTreeSet::new();
        for a in ailing {
            let mode = spec.services.get(&a.service).and_then(|s| s.settings.heal).or(spec.settings.heal);
            if mode == Some(HealMode::Off) || self.course(look, &a.service).await?.quarantined.is_some() {
                left.insert(a.service.clone());
            }
        }
        Ok(patients(spec, ailing, &left))
    }
}

/// `left`: what is not healed any more. Pure.
fn patients(spec: &StackSpec, ailing: &[Ailment], left: &BTreeSet<ServiceName>) -> Vec<Ailment> {
    let roots = diagnose::roots(spec, ailing);
    let treated: Vec<Ailment> = ailing.iter().filter(|a| !left.contains(&a.service)).cloned().collect();
    let ended = diagnose::roots(spec, &treated).into_iter().filter(|a| a.cause != Cause::Unhealthy && !roots.contains(a));
    let ended: Vec<Ailment> = ended.collect();
    roots.into_iter().chain(ended).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_heals_any_more_keeps_none_that_ended_from_being_healed() {
        let waits = |on: &str| serde_json::json!({on: {"condition": "service_started", "required": true, "restart": false}});
        let none = serde_json::json!({});
        let services = serde_json::json!({
            "db": {"active": true, "replicas": 1},
            "web": {"active": true, "replicas": 1, "depends_on": waits("db")},
            "api": {"active": true, "replicas": 1, "depends_on": waits("db")},
            "top": {"active": true, "replicas": 1, "depends_on": waits("web")},
        });
        let spec: StackSpec = serde_json::from_value(serde_json::json!({
            "name": "shop", "services": services, "networks": none, "volumes": none, "configs": none, "secrets": none}))
        .expect("a stack");
        let of = |service: &str, cause| Ailment {
            service: ServiceName::new(service).expect("valid"),
            container: None,
            cause,
            reason: String::new(),
            error: None,
            looping: false,
        };
        let ailing = [of("db", Cause::Unhealthy), of("web", Cause::Crashed), of("api", Cause::Unhealthy), of("top", Cause::Crashed)];
        let told = |left: &[&str]| {
            let left = left.iter().map(|s| ServiceName::new(*s).expect("valid")).collect();
            patients(&spec, &ailing, &left).iter().map(|a| a.service.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), ["db"], "the root first");
        assert_eq!(told(&["db"]), ["db", "web"], "api says what db says, top waits for web");
        assert_eq!(told(&["db", "web"]), ["db", "top"]);
    }
}
