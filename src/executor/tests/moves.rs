//! What changes hands between services, and what outlives a change: volumes and ports that move, stops, watch windows that were cut short.

use super::*;
use crate::model::observed::HealthState;
use crate::model::plan::{Action, Strategy};

fn mount(target: &str) -> MountSpec {
    MountSpec { source: Some("data".into()), ..MountSpec::new(MountKind::Volume, target, "") }
}

/// Engine names of the volumes a running copy of a service has.
fn volumes(rig: &Rig, service: &str) -> Vec<String> {
    let world = rig.engine.lock();
    let Some(c) = world.find(&format!("shop-{service}-1")) else { return vec![] };
    c.spec.mounts.iter().filter_map(|m| m.source.clone()).collect()
}

#[tokio::test]
async fn a_volume_given_to_another_service_has_one_writer_and_is_not_inherited() {
    let rig = rig().await;
    let mut first = stack("web:1", None, &["app"]);
    first.services.get_mut("app").unwrap().mounts = vec![mount("/data")];
    deploy(&rig, first).await;
    // The new database holds what the app had; the app waits for it, so the database's level comes first.
    let mut next = stack("web:1", Some("db:1"), &["app"]);
    let dependency = Dependency { condition: DependencyCondition::ServiceHealthy, required: true, restart: false };
    next.services.get_mut("app").unwrap().depends_on.insert(name("db"), dependency);
    let plan = plan_for(&rig, &rig.exec, release_of(&rig, next.clone()).await).await;
    assert_eq!(plan.makes_way, BTreeMap::from([(name("app"), vec![name("db")])]));
    let app = plan.changes.iter().find(|c| c.service == name("app")).unwrap();
    assert_eq!((app.action, app.strategy), (Action::Update, Strategy::Recreate));
    assert!(app.expected_loss.contains("db starts"), "{}", app.expected_loss);
    assert_eq!(deploy(&rig, next.clone()).await.state, OperationState::Done);
    assert_eq!((volumes(&rig, "db"), volumes(&rig, "app")), (vec!["shop_data".to_owned()], vec![]));
    assert_one_release(&rig, "moved").await;
    // And it does not come back with the next update.
    next.services.get_mut("app").unwrap().image = Some(ImageRef::new("web:2").unwrap());
    assert_eq!(deploy(&rig, next).await.state, OperationState::Done);
    assert_eq!(volumes(&rig, "app"), Vec::<String>::new());
}

/// App holds the volume and stands behind a front; then a database that it waits for has it.
fn moved(db: Option<&str>) -> StackSpec {
    let mut spec = stack("web:1", db, &["app"]);
    let app = spec.services.get_mut("app").unwrap();
    (app.settings.strategy, app.expose) = (Some(Strategy::Front), vec!["9000".into()]);
    if db.is_some() {
        let healthy = Dependency { condition: DependencyCondition::ServiceHealthy, required: true, restart: false };
        app.depends_on.insert(name("db"), healthy);
    } else {
        app.settings.strategy = Some(Strategy::Hold);
        app.mounts = vec![mount("/data")];
    }
    spec
}

#[tokio::test]
async fn a_volume_that_leaves_a_service_behind_a_front_has_one_writer() {
    let rig = rig().await;
    assert_eq!(deploy(&rig, moved(None)).await.state, OperationState::Done);
    let plan = plan_for(&rig, &rig.exec, release_of(&rig, moved(Some("db:1"))).await).await;
    assert_eq!(plan.makes_way, BTreeMap::from([(name("app"), vec![name("db")])]));
    let app = plan.changes.iter().find(|c| c.service == name("app")).unwrap();
    assert_eq!((app.action, app.strategy), (Action::Update, Strategy::Hold));
    assert!(app.expected_loss.contains("connections wait from before db starts"), "{}", app.expected_loss);
    for (db, end, release) in [("db:bad", OperationState::RolledBack, 1), ("db:1", OperationState::Done, 3)] {
        rig.engine.clear_calls();
        let op = deploy(&rig, moved(Some(db))).await;
        assert_eq!(op.state, end, "{db}: {:?}", op.message);
        let calls = rig.engine.calls();
        let at = |what: &dyn Fn(&str) -> bool| calls.iter().position(|c| what(c));
        let stopped = at(&|c| c.starts_with("stop shop-app-1"));
        let started = at(&|c| c.starts_with("start dw-") && c.contains("-db-"));
        assert!(stopped.is_some() && stopped < started, "{db}: it ends before the other writer starts: {calls:#?}");
        assert!(!calls.iter().any(|c| c.starts_with("stop shop-app-front")), "{db}: its connections wait: {calls:#?}");
        super::away::serves(&rig, release, db).await;
    }
    assert_eq!((volumes(&rig, "db"), volumes(&rig, "app")), (vec!["shop_data".to_owned()], vec![]));
}

/// `proxy` publishes the port that `web` had.
fn proxied() -> StackSpec {
    let mut spec = stack("web:1", None, &["proxy"]);
    let ports = std::mem::take(&mut spec.services.get_mut("web").unwrap().ports);
    spec.services.get_mut("proxy").unwrap().ports = ports;
    spec
}

#[tokio::test]
async fn a_proxy_put_before_a_service_takes_its_port_over() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    let op = deploy(&rig, proxied()).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    assert_one_release(&rig, "proxied").await;
    let mut broken = stack("web:bad", None, &[]);
    broken.services.get_mut("web").unwrap().settings.start_timeout_s = Some(1);
    assert_eq!(deploy(&rig, broken).await.state, OperationState::RolledBack, "and the way back gives it back");
    assert_one_release(&rig, "back to the proxy").await;
}

#[tokio::test]
async fn a_port_that_another_service_keeps_is_refused_before_anything_is_touched() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let mut both = stack("web:1", Some("db:2"), &["proxy"]);
    both.services.get_mut("proxy").unwrap().ports = both.services["web"].ports.clone();
    let before = rig.engine.running();
    let op = deploy(&rig, both).await;
    assert_eq!(op.state, OperationState::Failed);
    assert!(op.message.as_deref().unwrap_or_default().contains("held by service web of this stack"), "{:?}", op.message);
    assert_eq!(rig.engine.running(), before);
}

#[tokio::test]
async fn a_deploy_that_fails_leaves_a_stopped_stack_stopped() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &["worker"])).await;
    run(&rig, &rig.exec, Want::Stop { remove: false }).await;
    let stopped = async || rig.store.stack(&shop()).await.unwrap().unwrap().stopped;
    assert_eq!(deploy(&rig, stack("web:bad", Some("db:1"), &["worker"])).await.state, OperationState::RolledBack);
    assert!(stopped().await, "nothing of it is to be healed");
    let one = [
        Want::Restart { service: Some(name("web")) },
        Want::Recreate { service: name("web") },
        Want::Scale { service: name("worker"), replicas: 2 },
    ];
    for want in one {
        assert_eq!(run(&rig, &rig.exec, want.clone()).await.state, OperationState::Done, "{want:?}");
        assert!(stopped().await, "one service does not bring the others back: {want:?}");
    }
    assert_eq!(deploy(&rig, stack("web:2", Some("db:1"), &["worker"])).await.state, OperationState::Done);
    assert!(!stopped().await);
}

/// The supervisor stops between making a release current and the record of that; the one after it sees the release fail in its watch window.
#[tokio::test]
async fn that_a_stack_was_stopped_outlives_a_crash_in_the_middle_of_the_switch() {
    let mut next = stack("web:2", None, &[]);
    next.settings.monitor_s = Some(30);
    let mut record = None;
    for crash in [false, true] {
        let rig = rig().await;
        deploy(&rig, stack("web:1", None, &[])).await;
        run(&rig, &rig.exec, Want::Stop { remove: false }).await;
        let standing = async || rig.store.stack(&shop()).await.unwrap().map(|s| (s.current, s.stopped)).unwrap();
        let stop = record.map(|k| -> StopAfter { Arc::new(move |count| count == k) });
        let doomed = executor(&rig.engine, &rig.store, stop);
        let plan = plan_for(&rig, &doomed, release_of(&rig, next.clone()).await).await;
        let op = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        let mut at_work = &doomed;
        if crash {
            ended(&doomed, &op.id).await;
            doomed.close(Duration::from_secs(5)).await;
            let current = rig.store.steps(&op.id).await.unwrap().into_iter().find(|s| s.key == "current").unwrap();
            assert_eq!((current.done, standing().await), (None, (Some(2), false)), "done, and not recorded");
            assert_eq!(rig.exec.recover().await.unwrap(), std::slice::from_ref(&op.id));
            at_work = &rig.exec;
        }
        let watched = at_work.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
        assert_eq!(watched.state, OperationState::Monitoring, "{:?}", watched.message);
        assert!(rig.engine.crash_container("shop-web-1", 1));
        ended(at_work, &op.id).await;
        assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::RolledBack);
        assert_eq!(standing().await, (Some(1), true), "crash {crash}: what a person stopped is not healed");
        // Each step before it counts its intent, its effect and its result.
        let steps = rig.store.steps(&op.id).await.unwrap();
        record = steps.iter().position(|s| s.key == "current").map(|before| 3 * before as u64 + 2);
    }
}

#[tokio::test]
async fn a_release_whose_watch_was_cut_short_is_not_called_good() {
    let rig = rig().await;
    let watched = |image: &str| {
        let mut spec = stack(image, None, &[]);
        spec.settings.monitor_s = Some(600);
        spec
    };
    let begin = async |spec: StackSpec| {
        let plan = plan_for(&rig, &rig.exec, release_of(&rig, spec).await).await;
        let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap()
    };
    assert_eq!(begin(watched("web:1")).await.state, OperationState::Monitoring);
    // The same again within the window replaces nothing: what was replaced before is not what runs.
    let again = plan_for(&rig, &rig.exec, release_of(&rig, watched("web:1")).await).await;
    assert!(again.changes.iter().all(|c| c.action == Action::Unchanged), "{:?}", again.changes);
    assert_eq!(begin(watched("web:2")).await.state, OperationState::Monitoring);
    let again = plan_for(&rig, &rig.exec, release_of(&rig, watched("web:2")).await).await;
    assert!(again.changes.iter().all(|c| c.action == Action::Unchanged), "{:?}", again.changes);
    let state = async |n| rig.store.release(&shop(), n).await.unwrap().unwrap().state;
    assert_eq!((state(1).await, state(2).await), (ReleaseState::Unproven, ReleaseState::Monitoring));
    assert_eq!(deploy(&rig, stack("web:1", None, &[])).await.state, OperationState::Done);
    assert_eq!((state(2).await, state(3).await), (ReleaseState::Unproven, ReleaseState::Good));
}

#[tokio::test]
async fn what_cannot_be_made_does_not_cost_the_one_that_runs() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let db = || rig.engine.lock().find("shop-db-1").unwrap().id.clone();
    let before = db();
    let refused = || crate::engine::EngineError::Refused("unknown log driver".into());
    // The claim is there and is not made again: the first that is created is the copy, the second the copy once more.
    rig.engine.fail_next("create_container", refused());
    rig.engine.fail_next("create_container", refused());
    rig.engine.clear_calls();
    let op = deploy(&rig, stack("web:1", Some("db:2"), &[])).await;
    assert!(matches!(op.state, OperationState::RolledBack | OperationState::Failed), "{:?}", op.state);
    assert!(op.message.as_deref().is_some_and(|m| m.contains("unknown log driver")), "{:?}", op.message);
    assert_eq!(db(), before);
    let calls = rig.engine.calls();
    assert!(!calls.iter().any(|c| c.starts_with("stop ")), "it was never stopped: {calls:?}");
    assert!(!calls.iter().any(|c| c.contains("claim")), "what is found is not asked for: {calls:?}");
}

#[tokio::test]
async fn an_old_copy_that_does_not_run_loses_its_restart_policy_too() {
    let rig = rig().await;
    let with = |image: &str| {
        let mut spec = stack("web:1", Some(image), &[]);
        spec.settings.monitor_s = Some(600);
        spec
    };
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let db = rig.engine.lock().find("shop-db-1").unwrap().id.clone();
    assert!(rig.engine.crash_container("shop-db-1", 143));
    let plan = plan_for(&rig, &rig.exec, release_of(&rig, with("db:2")).await).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    let old = rig.engine.container(&db).await.unwrap().unwrap();
    assert_eq!(old.restart_policy, "no", "an engine that starts anew must not start it beside its successor");
}

#[tokio::test]
async fn of_two_copies_the_sick_one_goes() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &["worker"]);
    spec.services.get_mut("worker").unwrap().replicas = 2;
    deploy(&rig, spec).await;
    assert!(rig.engine.set_health("shop-worker-1", HealthState::Unhealthy));
    run(&rig, &rig.exec, Want::Scale { service: name("worker"), replicas: 1 }).await;
    assert_eq!(rig.engine.serving("shop", "worker"), ["shop-worker-2"]);
}

#[tokio::test]
async fn hooks_of_a_service_named_stack_run_beside_those_of_the_stack() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &["stack"]);
    let hook = |word: &str| Hook { run: vec![word.into()], timeout_s: 5 };
    spec.services.get_mut("stack").unwrap().settings.hooks.post = vec![hook("own")];
    spec.settings.hooks.post = vec![StackHook { service: name("stack"), hook: hook("whole") }];
    let ran = Arc::new(std::sync::Mutex::new(vec![]));
    let seen = ran.clone();
    rig.engine.on_exec(move |_, command| {
        seen.lock().unwrap().extend(command.iter().filter(|w| ["own", "whole"].contains(&w.as_str())).cloned());
        None
    });
    let op = deploy(&rig, spec).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    assert_eq!(*ran.lock().unwrap(), ["own", "whole"]);
}
