//! Does data equal a snapshot? Types, permissions, owners, times, links and every byte: the SHA-256 of each file is compared with the one that was recorded
//! when it was backed up, and each of its chunks with the id the snapshot holds for it, which is that chunk's SHA-256; before data is given up for its
//! snapshot, the stored bytes are read, too. Deliberately absent: the rest of the repository; `Check` looks at it.

use super::mode::{Kind, floor, permissions};
use super::repo::{Opened as Repo, io, one_line, repository_failure};
use super::sums::Listed;
use super::tarball::TarIndex;
use super::{Failure, Source, part};
use crate::executor::straight;
use rustic_core::repofile::{BlobType, Node, NodeType, SnapshotFile};
use rustic_core::{IndexedFull, LsOptions, Repository};
use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Differences named in a report; the rest is counted.
const NAMED: usize = 100;

/// What is really there under one name.
struct Actual {
    kind: Kind,
    permissions: u32,
    uid: u32,
    gid: u32,
    /// Seconds, and nanoseconds where the source keeps them.
    mtime: Option<(i64, Option<i64>)>,
    size: u64,
    target: Option<PathBuf>,
    device: u64,
    identity: (u64, u64),
    /// Extended attributes that this kind of source carries.
    attributes: BTreeMap<String, Vec<u8>>,
    archive: bool,
}

/// Attributes whose loss is a difference: what programs write, and file capabilities. The engine's archives carry the latter alone; labels and the like are
/// the host's own.
fn judged(archive: bool, name: &str) -> bool {
    name == "security.capability" || (!archive && name.starts_with("user."))
}

fn judged_of(archive: bool, all: impl IntoIterator<Item = (String, Vec<u8>)>) -> BTreeMap<String, Vec<u8>> {
    all.into_iter().filter(|(name, _)| judged(archive, name)).collect()
}

/// The data to be judged.
enum Tree {
    Dir(Opened),
    Tar(TarIndex),
}

/// An open directory, and the one below it that was looked into last: entries come directory by directory.
struct Opened {
    root: File,
    last: RefCell<Option<(PathBuf, Rc<File>)>>,
}

impl Opened {
    /// The directory that holds a path, and the path in it. No link is followed.
    fn above(&self, path: &Path) -> rustix::io::Result<(Rc<File>, OsString)> {
        let Some(name) = path.file_name() else { return Ok((Rc::new(straight::below(&self.root, Path::new(""))?), ".".into())) };
        let above = path.parent().unwrap_or(Path::new(""));
        if let Some((_, dir)) = self.last.borrow().as_ref().filter(|(at, _)| at == above) {
            return Ok((dir.clone(), name.to_owned()));
        }
        let dir = Rc::new(straight::below(&self.root, above)?);
        *self.last.borrow_mut() = Some((above.to_owned(), dir.clone()));
        Ok((dir, name.to_owned()))
    }
}

impl Tree {
    fn look(&self, path: &Path) -> std::io::Result<Option<Actual>> {
        match self {
            Self::Dir(opened) => match opened.above(path) {
                Ok((dir, name)) => look_at(&straight::through(&*dir).join(name)),
                // Where a directory is a link, or gone, there is nothing below it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(e) => Err(e.into()),
            },
            Self::Tar(index) => Ok(index.members.get(path).map(|m| Actual {
                kind: m.kind,
                permissions: m.permissions,
                uid: m.uid,
                gid: m.gid,
                mtime: m.mtime.map(|t| (floor(t).0, (floor(t).1 > 0).then(|| floor(t).1.into()))),
                size: m.size,
                target: m.target.clone(),
                device: m.device,
                identity: (1, m.inode),
                attributes: judged_of(true, m.xattrs.iter().cloned()),
                archive: true,
            })),
        }
    }

    fn open(&self, path: &Path) -> std::io::Result<Box<dyn Read>> {
        match self {
            Self::Dir(opened) => {
                let (dir, name) = opened.above(path)?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                Ok(Box::new(File::from(rustix::fs::openat(&*dir, name, flags, rustix::fs::Mode::empty())?)))
            }
            Self::Tar(index) => {
                let member = index.members.get(path).ok_or(std::io::ErrorKind::NotFound)?;
                Ok(Box::new(index.content(member)?))
            }
        }
    }

    /// Everything that is there, the root left out.
    fn names(&self) -> Result<BTreeSet<PathBuf>, Failure> {
        match self {
            Self::Tar(index) => Ok(index.members.keys().filter(|k| !k.as_os_str().is_empty()).cloned().collect()),
            Self::Dir(opened) => {
                let mut names = BTreeSet::new();
                let mut open = vec![PathBuf::new()];
                while let Some(at) = open.pop() {
                    let failed = |e: Errno| io(&at, &e.into());
                    let dir = straight::below(&opened.root, &at).map_err(failed)?;
                    let mut found = vec![];
                    straight::names(&dir, &mut found).map_err(failed)?;
                    for name in found {
                        let place = straight::through(&dir).join(&name);
                        if std::fs::symlink_metadata(&place).map_err(|e| io(&at.join(&name), &e))?.is_dir() {
                            open.push(at.join(&name));
                        }
                        names.insert(at.join(&name));
                    }
                }
                Ok(names)
            }
        }
    }
}

fn look_at(path: &Path) -> std::io::Result<Option<Actual>> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let kind = match meta.file_type() {
        t if t.is_dir() => Kind::Dir,
        t if t.is_symlink() => Kind::Symlink,
        t if t.is_fifo() => Kind::Fifo,
        t if t.is_socket() => Kind::Socket,
        t if t.is_char_device() => Kind::Char,
        t if t.is_block_device() => Kind::Block,
        _ => Kind::File,
    };
    Ok(Some(Actual {
        kind,
        permissions: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: Some((meta.mtime(), Some(meta.mtime_nsec()))),
        size: meta.len(),
        target: if kind == Kind::Symlink { Some(std::fs::read_link(path)?) } else { None },
        device: if matches!(kind, Kind::Char | Kind::Block) { meta.rdev() } else { 0 },
        identity: (meta.dev(), meta.ino()),
        attributes: judged_of(false, super::walk::xattrs(path)?),
        archive: false,
    }))
}

fn kind_of(node: &Node) -> Kind {
    match node.node_type {
        NodeType::File => Kind::File,
        NodeType::Dir => Kind::Dir,
        NodeType::Symlink { .. } => Kind::Symlink,
        NodeType::Fifo => Kind::Fifo,
        NodeType::Socket => Kind::Socket,
        NodeType::Chardev { .. } => Kind::Char,
        NodeType::Dev { .. } => Kind::Block,
    }
}

/// How data is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Against<'a> {
    /// Only what lies at this path.
    pub(super) only: Option<&'a Path>,
    /// Also read each piece from the repository: the id alone does not show that it is there and undamaged.
    pub(super) read: bool,
}

/// Differences between a snapshot and data, `path: what`; empty = equal. And whether the snapshot has a sum of each of its files: otherwise those without one
/// were compared by their chunks alone.
pub(super) fn verify(
    opened: Repo,
    snapshot: &SnapshotFile,
    root: &Node,
    against: &Source,
    how: Against<'_>,
) -> Result<(Vec<String>, bool), Failure> {
    let tree = match against {
        Source::Dir(path) => Tree::Dir(Opened { root: super::jobs::directory(path)?, last: RefCell::default() }),
        Source::Tar(path) => Tree::Tar(TarIndex::read(path)?),
    };
    let Repo { repo, counter, lock: _held, .. } = opened;
    let repo = repo.to_indexed().map_err(repository_failure)?;
    let (listed, mut found) = match Listed::of(&repo, snapshot) {
        Ok(listed) => (listed, Vec::new()),
        // The pieces still tell, as for a snapshot that has no list; where data is given up for the snapshot, that is not enough.
        Err(e) if how.read => (None, vec![format!("the list of sums cannot be read: {e}")]),
        Err(e) => {
            eprintln!("the SHA-256 list of the snapshot cannot be read, so its data is compared by its pieces: {e}");
            (None, Vec::new())
        }
    };
    let mut all_listed = listed.is_some();
    let mut left = tree.names()?;
    let mut links: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    let tar = matches!(tree, Tree::Tar(_));
    let nodes = repo.ls(root, &LsOptions::default()).map_err(repository_failure)?;
    for item in std::iter::once(Ok((PathBuf::new(), root.clone()))).chain(nodes) {
        let (path, node) = item.map_err(repository_failure)?;
        if !part::belongs(how.only, &path) {
            continue;
        }
        left.remove(&path);
        // An archive cannot carry sockets.
        if tar && node.node_type == NodeType::Socket {
            continue;
        }
        let shown = if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() };
        let Some(actual) = tree.look(&path).map_err(|e| io(&path, &e))? else {
            found.push(format!("{shown}: missing"));
            continue;
        };
        let before = found.len();
        attributes(&shown, &node, &actual, &mut found);
        if node.is_file() && node.meta.links > 1 && node.meta.inode != 0 {
            let wanted = (node.meta.device_id, node.meta.inode);
            if *links.entry(wanted).or_insert(actual.identity) != actual.identity {
                found.push(format!("{shown}: is no longer a hard link of the other names of its file"));
            }
        }
        if node.is_file() && actual.kind == Kind::File && found.len() == before {
            let sum = listed.as_ref().and_then(|l| l.sum(&path));
            all_listed &= sum.is_some();
            content(&repo, &tree, (&path, &shown), (&node, sum), how.read, &mut found)?;
        }
        counter.add(node.meta.size, 1);
    }
    found.extend(left.iter().map(|path| format!("{}: not in snapshot {}", path.display(), &snapshot.id.to_hex().as_str()[..8])));
    let more = found.len().saturating_sub(NAMED);
    if more > 0 {
        found.truncate(NAMED);
        found.push(format!("and {more} more"));
    }
    Ok((found, all_listed))
}

fn attributes(shown: &str, node: &Node, actual: &Actual, found: &mut Vec<String>) {
    let kind = kind_of(node);
    if kind != actual.kind {
        found.push(format!("{shown}: {} instead of {}", actual.kind.word(), kind.word()));
        return;
    }
    if let Some(mode) = node.meta.mode.map(permissions)
        && kind != Kind::Symlink
        && mode != actual.permissions
    {
        found.push(format!("{shown}: mode {:04o} instead of {mode:04o}", actual.permissions));
    }
    if let (Some(uid), Some(gid)) = (node.meta.uid, node.meta.gid)
        && (uid, gid) != (actual.uid, actual.gid)
    {
        found.push(format!("{shown}: owner {}:{} instead of {uid}:{gid}", actual.uid, actual.gid));
    }
    if let (Some(wanted), Some((seconds, nanoseconds))) = (node.meta.mtime, actual.mtime) {
        let (wanted, wanted_ns) = floor(wanted);
        if wanted != seconds || nanoseconds.is_some_and(|n| n != i64::from(wanted_ns)) {
            found.push(match wanted {
                same if same == seconds => format!("{shown}: modification time differs by less than a second"),
                other => format!("{shown}: modification time {seconds} instead of {other}"),
            });
        }
    }
    let recorded = node.meta.extended_attributes.iter().map(|a| (a.name.clone(), a.value.clone().unwrap_or_default()));
    if judged_of(actual.archive, recorded) != actual.attributes {
        found.push(format!("{shown}: other extended attributes"));
    }
    match &node.node_type {
        NodeType::File if node.meta.size != actual.size => {
            found.push(format!("{shown}: {} bytes instead of {}", actual.size, node.meta.size))
        }
        NodeType::Symlink { .. } if actual.target.as_deref() != Some(node.node_type.to_link()) => {
            found.push(format!("{shown}: link to another target than {}", node.node_type.to_link().display()));
        }
        NodeType::Chardev { device } | NodeType::Dev { device } if *device != actual.device => {
            found.push(format!("{shown}: another device"))
        }
        _ => {}
    }
}

fn content<S: IndexedFull>(
    repo: &Repository<S>,
    tree: &Tree,
    (path, shown): (&Path, &str),
    (node, sum): (&Node, Option<&str>),
    read: bool,
    found: &mut Vec<String>,
) -> Result<(), Failure> {
    let mut reader = match tree.open(path) {
        Ok(reader) => reader,
        Err(e) => {
            found.push(format!("{shown}: cannot be read: {e}"));
            return Ok(());
        }
    };
    let (mut buffer, mut whole) = (Vec::new(), Sha256::new());
    for chunk in node.content.iter().flatten() {
        let length = match repo.get_index_entry(chunk) {
            Ok(entry) => entry.data_length() as usize,
            Err(e) => {
                found.push(format!("{shown}: the repository lacks a part of it: {}", one_line(&e.display_log())));
                return Ok(());
            }
        };
        buffer.resize(length, 0);
        if let Err(e) = reader.read_exact(&mut buffer) {
            found.push(format!("{shown}: cannot be read: {e}"));
            return Ok(());
        }
        let hash: [u8; 32] = Sha256::digest(&buffer).into();
        if chunk.to_hex().as_str() != hex(&hash) {
            found.push(format!("{shown}: other content"));
            return Ok(());
        }
        if sum.is_some() {
            whole.update(&buffer);
        }
        // Each is sealed: one that is damaged does not open.
        if read && let Err(e) = repo.cat_blob(BlobType::Data, chunk.to_hex().as_str()) {
            found.push(format!("{shown}: the repository cannot give it back: {}", one_line(&e.display_log())));
            return Ok(());
        }
    }
    if reader.read(&mut [0u8; 1]).map_err(|e| io(path, &e))? != 0 {
        found.push(format!("{shown}: other content"));
    } else if sum.is_some_and(|recorded| recorded != hex(&whole.finalize())) {
        found.push(format!("{shown}: other content than its SHA-256 of when it was backed up"));
    }
    Ok(())
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        write!(text, "{b:02x}").expect("writing to a string cannot fail");
        text
    })
}
