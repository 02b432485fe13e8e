//! What was proved is looked at again, and what an undo owes the release before: it runs, it is well before it is led to, and one thing that cannot be
//! taken back does not keep the rest from it.

use super::*;
use crate::model::observed::ExecOutcome;
use crate::model::plan::Strategy;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64};

fn fronted(web: &str, extra: &[&str]) -> StackSpec {
    let mut spec = stack(web, None, extra);
    spec.services.get_mut("web").unwrap().settings.strategy = Some(Strategy::Front);
    spec
}

fn calls(rig: &Rig, verb: &str, of: &str) -> Vec<String> {
    rig.engine.calls().into_iter().filter(|c| c.starts_with(&format!("{verb} ")) && c.contains(of)).collect()
}

/// Lets a process of a container whose name satisfies `which` end when `moment` comes for the n-th time.
fn end_at(engine: &Arc<FakeEngine>, moment: &'static str, n: u64, which: impl Fn(&str) -> bool + Send + Sync + 'static) {
    let (world, count) = (FakeEngine::clone(engine), AtomicU64::new(0));
    engine.on_mutation(Box::new(move |now| {
        if now == moment && count.fetch_add(1, Ordering::SeqCst) + 1 == n {
            let found = world.running().into_iter().find(|name| which(name)).expect("it runs");
            assert!(world.crash_container(&found, 9));
        }
        true
    }));
}

#[tokio::test]
async fn what_ended_after_its_probe_is_not_switched_to() {
    let rig = rig().await;
    let spec = |cache: &str, web: &str| {
        let mut spec = fronted(web, &["cache"]);
        let cached = spec.services.get_mut("cache").unwrap();
        (cached.image, cached.expose) = (Some(ImageRef::new(cache).unwrap()), vec!["6379".into()]);
        cached.settings.strategy = Some(Strategy::Front);
        let healthy = Dependency { condition: DependencyCondition::ServiceHealthy, required: true, restart: false };
        spec.services.get_mut("web").unwrap().depends_on.insert(name("cache"), healthy);
        spec
    };
    deploy(&rig, spec("db:1", "web:1")).await;
    rig.engine.clear_calls();
    // The second that starts is web's: cache has passed by then.
    end_at(&rig.engine, "start:done", 2, |name| name.starts_with("dw-") && name.contains("-cache-"));
    let op = deploy(&rig, spec("db:2", "web:2")).await;
    rig.engine.clear_hook();
    assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message);
    assert!(
        op.message.as_deref().unwrap_or_default().contains("after its probe had passed: it ended with exit code 9"),
        "{:?}",
        op.message
    );
    assert_eq!(
        (calls(&rig, "stop", "shop-cache-1"), calls(&rig, "stop", "shop-web-1")),
        (vec![], vec![]),
        "the old ones were never touched"
    );
    assert_one_release(&rig, "seen before the switch").await;
}

#[tokio::test]
async fn without_a_watch_window_one_look_remains() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", &[])).await;
    end_at(&rig.engine, "stop:done", 1, |name| name.ends_with("-web-1"));
    let op = deploy(&rig, fronted("web:2", &[])).await;
    rig.engine.clear_hook();
    assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message);
    assert_one_release(&rig, "seen after the switch").await;
}

#[tokio::test]
async fn an_old_container_that_ends_without_its_policy_is_started_by_the_undo() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", &[])).await;
    let old = rig.engine.lock().find("shop-web-1").unwrap().id.clone();
    rig.engine.on_exec(|_, command| {
        let hit = command.first().is_some_and(|w| w == "/post");
        hit.then(|| ExecOutcome { exit_code: Some(1), output: String::new(), truncated: false })
    });
    let (world, ended, id) = (FakeEngine::clone(&rig.engine), Arc::new(AtomicBool::new(false)), old.clone());
    let flag = ended.clone();
    rig.engine.on_mutation(Box::new(move |moment| {
        let unpoliced = world.lock().find(id.as_str()).is_some_and(|c| c.restart == Restart::No);
        if moment == "exec" && unpoliced && !flag.swap(true, Ordering::SeqCst) {
            assert!(world.crash_container("shop-web-1", 1));
        }
        true
    }));
    let mut next = fronted("web:2", &[]);
    next.services.get_mut("web").unwrap().settings.hooks.post = vec![serde_json::from_value(json!({"run": ["/post"]})).unwrap()];
    let op = deploy(&rig, next).await;
    rig.engine.clear_hook();
    assert!(ended.load(Ordering::SeqCst), "it ended between its policy and its stop");
    assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message);
    assert_one_release(&rig, "the old one serves").await;
}

/// A release of web in its watch window.
async fn watched(rig: &Rig, web: &str) -> Operation {
    let mut next = fronted(web, &[]);
    next.settings.monitor_s = Some(60);
    let plan = plan_for(rig, &rig.exec, release_of(rig, next).await).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    let op = rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert_eq!(op.state, OperationState::Monitoring);
    op
}

#[tokio::test]
async fn a_name_that_cannot_be_given_back_does_not_keep_the_old_release_down() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", &[])).await;
    let op = watched(&rig, "web:2").await;
    for _ in 0..20 {
        rig.engine.fail_next("rename", EngineError::Conflict("the name is taken".into()));
    }
    assert!(rig.engine.crash_container("shop-web-1", 1));
    ended(&rig.exec, &op.id).await;
    let op = rig.store.operation(&op.id).await.unwrap().unwrap();
    assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message);
    let message = op.message.unwrap();
    assert!(message.contains("left behind: rename:web:") && message.contains("the name is taken"), "{message}");
    let retired = names::retired(&op.id, &name("web"), 1).to_string();
    assert_eq!(rig.engine.running(), BTreeSet::from([retired, "shop-web-front".into()]).into_iter().collect::<Vec<_>>());
    let release = rig.store.stack(&shop()).await.unwrap().unwrap().current;
    assert_eq!((release, rig.engine.violations()), (Some(1), vec![]));
}

#[tokio::test]
async fn a_container_that_cannot_be_removed_leaves_the_rest_of_the_undo_and_needs_attention() {
    let rig = rig().await;
    let spec = |web: &str, db: &str| {
        let mut spec = stack(web, Some(db), &[]);
        spec.services.get_mut("db").unwrap().settings.migrates = Some(false);
        spec
    };
    deploy(&rig, spec("web:1", "db:1")).await;
    let before = rig.engine.lock().find("shop-db-1").unwrap().id.clone();
    for _ in 0..3 {
        rig.engine.fail_next("remove_container", EngineError::Refused("device or resource busy".into()));
    }
    // db was replaced in its level when web fails in its own.
    let op = deploy(&rig, spec("web:bad", "db:2")).await;
    assert_eq!(op.state, OperationState::NeedsAttention, "{:?}", op.message);
    let seen = rig.engine.container(&before).await.unwrap().unwrap();
    assert_eq!((seen.state, seen.restart_policy.as_str()), (RunState::Running, "unless-stopped"), "the old database serves");
}

#[tokio::test]
async fn an_undo_leads_back_to_the_old_one_when_it_is_well() {
    let rig = rig().await;
    rig.engine.add_image("web:slow", Behaviour::starting());
    deploy(&rig, fronted("web:slow", &[])).await;
    let op = watched(&rig, "web:2").await;
    let tries = AtomicU64::new(0);
    rig.engine.on_exec(move |_, command| {
        let hit = command.first().is_some_and(|w| w == "/probe");
        let code = i64::from(hit && tries.fetch_add(1, Ordering::SeqCst) < 3);
        hit.then(|| ExecOutcome { exit_code: Some(code), output: String::new(), truncated: false })
    });
    rig.engine.clear_calls();
    assert!(rig.engine.crash_container("shop-web-1", 1));
    ended(&rig.exec, &op.id).await;
    assert_one_release(&rig, "led back").await;
    let calls = rig.engine.calls();
    let started = calls.iter().position(|c| c.starts_with("start ")).expect("the old one is started");
    let probes: Vec<usize> = (started..calls.len()).filter(|i| calls[*i].starts_with("exec ") && !calls[*i].contains("-front")).collect();
    let back = (started..calls.len()).find(|i| calls[*i].starts_with("exec ") && calls[*i].contains("-front"));
    assert_eq!(probes.len(), 4, "three that fail, one that passes: {calls:#?}");
    assert!(back > probes.last().copied(), "it is led to only then: {calls:#?}");
}
