//! Agents, policy and prompts: read from the configuration directory, else those shipped in the binary; read again when a file changes.
//! A faulty change keeps what is in force, and says so in the log and the audit. Deliberately absent: parsing and checking (`gate`).

use crate::adapters::socket;
use crate::call::House;
use crate::gate::approvers;
use crate::gate::prompt::parse_prompt;
use crate::gate::runbook;
use crate::gate::{LoadProblem, Rulebook};
use crate::model::prompt::Prompt;
use crate::tools::catalogue;
use chrono::Utc;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// Pause between looks at the files: an operator waits for a change to take hold, a look costs a few `stat`s.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Policy as shipped.
pub const POLICY: &str = include_str!("../../agents/policy.toml");
/// Environments of a policy in which agents may change things without anybody's word.
pub fn free_environments(policy: &crate::model::policy::Policy) -> Vec<String> {
    policy.environments.keys().filter(|e| !crate::gate::rules::production_like(policy, e)).cloned().collect()
}

/// Agents as shipped: file name and text.
pub const AGENTS: &[(&str, &str)] = &[
    ("backup-keeper.md", include_str!("../../agents/backup-keeper.md")),
    ("deployer.md", include_str!("../../agents/deployer.md")),
    ("devops-automation.md", include_str!("../../agents/devops-automation.md")),
    ("docker-stack-orchestrator.md", include_str!("../../agents/docker-stack-orchestrator.md")),
    ("incident-responder.md", include_str!("../../agents/incident-responder.md")),
    ("observer.md", include_str!("../../agents/observer.md")),
    ("stack-keeper.md", include_str!("../../agents/stack-keeper.md")),
    ("warden.md", include_str!("../../agents/warden.md")),
];
/// Prompts as shipped.
pub const PROMPTS: &[(&str, &str)] = &[
    ("backup-drill.md", include_str!("../../prompts/backup-drill.md")),
    ("ci-cd.md", include_str!("../../prompts/ci-cd.md")),
    ("deploy.md", include_str!("../../prompts/deploy.md")),
    ("deploy-push.md", include_str!("../../prompts/deploy-push.md")),
    ("diagnose-incident.md", include_str!("../../prompts/diagnose-incident.md")),
    ("monthly-check.md", include_str!("../../prompts/monthly-check.md")),
    ("monthly-refresh.md", include_str!("../../prompts/monthly-refresh.md")),
    ("optimize-deployment.md", include_str!("../../prompts/optimize-deployment.md")),
    ("refresh.md", include_str!("../../prompts/refresh.md")),
    ("rollback.md", include_str!("../../prompts/rollback.md")),
    ("weekly-review.md", include_str!("../../prompts/weekly-review.md")),
];

type Texts = Vec<(String, String)>;
type Loaded = (Rulebook, Vec<Prompt>);

fn unreadable(path: &Path, cause: &std::io::Error) -> LoadProblem {
    let hint = "make it readable for the user dockwarden runs as".into();
    LoadProblem { file: path.display().to_string(), line: None, problem: cause.to_string(), hint }
}

/// Markdown files of a directory by name; a README is not one of them. A missing directory is an empty one.
fn markdown(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut files = entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|p| p.extension().is_some_and(|x| x == "md") && !p.file_name().is_some_and(|n| n.eq_ignore_ascii_case("readme.md")));
    files.sort();
    Ok(files)
}

fn texts(dir: &Path, shipped: &[(&str, &str)]) -> Result<Texts, LoadProblem> {
    let files = markdown(dir).map_err(|e| unreadable(dir, &e))?;
    if files.is_empty() {
        return Ok(shipped.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect());
    }
    let read = |path: PathBuf| std::fs::read_to_string(&path).map(|t| (path.display().to_string(), t)).map_err(|e| unreadable(&path, &e));
    files.into_iter().map(read).collect()
}

/// `policy.toml`, beside the agents or above them.
fn policy_path(config_dir: &Path) -> Option<PathBuf> {
    ["policy.toml", "agents/policy.toml"].iter().map(|p| config_dir.join(p)).find(|p| p.exists())
}

/// Loads everything a configuration directory says, with the shipped files where it says nothing.
///
/// # Errors
/// Every problem of every file.
pub fn load(config_dir: &Path) -> Result<Loaded, Vec<LoadProblem>> {
    load_with(config_dir, None)
}

/// The same with one more agent file, as if it were there.
///
/// # Errors
/// Every problem of every file.
pub fn load_with(config_dir: &Path, more: Option<(String, String)>) -> Result<Loaded, Vec<LoadProblem>> {
    let policy = match policy_path(config_dir) {
        Some(path) => std::fs::read_to_string(&path).map_err(|e| vec![unreadable(&path, &e)])?,
        None => POLICY.to_owned(),
    };
    let mut agents = texts(&config_dir.join("agents"), AGENTS).map_err(|p| vec![p])?;
    agents.extend(more);
    // The loop needs its agent, whichever agents the operator writes.
    if !agents.iter().any(|(name, _)| name.ends_with("warden.md")) {
        agents.extend(AGENTS.iter().filter(|(n, _)| *n == "warden.md").map(|(n, t)| ((*n).to_owned(), (*t).to_owned())));
    }
    let tools = crate::tools::gate_facts();
    let rulebook = Rulebook::build(agents, &policy, &tools)?;
    let mut prompts = Vec::new();
    for (name, text) in texts(&config_dir.join("prompts"), PROMPTS).map_err(|p| vec![p])? {
        let skill = parse_prompt(&name, &text)?;
        let problems = runbook::check_tools(&skill, &name, &fields_of);
        if !problems.is_empty() {
            return Err(problems);
        }
        prompts.push(skill);
    }
    prompts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((rulebook, prompts))
}

/// The arguments a tool takes, or the names that may have been meant.
fn fields_of(tool: &str) -> Result<Vec<String>, String> {
    let Some(spec) = catalogue().iter().find(|t| t.name == tool) else {
        let near = crate::tools::nearest(tool, catalogue().iter().map(|t| t.name));
        let all = "`dockwarden policy matrix` names every tool";
        return Err(if near.is_empty() { all.into() } else { format!("did you mean {}? {all}", near.join(" or ")) });
    };
    Ok((spec.input_schema)()["properties"].as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default())
}

/// Problems, one a line.
pub fn in_words(problems: &[LoadProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

type Fingerprint = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

/// Which files there are, how long and how old: enough to see a change, and a rename over a file is one.
fn fingerprint(config_dir: &Path) -> Fingerprint {
    let stat = |path: PathBuf| {
        let seen = std::fs::metadata(&path).ok().and_then(|m| m.modified().ok().map(|t| (t, m.len())));
        (path, seen)
    };
    let listed = ["agents", "prompts"].iter().flat_map(|d| markdown(&config_dir.join(d)).unwrap_or_default());
    listed.chain(["policy.toml", "agents/policy.toml"].iter().map(|p| config_dir.join(p))).map(stat).collect()
}

/// Replaces the rules when a file changed, until shutdown. Calls at work keep the rules they began with.
pub async fn watch(house: Arc<House>, shutdown: CancellationToken) {
    let dir = house.config.config_dir.clone();
    let mut seen = fingerprint(&dir);
    enough_operators(&house).await;
    while tokio::time::timeout(LOOK_EVERY, shutdown.cancelled()).await.is_err() {
        let now = fingerprint(&dir);
        if now == seen {
            continue;
        }
        seen = now;
        reload(&house).await;
    }
}

/// Opens the socket to the users that `[peers]` names, or closes it to all but the owner.
///
/// # Errors
/// The file system's.
pub fn let_pass(house: &House) -> std::io::Result<()> {
    let home = &house.config.home;
    socket::others::pass(home, &crate::config::socket_path(home), !house.rulebook.load().policy.peers.is_empty())
}

/// Says in the log which approvals nobody could ever give.
async fn enough_operators(house: &House) {
    match house.store.operators().await {
        Ok(operators) => {
            let short = approvers::shortages(&house.rulebook.load(), operators.len());
            if let Some(text) = approvers::in_words(&short, operators.len()) {
                tracing::warn!("{text}; `dockwarden operators add NAME` makes one");
            }
        }
        Err(e) => tracing::error!(error = %e, "the operators could not be counted"),
    }
}

async fn reload(house: &Arc<House>) {
    let (what, detail) = match load(&house.config.config_dir) {
        Ok((rulebook, prompts)) => {
            tracing::info!(agents = rulebook.agents.len(), prompts = prompts.len(), version = rulebook.version, "rules reloaded");
            let detail = json!({"version": rulebook.version, "agents": rulebook.agents.keys().collect::<Vec<_>>()});
            crate::redact::declared::free_environments(free_environments(&rulebook.policy));
            house.rulebook.store(Arc::new(rulebook));
            house.prompts.store(Arc::new(prompts));
            house.refused_rules.store(Arc::default());
            if let Err(e) = let_pass(house) {
                tracing::error!(error = %e, "the local socket's permissions could not follow [peers] of the policy");
            }
            enough_operators(house).await;
            ("rules_reloaded", detail)
        }
        Err(problems) => {
            let text = in_words(&problems);
            tracing::error!(problems = text, "a change of the rules was not taken; those before it stay in force");
            let detail = json!({"problems": problems});
            house.refused_rules.store(Arc::new(problems));
            ("rules_refused", detail)
        }
    };
    if let Err(e) = house.store.audit_event("supervisor", what, None, &detail, Utc::now()).await {
        tracing::error!(error = %e, "the reload could not be recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_load_and_name_the_shipped_agents() {
        let dir = tempfile::tempdir().expect("directory");
        let (rulebook, prompts) = load(dir.path()).map_err(|p| in_words(&p)).expect("loads");
        let agents: Vec<&str> = rulebook.agents.keys().map(String::as_str).collect();
        assert_eq!(
            agents,
            [
                "backup-keeper",
                "deployer",
                "devops-automation",
                "docker-stack-orchestrator",
                "incident-responder",
                "observer",
                "stack-keeper",
                "warden"
            ]
        );
        assert_eq!(
            prompts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
            [
                "backup-drill",
                "ci-cd",
                "deploy",
                "deploy-push",
                "diagnose-incident",
                "monthly-check",
                "monthly-refresh",
                "optimize-deployment",
                "refresh",
                "rollback",
                "weekly-review"
            ]
        );
    }

    #[test]
    fn a_change_of_a_file_is_seen_and_a_faulty_file_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let before = fingerprint(dir.path());
        std::fs::create_dir(dir.path().join("agents")).expect("made");
        std::fs::write(dir.path().join("agents/x.md"), "no front matter").expect("written");
        assert_ne!(fingerprint(dir.path()), before);
        let problems = load(dir.path()).map(|_| ()).expect_err("refused");
        assert!(in_words(&problems).contains("agents/x.md:1"), "{}", in_words(&problems));
    }
}
