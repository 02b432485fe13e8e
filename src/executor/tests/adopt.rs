//! A stack that Compose made, taken over: the next plan is a no-op, an update replaces Compose's containers, rollback goes back to what Compose had, and a
//! stop of the supervisor after every journal record of each leaves one serving release. Given back, nothing of ours stands in Compose's way.

use super::*;
use crate::engine::adopted::Adopted;
use crate::engine::{ContainerSpec, NetworkCreate, VolumeCreate};
use crate::executor::render::{self, Rendering, Role};
use crate::model::adopted::{AdoptedObject, Adoption, ObjectKind};
use crate::model::config::StackSettingsEntry;

/// A rig whose executor sees the engine through the registry.
async fn over(rig: Rig) -> Rig {
    let exec = seen(&rig, None);
    Rig { exec, ..rig }
}

fn seen(rig: &Rig, stop_after: Option<StopAfter>) -> Arc<Executor> {
    let plain = executor(&rig.engine, &rig.store, None);
    let engine: Arc<dyn Engine> = Adopted::over(rig.engine.clone(), rig.store.registry());
    Executor::new(engine, rig.store.clone(), plain.facts.clone(), Options { stop_after, ..Options::default() })
}

fn compose_labels(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = [(labels::COMPOSE_PROJECT, "shop")];
    own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// What `docker compose up` makes of a stack: its names and labels, none of ours.
async fn compose_up(rig: &Rig, spec: &StackSpec) {
    let (engine, permit) = (&rig.engine, permit("compose"));
    for (key, n) in &spec.networks {
        let name = EngineName::new(n.name.as_str()).unwrap();
        let request = NetworkCreate { name, spec: n.clone(), labels: compose_labels(&[(labels::COMPOSE_NETWORK, key)]) };
        engine.create_network(&permit, &request).await.unwrap();
    }
    for (key, v) in &spec.volumes {
        let name = EngineName::new(v.name.as_str()).unwrap();
        let labels = compose_labels(&[(labels::COMPOSE_VOLUME, key)]);
        engine.create_volume(&permit, &VolumeCreate { name, driver: None, driver_opts: BTreeMap::new(), labels }).await.unwrap();
    }
    for (service, s) in &spec.services {
        let image = engine.image(s.image.as_ref().unwrap()).await.unwrap().unwrap();
        let mut request = render::container(&Rendering {
            instance: "compose",
            stack: spec,
            service,
            number: 1,
            role: Role::Serving,
            operation: &OperationId::new("op-compose").unwrap(),
            release: 1,
            image: ImageRef::new(image.id).unwrap(),
            hash: "composes-own".into(),
            inherited: &[],
            carried: Default::default(),
            declared: std::collections::BTreeSet::new(),
            joined: BTreeMap::new(),
            log_driver: "json-file",
        })
        .unwrap();
        request.labels.retain(|key, _| !key.starts_with("dockwarden."));
        request.name = EngineName::new(format!("shop-{service}-1")).unwrap();
        request.restart = s.restart;
        let id = engine.create_container(&permit, &request).await.unwrap();
        engine.start(&permit, &id).await.unwrap();
    }
}

/// What `call::adopt` would hand to the executor for what runs.
async fn adoption(rig: &Rig, spec: &StackSpec) -> Adoption {
    let object = |kind, id: &str, more: &[(&str, &str)]| {
        let own = [(labels::INSTANCE, rig.store.instance()), (labels::STACK, "shop")];
        let labels = own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        AdoptedObject { kind, id: id.to_owned(), stack: shop(), labels }
    };
    let mut objects = vec![object(ObjectKind::Network, "shop_default", &[]), object(ObjectKind::Volume, "shop_data", &[])];
    for c in rig.engine.containers(&["com.docker.compose.project=shop".into()]).await.unwrap() {
        let service = c.labels[labels::COMPOSE_SERVICE].clone();
        let digest = |b: &[u8]| rig.store.keyed_digest(b);
        let hash = planner::hash::spec_hash(spec, &name(&service), &c.image_id, &digest);
        let more = [
            (labels::SERVICE, service.as_str()),
            (labels::NUMBER, "1"),
            (labels::ROLE, labels::ROLE_SERVING),
            (labels::RELEASE, "1"),
            (labels::SPEC, hash.as_str()),
        ];
        objects.push(object(ObjectKind::Container, c.id.as_str(), &more));
    }
    Adoption { objects, entry: StackSettingsEntry { dir: "/srv/shop".into(), ..Default::default() }, stopped: false }
}

async fn adopt(rig: &Rig, exec: &Arc<Executor>, spec: &StackSpec) -> Operation {
    let want = release_of(rig, spec.clone()).await;
    let plan = plan_for(rig, exec, want).await;
    let adoption = adoption(rig, spec).await;
    exec.adopt(plan, permit("adopt"), request("adopt"), adoption).await.unwrap()
}

async fn ids(rig: &Rig) -> Vec<(String, EngineName)> {
    let found = rig.engine.containers(&["com.docker.compose.project=shop".into()]).await.unwrap();
    let mut ids: Vec<_> = found.into_iter().map(|c| (c.name, c.id)).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn what_compose_made_becomes_release_one_and_nothing_is_touched() {
    let rig = over(rig().await).await;
    let spec = stack("web:1", Some("db:1"), &[]);
    compose_up(&rig, &spec).await;
    let before = ids(&rig).await;
    rig.engine.clear_calls();
    let op = adopt(&rig, &rig.exec, &spec).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(1)), "{:?}", op.message);
    let changes: Vec<String> = rig.engine.calls().into_iter().map(|c| c.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(changes, ["tag", "tag", "create_container"], "two tags and the claim");
    assert_eq!(ids(&rig).await, before);
    assert_eq!(rig.store.release(&shop(), 1).await.unwrap().unwrap().state, ReleaseState::Good);
    assert_one_release(&rig, "adopted").await;
    rig.engine.clear_calls();
    let again = deploy(&rig, spec).await;
    assert_eq!((again.state, again.release, rig.engine.calls()), (OperationState::Done, Some(1), vec![]), "nothing to do");
}

#[tokio::test]
async fn the_first_update_replaces_composes_containers_and_rollback_goes_back() {
    let rig = over(rig().await).await;
    let spec = stack("web:1", Some("db:1"), &[]);
    compose_up(&rig, &spec).await;
    rig.engine.write_volume_file("shop_data", "rows", b"kept");
    adopt(&rig, &rig.exec, &spec).await;
    let before = ids(&rig).await;
    let op = deploy(&rig, stack("web:2", Some("db:2"), &[])).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(2)), "{:?}", op.message);
    assert_one_release(&rig, "updated").await;
    assert!(ids(&rig).await.iter().all(|new| !before.contains(new)));
    assert_eq!(rig.engine.volume_file("shop_data", "rows"), Some(b"kept".to_vec()));
    let one = rig.store.release(&shop(), 1).await.unwrap().unwrap();
    let want = Want::Release { desired: Box::new(one.spec), images: one.images, content_of: Some(1) };
    let back = run(&rig, &rig.exec, want).await;
    assert_eq!((back.state, back.release), (OperationState::Done, Some(3)), "{:?}", back.message);
    assert_one_release(&rig, "rolled back").await;
}

#[tokio::test]
async fn a_broken_first_update_leaves_composes_containers_serving() {
    let rig = over(rig().await).await;
    let spec = stack("web:1", Some("db:1"), &[]);
    compose_up(&rig, &spec).await;
    adopt(&rig, &rig.exec, &spec).await;
    let before = ids(&rig).await;
    let op = deploy(&rig, stack("web:2", Some("db:bad"), &[])).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert_eq!(ids(&rig).await, before);
    assert_one_release(&rig, "broken update").await;
}

/// Stops the supervisor after every journal record of an adoption, and of the first update after it.
#[tokio::test]
async fn a_crash_at_any_record_of_adoption_or_first_update_leaves_one_serving_release() {
    let spec = stack("web:1", Some("db:1"), &[]);
    for updating in [false, true] {
        for k in 1.. {
            let rig = over(rig().await).await;
            compose_up(&rig, &spec).await;
            let before = ids(&rig).await;
            let crashed = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let flag = crashed.clone();
            let stop: StopAfter = Arc::new(move |count| {
                let hit = count == k;
                flag.fetch_or(hit, Ordering::SeqCst);
                hit
            });
            let doomed = seen(&rig, Some(stop));
            let context = format!("updating {updating}, stopped after record {k}");
            if updating {
                adopt(&rig, &rig.exec, &spec).await;
                let want = release_of(&rig, stack("web:2", Some("db:2"), &[])).await;
                let plan = plan_for(&rig, &doomed, want).await;
                let op = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
                ended(&doomed, &op.id).await;
            } else {
                adopt(&rig, &doomed, &spec).await;
            }
            doomed.close(Duration::from_secs(5)).await;
            for id in rig.exec.recover().await.unwrap() {
                ended(&rig.exec, &id).await;
            }
            assert!(rig.store.open_operations().await.unwrap().is_empty(), "{context}");
            let current = rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current);
            if current.is_some() {
                assert_one_release(&rig, &context).await;
            } else {
                assert_eq!(ids(&rig).await, before, "{context}: Compose's own go on");
                assert!(!rig.engine.container_names().iter().any(|n| n.contains("claim")), "{context}: no claim is left");
                let op = adopt(&rig, &rig.exec, &spec).await;
                assert_eq!(op.state, OperationState::Done, "{context}: {:?}", op.message);
                assert_one_release(&rig, &context).await;
            }
            if !crashed.load(Ordering::SeqCst) {
                assert!(k > 6, "{context}: few records");
                break;
            }
        }
    }
}

#[tokio::test]
async fn given_back_its_objects_are_not_ours_whatever_labels_they_carry() {
    let rig = over(rig().await).await;
    let spec = stack("web:1", Some("db:1"), &[]);
    compose_up(&rig, &spec).await;
    adopt(&rig, &rig.exec, &spec).await;
    // web is ours by now and carries our labels, db is still Compose's.
    deploy(&rig, stack("web:2", Some("db:1"), &[])).await;
    let before = ids(&rig).await;
    rig.exec.eject(&shop(), &permit("eject"), request("eject")).await.unwrap();
    assert_eq!(ids(&rig).await, before);
    assert_eq!(rig.exec.observe(&shop()).await.unwrap(), Observed::default());
    assert_eq!((rig.store.stack(&shop()).await.unwrap(), rig.store.registration(&shop()).await.unwrap()), (None, None));
    assert!(!rig.engine.container_names().iter().any(|n| n.contains("claim")));
    let tags = rig.engine.images().await.unwrap().into_iter().flat_map(|i| i.tags).filter(|t| t.starts_with("dockwarden/")).count();
    assert_eq!(tags, 0, "our tags are gone");
    // And taken over once more.
    let op = adopt(&rig, &rig.exec, &stack("web:2", Some("db:1"), &[])).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(1)), "{:?}", op.message);
    assert_one_release(&rig, "adopted again").await;
}

#[tokio::test]
async fn an_eject_that_fails_has_ended_and_can_be_asked_for_again() {
    let rig = over(rig().await).await;
    let spec = stack("web:1", Some("db:1"), &[]);
    compose_up(&rig, &spec).await;
    adopt(&rig, &rig.exec, &spec).await;
    rig.engine.fail_next("images", crate::engine::EngineError::Refused("not now".into()));
    let refused = rig.exec.eject(&shop(), &permit("eject"), request("eject")).await.unwrap_err();
    let op = rig.store.operations(Some(&shop()), 1).await.unwrap().remove(0);
    assert_eq!((op.verb.as_str(), op.state), ("eject", OperationState::Failed));
    let message = op.message.unwrap();
    assert!(message.starts_with(&refused.to_string()) && message.contains("eject it again"), "{message}");
    assert_eq!(rig.store.open_operations().await.unwrap(), vec![]);
    rig.exec.eject(&shop(), &permit("eject"), request("eject")).await.unwrap();
    assert_eq!(rig.store.stack(&shop()).await.unwrap(), None);
}

#[tokio::test]
async fn an_adoption_cancelled_during_its_last_step_is_taken_back() {
    let rig = over(rig().await).await;
    let spec = stack("web:1", Some("db:1"), &[]);
    compose_up(&rig, &spec).await;
    let before = ids(&rig).await;
    let exec = rig.exec.clone();
    rig.engine.on_mutation(Box::new(move |moment| {
        if moment == "create_container:done" {
            exec.active.lock().unwrap().values().for_each(|a| a.cancel.cancel());
        }
        true
    }));
    assert_eq!(adopt(&rig, &rig.exec, &spec).await.state, OperationState::Cancelled);
    rig.engine.clear_hook();
    assert_eq!((ids(&rig).await, rig.exec.active()), (before, 0));
    assert_eq!(rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current), None);
    assert!(!rig.engine.container_names().iter().any(|n| n.contains("claim")), "its claim is taken back");
}

#[tokio::test]
async fn what_compose_makes_in_the_middle_of_an_operation_ends_it_before_the_switch() {
    for moment in ["before", "meanwhile"] {
        let rig = rig().await;
        deploy(&rig, stack("web:1", None, &["worker"])).await;
        let theirs = {
            let image = rig.engine.image(&ImageRef::new("web:1").unwrap()).await.unwrap().unwrap();
            let mut spec = ContainerSpec::new(EngineName::new("0123456789ab_shop-worker-1").unwrap(), ImageRef::new(image.id).unwrap());
            spec.labels = compose_labels(&[(labels::COMPOSE_SERVICE, "worker"), (labels::COMPOSE_ONEOFF, "False")]);
            spec
        };
        let world = FakeEngine::clone(&rig.engine);
        if moment == "before" {
            world.lock().create_container(&theirs).unwrap();
        } else {
            let once = std::sync::atomic::AtomicBool::new(false);
            rig.engine.on_mutation(Box::new(move |what: &str| {
                if what == "create_container:done" && !once.swap(true, Ordering::SeqCst) {
                    world.lock().create_container(&theirs).unwrap();
                }
                true
            }));
        }
        rig.engine.clear_calls();
        let op = run(&rig, &rig.exec, Want::Recreate { service: name("worker") }).await;
        let ended = if moment == "before" { OperationState::Failed } else { OperationState::RolledBack };
        assert_eq!(op.state, ended, "{moment}: {:?}", op.message);
        assert!(op.message.unwrap().contains("service worker is run by Compose now"), "{moment}");
        let mut names = rig.engine.container_names();
        names.retain(|n| n.contains("worker"));
        names.sort();
        assert_eq!(names, ["0123456789ab_shop-worker-1", "shop-worker-1"], "{moment}: theirs, and ours as it was");
        assert_eq!(rig.engine.serving("shop", "worker"), ["shop-worker-1"], "{moment}");
        // Other services are not its business.
        let op = run(&rig, &rig.exec, Want::Recreate { service: name("web") }).await;
        assert_eq!(op.state, OperationState::Done, "{moment}: {:?}", op.message);
    }
}
