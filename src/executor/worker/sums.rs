//! The SHA-256 of each file as it was read, kept in the snapshot itself: a file beside its tree, in the form `sha256sum -c` takes. What a snapshot is compared
//! with later is then what was read at the time, and not only what its own pieces are called by. A file that was taken over from the snapshot before was not
//! read; it keeps the line it had there. Deliberately absent: comparing.

use super::Failure;
use super::mode::{Kind, to_go};
use super::repo::repository_failure;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType, SnapshotFile};
use rustic_core::{IndexedFull, LsOptions, Repository};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Ends the name of the list; the rest is the name of the tree it is of.
const SUFFIX: &str = ".sha256";
/// Hexadecimal digits of a sum.
const DIGITS: usize = 64;

/// Where the list of a tree lies.
pub(super) fn beside(tree: &Path) -> PathBuf {
    let mut name: OsString = tree.file_name().unwrap_or_default().to_owned();
    name.push(SUFFIX);
    tree.with_file_name(name)
}

/// A name as `sha256sum` writes it: in a line that begins with a backslash when it holds one, or a line end.
fn escaped(name: &Path) -> (bool, Vec<u8>) {
    let raw = name.as_os_str().as_bytes();
    let mut out = Vec::with_capacity(raw.len());
    for byte in raw {
        match byte {
            b'\\' => out.extend(b"\\\\"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            other => out.push(*other),
        }
    }
    (out.len() != raw.len(), out)
}

/// The list of a tree that is being read.
pub(super) struct Sums {
    root: OsString,
    before: Option<Listed>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The list as it will be: a line's place is known when its file is met, its sum when it was read. Of one that was not, the line stays blank, and
    /// `sha256sum` passes over it.
    text: Vec<u8>,
    /// Lines whose files may still be read.
    open: usize,
    /// Bytes of the list that was handed over.
    size: u64,
}

impl Sums {
    /// Of the tree stored under `root`, of which `before` was the last list.
    pub(super) fn new(root: &OsStr, before: Option<Listed>) -> Arc<Self> {
        let state = Mutex::new(State { text: vec![], open: 0, size: 0 });
        Arc::new(Self { root: root.to_owned(), before, state, changed: Condvar::new() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line for a file, which is met now and read later, or not at all.
    pub(super) fn line(self: &Arc<Self>, name: &Path) -> Line {
        let (marked, name) = escaped(&Path::new(&self.root).join(name));
        let mut state = self.lock();
        if marked {
            state.text.push(b'\\');
        }
        let sum = state.text.len()..state.text.len() + DIGITS;
        state.text.resize(sum.end, b' ');
        state.text.extend(b"  ");
        state.text.extend(&name);
        state.text.push(b'\n');
        state.open += 1;
        Line { sums: self.clone(), sum, name, read: false }
    }

    /// The node of the list: its size is known when every file was met. No earlier list is taken for it, whatever the clock says of both.
    pub(super) fn node(&self) -> Node {
        let mut name = self.root.clone();
        name.push(SUFFIX);
        let now = Some(Timestamp::now());
        let metadata = Metadata {
            mode: Some(to_go(0o400, Kind::File)),
            mtime: now,
            atime: now,
            ctime: now,
            uid: Some(0),
            gid: Some(0),
            size: self.lock().text.len() as u64,
            links: 1,
            ..Metadata::default()
        };
        Node::new_node(&name, NodeType::File, metadata)
    }

    /// The whole list, once the last file was read.
    pub(super) fn whole(&self) -> Vec<u8> {
        let mut state = self.lock();
        while state.open > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.size = state.text.len() as u64;
        std::mem::take(&mut state.text)
    }

    /// Bytes of the list that was handed over.
    pub(super) fn size(&self) -> u64 {
        self.lock().size
    }
}

/// The line of one file. Dropped without having been read, the file is the one of the snapshot before.
pub(super) struct Line {
    sums: Arc<Sums>,
    sum: Range<usize>,
    name: Vec<u8>,
    read: bool,
}

impl Line {
    /// The file is read now: what it was before says nothing any more.
    pub(super) fn reading(&mut self) {
        self.read = true;
    }

    /// It was read to its end.
    pub(super) fn put(&self, sum: &[u8]) {
        self.write(super::compare::hex(sum).as_bytes());
    }

    fn write(&self, digits: &[u8]) {
        self.sums.lock().text[self.sum.clone()].copy_from_slice(digits);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let before = self.sums.before.as_ref().filter(|_| !self.read).and_then(|b| b.digits(&self.name));
        if let Some(digits) = before {
            self.write(digits);
        }
        self.sums.lock().open -= 1;
        self.sums.changed.notify_all();
    }
}

/// The list of a snapshot.
pub(super) struct Listed {
    root: OsString,
    text: Vec<u8>,
    /// Where the sums are, sorted by the names that follow them.
    lines: Vec<usize>,
}

impl Listed {
    /// The list of a snapshot; `None` where it has none, as those that restic takes.
    pub(super) fn of<S: IndexedFull>(repo: &Repository<S>, snapshot: &SnapshotFile) -> Result<Option<Self>, Failure> {
        let paths: Vec<&Path> = snapshot.paths.iter().map(Path::new).collect();
        let [tree] = paths.as_slice() else { return Ok(None) };
        let (Some(above), Some(root)) = (tree.parent().and_then(Path::to_str), tree.file_name()) else { return Ok(None) };
        let list = beside(tree);
        let above = repo.node_from_snapshot_and_path(snapshot, above).map_err(repository_failure)?;
        for item in repo.ls(&above, &LsOptions::default().recursive(false)).map_err(repository_failure)? {
            let (name, node) = item.map_err(repository_failure)?;
            if Some(name.as_os_str()) == list.file_name() && node.is_file() {
                let mut text = Vec::new();
                repo.dump(&node, &mut text).map_err(repository_failure)?;
                return Ok(Some(Self::new(root, text)));
            }
        }
        Ok(None)
    }

    fn new(root: &OsStr, text: Vec<u8>) -> Self {
        let mut at = 0;
        let mut lines = vec![];
        for line in text.split_inclusive(|b| *b == b'\n') {
            let marked = usize::from(line.first() == Some(&b'\\'));
            let digits = line.get(marked..marked + DIGITS).is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit));
            if digits && line.get(marked + DIGITS..).is_some_and(|rest| rest.starts_with(b"  ") && rest.ends_with(b"\n")) {
                lines.push(at + marked);
            }
            at += line.len();
        }
        lines.sort_unstable_by(|a, b| name_at(&text, *a).cmp(name_at(&text, *b)));
        Self { root: root.to_owned(), text, lines }
    }

    fn digits(&self, name: &[u8]) -> Option<&[u8]> {
        let n = self.lines.binary_search_by(|at| name_at(&self.text, *at).cmp(name)).ok()?;
        self.text.get(self.lines[n]..self.lines[n] + DIGITS)
    }

    /// The sum of a file of the tree, in hexadecimal.
    pub(super) fn sum(&self, name: &Path) -> Option<&str> {
        let (_, name) = escaped(&Path::new(&self.root).join(name));
        std::str::from_utf8(self.digits(&name)?).ok()
    }
}

/// The name that follows a sum, as it is written.
fn name_at(text: &[u8], sum: usize) -> &[u8] {
    let rest = text.get(sum + DIGITS + 2..).unwrap_or_default();
    rest.split(|b| *b == b'\n').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_line_for_each_file_that_was_read_or_taken_over_and_a_blank_one_for_the_others() {
        let root = OsStr::new("data");
        let first = Sums::new(root, None);
        let names = ["a", "b/c", "odd\\na\nme", "gone"].map(PathBuf::from);
        let node = {
            let mut lines: Vec<Line> = names.iter().map(|n| first.line(n)).collect();
            let node = first.node();
            for (n, line) in lines.iter_mut().take(3).enumerate() {
                line.reading();
                line.put(&[u8::try_from(n).unwrap() + 1; 32]);
            }
            lines[3].reading();
            node
        };
        let text = first.whole();
        assert_eq!(node.meta.size, text.len() as u64, "its size is known before its content");
        let shown = String::from_utf8(text.clone()).unwrap();
        let [one, two, three] = ["01", "02", "03"].map(|d| d.repeat(32));
        let blank = " ".repeat(64);
        assert_eq!(shown, format!("{one}  data/a\n{two}  data/b/c\n\\{three}  data/odd\\\\na\\nme\n{blank}  data/gone\n"));

        let listed = Listed::new(root, text);
        assert_eq!(names.each_ref().map(|n| listed.sum(n)), [Some(one.as_str()), Some(&two), Some(&three), None]);
        assert_eq!(listed.sum(Path::new("b")), None);
        // The next one: `a` is read again and cannot be, the others are as they were.
        let next = Sums::new(root, Some(listed));
        let mut lines: Vec<Line> = names.iter().map(|n| next.line(n)).collect();
        lines[0].reading();
        drop(lines);
        let shown = String::from_utf8(next.whole()).unwrap();
        assert_eq!(shown, format!("{blank}  data/a\n{two}  data/b/c\n\\{three}  data/odd\\\\na\\nme\n{blank}  data/gone\n"));
    }

    #[test]
    fn what_is_no_list_has_no_sums() {
        for text in ["", "\n", "abc  data/a\n", &format!("{}  data/a", "0".repeat(64)), &format!("{} data/a\n", "0".repeat(64))] {
            assert_eq!(Listed::new(OsStr::new("data"), text.into()).sum(Path::new("a")), None, "{text:?}");
        }
    }
}
