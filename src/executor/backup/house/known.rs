//! Which repositories were found at a place: a disk that is not mounted leaves an empty directory behind, and a repository made there would pass for a good copy
//! of everything. One file beneath the home for each place, an id on each line; the home's databases do not hold it, since they are brought to other hosts.
//! Deliberately absent: looking whether it is there.

use super::{BackupError, BackupHouse};
use sha2::{Digest, Sha256};
use std::io::ErrorKind;
use std::path::PathBuf;

impl BackupHouse {
    /// File that says what was found at its place.
    pub(super) fn known_file(&self) -> PathBuf {
        let digest = Sha256::digest(self.place().as_bytes());
        let name: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        self.beside.join("repositories").join(name)
    }

    /// Ids of the repositories that were found there.
    pub(super) fn known(&self) -> Result<Vec<String>, BackupError> {
        let path = self.known_file();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(vec![]),
            Err(e) => Err(BackupError::io(&path, &e)),
        }
    }

    /// Remembers what was found.
    pub(super) fn now_known(&self, id: &str) -> Result<(), BackupError> {
        if self.known()?.iter().any(|known| known == id) {
            return Ok(());
        }
        let path = self.known_file();
        let text = format!("# The backup repository that was found at {}: another one, or none, is an error there.\n{id}\n", self.place());
        let aside = path.with_extension("new");
        // Renamed into its place: half an id would keep us from our own repository.
        let written = std::fs::create_dir_all(self.beside.join("repositories"))
            .and_then(|()| std::fs::write(&aside, text))
            .and_then(|()| std::fs::rename(&aside, &path));
        written.map_err(|e| BackupError::io(&path, &e))
    }
}
