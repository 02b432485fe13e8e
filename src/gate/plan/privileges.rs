//! What a service may do to the kernel: privileged mode, capabilities, devices, confinement, sysctls, runtimes, the OOM killer.
//! Namespaces and mounts have files of their own.

use super::{At, Judge, PathKind, is_below, paths};
use crate::model::spec::confinement;
use std::collections::BTreeSet;

/// Capabilities that are (nearly) root on the host.
pub const DANGEROUS_CAPS: &[&str] = &[
    "ALL",
    "SYS_ADMIN",
    "SYS_MODULE",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_BOOT",
    "SYS_TIME",
    "DAC_READ_SEARCH",
    "BPF",
    "PERFMON",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "SYSLOG",
    "CHECKPOINT_RESTORE",
];
/// Capabilities of the Pod Security Standards' baseline: what engines give by default, less NET_RAW.
const BASELINE_CAPS: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Sysctls of the Pod Security Standards' baseline.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// Sysctls of the IPC namespace.
const IPC_SYSCTLS: &[&str] =
    &["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni"];
/// Devices a person can reasonably grant, by the beginning of their name below /dev. Everything else counts as raw: disks and memory have
/// too many names to list.
const REVIEWED_DEVICES: &[&str] = &[
    "accel/",
    "apex_",
    "bus/usb",
    "dri",
    "dvb",
    "full",
    "fuse",
    "gpio",
    "hidraw",
    "hwrng",
    "i2c-",
    "infiniband",
    "input/",
    "kfd",
    "kvm",
    "media",
    "net/tun",
    "null",
    "nvidia",
    "ppp",
    "random",
    "rtc",
    "serial/",
    "snd",
    "spidev",
    "tpm",
    "ttyACM",
    "ttyAMA",
    "ttyS",
    "ttyUSB",
    "urandom",
    "usb/",
    "vchiq",
    "vcio",
    "vfio/",
    "video",
    "watchdog",
    "zero",
    "zigbee",
];
/// At or below this the OOM killer practically never chooses the container, and kills something else instead.
const OOM_PROTECTED: i64 = -500;

/// A capability as the kernel names it, without `CAP_`.
pub fn capability(written: &str) -> String {
    let upper = written.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
}

/// How a capability is judged: `None` = baseline.
pub fn capability_rule(name: &str, with_devices: bool) -> Option<&'static str> {
    if DANGEROUS_CAPS.contains(&name) || (name == "MKNOD" && with_devices) {
        Some("cap.dangerous")
    } else if BASELINE_CAPS.contains(&name) {
        None
    } else {
        Some("cap.review")
    }
}

/// How a host device is judged, by its path without links (or its CDI name).
pub fn device_rule(real: &str) -> &'static str {
    if !real.starts_with('/') {
        return "device.review";
    }
    let Some(name) = real.strip_prefix("/dev/") else { return "device.raw" };
    let known =
        REVIEWED_DEVICES.iter().any(|d| if d.ends_with('/') { is_below(name, d.trim_end_matches('/')) } else { name.starts_with(d) });
    if known { "device.review" } else { "device.raw" }
}

/// How a device cgroup rule is judged: `TYPE MAJOR:MINOR PERMISSIONS`.
pub fn device_cgroup_rule(rule: &str) -> &'static str {
    let mut words = rule.split_whitespace();
    let (kind, numbers) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (major, minor) = numbers.split_once(':').unwrap_or(("*", "*"));
    // Major 1 is memory: mem, kmem, port and kmsg are 1, 2, 4 and 11; null, zero, full, random and urandom are the harmless ones.
    let memory = major == "1" && !["3", "5", "7", "8", "9"].contains(&minor);
    let numbered = !major.is_empty() && major.bytes().all(|b| b.is_ascii_digit());
    if kind == "c" && numbered && !memory { "device.review" } else { "device.raw" }
}

/// How a sysctl is judged: `None` = safe.
pub fn sysctl_rule(name: &str) -> Option<&'static str> {
    let name = name.trim().replace('/', ".");
    if SAFE_SYSCTLS.contains(&name.as_str()) {
        None
    } else if name.starts_with("net.") || name.starts_with("fs.mqueue.") || IPC_SYSCTLS.contains(&name.as_str()) {
        Some("sysctl.review")
    } else {
        Some("sysctl.host")
    }
}

/// How a security option is judged: `None` = it confines, or changes nothing.
pub fn security_opt_rule(written: &str) -> Option<&'static str> {
    let text = written.trim();
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_ascii_lowercase());
    match (key.as_str(), value.as_str()) {
        ("no-new-privileges", "" | "true" | "1") => None,
        ("no-new-privileges", _) => Some("secopt.nnp_off"),
        ("seccomp", "builtin" | "default" | "runtime/default") | ("apparmor", "docker-default" | "runtime/default") => None,
        ("seccomp" | "apparmor" | "systempaths" | "label" | "proc-opts" | "mask" | "unmask" | "writable-cgroups", _)
            if loosens(&key, &value) =>
        {
            Some("secopt.unconfined")
        }
        _ => Some("secopt.custom"),
    }
}

fn loosens(key: &str, value: &str) -> bool {
    match key {
        "label" => value == "disable" || value.contains("spc_t") || value.contains("unconfined"),
        "unmask" => true,
        "writable-cgroups" => value != "false",
        "seccomp" if value.starts_with('{') => allows_by_default(value),
        _ => value.is_empty() || value.contains("unconfined"),
    }
}

/// Whether a profile, in small letters as the engine does not tell them apart, lets through what it does not name: then it confines nothing that matters.
/// One without a default action is none, and no engine takes it.
fn allows_by_default(profile: &str) -> bool {
    let read: Option<serde_json::Value> = serde_json::from_str(profile).ok();
    let action = read.as_ref().and_then(|p| p.get("defaultaction"));
    let confines = ["scmp_act_errno", "scmp_act_kill", "scmp_act_kill_process", "scmp_act_kill_thread", "scmp_act_trap"];
    action.is_some_and(|a| a.as_str().is_none_or(|a| !confines.contains(&a)))
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let s = at.service;
    if s.privileged {
        j.at(
            "privileged",
            at,
            "privileged",
            "true",
            "a privileged container is root on the host; name the one capability or device it needs",
        );
    }
    let with_devices = !s.devices.is_empty() || !s.device_cgroup_rules.is_empty();
    for (i, written) in s.cap_add.iter().enumerate() {
        let name = capability(written);
        if let Some(rule) = capability_rule(&name, with_devices) {
            let because = match rule {
                "cap.dangerous" => format!("{name} is as good as root on the host"),
                _ => format!("{name} is more than a container needs by default"),
            };
            j.at(rule, at, &format!("cap_add[{i}]"), &name, because);
        }
    }
    devices(j, at);
    security(j, at);
    for name in s.sysctls.keys() {
        if let Some(rule) = sysctl_rule(name) {
            let because = if rule == "sysctl.host" {
                format!("{name} is a setting of the whole host")
            } else {
                format!("{name} is not on the safe list")
            };
            j.at(rule, at, &format!("sysctls.{name}"), name, because);
        }
    }
    if let Some(runtime) = s.runtime.as_deref().filter(|r| !r.is_empty() && !j.policy.runtimes_allow.iter().any(|a| a == r)) {
        if j.policy.runtimes_approval.iter().any(|a| a == runtime) {
            j.at("runtime.review", at, "runtime", runtime, format!("the runtime {runtime} needs approval"));
        } else {
            j.at("runtime.unlisted", at, "runtime", runtime, "this runtime is not in runtimes_allow of the policy");
        }
    }
    if s.oom_kill_disable {
        j.at("oom.protect", at, "oom_kill_disable", "true", "without the OOM killer a full container hangs, or takes the host down");
    }
    if let Some(adj) = s.oom_score_adj.filter(|a| *a <= OOM_PROTECTED) {
        j.at("oom.protect", at, "oom_score_adj", &adj.to_string(), "the kernel would kill everything else first; leave it at 0 or above");
    }
}

fn devices(j: &mut Judge<'_>, at: At<'_>) {
    for (i, device) in at.service.devices.iter().enumerate() {
        let absolute = device.source.starts_with('/');
        let real = if absolute { j.real(&device.source) } else { device.source.clone() };
        let directory = j.resolved(&device.source).is_some_and(|f| f.kind == Some(PathKind::Directory)) && !is_below(&real, "/dev");
        let rule = if directory { "device.raw" } else { device_rule(&real) };
        let because = match rule {
            "device.raw" => "raw access to this device reaches past the container".to_owned(),
            _ => format!("the host device {real} is handed in"),
        };
        j.at(rule, at, &format!("devices[{i}]"), &real, because);
    }
    for (i, rule) in at.service.device_cgroup_rules.iter().enumerate() {
        let because = "a device rule opens devices by number, whatever they are called";
        j.at(device_cgroup_rule(rule), at, &format!("device_cgroup_rules[{i}]"), rule.trim(), because);
    }
    if !at.service.device_requests.is_empty() {
        let asked: BTreeSet<String> =
            at.service.device_requests.iter().filter_map(|r| r.get("driver").and_then(|d| d.as_str()).map(str::to_owned)).collect();
        let asked = if asked.is_empty() { "gpu".to_owned() } else { asked.into_iter().collect::<Vec<_>>().join(",") };
        j.at("device.review", at, "deploy.resources.reservations.devices", &asked, "a GPU or reserved device is handed in");
    }
}

fn security(j: &mut Judge<'_>, at: At<'_>) {
    for (i, written) in at.service.security_opt.iter().enumerate() {
        let path = format!("security_opt[{i}]");
        let Some(rule) = security_opt_rule(written) else { continue };
        let because = match rule {
            "secopt.unconfined" => "this switches a confinement of the container off",
            "secopt.nnp_off" => "this lets programs gain rights they were not started with",
            _ => "a confinement of its own needs a look by a person",
        };
        j.at(rule, at, &path, &confinement::option_shown(written), because);
        if let Some(file) = confinement::seccomp_file(written) {
            let real = j.real(&j.facts.project_dir.as_deref().map_or_else(|| file.to_owned(), |dir| paths::join(dir, file)));
            if !j.in_project(&real) {
                j.at("path.traversal", at, &path, &real, "the seccomp profile lies outside the project directory");
            }
        }
    }
}
