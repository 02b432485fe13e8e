//! The canonical form of a project: what `docker compose config --format json` prints, made of the model alone. Loading it again gives the same
//! form. As there, inactive services and what no active one uses are left out, and a literal `$` is doubled.

mod service;

use crate::model::spec::written::Span;
use crate::model::spec::{FileMount, FileObject, MountKind, NetworkSpec, StackSpec, VolumeSpec};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The canonical JSON of a stack.
pub fn canonical(spec: &StackSpec) -> Value {
    let active: Vec<_> = spec.services.iter().filter(|(_, s)| s.active).collect();
    let mut out = Object::default();
    out.set("name", spec.name.as_str());
    out.set("services", active.iter().map(|(name, s)| (name.to_string(), service::service(s))).collect::<Map<_, _>>());
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

fn span(ms: u64) -> String {
    Span(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)).text()
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
