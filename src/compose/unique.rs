//! Which entries of a list are the same thing: of two the later one stays, at the place of the first. Positions matter to nobody else.

use super::mounts::short_target;
use super::value::{Map, Value};

/// Removes redefinitions from every list that has an identity.
pub(super) fn enforce(tree: &mut Map) {
    for (kind, value) in tree.iter_mut() {
        let Value::Map(objects) = value else { continue };
        match kind.as_str() {
            "services" => objects.values_mut().for_each(service),
            "networks" => objects.values_mut().for_each(|n| list(n, "labels", &key_of)),
            _ => {}
        }
    }
}

fn service(value: &mut Value) {
    for key in [
        "annotations",
        "cap_add",
        "cap_drop",
        "dns",
        "dns_opt",
        "dns_search",
        "environment",
        "labels",
        "links",
        "profiles",
        "sysctls",
        "tmpfs",
    ] {
        list(value, key, &key_of);
    }
    list(value, "env_file", &|v| field(v, "path").or_else(|| v.scalar()));
    list(value, "expose", &Value::scalar);
    list(value, "configs", &|v| mount(v, ""));
    list(value, "secrets", &|v| mount(v, "/run/secrets"));
    list(value, "volumes", &|v| field(v, "target").or_else(|| v.scalar().map(|t| short_target(&t).to_owned())));
    list(value, "devices", &|v| {
        let text = || v.scalar().map(|t| t.split(':').nth(1).unwrap_or(&t).to_owned());
        field(v, "target").or_else(text)
    });
    list(value, "ports", &|v| match v {
        Value::Map(m) => {
            let of = |key: &str, default: &str| m.get(key).and_then(Value::scalar).unwrap_or_else(|| default.to_owned());
            Some(format!("{}:{}:{}/{}", of("host_ip", "0.0.0.0"), of("published", ""), of("target", ""), of("protocol", "tcp")))
        }
        one => one.scalar(),
    });
    let Value::Map(map) = value else { return };
    if let Some(build) = map.get_mut("build") {
        for key in ["args", "additional_contexts", "tags", "labels"] {
            list(build, key, &key_of);
        }
    }
    if let Some(deploy) = map.get_mut("deploy") {
        list(deploy, "labels", &key_of);
    }
    if let Some(Value::Map(networks)) = map.get_mut("networks") {
        for network in networks.values_mut() {
            list(network, "aliases", &key_of);
            list(network, "link_local_ips", &key_of);
        }
    }
}

fn key_of(value: &Value) -> Option<String> {
    value.scalar().map(|text| text.split_once('=').map_or(text.clone(), |(key, _)| key.to_owned()))
}

fn field(value: &Value, key: &str) -> Option<String> {
    match value {
        Value::Map(map) => map.get(key).and_then(Value::scalar),
        _ => None,
    }
}

fn mount(value: &Value, dir: &str) -> Option<String> {
    field(value, "target").or_else(|| field(value, "source").or_else(|| value.scalar()).map(|source| format!("{dir}/{source}")))
}

fn list(parent: &mut Value, key: &str, identity: &dyn Fn(&Value) -> Option<String>) {
    let Value::Map(map) = parent else { return };
    let Some(Value::Seq(items)) = map.get_mut(key) else { return };
    let mut places = std::collections::BTreeMap::new();
    let mut out: Vec<Value> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        match identity(&item).map(|id| *places.entry(id).or_insert(out.len())) {
            Some(place) if place < out.len() => out[place] = item,
            _ => out.push(item),
        }
    }
    *items = out;
}
