//! Planning as a table: what is there, what is wanted, what comes of it.

use super::*;
use crate::model::ids::{EngineName, ImageRef};
use crate::model::spec::{Dependency, DependencyCondition, MountKind, MountSpec, Restart};

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
    MountSpec { source: Some("data".into()), ..MountSpec::new(MountKind::Volume, "/data", "") }
}
fn stack(services: Vec<(&str, ServiceSpec)>) -> StackSpec {
    StackSpec { services: services.into_iter().map(|(n, s)| (name(n), s)).collect(), ..StackSpec::new(StackName::new("shop").unwrap()) }
}
fn images(spec: &StackSpec) -> BTreeMap<ServiceName, ImageIdentity> {
    let identity = |s: &ServiceSpec| {
        let reference = s.image.clone().unwrap();
        ImageIdentity { id: Some(format!("sha256:{}", digest(reference.as_str().as_bytes()))), reference, repo_digest: None }
    };
    spec.services.iter().map(|(n, s)| (n.clone(), identity(s))).collect()
}
fn release(spec: &StackSpec) -> Release {
    Release { images: images(spec), ..Release::sample(spec.clone()) }
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
            image_id: id,
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            restart_policy: "always".into(),
            ..ContainerDetail::running(&format!("id-{service}"), &format!("shop-{service}-1"), s.image.as_ref().unwrap().as_str())
        }
    };
    Observed { containers: spec.services.iter().map(container).collect(), networks: vec![], volumes: vec![], ..Observed::default() }
}

fn make(want: Want, observed: &Observed, current: Option<&Release>) -> Result<Plan, PlanError> {
    plan(&PlanInput {
        id: PlanId::new("plan-1").unwrap(),
        stack: StackName::new("shop").unwrap(),
        environment: "development".into(),
        want,
        observed,
        current,
        anew: &Default::default(),
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

#[test]
fn one_service_made_anew_is_the_same_content_under_a_new_number_and_touches_no_other() {
    let spec = stack(vec![("web", service("web:1")), ("api", service("api:1"))]);
    let anew = || Want::Recreate { service: name("web") };
    let plan = make(anew(), &running(&spec), Some(&release(&spec))).unwrap();
    assert_eq!((plan.from_release, plan.to_release, plan.content_of), (Some(1), 2, Some(1)));
    assert_eq!(summary(&plan), [("api".into(), Action::Unchanged, Strategy::InPlace), ("web".into(), Action::Update, Strategy::Handover)]);
    // A container that is gone is made, whatever else runs.
    let mut gone = running(&spec);
    gone.containers.retain(|c| c.name != "shop-web-1");
    let plan = make(anew(), &gone, Some(&release(&spec))).unwrap();
    assert_eq!(summary(&plan)[1], ("web".into(), Action::Create, Strategy::Start));
    assert!(matches!(make(Want::Recreate { service: name("nope") }, &gone, Some(&release(&spec))), Err(PlanError::NoService { .. })));
}

#[test]
fn one_service_made_anew_or_scaled_does_not_mend_others_nor_go_back_over_newer_data() {
    let spec = stack(vec![("web", service("web:1")), ("api", service("api:1"))]);
    let mut kept = running(&spec);
    let api = kept.containers.iter_mut().find(|c| c.name == "shop-api-1").unwrap();
    api.labels.insert(labels::SPEC.into(), "of the release that failed".into());
    api.labels.insert(labels::RELEASE.into(), "2".into());
    for want in [Want::Recreate { service: name("web") }, Want::Scale { service: name("web"), replicas: 2 }] {
        let plan = make(want, &kept, Some(&release(&spec))).unwrap();
        assert_eq!((summary(&plan)[0].1, plan.only.clone()), (Action::Unchanged, Some(name("web"))));
    }
    for want in [Want::Recreate { service: name("api") }, Want::Scale { service: name("api"), replicas: 2 }] {
        let refused = make(want, &kept, Some(&release(&spec))).unwrap_err().to_string();
        assert!(refused.contains("release 2") && refused.contains("`deploy` or `rollback`"), "{refused}");
    }
}

#[test]
fn a_service_with_no_copies_is_nothing_to_do_when_none_runs() {
    let spec = stack(vec![("idle", ServiceSpec { replicas: 0, ..service("web:1") }), ("web", service("web:1"))]);
    let mut observed = running(&spec);
    observed.containers.retain(|c| c.name != "shop-idle-1");
    let plan = make(wanted(&spec), &observed, Some(&release(&spec))).unwrap();
    assert!(plan.is_noop(), "{:?}", summary(&plan));
}

#[test]
fn a_one_shot_runs_again_only_when_it_or_what_it_waits_for_changed() {
    let mut job = service("job:1");
    job.restart = Restart::No;
    let wait = |condition| Dependency { condition, required: true, restart: false };
    job.depends_on.insert(name("db"), wait(DependencyCondition::ServiceStarted));
    let mut web = service("web:1");
    web.depends_on.insert(name("job"), wait(DependencyCondition::ServiceCompletedSuccessfully));
    let spec = stack(vec![("db", service("db:1")), ("job", job), ("web", web)]);
    let (mut observed, current) = (running(&spec), release(&spec));
    observed.once.insert(name("job"), once::key(&spec, &name("job"), &images(&spec), &digest).unwrap());
    let job_of = |spec: &StackSpec, observed: &Observed| {
        let plan = make(wanted(spec), observed, Some(&current)).unwrap();
        plan.changes.into_iter().find(|c| c.service.as_str() == "job").unwrap()
    };
    assert_eq!(job_of(&spec, &observed).action, Action::Unchanged);
    observed.containers.retain(|c| c.name != "shop-job-1");
    assert_eq!(job_of(&spec, &observed).action, Action::Unchanged, "its container is no witness that is needed");
    let mut newer = spec.clone();
    newer.services.get_mut("db").unwrap().image = Some(ImageRef::new("db:2").unwrap());
    let change = job_of(&newer, &observed);
    assert_eq!(
        (change.action, change.strategy, change.diff[0].to.as_deref()),
        (Action::Create, Strategy::RunOnce, Some("what it waits for changed"))
    );
    let mut with_data = spec.clone();
    with_data.services.get_mut("db").unwrap().mounts = vec![data_mount()];
    with_data.volumes.insert("data".into(), crate::model::spec::VolumeSpec { name: "shop_data".into(), ..Default::default() });
    observed.once.insert(name("job"), once::key(&with_data, &name("job"), &images(&with_data), &digest).unwrap());
    assert_eq!(job_of(&with_data, &observed).diff[0].to.as_deref(), Some("its data is new"), "the volume it ran on is gone");
    observed.volumes.push("shop_data".into());
    assert_eq!(job_of(&with_data, &observed).action, Action::Unchanged);
}

#[test]
fn a_release_migrates_by_its_word_by_a_one_shot_beside_data_and_by_a_new_version_on_a_volume() {
    let mut db = service("db:1");
    db.mounts = vec![data_mount()];
    let spec = stack(vec![("db", db), ("web", service("web:1"))]);
    let (observed, current) = (running(&spec), release(&spec));
    let migrates = |spec: &StackSpec, current: Option<&Release>| make(wanted(spec), &observed, current).unwrap().migrates;
    let names = |m: BTreeMap<ServiceName, String>| m.into_keys().map(|n| n.to_string()).collect::<Vec<_>>();
    let mut next = spec.clone();
    next.services.get_mut("db").unwrap().image = Some(ImageRef::new("db:2").unwrap());
    next.services.get_mut("web").unwrap().image = Some(ImageRef::new("web:2").unwrap());
    assert_eq!(
        migrates(&next, Some(&current)),
        BTreeMap::from([(name("db"), "it writes a volume and its image goes from 1 to 2".to_owned())])
    );
    assert_eq!(migrates(&next, None), BTreeMap::new(), "a first release has nothing to go back to");
    next.services.get_mut("db").unwrap().settings.migrates = Some(false);
    assert_eq!(names(migrates(&next, Some(&current))), Vec::<String>::new());
    next.settings.migrates = Some(true);
    assert_eq!(names(migrates(&next, Some(&current))), ["web"], "the service's own word goes before the stack's");
    let mut with_job = spec.clone();
    let mut job = service("job:1");
    job.depends_on.insert(name("db"), Dependency { condition: DependencyCondition::ServiceHealthy, required: true, restart: false });
    let after = Dependency { condition: DependencyCondition::ServiceCompletedSuccessfully, required: true, restart: false };
    with_job.services.get_mut("web").unwrap().depends_on.insert(name("job"), after);
    with_job.services.insert(name("job"), job);
    assert_eq!(names(migrates(&with_job, Some(&current))), ["job"]);
}

#[test]
fn drift_of_an_unchanged_file_is_shown_with_its_reason() {
    let spec = stack(vec![("web", service("web:1"))]);
    let (observed, current) = (running(&spec), release(&spec));
    let line = |observed: &Observed| {
        let plan = make(wanted(&spec), observed, Some(&current)).unwrap();
        let c = &plan.changes[0];
        (
            c.action,
            c.diff.first().map(|l| format!("{}: {} -> {}", l.path, l.from.as_deref().unwrap_or("-"), l.to.as_deref().unwrap_or("-"))),
        )
    };
    assert_eq!(line(&observed), (Action::Unchanged, None));
    let changed = |f: &dyn Fn(&mut ContainerDetail)| {
        let mut o = observed.clone();
        f(&mut o.containers[0]);
        o
    };
    assert_eq!(line(&Observed::default()), (Action::Create, Some("containers: missing -> 1".into())));
    assert_eq!(line(&changed(&|c| c.state = RunState::Exited)), (Action::Restart, Some("state: stopped -> running".into())));
    assert_eq!(line(&changed(&|c| c.restart_policy = "no".into())), (Action::Restart, Some("restart: no -> always".into())));
    let foreign = changed(&|c| {
        c.labels.insert(labels::SPEC.into(), "other".into());
    });
    assert_eq!(line(&foreign), (Action::Update, Some("containers: differ from the release -> as the release says".into())));
}

#[test]
fn a_change_of_what_the_file_says_beside_containers_makes_a_release_that_touches_none() {
    let spec = stack(vec![("web", service("web:1"))]);
    let (observed, current) = (running(&spec), release(&spec));
    let mut next = spec.clone();
    next.services.get_mut("web").unwrap().settings.heal = Some(crate::model::spec::HealMode::Off);
    let plan = make(wanted(&next), &observed, Some(&current)).unwrap();
    assert_eq!((plan.text_only, plan.is_noop(), plan.to_release), (true, false, 2));
    assert_eq!(summary(&plan), [("web".to_owned(), Action::Unchanged, Strategy::InPlace)]);
    let mut noted = spec;
    noted.unsupported.push(crate::model::spec::Unsupported { path: "x".into(), reason: "y".into() });
    assert!(make(wanted(&noted), &observed, Some(&current)).unwrap().is_noop(), "a note is no text");
}
