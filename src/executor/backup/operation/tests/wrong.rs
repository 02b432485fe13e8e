//! What goes wrong at a repository, one piece of work after the other, over a repository in memory: what is told, what stays, and that nothing good goes.

use super::discard::{discard, kept};
use super::holds::thinning;
use super::*;
use crate::executor::backup::fake::Fault;
use crate::executor::backup::forget::PLANNED;
use crate::executor::backup::keep::KEPT;
use crate::executor::backup::{CheckReport, Failure, ForgetPlan, SnapshotInfo, SnapshotState, partial, records};
use crate::executor::worker::Output;
use crate::model::ids::SnapshotId;
use crate::model::target::BackupSettings;
use crate::store::audit::AuditRow;
use serde_json::json;
use std::path::PathBuf;

async fn run_with(rig: &Rig, exec: &Arc<Executor>, job: DataJob) -> (Operation, DataResult) {
    let op = exec.submit_data(Some(shop()), job, test_permit(), request("backup", None)).await.unwrap();
    rig.done(exec, &op).await
}

async fn run(rig: &Rig, job: DataJob) -> (Operation, DataResult) {
    run_with(rig, &rig.exec, job).await
}

fn repo(rig: &Rig) -> PathBuf {
    rig.dir.path().join("home/backups")
}

fn says(op: &Operation, state: OperationState, words: &str) {
    assert!(op.state == state && op.message.as_deref().is_some_and(|m| m.contains(words)), "{op:?}");
}

async fn recorded(rig: &Rig) -> Vec<String> {
    rig.store.backups(None, None, 100).await.unwrap().into_iter().map(|b| b.snapshot_id).collect()
}

async fn planned(rig: &Rig) -> Vec<AuditRow> {
    rig.store.audit_after(0, None, 1000).await.unwrap().into_iter().filter(|r| r.tool == PLANNED).collect()
}

fn restore(snapshot: &BackupRecord) -> DataJob {
    DataJob::Restore { snapshot: Box::new(snapshot.clone()), into: None, path: None, to: None }
}

fn drill(snapshot: &BackupRecord) -> DataJob {
    DataJob::Drill { snapshots: vec![(snapshot.clone(), None)], copy: None }
}

/// What a person was shown: all of the records but the newest go.
async fn all_but_the_newest(rig: &Rig) -> ForgetPlan {
    let all = rig.store.backups(None, None, 100).await.unwrap();
    ForgetPlan::new(&all, &all[1..], &BTreeSet::new())
}

#[tokio::test]
async fn a_worker_that_dies_between_two_sources_keeps_the_first_and_lets_the_writers_run() {
    let (rig, fake) = Rig::in_memory().await;
    rig.engine.write_volume_file("shop_logs", "a", b"log");
    fake.before_next("backup", |f| f.fail_next("backup", Fault::Dies));
    let volumes = vec![data(), EngineName::new("shop_logs").unwrap()];
    let job = BackupJob { volumes, quiesce: Quiesce::Pause, ..BackupJob::default() };
    let (op, done) = run(&rig, DataJob::Backup(Box::new(job))).await;
    says(&op, OperationState::Failed, "ended without an answer: signal: 9 (SIGKILL); the data is untouched");
    assert_eq!(done.snapshots.iter().map(|s| s.volume.as_str()).collect::<Vec<_>>(), ["shop_data"]);
    assert_eq!((rig.writer().await, recorded(&rig).await), (RunState::Running, fake.ids(&repo(&rig))));
    assert!(rig.engine.calls().iter().any(|c| c.contains("pause")), "they were held: {:?}", rig.engine.calls());
}

#[tokio::test]
async fn a_snapshot_whose_worker_died_before_it_said_so_is_found_in_the_repository() {
    let (rig, fake) = Rig::in_memory().await;
    fake.fail_next("backup", Fault::DiesAfter);
    let (op, done) = run(&rig, backup()).await;
    says(&op, OperationState::Failed, "the backup worker ended without an answer");
    assert_eq!((done.snapshots.len(), recorded(&rig).await.len()), (0, 0), "nothing is recorded on nobody's word");
    let there = fake.ids(&repo(&rig));
    assert_eq!(there.len(), 1);
    assert_eq!(records::record_unknown(&rig.store, rig.exec.backups.as_ref().unwrap()).await.unwrap(), 1);
    let found = rig.store.backups(Some(&shop()), None, 10).await.unwrap().remove(0);
    assert_eq!((found.snapshot_id, found.operation, found.release), (there[0].clone(), Some(op.id.to_string()), Some(3)));
}

#[tokio::test]
async fn a_worker_that_never_ends_is_stopped_at_the_limit_of_the_stack_and_the_writers_run() {
    let (rig, fake) = Rig::in_memory().await;
    fake.fail_next("backup", Fault::Hangs);
    let limit = Duration::from_millis(300);
    let job = BackupJob { volumes: vec![data()], quiesce: Quiesce::Stop, timeout: Some(limit), ..BackupJob::default() };
    let (op, _) = run(&rig, DataJob::Backup(Box::new(job))).await;
    says(&op, OperationState::Failed, "was stopped after 300ms: raise the time limit of backups");
    assert_eq!((rig.writer().await, recorded(&rig).await.len(), rig.exec.holding(&shop())), (RunState::Running, 0, None));
}

#[tokio::test]
async fn a_repository_that_others_hold_fails_the_backup_with_its_name_before_or_while_writers_are_held() {
    let (rig, fake) = Rig::in_memory().await;
    let locked = || Fault::Says(Failure::Locked { repo: repo(&rig).display().to_string(), waited_s: 30 });
    for (work, held) in [("init", false), ("backup", true)] {
        rig.engine.clear_calls();
        fake.fail_next(work, locked());
        let (op, _) = run(&rig, backup()).await;
        says(&op, OperationState::Failed, "is locked: others were at work on it for 30 s");
        assert_eq!(rig.engine.calls().iter().any(|c| c.contains("pause")), held, "{work}");
        assert_eq!((rig.writer().await, recorded(&rig).await.len()), (RunState::Running, 0), "{work}");
    }
}

#[tokio::test]
async fn a_repository_that_is_always_in_use_keeps_its_old_snapshots_and_the_backup_stands() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    for _ in 0..2 {
        fake.fail_next("forget", Fault::Says(Failure::InUse { repo: "r".into() }));
    }
    let mut house = rig.exec.backups.clone().unwrap();
    house.time_limit = Duration::from_secs(1);
    let exec = executor_over(house, &rig.engine, &rig.store, None);
    let (op, done) = run_with(&rig, &exec, thinning()).await;
    says(&op, OperationState::Done, "were not removed: the backup repository r is in use");
    let both = [done.snapshots[0].snapshot_id.clone(), old.snapshot_id];
    assert_eq!((fake.ids(&repo(&rig)).as_slice(), fake.asked().iter().filter(|w| *w == "forget").count()), (both.as_slice(), 2));
    let mut there = recorded(&rig).await;
    there.sort();
    let mut sorted = both.to_vec();
    sorted.sort();
    assert_eq!(there, sorted, "what is still there is recorded again");
}

#[tokio::test]
async fn a_snapshot_that_vanished_since_is_missed_and_what_stood_behind_it_stays() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    let (place, look) = (repo(&rig), fake.clone());
    // The first look is the count after the backup; then the removal is planned, and before it is made somebody's restic takes the new one away.
    fake.before_next("list", move |f| {
        f.before_next("list", move |f| f.vanish(&place, &f.ids(&place)[0]));
    });
    let (op, done) = run(&rig, thinning()).await;
    says(&op, OperationState::Done, "of shop_data nothing as good would be left in the repository, so all of it stays");
    assert_eq!((look.ids(&repo(&rig)), look.asked().contains(&"forget".to_owned())), (vec![old.snapshot_id.clone()], false));
    assert_eq!((done.forgotten.unwrap().snapshots, planned(&rig).await.len()), (vec![], 0));
    assert!(recorded(&rig).await.contains(&old.snapshot_id));
}

#[tokio::test]
async fn what_goes_is_written_down_with_its_digest_before_it_goes() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    fake.fail_next("forget", Fault::Dies);
    let (op, _) = run(&rig, thinning()).await;
    says(&op, OperationState::Done, "snapshots that the schedule no longer needs were not removed");
    let step = rig.store.steps(&op.id).await.unwrap().into_iter().find(|s| s.key == "forget").unwrap();
    let plan: ForgetPlan = serde_json::from_value(step.intent["plan"].clone()).unwrap();
    let new = fake.ids(&repo(&rig))[0].clone();
    assert_eq!((plan.ids().collect::<Vec<_>>(), plan.staying[0].snapshot_id.as_str()), (vec![old.snapshot_id.as_str()], new.as_str()));
    let rows = planned(&rig).await;
    assert_eq!((rows.len(), rows[0].agent.as_str(), rows[0].stack.as_deref()), (1, "tester", Some("shop")));
    let detail = &rows[0].detail;
    assert_eq!((&detail["digest"], &detail["operation"]), (&json!(plan.digest), &json!(op.id)));
    assert_eq!((&detail["going"][0]["snapshot_id"], detail["going"].as_array().unwrap().len()), (&json!(old.snapshot_id), 1));
    assert!(recorded(&rig).await.contains(&old.snapshot_id) && step.done.is_none(), "and it did not go");
    // The next run does what this one could not, under a digest of its own.
    let (op, done) = run(&rig, thinning()).await;
    let gone = done.forgotten.unwrap();
    assert_eq!((op.message, gone.snapshots.len(), recorded(&rig).await.len()), (None, 2, 1));
    assert_eq!(planned(&rig).await[1].detail["digest"], json!(gone.digest));
}

#[tokio::test]
async fn a_plan_that_a_failed_drill_overtakes_leaves_the_last_good_snapshot() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    let new = rig.snapshot().await;
    let plan = Box::new(all_but_the_newest(&rig).await);
    assert_eq!(plan.ids().collect::<Vec<_>>(), [old.snapshot_id.as_str()]);
    fake.fail_next("export", Fault::Differs);
    let (op, done) = run(&rig, drill(&new)).await;
    says(&op, OperationState::Failed, "the drill FAILED for");
    assert!(!done.drills[0].passed && done.drills[0].evidence.is_some(), "{:?}", done.drills);
    let (op, _) = run(&rig, DataJob::Forget { plan: plan.clone() }).await;
    says(&op, OperationState::Done, "nothing as good would be left");
    assert_eq!((recorded(&rig).await.len(), fake.ids(&repo(&rig)).len()), (2, 2));
    let (op, _) = run(&rig, drill(&new)).await;
    assert_eq!(op.state, OperationState::Done, "it comes back after all: {op:?}");
    run(&rig, DataJob::Forget { plan }).await;
    assert_eq!(fake.ids(&repo(&rig)), [new.snapshot_id]);
}

#[tokio::test]
async fn a_snapshot_that_came_to_hold_kept_data_since_it_was_planned_away_stays() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    rig.snapshot().await;
    let plan = Box::new(all_but_the_newest(&rig).await);
    rig.store.drop_kept("elsewhere", Some((&old.snapshot_id, KEPT))).await.unwrap();
    let (op, done) = run(&rig, DataJob::Forget { plan }).await;
    says(&op, OperationState::Done, "alone holds data that was kept, or is marked to stay");
    assert_eq!((done.forgotten.unwrap().snapshots.len(), fake.ids(&repo(&rig)).len(), recorded(&rig).await.len()), (0, 2, 2));
}

#[tokio::test]
async fn kept_data_does_not_go_for_a_snapshot_that_is_on_its_way_out() {
    let (rig, fake) = Rig::in_memory().await;
    let snapshot = rig.snapshot().await;
    let db = EngineName::new("db").unwrap();
    rig.engine.stop(&test_permit(), &db, Duration::from_secs(1)).await.unwrap();
    rig.engine.remove_container(&test_permit(), &db, false).await.unwrap();
    let kept = kept("shop_data", "shop_data");
    rig.store.keep(std::slice::from_ref(&kept)).await.unwrap();
    // A removal that waits for the repository has dropped the record already.
    rig.store.forget_backups(vec![snapshot.snapshot_id.clone()]).await.unwrap();
    let op = discard(&rig, &kept, Some(&snapshot)).await;
    says(&op, OperationState::Failed, "is being removed, or shop_data is not kept any more; nothing was removed");
    assert_eq!((rig.volumes().await, fake.asked().contains(&"prove".to_owned())), (vec!["shop_data".to_owned()], true));
    rig.store.put_backup(&snapshot).await.unwrap();
    assert_eq!(discard(&rig, &kept, Some(&snapshot)).await.state, OperationState::Done);
    assert_eq!(rig.volumes().await, Vec::<String>::new());
}

#[tokio::test]
async fn partial_snapshots_do_not_pile_up_and_stand_in_for_no_whole_one() {
    let (rig, fake) = Rig::in_memory().await;
    for _ in 0..2 {
        fake.fail_next("backup", Fault::Partial);
        let (op, done) = run(&rig, thinning()).await;
        assert!(partial(&op) && op.evidence.len() == 1, "{op:?}");
        assert_eq!(recorded(&rig).await, [done.snapshots[0].snapshot_id.clone()], "of two that are not whole the newer stays");
    }
    let (_, done) = run(&rig, thinning()).await;
    let whole = done.snapshots[0].snapshot_id.clone();
    fake.fail_next("backup", Fault::Partial);
    run(&rig, thinning()).await;
    assert!(recorded(&rig).await.contains(&whole));
}

#[tokio::test]
async fn a_repository_that_does_not_list_what_was_taken_fails_the_backup_and_nothing_is_removed() {
    let (rig, fake) = Rig::in_memory().await;
    let old = rig.snapshot().await;
    let place = repo(&rig);
    fake.before_next("list", move |f| f.vanish(&place, &f.ids(&place)[0]));
    let (op, done) = run(&rig, thinning()).await;
    says(&op, OperationState::Failed, "is not in the repository as it was recorded; take no comfort in its snapshots");
    assert!(!done.checks[0].passed && done.forgotten.is_none(), "{done:?}");
    assert_eq!((fake.ids(&repo(&rig)), fake.asked().contains(&"forget".to_owned())), (vec![old.snapshot_id], false));
}

#[tokio::test]
async fn a_repository_that_is_damaged_is_a_recorded_check_and_a_failure() {
    let (rig, fake) = Rig::in_memory().await;
    rig.snapshot().await;
    fake.fail_next("check", Fault::Differs);
    let (op, done) = run(&rig, DataJob::Check { part: (2, 7), copy: None }).await;
    says(&op, OperationState::Failed, "is NOT sound: pack 00 is damaged");
    assert_eq!((done.checks[0].passed, done.checks[0].part.as_deref()), (false, Some("2/7")));
    let last = rig.store.last_checks().await.unwrap().into_iter().find(|c| c.level == 2).unwrap();
    assert_eq!(last, done.checks[0]);
    let (op, _) = run(&rig, DataJob::Check { part: (2, 7), copy: None }).await;
    assert_eq!(op.state, OperationState::Done);
}

#[tokio::test]
async fn a_restore_that_differs_stays_to_be_looked_at_and_one_that_is_cut_short_is_removed() {
    let (rig, fake) = Rig::in_memory().await;
    let snapshot = rig.snapshot().await;
    for fault in [Fault::Dies, Fault::DiesAfter, Fault::TooLarge] {
        fake.fail_next("export", fault.clone());
        let (op, _) = run(&rig, restore(&snapshot)).await;
        assert_eq!((op.state, rig.volumes().await), (OperationState::Failed, vec!["shop_data".to_owned()]), "{fault:?}: {op:?}");
    }
    fake.fail_next("verify", Fault::Dies);
    let (op, _) = run(&rig, restore(&snapshot)).await;
    assert_eq!((op.state, rig.volumes().await), (OperationState::Failed, vec!["shop_data".to_owned()]), "what was not compared is nothing");
    fake.fail_next("export", Fault::Differs);
    let (op, done) = run(&rig, restore(&snapshot)).await;
    says(&op, OperationState::Failed, "does not equal the snapshot (1 differences");
    let beside = done.restored[0].volume.clone();
    assert_eq!((done.restored[0].verified, rig.volumes().await), (false, vec!["shop_data".to_owned(), beside]));
    assert_eq!(rig.engine.volume_file("shop_data", "a"), Some(b"one".to_vec()));
}

#[tokio::test]
async fn a_restore_of_a_snapshot_that_vanished_says_so_and_leaves_nothing() {
    let (rig, fake) = Rig::in_memory().await;
    let snapshot = rig.snapshot().await;
    fake.vanish(&repo(&rig), &snapshot.snapshot_id);
    let (op, _) = run(&rig, restore(&snapshot)).await;
    says(&op, OperationState::Failed, "`backups` lists those that exist");
    assert_eq!(rig.volumes().await, ["shop_data"]);
}

#[tokio::test]
async fn only_what_is_of_the_snapshot_is_a_failed_drill() {
    let (rig, fake) = Rig::in_memory().await;
    let snapshot = rig.snapshot().await;
    let others = [Fault::Dies, Fault::TooLarge, Fault::Says(Failure::Locked { repo: "r".into(), waited_s: 1 })];
    for fault in others {
        fake.fail_next("export", fault.clone());
        let (op, done) = run(&rig, drill(&snapshot)).await;
        assert_eq!((op.state, done.drills.len()), (OperationState::Failed, 0), "{fault:?}: {op:?}");
        assert_eq!(rig.store.last_drills(None, None).await.unwrap(), vec![], "{fault:?}");
    }
    let damaged = Failure::Repository { detail: "pack 00 is gone".into() };
    for fault in [Fault::Says(damaged), Fault::Differs] {
        fake.fail_next("export", fault.clone());
        let (op, done) = run(&rig, drill(&snapshot)).await;
        says(&op, OperationState::Failed, "the drill FAILED for");
        assert_eq!(rig.store.failed_drills(None).await.unwrap(), BTreeSet::from([snapshot.snapshot_id.clone()]), "{fault:?}: {done:?}");
    }
    assert_eq!((rig.volumes().await, rig.engine.container_names()), (vec!["shop_data".to_owned()], vec!["db".to_owned()]));
}

#[tokio::test]
async fn a_copy_that_is_cut_short_loses_nothing_and_is_made_good_by_the_next_run() {
    let (rig, fake) = Rig::in_memory().await;
    let at = rig.dir.path().join("disk/copy");
    let keep = "keep = {hourly = 1, daily = 1, weekly = 1, monthly = 1, pre_update = 0}";
    let settings: BackupSettings = toml::from_str(&format!("[copies.disk]\nat = {at:?}\n{keep}\n")).unwrap();
    let house = rig.exec.backups.clone().unwrap().configured(&settings, rig.store.instance());
    let exec = executor_over(house, &rig.engine, &rig.store, None);
    let copy = || DataJob::Copy { copy: "disk".into() };
    rig.snapshot().await;
    run_with(&rig, &exec, copy()).await;
    let first = fake.ids(&at);
    rig.snapshot().await;
    fake.fail_next("copy", Fault::Dies);
    let (op, done) = run_with(&rig, &exec, copy()).await;
    says(&op, OperationState::Failed, "the copy disk is not up to date: the backup worker ended without an answer");
    assert_eq!((done.copies[0].passed, fake.ids(&at), planned(&rig).await.len()), (false, first.clone(), 0));
    // Added and not told: there, and not added again.
    fake.fail_next("copy", Fault::DiesAfter);
    run_with(&rig, &exec, copy()).await;
    assert_eq!(fake.ids(&at).len(), 2);
    let (op, done) = run_with(&rig, &exec, copy()).await;
    assert_eq!((op.state, done.copies[0].copied, done.copies[0].removed), (OperationState::Done, 0, 1), "{op:?}");
    let row = planned(&rig).await.remove(0);
    assert_eq!((&row.detail["copy"], &row.detail["going"][0]["snapshot_id"]), (&json!("disk"), &json!(first[0])));
    assert_eq!((fake.ids(&at).len(), fake.ids(&repo(&rig)).len()), (1, 2), "by the copy's own numbers");
}

#[tokio::test]
async fn an_answer_to_another_question_is_an_error_and_never_believed() {
    let (rig, fake) = Rig::in_memory().await;
    fake.fail_next("backup", Fault::Answers(Output::Checked(CheckReport::default())));
    let (op, _) = run(&rig, backup()).await;
    says(&op, OperationState::Failed, "supervisor and worker must be the same version");
    assert_eq!((rig.writer().await, recorded(&rig).await.len()), (RunState::Running, 0));
}

#[test]
fn a_plan_counts_each_source_by_itself_and_what_is_gone_already_asks_nothing() {
    let of = |id: &str, volume: &str, state: SnapshotState| SnapshotInfo {
        snapshot_id: SnapshotId::new(id).unwrap(),
        at: Utc::now(),
        volume: Some(volume.into()),
        stack: None,
        state,
        host: "dockwarden-here".into(),
        tags: vec![],
        bytes: 1,
        files: 1,
        original: SnapshotId::new(id).unwrap(),
    };
    use SnapshotState::{Complete, Partial};
    let listed = [of("a2", "a", Partial), of("a1", "a", Complete), of("b2", "b", Complete), of("b1", "b", Complete)];
    let all: Vec<BackupRecord> = listed.iter().filter_map(records::of).collect();
    let none = BTreeSet::new();
    let of_ids = |ids: &[&str]| all.iter().filter(|r| ids.contains(&r.snapshot_id.as_str())).cloned().collect::<Vec<_>>();
    let ids = |plan: &ForgetPlan| plan.ids().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ids(&ForgetPlan::new(&all, &of_ids(&["a1", "b1"]), &none)), ["b1"], "a partial one stands in for no whole one");
    assert_eq!(ids(&ForgetPlan::new(&all, &of_ids(&["b1", "b2"]), &none)), Vec::<String>::new(), "never the last");
    let plan = ForgetPlan::new(&all, &of_ids(&["a2", "b1"]), &none);
    assert_eq!(ids(&plan).len(), 2);
    let mut others = listed.clone();
    // Another instance's own databases are not ours, and count for nobody.
    others[2].host = "elsewhere".into();
    let still = plan.still(&others, "here", &none);
    assert_eq!((ids(&still.plan), still.spared, still.gone), (vec!["a2".to_owned()], vec!["b".to_owned()], vec![]));
    let still = plan.still(&listed[1..], "here", &none);
    assert_eq!((ids(&still.plan), still.spared, still.gone), (vec!["b1".to_owned()], vec![], vec!["a2".to_owned()]));
    assert_ne!(still.plan.digest, plan.digest, "what is carried out is not what was planned");
    // The repository's clock is another one.
    let later = listed.map(|s| SnapshotInfo { at: s.at + chrono::TimeDelta::seconds(2), ..s });
    assert_eq!(plan.still(&later, "here", &none).plan, plan);
}
