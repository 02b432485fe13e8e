//! Which host paths a plan names, so that whoever may look at the disk finds out where they really lead before the plan is judged. Lexical
//! only: nothing is looked up here.

use super::{BindFact, normalise};
use crate::model::policy::Policy;
use crate::model::spec::confinement::seccomp_file;
use crate::model::spec::{MountKind, ServiceSpec, StackSpec};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Every host path the plan or the policy names, absolute, spelled as the gate will ask for it.
pub fn named(spec: &StackSpec, project_dir: Option<&str>, policy: &Policy) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = policy.bind_roots_allow.iter().chain(&policy.bind_roots_approval).cloned().collect();
    all.extend(project_dir.map(str::to_owned));
    all.extend(spec.volumes.values().filter_map(|v| v.driver_opts.get("device").cloned()));
    all.extend(spec.configs.values().chain(spec.secrets.values()).filter_map(|f| f.file.clone()));
    for s in spec.services.values() {
        all.extend(s.mounts.iter().filter(|m| m.kind == MountKind::Bind).filter_map(|m| m.source.clone()));
        all.extend(s.devices.iter().map(|d| d.source.clone()));
        if let Some(dir) = project_dir {
            all.extend(files(s).into_iter().map(|(_, file)| join(dir, &file)));
            all.extend(s.security_opt.iter().filter_map(|o| seccomp_file(o)).map(|file| join(dir, file)));
            if let Some(build) = &s.build {
                all.extend(built_from(build).into_iter().map(|place| place.absolute(dir)));
            }
        }
    }
    all.retain(|p| p.starts_with('/'));
    all
}

/// The host paths of a plan that reach a container or a volume, as written.
pub fn reached(spec: &StackSpec) -> BTreeSet<&str> {
    let mounts = spec.services.values().flat_map(|s| &s.mounts).filter(|m| m.kind == MountKind::Bind).filter_map(|m| m.source.as_deref());
    let files = spec.configs.values().chain(spec.secrets.values()).filter_map(|o| o.file.as_deref());
    let devices = spec.services.values().flat_map(|s| &s.devices).map(|d| d.source.as_str());
    let volumes = spec.volumes.values().filter_map(|v| v.driver_opts.get("device")).map(String::as_str);
    mounts.chain(files).chain(devices).chain(volumes).filter(|p| p.starts_with('/')).collect()
}

/// Where those that exist lead: what an operator approves and what may be mounted later.
pub fn real(spec: &StackSpec, resolved: &BTreeMap<String, BindFact>) -> BTreeMap<String, String> {
    let known = reached(spec).into_iter().filter_map(|p| Some((p.to_owned(), resolved.get(p).filter(|f| f.exists)?)));
    known.map(|(p, fact)| (p, normalise(&fact.real))).collect()
}

/// Those that lead elsewhere by now than when they were judged; one that nobody could follow then is taken at its word.
pub fn moved(spec: &StackSpec, judged: &BTreeMap<String, String>, now: &BTreeMap<String, BindFact>) -> BTreeSet<String> {
    let moved = |p: &&str| match (judged.get(*p), now.get(*p)) {
        (Some(then), Some(now)) => *then != normalise(&now.real),
        (Some(_), None) => true,
        (None, Some(now)) => normalise(p) != normalise(&now.real),
        (None, None) => false,
    };
    reached(spec).into_iter().filter(moved).map(str::to_owned).collect()
}

/// `rest` below `base`, unless it is absolute. Dots stay: they mean what they mean after links.
pub(super) fn join(base: &str, rest: &str) -> String {
    if rest.starts_with('/') { rest.to_owned() } else { format!("{base}/{rest}") }
}

/// Files a service names beside mounts and builds: (path in the service, file).
pub(super) fn files(service: &ServiceSpec) -> Vec<(&'static str, String)> {
    let mut out: Vec<(&'static str, String)> = Vec::new();
    match service.other.get("label_file") {
        Some(Value::Array(list)) => out.extend(list.iter().filter_map(Value::as_str).map(|f| ("label_file", f.to_owned()))),
        Some(Value::String(one)) => out.push(("label_file", one.clone())),
        _ => {}
    }
    let spec = service.other.get("credential_spec").and_then(|c| c.get("file")).and_then(Value::as_str);
    out.extend(spec.map(|f| ("credential_spec.file", f.to_owned())));
    out
}

/// A directory or file on the host that a build reads or writes.
pub(super) struct Place {
    /// Path in the service.
    pub path: String,
    /// As written.
    pub written: String,
    /// Directory below the project's that it is relative to.
    pub base: Option<String>,
}

impl Place {
    /// Spelled from the root.
    pub(super) fn absolute(&self, project_dir: &str) -> String {
        join(&self.base.as_deref().map_or_else(|| project_dir.to_owned(), |b| join(project_dir, b)), &self.written)
    }
}

/// Text of the context of a build.
pub(super) fn context(build: &Value) -> &str {
    build.as_str().or_else(|| build.get("context").and_then(Value::as_str)).unwrap_or(".")
}

/// Whether a context is fetched from somewhere.
pub(super) fn remote(context: &str) -> bool {
    let c = context.trim();
    c.contains("://")
        || c.starts_with("git@")
        || c.starts_with("github.com/")
        || c.starts_with("gitlab.com/")
        || c.starts_with("bitbucket.org/")
        || (c.contains(".git") && c.contains(':'))
}

/// Key and value of entries in any of Compose's forms.
pub(super) fn strings(value: Option<&Value>) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().map_or_else(|| if v.is_null() { String::new() } else { v.to_string() }, str::to_owned);
    match value {
        Some(Value::Object(map)) => map.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
        Some(Value::Array(list)) => list
            .iter()
            .map(text)
            .map(|t| t.split_once('=').map_or((t.clone(), String::new()), |(k, v)| (k.to_owned(), v.to_owned())))
            .collect(),
        Some(Value::Null) | None => vec![],
        Some(v) => vec![(String::new(), text(v))],
    }
}

/// Everything on the host that a build section reads or writes.
pub(super) fn built_from(build: &Value) -> Vec<Place> {
    let get = |key: &str| build.get(key);
    let context = context(build);
    let mut out = Vec::new();
    let mut add = |path: String, written: &str, base: Option<&str>| {
        out.push(Place { path, written: written.to_owned(), base: base.map(str::to_owned) });
    };
    if !remote(context) {
        add("build.context".into(), context, None);
    }
    if let Some(file) = get("dockerfile").and_then(Value::as_str) {
        add("build.dockerfile".into(), file, Some(context).filter(|c| !remote(c)));
    }
    for (name, from) in strings(get("additional_contexts")) {
        let path = format!("build.additional_contexts.{name}");
        match from.split_once("://") {
            Some(("oci-layout", layout)) => add(path, layout, None),
            Some(_) => {}
            None if from.starts_with("service:") || from.starts_with("target:") || remote(&from) => {}
            None => add(path, &from, None),
        }
    }
    for key in ["cache_from", "cache_to"] {
        for (name, value) in strings(get(key)) {
            let entry = if name.is_empty() { value } else { format!("{name}={value}") };
            for dir in entry.split(',').filter_map(|part| part.strip_prefix("src=").or_else(|| part.strip_prefix("dest="))) {
                add(format!("build.{key}"), dir, None);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_has_moved_when_it_leads_elsewhere_than_it_was_judged() {
        let mut spec: StackSpec =
            serde_json::from_value(json!({"name": "shop", "services": {}, "networks": {}, "volumes": {}, "configs": {}, "secrets": {},
            "settings": {}, "unsupported": []}))
            .expect("a stack");
        for path in ["/plain", "/link", "/swapped", "/new-link", "/gone", "/unseen"] {
            let volume = serde_json::from_value(json!({"name": path, "driver_opts": {"device": path}})).expect("a volume");
            spec.volumes.insert(path.into(), volume);
        }
        let facts = |pairs: &[(&str, &str)]| -> BTreeMap<String, BindFact> {
            pairs.iter().map(|(p, r)| ((*p).to_owned(), BindFact { real: (*r).to_owned(), exists: true, kind: None })).collect()
        };
        let then = facts(&[("/plain", "/plain"), ("/link", "/data/link"), ("/swapped", "/swapped"), ("/gone", "/gone")]);
        let now = facts(&[("/plain", "/plain/"), ("/link", "/data/link"), ("/swapped", "/etc"), ("/new-link", "/etc")]);
        let judged = real(&spec, &then);
        assert_eq!(judged["/link"], "/data/link");
        let moved = moved(&spec, &judged, &now);
        assert_eq!(moved.iter().map(String::as_str).collect::<Vec<_>>(), ["/gone", "/new-link", "/swapped"]);
    }
}
