//! Compaction: what leaves, what stays, that the chain goes on through the files, and that a crash between any two steps loses nothing.

use super::compact::{Compacted, Keep, Until};
use super::tests::{agent, call};
use super::*;
use crate::store::tests::{at, fresh, open_in};
use chrono::TimeDelta;
use serde_json::json;

const ALL: u64 = u64::MAX;

fn older_than(days: i64) -> Keep {
    Keep { max_bytes: ALL, max_age: Some(TimeDelta::days(days)) }
}

const DAY: i64 = 86_400;

/// Notes on the first day, one call a day after it.
async fn lived(store: &Store, me: &AgentName) {
    store.memory_write(me, "db", &json!("postgres"), at(1)).await.unwrap();
    store.memory_write(me, "old", &json!("mariadb"), at(2)).await.unwrap();
    store.memory_write(me, "old", &Value::Null, at(3)).await.unwrap();
    for day in 1..=20 {
        call(store, me.as_str(), day * DAY, "ok", json!({"day": format!("day{day}")})).await;
    }
    store.project_history().await.unwrap();
    store.memory_write(me, "late", &json!("sqlite"), at(20 * DAY + 5)).await.unwrap();
}

async fn found(store: &Store, me: &AgentName, query: &str) -> Vec<String> {
    store.memory_search(me, query, 50).await.unwrap().into_iter().map(|e| e.key).collect()
}

async fn days(store: &Store, me: &AgentName) -> usize {
    store.memory_history(me, 100).await.unwrap().len()
}

async fn exported_days(dir: &tempfile::TempDir, store: &Store, me: &AgentName) -> Vec<String> {
    let out = dir.path().join("out");
    store.memory_export(me, &out).await.unwrap();
    let history: Vec<MemoryEntry> = serde_json::from_slice(&std::fs::read(out.join("history.json")).unwrap()).unwrap();
    history.iter().map(|e| e.value["detail"]["day"].as_str().unwrap_or_default().to_owned()).collect()
}

fn all_days() -> Vec<String> {
    (1..=20).map(|d| format!("day{d}")).collect()
}

#[tokio::test]
async fn old_history_goes_to_a_file_and_the_context_stays() {
    let (dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    let now = at(21 * DAY);
    assert_eq!(store.memory_compact(&me, &Keep { max_bytes: ALL, max_age: None }, now).await.unwrap(), None, "nothing is due");
    assert_eq!(store.memory_compact(&me, &older_than(30), now).await.unwrap(), None, "nothing is that old");
    let Compacted { first, last, file } = store.memory_compact(&me, &older_than(11), now).await.unwrap().expect("due");
    assert_eq!((first, last), (1, 12), "three events of notes and nine days");
    assert!(file.is_file());
    assert_eq!(store.memory_compact(&me, &older_than(11), now).await.unwrap(), None, "once");

    let value = async |key: &str| store.memory_read(&me, Some(key)).await.unwrap().pop().map(|e| (e.seq, e.value));
    assert_eq!((value("db").await, value("old").await), (Some((1, json!("postgres"))), None));
    assert_eq!((found(&store, &me, "postgres").await, days(&store, &me).await), (vec!["db".to_owned()], 11));
    assert_eq!(
        (found(&store, &me, "day3").await, found(&store, &me, "day15").await),
        (vec!["deploy".to_owned()], vec!["deploy".to_owned()])
    );
    assert_eq!(exported_days(&dir, &store, &me).await, all_days(), "an export has all of it");
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());

    // It goes on as before: notes that began in the file are changed, history comes in, and the next part leaves.
    store.memory_write(&me, "db", &json!("cockroach"), at(22 * DAY)).await.unwrap();
    assert_eq!(found(&store, &me, "postgres").await, Vec::<String>::new());
    call(&store, "deployer", 23 * DAY, "ok", json!({"day": "day23"})).await;
    store.project_history().await.unwrap();
    let second = store.memory_compact(&me, &older_than(5), at(30 * DAY)).await.unwrap().expect("due");
    assert_eq!(second.first, 13);
    store.close().await;
    let store = open_in(&dir).await.unwrap();
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
    assert_eq!(store.memory_read(&me, Some("db")).await.unwrap()[0].value, json!("cockroach"));
    assert_eq!(store.memory_read(&me, Some("late")).await.unwrap()[0].value, json!("sqlite"));
    let mut want = all_days();
    want.push("day23".into());
    assert_eq!(exported_days(&dir, &store, &me).await, want);
}

#[tokio::test]
async fn a_crash_between_any_two_steps_loses_nothing_and_the_next_one_goes_on() {
    for until in [Until::Written, Until::Named] {
        let (dir, store) = fresh().await;
        let me = agent("deployer");
        lived(&store, &me).await;
        let now = at(21 * DAY);
        let before = store.memory_history(&me, 100).await.unwrap();
        store.compact_until(&me, &older_than(11), now, until).await.unwrap().expect("due");
        // What was made so far is of the process that died; what came in since makes the next file another one.
        store.close().await;
        let store = open_in(&dir).await.unwrap();
        assert_eq!(store.memory_history(&me, 100).await.unwrap(), before, "{until:?}");
        assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new(), "{until:?}");
        assert_eq!(exported_days(&dir, &store, &me).await, all_days(), "{until:?}: nothing twice");
        let done = store.memory_compact(&me, &older_than(10), now).await.unwrap().expect("due");
        assert_eq!((done.first, done.last), (1, 13), "{until:?}");
        assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new(), "{until:?}");
        assert_eq!(exported_days(&dir, &store, &me).await, all_days(), "{until:?}");
    }
}

#[tokio::test]
async fn a_write_that_fails_leaves_log_and_file_as_they_were() {
    let (dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    store.memory_db(&me).await.unwrap().refuse.store(1, Ordering::SeqCst);
    store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap_err();
    assert_eq!((days(&store, &me).await, store.memory_verify(&me).await.unwrap()), (20, vec![]));
    store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due");
    assert_eq!(exported_days(&dir, &store, &me).await, all_days());
}

#[tokio::test]
async fn a_memory_that_is_too_large_shrinks_to_half_of_what_it_may_have() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    store.memory_write(&me, "note", &json!("stays"), at(1)).await.unwrap();
    for n in 0..600 {
        call(&store, "deployer", n, "ok", json!({"text": format!("{n} {}", "word ".repeat(200))})).await;
    }
    store.project_history().await.unwrap();
    let used = async || store.memory_db(&me).await.unwrap().read(used_bytes).await.unwrap();
    let before = used().await;
    assert!(before > 1 << 20, "{before}");
    let keep = Keep { max_bytes: 1 << 20, max_age: None };
    store.memory_compact(&me, &keep, at(700)).await.unwrap().expect("due");
    let after = used().await;
    assert!(after < 3 << 18, "{before} -> {after}");
    assert_eq!(store.memory_compact(&me, &keep, at(700)).await.unwrap(), None);
    assert_eq!(found(&store, &me, "stays").await, ["note"]);
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn notes_fill_half_of_a_memory_and_no_more() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    let (most, large) = (1 << 20, json!("x".repeat(60_000)));
    let mut n = 0;
    let refused = loop {
        match store.memory_write_within(&me, &format!("k{n}"), &large, most, at(1)).await {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 100, "never refused");
    };
    assert!(matches!(refused, StoreError::TooLarge { max, .. } if max == 1 << 19), "{refused}");
    assert!(refused.to_string().contains("remove keys"), "{refused}");
    assert!((8..=10).contains(&n), "{n} notes of 60 kB in half a MiB");
    store.memory_write_within(&me, "k0", &Value::Null, most, at(2)).await.unwrap();
    store.memory_write_within(&me, "k1", &Value::Null, most, at(2)).await.unwrap();
    store.memory_write_within(&me, "small", &json!("fits again"), most, at(3)).await.unwrap();
}

#[tokio::test]
async fn a_memory_goes_back_as_far_as_its_log_and_what_a_restore_needs_stays() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    let keys = async || {
        let mut all: Vec<_> = store.memory_read(&me, None).await.unwrap().into_iter().map(|e| e.key).collect();
        all.sort();
        all
    };
    // Back to the second moment: `old` again. The event it goes back to must not leave before the restore does.
    store.memory_restore(&me, at(2), "olga", at(21 * DAY)).await.unwrap();
    assert_eq!(keys().await, ["db", "old"]);
    let first = store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due");
    assert_eq!(first.last, 2, "what the restore goes back to is where the log begins");
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
    // On from there to before the restore, and to what left.
    store.memory_restore(&me, at(20 * DAY + 6), "olga", at(22 * DAY)).await.unwrap();
    assert_eq!(keys().await, ["db", "late"]);
    store.memory_restore(&me, at(2), "olga", at(23 * DAY)).await.unwrap();
    assert_eq!(keys().await, ["db", "old"]);
    assert_eq!(found(&store, &me, "mariadb").await, ["old"]);
    // The first note alone: its moment is in the file.
    let early = store.memory_restore(&me, at(1), "olga", at(24 * DAY)).await.unwrap();
    assert_eq!((early.as_of, early.keys, early.changed), (1, 1, vec!["old".to_owned()]));
    assert_eq!(keys().await, ["db"]);
    let never = store.memory_restore(&me, at(0), "olga", at(25 * DAY)).await.unwrap_err();
    assert!(matches!(&never, StoreError::Missing { .. }) && never.to_string().contains("begins later"), "{never}");
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_memory_goes_back_to_a_moment_whose_events_left_it_and_forward_again() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due");
    store.memory_write(&me, "db", &json!("mysql"), at(21 * DAY + 1)).await.unwrap();
    let seen = async || {
        let mut all: Vec<_> = store.memory_read(&me, None).await.unwrap().into_iter().map(|e| (e.key, e.value, e.source)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let now = seen().await;
    let done = store.memory_restore(&me, at(2), "olga", at(22 * DAY)).await.unwrap();
    assert_eq!((done.as_of, done.changed), (2, vec!["db".to_owned(), "late".to_owned(), "old".to_owned()]));
    let back = seen().await;
    let said: Vec<_> = back.iter().map(|(key, value, source)| (key.as_str(), value.clone(), source.as_str())).collect();
    assert_eq!(
        said,
        [("db", json!("postgres"), now[0].2.as_str()), ("old", json!("mariadb"), now[0].2.as_str())],
        "as they were, and by whom"
    );
    assert_eq!((found(&store, &me, "mariadb").await, found(&store, &me, "mysql").await), (vec!["old".to_owned()], vec![]));
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
    // It can itself be gone back behind, and the log compacted after it.
    store.memory_restore(&me, at(21 * DAY + 2), "olga", at(23 * DAY)).await.unwrap();
    assert_eq!(seen().await, now);
    store.memory_compact(&me, &older_than(1), at(40 * DAY)).await.unwrap().expect("due");
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
    // Between the two restores, which are in the second file by now.
    store.memory_restore(&me, at(22 * DAY + 1), "olga", at(41 * DAY)).await.unwrap();
    assert_eq!(seen().await, back);
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_is_not_here_is_named_and_taken_back_only_as_it_was_written() {
    let (dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    let file = store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due").file;
    let aside = dir.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    let before = store.memory_read(&me, None).await.unwrap();
    let refused = store.memory_restore(&me, at(2), "olga", at(22 * DAY)).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Absent { files, .. } if *files == file.display().to_string()), "{refused}");
    assert_eq!(store.memory_read(&me, None).await.unwrap(), before, "nothing was changed");
    let wanted = store.memory_files_wanted(&me).await.unwrap();
    assert_eq!(wanted.iter().map(|w| (w.first, w.path.clone())).collect::<Vec<_>>(), [(1, file.clone())]);
    let mut torn = std::fs::read(&aside).unwrap();
    torn[20] ^= 1;
    std::fs::write(dir.path().join("torn"), torn).unwrap();
    assert!(!store.memory_file_put(&me, 1, &dir.path().join("torn")).await.unwrap() && !file.exists());
    assert!(store.memory_file_put(&me, 1, &aside).await.unwrap());
    assert_eq!(store.memory_files_wanted(&me).await.unwrap(), []);
    assert_eq!(store.memory_restore(&me, at(2), "olga", at(22 * DAY)).await.unwrap().as_of, 2);
    assert_eq!(store.memory_verify(&me).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_changed_beside_the_log_is_found() {
    let (dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    let file = store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due").file;
    let conn = Connection::open(dir.path().join("memory/deployer/memory.db")).unwrap();
    for sql in [
        "DELETE FROM memory_event WHERE seq > 12",
        "DELETE FROM compacted",
        "UPDATE compacted SET last = 20",
        "INSERT INTO compacted (first, last, head, sha256, to_at, event) SELECT 13, 20, hash, zeroblob(32), '', 24 FROM memory_event WHERE seq = 19",
    ] {
        assert!(conn.execute(sql, []).is_err(), "{sql}");
    }
    let problems = async || store.memory_verify(&me).await.unwrap().join("; ");
    conn.execute("UPDATE base SET value = '\"other\"' WHERE key = 'db'", []).unwrap();
    assert!(problems().await.contains("what the log begins with is not what event 25 says"), "{}", problems().await);
    conn.execute("UPDATE base SET value = '\"postgres\"' WHERE key = 'db'", []).unwrap();
    assert_eq!(problems().await, "");

    let whole = std::fs::read(&file).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut torn = whole.clone();
    torn[20] ^= 1;
    std::fs::write(&file, torn).unwrap();
    assert!(problems().await.contains("was changed"), "{}", problems().await);
    std::fs::remove_file(&file).unwrap();
    assert!(problems().await.contains("put the file back"), "{}", problems().await);
    std::fs::write(&file, whole).unwrap();
    assert_eq!(problems().await, "");
}

#[tokio::test]
async fn an_import_fills_no_more_of_a_memory_than_notes_may() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    let notes = |n: usize| (0..n).map(|i| (format!("k{i}"), json!("x".repeat(60_000)))).collect::<serde_json::Map<_, _>>();
    let file = |n| Value::Object(notes(n)).to_string();
    let refused = store.memory_import(&me, &file(20), None, 1 << 20, at(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge { max, .. } if max == 1 << 19), "{refused}");
    assert_eq!(store.memory_read(&me, None).await.unwrap(), [], "all or none");
    assert_eq!(store.memory_import(&me, &file(5), None, 1 << 20, at(2)).await.unwrap(), 5);
}

#[tokio::test]
async fn history_moves_to_another_host_once_however_often_it_is_imported() {
    let (dir, store) = fresh().await;
    let (me, there) = (agent("deployer"), agent("newcomer"));
    lived(&store, &me).await;
    store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due");
    assert_eq!(exported_days(&dir, &store, &me).await, all_days());
    let file = std::fs::read_to_string(dir.path().join("out/history.json")).unwrap();
    let import = async || store.memory_import(&there, &file, Some(&me), ALL, at(30 * DAY)).await.unwrap();
    assert_eq!((import().await, import().await), (20, 0));
    let told = store.memory_history(&there, 100).await.unwrap();
    assert_eq!(
        (told.len(), told[19].at, told[19].source.as_str()),
        (20, at(DAY), "import:deployer"),
        "as it happened, and another's words"
    );
    assert_eq!(store.memory_verify(&there).await.unwrap(), Vec::<String>::new());
    for wrong in
        ["[1]", "[{\"seq\": 1, \"at\": \"2026-01-01T00:00:00Z\", \"kind\": \"context\", \"key\": \"k\", \"value\": 1, \"source\": \"me\"}]"]
    {
        let refused = store.memory_import(&there, wrong, None, ALL, at(1)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Corrupt { what: "history.json", .. }), "{refused}");
    }
}

#[tokio::test]
async fn history_that_left_the_database_is_found_after_what_is_in_it() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    let days = async |query: &str| {
        let found = store.memory_search(&me, query, 50).await.unwrap();
        found.iter().map(|e| e.value["detail"]["day"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(days("day3").await, ["day3"]);
    store.memory_compact(&me, &older_than(11), at(21 * DAY)).await.unwrap().expect("due");
    assert_eq!(days("day3").await, ["day3"], "it is in a file now");
    assert_eq!((days("day15").await, days("day99").await), (vec!["day15".to_owned()], vec![]));
    assert_eq!(days("ay3").await, Vec::<String>::new(), "words are found by their beginnings");
}

#[tokio::test]
async fn a_damaged_archive_keeps_nobody_from_what_is_elsewhere() {
    let (_dir, store) = fresh().await;
    let me = agent("deployer");
    lived(&store, &me).await;
    let first = store.memory_compact(&me, &older_than(15), at(21 * DAY)).await.unwrap().expect("due");
    let second = store.memory_compact(&me, &older_than(10), at(21 * DAY)).await.unwrap().expect("due");
    assert_ne!(first.file, second.file);
    assert_eq!((found(&store, &me, "day2").await.is_empty(), found(&store, &me, "day8").await.is_empty()), (false, false));
    std::fs::write(&first.file, b"no archive").unwrap();
    assert_eq!(found(&store, &me, "postgres").await, ["db"]);
    assert!(!found(&store, &me, "day8").await.is_empty(), "what is in the other file");
}
