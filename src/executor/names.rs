//! Names and labels of what an operation makes. Names are derived from (operation, service, number), so that a late duplicate of a
//! request collides with the first instead of making a second container.

use crate::model::ids::{EngineName, OperationId, ServiceName, StackName};
use crate::model::labels;
use crate::model::spec::ServiceSpec;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Last twelve characters of an operation id: its random part.
fn tail(op: &OperationId) -> &str {
    let s = op.as_str();
    &s[s.len().saturating_sub(12)..]
}

fn name(text: String) -> EngineName {
    EngineName::new(text).expect("made of validated names and at most 63 + 63 characters")
}

/// Cut so that the parts of a name fit the engine's limit.
fn cut(service: &ServiceName) -> &str {
    let s = service.as_str();
    &s[..s.len().min(100)]
}

/// Name a serving container is created under, before it takes its canonical name.
pub fn working(op: &OperationId, service: &ServiceName, number: u32) -> EngineName {
    name(format!("dw-{}-{}-{number}", tail(op), cut(service)))
}
/// Name of a canary.
pub fn canary(op: &OperationId, service: &ServiceName) -> EngineName {
    name(format!("dw-{}-{}-canary", tail(op), cut(service)))
}
/// Name of the one-off container of a hook.
pub fn hook(op: &OperationId, service: &ServiceName, number: usize) -> EngineName {
    name(format!("dw-{}-{}-{number}-hook", tail(op), cut(service)))
}
/// Name a replaced container is moved to until it is removed.
pub fn retired(op: &OperationId, service: &ServiceName, number: u32) -> EngineName {
    name(format!("dw-{}-{}-{number}-old", tail(op), cut(service)))
}
/// Longest name that is one label of DNS less what surrounds the service in [`backend`].
const IN_LABEL: usize = 40;

/// Name on the stack's networks under which a front reaches a container. A label of DNS, so a long service name is cut and told apart by a hash.
pub fn backend(op: &OperationId, service: &ServiceName, number: u32) -> EngineName {
    let whole = service.as_str();
    let part = match whole.len() {
        0..=IN_LABEL => whole.to_owned(),
        _ => {
            let hash: String = Sha256::digest(whole).iter().take(4).map(|b| format!("{b:02x}")).collect();
            format!("{}-{hash}", &whole[..IN_LABEL - 9])
        }
    };
    name(format!("dw-{}-{part}-{number}", tail(op)))
}
/// Name a front is created under.
pub fn front_working(op: &OperationId, service: &ServiceName) -> EngineName {
    name(format!("dw-{}-{}-front", tail(op), cut(service)))
}
/// Name a front carries for people.
pub fn front(stack: &StackName, service: &ServiceName) -> EngineName {
    name(format!("{stack}-{}-front", cut(service)))
}
/// Whether a name is one of [`retired`]: the container stays, stopped, until its release has passed its watch window.
pub fn is_retired(name: &str) -> bool {
    let Some((tail, number)) = name.strip_prefix("dw-").and_then(|n| n.strip_suffix("-old")).and_then(|n| n.rsplit_once('-')) else {
        return false;
    };
    let op = tail.split('-').next().unwrap_or_default();
    op.len() == 12 && op.bytes().all(|b| b.is_ascii_alphanumeric()) && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}
/// Name a serving container carries for people: `container_name`, or Compose's `stack-service-number`.
pub fn canonical(stack: &StackName, service: &ServiceName, spec: &ServiceSpec, number: u32) -> EngineName {
    let fixed = spec.container_name.as_deref().and_then(|n| EngineName::new(n).ok());
    fixed.unwrap_or_else(|| name(format!("{stack}-{}-{number}", cut(service))))
}
/// Beginning of the names of [`colour`] networks of a stack.
pub fn colours(stack: &StackName) -> String {
    // The engine asks a container's networks for a name in the order of their names: the colour answers before the stack's own networks.
    format!("0-{stack}-")
}
/// Network of the services that a blue-green release starts together.
pub fn colour(stack: &StackName, op: &OperationId) -> EngineName {
    name(format!("{}{}", colours(stack), tail(op)))
}
/// Fixed name of the container whose existence claims a stack on an engine.
pub fn claim(stack: &StackName) -> EngineName {
    name(format!("dockwarden-claim-{stack}"))
}

/// Labels every object of a stack carries.
pub fn base(instance: &str, stack: &StackName, op: &OperationId) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::INSTANCE.into(), instance.into()),
        (labels::STACK.into(), stack.to_string()),
        (labels::OPERATION.into(), op.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_one_label_of_dns_and_no_two_services_share_one() {
        let op = OperationId::new("op-01m7xz3tmrv2w2p7fq4b52vsxv").expect("valid");
        let service = |s: String| ServiceName::new(s).expect("valid");
        let (a, b) = (service("x".repeat(100) + "a"), service("x".repeat(100) + "b"));
        assert_ne!(backend(&op, &a, 1), backend(&op, &b, 1));
        assert!(backend(&op, &a, 1000).as_str().len() <= 63);
        assert_eq!(backend(&op, &service("web".into()), 2).as_str(), format!("dw-{}-web-2", tail(&op)));
    }

    #[test]
    fn a_retired_name_is_known_again_and_nothing_else_is() {
        let op = OperationId::new("op-01m7xz3tmrv2w2p7fq4b52vsxv").expect("valid");
        let service = ServiceName::new("my-api").expect("valid");
        let stack = StackName::new("dw-shop").expect("valid");
        assert!(is_retired(retired(&op, &service, 2).as_str()));
        let spec = ServiceSpec::default();
        let fronts = [front_working(&op, &service), front(&stack, &service)];
        for other in [working(&op, &service, 2), canary(&op, &service), canonical(&stack, &service, &spec, 1), claim(&stack)]
            .into_iter()
            .chain(fronts)
        {
            assert!(!is_retired(other.as_str()), "{other}");
        }
        assert!(!is_retired("dw-old") && !is_retired("dw-a-1-old") && !is_retired("shop-api-1-old"));
    }
}
