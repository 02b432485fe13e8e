//! Files of events that left a memory, fetched back out of the backups of the supervisor when they are not beside the memory any more. Only the very file
//! that was written is taken. Deliberately absent: what is read out of them.

use super::CallError;
use super::error::ErrorCode;
use crate::executor::backup::{BackupError, BackupHouse, Failure, INSTANCE};
use crate::model::ids::{AgentName, SnapshotId};
use crate::store::Store;
use crate::store::memory::before::WantedFile;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Backups of the supervisor looked through for a file: each carries all files there were.
const LOOKED_THROUGH: usize = 30;

/// Fetches every listed file of an agent's memory that is not here as it was written.
///
/// # Errors
/// `Conflict` naming the files that no backup has, and why; those that were found are in their places then.
pub async fn files(store: &Store, backups: Option<&BackupHouse>, agent: &AgentName) -> Result<(), CallError> {
    let mut lost = vec![];
    for wanted in store.memory_files_wanted(agent).await? {
        if let Err(why) = file(store, backups, agent, &wanted).await? {
            lost.push(format!("{} ({why})", wanted.path.display()));
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let message = format!("what was remembered then is in files that are gone: {}", crate::redact::line(&lost.join("; "), 600));
    let hint = "put them back from another copy of the home or of its repository (restic finds them under memory/), or name a later moment; nothing was changed";
    Err(CallError::new(ErrorCode::Conflict, message, hint).field("at"))
}

/// One of them; why not, where no backup has it.
async fn file(
    store: &Store,
    backups: Option<&BackupHouse>,
    agent: &AgentName,
    wanted: &WantedFile,
) -> Result<Result<(), String>, CallError> {
    let Some(house) = backups else { return Ok(Err("this supervisor has no backups".to_owned())) };
    let records = store.backups(None, Some(INSTANCE), LOOKED_THROUGH).await?;
    let mut why = format!("none of {} backups of the supervisor has it", records.len());
    for record in &records {
        let Ok(id) = SnapshotId::new(record.snapshot_id.as_str()) else { continue };
        let aside = house.spool().join(format!("recall-{}", ulid::Ulid::generate()));
        let fetched = fetch(house, &id, wanted, &aside).await;
        let taken = match fetched {
            Ok(()) => store.memory_file_put(agent, wanted.first, &aside.join(&wanted.in_copy)).await,
            Err(BackupError::Worker(Failure::NoSuchPath { .. })) => Ok(false),
            Err(e) => {
                why = format!("snapshot {}: {e}", record.snapshot_id);
                Ok(false)
            }
        };
        match std::fs::remove_dir_all(&aside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %aside.display(), error = %e, "a file fetched from a backup is left behind; the next start removes it");
            }
            _ => {}
        }
        if taken? {
            return Ok(Ok(()));
        }
    }
    Ok(Err(why))
}

async fn fetch(house: &BackupHouse, id: &SnapshotId, wanted: &WantedFile, aside: &Path) -> Result<(), BackupError> {
    house.find(id, &wanted.in_copy).await?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(aside);
    made.map_err(|e| BackupError::Io { path: aside.display().to_string(), detail: e.to_string() })?;
    house.restore_part(id, aside, Some(&wanted.in_copy)).await?;
    Ok(())
}

#[cfg(test)]
#[cfg(feature = "backup")]
mod tests {
    use super::*;
    use crate::executor::backup::{BackupRequest, house};
    use crate::store::backup::BackupRecord;
    use crate::store::memory::compact::Keep;
    use chrono::{DateTime, TimeDelta, Utc};
    use serde_json::json;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_memory_goes_back_through_a_file_that_only_a_backup_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
        let (me, day) = (AgentName::new("deployer").unwrap(), |n: i64| DateTime::UNIX_EPOCH + TimeDelta::days(n));
        store.memory_write(&me, "db", &json!("postgres"), day(1)).await.unwrap();
        store.memory_write(&me, "db", &json!("sqlite"), day(2)).await.unwrap();
        let keep = Keep { max_bytes: u64::MAX, max_age: Some(TimeDelta::days(3)) };
        let file = store.memory_compact(&me, &keep, day(30)).await.unwrap().expect("due").file;
        let house = house::tests::house(dir.path(), "");
        house.ensure().await.unwrap();
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        store.copy_into(&copy).await.unwrap();
        std::fs::remove_file(&file).unwrap();

        let refused = files(&store, Some(&house), &me).await.unwrap_err();
        assert!(refused.message.contains("none of 0 backups") && refused.message.contains("events-000000000001"), "{refused:?}");
        let none = files(&store, None, &me).await.unwrap_err();
        assert!(none.message.contains("has no backups"), "{none:?}");
        let (volume, instance) = (INSTANCE.to_owned(), "01test".to_owned());
        let request =
            BackupRequest { path: copy, volume, stack: None, instance, tags: vec![], definition: None, progress: Arc::new(|_| {}) };
        let report = house.backup_dir(request).await.unwrap();
        let record = BackupRecord {
            snapshot_id: report.snapshot_id.to_string(),
            stack: None,
            volume: INSTANCE.to_owned(),
            bytes: report.bytes,
            added: report.added,
            files: report.files,
            state: "complete".to_owned(),
            at: Utc::now(),
            agent: "warden".to_owned(),
            release: None,
            tags: vec![],
            operation: None,
            copies: vec![],
        };
        store.put_backup(&record).await.unwrap();
        assert!(store.memory_restore(&me, day(1), "olga", day(31)).await.is_err(), "the file is gone");
        files(&store, Some(&house), &me).await.unwrap();
        assert_eq!(store.memory_restore(&me, day(1), "olga", day(31)).await.unwrap().changed, ["db"]);
        assert_eq!(store.memory_read(&me, None).await.unwrap()[0].value, json!("postgres"));
        assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
        let left = std::fs::read_dir(house.spool()).map(|d| d.count()).unwrap_or_default();
        assert_eq!(left, 0, "nothing stays in the spool");
    }
}
