//! Smoke tests, hooks, probes, triggers, one-shots, data paths, preflight, and what settles a stack that needed attention.

use super::*;
use crate::model::observed::ExecOutcome;
use crate::model::preflight::Passed;
use serde_json::json;

fn web(spec: &mut StackSpec) -> &mut ServiceSpec {
    spec.services.get_mut("web").unwrap()
}
fn settings(value: serde_json::Value) -> ServiceSettings {
    serde_json::from_value(value).unwrap()
}
/// Answers commands by their first word with an exit code.
fn answer(engine: &FakeEngine, word: &'static str, code: i64, output: &'static str) {
    engine.on_exec(move |_, command| {
        let hit = command.first().is_some_and(|w| w == word);
        hit.then(|| ExecOutcome { exit_code: Some(code), output: output.into(), truncated: false })
    });
}
fn stops(rig: &Rig, container: &str) -> Vec<String> {
    rig.engine.calls().into_iter().filter(|c| c.starts_with("stop ") && c.contains(container)).collect()
}

#[tokio::test]
async fn a_failing_smoke_test_never_touches_the_old_one_and_keeps_evidence() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    rig.engine.clear_calls();
    answer(&rig.engine, "/smoke", 7, "cart is broken");
    let mut next = stack("web:2", Some("db:1"), &[]);
    web(&mut next).settings = settings(json!({"smoke": [{"exec": ["/smoke"]}], "start_timeout_s": 1}));
    let op = deploy(&rig, next).await;
    assert_eq!(op.state, OperationState::RolledBack);
    let message = op.message.unwrap();
    assert!(message.contains("smoke test 1 failed: exec /smoke: exit code 7"), "{message}");
    assert_eq!(op.evidence[0].probe_output.as_deref(), Some("cart is broken"));
    assert_eq!(stops(&rig, "shop-web-1"), Vec::<String>::new(), "the old one was never stopped");
    assert_one_release(&rig, "failed smoke").await;
}

#[tokio::test]
async fn a_failing_probe_of_its_own_fails_the_new_version_although_its_health_check_passes() {
    let rig = rig().await;
    answer(&rig.engine, "/ready", 1, "not yet");
    let mut spec = stack("web:1", None, &[]);
    web(&mut spec).settings = settings(json!({"probes": [{"exec": ["/ready"]}], "start_timeout_s": 1}));
    let op = deploy(&rig, spec).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert!(op.message.unwrap().contains("a probe did not pass within 1 s: exec /ready: exit code 1"));
}

#[tokio::test]
async fn a_probe_by_a_command_the_image_lacks_says_what_to_do() {
    let rig = rig().await;
    answer(&rig.engine, "/bin/sh", 127, "");
    let mut spec = stack("web:1", None, &[]);
    web(&mut spec).settings = settings(json!({"probes": [{"http": {"port": 80}}], "start_timeout_s": 1}));
    let op = deploy(&rig, spec).await;
    let message = op.message.unwrap();
    assert!(message.contains("by a command in the container cannot run") && message.contains("use an `exec` probe"), "{message}");
}

#[tokio::test]
async fn hooks_run_around_the_start_and_a_failing_one_takes_the_release_back() {
    let rig = rig().await;
    rig.engine.on_run(|spec| spec.command.as_ref().filter(|c| c[0].starts_with("/pre")).map(|c| i64::from(c[0] == "/pre-bad")));
    let with = |value: serde_json::Value| {
        let mut spec = stack("web:1", Some("db:1"), &[]);
        web(&mut spec).settings = settings(value);
        spec
    };
    let op = deploy(&rig, with(json!({"hooks": {"pre": [{"run": ["/pre-good"]}], "post": [{"run": ["/post"]}]}}))).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    let keys: Vec<String> = rig.store.steps(&op.id).await.unwrap().into_iter().map(|s| s.key).collect();
    let at = |key: &str| keys.iter().position(|k| k == key).unwrap_or_else(|| panic!("{key} in {keys:?}"));
    assert!(at("hook:web:pre:1") < at("create:web:1") && at("current") < at("hook:web:post:1"));
    assert_one_release(&rig, "hooks").await;

    let mut bad = with(json!({"hooks": {"pre": [{"run": ["/pre-bad"]}]}}));
    web(&mut bad).image = Some(ImageRef::new("web:2").unwrap());
    let op = deploy(&rig, bad).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert!(op.message.unwrap().contains("its pre hook `/pre-bad` ended with exit code 1"));
    assert_one_release(&rig, "failed pre hook").await;

    answer(&rig.engine, "/post", 3, "no cache");
    let mut bad = with(json!({"hooks": {"post": [{"run": ["/post"]}]}}));
    web(&mut bad).image = Some(ImageRef::new("web:2").unwrap());
    let op = deploy(&rig, bad).await;
    assert_eq!((op.state, op.evidence[0].probe_output.as_deref()), (OperationState::RolledBack, Some("no cache")));
    assert_one_release(&rig, "failed post hook").await;
}

#[tokio::test]
async fn a_hook_the_policy_forbids_by_now_is_not_run() {
    let rig = rig().await;
    let facts: FactsOf = Arc::new(|plan, service| {
        let policy = crate::model::policy::Policy {
            rules: BTreeMap::from([("hook.command".to_owned(), crate::model::policy::RuleLevel::Deny)]),
            ..Default::default()
        };
        let service = service.map_or("", ServiceName::as_str);
        RequestFacts::of(&plan.desired, service, &Default::default(), &policy, Utc::now().date_naive(), BTreeSet::new())
    });
    let exec = Executor::new(rig.engine.clone(), rig.store.clone(), facts, Options::default());
    let mut spec = stack("web:1", None, &[]);
    web(&mut spec).settings.hooks.pre = vec![serde_json::from_value(json!({"run": ["/pre"]})).unwrap()];
    let want = release_of(&rig, spec).await;
    let op = run(&rig, &exec, want).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert!(op.message.unwrap().contains("rule hook.command"));
    assert!(!rig.engine.calls().iter().any(|c| c.starts_with("create_container") && c.contains("hook")));
}

fn watched(mut spec: StackSpec, triggers: serde_json::Value) -> StackSpec {
    spec.settings = serde_json::from_value(json!({"monitor": {"window_s": 1}, "triggers": triggers})).unwrap();
    spec
}

/// A version that writes twenty error lines at its start.
fn noisy(rig: &Rig) {
    let lines: Vec<String> = (0..20).map(|i| format!("ERROR {i}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    rig.engine.add_image("web:noisy", Behaviour::healthy().with_logs(&lines));
}

#[tokio::test]
async fn error_lines_warn_by_default_and_switch_back_where_the_stack_says_so() {
    let rig = rig().await;
    noisy(&rig);
    deploy(&rig, stack("web:1", None, &[])).await;
    let op = deploy(&rig, watched(stack("web:noisy", None, &[]), json!({}))).await;
    assert_eq!(op.state, OperationState::Done);
    assert!(op.message.as_deref().unwrap().contains("warning: service web: 20 error lines within a minute"), "{:?}", op.message);
    assert_eq!(op.evidence.len(), 1);
    let row = rig.store.audit_rows(&crate::store::audit::AuditQuery { limit: 50, ..Default::default() }).await.unwrap();
    assert!(format!("{row:?}").contains("error_lines"), "the audit log has it");
    assert_one_release(&rig, "warned").await;

    deploy(&rig, stack("web:1", None, &[])).await;
    let op = deploy(&rig, watched(stack("web:noisy", None, &[]), json!({"error_lines": "rollback"}))).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert!(op.message.unwrap().contains("trigger error_lines"));
    assert_one_release(&rig, "switched back").await;
}

#[tokio::test]
async fn a_service_of_low_criticality_warns_where_another_switches_back() {
    let rig = rig().await;
    noisy(&rig);
    deploy(&rig, stack("web:1", None, &[])).await;
    let mut spec = watched(stack("web:noisy", None, &[]), json!({"error_lines": "rollback"}));
    web(&mut spec).settings.criticality = Some(Criticality::Low);
    assert_eq!(deploy(&rig, spec).await.state, OperationState::Done);
}

#[tokio::test]
async fn what_dies_in_the_watch_window_is_switched_back() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let want = release_of(&rig, watched(stack("web:2", Some("db:1"), &[]), json!({}))).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    let op = rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert_eq!(op.state, OperationState::Monitoring);
    assert!(rig.engine.set_health("shop-web-1", crate::model::observed::HealthState::Unhealthy));
    ended(&rig.exec, &op.id).await;
    let op = rig.store.operation(&op.id).await.unwrap().unwrap();
    assert_eq!((op.state, op.evidence.len()), (OperationState::RolledBack, 1));
    assert_one_release(&rig, "switched back").await;
}

#[tokio::test]
async fn a_failure_after_a_migration_stops_before_the_data_and_the_next_deploy_settles_it() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let op = deploy(&rig, stack("web:bad", Some("db:2"), &[])).await;
    assert_eq!(op.state, OperationState::NeedsAttention);
    let message = op.message.unwrap();
    assert!(message.contains("nothing older was started on it") && message.contains("loses what was written"), "{message}");
    assert_eq!(rig.engine.violations(), Vec::<String>::new());
    let new_db: Vec<String> = rig.engine.serving("shop", "db");
    assert_eq!((new_db.len(), rig.engine.serving("shop", "web")), (1, vec!["shop-web-1".to_owned()]), "what is healthy keeps the traffic");
    assert_ne!(new_db[0], "shop-db-1", "the new database, not the old one");
    let restart = run(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert_eq!(
        (restart.state, rig.engine.violations()),
        (OperationState::Done, vec![]),
        "a restart never starts the old writer beside the new"
    );
    let fixed = deploy(&rig, stack("web:2", Some("db:2"), &[])).await;
    assert_eq!(fixed.state, OperationState::Done, "{:?}", fixed.message);
    assert_one_release(&rig, "settled").await;
    let old = rig.store.operation(&op.id).await.unwrap().unwrap();
    assert_eq!(old.state, OperationState::Failed);
    assert!(old.message.unwrap().contains(&format!("Settled by {}", fixed.id)));
}

#[tokio::test]
async fn a_migrated_release_that_fails_its_watch_keeps_serving_and_asks() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    rig.engine.add_image("db:noisy", Behaviour::healthy().with_logs(&["ERROR"; 20]));
    let op = deploy(&rig, watched(stack("web:1", Some("db:noisy"), &[]), json!({"error_lines": "rollback"}))).await;
    assert_eq!(op.state, OperationState::NeedsAttention);
    assert!(op.message.unwrap().contains("release 2 keeps serving"));
    assert_eq!(rig.store.stack(&shop()).await.unwrap().unwrap().current, Some(2));
    assert_eq!((rig.engine.serving("shop", "db").len(), rig.engine.violations()), (1, vec![]));
    assert_eq!(run(&rig, &rig.exec, Want::Stop { remove: false }).await.state, OperationState::Done);
    assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::Failed, "settled by the stop");
}

fn with_job(web: &str, job: &str) -> StackSpec {
    let mut spec = stack(web, None, &["migrate"]);
    let migrate = spec.services.get_mut("migrate").unwrap();
    migrate.image = Some(ImageRef::new(job).unwrap());
    migrate.restart = Restart::No;
    let after = Dependency { condition: DependencyCondition::ServiceCompletedSuccessfully, required: true, restart: false };
    spec.services.get_mut("web").unwrap().depends_on.insert(name("migrate"), after);
    spec
}

#[tokio::test]
async fn a_one_shot_runs_once_for_its_key_also_when_its_release_failed() {
    let rig = rig().await;
    rig.engine.add_image("job:1", Behaviour::exits(0));
    rig.engine.add_image("job:2", Behaviour::exits(0));
    let starts = || rig.engine.calls().iter().filter(|c| c.starts_with("start ") && c.contains("migrate")).count();
    assert_eq!(deploy(&rig, with_job("web:1", "job:1")).await.state, OperationState::Done);
    assert_eq!(starts(), 1);
    assert_eq!(deploy(&rig, with_job("web:2", "job:1")).await.state, OperationState::Done);
    assert_eq!(starts(), 1, "the same one-shot does not run again");
    assert_eq!(deploy(&rig, with_job("web:bad", "job:2")).await.state, OperationState::RolledBack);
    assert_eq!(starts(), 2);
    let fixed = deploy(&rig, with_job("web:1", "job:2")).await;
    assert_eq!((fixed.state, starts()), (OperationState::Done, 2), "it ran to its end in the release that failed");
}

#[tokio::test]
async fn preflight_reports_every_check_and_a_plan_can_be_asked_before() {
    let rig = rig().await;
    rig.engine.add_image("other:1", Behaviour::running());
    let mut spec = stack("web:1", Some("db:1"), &[]);
    let network = spec.networks.get_mut("default").unwrap();
    network.ipam = vec![IpamPool { subnet: Some("172.16.0.0/16".into()), ..Default::default() }];
    spec.services.get_mut("db").unwrap().resources.nano_cpus = Some(64_000_000_000);
    spec.volumes.insert("ext".into(), VolumeSpec { name: "elsewhere".into(), external: true, ..Default::default() });
    let other =
        crate::engine::NetworkCreate { name: EngineName::new("theirs").unwrap(), spec: NetworkSpec::default(), labels: BTreeMap::new() };
    rig.engine.create_network(&permit("deploy"), &other).await.unwrap();
    let want = release_of(&rig, spec).await;
    let plan = plan_for(&rig, &rig.exec, want.clone()).await;
    rig.engine.clear_calls();
    let report = rig.exec.preflight(&plan).await.unwrap();
    assert_eq!(rig.engine.calls(), Vec::<String>::new(), "it only reads");
    let bad: BTreeSet<&str> = report.iter().filter(|c| c.ok == Passed::No).map(|c| c.id.as_str()).collect();
    assert_eq!(bad, BTreeSet::from(["host.cpu", "network.subnet", "volume.external"]));
    let ids: BTreeSet<&str> = report.iter().map(|c| c.id.as_str()).collect();
    let all = [
        "backup.made",
        "depends.order",
        "file.syntax",
        "file.variables",
        "health.defined",
        "host.cpu",
        "host.disk",
        "host.memory",
        "image.arch",
        "image.present",
        "limits.set",
        "network.definition",
        "network.external",
        "network.subnet",
        "pid1.signals",
        "port.free",
        "probe.possible",
        "rollback.possible",
        "secret.deliverable",
        "stack.claim",
        "volume.driver",
        "volume.external",
        "writer.single",
    ];
    assert_eq!(ids, BTreeSet::from(all));
    assert_eq!(report.iter().find(|c| c.id == "host.disk").unwrap().ok, Passed::Unknown, "the fake engine's host cannot be measured");
    let op = run(&rig, &rig.exec, want).await;
    assert_eq!(op.state, OperationState::Failed, "nothing was touched");
    assert!(op.message.unwrap().contains("network.subnet: network shop_default: subnet 172.16.0.0/16 overlaps with network theirs"));
}

#[tokio::test]
async fn a_cancel_says_whether_it_is_too_late_or_over() {
    let rig = rig().await;
    let op = deploy(&rig, stack("web:1", None, &[])).await;
    let over = rig.exec.cancel(&op.id).await.unwrap_err();
    assert_eq!(over.to_string(), format!("operation {} has ended: done", op.id));
    let want = release_of(&rig, watched(stack("web:2", None, &[]), json!({}))).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert!(matches!(rig.exec.cancel(&op.id).await, Err(ExecutorError::TooLate(_))));
    ended(&rig.exec, &op.id).await;
}

#[tokio::test]
async fn an_abandoned_operation_is_closed_by_the_next_one_on_its_stack() {
    let rig = rig().await;
    let doomed = executor(&rig.engine, &rig.store, Some(Arc::new(|count| count == 4)));
    let want = release_of(&rig, stack("web:1", None, &[])).await;
    let plan = plan_for(&rig, &doomed, want.clone()).await;
    let left = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    ended(&doomed, &left.id).await;
    let op = run(&rig, &rig.exec, want).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    let left = rig.store.operation(&left.id).await.unwrap().unwrap();
    assert_eq!((left.state, left.message.unwrap().contains("superseded")), (OperationState::Failed, true));
    assert_one_release(&rig, "after an abandoned one").await;
}

#[tokio::test]
async fn a_paused_container_is_drift_and_resumes() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    rig.engine.pause(&permit("deploy"), &EngineName::new("shop-web-1").unwrap(), true).await.unwrap();
    let op = deploy(&rig, stack("web:1", None, &[])).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    assert_one_release(&rig, "resumed").await;
}

#[tokio::test]
async fn settings_alone_make_a_release_and_touch_no_container() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    rig.engine.clear_calls();
    let mut next = stack("web:1", Some("db:1"), &[]);
    web(&mut next).settings.heal = Some(HealMode::Off);
    let op = deploy(&rig, next).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(2)));
    let touched: Vec<String> = rig.engine.calls().into_iter().filter(|c| !c.starts_with("tag ") && !c.contains("claim")).collect();
    assert_eq!(touched, Vec::<String>::new());
    assert_one_release(&rig, "settings").await;
}

#[tokio::test]
async fn a_probe_that_hangs_in_the_watch_window_holds_up_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let rig = rig().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (hangs, mut hanging) = tokio::sync::mpsc::channel::<()>(8);
    tokio::spawn(async move {
        // The first look, before the switch, is answered; those after it never.
        let (mut first, _) = listener.accept().await.unwrap();
        let _ = first.read(&mut [0; 1024]).await.unwrap();
        first.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
        drop(first);
        let mut held = vec![];
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
            hangs.send(()).await.unwrap();
        }
    });
    let mut spec = stack("web:1", None, &[]);
    web(&mut spec).settings = settings(json!({"probes": [{"url": url, "timeout_s": 3600}], "start_timeout_s": 5}));
    spec.settings.monitor_s = Some(3600);
    let plan = plan_for(&rig, &rig.exec, release_of(&rig, spec).await).await;
    let first = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    let settled = rig.exec.wait(&first.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert_eq!(settled.state, OperationState::Monitoring, "{settled:?}");
    tokio::time::timeout(Duration::from_secs(30), hanging.recv()).await.expect("the watch window looks").unwrap();
    let plan = plan_for(&rig, &rig.exec, Want::Stop { remove: false }).await;
    let second = rig.exec.submit(plan, permit("stop"), request("stop"));
    let second = tokio::time::timeout(Duration::from_secs(20), second).await.expect("not held up").unwrap();
    ended(&rig.exec, &second.id).await;
    assert_eq!(rig.store.operation(&second.id).await.unwrap().unwrap().state, OperationState::Done);
}
