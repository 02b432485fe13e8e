//! Rows, limits, guards, tampering and checkpoints of the audit log.

use super::*;
use crate::store::StoreError;
use crate::store::tests::{at, fresh, open_in};
use std::sync::Arc;

fn intent(call: &str, agent: &str, seconds: i64) -> Intent {
    Intent {
        call: CallId::new(call).unwrap(),
        delegated_by: vec![],
        agent: agent.into(),
        door: "mcp-stdio".into(),
        tool: "deploy".into(),
        stack: Some("shop".into()),
        environment: Some("staging".into()),
        arguments: json!({"stack": "shop", "a": 1}),
        essential: false,
        verdict: Verdict::Allow,
        findings: vec![finding("deployer/web", Verdict::Allow)],
        at: at(seconds),
    }
}

fn finding(rule: &str, verdict: Verdict) -> Finding {
    Finding { rule: rule.into(), verdict, service: None, path: None, because: "b".into() }
}

fn outcome(call: &str, word: &str, seconds: i64) -> Outcome {
    Outcome {
        call: CallId::new(call).unwrap(),
        outcome: word.into(),
        code: None,
        verdict: Verdict::Warn,
        findings: vec![finding("bind.outside", Verdict::Warn)],
        detail: json!({"operation": "op-1"}),
        duration_ms: 12,
        at: at(seconds),
    }
}

fn limit(max: u32, window_s: u32) -> RateLimit {
    RateLimit { key: "deployer/web".into(), max, window_s }
}

async fn all(store: &Store) -> Vec<AuditRow> {
    store.audit_rows(&AuditQuery { limit: 1000, ..Default::default() }).await.unwrap()
}

/// Six rows in the log, a checkpoint after the fourth.
async fn filled(store: &Store) {
    for n in 1..=4 {
        store.audit_read(&intent(&format!("call-{n}"), "observer", n), &outcome(&format!("call-{n}"), "ok", n), &[]).await.unwrap();
    }
    store.audit_checkpoint(at(5)).await.unwrap();
    for n in 5..=6 {
        store.audit_event("warden", "gave_up", Some("shop"), &json!({"n": n}), at(n)).await.unwrap();
    }
}

/// What an attacker with the file does, through a connection of their own.
fn tamper(store: &Store, sql: &str) {
    let conn = Connection::open(store.home().join("audit.db")).unwrap();
    conn.execute_batch(sql).unwrap();
}

const DROP: &str = "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete; DROP TRIGGER audit_append_only;";

/// Tampers without a trace in the schema: the triggers are put back as they were.
fn tamper_hidden(store: &Store, sql: &str) {
    let conn = Connection::open(store.home().join("audit.db")).unwrap();
    let mut triggers = conn.prepare("SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'audit'").unwrap();
    let saved: Vec<String> = triggers.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    drop(triggers);
    assert_eq!(saved.len(), 3);
    conn.execute_batch(&format!("{DROP} {sql}; {};", saved.join(";"))).unwrap();
}

#[tokio::test]
async fn a_mutation_leaves_an_intent_and_an_outcome_and_a_read_one_row() {
    let (_dir, store) = fresh().await;
    assert_eq!(store.audit_intent(&intent("call-1", "deployer", 1), &[]).await.unwrap(), Recorded::Ok { seq: 1 });
    assert_eq!(store.audit_outcome(&outcome("call-1", "ok", 2), &[]).await.unwrap(), 2);
    let read = Intent { stack: None, environment: None, tool: "status".into(), ..intent("call-2", "observer", 3) };
    assert_eq!(store.audit_read(&read, &outcome("call-2", "error", 4), &[]).await.unwrap(), Recorded::Ok { seq: 3 });
    assert_eq!(store.audit_event("warden", "gave_up", Some("shop"), &json!({"b": 1, "a": 2}), at(5)).await.unwrap(), 4);
    let mut rows = all(&store).await;
    rows.iter_mut().for_each(|r| {
        assert_eq!(r.hash.len(), 64);
        r.hash.clear();
    });
    let allow = json!({"rule": "deployer/web", "verdict": "allow", "because": "b"});
    let warn = json!({"rule": "bind.outside", "verdict": "warn", "because": "b"});
    let arguments = json!({"stack": "shop", "a": 1});
    let row = |seq, t, kind: &str, verdict, result: Option<&str>, detail| AuditRow {
        seq,
        at: at(t),
        kind: kind.into(),
        call: "call-1".into(),
        agent: "deployer".into(),
        door: "mcp-stdio".into(),
        tool: "deploy".into(),
        stack: Some("shop".into()),
        environment: Some("staging".into()),
        verdict,
        outcome: result.map(Into::into),
        detail,
        hash: String::new(),
    };
    let ended = |result: &str| json!({"operation": "op-1", "x": result})["operation"].clone();
    let end = json!({"findings": [warn.clone()], "code": null, "detail": {"operation": ended("ok")}, "duration_ms": 12});
    let read = json!({"arguments": arguments, "findings": [allow.clone(), warn], "code": null, "detail": {"operation": "op-1"}, "duration_ms": 12});
    let expected = [
        AuditRow {
            call: String::new(),
            agent: "warden".into(),
            door: String::new(),
            tool: "gave_up".into(),
            environment: None,
            ..row(4, 5, "event", Verdict::Allow, None, json!({"a": 2, "b": 1}))
        },
        AuditRow {
            call: "call-2".into(),
            agent: "observer".into(),
            tool: "status".into(),
            stack: None,
            environment: None,
            ..row(3, 4, "read", Verdict::Warn, Some("error"), read)
        },
        row(2, 2, "outcome", Verdict::Warn, Some("ok"), end),
        row(1, 1, "intent", Verdict::Allow, None, json!({"arguments": arguments, "findings": [allow]})),
    ];
    assert_eq!(rows, expected);
    assert!(matches!(store.audit_outcome(&outcome("call-9", "ok", 2), &[]).await, Err(StoreError::Missing { .. })));
    assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn rows_are_filtered_and_paged() {
    let (_dir, store) = fresh().await;
    filled(&store).await;
    let seqs = async |q: AuditQuery| store.audit_rows(&q).await.unwrap().iter().map(|r| r.seq).collect::<Vec<_>>();
    let q = || AuditQuery { limit: 100, ..Default::default() };
    assert_eq!(seqs(AuditQuery { limit: 2, ..q() }).await, [6, 5]);
    assert_eq!(seqs(AuditQuery { before_seq: Some(5), limit: 2, ..q() }).await, [4, 3]);
    assert_eq!(seqs(AuditQuery { agent: Some("warden".into()), ..q() }).await, [6, 5]);
    assert_eq!(seqs(AuditQuery { tool: Some("deploy".into()), ..q() }).await, [4, 3, 2, 1]);
    assert_eq!(seqs(AuditQuery { verdict: Some(Verdict::Warn), outcome: Some("ok".into()), ..q() }).await, [4, 3, 2, 1]);
    assert_eq!(seqs(AuditQuery { stack: Some("other".into()), ..q() }).await, Vec::<i64>::new());
    assert_eq!(seqs(AuditQuery { since: Some(at(2)), until: Some(at(4)), ..q() }).await, [3, 2]);
}

#[tokio::test]
async fn a_limit_turns_the_call_into_a_recorded_denial_and_denials_do_not_count() {
    let (_dir, store) = fresh().await;
    let limits = [limit(2, 60), RateLimit { key: "deployer/calls".into(), max: 10, window_s: 60 }];
    let begin = async |n: i64, t: i64| store.audit_intent(&intent(&format!("call-{n}"), "deployer", t), &limits).await.unwrap();
    assert_eq!(begin(1, 0).await, Recorded::Ok { seq: 1 });
    let denied = Intent { verdict: Verdict::Deny, ..intent("call-2", "deployer", 1) };
    assert_eq!(store.audit_read(&denied, &outcome("call-2", "denied", 1), &limits).await.unwrap(), Recorded::Ok { seq: 2 });
    assert_eq!(begin(3, 10).await, Recorded::Ok { seq: 3 });
    for (n, t, seq, wait) in [(4, 20, 4, 40), (5, 59, 5, 1)] {
        assert_eq!(begin(n, t).await, Recorded::Limited { seq, limit: limit(2, 60), retry_after_s: wait });
    }
    assert_eq!(begin(6, 60).await, Recorded::Ok { seq: 6 }, "the first has left the window, refused ones never were in it");
    let rows = all(&store).await;
    let row = &rows[2];
    assert_eq!((row.seq, row.kind.as_str(), row.verdict, row.outcome.as_deref()), (4, "read", Verdict::Deny, Some("denied")));
    assert_eq!(row.detail["findings"][1]["rule"], "deployer/web");
    assert_eq!(row.detail["detail"], json!({"retry_after_s": 40}));
    assert_eq!(store.audit_close_orphans(&[], at(99)).await.unwrap(), 3, "a denial is not an open call");
    let zero = store.audit_intent(&intent("call-7", "deployer", 0), &[limit(0, 30)]).await.unwrap();
    assert_eq!(zero, Recorded::Limited { seq: 10, limit: limit(0, 30), retry_after_s: 30 });
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_once_never_pass_a_limit_together() {
    let (_dir, store) = fresh().await;
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.audit_intent(&intent(&format!("call-{n}"), "deployer", 0), &[limit(5, 60)]).await.unwrap() })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += usize::from(matches!(task.await.unwrap(), Recorded::Ok { .. }));
    }
    assert_eq!(passed, 5);
}

#[tokio::test]
async fn a_start_closes_what_a_crash_left_open() {
    let (dir, store) = fresh().await;
    store.audit_intent(&intent("call-1", "deployer", 1), &[]).await.unwrap();
    store.audit_intent(&intent("call-2", "deployer", 2), &[]).await.unwrap();
    store.audit_intent(&intent("call-3", "deployer", 3), &[]).await.unwrap();
    store.audit_outcome(&outcome("call-2", "ok", 4), &[]).await.unwrap();
    store.close().await;
    let store = open_in(&dir).await.unwrap();
    assert_eq!(store.audit_close_orphans(&[CallId::new("call-3").unwrap()], at(9)).await.unwrap(), 1);
    let last = all(&store).await.remove(0);
    assert_eq!(
        (last.seq, last.kind.as_str(), last.call.as_str(), last.outcome.as_deref(), last.at),
        (5, "outcome", "call-1", Some("unknown"), at(9))
    );
    assert_eq!(store.audit_close_orphans(&[], at(10)).await.unwrap(), 1);
    assert_eq!(store.audit_close_orphans(&[], at(10)).await.unwrap(), 0);
}

#[tokio::test]
async fn the_triggers_refuse_all_but_the_next_row() {
    let (_dir, store) = fresh().await;
    filled(&store).await;
    let before = all(&store).await;
    let conn = Connection::open(store.home().join("audit.db")).unwrap();
    conn.pragma_update(None, "recursive_triggers", "OFF").unwrap();
    let copy = "at, kind, call, agent, door, tool, stack, environment, verdict, outcome, detail, prev_hash, hash FROM audit";
    for sql in [
        "UPDATE audit SET agent = 'eve' WHERE seq = 2".to_owned(),
        "UPDATE OR REPLACE audit SET seq = 3 WHERE seq = 2".into(),
        "DELETE FROM audit WHERE seq = 6".into(),
        "DELETE FROM audit".into(),
        format!("INSERT INTO audit SELECT 8, {copy} WHERE seq = 6"),
        format!("INSERT INTO audit SELECT 7, {copy} WHERE seq = 6"),
        format!("INSERT INTO audit SELECT NULL, {copy} WHERE seq = 6"),
        format!("INSERT OR REPLACE INTO audit SELECT 6, {copy} WHERE seq = 5"),
        format!("INSERT OR REPLACE INTO audit SELECT 3, {copy} WHERE seq = 4"),
        format!("REPLACE INTO audit SELECT 1, {copy} WHERE seq = 1"),
        format!("INSERT INTO audit SELECT 2, {copy} WHERE seq = 2 ON CONFLICT (seq) DO UPDATE SET agent = 'eve'"),
    ] {
        let refused = conn.execute(&sql, []).unwrap_err().to_string();
        assert!(refused.contains("audit rows are"), "{sql}: {refused}");
    }
    conn.execute("INSERT OR IGNORE INTO audit SELECT 3, at, kind, call, 'eve', door, tool, stack, environment, verdict, outcome, detail, prev_hash, hash FROM audit WHERE seq = 3", [])
        .unwrap_err();
    assert_eq!(all(&store).await, before);
    assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn verify_names_every_kind_of_tampering() {
    let swap = "UPDATE audit SET seq = -1 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = -1";
    for (sql, expected) in [
        ("UPDATE audit SET agent = 'eve' WHERE seq = 2", vec!["row 2 was changed: its content does not fit its hash"]),
        ("UPDATE audit SET stack = NULL WHERE seq = 5", vec!["row 5 was changed: its content does not fit its hash"]),
        ("DELETE FROM audit WHERE seq = 2", vec!["row 2 is missing"]),
        ("DELETE FROM audit WHERE seq IN (2, 3)", vec!["rows 2 to 3 are missing"]),
        ("DELETE FROM audit WHERE seq > 3", vec!["the log ends with row 3, a checkpoint was made of row 4: rows were cut off"]),
        ("DELETE FROM audit", vec!["the log ends with row 0, a checkpoint was made of row 4: rows were cut off"]),
        (
            swap,
            vec![
                "row 2 does not follow row 1: one of them was replaced or moved",
                "row 2 was changed: its content does not fit its hash",
                "row 3 does not follow row 2: one of them was replaced or moved",
                "row 3 was changed: its content does not fit its hash",
                "row 4 does not follow row 3: one of them was replaced or moved",
            ],
        ),
    ] {
        let (_dir, store) = fresh().await;
        filled(&store).await;
        assert_eq!(store.audit_verify().await.unwrap().problems, Vec::<String>::new());
        tamper_hidden(&store, sql);
        assert_eq!(store.audit_verify().await.unwrap().problems, expected, "{sql}");
    }
}

#[tokio::test]
async fn a_rewritten_tail_with_a_good_chain_is_found_by_its_checkpoint() {
    let (_dir, store) = fresh().await;
    filled(&store).await;
    // The whole chain anew from row 4 on: only the checkpoint knows better.
    tamper_hidden(&store, "DELETE FROM audit WHERE seq > 3");
    for n in 4..=6 {
        store.audit_event("eve", "nothing_happened", None, &json!(null), at(n)).await.unwrap();
    }
    assert_eq!(store.audit_verify().await.unwrap().problems, ["row 4 is not the one its checkpoint was made of"]);
    let refused = store.audit_checkpoint(at(9)).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { what: "audit log", detail } if detail.contains("row 4")), "{refused}");
}

#[tokio::test]
async fn missing_or_changed_guards_are_found() {
    let (_dir, store) = fresh().await;
    filled(&store).await;
    tamper(
        &store,
        "DROP TRIGGER audit_no_delete; DROP TRIGGER audit_no_update; CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT 1; END;",
    );
    assert_eq!(store.audit_verify().await.unwrap().problems, ["trigger audit_no_delete is missing", "trigger audit_no_update was changed"]);
}

#[tokio::test]
async fn checkpoints_are_signed_notes_and_their_damage_is_found() {
    let (_dir, store) = fresh().await;
    let file = store.home().join("checkpoints");
    store.audit_checkpoint(at(0)).await.unwrap();
    assert!(!file.exists(), "an empty log has nothing to state");
    filled(&store).await;
    store.audit_checkpoint(at(7)).await.unwrap();
    store.audit_checkpoint(at(8)).await.unwrap();
    let good = std::fs::read_to_string(&file).unwrap();
    let report = store.audit_verify().await.unwrap();
    let head = all(&store).await.remove(0).hash;
    assert_eq!(report, AuditReport { rows: 6, head: head.clone(), checkpoints: 2, segments: 0, problems: vec![] });
    let second = &good[good[1..].find("dockwarden/").map(|_| good.rfind("\n\ndockwarden/").unwrap() + 2).unwrap()..];
    let lines: Vec<&str> = second.lines().collect();
    let name = format!("dockwarden/{}", store.instance());
    let hash = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, lines[2]).unwrap();
    assert_eq!((lines[0], lines[1], crate::store::chain::hex(&hash)), (name.as_str(), "6", head));
    assert!(lines[5].starts_with(&format!("\u{2014} {name} ")), "{lines:?}");

    let problems = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        store.audit_verify().await.unwrap().problems
    };
    let cut = &good[..good.len() - second.len()];
    assert_eq!(problems(&good.replace("\n6\n", "\n5\n")).await[0], "checkpoint 2 cannot be trusted: its signature does not fit its text");
    assert_eq!(problems(cut).await, [format!("the checkpoint of row 6 is missing from {}", file.display())]);
    assert_eq!(problems("").await.len(), 1);
    let foreign = good.replace(&name, "dockwarden/other");
    assert!(problems(&foreign).await[0].contains("not signed by"), "another home's checkpoints");
    // A write that a crash cut off is not tampering; the next checkpoint replaces it.
    store.audit_event("warden", "x", None, &json!(1), at(9)).await.unwrap();
    assert_eq!(problems(&format!("{good}{}", &second[..40])).await, Vec::<String>::new());
    store.audit_checkpoint(at(9)).await.unwrap();
    let mended = std::fs::read_to_string(&file).unwrap();
    assert!(mended.starts_with(&good));
    assert_eq!(
        store.audit_verify().await.unwrap(),
        AuditReport { rows: 7, head: all(&store).await.remove(0).hash, checkpoints: 3, segments: 0, problems: vec![] }
    );
}

/// Prints a rate to look at; what it asserts is that nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_callers_append_durably() {
    let (_dir, store) = fresh().await;
    let (callers, each) = (32, 100);
    let template = Arc::new((intent("call-1", "observer", 1), outcome("call-1", "ok", 1)));
    let start = std::time::Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (store, template) = (store.clone(), Arc::clone(&template));
            tokio::spawn(async move {
                for _ in 0..each {
                    store.audit_read(&template.0, &template.1, &[]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let elapsed = start.elapsed();
    println!("{} durable appends in {elapsed:?}: {:.0}/s", callers * each, f64::from(callers * each) / elapsed.as_secs_f64());
    let report = store.audit_verify().await.unwrap();
    assert_eq!((report.rows, report.problems), (i64::from(callers * each), vec![]));
}
