//! What makes two containers of a service the same: a keyed hash over everything that reaches the engine. Pure.

use crate::model::ids::ServiceName;
use crate::model::spec::StackSpec;
use serde_json::{Value, json};

/// Keyed hash of one service as it would be created with an image: equal hash, equal container. Replica counts, dependencies, profiles
/// and positions in the file do not count; contents of configs and secrets and the engine names of networks and volumes do.
pub fn spec_hash(stack: &StackSpec, service: &ServiceName, image_id: &str, digest: &dyn Fn(&[u8]) -> String) -> String {
    let Some(spec) = stack.services.get(service) else { return String::new() };
    let mut value = serde_json::to_value(spec).expect("a service spec is plain data");
    if let Value::Object(map) = &mut value {
        for key in ["active", "profiles", "replicas", "depends_on", "settings", "build", "pull_policy", "image", "written"] {
            map.remove(key);
        }
    }
    let fronted = super::front::fronted(spec);
    if let Value::Object(map) = &mut value
        && fronted
    {
        // Its front publishes them.
        map.remove("ports");
    }
    strip_paths(&mut value);
    let networks: Vec<_> = spec.networks.keys().map(|k| (k, stack.networks.get(k).map(|n| &n.name))).collect();
    let volumes: Vec<_> =
        spec.mounts.iter().filter_map(|m| m.source.as_ref()).map(|k| (k, stack.volumes.get(k).map(|v| &v.name))).collect();
    let files: Vec<_> = spec
        .configs
        .iter()
        .map(|m| (m, stack.configs.get(&m.source).and_then(|f| f.content.as_ref())))
        .chain(spec.secrets.iter().map(|m| (m, stack.secrets.get(&m.source).and_then(|f| f.content.as_ref()))))
        .collect();
    let mut whole = json!({"service": value, "image": image_id, "networks": networks, "volumes": volumes, "files": files});
    if fronted {
        // Without the service's name and ports: another container than the same service without a front.
        whole["fronted"] = true.into();
    }
    let mut hash = digest(whole.to_string().as_bytes());
    hash.truncate(32);
    hash
}

/// What a stack says, without positions in the file and notes about it: equal text, equal stack.
pub fn text(stack: &StackSpec) -> Value {
    let mut value = serde_json::to_value(stack).expect("a stack is plain data");
    if let Value::Object(map) = &mut value {
        map.remove("unsupported");
        map.remove("declared");
    }
    strip_paths(&mut value);
    value
}

/// Positions in the file are for messages, not for identity.
fn strip_paths(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.contains_key("target") {
                map.remove("path");
            }
            map.values_mut().for_each(strip_paths);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_paths),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
