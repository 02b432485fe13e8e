//! Services behind a front: every way there, on, back and away, with a stop of the supervisor after every journal record. The fake engine notes
//! each moment in which a connection would have been lost.

use super::matrix::crash_everywhere;
use super::writers::image_of;
use super::*;
use crate::model::plan::{Action, Strategy};
use crate::planner::PlanError;

/// Web behind a front with its port; db, which writes data, behind one with its name.
fn fronted(web: &str, db: &str) -> StackSpec {
    let mut spec = stack(web, Some(db), &[]);
    let web = spec.services.get_mut("web").unwrap();
    web.settings.strategy = Some(Strategy::Front);
    let db = spec.services.get_mut("db").unwrap();
    db.settings.strategy = Some(Strategy::Hold);
    // Its versions read each other's data: a failure is undone all the way.
    db.settings.migrates = Some(false);
    db.expose = vec!["5432".into()];
    spec
}

fn copies(mut spec: StackSpec, web: u32) -> StackSpec {
    spec.services.get_mut("web").unwrap().replicas = web;
    spec
}

fn web_only(mut spec: StackSpec) -> StackSpec {
    spec.services.remove("db");
    spec.services.get_mut("web").unwrap().depends_on.clear();
    spec
}

fn stops(rig: &Rig, of: &str) -> Vec<String> {
    rig.engine.calls().into_iter().filter(|c| c.starts_with("stop") && c.contains(of)).collect()
}

#[tokio::test]
async fn a_front_owns_port_and_name_and_its_containers_neither() {
    let rig = rig().await;
    let op = deploy(&rig, fronted("web:1", "db:1")).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "first deploy").await;
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let of = |name: &str| observed.containers.iter().find(|c| c.name == name).unwrap().clone();
    let (front, web) = (of("shop-web-front"), of("shop-web-1"));
    assert_eq!(front.ports.iter().map(|p| (p.host_port, p.container_port)).collect::<Vec<_>>(), [(8080, 80)]);
    assert_eq!(web.ports, vec![]);
    assert!(front.networks["shop_default"].contains(&"web".to_owned()) && !web.networks["shop_default"].contains(&"web".to_owned()));
    assert!(front.mounts.iter().all(|m| m.kind == "volume" && m.target == crate::model::front::DIR), "{:?}", front.mounts);
    rig.engine.clear_calls();
    let again = deploy(&rig, fronted("web:1", "db:1")).await;
    assert_eq!((again.state, rig.engine.calls()), (OperationState::Done, vec![]), "the same again is nothing to do");
}

#[tokio::test]
async fn an_update_changes_the_routes_and_leaves_the_front_alone() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", "db:1")).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, fronted("web:2", "db:2")).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "update").await;
    assert_eq!(stops(&rig, "front"), Vec::<String>::new());
    let (created, stopped) =
        (|c: &&String| c.starts_with("start dw-") && c.contains("-web-1"), |c: &&String| c.starts_with("stop ") && c.contains("-web-1"));
    let calls = rig.engine.calls();
    let at = |what: &dyn Fn(&&String) -> bool| calls.iter().position(|c| what(&c));
    assert!(at(&created).is_some() && at(&created) < at(&stopped), "the new one starts before the old one stops: {calls:#?}");
}

#[tokio::test]
async fn a_front_that_somebody_paused_serves_again_after_a_deploy_or_a_restart() {
    for deploying in [true, false] {
        let rig = rig().await;
        deploy(&rig, fronted("web:1", "db:1")).await;
        for front in ["shop-web-front", "shop-db-front"] {
            rig.engine.pause(&permit("deploy"), &EngineName::new(front).unwrap(), true).await.unwrap();
        }
        let op = match deploying {
            true => deploy(&rig, fronted("web:2", "db:2")).await,
            false => run(&rig, &rig.exec, Want::Restart { service: None }).await,
        };
        assert_eq!((op.state, op.message), (OperationState::Done, None), "deploying {deploying}");
        for service in ["web", "db"] {
            let front = format!("shop-{service}-front");
            let seen = rig.engine.container(&EngineName::new(front.as_str()).unwrap()).await.unwrap().unwrap();
            assert_eq!(seen.state, RunState::Running, "deploying {deploying}: {service}");
            let backend = rig.engine.container(&EngineName::new(format!("shop-{service}-1")).unwrap()).await.unwrap().unwrap();
            let routes = rig.engine.routed(&front).unwrap();
            assert_eq!(routes.serving().into_iter().cloned().collect::<Vec<_>>(), Vec::from_iter(crate::planner::front::backend(&backend)));
        }
        assert_one_release(&rig, "paused").await;
    }
}

#[tokio::test]
async fn a_broken_version_behind_a_front_never_touches_the_old_one() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", "db:1")).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, fronted("web:bad", "db:1")).await;
    assert_eq!((op.state, op.evidence.len()), (OperationState::RolledBack, 1));
    assert_one_release(&rig, "broken web").await;
    assert_eq!(stops(&rig, "shop-"), Vec::<String>::new());
}

#[tokio::test]
async fn a_broken_version_with_data_holds_connections_until_the_old_one_is_back() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", "db:1")).await;
    let op = deploy(&rig, fronted("web:2", "db:bad")).await;
    assert_eq!((op.state, op.evidence[0].exit_code), (OperationState::RolledBack, Some(3)));
    assert_one_release(&rig, "broken db").await;
}

#[tokio::test]
async fn a_release_that_fails_its_watch_window_is_routed_back() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", "db:1")).await;
    let mut next = fronted("web:2", "db:2");
    next.settings.monitor_s = Some(30);
    let plan = {
        let want = release_of(&rig, next).await;
        plan_for(&rig, &rig.exec, want).await
    };
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    let watched = rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert_eq!(watched.state, OperationState::Monitoring);
    assert!(rig.engine.crash_container("shop-web-1", 1));
    ended(&rig.exec, &op.id).await;
    assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::RolledBack);
    assert_one_release(&rig, "routed back").await;
}

#[tokio::test]
async fn a_new_front_that_does_not_stay_up_is_taken_back() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let mut next = fronted("web:1", "db:1");
    next.settings.monitor_s = Some(30);
    let want = release_of(&rig, next).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert!(rig.engine.crash_container("shop-web-front", 1));
    ended(&rig.exec, &op.id).await;
    let op = rig.store.operation(&op.id).await.unwrap().unwrap();
    assert_eq!(op.state, OperationState::RolledBack);
    assert!(op.message.unwrap().contains("its front, in the watch window"));
    assert_one_release(&rig, "without the front").await;
}

#[tokio::test]
async fn a_service_moves_behind_a_front_and_away_from_it() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let want = release_of(&rig, fronted("web:1", "db:1")).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let told: Vec<_> = plan.changes.iter().map(|c| (c.service.as_str(), c.action, c.strategy)).collect();
    assert_eq!(told, [("db", Action::Update, Strategy::Hold), ("web", Action::Update, Strategy::Front)]);
    assert!(plan.changes.iter().all(|c| c.expected_loss.starts_with("about 0.2 s once")), "{:#?}", plan.changes);
    deploy(&rig, fronted("web:1", "db:1")).await;
    assert_one_release(&rig, "moved behind").await;
    let mut other_port = fronted("web:1", "db:1");
    other_port.services.get_mut("web").unwrap().ports[0].published = Some("8081".into());
    let op = deploy(&rig, other_port).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "another port").await;
    let op = deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "moved away").await;
    assert_eq!(rig.engine.serving("shop", "web"), vec!["shop-web-1"]);
}

#[tokio::test]
async fn a_service_behind_a_front_scales_although_its_port_is_fixed() {
    let rig = rig().await;
    deploy(&rig, web_only(fronted("web:1", "db:1"))).await;
    for replicas in [3, 2, 1] {
        let op = run(&rig, &rig.exec, Want::Scale { service: name("web"), replicas }).await;
        assert_eq!((op.state, op.message), (OperationState::Done, None), "{replicas}");
        assert_one_release(&rig, &format!("{replicas} copies")).await;
    }
    let op = deploy(&rig, copies(web_only(fronted("web:2", "db:1")), 2)).await;
    assert_eq!(op.state, OperationState::Done);
    assert_one_release(&rig, "an update of more copies").await;
}

#[tokio::test]
async fn restart_stop_and_removal_take_the_front_along() {
    let rig = rig().await;
    let spec = copies(fronted("web:1", "db:1"), 2);
    deploy(&rig, spec).await;
    let plan = plan_for(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert!(plan.changes.iter().all(|c| c.expected_loss.starts_with("none: ")), "{:#?}", plan.changes);
    let op = run(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "restarted").await;
    let op = run(&rig, &rig.exec, Want::Stop { remove: false }).await;
    assert_eq!((op.state, rig.engine.running()), (OperationState::Done, vec![]), "a front of nothing would only hold connections");
    let op = run(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "started again").await;
    run(&rig, &rig.exec, Want::Stop { remove: false }).await;
    let op = deploy(&rig, copies(fronted("web:1", "db:1"), 2)).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "deployed again while stopped").await;
    let op = run(&rig, &rig.exec, Want::Stop { remove: true }).await;
    assert_eq!((op.state, rig.engine.container_names()), (OperationState::Done, vec![]));
    let volumes: Vec<String> = rig.engine.volumes(&[]).await.unwrap().into_iter().map(|v| v.name.to_string()).collect();
    assert_eq!(volumes, ["shop_data"], "the volumes of fronts went with them");
    assert_eq!(rig.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn other_bounds_of_a_front_go_with_its_routes() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", "db:1")).await;
    let before: Vec<String> = rig.engine.container_names();
    let mut spec = fronted("web:1", "db:1");
    spec.services.get_mut("web").unwrap().settings.front = Some(FrontSettings { drain_s: Some(3), ..Default::default() });
    rig.engine.clear_calls();
    let op = deploy(&rig, spec).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(2)));
    assert_eq!(rig.engine.routed("shop-web-front").map(|r| r.limits.drain_ms), Some(3000));
    assert_eq!((rig.engine.container_names(), stops(&rig, "")), (before, vec![]));
    assert_one_release(&rig, "other bounds").await;
}

#[tokio::test]
async fn a_lost_front_comes_back_with_the_next_deploy() {
    let rig = rig().await;
    deploy(&rig, fronted("web:1", "db:1")).await;
    let front = crate::model::ids::EngineName::new("shop-web-front").unwrap();
    rig.engine.remove_container(&permit("test"), &front, true).await.unwrap();
    let op = deploy(&rig, fronted("web:1", "db:1")).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "front made again").await;
}

#[tokio::test]
async fn what_writes_data_is_held_instead_and_the_plan_says_so() {
    let rig = rig().await;
    let mut spec = fronted("web:1", "db:1");
    spec.services.get_mut("db").unwrap().settings.strategy = Some(Strategy::Front);
    deploy(&rig, spec.clone()).await;
    spec.services.get_mut("db").unwrap().image = Some(ImageRef::new("db:2").unwrap());
    let want = release_of(&rig, spec).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let db = plan.changes.iter().find(|c| c.service.as_str() == "db").unwrap();
    assert_eq!(db.strategy, Strategy::Hold);
    assert!(db.expected_loss.starts_with("it writes data, so `hold` instead of `front`"), "{}", db.expected_loss);
}

/// The plan for a stack that has no release yet.
async fn planned(rig: &Rig, want: Want) -> Result<Plan, PlanError> {
    let (observed, digest) = (rig.exec.observe(&shop()).await.unwrap(), |b: &[u8]| rig.store.keyed_digest(b));
    planner::plan(&PlanInput {
        id: PlanId::new("plan-x").unwrap(),
        stack: shop(),
        environment: "development".into(),
        want,
        observed: &observed,
        current: None,
        anew: &Default::default(),
        next_release: 1,
        policy_version: "test",
        project_dir: None,
        git: None,
        literal_keys: &[],
        hash: &|v: &str| v.to_owned(),
        digest: &digest,
        now: Utc::now(),
    })
}

#[tokio::test]
async fn what_a_release_had_already_never_closes_the_way_back() {
    let rig = rig().await;
    let mut long = fronted("web:1", "db:1");
    long.services.get_mut("web").unwrap().settings.front = Some(FrontSettings { drain_s: Some(7200), ..Default::default() });
    let mut apart = fronted("web:1", "db:1");
    for (service, network) in [("web", "left"), ("db", "right")] {
        let spec = apart.services.get_mut(service).unwrap();
        (spec.settings.strategy, spec.mounts) = (Some(Strategy::BlueGreen), vec![]);
        spec.networks = [(network.to_owned(), Default::default())].into();
        apart.networks.insert(network.to_owned(), apart.networks["default"].clone());
    }
    for (why, spec) in [("drain_s 7200", long), ("share no network", apart)] {
        let Want::Release { desired, images, .. } = release_of(&rig, spec).await else { panic!("a release") };
        let back = planned(&rig, Want::Release { desired: desired.clone(), images: images.clone(), content_of: Some(1) }).await;
        assert!(back.is_ok(), "{why}: {back:?}");
        let refused = planned(&rig, Want::Release { desired, images, content_of: None }).await;
        assert!(matches!(&refused, Err(PlanError::Impossible(text)) if text.contains(why)), "{why}: {refused:?}");
    }
}

#[tokio::test]
async fn a_name_that_is_taken_undoes_no_update_that_serves() {
    let rig = rig().await;
    let mut before = fronted("web:1", "db:1");
    let mut old = before.services["web"].clone();
    (old.settings, old.ports, old.container_name) = (Default::default(), vec![], Some("shop-store".into()));
    before.services.insert(name("old"), old);
    deploy(&rig, before).await;
    let mut next = fronted("web:1", "db:2");
    next.services.get_mut("db").unwrap().container_name = Some("shop-store".into());
    let op = deploy(&rig, next).await;
    assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
    assert!(rig.engine.running().contains(&"shop-store".to_owned()), "{:?}", rig.engine.container_names());
    // And one that somebody else keeps: a note, not an undo.
    for _ in 0..6 {
        rig.engine.fail_next("rename", EngineError::Conflict("the name is in use".into()));
    }
    let op = deploy(&rig, fronted("web:1", "db:1")).await;
    assert_eq!((op.state, image_of(&rig, "db").await), (OperationState::Done, vec!["db:1".to_owned()]), "{:?}", op.message);
}

#[tokio::test]
async fn what_no_front_can_do_is_refused_with_the_reason() {
    let rig = rig().await;
    type Case = (&'static str, fn(&mut ServiceSpec));
    let cases: [Case; 4] = [
        ("services.web.ports[0] is udp", |s| {
            s.ports[0].protocol = "udp".into();
            s.ports[0].path = "services.web.ports[0]".into();
        }),
        ("neither publishes a port", |s| s.ports.clear()),
        ("network_mode host", |s| s.network_mode = Some("host".into())),
        ("limits.hold_ms is 0", |s| s.settings.front = Some(FrontSettings { hold_s: Some(0), ..Default::default() })),
    ];
    for (why, change) in cases {
        let mut spec = fronted("web:1", "db:1");
        change(spec.services.get_mut("web").unwrap());
        let refused = planned(&rig, release_of(&rig, spec).await).await;
        assert!(matches!(&refused, Err(PlanError::Impossible(text)) if text.contains(why)), "{why}: {refused:?}");
    }
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_first_deploy_behind_fronts() {
    crash_everywhere(None, fronted("web:1", "db:1"), None).await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_an_update_behind_fronts() {
    crash_everywhere(Some(fronted("web:1", "db:1")), fronted("web:2", "db:2"), None).await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_broken_update_behind_fronts() {
    crash_everywhere(Some(fronted("web:1", "db:1")), fronted("web:bad", "db:2"), Some(1)).await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_move_behind_fronts() {
    crash_everywhere(Some(stack("web:1", Some("db:1"), &[])), fronted("web:2", "db:2"), None).await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_move_away_from_fronts() {
    crash_everywhere(Some(fronted("web:1", "db:1")), stack("web:2", Some("db:2"), &[]), None).await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_more_and_fewer_copies_behind_a_front() {
    let web = |n| copies(web_only(fronted("web:1", "db:1")), n);
    crash_everywhere(Some(web(1)), web(3), None).await;
    crash_everywhere(Some(web(3)), web(1), None).await;
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_restart_behind_fronts() {
    for k in 1.. {
        let rig = rig().await;
        deploy(&rig, copies(fronted("web:1", "db:1"), 2)).await;
        let crashed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = crashed.clone();
        let stop: StopAfter = Arc::new(move |count| {
            flag.fetch_or(count == k, Ordering::SeqCst);
            count == k
        });
        let doomed = executor(&rig.engine, &rig.store, Some(stop));
        let plan = plan_for(&rig, &doomed, Want::Restart { service: None }).await;
        let op = doomed.submit(plan, permit("restart"), request("restart")).await.unwrap();
        ended(&doomed, &op.id).await;
        doomed.close(Duration::from_secs(5)).await;
        for id in rig.exec.recover().await.unwrap() {
            ended(&rig.exec, &id).await;
        }
        assert_one_release(&rig, &format!("stopped after record {k}")).await;
        if !crashed.load(Ordering::SeqCst) {
            assert!(k > 10);
            return;
        }
    }
}
