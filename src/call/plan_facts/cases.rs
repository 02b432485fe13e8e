//! The example policy's cases, each laid out on disk and taken through the loader, the facts and the gate that a call goes through.

use super::super::compose_files;
use super::super::prepare::Source;
use super::*;
use crate::compose::{self, LoadInput};
use crate::gate;
use crate::model::config::{Settings, StackSettingsEntry};
use crate::model::ids::EngineName;
use crate::model::observed::{HealthState, RunState};
use crate::model::policy::{Policy, Quotas, RuleLevel};
use crate::model::verdict::Verdict;
use chrono::{DateTime, NaiveDate};
use serde::Deserialize;

const PROJECT: &str = "/srv/stacks/shop";

#[derive(Deserialize)]
struct Suite {
    context: Context,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Context {
    env: String,
    allowed_registries: Vec<String>,
    bind_roots_allow: Vec<String>,
    bind_roots_approval: Vec<String>,
    runtimes_allow: Vec<String>,
    runtimes_approval: Vec<String>,
    allow_build: bool,
    declared_vars: BTreeMap<String, String>,
    supervisor_env: BTreeMap<String, String>,
    supervisor_containers: BTreeSet<String>,
    other_stacks: BTreeMap<String, Neighbour>,
    networks_granted: Vec<String>,
    quotas: Quotas,
}

#[derive(Deserialize)]
struct Neighbour {
    volumes: Vec<String>,
    networks: Vec<String>,
    containers: Vec<String>,
    hostnames: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    expected: String,
    rules: BTreeSet<String>,
    compose: String,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    symlinks: BTreeMap<String, String>,
}

fn policy(c: &Context) -> Policy {
    let mut policy = Policy {
        allowed_registries: c.allowed_registries.clone(),
        bind_roots_allow: c.bind_roots_allow.clone(),
        bind_roots_approval: c.bind_roots_approval.clone(),
        runtimes_allow: c.runtimes_allow.clone(),
        runtimes_approval: c.runtimes_approval.clone(),
        allow_build: c.allow_build,
        networks_granted: c.networks_granted.clone(),
        quotas: c.quotas.clone(),
        ..Policy::default()
    };
    // The levels that are off where the cases are judged.
    policy.rules.extend(["health.missing", "limits.missing"].map(|r| (r.to_owned(), RuleLevel::Off)));
    policy
}

/// The engine of the context: what belongs to the other stacks carries our labels.
fn world(c: &Context, resolved: BTreeMap<String, BindFact>) -> World {
    let mut world = World {
        instance: "home".into(),
        volumes: vec![],
        networks: vec![],
        containers: vec![],
        images: vec![],
        supervisor: Supervisor { containers: c.supervisor_containers.clone(), ..Supervisor::default() },
        supervisor_env: c.supervisor_env.keys().cloned().collect(),
        resolved,
    };
    let id = |name: &str| EngineName::new(name).unwrap();
    for (stack, n) in &c.other_stacks {
        let ours = BTreeMap::from([(labels::INSTANCE.to_owned(), "home".to_owned()), (labels::STACK.to_owned(), stack.clone())]);
        world.volumes.extend(n.volumes.iter().map(|v| VolumeInfo {
            name: id(v),
            driver: "local".into(),
            mountpoint: String::new(),
            labels: ours.clone(),
            options: BTreeMap::new(),
            created: None,
        }));
        world.networks.extend(n.networks.iter().map(|v| NetworkInfo {
            id: id(v),
            name: v.clone(),
            driver: "bridge".into(),
            internal: false,
            labels: ours.clone(),
            options: BTreeMap::new(),
            ipv6: false,
            attachable: false,
            subnets: vec![],
            pools: vec![],
            ipam_driver: "default".into(),
            containers: vec![],
        }));
        for container in &n.containers {
            let mut labels = ours.clone();
            labels
                .extend(n.hostnames.iter().map(|h| (format!("traefik.http.routers.{h}.rule"), format!("Host(`{h}`) && PathPrefix(`/`)"))));
            world.containers.push(ContainerSummary {
                id: id(container),
                name: container.clone(),
                image: String::new(),
                image_id: String::new(),
                state: RunState::Running,
                health: HealthState::None,
                status: String::new(),
                labels,
                ports: vec![],
                created: DateTime::UNIX_EPOCH,
            });
        }
    }
    world
}

/// Puts a case's files and links below `root`, which stands for the host's `/`.
fn lay_out(case: &Case, root: &Path) {
    let place = |path: &str| root.join(PROJECT.trim_start_matches('/')).join(path).components().collect::<PathBuf>();
    let on_disk = |path: &str| if path.starts_with('/') { root.join(path.trim_start_matches('/')) } else { place(path) };
    let write = |path: &str, text: &str| {
        let path = on_disk(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("compose.yaml", &case.compose);
    case.files.iter().for_each(|(path, text)| write(path, text));
    for (link, target) in &case.symlinks {
        let link = on_disk(link);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, link).unwrap();
    }
}

/// Verdict and rules of a case.
fn judge(case: &Case, context: &Context) -> (Verdict, BTreeSet<String>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    lay_out(case, &root);
    let stack = StackName::new("shop").unwrap();
    let entry = StackSettingsEntry { dir: PROJECT.into(), ..StackSettingsEntry::default() };
    let config = Config {
        settings: Settings { stacks: BTreeMap::from([(stack.clone(), entry)]), ..Settings::default() },
        host_name: "host".into(),
        path_map: Some(BTreeMap::from([(root, PathBuf::from("/"))])),
        ..Config::new("/var/lib/dockwarden".into(), "/etc/dockwarden".into(), "/var/lib/dockwarden/memory".into())
    };
    let policy = policy(context);
    let source = Source { variables: context.declared_vars.clone(), ..Source::registered(&stack) };
    let bundle = compose_files::bundle(&config, &source).unwrap().unwrap();
    let input = LoadInput {
        name: stack.clone(),
        project_dir: &bundle.project_dir,
        sources: bundle.sources.clone(),
        variables: &bundle.variables,
        profiles: &bundle.profiles,
        files: &bundle.side,
        quotas: &policy.quotas,
    };
    let loaded = match compose::load_all(&input) {
        Ok(loaded) => loaded,
        Err(errors) => {
            println!("{}: {errors}", case.id);
            return (Verdict::Deny, errors.0.iter().filter_map(|e| e.rule).map(str::to_owned).collect());
        }
    };
    let texts = Texts::of(&loaded, &bundle);
    let resolved = resolve_all(&config, paths::named(&loaded.spec, Some(PROJECT), &policy));
    let images = BTreeMap::new();
    let subject = Subject { stack: &stack, images: &images, project_dir: Some(PROJECT), environment: &context.env, own: BTreeSet::new() };
    let facts = assemble(subject, world(context, resolved), &texts, &config);
    let findings = gate::plan::judge(&loaded.spec, &facts, &policy, NaiveDate::from_ymd_opt(2026, 6, 1).unwrap());
    (gate::plan::strictest(&findings), findings.into_iter().filter(|f| f.verdict > Verdict::Allow).map(|f| f.rule).collect())
}

/// The file stays where it is; its cases are a sample of what agents write, so the counts are pinned and not only bounded. A clone has no such
/// file beside it: there the rules' own tests have to do.
#[test]
fn the_example_policys_cases_get_their_verdicts() {
    let Some(path) = crate::data_tests::beside("DOCKWARDEN_POLICY_CASES", "policy/cases.json") else { return };
    let text = std::fs::read_to_string(path).expect("the cases are where DOCKWARDEN_POLICY_CASES says");
    let suite: Suite = serde_json::from_str(&text).unwrap();
    let (mut false_allows, mut false_denies, mut exact) = (Vec::new(), Vec::new(), 0);
    for case in &suite.cases {
        let expected = match case.expected.as_str() {
            "allow" => Verdict::Allow,
            "warn" => Verdict::Warn,
            "needs-approval" => Verdict::Approval,
            "deny" => Verdict::Deny,
            other => panic!("{}: unknown verdict {other:?}", case.id),
        };
        let (verdict, rules) = judge(case, &suite.context);
        let same = verdict == expected && rules == case.rules;
        exact += usize::from(same);
        if !same {
            println!("{}: expected {expected:?} by {:?}, got {verdict:?} by {rules:?}", case.id, case.rules);
        }
        if verdict < expected {
            false_allows.push(case.id.as_str());
        }
        if expected == Verdict::Allow && verdict > expected {
            false_denies.push(case.id.as_str());
        }
    }
    let all = suite.cases.len();
    println!("{all} cases: {} false allows, {} false denies of benign ones, {exact} exact", false_allows.len(), false_denies.len());
    assert_eq!((false_allows, false_denies, exact), (Vec::new(), Vec::new(), all));
}
