//! The closed typed model: a merged tree to a [`StackSpec`] with defaults. References between parts are checked in `check`.

use super::files::join;
use super::reader::{Reader, scalar, strings};
use super::value::{Map, Value};
use super::{LoadInput, Report, at, deploy, dotenv, mounts, objects, ports, units};
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::spec::{
    Dependency, DependencyCondition, DeviceSpec, Healthcheck, Logging, NetworkSpec, ServiceNetwork, ServiceSpec, StackSpec,
};
use std::collections::BTreeMap;

/// The whole stack.
pub(super) fn stack(tree: Value, input: &LoadInput<'_>, report: &mut Report) -> StackSpec {
    let mut tree = tree;
    let settings = settings(&mut tree, "", report);
    let mut r = Reader::new(tree, "", report);
    if let Some(name) = r.string("name", report).filter(|n| n != input.name.as_str() && !n.is_empty()) {
        let hint = format!("remove `name:`, or deploy it as stack {name:?}");
        report.error("name", format!("the file is for {name:?}, not for stack {:?}", input.name.as_str()), hint);
    }
    r.raw("version");
    if r.take("models").is_some() {
        report.note("models", "models are not started; run them as a service");
    }
    let mut services = BTreeMap::new();
    match r.take("services") {
        Some(Value::Map(map)) => {
            for (key, value) in map.into_iter().filter(|(k, _)| !k.starts_with("x-")) {
                let path = at("services", &key);
                match ServiceName::new(key) {
                    Ok(name) => {
                        let spec = service(value, &path, input, report);
                        services.insert(name, spec);
                    }
                    Err(e) => report.error(&path, e.to_string(), "rename the service"),
                }
            }
        }
        Some(other) => report.error("services", format!("a mapping is needed, found {}", other.kind()), "write `name:` lines below it"),
        None => report.error("", "the file has no services", "add `services:` with at least one service"),
    }
    let mut networks = objects::networks(r.take("networks"), input, report);
    let volumes = objects::volumes(r.take("volumes"), input, report);
    let configs = objects::files(r.take("configs"), "configs", input, report);
    let secrets = objects::files(r.take("secrets"), "secrets", input, report);
    r.finish(report);
    if services.values().any(|s| s.networks.contains_key("default")) {
        let name = format!("{}_default", input.name);
        networks.entry("default".into()).or_insert_with(|| NetworkSpec { name, ..NetworkSpec::default() });
    }
    StackSpec { name: input.name.clone(), services, networks, volumes, configs, secrets, settings, unsupported: Vec::new() }
}

/// Takes the closed `x-dockwarden` out of a mapping.
fn settings<T: serde::de::DeserializeOwned + Default>(value: &mut Value, path: &str, report: &mut Report) -> T {
    let Value::Map(map) = value else { return T::default() };
    match map.remove("x-dockwarden") {
        None | Some(Value::Null) => T::default(),
        Some(found) => serde_json::from_value(found.to_json()).unwrap_or_else(|e| {
            report.error(&at(path, "x-dockwarden"), e.to_string(), "x-dockwarden is closed: use only the keys it documents");
            T::default()
        }),
    }
}

/// Keys compose knows that we keep as JSON for the diff and the gate; with a reason those that have no effect.
const KEPT: &[&str] = &["cpu_count", "cpu_percent", "cpu_rt_period", "cpu_rt_runtime"];
const NO_EFFECT: &[(&str, &str)] = &[
    ("attach", "has no effect: nothing is attached"),
    ("develop", "has no effect: it is for `docker compose watch`"),
    ("post_start", "hooks are not run"),
    ("pre_stop", "hooks are not run"),
    ("provider", "providers are not run"),
    ("models", "models are not started"),
    ("label_file", "is not read; write the labels into the file"),
    ("credential_spec", "has no effect: it is for Windows containers"),
];

fn service(value: Value, path: &str, input: &LoadInput<'_>, report: &mut Report) -> ServiceSpec {
    let mut value = value;
    let settings = settings(&mut value, path, report);
    let mut r = Reader::new(value, path, report);
    let mut s = ServiceSpec { settings, ..ServiceSpec::default() };
    s.profiles = r.strings("profiles", report);
    s.active = s.profiles.is_empty() || s.profiles.iter().any(|p| input.profiles.iter().any(|a| a == p || a == "*"));
    s.image = r.parsed("image", report, |t| ImageRef::new(t).map_err(|e| e.to_string()));
    s.build = build(&mut r, report);
    if s.build.is_some() {
        let reason = if s.image.is_some() {
            "is not run; the image named beside it is used"
        } else {
            "is not run; build the image and name it with `image:`"
        };
        report.note(&r.at("build"), reason);
    }
    s.command = command(&mut r, "command", report);
    s.entrypoint = command(&mut r, "entrypoint", report);
    s.environment = environment(&mut r, input, report);
    s.labels = r.text_map("labels", report);
    s.annotations = r.text_map("annotations", report);
    s.depends_on = depends_on(&mut r, report);
    s.healthcheck = r.take("healthcheck").map(|v| healthcheck(v, &r.at("healthcheck"), report));
    s.ports = r.take("ports").map(|v| ports::read(v, &r.at("ports"), report)).unwrap_or_default();
    s.expose = expose(&mut r, report);
    s.mounts = r.take("volumes").map(|v| mounts::volumes(v, &r.at("volumes"), input, report)).unwrap_or_default();
    if let Some(tmpfs) = r.take("tmpfs") {
        s.mounts.extend(mounts::tmpfs(tmpfs, &r.at("tmpfs"), report));
    }
    s.configs = r.take("configs").map(|v| mounts::file_mounts(v, &r.at("configs"), "/", report)).unwrap_or_default();
    s.secrets = r.take("secrets").map(|v| mounts::file_mounts(v, &r.at("secrets"), "/run/secrets", report)).unwrap_or_default();
    s.network_mode = r.string("network_mode", report).filter(|m| !m.is_empty());
    if let Some(legacy) = r.string("net", report) {
        report.error(&r.at("net"), format!("`net: {legacy}` is of the first file format"), "write `network_mode:`");
    }
    s.networks = networks(&mut r, s.network_mode.is_some(), report);
    deploy::read(&mut r, &mut s, report);
    host_settings(&mut r, &mut s, report);
    if let Some(gpus) = r.take("gpus") {
        match gpus {
            Value::Seq(items) => s.device_requests.extend(items.iter().map(Value::to_json)),
            other => s.device_requests.push(other.to_json()),
        }
    }
    r.keep(KEPT, &mut s.other, "");
    for (key, reason) in NO_EFFECT {
        let before = s.other.len();
        r.keep(&[key], &mut s.other, "");
        if s.other.len() > before {
            report.note(&r.at(key), *reason);
        }
    }
    r.finish(report);
    s
}

/// Plain keys about the process and its isolation.
fn host_settings(r: &mut Reader, s: &mut ServiceSpec, report: &mut Report) {
    let mut text = |key, report: &mut Report| r.string(key, report).filter(|t| !t.is_empty());
    s.user = text("user", report);
    s.working_dir = text("working_dir", report);
    s.hostname = text("hostname", report);
    s.domainname = text("domainname", report);
    s.container_name = text("container_name", report);
    s.pid = text("pid", report);
    s.ipc = text("ipc", report);
    s.uts = text("uts", report);
    s.userns_mode = text("userns_mode", report);
    s.cgroup = text("cgroup", report);
    s.cgroup_parent = text("cgroup_parent", report);
    s.isolation = text("isolation", report);
    s.runtime = text("runtime", report);
    s.platform = text("platform", report);
    s.pull_policy = text("pull_policy", report);
    s.mac_address = text("mac_address", report);
    s.stop_signal = text("stop_signal", report);
    s.privileged = r.boolean("privileged", report).unwrap_or(false);
    s.read_only = r.boolean("read_only", report).unwrap_or(false);
    s.stdin_open = r.boolean("stdin_open", report).unwrap_or(false);
    s.tty = r.boolean("tty", report).unwrap_or(false);
    s.init = r.boolean("init", report);
    s.use_api_socket = r.boolean("use_api_socket", report).unwrap_or(false);
    s.oom_kill_disable = r.boolean("oom_kill_disable", report).unwrap_or(false);
    s.oom_score_adj = r.int("oom_score_adj", report);
    s.cap_add = r.strings("cap_add", report);
    s.cap_drop = r.strings("cap_drop", report);
    s.security_opt = r.strings("security_opt", report);
    s.device_cgroup_rules = r.strings("device_cgroup_rules", report);
    s.group_add = r.strings("group_add", report);
    s.dns = r.strings("dns", report);
    s.dns_search = r.strings("dns_search", report);
    s.dns_opt = r.strings("dns_opt", report);
    s.volumes_from = r.strings("volumes_from", report);
    s.links = r.strings("links", report);
    s.external_links = r.strings("external_links", report);
    s.sysctls = r.text_map("sysctls", report);
    s.storage_opt = r.text_map("storage_opt", report);
    s.shm_size = r.parsed("shm_size", report, units::bytes);
    s.stop_grace_period_ms = r.parsed("stop_grace_period", report, units::duration_ms);
    s.devices = devices(r, report);
    s.ulimits = ulimits(r, report);
    s.extra_hosts = extra_hosts(r, report);
    s.logging = r.take("logging").map(|v| {
        let mut l = Reader::new(v, &r.at("logging"), report);
        let logging = Logging { driver: l.string("driver", report).unwrap_or_default(), options: l.text_map("options", report) };
        l.finish(report);
        logging
    });
}

const BUILD_KEYS: &[&str] = &[
    "context",
    "dockerfile",
    "dockerfile_inline",
    "args",
    "ssh",
    "labels",
    "cache_from",
    "cache_to",
    "no_cache",
    "additional_contexts",
    "network",
    "target",
    "shm_size",
    "extra_hosts",
    "isolation",
    "privileged",
    "secrets",
    "tags",
    "ulimits",
    "platforms",
    "pull",
    "entitlements",
    "provenance",
    "sbom",
    "no_cache_filter",
];

fn build(r: &mut Reader, report: &mut Report) -> Option<serde_json::Value> {
    let build = r.take("build")?;
    let path = r.at("build");
    if build.scalar().is_some() {
        return Some(Value::Map(Map::from([("context".into(), build)])).to_json());
    }
    let json = build.to_json();
    let mut b = Reader::new(build, &path, report);
    for key in BUILD_KEYS {
        b.raw(key);
    }
    b.finish(report);
    Some(json)
}

fn command(r: &mut Reader, key: &'static str, report: &mut Report) -> Option<Vec<String>> {
    let path = r.at(key);
    match r.take(key)? {
        list @ Value::Seq(_) => Some(strings(list, &path, report)),
        other => {
            let text = scalar(&other, &path, report)?;
            shell_words::split(&text)
                .map_err(|_| report.error(&path, "the quotes do not match", "write it as a list: [\"cmd\", \"arg\"]"))
                .ok()
        }
    }
}

fn environment(r: &mut Reader, input: &LoadInput<'_>, report: &mut Report) -> BTreeMap<String, Option<String>> {
    let mut out: BTreeMap<String, Option<String>> = BTreeMap::new();
    let path = r.at("env_file");
    let entries = match r.take("env_file") {
        None => Vec::new(),
        Some(Value::Seq(items)) => items,
        Some(one) => vec![one],
    };
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (file, required, raw) = match entry {
            Value::Map(_) => {
                let mut e = Reader::new(entry, &path, report);
                let found = (e.string("path", report), e.boolean("required", report).unwrap_or(true), e.string("format", report));
                e.finish(report);
                (found.0, found.1, found.2.as_deref() == Some("raw"))
            }
            other => (scalar(&other, &path, report), true, false),
        };
        let Some(file) = file else { continue };
        match input.files.read(&join("", &file)) {
            Ok(Some(text)) => match dotenv::parse(&text, input.variables, !raw) {
                Ok(values) => out.extend(values.into_iter().map(|(k, v)| (k, Some(v)))),
                Err(bad) => report.error_in(&file, Some(bad.line), bad.message, "write KEY=value, one per line"),
            },
            Ok(None) if required => {
                report.error(&path, format!("env file {file} not found"), "create it, or write {path: ..., required: false}");
            }
            Ok(None) => {}
            Err(why) => report.error(&path, format!("env file {file} cannot be read: {why}"), "use a file beneath the project directory"),
        }
    }
    for (key, value) in r.optional_map("environment", report) {
        let value = value.or_else(|| input.variables.get(&key).cloned());
        out.insert(key, value);
    }
    let bad = out.keys().find(|k| k.is_empty() || k.contains(['=', '\0'])).cloned();
    if let Some(key) = bad {
        report.error(&r.at("environment"), format!("{key:?} is no variable name"), "write NAME=value");
    }
    out
}

fn depends_on(r: &mut Reader, report: &mut Report) -> BTreeMap<ServiceName, Dependency> {
    let path = r.at("depends_on");
    let mut out = BTreeMap::new();
    let mut add = |name: String, dependency, path: &str, report: &mut Report| match ServiceName::new(name) {
        Ok(name) => {
            out.insert(name, dependency);
        }
        Err(e) => report.error(path, e.to_string(), ""),
    };
    let plain = || Dependency { condition: DependencyCondition::ServiceStarted, required: true, restart: false };
    match r.take("depends_on") {
        Some(Value::Map(map)) => {
            for (name, value) in map {
                let path = at(&path, &name);
                let mut d = Reader::new(value, &path, report);
                let condition = d.parsed("condition", report, |t| match t {
                    "service_started" => Ok(DependencyCondition::ServiceStarted),
                    "service_healthy" => Ok(DependencyCondition::ServiceHealthy),
                    "service_completed_successfully" => Ok(DependencyCondition::ServiceCompletedSuccessfully),
                    _ => Err(format!("{t:?} is no condition; there are service_started, service_healthy, service_completed_successfully")),
                });
                let required = d.boolean("required", report).unwrap_or(true);
                let restart = d.boolean("restart", report).unwrap_or(false);
                d.finish(report);
                add(name, Dependency { condition: condition.unwrap_or_default(), required, restart }, &path, report);
            }
        }
        Some(list) => strings(list, &path, report).into_iter().for_each(|name| add(name, plain(), &path, report)),
        None => {}
    }
    out
}

fn healthcheck(value: Value, path: &str, report: &mut Report) -> Healthcheck {
    let mut h = Reader::new(value, path, report);
    let test_path = h.at("test");
    let mut test = match h.take("test") {
        None => Vec::new(),
        Some(list @ Value::Seq(_)) => strings(list, &test_path, report),
        Some(one) => scalar(&one, &test_path, report).map(|t| vec!["CMD-SHELL".into(), t]).unwrap_or_default(),
    };
    if test.first().is_some_and(|t| !matches!(t.as_str(), "NONE" | "CMD" | "CMD-SHELL")) {
        report.error(&test_path, format!("the test starts with {:?}", test[0]), "start the list with NONE, CMD or CMD-SHELL");
    }
    if h.boolean("disable", report) == Some(true) {
        test = vec!["NONE".into()];
    }
    let check = Healthcheck {
        test,
        interval_ms: h.parsed("interval", report, units::duration_ms),
        timeout_ms: h.parsed("timeout", report, units::duration_ms),
        retries: h.parsed("retries", report, |t| {
            t.trim()
                .parse::<f64>()
                .ok()
                .filter(|v| (0.0..1e9).contains(v))
                .map(|v| v as u32)
                .ok_or_else(|| format!("{t:?} is no number of retries"))
        }),
        start_period_ms: h.parsed("start_period", report, units::duration_ms),
        start_interval_ms: h.parsed("start_interval", report, units::duration_ms),
    };
    h.finish(report);
    check
}

fn expose(r: &mut Reader, report: &mut Report) -> Vec<String> {
    let path = r.at("expose");
    let found = r.strings("expose", report);
    for (index, port) in found.iter().enumerate() {
        if let Err(message) = ports::range(port.split('/').next().unwrap_or_default()) {
            report.error(&format!("{path}[{index}]"), message, "write \"8080\" or \"8080/tcp\"");
        }
    }
    found
}

fn networks(r: &mut Reader, has_mode: bool, report: &mut Report) -> BTreeMap<String, ServiceNetwork> {
    let path = r.at("networks");
    let mut out = BTreeMap::new();
    match r.take("networks") {
        Some(Value::Map(map)) => {
            for (key, value) in map {
                let mut n = Reader::new(value, &at(&path, &key), report);
                let network = ServiceNetwork {
                    aliases: n.strings("aliases", report),
                    ipv4_address: n.string("ipv4_address", report).filter(|a| !a.is_empty()),
                    ipv6_address: n.string("ipv6_address", report).filter(|a| !a.is_empty()),
                    link_local_ips: n.strings("link_local_ips", report),
                    mac_address: n.string("mac_address", report),
                    priority: n.int("priority", report),
                    driver_opts: n.text_map("driver_opts", report),
                };
                for key in ["gw_priority", "interface_name"] {
                    if n.raw(key).is_some() {
                        report.note(&n.at(key), "has no effect on this engine");
                    }
                }
                n.finish(report);
                out.insert(key, network);
            }
        }
        Some(list) => out.extend(strings(list, &path, report).into_iter().map(|k| (k, ServiceNetwork::default()))),
        None => {}
    }
    if has_mode && !out.is_empty() {
        report.error(&path, "`networks` and `network_mode` exclude each other", "keep one of them");
    } else if !has_mode && out.is_empty() {
        out.insert("default".into(), ServiceNetwork::default());
    }
    out
}

fn devices(r: &mut Reader, report: &mut Report) -> Vec<DeviceSpec> {
    let path = r.at("devices");
    let Some(value) = r.take("devices") else { return Vec::new() };
    let items = if let Value::Seq(items) = value { items } else { vec![value] };
    let mut out = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (source, target, permissions) = if let Value::Map(_) = item {
            let mut d = Reader::new(item, &path, report);
            let found = (d.string("source", report).unwrap_or_default(), d.string("target", report), d.string("permissions", report));
            d.finish(report);
            found
        } else {
            let text = scalar(&item, &path, report).unwrap_or_default();
            // A CDI name (`vendor.com/class=name`) has no container path.
            let parts: Vec<&str> = if text.starts_with('/') { text.splitn(3, ':').collect() } else { vec![&text] };
            (parts[0].to_owned(), parts.get(1).map(|t| (*t).to_owned()), parts.get(2).map(|t| (*t).to_owned()))
        };
        if source.is_empty() {
            report.error(&path, "the device has no host path", "write \"/dev/x:/dev/x:rwm\"");
        }
        out.push(DeviceSpec {
            target: target.unwrap_or_else(|| source.clone()),
            source,
            permissions: permissions.unwrap_or_else(|| "rwm".into()),
        });
    }
    out
}

fn ulimits(r: &mut Reader, report: &mut Report) -> BTreeMap<String, (i64, i64)> {
    let path = r.at("ulimits");
    let mut out = BTreeMap::new();
    let Some(Value::Map(map)) = r.take("ulimits") else { return out };
    for (name, value) in map {
        let path = at(&path, &name);
        let limits = if let Value::Map(_) = value {
            let mut u = Reader::new(value, &path, report);
            let found = (u.int("soft", report), u.int("hard", report));
            u.finish(report);
            found.0.zip(found.1)
        } else {
            value.scalar().and_then(|t| t.trim().parse::<i64>().ok()).map(|n| (n, n))
        };
        match limits {
            Some(limits) => {
                out.insert(name, limits);
            }
            None => report.error(&path, "a ulimit is a number, or soft and hard", "write `nofile: {soft: 1024, hard: 2048}`"),
        }
    }
    out
}

/// `host:address` entries; `host=address` and the mapping form are turned into it.
fn extra_hosts(r: &mut Reader, report: &mut Report) -> Vec<String> {
    let path = r.at("extra_hosts");
    match r.take("extra_hosts") {
        None => Vec::new(),
        Some(Value::Map(map)) => {
            let mut out = Vec::new();
            for (host, value) in map {
                let addresses = strings(value, &at(&path, &host), report);
                out.extend(addresses.into_iter().map(|a| format!("{host}:{a}")));
            }
            out
        }
        Some(list) => {
            let entries = strings(list, &path, report);
            for (index, entry) in entries.iter().enumerate().filter(|(_, e)| !e.contains([':', '='])) {
                report.error(&format!("{path}[{index}]"), format!("{entry:?} has no address"), "write \"host:address\"");
            }
            entries.into_iter().map(|e| if e.contains('=') { e.replacen('=', ":", 1) } else { e }).collect()
        }
    }
}
