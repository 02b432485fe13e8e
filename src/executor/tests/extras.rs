//! Keys that few services have, on their way from the file to the engine; and what restarts because another service did.

use super::matrix::crash_everywhere;
use super::*;
use crate::model::plan::{Action, Strategy};

/// The serving container's request.
fn made(rig: &Rig, container: &str) -> crate::engine::ContainerSpec {
    rig.engine.spec_of(container).unwrap_or_else(|| panic!("no container {container}"))
}

fn with(change: impl FnOnce(&mut ServiceSpec)) -> StackSpec {
    let mut spec = stack("web:1", Some("db:1"), &["side"]);
    change(spec.services.get_mut("web").unwrap());
    spec
}

#[tokio::test]
async fn links_are_aliases_of_names_the_network_knows() {
    let rig = rig().await;
    let op = deploy(&rig, with(|web| web.links = vec!["db:database".into(), "db".into()])).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_eq!(made(&rig, "shop-web-1").networks[0].links, ["db:database"], "`db` alone is a name already");
}

#[tokio::test]
async fn volumes_from_takes_over_the_mounts_of_the_container_that_stands_for_the_service() {
    let rig = rig().await;
    let op = deploy(&rig, with(|web| web.volumes_from = vec!["db:ro".into()])).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let web = observed.containers.iter().find(|c| c.name == "shop-web-1").unwrap();
    assert_eq!(web.mounts.iter().map(|m| (m.target.as_str(), m.writable)).collect::<Vec<_>>(), [("/data", false)]);
    let writing = with(|web| web.volumes_from = vec!["db".into()]);
    assert!(writing.services["web"].single_writer(), "for writing it is a second writer to itself");
}

#[tokio::test]
async fn gpus_and_reserved_devices_are_asked_for() {
    use crate::model::spec::written::{Deploy, DeployResource, DeployResources, DeviceRequest};
    let rig = rig().await;
    let reserved = DeviceRequest { driver: Some("nvidia".into()), capabilities: vec!["gpu".into()], count: Some(1), ..Default::default() };
    let op = deploy(
        &rig,
        with(|web| {
            web.written.gpus = vec![DeviceRequest { count: Some(-1), ..Default::default() }];
            let resources = DeployResources {
                reservations: Some(DeployResource { devices: vec![reserved.clone()], ..Default::default() }),
                limits: None,
            };
            web.written.deploy = Some(Deploy { resources, ..Default::default() });
        }),
    )
    .await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    let asked = made(&rig, "shop-web-1").extras.device_requests;
    assert_eq!(asked, [reserved, DeviceRequest { capabilities: vec!["gpu".into()], count: Some(-1), ..Default::default() }]);
}

fn following(db: &str) -> StackSpec {
    let mut spec = stack("web:1", Some(db), &[]);
    spec.services.get_mut("web").unwrap().depends_on.get_mut("db").unwrap().restart = true;
    spec.services.get_mut("db").unwrap().settings.migrates = Some(false);
    spec
}

#[tokio::test]
async fn what_asks_for_it_restarts_once_its_dependency_has_a_new_container() {
    let rig = rig().await;
    deploy(&rig, following("db:1")).await;
    let want = release_of(&rig, following("db:2")).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let told: Vec<_> = plan.changes.iter().map(|c| (c.service.as_str(), c.action, c.strategy)).collect();
    assert_eq!(told, [("db", Action::Update, Strategy::Recreate), ("web", Action::Restart, Strategy::Follow)]);
    rig.engine.clear_calls();
    let op = deploy(&rig, following("db:2")).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    let calls = rig.engine.calls();
    let restarts: Vec<_> = calls.iter().filter(|c| c.starts_with("restart ")).collect();
    assert_eq!(restarts, ["restart shop-web-1"]);
    assert_one_release(&rig, "followed").await;
    let again = release_of(&rig, following("db:2")).await;
    assert!(plan_for(&rig, &rig.exec, again).await.is_noop());
}

#[tokio::test]
async fn a_crash_at_any_moment_of_a_restart_that_follows_leaves_one_release() {
    crash_everywhere(Some(following("db:1")), following("db:2"), None).await;
}
