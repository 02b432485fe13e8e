//! Data that a restore took the place of: it goes when a snapshot holds all of it and nothing mounts it, and at no other time.

use super::*;
use crate::executor::backup::BackupRequest;
use crate::executor::backup::keep::{KEPT, PRE_RESTORE};
use crate::executor::backup::removing;
use crate::store::kept::KeptRecord;
use std::path::PathBuf;

pub(super) fn kept(place: &str, source: &str) -> KeptRecord {
    KeptRecord {
        place: place.to_owned(),
        source: source.to_owned(),
        stack: shop(),
        release: 2,
        operation: OperationId::new("op-swap").unwrap(),
        snapshot_id: "ab".repeat(32),
        since: Utc::now(),
        covered: None,
    }
}

pub(super) async fn discard(rig: &Rig, kept: &KeptRecord, snapshot: Option<&BackupRecord>) -> Operation {
    let job = DataJob::Discard { kept: Box::new(kept.clone()), host: kept.place.clone(), snapshot: snapshot.cloned().map(Box::new) };
    let op = rig.exec.submit_data(Some(shop()), job, test_permit(), request("restore", None)).await.unwrap();
    rig.done(&rig.exec, &op).await.0
}

async fn places(rig: &Rig) -> Vec<String> {
    rig.store.kept(None).await.unwrap().into_iter().map(|k| k.place).collect()
}

#[tokio::test]
async fn a_kept_volume_goes_only_when_nothing_mounts_it_and_a_snapshot_holds_all_of_it() {
    let rig = Rig::new().await;
    let record = kept("shop_data", "shop_data");
    rig.store.keep(std::slice::from_ref(&record)).await.unwrap();
    let snapshot = rig.snapshot().await;
    let refused = discard(&rig, &record, Some(&snapshot)).await;
    assert!(
        refused.state == OperationState::Failed && refused.message.as_deref().is_some_and(|m| m.contains("container db mounts")),
        "{refused:?}"
    );
    // Stopped, it would mount it again.
    let db = EngineName::new("db").unwrap();
    rig.engine.stop(&test_permit(), &db, Duration::from_secs(1)).await.unwrap();
    assert_eq!(discard(&rig, &record, Some(&snapshot)).await.state, OperationState::Failed);
    rig.engine.remove_container(&test_permit(), &db, false).await.unwrap();

    rig.engine.write_volume_file("shop_data", "b", b"written after the snapshot");
    let refused = discard(&rig, &record, Some(&snapshot)).await;
    let message = refused.message.unwrap_or_default();
    assert!(message.contains("does not hold what is in shop_data") && message.contains("`backup {volume: shop_data}`"), "{message}");
    assert_eq!((rig.volumes().await, places(&rig).await), (vec!["shop_data".to_owned()], vec!["shop_data".to_owned()]));

    let snapshot = rig.snapshot().await;
    let done = discard(&rig, &record, Some(&snapshot)).await;
    assert!(done.message.as_deref().is_some_and(|m| m.contains(&snapshot.snapshot_id)), "{done:?}");
    assert_eq!((done.state, rig.volumes().await, places(&rig).await), (OperationState::Done, vec![], vec![]));
}

/// A directory that an exchange kept, and the snapshot taken before it.
async fn directory(rig: &Rig) -> (PathBuf, KeptRecord, BackupRecord) {
    let live = rig.dir.path().join("srv/data");
    let place = live.with_file_name("data-before-op-swap");
    std::fs::create_dir_all(place.join("sub")).unwrap();
    std::fs::write(place.join("sub/file"), "kept").unwrap();
    let record = kept(place.to_str().unwrap(), live.to_str().unwrap());
    rig.store.keep(std::slice::from_ref(&record)).await.unwrap();
    // Read from here: the engine in memory has no files of the host.
    let (volume, progress): (_, crate::executor::backup::ProgressSink) = (live.display().to_string(), Arc::new(|_| {}));
    let (stack, instance, tags) = (Some(shop()), "i".to_owned(), vec![PRE_RESTORE.to_owned()]);
    let asked = BackupRequest { path: place.clone(), volume: volume.clone(), stack, instance, tags, definition: None, progress };
    let report = rig.exec.backups.clone().unwrap().backup_dir(asked).await.unwrap();
    let snapshot = BackupRecord { volume, snapshot_id: report.snapshot_id.to_string(), ..rig.snapshot().await };
    rig.store.put_backup(&snapshot).await.unwrap();
    (place, record, snapshot)
}

#[tokio::test]
async fn a_kept_directory_goes_when_the_snapshot_before_holds_it_and_stays_when_somebody_has_written_to_it() {
    let rig = Rig::new().await;
    let (place, record, snapshot) = directory(&rig).await;
    std::fs::write(place.join("sub/more"), "written since").unwrap();
    let refused = discard(&rig, &record, Some(&snapshot)).await;
    assert!(
        refused.message.as_deref().is_some_and(|m| m.contains("1 differences, which") || m.contains("2 differences, which")),
        "{refused:?}"
    );
    // A name that a container may have chosen stands among the evidence, which is shown as untrusted.
    assert!(!refused.message.as_deref().is_some_and(|m| m.contains("sub/more")), "{refused:?}");
    assert!(refused.evidence[0].logs.iter().any(|l| l.contains("sub/more: not in snapshot")), "{refused:?}");
    assert!(place.join("sub/file").exists());
    std::fs::remove_file(place.join("sub/more")).unwrap();
    // The directory's own time has changed with its entries; the snapshot is of the state now.
    let (_, _, snapshot) = directory(&rig).await;
    let done = discard(&rig, &record, Some(&snapshot)).await;
    assert_eq!((done.state, place.exists(), places(&rig).await), (OperationState::Done, false, vec![]), "{done:?}");
}

#[tokio::test]
async fn a_removal_that_was_interrupted_after_comparing_is_asked_for_again_and_ends() {
    for k in 1.. {
        let rig = Rig::new().await;
        let (place, record, snapshot) = directory(&rig).await;
        let crashed = Arc::new(AtomicBool::new(false));
        let flag = crashed.clone();
        let stop: StopAfter = Arc::new(move |count| {
            flag.fetch_or(count == k, Ordering::SeqCst);
            count == k
        });
        let doomed = rig.executor(Some(stop));
        let job =
            DataJob::Discard { kept: Box::new(record.clone()), host: record.place.clone(), snapshot: Some(Box::new(snapshot.clone())) };
        let op = doomed.submit_data(Some(shop()), job, test_permit(), request("restore", None)).await.unwrap();
        rig.done(&doomed, &op).await;
        doomed.close(Duration::from_secs(5)).await;
        let next = rig.executor(None);
        next.recover().await.unwrap();
        rig.done(&next, &op).await;
        let going = removing(&place);
        let Some(left) = rig.store.kept(None).await.unwrap().pop() else {
            assert!(!place.exists() && !going.exists(), "record {k}: forgotten before it was gone");
            if !crashed.load(Ordering::SeqCst) {
                assert!(k > 3, "the operation wrote more than a few records");
                return;
            }
            continue;
        };
        if left.covered.is_some() && place.exists() {
            // A removal ended in its middle: it has the name it gets before anything of it goes.
            std::fs::rename(&place, &going).unwrap();
            std::fs::remove_file(going.join("sub/file")).unwrap();
        }
        let again = Some(&snapshot).filter(|_| place.exists());
        let done = discard(&rig, &left, again).await;
        assert_eq!((done.state, place.exists(), going.exists()), (OperationState::Done, false, false), "record {k}: {done:?}");
        assert_eq!(places(&rig).await, Vec::<String>::new(), "record {k}");
    }
}

#[tokio::test]
async fn what_was_compared_once_is_compared_again_before_it_goes() {
    let rig = Rig::new().await;
    let mut record = kept("shop_data", "shop_data");
    let snapshot = rig.snapshot().await;
    rig.engine.remove_container(&test_permit(), &EngineName::new("db").unwrap(), true).await.unwrap();
    // As an earlier confirmation has left it that failed after comparing.
    record.covered = Some(snapshot.snapshot_id.clone());
    rig.store.keep(std::slice::from_ref(&record)).await.unwrap();
    let unseen = discard(&rig, &record, None).await;
    assert!(unseen.message.as_deref().is_some_and(|m| m.contains("was not compared")), "{unseen:?}");
    rig.engine.write_volume_file("shop_data", "c", b"written since");
    let refused = discard(&rig, &record, Some(&snapshot)).await;
    assert!(refused.message.as_deref().is_some_and(|m| m.contains("does not hold what is in shop_data")), "{refused:?}");
    assert_eq!((rig.volumes().await, places(&rig).await), (vec!["shop_data".to_owned()], vec!["shop_data".to_owned()]));

    let (place, record, _) = directory(&rig).await;
    let unseen = discard(&rig, &record, None).await;
    assert!(unseen.message.as_deref().is_some_and(|m| m.contains("was not compared")) && place.join("sub/file").exists(), "{unseen:?}");
}

#[tokio::test]
async fn the_snapshot_that_alone_holds_what_was_removed_is_forgotten_by_no_schedule() {
    let rig = Rig::new().await;
    let (_, record, snapshot) = directory(&rig).await;
    // Newer ones of the same source and hour: the numbers alone would let the older go.
    let newer = BackupRecord { snapshot_id: "ef".repeat(32), at: snapshot.at + chrono::TimeDelta::seconds(1), ..snapshot.clone() };
    for record in [&snapshot, &newer] {
        rig.store.put_backup(record).await.unwrap();
    }
    let done = discard(&rig, &record, Some(&snapshot)).await;
    assert!(done.message.as_deref().is_some_and(|m| m.contains("marked `keep`")), "{done:?}");
    let rest = Keep { hourly: 1, daily: 1, weekly: 1, monthly: 1, pre_update: 0 };
    let keep = Some(Keeping { rest, ..Keeping::default() });
    let job = DataJob::Backup(Box::new(BackupJob { volumes: vec![data()], keep, ..BackupJob::default() }));
    let op = rig.exec.submit_data(Some(shop()), job, test_permit(), request("backup", None)).await.unwrap();
    let (op, _) = rig.done(&rig.exec, &op).await;
    assert_eq!(op.state, OperationState::Done, "{op:?}");
    let left = rig.store.backup(&crate::model::ids::SnapshotId::new(snapshot.snapshot_id.as_str()).unwrap()).await.unwrap();
    assert!(left.is_some_and(|s| s.tags.iter().any(|t| t == KEPT)));
    let listed = rig.exec.backups.clone().unwrap().list().await.unwrap();
    assert!(listed.iter().any(|s| s.snapshot_id.as_str() == snapshot.snapshot_id));
}
