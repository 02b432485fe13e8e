//! Plain keys of a service about its process and its isolation, devices and limits. Whether they are allowed is the gate's question.

use super::files::join;
use super::reader::{Reader, scalar, strings};
use super::value::Value;
use super::{LoadInput, Report, at, units};
use crate::model::spec::confinement::seccomp_file;
use crate::model::spec::{DeviceSpec, Logging, ServiceSpec};
use std::collections::{BTreeMap, BTreeSet};

/// Plain keys about the process and its isolation.
pub(super) fn host_settings(r: &mut Reader, s: &mut ServiceSpec, input: &LoadInput<'_>, report: &mut Report) {
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
    seccomp(s, &r.at("security_opt"), input, report);
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
    s.stop_grace_period_ms = r.duration("stop_grace_period", report);
    s.devices = devices(r, &mut s.written.bare_devices, report);
    s.ulimits = ulimits(r, &mut s.written.single_ulimits, report);
    s.extra_hosts = extra_hosts(r, report);
    s.logging = r.take("logging").map(|v| {
        let mut l = Reader::new(v, &r.at("logging"), report);
        let logging = Logging { driver: l.string("driver", report).unwrap_or_default(), options: l.text_map("options", report) };
        l.finish(report);
        logging
    });
}

/// The profile of `seccomp=FILE`, which the engine wants as text and not as a file: hash, approval and request then cover what it says. As a variable's,
/// its text is put into the plan, so a caller's text names no file of the directory.
fn seccomp(s: &mut ServiceSpec, path: &str, input: &LoadInput<'_>, report: &mut Report) {
    let mut options = s.security_opt.clone();
    for (index, option) in options.iter_mut().enumerate() {
        let Some(file) = seccomp_file(option).filter(|f| !f.is_empty() && s.active) else { continue };
        let path = format!("{path}[{index}]");
        let hint = "name a seccomp profile beneath the project directory";
        match input.files.variables(&join("", file)) {
            Ok(Some(text)) if !report.expand(&path, text.len()) => {}
            Ok(Some(text)) => match profile(&text) {
                Ok(profile) => *option = format!("seccomp={profile}"),
                Err(why) => report.later(&path, None, format!("{file} is no seccomp profile: {why}"), hint),
            },
            Ok(None) => report.later(&path, None, format!("the seccomp profile {file} does not exist"), hint),
            Err(why) => report.later(&path, why.rule(), format!("the seccomp profile {file} cannot be read: {why}"), hint),
        }
    }
    if options != s.security_opt {
        s.written.security_opt = std::mem::replace(&mut s.security_opt, options);
    }
}

/// A profile without white space between its parts, as Compose sends it.
fn profile(text: &str) -> Result<String, String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| format!("it is no JSON (line {}, column {})", e.line(), e.column()))?;
    if !value.get("defaultAction").is_some_and(serde_json::Value::is_string) {
        return Err("it has no `defaultAction`".into());
    }
    let (mut out, mut quoted, mut escaped) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        if quoted || !c.is_ascii_whitespace() {
            out.push(c);
        }
        quoted = if c == '"' && !escaped { !quoted } else { quoted };
        escaped = quoted && c == '\\' && !escaped;
    }
    Ok(out)
}

fn devices(r: &mut Reader, bare: &mut BTreeSet<String>, report: &mut Report) -> Vec<DeviceSpec> {
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
            if found.2.is_none() {
                bare.insert(found.1.clone().unwrap_or_else(|| found.0.clone()));
            }
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

fn ulimits(r: &mut Reader, single: &mut BTreeSet<String>, report: &mut Report) -> BTreeMap<String, (i64, i64)> {
    let path = r.at("ulimits");
    let mut out = BTreeMap::new();
    let map = match r.take("ulimits") {
        None => return out,
        Some(Value::Map(map)) => map,
        Some(other) => {
            report.error(&path, format!("a mapping is needed, found {}", other.kind()), "write `nofile: {soft: 1024, hard: 2048}`");
            return out;
        }
    };
    for (name, value) in map {
        let path = at(&path, &name);
        let limits = if let Value::Map(_) = value {
            let mut u = Reader::new(value, &path, report);
            let found = (u.int("soft", report), u.int("hard", report));
            u.finish(report);
            found.0.zip(found.1)
        } else {
            single.insert(name.clone());
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

/// `host:address` entries; `host=address`, several addresses behind commas and the mapping form are turned into it.
fn extra_hosts(r: &mut Reader, report: &mut Report) -> Vec<String> {
    let path = r.at("extra_hosts");
    let bare = |ip: &str| ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).filter(|i| !i.is_empty()).unwrap_or(ip).to_owned();
    let mut out = Vec::new();
    let mut add = |host: &str, address: &str, path: &str, report: &mut Report| {
        if host.is_empty() || host.contains([':', '=']) {
            report.error(path, format!("{host:?} is no host name"), "write \"host=address\"");
        }
        out.push(format!("{host}:{}", bare(address)));
    };
    match r.take("extra_hosts") {
        None => {}
        Some(Value::Map(map)) => {
            for (host, value) in map {
                let path = at(&path, &host);
                strings(value, &path, report).iter().for_each(|address| add(&host, address, &path, report));
            }
        }
        Some(list) => {
            for (index, entry) in strings(list, &path, report).iter().enumerate() {
                let path = format!("{path}[{index}]");
                match entry.split_once('=').or_else(|| entry.split_once(':')) {
                    Some((host, addresses)) => addresses.split(',').for_each(|address| add(host, address, &path, report)),
                    None => report.error(&path, format!("{entry:?} has no address"), "write \"host=address\""),
                }
            }
        }
    }
    out
}
