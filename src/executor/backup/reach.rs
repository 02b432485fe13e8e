//! Whether a directory of the host is still what was judged, before its data is read or written: no link on its path, and nobody who could put one there
//! while somebody else follows it. Deliberately absent: where paths may lead (`gate::plan::mounts`), and opening what is read (`executor::straight`).

use super::{Around, BackupError, Directory, within};
use crate::engine::{Engine, EngineError};
use crate::executor::straight;
use crate::model::observed::{MountInfo, RunState};
use std::collections::BTreeMap;
use std::path::Path;

fn no_directory(directory: &Directory, detail: String) -> BackupError {
    BackupError::NoDirectory { path: directory.host.clone(), detail }
}

/// A directory that this process does not see.
pub(super) fn unseen(directory: &Directory) -> BackupError {
    let above = Path::new(directory.bound()).parent().unwrap_or(Path::new("/")).display();
    let detail = format!(
        "nobody here can tell whether a link lies on its path; it must lie below the project or a root of the policy, and a supervisor in a container must see \
         it: add `- {above}:{above}:ro` to its volumes"
    );
    no_directory(directory, detail)
}

/// One that is another than a moment ago.
pub(super) fn replaced(directory: &Directory) -> BackupError {
    no_directory(directory, "it was replaced by another one while it was read; nothing was stored, try again".to_owned())
}

/// Device and inode of the directory that was judged.
///
/// # Errors
/// `NoDirectory` that names the link that lies on its path by now.
pub(super) fn identity(directory: &Directory, here: &Path) -> Result<(u64, u64), BackupError> {
    straight::identity(here).map_err(|e| no_directory(directory, e.to_string()))
}

/// Refuses where a container that runs may write what the directory lies in: it could put a link in the directory's place.
///
/// # Errors
/// `NoDirectory` that names the containers, and the engine's.
pub(crate) async fn unmoved(around: Around<'_>, directory: &Directory) -> Result<(), BackupError> {
    let above = above(around, directory.bound()).await?;
    if above.is_empty() {
        return Ok(());
    }
    let detail = format!(
        "{} may write what it lies in, and could put a link in its place meanwhile: `stop` it first (a backup with `quiesce: pause` or `stop` holds it itself), \
         or mount the inner directory alone; x-dockwarden.backup.pre_update: false updates without this snapshot",
        above.join(", ")
    );
    Err(no_directory(directory, detail))
}

/// Directories of the host that volumes stand for (`o: bind` with a `device`): who mounts such a volume mounts the directory.
#[derive(Debug, Default)]
pub struct Devices(BTreeMap<String, String>);

impl Devices {
    /// Of all volumes.
    ///
    /// # Errors
    /// The engine's.
    pub async fn of(engine: &dyn Engine) -> Result<Self, EngineError> {
        let bound = |options: &BTreeMap<String, String>| {
            let binds = options.get("o").is_some_and(|o| o.split(',').any(|o| matches!(o.trim(), "bind" | "rbind")));
            options.get("device").filter(|_| binds).cloned()
        };
        let volumes = engine.volumes(&[]).await?.into_iter();
        Ok(Self(volumes.filter_map(|v| Some((v.name.to_string(), bound(&v.options)?))).collect()))
    }

    /// The directory of the host that a mount is of, directly or by such a volume.
    pub fn path_of<'a>(&'a self, mount: &'a MountInfo) -> Option<&'a str> {
        match mount.kind.as_str() {
            "bind" => Some(&mount.source),
            _ => mount.name.as_ref().and_then(|n| self.0.get(n)).map(String::as_str),
        }
    }

    /// Whether a mount is of a directory, of a part of it, or of what it is a part of.
    pub fn touches(&self, mount: &MountInfo, directory: &str) -> bool {
        self.path_of(mount).is_some_and(|p| within(p, directory) || within(directory, p))
    }
}

async fn above(around: Around<'_>, host: &str) -> Result<Vec<String>, BackupError> {
    let devices = Devices::of(around.engine).await?;
    let holds = |m: &MountInfo| m.writable && devices.path_of(m).is_some_and(|s| within(host, s) && !within(s, host));
    let mut found = vec![];
    for summary in around.others().await? {
        // One that is held still, or stopped, moves nothing.
        if matches!(summary.state, RunState::Running | RunState::Restarting)
            && let Some(detail) = around.engine.container(&summary.id).await?
            && detail.mounts.iter().any(holds)
        {
            found.push(detail.name);
        }
    }
    Ok(found)
}
