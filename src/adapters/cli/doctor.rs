//! `doctor`: looks at a set-up from outside, whether or not a supervisor runs, and says for each fault what mends it. Deliberately absent:
//! changing anything.

mod places;

use super::{CliResult, Ended, Global, output, reach};
use crate::adapters::socket::wire::Admin;
use crate::app::rules;
use crate::config::{self, Places};
use crate::engine::Engine;
use crate::engine::docker::DockerEngine;
use clap::Args;
use serde_json::{Value, json};
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
    let mut findings = vec![
        configuration(&places),
        rules_load(&places.config_dir),
        home(&places.home),
        disk(&places.home),
        memory(&places.memory),
        clock(),
    ];
    let endpoint = config::load(&places).ok().and_then(|c| c.settings.engine);
    findings.push(engine(endpoint.as_deref()).await);
    let running = supervisor(global).await;
    let answers = running.level == Level::Ok;
    findings.push(running);
    if answers {
        findings.extend(backups(global).await);
    }
    findings.extend(places::reached(&places).await);
    findings.extend(advisory(&places, endpoint.as_deref()));
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

fn home(home: &Path) -> Finding {
    match std::fs::metadata(home) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            note("home", format!("{} does not exist yet", home.display()), "the first `dockwarden serve` makes it")
        }
        Err(e) => error("home", format!("{}: {e}", home.display()), "act as its owner"),
        Ok(m) if m.permissions().mode() & 0o077 != 0 => error(
            "home",
            format!("{} is open to others ({:o})", home.display(), m.permissions().mode() & 0o777),
            format!("chmod 700 {}", home.display()),
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

fn disk(home: &Path) -> Finding {
    let at = existing(home);
    match rustix::fs::statvfs(at) {
        Err(e) => error("disk", format!("{}: {e}", at.display()), "check the file system of the home"),
        Ok(s) => {
            let free = s.f_bavail.saturating_mul(s.f_frsize);
            let text = format!("{} MiB free at {}", free >> 20, at.display());
            if free < DISK_LOW {
                error("disk", text, "free at least 1 GiB: without an audit row nothing is executed")
            } else {
                ok("disk", text)
            }
        }
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
    if rows.is_empty() {
        return ok("backups", "all data of the stacks that run has a schedule and a whole snapshot");
    }
    note(
        "backups",
        format!("{} not covered: {}", rows.len(), named.join("; ")),
        "`dockwarden backup STACK`, or switch its schedule on in x-dockwarden.backup",
    )
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
    let socket = endpoint.and_then(|e| e.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock");
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
        let found = home(dir.path());
        assert_eq!((found.level, found.mend), (Level::Error, format!("chmod 700 {}", dir.path().display())));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("set");
        assert_eq!(home(dir.path()).level, Level::Ok);
        assert_eq!(home(&dir.path().join("absent")).level, Level::Note);
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
        let alone = json!([{"volume": "loose", "snapshot_id": "0a1b", "passed": false}]);
        assert!(covered(&json!({"drills": alone})).mend.contains("--input '{\"snapshot_id\":\"0a1b\"}'"));
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
