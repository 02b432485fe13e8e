//! The mark that says which instance writes a place: the lock of a repository is a file of each host, and two that share a disk or an export of another host would
//! each remove what the other needs. restic passes over it. Deliberately absent: how other hosts are reached (`remote` reads and writes the same mark there).

use super::repo::io;
use super::{Claim, Failure};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// Its name.
pub(super) const OWNER: &str = "dockwarden-owner";

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) instance: String,
    pub(super) since: String,
}

impl Mark {
    pub(super) fn of(instance: &str) -> Self {
        Self { instance: instance.to_owned(), since: chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string() }
    }

    pub(super) fn foreign(self, at: &str) -> Failure {
        Failure::Foreign { at: at.to_owned(), owner: self.instance, since: self.since }
    }
}

/// Notes in a directory that an instance writes there, and refuses when another one does.
pub(super) fn claim(directory: &Path, claim: &Claim) -> Result<(), Failure> {
    let path = directory.join(OWNER);
    let failed = |e: &std::io::Error| io(&path, e);
    match read(&path)? {
        Some(mark) if mark.instance == claim.instance => return Ok(()),
        Some(mark) if claim.replaces.as_deref() != Some(mark.instance.as_str()) => {
            return Err(mark.foreign(&directory.display().to_string()));
        }
        Some(_) | None => {}
    }
    let text = serde_json::to_vec(&Mark::of(&claim.instance)).map_err(|e| Failure::Internal { detail: e.to_string() })?;
    let aside = directory.join(format!("{OWNER}.{}", claim.instance));
    std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &path)).map_err(|e| failed(&e))?;
    // Of two that come at once, one finds the other's.
    match read(&path)? {
        Some(mark) if mark.instance == claim.instance => Ok(()),
        Some(mark) => Err(mark.foreign(&directory.display().to_string())),
        None => Err(failed(&ErrorKind::NotFound.into())),
    }
}

fn read(path: &Path) -> Result<Option<Mark>, Failure> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Failure::Io {
            path: path.display().to_string(),
            detail: format!("it is damaged ({e}); remove it when no other instance writes there"),
        }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path, &e)),
    }
}
