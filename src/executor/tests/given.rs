//! What the next container is given besides its image, and the tags that a release moves.

use super::*;
use crate::model::spec::{FileMount, FileObject};

#[tokio::test]
async fn a_file_below_a_volume_that_is_taken_over_is_refused_before_anything_is_touched() {
    let rig = rig().await;
    rig.engine.add_image("app:1", Behaviour::healthy().with_volumes(&["/etc/app"]));
    rig.engine.add_image("app:2", Behaviour::healthy());
    deploy(&rig, stack("app:1", None, &[])).await;
    let mut next = stack("app:2", None, &[]);
    let object = serde_json::json!({"name": "shop_conf", "external": false, "content": "a", "labels": {}});
    let object: FileObject = serde_json::from_value(object).unwrap();
    next.configs.insert("conf".into(), object);
    let given = FileMount { source: "conf".into(), target: "/etc/app/conf".into(), written_target: None, uid: None, gid: None, mode: None };
    next.services.get_mut(&name("web")).unwrap().configs.push(given);
    rig.engine.clear_calls();
    let want = release_of(&rig, next).await;
    let mut plan = plan_for(&rig, &rig.exec, want).await;
    plan.carried.insert(name("web"), BTreeSet::from(["/etc/app".to_owned()]));
    let id = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap().id;
    ended(&rig.exec, &id).await;
    let op = rig.store.operation(&id).await.unwrap().unwrap();
    let told = op.message.unwrap_or_default();
    assert!(told.contains("preflight: secret.deliverable") && told.contains("lies in the mount at /etc/app"), "{told}");
    assert!(!rig.engine.calls().iter().any(|c| c.starts_with("create_container")), "{:?}", rig.engine.calls());
}

#[tokio::test]
async fn no_tag_moves_before_the_stack_is_claimed_and_one_that_names_something_else_stays() {
    let rig = rig().await;
    let other = rig.engine.image(&ImageRef::new("db:1").unwrap()).await.unwrap().unwrap().id;
    let (world, moved) = (FakeEngine::clone(&rig.engine), other.clone());
    // Another home, at the same moment.
    rig.engine.on_mutation(Box::new(move |what: &str| {
        if what == "start:done" {
            world.lock().move_tag(&moved, "dockwarden/shop/web:r1");
        }
        true
    }));
    let op = deploy(&rig, stack("web:bad", None, &[])).await;
    rig.engine.clear_hook();
    assert_ne!(op.state, OperationState::Done);
    let calls = rig.engine.calls();
    let at = |what: &str| calls.iter().position(|c| c.starts_with(what)).unwrap_or_else(|| panic!("no {what} in {calls:#?}"));
    assert!(at("create_container") < at("tag "), "the claim is the first: {calls:#?}");
    let there = rig.engine.image(&ImageRef::new("dockwarden/shop/web:r1").unwrap()).await.unwrap();
    assert_eq!(there.map(|i| i.id), Some(other));
}
