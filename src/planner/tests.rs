//! Planning as a table: what is there, what is wanted, what comes of it.

use super::*;
use crate::model::ids::{EngineName, ImageRef};
use crate::model::spec::{Dependency, MountKind, MountSpec};

fn name(s: &str) -> ServiceName {
    ServiceName::new(s).unwrap()
}
fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
fn hash(value: &str) -> String {
    digest(value.as_bytes())[..6].to_owned()
}

fn service(image: &str) -> ServiceSpec {
    ServiceSpec { active: true, image: Some(ImageRef::new(image).unwrap()), replicas: 1, restart: Restart::Always, ..Default::default() }
}
fn data_mount() -> MountSpec {
    serde_json::from_value(
        json!({"kind": "volume", "source": "data", "target": "/data", "read_only": false, "propagation": null, "selinux": null,
        "create_host_path": false, "nocopy": false, "subpath": null, "tmpfs_size": null, "tmpfs_mode": null}),
    )
    .unwrap()
}
fn stack(services: Vec<(&str, ServiceSpec)>) -> StackSpec {
    StackSpec {
        name: StackName::new("shop").unwrap(),
        services: services.into_iter().map(|(n, s)| (name(n), s)).collect(),
        networks: BTreeMap::new(),
        volumes: BTreeMap::new(),
        configs: BTreeMap::new(),
        secrets: BTreeMap::new(),
        settings: Default::default(),
        extensions: Default::default(),
        unsupported: vec![],
    }
}
fn images(spec: &StackSpec) -> BTreeMap<ServiceName, ImageIdentity> {
    let identity = |s: &ServiceSpec| {
        let reference = s.image.clone().unwrap();
        ImageIdentity { id: Some(format!("sha256:{}", digest(reference.as_str().as_bytes()))), reference, repo_digest: None }
    };
    spec.services.iter().map(|(n, s)| (n.clone(), identity(s))).collect()
}
fn release(spec: &StackSpec) -> Release {
    Release {
        stack: spec.name.clone(),
        number: 1,
        state: crate::model::release::ReleaseState::Good,
        environment: "development".into(),
        spec: spec.clone(),
        images: images(spec),
        agent: "a".into(),
        operation: OperationId::new("op-1").unwrap(),
        reason: None,
        content_of: None,
        project_dir: None,
        git: None,
        created_at: DateTime::UNIX_EPOCH,
    }
}
/// The containers a release would have.
fn running(spec: &StackSpec) -> Observed {
    let images = images(spec);
    let container = |(service, s): (&ServiceName, &ServiceSpec)| {
        let id = images[service].id.clone().unwrap();
        let labels = [
            (labels::SERVICE, service.to_string()),
            (labels::ROLE, labels::ROLE_SERVING.into()),
            (labels::NUMBER, "1".into()),
            (labels::SPEC, hash::spec_hash(spec, service, &id, &digest)),
        ];
        ContainerDetail {
            id: EngineName::new(format!("id-{service}")).unwrap(),
            name: format!("shop-{service}-1"),
            image: s.image.clone().unwrap().to_string(),
            image_id: id,
            state: RunState::Running,
            health: HealthState::None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            restart_count: 0,
            started_at: None,
            finished_at: None,
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            restart_policy: "always".into(),
            networks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            mounts: vec![],
            ports: vec![],
            last_health_output: None,
            pid: 1,
            health_test: None,
        }
    };
    Observed { containers: spec.services.iter().map(container).collect(), networks: vec![], volumes: vec![] }
}

fn make(want: Want, observed: &Observed, current: Option<&Release>) -> Result<Plan, PlanError> {
    plan(&PlanInput {
        id: PlanId::new("plan-1").unwrap(),
        stack: StackName::new("shop").unwrap(),
        environment: "development".into(),
        want,
        observed,
        current,
        next_release: current.map_or(1, |r| r.number + 1),
        policy_version: "1",
        project_dir: None,
        git: None,
        literal_keys: &["LOG_LEVEL".into()],
        hash: &hash,
        digest: &digest,
        now: DateTime::UNIX_EPOCH,
    })
}
fn wanted(spec: &StackSpec) -> Want {
    Want::Release { desired: Box::new(spec.clone()), images: images(spec), content_of: None }
}
fn summary(plan: &Plan) -> Vec<(String, Action, Strategy)> {
    plan.changes.iter().map(|c| (c.service.to_string(), c.action, c.strategy)).collect()
}

#[test]
fn the_same_stack_is_nothing_to_do_and_keeps_its_release_number() {
    let spec = stack(vec![("web", service("web:1"))]);
    let plan = make(wanted(&spec), &running(&spec), Some(&release(&spec))).unwrap();
    assert_eq!((plan.is_noop(), plan.to_release), (true, 1));
}

#[test]
fn strategies_follow_the_nature_of_the_service() {
    let mut old_db = service("db:1");
    old_db.mounts = vec![data_mount()];
    let old = stack(vec![("db", old_db.clone()), ("gone", service("x:1")), ("web", service("web:1"))]);
    let new_db = ServiceSpec { image: Some(ImageRef::new("db:2").unwrap()), ..old_db };
    let new = stack(vec![("db", new_db), ("fresh", service("y:1")), ("web", service("web:2"))]);
    let plan = make(wanted(&new), &running(&old), Some(&release(&old))).unwrap();
    assert_eq!(
        summary(&plan),
        vec![
            ("db".into(), Action::Update, Strategy::Recreate),
            ("fresh".into(), Action::Create, Strategy::Start),
            ("web".into(), Action::Update, Strategy::Handover),
            ("gone".into(), Action::Remove, Strategy::InPlace),
        ]
    );
    assert_eq!((plan.from_release, plan.to_release), (Some(1), 2));
}

#[test]
fn a_service_that_writes_a_volume_of_its_image_is_recreated_too() {
    let old = stack(vec![("db", service("db:1"))]);
    let mut observed = running(&old);
    observed.containers[0].mounts =
        vec![MountInfo { kind: "volume".into(), name: Some("anon".into()), source: "/x".into(), target: "/data".into(), writable: true }];
    let new = stack(vec![("db", service("db:2"))]);
    let plan = make(wanted(&new), &observed, Some(&release(&old))).unwrap();
    assert_eq!(summary(&plan), vec![("db".into(), Action::Update, Strategy::Recreate)]);
}

#[test]
fn a_diff_tells_that_a_value_changed_and_never_the_value() {
    let with = |token: &str, level: &str| {
        let mut s = service("web:1");
        s.environment = BTreeMap::from([("TOKEN".into(), Some(token.into())), ("LOG_LEVEL".into(), Some(level.into()))]);
        stack(vec![("web", s)])
    };
    let (old, new) = (with("hunter2", "info"), with("correct-horse", "debug"));
    let plan = make(wanted(&new), &running(&old), Some(&release(&old))).unwrap();
    let line = |path: &str, from: &str, to: &str| DiffLine { path: path.into(), from: Some(from.into()), to: Some(to.into()) };
    assert_eq!(
        plan.changes[0].diff,
        vec![
            line("environment.LOG_LEVEL", "info", "debug"),
            line("environment.TOKEN", &format!("set ({})", hash("hunter2")), &format!("changed ({})", hash("correct-horse"))),
        ]
    );
}

#[test]
fn levels_put_dependencies_first_and_name_a_ring() {
    let on = |s: &str| {
        BTreeMap::from([(name(s), Dependency { condition: DependencyCondition::ServiceStarted, required: true, restart: false })])
    };
    let mut spec = stack(vec![("a", service("x:1")), ("b", service("x:1")), ("c", service("x:1"))]);
    spec.services.get_mut("a").unwrap().depends_on = on("b");
    spec.services.get_mut("b").unwrap().depends_on = on("c");
    assert_eq!(levels::levels(&spec).unwrap(), vec![vec![name("c")], vec![name("b")], vec![name("a")]]);
    spec.services.get_mut("c").unwrap().depends_on = on("a");
    assert_eq!(levels::levels(&spec), Err(PlanError::Cycle("a -> b -> c".into())));
}

#[test]
fn what_writes_data_or_owns_a_port_cannot_be_scaled() {
    let mut db = service("db:1");
    db.mounts = vec![data_mount()];
    let spec = stack(vec![("db", db), ("web", service("web:1"))]);
    let scale = |service: &str| make(Want::Scale { service: name(service), replicas: 3 }, &running(&spec), Some(&release(&spec)));
    assert!(matches!(scale("db"), Err(PlanError::Impossible(_))));
    assert_eq!(summary(&scale("web").unwrap())[1], ("web".into(), Action::Scale, Strategy::InPlace));
    assert!(matches!(scale("nope"), Err(PlanError::NoService { .. })));
}

#[test]
fn the_digest_covers_content_and_world_but_not_ids_health_or_time() {
    let spec = stack(vec![("web", service("web:1"))]);
    let (observed, current) = (running(&spec), release(&spec));
    let next = stack(vec![("web", service("web:2"))]);
    let base = make(wanted(&next), &observed, Some(&current)).unwrap();
    let mut healed = observed.clone();
    healed.containers[0].id = EngineName::new("another").unwrap();
    healed.containers[0].health = HealthState::Unhealthy;
    assert_eq!(make(wanted(&next), &healed, Some(&current)).unwrap().digest, base.digest);
    let mut moved = observed;
    moved.volumes.push("shop_data".into());
    assert_ne!(make(wanted(&next), &moved, Some(&current)).unwrap().digest, base.digest);
}

#[test]
fn mount_kinds_decide_who_is_a_single_writer() {
    let mut spec = service("x:1");
    assert!(!spec.single_writer());
    spec.mounts = vec![data_mount()];
    assert!(spec.single_writer());
    spec.mounts[0].read_only = true;
    assert!(!spec.single_writer());
    spec.mounts[0].read_only = false;
    spec.mounts[0].kind = MountKind::Tmpfs;
    assert!(!spec.single_writer());
    spec.mounts[0].kind = MountKind::Bind;
    spec.settings.concurrent = true;
    assert!(!spec.single_writer());
}
