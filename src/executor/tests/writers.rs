//! Two writers never, and nothing older on changed data: restarts, renamed services, one service made anew, shared namespaces.

use super::*;
use crate::model::plan::{Action, Strategy};

pub(super) async fn image_of(rig: &Rig, service: &str) -> Vec<String> {
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

/// The same stack with a service under another name.
fn renamed(mut spec: StackSpec, from: &str, to: &str) -> StackSpec {
    let service = spec.services.remove(&name(from)).unwrap();
    spec.services.insert(name(to), service);
    for other in spec.services.values_mut() {
        if let Some(dependency) = other.depends_on.remove(&name(from)) {
            other.depends_on.insert(name(to), dependency);
        }
    }
    spec
}

#[tokio::test]
async fn a_renamed_service_takes_over_volume_and_port_only_when_the_one_before_has_ended() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let next = renamed(renamed(stack("web:2", Some("db:1"), &[]), "db", "database"), "web", "site");
    let op = deploy(&rig, next).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    assert_one_release(&rig, "renamed").await;
}

#[tokio::test]
async fn a_renamed_service_that_fails_gives_volume_and_port_back() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let next = renamed(renamed(stack("web:bad", Some("db:1"), &[]), "db", "database"), "web", "site");
    let op = deploy(&rig, next).await;
    assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message);
    assert_one_release(&rig, "renamed and undone").await;
}

#[tokio::test]
async fn a_renamed_service_that_migrates_keeps_the_one_before_off_its_data() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let op = deploy(&rig, renamed(stack("web:bad", Some("db:2"), &[]), "db", "database")).await;
    assert_eq!(op.state, OperationState::NeedsAttention, "{:?}", op.message);
    assert_eq!((image_of(&rig, "database").await, image_of(&rig, "db").await), (vec!["db:2".to_owned()], vec![]));
    let restart = run(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert_eq!((restart.state, rig.engine.violations()), (OperationState::Done, vec![]), "{:?}", restart.message);
    assert_eq!(image_of(&rig, "db").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_renamed_service_keeps_its_fixed_container_name() {
    let rig = rig().await;
    let fixed = |mut spec: StackSpec| {
        spec.services.values_mut().filter(|s| !s.mounts.is_empty()).for_each(|s| s.container_name = Some("the-db".into()));
        spec
    };
    deploy(&rig, fixed(stack("web:1", Some("db:1"), &[]))).await;
    let op = deploy(&rig, fixed(renamed(stack("web:1", Some("db:1"), &[]), "db", "database"))).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert!(rig.engine.running().contains(&"the-db".to_owned()), "{:?}", rig.engine.container_names());
}

#[tokio::test]
async fn one_service_made_anew_leaves_a_kept_database_alone_and_the_attention_open() {
    let rig = rig().await;
    let op = attention(&rig).await;
    let anew = run(&rig, &rig.exec, Want::Recreate { service: name("web") }).await;
    assert_eq!((anew.state, rig.engine.violations()), (OperationState::Done, vec![]), "{:?}", anew.message);
    assert_eq!(image_of(&rig, "db").await, ["db:2"], "the new database keeps its data");
    assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::NeedsAttention);
}

/// What `side` can share with `core`.
const SHARED: [&str; 3] = ["network_mode", "pid", "ipc"];

/// `side` lives in the network, the processes or the memory of `core`.
fn shared(core: &str, what: &str) -> StackSpec {
    let mut spec = stack("web:1", None, &["core", "side"]);
    spec.services.get_mut("core").unwrap().image = Some(ImageRef::new(core).unwrap());
    let side = spec.services.get_mut("side").unwrap();
    let host = Some("service:core".to_owned());
    match what {
        "pid" => side.pid = host,
        "ipc" => side.ipc = host,
        _ => {
            side.networks.clear();
            side.network_mode = host;
        }
    }
    side.depends_on.insert(name("core"), Dependency { condition: DependencyCondition::ServiceStarted, required: true, restart: true });
    spec
}

fn joined(rig: &Rig, what: &str) -> (Option<String>, String) {
    let world = rig.engine.lock();
    let core = world.find("shop-core-1").unwrap().id.to_string();
    let side = &world.find("shop-side-1").unwrap().spec;
    let mode = match what {
        "pid" => &side.pid_mode,
        "ipc" => &side.ipc_mode,
        _ => &side.network_mode,
    };
    (mode.clone(), format!("container:{core}"))
}

#[tokio::test]
async fn what_shares_a_namespace_is_made_anew_after_what_it_shares_it_with() {
    for what in SHARED {
        let rig = rig().await;
        assert_eq!(deploy(&rig, shared("web:1", what)).await.state, OperationState::Done, "{what}");
        let (mode, core) = joined(&rig, what);
        assert_eq!(mode.as_deref(), Some(core.as_str()), "{what}: it is the container's of this release");
        let want = release_of(&rig, shared("web:2", what)).await;
        let plan = plan_for(&rig, &rig.exec, want).await;
        let told: Vec<_> = plan.changes.iter().map(|c| (c.service.as_str(), c.action, c.strategy)).collect();
        let (update, recreate) = (Action::Update, Strategy::Recreate);
        assert_eq!(told, [("core", update, recreate), ("web", Action::Unchanged, Strategy::InPlace), ("side", update, recreate)], "{what}");
        rig.engine.clear_calls();
        let op = deploy(&rig, shared("web:2", what)).await;
        assert_eq!(op.state, OperationState::Done, "{what}: {:?}", op.message);
        let (mode, new_core) = joined(&rig, what);
        assert_ne!(new_core, core, "{what}");
        assert_eq!(mode, Some(new_core), "{what}: it is the new one's");
        let starts: Vec<String> = rig.engine.calls().into_iter().filter(|c| c.starts_with("start ")).collect();
        let place = |service: &str| starts.iter().position(|c| c.contains(&format!("-{service}-")));
        assert!(place("core").is_some() && place("core") < place("side"), "{what}: started after it: {starts:?}");
        assert_one_release(&rig, what).await;
    }
}

#[tokio::test]
async fn a_failed_update_of_what_is_shared_puts_both_back() {
    for what in SHARED {
        let rig = rig().await;
        deploy(&rig, shared("web:1", what)).await;
        let op = deploy(&rig, shared("web:bad", what)).await;
        assert_eq!(op.state, OperationState::RolledBack, "{what}: {:?}", op.message);
        let (mode, core) = joined(&rig, what);
        assert_eq!(mode, Some(core), "{what}");
        assert_one_release(&rig, what).await;
    }
}

#[tokio::test]
async fn a_restart_of_what_is_shared_restarts_who_shares_it() {
    for what in SHARED {
        let rig = rig().await;
        deploy(&rig, shared("web:1", what)).await;
        rig.engine.clear_calls();
        assert_eq!(run(&rig, &rig.exec, Want::Restart { service: Some(name("core")) }).await.state, OperationState::Done, "{what}");
        let restarts: Vec<String> = rig.engine.calls().into_iter().filter(|c| c.starts_with("restart")).collect();
        assert_eq!(restarts, ["restart shop-core-1", "restart shop-side-1"], "{what}");
    }
}
