//! Replicas, limits, restart policy: `deploy` and the older keys beside it. Where both are given and differ, it is an error, as in compose.

use super::Report;
use super::reader::Reader;
use super::units;
use super::value::Value;
use crate::model::spec::{Resources, Restart, ServiceSpec};

/// Reads the resource keys of a service and its `deploy` section into the spec.
pub(super) fn read(r: &mut Reader, spec: &mut ServiceSpec, report: &mut Report) {
    let mut res = Resources {
        nano_cpus: r.parsed("cpus", report, units::nano_cpus).filter(|v| *v > 0),
        memory: r.parsed("mem_limit", report, units::bytes).filter(|v| *v > 0),
        memory_reservation: r.parsed("mem_reservation", report, units::bytes).filter(|v| *v > 0),
        memswap: r.parsed("memswap_limit", report, |t| if t.trim() == "-1" { Ok(-1) } else { units::bytes(t).map(|v| v as i64) }),
        swappiness: r.int("mem_swappiness", report),
        pids: r.int("pids_limit", report),
        cpu_shares: r.int("cpu_shares", report),
        cpuset: r.string("cpuset", report).filter(|c| !c.is_empty()),
        cpu_quota: r.parsed("cpu_quota", report, micros),
        cpu_period: r.parsed("cpu_period", report, micros),
        blkio: r.take("blkio_config").map(|v| v.to_json()),
        ..Resources::default()
    };
    let scale = replicas(r, "scale", report);
    let restart = r.string("restart", report).filter(|t| !t.is_empty()).and_then(|text| match restart(&text) {
        Ok(found) => Some(found),
        Err(message) => {
            report.later(&r.at("restart"), Some(super::INVALID), message, "");
            None
        }
    });
    let mut from_deploy = None;
    let mut policy = None;
    if let Some(deploy) = r.take("deploy") {
        let mut d = Reader::new(deploy, &r.at("deploy"), report);
        from_deploy = replicas(&mut d, "replicas", report);
        d.keep(&["mode", "endpoint_mode", "labels", "placement", "update_config", "rollback_config"], &mut spec.other, "deploy.");
        policy = d.take("restart_policy").map(|v| restart_policy(v, &d.at("restart_policy"), report));
        if let Some(resources) = d.take("resources") {
            limits(resources, &d.at("resources"), &mut res, spec, report);
        }
        d.finish(report);
    }
    if let (Some(a), Some(b)) = (scale, from_deploy)
        && a != b
    {
        report.error(&r.at("scale"), format!("scale {a} and deploy.replicas {b} differ"), "keep one of them");
    }
    spec.replicas = from_deploy.or(scale).unwrap_or(1);
    // As in Compose the section wins. One that says no condition leaves it to `restart`, else means any.
    spec.restart = match policy {
        Some(policy) => policy.or(restart).unwrap_or(Restart::Always),
        None => restart.unwrap_or_default(),
    };
    spec.resources = res;
}

fn micros(text: &str) -> Result<i64, String> {
    text.trim().parse::<i64>().or_else(|_| units::duration_ms(text).map(|ms| (ms * 1000) as i64))
}

fn replicas(r: &mut Reader, key: &'static str, report: &mut Report) -> Option<u32> {
    r.parsed(key, report, |t| t.trim().parse::<u32>().map_err(|_| format!("{t:?} is no number of replicas")))
}

fn restart(text: &str) -> Result<Restart, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("no", "") => Ok(Restart::No),
        // An unquoted `no` arrives as a boolean from some writers.
        ("false", "") => Ok(Restart::No),
        ("always", "") => Ok(Restart::Always),
        ("unless-stopped", "") => Ok(Restart::UnlessStopped),
        ("on-failure", "") => Ok(Restart::OnFailure(0)),
        ("on-failure", most) => most.parse().map(Restart::OnFailure).map_err(|_| format!("{most:?} is no number of restarts")),
        _ => Err(format!("{text:?} is no restart policy; there are \"no\", always, unless-stopped, on-failure[:max]")),
    }
}

fn restart_policy(value: Value, path: &str, report: &mut Report) -> Option<Restart> {
    let mut r = Reader::new(value, path, report);
    let condition = r.string("condition", report);
    let most = r.int("max_attempts", report).and_then(|m| u32::try_from(m).ok()).unwrap_or(0);
    for key in ["delay", "window"] {
        if r.raw(key).is_some() {
            report.note(&r.at(key), "the engine's restart policy has no such setting; it has no effect");
        }
    }
    r.finish(report);
    match condition.as_deref() {
        None => None,
        Some("any") => Some(Restart::Always),
        Some("none") => Some(Restart::No),
        Some("on-failure") => Some(Restart::OnFailure(most)),
        // Compose passes plain policy names through.
        Some(other) => restart(other).map_err(|m| report.later(path, Some(super::INVALID), m, "write none, on-failure or any")).ok(),
    }
}

fn limits(value: Value, path: &str, res: &mut Resources, spec: &mut ServiceSpec, report: &mut Report) {
    let mut r = Reader::new(value, path, report);
    if let Some(limits) = r.take("limits") {
        let mut l = Reader::new(limits, &r.at("limits"), report);
        let cpus = l.parsed("cpus", report, units::nano_cpus).filter(|v| *v > 0);
        let memory = l.parsed("memory", report, units::bytes).filter(|v| *v > 0);
        let pids = l.int("pids", report);
        res.nano_cpus = cpus.or(res.nano_cpus);
        res.memory = memory.or(res.memory);
        res.pids = pids.or(res.pids);
        l.keep(&["devices", "generic_resources"], &mut spec.other, "deploy.resources.limits.");
        l.finish(report);
    }
    if let Some(reservations) = r.take("reservations") {
        let mut l = Reader::new(reservations, &r.at("reservations"), report);
        res.nano_cpus_reservation = l.parsed("cpus", report, units::nano_cpus);
        res.memory_reservation = l.parsed("memory", report, units::bytes).or(res.memory_reservation);
        match l.take("devices") {
            None => {}
            Some(Value::Seq(devices)) => spec.device_requests.extend(devices.iter().map(Value::to_json)),
            Some(other) => {
                let hint = "write `- {driver: nvidia, count: 1, capabilities: [gpu]}`";
                report.error(&l.at("devices"), format!("a list is needed, found {}", other.kind()), hint);
            }
        }
        l.keep(&["generic_resources"], &mut spec.other, "deploy.resources.reservations.");
        l.finish(report);
    }
    r.finish(report);
}
