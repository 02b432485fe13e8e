//! What an inspect says of a container's settings, under compose's names: the other side of `engine::made`. Pure.

use crate::engine::made::Settings;
use crate::model::spec::Healthcheck;
use crate::model::spec::written::DeviceRequest;
use bollard::models::{ContainerInspectResponse, MountType};
use std::collections::BTreeMap;

fn list(values: &Option<Vec<String>>) -> Vec<String> {
    values.clone().unwrap_or_default()
}

/// Settings of a container, without what the engine gave it by itself.
pub(super) fn settings(c: &ContainerInspectResponse) -> BTreeMap<String, String> {
    let (config, host) = (c.config.clone().unwrap_or_default(), c.host_config.clone().unwrap_or_default());
    let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    let mut s = Settings::default();
    s.list(
        "devices",
        host.devices.iter().flatten().map(|d| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            format!("{}:{}:{}", text(&d.path_on_host), text(&d.path_in_container), text(&d.cgroup_permissions))
        }),
    );
    s.list("device_cgroup_rules", list(&host.device_cgroup_rules));
    let requests = host.device_requests.iter().flatten().map(|d| DeviceRequest {
        driver: d.driver.clone(),
        count: d.count,
        device_ids: list(&d.device_ids),
        capabilities: d.capabilities.iter().flatten().flatten().cloned().collect(),
        ..DeviceRequest::default()
    });
    s.requests(&requests.collect::<Vec<_>>());
    let mut security = list(&host.security_opt);
    // An engine shows empty lists where system paths were left open on purpose.
    let open = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(Vec::is_empty);
    if host.privileged != Some(true) && open(&host.masked_paths) && open(&host.readonly_paths) {
        security.push("systempaths=unconfined".into());
    }
    s.security(&security);
    let namespaces = [("pid", &host.pid_mode), ("ipc", &host.ipc_mode), ("uts", &host.uts_mode), ("userns_mode", &host.userns_mode)];
    namespaces.into_iter().for_each(|(key, mode)| s.namespace(key, mode.as_deref()));
    s.text("cgroup", host.cgroupns_mode.map(|m| m.to_string()).as_deref());
    s.text("cgroup_parent", host.cgroup_parent.as_deref());
    s.map("sysctls", host.sysctls.iter().flatten());
    for u in host.ulimits.iter().flatten() {
        s.ulimit(u.name.as_deref().unwrap_or_default(), u.soft.unwrap_or(0), u.hard.unwrap_or(0));
    }
    s.shm(unsigned(host.shm_size));
    s.list("extra_hosts", list(&host.extra_hosts));
    s.ordered("dns", &list(&host.dns));
    s.ordered("dns_search", &list(&host.dns_search));
    s.ordered("dns_opt", &list(&host.dns_options));
    s.list("group_add", list(&host.group_add));
    // Without a name of its own a container has the beginning of its id, the host's name, or another container's.
    let id = c.id.as_deref().unwrap_or_default();
    let shares = |mode: &Option<String>| mode.as_deref().is_some_and(|m| m == "host" || m.starts_with("container:"));
    let borrowed = shares(&host.network_mode) || shares(&host.uts_mode);
    s.text("hostname", config.hostname.as_deref().filter(|h| !borrowed && !id.starts_with(h)));
    s.text("domainname", config.domainname.as_deref().filter(|_| !borrowed));
    s.text("init", host.init.map(|on| if on { "true" } else { "false" }));
    s.flag("stdin_open", config.open_stdin.unwrap_or(false));
    s.flag("tty", config.tty.unwrap_or(false));
    s.text("stop_signal", config.stop_signal.as_deref());
    s.number("stop_grace_period", config.stop_timeout);
    s.text("runtime", host.runtime.as_deref());
    s.number("mem_reservation", host.memory_reservation);
    s.memswap(host.memory_swap, unsigned(host.memory).unwrap_or(0));
    s.number("cpu_shares", host.cpu_shares);
    s.text("cpuset", host.cpuset_cpus.as_deref());
    s.number("cpu_quota", host.cpu_quota);
    s.number("cpu_period", host.cpu_period);
    s.number("oom_score_adj", host.oom_score_adj);
    s.flag("oom_kill_disable", host.oom_kill_disable.unwrap_or(false));
    s.number("mem_swappiness", host.memory_swappiness);
    s.map("storage_opt", host.storage_opt.iter().flatten());
    let memory = host.mounts.iter().flatten().filter(|m| m.typ == Some(MountType::TMPFS)).filter_map(|m| m.target.clone());
    s.tmpfs(host.tmpfs.iter().flatten().map(|(target, _)| target.clone()).chain(memory));
    if let Some(h) = &config.healthcheck {
        let ms = |ns: Option<i64>| unsigned(ns).map(|ns| ns / 1_000_000);
        s.health(&Healthcheck {
            interval_ms: ms(h.interval),
            timeout_ms: ms(h.timeout),
            start_period_ms: ms(h.start_period),
            retries: h.retries.and_then(|r| u32::try_from(r).ok()),
            ..Healthcheck::default()
        });
    }
    let log = host.log_config.unwrap_or_default();
    s.text("logging.driver", log.typ.as_deref());
    s.map("logging.options", log.config.iter().flatten());
    for (name, network) in c.network_settings.iter().flat_map(|n| &n.networks).flatten() {
        let ipam = network.ipam_config.as_ref();
        s.text(&format!("networks.{name}.ipv4_address"), ipam.and_then(|i| i.ipv4_address.as_deref()));
        s.text(&format!("networks.{name}.ipv6_address"), ipam.and_then(|i| i.ipv6_address.as_deref()));
    }
    s.done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::docker::create;
    use crate::engine::{ContainerSpec, NetworkAttachment, made};
    use crate::model::ids::{EngineName, ImageRef};
    use crate::model::spec::{DeviceSpec, Logging};
    use serde_json::{Value, json};

    /// What an engine's inspect shows of a request that it took: the body, with what engines fill in.
    fn inspected(spec: &ContainerSpec) -> ContainerInspectResponse {
        let mut body = serde_json::to_value(create::container(spec, (1, 44)).unwrap()).unwrap();
        let host = body["HostConfig"].take();
        let networks = body["NetworkingConfig"]["EndpointsConfig"].take();
        let mut shown =
            json!({"Id": "0a1b2c3d4e5f60718293", "Config": body, "HostConfig": host, "NetworkSettings": {"Networks": networks}});
        let fill = |place: &mut Value, key: &str, value: Value| {
            if place[key].is_null() || place[key] == "" {
                place[key] = value;
            }
        };
        fill(&mut shown["Config"], "Hostname", json!("0a1b2c3d4e5f"));
        for (key, value) in [
            ("IpcMode", json!("private")),
            ("CgroupnsMode", json!("host")),
            ("ShmSize", json!(67_108_864)),
            ("Runtime", json!("runc")),
            ("OomKillDisable", json!(false)),
            ("LogConfig", json!({"Type": "json-file", "Config": {}})),
            ("MemorySwap", json!(spec.memory.unwrap_or(0) * 2)),
            ("MaskedPaths", json!(["/proc/kcore"])),
            ("ReadonlyPaths", json!(["/proc/bus"])),
        ] {
            fill(&mut shown["HostConfig"], key, value);
        }
        serde_json::from_value(shown).unwrap()
    }

    fn spec() -> ContainerSpec {
        ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap())
    }

    #[test]
    fn what_an_engine_fills_in_is_no_setting() {
        let plain = ContainerSpec { memory: Some(1 << 20), ..spec() };
        let shown: Vec<_> = settings(&inspected(&plain)).into_iter().collect();
        let left = [("cgroup", "host"), ("logging.driver", "json-file"), ("runtime", "runc")];
        assert_eq!(shown, left.map(|(k, v)| (k.to_owned(), v.to_owned())), "what only the engine knows the default of");
    }

    #[test]
    fn every_setting_of_a_request_is_read_back_as_it_was_asked_for() {
        let strings = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let pairs = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let mut asked = spec();
        asked.devices = vec![DeviceSpec { source: "/dev/a".into(), target: "/dev/b".into(), permissions: "rw".into() }];
        asked.device_cgroup_rules = strings(&["c 1:3 r"]);
        asked.security_opt = strings(&["no-new-privileges", "systempaths=unconfined", "seccomp={\"defaultAction\":\"x\"}"]);
        (asked.pid_mode, asked.ipc_mode) = (Some("host".into()), Some("container:0a".into()));
        (asked.uts_mode, asked.userns_mode, asked.cgroupns_mode) = (None, Some("host".into()), Some("private".into()));
        asked.cgroup_parent = Some("/x".into());
        asked.sysctls = pairs("net.core.somaxconn", "1024");
        asked.ulimits = BTreeMap::from([("nofile".into(), (1024, 2048))]);
        asked.shm_size = Some(1 << 20);
        asked.extra_hosts = strings(&["b:10.0.0.2", "a:10.0.0.1"]);
        (asked.dns, asked.dns_search, asked.dns_opt) = (strings(&["9.9.9.9", "1.1.1.1"]), strings(&["lan"]), strings(&["ndots:1"]));
        asked.group_add = strings(&["video"]);
        (asked.hostname, asked.domainname) = (Some("web".into()), Some("lan".into()));
        (asked.init, asked.stdin_open, asked.tty) = (Some(true), true, true);
        (asked.stop_signal, asked.stop_timeout_s) = (Some("SIGINT".into()), Some(30));
        asked.runtime = Some("runsc".into());
        (asked.memory, asked.memory_reservation, asked.memswap) = (Some(100), Some(50), Some(-1));
        (asked.cpu_shares, asked.cpuset) = (Some(512), Some("0-1".into()));
        (asked.cpu_quota, asked.cpu_period, asked.oom_score_adj) = (Some(5), Some(10), Some(100));
        asked.extras.oom_kill_disable = true;
        asked.extras.swappiness = Some(10);
        asked.extras.storage_opt = pairs("size", "1g");
        asked.extras.device_requests =
            vec![DeviceRequest { capabilities: strings(&["utility", "gpu"]), count: Some(-1), ..DeviceRequest::default() }];
        asked.healthcheck = Some(Healthcheck {
            interval_ms: Some(1),
            timeout_ms: Some(2),
            start_period_ms: Some(3),
            retries: Some(4),
            ..Healthcheck::default()
        });
        asked.networks =
            vec![NetworkAttachment { network: "n".into(), ipv4_address: Some("10.1.0.9".into()), ..NetworkAttachment::default() }];
        asked.logging = Some(Logging { driver: "syslog".into(), options: pairs("tag", "t") });
        let wanted = made::settings(&asked);
        assert!(wanted.len() > 35, "{wanted:?}");
        let mut shown = settings(&inspected(&asked));
        assert_eq!((shown.remove("logging.driver"), shown.remove("logging.options.tag")), (Some("syslog".into()), Some("t".into())));
        assert_eq!(shown, wanted);
        for key in ["devices", "security_opt", "pid", "ipc", "sysctls.net.core.somaxconn", "ulimits.nofile", "devices requested"] {
            assert!(wanted.contains_key(key), "{key}: {wanted:?}");
        }
    }
}
