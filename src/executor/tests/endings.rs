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

async fn submitted(rig: &Rig, exec: &Arc<Executor>, spec: StackSpec) -> Operation {
    let want = release_of(rig, spec).await;
    let plan = plan_for(rig, exec, want).await;
    exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap()
}

async fn stored(rig: &Rig, op: &Operation) -> Operation {
    rig.store.operation(&op.id).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_plan_the_world_has_left_behind_is_refused_and_overwrites_no_release() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    let (one, two) = (release_of(&rig, stack("web:2", None, &[])).await, release_of(&rig, stack("web:1", None, &["extra"])).await);
    let (one, two) = (plan_for(&rig, &rig.exec, one).await, plan_for(&rig, &rig.exec, two).await);
    assert_eq!((one.to_release, two.to_release), (2, 2));
    let op = rig.exec.submit(one.clone(), permit("deploy"), request("deploy")).await.unwrap();
    ended(&rig.exec, &op.id).await;
    let refused = rig.exec.submit(two, permit("deploy"), request("deploy")).await;
    assert!(matches!(refused, Err(ExecutorError::Stale(_))), "{refused:?}");
    let again = rig.exec.submit(one, permit("deploy"), request("deploy")).await;
    assert!(matches!(again, Err(ExecutorError::Stale(_))), "{again:?}");
    assert_eq!(rig.store.release(&shop(), 2).await.unwrap().unwrap().operation, op.id);
    // Same release, but somebody took a container away.
    let want = release_of(&rig, stack("web:1", None, &[])).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    rig.engine.remove_container(&permit("deploy"), &EngineName::new("shop-web-1").unwrap(), false).await.unwrap();
    let moved = rig.exec.submit(plan, permit("deploy"), request("deploy")).await;
    assert!(matches!(moved, Err(ExecutorError::Stale(_))), "{moved:?}");
}

#[tokio::test]
async fn a_plan_made_in_a_watch_window_is_good_when_the_window_has_ended() {
    let rig = rig().await;
    let watched = |web: &str, extra: &[&str]| {
        let mut spec = stack(web, Some("db:1"), extra);
        spec.settings.monitor_s = Some(30);
        spec
    };
    deploy(&rig, stack("web:1", Some("db:1"), &["old"])).await;
    let op = submitted(&rig, &rig.exec, watched("web:2", &[])).await;
    rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    let mut next = watched("web:1", &[]);
    next.settings.monitor_s = Some(0);
    let next = submitted(&rig, &rig.exec, next).await;
    ended(&rig.exec, &next.id).await;
    assert_eq!(stored(&rig, &next).await.state, OperationState::Done);
    assert_one_release(&rig, "concluded").await;
}

#[tokio::test]
async fn an_operation_whose_state_could_not_be_written_goes_on_by_itself() {
    for moment in ["create_network", "start", "rename:done"] {
        let rig = rig().await;
        deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
        let (store, once) = (rig.store.clone(), AtomicBool::new(false));
        rig.engine.on_mutation(Box::new(move |now| {
            if now == moment && !once.swap(true, Ordering::SeqCst) {
                store.fail_writes(2);
            }
            true
        }));
        let mut spec = stack("web:2", Some("db:1"), &[]);
        spec.networks.insert("back".into(), NetworkSpec { name: "shop_back".into(), ..Default::default() });
        web(&mut spec).networks.insert("back".into(), ServiceNetwork::default());
        let op = submitted(&rig, &rig.exec, spec).await;
        ended(&rig.exec, &op.id).await;
        let op = stored(&rig, &op).await;
        assert!(op.state.is_terminal(), "{moment}: {:?}", op.state);
        assert_eq!(rig.exec.holding(&shop()), None, "{moment}");
        assert_one_release(&rig, moment).await;
    }
}

#[tokio::test]
async fn an_undo_that_the_engine_never_finishes_ends_in_need_of_attention() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    for _ in 0..40 {
        rig.engine.fail_next("remove_container", EngineError::Timeout { what: "a removal", after: Duration::from_secs(1) });
    }
    let op = deploy(&rig, stack("web:bad", None, &[])).await;
    assert_eq!(op.state, OperationState::NeedsAttention, "{:?}", op.message);
    assert!(op.message.unwrap().contains("did not finish a removal"));
}

/// How many journal records a deploy writes, and its executor that stops at one of them.
async fn records(rig: &Rig, spec: StackSpec) -> u64 {
    let count = Arc::new(AtomicU64::new(0));
    let seen = count.clone();
    let counting = executor(
        &rig.engine,
        &rig.store,
        Some(Arc::new(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
            false
        })),
    );
    let op = submitted(rig, &counting, spec).await;
    ended(&counting, &op.id).await;
    count.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_release_recorded_as_good_is_not_undone_by_the_next_start() {
    let spec = |web: &str, window| {
        let mut spec = stack(web, None, &[]);
        spec.settings.monitor_s = Some(window);
        spec
    };
    let all = {
        let rig = rig().await;
        deploy(&rig, spec("web:1", 0)).await;
        records(&rig, spec("web:2", 0)).await
    };
    let rig = rig().await;
    deploy(&rig, spec("web:1", 0)).await;
    let doomed = executor(&rig.engine, &rig.store, Some(Arc::new(move |count| count == all - 2)));
    let op = submitted(&rig, &doomed, spec("web:2", 1)).await;
    ended(&doomed, &op.id).await;
    doomed.close(Duration::from_secs(5)).await;
    assert_eq!(rig.store.release(&shop(), 2).await.unwrap().unwrap().state, ReleaseState::Good);
    assert!(rig.engine.crash_container("shop-web-1", 1));
    for id in rig.exec.recover().await.unwrap() {
        ended(&rig.exec, &id).await;
    }
    assert_eq!(stored(&rig, &op).await.state, OperationState::Done);
    assert_one_release(&rig, "good stays good").await;
}

#[tokio::test]
async fn an_undo_gives_a_writer_its_time_to_stop() {
    let rig = rig().await;
    let mut bad = stack("web:1", Some("db:bad"), &[]);
    assert_eq!(deploy(&rig, bad.clone()).await.state, OperationState::RolledBack);
    bad.services.get_mut("db").unwrap().stop_grace_period_ms = Some(45_000);
    assert_eq!(deploy(&rig, bad).await.state, OperationState::RolledBack);
    let graces: Vec<Duration> = rig.engine.graces().into_iter().filter(|(name, _)| name.contains("-db-")).map(|(_, grace)| grace).collect();
    assert_eq!(graces, [Duration::from_secs(10), Duration::from_secs(45)]);
}

#[tokio::test]
async fn a_network_or_volume_that_is_not_what_the_file_says_stops_a_deploy_and_says_what_to_do() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let network = |change: &dyn Fn(&mut NetworkSpec)| {
        let mut spec = stack("web:1", Some("db:1"), &[]);
        change(spec.networks.get_mut("default").unwrap());
        spec
    };
    let pool = IpamPool { subnet: Some("10.99.0.0/16".into()), ..Default::default() };
    let mut volume = stack("web:1", Some("db:1"), &[]);
    volume.volumes.get_mut("data").unwrap().driver_opts.insert("type".into(), "nfs".into());
    for (spec, told) in [
        (network(&|n| n.internal = true), "network.definition: network shop_default exists with another `internal` (false)"),
        (network(&|n| n.driver = Some("macvlan".into())), "another driver (bridge)"),
        (network(&|n| n.ipam = vec![pool.clone()]), "another subnet"),
        (network(&|n| drop(n.driver_opts.insert("mtu".into(), "1400".into()))), "another driver option mtu"),
        (volume, "volume shop_data exists with another driver option type"),
    ] {
        let op = deploy(&rig, spec).await;
        let message = op.message.unwrap_or_default();
        assert!(op.state == OperationState::Failed && message.contains(told) && message.contains("give it another name"), "{message}");
    }
    assert_one_release(&rig, "nothing was touched").await;
}

/// What the file writes of a network's addresses is compared with what the engine has, however either is spelled; what it leaves out is the engine's.
#[tokio::test]
async fn a_gateway_range_or_reserved_address_that_changed_is_told_and_nothing_else() {
    let with = |pool: IpamPool, driver: Option<&str>| {
        let mut spec = stack("web:1", None, &[]);
        let network = spec.networks.get_mut("default").unwrap();
        (network.ipam, network.ipam_driver) = (vec![pool], driver.map(str::to_owned));
        spec
    };
    let six = IpamPool {
        subnet: Some("fd00:0:0::/64".into()),
        ip_range: Some("fd00::80:7/120".into()),
        gateway: Some("fd00:0::1".into()),
        aux_addresses: BTreeMap::from([("router".to_owned(), "fd00:0::9".to_owned())]),
    };
    let rig = rig().await;
    assert_eq!(deploy(&rig, with(six.clone(), None)).await.state, OperationState::Done);
    let refused = [
        (IpamPool { gateway: Some("fd00::2".into()), ..six.clone() }, None, "another gateway (fd00:0::1)"),
        (IpamPool { ip_range: Some("fd00::90:0/120".into()), ..six.clone() }, None, "another ip_range (fd00::80:7/120)"),
        (
            IpamPool { aux_addresses: BTreeMap::from([("router".to_owned(), "fd00::8".to_owned())]), ..six.clone() },
            None,
            "another aux address of router (fd00:0::9)",
        ),
        (
            IpamPool { aux_addresses: BTreeMap::from([("nas".to_owned(), "fd00::9".to_owned())]), ..six.clone() },
            None,
            "another aux address of nas (none)",
        ),
        (six.clone(), Some("dhcp"), "another ipam driver (default)"),
    ];
    for (pool, driver, told) in refused {
        let op = deploy(&rig, with(pool, driver)).await;
        let message = op.message.unwrap_or_default();
        assert!(op.state == OperationState::Failed && message.contains(told) && message.contains("give it another name"), "{message}");
    }
    let respelled = IpamPool {
        subnet: Some("fd00::/64".into()),
        ip_range: Some("fd00::80:0/120".into()),
        gateway: Some("fd00::1".into()),
        aux_addresses: BTreeMap::from([("router".to_owned(), "fd00::9".to_owned())]),
    };
    let left_out = IpamPool { subnet: Some("fd00::/64".into()), ..IpamPool::default() };
    for pool in [respelled, left_out] {
        let op = deploy(&rig, with(pool, Some("default"))).await;
        assert_eq!((op.state, op.message), (OperationState::Done, None));
    }
}

#[tokio::test]
async fn scaling_fills_the_gap_in_the_numbers() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &["worker"]);
    spec.services.get_mut("worker").unwrap().replicas = 3;
    deploy(&rig, spec).await;
    rig.engine.remove_container(&permit("deploy"), &EngineName::new("shop-worker-2").unwrap(), false).await.unwrap();
    let op = run(&rig, &rig.exec, Want::Scale { service: name("worker"), replicas: 4 }).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "four again").await;
}

#[tokio::test]
async fn scaling_down_retires_what_is_stopped_first() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &["worker"]);
    spec.services.get_mut("worker").unwrap().replicas = 2;
    deploy(&rig, spec).await;
    rig.engine.stop(&permit("deploy"), &EngineName::new("shop-worker-1").unwrap(), Duration::ZERO).await.unwrap();
    run(&rig, &rig.exec, Want::Scale { service: name("worker"), replicas: 1 }).await;
    assert_eq!(rig.engine.serving("shop", "worker"), ["shop-worker-2"]);
}

#[tokio::test]
async fn an_added_copy_is_watched_like_any_other() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &["worker"]);
    spec.settings.monitor_s = Some(2);
    deploy(&rig, spec).await;
    let plan = plan_for(&rig, &rig.exec, Want::Scale { service: name("worker"), replicas: 3 }).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
    assert!(rig.engine.crash_container("shop-worker-3", 1));
    ended(&rig.exec, &op.id).await;
    assert_eq!(stored(&rig, &op).await.state, OperationState::RolledBack);
    assert_one_release(&rig, "scaled back").await;
}

#[tokio::test]
async fn what_an_earlier_deploy_could_not_remove_goes_with_the_next() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    // The canary and the old container, each with a second try, and the old one once more as a leftover.
    for _ in 0..6 {
        rig.engine.fail_next("remove_container", EngineError::Refused("busy".into()));
    }
    let op = deploy(&rig, stack("web:2", None, &[])).await;
    assert_eq!(op.state, OperationState::Done);
    let left = |rig: &Rig| rig.engine.container_names().into_iter().filter(|n| n.starts_with("dw-")).count();
    assert_eq!(left(&rig), 2);
    let op = deploy(&rig, stack("web:2", None, &["extra"])).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "tidy again").await;
}

#[tokio::test]
async fn a_takeover_of_an_undo_keeps_the_cause_and_its_evidence() {
    let all = {
        let rig = rig().await;
        deploy(&rig, stack("web:1", None, &[])).await;
        records(&rig, stack("web:bad", None, &[])).await
    };
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    let doomed = executor(&rig.engine, &rig.store, Some(Arc::new(move |count| count == all - 1)));
    let op = submitted(&rig, &doomed, stack("web:bad", None, &[])).await;
    ended(&doomed, &op.id).await;
    doomed.close(Duration::from_secs(5)).await;
    for id in rig.exec.recover().await.unwrap() {
        ended(&rig.exec, &id).await;
    }
    let op = stored(&rig, &op).await;
    assert_eq!((op.state, op.evidence.len()), (OperationState::RolledBack, 1));
    assert!(op.message.as_deref().unwrap().contains("service web"), "{:?}", op.message);
}

#[tokio::test]
async fn a_run_that_panics_holds_nothing_and_says_so() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    rig.engine.on_mutation(Box::new(|moment| if moment == "start" { panic!("a defect") } else { true }));
    let op = submitted(&rig, &rig.exec, stack("web:2", None, &[])).await;
    ended(&rig.exec, &op.id).await;
    rig.engine.clear_hook();
    assert_eq!(rig.exec.holding(&shop()), None);
    let op = stored(&rig, &op).await;
    assert_eq!(op.state, OperationState::NeedsAttention, "{:?}", op.message);
    assert_eq!(deploy(&rig, stack("web:2", None, &[])).await.state, OperationState::Done);
    assert_one_release(&rig, "after a panic").await;
}
