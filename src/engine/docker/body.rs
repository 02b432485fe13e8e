//! The last look at a request: what bollard is about to send, as JSON, beside the specification the gate judged. It shares no line with the translation
//! (`create`, `rare`), so that a mistake there gives no container what nobody judged. A key this file does not know must not be there at all; one it knows may
//! hold what the specification names, and what confines must be there. Deliberately absent: whether the specification may be (`gate::request`).

use crate::engine::{ContainerSpec, EngineError, EngineMount, EngineResult, ExecSpec, NetworkAttachment, NetworkCreate, VolumeCreate};
use crate::model::spec::{MountKind, Restart};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What is wrong with a request, by the keys it is about.
struct Look {
    wrong: Vec<String>,
}

type Texts = BTreeMap<String, String>;

/// What of a container's host configuration only limits or tunes it: no value of these gives it anything of the host's.
const HARMLESS: [&str; 14] = [
    "BlkioWeight",
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "CpuShares",
    "CpuPeriod",
    "CpuQuota",
    "CpusetCpus",
    "MemoryReservation",
    "MemorySwappiness",
    "ShmSize",
    "Init",
];

/// Judges the body of a container's creation.
///
/// # Errors
/// `Withheld`, with the keys that hold what the specification does not.
pub(super) fn container(body: &impl Serialize, spec: &ContainerSpec) -> EngineResult<()> {
    judged(body, &format!("container {}", spec.name), |look, body| {
        for (key, value) in body {
            let fine = match key.as_str() {
                "Image" => value == spec.image.as_str(),
                "Env" => is_list(value, &spec.env),
                "Labels" => is_map(value, &spec.labels),
                "Cmd" => spec.command.as_ref().is_some_and(|c| is_list(value, c)),
                "Entrypoint" => spec.entrypoint.as_ref().is_some_and(|c| is_list(value, c)),
                "User" => is_text(value, spec.user.as_deref()),
                "WorkingDir" => is_text(value, spec.working_dir.as_deref()),
                "Hostname" => is_text(value, spec.hostname.as_deref()),
                "Domainname" => is_text(value, spec.domainname.as_deref()),
                "StopSignal" => is_text(value, spec.stop_signal.as_deref()),
                "StopTimeout" => spec.stop_timeout_s.is_some(),
                "OpenStdin" => value == spec.stdin_open,
                "Tty" => value == spec.tty,
                "Healthcheck" => spec.healthcheck.as_ref().is_some_and(|h| value.get("Test").is_none_or(|test| is_list(test, &h.test))),
                // Names of ports; nothing is published by them.
                "ExposedPorts" => value.is_object(),
                "NetworkingConfig" => {
                    look.endpoints(value, &spec.networks);
                    true
                }
                "HostConfig" => {
                    look.host(value, spec);
                    true
                }
                _ => false,
            };
            look.must(fine, key);
        }
        look.must(spec.user.is_none() || body.contains_key("User"), "User");
        look.must(body.contains_key("Image"), "Image");
        // Without it nothing confines the container.
        look.must(body.get("HostConfig").is_some_and(Value::is_object), "HostConfig");
    })
}

/// Judges the body of a network's creation.
///
/// # Errors
/// `Withheld`.
pub(super) fn network(body: &impl Serialize, create: &NetworkCreate) -> EngineResult<()> {
    let spec = &create.spec;
    judged(body, &format!("network {}", create.name), |look, body| {
        for (key, value) in body {
            let fine = match key.as_str() {
                "Name" => value == create.name.as_str(),
                "Driver" => value == spec.driver.as_deref().unwrap_or("bridge"),
                "Internal" => value == spec.internal,
                "Attachable" => value == spec.attachable,
                "EnableIPv6" => value == spec.enable_ipv6,
                "Options" => is_map(value, &spec.driver_opts),
                "Labels" => is_map(value, &create.labels),
                "IPAM" => {
                    let pools = list(&value["Config"]);
                    let named = |pool: &Value| {
                        spec.ipam.iter().any(|p| {
                            let texts = [("Subnet", &p.subnet), ("IPRange", &p.ip_range), ("Gateway", &p.gateway)];
                            keys(pool, &["Subnet", "IPRange", "Gateway", "AuxiliaryAddresses"])
                                && texts.iter().all(|(key, text)| pool.get(*key).and_then(Value::as_str) == text.as_deref())
                                && pool.get("AuxiliaryAddresses").is_none_or(|a| is_map(a, &p.aux_addresses))
                        })
                    };
                    keys(value, &["Driver", "Config"])
                        && value["Driver"] == spec.ipam_driver.as_deref().unwrap_or("default")
                        && pools.iter().all(named)
                }
                _ => false,
            };
            look.must(fine, key);
        }
        look.must(!spec.internal || body.get("Internal") == Some(&Value::Bool(true)), "Internal");
    })
}

/// Judges the body of a volume's creation: options of the local driver can mount any path of the host.
///
/// # Errors
/// `Withheld`.
pub(super) fn volume(body: &impl Serialize, create: &VolumeCreate) -> EngineResult<()> {
    judged(body, &format!("volume {}", create.name), |look, body| {
        for (key, value) in body {
            let fine = match key.as_str() {
                "Name" => value == create.name.as_str(),
                "Driver" => value == create.driver.as_deref().unwrap_or("local"),
                "DriverOpts" => is_map(value, &create.driver_opts),
                "Labels" => is_map(value, &create.labels),
                _ => false,
            };
            look.must(fine, key);
        }
    })
}

/// Judges the body of a command in a container.
///
/// # Errors
/// `Withheld`.
pub(super) fn exec(body: &impl Serialize, spec: &ExecSpec) -> EngineResult<()> {
    judged(body, "command in a container", |look, body| {
        for (key, value) in body {
            let fine = match key.as_str() {
                "Cmd" => is_list(value, &spec.command),
                "Env" => is_list(value, &spec.env),
                "User" => is_text(value, spec.user.as_deref()),
                "AttachStdout" | "AttachStderr" => value.is_boolean(),
                _ => false,
            };
            look.must(fine, key);
        }
        look.must(spec.user.is_none() || body.contains_key("User"), "User");
    })
}

/// Judges the settings of an endpoint.
///
/// # Errors
/// `Withheld`.
pub(super) fn endpoint(body: &impl Serialize, a: &NetworkAttachment) -> EngineResult<()> {
    judged(body, &format!("endpoint on {}", a.network), |look, body| look.endpoint(body, a))
}

fn judged(body: &impl Serialize, what: &str, look_at: impl FnOnce(&mut Look, &Map<String, Value>)) -> EngineResult<()> {
    let withheld = |why: String| EngineError::Withheld(format!("{what}: {why}"));
    let body = serde_json::to_value(body).map_err(|e| withheld(e.to_string()))?;
    let body = body.as_object().ok_or_else(|| withheld("it is no object".into()))?;
    let mut look = Look { wrong: vec![] };
    look_at(&mut look, body);
    match look.wrong.as_slice() {
        [] => Ok(()),
        wrong => {
            tracing::error!(what, keys = wrong.join(", "), "a request was withheld: it holds what its judged specification does not");
            Err(withheld(format!("{} would not be what was judged", wrong.join(", "))))
        }
    }
}

impl Look {
    fn must(&mut self, fine: bool, key: &str) {
        if !fine && !self.wrong.iter().any(|w| w == key) {
            self.wrong.push(key.to_owned());
        }
    }

    fn host(&mut self, host: &Value, spec: &ContainerSpec) {
        let e = &spec.extras;
        let primary = spec.network_mode.as_deref().or_else(|| spec.networks.first().map(|n| n.network.as_str()));
        let confining: Vec<String> = spec.security_opt.iter().filter(|o| o.trim() != "systempaths=unconfined").cloned().collect();
        for (key, value) in host.as_object().into_iter().flatten() {
            let fine = match key.as_str() {
                "Privileged" => value == spec.privileged,
                "PidMode" => is_text(value, spec.pid_mode.as_deref()),
                "IpcMode" => is_text(value, spec.ipc_mode.as_deref()),
                "UTSMode" => is_text(value, spec.uts_mode.as_deref()),
                "UsernsMode" => is_text(value, spec.userns_mode.as_deref()),
                "CgroupnsMode" => is_text(value, spec.cgroupns_mode.as_deref()),
                "NetworkMode" => is_text(value, primary),
                "CgroupParent" => is_text(value, spec.cgroup_parent.as_deref()),
                "Runtime" => is_text(value, spec.runtime.as_deref()),
                "CapAdd" => is_list(value, &spec.cap_add),
                "CapDrop" => is_list(value, &spec.cap_drop),
                "SecurityOpt" => is_list(value, &confining),
                // An engine knows this option as two empty lists.
                "MaskedPaths" | "ReadonlyPaths" => confining.len() < spec.security_opt.len() && value.as_array().is_some_and(Vec::is_empty),
                "DeviceCgroupRules" => is_list(value, &spec.device_cgroup_rules),
                "GroupAdd" => is_list(value, &spec.group_add),
                "ExtraHosts" => is_list(value, &spec.extra_hosts),
                "Dns" => is_list(value, &spec.dns),
                "DnsOptions" => is_list(value, &spec.dns_opt),
                "DnsSearch" => is_list(value, &spec.dns_search),
                "VolumesFrom" => is_list(value, &e.volumes_from),
                "Sysctls" => is_map(value, &spec.sysctls),
                "Annotations" => is_map(value, &e.annotations),
                "StorageOpt" => is_map(value, &e.storage_opt),
                "ReadonlyRootfs" => value == spec.read_only,
                "OomKillDisable" => value == e.oom_kill_disable,
                "OomScoreAdj" => value.as_i64() == spec.oom_score_adj,
                "CpuRealtimePeriod" => value.as_i64() == e.cpu_rt_period,
                "CpuRealtimeRuntime" => value.as_i64() == e.cpu_rt_runtime,
                "Memory" => is_number(value, spec.memory),
                "NanoCpus" => is_number(value, spec.nano_cpus),
                "MemorySwap" => value.as_i64() == spec.memswap,
                "PidsLimit" => value.as_i64() == spec.pids,
                "Mounts" => list(value).iter().all(|m| spec.mounts.iter().any(|s| s.selinux.is_none() && mounts(m, s))),
                "Binds" => list(value).iter().all(|b| spec.mounts.iter().any(|s| binds(b.as_str().unwrap_or_default(), s))),
                "Tmpfs" => map(value).all(|(at, options)| spec.mounts.iter().any(|s| memory(at, options, s))),
                "Devices" => list(value).iter().all(|d| {
                    keys(d, &["PathOnHost", "PathInContainer", "CgroupPermissions"])
                        && spec.devices.iter().any(|s| {
                            d["PathOnHost"] == *s.source && d["PathInContainer"] == *s.target && d["CgroupPermissions"] == *s.permissions
                        })
                }),
                "DeviceRequests" => list(value).iter().all(|d| {
                    keys(d, &["Driver", "Count", "DeviceIDs", "Capabilities", "Options"])
                        && e.device_requests.iter().any(|s| {
                            let groups = list(&d["Capabilities"]);
                            d["Driver"].as_str() == s.driver.as_deref()
                                && d["Count"].as_i64() == s.count
                                && is_list(&d["DeviceIDs"], &s.device_ids)
                                && groups.len() <= 1
                                && groups.iter().all(|g| is_list(g, &s.capabilities))
                                && is_map(&d["Options"], &s.options)
                        })
                }),
                "PortBindings" => map(value).all(|(port, bound)| {
                    list(bound).iter().all(|b| {
                        let same = |s: &crate::engine::PortBinding| {
                            *port == format!("{}/{}", s.container_port, s.protocol)
                                && b["HostIp"] == *s.host_ip
                                && b["HostPort"] == s.host_port.as_deref().unwrap_or_default()
                        };
                        keys(b, &["HostIp", "HostPort"]) && spec.ports.iter().any(same)
                    })
                }),
                "RestartPolicy" => {
                    let word = match spec.restart {
                        Restart::No => "no",
                        Restart::Always => "always",
                        Restart::UnlessStopped => "unless-stopped",
                        Restart::OnFailure(_) => "on-failure",
                    };
                    value["Name"] == word
                }
                "LogConfig" => spec.logging.as_ref().is_some_and(|l| {
                    keys(value, &["Type", "Config"])
                        && is_text(&value["Type"], Some(l.driver.as_str()).filter(|d| !d.is_empty()))
                        && is_map(&value["Config"], &l.options)
                }),
                "Ulimits" => list(value).iter().all(|u| {
                    let limit = u["Name"].as_str().and_then(|name| spec.ulimits.get(name));
                    limit.is_some_and(|(soft, hard)| u["Soft"] == *soft && u["Hard"] == *hard)
                }),
                key => HARMLESS.contains(&key),
            };
            self.must(fine, &format!("HostConfig.{key}"));
        }
        // What confines, and got lost on the way.
        let there = |key: &str| host.get(key).is_some();
        let lost = [
            ("CapDrop", !spec.cap_drop.is_empty()),
            ("SecurityOpt", !confining.is_empty()),
            ("ReadonlyRootfs", spec.read_only),
            ("Memory", spec.memory.is_some()),
            ("NanoCpus", spec.nano_cpus.is_some()),
            ("PidsLimit", spec.pids.is_some()),
            ("UsernsMode", spec.userns_mode.is_some()),
            ("NetworkMode", primary.is_some()),
            ("Runtime", spec.runtime.is_some()),
        ];
        for (key, wanted) in lost {
            self.must(!wanted || there(key), &format!("HostConfig.{key}"));
        }
    }

    fn endpoints(&mut self, value: &Value, attachments: &[NetworkAttachment]) {
        self.must(keys(value, &["EndpointsConfig"]), "NetworkingConfig");
        for (name, endpoint) in map(&value["EndpointsConfig"]) {
            match (attachments.iter().find(|a| a.network == *name), endpoint.as_object()) {
                (Some(a), Some(endpoint)) => self.endpoint(endpoint, a),
                _ => self.must(false, "NetworkingConfig.EndpointsConfig"),
            }
        }
    }

    fn endpoint(&mut self, endpoint: &Map<String, Value>, a: &NetworkAttachment) {
        for (key, value) in endpoint {
            let fine = match key.as_str() {
                "Aliases" => is_list(value, &a.aliases),
                "Links" => is_list(value, &a.links),
                "MacAddress" => is_text(value, a.mac_address.as_deref()),
                "DriverOpts" => is_map(value, &a.driver_opts),
                "IPAMConfig" => {
                    keys(value, &["IPv4Address", "IPv6Address", "LinkLocalIPs"])
                        && is_text(&value["IPv4Address"], a.ipv4_address.as_deref())
                        && is_text(&value["IPv6Address"], a.ipv6_address.as_deref())
                        && is_list(&value["LinkLocalIPs"], &a.link_local_ips)
                }
                _ => false,
            };
            self.must(fine, &format!("EndpointsConfig.{}.{key}", a.network));
        }
    }
}

/// A mount in its structured form. Further options of a volume could name a driver that mounts what it likes.
fn mounts(m: &Value, spec: &EngineMount) -> bool {
    let (word, options) = match spec.kind {
        MountKind::Bind => ("bind", "BindOptions"),
        MountKind::Volume => ("volume", "VolumeOptions"),
        MountKind::Tmpfs => ("tmpfs", "TmpfsOptions"),
        MountKind::Npipe => ("npipe", ""),
        MountKind::Cluster => ("cluster", ""),
        MountKind::Image => ("image", "ImageOptions"),
    };
    let inner = &m[options];
    keys(m, &["Type", "Source", "Target", "ReadOnly", options])
        && m["Type"] == word
        && m["Target"] == *spec.target
        && is_text(&m["Source"], spec.source.as_deref())
        && m["ReadOnly"] == spec.read_only
        && keys(inner, &["Propagation", "NoCopy", "Subpath", "SizeBytes", "Mode"])
        && is_text(&inner["Propagation"], spec.propagation.as_deref().filter(|_| spec.kind == MountKind::Bind))
        && is_text(&inner["Subpath"], spec.subpath.as_deref().filter(|_| matches!(spec.kind, MountKind::Volume | MountKind::Image)))
        && (inner["NoCopy"].is_null() || inner["NoCopy"] == spec.nocopy)
        && is_number(&inner["SizeBytes"], spec.tmpfs_size)
        && is_number(&inner["Mode"], spec.tmpfs_mode.map(u64::from))
}

/// A mount in its old form: `source:target:options`.
fn binds(bind: &str, spec: &EngineMount) -> bool {
    let (parts, Some(label)) = (bind.split(':').collect::<Vec<_>>(), &spec.selinux) else { return false };
    let [source, target, options] = parts.as_slice() else { return false };
    let options: Vec<&str> = options.split(',').collect();
    let known = |o: &&str| {
        *o == label || (*o == "ro" && spec.read_only) || (*o == "nocopy" && spec.nocopy) || spec.propagation.as_deref() == Some(*o)
    };
    matches!(spec.kind, MountKind::Bind | MountKind::Volume)
        && spec.source.as_deref() == Some(*source)
        && spec.target == *target
        && options.iter().all(known)
        && options.contains(&"ro") == spec.read_only
}

/// A memory file system with options of its own.
fn memory(target: &str, options: &Value, spec: &EngineMount) -> bool {
    let bounds = [spec.tmpfs_size.map(|s| format!("size={s}")), spec.tmpfs_mode.map(|m| format!("mode={m:o}"))];
    let mut given: Vec<&str> = options.as_str().unwrap_or("?").split(',').filter(|o| !o.is_empty()).collect();
    let mut wanted: Vec<&str> = spec.tmpfs_options.iter().map(String::as_str).chain(bounds.iter().flatten().map(String::as_str)).collect();
    wanted.extend(spec.read_only.then_some("ro"));
    // An option of the file may hold several.
    let mut wanted: Vec<&str> = wanted.into_iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()).collect();
    given.sort_unstable();
    wanted.sort_unstable();
    spec.kind == MountKind::Tmpfs && spec.target == target && given == wanted
}

/// No key but these.
fn keys(value: &Value, known: &[&str]) -> bool {
    value.is_null() || value.as_object().is_some_and(|map| map.keys().all(|k| known.contains(&k.as_str())))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn map(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Absent is as good as empty.
fn is_text(value: &Value, wanted: Option<&str>) -> bool {
    value.as_str().unwrap_or_default() == wanted.unwrap_or_default() && (value.is_null() || value.is_string())
}

fn is_number(value: &Value, wanted: Option<u64>) -> bool {
    value.as_i64() == wanted.map(|n| i64::try_from(n).unwrap_or(i64::MAX)) && (value.is_null() || value.is_number())
}

fn is_list(value: &Value, wanted: &[String]) -> bool {
    let given = list(value);
    (value.is_null() || value.is_array()) && given.len() == wanted.len() && given.iter().zip(wanted).all(|(g, w)| g == w.as_str())
}

fn is_map(value: &Value, wanted: &Texts) -> bool {
    let given = value.as_object();
    (value.is_null() || given.is_some())
        && given.map_or(0, Map::len) == wanted.len()
        && map(value).all(|(k, v)| wanted.get(k).is_some_and(|w| v == w.as_str()))
}

#[cfg(test)]
mod tests;
