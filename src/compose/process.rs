//! What a service runs and how it is asked for its health: command, environment, health check, build section. Nothing is run or built here.

use super::files::join;
use super::reader::{Reader, scalar, strings};
use super::value::{Map, Value};
use super::{LoadInput, Report, dotenv, shellwords, units};
use crate::model::spec::Healthcheck;
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
            Ok(Some(text)) => match dotenv::parse(&text, input.variables, !raw) {
                Ok(values) => {
                    for (key, value) in values {
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
        report.error(&r.at("environment"), format!("{key:?} is no variable name"), "write NAME=value");
    }
    out
}

pub(super) fn healthcheck(value: Value, path: &str, report: &mut Report) -> Healthcheck {
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
        test = vec!["NONE".into()];
    }
    let check = Healthcheck {
        test,
        interval_ms: h.parsed("interval", report, units::duration_ms),
        timeout_ms: h.parsed("timeout", report, units::duration_ms),
        retries: h.parsed("retries", report, |t| {
            t.trim()
                .parse::<f64>()
                .ok()
                .filter(|v| (0.0..1e9).contains(v))
                .map(|v| v as u32)
                .ok_or_else(|| format!("{t:?} is no number of retries"))
        }),
        start_period_ms: h.parsed("start_period", report, units::duration_ms),
        start_interval_ms: h.parsed("start_interval", report, units::duration_ms),
    };
    h.finish(report);
    check
}
