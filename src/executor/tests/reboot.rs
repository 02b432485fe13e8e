//! The engine, or its host, restarting in the middle: its containers end with it, and only those with a restart policy come back by themselves.

use super::away::serves;
use super::*;
use crate::model::plan::Strategy;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Restarts the engine at the n-th hook moment. `told` = the caller loses its connection by it; behind a socket that systemd holds it only waits.
fn reboot_at(engine: &Arc<FakeEngine>, n: u64, told: bool) -> Arc<AtomicU64> {
    let seen = Arc::new(AtomicU64::new(0));
    let (count, world) = (seen.clone(), FakeEngine::clone(engine));
    engine.on_mutation(Box::new(move |_| {
        let now = count.fetch_add(1, Ordering::SeqCst) + 1 == n;
        if now {
            world.reboot();
        }
        !(now && told)
    }));
    seen
}

/// One release serves. What connections lose while the engine restarts is its doing; two writers or holders of a port would be ours.
async fn one_release(rig: &Rig, release: u32, context: &str) {
    rig.engine.lock().violations.retain(|v| !v.starts_with("lost connections"));
    serves(rig, release, context).await;
}

/// An update, with the engine restarted at each of its moments in turn: it is done, whatever the engine ended with itself.
async fn rebooted_everywhere(before: StackSpec, after: StackSpec, told: bool) {
    let mut n = 1;
    loop {
        let rig = rig().await;
        assert_eq!(deploy(&rig, before.clone()).await.state, OperationState::Done);
        let want = release_of(&rig, after.clone()).await;
        let plan = plan_for(&rig, &rig.exec, want).await;
        let seen = reboot_at(&rig.engine, n, told);
        let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        ended(&rig.exec, &op.id).await;
        rig.engine.clear_hook();
        let op = rig.store.operation(&op.id).await.unwrap().unwrap();
        let context = format!("engine restarted at change {n}, ended {:?} ({:?})", op.state, op.message);
        assert_eq!(op.state, OperationState::Done, "{context}");
        one_release(&rig, 2, &context).await;
        if seen.load(Ordering::SeqCst) < n {
            assert!(n > 15, "more than 15 moments: {n}");
            return;
        }
        n += 1;
    }
}

/// Web by `strategy`, db recreated or behind a front, and one that stays as it is.
fn varied(web: &str, db: &str, strategy: Option<Strategy>) -> StackSpec {
    let mut spec = stack(web, Some(db), &["worker"]);
    spec.services.get_mut("web").unwrap().settings.strategy = strategy;
    let data = spec.services.get_mut("db").unwrap();
    if strategy.is_some() {
        data.settings.strategy = Some(Strategy::Hold);
        data.expose = vec!["5432".into()];
    }
    data.settings.migrates = Some(false);
    spec
}

#[tokio::test]
async fn an_update_behind_fronts_outlives_a_restart_of_the_engine() {
    let spec = |web, db| varied(web, db, Some(Strategy::Front));
    rebooted_everywhere(spec("web:1", "db:1"), spec("web:2", "db:2"), true).await;
}

#[tokio::test]
async fn an_update_without_fronts_outlives_a_restart_of_the_engine() {
    rebooted_everywhere(varied("web:1", "db:1", None), varied("web:2", "db:2", None), true).await;
}

#[tokio::test]
async fn a_restart_of_the_engine_that_nobody_was_told_of_is_known_by_its_other_containers() {
    let spec = |web, db| varied(web, db, Some(Strategy::Front));
    rebooted_everywhere(spec("web:1", "db:1"), spec("web:2", "db:2"), false).await;
    rebooted_everywhere(varied("web:1", "db:1", None), varied("web:2", "db:2", None), false).await;
}

#[tokio::test]
async fn what_serves_without_a_restart_policy_is_started_again_with_the_rest() {
    let rig = rig().await;
    let spec = |web: &str| {
        let mut spec = varied(web, "db:1", Some(Strategy::Front));
        let worker = spec.services.get_mut("worker").unwrap();
        (worker.restart, worker.expose) = (Restart::No, vec!["9000".into()]);
        spec
    };
    deploy(&rig, spec("web:1")).await;
    rig.engine.clear_calls();
    let world = FakeEngine::clone(&rig.engine);
    let once = AtomicBool::new(false);
    rig.engine.on_mutation(Box::new(move |moment| {
        let now = moment == "start:done" && !once.swap(true, Ordering::SeqCst);
        if now {
            world.reboot();
        }
        !now
    }));
    let op = deploy(&rig, spec("web:2")).await;
    rig.engine.clear_hook();
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    // The answer to the start was lost: it is repeated, passes, and the look before the switch finds the other one.
    let calls = rig.engine.calls();
    assert!(calls.iter().any(|c| c == "start shop-worker-1"), "{calls:#?}");
    assert!(rig.engine.running().contains(&"shop-worker-1".to_owned()));
}

#[tokio::test]
async fn a_one_shot_that_the_engine_ended_is_not_run_again() {
    let rig = rig().await;
    let with = |job: &str| {
        let mut spec = stack("web:1", None, &["migrate"]);
        let migrate = spec.services.get_mut("migrate").unwrap();
        (migrate.image, migrate.restart) = (Some(ImageRef::new(job).unwrap()), Restart::No);
        let after = Dependency { condition: DependencyCondition::ServiceCompletedSuccessfully, required: true, restart: false };
        spec.services.get_mut("web").unwrap().depends_on.insert(name("migrate"), after);
        spec
    };
    rig.engine.add_image("job:1", Behaviour::exits(0));
    assert_eq!(deploy(&rig, with("job:1")).await.state, OperationState::Done);
    // It would be at work for ever: the engine ends it.
    rig.engine.add_image("job:2", Behaviour::running());
    let (world, once) = (FakeEngine::clone(&rig.engine), AtomicBool::new(false));
    rig.engine.on_mutation(Box::new(move |moment| {
        let at_work = moment == "start:done" && !once.swap(true, Ordering::SeqCst);
        if at_work {
            world.reboot();
        }
        !at_work
    }));
    rig.engine.clear_calls();
    let op = deploy(&rig, with("job:2")).await;
    rig.engine.clear_hook();
    assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message);
    let starts: Vec<String> = rig.engine.calls().into_iter().filter(|c| c.starts_with("start ") && c.contains("-migrate-")).collect();
    assert_eq!(starts.len(), 1, "its one run: {starts:?}");
}

#[tokio::test]
async fn what_ended_by_itself_is_not_taken_for_the_engines_doing() {
    let rig = rig().await;
    deploy(&rig, varied("web:1", "db:1", Some(Strategy::Front))).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, varied("web:1", "db:bad", Some(Strategy::Front))).await;
    assert_eq!(op.state, OperationState::RolledBack);
    let starts = rig.engine.calls().into_iter().filter(|c| c.starts_with("start dw-") && c.contains("-db-")).count();
    assert_eq!(starts, 1, "{:#?}", rig.engine.calls());
}

#[tokio::test]
async fn a_release_taken_over_after_its_host_went_down_is_started_again() {
    let spec = |web, db| varied(web, db, Some(Strategy::Front));
    let (mut forward, mut k) = (0, 1);
    loop {
        let rig = rig().await;
        deploy(&rig, spec("web:1", "db:1")).await;
        let stop: StopAfter = Arc::new(move |count| count == k);
        let doomed = executor(&rig.engine, &rig.store, Some(stop));
        let want = release_of(&rig, spec("web:2", "db:2")).await;
        let plan = plan_for(&rig, &doomed, want).await;
        let op = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        ended(&doomed, &op.id).await;
        doomed.close(Duration::from_secs(5)).await;
        let steps = rig.store.steps(&op.id).await.unwrap();
        let whole = rig.store.operation(&op.id).await.unwrap().unwrap().state.is_terminal();
        rig.engine.reboot();
        for id in rig.exec.recover().await.unwrap() {
            ended(&rig.exec, &id).await;
        }
        let end = rig.store.operation(&op.id).await.unwrap().unwrap();
        let context = format!("moment {k}, ended {:?} ({:?})", end.state, end.message);
        if steps.iter().any(|s| s.key == "switch") {
            forward += 1;
            assert_eq!(end.state, OperationState::Done, "{context}");
            one_release(&rig, 2, &context).await;
        } else {
            one_release(&rig, 1, &context).await;
        }
        if whole {
            assert!(forward > 10, "{forward} moments after the switch");
            return;
        }
        // Each step is three records: every other one meets all kinds of moments.
        k += 2;
    }
}
