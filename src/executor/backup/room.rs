//! Space before and while something is written: whatever backups, restores, drills and exports write, the last tenth of a disk is left to others.
//! Deliberately absent: making space.

use super::{BackupError, BackupHouse};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Bytes written between two looks at the disk, where the size to come is not known.
const LOOK: usize = 16 << 20;

/// Refuses what would reach into the last tenth of the disk that `path` is on, or will be on.
pub(crate) fn at(path: &Path, needed: u64) -> std::result::Result<(), BackupError> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let disk = rustix::fs::statvfs(there).map_err(|e| BackupError::io(there, &e.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let (free, total) = (bytes(disk.f_bavail), bytes(disk.f_blocks));
    if leaves_a_tenth(free, total, needed) {
        return Ok(());
    }
    let mebibytes = |bytes: u64| bytes >> 20;
    Err(BackupError::NoRoom {
        path: there.display().to_string(),
        needed: mebibytes(needed),
        free: mebibytes(free),
        total: mebibytes(total),
    })
}

/// Whether more than a tenth is free when so much more is written. Pure.
pub(crate) fn leaves_a_tenth(free: u64, total: u64, needed: u64) -> bool {
    free.saturating_sub(needed) > total / 10
}

impl BackupHouse {
    /// Bytes of the repository's files; 0 before the first backup, `None` on another host.
    ///
    /// # Errors
    /// `Io`.
    pub fn size(&self) -> std::result::Result<Option<u64>, BackupError> {
        if self.remote.is_some() {
            return Ok(None);
        }
        let (mut bytes, mut open) = (0u64, vec![self.repo.clone()]);
        while let Some(dir) = open.pop() {
            let entries = match std::fs::read_dir(&dir) {
                // Not there yet, or pruned since it was listed.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(|e| BackupError::io(&dir, &e))?,
            };
            for entry in entries {
                let entry = entry.map_err(|e| BackupError::io(&dir, &e))?;
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => open.push(entry.path()),
                    Ok(meta) => bytes = bytes.saturating_add(meta.len()),
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(BackupError::io(&entry.path(), &e)),
                }
            }
        }
        Ok(Some(bytes))
    }

    /// Refuses to write into the last tenth of the disk the repository is on.
    ///
    /// # Errors
    /// `DiskFull`, or `Io` when the disk cannot be asked.
    pub fn room(&self) -> std::result::Result<(), BackupError> {
        if self.remote.is_some() {
            // The other host says it itself.
            return Ok(());
        }
        let there = self.repo.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let disk = rustix::fs::statvfs(there).map_err(|e| BackupError::io(there, &e.into()))?;
        let mebibytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize) >> 20;
        let (free, total) = (mebibytes(disk.f_bavail), mebibytes(disk.f_blocks));
        if leaves_a_tenth(free, total, 0) {
            Ok(())
        } else {
            Err(BackupError::DiskFull { repo: self.repo.display().to_string(), free, total })
        }
    }
}

/// A file that a stream of unknown length goes into; writing fails before the disk is full.
pub(super) struct Spooled {
    file: tokio::fs::File,
    look: Box<dyn FnMut() -> Result<()> + Send>,
    left: usize,
}

impl Spooled {
    /// `path` is the file's own.
    pub(super) fn new(file: tokio::fs::File, path: &Path) -> Self {
        let path: PathBuf = path.to_owned();
        let look = move || at(&path, LOOK as u64).map_err(|e| Error::new(ErrorKind::StorageFull, e.to_string()));
        Self { file, look: Box::new(look), left: 0 }
    }
}

impl AsyncWrite for Spooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        if self.left == 0 {
            (self.look)()?;
            self.left = LOOK;
        }
        let most = bytes.len().min(self.left);
        let written = ready!(Pin::new(&mut self.file).poll_write(cx, &bytes[..most]))?;
        self.left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn what_is_to_come_counts_and_the_last_tenth_is_left_alone() {
        assert!(leaves_a_tenth(50, 100, 0) && leaves_a_tenth(50, 100, 39));
        assert!(!leaves_a_tenth(50, 100, 40) && !leaves_a_tenth(50, 100, 60) && !leaves_a_tenth(10, 100, 0));
        let dir = tempfile::tempdir().unwrap();
        at(&dir.path().join("not/yet"), 0).unwrap();
        let full = at(dir.path(), u64::MAX).unwrap_err().to_string();
        assert!(full.contains(&dir.path().display().to_string()) && full.contains("last tenth"), "{full}");
    }

    #[tokio::test]
    async fn a_stream_of_unknown_length_ends_before_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let mut looks = 0;
        let look = Box::new(move || {
            looks += 1;
            if looks < 3 { Ok(()) } else { Err(Error::new(ErrorKind::StorageFull, "nearly full")) }
        });
        let mut spool = Spooled { file: tokio::fs::File::create(&path).await.unwrap(), look, left: 0 };
        let error = spool.write_all(&vec![1; 3 * LOOK]).await.unwrap_err();
        spool.flush().await.unwrap();
        assert_eq!((error.kind(), std::fs::metadata(&path).unwrap().len()), (ErrorKind::StorageFull, 2 * LOOK as u64));
    }
}
