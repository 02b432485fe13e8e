//! A directory tree as the source of a snapshot. The library has a walk of its own that also looks up the names of users and groups; in a
//! statically linked binary that loads the C library's name service modules into foreign threads and crashes, and the host's names mean
//! nothing to a container's uids anyway. What is removed between its listing and its turn is simply not there, as it would be a moment later.
//! Deliberately absent: names of owners, filters, following links.

use super::mode::{Kind, to_go};
use super::source::{ReadLog, timestamp};
use crate::executor::straight;
use base64::Engine as _;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind::NotFound;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories below each other that are read; each is held open, and a process has so many descriptors.
const MOST_DEEP: usize = 400;

/// Everything below an open directory, in the order the repository wants: names sorted by their bytes, a directory before its content. Each directory is
/// opened in the one above and each file in its own, so that what is swapped for a link meanwhile is met as a link or not at all.
pub(super) struct Walk {
    /// What its entries are called by.
    pub(super) root: PathBuf,
    pub(super) dir: Arc<File>,
    pub(super) log: Arc<ReadLog>,
}

impl ReadSource for Walk {
    type Open = OpenFile;
    type Iter = WalkIter;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> WalkIter {
        let mut walk = WalkIter { root: self.root.clone(), open: Vec::new(), log: self.log.clone() };
        match straight::below(&self.dir, Path::new("")) {
            Ok(dir) => walk.descend(&self.root, dir),
            Err(e) => walk.problem(&self.root, &std::io::Error::from(e)),
        }
        walk
    }
}

/// An open directory, and the names still to come, last name first.
struct Level {
    dir: Arc<File>,
    path: PathBuf,
    names: Vec<OsString>,
}

/// Where a walk stands.
pub(super) struct WalkIter {
    root: PathBuf,
    open: Vec<Level>,
    log: Arc<ReadLog>,
}

impl WalkIter {
    fn problem(&self, path: &Path, cause: &dyn std::fmt::Display) {
        let shown = path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        self.log.problem(format!("{}: {cause}", if shown.is_empty() { "." } else { &shown }));
    }

    fn descend(&mut self, path: &Path, dir: File) {
        let mut names = Vec::new();
        match straight::names(&dir, &mut names) {
            Ok(()) => {}
            Err(Errno::NOENT) => self.log.vanished(),
            Err(e) => self.problem(path, &std::io::Error::from(e)),
        }
        names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
        self.open.push(Level { dir: Arc::new(dir), path: path.to_owned(), names });
    }

    /// The node of an entry and, of a directory, the directory; `None` when it is gone by now.
    fn look(&self, dir: &File, name: &OsStr, path: &Path) -> std::io::Result<Option<(Node, Option<File>)>> {
        let place = straight::through(dir).join(name);
        let met = fs::symlink_metadata(&place)?;
        if !met.is_dir() {
            let mut node = node_of(&met, &place, name)?;
            self.attributes(&mut node, path, &place)?;
            return Ok(Some((node, None)));
        }
        match straight::child(dir, name) {
            Ok(below) => {
                let mut node = node_of(&below.metadata()?, &place, name)?;
                self.attributes(&mut node, path, &straight::through(&below).join("."))?;
                Ok(Some((node, Some(below))))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(std::io::Error::other("it was replaced by something else while it was read")),
            Err(e) => {
                self.problem(path, &std::io::Error::from(e));
                Ok(Some((node_of(&met, &place, name)?, None)))
            }
        }
    }

    fn attributes(&self, node: &mut Node, path: &Path, place: &Path) -> std::io::Result<()> {
        match xattrs(place) {
            Ok(found) if found.is_empty() => Ok(()),
            Ok(found) => {
                attach(node, found);
                Ok(())
            }
            Err(e) if e.kind() == NotFound => Err(e),
            Err(e) => {
                self.problem(path, &format_args!("extended attributes: {e}"));
                Ok(())
            }
        }
    }
}

impl Iterator for WalkIter {
    type Item = RusticResult<ReadSourceEntry<OpenFile>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let level = self.open.last_mut()?;
            let Some(name) = level.names.pop() else {
                self.open.pop();
                continue;
            };
            let (dir, path) = (level.dir.clone(), level.path.join(&name));
            let (node, below) = match self.look(&dir, &name, &path) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    self.log.vanished();
                    continue;
                }
                Err(e) if e.kind() == NotFound => {
                    self.log.vanished();
                    continue;
                }
                Err(e) => {
                    self.problem(&path, &e);
                    continue;
                }
            };
            match below {
                Some(below) if self.open.len() < MOST_DEEP => self.descend(&path, below),
                Some(_) => self.problem(&path, &format_args!("lies more than {MOST_DEEP} directories deep and was not read")),
                None => {}
            }
            let open = node.is_file().then(|| OpenFile { dir, name });
            return Some(Ok(ReadSourceEntry { path, node, open }));
        }
    }
}

/// A file to be read when its turn comes, in the directory it was met in.
pub(super) struct OpenFile {
    dir: Arc<File>,
    name: OsString,
}

impl ReadSourceOpen for OpenFile {
    type Reader = File;

    fn open(self) -> RusticResult<File> {
        let failed = |e: std::io::Error| RusticError::with_source(ErrorKind::InputOutput, "the file cannot be opened", e);
        // The name may have become a link or a pipe since it was met: neither is followed, neither may block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&*self.dir, &self.name, flags, rustix::fs::Mode::empty()).map_err(|e| failed(e.into()))?);
        match file.metadata() {
            Ok(meta) if meta.is_file() => Ok(file),
            Ok(_) => Err(failed(std::io::Error::other("it is no longer a regular file"))),
            Err(e) => Err(failed(e)),
        }
    }
}

/// The node of what was met, without its extended attributes; `place` is where the end of a link is read.
pub(super) fn node_of(meta: &fs::Metadata, place: &Path, name: &OsStr) -> std::io::Result<Node> {
    let (kind, node_type) = match meta.file_type() {
        t if t.is_dir() => (Kind::Dir, NodeType::Dir),
        t if t.is_symlink() => (Kind::Symlink, NodeType::from_link(&fs::read_link(place)?)),
        t if t.is_fifo() => (Kind::Fifo, NodeType::Fifo),
        t if t.is_socket() => (Kind::Socket, NodeType::Socket),
        t if t.is_char_device() => (Kind::Char, NodeType::Chardev { device: meta.rdev() }),
        t if t.is_block_device() => (Kind::Block, NodeType::Dev { device: meta.rdev() }),
        _ => (Kind::File, NodeType::File),
    };
    let mtime = timestamp(meta.mtime(), meta.mtime_nsec());
    let several_names = kind != Kind::Dir && meta.nlink() > 1;
    let metadata = Metadata {
        mode: Some(to_go(meta.mode() & 0o7777, kind)),
        mtime,
        // Access times change by reading and would make every snapshot differ.
        atime: mtime,
        ctime: timestamp(meta.ctime(), meta.ctime_nsec()),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        inode: meta.ino(),
        device_id: if several_names { meta.dev() } else { 0 },
        size: if kind == Kind::Dir { 0 } else { meta.len() },
        links: if kind == Kind::Dir { 0 } else { meta.nlink() },
        ..Metadata::default()
    };
    Ok(Node::new_node(name, node_type, metadata))
}

/// Gives a node its extended attributes. Their type is not exported by the library; its stored form is.
pub(super) fn attach(node: &mut Node, xattrs: Vec<(String, Vec<u8>)>) {
    let list = xattrs
        .iter()
        .map(|(name, value)| serde_json::json!({"name": name, "value": base64::engine::general_purpose::STANDARD.encode(value)}))
        .collect();
    node.meta.extended_attributes = serde_json::from_value(serde_json::Value::Array(list)).expect("built in the form the type reads");
}

/// Extended attributes of a path itself, links not followed; empty where the file system has none. Those that go away meanwhile are left out.
pub(super) fn xattrs(path: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let names = filled(&|| rustix::fs::llistxattr_query(path), &|buffer| rustix::fs::llistxattr(path, buffer))?.unwrap_or_default();
    let mut found = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let text = std::str::from_utf8(name).map_err(std::io::Error::other)?;
        let value = filled(&|| rustix::fs::lgetxattr_query(path, text), &|buffer| rustix::fs::lgetxattr(path, text, buffer))?;
        found.extend(value.map(|value| (text.to_owned(), value)));
    }
    Ok(found)
}

/// Asks how much there is, then for it; again when it grew in between. The library answers 0 to a call with an empty buffer, whatever there is.
fn filled(
    size: &dyn Fn() -> rustix::io::Result<usize>,
    read: &dyn Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> std::io::Result<Option<Vec<u8>>> {
    use rustix::io::Errno;
    loop {
        let mut buffer = match size() {
            Ok(0) => return Ok(Some(Vec::new())),
            Ok(size) => vec![0; size],
            Err(Errno::NOTSUP | Errno::NODATA) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        match read(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SnapshotState;
    use super::super::repo::Counter;
    use super::super::source::{Places, Watched, root_node};
    use super::super::sums::Sums;
    use super::*;

    #[test]
    fn what_is_removed_between_its_listing_and_its_turn_is_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        fs::create_dir_all(root.join("d/below")).unwrap();
        for name in ["a", "b", "c", "d/x"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let log = Arc::new(ReadLog::default());
        let dir = Arc::new(straight::open(&root).unwrap());
        let walk = Walk { root: root.clone(), dir: dir.clone(), log: log.clone() };
        let counter = Counter::new(Arc::new(|_| {}));
        let places = Places { root: root.clone(), stored: "/volumes/data".into() };
        let sums = Sums::new(OsStr::new("data"), None);
        let entries = Watched::new(walk, places, root_node(&dir, &root, "data").unwrap(), log.clone(), counter, sums).entries();
        // Listed by now.
        fs::remove_file(root.join("b")).unwrap();
        fs::remove_dir_all(root.join("d")).unwrap();
        let met: Vec<_> = entries.map(Result::unwrap).collect();
        let stored = ["/volumes/data", "/volumes/data/a", "/volumes/data/c", "/volumes/data.sha256"].map(PathBuf::from);
        assert_eq!(met.iter().map(|e| e.path.clone()).collect::<Vec<_>>(), stored);
        // Met by now.
        fs::remove_file(root.join("c")).unwrap();
        let opened: Vec<bool> = met.into_iter().filter_map(|e| e.open).map(|o| o.open().is_ok()).collect();
        assert_eq!(opened, [true, false, true]);
        log.root(&root);
        assert_eq!(log.verdict(1, 1), (SnapshotState::Complete, vec![]));
        assert_eq!(log.verdict(0, 1).0, SnapshotState::Partial, "what was there and was not stored is missing");
        fs::remove_dir_all(&root).unwrap();
        log.root(&root);
        assert_eq!(log.verdict(1, 1), (SnapshotState::Partial, vec![".: the directory itself was removed while it was read".to_owned()]));
    }

    /// A container's own directory `d` with `x` in it, beside a link to a directory of the host that has an `x`, too.
    fn stage() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let root = real.join("data");
        for (at, text) in [("data/d/below", "mine"), ("host/below", "of the host")] {
            fs::create_dir_all(real.join(at)).unwrap();
            fs::write(real.join(at).join("x"), text).unwrap();
        }
        fs::write(root.join("d/x"), "mine").unwrap();
        fs::write(real.join("host/x"), "of the host").unwrap();
        std::os::unix::fs::symlink(real.join("host"), root.join("l")).unwrap();
        (dir, root)
    }

    fn exchange(root: &Path) {
        let (d, l, cwd) = (root.join("d"), root.join("l"), rustix::fs::CWD);
        rustix::fs::renameat_with(cwd, d, cwd, l, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    }

    fn walk(root: &Path) -> WalkIter {
        let dir = Arc::new(straight::open(root).unwrap());
        Walk { root: root.to_owned(), dir, log: Arc::new(ReadLog::default()) }.entries()
    }

    fn text(open: OpenFile) -> Option<String> {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut open.open().ok()?, &mut text).unwrap();
        Some(text)
    }

    #[test]
    fn a_directory_that_becomes_a_link_after_it_was_met_is_still_read_itself() {
        let (_dir, root) = stage();
        let mut seen = vec![];
        for at in 0..5 {
            let mut entries = walk(&root);
            let mut met = vec![];
            for n in 0.. {
                if n == at {
                    exchange(&root);
                }
                let Some(entry) = entries.next() else { break };
                met.push(entry.unwrap());
            }
            // Files are opened long after they were met.
            seen.extend(met.into_iter().filter_map(|e| Some((at, e.path.strip_prefix(&root).unwrap().to_owned(), text(e.open?)))));
        }
        assert!(seen.len() > 5, "{seen:?}");
        assert!(seen.iter().all(|(_, _, text)| text.as_deref() == Some("mine")), "{seen:?}");
    }

    #[test]
    fn a_swap_of_a_directory_and_a_link_while_the_walk_runs_lets_nothing_of_the_host_in() {
        use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
        const WALKS: usize = 3_000;
        let (_dir, root) = stage();
        let stop = AtomicBool::new(false);
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let mut read = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    exchange(&root);
                }
            });
            // However the walking ends, the swapping does, too.
            let _end = Stop(&stop);
            for _ in 0..WALKS {
                for entry in walk(&root) {
                    let entry = entry.unwrap();
                    if let Some(text) = entry.open.and_then(text) {
                        read += 1;
                        assert_eq!(text, "mine", "{}", entry.path.display());
                    }
                }
            }
        });
        assert!(read > 0);
    }

    #[test]
    fn a_tree_deeper_than_descriptors_reach_is_told_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut at = straight::open(&root).unwrap();
        for _ in 0..MOST_DEEP + 5 {
            rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
            at = straight::child(&at, OsStr::new("d")).unwrap();
        }
        fs::write(root.join("x"), "x").unwrap();
        let entries = walk(&root);
        let log = entries.log.clone();
        let met: Vec<_> = entries.map(Result::unwrap).collect();
        assert!(met.len() == MOST_DEEP + 1 && met.last().unwrap().path == root.join("x"), "{}", met.len());
        let (state, told) = log.verdict(1, MOST_DEEP as u64);
        assert!(state == SnapshotState::Partial && told[0].contains("400 directories deep"), "{told:?}");
    }
}
