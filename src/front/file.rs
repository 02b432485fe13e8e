//! The routes file: read when it changed, kept by write-rename. A file that cannot be used changes nothing and is told in the state.

use super::table::Table;
use crate::model::front::{MAX_ROUTES, Routes};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What tells one version of the file from the next: a write-rename makes a new inode.
type Stamp = (u64, i64, i64, u64);

/// See the module.
#[derive(Debug)]
pub(super) struct RoutesFile {
    path: PathBuf,
    seen: Mutex<Option<Stamp>>,
}

impl RoutesFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(None) }
    }

    fn stamp(&self) -> std::io::Result<Stamp> {
        let m = std::fs::metadata(&self.path)?;
        Ok((m.ino(), m.mtime(), m.mtime_nsec(), m.len()))
    }

    /// Reads the file if it is another than last time.
    pub(super) fn load(&self, table: &Table) {
        // Held to the end: an apply in between must not be overwritten by what was read before it.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.display();
        let stamp = match self.stamp() {
            Ok(stamp) => stamp,
            Err(e) => {
                *seen = None;
                return table.problem(format!("{path}: {e}"));
            }
        };
        if *seen == Some(stamp) {
            return;
        }
        *seen = Some(stamp);
        match self.read() {
            Ok(routes) => table.set(routes),
            Err(why) => table.problem(format!("{path}: {why}")),
        }
    }

    fn read(&self) -> Result<Routes, String> {
        let mut text = String::new();
        let file = std::fs::File::open(&self.path).map_err(|e| e.to_string())?;
        file.take(MAX_ROUTES as u64 + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
        Routes::parse(&text)
    }

    /// Puts routes in force once they are durable.
    ///
    /// # Errors
    /// `Err(Ok(revision))` when those in force are newer, `Err(Err(cause))` when they cannot be used or written.
    pub(super) fn apply(&self, table: &Table, routes: Routes) -> Result<(), Result<u64, String>> {
        routes.check().map_err(Err)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = table.routes();
        if routes.revision < now.revision || (routes.revision == now.revision && routes != now) {
            return Err(Ok(now.revision));
        }
        self.write(&routes).map_err(|e| Err(format!("{} cannot be written: {e}", self.path.display())))?;
        *seen = self.stamp().ok();
        table.set(routes);
        Ok(())
    }

    fn write(&self, routes: &Routes) -> std::io::Result<()> {
        let draft = self.path.with_extension("new");
        let mut file = std::fs::File::create(&draft)?;
        file.write_all(serde_json::to_string(routes)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.path)?;
        match self.path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}
