//! Build sections: what they read and what they may do. Nothing is built here; a section is judged because a later deploy would.

use super::paths::{self, Place, built_from, remote, strings};
use super::secrets::{plain_secret, provider_secret};
use super::{At, Judge, images};
use serde_json::Value;

fn truthy(value: Option<&Value>) -> bool {
    value.is_some_and(|v| v.as_bool() == Some(true) || v.as_str().is_some_and(|s| s.eq_ignore_ascii_case("true")))
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let Some(build) = at.service.build.as_ref() else { return };
    if !j.policy.allow_build && at.service.image.is_none() {
        j.at("build.disabled", at, "build", "", "builds are switched off (allow_build in policy.toml); name an image");
    }
    let get = |key: &str| build.get(key);
    let listed_image = |from: &str| images::parse(from).is_some_and(|r| images::listed(&r.name, &j.policy.allowed_registries));
    let mut fetched: Vec<(String, String)> = Vec::new();
    let context = paths::context(build);
    if remote(context) {
        fetched.push(("build.context".into(), context.to_owned()));
    }
    for (name, from) in strings(get("additional_contexts")) {
        let here = match from.split_once("://") {
            Some(("docker-image", image)) => listed_image(image),
            Some((scheme, _)) => scheme == "oci-layout",
            None => from.starts_with("service:") || from.starts_with("target:") || !remote(&from),
        };
        if !here {
            fetched.push((format!("build.additional_contexts.{name}"), from));
        }
    }
    for (path, from) in fetched {
        j.at("build.remote", at, &path, &from, "the context comes from a place that nobody listed");
    }
    for place in built_from(build) {
        inside(j, at, &place);
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
fn inside(j: &mut Judge<'_>, at: At<'_>, place: &Place) {
    let Some(dir) = j.facts.project_dir.as_deref() else {
        return j.at("build.outside", at, &place.path, &place.written, "a build needs a registered project directory");
    };
    let real = j.real(&place.absolute(dir));
    if place.written.starts_with('~') || !j.in_project(&real) {
        j.at("build.outside", at, &place.path, &real, "the build would read outside the project directory");
    }
}
