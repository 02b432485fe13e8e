//! Real files beside what Docker Compose makes of each, read from where `DOCKWARDEN_COMPOSE_CORPUS` says. They are no part of this repository.

use super::super::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Counts on the corpus as it is known; another one is held to the bounds only.
const KNOWN: Counts = Counts { valid: 305, accepted: 305, equal: 305, refused: 149, alike: 149, newer: 0 };

#[derive(Debug, PartialEq, Eq, Default)]
struct Counts {
    valid: usize,
    accepted: usize,
    equal: usize,
    refused: usize,
    alike: usize,
    newer: usize,
}

struct Disk(PathBuf);
impl Files for Disk {
    fn read(&self, path: &str) -> Result<Option<String>, ReadError> {
        let path = path.strip_prefix("/project/").unwrap_or(path);
        if path.starts_with('/') {
            return Ok(None);
        }
        Ok(std::fs::read_to_string(self.0.join(path)).ok())
    }
}

/// The directory of the reference run, where its output names it: `../x` leads out of what is written `/project`.
fn project_dir(entry: &BTreeMap<String, String>, base: &Path) -> String {
    let dir = || {
        let (repo, path) = (entry.get("repo")?.replace('/', "__"), entry.get("path")?);
        let text = std::fs::read_to_string(base.join("expected.json")).ok()?;
        let root =
            text.split('"').filter(|t| t.starts_with('/')).find_map(|t| Some(&t[..t.find(&format!("/{repo}"))? + 1 + repo.len()]))?;
        Some(path.rsplit_once('/').map_or(root.to_owned(), |(dir, _)| format!("{root}/{dir}")))
    };
    dir().unwrap_or_else(|| "/project".into())
}

fn load(base: &Path, dir: &str, sources: &[&str]) -> Result<Loaded, LoadErrors> {
    let source = |name: &&str| Source { path: (*name).into(), text: std::fs::read_to_string(base.join(name)).unwrap() };
    let variables = BTreeMap::from([("HOME".to_owned(), "/nonexistent".to_owned())]);
    read(&LoadInput {
        name: StackName::new("corpus").unwrap(),
        project_dir: dir,
        sources: sources.iter().map(source).collect(),
        variables: &variables,
        profiles: &[],
        files: &Disk(base.to_owned()),
        quotas: &Quotas::default(),
    })
}

/// Brings both sides to one notation; see [`real_files`] for the list.
fn normalised(value: Value, path: &mut Vec<String>) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| {
                    path.push(key.clone());
                    let value = normalised(value, path);
                    path.pop();
                    (key, value)
                })
                .collect(),
        ),
        Value::Array(items) => {
            let mut items: Vec<Value> = items.into_iter().map(|v| normalised(v, path)).collect();
            if path.len() == 5 && path[2] == "build" && path[3] == "ssh" {
                items.sort_by_key(ToString::to_string);
            }
            Value::Array(items)
        }
        Value::Number(n) if n.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9e15) => {
            Value::from(n.as_f64().map_or(0, |f| f as i64))
        }
        Value::String(text) => Value::String(match text.strip_prefix("/nonexistent") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("~{rest}"),
            _ if path.len() == 4 && path[0] == "volumes" && path[3] == "device" && text.starts_with('.') => {
                format!("/project/{}", text.trim_start_matches("./"))
            }
            _ => text,
        }),
        other => other,
    }
}

fn differences(path: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let none = Value::String("(none)".into());
                differences(&at(path, key), a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none), out);
            }
        }
        _ if ours != theirs => out.push(format!("{path}: {ours:.300} compose: {theirs:.300}")),
        _ => {}
    }
}

/// Compose's words for a fault, and ours. Where `{}` stands both name the same thing; where a service is named, ours names it, too.
const FAULTS: &[(&str, &str)] = &[
    ("refers to undefined volume {}: invalid compose project", "undefined volume \"{}\""),
    ("refers to undefined network {}: invalid compose project", "undefined network \"{}\""),
    ("depends on undefined service \"{}\": invalid compose project", "depends on undefined service \"{}\""),
    ("has neither an image nor a build context specified: invalid compose project", "has neither an image nor a build"),
    ("required variable {} is missing a value", "required variable {} is missing a value"),
    ("env file /project/{} not found", "env file {} not found"),
    ("invalid spec: {}: empty section between colons", "\"{}\" has an empty section between colons"),
    ("No port specified: <empty>", "\"\" has no container port"),
    ("yaml: map merge requires map or sequence of maps as the value", "`<<` needs a mapping or a list of mappings"),
];

/// What stands in `text` for the `{}` of `pattern`, which has at most one; `None` where it does not fit.
fn filled<'a>(pattern: &str, text: &'a str) -> Option<&'a str> {
    let (before, after) = pattern.split_once("{}").unwrap_or((pattern, ""));
    let rest = &text[text.find(before)? + before.len()..];
    if pattern.contains("{}") { Some(&rest[..rest.find(after).filter(|_| !after.is_empty())?]) } else { Some("") }
}

/// Whether one of our errors is the fault that Compose names, at the place it names. Which of several faults it names is the order of a map there, so
/// any of ours may be it; we report all.
fn alike(ours: &LoadErrors, theirs: &str) -> bool {
    // `services.a.volumes.1 Additional property x is not allowed` is our `services.a.volumes[1].x: unknown key`.
    if let Some((place, rest)) = theirs.rsplit_once(": ").unwrap_or(("", theirs)).1.split_once(" Additional property ") {
        let Some(key) = rest.strip_suffix(" is not allowed") else { return false };
        let place = format!("{place}.{key}");
        let plain = |path: &str| path.replace('[', ".").replace(']', "");
        return ours.0.iter().any(|e| e.message.contains("unknown key") && e.path.as_deref().is_some_and(|p| plain(p) == place));
    }
    let service = theirs.strip_prefix("service \"").and_then(|rest| rest.split_once('"')).map(|(service, _)| format!("services.{service}"));
    let placed = |e: &LoadError| match &service {
        None => true,
        Some(service) => {
            e.path.as_deref().is_some_and(|p| p.strip_prefix(service.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.')))
        }
    };
    FAULTS.iter().any(|(words, own)| {
        filled(words, theirs).is_some_and(|name| ours.0.iter().any(|e| placed(e) && e.message.contains(&own.replace("{}", name))))
    })
}

#[test]
fn a_refusal_is_alike_only_for_the_same_fault_at_the_same_place() {
    let error = |path: &str, message: &str| {
        LoadErrors(vec![LoadError {
            path: Some(path.into()),
            file: String::new(),
            line: None,
            message: message.into(),
            hint: String::new(),
            rule: None,
        }])
    };
    let theirs = "service \"db\" refers to undefined volume data: invalid compose project";
    assert!(alike(&error("services.db.volumes[0]", "undefined volume \"data\""), theirs));
    assert!(!alike(&error("services.web.volumes[0]", "undefined volume \"data\""), theirs));
    assert!(!alike(&error("services.db.volumes[0]", "undefined volume \"other\""), theirs));
    assert!(!alike(&error("services.db.image", "\"\" is no image"), theirs));
    let theirs = "validating /project/compose.yaml: services.a.volumes.1 Additional property content is not allowed";
    assert!(alike(&error("services.a.volumes[1].content", "unknown key `content`"), theirs));
    assert!(!alike(&error("services.a.volumes[0].content", "unknown key `content`"), theirs));
    assert!(!alike(&error("services.a", "anything"), "a fault nobody knows"));
}

/// Counts, and prints what differs.
fn compare(dir: &Path) -> Counts {
    let index = std::fs::read_to_string(dir.join("index.json")).expect("the corpus is where DOCKWARDEN_COMPOSE_CORPUS says");
    let index: Vec<BTreeMap<String, String>> = serde_json::from_str(&index).unwrap();
    let mut counts = Counts::default();
    for entry in &index {
        let (id, base) = (&entry["id"], dir.join(&entry["id"]));
        let sources: Vec<&str> = entry.get("sources").map_or_else(|| vec!["compose.yaml"], |s| s.split(',').collect());
        let dir = project_dir(entry, &base);
        let result = load(&base, &dir, &sources);
        let should = entry["verdict"] == "valid";
        counts.valid += usize::from(should);
        counts.refused += usize::from(!should);
        match (should, &result) {
            (true, Ok(loaded)) => {
                counts.accepted += 1;
                let expected: Value = serde_json::from_str(&std::fs::read_to_string(base.join("expected.json")).unwrap()).unwrap();
                let ours = canonical(&loaded.spec).to_string().replace(&dir, "/project");
                let ours = normalised(serde_json::from_str(&ours).unwrap(), &mut Vec::new());
                let mut found = Vec::new();
                differences("", &ours, &normalised(expected, &mut Vec::new()), &mut found);
                counts.equal += usize::from(found.is_empty());
                found.iter().for_each(|line| println!("{id} differs: {line}"));
            }
            (true, Err(e)) => println!("{id} refused: {e}"),
            (false, Err(e)) => {
                let theirs = entry["error"].lines().last().unwrap_or_default();
                if alike(e, theirs) {
                    counts.alike += 1;
                } else {
                    println!("{id} refused for another reason: {e} | compose: {theirs:.200}");
                }
                let placed = e.0.iter().all(|e| e.path.is_some() || e.line.is_some());
                assert!(placed, "{id}: an error names neither path nor line: {e}");
                if std::env::var_os("DOCKWARDEN_COMPOSE_CORPUS_TELL").is_some() {
                    println!("{id} alike: {} | compose: {:.200}", e.0[0], entry["error"].lines().last().unwrap_or_default());
                }
            }
            (false, Ok(loaded)) if !loaded.newer.is_empty() => counts.newer += 1,
            (false, Ok(_)) => println!("{id} accepted, compose: {:.200}", entry["error"].lines().last().unwrap_or_default()),
        }
    }
    counts
}

/// The canonical form of every file beside that of Docker Compose 2.26 (`config --format json`, project name `corpus`, directory `/project`),
/// and every refusal beside its refusal. Before they are compared, both sides are brought to one notation:
///
/// - numbers by value: `1.0` is `1`;
/// - `$HOME` of the reference run, `/nonexistent`, is written `~`, which we do not expand: the supervisor has no home directory of the caller;
/// - a relative `device` of a bind volume is below `/project`: Compose leaves it relative where the volume names no driver, and the engine then
///   cannot mount it;
/// - the directory of the reference run, where it shows because a path leads out of it, is `/project`;
/// - `build.ssh` in any order: Compose prints it in the order of a hash map.
///
/// All else is compared as it is: durations as Go writes them, sizes as texts of digits, `published` as text, doubled `$`.
///
/// The files come from many public projects and are not ours to hand on: a clone without them is told so and checks nothing here.
///
/// Files that the reference refuses only for keys that came to compose later (`Loaded::newer`) are counted as `newer`, not as `alike`.
#[test]
fn real_files() {
    let Some(dir) = crate::data_tests::beside("DOCKWARDEN_COMPOSE_CORPUS", "compose-corpus") else { return };
    let counts = compare(&dir);
    println!(
        "accepted {} of {} valid files / equal {} / refused alike {} of {} refused files, {} for newer keys",
        counts.accepted, counts.valid, counts.equal, counts.alike, counts.refused, counts.newer
    );
    assert!(counts.valid + counts.refused > 0);
    if (counts.valid, counts.refused) == (KNOWN.valid, KNOWN.refused) {
        assert_eq!(counts, KNOWN);
    } else {
        assert_eq!((counts.accepted, counts.alike + counts.newer), (counts.valid, counts.refused));
        assert!(counts.equal * 100 >= counts.accepted * 99, "{counts:?}");
    }
}
