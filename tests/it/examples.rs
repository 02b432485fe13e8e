//! The example stacks are what a stranger copies first: they pass our own loader, and our gate with the shipped policy and what their READMEs say to
//! grant. Deliberately absent: running them; their images come from registries. `examples/hello` is run by the demo and the journeys.

use chrono::NaiveDate;
use dockwarden::app::rules;
use dockwarden::compose::{self, Files, LoadInput, ReadError, Source};
use dockwarden::config;
use dockwarden::gate::plan::{self, BindFact, PathKind, PlanFacts};
use dockwarden::gate::policy;
use dockwarden::model::ids::StackName;
use dockwarden::model::spec::StackSpec;
use dockwarden::model::verdict::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// An example's directory as its user has it: with the secrets he put there.
struct Dir(PathBuf);

impl Files for Dir {
    fn read(&self, path: &str) -> Result<Option<String>, ReadError> {
        let path = self.0.join(path);
        if path.starts_with(self.0.join("secrets")) {
            return Ok(Some("a secret".into()));
        }
        Ok(std::fs::read_to_string(path).ok())
    }
}

fn load(dir: &str, file: &str) -> (StackSpec, BTreeMap<String, String>) {
    let dir = tree(dir);
    let example = std::fs::read_to_string(dir.join(".env.example")).unwrap_or_default();
    let variables = compose::dotenv(&example, ".env.example", &BTreeMap::new()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let project_dir = dir.display().to_string();
    let input = LoadInput {
        name: StackName::new("example").expect("a name"),
        project_dir: &project_dir,
        sources: vec![Source { path: file.into(), text: text(&dir.join(file)) }],
        variables: &variables,
        profiles: &["*".to_owned()],
        files: &Dir(dir.clone()),
        quotas: &dockwarden::model::policy::Quotas::default(),
    };
    let spec = compose::load(&input).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    (spec, variables)
}

/// The rules an example breaks under the shipped policy with further registries, in an environment.
fn findings(dir: &str, registries: &[&str], environment: &str) -> BTreeSet<(String, Verdict)> {
    let (spec, variables) = load(dir, "compose.yaml");
    let project_dir = tree(dir).display().to_string();
    let mut policy = policy::parse("policy.toml", rules::POLICY).expect("the shipped policy is sound");
    policy.allowed_registries.extend(registries.iter().map(|r| (*r).to_owned()));
    let fact = |path: String| {
        let kind = if Path::new(&path).is_dir() { PathKind::Directory } else { PathKind::File };
        // Everything an example binds is beside it; only secrets are the user's.
        let there = Path::new(&path).exists() || path.contains("/secrets/");
        assert!(there, "{dir} names {path}, which is not there");
        (path.clone(), BindFact { real: path, exists: true, kind: Some(kind) })
    };
    let facts = PlanFacts {
        resolved: plan::paths::named(&spec, Some(&project_dir), &policy).into_iter().map(fact).collect(),
        project_dir: Some(project_dir),
        environment: environment.into(),
        local_images: BTreeSet::from(["dockwarden-hello:1".to_owned()]),
        declared_vars: variables.into_keys().collect(),
        ..PlanFacts::default()
    };
    let today = NaiveDate::from_ymd_opt(2026, 1, 1).expect("a day");
    plan::judge(&spec, &facts, &policy, today).into_iter().map(|f| (f.rule, f.verdict)).collect()
}

#[test]
fn the_example_stacks_pass_the_loader_and_the_gate() {
    let warned = |rules: &[&str]| rules.iter().map(|r| ((*r).to_owned(), Verdict::Warn)).collect::<BTreeSet<_>>();
    assert_eq!(findings("examples/hello", &[], "development"), warned(&["limits.missing"]));
    assert_eq!(findings("examples/monitoring", &["docker.io/prom", "docker.io/grafana"], "development"), warned(&["hosts.gateway"]));
    assert_eq!(findings("examples/web", &["ghcr.io/acme"], "staging"), warned(&["hook.command"]));
    // What the README says of production, and no denial.
    let production = findings("examples/web", &["ghcr.io/acme"], "production");
    assert!(production.contains(&("image.nodigest_prod".to_owned(), Verdict::Approval)), "{production:?}");
    assert!(production.iter().all(|(_, verdict)| *verdict < Verdict::Deny), "{production:?}");
}

#[test]
fn the_examples_need_the_registries_their_readmes_name() {
    for dir in ["examples/monitoring", "examples/web"] {
        let denied: Vec<_> = findings(dir, &[], "development").into_iter().filter(|(_, verdict)| *verdict == Verdict::Deny).collect();
        assert_eq!(denied, [("image.unlisted".to_owned(), Verdict::Deny)], "{dir}");
    }
}

#[test]
fn the_development_container_is_a_file_we_can_read_and_its_service_is_there() {
    let (spec, _) = load(".devcontainer", "compose.yaml");
    let json: serde_json::Value = serde_json::from_str(&text(&tree(".devcontainer/devcontainer.json"))).expect("JSON");
    let services: Vec<&str> = spec.services.keys().map(|k| k.as_str()).collect();
    assert!(services.contains(&json["service"].as_str().expect("a service")), "{services:?}");
    assert_eq!(services, ["postgres", "qdrant", "redis", "workspace"]);
    assert_eq!(json["dockerComposeFile"], "compose.yaml");
}

/// `examples/dockwarden.toml` as somebody leaves it who takes the comments off every key.
#[test]
fn the_example_configuration_has_every_key_and_loads_with_all_of_them() {
    let example = text(&tree("examples/dockwarden.toml"));
    let is_setting = |line: &str| {
        let word: String = line.chars().take_while(|c| c.is_ascii_lowercase() || "_.".contains(*c)).collect();
        line.starts_with('[') || (!word.is_empty() && line[word.len()..].starts_with(" = "))
    };
    let on: Vec<&str> = example.lines().filter_map(|l| l.strip_prefix("# ")).filter(|l| is_setting(l)).collect();
    let settings = config::parse(&on.join("\n"), "examples/dockwarden.toml").unwrap_or_else(|e| panic!("{e}"));
    let of = |value: serde_json::Value| value.as_object().expect("a table").keys().cloned().collect::<BTreeSet<_>>();
    let every = of(serde_json::to_value(dockwarden::model::config::Settings::default()).expect("serialises"));
    let named = |key: &String| {
        let starts = [format!("{key} = "), format!("[{key}"), format!("[[{key}]]")];
        on.iter().any(|l| starts.iter().any(|s| l.starts_with(s)))
    };
    let missing: Vec<_> = every.iter().filter(|k| !named(k)).collect();
    assert!(missing.is_empty(), "examples/dockwarden.toml lacks {missing:?}");
    assert_eq!((settings.triggers.len(), settings.stacks.len(), settings.models.named.len()), (2, 1, 2));
    let document = text(&tree("docs/configuration.md"));
    let unnamed: Vec<_> =
        every.iter().filter(|k| !document.contains(&format!("`{k}")) && !document.contains(&format!("`[[{k}]]"))).collect();
    assert!(unnamed.is_empty(), "docs/configuration.md lacks {unnamed:?}");
}
