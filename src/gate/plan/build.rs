//! Build sections: what they read and what they may do. Nothing is built here; a section is judged because a later deploy would.

use super::secrets::{plain_secret, provider_secret};
use super::{At, Judge, images};
use serde_json::Value;

/// Beginnings and shapes of contexts that are fetched from somewhere.
fn remote(context: &str) -> bool {
    let c = context.trim();
    c.contains("://")
        || c.starts_with("git@")
        || c.starts_with("github.com/")
        || c.starts_with("gitlab.com/")
        || c.starts_with("bitbucket.org/")
        || (c.contains(".git") && c.contains(':'))
}

fn strings(value: Option<&Value>) -> Vec<(String, String)> {
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

fn truthy(value: Option<&Value>) -> bool {
    value.is_some_and(|v| v.as_bool() == Some(true) || v.as_str().is_some_and(|s| s.eq_ignore_ascii_case("true")))
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let Some(build) = at.service.build.as_ref() else { return };
    if !j.policy.allow_build && at.service.image.is_none() {
        j.at("build.disabled", at, "build", "", "builds are switched off (allow_build in policy.toml); name an image");
    }
    let get = |key: &str| build.get(key);
    let context = build.as_str().or_else(|| get("context").and_then(Value::as_str)).unwrap_or(".");
    if remote(context) {
        j.at("build.remote", at, "build.context", context, "the context comes from a place that nobody listed");
    } else {
        inside(j, at, "build.context", context, None);
    }
    if let Some(file) = get("dockerfile").and_then(Value::as_str) {
        inside(j, at, "build.dockerfile", file, Some(context).filter(|c| !remote(c)));
    }
    for (name, from) in strings(get("additional_contexts")) {
        let path = format!("build.additional_contexts.{name}");
        match from.split_once("://") {
            Some(("docker-image", image))
                if images::parse(image).is_some_and(|r| images::listed(&r.name, &j.policy.allowed_registries)) => {}
            Some(("oci-layout", layout)) => inside(j, at, &path, layout, None),
            Some(_) => j.at("build.remote", at, &path, &from, "the context comes from a place that nobody listed"),
            None if from.starts_with("service:") || from.starts_with("target:") => {}
            None if remote(&from) => j.at("build.remote", at, &path, &from, "the context comes from a place that nobody listed"),
            None => inside(j, at, &path, &from, None),
        }
    }
    for key in ["cache_from", "cache_to"] {
        for (_, entry) in strings(get(key)).into_iter().map(|(k, v)| (String::new(), if k.is_empty() { v } else { format!("{k}={v}") })) {
            for part in entry.split(',') {
                if let Some(dir) = part.strip_prefix("src=").or_else(|| part.strip_prefix("dest=")) {
                    inside(j, at, &format!("build.{key}"), dir, None);
                }
            }
        }
    }
    let entitled = strings(get("entitlements"))
        .iter()
        .any(|(a, b)| [a, b].iter().any(|e| e.contains("insecure") || e.contains("network.host") || e.contains("device")));
    let host = get("network").and_then(Value::as_str).is_some_and(|n| n.trim() == "host" || n.starts_with("container:"));
    if truthy(get("privileged")) || entitled || host {
        j.at("build.privileged", at, "build", "privileged", "the build would run with rights of the host");
    }
    if get("ssh").is_some_and(|v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty())) {
        j.at("build.ssh", at, "build.ssh", "ssh", "the build would use the supervisor's SSH keys");
    }
    for (key, value) in strings(get("args")) {
        let path = format!("build.args.{key}");
        if provider_secret(&value) {
            j.at("env.provider_secret", at, &path, &key, "a provider's credential or a private key in plain text");
        } else if plain_secret(&key, &value) {
            j.at("build.arg_secret", at, &path, &key, "build arguments stay readable in the image; use build secrets");
        }
    }
}

/// Judges a path a build reads: below the project directory, links followed.
fn inside(j: &mut Judge<'_>, at: At<'_>, path: &str, written: &str, base: Option<&str>) {
    let Some(dir) = j.facts.project_dir.as_deref() else {
        return j.at("build.outside", at, path, written, "a build needs a registered project directory");
    };
    let join = |base: &str, rest: &str| if rest.starts_with('/') { rest.to_owned() } else { format!("{base}/{rest}") };
    let absolute = join(&base.map_or(dir.to_owned(), |b| join(dir, b)), written);
    let real = j.real(&absolute);
    if written.starts_with('~') || !j.in_project(&real) {
        j.at("build.outside", at, path, &real, "the build would read outside the project directory");
    }
}
