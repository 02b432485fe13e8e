//! Packs that no index names: a backup that was killed or failed leaves them, and the library notes them for removal only in a run that has something else to do.
//! One that is still there, and still named by nobody, a day after it was first seen is removed; what somebody writes beside us is named by then. Deliberately
//! absent: what an index names, which pruning sees to.

use super::repo::{Opened, io, repository_failure};
use super::{Failure, Request};
use chrono::{DateTime, TimeDelta, Utc};
use rustic_core::repofile::IndexFile;
use rustic_core::{FileType, Id, ReadBackend, WriteBackend};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Between the first look and the removal: as long as the library leaves what it has marked.
const REST: TimeDelta = TimeDelta::hours(23);

/// Removes what was left, or notes when it was first seen. The repository must be ours alone.
pub(super) fn see_to(opened: &Opened, request: &Request) -> Result<(), Failure> {
    let mut named: BTreeSet<Id> = BTreeSet::new();
    for file in opened.repo.stream_files::<IndexFile>().map_err(repository_failure)? {
        let (_, index) = file.map_err(repository_failure)?;
        named.extend(index.packs.iter().chain(&index.packs_to_delete).map(|pack| *pack.id));
    }
    let mut note = request.repo.as_os_str().to_owned();
    note.push(".left");
    let note = Path::new(&note);
    // A note that cannot be read is none: what it said is seen again.
    let before: BTreeMap<String, DateTime<Utc>> =
        std::fs::read(note).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let (now, mut after) = (Utc::now(), BTreeMap::new());
    for pack in opened.gate.list(FileType::Pack).map_err(repository_failure)?.into_iter().filter(|pack| !named.contains(pack)) {
        let name = pack.to_hex().as_str().to_owned();
        let seen = before.get(&name).copied().unwrap_or(now).min(now);
        if now - seen >= REST {
            opened.gate.remove(FileType::Pack, &pack, false).map_err(repository_failure)?;
        } else {
            after.insert(name, seen);
        }
    }
    if after != before {
        let text = serde_json::to_vec(&after).map_err(|e| Failure::Internal { detail: e.to_string() })?;
        std::fs::write(note, text).map_err(|e| io(note, &e))?;
    }
    Ok(())
}
