//! How operations end: on time, by a failure, with the state or the engine failing at the wrong moment, and what is left for the next one.

use super::*;
use crate::model::plan::Strategy;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64};

fn web(spec: &mut StackSpec) -> &mut ServiceSpec {
    spec.services.get_mut("web").unwrap()
}

#[tokio::test]
async fn a_restart_that_fails_gives_the_front_its_routes_back() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &[]);
    web(&mut spec).settings.strategy = Some(Strategy::Front);
    web(&mut spec).settings.probes = vec![serde_json::from_value(json!({"exec": ["/ready"]})).unwrap()];
    assert_eq!(deploy(&rig, spec).await.state, OperationState::Done);
    rig.engine.on_exec(|_, command| {
        let hit = command.first().is_some_and(|w| w == "/ready");
        hit.then(|| crate::model::observed::ExecOutcome { exit_code: Some(1), output: String::new(), truncated: false })
    });
    let op = run(&rig, &rig.exec, Want::Restart { service: Some(name("web")) }).await;
    assert_eq!(op.state, OperationState::Failed);
    assert_one_release(&rig, "routes are back").await;
}

#[tokio::test]
async fn a_container_found_half_made_is_made_again() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &[]);
    spec.networks.insert("back".into(), NetworkSpec { name: "shop_back".into(), ..Default::default() });
    web(&mut spec).networks.insert("back".into(), ServiceNetwork::default());
    let (world, once) = (FakeEngine::clone(&rig.engine), AtomicBool::new(false));
    rig.engine.on_mutation(Box::new(move |moment| {
        let mut w = world.lock();
        let half = w.containers.values_mut().find(|c| moment == "create_container:done" && c.networks.len() == 2);
        let Some(c) = half.filter(|_| !once.swap(true, Ordering::SeqCst)) else { return true };
        // The answer is lost, and so is what came after the create itself.
        c.networks.remove("shop_back");
        false
    }));
    let op = deploy(&rig, spec).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    let made = rig.engine.container(&EngineName::new("shop-web-1").unwrap()).await.unwrap().unwrap();
    assert_eq!(made.networks.keys().collect::<Vec<_>>(), ["shop_back", "shop_default"]);
    assert_one_release(&rig, "made again").await;
}
