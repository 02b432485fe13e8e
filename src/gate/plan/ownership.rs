//! Who somebody claims to be: project names, container names and aliases, reserved labels, host names of other stacks, and text that
//! addresses a model. Whose a volume or network is stands in their files.

use super::{At, Judge};
use crate::model::spec::ServiceSpec;
use std::collections::{BTreeMap, BTreeSet};

/// Label namespaces that only the supervisor and Compose's own tools write. Ownership is never read from labels; other programs do.
pub const RESERVED_PREFIXES: &[&str] = &["dockwarden.", "com.docker.compose.", "com.docker.stack.", "com.docker.swarm."];
/// Beginning of names the supervisor gives to its own containers.
const OWN_PREFIX: &str = "dockwarden-";
/// Turns of phrase that address a model instead of describing a container.
const ADDRESSES: &[&str] = &[
    "ignore previous",
    "ignore all previous",
    "ignore the previous",
    "ignore your",
    "ignore all instructions",
    "ignore any",
    "disregard previous",
    "disregard all",
    "disregard your",
    "forget your instructions",
    "forget previous",
    "system prompt",
    "new instructions",
    "you are an ai",
    "you are now",
    "as an ai",
    "ai agent",
    "ai assistant",
    "dear assistant",
    "assistant:",
    "system:",
    "<system",
    "[inst]",
    "call the tool",
    "use the tool",
    "tool call",
    "do not tell the user",
    "without asking",
    "without approval",
    "to the agent",
    "agents must",
    "agent must",
    "llm",
];
/// Environment variables that reverse proxies read host names from.
const PROXY_VARIABLES: &[&str] = &["VIRTUAL_HOST", "LETSENCRYPT_HOST", "ACME_HOST", "CERT_NAME"];

/// Whether a label key is in a reserved namespace.
pub fn reserved(key: &str) -> bool {
    let key = key.trim().to_ascii_lowercase();
    RESERVED_PREFIXES.iter().any(|p| key.starts_with(p) || format!("{key}.") == **p)
}

/// Whether a text addresses a model, or hides characters from people.
pub fn addresses_a_model(text: &str) -> bool {
    let hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}' | '\u{1b}');
    let spaced = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let word = |p: &str| {
        let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
        spaced.match_indices(p).any(|(i, _)| {
            edge(spaced[..i].chars().next_back()) && (!p.ends_with(char::is_alphanumeric) || edge(spaced[i + p.len()..].chars().next()))
        })
    };
    text.chars().any(hidden) || ADDRESSES.iter().any(|p| word(p))
}

/// Whether a host name stands in a text as a whole.
fn names_host(text: &str, host: &str) -> bool {
    let (text, host) = (text.to_ascii_lowercase(), host.to_ascii_lowercase());
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let found = text.match_indices(&host).any(|(i, _)| {
        let before = text[..i].chars().next_back().is_none_or(|c| !part(c));
        let after = text[i + host.len()..].chars().next().is_none_or(|c| !part(c));
        before && after
    });
    !host.is_empty() && found
}

/// Judges the labels of something.
pub(super) fn labels(j: &mut Judge<'_>, service: Option<&str>, path: &str, labels: &BTreeMap<String, String>) {
    for (key, value) in labels {
        let at = format!("{path}.{key}");
        if reserved(key) {
            j.hit(
                "label.reserved",
                service,
                at.clone(),
                key,
                "labels of this namespace say whose a thing is; only the supervisor writes them",
            );
        }
        if let Some(owner) = claims(j, value).or_else(|| claims(j, key)) {
            j.hit(
                "label.route_hijack",
                service,
                at.clone(),
                key,
                format!("this claims a host name of the stack {owner:?} at the reverse proxy"),
            );
        }
        if addresses_a_model(value) || addresses_a_model(key) {
            j.hit("label.injection", service, at, key, "this text speaks to a model; it is passed on as untrusted data");
        }
    }
}

/// Stack whose host name a text claims. A pattern over host names can claim any of them.
fn claims(j: &Judge<'_>, text: &str) -> Option<String> {
    let mut others = j.facts.other_stacks.iter().filter(|(_, s)| !s.hostnames.is_empty());
    let pattern = text.contains("HostRegexp(") || text.contains("HostSNIRegexp(");
    others.find(|(_, s)| pattern || s.hostnames.iter().any(|h| names_host(text, h) || wildcard(text, h))).map(|(name, _)| name.clone())
}

/// `*.example.com` claims `billing.example.com`.
fn wildcard(text: &str, host: &str) -> bool {
    host.split_once('.').is_some_and(|(_, domain)| text.to_ascii_lowercase().contains(&format!("*.{}", domain.to_ascii_lowercase())))
}

pub(super) fn stack(j: &mut Judge<'_>) {
    if let Some(stack) = j.facts.stack.as_ref().filter(|s| **s != j.spec.name) {
        let because = format!("the file says {:?} and the call is for {:?}", j.spec.name.as_str(), stack.as_str());
        j.hit("project.name", None, "name", j.spec.name.as_str(), because);
    }
    for (key, v) in &j.spec.volumes {
        labels(j, None, &format!("volumes.{key}.labels"), &v.labels);
    }
    for (key, n) in &j.spec.networks {
        labels(j, None, &format!("networks.{key}.labels"), &n.labels);
    }
    for (kind, objects) in [("configs", &j.spec.configs), ("secrets", &j.spec.secrets)] {
        for (key, o) in objects {
            labels(j, None, &format!("{kind}.{key}.labels"), &o.labels);
        }
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let s = at.service;
    labels(j, Some(at.name), &at.path("labels"), &s.labels);
    labels(j, Some(at.name), &at.path("annotations"), &s.annotations);
    // These end up on services and images.
    let build = s.build.as_ref().and_then(|b| b.get("labels"));
    for (key, found) in [("deploy.labels", s.other.get("deploy.labels")), ("build.labels", build)] {
        if let Some(map) = found {
            labels(j, Some(at.name), &at.path(key), &label_map(map));
        }
    }
    let taken = |j: &Judge<'_>, name: &str| {
        let mut others = j.facts.other_stacks.values();
        j.facts.supervisor_containers.contains(name)
            || name == "dockwarden"
            || name.starts_with(OWN_PREFIX)
            || others.any(|o| o.containers.contains(name))
    };
    if let Some(name) = s.container_name.as_deref().map(|n| n.trim_start_matches('/')).filter(|n| taken(j, n)) {
        j.at("name.supervisor", at, "container_name", name, "this name belongs to the supervisor or to another stack");
    }
    shared_names(j, at);
    for (key, network) in &s.networks {
        let hijacked: Vec<&String> = network.aliases.iter().filter(|a| taken(j, a)).collect();
        for alias in hijacked {
            j.at(
                "name.supervisor",
                at,
                &format!("networks.{key}.aliases"),
                alias,
                "under this alias others would reach this service instead",
            );
        }
    }
    for key in PROXY_VARIABLES {
        if let Some(owner) = s.environment.get(*key).and_then(Option::as_deref).and_then(|v| claims(j, v)) {
            let because = format!("this claims a host name of the stack {owner:?} at the reverse proxy");
            j.at("label.route_hijack", at, &format!("environment.{key}"), key, because);
        }
    }
}

/// On a network that several stacks are on, a name that two of them answer to reaches either: whoever takes another's gets a part of its traffic.
fn shared_names(j: &mut Judge<'_>, at: At<'_>) {
    for (key, attached) in &at.service.networks {
        let engine_name = j.spec.networks.get(key).map_or(key.as_str(), |n| n.name.as_str());
        for name in names(at.name, at.service, &attached.aliases) {
            let holds = |o: &super::OtherStack| o.names.get(engine_name).is_some_and(|names| names.contains(&name));
            let Some(owner) = j.facts.other_stacks.iter().find(|(_, o)| holds(o)).map(|(stack, _)| stack.clone()) else { continue };
            let because = format!("on the network {engine_name:?} a service of the stack {owner:?} answers to this name too");
            j.at("name.taken", at, &format!("networks.{key}"), &name, because);
        }
    }
}

/// Names a service answers to on a network beside those that begin with its stack's.
pub fn names(service: &str, spec: &ServiceSpec, aliases: &[String]) -> BTreeSet<String> {
    std::iter::once(service.to_owned())
        .chain(spec.container_name.clone())
        .chain(spec.hostname.clone())
        .chain(aliases.iter().cloned())
        .collect()
}

/// Labels in either of Compose's two forms.
fn label_map(value: &serde_json::Value) -> BTreeMap<String, String> {
    let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    match value {
        serde_json::Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
        serde_json::Value::Array(list) => list
            .iter()
            .map(text)
            .map(|l| l.split_once('=').map_or((l.clone(), String::new()), |(k, v)| (k.to_owned(), v.to_owned())))
            .collect(),
        _ => BTreeMap::new(),
    }
}
