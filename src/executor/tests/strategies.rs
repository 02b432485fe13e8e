//! `canary`, `blue_green` and `alias`: their way, what they refuse, and a stop of the supervisor after every journal record of each.

use super::matrix::crash_everywhere;
use super::*;
use crate::model::plan::{Action, Strategy};
use crate::planner::PlanError;

/// Web with a port and an internal api, both of one strategy.
fn pair(web: &str, api: &str, strategy: Strategy, canary: serde_json::Value) -> StackSpec {
    let mut spec = stack(web, None, &[]);
    let mut other = stack(api, None, &[]).services.remove("web").unwrap();
    other.ports.clear();
    other.expose = vec!["9000".into()];
    spec.services.insert(name("api"), other);
    spec.volumes.clear();
    for s in spec.services.values_mut() {
        s.settings.strategy = Some(strategy);
        s.settings.canary = serde_json::from_value(canary.clone()).unwrap();
    }
    let web = spec.services.get_mut("web").unwrap();
    web.depends_on.insert(name("api"), Dependency { condition: DependencyCondition::ServiceHealthy, required: true, restart: false });
    spec
}

fn canary(web: &str, bake_s: u64) -> StackSpec {
    let settings = serde_json::json!({"weights": [10, 50], "bake_s": bake_s});
    let mut spec = pair(web, "db:1", Strategy::Canary, settings);
    spec.services.get_mut("api").unwrap().settings.strategy = Some(Strategy::Front);
    spec
}

fn green(web: &str, api: &str) -> StackSpec {
    pair(web, api, Strategy::BlueGreen, serde_json::Value::Null)
}

fn alias(web: &str, api: &str) -> StackSpec {
    let mut spec = pair(web, api, Strategy::Alias, serde_json::Value::Null);
    spec.services.get_mut("web").unwrap().settings.strategy = None;
    spec
}

async fn refused(rig: &Rig, spec: StackSpec) -> String {
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let Want::Release { desired, .. } = release_of(rig, spec).await else { unreachable!("a release is wanted") };
    let input = PlanInput {
        id: PlanId::new("plan-1").unwrap(),
        stack: shop(),
        environment: "development".into(),
        want: Want::Release { desired, images: BTreeMap::new(), content_of: None },
        observed: &observed,
        current: None,
        anew: &Default::default(),
        next_release: 1,
        policy_version: "1",
        project_dir: None,
        git: None,
        literal_keys: &[],
        hash: &|_| String::new(),
        digest: &|bytes| bytes.len().to_string(),
        now: Utc::now(),
    };
    match planner::plan(&input) {
        Err(PlanError::Impossible(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_canary_gets_growing_shares_before_the_switch_and_everything_after() {
    let rig = rig().await;
    deploy(&rig, canary("web:1", 0)).await;
    let op = deploy(&rig, canary("web:2", 0)).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    let keys: Vec<String> = rig.store.steps(&op.id).await.unwrap().into_iter().map(|s| s.key).collect();
    let at = |key: &str| keys.iter().position(|k| k == key).unwrap_or_else(|| panic!("no step {key} in {keys:#?}"));
    assert!(at("canary:web:10") < at("canary:web:50") && at("canary:web:50") < at("switch") && at("switch") < at("route:web"));
    assert_one_release(&rig, "after the canary").await;
}

#[tokio::test]
async fn a_canary_that_falls_ill_loses_its_share_and_the_old_one_was_never_touched() {
    let rig = rig().await;
    deploy(&rig, canary("web:1", 0)).await;
    rig.engine.clear_calls();
    let want = release_of(&rig, canary("web:2", 60)).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let web = plan.changes.iter().find(|c| c.service.as_str() == "web").unwrap();
    assert_eq!((web.action, web.strategy), (Action::Update, Strategy::Canary));
    assert!(web.expected_loss.contains("10, then 50 % of new connections, each share watched for 60 s"), "{}", web.expected_loss);
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    let shared = || rig.engine.routed("shop-web-front").is_some_and(|r| r.backends.len() == 2);
    while !shared() {
        tokio::task::yield_now().await;
    }
    let routes = rig.engine.routed("shop-web-front").unwrap();
    assert_eq!(routes.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [90, 10], "old before new");
    let new = rig.engine.running().into_iter().find(|n| n.starts_with("dw-") && n.ends_with("-web-1")).unwrap();
    assert!(rig.engine.crash_container(&new, 3));
    ended(&rig.exec, &op.id).await;
    let op = rig.store.operation(&op.id).await.unwrap().unwrap();
    assert_eq!((op.state, op.evidence.len()), (OperationState::RolledBack, 1));
    assert!(op.message.unwrap().contains("as a canary"));
    assert_one_release(&rig, "taken back").await;
    assert!(!rig.engine.calls().iter().any(|c| c.starts_with("stop shop-web-1")), "{:#?}", rig.engine.calls());
}

#[tokio::test]
async fn connects_that_fail_behind_the_front_end_a_canary() {
    let rig = rig().await;
    deploy(&rig, canary("web:1", 0)).await;
    rig.engine.fail_connects(true);
    let op = deploy(&rig, canary("web:2", 60)).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert!(op.message.unwrap().contains("connects to it failed"));
    rig.engine.fail_connects(false);
    assert_one_release(&rig, "taken back").await;
}

#[tokio::test]
async fn a_cancel_takes_a_canary_back() {
    let rig = rig().await;
    deploy(&rig, canary("web:1", 0)).await;
    let want = release_of(&rig, canary("web:2", 60)).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    while rig.engine.routed("shop-web-front").is_none_or(|r| r.backends.len() != 2) {
        tokio::task::yield_now().await;
    }
    rig.exec.cancel(&op.id).await.unwrap();
    ended(&rig.exec, &op.id).await;
    assert_eq!(rig.store.operation(&op.id).await.unwrap().unwrap().state, OperationState::Cancelled);
    assert_one_release(&rig, "cancelled").await;
}

#[tokio::test]
async fn what_mends_a_canary_or_goes_back_does_not_wait_beside_what_fails() {
    let rig = rig().await;
    deploy(&rig, canary("web:1", 0)).await;
    let plan = plan_for(&rig, &rig.exec, Want::Recreate { service: name("web") }).await;
    let web = plan.changes.iter().find(|c| c.service.as_str() == "web").unwrap();
    assert_eq!((web.action, web.strategy), (Action::Update, Strategy::Front));
}

#[tokio::test]
async fn services_of_one_colour_are_replaced_together_on_a_network_of_their_own() {
    let rig = rig().await;
    deploy(&rig, green("web:1", "db:1")).await;
    assert_one_release(&rig, "the first colour").await;
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let web = observed.containers.iter().find(|c| c.name == "shop-web-1").unwrap();
    assert!(web.networks.keys().any(|n| n.starts_with("0-shop-")), "the first release meets no later one either: {:?}", web.networks);
    let want = release_of(&rig, green("web:1", "db:2")).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let told: Vec<_> = plan.changes.iter().map(|c| (c.service.as_str(), c.action, c.strategy)).collect();
    assert_eq!(told, [("api", Action::Update, Strategy::BlueGreen), ("web", Action::Update, Strategy::BlueGreen)]);
    assert_eq!(plan.changes[1].diff[0].to.as_deref(), Some("replaced together with api"));
    let op = deploy(&rig, green("web:1", "db:2")).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "green").await;
    let colour =
        |observed: &crate::planner::Observed| observed.networks.iter().filter(|n| n.starts_with("0-shop-")).cloned().collect::<Vec<_>>();
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let first = colour(&observed);
    let on = |c: &&crate::model::observed::ContainerDetail| c.networks.contains_key(&first[0]);
    let mut there: Vec<_> = observed.containers.iter().filter(on).map(|c| c.name.as_str()).collect();
    there.sort_unstable();
    assert_eq!(there, ["shop-api-1", "shop-web-1"], "and no front");
    let api = observed.containers.iter().find(|c| c.name == "shop-api-1").unwrap();
    assert!(api.networks[&first[0]].contains(&"api".to_owned()) && !api.networks["shop_default"].contains(&"api".to_owned()));
    deploy(&rig, green("web:2", "db:2")).await;
    let second = colour(&rig.exec.observe(&shop()).await.unwrap());
    assert!(second.len() == 1 && second != first, "the network went with its release: {first:?}, {second:?}");
    let removed = run(&rig, &rig.exec, Want::Stop { remove: true }).await;
    assert_eq!((removed.state, rig.exec.observe(&shop()).await.unwrap().networks), (OperationState::Done, vec![]));
}

#[tokio::test]
async fn a_broken_service_of_a_colour_leaves_the_whole_old_colour() {
    let rig = rig().await;
    deploy(&rig, green("web:1", "db:1")).await;
    deploy(&rig, green("web:1", "db:2")).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, green("web:bad", "db:1")).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert_one_release(&rig, "the old colour").await;
    assert!(!rig.engine.calls().iter().any(|c| c.starts_with("stop shop-")), "{:#?}", rig.engine.calls());
}

#[tokio::test]
async fn an_alias_is_held_by_old_and_new_before_the_old_one_stops() {
    let rig = rig().await;
    deploy(&rig, alias("web:1", "db:1")).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, alias("web:1", "db:2")).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "alias").await;
    let calls = rig.engine.calls();
    let at = |begins: &str, ends: &str| calls.iter().position(|c| c.starts_with(begins) && c.ends_with(ends));
    let (canary, new, old) = (at("start dw-", "-api-canary"), at("start dw-", "-api-1"), at("stop shop-api-1", ""));
    assert!(canary.is_some() && canary < new && new < old, "{calls:#?}");
}

#[tokio::test]
async fn what_a_strategy_cannot_do_is_refused_with_the_reason() {
    let rig = rig().await;
    let of = |strategy: Strategy, change: fn(&mut ServiceSpec)| {
        let mut spec = pair("web:1", "db:1", strategy, serde_json::Value::Null);
        let api = spec.services.get_mut("api").unwrap();
        change(api);
        spec
    };
    let writes: fn(&mut ServiceSpec) = |s| s.volumes_from = vec!["web".into()];
    for strategy in [Strategy::Canary, Strategy::BlueGreen] {
        let why = refused(&rig, of(strategy, writes)).await;
        assert!(why.contains("service api cannot have strategy") && why.contains("it writes data"), "{why}");
    }
    let mut web = alias("web:1", "db:1");
    web.services.get_mut("web").unwrap().settings.strategy = Some(Strategy::Alias);
    assert!(refused(&rig, web).await.contains("the same host port"));
    let shares: fn(&mut ServiceSpec) = |s| s.settings.canary = Some(CanarySettings { weights: vec![50, 10], ..Default::default() });
    assert!(refused(&rig, of(Strategy::Canary, shares)).await.contains("growing shares"));
    assert!(refused(&rig, of(Strategy::Follow, |_| {})).await.contains("the planner chooses it"));
    let hooked = |service: &str| {
        let mut spec = stack("web:1", Some("db:1"), &[]);
        spec.settings.hooks.pre = vec![StackHook { service: name(service), hook: Hook { run: vec!["/x".into()], timeout_s: 1 } }];
        spec
    };
    assert!(refused(&rig, hooked("db")).await.contains("writes data while the hook would run beside it"));
    assert!(refused(&rig, hooked("nobody")).await.contains("x-dockwarden.hooks.pre names service nobody"));
}

#[tokio::test]
async fn a_crash_at_any_moment_of_a_canary_leaves_exactly_one_release() {
    let only = |mut spec: StackSpec| {
        spec.services.remove("api");
        spec.services.get_mut("web").unwrap().depends_on.clear();
        spec
    };
    crash_everywhere(Some(only(canary("web:1", 0))), only(canary("web:2", 0)), None).await;
}

#[tokio::test]
async fn a_crash_at_any_moment_of_a_blue_green_update_leaves_exactly_one_release() {
    crash_everywhere(Some(green("web:1", "db:1")), green("web:2", "db:2"), None).await;
}

#[tokio::test]
async fn a_crash_at_any_moment_of_an_alias_update_leaves_exactly_one_release() {
    crash_everywhere(Some(alias("web:1", "db:1")), alias("web:1", "db:2"), None).await;
}

/// Puts a service on these networks, under an alias on each.
fn on(spec: &mut StackSpec, service: &str, networks: &[(&str, &str)]) {
    let networks = networks.iter().map(|(key, alias)| {
        spec.networks.insert((*key).to_owned(), NetworkSpec { name: format!("shop_{key}"), ..NetworkSpec::default() });
        ((*key).to_owned(), ServiceNetwork { aliases: vec![(*alias).to_owned()], ..ServiceNetwork::default() })
    });
    let networks = networks.collect();
    spec.services.get_mut(service).unwrap().networks = networks;
}

#[tokio::test]
async fn a_colour_brings_no_services_together_that_share_no_network() {
    let rig = rig().await;
    let mut apart = green("web:1", "db:1");
    on(&mut apart, "web", &[("outer", "www")]);
    on(&mut apart, "api", &[("inner", "api-inner")]);
    assert!(refused(&rig, apart.clone()).await.contains("the services of this strategy share no network"));
    // One that is on internal networks alone stands on no colour, so nothing meets it there.
    apart.networks.get_mut("inner").unwrap().internal = true;
    apart.networks.remove("default");
    let op = deploy(&rig, apart).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "apart").await;
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let api = observed.containers.iter().find(|c| c.name == "shop-api-1").unwrap();
    assert_eq!(api.networks.keys().collect::<Vec<_>>(), ["shop_inner"]);
}

#[tokio::test]
async fn on_a_colour_a_service_has_the_names_of_the_shared_networks_only() {
    let rig = rig().await;
    let mut spec = green("web:1", "db:1");
    on(&mut spec, "web", &[("shared", "www"), ("outer", "api")]);
    on(&mut spec, "api", &[("shared", "api")]);
    let op = deploy(&rig, spec).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let colour = observed.networks.iter().find(|n| n.starts_with("0-shop-")).unwrap();
    let names = |container: &str| observed.containers.iter().find(|c| c.name == container).unwrap().networks[colour].clone();
    assert!(
        names("shop-web-1").contains(&"www".to_owned()) && !names("shop-web-1").contains(&"api".to_owned()),
        "{:?}",
        names("shop-web-1")
    );
    assert!(names("shop-api-1").contains(&"api".to_owned()));
    let plan = plan_for(&rig, &rig.exec, Want::Restart { service: Some(name("api")) }).await;
    let told = &plan.changes[0].expected_loss;
    assert!(told.contains("other blue_green services reach it directly and are refused meanwhile"), "{told}");
}

#[tokio::test]
async fn a_front_listens_on_any_spelling_of_tcp_and_promises_no_longer_drain_than_it_keeps() {
    let rig = rig().await;
    let mut spec = green("web:1", "db:1");
    spec.services.get_mut("api").unwrap().expose = vec!["9000/TCP".into()];
    let web = spec.services.get_mut("web").unwrap();
    web.ports[0].protocol = "TCP".into();
    web.settings.front = Some(FrontSettings { drain_s: Some(3_600), ..FrontSettings::default() });
    let targets = |service: &str| planner::front::fronting(&spec, &name(service)).unwrap().targets;
    assert!(targets("api").contains(&9000));
    let op = deploy(&rig, spec.clone()).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    spec.services.get_mut("web").unwrap().settings.front = Some(FrontSettings { drain_s: Some(3_601), ..FrontSettings::default() });
    let why = refused(&rig, spec).await;
    assert!(why.contains("front.drain_s 3601") && why.contains("at most 3600 s"), "{why}");
}
