//! What is fed into a snapshot: a wrapper around any source that remembers everything that could not be read. The library only logs such
//! things and goes on; a snapshot must know that it is partial. Deliberately absent: deciding what a partial snapshot is good for.

use super::repo::{Counter, error_text, io};
use super::sums::{self, Line, Sums};
use super::walk::{attach, node_of, xattrs};
use super::{Failure, SnapshotState};
use crate::executor::straight;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::Node;
use rustic_core::{ReadSource, ReadSourceEntry, ReadSourceOpen, RusticResult};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Unreadable paths named in a report; the rest is counted.
const NAMED: usize = 100;

/// What happened while a source was read.
#[derive(Debug, Default)]
pub(super) struct ReadLog {
    problems: Mutex<Vec<String>>,
    more: AtomicU64,
    vanished: AtomicU64,
    files: AtomicU64,
    dirs: AtomicU64,
}

impl ReadLog {
    /// Remembers what could not be read.
    pub(super) fn problem(&self, text: String) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < NAMED {
            problems.push(text);
        } else {
            self.more.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Something was removed between its listing and its turn: nothing is missing of what is there. The root itself is looked at by [`Self::root`].
    pub(super) fn vanished(&self) {
        self.vanished.fetch_add(1, Ordering::Relaxed);
    }
    /// A source whose root went away while it was read was not read whole, however quietly each of its files went.
    pub(super) fn root(&self, root: &Path) {
        if self.vanished.load(Ordering::Relaxed) > 0 && !root.is_dir() {
            self.problem(".: the directory itself was removed while it was read".to_owned());
        }
    }
    /// State and the list for the report. `files` and `dirs` are what the snapshot holds: fewer than were handed over means that the
    /// library dropped some for a reason it only logged.
    pub(super) fn verdict(&self, files: u64, dirs: u64) -> (SnapshotState, Vec<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let named = problems.len() as u64 + self.more.load(Ordering::Relaxed);
        let missing = self.files.load(Ordering::Relaxed).saturating_sub(files) + self.dirs.load(Ordering::Relaxed).saturating_sub(dirs);
        problems.sort();
        match self.more.load(Ordering::Relaxed) {
            0 => {}
            more => problems.push(format!("and {more} more")),
        }
        if missing > named {
            problems.push(format!("{} entries could not be stored", missing - named));
        }
        let state = if problems.is_empty() { SnapshotState::Complete } else { SnapshotState::Partial };
        (state, problems)
    }
}

/// A source that is watched while it is read, with the root directory itself as its first entry (the library's own walk leaves it out,
/// and with it the owner and mode of a volume), and the list of what was read as its last.
pub(super) struct Watched<R> {
    inner: R,
    places: Places,
    root_node: Node,
    log: Arc<ReadLog>,
    counter: Counter,
    sums: Arc<Sums>,
}

/// Where a tree is read and what it is called in its snapshot.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// All of its entries lie under this path.
    pub(super) root: PathBuf,
    /// What that is stored as.
    pub(super) stored: PathBuf,
}

impl Places {
    /// A path below the root, and what it is stored as.
    fn of(&self, path: &Path) -> (PathBuf, PathBuf) {
        let below = path.strip_prefix(&self.root).unwrap_or(path).to_owned();
        let stored = if below.as_os_str().is_empty() { self.stored.clone() } else { self.stored.join(&below) };
        (below, stored)
    }
}

impl<R> Watched<R> {
    /// What was read of `inner` is listed in `sums`.
    pub(super) fn new(inner: R, places: Places, root_node: Node, log: Arc<ReadLog>, counter: Counter, sums: Arc<Sums>) -> Self {
        Self { inner, places, root_node, log, counter, sums }
    }
}

impl<R: ReadSource> ReadSource for Watched<R>
where
    R::Open: Send,
{
    type Open = WatchedOpen<R::Open>;
    type Iter = WatchedIter<R::Iter>;

    fn size(&self) -> RusticResult<Option<u64>> {
        self.inner.size()
    }

    fn entries(&self) -> Self::Iter {
        WatchedIter {
            first: Some((self.places.stored.clone(), self.root_node.clone())),
            inner: self.inner.entries(),
            places: self.places.clone(),
            log: self.log.clone(),
            counter: self.counter.clone(),
            sums: Some(self.sums.clone()),
        }
    }
}

pub(super) struct WatchedIter<I> {
    first: Option<(PathBuf, Node)>,
    inner: I,
    places: Places,
    log: Arc<ReadLog>,
    counter: Counter,
    /// Until its own entry was handed over, the last one.
    sums: Option<Arc<Sums>>,
}

impl<I, O> Iterator for WatchedIter<I>
where
    I: Iterator<Item = RusticResult<ReadSourceEntry<O>>>,
    O: ReadSourceOpen,
{
    type Item = RusticResult<ReadSourceEntry<WatchedOpen<O>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((path, node)) = self.first.take() {
            self.log.dirs.fetch_add(1, Ordering::Relaxed);
            return Some(Ok(ReadSourceEntry { path, node, open: None }));
        }
        let entry = match self.inner.next() {
            Some(Ok(entry)) => entry,
            Some(Err(error)) => {
                self.log.problem(error_text(&error).replace(&format!("{}/", self.places.root.display()), ""));
                return Some(Err(error));
            }
            None => {
                let sums = self.sums.take()?;
                let (path, node) = (sums::beside(&self.places.stored), sums.node());
                return Some(Ok(ReadSourceEntry { path, node, open: Some(WatchedOpen::Sums(sums)) }));
            }
        };
        if entry.node.is_dir() {
            self.log.dirs.fetch_add(1, Ordering::Relaxed);
        } else {
            self.log.files.fetch_add(1, Ordering::Relaxed);
            self.counter.add(0, 1);
        }
        let (below, path) = self.places.of(&entry.path);
        let (size, log) = (entry.node.meta.size, self.log.clone());
        let open = entry.open.zip(self.sums.as_ref()).map(|(inner, sums)| {
            let (line, name) = (sums.line(&below), below.display().to_string());
            WatchedOpen::File(WatchedFile { inner, name, size, log, line })
        });
        Some(Ok(ReadSourceEntry { path, node: entry.node, open }))
    }
}

/// What is to be read.
pub(super) enum WatchedOpen<O> {
    /// A file of the tree.
    File(WatchedFile<O>),
    /// The list of what was read of the others: handed over after them, so they are read before it or beside it.
    Sums(Arc<Sums>),
}

pub(super) struct WatchedFile<O> {
    inner: O,
    name: String,
    size: u64,
    log: Arc<ReadLog>,
    line: Line,
}

impl<O: ReadSourceOpen> ReadSourceOpen for WatchedOpen<O> {
    type Reader = WatchedReader<O::Reader>;

    fn open(self) -> RusticResult<Self::Reader> {
        let mut file = match self {
            Self::File(file) => file,
            Self::Sums(sums) => return Ok(WatchedReader::Sums(Cursor::new(sums.whole()))),
        };
        file.line.reading();
        match file.inner.open() {
            Ok(inner) => {
                let WatchedFile { name, size, log, line, .. } = file;
                Ok(WatchedReader::File(FileReader { inner, left: size, name, log, hash: Sha256::new(), line: Some(line) }))
            }
            Err(error) => {
                let cause = std::error::Error::source(&*error);
                if cause.and_then(|c| c.downcast_ref::<std::io::Error>()).is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
                    // Counted when it was handed over; the library leaves it out.
                    file.log.files.fetch_sub(1, Ordering::Relaxed);
                    file.log.vanished();
                    return Err(error);
                }
                let cause = cause.map_or_else(|| error_text(&error), ToString::to_string);
                file.log.problem(format!("{}: {cause}", file.name));
                Err(error)
            }
        }
    }
}

pub(super) enum WatchedReader<R> {
    /// A file of the tree.
    File(FileReader<R>),
    /// The list of what was read of the others.
    Sums(Cursor<Vec<u8>>),
}

impl<R: Read> Read for WatchedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::File(file) => file.read(buf),
            Self::Sums(text) => text.read(buf),
        }
    }
}

/// Reads exactly the size the directory entry told. A file that grows meanwhile is stored as it was when it was met, so that its recorded
/// size and its content agree; one that shrinks is a problem.
pub(super) struct FileReader<R> {
    inner: R,
    left: u64,
    name: String,
    log: Arc<ReadLog>,
    hash: Sha256,
    /// Until an error: what is read in part is stored nowhere.
    line: Option<Line>,
}

impl<R> Drop for FileReader<R> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take().filter(|_| self.left == 0) {
            line.put(&self.hash.finalize_reset());
        }
    }
}

impl<R: Read> FileReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buf[..most]) {
            Ok(0) => {
                self.log.problem(format!("{}: shrank by {} bytes while it was read", self.name, self.left));
                self.left = 0;
                Ok(0)
            }
            Ok(n) => {
                self.hash.update(&buf[..n]);
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                self.line = None;
                self.log.problem(format!("{}: {e}", self.name));
                Err(e)
            }
        }
    }
}

/// The node of an open directory that becomes the root of a snapshot, under the name `name`; `path` is what it is called by.
pub(super) fn root_node(dir: &File, path: &Path, name: &str) -> Result<Node, Failure> {
    let meta = dir.metadata().map_err(|e| io(path, &e))?;
    let place = straight::through(dir).join(".");
    let mut node = node_of(&meta, &place, OsStr::new(name)).map_err(|e| io(path, &e))?;
    attach(&mut node, xattrs(&place).map_err(|e| io(path, &e))?);
    Ok(node)
}

/// Seconds and nanoseconds as the library's time; `None` beyond its range.
pub(super) fn timestamp(seconds: i64, nanoseconds: i64) -> Option<Timestamp> {
    Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
}
