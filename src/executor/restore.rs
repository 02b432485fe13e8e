//! Restore of a volume: into a new volume beside the live one, compared with the snapshot byte by byte, with the words that tell how to
//! take it into use. Live data is never touched: there is no code here that writes to a volume that holds something. Deliberately absent:
//! the swap itself, which is a release, and removing what a failed restore made, which is its operation's.

use super::backup::house::Compared;
use super::backup::{BackupError, Directory, Hands, RestoreReport, helper, room};
use super::straight;
use super::worker::Source;
use crate::engine::{Engine, VolumeCreate};
use crate::gate::Permit;
use crate::model::ids::{EngineName, OperationId, SnapshotId, StackName};
use crate::model::labels;
use crate::model::observed::VolumeInfo;
use crate::store::backup::BackupRecord;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Restores of one snapshot that may stand side by side.
const MOST: u32 = 1000;
/// Differences kept; more of them say nothing new.
const SHOWN: usize = 100;
/// Label on a volume made by a restore: the snapshot it was filled from.
pub(crate) const RESTORED_FROM: &str = "dockwarden.restored_from";

/// What a restore made.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct RestoreOutcome {
    /// Volume, or directory of the host, that now holds the data.
    pub volume: String,
    /// Volume, directory or output the snapshot was taken of.
    pub source: String,
    /// Snapshot it was filled from.
    pub snapshot_id: String,
    /// Files, links and special files.
    pub files: u64,
    /// Bytes of file data.
    pub bytes: u64,
    /// Whether the restored data equals the snapshot.
    pub verified: bool,
    /// Differences, `path: what`; empty when verified.
    pub differences: Vec<String>,
    /// How to use it.
    pub next: String,
    /// Whether the SHA-256 of every file was recorded when it was backed up.
    #[serde(skip)]
    pub by_sums: bool,
}

/// Said of a snapshot that has no such list.
pub(crate) const BY_PIECES: &str =
    "compared by the ids of its pieces: this snapshot, of restic or of an earlier version, has no SHA-256 of each of its files";

/// How to use it, and how it was compared where that is not the usual way.
fn told(next: String, verified: bool, by_sums: bool) -> String {
    if verified && !by_sums { format!("{next} It was {BY_PIECES}.") } else { next }
}

/// Volume a restore is to fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: EngineName,
    /// It does not exist yet and is made for the restore.
    pub(crate) made: bool,
}

/// Where a snapshot is restored to: a new volume beside the live one, or `into`, which must be empty or not exist.
///
/// # Errors
/// `TargetIsSource`, `TargetForeign`, or the engine's word.
pub(crate) async fn target(
    ctx: &Hands,
    snapshot: &BackupRecord,
    into: Option<EngineName>,
    to: Option<&StackName>,
) -> Result<Target, BackupError> {
    if let Some(to) = to {
        let (name, _) = named_for(snapshot, to);
        let name = EngineName::new(name)?;
        let taken = name.as_str() == snapshot.volume || ctx.engine.volume(&name).await?.is_some();
        let name = if taken { free_of(ctx.engine.as_ref(), name.as_str(), snapshot).await? } else { name };
        return Ok(Target { name, made: true });
    }
    match into {
        Some(name) if name.as_str() == snapshot.volume => Err(BackupError::TargetIsSource { volume: name.to_string() }),
        Some(name) => {
            let there = ctx.engine.volume(&name).await?;
            // Looked at by the call as well; since then somebody may have made it.
            let label = |key: &str| there.as_ref().and_then(|v| v.labels.get(key));
            let foreign = label(labels::INSTANCE).is_some_and(|i| *i != ctx.instance)
                || label(labels::STACK).is_some_and(|s| snapshot.stack.as_ref().is_none_or(|mine| mine != s));
            if foreign {
                return Err(BackupError::TargetForeign { volume: name.to_string() });
            }
            Ok(Target { name, made: there.is_none() })
        }
        None => Ok(Target { name: free_name(ctx.engine.as_ref(), snapshot).await?, made: true }),
    }
}

/// Fills a volume from a snapshot and compares it; with `marks` the volume is made first and carries them as labels.
///
/// # Errors
/// `TargetNotEmpty`, a worker's failure or the engine's word. Data that differs from the snapshot is no error but `verified: false` with the differences.
pub(crate) async fn restore_into(
    ctx: &Hands,
    permit: &Permit,
    snapshot: &BackupRecord,
    into: &EngineName,
    marks: Option<BTreeMap<String, String>>,
    path: Option<&Path>,
) -> Result<RestoreOutcome, BackupError> {
    let id = SnapshotId::new(snapshot.snapshot_id.as_str())?;
    if let Some(labels) = marks {
        let spec = VolumeCreate { name: into.clone(), driver: None, driver_opts: BTreeMap::new(), labels };
        ctx.engine.create_volume(permit, &spec).await?;
    }
    let target = ctx.engine.volume(into).await?.ok_or_else(|| BackupError::NoVolume { volume: into.to_string() })?;
    let (files, bytes, Compared { mut differences, by_sums }) = fill(ctx, permit, (&id, snapshot.bytes), &target, path).await?;
    let verified = differences.is_empty();
    differences.truncate(SHOWN);
    let next = match path.filter(|_| verified) {
        Some(path) => part_of(target.name.as_str(), &snapshot.volume, path),
        None => next(target.name.as_str(), &snapshot.volume, verified),
    };
    Ok(RestoreOutcome {
        next: told(next, verified, by_sums),
        by_sums,
        volume: target.name.to_string(),
        source: snapshot.volume.clone(),
        snapshot_id: snapshot.snapshot_id.clone(),
        files,
        bytes,
        verified,
        differences,
    })
}

/// Directory that a directory's snapshot is restored to: beside it, named by snapshot and operation, so that it is nobody else's.
pub(crate) fn beside(directory: &Directory, snapshot: &BackupRecord, operation: &OperationId) -> Result<PathBuf, BackupError> {
    let bad = |detail: &str| BackupError::NoDirectory { path: directory.host.clone(), detail: detail.to_owned() };
    let here =
        directory.here.as_deref().ok_or_else(|| bad("its host's files are not seen from here; name an empty or new volume with `into`"))?;
    let name = here.file_name().and_then(|n| n.to_str()).ok_or_else(|| bad("it has no name"))?;
    let short: String = snapshot.snapshot_id.chars().take(8).collect();
    Ok(here.with_file_name(format!("{name}-restored-{short}-{operation}")))
}

/// Where a directory is kept whose place a restored one has taken.
pub(crate) fn kept_beside(live: &Path, operation: &OperationId) -> PathBuf {
    let name = live.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    live.with_file_name(format!("{name}-before-{operation}"))
}

/// Fills a new directory from a snapshot and compares it.
pub(crate) async fn restore_beside(
    ctx: &Hands,
    snapshot: &BackupRecord,
    into: &Path,
    path: Option<&Path>,
) -> Result<RestoreOutcome, BackupError> {
    let id = SnapshotId::new(snapshot.snapshot_id.as_str())?;
    straight_parent(into)?;
    room::at(into, snapshot.bytes)?;
    aside(into, fresh).await?;
    let report = ctx.house.restore_part(&id, into, path).await?;
    let Compared { mut differences, by_sums } = ctx.house.verify_source(&id, Source::Dir(into.to_owned()), path).await?;
    let verified = differences.is_empty();
    differences.truncate(SHOWN);
    let (volume, source) = (into.display().to_string(), snapshot.volume.clone());
    let next = if let Some(path) = path.filter(|_| verified) {
        part_of(&volume, &source, path)
    } else if verified {
        format!(
            "{source} is untouched and {volume} holds the data beside it. To use it, call `restore` with swap: true: the directory is kept."
        )
    } else {
        next(&volume, &source, false)
    };
    let RestoreReport { files, bytes } = report;
    let (snapshot_id, next) = (snapshot.snapshot_id.clone(), told(next, verified, by_sums));
    Ok(RestoreOutcome { volume, source, snapshot_id, files, bytes, verified, differences, next, by_sums })
}

/// The open directory that a path lies in, and the path through it: no link on the way is followed.
fn straight_parent(path: &Path) -> Result<(std::fs::File, PathBuf), BackupError> {
    let (dir, name) = straight::parent(path).map_err(|e| BackupError::io(path, &e.into()))?;
    let through = straight::through(&dir).join(name);
    Ok((dir, through))
}

/// A whole tree may have to be removed: not on a thread that others wait for.
async fn aside(path: &Path, work: fn(&Path) -> Result<(), BackupError>) -> Result<(), BackupError> {
    let owned = path.to_owned();
    tokio::task::spawn_blocking(move || work(&owned)).await.map_err(|e| BackupError::io(path, &e.into()))?
}

/// A new directory that only we can look into: its content and its own mode come to it one after the other.
fn fresh(into: &Path) -> Result<(), BackupError> {
    use std::os::unix::fs::DirBuilderExt;
    // Left by an earlier try of this very step: the operation's id is in its name.
    removed(into)?;
    let (_open, through) = straight_parent(into)?;
    std::fs::DirBuilder::new().mode(0o700).create(through).map_err(|e| not_made(into, &e))
}

fn removed(tree: &Path) -> Result<(), BackupError> {
    let (open, name) = match straight::parent(tree) {
        Ok(place) => place,
        Err(straight::Refused::Io(e)) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(refused @ straight::Refused::Link(_)) => {
            // Where the link leads is nothing of ours; what was made lies wherever the directory was moved to.
            tracing::warn!(path = %tree.display(), error = %refused, "a restored directory is left behind");
            return Ok(());
        }
        Err(e) => return Err(BackupError::io(tree, &e.into())),
    };
    match std::fs::remove_dir_all(straight::through(&open).join(name)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(BackupError::io(tree, &e)),
        _ => Ok(()),
    }
}

fn not_made(into: &Path, error: &std::io::Error) -> BackupError {
    match (error.kind(), into.parent()) {
        (ErrorKind::ReadOnlyFilesystem, Some(parent)) => {
            BackupError::ReadOnly { path: into.display().to_string(), parent: parent.display().to_string() }
        }
        _ => BackupError::io(into, error),
    }
}

/// Ends the name of a kept directory whose removal has begun: it was compared, and is no longer whole.
pub(crate) const REMOVING: &str = ".removing";

/// Removes a directory that an operation made beside a live one; already gone is fine.
pub(crate) async fn remove_beside(into: &Path, operation: &OperationId) -> Result<(), BackupError> {
    let name = into.file_name().and_then(|n| n.to_str()).map(|n| n.strip_suffix(REMOVING).unwrap_or(n));
    let named = name.is_some_and(|n| n.ends_with(operation.as_str()));
    if named { aside(into, removed).await } else { Ok(()) }
}

/// A name for the engine of a source's: a directory's path is made one.
fn plain(source: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' };
    // A volume's name may be as long as a name can be; the end of it is given up rather than the restore.
    source.trim_start_matches('/').chars().map(plain).take(160).collect()
}

/// What the volume of a snapshot is called in another stack, and the key its file has it under.
pub(crate) fn named_for(snapshot: &BackupRecord, to: &StackName) -> (String, String) {
    let own = snapshot.stack.as_ref().map(|s| format!("{s}_"));
    let key = own.as_deref().and_then(|own| snapshot.volume.strip_prefix(own)).unwrap_or(&snapshot.volume);
    let key = plain(key);
    (format!("{to}_{key}"), key)
}

/// `<volume>-restored-<8 hex>-<n>` with the first free `n`.
pub(crate) async fn free_name(engine: &dyn Engine, snapshot: &BackupRecord) -> Result<EngineName, BackupError> {
    free_of(engine, &plain(&snapshot.volume), snapshot).await
}

async fn free_of(engine: &dyn Engine, base: &str, snapshot: &BackupRecord) -> Result<EngineName, BackupError> {
    let short: String = snapshot.snapshot_id.chars().take(8).collect();
    for n in 1..=MOST {
        let name = EngineName::new(format!("{base}-restored-{short}-{n}"))?;
        if engine.volume(&name).await?.is_none() {
            return Ok(name);
        }
    }
    Err(BackupError::TargetNotEmpty { volume: format!("{base}-restored-{short}-{MOST}") })
}

async fn fill(
    ctx: &Hands,
    permit: &Permit,
    (id, size): (&SnapshotId, u64),
    target: &VolumeInfo,
    part: Option<&Path>,
) -> Result<(u64, u64, Compared), BackupError> {
    let not_empty = || BackupError::TargetNotEmpty { volume: target.name.to_string() };
    if let Some(path) = helper::host_path_to_write(ctx, permit, target).await? {
        room::at(&path, size)?;
        if std::fs::read_dir(&path).map_err(|e| BackupError::io(&path, &e))?.next().is_some() {
            return Err(not_empty());
        }
        let report = ctx.house.restore_part(id, &path, part).await?;
        let compared = ctx.house.verify_source(id, Source::Dir(path), part).await?;
        return Ok((report.files, report.bytes, compared));
    }
    // The archive, and the volume, which may be on the same disk.
    room::at(&ctx.house.spool(), size.saturating_mul(2))?;
    let before = helper::download(ctx, permit, &helper::Mount::Volume(target.name.clone())).await?;
    let empty = helper::is_empty(before.path())?;
    before.remove()?;
    if !empty {
        return Err(not_empty());
    }
    let spool = helper::Spool::new(ctx)?;
    let report = ctx.house.export(id, spool.path(), helper::TOP, part).await?;
    helper::upload(ctx, permit, &target.name, spool.path()).await?;
    spool.remove()?;
    let after = helper::download(ctx, permit, &helper::Mount::Volume(target.name.clone())).await?;
    let compared = ctx.house.verify_source(id, Source::Tar(after.path().to_owned()), part).await?;
    after.remove()?;
    Ok((report.files, report.bytes, compared))
}

fn part_of(restored: &str, live: &str, path: &Path) -> String {
    let path = path.display();
    format!("{live} is untouched and {restored} holds {path} of it, at the same place. Copy what you need, or look at it there.")
}

fn next(restored: &str, live: &str, verified: bool) -> String {
    if verified {
        format!(
            "{live} is untouched and {restored} holds the data beside it. To have the stack use it, call `restore` with swap: true (or `rollback` with the \
             snapshot as data): {live} is kept."
        )
    } else {
        format!(
            "{live} is untouched. Do not use {restored} before you have looked at the differences; try the restore again or take another snapshot."
        )
    }
}

#[cfg(test)]
#[cfg(feature = "backup")]
mod tests {

    use super::*;
    use crate::engine::fake::FakeEngine;
    use crate::executor::backup::{BackupReason, SnapshotState, house, snapshot, test_permit};
    use std::sync::Arc;

    /// A fake engine whose volumes are on no path of this host, so that everything goes through its archive calls.
    async fn taken(dir: &std::path::Path) -> (Arc<FakeEngine>, Hands, BackupRecord) {
        let engine = Arc::new(FakeEngine::new());
        engine.write_volume_file("shop_data", "b", b"hello");
        engine.write_volume_file("shop_data", "c", &vec![7u8; 600_000]);
        let operation = OperationId::new("op-test").unwrap();
        let hands = Hands {
            engine: engine.clone(),
            house: house::tests::house(dir, ""),
            instance: "01test".to_owned(),
            operation,
            own: Default::default(),
        };
        hands.house.ensure().await.unwrap();
        let reason = BackupReason { stack: Some(StackName::new("shop").unwrap()), ..BackupReason::default() };
        let volume = engine.volume(&EngineName::new("shop_data").unwrap()).await.unwrap().unwrap();
        let report = snapshot(&hands, &test_permit(), &reason, &volume, Arc::new(|_| {})).await.unwrap();
        assert_eq!((report.files, report.bytes, report.state), (2, 600_005, SnapshotState::Complete));
        let record = BackupRecord {
            snapshot_id: report.snapshot_id.to_string(),
            stack: Some("shop".to_owned()),
            volume: "shop_data".to_owned(),
            bytes: report.bytes,
            added: report.added,
            files: report.files,
            state: "complete".to_owned(),
            at: chrono::DateTime::UNIX_EPOCH,
            agent: "tester".to_owned(),
            release: None,
            tags: vec![],
            operation: None,
            copies: vec![],
        };
        (engine, hands, record)
    }

    async fn restore(hands: &Hands, record: &BackupRecord, into: Option<EngineName>) -> Result<RestoreOutcome, BackupError> {
        let target = target(hands, record, into, None).await?;
        let marks = BTreeMap::from([("dockwarden.instance".to_owned(), hands.instance.clone())]);
        restore_into(hands, &test_permit(), record, &target.name, target.made.then_some(marks), None).await
    }

    fn leftovers(hands: &Hands) -> usize {
        std::fs::read_dir(hands.house.spool()).unwrap().count()
    }

    #[tokio::test]
    async fn a_restore_fills_a_new_volume_beside_the_live_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, hands, record) = taken(dir.path()).await;
        engine.write_volume_file("shop_data", "b", b"damaged");
        let first = restore(&hands, &record, None).await.unwrap();
        let name = format!("shop_data-restored-{}-1", &record.snapshot_id[..8]);
        assert_eq!((first.volume.as_str(), first.files, first.bytes, first.verified), (name.as_str(), 2, 600_005, true), "{first:?}");
        assert_eq!(first.differences, Vec::<String>::new());
        assert!(first.next.contains("shop_data is untouched") && first.next.contains(&name));
        assert_eq!(engine.volume_file(&name, "b"), Some(b"hello".to_vec()));
        assert_eq!(engine.volume_file("shop_data", "b"), Some(b"damaged".to_vec()));
        let second = restore(&hands, &record, None).await.unwrap();
        assert_eq!(second.volume.as_str(), format!("shop_data-restored-{}-2", &record.snapshot_id[..8]));
        assert_eq!((engine.container_names(), leftovers(&hands)), (Vec::<String>::new(), 0));
    }

    #[tokio::test]
    async fn a_restore_without_room_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, hands, mut record) = taken(dir.path()).await;
        record.bytes = u64::MAX / 4;
        let uploads = || engine.calls().iter().filter(|c| c.starts_with("upload")).count();
        let full = restore(&hands, &record, None).await.unwrap_err();
        assert!(matches!(full, BackupError::NoRoom { .. }), "{full}");
        assert_eq!((uploads(), leftovers(&hands)), (0, 0));
        let beside = dir.path().join("beside");
        let full = restore_beside(&hands, &record, &beside, None).await.unwrap_err();
        assert!(matches!(full, BackupError::NoRoom { .. }) && !beside.exists(), "{full}");
    }

    #[tokio::test]
    async fn a_directory_beside_a_live_one_is_closed_while_it_is_filled_and_made_anew_each_time() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (_, hands, record) = taken(dir.path()).await;
        let into = dir.path().join("data-restored-op-test");
        std::fs::create_dir_all(into.join("half/filled")).unwrap();
        aside(&into, fresh).await.unwrap();
        let mode = std::fs::metadata(&into).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode, std::fs::read_dir(&into).unwrap().count()), (0o700, 0));
        let outcome = restore_beside(&hands, &record, &into, None).await.unwrap();
        assert!(outcome.verified, "{outcome:?}");
        remove_beside(&into, &OperationId::new("op-other").unwrap()).await.unwrap();
        assert!(into.exists(), "another operation's");
        remove_beside(&into, &OperationId::new("op-test").unwrap()).await.unwrap();
        assert!(!into.exists());
    }

    #[test]
    fn a_read_only_parent_is_named_with_the_line_for_the_unit() {
        let why = |kind: ErrorKind| not_made(Path::new("/srv/shop/data-restored-1"), &kind.into()).to_string();
        let text = why(ErrorKind::ReadOnlyFilesystem);
        assert!(text.contains("`ReadWritePaths=/srv/shop`") && text.contains("CAP_CHOWN"), "{text}");
        assert!(!why(ErrorKind::PermissionDenied).contains("ReadWritePaths"));
    }

    #[tokio::test]
    async fn a_restore_never_goes_into_the_source_or_into_a_volume_that_holds_something() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, hands, record) = taken(dir.path()).await;
        engine.write_volume_file("full", "x", b"x");
        let into = |name: &str| Some(EngineName::new(name).unwrap());
        let source = restore(&hands, &record, into("shop_data")).await.unwrap_err();
        assert!(matches!(&source, BackupError::TargetIsSource { volume } if volume == "shop_data"), "{source}");
        let full = restore(&hands, &record, into("full")).await.unwrap_err();
        assert!(matches!(&full, BackupError::TargetNotEmpty { volume } if volume == "full"), "{full}");
        assert_eq!(engine.volume_file("full", "x"), Some(b"x".to_vec()));
        let labels = BTreeMap::from([("dockwarden.instance".to_owned(), "another".to_owned())]);
        let theirs = VolumeCreate { name: EngineName::new("theirs").unwrap(), driver: None, driver_opts: BTreeMap::new(), labels };
        engine.create_volume(&test_permit(), &theirs).await.unwrap();
        let foreign = restore(&hands, &record, into("theirs")).await.unwrap_err();
        assert!(matches!(&foreign, BackupError::TargetForeign { volume } if volume == "theirs"), "{foreign}");
        let outcome = restore(&hands, &record, into("fresh")).await.unwrap();
        assert_eq!((outcome.volume.as_str(), outcome.verified), ("fresh", true));
        assert_eq!((engine.container_names(), leftovers(&hands)), (Vec::<String>::new(), 0));
    }
}
