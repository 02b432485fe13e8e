//! A second repository: snapshots added to it, or all of its files brought back as they are. Deliberately absent: which snapshots, and what becomes of those that
//! are there.

use super::repo::{Counter, Opened, backend, io, open, open_to_add, repository_failure};
use super::{CopyReport, Failure, ProgressSink, Request, jobs};
use crate::model::ids::SnapshotId;
use rustic_backend::LocalBackend;
use rustic_core::repofile::SnapshotFile;
use rustic_core::{FileType, Id, ReadBackend, WriteBackend};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Snapshots added at once. What was added is not lost when the next ones fail, and the index of the other repository is read once for so many.
const AT_ONCE: usize = 16;

/// Adds snapshots to another repository, oldest first, but those that it has.
pub(super) fn copy(from: &Request, to: &Request, ids: &[SnapshotId], sink: ProgressSink) -> Result<CopyReport, Failure> {
    let source = open(from, Arc::new(|_| {}))?;
    let mut wanted = vec![];
    for id in ids {
        wanted.push(jobs::find(&source, id)?);
    }
    // Held for some snapshots at a time: a first copy may take a day, and nothing can be removed from a repository that is read.
    drop(source);
    let mut target = open_to_add(to, sink)?;
    let has = target.repo.get_all_snapshots().map_err(repository_failure)?;
    let original = |s: &SnapshotFile| s.original.unwrap_or(s.id);
    wanted.retain(|s| !has.iter().any(|h| original(h) == original(s)));
    wanted.sort_by_key(|s| (s.time.timestamp(), s.id));
    for some in wanted.chunks(AT_ONCE) {
        let Opened { repo: source, lock: _source_held, .. } = open(from, Arc::new(|_| {}))?;
        // What was removed meanwhile is not copied any more.
        let there = source.get_all_snapshots().map_err(repository_failure)?;
        let some: Vec<&SnapshotFile> = some.iter().filter(|s| there.iter().any(|t| t.id == s.id)).collect();
        let source = source.to_indexed().map_err(repository_failure)?;
        let indexed = target.repo.to_indexed_ids().map_err(repository_failure)?;
        source.copy(&indexed, some).map_err(repository_failure)?;
        target.repo = indexed.drop_index();
    }
    Ok(CopyReport { snapshots: target.gate.count_written(), bytes: target.counter.bytes() })
}

/// Copies every file of a repository into an empty directory. Its configuration comes last: with it the directory is a repository.
pub(super) fn fetch(from: &Request, into: &Path, sink: ProgressSink) -> Result<u64, Failure> {
    if std::fs::read_dir(into).map_err(|e| io(into, &e))?.next().is_some() {
        return Err(Failure::TargetNotEmpty { path: into.display().to_string() });
    }
    let path =
        into.to_str().ok_or_else(|| Failure::Io { path: into.display().to_string(), detail: "the path must be UTF-8".to_owned() })?;
    let source = backend(from)?;
    let target = LocalBackend::new(path, []).map_err(repository_failure)?;
    target.create().map_err(repository_failure)?;
    let counter = Counter::new(sink);
    let mut files = 0;
    for tpe in [FileType::Key, FileType::Pack, FileType::Index, FileType::Snapshot, FileType::Config] {
        for id in source.list(tpe).map_err(repository_failure)? {
            let content = source.read_full(tpe, &id).map_err(repository_failure)?;
            if tpe != FileType::Config && !named(&id, &content) {
                return Err(Failure::Repository {
                    detail: format!("{} of {} is damaged: its content does not fit its name", id.to_hex().as_str(), from.place()),
                });
            }
            counter.add(content.len() as u64, 1);
            target.write_bytes(tpe, &id, false, content.into()).map_err(repository_failure)?;
            files += 1;
        }
    }
    if files == 0 { Err(Failure::NoRepository { repo: from.place() }) } else { Ok(files) }
}

/// A file of a repository is named by the SHA-256 of what it holds.
fn named(id: &Id, content: &[u8]) -> bool {
    let digest: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    id.to_hex().as_str() == digest
}
