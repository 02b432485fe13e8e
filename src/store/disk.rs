//! Room on the file system of a directory. Deliberately absent: what follows from it.

use crate::model::disk::DiskUsage;
use std::path::Path;

/// Room of the file system that a directory is on.
///
/// # Errors
/// The system's, e.g. when it is not there.
pub fn usage(dir: &Path) -> std::io::Result<DiskUsage> {
    let found = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(DiskUsage { used: bytes(found.f_blocks.saturating_sub(found.f_bfree)), free: bytes(found.f_bavail) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_room_and_one_that_is_not_there_none() {
        let dir = tempfile::tempdir().unwrap();
        let found = usage(dir.path()).unwrap();
        assert!(found.used > 0 && found.percent() <= 100, "{found:?}");
        assert!(usage(&dir.path().join("absent")).is_err());
    }
}
