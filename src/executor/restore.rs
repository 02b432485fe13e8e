//! Restore of a volume: into a new volume beside the live one, compared with the snapshot byte by byte, with the words that tell how to
//! take it into use. Live data is never touched: there is no code here that writes to a volume that holds something. Deliberately absent:
//! the swap itself, which is a release.

use super::backup::{BackupContext, BackupError, Hands, helper};
use super::worker::Source;
use crate::engine::VolumeCreate;
use crate::gate::Permit;
use crate::model::ids::{EngineName, SnapshotId};
use crate::model::labels;
use crate::model::observed::VolumeInfo;
use crate::store::backup::BackupRecord;
use std::collections::BTreeMap;

/// Restores of one snapshot that may stand side by side.
const MOST: u32 = 1000;

/// What a restore made.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub struct RestoreOutcome {
    /// Volume that now holds the data.
    pub volume: EngineName,
    /// Volume the snapshot was taken of.
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
}

/// Restores a snapshot into a new volume beside the live one, or into `into`, which must be empty or not exist. The new volume carries
/// our labels and none of Compose's, so that no stack takes it for its own. A restore that fails removes the volume it made.
///
/// # Errors
/// `TargetIsSource`, `TargetNotEmpty`, a worker's failure or the engine's word. Data that differs from the snapshot is no error but
/// `verified: false` with the differences.
pub async fn restore_volume(
    ctx: &BackupContext,
    permit: &Permit,
    snapshot: &BackupRecord,
    into: Option<EngineName>,
) -> Result<RestoreOutcome, BackupError> {
    restore(&ctx.hands(), permit, snapshot, into).await
}

async fn restore(ctx: &Hands, permit: &Permit, snapshot: &BackupRecord, into: Option<EngineName>) -> Result<RestoreOutcome, BackupError> {
    let id = SnapshotId::new(snapshot.snapshot_id.as_str())?;
    let (target, made) = match into {
        Some(name) if name.as_str() == snapshot.volume => return Err(BackupError::TargetIsSource { volume: name.to_string() }),
        Some(name) => match ctx.engine.volume(&name).await? {
            Some(volume) => (volume, false),
            None => (create(ctx, permit, snapshot, name).await?, true),
        },
        None => (create(ctx, permit, snapshot, free_name(ctx, snapshot).await?).await?, true),
    };
    let filled = fill(ctx, permit, &id, &target).await;
    match filled {
        Ok((files, bytes, differences)) => {
            let verified = differences.is_empty();
            Ok(RestoreOutcome {
                next: next(&target.name, &snapshot.volume, verified),
                volume: target.name,
                source: snapshot.volume.clone(),
                snapshot_id: snapshot.snapshot_id.clone(),
                files,
                bytes,
                verified,
                differences,
            })
        }
        Err(error) => {
            if made && let Err(left) = ctx.engine.remove_volume(permit, &target.name).await {
                tracing::warn!(volume = %target.name, error = %left, "the half-filled volume of a failed restore is left behind");
            }
            Err(error)
        }
    }
}

/// `<volume>-restored-<8 hex>-<n>` with the first free `n`.
async fn free_name(ctx: &Hands, snapshot: &BackupRecord) -> Result<EngineName, BackupError> {
    let short: String = snapshot.snapshot_id.chars().take(8).collect();
    // A volume's name may be as long as a name can be; the end of it is given up rather than the restore.
    let base: String = snapshot.volume.chars().take(160).collect();
    for n in 1..=MOST {
        let name = EngineName::new(format!("{base}-restored-{short}-{n}"))?;
        if ctx.engine.volume(&name).await?.is_none() {
            return Ok(name);
        }
    }
    Err(BackupError::TargetNotEmpty { volume: format!("{base}-restored-{short}-{MOST}") })
}

async fn create(ctx: &Hands, permit: &Permit, snapshot: &BackupRecord, name: EngineName) -> Result<VolumeInfo, BackupError> {
    let marks = BTreeMap::from([
        (labels::INSTANCE.to_owned(), ctx.instance.clone()),
        ("dockwarden.restored_from".to_owned(), snapshot.snapshot_id.clone()),
    ]);
    ctx.engine
        .create_volume(permit, &VolumeCreate { name: name.clone(), driver: None, driver_opts: BTreeMap::new(), labels: marks })
        .await?;
    ctx.engine.volume(&name).await?.ok_or_else(|| BackupError::NoVolume { volume: name.to_string() })
}

async fn fill(ctx: &Hands, permit: &Permit, id: &SnapshotId, target: &VolumeInfo) -> Result<(u64, u64, Vec<String>), BackupError> {
    let not_empty = || BackupError::TargetNotEmpty { volume: target.name.to_string() };
    if let Some(path) = helper::host_path(ctx, permit, target).await? {
        if std::fs::read_dir(&path).map_err(|e| BackupError::io(&path, &e))?.next().is_some() {
            return Err(not_empty());
        }
        let report = ctx.house.restore(id, &path).await?;
        let differences = ctx.house.verify(id, &path).await?;
        return Ok((report.files, report.bytes, differences));
    }
    let before = helper::download(ctx, permit, &target.name).await?;
    let empty = helper::is_empty(before.path())?;
    before.remove()?;
    if !empty {
        return Err(not_empty());
    }
    let spool = helper::Spool::new(ctx)?;
    let report = ctx.house.export(id, spool.path(), helper::TOP).await?;
    helper::upload(ctx, permit, &target.name, spool.path()).await?;
    spool.remove()?;
    let after = helper::download(ctx, permit, &target.name).await?;
    let differences = ctx.house.verify_source(id, Source::Tar(after.path().to_owned())).await?;
    after.remove()?;
    Ok((report.files, report.bytes, differences))
}

fn next(restored: &EngineName, live: &str, verified: bool) -> String {
    if verified {
        format!(
            "{live} is untouched. To use the restored data, name the volume in the compose file (volumes: <key>: {{name: {restored}, external: true}}) \
             and deploy; the old data stays in {live} until you remove it."
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
    use crate::engine::Engine;
    use crate::engine::EngineError;
    use crate::engine::fake::FakeEngine;
    use crate::executor::backup::{BackupReason, SnapshotState, house, snapshot, test_permit};
    use crate::model::ids::StackName;
    use std::sync::Arc;

    /// A fake engine whose volumes are on no path of this host, so that everything goes through its archive calls.
    async fn taken(dir: &std::path::Path) -> (Arc<FakeEngine>, Hands, BackupRecord) {
        let engine = Arc::new(FakeEngine::new());
        engine.write_volume_file("shop_data", "b", b"hello");
        engine.write_volume_file("shop_data", "c", &vec![7u8; 600_000]);
        let hands = Hands { engine: engine.clone(), house: house::tests::house(dir, ""), instance: "01test".to_owned() };
        hands.house.ensure().await.unwrap();
        let reason = BackupReason { stack: Some(StackName::new("shop").unwrap()), agent: "tester".to_owned(), ..BackupReason::default() };
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
        };
        (engine, hands, record)
    }

    fn leftovers(hands: &Hands) -> usize {
        std::fs::read_dir(hands.house.spool()).unwrap().count()
    }

    #[tokio::test]
    async fn a_restore_fills_a_new_volume_beside_the_live_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, hands, record) = taken(dir.path()).await;
        engine.write_volume_file("shop_data", "b", b"damaged");
        let first = restore(&hands, &test_permit(), &record, None).await.unwrap();
        let name = format!("shop_data-restored-{}-1", &record.snapshot_id[..8]);
        assert_eq!((first.volume.as_str(), first.files, first.bytes, first.verified), (name.as_str(), 2, 600_005, true), "{first:?}");
        assert_eq!(first.differences, Vec::<String>::new());
        assert!(first.next.contains("shop_data is untouched") && first.next.contains(&name));
        assert_eq!(engine.volume_file(&name, "b"), Some(b"hello".to_vec()));
        assert_eq!(engine.volume_file("shop_data", "b"), Some(b"damaged".to_vec()));
        let made = engine.volume(&first.volume).await.unwrap().unwrap();
        let labels: Vec<(&str, &str)> = made.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, vec![("dockwarden.instance", "01test"), ("dockwarden.restored_from", record.snapshot_id.as_str())]);
        let second = restore(&hands, &test_permit(), &record, None).await.unwrap();
        assert_eq!(second.volume.as_str(), format!("shop_data-restored-{}-2", &record.snapshot_id[..8]));
        assert_eq!((engine.container_names(), leftovers(&hands)), (Vec::<String>::new(), 0));
    }

    #[tokio::test]
    async fn a_restore_never_goes_into_the_source_or_into_a_volume_that_holds_something() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, hands, record) = taken(dir.path()).await;
        engine.write_volume_file("full", "x", b"x");
        let into = |name: &str| Some(EngineName::new(name).unwrap());
        let source = restore(&hands, &test_permit(), &record, into("shop_data")).await.unwrap_err();
        assert!(matches!(&source, BackupError::TargetIsSource { volume } if volume == "shop_data"), "{source}");
        let full = restore(&hands, &test_permit(), &record, into("full")).await.unwrap_err();
        assert!(matches!(&full, BackupError::TargetNotEmpty { volume } if volume == "full"), "{full}");
        assert_eq!(engine.volume_file("full", "x"), Some(b"x".to_vec()));
        let outcome = restore(&hands, &test_permit(), &record, into("fresh")).await.unwrap();
        assert_eq!((outcome.volume.as_str(), outcome.verified), ("fresh", true));
        assert_eq!((engine.container_names(), leftovers(&hands)), (Vec::<String>::new(), 0));
    }

    #[tokio::test]
    async fn a_restore_that_fails_removes_what_it_made() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, hands, record) = taken(dir.path()).await;
        engine.fail_next("upload", EngineError::Refused("disk full".to_owned()));
        let error = restore(&hands, &test_permit(), &record, None).await.unwrap_err();
        assert!(matches!(&error, BackupError::Engine(EngineError::Refused(text)) if text == "disk full"), "{error}");
        let names: Vec<String> = engine.volumes(&[]).await.unwrap().into_iter().map(|v| v.name.to_string()).collect();
        assert_eq!((names, engine.container_names(), leftovers(&hands)), (vec!["shop_data".to_owned()], Vec::<String>::new(), 0));
    }
}
