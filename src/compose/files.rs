//! Paths of side files, lexically: no disk is asked. Knows how paths within an included or extended file move to the project directory.

use super::value::{Map, Value};

/// Joins and normalises; an absolute `path` wins. A leading `..` stays: the reader of files decides about it.
pub(super) fn join(dir: &str, path: &str) -> String {
    let joined = if path.starts_with('/') || dir.is_empty() { path.to_owned() } else { format!("{dir}/{path}") };
    let absolute = joined.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            other => parts.push(other),
        }
    }
    let body = parts.join("/");
    match (absolute, body.is_empty()) {
        (true, _) => format!("/{body}"),
        (false, true) => ".".to_owned(),
        (false, false) => body,
    }
}

/// Whether a reference to a file means something fetched from elsewhere: git, OCI, HTTP.
pub(super) fn remote(path: &str) -> bool {
    let p = path.trim();
    p.contains("://")
        || p.starts_with("git@")
        || ["github.com/", "gitlab.com/", "bitbucket.org/"].iter().any(|host| p.starts_with(host))
        || p.contains(".git#")
        || (p.contains(".git") && p.contains(':'))
}

/// The directory of a file; empty for a file beside the project's own.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Moves the relative paths of a service written in a file under `dir`.
pub(super) fn rebase_service(service: &mut Map, dir: &str) {
    if dir.is_empty() || dir == "." {
        return;
    }
    for (key, value) in service.iter_mut() {
        match (key.as_str(), value) {
            ("env_file" | "label_file", value) => each(value, &|v| match v {
                Value::Map(m) => rebase_key(m, "path", dir),
                other => rebase(other, dir),
            }),
            ("volumes", value) => each(value, &|v| match v {
                Value::Map(m) if m.get("type").and_then(Value::scalar).as_deref() == Some("bind") => {
                    rebase_key(m, "source", dir);
                }
                Value::String(s) if s.starts_with('.') => {
                    if let Some((source, rest)) = s.split_once(':') {
                        *s = format!("./{}:{rest}", join(dir, source));
                    }
                }
                _ => {}
            }),
            ("build", Value::Map(m)) => {
                context(m.get_mut("context"), dir);
                if let Some(Value::Map(more)) = m.get_mut("additional_contexts") {
                    more.values_mut().for_each(|from| context(Some(from), dir));
                }
                if let Some(Value::Seq(more)) = m.get_mut("additional_contexts") {
                    for entry in more {
                        if let Some((name, from)) = entry.scalar().as_deref().and_then(|t| t.split_once('=')) {
                            let mut moved = Value::String(from.to_owned());
                            context(Some(&mut moved), dir);
                            *entry = Value::String(format!("{name}={}", moved.scalar().unwrap_or_default()));
                        }
                    }
                }
            }
            ("develop", Value::Map(m)) => {
                if let Some(watch) = m.get_mut("watch") {
                    each(watch, &|v| {
                        if let Value::Map(trigger) = v {
                            rebase_key(trigger, "path", dir);
                        }
                    });
                }
            }
            ("build", value @ Value::String(_)) => context(Some(value), dir),
            ("extends", Value::Map(m)) => rebase_key(m, "file", dir),
            _ => {}
        }
    }
}

/// Moves the relative `file:` of top-level configs and secrets, and the relative device of a volume that is a bind.
pub(super) fn rebase_objects(objects: &mut Value, dir: &str) {
    if dir.is_empty() || dir == "." {
        return;
    }
    if let Value::Map(map) = objects {
        for object in map.values_mut() {
            if let Value::Map(m) = object {
                rebase_key(m, "file", dir);
                if let Some(Value::Map(options)) = m.get_mut("driver_opts")
                    && options.get("o").and_then(Value::scalar).is_some_and(|o| o.split(',').any(|o| matches!(o.trim(), "bind" | "rbind")))
                {
                    rebase_key(options, "device", dir);
                }
            }
        }
    }
}

fn each(value: &mut Value, act: &dyn Fn(&mut Value)) {
    match value {
        Value::Seq(items) => items.iter_mut().for_each(act),
        one => act(one),
    }
}

/// A build context: a directory, unless it is fetched or another service's.
fn context(value: Option<&mut Value>, dir: &str) {
    if let Some(value) = value
        && value.scalar().is_some_and(|text| !remote(&text) && !text.starts_with("service:"))
    {
        rebase(value, dir);
    }
}

fn rebase_key(map: &mut Map, key: &str, dir: &str) {
    if let Some(value) = map.get_mut(key) {
        rebase(value, dir);
    }
}

fn rebase(value: &mut Value, dir: &str) {
    if let Value::String(s) = value
        && !s.starts_with(['/', '~'])
        && !s.contains("://")
    {
        *s = format!("./{}", join(dir, s));
    }
}
