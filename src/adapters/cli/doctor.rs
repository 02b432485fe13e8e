//! `doctor`: looks at a set-up from outside, whether or not a supervisor runs, and says for each fault what mends it. Deliberately absent:
//! changing anything.

mod others;
mod places;

use super::{CliResult, Ended, Global, output, reach};
use crate::adapters::socket::wire::Admin;
use crate::app::rules;
use crate::config::{self, Places};
use crate::engine::Engine;
use crate::engine::docker::DockerEngine;
use crate::gate::{self, Rulebook};
use crate::model::disk::{DiskLevel, DiskSettings, DiskUsage};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Below this the supervisor's reserve (64 MiB) and a backup's scratch space are at risk.
const DISK_LOW: u64 = 1 << 30;
/// An engine that needs longer is overloaded or hangs.
const ENGINE_WITHIN: Duration = Duration::from_secs(5);
/// A clock before this release's year is wrong; approvals and tokens would expire at random.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_767_225_600);

/// Explain what is wrong with this set-up and how to mend it. Ends with 1 when something must be mended.
#[derive(Debug, Args)]
pub struct DoctorArgs {}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Note,
    Error,
}

#[derive(Debug, Clone, PartialEq)]
struct Finding {
    level: Level,
    what: &'static str,
    text: String,
    mend: String,
}

fn ok(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, what, text: text.into(), mend: String::new() }
}
fn note(what: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { level: Level::Note, what, text: text.into(), mend: mend.into() }
}
fn error(what: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { level: Level::Error, what, text: text.into(), mend: mend.into() }
}

/// Runs `doctor`.
pub async fn doctor(global: &Global) -> CliResult {
    let places = config::places(global.home.as_deref(), global.config.as_deref());
    let settings = config::load(&places).map(|c| c.settings).unwrap_or_default();
    let mut findings = vec![
        configuration(&places),
        rules_load(&places.config_dir),
        home(&places.home, !peers(&places.config_dir).is_empty()),
        disk(&places.home, &settings.disk),
        memory(&places.memory),
        clock(),
    ];
    let endpoint = settings.engine;
    findings.push(engine(endpoint.as_deref()).await);
    let running = supervisor(global).await;
    let answers = running.level == Level::Ok;
    findings.push(running);
    if answers {
        findings.extend(approvers(global, &places.config_dir).await);
        findings.extend(backups(global).await);
    }
    findings.extend(places::reached(&places).await);
    findings.extend(places::untold(&places));
    findings.extend(advisory(&places, endpoint.as_deref()));
    findings.extend(others::reach(&places, &peers(&places.config_dir), endpoint.as_deref()));
    let worst = findings.iter().any(|f| f.level == Level::Error);
    let rows: Vec<Value> =
        findings.iter().map(|f| json!({"level": word(f.level), "check": f.what, "finding": f.text, "mend": f.mend})).collect();
    if global.json {
        output::json(&json!({"ok": !worst, "findings": rows}));
    } else {
        for f in &findings {
            output::line(format!("{:<5} {:<14} {}", word(f.level), f.what, f.text));
            if !f.mend.is_empty() {
                output::line(format!("{:<20} -> {}", "", f.mend));
            }
        }
    }
    Ok(if worst { Ended::Failed } else { Ended::Done })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Error => "ERROR",
    }
}

fn configuration(places: &Places) -> Finding {
    let file = places.config_dir.join("dockwarden.toml");
    match config::load(places) {
        Ok(_) if !file.exists() => {
            note("configuration", format!("no {}: defaults are used", file.display()), "`dockwarden init` proposes one for this host")
        }
        Ok(c) => match c.settings.stacks.iter().find(|(_, s)| !s.dir.is_dir()) {
            Some((name, s)) => error(
                "configuration",
                format!("stack {name}: {} is not a directory", s.dir.display()),
                "correct stacks.*.dir, or mount it at the same path when in a container",
            ),
            None => ok("configuration", format!("{} ({} stacks)", file.display(), c.settings.stacks.len())),
        },
        Err(e) => error("configuration", e.to_string(), e.hint),
    }
}

fn rules_load(dir: &Path) -> Finding {
    match rules::load(dir) {
        Ok((book, prompts)) => ok("rules", format!("{} agents, {} prompts", book.agents.len(), prompts.len())),
        Err(problems) => {
            error("rules", rules::in_words(&problems), "until then the supervisor keeps its old rules, and does not start without them")
        }
    }
}

/// The users that policy.toml lets use the socket. Rules that do not load are told of elsewhere.
fn peers(dir: &Path) -> BTreeMap<String, Vec<String>> {
    rules::load(dir).map(|(book, _)| book.policy.peers.clone()).unwrap_or_default()
}

/// `passed`: other users are let through to the socket, so the supervisor itself makes the home 0711.
fn home(home: &Path, passed: bool) -> Finding {
    match std::fs::metadata(home) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            note("home", format!("{} does not exist yet", home.display()), "the first `dockwarden serve` makes it")
        }
        Err(e) => error("home", format!("{}: {e}", home.display()), "act as its owner"),
        Ok(m) if m.permissions().mode() & 0o077 & !(if passed { 0o011 } else { 0 }) != 0 => error(
            "home",
            format!("{} is open to others ({:o})", home.display(), m.permissions().mode() & 0o777),
            format!("chmod {} {}", if passed { 711 } else { 700 }, home.display()),
        ),
        Ok(m) if m.uid() != rustix::process::geteuid().as_raw() => note(
            "home",
            format!("{} belongs to uid {}", home.display(), m.uid()),
            "run commands as that user, or attach over HTTP with a token",
        ),
        Ok(_) => ok("home", home.display().to_string()),
    }
}

/// The nearest part of a path that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(path)
}

fn disk(home: &Path, settings: &DiskSettings) -> Finding {
    let at = existing(home);
    match crate::store::disk::usage(at) {
        Err(e) => error("disk", format!("{}: {e}", at.display()), "check the file system of the home"),
        Ok(usage) => room(usage, settings, &at.display().to_string()),
    }
}

fn room(usage: DiskUsage, settings: &DiskSettings, at: &str) -> Finding {
    let percent = usage.percent();
    let text = format!("{percent} % full, {} MiB free at {at}", usage.free >> 20);
    let mend = "without an audit row nothing is executed";
    match settings.level(percent, DiskLevel::Fine) {
        DiskLevel::Critical => error("disk", text, format!("free space until it is below {} %: {mend}", settings.critical_percent)),
        _ if usage.free < DISK_LOW => error("disk", text, format!("free at least 1 GiB: {mend}")),
        DiskLevel::High => note("disk", text, format!("free space until it is below {} % ([disk] warn_percent)", settings.warn_percent)),
        DiskLevel::Fine => ok("disk", text),
    }
}

fn memory(memory: &Path) -> Finding {
    let at = existing(memory);
    match rustix::fs::access(at, rustix::fs::Access::WRITE_OK) {
        Ok(()) => ok("memory", format!("{} is writable", memory.display())),
        Err(e) => error(
            "memory",
            format!("{}: {e}", at.display()),
            "make it writable for the user dockwarden runs as (in a container: uid 10001)",
        ),
    }
}

fn clock() -> Finding {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(now) if now >= CLOCK_FLOOR => ok("clock", chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
        _ => error("clock", "the clock is years behind", "set it (timedatectl set-ntp true): approvals and limits depend on it"),
    }
}

async fn engine(endpoint: Option<&str>) -> Finding {
    let mend = "start the engine, or let this user reach its socket (group docker), or set `engine` in dockwarden.toml";
    let engine = match DockerEngine::connect(endpoint) {
        Ok(engine) => engine,
        Err(e) => return error("engine", e.to_string(), mend),
    };
    match tokio::time::timeout(ENGINE_WITHIN, engine.info()).await {
        Ok(Ok(i)) => ok(
            "engine",
            format!("Docker {} (API {}) at {}, {} CPUs, {} MiB", i.version, i.api_version, engine.endpoint(), i.cpus, i.memory_bytes >> 20),
        ),
        Ok(Err(e)) => error("engine", e.to_string(), mend),
        Err(_) => error("engine", "no answer within 5 s", "the engine hangs: look at its log (journalctl -u docker)"),
    }
}

async fn supervisor(global: &Global) -> Finding {
    let asked = async { Ok::<_, super::CliError>(reach::people(global, false).await?.admin(Admin::Info).await?) };
    match asked.await {
        Ok((value, _)) if value["version"] != env!("CARGO_PKG_VERSION") => note(
            "supervisor",
            format!("version {} runs, this binary is {}", value["version"], env!("CARGO_PKG_VERSION")),
            "restart it: `./scripts/rebuild.sh`, or restart the service",
        ),
        Ok((value, text)) => ok("supervisor", format!("{text}, pid {}, up {} s", value["pid"], value["uptime_s"])),
        Err(e) if reach::not_running(&e) => note(
            "supervisor",
            "none runs for this home",
            "`dockwarden serve`, or `dockwarden service install`; clients start one on demand",
        ),
        Err(e) => error("supervisor", e.to_string(), "look into log/serve.log of the home, or `journalctl -u dockwarden`"),
    }
}

/// Whether there are as many operators as the rules want words of. What is wrong with the rules themselves is told by their own check.
async fn approvers(global: &Global, config: &Path) -> Option<Finding> {
    let (book, _) = rules::load(config).ok()?;
    let asked = async { Ok::<_, super::CliError>(reach::people(global, false).await?.admin(Admin::Operators).await?) };
    let operators = match asked.await {
        Ok((value, _)) => value["operators"].as_array().map_or(0, Vec::len),
        Err(e) => return Some(note("operators", e.to_string(), "run this as the owner of the home")),
    };
    Some(enough(&book, operators))
}

fn enough(book: &Rulebook, operators: usize) -> Finding {
    match gate::approvers::in_words(&gate::approvers::shortages(book, operators), operators) {
        None => ok("operators", format!("{operators}, as many as any rule wants")),
        Some(text) => note("operators", text, "`dockwarden operators add NAME`, or ask for fewer in the rule or environment"),
    }
}

/// Data that would be lost with the host, as the running supervisor knows it.
async fn backups(global: &Global) -> Vec<Finding> {
    match reach::value(global, "backups", json!({})).await {
        Ok((value, _)) => [Some(covered(&value)), places::behind(&value)].into_iter().flatten().collect(),
        Err(e) => vec![note("backups", e.to_string(), "ask as an agent that may call `backups` (--agent)")],
    }
}

fn covered(value: &Value) -> Finding {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = value["uncovered"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<String> = rows
        .iter()
        .take(10)
        .map(|u| format!("{} of {}/{} ({})", text(u, "data"), text(u, "stack"), text(u, "service"), text(u, "because")))
        .collect();
    let failed = value["drills"].as_array().into_iter().flatten().filter(|d| d["passed"] == false);
    let failed: Vec<&Value> = failed.collect();
    if let Some(first) = failed.first() {
        let key = if first["stack"].is_string() { "stack" } else { "snapshot_id" };
        let again = json!({key: first[key]});
        let failed: Vec<String> = failed.iter().map(|d| format!("the last drill of {} failed", text(d, "volume"))).collect();
        let mend = format!("`dockwarden call verify_backup --input '{again}'` says why; take a new backup and rehearse it");
        return error("backups", failed.join("; "), mend);
    }
    let kept = value["kept"].as_array().into_iter().flatten().filter(|k| k["old"] == true);
    let kept: Vec<String> =
        kept.take(10).map(|k| format!("{} of {} since {}", text(k, "place"), text(k, "stack"), text(k, "since"))).collect();
    if rows.is_empty() && !kept.is_empty() {
        return note(
            "backups",
            format!("data that restores took the place of is kept for long: {}", kept.join("; ")),
            "`dockwarden restore --confirm PLACE` removes it when a snapshot holds all of it; nothing else ever does",
        );
    }
    if rows.is_empty() {
        return ok("backups", "all data of the stacks that run has a schedule and a whole snapshot");
    }
    note(
        "backups",
        format!("{} not covered: {}", rows.len(), named.join("; ")),
        "`dockwarden backup STACK`, or switch its schedule on in x-dockwarden.backup",
    )
}

/// Path of the engine's socket.
fn engine_socket(endpoint: Option<&str>) -> &str {
    endpoint.and_then(|e| e.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock")
}

/// Whoever runs this could be an agent's shell. What such a shell can write or reach makes the gate advisory.
fn advisory(places: &Places, endpoint: Option<&str>) -> Vec<Finding> {
    if config::container::dedicated() {
        // Nobody but the supervisor has a shell in its container.
        return vec![ok(
            "gate",
            "this is a container of the supervisor's own: agents run elsewhere; run `doctor` there to judge their side",
        )];
    }
    let mend = "run the supervisor as a user of its own, and agents as another one outside group docker (SECURITY.md)";
    let mut found = vec![];
    let writable = |p: &Path| p.exists() && rustix::fs::access(p, rustix::fs::Access::WRITE_OK).is_ok();
    let uid = rustix::process::geteuid().as_raw();
    for (what, path) in [("configuration", &places.config_dir), ("home", &places.home)] {
        if writable(path) {
            found.push(note_or_error(
                uid,
                format!("this user (uid {uid}) can write the {what} {}: for agents that run as it the gate is advisory", path.display()),
                mend,
            ));
        }
    }
    let socket = engine_socket(endpoint);
    if writable(Path::new(socket)) {
        found.push(note_or_error(
            uid,
            format!("this user (uid {uid}) reaches the engine's socket {socket}: for agents that run as it the gate is advisory"),
            mend,
        ));
    }
    if found.is_empty() {
        found.push(ok("gate", "this user can neither write the configuration and home nor reach the engine"));
    }
    found
}

/// Root may everything by nature: that is a note. For any other user it is a fault of the set-up when agents run as it.
fn note_or_error(uid: u32, text: String, mend: &str) -> Finding {
    if uid == 0 { note("gate", text, mend) } else { error("gate", text, mend) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_home_is_an_error_that_names_the_cure() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
        let found = home(dir.path(), false);
        assert_eq!((found.level, found.mend), (Level::Error, format!("chmod 700 {}", dir.path().display())));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("set");
        assert_eq!(home(dir.path(), false).level, Level::Ok);
        assert_eq!(home(&dir.path().join("absent"), false).level, Level::Note);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).expect("set");
        assert_eq!(home(dir.path(), true).level, Level::Ok, "the way of [peers] to the socket");
        assert_eq!(home(dir.path(), false).level, Level::Error);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
        assert_eq!(home(dir.path(), true).mend, format!("chmod 711 {}", dir.path().display()));
    }

    #[test]
    fn data_without_a_backup_is_named_and_a_failed_drill_is_an_error() {
        assert_eq!(covered(&json!({"snapshots": []})).level, Level::Ok);
        let row = json!({"stack": "shop", "service": "db", "data": "shop_data", "because": "its backups are switched off"});
        let found = covered(&json!({"uncovered": [row]}));
        assert_eq!((found.level, found.text.as_str()), (Level::Note, "1 not covered: shop_data of shop/db (its backups are switched off)"));
        let drills = json!([{"volume": "a", "passed": true}, {"volume": "shop_data", "stack": "shop", "passed": false}]);
        let found = covered(&json!({"uncovered": [row], "drills": drills}));
        assert_eq!((found.level, found.text.as_str()), (Level::Error, "the last drill of shop_data failed"));
        assert!(found.mend.starts_with("`dockwarden call verify_backup --input '{\"stack\":\"shop\"}'`"), "{}", found.mend);
        let kept = json!([{"place": "shop_data", "stack": "shop", "since": "2026-01-01T00:00:00Z", "old": true}, {"place": "fresh"}]);
        let found = covered(&json!({"kept": kept}));
        assert!(found.level == Level::Note && found.text.ends_with("shop_data of shop since 2026-01-01T00:00:00Z"), "{found:?}");
        assert!(found.mend.contains("restore --confirm"), "{found:?}");
        let alone = json!([{"volume": "loose", "snapshot_id": "0a1b", "passed": false}]);
        assert!(covered(&json!({"drills": alone})).mend.contains("--input '{\"snapshot_id\":\"0a1b\"}'"));
    }

    #[test]
    fn a_disk_that_fills_up_is_a_note_and_a_full_one_an_error() {
        let of = |used: u64, free: u64| room(DiskUsage { used: used << 30, free: free << 30 }, &DiskSettings::default(), "/home").level;
        assert_eq!(
            [of(50, 50), of(84, 16), of(85, 15), of(94, 6), of(95, 5), of(1, 0)],
            [Level::Ok, Level::Ok, Level::Note, Level::Note, Level::Error, Level::Error]
        );
        let small = DiskUsage { used: 1 << 20, free: 100 << 20 };
        assert_eq!(room(small, &DiskSettings::default(), "/home").level, Level::Error, "less than a GiB, however empty");
    }

    #[test]
    fn fewer_operators_than_a_rule_wants_are_a_note_that_names_it() {
        let dir = tempfile::tempdir().expect("directory");
        let policy = rules::POLICY.replace("distinct_approver = false", "distinct_approver = true");
        std::fs::write(dir.path().join("policy.toml"), policy).expect("written");
        let (book, _) = rules::load(dir.path()).map_err(|p| rules::in_words(&p)).expect("loads");
        let one = enough(&book, 1);
        assert!(one.level == Level::Note && one.text.contains("environments.production (2)"), "{one:?}");
        assert_eq!(enough(&book, 9).level, Level::Ok);
    }

    #[test]
    fn a_registered_directory_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        let places = Places { home: dir.path().into(), config_dir: dir.path().into(), memory: dir.path().into() };
        assert_eq!(configuration(&places).level, Level::Note);
        std::fs::write(dir.path().join("dockwarden.toml"), "[stacks.shop]\ndir = \"/no/such/dir\"\n").expect("written");
        assert_eq!(configuration(&places).level, Level::Error);
    }
}
