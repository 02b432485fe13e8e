//! Settings of a container as text, so that one that somebody else made can be compared with a file: key as compose names it -> value. What an engine gives
//! a container by itself is left out, so a setting that is missing is the default. Pure. Deliberately absent: what `MadeWith` and `ContainerDetail` have
//! fields for (image, environment, ports, mounts, limits), and logging, of which the file says only a part.

use super::ContainerSpec;
use crate::model::spec::confinement::option_shown;
use crate::model::spec::written::DeviceRequest;
use crate::model::spec::{Healthcheck, MountKind};
use std::collections::BTreeMap;

/// Shared memory of a container that asks for none, bytes.
const SHM: u64 = 64 << 20;

/// Collects settings; empty ones are none.
#[derive(Debug, Default)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// A text.
    pub fn text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            self.0.insert(key.to_owned(), value.to_owned());
        }
    }
    /// A list whose order means nothing.
    pub fn list(&mut self, key: &str, values: impl IntoIterator<Item = String>) {
        let mut all: Vec<String> = values.into_iter().collect();
        all.sort();
        all.dedup();
        self.text(key, Some(&all.join(", ")));
    }
    /// A list in its order.
    pub fn ordered(&mut self, key: &str, values: &[String]) {
        self.text(key, Some(&values.join(", ")));
    }
    /// A number that is 0 by default.
    pub fn number(&mut self, key: &str, value: Option<i64>) {
        self.text(key, value.filter(|n| *n != 0).map(|n| n.to_string()).as_deref());
    }
    /// A switch that is off by default.
    pub fn flag(&mut self, key: &str, on: bool) {
        self.text(key, on.then_some("true"));
    }
    /// One line per entry.
    pub fn map<'a>(&mut self, key: &str, entries: impl IntoIterator<Item = (&'a String, &'a String)>) {
        for (name, value) in entries {
            self.0.insert(format!("{key}.{name}"), value.clone());
        }
    }
    /// A namespace: another container's is told as one, whichever it is.
    pub fn namespace(&mut self, key: &str, mode: Option<&str>) {
        let mode = mode.filter(|m| !matches!(*m, "private" | "shareable" | "default"));
        self.text(key, mode.map(|m| m.split_once(':').map_or(m, |(kind, _)| kind)));
    }
    /// Soft and hard limit.
    pub fn ulimit(&mut self, name: &str, soft: i64, hard: i64) {
        self.0.insert(format!("ulimits.{name}"), format!("{soft}:{hard}"));
    }
    /// Shared memory in bytes.
    pub fn shm(&mut self, bytes: Option<u64>) {
        self.text("shm_size", bytes.filter(|b| *b != 0 && *b != SHM).map(|b| b.to_string()).as_deref());
    }
    /// Memory and swap together; an engine makes twice the memory of none.
    pub fn memswap(&mut self, both: Option<i64>, memory: u64) {
        let own = i64::try_from(memory.saturating_mul(2)).unwrap_or(i64::MAX);
        self.number("memswap_limit", both.filter(|b| *b != own));
    }
    /// Security options; those that turn labels off come with other settings.
    pub fn security(&mut self, options: &[String]) {
        self.list("security_opt", options.iter().map(|o| option_shown(o).into_owned()).filter(|o| o != "label=disable"));
    }
    /// Devices asked for by what they can do.
    pub fn requests(&mut self, requests: &[DeviceRequest]) {
        let line = |r: &DeviceRequest| {
            let (mut can, mut ids) = (r.capabilities.clone(), r.device_ids.clone());
            can.sort();
            ids.sort();
            let driver = r.driver.as_deref().filter(|d| !d.is_empty()).unwrap_or("any driver");
            format!("{driver} count={} ids={} {}", r.count.unwrap_or(0), ids.join("+"), can.join("+"))
        };
        self.list("devices requested", requests.iter().map(line));
    }
    /// Places of memory file systems.
    pub fn tmpfs(&mut self, targets: impl IntoIterator<Item = String>) {
        self.list("tmpfs", targets.into_iter().map(|t| t.trim_end_matches('/').to_owned()));
    }
    /// Times of the health check.
    pub fn health(&mut self, check: &Healthcheck) {
        let mut ms = |key: &str, ms: Option<u64>| self.number(key, ms.and_then(|v| i64::try_from(v).ok()));
        ms("healthcheck.interval_ms", check.interval_ms);
        ms("healthcheck.timeout_ms", check.timeout_ms);
        ms("healthcheck.start_period_ms", check.start_period_ms);
        self.number("healthcheck.retries", check.retries.map(i64::from));
    }
    /// All of them.
    pub fn done(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// Settings that a request asks for.
pub fn settings(c: &ContainerSpec) -> BTreeMap<String, String> {
    let mut s = Settings::default();
    s.list("devices", c.devices.iter().map(|d| format!("{}:{}:{}", d.source, d.target, d.permissions)));
    s.list("device_cgroup_rules", c.device_cgroup_rules.iter().cloned());
    s.requests(&c.extras.device_requests);
    s.security(&c.security_opt);
    s.namespace("pid", c.pid_mode.as_deref());
    s.namespace("ipc", c.ipc_mode.as_deref());
    s.namespace("uts", c.uts_mode.as_deref());
    s.namespace("userns_mode", c.userns_mode.as_deref());
    s.text("cgroup", c.cgroupns_mode.as_deref());
    s.text("cgroup_parent", c.cgroup_parent.as_deref());
    s.map("sysctls", &c.sysctls);
    c.ulimits.iter().for_each(|(name, (soft, hard))| s.ulimit(name, *soft, *hard));
    s.shm(c.shm_size);
    s.list("extra_hosts", c.extra_hosts.iter().cloned());
    s.ordered("dns", &c.dns);
    s.ordered("dns_search", &c.dns_search);
    s.ordered("dns_opt", &c.dns_opt);
    s.list("group_add", c.group_add.iter().cloned());
    s.text("hostname", c.hostname.as_deref());
    s.text("domainname", c.domainname.as_deref());
    s.text("init", c.init.map(|on| if on { "true" } else { "false" }));
    s.flag("stdin_open", c.stdin_open);
    s.flag("tty", c.tty);
    s.text("stop_signal", c.stop_signal.as_deref());
    s.number("stop_grace_period", c.stop_timeout_s.and_then(|t| i64::try_from(t).ok()));
    s.text("runtime", c.runtime.as_deref());
    s.number("mem_reservation", c.memory_reservation.and_then(|m| i64::try_from(m).ok()));
    s.memswap(c.memswap, c.memory.unwrap_or(0));
    s.number("cpu_shares", c.cpu_shares);
    s.text("cpuset", c.cpuset.as_deref());
    s.number("cpu_quota", c.cpu_quota);
    s.number("cpu_period", c.cpu_period);
    s.number("oom_score_adj", c.oom_score_adj);
    s.flag("oom_kill_disable", c.extras.oom_kill_disable);
    s.number("mem_swappiness", c.extras.swappiness);
    s.map("storage_opt", &c.extras.storage_opt);
    s.tmpfs(c.mounts.iter().filter(|m| m.kind == MountKind::Tmpfs).map(|m| m.target.clone()));
    c.healthcheck.iter().for_each(|h| s.health(h));
    for n in &c.networks {
        s.text(&format!("networks.{}.ipv4_address", n.network), n.ipv4_address.as_deref());
        s.text(&format!("networks.{}.ipv6_address", n.network), n.ipv6_address.as_deref());
    }
    s.done()
}
