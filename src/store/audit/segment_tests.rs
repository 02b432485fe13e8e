//! Sealed segments: nothing is lost or told twice whenever a rotation is cut off, questions span them, and whatever is done to a segment, its seal or
//! its place in the list is named.

use super::forging_tests::forge;
use super::rotate::{Rotation, Until};
use super::segments;
use super::*;
use crate::store::migrate;
use crate::store::tests::{at, fresh, open_in};
use chrono::TimeDelta;
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const NOW: Rotation = Rotation { max_bytes: 0, max_age: None };

async fn event(store: &Store, n: i64) {
    store.audit_event("warden", "gave_up", Some("shop"), &json!({"n": n}), at(n)).await.unwrap();
}

/// Rows 1 to 3 and 4 to 7 are sealed, 8 to 10 are not; 4 and 8 tell of it. Checkpoints of rows 3 and 7.
async fn sealed_twice() -> (tempfile::TempDir, Store) {
    let (dir, store) = fresh().await;
    for n in 1..=3 {
        event(&store, n).await;
    }
    store.audit_checkpoint(at(3)).await.unwrap();
    let one = store.audit_rotate(&NOW, at(4)).await.unwrap().unwrap();
    for n in 5..=7 {
        event(&store, n).await;
    }
    store.audit_checkpoint(at(7)).await.unwrap();
    let two = store.audit_rotate(&NOW, at(8)).await.unwrap().unwrap();
    assert_eq!(((one.first, one.last), (two.first, two.last)), ((1, 3), (4, 7)));
    event(&store, 9).await;
    event(&store, 10).await;
    (dir, store)
}

async fn seqs(store: &Store) -> Vec<i64> {
    store.audit_after(0, None, 1000).await.unwrap().into_iter().map(|r| r.seq).collect()
}

fn live(store: &Store) -> Vec<i64> {
    let c = Connection::open(store.home().join("audit.db")).unwrap();
    let mut s = c.prepare("SELECT seq FROM audit ORDER BY seq").unwrap();
    s.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
}

fn file(store: &Store, first: i64) -> PathBuf {
    segments::file(&store.segments_dir(), first)
}

fn seal(store: &Store, first: i64) -> PathBuf {
    segments::seal_file(&store.segments_dir(), first)
}

#[tokio::test]
async fn the_closed_part_is_a_read_only_file_and_the_log_goes_on() {
    let (_dir, store) = sealed_twice().await;
    assert_eq!(live(&store), [8, 9, 10]);
    assert_eq!(std::fs::metadata(file(&store, 1)).unwrap().permissions().mode() & 0o777, 0o400);
    let report = store.audit_verify().await.unwrap();
    assert_eq!((report.rows, report.segments, report.checkpoints, report.problems), (10, 2, 2, vec![]));
    assert_eq!(seqs(&store).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(store.audit_head().await.unwrap(), 10);
    // The rows that tell of it are rows like any other.
    let told = store.audit_rows(&AuditQuery { tool: Some("audit_sealed".into()), limit: 9, ..Default::default() }).await.unwrap();
    let ranges: Vec<_> = told.iter().map(|r| (r.seq, r.detail["first"].clone(), r.detail["last"].clone())).collect();
    assert_eq!(ranges, [(8, json!(4), json!(7)), (4, json!(1), json!(3))]);
    assert!(store.audit_rotate(&Rotation { max_bytes: u64::MAX, max_age: None }, at(11)).await.unwrap().is_none(), "not due");
    assert!(store.audit_rotate(&Rotation { max_bytes: u64::MAX, max_age: Some(TimeDelta::days(1)) }, at(11)).await.unwrap().is_none());
    let aged = Rotation { max_bytes: u64::MAX, max_age: Some(TimeDelta::seconds(1)) };
    assert_eq!(store.audit_rotate(&aged, at(20)).await.unwrap().map(|s| (s.first, s.last)), Some((8, 10)));
    assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new());
    store.close().await;
}

#[tokio::test]
async fn questions_span_the_segments() {
    let (_dir, store) = sealed_twice().await;
    let query = async |q: AuditQuery| store.audit_rows(&q).await.unwrap().into_iter().map(|r| r.seq).collect::<Vec<_>>();
    let all = AuditQuery { limit: 100, ..Default::default() };
    assert_eq!(query(all.clone()).await, (1..=10).rev().collect::<Vec<_>>());
    assert_eq!(query(AuditQuery { limit: 5, ..all.clone() }).await, [10, 9, 8, 7, 6]);
    assert_eq!(query(AuditQuery { before_seq: Some(6), limit: 3, ..all.clone() }).await, [5, 4, 3]);
    assert_eq!(query(AuditQuery { until: Some(at(3)), ..all.clone() }).await, [2, 1]);
    assert_eq!(query(AuditQuery { since: Some(at(7)), tool: Some("gave_up".into()), ..all.clone() }).await, [10, 9, 7]);
    let after = async |seq, n| store.audit_after(seq, None, n).await.unwrap().into_iter().map(|r| r.seq).collect::<Vec<_>>();
    assert_eq!((after(2, 3).await, after(6, 100).await, after(9, 100).await), (vec![3, 4, 5], vec![7, 8, 9, 10], vec![10]));
    let since = store.audit_after(0, Some(at(6)), 100).await.unwrap();
    assert_eq!(since.iter().map(|r| r.seq).collect::<Vec<_>>(), [6, 7, 8, 9, 10]);
    store.close().await;
}

fn read(n: i64, agent: &str, tool: &str) -> (Intent, Outcome) {
    let call = CallId::new(format!("call-{n}")).unwrap();
    let intent = Intent { tool: tool.into(), stack: None, ..Intent::sample(call.as_str(), agent, at(n)) };
    let outcome = Outcome {
        call,
        outcome: "ok".into(),
        code: None,
        verdict: Verdict::Allow,
        findings: vec![],
        detail: json!({}),
        duration_ms: 1,
        at: at(n),
    };
    (intent, outcome)
}

#[tokio::test]
async fn histories_and_first_times_see_sealed_rows_and_an_open_call_keeps_its_intent() {
    let (_dir, store) = fresh().await;
    let (intent, outcome) = read(1, "observer", "status");
    store.audit_read(&intent, &outcome, &[]).await.unwrap();
    let (open, end) = read(2, "deployer", "deploy");
    store.audit_intent(&open, &[]).await.unwrap();
    let (intent, outcome) = read(3, "observer", "logs");
    store.audit_read(&intent, &outcome, &[]).await.unwrap();
    assert_eq!(store.audit_rotate(&NOW, at(4)).await.unwrap().map(|s| (s.first, s.last)), Some((1, 1)), "up to the open call");
    assert!(store.audit_rotate(&NOW, at(5)).await.unwrap().is_none(), "nothing before it is left");
    store.audit_outcome(&end, &[]).await.unwrap();
    assert_eq!(store.audit_rotate(&NOW, at(6)).await.unwrap().map(|s| (s.first, s.last)), Some((2, 5)));
    // What became of a call is known from the sealed part too: it must not be made again.
    let of_call = async |call: &CallId| {
        let rows = store.audit_of_call(call).await.unwrap();
        rows.into_iter().map(|r| (r.seq, r.kind, r.outcome)).collect::<Vec<_>>()
    };
    let begun = of_call(&open.call).await;
    assert_eq!(begun.iter().map(|(_, kind, _)| kind.as_str()).collect::<Vec<_>>(), ["intent", "outcome"], "{begun:?}");
    assert_eq!(begun[1].2.as_deref(), Some(end.outcome.as_str()));
    assert_eq!(of_call(&CallId::new("call-99").unwrap()).await, []);
    let firsts = store.audit_firsts(at(2)).await.unwrap();
    assert_eq!(
        firsts.iter().map(|f| (f.agent.as_str(), f.tool.as_str())).collect::<Vec<_>>(),
        [("deployer", "deploy"), ("observer", "logs")]
    );
    store.project_history().await.unwrap();
    let agent = AgentName::new("observer").unwrap();
    let history = store.memory_history(&agent, 10).await.unwrap();
    assert_eq!(history.len(), 2, "{history:?}");
    assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new());
    store.close().await;
}

#[tokio::test]
async fn a_rotation_cut_off_at_any_point_loses_nothing_and_is_finished_later() {
    for until in [Until::Copied, Until::Named, Until::Sealed, Until::Listed, Until::Done] {
        let (dir, store) = fresh().await;
        for n in 1..=5 {
            event(&store, n).await;
        }
        store.rotate_until(&NOW, at(6), until).await.unwrap();
        if until == Until::Listed {
            // And in the middle of deleting.
            Connection::open(store.home().join("audit.db")).unwrap().execute_batch("DELETE FROM audit WHERE seq <= 2").unwrap();
        }
        store.close().await;
        let store = open_in(&dir).await.unwrap();
        let told = i64::from(until >= Until::Listed);
        assert_eq!(seqs(&store).await, (1..=5 + told).collect::<Vec<_>>(), "{until:?}");
        let report = store.audit_verify().await.unwrap();
        assert_eq!((report.rows, report.problems), (5 + told, vec![]), "{until:?}");
        event(&store, 7).await;
        store.audit_rotate(&NOW, at(8)).await.unwrap().unwrap();
        assert_eq!(live(&store), [8 - i64::from(told == 0)], "{until:?}: only the row that tells of it");
        let report = store.audit_verify().await.unwrap();
        assert_eq!((report.rows, report.problems), (7 + told, vec![]), "{until:?}");
        let left: Vec<_> = std::fs::read_dir(store.segments_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|f| f.to_string_lossy().contains("new")), "{left:?}");
        store.close().await;
    }
}

#[tokio::test]
async fn rows_that_are_in_no_segment_cannot_be_deleted_nor_a_segment_made_up() {
    let (_dir, store) = sealed_twice().await;
    let c = Connection::open(store.home().join("audit.db")).unwrap();
    for sql in [
        "DELETE FROM audit WHERE seq = 9",
        "DELETE FROM audit",
        "DELETE FROM segment",
        "UPDATE segment SET last = 9 WHERE first = 4",
        "INSERT INTO segment SELECT 8, 9, head, sha256, from_at, to_at, sealed_at FROM segment WHERE first = 4",
        "INSERT INTO segment SELECT 8, 10, (SELECT hash FROM audit WHERE seq = 10), sha256, from_at, to_at, sealed_at FROM segment WHERE first = 4",
        "INSERT OR REPLACE INTO segment SELECT first, 9, head, sha256, from_at, to_at, sealed_at FROM segment WHERE first = 4",
        "INSERT INTO audit SELECT 3, at, kind, call, agent, door, tool, stack, environment, verdict, outcome, detail, prev_hash, hash FROM audit WHERE seq = 9",
    ] {
        assert!(c.execute_batch(sql).is_err(), "{sql}");
    }
    assert_eq!(live(&store), [8, 9, 10]);
    store.close().await;
}

#[tokio::test]
async fn a_damaged_log_is_never_sealed() {
    let (_dir, store) = fresh().await;
    for n in 1..=4 {
        event(&store, n).await;
    }
    forge(&store, |c| c.execute_batch("UPDATE audit SET agent = 'eve' WHERE seq = 2").unwrap());
    let refused = store.audit_rotate(&NOW, at(5)).await.unwrap_err().to_string();
    assert!(refused.contains("row 2 does not fit the chain"), "{refused}");
    assert_eq!(live(&store), [1, 2, 3, 4]);
    store.close().await;
}

/// A change of the segment's file by somebody who owns it.
fn edit(path: &std::path::Path, sql: &str) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn swap(a: &std::path::Path, b: &std::path::Path) {
    let aside = a.with_extension("aside");
    std::fs::rename(a, &aside).unwrap();
    std::fs::rename(b, a).unwrap();
    std::fs::rename(&aside, b).unwrap();
}

#[tokio::test]
async fn every_forgery_of_a_segment_is_named() {
    type Forgery = Box<dyn Fn(&Store)>;
    type Told = Box<dyn Fn(&Store) -> Vec<String>>;
    let changed = |s: &Store, first: i64, last: i64| {
        format!("the segment of rows {first} to {last} was changed: {} is not the file that was sealed", file(s, first).display())
    };
    let matrix: Vec<(&str, Forgery, Told)> = vec![
        (
            "missing",
            Box::new(|s| std::fs::remove_file(file(s, 1)).unwrap()),
            Box::new(|s| {
                vec![format!("the segment of rows 1 to 3 is missing: {}: No such file or directory (os error 2)", file(s, 1).display())]
            }),
        ),
        (
            "swapped",
            Box::new(|s| swap(&file(s, 1), &file(s, 4))),
            Box::new(move |s| {
                vec![
                    changed(s, 1, 3),
                    "the segment of rows 1 to 3 holds rows 4 to 7".into(),
                    changed(s, 4, 7),
                    "the segment of rows 4 to 7 holds rows 1 to 3".into(),
                ]
            }),
        ),
        (
            "swapped with their seals",
            Box::new(|s| {
                swap(&file(s, 1), &file(s, 4));
                swap(&seal(s, 1), &seal(s, 4));
            }),
            Box::new(move |s| {
                vec![
                    "the seal of the segment of rows 1 to 3 is of another segment: rows 4 to 7".into(),
                    changed(s, 1, 3),
                    "the segment of rows 1 to 3 holds rows 4 to 7".into(),
                    "the seal of the segment of rows 4 to 7 is of another segment: rows 1 to 3".into(),
                    changed(s, 4, 7),
                    "the segment of rows 4 to 7 holds rows 1 to 3".into(),
                ]
            }),
        ),
        (
            "a row edited",
            Box::new(|s| edit(&file(s, 4), "UPDATE audit SET agent = 'eve' WHERE seq = 5")),
            Box::new(move |s| vec![changed(s, 4, 7), "row 5 was changed: its content does not fit its hash".into()]),
        ),
        (
            "a row deleted",
            Box::new(|s| edit(&file(s, 4), "DELETE FROM audit WHERE seq = 6")),
            Box::new(move |s| vec![changed(s, 4, 7), "row 6 is missing".into()]),
        ),
        (
            "the tail cut off",
            Box::new(|s| edit(&file(s, 1), "DELETE FROM audit WHERE seq = 3")),
            Box::new(move |s| vec![changed(s, 1, 3), "the segment of rows 1 to 3 ends with row 2".into()]),
        ),
        (
            "no database any more",
            Box::new(|s| {
                std::fs::remove_file(file(s, 1)).unwrap();
                std::fs::write(file(s, 1), "nothing").unwrap();
            }),
            Box::new(move |s| {
                let unreadable = format!(
                    "the segment of rows 1 to 3 cannot be read: {}: file is not a database (restore it from a backup of the home)",
                    file(s, 1).display()
                );
                vec![changed(s, 1, 3), unreadable]
            }),
        ),
        (
            "the seal missing",
            Box::new(|s| std::fs::remove_file(seal(s, 1)).unwrap()),
            Box::new(|_| vec!["the seal of the segment of rows 1 to 3 cannot be trusted: No such file or directory (os error 2)".into()]),
        ),
        (
            "the seal edited",
            Box::new(|s| {
                let text = std::fs::read_to_string(seal(s, 4)).unwrap();
                std::fs::write(seal(s, 4), text.replacen("segment 4 7", "segment 4 6", 1)).unwrap();
            }),
            Box::new(|_| vec!["the seal of the segment of rows 4 to 7 cannot be trusted: its signature does not fit its text".into()]),
        ),
        (
            "a checkpoint for a seal",
            Box::new(|s| {
                std::fs::copy(s.home().join("checkpoints"), seal(s, 4)).unwrap();
            }),
            Box::new(|_| vec!["the seal of the segment of rows 4 to 7 cannot be trusted: it does not say what a seal says".into()]),
        ),
        (
            "edited, chained anew, and the list made to fit",
            Box::new(|s| {
                edit(&file(s, 4), "UPDATE audit SET agent = 'eve' WHERE seq = 6");
                super::forging_tests::rechain(&Connection::open(file(s, 4)).unwrap(), 6);
                let (sha, head) = (super::rotate::digest(&file(s, 4)).unwrap(), {
                    let c = Connection::open(file(s, 4)).unwrap();
                    c.query_row("SELECT hash FROM audit WHERE seq = 7", [], |r| r.get::<_, Vec<u8>>(0)).unwrap()
                });
                forge(s, |c| {
                    c.execute("UPDATE segment SET sha256 = ?1, head = ?2 WHERE first = 4", rusqlite::params![sha, head])
                        .map(|_| ())
                        .unwrap();
                });
            }),
            Box::new(|_| {
                vec![
                    "the seal of the segment of rows 4 to 7 is of another segment: rows 4 to 7".into(),
                    "row 7 is not the one its checkpoint was made of".into(),
                    "row 8 does not follow row 7: one of them was replaced or moved".into(),
                ]
            }),
        ),
        (
            "taken off the list",
            Box::new(|s| forge(s, |c| c.execute_batch("DELETE FROM segment WHERE first = 1").unwrap())),
            Box::new(|s| {
                vec![
                    "rows 1 to 3 are in no segment".into(),
                    format!("{} is no segment of this log: it is not listed in audit.db", file(s, 1).display()),
                ]
            }),
        ),
        (
            "the last one taken off the list and away",
            Box::new(|s| {
                forge(s, |c| c.execute_batch("DELETE FROM segment WHERE first = 4").unwrap());
                std::fs::remove_file(file(s, 4)).unwrap();
            }),
            Box::new(|_| vec!["rows 4 to 7 are missing".into()]),
        ),
        (
            "its times changed in the list, so that nobody looks into it",
            Box::new(|s| forge(s, |c| c.execute_batch("UPDATE segment SET to_at = from_at WHERE first = 4").unwrap())),
            Box::new(|_| vec!["the times of the segment of rows 4 to 7 in the list are not those of its rows".into()]),
        ),
        (
            "a guard of the list removed",
            Box::new(|s| Connection::open(s.home().join("audit.db")).unwrap().execute_batch("DROP TRIGGER segment_no_delete").unwrap()),
            Box::new(|_| vec!["trigger segment_no_delete is missing".into()]),
        ),
    ];
    for (name, forgery, expected) in matrix {
        let (_dir, store) = sealed_twice().await;
        assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new(), "{name}: before");
        forgery(&store);
        assert_eq!(store.audit_verify().await.unwrap().problems, expected(&store), "{name}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_log_from_before_there_were_segments_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    // A home as the version before made it: the same rows, the older schema.
    let store = Store::open(dir.path(), dir.path()).await.unwrap();
    store.close().await;
    let path = dir.path().join("audit.db");
    std::fs::remove_file(&path).unwrap();
    let before = migrate::Schema { name: "audit.db", steps: &migrate::AUDIT.steps[..1] };
    let c = migrate::open(&path, &before).unwrap();
    for n in 1..=3 {
        rows::append(&c, &NewRow::event("warden", "gave_up", None, &json!({"n": n}), at(n))).unwrap();
    }
    drop(c);
    let store = Store::open(dir.path(), dir.path()).await.unwrap();
    event(&store, 4).await;
    assert_eq!(store.audit_rotate(&NOW, at(5)).await.unwrap().map(|s| (s.first, s.last)), Some((1, 4)));
    let report = store.audit_verify().await.unwrap();
    assert_eq!((report.rows, report.segments, report.problems), (5, 1, vec![]));
    store.close().await;
}
