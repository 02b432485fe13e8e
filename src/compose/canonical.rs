//! The canonical form of a project: what `docker compose config --format json` prints, made of the model alone. Loading it again gives the same
//! form. As there, inactive services and what no active one uses are left out, and a literal `$` is doubled.

use crate::model::spec::written::{MountSections, Span};
use crate::model::spec::{
    DependencyCondition, FileMount, FileObject, MountKind, MountSpec, NetworkSpec, PortSpec, ServiceNetwork, ServiceSpec, StackSpec,
    VolumeSpec,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The canonical JSON of a stack.
pub fn canonical(spec: &StackSpec) -> Value {
    let active: Vec<_> = spec.services.iter().filter(|(_, s)| s.active).collect();
    let mut out = Object::default();
    out.set("name", spec.name.as_str());
    out.set("services", active.iter().map(|(name, s)| (name.to_string(), service(s))).collect::<Map<_, _>>());
    let mut used: [BTreeSet<&str>; 4] = Default::default();
    for (_, s) in &active {
        used[0].extend(s.networks.keys().map(String::as_str));
        used[1].extend(s.mounts.iter().filter(|m| m.kind == MountKind::Volume).filter_map(|m| m.source.as_deref()));
        used[2].extend(s.configs.iter().map(|c| c.source.as_str()));
        let built = s.written.build.iter().flat_map(|b| &b.secrets).filter_map(|f| f.source.as_deref());
        used[3].extend(s.secrets.iter().map(|c| c.source.as_str()).chain(built));
    }
    let [networks, volumes, configs, secrets] = used;
    out.map("networks", &spec.networks, &networks, network);
    out.map("volumes", &spec.volumes, &volumes, volume);
    out.map("configs", &spec.configs, &configs, |o| file_object(o, true));
    out.map("secrets", &spec.secrets, &secrets, |o| file_object(o, false));
    for (key, value) in &spec.extensions {
        out.0.insert(key.clone(), no_empty_lists(value.clone()));
    }
    if spec.settings != Default::default() {
        out.set("x-dockwarden", given(&spec.settings));
    }
    doubled(Value::Object(out.0))
}

/// Settings of ours without what is not given.
fn given(settings: &impl Serialize) -> Value {
    /// Of these a `false` says something else than nothing.
    const SAID: [&str; 3] = ["enable", "pre_update", "migrates"];
    fn clean(value: Value) -> Option<Value> {
        match value {
            Value::Null | Value::Bool(false) => None,
            Value::Object(map) => {
                let cleaned = |k: &str, v: Value| if v == Value::Bool(false) && SAID.contains(&k) { Some(v) } else { clean(v) };
                let map: Map<_, _> = map.into_iter().filter_map(|(k, v)| cleaned(&k, v).map(|v| (k, v))).collect();
                if map.is_empty() { None } else { Some(Value::Object(map)) }
            }
            other => Some(other),
        }
    }
    serde_json::to_value(settings).ok().and_then(clean).unwrap_or_else(|| json!({}))
}

/// An object whose empty values are left out.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// A typed section; `None` = not given.
    fn section<T: Serialize>(&mut self, key: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.set(key, serde_json::to_value(value).expect("a section is plain data"));
        }
    }

    fn list<T: Serialize>(&mut self, key: &str, items: &[T]) {
        if !items.is_empty() {
            self.set(key, serde_json::to_value(items).expect("a list is plain data"));
        }
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            self.set(key, value);
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.set(key, true);
        }
    }

    fn number(&mut self, key: &str, value: Option<i64>) {
        if let Some(value) = value.filter(|v| *v != 0) {
            self.set(key, value);
        }
    }

    fn texts(&mut self, key: &str, map: &BTreeMap<String, String>) {
        if !map.is_empty() {
            self.set(key, serde_json::to_value(map).expect("texts are plain data"));
        }
    }

    fn map<T>(&mut self, key: &str, objects: &BTreeMap<String, T>, used: &BTreeSet<&str>, each: impl Fn(&T) -> Value) {
        let map: Map<_, _> = objects.iter().filter(|(k, _)| used.contains(k.as_str())).map(|(k, o)| (k.clone(), each(o))).collect();
        if !map.is_empty() {
            self.set(key, map);
        }
    }
}

fn float(value: Option<f32>) -> Option<Value> {
    let value = value.filter(|v| *v != 0.0)?;
    Some(if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value.to_string().parse::<f64>().ok()?) })
}

fn service(s: &ServiceSpec) -> Value {
    let w = &s.written;
    let mut o = Object::default();
    o.list("profiles", &s.profiles);
    o.texts("annotations", &s.annotations);
    o.section("attach", w.attach.as_ref());
    o.section("build", w.build.as_ref());
    o.section("develop", w.develop.as_ref());
    o.section("blkio_config", w.blkio_config.as_ref());
    o.list("cap_add", &s.cap_add);
    o.list("cap_drop", &s.cap_drop);
    o.text("cgroup_parent", s.cgroup_parent.as_deref());
    o.text("cgroup", s.cgroup.as_deref());
    o.number("cpu_count", w.cpu_count);
    for (key, value) in [("cpu_percent", w.cpu_percent), ("cpus", w.cpus)] {
        if let Some(value) = float(value) {
            o.set(key, value);
        }
    }
    o.number("cpu_period", s.resources.cpu_period);
    o.number("cpu_quota", s.resources.cpu_quota);
    o.number("cpu_rt_period", w.cpu_rt_period);
    o.number("cpu_rt_runtime", w.cpu_rt_runtime);
    o.text("cpuset", s.resources.cpuset.as_deref());
    o.number("cpu_shares", s.resources.cpu_shares);
    o.set("command", json!(s.command));
    o.set("entrypoint", json!(s.entrypoint));
    o.list("configs", &s.configs.iter().map(|c| file_mount(c, false)).collect::<Vec<_>>());
    o.text("container_name", s.container_name.as_deref());
    o.section("credential_spec", w.credential_spec.as_ref());
    if !s.depends_on.is_empty() {
        o.set("depends_on", s.depends_on.iter().map(|(name, d)| (name.to_string(), dependency(d))).collect::<Map<_, _>>());
    }
    o.section("deploy", w.deploy.as_ref());
    o.list("device_cgroup_rules", &s.device_cgroup_rules);
    let devices: Vec<Value> = s
        .devices
        .iter()
        .map(|d| {
            let mut o = Object::default();
            o.text("source", Some(&d.source));
            o.text("target", Some(&d.target));
            o.text("permissions", Some(d.permissions.as_str()).filter(|_| !w.bare_devices.contains(&d.target)));
            o.0.into()
        })
        .collect();
    o.list("devices", &devices);
    o.list("dns", &s.dns);
    o.list("dns_opt", &s.dns_opt);
    o.list("dns_search", &s.dns_search);
    o.text("domainname", s.domainname.as_deref());
    if !s.environment.is_empty() {
        o.set("environment", json!(s.environment));
    }
    o.list("expose", &s.expose);
    o.list("external_links", &s.external_links);
    let mut hosts: Vec<String> = s.extra_hosts.iter().map(|h| h.replacen(':', "=", 1)).collect();
    hosts.sort();
    o.list("extra_hosts", &hosts);
    o.list("group_add", &s.group_add);
    o.list("gpus", &w.gpus);
    o.text("hostname", s.hostname.as_deref());
    if s.healthcheck.is_some() {
        o.set("healthcheck", healthcheck(s));
    }
    o.text("image", s.image.as_ref().map(|i| i.as_str()).or(w.image.as_deref()));
    o.section("init", s.init.as_ref());
    o.text("ipc", s.ipc.as_deref());
    o.text("isolation", s.isolation.as_deref());
    o.texts("labels", &s.labels);
    o.list("links", &s.links);
    if let Some(logging) = &s.logging {
        let mut l = Object::default();
        l.text("driver", Some(&logging.driver));
        l.texts("options", &logging.options);
        o.set("logging", l.0);
    }
    for (key, bytes) in [
        ("mem_limit", w.mem_limit),
        ("mem_reservation", w.mem_reservation),
        ("memswap_limit", w.memswap_limit),
        ("mem_swappiness", w.mem_swappiness),
    ] {
        o.section(key, bytes.filter(|b| b.0 != 0).as_ref());
    }
    o.text("mac_address", s.mac_address.as_deref());
    o.text("network_mode", s.network_mode.as_deref());
    if !s.networks.is_empty() {
        o.set("networks", s.networks.iter().map(|(k, n)| (k.clone(), attachment(n, w.empty_networks.contains(k)))).collect::<Map<_, _>>());
    }
    o.flag("oom_kill_disable", s.oom_kill_disable);
    o.number("oom_score_adj", s.oom_score_adj);
    o.text("pid", s.pid.as_deref());
    o.number("pids_limit", w.pids_limit);
    o.text("platform", s.platform.as_deref());
    o.list("ports", &s.ports.iter().map(port).collect::<Vec<_>>());
    o.flag("privileged", s.privileged);
    o.text("pull_policy", s.pull_policy.as_deref().map(|p| if p == "if_not_present" { "missing" } else { p }));
    o.flag("read_only", s.read_only);
    o.text("restart", w.restart.as_deref());
    o.text("runtime", s.runtime.as_deref());
    o.section("scale", w.scale.as_ref());
    o.list("secrets", &s.secrets.iter().map(|c| file_mount(c, true)).collect::<Vec<_>>());
    o.list("security_opt", if w.security_opt.is_empty() { &s.security_opt } else { &w.security_opt });
    if let Some(bytes) = s.shm_size.filter(|b| *b != 0) {
        o.set("shm_size", bytes.to_string());
    }
    o.flag("stdin_open", s.stdin_open);
    if let Some(ms) = s.stop_grace_period_ms {
        o.set("stop_grace_period", span(ms));
    }
    o.text("stop_signal", s.stop_signal.as_deref());
    o.texts("storage_opt", &s.storage_opt);
    o.texts("sysctls", &s.sysctls);
    o.list("tmpfs", &w.tmpfs);
    o.flag("tty", s.tty);
    if !s.ulimits.is_empty() {
        let limit = |(name, (soft, hard)): (&String, &(i64, i64))| {
            let single = w.single_ulimits.contains(name) && *soft != 0;
            let both = || {
                let given = [("soft", *soft), ("hard", *hard)].into_iter().filter(|(_, v)| *v != 0);
                given.map(|(k, v)| (k.to_owned(), json!(v))).collect::<Map<_, _>>().into()
            };
            (name.clone(), if single { json!(soft) } else { both() })
        };
        o.set("ulimits", s.ulimits.iter().map(limit).collect::<Map<_, _>>());
    }
    o.text("user", s.user.as_deref());
    o.text("userns_mode", s.userns_mode.as_deref());
    o.text("uts", s.uts.as_deref());
    o.list("volumes", &s.mounts.iter().zip(&w.mounts).map(|(m, sections)| mount(m, sections)).collect::<Vec<_>>());
    o.list("volumes_from", &s.volumes_from);
    o.text("working_dir", s.working_dir.as_deref());
    o.list("post_start", &w.post_start);
    o.list("pre_stop", &w.pre_stop);
    o.flag("use_api_socket", s.use_api_socket);
    if s.settings != Default::default() {
        o.set("x-dockwarden", given(&s.settings));
    }
    o.0.into()
}

fn span(ms: u64) -> String {
    Span(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)).text()
}

fn dependency(d: &crate::model::spec::Dependency) -> Value {
    let mut o = Object::default();
    o.set(
        "condition",
        match d.condition {
            DependencyCondition::ServiceStarted => "service_started",
            DependencyCondition::ServiceHealthy => "service_healthy",
            DependencyCondition::ServiceCompletedSuccessfully => "service_completed_successfully",
        },
    );
    o.flag("restart", d.restart);
    o.set("required", d.required);
    o.0.into()
}

fn healthcheck(s: &ServiceSpec) -> Value {
    let mut o = Object::default();
    let Some(check) = &s.healthcheck else { return Value::Null };
    o.list("test", if s.written.healthcheck_disable { &s.written.healthcheck_test } else { &check.test });
    for (key, ms) in [
        ("timeout", check.timeout_ms),
        ("interval", check.interval_ms),
        ("start_period", check.start_period_ms),
        ("start_interval", check.start_interval_ms),
    ] {
        if let Some(ms) = ms {
            o.set(key, span(ms));
        }
    }
    o.section("retries", check.retries.as_ref());
    o.flag("disable", s.written.healthcheck_disable);
    o.0.into()
}

fn attachment(n: &ServiceNetwork, empty: bool) -> Value {
    let mut o = Object::default();
    o.number("priority", n.priority);
    o.number("gw_priority", n.gw_priority);
    o.list("aliases", &n.aliases);
    o.text("ipv4_address", n.ipv4_address.as_deref());
    o.text("ipv6_address", n.ipv6_address.as_deref());
    o.list("link_local_ips", &n.link_local_ips);
    o.text("mac_address", n.mac_address.as_deref());
    o.texts("driver_opts", &n.driver_opts);
    if o.0.is_empty() && !empty { Value::Null } else { o.0.into() }
}

fn port(p: &PortSpec) -> Value {
    let mut o = Object::default();
    o.text("name", p.name.as_deref());
    o.text("mode", Some(&p.mode));
    o.text("host_ip", p.host_ip.as_deref());
    o.number("target", Some(p.target.into()));
    o.text("published", p.published.as_deref());
    o.text("protocol", Some(&p.protocol));
    o.text("app_protocol", p.app_protocol.as_deref());
    o.0.into()
}

fn mount(m: &MountSpec, sections: &MountSections) -> Value {
    let mut o = Object::default();
    let kind = match m.kind {
        MountKind::Bind => "bind",
        MountKind::Volume => "volume",
        MountKind::Tmpfs => "tmpfs",
        MountKind::Npipe => "npipe",
        MountKind::Cluster => "cluster",
        MountKind::Image => "image",
    };
    o.set("type", kind);
    o.text("source", sections.source.as_deref().or(m.source.as_deref()));
    o.text("target", Some(&m.target));
    o.flag("read_only", m.read_only);
    o.text("consistency", sections.consistency.as_deref());
    if sections.bind {
        let mut b = Object::default();
        b.text("selinux", m.selinux.as_deref());
        b.text("propagation", m.propagation.as_deref());
        b.flag("create_host_path", m.create_host_path);
        b.text("recursive", sections.recursive.as_deref());
        o.set("bind", b.0);
    }
    if sections.volume {
        let mut v = Object::default();
        v.flag("nocopy", m.nocopy);
        v.text("subpath", m.subpath.as_deref().filter(|_| m.kind != MountKind::Image));
        o.set("volume", v.0);
    }
    if sections.tmpfs {
        let mut t = Object::default();
        if let Some(size) = m.tmpfs_size.filter(|s| *s != 0) {
            t.set("size", size.to_string());
        }
        t.number("mode", m.tmpfs_mode.map(i64::from));
        o.set("tmpfs", t.0);
    }
    if sections.image {
        let mut i = Object::default();
        i.text("subpath", m.subpath.as_deref());
        o.set("image", i.0);
    }
    o.0.into()
}

fn file_mount(f: &FileMount, secret: bool) -> Value {
    let mut o = Object::default();
    o.text("source", Some(&f.source));
    let target = f.written_target.as_deref().or(if secret { Some(f.target.as_str()) } else { None });
    o.text("target", target);
    o.text("uid", f.uid.as_deref());
    o.text("gid", f.gid.as_deref());
    o.section("mode", f.mode.as_ref());
    o.0.into()
}

fn network(n: &NetworkSpec) -> Value {
    let mut o = Object::default();
    o.text("name", Some(&n.name));
    o.text("driver", n.driver.as_deref());
    o.texts("driver_opts", &n.driver_opts);
    let mut ipam = Object::default();
    ipam.text("driver", n.ipam_driver.as_deref());
    let pools: Vec<Value> = n
        .ipam
        .iter()
        .map(|p| {
            let mut o = Object::default();
            o.text("subnet", p.subnet.as_deref());
            o.text("gateway", p.gateway.as_deref());
            o.text("ip_range", p.ip_range.as_deref());
            o.texts("aux_addresses", &p.aux_addresses);
            o.0.into()
        })
        .collect();
    ipam.list("config", &pools);
    o.set("ipam", ipam.0);
    o.flag("external", n.external);
    o.flag("internal", n.internal);
    o.flag("attachable", n.attachable);
    o.texts("labels", &n.labels);
    o.section("enable_ipv4", n.written_ipv4.as_ref());
    o.section("enable_ipv6", n.written_ipv6.as_ref());
    o.0.into()
}

fn volume(v: &VolumeSpec) -> Value {
    let mut o = Object::default();
    o.text("name", Some(&v.name));
    o.text("driver", v.driver.as_deref());
    o.texts("driver_opts", &v.driver_opts);
    o.flag("external", v.external);
    o.texts("labels", &v.labels);
    if !v.settings.is_empty() {
        o.set("x-dockwarden", given(&v.settings));
    }
    o.0.into()
}

fn file_object(f: &FileObject, config: bool) -> Value {
    let mut o = Object::default();
    o.text("name", Some(&f.name));
    o.text("file", f.file.as_deref());
    o.text("environment", f.environment.as_deref());
    // What was read from a file or a variable is not part of the project; a secret's text never leaves.
    let inline = f.file.is_none() && f.environment.is_none();
    o.text("content", f.content.as_deref().filter(|_| inline && config));
    o.flag("external", f.external);
    o.texts("labels", &f.labels);
    o.text("driver", f.driver.as_deref().filter(|d| f.template_driver.as_deref() != Some(d)));
    o.texts("driver_opts", &f.driver_opts);
    o.text("template_driver", f.template_driver.as_deref());
    o.0.into()
}

/// Compose writes an empty list it knows nothing about as nothing.
fn no_empty_lists(value: Value) -> Value {
    match value {
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.into_iter().map(no_empty_lists).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, no_empty_lists(v))).collect()),
        other => other,
    }
}

/// The form is a compose file again: a `$` in it would be interpolated.
fn doubled(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('$') => text.replace('$', "$$").into(),
        Value::Array(items) => items.into_iter().map(doubled).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k.replace('$', "$$"), doubled(v))).collect()),
        other => other,
    }
}
