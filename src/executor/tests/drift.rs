//! What somebody changed by hand on the engine, and how a deploy of the same file mends it.

use super::*;
use crate::model::plan::{Action, Strategy};

fn disconnect(rig: &Rig, container: &str) {
    assert!(rig.engine.disconnect_by_hand(container, "shop_default"), "{container} stood on the network");
}

fn fronted() -> StackSpec {
    let mut spec = stack("web:1", Some("db:1"), &[]);
    spec.services.get_mut("web").unwrap().settings.strategy = Some(Strategy::Front);
    spec
}

async fn attached(rig: &Rig, container: &str) -> Vec<String> {
    let observed = rig.exec.observe(&shop()).await.unwrap();
    observed.containers.into_iter().find(|c| c.name == container).unwrap().networks["shop_default"].clone()
}

#[tokio::test]
async fn a_network_taken_away_by_hand_is_drift_and_comes_back_under_the_same_names() {
    let rig = rig().await;
    deploy(&rig, fronted()).await;
    for container in ["shop-db-1", "shop-web-1", "shop-web-front"] {
        let before = attached(&rig, container).await;
        disconnect(&rig, container);
        let want = release_of(&rig, fronted()).await;
        let plan = plan_for(&rig, &rig.exec, want).await;
        let found: Vec<_> = plan.changes.iter().filter(|c| c.action != Action::Unchanged).collect();
        assert_eq!(found.len(), 1, "{container}: {found:#?}");
        assert_eq!((found[0].action, found[0].strategy), (Action::Restart, Strategy::InPlace));
        assert_eq!(
            (found[0].diff[0].path.as_str(), found[0].diff[0].from.clone()),
            ("networks.default", Some(format!("{container} disconnected")))
        );
        assert!(found[0].expected_loss.starts_with("none"));
        rig.engine.clear_calls();
        let op = deploy(&rig, fronted()).await;
        assert_eq!((op.state, op.message), (OperationState::Done, None));
        assert_eq!(attached(&rig, container).await, before, "{container}");
        let calls = rig.engine.calls();
        assert!(!calls.iter().any(|c| c.starts_with("stop ") || c.starts_with("restart ")), "nothing was stopped for it: {calls:#?}");
        let again = release_of(&rig, fronted()).await;
        assert!(plan_for(&rig, &rig.exec, again).await.is_noop(), "{container} is as the release says");
    }
}

#[tokio::test]
async fn a_front_that_is_gone_is_made_again_with_its_service() {
    let rig = rig().await;
    let mut spec = fronted();
    spec.services.get_mut("db").unwrap().settings.strategy = Some(Strategy::Hold);
    spec.services.get_mut("db").unwrap().expose = vec!["5432".into()];
    deploy(&rig, spec).await;
    for service in ["web", "db"] {
        let front = EngineName::new(format!("shop-{service}-front")).unwrap();
        rig.engine.remove_container(&permit("restart"), &front, true).await.unwrap();
        let op = run(&rig, &rig.exec, Want::Recreate { service: name(service) }).await;
        assert_eq!((op.state, op.message), (OperationState::Done, None), "{service}");
        assert_one_release(&rig, service).await;
    }
}
