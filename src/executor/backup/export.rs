//! Plain exports: a snapshot as a `.tar.zst` with its SHA-256 beside it, for the day when nothing of ours is at hand. Deliberately absent: when, and the
//! repository's own format.

use super::BackupError;
use super::acts::Doer;
use crate::model::ids::{OperationId, SnapshotId};
use crate::store::backup::BackupRecord;
use serde::{Deserialize, Serialize};
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

/// Where a snapshot's export goes: one directory a stack, named by source, moment and operation.
pub(super) fn place(exports: &Path, record: &BackupRecord, operation: &OperationId) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    let named = |text: &str| text.trim_start_matches('/').chars().map(plain).take(120).collect::<String>();
    let at = record.at.format("%Y%m%dT%H%M%SZ");
    let directory = exports.join(named(record.stack.as_deref().unwrap_or("none")));
    directory.join(format!("{}--{at}-{operation}.tar.zst", named(&record.volume)))
}

/// Writes it; older exports of the same source go beyond the newest.
pub(super) async fn write(doer: &Doer<'_>, record: &BackupRecord, file: &Path) -> Result<Exported, BackupError> {
    use std::os::unix::fs::DirBuilderExt;
    let house = &doer.hands.house;
    house.room()?;
    let directory = file.parent().unwrap_or(file);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| BackupError::io(directory, &e))?;
    // Left by an earlier try of this very step.
    remove(file)?;
    let top = file.file_name().and_then(|n| n.to_str()).and_then(|n| n.split("--").next()).unwrap_or("data").to_owned();
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

fn thin(file: &Path, top: &str) -> Result<(), BackupError> {
    let directory = file.parent().unwrap_or(file);
    let failed = |e: std::io::Error| BackupError::io(directory, &e);
    let mut there = vec![];
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.starts_with(&format!("{top}--")) && name.ends_with(".tar.zst") {
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
