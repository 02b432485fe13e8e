//! The canonical form of a service, by subject; the keys stand in the order of the alphabet, whichever subject they are of. Deliberately absent: objects that
//! services share.

use super::{Object, file_mount, float, given, span};
use crate::model::spec::written::MountSections;
use crate::model::spec::{Dependency, DependencyCondition, MountKind, MountSpec, PortSpec, ServiceNetwork, ServiceSpec};
use serde_json::{Map, Value, json};

pub(super) fn service(s: &ServiceSpec) -> Value {
    let mut o = Object::default();
    for subject in [what_runs, build, environment, lifecycle, deploy, resources, networks, mounts, rights, kernel, logs] {
        subject(s, &mut o);
    }
    if s.settings != Default::default() {
        o.set("x-dockwarden", given(&s.settings));
    }
    o.0.sort_keys();
    o.0.into()
}

fn what_runs(s: &ServiceSpec, o: &mut Object) {
    o.text("image", s.image.as_ref().map(|i| i.as_str()).or(s.written.image.as_deref()));
    o.text("platform", s.platform.as_deref());
    o.text("pull_policy", s.pull_policy.as_deref().map(|p| if p == "if_not_present" { "missing" } else { p }));
    o.text("runtime", s.runtime.as_deref());
    o.text("isolation", s.isolation.as_deref());
    o.set("command", json!(s.command));
    o.set("entrypoint", json!(s.entrypoint));
    o.text("working_dir", s.working_dir.as_deref());
    o.text("user", s.user.as_deref());
    o.section("init", s.init.as_ref());
    o.flag("stdin_open", s.stdin_open);
    o.flag("tty", s.tty);
    o.text("container_name", s.container_name.as_deref());
    o.list("profiles", &s.profiles);
    o.flag("use_api_socket", s.use_api_socket);
}

fn build(s: &ServiceSpec, o: &mut Object) {
    o.section("build", s.written.build.as_ref());
    o.section("develop", s.written.develop.as_ref());
}

fn environment(s: &ServiceSpec, o: &mut Object) {
    if !s.environment.is_empty() {
        o.set("environment", json!(s.environment));
    }
    o.texts("annotations", &s.annotations);
    o.texts("labels", &s.labels);
}

fn lifecycle(s: &ServiceSpec, o: &mut Object) {
    let w = &s.written;
    if !s.depends_on.is_empty() {
        o.set("depends_on", s.depends_on.iter().map(|(name, d)| (name.to_string(), dependency(d))).collect::<Map<_, _>>());
    }
    if s.healthcheck.is_some() {
        o.set("healthcheck", healthcheck(s));
    }
    o.text("restart", w.restart.as_deref());
    if let Some(ms) = s.stop_grace_period_ms {
        o.set("stop_grace_period", span(ms));
    }
    o.text("stop_signal", s.stop_signal.as_deref());
    o.list("post_start", &w.post_start);
    o.list("pre_stop", &w.pre_stop);
}

fn deploy(s: &ServiceSpec, o: &mut Object) {
    o.section("deploy", s.written.deploy.as_ref());
    o.section("scale", s.written.scale.as_ref());
}

fn resources(s: &ServiceSpec, o: &mut Object) {
    let w = &s.written;
    o.section("blkio_config", w.blkio_config.as_ref());
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
    for (key, bytes) in [
        ("mem_limit", w.mem_limit),
        ("mem_reservation", w.mem_reservation),
        ("memswap_limit", w.memswap_limit),
        ("mem_swappiness", w.mem_swappiness),
    ] {
        o.section(key, bytes.filter(|b| b.0 != 0).as_ref());
    }
    o.flag("oom_kill_disable", s.oom_kill_disable);
    o.number("oom_score_adj", s.oom_score_adj);
    o.number("pids_limit", w.pids_limit);
    o.list("gpus", &w.gpus);
    if let Some(bytes) = s.shm_size.filter(|b| *b != 0) {
        o.set("shm_size", bytes.to_string());
    }
    if !s.ulimits.is_empty() {
        o.set("ulimits", ulimits(s));
    }
}

fn networks(s: &ServiceSpec, o: &mut Object) {
    o.list("dns", &s.dns);
    o.list("dns_opt", &s.dns_opt);
    o.list("dns_search", &s.dns_search);
    o.text("domainname", s.domainname.as_deref());
    o.list("expose", &s.expose);
    o.list("external_links", &s.external_links);
    let mut hosts: Vec<String> = s.extra_hosts.iter().map(|h| h.replacen(':', "=", 1)).collect();
    hosts.sort();
    o.list("extra_hosts", &hosts);
    o.text("hostname", s.hostname.as_deref());
    o.list("links", &s.links);
    o.text("mac_address", s.mac_address.as_deref());
    o.text("network_mode", s.network_mode.as_deref());
    if !s.networks.is_empty() {
        let empty = &s.written.empty_networks;
        o.set("networks", s.networks.iter().map(|(k, n)| (k.clone(), attachment(n, empty.contains(k)))).collect::<Map<_, _>>());
    }
    o.list("ports", &s.ports.iter().map(port).collect::<Vec<_>>());
}

fn mounts(s: &ServiceSpec, o: &mut Object) {
    o.list("configs", &s.configs.iter().map(|c| file_mount(c, false)).collect::<Vec<_>>());
    o.list("secrets", &s.secrets.iter().map(|c| file_mount(c, true)).collect::<Vec<_>>());
    o.texts("storage_opt", &s.storage_opt);
    o.list("tmpfs", &s.written.tmpfs);
    o.list("volumes", &s.mounts.iter().zip(&s.written.mounts).map(|(m, sections)| mount(m, sections)).collect::<Vec<_>>());
    o.list("volumes_from", &s.volumes_from);
}

fn rights(s: &ServiceSpec, o: &mut Object) {
    let w = &s.written;
    o.list("cap_add", &s.cap_add);
    o.list("cap_drop", &s.cap_drop);
    o.section("credential_spec", w.credential_spec.as_ref());
    o.list("device_cgroup_rules", &s.device_cgroup_rules);
    o.list("devices", &devices(s));
    o.list("group_add", &s.group_add);
    o.flag("privileged", s.privileged);
    o.flag("read_only", s.read_only);
    o.list("security_opt", if w.security_opt.is_empty() { &s.security_opt } else { &w.security_opt });
}

fn kernel(s: &ServiceSpec, o: &mut Object) {
    o.text("cgroup_parent", s.cgroup_parent.as_deref());
    o.text("cgroup", s.cgroup.as_deref());
    o.text("ipc", s.ipc.as_deref());
    o.text("pid", s.pid.as_deref());
    o.texts("sysctls", &s.sysctls);
    o.text("userns_mode", s.userns_mode.as_deref());
    o.text("uts", s.uts.as_deref());
}

fn logs(s: &ServiceSpec, o: &mut Object) {
    o.section("attach", s.written.attach.as_ref());
    if let Some(logging) = &s.logging {
        let mut l = Object::default();
        l.text("driver", Some(&logging.driver));
        l.texts("options", &logging.options);
        o.set("logging", l.0);
    }
}

fn devices(s: &ServiceSpec) -> Vec<Value> {
    let device = |d: &crate::model::spec::DeviceSpec| {
        let mut o = Object::default();
        o.text("source", Some(&d.source));
        o.text("target", Some(&d.target));
        o.text("permissions", Some(d.permissions.as_str()).filter(|_| !s.written.bare_devices.contains(&d.target)));
        o.0.into()
    };
    s.devices.iter().map(device).collect()
}

fn ulimits(s: &ServiceSpec) -> Map<String, Value> {
    let limit = |(name, (soft, hard)): (&String, &(i64, i64))| {
        let single = s.written.single_ulimits.contains(name) && *soft != 0;
        let both = || {
            let given = [("soft", *soft), ("hard", *hard)].into_iter().filter(|(_, v)| *v != 0);
            given.map(|(k, v)| (k.to_owned(), json!(v))).collect::<Map<_, _>>().into()
        };
        (name.clone(), if single { json!(soft) } else { both() })
    };
    s.ulimits.iter().map(limit).collect()
}

fn dependency(d: &Dependency) -> Value {
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
