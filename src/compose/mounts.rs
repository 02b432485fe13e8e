//! `volumes`, `tmpfs`, service `configs` and `secrets`: short and long forms to mounts. Does not ask whether a host path exists.

use super::files::join;
use super::reader::{Reader, scalar, strings};
use super::units;
use super::value::Value;
use super::{LoadInput, Report};
use crate::model::spec::written::MountSections;
use crate::model::spec::{FileMount, MountKind, MountSpec};

const HINT: &str = "write \"name:/path\", \"./dir:/path:ro\" or the long form {type: bind, source: ./dir, target: /path}";

/// An absolute host path, or a reported reason why there is none.
pub(super) fn host_path(source: &str, input: &LoadInput<'_>, path: &str, report: &mut Report) -> Option<String> {
    if source.starts_with('~') {
        report.later(
            path,
            Some("bind.outside"),
            format!("{source:?} means a home directory, and the supervisor has none of yours"),
            "write the absolute path",
        );
        return Some(source.to_owned());
    }
    if source.starts_with('/') {
        return Some(join("", source));
    }
    if input.project_dir.is_empty() {
        report.error(
            path,
            format!("the relative path {source:?} needs a project directory"),
            "register the stack with a directory, or write an absolute path",
        );
        return None;
    }
    Some(join(input.project_dir, source))
}

/// The path inside that a short mount names, for telling which mounts are the same.
pub(super) fn short_target(text: &str) -> &str {
    let mut parts = text.splitn(3, ':');
    let first = parts.next().unwrap_or_default();
    parts.next().unwrap_or(first)
}

/// The mounts of a service's `volumes`.
pub(super) fn volumes(value: Value, path: &str, input: &LoadInput<'_>, report: &mut Report) -> Vec<(MountSpec, MountSections)> {
    let Value::Seq(items) = value else {
        report.error(path, format!("a list is needed, found {}", value.kind()), HINT);
        return Vec::new();
    };
    let mut out: Vec<(MountSpec, MountSections)> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mount = match item {
            Value::Map(_) => long(item, &path, input, report),
            other => scalar(&other, &path, report).and_then(|text| short(&text, &path, input, report)),
        };
        if let Some(mut mount) = mount {
            mount.0.target = clean(&mount.0.target);
            if !mount.0.target.starts_with('/') {
                report.later(&path, Some(super::INVALID), format!("the path inside, {:?}, is not absolute", mount.0.target), HINT);
            }
            // `/a` and `/a/` are one place.
            match out.iter_mut().find(|(m, _)| m.target == mount.0.target) {
                Some(same) => *same = mount,
                None => out.push(mount),
            }
        }
    }
    out
}

/// An absolute path as written, where that is not how it is resolved.
fn respelled(written: &str, resolved: &str) -> Option<String> {
    Some(written).filter(|w| w.starts_with('/') && *w != resolved).map(str::to_owned)
}

/// A path without `.`, `..`, double and closing slashes.
fn clean(path: &str) -> String {
    if path.is_empty() { String::new() } else { join("", path) }
}

fn short(text: &str, path: &str, input: &LoadInput<'_>, report: &mut Report) -> Option<(MountSpec, MountSections)> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.iter().any(|p| p.is_empty()) || parts.len() > 3 {
        let why = if parts.len() > 3 { "has too many colons" } else { "has an empty section between colons; is a variable unset?" };
        report.error(path, format!("{text:?} {why}"), HINT);
        return None;
    }
    let (source, target) = match parts.as_slice() {
        [target] => {
            // Compose leaves the options of a very short text out.
            let sections = MountSections { volume: text.len() > 2, ..MountSections::default() };
            return Some((MountSpec::new(MountKind::Volume, *target, path), sections));
        }
        [source, target, ..] => (*source, *target),
        [] => return None,
    };
    let bind = source.starts_with(['.', '/', '~']);
    let mut sections = MountSections { bind, volume: !bind, ..MountSections::default() };
    let mut mount = if bind {
        let host = host_path(source, input, path, report)?;
        sections.source = respelled(source, &host);
        MountSpec { source: Some(host), create_host_path: true, ..MountSpec::new(MountKind::Bind, target, path) }
    } else {
        MountSpec { source: Some(source.to_owned()), ..MountSpec::new(MountKind::Volume, target, path) }
    };
    for option in parts.get(2).copied().unwrap_or_default().split(',') {
        match option {
            "ro" => mount.read_only = true,
            "" | "rw" | "cached" | "delegated" | "consistent" => {}
            "nocopy" => {
                mount.nocopy = true;
                sections.volume = true;
            }
            "z" | "Z" => {
                mount.selinux = Some(option.to_owned());
                sections.bind = true;
            }
            "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" => {
                mount.propagation = Some(option.to_owned());
                sections.bind = true;
            }
            other => report.note(path, format!("mount option {other:?} has no effect")),
        }
    }
    Some((mount, sections))
}

fn long(value: Value, path: &str, input: &LoadInput<'_>, report: &mut Report) -> Option<(MountSpec, MountSections)> {
    let mut r = Reader::new(value, path, report);
    let kind = r.string("type", report);
    let source = r.string("source", report).filter(|s| !s.is_empty());
    let target = r.string("target", report).unwrap_or_default();
    let kind = match kind.as_deref() {
        Some("bind") => MountKind::Bind,
        Some("volume") => MountKind::Volume,
        Some("tmpfs") => MountKind::Tmpfs,
        Some("npipe") => MountKind::Npipe,
        Some("cluster") => MountKind::Cluster,
        Some("image") => MountKind::Image,
        Some(other) => {
            report.error(path, format!("unknown mount type {other:?}"), "there are bind, volume, tmpfs, image, cluster and npipe");
            return None;
        }
        None => {
            report.error(path, "the mount has no type", HINT);
            return None;
        }
    };
    let mut mount = MountSpec::new(kind, &target, path);
    mount.read_only = r.boolean("read_only", report).unwrap_or(false);
    let mut sections = MountSections { consistency: r.string("consistency", report).filter(|c| !c.is_empty()), ..MountSections::default() };
    if let Some(bind) = r.take("bind") {
        sections.bind = true;
        let mut b = Reader::new(bind, &r.at("bind"), report);
        mount.propagation = b.string("propagation", report);
        mount.selinux = b.string("selinux", report);
        // Only the short form creates host paths by itself.
        mount.create_host_path = b.boolean("create_host_path", report).unwrap_or(false);
        if let Some(recursive) = b.string("recursive", report) {
            report.note(&b.at("recursive"), format!("recursive: {recursive} has no effect"));
            sections.recursive = Some(recursive);
        }
        b.finish(report);
    }
    if let Some(volume) = r.take("volume") {
        sections.volume = true;
        let mut v = Reader::new(volume, &r.at("volume"), report);
        mount.nocopy = v.boolean("nocopy", report).unwrap_or(false);
        mount.subpath = v.string("subpath", report);
        if v.take("labels").is_some() {
            report.note(&v.at("labels"), "labels of an anonymous volume have no effect");
        }
        v.finish(report);
    }
    if let Some(tmpfs) = r.take("tmpfs") {
        sections.tmpfs = true;
        let mut t = Reader::new(tmpfs, &r.at("tmpfs"), report);
        mount.tmpfs_size = t.parsed("size", report, units::bytes);
        // Unlike that of a secret, this mode is a number in Compose.
        mount.tmpfs_mode = t.take("mode").and_then(|v| match v {
            Value::String(text) => {
                report.error(&t.at("mode"), format!("the mode {text:?} is text"), "write the mode without quotes, e.g. 0700");
                None
            }
            number => mode(&number, &t.at("mode"), report),
        });
        t.finish(report);
    }
    if let Some(image) = r.take("image") {
        sections.image = true;
        let mut i = Reader::new(image, &r.at("image"), report);
        mount.subpath = i.string("subpath", report);
        i.finish(report);
    }
    r.finish(report);
    mount.source = match (kind, source) {
        (MountKind::Bind, Some(s)) => {
            let host = host_path(&s, input, path, report)?;
            sections.source = respelled(&s, &host);
            Some(host)
        }
        (MountKind::Bind, None) => {
            report.error(path, "a bind mount needs a source", HINT);
            None
        }
        (_, source) => source,
    };
    if target.is_empty() {
        report.error(path, "the mount has no target", HINT);
    }
    Some((mount, sections))
}

/// File mode bits. `0o440` arrives as a number, `0440` and "0440" as text; a plain number is decimal, as YAML has read octal literals already.
fn mode(value: &Value, path: &str, report: &mut Report) -> Option<u32> {
    let found = match value {
        Value::Int(i) => u32::try_from(*i).ok().filter(|m| *m <= 0o7777).ok_or_else(|| format!("{i} is no file mode")),
        other => other.scalar().ok_or_else(|| format!("a file mode is needed, found {}", other.kind())).and_then(|s| units::mode(&s)),
    };
    found.map_err(|message| report.error(path, message, "write the mode in octal, e.g. \"0440\"")).ok()
}

/// The service's `tmpfs:` key.
pub(super) fn tmpfs(value: Value, path: &str, report: &mut Report) -> Vec<MountSpec> {
    let many = matches!(value, Value::Seq(_));
    let mut out = Vec::new();
    for (index, text) in strings(value, path, report).into_iter().enumerate() {
        let path = if many { format!("{path}[{index}]") } else { path.to_owned() };
        let (target, options) = text.split_once(':').unwrap_or((&text, ""));
        let mut mount = MountSpec::new(MountKind::Tmpfs, target, &path);
        for option in options.split(',').filter(|o| !o.is_empty()) {
            let problem = match option.split_once('=') {
                Some(("size", size)) => units::bytes(size).map(|v| mount.tmpfs_size = Some(v)).err(),
                Some(("mode", mode)) => units::mode(mode).map(|v| mount.tmpfs_mode = Some(v)).err(),
                _ if option == "ro" => {
                    mount.read_only = true;
                    None
                }
                _ => {
                    mount.tmpfs_options.push(option.to_owned());
                    None
                }
            };
            if let Some(message) = problem {
                report.later(&path, Some(super::INVALID), message, "");
            }
        }
        if !target.starts_with('/') {
            let hint = "write \"/path\" or \"/path:size=64m\"";
            report.later(&path, Some(super::INVALID), format!("the path inside, {target:?}, is not absolute"), hint);
        }
        out.push(mount);
    }
    out
}

/// A service's `configs` or `secrets`; `root` is where a relative target lies.
pub(super) fn file_mounts(value: Value, path: &str, root: &str, report: &mut Report) -> Vec<FileMount> {
    let Value::Seq(items) = value else {
        report.error(path, format!("a list is needed, found {}", value.kind()), "write `- name`");
        return Vec::new();
    };
    let absolute =
        |target: &str| if target.starts_with('/') { target.to_owned() } else { format!("{}/{target}", root.trim_end_matches('/')) };
    let mut out = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Value::Map(_) = item {
            let mut r = Reader::new(item, &path, report);
            let source = r.string("source", report).unwrap_or_default();
            let target = r.string("target", report).filter(|t| !t.is_empty());
            let (uid, gid) = (r.string("uid", report), r.string("gid", report));
            let mode = r.take("mode").and_then(|v| mode(&v, &r.at("mode"), report));
            r.finish(report);
            let written_target = target.clone();
            let target = absolute(target.as_deref().unwrap_or(&source));
            out.push(FileMount { source, target, written_target, uid, gid, mode });
        } else if let Some(source) = scalar(&item, &path, report) {
            let target = absolute(&source);
            out.push(FileMount { source, target, written_target: None, uid: None, gid: None, mode: None });
        }
    }
    out
}
