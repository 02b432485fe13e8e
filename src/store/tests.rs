//! The home as a whole, and the records of `state.db`.

mod approvals;
mod homes;

use super::approval::{Approval, ApprovalState};
use super::backup::BackupRecord;
use super::*;
use crate::model::ids::*;
use crate::model::observed::ImageIdentity;
use crate::model::operation::*;
use crate::model::plan::{GitState, Plan, PlanKind};
use crate::model::release::*;
use crate::model::spec::{FileObject, ServiceSpec, StackSpec};
use crate::model::verdict::Verdict;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

/// A secret that must not be found in any file.
const SECRET: &str = "hunter2-plain-secret";

/// A moment with nanoseconds, so that a lost digit is seen.
pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 123_456_789).unwrap()
}

pub(super) async fn fresh() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open_in(&dir).await.unwrap();
    (dir, store)
}

pub(super) async fn open_in(dir: &tempfile::TempDir) -> StoreResult<Store> {
    Store::open(&dir.path().join("home"), &dir.path().join("memory")).await
}

fn stack_name() -> StackName {
    StackName::new("shop").unwrap()
}

fn spec() -> StackSpec {
    let mut web = ServiceSpec { replicas: 1, active: true, ..Default::default() };
    web.environment.insert("TOKEN".into(), Some(SECRET.into()));
    let file = FileObject {
        name: "shop_cert".into(),
        external: false,
        file: None,
        content: Some(SECRET.into()),
        digest: None,
        environment: None,
        labels: Default::default(),
        driver: None,
        driver_opts: Default::default(),
        template_driver: None,
    };
    StackSpec {
        services: [(ServiceName::new("web").unwrap(), web)].into(),
        secrets: [("cert".to_owned(), file)].into(),
        ..StackSpec::new(stack_name())
    }
}

fn images() -> BTreeMap<ServiceName, ImageIdentity> {
    let identity = ImageIdentity { reference: ImageRef::new("shop:1").unwrap(), id: Some("sha256:ab".into()), repo_digest: None };
    [(ServiceName::new("web").unwrap(), identity)].into()
}

fn release(number: u32) -> Release {
    Release {
        stack: stack_name(),
        number,
        state: ReleaseState::Pending,
        environment: "production".into(),
        spec: spec(),
        images: images(),
        agent: "deployer".into(),
        operation: OperationId::new("op-1").unwrap(),
        reason: Some("because".into()),
        content_of: None,
        project_dir: Some("/srv/shop".into()),
        git: Some(GitState { commit: "abc".into(), dirty: true }),
        created_at: at(i64::from(number)),
    }
}

fn plan(id: &str, created_at: DateTime<Utc>) -> Plan {
    Plan {
        id: PlanId::new(id).unwrap(),
        kind: PlanKind::Deploy,
        stack: stack_name(),
        environment: "production".into(),
        given: None,
        from_release: None,
        to_release: 1,
        content_of: None,
        desired: spec(),
        images: images(),
        levels: vec![],
        changes: vec![],
        only: None,
        makes_way: BTreeMap::new(),
        migrates: Default::default(),
        stack_diff: vec![],
        text_only: false,
        remove: false,
        data: Default::default(),
        findings: vec![],
        verdict: Verdict::Allow,
        asked: vec![],
        weighed: Default::default(),
        real_paths: Default::default(),
        carried: Default::default(),
        left: Default::default(),
        project_dir: None,
        git: None,
        fingerprint: "f".into(),
        digest: "d".into(),
        created_at,
    }
}

fn operation(id: &str, created_at: DateTime<Utc>) -> Operation {
    Operation {
        stack: Some(stack_name()),
        plan: Some(PlanId::new("plan-1").unwrap()),
        state: OperationState::Running,
        phase: Phase::Prepare,
        ..Operation::new(OperationId::new(id).unwrap(), "deploy".into(), "deployer".into(), CallId::new("call-1").unwrap(), created_at)
    }
}

fn evidence() -> Evidence {
    Evidence {
        service: "web".into(),
        container: "shop-web-1".into(),
        reason: "exited".into(),
        exit_code: Some(1),
        oom_killed: false,
        probe_output: None,
        logs: vec![format!("token is {SECRET}")],
    }
}

fn approval(id: &str, digest: &str, needed: u32) -> Approval {
    Approval {
        id: ApprovalId::new(id).unwrap(),
        on_behalf: vec![],
        agent: "deployer".into(),
        tool: "deploy".into(),
        stack: Some(stack_name()),
        environment: Some("production".into()),
        plan: Some(PlanId::new("plan-1").unwrap()),
        digest: digest.into(),
        input: json!({"variables": {"TOKEN": SECRET}}),
        call: CallId::new("call-1").unwrap(),
        reason: None,
        state: ApprovalState::Pending,
        needed,
        approved_by: vec![],
        denied_by: None,
        operation: None,
        at_terminal: false,
        by_client: false,
        created_at: at(0),
        expires_at: at(1800),
    }
}

#[tokio::test]
async fn releases_come_back_whole_and_one_becomes_current() {
    let (dir, store) = fresh().await;
    let name = stack_name();
    assert_eq!(store.last_release_number(&name).await.unwrap(), 0);
    assert_eq!(store.stack(&name).await.unwrap(), None);
    let op = store.begin_operation(operation("op-1", at(0)), "args").await.unwrap().unwrap();
    assert_eq!(op.epoch, 1);
    store.put_release(&release(1)).await.unwrap();
    store.put_release(&release(2)).await.unwrap();
    assert_eq!(store.release(&name, 1).await.unwrap(), Some(release(1)));
    assert_eq!(store.release(&name, 9).await.unwrap(), None);
    assert_eq!(store.releases(&name, 10).await.unwrap(), [release(2), release(1)]);
    assert_eq!(store.releases(&name, 1).await.unwrap(), [release(2)]);
    assert_eq!(store.last_release_number(&name).await.unwrap(), 2);

    store.make_current(&name, 2, true, 1).await.unwrap();
    let current = StackRecord { name: name.clone(), environment: "production".into(), current: Some(2), stopped: false, epoch: 1 };
    assert_eq!(store.stack(&name).await.unwrap(), Some(current.clone()));
    assert_eq!(store.release(&name, 2).await.unwrap().unwrap().state, ReleaseState::Monitoring);
    assert_eq!(store.operation(&op.id).await.unwrap().unwrap().release, Some(2));
    store.set_release_state(&name, 2, ReleaseState::Good).await.unwrap();
    store.close().await;

    let store = open_in(&dir).await.unwrap();
    assert_eq!(store.release(&name, 2).await.unwrap(), Some(Release { state: ReleaseState::Good, ..release(2) }));
    store.set_stopped(&name, true).await.unwrap();
    store.set_current(&name, Some(1), 1).await.unwrap();
    assert_eq!(store.stacks().await.unwrap(), [StackRecord { current: Some(1), stopped: true, ..current.clone() }]);
    store.set_current(&name, None, 1).await.unwrap();
    assert_eq!(store.stacks().await.unwrap(), [StackRecord { current: None, stopped: true, ..current }]);
    assert!(matches!(store.make_current(&name, 9, true, 1).await, Err(StoreError::Missing { what: "release", .. })));
    assert!(matches!(store.set_release_state(&name, 9, ReleaseState::Good).await, Err(StoreError::Missing { .. })));
    assert!(matches!(store.set_stopped(&StackName::new("none").unwrap(), true).await, Err(StoreError::Missing { .. })));
}

#[tokio::test]
async fn an_older_epoch_is_refused_everywhere() {
    let (_dir, store) = fresh().await;
    let name = stack_name();
    let old = store.begin_operation(operation("op-1", at(0)), "a").await.unwrap().unwrap();
    store.put_release(&release(1)).await.unwrap();
    let new = store.begin_operation(operation("op-2", at(1)), "a").await.unwrap().unwrap();
    assert_eq!((old.epoch, new.epoch), (1, 2));
    let superseded = |e: StoreError| matches!(e, StoreError::Superseded { stack } if stack == "shop");
    assert!(superseded(store.make_current(&name, 1, true, 1).await.unwrap_err()));
    assert!(superseded(store.set_current(&name, Some(1), 1).await.unwrap_err()));
    assert!(superseded(store.step_intent(&old.id, 1, Phase::Switch, "k", &json!(1), at(2)).await.unwrap_err()));
    assert!(
        superseded(store.step_intent(&old.id, 2, Phase::Switch, "k", &json!(1), at(2)).await.unwrap_err()),
        "not under another's epoch"
    );
    assert!(superseded(store.save_operation(&old).await.unwrap_err()));
    assert_eq!(store.stack(&name).await.unwrap().unwrap().current, None);
    assert_eq!(store.steps(&old.id).await.unwrap(), []);

    assert!(store.end_superseded(&old.id, OperationState::NeedsAttention, "op-2 took over", at(3)).await.unwrap());
    assert!(!store.end_superseded(&old.id, OperationState::Done, "again", at(4)).await.unwrap());
    let ended = Operation { state: OperationState::NeedsAttention, message: Some("op-2 took over".into()), settled_at: Some(at(3)), ..old };
    assert_eq!(store.operation(&ended.id).await.unwrap(), Some(ended.clone()));
    store.save_operation(&Operation { message: Some("note".into()), ..ended }).await.unwrap();
    store.save_operation(&new).await.unwrap();
}

#[tokio::test]
async fn operations_and_steps_come_back_whole() {
    let (_dir, store) = fresh().await;
    let one = store.begin_operation(operation("op-1", at(0)), "a").await.unwrap().unwrap();
    let two = Operation { stack: None, ..operation("op-2", at(1)) };
    let two = store.begin_operation(two, "a").await.unwrap().unwrap();
    assert_eq!(two.epoch, 0);
    assert_eq!(store.open_operations().await.unwrap(), [one.clone(), two.clone()]);
    assert_eq!(store.operations(None, 10).await.unwrap(), [two.clone(), one.clone()]);
    assert_eq!(store.operations(Some(&stack_name()), 10).await.unwrap(), std::slice::from_ref(&one));

    let first = store.step_intent(&one.id, 1, Phase::Prepare, "net", &json!({"n": 1}), at(2)).await.unwrap();
    let second = store.step_intent(&one.id, 1, Phase::Switch, "web", &json!({"n": 2}), at(3)).await.unwrap();
    assert_eq!((first, second), (1, 2));
    store.step_done(&one.id, 1, &json!("ok")).await.unwrap();
    let step = |seq, phase, key: &str, n: i32, done, at| StepRecord {
        operation: one.id.clone(),
        seq,
        phase,
        key: key.into(),
        intent: json!({"n": n}),
        done,
        at,
        done_at: None,
    };
    let expected = [step(1, Phase::Prepare, "net", 1, Some(json!("ok")), at(2)), step(2, Phase::Switch, "web", 2, None, at(3))];
    let mut steps = store.steps(&one.id).await.unwrap();
    let ended = steps[0].done_at.take().expect("it has a result");
    assert!(Utc::now() - ended < TimeDelta::minutes(1), "{ended}");
    assert_eq!(steps, expected);
    assert_eq!(store.step_intent(&two.id, 0, Phase::Prepare, "x", &json!(null), at(2)).await.unwrap(), 1);
    assert!(matches!(store.step_done(&one.id, 9, &json!(1)).await, Err(StoreError::Missing { what: "step", .. })));
    let nobody = OperationId::new("op-9").unwrap();
    assert!(matches!(store.step_intent(&nobody, 1, Phase::Switch, "k", &json!(1), at(2)).await, Err(StoreError::Missing { .. })));

    assert!(store.request_cancel(&one.id).await.unwrap());
    let done = Operation {
        state: OperationState::Done,
        phase: Phase::Finished,
        release: Some(3),
        message: Some("m".into()),
        evidence: vec![evidence()],
        settled_at: Some(at(9)),
        ..one.clone()
    };
    store.save_operation(&done).await.unwrap();
    let stored = Operation { cancel_requested: true, ..done };
    assert_eq!(store.operation(&one.id).await.unwrap(), Some(stored), "a cancel asked for meanwhile is not lost");
    assert!(!store.request_cancel(&one.id).await.unwrap(), "it has ended");
    assert!(!store.request_cancel(&nobody).await.unwrap());
    assert_eq!(store.open_operations().await.unwrap(), [two]);
    assert!(matches!(store.save_operation(&operation("op-9", at(0))).await, Err(StoreError::Missing { .. })));
}

#[tokio::test]
async fn an_idempotency_key_returns_the_earlier_operation_for_seven_days() {
    let (_dir, store) = fresh().await;
    let keyed = |id, when| Operation { idempotency_key: Some("k".into()), ..operation(id, when) };
    let first = store.begin_operation(keyed("op-1", at(0)), "same").await.unwrap().unwrap();
    assert_eq!(store.begin_operation(keyed("op-2", at(60)), "same").await.unwrap(), Err(first.clone()));
    assert_eq!(store.stack(&stack_name()).await.unwrap().unwrap().epoch, 1, "nothing began");
    assert!(matches!(store.begin_operation(keyed("op-3", at(60)), "other").await, Err(StoreError::KeyReused { key }) if key == "k"));
    let other_agent = Operation { agent: "stack-keeper".into(), ..keyed("op-4", at(60)) };
    assert_eq!(store.begin_operation(other_agent, "other").await.unwrap().unwrap().epoch, 2);
    assert_eq!(store.begin_operation(keyed("op-5", at(8 * 86_400)), "other").await.unwrap().unwrap().epoch, 3);
}

#[tokio::test]
async fn plans_live_a_day_unless_something_open_needs_them() {
    let (_dir, store) = fresh().await;
    let id = |s: &str| PlanId::new(s).unwrap();
    for old in ["plan-1", "plan-free", "plan-asked"] {
        store.put_plan(&plan(old, at(0))).await.unwrap();
    }
    assert_eq!(store.plan(&id("plan-1")).await.unwrap(), Some(plan("plan-1", at(0))));
    let op = store.begin_operation(operation("op-1", at(0)), "a").await.unwrap().unwrap();
    let asked = Approval { plan: Some(id("plan-asked")), ..approval("ap-1", "d", 1) };
    store.request_approval(asked.clone()).await.unwrap();
    store.put_plan(&plan("plan-2", at(90_000))).await.unwrap();
    let left = async || {
        let mut left = vec![];
        for p in ["plan-1", "plan-free", "plan-asked", "plan-2"] {
            if store.plan(&id(p)).await.unwrap().is_some() {
                left.push(p);
            }
        }
        left
    };
    assert_eq!(left().await, ["plan-1", "plan-asked", "plan-2"]);
    store.save_operation(&Operation { state: OperationState::Done, ..op }).await.unwrap();
    store.set_approval_state(&asked.id, ApprovalState::Stale).await.unwrap();
    store.put_plan(&plan("plan-2", at(90_000))).await.unwrap();
    assert_eq!(left().await, ["plan-2"]);
}

#[tokio::test]
async fn backups_are_found_by_stack_volume_and_prefix() {
    let (_dir, store) = fresh().await;
    let record = |id: &str, stack: Option<&str>, volume: &str, t| BackupRecord {
        snapshot_id: id.into(),
        stack: stack.map(Into::into),
        volume: volume.into(),
        bytes: 1 << 40,
        added: 7,
        files: 3,
        state: "complete".into(),
        at: at(t),
        agent: "backup-keeper".into(),
        release: Some(4),
        tags: vec!["pre-update".into(), "kept".into()],
        operation: Some("op-1".into()),
        copies: vec![],
    };
    let (a, b, c) = (record("ab12", Some("shop"), "data", 1), record("ab1", None, "data", 2), record("cd_9", Some("shop"), "logs", 3));
    for r in [&a, &b, &c] {
        store.put_backup(r).await.unwrap();
    }
    assert_eq!(store.backups(None, None, 10).await.unwrap(), [c.clone(), b.clone(), a.clone()]);
    assert_eq!(store.backups(Some(&stack_name()), None, 10).await.unwrap(), [c.clone(), a.clone()]);
    assert_eq!(store.backups(None, Some("data"), 1).await.unwrap(), std::slice::from_ref(&b));
    let find = async |id: &str| store.backup(&SnapshotId::new(id).unwrap()).await.unwrap();
    assert_eq!(find("ab12").await, Some(a));
    assert_eq!(find("ab1").await, Some(b), "an exact id wins over a longer one");
    assert_eq!(find("ab").await, None, "ambiguous");
    assert_eq!(find("cd_").await, Some(c));
    assert_eq!(find("c__").await, None, "no wildcards");
    let huge = BackupRecord { bytes: u64::MAX, ..record("ee", None, "x", 1) };
    assert!(matches!(store.put_backup(&huge).await, Err(StoreError::Corrupt { what: "backup", .. })));
}

#[tokio::test]
async fn tokens_operators_heals_and_values() {
    let (_dir, store) = fresh().await;
    let put = async |agent: &str, label: &str, n: u8, expires: Option<i64>, t: i64| {
        let (_, ended) = store.put_token(agent, label, &[n; 32], expires.map(at), at(t)).await.unwrap();
        ended.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let whose = async |n: u8, t: i64| store.token_use(&[n; 32], at(t)).await.unwrap().map(|u| (u.agent, u.id.to_string()));
    let none: Vec<String> = vec![];
    assert_eq!(put("deployer", "ci", 1, None, 0).await, none);
    assert_eq!(put("deployer", "ci", 2, None, 1).await, none, "two are valid while a client moves over");
    assert_eq!(put("observer", "", 3, Some(60), 2).await, none);
    assert_eq!(whose(1, 2).await, Some(("deployer".into(), "tk-010101010101".into())));
    assert_eq!(put("deployer", "ci", 4, None, 3).await, ["tk-010101010101"], "the third ends the first");
    assert_eq!((whose(1, 3).await, whose(9, 3).await), (None, None));
    assert!(whose(3, 59).await.is_some() && whose(3, 60).await.is_none(), "void from its expiry on");
    assert!(store.revoke_token("tk-020202020202", at(4)).await.unwrap());
    assert!(!store.revoke_token("tk-020202020202", at(4)).await.unwrap(), "ended already");
    assert!(!store.revoke_token("tk-ffffffffffff", at(4)).await.unwrap());
    assert_eq!(store.revoke_tokens("deployer", at(5)).await.unwrap().len(), 1);
    assert_eq!(whose(4, 5).await, None);
    let listed = store.tokens().await.unwrap();
    let seen: Vec<_> = listed.iter().map(|t| (t.id.as_str(), t.label.as_str(), t.revoked_at, t.expires_at)).collect();
    assert_eq!(
        seen,
        [
            ("tk-040404040404", "ci", Some(at(5)), None),
            ("tk-030303030303", "", None, Some(at(60))),
            ("tk-020202020202", "ci", Some(at(4)), None),
            ("tk-010101010101", "ci", Some(at(3)), None),
        ]
    );

    store.put_operator("bob", "$hash1", at(0)).await.unwrap();
    store.put_operator("ann", "$hash2", at(0)).await.unwrap();
    store.put_operator("bob", "$hash3", at(1)).await.unwrap();
    assert_eq!(store.operators().await.unwrap(), [("ann".to_owned(), "$hash2".to_owned()), ("bob".into(), "$hash3".into())]);

    let name = stack_name();
    assert_eq!(store.heal_action(&name, "web", at(0), at(-300)).await.unwrap(), 1);
    assert_eq!(store.heal_action(&name, "web", at(10), at(-290)).await.unwrap(), 2);
    assert_eq!(store.heal_action(&name, "db", at(10), at(-290)).await.unwrap(), 1);
    assert_eq!(store.heal_count(&name, "web", at(5)).await.unwrap(), 1);
    let week = at(0) + TimeDelta::days(8);
    assert_eq!(store.heal_action(&name, "web", week, at(-300)).await.unwrap(), 1, "old ones are forgotten");

    assert_eq!(store.value("k").await.unwrap(), None);
    store.set_value("k", &json!({"a": [1, null]})).await.unwrap();
    store.set_value("k", &json!({"a": [2, null]})).await.unwrap();
    assert_eq!(store.value("k").await.unwrap(), Some(json!({"a": [2, null]})));
}
