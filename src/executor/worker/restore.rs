//! The content and attributes of a snapshot written into an empty directory, with bounded memory: each thread holds one stretch of a pack and one blob of it,
//! and no more than [`BATCH`] pieces are planned at once. (The library's own restore unpacks twenty packs at once, and a pack of text may hold twenty times its
//! size.) Deliberately absent: whether the directory may be written, and comparing; who restores compares afterwards.

use super::repo::{Counter, SnapshotGate, io, repository_failure};
use super::walk::xattrs;
use super::{Failure, RestoreReport, mode, part};
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{BlobType, Node, NodeType};
use rustic_core::{Id, IndexedFull, LsOptions, Repository};
use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Pieces of files that are planned at once. What was stored together is read together, also in a plan that does not know all of the snapshot.
const BATCH: usize = 16 << 10;
/// Longest stretch of a pack that is read at once, unless one blob is longer.
const STRETCH: u64 = 8 << 20;
/// Bytes between two blobs that are read and thrown away rather than asked for again.
const GAP: u64 = 128 << 10;
/// Most threads. Each holds a stretch, a blob and what it unpacks to: 24 MiB when all are as large as can be.
const THREADS: usize = 4;

/// Where a blob lies and where it belongs.
#[derive(Debug, Clone, Copy)]
struct Piece {
    pack: Id,
    offset: u32,
    length: u32,
    blob: Id,
    file: usize,
    at: u64,
}

/// What is restored, and where to.
pub(super) struct Restore<'a, S> {
    /// The repository.
    pub(super) repo: &'a Repository<S>,
    /// Its files.
    pub(super) gate: &'a SnapshotGate,
    /// Told of what was written.
    pub(super) counter: &'a Counter,
    /// The directory that was opened, by a path that no link is on.
    pub(super) base: PathBuf,
    /// For people.
    pub(super) into: &'a Path,
    /// Only what lies at this path.
    pub(super) only: Option<&'a Path>,
}

impl<S: IndexedFull + Sync> Restore<'_, S>
where
    Repository<S>: Sync,
{
    /// Everything below a directory of a snapshot, and that directory's own attributes.
    pub(super) fn run(&self, root: &Node) -> Result<RestoreReport, Failure> {
        let mut report = RestoreReport { files: 0, bytes: 0 };
        // (device, inode) of files with several names: the name written first.
        let mut first_names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        let (mut files, mut pieces): (Vec<PathBuf>, Vec<Piece>) = (vec![], vec![]);
        for item in self.repo.ls(root, &LsOptions::default()).map_err(repository_failure)? {
            let (name, node) = item.map_err(repository_failure)?;
            if !part::belongs(self.only, &name) {
                continue;
            }
            let path = self.place(&name)?;
            if node.is_dir() {
                std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| self.failed(&name, &e))?;
                continue;
            }
            (report.files, report.bytes) = (report.files + 1, report.bytes + node.meta.size);
            self.counter.add(0, 1);
            if !node.is_file() || names_of(&node).is_some_and(|key| first_names.contains_key(&key)) {
                continue;
            }
            let mut size = 0u64;
            for blob in node.content.iter().flatten() {
                let entry = self.repo.get_index_entry(blob).map_err(repository_failure)?;
                let (offset, length) = (entry.location.offset, entry.location.length);
                pieces.push(Piece { pack: *entry.pack, offset, length, blob: **blob, file: files.len(), at: size });
                size += u64::from(entry.data_length());
            }
            let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
            made.and_then(|file| file.set_len(size)).map_err(|e| self.failed(&name, &e))?;
            if let Some(key) = names_of(&node) {
                first_names.insert(key, name.clone());
            }
            files.push(name);
            if pieces.len() >= BATCH || files.len() >= BATCH {
                self.fill(&files, &mut pieces)?;
                files.clear();
            }
        }
        self.fill(&files, &mut pieces)?;
        self.finish(root, &first_names)?;
        Ok(report)
    }

    /// Writes the pieces and forgets them.
    fn fill(&self, files: &[PathBuf], pieces: &mut Vec<Piece>) -> Result<(), Failure> {
        pieces.sort_unstable_by_key(|p| (p.pack, p.offset, p.file, p.at));
        let stretches = stretches(pieces);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            // The lock is let go of before each stretch.
            while lock().is_none() {
                let Some(stretch) = stretches.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(e) = self.write(files, &pieces[stretch.clone()]) {
                    lock().get_or_insert(e);
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, THREADS).min(stretches.len());
        // A process of its own: there is no runtime whose thread this would block.
        #[allow(clippy::disallowed_methods)]
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        pieces.clear();
        lock().take().map_or(Ok(()), Err)
    }

    /// Reads one stretch of a pack, and writes each blob of it to wherever it belongs.
    fn write(&self, files: &[PathBuf], pieces: &[Piece]) -> Result<(), Failure> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(()) };
        let length = last.offset + last.length - first.offset;
        let _ahead = self.gate.ahead(first.pack, first.offset, length).map_err(repository_failure)?;
        for same in pieces.chunk_by(|a, b| a.offset == b.offset) {
            let data = self.repo.cat_blob(BlobType::Data, same[0].blob.to_hex().as_str()).map_err(repository_failure)?;
            // Zeros are there already, as a hole.
            let hole = data.iter().all(|b| *b == 0);
            for piece in same {
                if !hole {
                    let name = &files[piece.file];
                    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
                    let file = File::options().write(true).custom_flags(flags).open(self.place(name)?);
                    file.and_then(|file| file.write_all_at(&data, piece.at)).map_err(|e| self.failed(name, &e))?;
                }
                self.counter.add(data.len() as u64, 0);
            }
        }
        Ok(())
    }

    /// Links, special files and attributes; those of a directory after all that lies in it.
    fn finish(&self, root: &Node, first_names: &BTreeMap<(u64, u64), PathBuf>) -> Result<(), Failure> {
        let mut open: Vec<(PathBuf, Node)> = vec![];
        for item in self.repo.ls(root, &LsOptions::default()).map_err(repository_failure)? {
            let (name, node) = item.map_err(repository_failure)?;
            if !part::belongs(self.only, &name) {
                continue;
            }
            while let Some((dir, node)) = open.pop_if(|(dir, _)| !name.starts_with(dir)) {
                self.set(&dir, &node)?;
            }
            if node.is_dir() {
                open.push((name, node));
                continue;
            }
            if let Some(first) = names_of(&node).and_then(|key| first_names.get(&key)).filter(|first| **first != name) {
                std::fs::hard_link(self.place(first)?, self.place(&name)?).map_err(|e| self.failed(&name, &e))?;
            }
            self.set(&name, &node)?;
        }
        while let Some((dir, node)) = open.pop() {
            self.set(&dir, &node)?;
        }
        self.set(Path::new("."), root)
    }

    fn set(&self, name: &Path, node: &Node) -> Result<(), Failure> {
        let path = self.base.join(name);
        let done = special(&path, node).and_then(|there| if there { attributes(&path, node) } else { Ok(()) });
        done.map_err(|e| self.failed(name, &e))
    }

    /// Where a name of the snapshot lies. One that leads out of it is of no snapshot that was taken.
    fn place(&self, name: &Path) -> Result<PathBuf, Failure> {
        if name.components().all(|c| matches!(c, Component::Normal(_))) && name.components().next().is_some() {
            return Ok(self.base.join(name));
        }
        Err(Failure::Repository { detail: format!("the snapshot holds {name:?}, which is no path in it") })
    }

    fn failed(&self, name: &Path, error: &std::io::Error) -> Failure {
        io(&self.into.join(name), error)
    }
}

/// What a file with several names is known by.
fn names_of(node: &Node) -> Option<(u64, u64)> {
    (node.is_file() && node.meta.links > 1 && node.meta.inode != 0).then_some((node.meta.device_id, node.meta.inode))
}

/// Ranges of sorted pieces that lie near each other in one pack.
fn stretches(pieces: &[Piece]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = vec![];
    let end = |p: &Piece| u64::from(p.offset) + u64::from(p.length);
    for (n, piece) in pieces.iter().enumerate() {
        if let Some(last) = found.last_mut() {
            let (first, before) = (&pieces[last.start], &pieces[n - 1]);
            // Offsets of one pack only can be compared.
            let near = || u64::from(piece.offset) <= end(before) + GAP && end(piece) - u64::from(first.offset) <= STRETCH;
            if piece.pack == before.pack && (piece.offset == before.offset || near()) {
                last.end = n + 1;
                continue;
            }
        }
        found.push(n..n + 1);
    }
    found
}

/// What only another user may do is left undone: the comparison after a restore names it.
fn as_far_as_permitted(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

/// Makes what is neither a file nor a directory; `false` when it is not there because that is not permitted.
fn special(path: &Path, node: &Node) -> std::io::Result<bool> {
    let make = |kind: FileType, device: Dev| match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e.into()),
    };
    match &node.node_type {
        NodeType::File | NodeType::Dir => Ok(true),
        NodeType::Symlink { .. } => std::os::unix::fs::symlink(node.node_type.to_link(), path).map(|()| true),
        NodeType::Fifo => make(FileType::Fifo, 0),
        NodeType::Socket => make(FileType::Socket, 0),
        NodeType::Chardev { device } => make(FileType::CharacterDevice, *device),
        NodeType::Dev { device } => make(FileType::BlockDevice, *device),
    }
}

/// Owner first: a change of owner takes set-user-id and capabilities away. Times last: everything else changes them.
fn attributes(path: &Path, node: &Node) -> std::io::Result<()> {
    let meta = &node.meta;
    as_far_as_permitted(std::os::unix::fs::lchown(path, meta.uid, meta.gid))?;
    if let Some(mode) = meta.mode.filter(|_| !node.is_symlink()) {
        as_far_as_permitted(std::fs::set_permissions(path, Permissions::from_mode(mode::permissions(mode))))?;
    }
    let there = xattrs(path)?;
    let wanted = |name: &str| meta.extended_attributes.iter().any(|a| a.name == name);
    for (name, _) in there.iter().filter(|(name, _)| !wanted(name)) {
        as_far_as_permitted(rustix::fs::lremovexattr(path, name.as_str()).map_err(Into::into))?;
    }
    for attribute in &meta.extended_attributes {
        let value = attribute.value.as_deref().unwrap_or_default();
        if !there.iter().any(|(name, is)| *name == attribute.name && is == value) {
            let set = rustix::fs::lsetxattr(path, attribute.name.as_str(), value, XattrFlags::empty());
            as_far_as_permitted(set.map_err(Into::into))?;
        }
    }
    if let Some(mtime) = meta.mtime {
        let times = Timestamps { last_access: floor(meta.atime.unwrap_or(mtime)), last_modification: floor(mtime) };
        as_far_as_permitted(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into))?;
    }
    Ok(())
}

/// Seconds downwards and what is left, as the system counts also before 1970.
fn floor(time: Timestamp) -> Timespec {
    let (seconds, nanoseconds) = super::mode::floor(time);
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_near_each_other_in_a_pack_is_read_at_once_and_never_more_than_a_stretch() {
        let (a, b) = (Id::default(), "0123456789abcdef".repeat(4).parse::<Id>().unwrap());
        let piece = |pack, offset, length| Piece { pack, offset, length, blob: a, file: 0, at: 0 };
        let mib = 1 << 20;
        let near = [piece(a, 0, mib), piece(a, 0, mib), piece(a, mib, mib), piece(a, 2 * mib + 1000, mib), piece(b, 3 * mib + 1000, mib)];
        assert_eq!(stretches(&near), [0..4, 4..5]);
        let far = [piece(a, 0, 10), piece(a, mib, 10), piece(b, 0, 10)];
        assert_eq!(stretches(&far), [0..1, 1..2, 2..3]);
        let long: Vec<Piece> = (0..20).map(|n| piece(a, n * mib, mib)).collect();
        assert_eq!(stretches(&long), [0..8, 8..16, 16..20]);
        assert_eq!(stretches(&[piece(a, 0, 100 * mib), piece(a, 0, 100 * mib)]).len(), 1);
        assert!(stretches(&[]).is_empty());
    }
}
