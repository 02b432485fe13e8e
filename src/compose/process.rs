//! What a service runs and how it is asked for its health: command, environment, health check, build section. Nothing is run or built here.

use super::files::join;
use super::reader::{Reader, scalar, strings};
use super::value::{Map, Value};
use super::{LoadInput, Report, at, dotenv, files, shellwords, typed};
use crate::model::spec::Healthcheck;
use crate::model::spec::written::{Build, Written};
use std::collections::BTreeMap;

const BUILD_KEYS: &[&str] = &[
    "context",
    "dockerfile",
    "dockerfile_inline",
    "args",
    "ssh",
    "labels",
    "cache_from",
    "cache_to",
    "no_cache",
    "additional_contexts",
    "network",
    "target",
    "shm_size",
    "extra_hosts",
    "isolation",
    "privileged",
    "secrets",
    "tags",
    "ulimits",
    "platforms",
    "pull",
    "entitlements",
    "provenance",
    "sbom",
    "no_cache_filter",
];

pub(super) fn build(r: &mut Reader, report: &mut Report) -> Option<serde_json::Value> {
    let build = r.take("build")?;
    let path = r.at("build");
    if build.scalar().is_some() {
        return Some(Value::Map(Map::from([("context".into(), build)])).to_json());
    }
    let json = build.to_json();
    let mut b = Reader::new(build, &path, report);
    for key in BUILD_KEYS {
        b.raw(key);
    }
    b.finish(report);
    Some(json)
}

/// The section in its canonical form: paths absolute, arguments without a value resolved or gone.
pub(super) fn written_build(value: Value, path: &str, input: &LoadInput<'_>, report: &mut Report) -> Option<Build> {
    let mut value = if value.scalar().is_some() { Value::Map(Map::from([("context".into(), value)])) } else { value };
    if let Value::Map(map) = &mut value {
        for key in ["provenance", "sbom"] {
            if let Some(v) = map.get_mut(key)
                && let Some(text) = v.scalar()
            {
                *v = Value::String(text);
            }
        }
    }
    let mut build: Build = typed::read(value, path, report)?;
    if build.dockerfile.is_some() && build.dockerfile_inline.is_some() {
        report.error(path, "`dockerfile` and `dockerfile_inline` exclude each other", "keep one of them");
    }
    build.context = Some(context(build.context.as_deref().unwrap_or("."), input));
    if build.dockerfile.is_none() && build.dockerfile_inline.is_none() {
        build.dockerfile = Some("Dockerfile".into());
    }
    build.args = build.args.into_iter().filter_map(|(k, v)| v.or_else(|| input.variables.get(&k).cloned()).map(|v| (k, Some(v)))).collect();
    for from in build.additional_contexts.values_mut() {
        *from = context(from, input);
    }
    for file in build.ssh.values_mut().flatten() {
        *file = absolute(file, input);
    }
    Some(build)
}

fn absolute(path: &str, input: &LoadInput<'_>) -> String {
    if path.starts_with(['/', '~']) || input.project_dir.is_empty() { path.to_owned() } else { join(input.project_dir, path) }
}

fn context(text: &str, input: &LoadInput<'_>) -> String {
    let elsewhere = ["service:", "github.com/", "git@"];
    if text.contains("://") || elsewhere.iter().any(|p| text.starts_with(p)) { text.to_owned() } else { absolute(text, input) }
}

/// Makes the paths of `develop.watch` absolute and its commands lists.
pub(super) fn watched(develop: &mut Value, path: &str, input: &LoadInput<'_>, report: &mut Report) {
    let Value::Map(map) = develop else { return };
    let Some(Value::Seq(items)) = map.get_mut("watch") else { return };
    for (index, item) in items.iter_mut().enumerate() {
        let path = format!("{path}.watch[{index}]");
        let Value::Map(trigger) = item else { continue };
        if let Some(watched) = trigger.get_mut("path")
            && let Some(text) = watched.scalar()
        {
            if text.is_empty() {
                report.error(&at(&path, "path"), "the path is empty; is a variable unset?", "");
            }
            *watched = Value::String(absolute(&text, input));
        }
        if let Some(exec) = trigger.get_mut("exec") {
            typed::split_command(exec, &at(&path, "exec"), report);
        }
    }
}

/// Labels, those of `label_file` beneath the written ones.
pub(super) fn labels(
    r: &mut Reader,
    other: &mut BTreeMap<String, serde_json::Value>,
    input: &LoadInput<'_>,
    report: &mut Report,
) -> BTreeMap<String, String> {
    let path = r.at("label_file");
    let mut out = BTreeMap::new();
    if let Some(found) = r.take("label_file") {
        // The gate judges where the files lie.
        other.insert("label_file".into(), found.to_json());
        for (index, file) in strings(found, &path, report).into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Some(text) = side_text(&file, &path, "label file", input, report) else { continue };
            if !report.expand(&path, text.len()) {
                break;
            }
            match dotenv::parse(&text, &out, true) {
                Ok(values) => out.extend(values),
                Err(bad) => report.error_in(&file, Some(bad.line), bad.message, "write KEY=value, one per line"),
            }
        }
    }
    out.extend(r.text_map("labels", report));
    out
}

/// The text of a file that must be there, or a reported reason why it is not.
fn side_text(file: &str, path: &str, kind: &str, input: &LoadInput<'_>, report: &mut Report) -> Option<String> {
    let hint = "use a file beneath the project directory";
    if file.starts_with('~') {
        report.broken(path, Some("path.traversal"), format!("{file} means a home directory"), hint);
        return None;
    }
    match input.files.read(&files::join("", file)) {
        Ok(Some(text)) => Some(text),
        Ok(None) => {
            report.broken(path, None, format!("{kind} {file} not found"), "create it");
            None
        }
        Err(why) => {
            report.broken(path, why.rule(), format!("{kind} {file} cannot be read: {why}"), hint);
            None
        }
    }
}

pub(super) fn command(r: &mut Reader, key: &'static str, report: &mut Report) -> Option<Vec<String>> {
    let path = r.at(key);
    match r.take(key)? {
        list @ Value::Seq(_) => Some(strings(list, &path, report)),
        other => {
            let text = scalar(&other, &path, report)?;
            shellwords::split(&text).map_err(|why| report.error(&path, why, "write it as a list: [\"cmd\", \"arg\"]")).ok()
        }
    }
}

pub(super) fn environment(
    r: &mut Reader,
    (service, active): (&str, bool),
    input: &LoadInput<'_>,
    report: &mut Report,
) -> BTreeMap<String, Option<String>> {
    let mut out: BTreeMap<String, Option<String>> = BTreeMap::new();
    // What earlier files say is seen by later ones, before what is declared.
    let mut known = input.variables.clone();
    let path = r.at("env_file");
    let entries = match r.take("env_file") {
        None => Vec::new(),
        Some(Value::Seq(items)) => items,
        Some(one) => vec![one],
    };
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (file, required, raw) = match entry {
            Value::Map(_) => {
                let mut e = Reader::new(entry, &path, report);
                let found = (e.string("path", report), e.boolean("required", report).unwrap_or(true), e.string("format", report));
                e.finish(report);
                if found.2.is_some() {
                    report.newer.push(at(&path, "format"));
                }
                (found.0, found.1, found.2.as_deref() == Some("raw"))
            }
            other => (scalar(&other, &path, report), true, false),
        };
        let Some(file) = file else { continue };
        if file.starts_with('~') {
            report.broken(
                &path,
                Some("path.traversal"),
                format!("{file} means a home directory"),
                "use a file beneath the project directory",
            );
            continue;
        }
        match input.files.read(&join("", &file)) {
            Ok(Some(text)) if !report.expand(&path, text.len()) => break,
            Ok(Some(text)) => match dotenv::parse(&text, &known, !raw) {
                Ok(values) => {
                    for (key, value) in values {
                        known.insert(key.clone(), value.clone());
                        report.env_from_files.insert((service.to_owned(), key.clone()), String::new());
                        out.insert(key, Some(value));
                    }
                }
                Err(bad) => report.error_in(&file, Some(bad.line), bad.message, "write KEY=value, one per line"),
            },
            // Compose reads the files of active services only.
            Ok(None) if required && active => {
                report.broken(&path, None, format!("env file {file} not found"), "create it, or write {path: ..., required: false}");
            }
            Ok(None) => {}
            Err(why) => report.broken(
                &path,
                why.rule(),
                format!("env file {file} cannot be read: {why}"),
                "use a file beneath the project directory",
            ),
        }
    }
    for (key, value) in r.optional_map("environment", report) {
        let literal = match &value {
            None => Some(String::new()),
            Some(v) => {
                let whole = || report.substituted.get(&format!("{key}={v}")).and_then(|l| l.split_once('=')).map(|(_, l)| l.to_owned());
                report.substituted.get(v).cloned().or_else(whole)
            }
        };
        let place = (service.to_owned(), key.clone());
        match literal {
            Some(literal) => report.env_from_files.insert(place, literal),
            None => report.env_from_files.remove(&place),
        };
        let value = value.or_else(|| input.variables.get(&key).cloned());
        out.insert(key, value);
    }
    let bad = out.keys().find(|k| k.is_empty() || k.contains(['=', '\0'])).cloned();
    if let Some(key) = bad {
        report.later(&r.at("environment"), Some(super::INVALID), format!("{key:?} is no variable name"), "write NAME=value");
    }
    out
}

pub(super) fn healthcheck(value: Value, path: &str, written: &mut Written, report: &mut Report) -> Healthcheck {
    let mut h = Reader::new(value, path, report);
    let test_path = h.at("test");
    let mut test = match h.take("test") {
        None => Vec::new(),
        Some(list @ Value::Seq(_)) => strings(list, &test_path, report),
        Some(one) => scalar(&one, &test_path, report).map(|t| vec!["CMD-SHELL".into(), t]).unwrap_or_default(),
    };
    if test.first().is_some_and(|t| !matches!(t.as_str(), "NONE" | "CMD" | "CMD-SHELL")) {
        report.error(&test_path, format!("the test starts with {:?}", test[0]), "start the list with NONE, CMD or CMD-SHELL");
    }
    if h.boolean("disable", report) == Some(true) {
        written.healthcheck_disable = true;
        written.healthcheck_test = std::mem::replace(&mut test, vec!["NONE".into()]);
    }
    let check = Healthcheck {
        test,
        interval_ms: h.duration("interval", report),
        timeout_ms: h.duration("timeout", report),
        retries: h.parsed("retries", report, |t| {
            t.trim()
                .parse::<f64>()
                .ok()
                .filter(|v| (0.0..1e9).contains(v))
                .map(|v| v as u32)
                .ok_or_else(|| format!("{t:?} is no number of retries"))
        }),
        start_period_ms: h.duration("start_period", report),
        start_interval_ms: h.duration("start_interval", report),
    };
    h.finish(report);
    check
}
