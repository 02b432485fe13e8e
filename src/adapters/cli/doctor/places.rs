//! Places of backups beyond the home, asked as a worker would ask them. Deliberately absent: opening a repository, which takes its key.

use super::{Finding, error, note, ok};
use crate::config::{self, Places};
use crate::executor::backup::{BackupError, BackupHouse, Failure};
use crate::model::target::Location;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const WHAT: &str = "backup place";
/// A place that needs longer is out of order.
const WITHIN: Duration = Duration::from_secs(30);

/// One finding a place; none where nothing is configured.
pub(super) async fn reached(places: &Places) -> Vec<Finding> {
    let Ok(config) = config::load(places) else { return vec![] };
    let settings = &config.settings.backup;
    if settings.repository.is_none() && settings.copies.is_empty() {
        return vec![];
    }
    let Ok(exe) = std::env::current_exe() else { return vec![] };
    let house = BackupHouse::of(&config.home, exe, WITHIN).configured(settings, "doctor");
    let main = settings.repository.iter().map(|t| ("the repository".to_owned(), t.at.clone(), &house));
    let copies = house.copies.iter().filter_map(|c| {
        let at = settings.copies.get(&c.name)?.at.clone();
        Some((format!("the copy {}", c.name), at, &c.house))
    });
    let mut found = vec![];
    for (name, at, house) in main.chain(copies) {
        found.push(match house.probe().await {
            Ok(()) => ok(WHAT, format!("{name} is at {at}")),
            Err(BackupError::Worker(Failure::NoRepository { .. })) if nowhere(&at) => {
                error(WHAT, format!("{name}: {at} is not there"), "make or mount the directory, or correct `at`")
            }
            Err(BackupError::Worker(Failure::NoRepository { .. })) => {
                note(WHAT, format!("{name}: {at} can be reached and holds nothing yet"), "the first backup makes it")
            }
            Err(e) => error(WHAT, format!("{name}: {e}"), "`backups` says how old the last good copy is"),
        });
    }
    found
}

/// The key of the backups, until somebody was told where it is.
pub(super) fn untold(places: &Places) -> Option<Finding> {
    let (config, exe) = (config::load(places).ok()?, std::env::current_exe().ok()?);
    let house = BackupHouse::of(&config.home, exe, WITHIN);
    let text = || format!("nobody has asked yet for {}, without which no backup opens", house.key_file.display());
    let mend = "`dockwarden backup repo` tells where it is: copy it once to where no copy of the repository is";
    (house.key_file.exists() && !house.key_told().exists()).then(|| note("backup key", text(), mend))
}

/// A directory whose parent is missing: a disk that is not mounted, most of the time.
fn nowhere(at: &Location) -> bool {
    matches!(at, Location::Directory(path) if !path.parent().is_some_and(Path::is_dir))
}

/// Copies that failed or were never made, of the reply of `backups`.
pub(super) fn behind(value: &Value) -> Option<Finding> {
    let copies = value["copies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bad = |c: &&Value| c["failed_at"].is_string();
    let told = |c: &Value| {
        let text = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
        let good = c["last_good"].as_str().map_or_else(|| "it was never up to date".to_owned(), |at| format!("it is as of {at}"));
        format!("the copy {} failed at {} and {good}: {}", text("copy"), text("failed_at"), text("detail"))
    };
    let failed: Vec<String> = copies.iter().filter(bad).map(told).collect();
    let first = copies.iter().find(bad)?["copy"].as_str().unwrap_or_default().to_owned();
    Some(error("copies", failed.join("; "), format!("it is tried again by itself; `dockwarden backup --copy {first}` tries now")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_that_nobody_was_told_of_is_named_until_somebody_was() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let places = Places { home: at("home"), config_dir: at("config"), memory: at("memory") };
        assert!(untold(&places).is_none(), "there is none yet");
        std::fs::create_dir_all(places.home.join("keys")).unwrap();
        std::fs::write(places.home.join("keys/backup.key"), "x").unwrap();
        assert!(untold(&places).is_some_and(|f| f.text.contains("keys/backup.key") && f.mend.contains("backup repo")));
        std::fs::write(places.home.join("keys/backup.told"), "").unwrap();
        assert!(untold(&places).is_none());
    }

    #[test]
    fn a_copy_that_failed_is_named_with_its_age_and_one_that_did_not_is_not() {
        let good = json!({"copy": "disk", "last_good": "2026-01-02T00:00:00Z", "held": 3, "missing": 0});
        assert!(behind(&json!({"copies": [good]})).is_none());
        assert!(behind(&json!({})).is_none());
        let bad = json!({"copy": "s3", "last_good": "2026-01-01T00:00:00Z", "failed_at": "2026-01-02T00:00:00Z", "detail": "refused"});
        let found = behind(&json!({"copies": [good, bad]})).unwrap();
        assert_eq!(found.text, "the copy s3 failed at 2026-01-02T00:00:00Z and it is as of 2026-01-01T00:00:00Z: refused");
        assert!(found.mend.contains("backup --copy s3"));
    }
}
