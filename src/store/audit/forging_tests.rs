//! What somebody with the files and without the key can do to a log, and what `verify` says to each. The forger drops the triggers, changes
//! what they want, computes the chain anew where they know how, and puts the triggers back as they were.

use super::*;
use crate::store::chain::hex;
use crate::store::tests::{at, fresh};
use rusqlite::Connection;

/// Eight events; checkpoints after the third and the sixth.
async fn filled(store: &Store) {
    for n in 1..=8_i64 {
        store.audit_event("warden", "gave_up", Some("shop"), &json!({"n": n}), at(n)).await.unwrap();
        if n == 3 || n == 6 {
            store.audit_checkpoint(at(n)).await.unwrap();
        }
    }
}

/// Changes the file as an attacker does, without a trace in its schema.
pub(super) fn forge(store: &Store, change: impl FnOnce(&Connection)) {
    let conn = Connection::open(store.home().join("audit.db")).unwrap();
    let mut statement = conn.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").unwrap();
    let triggers: Vec<(String, String)> = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    drop(statement);
    assert_eq!(triggers.len(), 8);
    for (name, _) in &triggers {
        conn.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
    }
    change(&conn);
    for (_, sql) in &triggers {
        conn.execute_batch(sql).unwrap();
    }
}

/// Computes the chain anew from a row to the end: what an attacker who knows the format does after a change.
pub(super) fn rechain(c: &Connection, from: i64) {
    let mut rows = vec![];
    rows::each(c, |row| {
        rows.push(row);
        Ok(())
    })
    .unwrap();
    let mut prev = crate::store::chain::GENESIS;
    for row in rows {
        let own: crate::store::chain::Hash = if row.seq >= from { row.link(&prev) } else { row.hash.clone().try_into().unwrap() };
        if row.seq >= from {
            c.execute("UPDATE audit SET prev_hash = ?2, hash = ?3 WHERE seq = ?1", rusqlite::params![row.seq, prev, own]).unwrap();
        }
        prev = own;
    }
}

fn sql(text: &'static str) -> Box<dyn FnOnce(&Connection)> {
    Box::new(move |c| c.execute_batch(text).unwrap())
}

const REPLACE: &str = "INSERT OR REPLACE INTO audit SELECT seq, at, kind, call, 'eve', door, tool, stack, environment, verdict, outcome, detail, \
                       prev_hash, hash FROM audit WHERE seq = 5";
const SWAP: &str =
    "UPDATE audit SET seq = -1 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 5; UPDATE audit SET seq = 5 WHERE seq = -1";

#[tokio::test]
async fn every_kind_of_forgery_is_found_and_its_row_is_named() {
    let edited = |row: i64| format!("row {row} was changed: its content does not fit its hash");
    let not_checkpointed = |row: i64| format!("row {row} is not the one its checkpoint was made of");
    let moved = |row: i64| format!("row {row} does not follow row {}: one of them was replaced or moved", row - 1);
    let cut = |last: i64| format!("the log ends with row {last}, a checkpoint was made of row 6: rows were cut off");
    type Forgery = (&'static str, Box<dyn FnOnce(&Connection)>, Vec<String>);
    let matrix: Vec<Forgery> = vec![
        ("edit", sql("UPDATE audit SET agent = 'eve' WHERE seq = 5"), vec![edited(5)]),
        ("edit of a detail", sql("UPDATE audit SET detail = '{\"n\":9}' WHERE seq = 8"), vec![edited(8)]),
        ("edit of a time", sql("UPDATE audit SET at = '2020-01-01T00:00:00.000000000Z' WHERE seq = 1"), vec![edited(1)]),
        ("null for a value", sql("UPDATE audit SET stack = NULL WHERE seq = 2"), vec![edited(2)]),
        ("delete", sql("DELETE FROM audit WHERE seq = 4"), vec!["row 4 is missing".into()]),
        ("delete of several", sql("DELETE FROM audit WHERE seq IN (4, 5)"), vec!["rows 4 to 5 are missing".into()]),
        ("delete of the first", sql("DELETE FROM audit WHERE seq = 1"), vec!["row 1 is missing".into()]),
        ("replace", sql(REPLACE), vec![edited(5)]),
        ("swap", sql(SWAP), vec![moved(2), edited(2), moved(3), moved(5), edited(5), moved(6)]),
        ("a hash of its own", sql("UPDATE audit SET hash = zeroblob(32) WHERE seq = 7"), vec![edited(7), moved(8)]),
        ("a short hash", sql("UPDATE audit SET hash = x'00' WHERE seq = 2"), vec![edited(2), moved(3)]),
        ("truncate the tail", sql("DELETE FROM audit WHERE seq > 4"), vec![cut(4)]),
        (
            "a trigger that swallows what an agent does",
            sql("CREATE TRIGGER z BEFORE INSERT ON audit WHEN NEW.agent = 'deployer' BEGIN SELECT RAISE(IGNORE); END"),
            vec!["trigger z is none of ours: it was added".into()],
        ),
        (
            "a trigger that forgets what is counted",
            sql("CREATE TRIGGER z AFTER INSERT ON rate BEGIN DELETE FROM rate; END"),
            vec!["trigger z is none of ours: it was added".into()],
        ),
        ("a view for rows", sql("CREATE VIEW v AS SELECT * FROM audit WHERE seq < 3"), vec!["view v is none of ours: it was added".into()]),
        ("truncate all", sql("DELETE FROM audit"), vec![cut(0)]),
        (
            "edit, and the chain anew to the end",
            Box::new(|c| {
                c.execute_batch("UPDATE audit SET agent = 'eve' WHERE seq = 2").unwrap();
                rechain(c, 2);
            }),
            vec![not_checkpointed(3), not_checkpointed(6)],
        ),
        (
            "rewritten from the middle with a fresh chain",
            Box::new(|c| {
                c.execute_batch("UPDATE audit SET tool = 'nothing_happened' WHERE seq > 4").unwrap();
                rechain(c, 5);
            }),
            vec![not_checkpointed(6)],
        ),
        (
            "a row taken out, the rest renumbered and chained anew",
            Box::new(|c| {
                c.execute_batch("DELETE FROM audit WHERE seq = 4; UPDATE audit SET seq = -seq WHERE seq > 4; UPDATE audit SET seq = -seq - 1 WHERE seq < 0")
                    .unwrap();
                rechain(c, 4);
            }),
            vec![not_checkpointed(6)],
        ),
        (
            "a row put in, the rest renumbered and chained anew",
            Box::new(|c| {
                c.execute_batch("UPDATE audit SET seq = -seq WHERE seq > 2; UPDATE audit SET seq = -seq + 1 WHERE seq < 0").unwrap();
                c.execute_batch(
                    "INSERT INTO audit SELECT 3, at, kind, call, 'eve', door, tool, stack, environment, verdict, outcome, detail, prev_hash, hash FROM audit WHERE seq = 2",
                )
                .unwrap();
                rechain(c, 3);
            }),
            vec![not_checkpointed(3), not_checkpointed(6)],
        ),
    ];
    for (name, change, expected) in matrix {
        let (_dir, store) = fresh().await;
        filled(&store).await;
        assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new(), "{name}: before");
        forge(&store, change);
        assert_eq!(store.audit_verify().await.unwrap().problems, expected, "{name}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_checkpoint_that_was_dropped_forged_or_moved_is_named_by_its_row() {
    let (_dir, store) = fresh().await;
    filled(&store).await;
    let file = store.home().join("checkpoints");
    let good = std::fs::read_to_string(&file).unwrap();
    let second = good.match_indices("dockwarden/").map(|(i, _)| i).find(|i| *i > 10 && good[..*i].ends_with("\n\n")).unwrap();
    let (first, second) = good.split_at(second);
    let problems = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        store.audit_verify().await.unwrap().problems
    };
    let shown = file.display();
    assert_eq!(problems(first).await, [format!("the checkpoint of row 6 is missing from {shown}")], "the last one");
    assert_eq!(problems(second).await, [format!("the checkpoint of row 3 is missing from {shown}")], "one in the middle");
    assert_eq!(problems("").await, [format!("the checkpoints of rows 3, 6 are missing from {shown}")], "the file");
    let swapped = problems(&format!("{second}{first}")).await;
    assert_eq!(swapped, ["checkpoint 2 has 3 rows, the one before it 6"]);
    let forged = problems(&good.replacen("\n3\n", "\n2\n", 1)).await;
    assert_eq!(forged, ["checkpoint 1 cannot be trusted: its signature does not fit its text"]);
    assert_eq!(problems(&good).await, Vec::<String>::new());
    let copied = problems(&format!("{first}{first}{second}")).await;
    assert_eq!(copied, ["checkpoint 2 states row 3 again: it is a copy of the one before it"]);
    // The same, with the log cut to what the forged file says: the note in the other database knows better.
    forge(&store, |c| c.execute_batch("DELETE FROM audit WHERE seq > 4").unwrap());
    let missing = format!("the checkpoint of row 6 is missing from {shown}");
    let cut = "the log ends with row 4, a checkpoint of row 6 was noted: rows were cut off".to_owned();
    assert_eq!(problems(first).await, [missing.clone(), cut.clone()]);
    let copy = "checkpoint 2 states row 3 again: it is a copy of the one before it".to_owned();
    assert_eq!(problems(&format!("{first}{first}")).await, [copy, missing.clone(), cut.clone()], "as many as were noted");
    let junk = good.replacen("\n3\n", "\n2\n", 1).replacen("\n6\n", "\n5\n", 1);
    let untrusted = |n| format!("checkpoint {n} cannot be trusted: its signature does not fit its text");
    assert_eq!(problems(&junk).await, [untrusted(1), untrusted(2), cut.clone()], "told once");
    // More checkpoints than are noted hide none of those that are.
    store.set_value("audit.checkpoint", &json!({"size": 6, "hash": "00".repeat(32), "sizes": [6]})).await.unwrap();
    assert_eq!(problems(first).await, [missing, cut]);
    forge(&store, |c| c.execute_batch("DELETE FROM audit WHERE seq > 3").unwrap());
    let head = store.audit_rows(&AuditQuery { limit: 1, ..Default::default() }).await.unwrap().remove(0);
    assert_eq!((head.seq, head.hash.len()), (3, hex(&[0; 32]).len()));
}

#[tokio::test]
async fn a_swallowed_row_is_an_error_and_such_a_log_is_not_opened_again() {
    let (dir, store) = fresh().await;
    filled(&store).await;
    let trigger = "CREATE TRIGGER z BEFORE INSERT ON audit WHEN NEW.agent = 'deployer' BEGIN SELECT RAISE(IGNORE); END";
    forge(&store, |c| c.execute_batch(trigger).unwrap());
    let e = store.audit_event("deployer", "approval_given", None, &json!({}), at(9)).await.expect_err("no row, no action");
    assert!(matches!(&e, StoreError::Corrupt { detail, .. } if detail.contains("0 were written")), "{e:?}");
    store.audit_event("warden", "gave_up", None, &json!({}), at(9)).await.expect("the others are recorded");
    store.close().await;
    let e = crate::store::tests::open_in(&dir).await.expect_err("refused");
    assert!(e.to_string().contains("trigger z is none of ours"), "{e}");
    Connection::open(store.home().join("audit.db")).unwrap().execute_batch("DROP TRIGGER z").unwrap();
    let store = crate::store::tests::open_in(&dir).await.expect("as it was");
    assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_trigger_that_is_not_ours_is_refused_in_every_database() {
    let (dir, store) = fresh().await;
    store.close().await;
    let state = store.home().join("state.db");
    Connection::open(&state)
        .unwrap()
        .execute_batch("CREATE TRIGGER z AFTER INSERT ON approval BEGIN UPDATE approval SET state = 'approved'; END")
        .unwrap();
    let e = crate::store::tests::open_in(&dir).await.expect_err("refused");
    assert!(e.to_string().contains("trigger z is none of ours"), "{e}");
}

#[tokio::test]
async fn what_was_kept_elsewhere_finds_rows_that_were_cut_off_with_all_that_knew_of_them() {
    let (_dir, store) = fresh().await;
    filled(&store).await;
    let (early, key) = store.audit_signed_head(at(8)).await.unwrap();
    assert!(key.starts_with(&format!("dockwarden/{}+", store.instance())), "{key}");
    assert!(early.starts_with("dockwarden/") && early.ends_with("\n\n") && early.matches("\n\n").count() == 2, "{early}");
    store.audit_event("warden", "gave_up", Some("shop"), &json!({"n": 9}), at(9)).await.unwrap();
    let (late, _) = store.audit_signed_head(at(9)).await.unwrap();
    let both = format!("{early}{late}");
    assert_eq!(store.audit_verify_against(both.clone()).await.unwrap().problems, Vec::<String>::new());
    for cut in ["not a checkpoint".to_owned(), late[..late.len() - 40].to_owned()] {
        let said = store.audit_verify_against(cut).await.unwrap().problems;
        assert!(said.len() == 1 && said[0].contains("whole checkpoint"), "{said:?}");
    }
    let other = late.replacen(&store.instance().to_string(), "dw-other", 2);
    assert!(store.audit_verify_against(other).await.unwrap().problems[0].contains("cannot be trusted"));
    // The last row, its checkpoint and the note of it: nothing on the host says that there was more.
    forge(&store, |c| assert_eq!(c.execute("DELETE FROM audit WHERE seq = 9", []).unwrap(), 1));
    let file = store.home().join(checkpoint::FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.strip_suffix(late.as_str()).unwrap()).unwrap();
    let mut note = store.value(checkpoint::NOTED).await.unwrap().unwrap();
    let sizes: Vec<i64> = checkpoint::noted_sizes(&note).into_iter().filter(|s| *s != 9).collect();
    note["sizes"] = json!(sizes);
    note["size"] = json!(8);
    store.set_value(checkpoint::NOTED, &note).await.unwrap();
    let said = store.audit_verify_against(both.clone()).await.unwrap().problems;
    assert_eq!(said.iter().filter(|p| p.contains("kept checkpoint 2 was made of row 9: rows were cut off")).count(), 1, "{said:?}");
    // Another ninth row in its place.
    store.audit_event("warden", "gave_up", Some("shop"), &json!({"n": 10}), at(10)).await.unwrap();
    let said = store.audit_verify_against(both).await.unwrap().problems;
    assert_eq!(said.iter().filter(|p| p.contains("row 9 is not the one kept checkpoint 2 was made of")).count(), 1, "{said:?}");
}
