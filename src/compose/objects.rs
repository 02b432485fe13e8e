//! Top-level networks, volumes, configs and secrets.

use super::files::join;
use super::reader::Reader;
use super::value::Value;
use super::{LoadInput, ReadError, Report, at};
use crate::model::ids::EngineName;
use crate::model::spec::{FileObject, IpamPool, NetworkSpec, VolumeSpec};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Bytes of one config or secret: the engine's own limit for Swarm objects is of this size.
const MAX_CONTENT: usize = 512 << 10;

/// The entries of a top-level mapping, keys checked.
fn entries(value: Option<Value>, path: &str, report: &mut Report) -> Vec<(String, Value)> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Map(map)) => map.into_iter().collect(),
        Some(other) => {
            report.error(path, format!("a mapping is needed, found {}", other.kind()), "");
            Vec::new()
        }
    }
}

/// Name on the engine and whether the object is kept by others.
fn identity(r: &mut Reader, key: &str, input: &LoadInput<'_>, report: &mut Report) -> (String, bool) {
    let named = r.string("name", report).filter(|n| !n.is_empty());
    let (external, legacy) = match r.take("external") {
        Some(Value::Map(mut m)) => (true, m.remove("name").and_then(|n| n.scalar())),
        Some(other) => (other.scalar().is_some_and(|s| matches!(s.as_str(), "true" | "yes" | "on")), None),
        None => (false, None),
    };
    let default = if external { key.to_owned() } else { format!("{}_{key}", input.name) };
    let name = named.or(legacy).unwrap_or(default);
    if let Err(e) = EngineName::new(name.clone()) {
        report.later(&r.path, Some(super::INVALID), e.to_string(), "choose another name");
    }
    (name, external)
}

/// `networks`.
pub(super) fn networks(value: Option<Value>, input: &LoadInput<'_>, report: &mut Report) -> BTreeMap<String, NetworkSpec> {
    let mut out = BTreeMap::new();
    for (key, value) in entries(value, "networks", report) {
        let mut r = Reader::new(value, &at("networks", &key), report);
        let (name, external) = identity(&mut r, &key, input, report);
        let mut spec = NetworkSpec { name, external, ..NetworkSpec::default() };
        spec.driver = r.string("driver", report).filter(|d| !d.is_empty());
        spec.driver_opts = r.text_map("driver_opts", report);
        spec.internal = r.boolean("internal", report).unwrap_or(false);
        spec.attachable = r.boolean("attachable", report).unwrap_or(false);
        spec.written_ipv6 = r.boolean("enable_ipv6", report);
        spec.enable_ipv6 = spec.written_ipv6 == Some(true);
        spec.written_ipv4 = r.boolean("enable_ipv4", report);
        if spec.written_ipv4 == Some(false) {
            report.note(&r.at("enable_ipv4"), "a network without IPv4 has no effect here; IPv4 stays on");
        }
        spec.labels = r.text_map("labels", report);
        if let Some(ipam) = r.take("ipam") {
            let mut i = Reader::new(ipam, &r.at("ipam"), report);
            spec.ipam_driver = i.string("driver", report);
            let path = i.at("config");
            let pools = match i.take("config") {
                None => Vec::new(),
                Some(Value::Seq(pools)) => pools,
                Some(other) => {
                    report.error(&path, format!("a list is needed, found {}", other.kind()), "write `- subnet: 172.28.0.0/16`");
                    Vec::new()
                }
            };
            for (index, pool) in pools.into_iter().enumerate() {
                let mut p = Reader::new(pool, &format!("{path}[{index}]"), report);
                let pool = IpamPool {
                    subnet: p.string("subnet", report),
                    ip_range: p.string("ip_range", report),
                    gateway: p.string("gateway", report),
                    aux_addresses: p.text_map("aux_addresses", report),
                };
                p.finish(report);
                spec.ipam.push(pool);
            }
            if i.take("options").is_some() {
                report.note(&i.at("options"), "ipam options have no effect");
            }
            i.finish(report);
        }
        r.finish(report);
        out.insert(key, spec);
    }
    out
}

/// `volumes`.
pub(super) fn volumes(value: Option<Value>, input: &LoadInput<'_>, report: &mut Report) -> BTreeMap<String, VolumeSpec> {
    let mut out = BTreeMap::new();
    for (key, value) in entries(value, "volumes", report) {
        let mut value = value;
        let settings = super::service::settings(&mut value, &at("volumes", &key), report);
        let mut r = Reader::new(value, &at("volumes", &key), report);
        let (name, external) = identity(&mut r, &key, input, report);
        let beside = ["driver", "driver_opts", "labels"].into_iter().find(|k| external && r.has(k));
        if let Some(beside) = beside {
            let message = format!("`external` and `{beside}` exclude each other");
            report.error(&r.path, message, "remove it: an external volume is made elsewhere");
        }
        let mut spec = VolumeSpec {
            name,
            external,
            driver: r.string("driver", report).filter(|d| !d.is_empty()),
            driver_opts: r.text_map("driver_opts", report),
            labels: r.text_map("labels", report),
            swapped_from: None,
            settings,
        };
        // A bind's device is a host path, so a relative one means the project directory.
        let bind = spec.driver_opts.get("o").is_some_and(|o| o.split(',').any(|o| matches!(o.trim(), "bind" | "rbind")));
        if let Some(device) = spec.driver_opts.get_mut("device").filter(|d| bind && d.starts_with('.') && !input.project_dir.is_empty()) {
            *device = join(input.project_dir, device);
        }
        r.finish(report);
        out.insert(key, spec);
    }
    out
}

/// `configs` or `secrets`, contents read.
pub(super) fn files(value: Option<Value>, kind: &'static str, input: &LoadInput<'_>, report: &mut Report) -> BTreeMap<String, FileObject> {
    let mut out = BTreeMap::new();
    for (key, value) in entries(value, kind, report) {
        let path = at(kind, &key);
        let mut r = Reader::new(value, &path, report);
        let (name, external) = identity(&mut r, &key, input, report);
        let labels = r.text_map("labels", report);
        let file = r.string("file", report).filter(|f| !f.is_empty());
        let mut content = r.string("content", report);
        let environment = r.string("environment", report).filter(|e| !e.is_empty());
        let external_given = r.has("external") || external;
        let own_driver = r.string("driver", report).filter(|d| !d.is_empty());
        let template_driver = r.string("template_driver", report).filter(|d| !d.is_empty());
        if template_driver.is_some() {
            report.note(&r.at("template_driver"), "has no effect: contents are delivered as they are");
        }
        let driver = own_driver.clone().or_else(|| template_driver.clone());
        let driver_opts = r.text_map("driver_opts", report);
        if !driver_opts.is_empty() {
            report.note(&r.at("driver_opts"), "driver_opts have no effect: contents are delivered as files");
        }
        r.finish(report);
        let sources = usize::from(file.is_some()) + usize::from(content.is_some()) + usize::from(environment.is_some());
        if sources > 1 || (sources == 0 && own_driver.is_none() && !external_given) || (sources == 0 && kind == "secrets" && !external) {
            let found = if sources == 0 { "has no source" } else { "has more than one source" };
            report.error(&path, format!("{key:?} {found}"), "give one of file, content, environment, or external: true");
        }
        let mut digest = None;
        let absolute = file.as_deref().map(|f| side_file(f, &path, input, (&mut content, &mut digest), report));
        if let Some(variable) = &environment {
            content = input.variables.get(variable).cloned();
            if content.is_none() {
                report.note(&path, format!("variable {variable} is not set, so {key:?} has no content and cannot be delivered"));
            }
        }
        if content.as_ref().is_some_and(|c| c.len() > MAX_CONTENT) {
            let hint = "mount a file or a volume instead";
            report.later(&path, Some(super::INVALID), format!("the content is longer than {MAX_CONTENT} bytes"), hint);
        }
        out.insert(
            key,
            FileObject {
                name,
                external,
                file: absolute.flatten(),
                content,
                digest,
                environment,
                labels,
                driver,
                driver_opts,
                template_driver,
            },
        );
    }
    out
}

/// Reads `file:` into `content`; its absolute path where there is a project directory. A missing file is a note: preflight judges delivery. What is no
/// text, or too long to be copied, is mounted, and only a digest of it is kept. A text that came with the call has no path: nothing of the host may stand for it.
fn side_file(
    file: &str,
    path: &str,
    input: &LoadInput<'_>,
    (content, digest): (&mut Option<String>, &mut Option<String>),
    report: &mut Report,
) -> Option<String> {
    if file.starts_with('~') {
        report.later(
            path,
            Some("path.traversal"),
            format!("{file:?} means a home directory, and the supervisor has none of yours"),
            "write the path relative to the project",
        );
        return Some(file.to_owned());
    }
    let relative = join("", file);
    let absolute = match file {
        f if f.starts_with('/') => Some(f.to_owned()),
        _ => Some(join(input.project_dir, &relative)).filter(|_| !input.project_dir.is_empty()),
    };
    let read = match input.files.read(&relative) {
        Ok(Some(text)) if text.len() > MAX_CONTENT => {
            let hash: String = Sha256::digest(&text).iter().map(|b| format!("{b:02x}")).collect();
            Err(ReadError::Opaque { why: format!("it is longer than the {MAX_CONTENT} bytes that are copied"), digest: hash })
        }
        read => read,
    };
    match read {
        Ok(Some(text)) if report.expand(path, text.len()) => *content = Some(text),
        Ok(Some(_)) => {}
        Ok(None) => report.note(path, format!("file {file} does not exist, so it cannot be delivered")),
        Err(ReadError::Opaque { why, digest: found }) if absolute.is_some() && input.files.mountable(&relative) => {
            report.note(path, format!("file {file} is mounted read-only instead of copied, with the owner and mode it has: {why}"));
            *digest = Some(found);
        }
        Err(why) => {
            report.later(path, why.rule(), format!("file {file} cannot be read: {why}"), "use a text file beneath the project directory");
        }
    }
    // A text of the call under the name of a file of the directory: what is judged is the text, so the file is never mounted in its place.
    absolute.filter(|_| input.files.mountable(&relative))
}
