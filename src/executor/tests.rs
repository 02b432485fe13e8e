//! The executor against the in-memory engine and a real store: every way a deploy can go, and a stop of the supervisor after every
//! journal record of each.

mod away;
mod drift;
mod endings;
mod extras;
mod features;
mod front;
mod front_door;
mod given;
mod jobs;
mod matrix;
mod moves;
mod places;
mod pulls;
mod reboot;
mod render;
mod strategies;
mod undo;
mod writers;

use super::*;
use crate::engine::EngineError;
use crate::engine::fake::{Behaviour, FakeEngine};
use crate::gate;
use crate::gate::plan::PlanFacts;
use crate::model::labels;
use crate::model::observed::{ImageIdentity, RunState};
use crate::model::release::ReleaseState;
use crate::model::spec::*;
use crate::planner::{self, Observed, PlanInput, Want};
use std::collections::BTreeSet;
use tempfile::TempDir;

mod adopt;

pub(super) struct Rig {
    pub(super) engine: Arc<FakeEngine>,
    pub(super) store: Store,
    exec: Arc<Executor>,
    _dir: Arc<TempDir>,
}

impl Rig {
    pub(super) fn dir(&self) -> &std::path::Path {
        self._dir.path()
    }
}

fn executor(engine: &Arc<FakeEngine>, store: &Store, stop_after: Option<StopAfter>) -> Arc<Executor> {
    executor_with(engine, store, stop_after, None)
}

pub(super) fn executor_with(
    engine: &Arc<FakeEngine>,
    store: &Store,
    stop_after: Option<StopAfter>,
    backups: Option<backup::BackupHouse>,
) -> Arc<Executor> {
    executor_as(engine, store, Options { stop_after, backups, ..Options::default() })
}

/// With what every test of ours needs besides.
pub(super) fn executor_as(engine: &Arc<FakeEngine>, store: &Store, options: Options) -> Arc<Executor> {
    let facts: FactsOf = Arc::new(|plan, service| {
        let service = service.map_or("", ServiceName::as_str);
        let known = PlanFacts { carried: plan.carried.clone(), ..PlanFacts::default() };
        RequestFacts::of(&plan.desired, service, &known, &Default::default(), Utc::now().date_naive(), BTreeSet::new())
    });
    // Any small file does as the binary of fronts: the fake engine runs none.
    let front_binary = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into());
    let commands: CommandsOf = Arc::new(|_, _| Arc::new(|_, _| vec![]));
    Executor::new(engine.clone(), store.clone(), facts, Options { front_binary, commands: Some(commands), ..options })
}

pub(super) async fn rig() -> Rig {
    let dir = Arc::new(TempDir::new().unwrap());
    let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
    let engine = Arc::new(FakeEngine::new());
    for tag in ["web:1", "web:2", "db:1", "db:2", "job:1", "job:2"] {
        engine.add_image(tag, Behaviour::healthy());
    }
    engine.add_image("web:bad", Behaviour::unhealthy());
    engine.add_image("db:bad", Behaviour::exits(3).with_logs(&["cannot open the data"]));
    let exec = executor(&engine, &store, None);
    Rig { engine, store, exec, _dir: dir }
}

pub(super) fn name(s: &str) -> ServiceName {
    ServiceName::new(s).unwrap()
}
pub(super) fn shop() -> StackName {
    StackName::new("shop").unwrap()
}

/// A web service with a published port and, when asked for, a database with a volume.
pub(super) fn stack(web: &str, db: Option<&str>, extra: &[&str]) -> StackSpec {
    let network = || BTreeMap::from([("default".to_owned(), ServiceNetwork::default())]);
    let service = |image: &str| ServiceSpec {
        active: true,
        image: Some(ImageRef::new(image).unwrap()),
        replicas: 1,
        restart: Restart::UnlessStopped,
        networks: network(),
        settings: ServiceSettings { start_timeout_s: Some(1), ..Default::default() },
        ..Default::default()
    };
    let mut services = BTreeMap::new();
    let mut front = service(web);
    front.ports = vec![PortSpec {
        target: 80,
        published: Some("8080".into()),
        host_ip: None,
        protocol: "tcp".into(),
        mode: "ingress".into(),
        name: None,
        app_protocol: None,
        path: String::new(),
    }];
    if let Some(db) = db {
        front.depends_on.insert(name("db"), Dependency { condition: DependencyCondition::ServiceHealthy, required: true, restart: false });
        let mut data = service(db);
        data.mounts = vec![MountSpec { source: Some("data".into()), ..MountSpec::new(MountKind::Volume, "/data", "") }];
        services.insert(name("db"), data);
    }
    services.insert(name("web"), front);
    for extra in extra {
        services.insert(name(extra), service("web:1"));
    }
    StackSpec {
        services,
        networks: BTreeMap::from([("default".into(), NetworkSpec { name: "shop_default".into(), ..Default::default() })]),
        volumes: BTreeMap::from([("data".into(), VolumeSpec { name: "shop_data".into(), ..Default::default() })]),
        settings: StackSettings { monitor_s: Some(0), ..Default::default() },
        ..StackSpec::new(shop())
    }
}

pub(super) async fn plan_for(rig: &Rig, exec: &Arc<Executor>, want: Want) -> Plan {
    let mut observed = exec.observe(&shop()).await.unwrap();
    observed.once = exec.once(&shop()).await.unwrap();
    let record = rig.store.stack(&shop()).await.unwrap();
    let current = match record.as_ref().and_then(|r| r.current) {
        Some(number) => rig.store.release(&shop(), number).await.unwrap(),
        None => None,
    };
    let (hash, digest) = (|v: &str| rig.store.keyed_hash(v), |b: &[u8]| rig.store.keyed_digest(b));
    planner::plan(&PlanInput {
        id: PlanId::new(format!("plan-{}", ulid::Ulid::generate().to_string().to_lowercase())).unwrap(),
        stack: shop(),
        environment: "development".into(),
        want,
        observed: &observed,
        current: current.as_ref(),
        anew: &Default::default(),
        next_release: rig.store.last_release_number(&shop()).await.unwrap() + 1,
        policy_version: "test",
        project_dir: None,
        git: None,
        literal_keys: &[],
        hash: &hash,
        digest: &digest,
        now: Utc::now(),
    })
    .unwrap()
}

pub(super) async fn release_of(rig: &Rig, spec: StackSpec) -> Want {
    let mut images = BTreeMap::new();
    for (service, s) in &spec.services {
        let reference = s.image.clone().unwrap();
        let id = rig.engine.image(&reference).await.unwrap().map(|i| i.id);
        images.insert(service.clone(), ImageIdentity { reference, id, repo_digest: None });
    }
    Want::Release { desired: Box::new(spec), images, content_of: None }
}

pub(super) fn permit(verb: &str) -> Permit {
    gate::test_permit(verb, Some(shop()))
}

pub(super) fn request(verb: &str) -> Request {
    Request {
        verb: verb.into(),
        agent: "tester".into(),
        call: CallId::new("call-test").unwrap(),
        idempotency_key: None,
        args_hash: String::new(),
        reason: None,
        approval: None,
    }
}

/// Submits and waits for the end, the watch window included.
async fn run(rig: &Rig, exec: &Arc<Executor>, want: Want) -> Operation {
    let plan = plan_for(rig, exec, want).await;
    let op = exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
    ended(exec, &op.id).await;
    rig.store.operation(&op.id).await.unwrap().unwrap()
}

pub(super) async fn ended(exec: &Arc<Executor>, id: &OperationId) {
    if let Some(mut standing) = exec.standing(id) {
        while standing.changed().await.is_ok() {}
    }
}

async fn deploy(rig: &Rig, spec: StackSpec) -> Operation {
    let want = release_of(rig, spec).await;
    run(rig, &rig.exec, want).await
}

/// Everything that must hold after every settled operation, whatever happened.
pub(super) async fn assert_one_release(rig: &Rig, context: &str) {
    let observed = rig.exec.observe(&shop()).await.unwrap();
    let current = rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current);
    assert_eq!(rig.engine.violations(), Vec::<String>::new(), "{context}: two writers or two holders of a port");
    let spec = match current {
        Some(n) => Some(rig.store.release(&shop(), n).await.unwrap().unwrap().spec),
        None => None,
    };
    let services = || spec.iter().flat_map(|s| &s.services);
    let fronts = services().filter(|(_, s)| planner::front::fronted(s)).map(|(name, _)| format!("shop-{name}-front"));
    let copies = services().flat_map(|(name, s)| (1..=s.replicas).map(move |n| format!("shop-{name}-{n}")));
    let expected: BTreeSet<String> = copies.chain(fronts).collect();
    let once = |c: &str| spec.as_ref().is_some_and(|s| s.services.keys().any(|n| c == format!("shop-{n}-1") && planner::one_shot(s, n)));
    let seen: BTreeSet<String> = observed.containers.iter().map(|c| c.name.clone()).collect();
    // A one-shot that ran and was taken back with its release is remembered, not kept.
    let needed: BTreeSet<String> = expected.iter().filter(|c| !once(c)).cloned().collect();
    let in_order = seen.is_subset(&expected) && needed.is_subset(&seen);
    assert!(in_order, "{context}: exactly the current release's containers, under their canonical names: {seen:?} for {expected:?}");
    for c in &observed.containers {
        let (state, policy) = if once(&c.name) { (RunState::Exited, "no") } else { (RunState::Running, "unless-stopped") };
        assert_eq!(c.state, state, "{context}: {}", c.name);
        assert_eq!(c.restart_policy, policy, "{context}: {} has the file's restart policy", c.name);
    }
    for service in services().filter(|(_, s)| planner::front::fronted(s)).map(|(name, _)| name) {
        let backends: Vec<EngineName> = planner::serving(&observed, service).into_iter().filter_map(planner::front::backend).collect();
        let routes = rig.engine.routed(&format!("shop-{service}-front"));
        assert_eq!(
            routes.map(|r| r.serving().into_iter().cloned().collect::<Vec<_>>()),
            Some(backends),
            "{context}: the front of {service} serves the release's containers"
        );
        assert_eq!(rig.engine.serving("shop", service.as_str()), vec![format!("shop-{service}-front")], "{context}: and holds its name");
    }
    let networks: BTreeSet<String> = spec.iter().flat_map(|s| s.networks.values().map(|n| n.name.clone())).collect();
    let used = |n: &String| observed.containers.iter().any(|c| c.networks.contains_key(n));
    let (colours, plain): (Vec<_>, Vec<_>) = observed.networks.iter().cloned().partition(|n| n.starts_with("0-shop-"));
    assert_eq!(plain.into_iter().collect::<BTreeSet<_>>(), networks, "{context}: no network too many or too few");
    assert!(colours.len() <= 1 && colours.iter().all(used), "{context}: no colour is forgotten: {colours:?}");
    let claim = format!("dockwarden-claim-{}", shop());
    let orphans: Vec<String> = rig.engine.container_names().into_iter().filter(|n| !seen.contains(n) && *n != claim).collect();
    assert_eq!(orphans, Vec::<String>::new(), "{context}: no container is forgotten");
    if current.is_none() {
        let claim = rig.engine.container_names().into_iter().filter(|n| n.contains("claim")).count();
        assert_eq!((observed.networks.len(), observed.volumes.len(), claim), (0, 0, 0), "{context}: nothing half-made stays");
    }
    assert!(rig.store.open_operations().await.unwrap().is_empty(), "{context}: no open operation");
}

#[tokio::test]
async fn a_first_deploy_runs_under_canonical_names_and_becomes_good() {
    let rig = rig().await;
    let op = deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    assert_eq!((op.state, op.release, op.message), (OperationState::Done, Some(1), None));
    assert_one_release(&rig, "first deploy").await;
    assert_eq!(rig.store.release(&shop(), 1).await.unwrap().unwrap().state, ReleaseState::Good);
    assert_eq!(rig.engine.serving("shop", "web"), vec!["shop-web-1"]);
}

#[tokio::test]
async fn the_same_again_is_nothing_to_do() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(1)));
    assert_eq!(rig.store.steps(&op.id).await.unwrap(), vec![]);
}

#[tokio::test]
async fn an_update_hands_over_the_stateless_and_recreates_what_has_data() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &["old"])).await;
    let op = deploy(&rig, stack("web:2", Some("db:2"), &["fresh"])).await;
    assert_eq!((op.state, op.release), (OperationState::Done, Some(2)));
    assert_one_release(&rig, "update").await;
}

#[tokio::test]
async fn a_broken_stateless_version_never_touches_the_old_one() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, stack("web:bad", Some("db:1"), &[])).await;
    assert_eq!((op.state, op.evidence.len()), (OperationState::RolledBack, 1));
    assert_eq!(op.evidence[0].service, "web");
    assert_one_release(&rig, "broken web").await;
    let stopped: Vec<String> = rig.engine.calls().into_iter().filter(|c| c.contains("stop") && c.contains("shop-web-1")).collect();
    assert_eq!(stopped, Vec::<String>::new(), "the old one was never stopped");
    assert_eq!(rig.store.release(&shop(), 2).await.unwrap().unwrap().state, ReleaseState::Failed);
}

#[tokio::test]
async fn a_broken_version_with_data_starts_the_old_one_again_and_keeps_evidence() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    let op = deploy(&rig, stack("web:2", Some("db:bad"), &[])).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert_eq!((op.evidence[0].exit_code, op.evidence[0].logs.clone()), (Some(3), vec!["cannot open the data".to_owned()]));
    assert_one_release(&rig, "broken db").await;
}

#[tokio::test]
async fn a_taken_port_fails_before_anything_is_touched() {
    let rig = rig().await;
    rig.engine.occupy_port(8080, true);
    let op = deploy(&rig, stack("web:1", Some("db:1"), &[])).await;
    assert!(matches!(op.state, OperationState::RolledBack | OperationState::Failed), "{:?}", op.state);
    assert_one_release(&rig, "taken port").await;
}

#[tokio::test]
async fn scale_restart_and_stop_go_the_same_way() {
    let rig = rig().await;
    let mut spec = stack("web:1", None, &["worker"]);
    spec.volumes.clear();
    deploy(&rig, spec).await;
    let scaled = run(&rig, &rig.exec, Want::Scale { service: name("worker"), replicas: 3 }).await;
    assert_eq!((scaled.state, scaled.release), (OperationState::Done, Some(2)));
    assert_eq!(rig.engine.serving("shop", "worker").len(), 3);
    run(&rig, &rig.exec, Want::Scale { service: name("worker"), replicas: 1 }).await;
    assert_one_release(&rig, "scaled down").await;
    let stopped = run(&rig, &rig.exec, Want::Stop { remove: false }).await;
    assert_eq!((stopped.state, rig.engine.serving("shop", "web").len()), (OperationState::Done, 0));
    assert!(rig.store.stack(&shop()).await.unwrap().unwrap().stopped);
    let started = run(&rig, &rig.exec, Want::Restart { service: None }).await;
    assert_eq!(started.state, OperationState::Done);
    assert_one_release(&rig, "started again").await;
    let removed = run(&rig, &rig.exec, Want::Stop { remove: true }).await;
    assert_eq!(removed.state, OperationState::Done);
    assert_eq!(rig.engine.container_names(), Vec::<String>::new());
}

#[tokio::test]
async fn another_supervisors_claim_is_respected() {
    let rig = rig().await;
    deploy(&rig, stack("web:1", None, &[])).await;
    let other_dir = TempDir::new().unwrap();
    let store = Store::open(&other_dir.path().join("home"), &other_dir.path().join("memory")).await.unwrap();
    let exec = executor(&rig.engine, &store, None);
    let other = Rig { engine: rig.engine.clone(), store, exec: exec.clone(), _dir: Arc::new(other_dir) };
    let mut spec = stack("web:2", None, &[]);
    spec.services.get_mut("web").unwrap().ports.clear();
    let op = deploy(&other, spec).await;
    assert_eq!(op.state, OperationState::Failed, "preflight saw it");
    assert!(op.message.unwrap().contains("claimed on this engine by another supervisor"));
    assert_one_release(&rig, "the first supervisor's stack").await;
}
