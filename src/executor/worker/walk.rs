//! A directory tree as the source of a snapshot. The library has a walk of its own that also looks up the names of users and groups; in a
//! statically linked binary that loads the C library's name service modules into foreign threads and crashes, and the host's names mean
//! nothing to a container's uids anyway. What is removed between its listing and its turn is simply not there, as it would be a moment later.
//! Deliberately absent: names of owners, filters, following links.

use super::mode::{Kind, to_go};
use super::source::{ReadLog, timestamp};
use base64::Engine as _;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult};
use rustix::fs::OFlags;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind::NotFound;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything below a directory, in the order the repository wants: names sorted by their bytes, a directory before its content.
pub(super) struct Walk {
    pub(super) root: PathBuf,
    pub(super) log: Arc<ReadLog>,
}

impl ReadSource for Walk {
    type Open = OpenPath;
    type Iter = WalkIter;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> WalkIter {
        let mut walk = WalkIter { root: self.root.clone(), open: Vec::new(), log: self.log.clone() };
        walk.descend(&self.root.clone());
        walk
    }
}

/// Where a walk stands: for each open directory the names still to come, last name first.
pub(super) struct WalkIter {
    root: PathBuf,
    open: Vec<(PathBuf, Vec<OsString>)>,
    log: Arc<ReadLog>,
}

impl WalkIter {
    fn problem(&self, path: &Path, cause: &dyn std::fmt::Display) {
        let shown = path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        self.log.problem(format!("{}: {cause}", if shown.is_empty() { "." } else { &shown }));
    }

    fn descend(&mut self, dir: &Path) {
        let mut names = Vec::new();
        match std::fs::read_dir(dir) {
            Err(e) if e.kind() == NotFound => self.log.vanished(),
            Err(e) => self.problem(dir, &e),
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => names.push(entry.file_name()),
                        Err(e) => self.problem(dir, &e),
                    }
                }
            }
        }
        names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
        self.open.push((dir.to_owned(), names));
    }
}

impl Iterator for WalkIter {
    type Item = RusticResult<ReadSourceEntry<OpenPath>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (dir, names) = self.open.last_mut()?;
            let Some(name) = names.pop() else {
                self.open.pop();
                continue;
            };
            let path = dir.join(&name);
            let node = match node_of(&path, &name) {
                Ok(node) => node,
                Err(e) if e.kind() == NotFound => {
                    self.log.vanished();
                    continue;
                }
                Err(e) => {
                    self.problem(&path, &e);
                    continue;
                }
            };
            let mut node = node;
            match xattrs(&path) {
                Ok(found) if found.is_empty() => {}
                Ok(found) => attach(&mut node, found),
                Err(e) if e.kind() == NotFound => {
                    self.log.vanished();
                    continue;
                }
                Err(e) => self.problem(&path, &format_args!("extended attributes: {e}")),
            }
            if node.is_dir() {
                self.descend(&path);
            }
            let open = node.is_file().then(|| OpenPath(path.clone()));
            return Some(Ok(ReadSourceEntry { path, node, open }));
        }
    }
}

/// A file to be read when its turn comes.
pub(super) struct OpenPath(PathBuf);

impl ReadSourceOpen for OpenPath {
    type Reader = File;

    fn open(self) -> RusticResult<File> {
        let failed = |e: std::io::Error| RusticError::with_source(ErrorKind::InputOutput, "the file cannot be opened", e);
        // The name may have become a link or a pipe since it was met: neither is followed, neither may block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(&self.0, flags, rustix::fs::Mode::empty()).map_err(|e| failed(e.into()))?);
        match file.metadata() {
            Ok(meta) if meta.is_file() => Ok(file),
            Ok(_) => Err(failed(std::io::Error::other("it is no longer a regular file"))),
            Err(e) => Err(failed(e)),
        }
    }
}

/// The node of one directory entry, without its extended attributes.
pub(super) fn node_of(path: &Path, name: &OsStr) -> std::io::Result<Node> {
    let meta = std::fs::symlink_metadata(path)?;
    let (kind, node_type) = match meta.file_type() {
        t if t.is_dir() => (Kind::Dir, NodeType::Dir),
        t if t.is_symlink() => (Kind::Symlink, NodeType::from_link(&std::fs::read_link(path)?)),
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

/// Extended attributes of a path itself, links not followed; empty where the file system has none.
pub(super) fn xattrs(path: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let read = |call: &dyn Fn(&mut [u8]) -> rustix::io::Result<usize>| -> std::io::Result<Vec<u8>> {
        let size = match call(&mut []) {
            Ok(size) => size,
            Err(rustix::io::Errno::NOTSUP) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut buffer = vec![0; size];
        if size > 0 {
            let size = call(&mut buffer)?;
            buffer.truncate(size);
        }
        Ok(buffer)
    };
    let list = read(&|buffer| rustix::fs::llistxattr(path, buffer))?;
    let mut found = Vec::new();
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let text = std::str::from_utf8(name).map_err(std::io::Error::other)?;
        let value = read(&|buffer| rustix::fs::lgetxattr(path, text, buffer))?;
        found.push((text.to_owned(), value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::SnapshotState;
    use super::super::repo::Counter;
    use super::super::source::{Watched, root_node};
    use super::*;
    use std::fs;

    #[test]
    fn what_is_removed_between_its_listing_and_its_turn_is_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        fs::create_dir_all(root.join("d/below")).unwrap();
        for name in ["a", "b", "c", "d/x"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let log = Arc::new(ReadLog::default());
        let walk = Walk { root: root.clone(), log: log.clone() };
        let counter = Counter::new(Arc::new(|_| {}));
        let entries = Watched::new(walk, root.clone(), root_node(&root, "data").unwrap(), log.clone(), counter).entries();
        // Listed by now.
        fs::remove_file(root.join("b")).unwrap();
        fs::remove_dir_all(root.join("d")).unwrap();
        let met: Vec<_> = entries.map(Result::unwrap).collect();
        assert_eq!(met.iter().map(|e| e.path.clone()).collect::<Vec<_>>(), [root.clone(), root.join("a"), root.join("c")]);
        // Met by now.
        fs::remove_file(root.join("c")).unwrap();
        let opened: Vec<bool> = met.into_iter().filter_map(|e| e.open).map(|o| o.open().is_ok()).collect();
        assert_eq!(opened, [true, false]);
        log.root(&root);
        assert_eq!(log.verdict(1, 1), (SnapshotState::Complete, vec![]));
        assert_eq!(log.verdict(0, 1).0, SnapshotState::Partial, "what was there and was not stored is missing");
        fs::remove_dir_all(&root).unwrap();
        log.root(&root);
        assert_eq!(log.verdict(1, 1), (SnapshotState::Partial, vec![".: the directory itself was removed while it was read".to_owned()]));
    }
}
