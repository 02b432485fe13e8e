//! The closed typed model: a merged tree to a [`StackSpec`] with defaults. References between parts are checked in `check`.

use super::reader::{Reader, strings};
use super::value::Value;
use super::{LoadInput, Report, at, deploy, host, mounts, objects, ports, process, typed};
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::spec::written::{DeviceRequest, Written};
use crate::model::spec::{
    Dependency, DependencyCondition, NetworkSpec, START_TIMEOUT_MOST, ServiceNetwork, ServiceSettings, ServiceSpec, StackSpec,
};
use std::collections::BTreeMap;

/// The whole stack.
pub(super) fn stack(tree: Value, input: &LoadInput<'_>, report: &mut Report) -> StackSpec {
    let mut tree = tree;
    let settings = settings(&mut tree, "", report);
    let mut r = Reader::new(tree, "", report);
    if let Some(name) = r.string("name", report).filter(|n| n != input.name.as_str() && !n.is_empty()) {
        let hint = format!("remove `name:`, or deploy it as stack {name:?}");
        report.later("name", Some("project.name"), format!("the file is for {name:?}, not for stack {:?}", input.name.as_str()), hint);
    }
    r.raw("version");
    if r.take("models").is_some() {
        report.note("models", "models are not started; run them as a service");
    }
    let mut services = BTreeMap::new();
    match r.take("services") {
        Some(Value::Map(map)) => {
            for (key, value) in map {
                let path = at("services", &key);
                match ServiceName::new(key) {
                    Ok(name) => {
                        let spec = service(value, name.as_str(), &path, input, report);
                        services.insert(name, spec);
                    }
                    Err(e) => report.error(&path, e.to_string(), "rename the service"),
                }
            }
        }
        Some(other) => report.error("services", format!("a mapping is needed, found {}", other.kind()), "write `name:` lines below it"),
        None => report.later("services", Some(super::INVALID), "the file has no services", "add `services:` with at least one service"),
    }
    let mut networks = objects::networks(r.take("networks"), input, report);
    let volumes = objects::volumes(r.take("volumes"), input, report);
    let configs = objects::files(r.take("configs"), "configs", input, report);
    let secrets = objects::files(r.take("secrets"), "secrets", input, report);
    let extensions = r.extensions();
    r.finish(report);
    if services.values().any(|s| s.networks.contains_key("default")) {
        let name = format!("{}_default", input.name);
        networks.entry("default".into()).or_insert_with(|| NetworkSpec { name, ..NetworkSpec::default() });
    }
    StackSpec {
        name: input.name.clone(),
        services,
        networks,
        volumes,
        configs,
        secrets,
        settings,
        extensions,
        unsupported: Vec::new(),
        declared: Default::default(),
    }
}

/// Takes the closed `x-dockwarden` out of a mapping.
pub(super) fn settings<T: serde::de::DeserializeOwned + Default>(value: &mut Value, path: &str, report: &mut Report) -> T {
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
const KEPT: &[&str] = &["cpu_rt_period", "cpu_rt_runtime"];
const NO_EFFECT: &[(&str, &str)] = &[
    ("attach", "has no effect: nothing is attached"),
    ("develop", "has no effect: it is for `docker compose watch`"),
    ("post_start", "hooks are not run"),
    ("pre_stop", "hooks are not run"),
    ("provider", "providers are not run"),
    ("models", "models are not started"),
    ("credential_spec", "has no effect: it is for Windows containers"),
    ("cpu_count", "has no effect: it is for Windows containers"),
    ("cpu_percent", "has no effect: it is for Windows containers"),
    ("dockerfile", "has no effect; write `build: {dockerfile: ...}`"),
    ("log_driver", "has no effect; write `logging: {driver: ...}`"),
    ("log_opt", "has no effect; write `logging: {options: ...}`"),
    ("volume_driver", "has no effect; give the volume a driver"),
];

fn service(value: Value, name: &str, path: &str, input: &LoadInput<'_>, report: &mut Report) -> ServiceSpec {
    let mut value = value;
    let settings: ServiceSettings = settings(&mut value, path, report);
    if let Some(seconds) = settings.start_timeout_s.filter(|s| *s > START_TIMEOUT_MOST) {
        let message = format!("{seconds} s are more than a day, and its stack would wait as long");
        report.error(&at(path, "x-dockwarden.start_timeout_s"), message, format!("at most {START_TIMEOUT_MOST}"));
    }
    let mut r = Reader::new(value, path, report);
    let mut s = ServiceSpec { settings, ..ServiceSpec::default() };
    s.profiles = r.strings("profiles", report);
    s.active = s.profiles.is_empty() || s.profiles.iter().any(|p| input.profiles.iter().any(|a| a == p || a == "*"));
    if let Some(text) = r.string("image", report).filter(|t| !t.is_empty()) {
        match ImageRef::new(text.clone()) {
            Ok(image) => s.image = Some(image),
            Err(e) => {
                report.later(&r.at("image"), Some("image.malformed"), e.to_string(), "");
                s.written.image = Some(text);
            }
        }
    }
    s.written = written(&mut r, s.written, input, report);
    s.build = process::build(&mut r, report);
    if s.build.is_some() {
        let reason = if s.image.is_some() {
            "is not run; the image named beside it is used"
        } else {
            "is not run; build the image and name it with `image:`"
        };
        report.note(&r.at("build"), reason);
    }
    s.command = process::command(&mut r, "command", report);
    s.entrypoint = process::command(&mut r, "entrypoint", report);
    s.environment = process::environment(&mut r, (name, s.active), input, report);
    s.labels = process::labels(&mut r, &mut s.other, input, report);
    s.annotations = r.text_map("annotations", report);
    s.depends_on = depends_on(&mut r, report);
    s.healthcheck = r.take("healthcheck").map(|v| process::healthcheck(v, &r.at("healthcheck"), &mut s.written, report));
    s.ports = r.take("ports").map(|v| ports::read(v, &r.at("ports"), report)).unwrap_or_default();
    s.expose = expose(&mut r, report);
    (s.mounts, s.written.mounts) =
        r.take("volumes").map(|v| mounts::volumes(v, &r.at("volumes"), input, report)).unwrap_or_default().into_iter().unzip();
    if let Some(tmpfs) = r.take("tmpfs") {
        s.mounts.extend(mounts::tmpfs(tmpfs, &r.at("tmpfs"), report));
    }
    s.configs = r.take("configs").map(|v| mounts::file_mounts(v, &r.at("configs"), "/", report)).unwrap_or_default();
    s.secrets = r.take("secrets").map(|v| mounts::file_mounts(v, &r.at("secrets"), "/run/secrets", report)).unwrap_or_default();
    // An empty mode is one: the service is then on no network of the stack.
    let has_mode = r.has("network_mode");
    s.network_mode = r.string("network_mode", report).filter(|m| !m.is_empty());
    if let Some(legacy) = r.string("net", report) {
        report.error(&r.at("net"), format!("`net: {legacy}` is of the first file format"), "write `network_mode:`");
    }
    s.networks = networks(&mut r, has_mode, &mut s.written, report);
    deploy::read(&mut r, &mut s, report);
    host::host_settings(&mut r, &mut s, input, report);
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
    imply(&mut s, path, report);
    s
}

/// The sections and keys that are kept as they are written. Most are read again for what they mean.
fn written(r: &mut Reader, before: Written, input: &LoadInput<'_>, report: &mut Report) -> Written {
    let mut w = before;
    w.restart = r.peek("restart").and_then(|v| v.scalar()).filter(|t| !t.is_empty());
    w.deploy = r.peek("deploy").and_then(|v| typed::read(v, &r.at("deploy"), report));
    w.build = r.peek("build").and_then(|v| process::written_build(v, &r.at("build"), input, report));
    if let Some(mut develop) = r.peek("develop") {
        process::watched(&mut develop, &r.at("develop"), input, report);
        w.develop = typed::read(develop, &r.at("develop"), report);
        let missing = |t: &crate::model::spec::written::Watch| t.target.is_none() && !matches!(t.action.as_str(), "rebuild" | "restart");
        if let Some(index) = w.develop.iter().flat_map(|d| &d.watch).position(missing) {
            let path = format!("{}.watch[{index}]", r.at("develop"));
            report.error(&path, "`target` is missing", "say where the files go inside of the container");
        }
    }
    w.blkio_config = r.peek("blkio_config").and_then(|v| typed::read(v, &r.at("blkio_config"), report));
    w.credential_spec = r.peek("credential_spec").and_then(|v| typed::read(v, &r.at("credential_spec"), report));
    w.gpus = r.peek("gpus").and_then(|v| typed::read(v, &r.at("gpus"), report)).unwrap_or_default();
    for (key, hooks) in [("post_start", &mut w.post_start), ("pre_stop", &mut w.pre_stop)] {
        let path = r.at(key);
        let Some(Value::Seq(mut items)) = r.peek(key) else { continue };
        for (index, item) in items.iter_mut().enumerate() {
            typed::split_command(item, &format!("{path}[{index}]"), report);
        }
        *hooks = typed::read(Value::Seq(items), &path, report).unwrap_or_default();
    }
    w.tmpfs = r.peek("tmpfs").map(|v| strings(v, &r.at("tmpfs"), report)).unwrap_or_default();
    if let Some(text) = r.peek("attach").and_then(|v| v.scalar()) {
        w.attach = super::cast::boolean(&text);
        if w.attach.is_none() {
            report.error(&r.at("attach"), format!("{text:?} is no boolean; write true or false"), "");
        }
    }
    let mut number = |key: &str| r.peek(key).and_then(|v| typed::read::<serde_json::Value>(v, &r.at(key), report));
    w.cpus = number("cpus").and_then(|v| v.as_f64()).map(|v| v as f32);
    w.cpu_percent = number("cpu_percent").and_then(|v| v.as_f64()).map(|v| v as f32);
    for (key, slot) in [
        ("scale", &mut w.scale),
        ("cpu_count", &mut w.cpu_count),
        ("cpu_rt_period", &mut w.cpu_rt_period),
        ("cpu_rt_runtime", &mut w.cpu_rt_runtime),
        ("pids_limit", &mut w.pids_limit),
    ] {
        *slot = number(key).and_then(|v| v.as_i64().or_else(|| v.as_f64().map(|f| f as i64)));
    }
    for (key, slot) in [
        ("mem_limit", &mut w.mem_limit),
        ("mem_reservation", &mut w.mem_reservation),
        ("memswap_limit", &mut w.memswap_limit),
        ("mem_swappiness", &mut w.mem_swappiness),
    ] {
        *slot = r.peek(key).and_then(|v| typed::read(v, &r.at(key), report));
    }
    if let Some(deploy) = &mut w.deploy {
        deploy.replicas = w.scale.or(deploy.replicas);
        if let Some(reserved) = &mut deploy.resources.reservations {
            counted(&mut reserved.devices, &r.at("deploy.resources.reservations.devices"), report);
        }
    }
    counted(&mut w.gpus, &r.at("gpus"), report);
    w
}

/// A request says how many devices, or which; neither means all.
fn counted(requests: &mut [DeviceRequest], path: &str, report: &mut Report) {
    for (index, request) in requests.iter_mut().enumerate() {
        match (request.count, request.device_ids.is_empty()) {
            (None, true) => request.count = Some(-1),
            (Some(_), false) => {
                report.error(&format!("{path}[{index}]"), "`count` and `device_ids` exclude each other", "keep one of them")
            }
            _ => {}
        }
    }
}

/// A link, a shared namespace and `volumes_from` make a dependency, written or not.
fn imply(s: &mut ServiceSpec, path: &str, report: &mut Report) {
    let linked = s.links.iter().map(|l| (l.split_once(':').map_or(l.as_str(), |(name, _)| name), true));
    let modes = [&s.network_mode, &s.ipc, &s.pid, &s.uts, &s.cgroup];
    let shared = modes.into_iter().filter_map(|m| m.as_deref()?.strip_prefix("service:")).map(|n| (n, true));
    let mounted = s.volumes_from.iter().filter(|v| !v.starts_with("container:")).map(|v| (v.split(':').next().unwrap_or_default(), false));
    for (name, restart) in linked.chain(shared).chain(mounted).map(|(n, r)| (n.to_owned(), r)).collect::<Vec<_>>() {
        match ServiceName::new(name.clone()) {
            Ok(key) if !s.depends_on.contains_key(&key) => {
                s.depends_on.insert(key, Dependency { condition: DependencyCondition::ServiceStarted, required: true, restart });
                s.written.implied_dependencies.insert(name);
            }
            Ok(_) => {}
            Err(e) => report.error(path, e.to_string(), ""),
        }
    }
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

fn expose(r: &mut Reader, report: &mut Report) -> Vec<String> {
    let path = r.at("expose");
    let found = r.strings("expose", report);
    // An unset variable leaves an empty text, which exposes nothing.
    for (index, port) in found.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
        if let Err(message) = ports::range(port.split('/').next().unwrap_or_default()) {
            report.later(&format!("{path}[{index}]"), Some(super::INVALID), message, "write \"8080\" or \"8080/tcp\"");
        }
    }
    found
}

fn networks(r: &mut Reader, has_mode: bool, written: &mut Written, report: &mut Report) -> BTreeMap<String, ServiceNetwork> {
    let path = r.at("networks");
    let mut out = BTreeMap::new();
    match r.take("networks") {
        Some(Value::Map(map)) => {
            for (key, value) in map {
                if matches!(&value, Value::Map(m) if m.keys().all(|k| k.starts_with("x-"))) {
                    written.empty_networks.insert(key.clone());
                }
                let mut n = Reader::new(value, &at(&path, &key), report);
                let network = ServiceNetwork {
                    aliases: n.strings("aliases", report),
                    ipv4_address: n.string("ipv4_address", report).filter(|a| !a.is_empty()),
                    ipv6_address: n.string("ipv6_address", report).filter(|a| !a.is_empty()),
                    link_local_ips: n.strings("link_local_ips", report),
                    mac_address: n.string("mac_address", report),
                    priority: n.int("priority", report),
                    driver_opts: n.text_map("driver_opts", report),
                    gw_priority: n.int("gw_priority", report),
                };
                if network.gw_priority.is_some() {
                    report.note(&n.at("gw_priority"), "has no effect: the engine chooses the default route");
                }
                if n.raw("interface_name").is_some() {
                    report.note(&n.at("interface_name"), "has no effect on this engine");
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
