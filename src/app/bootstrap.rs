//! A whole instance out of its backup repository, for the day when the home is gone: databases, keys, memories and the repository itself are put back before
//! any supervisor starts. Deliberately absent: anything on the engine; the supervisor that starts next matches what runs with what it knows, and removes
//! nothing before.

use super::{AppError, lock};
use crate::executor::backup::copies::lock_of_reader;
use crate::executor::backup::{BackupError, BackupHouse, Failure, INSTANCE, SnapshotInfo, SnapshotState, records};
use crate::model::config::Config;
use crate::model::target::{Location, Target};
use crate::store::{Store, StoreError, copy};
use chrono::Utc;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Why an instance was not brought back. Nothing is taken into use before everything was read and checked.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The home cannot be made or is in use.
    #[error(transparent)]
    App(#[from] AppError),
    /// There is an instance already.
    #[error("{0} holds an instance already: a restore never overwrites; move it away, or set DOCKWARDEN_HOME to an empty place")]
    NotEmpty(String),
    /// The repository.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The repository has none.
    #[error("the repository {0} holds no whole copy of an instance: it has {1} snapshots, none of source {INSTANCE}")]
    NoCopy(String, usize),
    /// Not a place.
    #[error("{0:?} is neither a place nor a copy of dockwarden.toml: {1}")]
    NoPlace(String, String),
    /// The configuration says another place on another host.
    #[error(
        "dockwarden.toml has the repository at {0}, and this would bring back {1}: name {0}, or take [backup.repository] out for the restore and copy back later"
    )]
    Elsewhere(String, String),
    /// What came back is not what was stored.
    #[error("the copy in snapshot {0} does not come back equal: {1}")]
    Differs(String, String),
    /// A database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BootstrapError {
    let path = path.display().to_string();
    move |e| BootstrapError::Io(path, e)
}

/// What was brought back.
#[derive(Debug)]
pub struct Bootstrapped {
    /// Instance.
    pub instance: String,
    /// When the copy was taken.
    pub at: chrono::DateTime<Utc>,
    /// Snapshots of volumes and other data in the repository, all recorded again.
    pub snapshots: usize,
}

/// Brings the newest whole copy of an instance back into an empty home.
///
/// # Errors
/// See [`BootstrapError`]; the home is then as empty as before, but for its lock.
pub async fn bootstrap(config: &Config, exe: PathBuf, repository: &str, key: &Path) -> Result<Bootstrapped, BootstrapError> {
    let target = named(config, repository)?;
    let home = &config.home;
    let _lock = lock(home)?;
    if home.join("state.db").exists() {
        return Err(BootstrapError::NotEmpty(home.display().to_string()));
    }
    if any_file(&config.memory) {
        return Err(BootstrapError::NotEmpty(config.memory.display().to_string()));
    }
    let memory_mib = config.settings.backup.worker_memory_mib;
    let own = BackupHouse { memory_mib, ..BackupHouse::of(home, exe, super::BACKUP_WITHIN) };
    let house = BackupHouse { key_file: key.to_owned(), ..own.clone() }.at(target.clone(), &lock_of_reader(home), None);
    let listed = house.list().await?;
    let whole = |s: &&SnapshotInfo| s.volume.as_deref() == Some(INSTANCE) && s.state == SnapshotState::Complete;
    let newest = listed.iter().find(whole).ok_or_else(|| BootstrapError::NoCopy(house.place(), listed.len()))?;
    let aside = home.join("restoring");
    match std::fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&aside)(e)),
        _ => std::fs::create_dir(&aside).map_err(io(&aside))?,
    }
    // A home of ours may be reached through a link; a restore follows none.
    let aside = aside.canonicalize().map_err(io(&aside))?;
    house.restore(&newest.snapshot_id, &aside).await?;
    if let Some(first) = house.verify(&newest.snapshot_id, &aside).await?.first() {
        return Err(BootstrapError::Differs(newest.snapshot_id.to_string(), first.clone()));
    }
    copy::check_copy(&aside)?;
    bring_repository(config, &target, &house, &own).await?;
    take_into_use(&aside, config, key, &own.key_file)?;
    let bootstrapped = record(config, newest, &listed).await?;
    std::fs::remove_dir_all(&aside).map_err(io(&aside))?;
    Ok(bootstrapped)
}

/// The place that is meant: a copy by its name, or a place as it is written; what the configuration says of the way there holds for both.
fn named(config: &Config, text: &str) -> Result<Target, BootstrapError> {
    let settings = &config.settings.backup;
    if let Some(copy) = settings.copies.get(text) {
        return Ok(copy.target());
    }
    let at: Location = match text.parse() {
        Ok(at) => at,
        // A path of any kind, as a shell completes it.
        Err(_) if Path::new(text).exists() => Location::Directory(std::path::absolute(text).map_err(io(Path::new(text)))?),
        Err(why) => return Err(BootstrapError::NoPlace(text.to_owned(), why)),
    };
    if at.is_remote() && !cfg!(feature = "backup-remote") {
        return Err(BootstrapError::Backup(BackupError::Worker(Failure::RemoteNotBuilt)));
    }
    let known = settings.repository.iter().cloned().chain(settings.copies.values().map(crate::model::target::CopySettings::target));
    Ok(known.into_iter().find(|t| t.at == at).unwrap_or_else(|| Target::plain(at)))
}

/// Puts the repository where the supervisor will look for it, unless it lies there: its files as they are, with the ids they have.
async fn bring_repository(config: &Config, from: &Target, house: &BackupHouse, own: &BackupHouse) -> Result<(), BootstrapError> {
    let to = match &config.settings.backup.repository {
        Some(target) if target.at == from.at => return Ok(()),
        Some(Target { at: Location::Directory(path), .. }) => path.clone(),
        Some(target) => return Err(BootstrapError::Elsewhere(target.at.to_string(), from.at.to_string())),
        None => own.repo.clone(),
    };
    match &from.at {
        Location::Directory(path) if path.canonicalize().ok() == to.canonicalize().ok() => Ok(()),
        Location::Directory(path) => copy_tree(path, &to),
        Location::S3 { .. } | Location::Sftp { .. } => {
            // A second try begins anew: nothing is a repository before it is whole.
            let aside = to.with_extension("fetching");
            match std::fs::remove_dir_all(&aside) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&aside)(e)),
                _ => std::fs::create_dir_all(&aside).map_err(io(&aside))?,
            }
            house.fetch(&aside).await?;
            match std::fs::remove_dir_all(&to) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(&to)(e)),
                _ => std::fs::rename(&aside, &to).map_err(io(&to)),
            }
        }
    }
}

/// Whether there is a file below a directory. Empty directories are nothing: in a container they are where the volumes of memories are mounted.
fn any_file(dir: &Path) -> bool {
    let is_file = |e: std::fs::DirEntry| !e.file_type().is_ok_and(|t| t.is_dir()) || any_file(&e.path());
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_file))
}

/// Moves what was checked into its places; the state database last, since it is what makes a home one.
fn take_into_use(aside: &Path, config: &Config, key: &Path, key_file: &Path) -> Result<(), BootstrapError> {
    let home = &config.home;
    let keys = home.join("keys");
    std::fs::create_dir_all(&keys).map_err(io(&keys))?;
    if key.canonicalize().ok() != key_file.canonicalize().ok() {
        std::fs::copy(key, key_file).map_err(io(key_file))?;
    }
    std::fs::set_permissions(key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(io(key_file))?;
    if aside.join("memory").is_dir() {
        copy_tree(&aside.join("memory"), &config.memory)?;
    }
    if aside.join("audit").is_dir() {
        copy_tree(&aside.join("audit"), &home.join("audit"))?;
    }
    for name in ["keys/seal.key", "keys/checkpoint.key", "checkpoints", "audit.db", "state.db"] {
        let (from, to) = (aside.join(name), home.join(name));
        if from.exists() {
            std::fs::rename(&from, &to).map_err(io(&to))?;
        }
    }
    Ok(())
}

/// Copies a tree of directories and files with their modes; what is there already is replaced, so that a second try goes on.
fn copy_tree(from: &Path, to: &Path) -> Result<(), BootstrapError> {
    let mode = std::fs::metadata(from).map_err(io(from))?.permissions();
    std::fs::create_dir_all(to).map_err(io(to))?;
    for entry in std::fs::read_dir(from).map_err(io(from))? {
        let entry = entry.map_err(io(from))?;
        let (below, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(io(&below))?.is_dir() {
            copy_tree(&below, &target)?;
        } else {
            match std::fs::remove_file(&target) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&target)(e)),
                _ => std::fs::copy(&below, &target).map_err(io(&target))?,
            };
        }
    }
    std::fs::set_permissions(to, mode).map_err(io(to))
}

/// Records snapshots that were taken after the copy, and the restore itself with the last checkpoint that vouches for the log before it.
async fn record(config: &Config, newest: &SnapshotInfo, listed: &[SnapshotInfo]) -> Result<Bootstrapped, BootstrapError> {
    let store = Store::open(&config.home, &config.memory).await?;
    let host = format!("dockwarden-{}", store.instance());
    let mut snapshots = 0;
    for s in listed.iter().filter(|s| s.host == host) {
        let Some(record) = records::of(s) else { continue };
        snapshots += 1;
        if store.backup(&s.snapshot_id).await?.is_none() {
            store.put_backup(&record).await?;
        }
    }
    // Of a copy the ids are its own: records of snapshots that are not in it would promise what is not there.
    let there: BTreeSet<&str> = listed.iter().map(|s| s.snapshot_id.as_str()).collect();
    let gone = store.backups(None, None, usize::MAX).await?.into_iter().map(|b| b.snapshot_id).filter(|id| !there.contains(id.as_str()));
    store.forget_backups(gone.collect()).await?;
    let checkpoints = std::fs::read_to_string(config.home.join("checkpoints")).unwrap_or_default();
    let last = checkpoints.lines().next_back().unwrap_or("none").to_owned();
    let detail = json!({"snapshot": newest.snapshot_id, "taken_at": newest.at, "last_checkpoint": last});
    store.audit_event("operator", "restored", None, &detail, Utc::now()).await?;
    let instance = store.instance().to_owned();
    store.close().await;
    Ok(Bootstrapped { instance, at: newest.at, snapshots })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_whose_memories_are_empty_mount_points_is_empty_and_one_with_a_memory_is_not() {
        let dir = tempfile::tempdir().expect("directory");
        let memory = dir.path().join("memory");
        assert!(!any_file(&memory), "absent");
        std::fs::create_dir_all(memory.join("observer")).expect("made");
        std::fs::create_dir_all(memory.join("deployer")).expect("made");
        assert!(!any_file(&memory));
        std::fs::write(memory.join("deployer/memory.db"), "x").expect("written");
        assert!(any_file(&memory));
    }
}
