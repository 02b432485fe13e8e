//! The home of a store: its keys, its privacy, and which homes are refused.

use super::*;

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn a_home_keeps_its_identity_keys_and_privacy() {
    let (dir, store) = fresh().await;
    let (instance, hash, digest) = (store.instance().to_owned(), store.keyed_hash("x"), store.keyed_digest(b"x"));
    assert_eq!(instance.len(), 26);
    assert_eq!(instance, instance.to_lowercase());
    assert_eq!((hash.len(), digest.len()), (6, 64));
    assert_ne!(hash, digest[..6], "the two hashes use different keys");
    assert_ne!(hash, store.keyed_hash("y"));
    for file in files(store.home()) {
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    for sub in ["", "keys"] {
        assert_eq!(std::fs::metadata(store.home().join(sub)).unwrap().permissions().mode() & 0o777, 0o700);
    }
    store.close().await;
    let again = open_in(&dir).await.unwrap();
    assert_eq!((again.instance(), again.keyed_hash("x"), again.keyed_digest(b"x")), (instance.as_str(), hash, digest));
    let (_other, other) = fresh().await;
    assert_ne!(other.keyed_digest(b"x"), again.keyed_digest(b"x"), "every home has its own key");
}

#[tokio::test]
async fn a_lost_or_wrong_key_is_refused_at_open() {
    let (dir, store) = fresh().await;
    store.close().await;
    let key = store.home().join("keys/seal.key");
    let good = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(open_in(&dir).await, Err(StoreError::Corrupt { what: "key", detail }) if detail.contains("missing")));
    std::fs::write(&key, [1u8; 32]).unwrap();
    assert!(matches!(open_in(&dir).await, Err(StoreError::Corrupt { what: "key", detail }) if detail.contains("not the key")));
    std::fs::write(&key, [1u8; 3]).unwrap();
    assert!(matches!(open_in(&dir).await, Err(StoreError::Corrupt { what: "key", detail }) if detail.contains("3 bytes")));
    std::fs::write(&key, good).unwrap();
    assert_eq!(open_in(&dir).await.unwrap().instance(), store.instance());
}

#[tokio::test]
async fn a_newer_home_is_refused() {
    let (dir, store) = fresh().await;
    store.close().await;
    let conn = rusqlite::Connection::open(store.home().join("audit.db")).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let refused = open_in(&dir).await.unwrap_err();
    assert!(matches!(&refused, StoreError::TooNew { db, found: 99, known: 3 } if db.ends_with("audit.db")), "{refused}");
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let (_dir, store) = fresh().await;
    let agent = AgentName::new("deployer").unwrap();
    store.close().await;
    assert!(matches!(store.stacks().await, Err(StoreError::Closed)));
    assert!(matches!(store.set_value("k", &json!(1)).await, Err(StoreError::Closed)));
    assert!(matches!(store.memory_read(&agent, None).await, Err(StoreError::Closed)));
    store.close().await;
}

#[tokio::test]
async fn sealed_values_are_in_no_file_of_the_home() {
    let (dir, store) = fresh().await;
    let op = store.begin_operation(operation("op-1", at(0)), "args").await.unwrap().unwrap();
    store.put_release(&release(1)).await.unwrap();
    store.put_plan(&plan("plan-1", at(0))).await.unwrap();
    store.request_approval(approval("ap-1", "d", 1)).await.unwrap();
    let seq = store.step_intent(&op.id, op.epoch, Phase::Prepare, "create:web:1", &json!({"env": SECRET}), at(1)).await.unwrap();
    store.step_done(&op.id, seq, &json!({"env": SECRET})).await.unwrap();
    store.save_operation(&Operation { evidence: vec![evidence()], ..op }).await.unwrap();
    let leaks = |dir: &tempfile::TempDir| -> Vec<PathBuf> {
        let all = files(dir.path());
        assert!(all.len() >= 4, "{all:?}");
        all.into_iter().filter(|f| std::fs::read(f).unwrap().windows(SECRET.len()).any(|w| w == SECRET.as_bytes())).collect()
    };
    assert_eq!(leaks(&dir), Vec::<PathBuf>::new());
    store.close().await;
    assert_eq!(leaks(&dir), Vec::<PathBuf>::new());
    std::fs::write(store.home().join("probe"), SECRET).unwrap();
    assert_eq!(leaks(&dir), [store.home().join("probe")], "the search itself works");
}
