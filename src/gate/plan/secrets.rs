//! Secrets in the text of a plan, the supervisor's own environment leaking into one, and files read from outside the project. No finding
//! ever repeats a value: it names the place.

use super::{At, Judge, paths};
use crate::redact::words;

/// Whether a text holds a recognisable provider credential or a private key.
pub fn provider_secret(text: &str) -> bool {
    if text.contains("-----BEGIN ") && text.contains("PRIVATE KEY") {
        return true;
    }
    let token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    text.split(|c: char| !token(c)).any(|word| {
        words::PREFIXES.iter().any(|prefix| {
            word.strip_prefix(prefix.text)
                .is_some_and(|rest| rest.len() >= prefix.least && rest.bytes().any(|b| b.is_ascii_digit() || b.is_ascii_uppercase()))
        })
    })
}

/// Whether a variable of that name with that value is a secret in plain text.
pub fn plain_secret(key: &str, value: &str) -> bool {
    let value = value.trim();
    let parts: Vec<String> =
        key.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_ascii_uppercase).collect();
    let secret = |(i, w): (usize, &String)| {
        let word = words::SECRET_WORDS.contains(&w.as_str()) && !(parts.len() == 1 && w == "PWD");
        let joined = parts.len() == 1 && ["PASSWORD", "SECRET", "TOKEN", "APIKEY"].iter().any(|s| w.ends_with(s));
        word || joined || (w == "KEY" && i > 0 && words::KEY_WORDS.contains(&parts[i - 1].as_str()))
    };
    let named = parts.iter().enumerate().any(secret)
        && (words::holds(key) || parts.last().is_some_and(|l| !words::ABOUT_WORDS.contains(&l.as_str())));
    let setting = matches!(value.to_ascii_lowercase().as_str(), "" | "true" | "false" | "yes" | "no" | "on" | "off" | "0" | "1" | "none");
    (named && !setting && !value.starts_with('/')) || url_credentials(value)
}

/// Whether a text is an URL with a password in it.
fn url_credentials(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
}

pub(super) fn stack(j: &mut Judge<'_>) {
    for (kind, objects) in [("configs", &j.spec.configs), ("secrets", &j.spec.secrets)] {
        for (key, object) in objects {
            let path = format!("{kind}.{key}");
            if let Some(variable) = object.environment.as_deref().filter(|v| !j.facts.declared_vars.contains(*v)) {
                let because =
                    format!("the variable {variable:?} is not declared for the stack; its value could only come from the supervisor");
                j.hit("env.passthrough", None, format!("{path}.environment"), variable, because);
            }
            if let Some(file) = &object.file {
                let real = j.real(file);
                if !j.in_project(&real) {
                    j.hit("path.traversal", None, format!("{path}.file"), &real, "the file lies outside the project directory");
                }
            }
            // Content that stands in the file itself; a secret read from a file or variable is where it belongs.
            let inline = object.file.is_none() && object.environment.is_none();
            if inline && object.content.as_deref().is_some_and(provider_secret) {
                j.hit(
                    "env.provider_secret",
                    None,
                    format!("{path}.content"),
                    key,
                    "a provider's credential or a private key in plain text; use secrets: with a file",
                );
            }
        }
    }
    for (name, path) in &j.facts.referenced_vars {
        if !j.facts.declared_vars.contains(name) && j.facts.supervisor_env.contains(name) {
            let because = format!("the variable {name:?} is not declared for the stack and exists in the supervisor's own environment");
            j.hit("env.passthrough", None, path.clone(), name, because);
        }
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let s = at.service;
    for (key, value) in &s.environment {
        let path = format!("environment.{key}");
        let Some(value) = value else {
            if j.facts.supervisor_env.contains(key) && !j.facts.declared_vars.contains(key) {
                j.at("env.passthrough", at, &path, key, "a variable without a value would take the supervisor's");
            }
            continue;
        };
        let from_file = j.facts.env_from_files.get(&(at.name.to_owned(), key.clone()));
        let value = from_file.unwrap_or(value);
        // The name alone says nothing about what is written around a variable.
        let plain = if from_file.is_some() { url_credentials(value) } else { plain_secret(key, value) };
        if provider_secret(value) {
            j.at("env.provider_secret", at, &path, key, "a provider's credential or a private key in plain text; use secrets:");
        } else if plain {
            j.at("env.plain_secret", at, &path, key, "this looks like a secret in plain text; use secrets: or an env_file");
        }
    }
    if let Some(dir) = j.facts.project_dir.as_deref() {
        for (path, file) in paths::files(s) {
            let real = j.real(&paths::join(dir, &file));
            if file.starts_with('~') || !j.in_project(&real) {
                j.at("path.traversal", at, path, &real, "the file lies outside the project directory");
            }
        }
    }
    let texts = [
        ("command", s.command.as_deref()),
        ("entrypoint", s.entrypoint.as_deref()),
        ("healthcheck.test", s.healthcheck.as_ref().map(|h| h.test.as_slice())),
    ];
    for (path, words) in texts {
        if words.is_some_and(|w| w.iter().any(|t| provider_secret(t))) {
            j.at("env.provider_secret", at, path, path, "a provider's credential or a private key in plain text; use secrets:");
        }
    }
    for (key, value) in s.labels.iter().chain(&s.annotations) {
        if provider_secret(value) {
            j.at(
                "env.provider_secret",
                at,
                &format!("labels.{key}"),
                key,
                "a provider's credential or a private key in a label, which everybody can read",
            );
        }
    }
}
