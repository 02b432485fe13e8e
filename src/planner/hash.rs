//! What makes two containers of a service the same: a keyed hash over everything that reaches the engine. Pure.

use crate::model::ids::ServiceName;
use crate::model::spec::{FileObject, StackSpec};
use serde_json::{Value, json};

/// Keyed hash of one service as it would be created with an image: equal hash, equal container. Replica counts, dependencies, profiles
/// and positions in the file do not count; contents of configs and secrets and the engine names of networks and volumes do.
pub fn spec_hash<'a>(stack: &'a StackSpec, service: &ServiceName, image_id: &str, digest: &dyn Fn(&[u8]) -> String) -> String {
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
    strip_positions(&mut value);
    let networks: Vec<_> = spec.networks.keys().map(|k| (k, stack.networks.get(k).map(|n| &n.name))).collect();
    let volumes: Vec<_> =
        spec.mounts.iter().filter_map(|m| m.source.as_ref()).map(|k| (k, stack.volumes.get(k).map(|v| &v.name))).collect();
    let content = |object: Option<&'a FileObject>| object.and_then(|f| f.content.as_ref().or(f.digest.as_ref()));
    let configs = spec.configs.iter().map(|m| (m, content(stack.configs.get(&m.source))));
    let files: Vec<_> = configs.chain(spec.secrets.iter().map(|m| (m, content(stack.secrets.get(&m.source))))).collect();
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
    if let Some(Value::Object(services)) = value.get_mut("services") {
        services.values_mut().for_each(strip_positions);
    }
    value
}

/// Positions in the file are for messages, not for identity: those of a service's mounts and ports. What a file itself calls `path` stays.
pub(super) fn strip_positions(service: &mut Value) {
    for list in ["mounts", "ports"] {
        for item in service.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
            item.remove("path");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{MountKind, MountSpec};

    fn stack(service: Value) -> StackSpec {
        serde_json::from_value(
            json!({"name": "shop", "services": {"web": service}, "networks": {}, "volumes": {}, "configs": {}, "secrets": {}}),
        )
        .expect("a stack")
    }

    fn of(stack: &StackSpec) -> String {
        let web = ServiceName::new("web").expect("a name");
        // What is hashed, whole: the hash itself is cut.
        let whole = std::cell::RefCell::new(String::new());
        spec_hash(stack, &web, "sha256:a", &|bytes| {
            whole.replace(String::from_utf8(bytes.to_vec()).expect("JSON"));
            String::new()
        });
        whole.into_inner()
    }

    #[test]
    fn a_position_is_no_identity_and_every_other_path_is_one() {
        let mount = |at: &str| serde_json::to_value(MountSpec::new(MountKind::Volume, "/data", at)).expect("plain");
        let web = |at: &str, key: &str, path: &str| stack(json!({"mounts": [mount(at)], key: {"target": "x", "path": path}}));
        let base = web("services.web.volumes[0]", "environment", "/a");
        assert_eq!(of(&base), of(&web("services.web.volumes[3]", "environment", "/a")));
        assert_eq!(text(&base), text(&web("services.web.volumes[3]", "environment", "/a")));
        for key in ["environment", "labels", "sysctls"] {
            let (one, other) = (web("", key, "/a"), web("", key, "/b"));
            assert!(of(&one) != of(&other) && text(&one) != text(&other), "{key}");
        }
    }

    #[test]
    fn the_hash_of_what_runs_is_that_of_the_release_before() {
        // What the version before hashed for this service: only what it left out by mistake may be hashed anew.
        let port = json!({"target": 80, "published": "8080", "host_ip": null, "protocol": "tcp", "mode": "ingress", "path": "services.web.ports[0]"});
        let spec = stack(
            json!({"ports": [port], "mounts": [MountSpec::new(MountKind::Bind, "/data", "services.web.volumes[0]")], "labels": {"path": "/a"}}),
        );
        let mut whole = serde_json::to_value(&spec.services[&ServiceName::new("web").expect("a name")]).expect("plain");
        strip_positions(&mut whole);
        fn before(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    if map.contains_key("target") {
                        map.remove("path");
                    }
                    map.values_mut().for_each(before);
                }
                Value::Array(items) => items.iter_mut().for_each(before),
                _ => {}
            }
        }
        let mut then = serde_json::to_value(&spec.services[&ServiceName::new("web").expect("a name")]).expect("plain");
        before(&mut then);
        assert_eq!(whole, then);
    }
}
