//! Room kept for a full disk: a file of 64 MiB beside the databases, given up when the disk fills so that what helps (restart, rollback, stop, prune and
//! what people ask for at the command line) can still be recorded, and taken again when there is room. Deliberately absent: which calls those are.

use super::disk::usage;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// File under the home.
const FILE: &str = "reserve";
/// Bytes kept: some ten thousand audit rows and journal records.
const SIZE: u64 = 64 * 1024 * 1024;
/// On a small file system no more than this part of it is kept.
const PART: u64 = 16;
/// The reserve is given up when less than this part of it is free beside it: a batch of writes must fit.
const MARGIN: u64 = 8;
/// Pause between looks for room to take the reserve again.
const AGAIN: Duration = Duration::from_secs(1);

/// The file is there.
const HELD: u8 = 0;
/// Given up: the disk is full.
const GIVEN_UP: u8 = 1;
/// It could not be made for another reason than want of room; the databases say themselves when they cannot write.
const NONE: u8 = 2;

/// Where the reserve stands.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    size: u64,
    state: AtomicU8,
    looked: Mutex<Instant>,
}

impl Reserve {
    /// Takes the reserve of a home, if there is room for it.
    pub(super) fn open(home: &Path) -> Self {
        let total = usage(home).map_or(u64::MAX, |u| u.used.saturating_add(u.free));
        let size = SIZE.min(total / PART);
        let reserve = Self { path: home.join(FILE), size, state: AtomicU8::new(GIVEN_UP), looked: Mutex::new(Instant::now()) };
        if std::fs::metadata(&reserve.path).is_ok_and(|m| m.len() == size) {
            reserve.state.store(HELD, Ordering::Release);
        } else {
            reserve.take();
        }
        reserve
    }

    /// The disk is full and the reserve is what there is left.
    pub(super) fn is_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN_UP
    }

    /// Before writes: gives the reserve up when the disk is about to be full, takes it again when there is room. One system call as a rule.
    pub(super) fn look(&self) {
        match self.state.load(Ordering::Acquire) {
            HELD if self.free() < self.size / MARGIN => self.give_up("little room is left"),
            GIVEN_UP => {
                let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
                if looked.elapsed() >= AGAIN {
                    *looked = Instant::now();
                    self.take();
                }
            }
            _ => {}
        }
    }

    /// A write found the disk full.
    pub(super) fn give_up(&self, why: &str) {
        if self.state.compare_exchange(HELD, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        match std::fs::remove_file(&self.path) {
            Ok(()) => tracing::error!(
                freed = self.size,
                why,
                "the disk of the home is full: until there is room only restart, rollback, stop, prune and calls from the command line are taken"
            ),
            Err(e) => {
                tracing::error!(path = %self.path.display(), error = %e, "the disk of the home is full and its reserve could not be given up")
            }
        }
    }

    fn free(&self) -> u64 {
        // Unknown is no reason to refuse work: a write that fails says so.
        self.path.parent().and_then(|home| usage(home).ok()).map_or(u64::MAX, |u| u.free)
    }

    fn take(&self) {
        // Twice the margin: what is taken must not be given up at once.
        if self.free() < self.size + 2 * (self.size / MARGIN) {
            return;
        }
        match self.fill() {
            Ok(()) => {
                if self.state.swap(HELD, Ordering::AcqRel) == GIVEN_UP {
                    tracing::debug!(bytes = self.size, "room is kept for a full disk");
                }
            }
            Err(e) => {
                // Half a file is no reserve, and may be what fills the disk. There may be none at all, which is as good.
                let removed = std::fs::remove_file(&self.path);
                if e.kind() != std::io::ErrorKind::StorageFull {
                    self.state.store(NONE, Ordering::Release);
                    tracing::warn!(path = %self.path.display(), error = %e, ?removed, "no room could be kept for a full disk");
                }
            }
        }
    }

    fn fill(&self) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.size) {
            Ok(()) => Ok(()),
            // A file system that cannot promise room gets bytes.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
                let zeros = vec![0; 1 << 20];
                let mut left = self.size;
                while left > 0 {
                    let part = left.min(zeros.len() as u64);
                    file.write_all(&zeros[..usize::try_from(part).unwrap_or(zeros.len())])?;
                    left -= part;
                }
                file.sync_all()
            }
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_taken_given_up_once_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path());
        let file = dir.path().join(FILE);
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).unwrap()) * 512;
        assert!(!reserve.is_given_up());
        assert!(blocks() >= reserve.size, "the room is really taken: {} of {}", blocks(), reserve.size);
        reserve.look();
        assert!(file.exists(), "there is room");
        reserve.give_up("a test");
        reserve.give_up("a test");
        assert!(reserve.is_given_up() && !file.exists());
        reserve.look();
        assert!(reserve.is_given_up(), "not looked for again at once");
        *reserve.looked.lock().unwrap() = Instant::now() - AGAIN;
        reserve.look();
        assert!(!reserve.is_given_up() && file.exists());
        let again = Reserve::open(dir.path());
        assert!(!again.is_given_up());
    }
}
