//! Two writers never, and nothing older on changed data: restarts, renamed services, one service made anew, shared namespaces.

use super::*;

async fn image_of(rig: &Rig, service: &str) -> Vec<String> {
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let up = |c: &&crate::model::observed::ContainerDetail| c.state == RunState::Running;
    let mut ids = vec![];
    for c in planner::serving(&observed, &name(service)).into_iter().filter(up) {
        let image = rig.engine.image(&ImageRef::new(c.image_id.as_str()).unwrap()).await.unwrap().unwrap();
        ids.extend(image.tags.into_iter().filter(|t| !t.starts_with("dockwarden/")));
    }
    ids
}

/// A migrated database stays, web failed: the operation needs attention.
async fn attention(rig: &Rig) -> Operation {
    deploy(rig, stack("web:1", Some("db:1"), &[])).await;
    let op = deploy(rig, stack("web:bad", Some("db:2"), &[])).await;
    assert_eq!(op.state, OperationState::NeedsAttention, "{:?}", op.message);
    op
}

#[tokio::test]
async fn a_restart_of_what_was_stopped_starts_the_newest_of_a_number_and_never_two() {
    let rig = rig().await;
    attention(&rig).await;
    assert_eq!(run(&rig, &rig.exec, Want::Stop { remove: false }).await.state, OperationState::Done);
    let op = run(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert_eq!((op.state, rig.engine.violations()), (OperationState::Done, vec![]), "{:?}", op.message);
    assert_eq!(image_of(&rig, "db").await, ["db:2"], "the one that wrote last");
}
