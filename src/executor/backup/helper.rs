//! How data leaves and enters a volume: the host path where it is proven to be the same data, otherwise the engine's archive calls on a
//! created, never started container of an empty image. Archives pass through a spool file. Deliberately absent: what is in them.

use super::room::Spooled;
use super::{BackupError, Hands};
use crate::engine::{ContainerSpec, Engine, EngineError, EngineMount, VolumeCreate};
use crate::gate::Permit;
use crate::gate::request::{RequestFacts, assert_own};
use crate::model::ids::{EngineName, ImageRef};
use crate::model::labels;
use crate::model::observed::VolumeInfo;
use crate::model::spec::MountKind;
use crate::model::verdict::{Finding, Verdict};
use futures_util::StreamExt;
use rustix::fs::Access;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Tag of the empty image helper containers are made of.
pub const EMPTY_IMAGE: &str = "dockwarden/empty:1";
/// Label on helper containers and probe volumes; whatever carries it is garbage when its operation is not at work.
pub const HELPER_LABEL: &str = "dockwarden.helper";
/// Where a helper has the volume; also the top directory of its archives.
pub(crate) const TOP: &str = "volume";
/// Bytes per message of an upload.
const CHUNK: usize = 256 * 1024;

fn helper_labels(ctx: &Hands, what: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::INSTANCE.to_owned(), ctx.instance.clone()),
        (labels::OPERATION.to_owned(), ctx.operation.to_string()),
        (HELPER_LABEL.to_owned(), what.to_owned()),
    ])
}

fn fresh(what: &str) -> Result<EngineName, BackupError> {
    Ok(EngineName::new(format!("dockwarden-{what}-{}", ulid::Ulid::generate().to_string().to_lowercase()))?)
}

/// The volume's directory on this host, if it is proven to be one: a scratch volume made through the engine must appear here, under the
/// path the engine names. A socket path proves nothing (it may be forwarded), nor does an existing directory (another engine's, on this
/// host). Only plain `local` volumes: one with options is mounted while a container uses it and an empty directory otherwise.
pub(crate) async fn host_path(ctx: &Hands, permit: &Permit, volume: &VolumeInfo) -> Result<Option<PathBuf>, BackupError> {
    if volume.driver != "local" || !volume.options.is_empty() || std::fs::read_dir(&volume.mountpoint).is_err() {
        return Ok(None);
    }
    let Some(probe) = probe(ctx, permit).await? else { return Ok(None) };
    let here = probe.1.replace(probe.0.as_str(), volume.name.as_str()) == volume.mountpoint;
    // The engine's own directory may be reached through a link; no container is above its volume.
    Ok(if here { std::fs::canonicalize(&volume.mountpoint).ok() } else { None })
}

/// As [`host_path`], where this process can also write, and give files any owner: a hardened unit lets it read every volume and do neither.
pub(crate) async fn host_path_to_write(ctx: &Hands, permit: &Permit, volume: &VolumeInfo) -> Result<Option<PathBuf>, BackupError> {
    Ok(host_path(ctx, permit, volume).await?.filter(|path| writable(path)))
}

fn writable(path: &Path) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    gives_owners(&status) && rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Whether a process with this `/proc/<pid>/status` may give files an owner and then their mode. Pure.
fn gives_owners(status: &str) -> bool {
    // CAP_CHOWN and CAP_FOWNER, capability(7).
    const BOTH: u64 = 1 | 1 << 3;
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|caps| caps & BOTH == BOTH)
}

/// Whether the engine's file system is the one this process sees.
pub(crate) async fn local(ctx: &Hands, permit: &Permit) -> Result<bool, BackupError> {
    Ok(probe(ctx, permit).await?.is_some())
}

/// Makes a scratch volume and removes it; its name and path when it appeared here.
async fn probe(ctx: &Hands, permit: &Permit) -> Result<Option<(EngineName, String)>, BackupError> {
    let name = fresh("probe")?;
    let spec = VolumeCreate { name: name.clone(), driver: None, driver_opts: BTreeMap::new(), labels: helper_labels(ctx, "probe") };
    ctx.engine.create_volume(permit, &spec).await?;
    let probe = ctx.engine.volume(&name).await;
    let seen = probe.as_ref().ok().and_then(Option::as_ref).map(|p| p.mountpoint.clone()).filter(|m| Path::new(m).is_dir());
    ctx.engine.remove_volume(permit, &name).await?;
    probe?;
    Ok(seen.map(|m| (name, m)))
}

/// What a helper container has at [`TOP`].
#[derive(Debug, Clone)]
pub(crate) enum Mount {
    /// A volume.
    Volume(EngineName),
    /// A directory of the engine's host.
    Directory(String),
}

/// Creates the helper container and gives it to `work`; removes it whatever happens.
async fn with_helper<T>(
    ctx: &Hands,
    permit: &Permit,
    mount: &Mount,
    read_only: bool,
    work: impl AsyncFnOnce(&EngineName) -> Result<T, BackupError>,
) -> Result<T, BackupError> {
    let image = ImageRef::new(EMPTY_IMAGE)?;
    if ctx.engine.image(&image).await?.is_none() {
        // Two blocks of zeros: a tar file with nothing in it.
        ctx.engine.import_image(permit, &image, bytes::Bytes::from(vec![0u8; 1024])).await?;
    }
    let name = fresh("volume")?;
    let mut allowed = RequestFacts::own(EMPTY_IMAGE, None);
    match mount {
        Mount::Volume(volume) => allowed.volumes.insert(volume.to_string()),
        Mount::Directory(path) => allowed.bind_sources.insert(path.clone()),
    };
    let spec = helper_spec(name.clone(), image, helper_labels(ctx, "volume"), mount, read_only);
    judged(assert_own(&spec, &allowed))?;
    let created = ctx.engine.create_container(permit, &spec).await;
    let result = match &created {
        Ok(id) => work(id).await,
        Err(e) => Err(e.clone().into()),
    };
    // By name, so that a create whose answer was lost is cleaned up too.
    let removed = match ctx.engine.remove_container(permit, &name, false).await {
        Err(EngineError::NotFound { .. }) => Ok(()),
        other => other,
    };
    match (result, removed) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(e)) => Err(e.into()),
        (Err(e), Ok(())) => Err(e),
        (Err(e), Err(left)) => {
            tracing::warn!(container = %name, error = %left, "helper container is left behind; it is removed with the next garbage");
            Err(e)
        }
    }
}

/// The second judgement of what no plan names.
pub(super) fn judged(findings: Vec<Finding>) -> Result<(), BackupError> {
    match findings.into_iter().find(|f| f.verdict == Verdict::Deny) {
        Some(f) => Err(EngineError::Refused(format!("refused on the way to the engine by rule {}: {}", f.rule, f.because)).into()),
        None => Ok(()),
    }
}

fn helper_spec(name: EngineName, image: ImageRef, labels: BTreeMap<String, String>, mount: &Mount, read_only: bool) -> ContainerSpec {
    let (kind, source, nocopy) = match mount {
        Mount::Volume(name) => (MountKind::Volume, name.to_string(), true),
        Mount::Directory(path) => (MountKind::Bind, path.clone(), false),
    };
    ContainerSpec {
        // An image without a command cannot be created from; this one is never started.
        command: Some(vec!["never-started".to_owned()]),
        labels,
        mounts: vec![EngineMount { source: Some(source), read_only, nocopy, ..EngineMount::new(kind, format!("/{TOP}")) }],
        network_mode: Some("none".to_owned()),
        cap_drop: vec!["ALL".to_owned()],
        security_opt: vec!["no-new-privileges".to_owned()],
        ..ContainerSpec::new(name, image)
    }
}

/// A file in the spool directory, readable by us alone, gone when dropped.
#[derive(Debug)]
pub(crate) struct Spool(PathBuf);

impl Spool {
    /// A name that does not exist yet.
    pub(crate) fn new(ctx: &Hands) -> Result<Self, BackupError> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = ctx.house.spool();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| BackupError::io(&dir, &e))?;
        Ok(Self(dir.join(format!("{}.tar", ulid::Ulid::generate()))))
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    /// Removes it and says so when that fails; dropping it only tries.
    pub(crate) fn remove(self) -> Result<(), BackupError> {
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(BackupError::io(&self.0, &e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.0)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), error = %e, "spool file is left behind");
        }
    }
}

/// A directory in the spool, readable by us alone, gone when dropped.
#[derive(Debug)]
pub(crate) struct SpoolDir(PathBuf);

impl SpoolDir {
    /// Makes one.
    pub(crate) fn new(ctx: &Hands) -> Result<Self, BackupError> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = ctx.house.spool().join(ulid::Ulid::generate().to_string());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| BackupError::io(&dir, &e))?;
        Ok(Self(dir))
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    /// Removes it and says so when that fails; dropping it only tries.
    pub(crate) fn remove(self) -> Result<(), BackupError> {
        std::fs::remove_dir_all(&self.0).map_err(|e| BackupError::io(&self.0, &e))
    }
}

impl Drop for SpoolDir {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), error = %e, "spool directory is left behind");
        }
    }
}

/// A volume's or directory's content as a spooled tar file with the top directory `TOP`.
pub(crate) async fn download(ctx: &Hands, permit: &Permit, from: &Mount) -> Result<Spool, BackupError> {
    let spool = Spool::new(ctx)?;
    let path = spool.path().to_owned();
    with_helper(ctx, permit, from, true, async |id| {
        let failed = |e: std::io::Error| BackupError::io(&path, &e);
        let file = tokio::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).await.map_err(failed)?;
        let mut file = Spooled::new(file, &path);
        let mut stream = ctx.engine.download(id, &format!("/{TOP}")).await?;
        while let Some(chunk) = stream.next().await {
            file.write_all(&chunk?).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)
    })
    .await?;
    Ok(spool)
}

/// Unpacks a tar file with the top directory `TOP` into a volume.
pub(crate) async fn upload(ctx: &Hands, permit: &Permit, volume: &EngineName, tar: &Path) -> Result<(), BackupError> {
    with_helper(ctx, permit, &Mount::Volume(volume.clone()), false, async |id| {
        let file = tokio::fs::File::open(tar).await.map_err(|e| BackupError::io(tar, &e))?;
        // The stream's items cannot carry an error; a read that fails ends it early, and the engine sees an archive without its end.
        let stream = futures_util::stream::unfold(file, async |mut file| {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
            match file.read_buf(&mut chunk).await {
                Ok(0) => None,
                Ok(_) => Some((chunk.freeze(), file)),
                Err(error) => {
                    tracing::error!(%error, "the spooled archive cannot be read");
                    None
                }
            }
        });
        Ok(ctx.engine.upload(permit, id, "/", stream.boxed()).await?)
    })
    .await
}

/// Whether a downloaded archive holds nothing but its top directory.
pub(crate) fn is_empty(tar: &Path) -> Result<bool, BackupError> {
    let failed = |e: std::io::Error| BackupError::io(tar, &e);
    let file = std::fs::File::open(tar).map_err(failed)?;
    for (n, entry) in tar::Archive::new(file).entries().map_err(failed)?.enumerate() {
        entry.map_err(failed)?;
        if n > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes what killed work left on the engine: helper containers and probe volumes of this home, but those of operations `at_work`.
pub(crate) async fn sweep(
    engine: &dyn Engine,
    permit: &Permit,
    instance: &str,
    at_work: &(dyn Fn(&str) -> bool + Sync),
) -> Result<(), BackupError> {
    let ours = [labels::filter(labels::INSTANCE, instance), super::HELPER_LABEL.to_owned()];
    // Asked after the list was made: who has begun since is not on it, and who has ended has removed its own.
    let left = |labels: &BTreeMap<String, String>| !labels.get(labels::OPERATION).is_some_and(|o| at_work(o));
    let fine_if_gone = |result: Result<(), EngineError>| match result {
        Err(EngineError::NotFound { .. }) => Ok(()),
        other => other,
    };
    for container in engine.containers(&ours).await?.into_iter().filter(|c| left(&c.labels)) {
        fine_if_gone(engine.remove_container(permit, &container.id, false).await)?;
    }
    for volume in engine.volumes(&ours).await?.into_iter().filter(|v| left(&v.labels)) {
        fine_if_gone(engine.remove_volume(permit, &volume.name).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_written_through_its_path_only_by_who_can_write_there_and_give_owners() {
        let status = |caps: &str| format!("Name:\tdockwarden\nCapPrm:\t000001ffffffffff\nCapEff:\t{caps}\nCapBnd:\t000001ffffffffff\n");
        assert!(gives_owners(&status("000001ffffffffff")) && gives_owners(&status("0000000000000009")));
        // What the shipped unit leaves: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
        assert!(!gives_owners(&status("0000000000000006")) && !gives_owners(&status("0000000000000001")));
        assert!(!gives_owners(&status("0000000000000000")) && !gives_owners("") && !gives_owners(&status("none")));
        let dir = tempfile::tempdir().unwrap();
        let here = std::fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(writable(dir.path()), gives_owners(&here));
        assert!(!writable(&dir.path().join("none")));
    }
}
