//! The second judgement: on the very request that is about to go to the engine, by lists of what the judged plan contained. It shares no
//! code path with the planner that made the request, so that a mistake there cannot create what the plan gate never saw. Everything not
//! listed is denied. Deliberately absent: levels and approvals; what needed one was approved with the plan or is not in the lists.

mod plain;
mod rare;

pub use plain::{Plain, assert_own};
pub use rare::Rare;

use super::plan::{PlanFacts, normalise, privileges};
use super::rules::{self};
use crate::engine::{ContainerSpec, NetworkCreate, VolumeCreate};
use crate::model::policy::Policy;
use crate::model::spec::confinement::option_shown;
use crate::model::spec::mounts::{Way, placed};
use crate::model::spec::{MountKind, NetworkSpec, ServiceSpec, StackSpec, VolumeSpec};
use crate::model::verdict::{Finding, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// What a request may contain: the lists of one service of a judged plan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestFacts {
    /// Host paths, links followed, that may be mounted. Requests name these, never the links.
    pub bind_sources: BTreeSet<String>,
    /// Where a path of the plan really leads: the request names that, so that a link changed later leads nowhere.
    pub real_paths: BTreeMap<String, String>,
    /// Host paths of the plan that lead elsewhere by now than when it was judged: no exception allows these.
    pub moved: BTreeSet<String>,
    /// Volumes by engine name.
    pub volumes: BTreeSet<String>,
    /// Networks by engine name.
    pub networks: BTreeSet<String>,
    /// Containers (names or ids) whose namespaces may be joined: those of the same stack.
    pub containers: BTreeSet<String>,
    /// Capabilities added, without `CAP_`.
    pub caps: BTreeSet<String>,
    /// Devices by host path, links followed, or CDI name.
    pub devices: BTreeSet<String>,
    /// Device cgroup rules as written.
    pub device_rules: BTreeSet<String>,
    /// Security options as written.
    pub security_opts: BTreeSet<String>,
    /// Sysctls by name.
    pub sysctls: BTreeSet<String>,
    /// Runtime, when the plan asks for one.
    pub runtime: Option<String>,
    /// Cgroup parent of the plan.
    pub cgroup_parent: Option<String>,
    /// Lowest OOM score adjustment of the plan.
    pub oom_score_adj: Option<i64>,
    /// Log driver of the plan.
    pub log_driver: Option<String>,
    /// Options of the stack's volumes by engine name.
    pub volume_specs: BTreeMap<String, VolumeSpec>,
    /// Networks of the stack by engine name.
    pub network_specs: BTreeMap<String, NetworkSpec>,
    /// Rules an operator excepted for this service of this stack, with the value: `(rule, value)`.
    pub excepted: BTreeSet<(String, String)>,
    /// Commands of the service's hooks, while the policy lets hooks run at all.
    pub commands: BTreeSet<Vec<String>>,
    /// What nearly every service has, as the plan says it.
    pub plain: Plain,
    /// What few services have, as the plan says it.
    pub rare: Rare,
}

impl RequestFacts {
    /// The lists for one service of a plan that the plan gate did not deny. `containers` are the stack's own containers on the engine.
    pub fn of(
        spec: &StackSpec,
        service: &str,
        facts: &PlanFacts,
        policy: &Policy,
        now: chrono::NaiveDate,
        containers: BTreeSet<String>,
    ) -> Self {
        let empty = ServiceSpec::default();
        let s = spec.services.iter().find(|(n, _)| n.as_str() == service).map_or(&empty, |(_, s)| s);
        let real = |p: &String| facts.resolved.get(p).map_or_else(|| normalise(p), |f| normalise(&f.real));
        let named = |key: &String, name: &String| if name.is_empty() { key.clone() } else { name.clone() };
        let binds = s.mounts.iter().filter(|m| m.kind == MountKind::Bind).filter_map(|m| m.source.as_ref());
        let none = BTreeSet::new();
        let carried = facts.carried.iter().find(|(n, _)| n.as_str() == service).map_or(&none, |(_, places)| places);
        // A file that was judged as copied is no source of a mount.
        let files: Vec<String> = placed(spec, s, carried)
            .into_iter()
            .filter_map(|f| match f.way {
                Way::Mounted(file) => Some(file.to_owned()),
                Way::Replaced | Way::Copied(_) | Way::None => None,
            })
            .collect();
        let hooks = hooks_run(policy, &facts.environment);
        let mine = |e: &&crate::model::policy::Exception| {
            e.stack == spec.name.as_str() && e.service.as_deref().is_none_or(|x| x == service) && now <= e.expires
        };
        Self {
            bind_sources: binds.clone().chain(&files).map(real).collect(),
            real_paths: binds.chain(&files).map(|p| (p.clone(), real(p))).collect(),
            moved: BTreeSet::new(),
            volumes: spec.volumes.iter().map(|(k, v)| named(k, &v.name)).collect(),
            networks: spec.networks.iter().map(|(k, n)| named(k, &n.name)).collect(),
            containers,
            caps: s.cap_add.iter().map(|c| privileges::capability(c)).collect(),
            devices: s.devices.iter().map(|d| if d.source.starts_with('/') { real(&d.source) } else { d.source.clone() }).collect(),
            device_rules: s.device_cgroup_rules.iter().cloned().collect(),
            security_opts: s.security_opt.iter().cloned().collect(),
            sysctls: s.sysctls.keys().cloned().collect(),
            runtime: s.runtime.clone(),
            cgroup_parent: s.cgroup_parent.clone(),
            oom_score_adj: s.oom_score_adj,
            log_driver: s.logging.as_ref().map(|l| l.driver.clone()),
            volume_specs: spec.volumes.iter().map(|(k, v)| (named(k, &v.name), v.clone())).collect(),
            network_specs: spec.networks.iter().map(|(k, n)| (named(k, &n.name), n.clone())).collect(),
            commands: {
                let of_stack = spec.settings.hooks.pre.iter().chain(&spec.settings.hooks.post).filter(|h| h.service.as_str() == service);
                let own = s.settings.hooks.pre.iter().chain(&s.settings.hooks.post);
                own.chain(of_stack.map(|h| &h.hook)).filter(|_| hooks).map(|h| h.run.clone()).collect()
            },
            excepted: policy.exceptions.iter().filter(mine).map(|e| (e.rule.clone(), e.value.clone())).collect(),
            plain: Plain::of(spec, service, s),
            rare: Rare::of(spec, s),
        }
    }
}

struct Assert<'a> {
    allowed: &'a RequestFacts,
    findings: Vec<Finding>,
}

impl Assert<'_> {
    fn deny(&mut self, rule: &str, path: &str, value: &str, because: &str) {
        debug_assert!(rules::find(rule).is_some(), "{rule}");
        if !self.allowed.excepted.contains(&(rule.to_owned(), value.to_owned())) {
            let because = format!("the request to the engine holds what the plan does not: {because}");
            self.findings.push(Finding { rule: rule.into(), verdict: Verdict::Deny, service: None, path: Some(path.into()), because });
        }
    }
}

impl Assert<'_> {
    /// A path that was replaced by a link since is not what anybody allowed, whatever an exception says of its name.
    fn moved(&mut self, rule: &str, path: &str, source: &str) {
        if self.allowed.moved.contains(source) {
            let because = "this host path leads elsewhere than when the plan was judged; plan again".into();
            self.findings.push(Finding { rule: rule.into(), verdict: Verdict::Deny, service: None, path: Some(path.into()), because });
        }
    }
}

/// Judges a container that is about to be created. Empty = nothing against it.
pub fn assert_container(spec: &ContainerSpec, allowed: &RequestFacts) -> Vec<Finding> {
    let mut a = Assert { allowed, findings: Vec::new() };
    if spec.privileged {
        a.deny("privileged", "privileged", "true", "privileged mode");
    }
    let modes = [
        ("pid_mode", &spec.pid_mode, "ns.pid.host"),
        ("ipc_mode", &spec.ipc_mode, "ns.ipc.host"),
        ("uts_mode", &spec.uts_mode, "ns.uts.host"),
        ("userns_mode", &spec.userns_mode, "ns.user.host"),
        ("cgroupns_mode", &spec.cgroupns_mode, "ns.cgroup.host"),
        ("network_mode", &spec.network_mode, "ns.net.host"),
    ];
    for (path, mode, host_rule) in modes {
        let Some(mode) = mode.as_deref() else { continue };
        match mode.split_once(':') {
            _ if matches!(mode, "" | "none" | "private" | "shareable") => {}
            _ if path == "network_mode" && matches!(mode, "bridge" | "default") => {}
            Some(("container", name)) if allowed.containers.contains(name) => {}
            Some(_) => a.deny("ns.foreign", path, mode, "a namespace of a container that is not of this stack"),
            None if path == "network_mode" && mode != "host" && allowed.networks.contains(mode) => {}
            None => a.deny(host_rule, path, mode, "a namespace of the host"),
        }
    }
    mounts(&mut a, spec);
    privileges_of(&mut a, spec);
    plain::judge(&mut a, spec);
    rare::judge(&mut a, spec);
    for network in spec.networks.iter().filter(|n| !allowed.networks.contains(&n.network)) {
        a.deny("net.foreign", "networks", &network.network, "a network that is not of this stack");
    }
    if spec.log_driver_differs(allowed) {
        a.deny("log.remote", "logging", "", "another log driver");
    }
    a.findings
}

fn mounts(a: &mut Assert<'_>, spec: &ContainerSpec) {
    for (i, mount) in spec.mounts.iter().enumerate() {
        let path = format!("mounts[{i}]");
        let source = mount.source.as_deref().unwrap_or_default();
        if mount.kind == MountKind::Bind {
            a.moved("bind.outside", &path, source);
        }
        match mount.kind {
            MountKind::Bind if !a.allowed.bind_sources.contains(source) => {
                a.deny("bind.outside", &path, source, "a host path that was not judged, or a link instead of what it leads to");
            }
            MountKind::Bind | MountKind::Tmpfs | MountKind::Image => {}
            MountKind::Volume | MountKind::Cluster if source.is_empty() => {}
            // Anonymous volumes carried over from the container before have names of 64 hexadecimal digits, made by the engine.
            MountKind::Volume if source.len() == 64 && source.bytes().all(|b| b.is_ascii_hexdigit()) => {}
            MountKind::Volume | MountKind::Cluster if !a.allowed.volumes.contains(source) => {
                a.deny("vol.foreign", &path, source, "a volume that is not of this stack");
            }
            MountKind::Volume | MountKind::Cluster => {}
            MountKind::Npipe => a.deny("socket.engine", &path, source, "a named pipe"),
        }
        if mount.kind == MountKind::Bind && super::plan::mounts::engine_socket(&normalise(source), &[]) {
            a.deny("socket.engine", &path, source, "the engine's socket");
        }
        if matches!(mount.propagation.as_deref(), Some("shared" | "rshared")) {
            a.deny("bind.propagation", &path, mount.propagation.as_deref().unwrap_or_default(), "shared propagation");
        }
    }
}

fn privileges_of(a: &mut Assert<'_>, spec: &ContainerSpec) {
    let with_devices = !spec.devices.is_empty() || !spec.device_cgroup_rules.is_empty();
    for (i, written) in spec.cap_add.iter().enumerate() {
        let name = privileges::capability(written);
        match privileges::capability_rule(&name, with_devices) {
            Some("cap.dangerous") => a.deny("cap.dangerous", &format!("cap_add[{i}]"), &name, "a capability that is as good as root"),
            Some(rule) if !a.allowed.caps.contains(&name) => a.deny(rule, &format!("cap_add[{i}]"), &name, "a capability"),
            Some(_) | None => {}
        }
    }
    for device in &spec.devices {
        a.moved("device.raw", "devices", &device.source);
    }
    for device in spec.devices.iter().filter(|d| !a.allowed.devices.contains(&d.source)).collect::<Vec<_>>() {
        a.deny("device.raw", "devices", &device.source, "a device");
    }
    for device in
        spec.devices.iter().filter(|d| privileges::device_rule(&normalise(&d.source)) == "device.raw" && d.source.starts_with('/'))
    {
        a.deny("device.raw", "devices", &device.source, "a raw device");
    }
    for rule in spec.device_cgroup_rules.iter().filter(|r| !a.allowed.device_rules.contains(*r)).collect::<Vec<_>>() {
        a.deny("device.raw", "device_cgroup_rules", rule, "a device rule");
    }
    for option in &spec.security_opt {
        match privileges::security_opt_rule(option) {
            Some(rule @ ("secopt.unconfined" | "secopt.nnp_off")) => {
                a.deny(rule, "security_opt", &option_shown(option), "a confinement switched off")
            }
            Some(rule) if !a.allowed.security_opts.contains(option) => {
                a.deny(rule, "security_opt", &option_shown(option), "a security option")
            }
            Some(_) | None => {}
        }
    }
    for name in spec.sysctls.keys() {
        match privileges::sysctl_rule(name) {
            Some("sysctl.host") => a.deny("sysctl.host", "sysctls", name, "a setting of the whole host"),
            Some(rule) if !a.allowed.sysctls.contains(name) => a.deny(rule, "sysctls", name, "a sysctl"),
            Some(_) | None => {}
        }
    }
    if spec.runtime.is_some() && spec.runtime != a.allowed.runtime {
        a.deny("runtime.unlisted", "runtime", spec.runtime.as_deref().unwrap_or_default(), "a runtime");
    }
    if spec.cgroup_parent.is_some() && spec.cgroup_parent != a.allowed.cgroup_parent {
        a.deny("cgroup.parent", "cgroup_parent", spec.cgroup_parent.as_deref().unwrap_or_default(), "a cgroup parent");
    }
    if let Some(adj) = spec.oom_score_adj.filter(|v| *v < 0 && a.allowed.oom_score_adj.is_none_or(|least| *v < least)) {
        a.deny("oom.protect", "oom_score_adj", &adj.to_string(), "a lower OOM score");
    }
}

impl ContainerSpec {
    /// Log drivers that stay here may be set by us; any other must be the plan's.
    fn log_driver_differs(&self, allowed: &RequestFacts) -> bool {
        let driver = self.logging.as_ref().map_or("", |l| l.driver.as_str());
        !matches!(driver, "" | "json-file" | "local" | "journald") && allowed.log_driver.as_deref() != Some(driver)
    }
}

/// Judges a command that is about to be run by a hook.
pub fn assert_command(run: &[String], allowed: &RequestFacts) -> Vec<Finding> {
    let mut a = Assert { allowed, findings: Vec::new() };
    if !allowed.commands.contains(run) {
        a.deny("hook.command", "hooks", &run.join(" "), "a command, or one that the policy forbids by now");
    }
    a.findings
}

/// Whether the policy lets hooks run at all in an environment.
fn hooks_run(policy: &Policy, environment: &str) -> bool {
    rules::find("hook.command").and_then(|r| rules::level(policy, environment, r)) != Some(Verdict::Deny)
}

/// Judges a command of a backup, which runs long after the plan that brought it: the policy of this moment may forbid it.
pub fn assert_backup_command(policy: &Policy, environment: &str, run: &[String]) -> Vec<Finding> {
    let commands = hooks_run(policy, environment).then(|| run.to_vec()).into_iter().collect();
    assert_command(run, &RequestFacts { commands, ..RequestFacts::default() })
}

/// Judges a volume that is about to be created.
pub fn assert_volume(spec: &VolumeCreate, allowed: &RequestFacts) -> Vec<Finding> {
    let mut a = Assert { allowed, findings: Vec::new() };
    let name = spec.name.as_str();
    let judged = allowed.volume_specs.get(name);
    if let Some(device) = spec.driver_opts.get("device") {
        a.moved("vol.driver_opts_bind", "driver_opts.device", device);
    }
    if judged.is_none() {
        a.deny("vol.foreign", "name", name, "a volume that is not of this stack");
    }
    let same = judged.is_some_and(|j| {
        j.driver.as_deref().unwrap_or("local") == spec.driver.as_deref().unwrap_or("local") && j.driver_opts == spec.driver_opts
    });
    if judged.is_some() && !same {
        a.deny("vol.driver_opts_bind", "driver_opts", name, "a driver or options");
    }
    a.findings
}

/// Judges a network that is about to be created.
pub fn assert_network(spec: &NetworkCreate, allowed: &RequestFacts) -> Vec<Finding> {
    let mut a = Assert { allowed, findings: Vec::new() };
    let name = spec.name.as_str();
    match allowed.network_specs.get(name) {
        None => a.deny("net.foreign", "name", name, "a network that is not of this stack"),
        Some(judged) if judged.driver.as_deref().unwrap_or_default() != spec.spec.driver.as_deref().unwrap_or_default() => {
            a.deny("net.l2", "driver", name, "a network driver");
        }
        // A bridge of the host by its name, addresses, a way out.
        Some(judged) if *judged != spec.spec => a.deny("net.l2", "driver_opts", name, "options, addresses or a reach"),
        Some(_) => {}
    }
    a.findings
}

#[cfg(test)]
mod tests;
