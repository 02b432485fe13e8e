//! What a finding is about, exactly: the part of the stack that must stay as it is for an operator's approval of the finding to still mean it.
//! A rule that is not listed here is about its whole service, or the whole stack: asking once too often is the safe mistake.

use crate::model::spec::{ServiceSpec, StackSpec};
use crate::model::verdict::Finding;
use serde_json::{Value, json};

/// The part of the stack a finding is about, beside its rule, place and judged value.
pub fn subject(spec: &StackSpec, finding: &Finding) -> Value {
    let path = finding.path.as_deref().unwrap_or_default();
    let service = finding.service.as_deref().and_then(|name| spec.services.iter().find(|(n, _)| n.as_str() == name)).map(|(_, s)| s);
    match service {
        Some(service) => of_service(spec, service, finding, path),
        None => of_stack(spec, finding),
    }
}

fn of_service(spec: &StackSpec, s: &ServiceSpec, finding: &Finding, path: &str) -> Value {
    match finding.rule.as_str() {
        // The judged value is all of it.
        "cap.review"
        | "cgroup.parent"
        | "runtime.review"
        | "replicas.quota"
        | "image.nodigest_prod"
        | "image.latest"
        | "user.root"
        | "mem.missing"
        | "limits.missing"
        | "pids.unlimited"
        | "restart.unbounded"
        | "health.missing"
        | "health.disabled"
        | "log.off"
        | "ns.pid.shared" => Value::Null,
        // What stands above it may be any service's.
        "bind.above" => {
            let mounts: Vec<_> = spec.services.iter().map(|(name, s)| (name, &s.mounts)).collect();
            json!([spec.volumes, mounts, s.read_only])
        }
        "bind.approval" => json!(s.mounts.iter().filter(|m| m.path == path).collect::<Vec<_>>()),
        "device.review" => json!([s.devices, s.device_cgroup_rules, s.device_requests]),
        "secopt.custom" => json!(s.security_opt),
        "sysctl.review" => json!(s.sysctls),
        "rt.cpu" => json!([s.other.get("cpu_rt_runtime"), s.other.get("cpu_rt_period")]),
        "port.privileged" | "port.datastore" | "port.all_ifaces" => json!(s.ports),
        "log.remote" => json!(s.logging),
        "build.ssh" | "build.arg_secret" => json!(s.build),
        "label.route_hijack" => match path.rsplit_once(".environment.") {
            Some((_, key)) => json!(s.environment.get(key)),
            None => json!(s.labels),
        },
        "label.injection" => json!(s.labels),
        "links.foreign" => json!(s.external_links),
        "hosts.metadata" | "hosts.gateway" => json!(s.extra_hosts),
        "net.l2" | "net.external_unknown" | "net.default_bridge" => json!([spec.networks, s.networks, s.network_mode]),
        "vol.remote_fs" | "vol.external_unknown" => json!([spec.volumes, s.mounts]),
        _ => json!(s),
    }
}

fn of_stack(spec: &StackSpec, finding: &Finding) -> Value {
    match finding.rule.as_str() {
        "port.quota" => Value::Null,
        "bind.approval" | "vol.remote_fs" | "vol.external_unknown" => {
            let mounts: Vec<_> = spec.services.iter().map(|(name, s)| (name, &s.mounts)).collect();
            json!([spec.volumes, mounts])
        }
        "net.l2" | "net.external_unknown" => json!(spec.networks),
        _ => json!(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{ServiceName, StackName};
    use crate::model::spec::{MountKind, MountSpec};
    use crate::model::verdict::Verdict;

    fn spec(read_only: bool, image: &str) -> StackSpec {
        let mount = MountSpec {
            source: Some("/srv/data".into()),
            read_only,
            ..MountSpec::new(MountKind::Bind, "/data", "services.web.volumes[0]")
        };
        let web = ServiceSpec { mounts: vec![mount], user: Some(image.into()), ..ServiceSpec::default() };
        StackSpec { services: [(ServiceName::new("web").unwrap(), web)].into(), ..StackSpec::new(StackName::new("shop").unwrap()) }
    }

    fn found(rule: &str) -> Finding {
        let path = Some("services.web.volumes[0]".into());
        Finding { rule: rule.into(), verdict: Verdict::Approval, service: Some("web".into()), path, because: "b".into() }
    }

    #[test]
    fn a_bind_that_becomes_writable_is_another_subject_and_another_image_is_not() {
        let of = |read_only, image, rule| subject(&spec(read_only, image), &found(rule));
        assert_eq!(of(true, "a", "bind.approval"), of(true, "b", "bind.approval"));
        assert_ne!(of(true, "a", "bind.approval"), of(false, "a", "bind.approval"));
        assert_ne!(of(true, "a", "some.rule"), of(true, "b", "some.rule"), "a rule that is not listed is about all of the service");
    }
}
