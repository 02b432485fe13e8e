//! Copies of a home's own databases: taken while they are in use, each checked as a whole, laid out like a home; and whether such a copy is sound. The key
//! of the backups is not among them: it opens what they are kept in. Deliberately absent: where copies go.

use super::audit::segments;
use super::memory::archive;
use super::{Store, StoreError, StoreResult, fault};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// What of a home is copied as files: the keys without which its databases are closed, and the checkpoints that vouch for its audit log.
const FILES: [&str; 3] = ["keys/seal.key", "keys/checkpoint.key", "checkpoints"];
/// Its databases beside the memories.
const DATABASES: [&str; 2] = ["audit.db", "state.db"];

impl Store {
    /// Copies keys, checkpoints, state, audit log and every agent's memory, with what either keeps in files beside it, into an empty directory.
    ///
    /// # Errors
    /// `Io` or `Database`; `Corrupt` when a copy does not pass SQLite's own check.
    pub async fn copy_into(&self, dir: &Path) -> StoreResult<()> {
        let (home, memory, dir) = (self.home.clone(), self.inner.memory_root.clone(), dir.to_owned());
        let copied = tokio::task::spawn_blocking(move || copy(&home, &memory, &dir)).await;
        copied.map_err(|e| StoreError::Corrupt { what: "copy", detail: format!("it ended early: {e}") })?
    }
}

fn copy(home: &Path, memory: &Path, dir: &Path) -> StoreResult<()> {
    // Checkpoints before the log they vouch for: none may name a row that the copy does not have.
    for file in FILES {
        let (from, to) = (home.join(file), dir.join(file));
        super::private_dir(to.parent().unwrap_or(dir))?;
        match std::fs::copy(&from, &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => drop(other.map_err(|e| fault::io(&from, &e))?),
        }
    }
    for name in DATABASES {
        database(&home.join(name), &dir.join(name))?;
    }
    files(&home.join(segments::DIR), &dir.join(segments::DIR))?;
    for agent in memories(memory)? {
        let to = dir.join("memory").join(agent.file_name().unwrap_or_default());
        super::private_dir(&to)?;
        // The database before the files it lists: an event is in one of the two, or in both.
        database(&agent.join("memory.db"), &to.join("memory.db"))?;
        files(&agent.join(archive::DIR), &to.join(archive::DIR))?;
    }
    Ok(())
}

/// Copies the files of a directory that are never changed once they have their name.
fn files(from: &Path, to: &Path) -> StoreResult<()> {
    let entries = match std::fs::read_dir(from) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| fault::io(from, &e))?,
    };
    super::private_dir(to)?;
    for entry in entries {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).map_err(|e| fault::io(from, &e))?;
        match std::fs::copy(&path, to.join(name)) {
            // One that was about to get its name.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => drop(other.map_err(|e| fault::io(&path, &e))?),
        }
    }
    Ok(())
}

/// Directories of agents that have a memory.
pub(super) fn memories(root: &Path) -> StoreResult<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|e| fault::io(root, &e))?,
    };
    let mut found = vec![];
    for entry in entries {
        let path = entry.map_err(|e| fault::io(root, &e))?.path();
        if path.join("memory.db").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn database(from: &Path, to: &Path) -> StoreResult<()> {
    let failed = |e: rusqlite::Error| fault::database(from, e);
    let open = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    open.busy_timeout(std::time::Duration::from_secs(30)).map_err(failed)?;
    open.execute("VACUUM INTO ?1", [to.to_string_lossy()]).map_err(failed)?;
    sound(to)
}

/// Whether a copy passes SQLite's own check.
fn sound(path: &Path) -> StoreResult<()> {
    let failed = |e: rusqlite::Error| fault::database(path, e);
    let open = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    let said: String = open.query_row("PRAGMA integrity_check", [], |r| r.get(0)).map_err(failed)?;
    if said == "ok" {
        return Ok(());
    }
    Err(StoreError::Corrupt { what: "copy", detail: format!("{}: {said}", path.display()) })
}

/// Whether a directory holds a whole copy of a home.
///
/// # Errors
/// `Io`, `Database` or `Corrupt`, naming what is missing or broken.
pub fn check_copy(dir: &Path) -> StoreResult<()> {
    for name in DATABASES {
        sound(&dir.join(name))?;
    }
    for agent in memories(&dir.join("memory"))? {
        sound(&agent.join("memory.db"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_copy_of_a_home_in_use_is_a_home_with_everything_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
        let agent = crate::model::ids::AgentName::new("deployer").unwrap();
        store.memory_write(&agent, "greeting", &json!("hello"), chrono::Utc::now()).await.unwrap();
        store.audit_event("ann", "something", None, &json!({}), chrono::Utc::now()).await.unwrap();
        store.set_value("k", &json!(7)).await.unwrap();
        let keep = crate::store::memory::compact::Keep { max_bytes: 0, max_age: None };
        store.memory_compact(&agent, &keep, chrono::Utc::now()).await.unwrap().expect("due");
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        store.copy_into(&copy).await.unwrap();
        store.set_value("k", &json!(8)).await.unwrap();
        check_copy(&copy).unwrap();
        let again = Store::open(&copy, &copy.join("memory")).await.unwrap();
        assert_eq!((again.instance(), again.value("k").await.unwrap()), (store.instance(), Some(json!(7))));
        assert_eq!(again.memory_read(&agent, Some("greeting")).await.unwrap()[0].value, json!("hello"));
        let again_verified = again.memory_verify(&agent).await.unwrap();
        again.close().await;
        assert!(!copy.join("keys/backup.key").exists());
        assert!(copy.join("memory/deployer/archive").read_dir().unwrap().count() == 1, "what left a memory's log is in the copy");
        assert_eq!(again_verified, Vec::<String>::new());
        // A page that is torn is found.
        let mut bytes = std::fs::read(copy.join("state.db")).unwrap();
        // After the first page, which says how many there are.
        bytes[4096..16 * 4096].fill(0x5a);
        std::fs::write(copy.join("state.db"), bytes).unwrap();
        assert!(check_copy(&copy).is_err());
        std::fs::remove_file(copy.join("audit.db")).unwrap();
        assert!(check_copy(&copy).is_err());
    }
}
