//! Plain exports: a snapshot as a `.tar.zst` with its SHA-256 beside it, for the day when nothing of ours is at hand. Deliberately absent: when, and the
//! repository's own format.

use super::acts::Doer;
use super::{BackupError, room};
use crate::model::ids::{OperationId, SnapshotId};
use crate::store::backup::BackupRecord;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Exports of one source that stay: they are whole files and share nothing.
const KEPT: usize = 2;

/// A snapshot written as a plain file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct Exported {
    /// Snapshot.
    pub snapshot_id: String,
    /// What it is of.
    pub source: String,
    /// The file; its SHA-256 stands in a file beside it.
    pub file: String,
    /// Size of the file.
    pub size: u64,
    /// Files in it.
    pub files: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Longest part of a file's name that is a source's.
const LONGEST: usize = 120;
/// The moment in an export's name.
const MOMENT: &str = "%Y%m%dT%H%M%SZ";

/// A source or stack as part of a file's name: as it is, or, where that is no such name, made one and told apart by its hash behind a dot, which no name as
/// it is has.
fn named(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !text.is_empty() && text.len() <= LONGEST && text.chars().all(fits) {
        return text.to_owned();
    }
    let plain: String = text.trim_start_matches('/').chars().map(|c| if fits(c) { c } else { '_' }).take(LONGEST).collect();
    let hash: String = Sha256::digest(text.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("{plain}.{hash}")
}

/// Where a snapshot's export goes: one directory a stack, named by source, moment and operation.
pub(super) fn place(exports: &Path, record: &BackupRecord, operation: &OperationId) -> PathBuf {
    let at = record.at.format(MOMENT);
    let directory = exports.join(named(record.stack.as_deref().unwrap_or("none")));
    directory.join(format!("{}--{at}-{operation}.tar.zst", named(&record.volume)))
}

/// Writes it; older exports of the same source go beyond the newest.
pub(super) async fn write(doer: &Doer<'_>, record: &BackupRecord, file: &Path) -> Result<Exported, BackupError> {
    use std::os::unix::fs::DirBuilderExt;
    let house = &doer.hands.house;
    house.room()?;
    let directory = file.parent().unwrap_or(file);
    // The archive as it is and compressed, until the former goes.
    room::at(directory, record.bytes.saturating_mul(2))?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| BackupError::io(directory, &e))?;
    // Left by an earlier try of this very step.
    remove(file)?;
    let top = named(&record.volume);
    let report = house.plain(&SnapshotId::new(record.snapshot_id.as_str())?, file, &top).await?;
    thin(file, &top)?;
    Ok(Exported {
        snapshot_id: record.snapshot_id.clone(),
        source: record.volume.clone(),
        file: file.display().to_string(),
        size: report.size,
        files: report.files,
        sha256: report.sha256,
    })
}

/// Whether a file is an export of this very source: a source's own name may hold what separates the parts.
fn is_of(source: &str, file: &str) -> bool {
    let rest = file.strip_prefix(source).and_then(|r| r.strip_prefix("--")).and_then(|r| r.strip_suffix(".tar.zst"));
    rest.and_then(|r| r.split_once('-')).is_some_and(|(at, operation)| {
        chrono::NaiveDateTime::parse_from_str(at, MOMENT).is_ok() && OperationId::new(operation).is_ok() && !operation.contains("--")
    })
}

fn thin(file: &Path, top: &str) -> Result<(), BackupError> {
    let directory = file.parent().unwrap_or(file);
    let failed = |e: std::io::Error| BackupError::io(directory, &e);
    let mut there = vec![];
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if is_of(top, &name) {
            there.push(path);
        }
    }
    there.sort();
    let surplus = there.len().saturating_sub(KEPT);
    there.into_iter().take(surplus).filter(|old| old != file).try_for_each(|old| remove(&old))
}

/// Removes an export and what belongs to it; already gone is fine.
pub(super) fn remove(file: &Path) -> Result<(), BackupError> {
    for path in [file.to_owned(), file.with_extension("zst.sha256"), file.with_extension("part"), file.with_extension("new")] {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(BackupError::io(&path, &e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sources_share_a_name() {
        assert_eq!((named("shop_data"), named("a_b-c")), ("shop_data".to_owned(), "a_b-c".to_owned()));
        let long = |last: char| format!("{}{last}", "x".repeat(LONGEST));
        let alike = ["a.b", "a_b", "a/b", "/a/b", "//a/b", "a b", "", "_", "a.b.stdout", "a_b_stdout"].map(str::to_owned);
        let alike: Vec<String> =
            alike.into_iter().chain([long('y'), long('z'), named("a.b"), "aéb".to_owned(), "aèb".to_owned()]).collect();
        let names: std::collections::BTreeSet<String> = alike.iter().map(|s| named(s)).collect();
        assert_eq!(names.len(), alike.len(), "{names:?}");
        assert!(names.iter().all(|n| n.len() <= LONGEST + 13 && !n.contains('/') && !n.starts_with('-')), "{names:?}");
        let dir = tempfile::tempdir().unwrap();
        let file = |source: &str, day: u32| dir.path().join(format!("{}--202601{day:02}T031700Z-op-01abc.tar.zst", named(source)));
        for (source, day) in ["a.b", "a_b"].iter().flat_map(|s| (1..=3).map(move |day| (s, day))) {
            std::fs::write(file(source, day), "x").unwrap();
        }
        thin(&file("a_b", 3), &named("a_b")).unwrap();
        assert_eq!((file("a_b", 1).exists(), file("a.b", 1).exists()), (false, true));
    }

    #[test]
    fn exports_of_other_sources_stay_also_where_names_hold_the_separator() {
        let dir = tempfile::tempdir().unwrap();
        let file = |source: &str, day: u32| dir.path().join(format!("{source}--202601{day:02}T031700Z-op-01abc.tar.zst"));
        let sources = ["my--app_data", "my--app_logs", "my", "my--app", "my--20260101T031700Z-app"];
        for (source, day) in sources.iter().flat_map(|s| (1..=3).map(move |day| (s, day))) {
            std::fs::write(file(source, day), "x").unwrap();
        }
        let newest = file("my--app_data", 3);
        thin(&newest, "my--app_data").unwrap();
        let first = || sources.map(|s| file(s, 1).exists());
        assert_eq!((first(), newest.exists()), ([false, true, true, true, true], true));
        thin(&file("my", 3), "my").unwrap();
        assert_eq!(first(), [false, true, false, true, true]);
    }
}
