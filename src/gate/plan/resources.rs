//! What a service may use of the host: memory, CPU, processes, copies, ports in all.

use super::{At, Judge};
use crate::model::spec::Restart;

pub(super) fn stack(j: &mut Judge<'_>) {
    let published: usize = j.spec.services.values().map(|s| s.ports.len()).sum();
    let most = j.policy.quotas.max_published_ports;
    if published > most as usize {
        j.hit("port.quota", None, "services", &published.to_string(), format!("{published} published ports, the quota is {most}"));
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let (s, r) = (at.service, &at.service.resources);
    // A provider runs no container that could be limited.
    if s.other.contains_key("provider") {
        return;
    }
    let memory = r.memory.is_some_and(|m| m > 0);
    let cpu = r.nano_cpus.is_some_and(|c| c > 0) || r.cpu_quota.is_some_and(|q| q > 0);
    let pids = r.pids.is_some_and(|p| p > 0);
    if !memory {
        j.at("mem.missing", at, "mem_limit", "", "without a memory limit one leak takes the host down");
    }
    let missing = match (memory, cpu) {
        (true, true) => None,
        (false, true) => Some("no memory limit"),
        (true, false) => Some("no CPU limit"),
        (false, false) => Some("neither a memory nor a CPU limit"),
    };
    if let Some(missing) = missing {
        j.at("limits.missing", at, "deploy.resources.limits", "", format!("{missing}; set deploy.resources.limits"));
    }
    if r.pids.is_some_and(|p| p <= 0) {
        j.at("pids.unlimited", at, "pids_limit", "-1", "without a limit of processes a fork bomb takes the host down");
    }
    if s.restart == Restart::Always && !memory && !cpu && !pids {
        j.at("restart.unbounded", at, "restart", "always", "restarted for ever without any limit");
    }
    let most = j.policy.quotas.max_replicas;
    if s.replicas > most {
        j.at("replicas.quota", at, "deploy.replicas", &s.replicas.to_string(), format!("{} containers, the quota is {most}", s.replicas));
    }
    for key in ["cpu_rt_runtime", "cpu_rt_period"] {
        let set = s.other.get(key).is_some_and(|v| !v.is_null() && v.as_i64() != Some(0) && v.as_str() != Some("0"));
        if set {
            j.at("rt.cpu", at, key, key, "real-time scheduling can keep everything else from running");
        }
    }
}
