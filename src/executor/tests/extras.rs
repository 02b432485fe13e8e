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

/// A stack with tests and hooks of its own.
fn of_stack(web: &str, smoke: &str) -> StackSpec {
    let mut spec = stack(web, Some("db:1"), &[]);
    spec.settings.smoke = vec![serde_json::from_value(serde_json::json!({"service": "db", "test": {"exec": [smoke]}})).unwrap()];
    spec.settings.hooks = serde_json::from_value(serde_json::json!({
        "pre": [{"service": "web", "hook": {"run": ["/before"]}}],
        "post": [{"service": "db", "hook": {"run": ["/after"]}}],
    }))
    .unwrap();
    spec
}

#[tokio::test]
async fn tests_and_hooks_of_a_stack_run_in_every_release_that_changes_a_container() {
    let rig = rig().await;
    let ran = Arc::new(Mutex::new(vec![]));
    let (execs, ones) = (ran.clone(), ran.clone());
    rig.engine.on_exec(move |_, command| {
        execs.lock().unwrap().push(command.join(" "));
        let code = i64::from(command[0] == "/broken");
        Some(crate::model::observed::ExecOutcome { exit_code: Some(code), output: String::new(), truncated: false })
    });
    rig.engine.on_run(move |spec| {
        let command = spec.command.clone().unwrap_or_default().join(" ");
        (command == "/before").then(|| {
            ones.lock().unwrap().push(command);
            0
        })
    });
    let taken = || {
        let mut all = std::mem::take(&mut *ran.lock().unwrap());
        all.retain(|c| ["/before", "/smoke", "/after", "/broken"].contains(&c.as_str()));
        all
    };
    let op = deploy(&rig, of_stack("web:1", "/smoke")).await;
    assert_eq!((op.state, op.message, taken()), (OperationState::Done, None, vec!["/before".into(), "/smoke".into(), "/after".into()]));
    // Only web changes; the test is made against the db that serves.
    let op = deploy(&rig, of_stack("web:2", "/smoke")).await;
    assert_eq!((op.state, taken().len()), (OperationState::Done, 3));
    let op = deploy(&rig, of_stack("web:1", "/broken")).await;
    assert_eq!((op.state, taken()), (OperationState::RolledBack, vec!["/before".to_owned(), "/broken".into()]));
    assert!(op.message.unwrap().contains("smoke test 1 of the stack failed"));
    assert_one_release(&rig, "the test of the stack took it back").await;
}

/// A hook's container that goes on for minutes is neither waited for by a cancel nor by a shutdown, and nothing of it stays.
#[tokio::test]
async fn a_hook_that_is_at_work_is_left_by_a_cancel_and_by_a_shutdown() {
    for cancelled in [true, false] {
        let rig = rig().await;
        deploy(&rig, stack("web:1", None, &[])).await;
        let mut next = stack("web:2", None, &[]);
        let hooks = serde_json::json!({"pre": [{"run": ["/waits"], "timeout_s": 600}]});
        next.services.get_mut("web").unwrap().settings.hooks = serde_json::from_value(hooks).unwrap();
        let plan = plan_for(&rig, &rig.exec, release_of(&rig, next).await).await;
        let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        let of_hooks = [labels::filter(labels::ROLE, labels::ROLE_HOOK)];
        let hooks = async || rig.engine.containers(&of_hooks).await.unwrap().len();
        let at_work = async {
            while hooks().await == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), at_work).await.expect("the hook begins");
        let state = if cancelled {
            rig.exec.cancel(&op.id).await.unwrap();
            tokio::time::timeout(Duration::from_secs(30), ended(&rig.exec, &op.id)).await.expect("it does not wait for the hook");
            OperationState::Cancelled
        } else {
            rig.exec.close(Duration::from_secs(30)).await;
            assert_eq!(rig.exec.active(), 0, "it does not wait for the hook");
            let next = executor(&rig.engine, &rig.store, None);
            for id in next.recover().await.unwrap() {
                ended(&next, &id).await;
            }
            OperationState::RolledBack
        };
        let op = rig.store.operation(&op.id).await.unwrap().unwrap();
        assert_eq!((op.state, hooks().await), (state, 0), "cancelled {cancelled}: {:?}", op.message);
        assert_one_release(&rig, "as before").await;
    }
}
