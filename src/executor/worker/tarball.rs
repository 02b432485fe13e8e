//! Tar files as file trees: what an engine's archive call gives becomes a source for a snapshot without being unpacked, so owners, modes
//! and links are kept even where we may not set them; and a snapshot is written as a tar file for the way back. Deliberately absent:
//! engines, and sparse members (no engine writes them; one is an error, not a guess).

use super::Failure;
use super::mode::{Kind, permissions, to_go};
use super::source::timestamp;
use super::walk::attach;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ReadSource, ReadSourceEntry, ReadSourceOpen, RusticResult};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// PAX key prefix under which extended attributes travel.
pub(super) const XATTR: &str = "SCHILY.xattr.";

/// One entry of a tar file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub(super) kind: Kind,
    pub(super) permissions: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Option<Timestamp>,
    pub(super) size: u64,
    /// Where the content begins in the tar file.
    pub(super) offset: u64,
    /// Target of a symbolic link.
    pub(super) target: Option<PathBuf>,
    pub(super) device: u64,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
    /// Same for all names of one file.
    pub(super) inode: u64,
    /// Names of the file.
    pub(super) links: u64,
}

/// The table of contents of a tar file: path below the top directory -> entry. The empty path is the top directory itself.
#[derive(Debug, Clone)]
pub(super) struct TarIndex {
    file: PathBuf,
    pub(super) members: BTreeMap<PathBuf, Member>,
}

impl TarIndex {
    /// Reads the headers. A tar file without its end mark, or with entries this format cannot carry over faithfully, is refused.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let bad = |detail: String| Failure::Archive { path: path.display().to_string(), detail };
        let io = |e: std::io::Error| bad(e.to_string());
        let mut file = File::open(path).map_err(io)?;
        check_end(&mut file).map_err(io)?.then_some(()).ok_or_else(|| bad("its end mark is missing".to_owned()))?;
        let mut archive = tar::Archive::new(file);
        let mut members = BTreeMap::new();
        let mut hard_links = Vec::new();
        for (number, entry) in archive.entries_with_seek().map_err(io)?.enumerate() {
            let mut entry = entry.map_err(io)?;
            let name = below_top(&entry.path_bytes()).ok_or_else(|| bad("an entry's path leaves its directory".to_owned()))?;
            let header = entry.header();
            let tar_kind = header.entry_type();
            let link = entry.link_name_bytes().map(|l| PathBuf::from(OsStr::from_bytes(&l)));
            if tar_kind == tar::EntryType::Link {
                let target = link.as_deref().and_then(|l| below_top(l.as_os_str().as_bytes()));
                hard_links.push((name, target.ok_or_else(|| bad("a hard link leads out of the archive".to_owned()))?));
                continue;
            }
            let kind = match tar_kind {
                tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
                tar::EntryType::Directory => Kind::Dir,
                tar::EntryType::Symlink => Kind::Symlink,
                tar::EntryType::Fifo => Kind::Fifo,
                tar::EntryType::Char => Kind::Char,
                tar::EntryType::Block => Kind::Block,
                tar::EntryType::XGlobalHeader => continue,
                other => return Err(bad(format!("{} has the unsupported type {other:?}", name.display()))),
            };
            let device = match kind {
                Kind::Char | Kind::Block => rustix::fs::makedev(
                    header.device_major().map_err(io)?.unwrap_or_default(),
                    header.device_minor().map_err(io)?.unwrap_or_default(),
                ),
                _ => 0,
            };
            let id = |value: std::io::Result<u64>| value.map_err(io).and_then(|v| u32::try_from(v).map_err(|e| bad(e.to_string())));
            let mut member = Member {
                kind,
                permissions: header.mode().map_err(io)? & 0o7777,
                uid: id(header.uid())?,
                gid: id(header.gid())?,
                mtime: header.mtime().ok().and_then(|s| timestamp(i64::try_from(s).ok()?, 0)),
                size: if kind == Kind::File { entry.size() } else { 0 },
                offset: entry.raw_file_position(),
                target: if kind == Kind::Symlink { link } else { None },
                device,
                xattrs: Vec::new(),
                inode: number as u64 + 1,
                links: 1,
            };
            if let Some(extensions) = entry.pax_extensions().map_err(io)? {
                for extension in extensions {
                    let extension = extension.map_err(io)?;
                    match extension.key() {
                        Ok("mtime") => member.mtime = extension.value().ok().and_then(pax_time).or(member.mtime),
                        Ok(key) if key.starts_with("GNU.sparse") => return Err(bad(format!("{} is stored sparse", name.display()))),
                        Ok(key) => {
                            if let Some(attribute) = key.strip_prefix(XATTR) {
                                member.xattrs.push((attribute.to_owned(), extension.value_bytes().to_vec()));
                            }
                        }
                        Err(e) => return Err(bad(e.to_string())),
                    }
                }
            }
            members.insert(name, member);
        }
        for (name, target) in hard_links {
            let found = members
                .get_mut(&target)
                .ok_or_else(|| bad(format!("{} is a link to {}, which is missing", name.display(), target.display())))?;
            let member = found.clone();
            members.insert(name, member);
        }
        let mut names: BTreeMap<u64, u64> = BTreeMap::new();
        for member in members.values() {
            *names.entry(member.inode).or_default() += 1;
        }
        for member in members.values_mut() {
            member.links = names[&member.inode];
        }
        if members.get(Path::new("")).is_none_or(|top| top.kind != Kind::Dir) {
            return Err(bad("it has no top directory".to_owned()));
        }
        Ok(Self { file: path.to_owned(), members })
    }

    /// A reader of a file's content.
    pub(super) fn content(&self, member: &Member) -> std::io::Result<Take<File>> {
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(member.offset))?;
        Ok(file.take(member.size))
    }

    /// The top directory as the root node of a snapshot.
    pub(super) fn root_node(&self, name: &str) -> Node {
        node(OsStr::new(name), &self.members[Path::new("")])
    }
}

/// A tar file ends in two blocks of zeros; a stream cut between two entries has none and would pass for a smaller whole one.
fn check_end(file: &mut File) -> std::io::Result<bool> {
    let mut end = [1u8; 1024];
    if file.metadata()?.len() < 1024 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1024))?;
    file.read_exact(&mut end)?;
    file.rewind()?;
    Ok(end.iter().all(|b| *b == 0))
}

/// The path below the first component; `None` for one that climbs.
fn below_top(path: &[u8]) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    let mut top = true;
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) if !std::mem::take(&mut top) => below.push(name),
            Component::Normal(_) | Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(below)
}

/// `1234.5678` as PAX writes times.
fn pax_time(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    timestamp(seconds.parse().ok()?, if seconds.starts_with('-') { -nanoseconds } else { nanoseconds })
}

fn node(name: &OsStr, member: &Member) -> Node {
    let kind = match member.kind {
        Kind::File => NodeType::File,
        Kind::Dir => NodeType::Dir,
        Kind::Symlink => NodeType::from_link(member.target.as_deref().unwrap_or(Path::new(""))),
        Kind::Fifo => NodeType::Fifo,
        Kind::Socket => NodeType::Socket,
        Kind::Char => NodeType::Chardev { device: member.device },
        Kind::Block => NodeType::Dev { device: member.device },
    };
    let meta = Metadata {
        mode: Some(to_go(member.permissions, member.kind)),
        mtime: member.mtime,
        atime: member.mtime,
        uid: Some(member.uid),
        gid: Some(member.gid),
        size: member.size,
        links: if member.kind == Kind::Dir { 0 } else { member.links },
        // The pair names a file with several names within one snapshot; any numbers do that are not zero.
        inode: if member.links > 1 { member.inode } else { 0 },
        device_id: u64::from(member.links > 1),
        ..Metadata::default()
    };
    let mut node = Node::new_node(name, kind, meta);
    attach(&mut node, member.xattrs.clone());
    node
}

/// A tar file as the source of a snapshot; entries lie under `root`.
pub(super) struct TarSource {
    pub(super) index: TarIndex,
    pub(super) root: PathBuf,
}

/// Opens one member when the snapshot asks for it.
pub(super) struct TarOpen {
    index: TarIndex,
    member: Member,
}

impl ReadSourceOpen for TarOpen {
    type Reader = Take<File>;
    fn open(self) -> RusticResult<Self::Reader> {
        self.index.content(&self.member).map_err(|e| {
            rustic_core::RusticError::with_source(rustic_core::ErrorKind::InputOutput, "the spooled archive cannot be read", e)
        })
    }
}

impl ReadSource for TarSource {
    type Open = TarOpen;
    type Iter = std::vec::IntoIter<RusticResult<ReadSourceEntry<TarOpen>>>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(Some(self.index.members.values().map(|m| m.size).sum()))
    }

    fn entries(&self) -> Self::Iter {
        let bare = TarIndex { file: self.index.file.clone(), members: BTreeMap::new() };
        let entry = |(path, member): (&PathBuf, &Member)| {
            let name = path.file_name()?;
            let open = (member.kind == Kind::File).then(|| TarOpen { index: bare.clone(), member: member.clone() });
            Some(Ok(ReadSourceEntry { path: self.root.join(path), node: node(name, member), open }))
        };
        self.index.members.iter().filter_map(entry).collect::<Vec<_>>().into_iter()
    }
}

/// Writes nodes as a tar file.
pub(super) struct TarWriter {
    tar: tar::Builder<File>,
    top: PathBuf,
    /// (device, inode) of files with several names -> the name written first.
    first_names: BTreeMap<(u64, u64), PathBuf>,
}

impl TarWriter {
    /// Everything is written below the directory `top`.
    pub(super) fn new(file: File, top: &str) -> Self {
        Self { tar: tar::Builder::new(file), top: PathBuf::from(top), first_names: BTreeMap::new() }
    }

    /// Appends one node; `size` is its content's length and `dump` writes it.
    pub(super) fn add(
        &mut self,
        path: &Path,
        node: &Node,
        size: u64,
        dump: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let path = self.top.join(path);
        let meta = &node.meta;
        let mut header = tar::Header::new_gnu();
        header.set_mode(permissions(meta.mode.unwrap_or(0o600)));
        header.set_uid(meta.uid.unwrap_or(0).into());
        header.set_gid(meta.gid.unwrap_or(0).into());
        header.set_size(0);
        let mut extensions: Vec<(String, Vec<u8>)> = Vec::new();
        if let Some(mtime) = meta.mtime {
            let (seconds, nanoseconds) = (mtime.as_second(), mtime.subsec_nanosecond());
            header.set_mtime(u64::try_from(seconds).unwrap_or(0));
            // The header has no fractions, and no number for what was before 1970. Both parts have the sign of the whole.
            if nanoseconds != 0 || seconds < 0 {
                let sign = if seconds < 0 || nanoseconds < 0 { "-" } else { "" };
                let text = format!("{sign}{}.{:09}", seconds.unsigned_abs(), nanoseconds.unsigned_abs());
                extensions.push(("mtime".to_owned(), text.into_bytes()));
            }
        }
        for attribute in &meta.extended_attributes {
            extensions.push((format!("{XATTR}{}", attribute.name), attribute.value.clone().unwrap_or_default()));
        }
        let key = (meta.device_id, meta.inode);
        if node.is_file() && meta.links > 1 && key.0 != 0 && key.1 != 0 {
            if let Some(first) = self.first_names.get(&key) {
                header.set_entry_type(tar::EntryType::Link);
                return self.tar.append_link(&mut header, &path, first);
            }
            self.first_names.insert(key, path.clone());
        }
        if !extensions.is_empty() {
            self.tar.append_pax_extensions(extensions.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        }
        match &node.node_type {
            NodeType::File => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(size);
                let mut writer = self.tar.append_writer(&mut header, &path)?;
                dump(&mut writer)?;
                return writer.finish();
            }
            NodeType::Symlink { .. } => {
                header.set_entry_type(tar::EntryType::Symlink);
                return self.tar.append_link(&mut header, &path, node.node_type.to_link());
            }
            NodeType::Dir => header.set_entry_type(tar::EntryType::Directory),
            NodeType::Fifo => header.set_entry_type(tar::EntryType::Fifo),
            // Tar has no sockets; a socket is bound by the process that serves it and means nothing to a restored one.
            NodeType::Socket => return Ok(()),
            NodeType::Chardev { device } | NodeType::Dev { device } => {
                let char_device = matches!(node.node_type, NodeType::Chardev { .. });
                header.set_entry_type(if char_device { tar::EntryType::Char } else { tar::EntryType::Block });
                header.set_device_major(rustix::fs::major(*device))?;
                header.set_device_minor(rustix::fs::minor(*device))?;
            }
        }
        self.tar.append_data(&mut header, &path, std::io::empty())
    }

    /// Writes the end mark and makes the file durable.
    pub(super) fn finish(self) -> std::io::Result<()> {
        self.tar.into_inner()?.sync_all()
    }
}
