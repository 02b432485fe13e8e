//! Pulls of an operation: how many at once, each image once, ended by a cancel, and what the containers are made of.

use super::*;
use std::time::Duration;

/// A stack of services whose images are in the registry alone.
fn remote(rig: &Rig, images: &[&str]) -> StackSpec {
    let mut spec = stack("web:1", None, &[]);
    let web = spec.services.remove(&name("web")).unwrap();
    for (n, image) in images.iter().enumerate() {
        let mut behaviour = Behaviour::healthy();
        behaviour.labels.insert("image".into(), (*image).to_owned());
        rig.engine.add_remote_image(image, behaviour);
        let service = ServiceSpec { image: Some(ImageRef::new(*image).unwrap()), ports: vec![], ..web.clone() };
        spec.services.insert(name(&format!("s{n}")), service);
    }
    spec
}

async fn submit(rig: &Rig, spec: StackSpec) -> OperationId {
    let want = release_of(rig, spec).await;
    let plan = plan_for(rig, &rig.exec, want).await;
    rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap().id
}

async fn under_way(rig: &Rig, count: usize) {
    let enough = async {
        while rig.engine.pulls_under_way() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), enough).await.expect("pulls begin");
}

#[tokio::test]
async fn a_few_images_are_pulled_at_once_and_each_of_them_once() {
    let rig = rig().await;
    let spec = remote(&rig, &["a:1", "b:1", "c:1", "d:1", "a:1", "a:1"]);
    rig.engine.hold_pulls(true);
    let id = submit(&rig, spec).await;
    under_way(&rig, 3).await;
    rig.engine.hold_pulls(false);
    ended(&rig.exec, &id).await;
    assert_eq!(rig.store.operation(&id).await.unwrap().unwrap().state, OperationState::Done);
    assert_eq!(rig.engine.pulls_at_once(), 3);
    let mut pulls: Vec<String> = rig.engine.calls().into_iter().filter(|c| c.starts_with("pull ")).collect();
    pulls.sort();
    assert_eq!(pulls, ["pull a:1", "pull b:1", "pull c:1", "pull d:1"]);
    let release = rig.store.release(&shop(), 1).await.unwrap().unwrap();
    assert!(release.images.values().all(|i| i.id.is_some() && i.repo_digest.is_some()), "{:?}", release.images);
    assert_one_release(&rig, "pulled").await;
}

#[tokio::test]
async fn a_cancel_ends_a_pull_in_progress() {
    let rig = rig().await;
    let spec = remote(&rig, &["a:1", "b:1", "c:1", "d:1"]);
    rig.engine.hold_pulls(true);
    let id = submit(&rig, spec).await;
    under_way(&rig, 3).await;
    rig.exec.cancel(&id).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), ended(&rig.exec, &id)).await.expect("it does not wait for the registry");
    assert_eq!(rig.store.operation(&id).await.unwrap().unwrap().state, OperationState::Cancelled);
    assert_eq!((rig.engine.pulls_under_way(), rig.engine.pulls_at_once()), (0, 3), "and the fourth never began");
}

#[tokio::test]
async fn every_container_is_made_of_what_was_pulled_although_the_tag_moves_meanwhile() {
    let rig = rig().await;
    let spec = remote(&rig, &["a:1", "a:1"]);
    let engine = rig.engine.clone();
    // Somebody moves the tag as soon as it was pulled.
    rig.engine.on_mutation(Box::new(move |moment| {
        if moment == "tag" {
            engine.add_image("a:1", Behaviour::healthy());
        }
        true
    }));
    let id = submit(&rig, spec).await;
    ended(&rig.exec, &id).await;
    rig.engine.clear_hook();
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let made: BTreeSet<String> = observed.containers.iter().map(|c| c.image_id.clone()).collect();
    let release = rig.store.release(&shop(), 1).await.unwrap().unwrap();
    let recorded: BTreeSet<String> = release.images.values().filter_map(|i| i.id.clone()).collect();
    assert_eq!((observed.containers.len(), made.len()), (2, 1), "{made:?}");
    assert_eq!(made, recorded);
    let moved = rig.engine.image(&ImageRef::new("a:1").unwrap()).await.unwrap().unwrap();
    assert!(!made.contains(&moved.id), "the tag did move");
}

#[tokio::test]
async fn a_registry_that_sends_nothing_is_named_and_not_taken_for_an_engine_that_is_away() {
    let silent = || crate::engine::EngineError::Timeout { what: "pull", after: Duration::from_secs(120) };
    for (times, state) in [(2, OperationState::Done), (3, OperationState::RolledBack)] {
        let rig = rig().await;
        let spec = remote(&rig, &["a:1"]);
        (0..times).for_each(|_| rig.engine.fail_next("pull", silent()));
        let id = submit(&rig, spec).await;
        ended(&rig.exec, &id).await;
        let op = rig.store.operation(&id).await.unwrap().unwrap();
        let named = op.message.as_deref().is_some_and(|m| m.contains("the registry of a:1 sent nothing for 120 s, 3 times"));
        assert_eq!((op.state, named), (state, times == 3), "{:?}", op.message);
    }
}
