//! The crash matrix: the supervisor stops at every moment of the journal (intent written, effect done, result written) of every kind of operation, the next
//! one takes over, and there is exactly one serving release, never a second writer, no orphan, no open journal.

use super::*;

/// A stack with everything in it: data, a one-shot between, hooks, smoke tests, a stateless service with a port.
fn whole(web: &str, db: &str, job: &str, extra: &[&str]) -> StackSpec {
    let mut spec = stack(web, Some(db), extra);
    let probe = |text: serde_json::Value| serde_json::from_value::<Probe>(text).unwrap();
    let hook = |text: &str| serde_json::from_value::<Hook>(serde_json::json!({"run": [text]})).unwrap();
    let mut migrate = ServiceSpec {
        active: true,
        image: Some(ImageRef::new(job).unwrap()),
        replicas: 1,
        networks: BTreeMap::from([("default".to_owned(), ServiceNetwork::default())]),
        ..Default::default()
    };
    let after = |condition| Dependency { condition, required: true, restart: false };
    migrate.depends_on.insert(name("db"), after(DependencyCondition::ServiceHealthy));
    let front = spec.services.get_mut("web").unwrap();
    front.depends_on.insert(name("migrate"), after(DependencyCondition::ServiceCompletedSuccessfully));
    front.settings.smoke = vec![probe(serde_json::json!({"exec": ["/smoke"]}))];
    front.settings.probes = vec![probe(serde_json::json!({"exec": ["/ready"]}))];
    front.settings.hooks = Hooks { pre: vec![hook("/hook-pre")], post: vec![hook("/hook-post")] };
    spec.services.get_mut("db").unwrap().settings.hooks.pre = vec![hook("/hook-db")];
    spec.services.insert(name("migrate"), migrate);
    spec
}

/// How often each command ran, counted where the engine runs it.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<BTreeMap<String, u32>>>);

impl Runs {
    fn watch(engine: &FakeEngine) -> Self {
        let runs = Self::default();
        let counted = runs.clone();
        engine.on_run(move |spec| {
            let hook = spec.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_HOOK);
            let once = spec.labels.get(labels::SERVICE).map(String::as_str) == Some("migrate");
            let key = match (hook, once) {
                (true, _) => spec.command.clone().unwrap_or_default().join(" "),
                (_, true) => format!("migrate of {}", spec.image),
                (false, false) => return None,
            };
            *counted.0.lock().unwrap().entry(key).or_default() += 1;
            Some(0)
        });
        runs
    }
    fn most(&self, begins: &str) -> u32 {
        self.0.lock().unwrap().iter().filter(|(k, _)| k.starts_with(begins)).map(|(_, n)| *n).max().unwrap_or(0)
    }
}

/// One kind of operation, with what must have come of it.
struct Case<F> {
    before: Vec<StackSpec>,
    want: F,
    /// Releases that may be current afterwards.
    ends_on: &'static [Option<u32>],
}

enum Step {
    Deploy(Box<StackSpec>),
    Rollback(u32),
    Scale(&'static str, u32),
}

async fn wanted(rig: &Rig, step: Step) -> Want {
    match step {
        Step::Deploy(spec) => release_of(rig, *spec).await,
        Step::Rollback(number) => {
            let release = rig.store.release(&shop(), number).await.unwrap().unwrap();
            Want::Release { desired: Box::new(release.spec), images: release.images, content_of: Some(number) }
        }
        Step::Scale(service, replicas) => Want::Scale { service: name(service), replicas },
    }
}

/// Every moment of an update from one stack to another, or of a first deploy; `must_end_on` = the release that serves afterwards whatever happened.
pub(super) async fn crash_everywhere(before: Option<StackSpec>, after: StackSpec, must_end_on: Option<u32>) {
    let ends_on: &[Option<u32>] = match (must_end_on, &before) {
        (Some(_), _) => &[Some(1)],
        (None, Some(_)) => &[Some(1), Some(2)],
        (None, None) => &[None, Some(1)],
    };
    let moments =
        every_moment(Case { before: before.into_iter().collect(), want: || Step::Deploy(Box::new(after.clone())), ends_on }).await;
    assert!(moments > 10, "the deploy wrote more than ten records");
}

/// Runs the case once for every moment, until one is past its end.
async fn every_moment<F: Fn() -> Step>(case: Case<F>) -> u64 {
    let mut k = 1;
    loop {
        let rig = rig().await;
        let runs = Runs::watch(&rig.engine);
        for spec in case.before.clone() {
            let op = deploy(&rig, spec).await;
            assert_eq!(op.state, OperationState::Done, "{:?}", op.message);
        }
        let crashed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = crashed.clone();
        let stop: StopAfter = Arc::new(move |count| {
            let hit = count == k;
            flag.fetch_or(hit, Ordering::SeqCst);
            hit
        });
        let doomed = executor(&rig.engine, &rig.store, Some(stop));
        let want = wanted(&rig, (case.want)()).await;
        let plan = plan_for(&rig, &doomed, want).await;
        let op = doomed.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        ended(&doomed, &op.id).await;
        doomed.close(Duration::from_secs(5)).await;
        assert_eq!(rig.engine.violations(), Vec::<String>::new(), "moment {k}: at the crash itself");
        for id in rig.exec.recover().await.unwrap() {
            ended(&rig.exec, &id).await;
        }
        let end = rig.store.operation(&op.id).await.unwrap().unwrap();
        let context = format!("moment {k}, ended {:?} ({:?})", end.state, end.message);
        assert_one_release(&rig, &context).await;
        let current = rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current);
        assert!(case.ends_on.contains(&current), "{context}: current is {current:?}");
        assert!(runs.most("migrate") <= 1, "{context}: a one-shot ran twice: {:?}", runs.0.lock().unwrap());
        if !crashed.load(Ordering::SeqCst) {
            return k - 1;
        }
        k += 1;
    }
}

#[tokio::test]
async fn a_crash_at_any_moment_of_a_first_deploy_leaves_one_release_or_nothing() {
    let want = || Step::Deploy(Box::new(whole("web:1", "db:1", "job:1", &[])));
    let moments = every_moment(Case { before: vec![], want, ends_on: &[None, Some(1)] }).await;
    assert!(moments > 60, "{moments} moments");
}

#[tokio::test]
async fn a_crash_at_any_moment_of_an_update_that_migrates_leaves_exactly_one_release() {
    let before = vec![whole("web:1", "db:1", "job:1", &["old"])];
    let want = || Step::Deploy(Box::new(whole("web:2", "db:2", "job:2", &["fresh"])));
    let moments = every_moment(Case { before, want, ends_on: &[Some(1), Some(2)] }).await;
    assert!(moments > 90, "{moments} moments");
}

#[tokio::test]
async fn a_crash_at_any_moment_of_a_broken_update_leaves_the_old_release() {
    let safe = |web: &str, db: &str| {
        let mut spec = stack(web, Some(db), &[]);
        spec.services.get_mut("db").unwrap().settings.migrates = Some(false);
        spec
    };
    let before = vec![safe("web:1", "db:1")];
    let want = || {
        let mut spec = stack("web:bad", Some("db:2"), &[]);
        spec.services.get_mut("db").unwrap().settings.migrates = Some(false);
        Step::Deploy(Box::new(spec))
    };
    every_moment(Case { before, want, ends_on: &[Some(1)] }).await;
}

#[tokio::test]
async fn a_crash_at_any_moment_of_an_update_whose_smoke_test_fails_leaves_the_old_release() {
    let want = || {
        let mut spec = stack("web:2", Some("db:1"), &[]);
        let web = spec.services.get_mut("web").unwrap();
        web.settings.smoke = vec![serde_json::from_value(serde_json::json!({"url": "http://127.0.0.1:1/"})).unwrap()];
        Step::Deploy(Box::new(spec))
    };
    every_moment(Case { before: vec![stack("web:1", Some("db:1"), &[])], want, ends_on: &[Some(1)] }).await;
}

#[tokio::test]
async fn a_crash_at_any_moment_of_a_rollback_leaves_exactly_one_release() {
    let before = vec![whole("web:1", "db:1", "job:1", &[]), whole("web:2", "db:1", "job:1", &[])];
    every_moment(Case { before, want: || Step::Rollback(1), ends_on: &[Some(2), Some(3)] }).await;
}

#[tokio::test]
async fn a_crash_at_any_moment_of_scaling_leaves_one_count() {
    let mut spec = stack("web:1", None, &["worker"]);
    spec.volumes.clear();
    let up = Case { before: vec![spec.clone()], want: || Step::Scale("worker", 3), ends_on: &[Some(1), Some(2)] };
    every_moment(up).await;
    let mut three = spec;
    three.services.get_mut("worker").unwrap().replicas = 3;
    every_moment(Case { before: vec![three], want: || Step::Scale("worker", 1), ends_on: &[Some(1), Some(2)] }).await;
}
