//! `init`: reads this host and proposes `dockwarden.toml`, `policy.toml` and the agents, shows what would change, and writes only when
//! told to. Deliberately absent: changing a value somebody wrote; what exists is kept and only missing stacks are proposed. What a policy that
//! exists does not grant of this host is said beside it.

pub mod client;

use super::{CliError, CliResult, Ended, Global, output, terminal};
use crate::app::rules;
use crate::config;
use crate::engine::Engine;
use crate::engine::docker::DockerEngine;
use crate::gate;
use crate::model::ids::StackName;
use crate::model::policy::Policy;
use clap::Args;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml_edit::{Array, DocumentMut, Item, Table, value};

/// Read this host and propose a configuration. Writes nothing without --write.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Write what is proposed without asking.
    #[arg(long)]
    write: bool,
    /// Instead: the configuration of an MCP client in this project's directory, acting as --agent, else as observer.
    #[arg(long, value_name = "NAME")]
    client: Option<client::Client>,
    /// With --client: the supervisor is on another machine, reached by ssh.
    #[arg(long, value_name = "HOST", requires = "client")]
    ssh: Option<String>,
    /// With --client: the project's directory; by default the current one.
    #[arg(long, value_name = "DIR", default_value = ".", requires = "client")]
    dir: PathBuf,
}

/// What the engine says about the host.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// Compose project -> its directory.
    projects: BTreeMap<StackName, PathBuf>,
    /// Registries (with the first path part) of local images.
    registries: BTreeSet<String>,
    /// Networks containers of several projects could share.
    networks: BTreeSet<String>,
    /// Host directories bound into containers.
    binds: BTreeSet<String>,
}

/// Registry and name space of a reference, as `allowed_registries` takes them.
fn registry(reference: &str) -> Option<String> {
    let name = reference.split('@').next()?;
    let (first, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        Some((space, _)) => return Some(format!("docker.io/{space}")),
        None => return None,
    };
    Some(rest.split_once('/').map_or_else(|| first.to_owned(), |(space, _)| format!("{first}/{space}")))
}

async fn look(engine: &dyn Engine) -> Result<Seen, crate::engine::EngineError> {
    let mut seen = Seen::default();
    for c in engine.containers(&["com.docker.compose.project".into()]).await? {
        let label = |key: &str| c.labels.get(key).cloned();
        if let (Some(project), Some(dir)) = (label("com.docker.compose.project"), label("com.docker.compose.project.working_dir"))
            && let Ok(project) = StackName::new(project)
            && Path::new(&dir).is_absolute()
        {
            seen.projects.insert(project, dir.into());
        }
        if let Some(detail) = engine.container(&c.id.clone()).await? {
            seen.binds.extend(detail.mounts.into_iter().filter(|m| m.kind == "bind" && m.source.starts_with('/')).map(|m| m.source));
        }
    }
    for image in engine.images().await? {
        // Only what came from a registry: a tag made here says nothing about where to pull from.
        seen.registries.extend(image.repo_digests.iter().filter_map(|r| registry(r)));
    }
    let own = ["bridge", "host", "none"];
    let foreign =
        |n: &crate::model::observed::NetworkInfo| !own.contains(&n.name.as_str()) && !n.labels.contains_key("com.docker.compose.project");
    seen.networks.extend(engine.networks(&[]).await?.into_iter().filter(foreign).map(|n| n.name));
    Ok(seen)
}

/// Adds what is missing to the text of `dockwarden.toml`.
fn settings(text: &str, seen: &Seen) -> Result<String, toml_edit::TomlError> {
    let mut doc: DocumentMut = text.parse()?;
    if doc.get("listen").is_none() {
        doc["listen"] = value(config::DEFAULT_LISTEN);
    }
    if doc.get("backup_schedule").is_none() {
        doc["backup_schedule"] = value(config::DEFAULT_BACKUP_SCHEDULE);
    }
    let stacks = doc.entry("stacks").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    if let Some(stacks) = stacks.as_table_mut() {
        for (name, dir) in &seen.projects {
            if !stacks.contains_key(name.as_str()) {
                let mut entry = Table::new();
                entry["dir"] = value(dir.display().to_string());
                stacks.insert(name.as_str(), Item::Table(entry));
            }
        }
    }
    Ok(doc.to_string())
}

/// The shipped policy with this host's registries. Roots and networks are only suggested in comments: granting them is a decision.
fn policy(seen: &Seen) -> Result<String, toml_edit::TomlError> {
    let mut doc: DocumentMut = rules::POLICY.parse()?;
    if doc.get("allowed_registries").is_none() {
        doc["allowed_registries"] = Item::Value(Array::from_iter(["docker.io/library", "local"]).into());
    }
    if let Some(list) = doc["allowed_registries"].as_array_mut() {
        let have: BTreeSet<String> = list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        for registry in seen.registries.difference(&have) {
            list.push(registry.as_str());
        }
    }
    let mut text = doc.to_string();
    let mut suggest = |what: &str, key: &str, list: &BTreeSet<String>| {
        if !list.is_empty() {
            let list = list.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", ");
            text = format!("# {what} seen on this host; grant by moving into {key}: [{list}]\n{text}");
        }
    };
    suggest("Networks", "networks_granted", &seen.networks);
    suggest("Bound host paths", "bind_roots_approval", &seen.binds);
    Ok(text)
}

type Ungranted = BTreeMap<&'static str, Vec<String>>;

/// What the host has and a policy that exists does not grant, by key of the policy. Only said, never written: granting is a decision.
fn ungranted(policy: &Policy, seen: &Seen) -> Ungranted {
    let rooted = |path: &String| {
        let mut roots = policy.bind_roots_allow.iter().chain(&policy.bind_roots_approval);
        // A project's own directory is always allowed, and some paths can be no root at all.
        roots.any(|root| gate::plan::is_below(path, root))
            || seen.projects.values().any(|dir| Path::new(path).starts_with(dir))
            || gate::plan::never_a_root(path).is_some()
            || gate::plan::mounts::engine_socket(path, &[])
    };
    let registries = seen.registries.iter().filter(|r| !gate::plan::images::listed(r, &policy.allowed_registries));
    let networks = seen.networks.iter().filter(|n| !policy.networks_granted.contains(n));
    let binds = seen.binds.iter().filter(|b| !rooted(b));
    let mut found = BTreeMap::from([
        ("allowed_registries", registries.cloned().collect::<Vec<_>>()),
        ("networks_granted", networks.cloned().collect()),
        ("bind_roots_approval", binds.cloned().collect()),
    ]);
    found.retain(|_, values| !values.is_empty());
    found
}

/// The operator's own policy, where there is one, and what it does not grant.
fn beside_policy(dir: &Path, seen: &Seen) -> Result<Option<(PathBuf, Ungranted)>, CliError> {
    let Some(path) = ["policy.toml", "agents/policy.toml"].iter().map(|p| dir.join(p)).find(|p| p.exists()) else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|e| failed(&path, e))?;
    let policy = gate::policy::parse(&path.display().to_string(), &text).map_err(|problems| {
        CliError::Failed(rules::in_words(&problems), "mend it first; `dockwarden policy check` reads it again".into())
    })?;
    Ok(Some((path, ungranted(&policy, seen))))
}

/// A plain line diff: additions and removals in order, what is common left out.
fn diff(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut longest = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for (i, o) in old.iter().enumerate().rev() {
        for (j, n) in new.iter().enumerate().rev() {
            longest[i][j] = if o == n { longest[i + 1][j + 1] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j < new.len() && (i == old.len() || longest[i][j + 1] >= longest[i + 1][j]) {
            out.push_str(&format!("+ {}\n", new[j]));
            j += 1;
        } else {
            out.push_str(&format!("- {}\n", old[i]));
            i += 1;
        }
    }
    out
}

fn failed(path: &Path, e: impl std::fmt::Display) -> CliError {
    CliError::Failed(format!("{}: {e}", path.display()), "run it as a user who may write there, or choose another --config".into())
}

/// Runs `init`.
pub async fn init(global: &Global, args: InitArgs) -> CliResult {
    if let Some(client) = args.client {
        return client::run(global, client, args.ssh, &args.dir, args.write);
    }
    let dir = config::config_dir(global.config.as_deref());
    let engine_setting = config::load(&config::places(global.home.as_deref(), global.config.as_deref()))?.settings.engine;
    let no_engine = |e: crate::engine::EngineError| {
        CliError::Failed(e.to_string(), "init reads the host through its engine: see `dockwarden doctor`".into())
    };
    let engine = DockerEngine::connect(engine_setting.as_deref()).map_err(no_engine)?;
    let seen = look(&engine).await.map_err(no_engine)?;
    let toml = dir.join("dockwarden.toml");
    let current = match std::fs::read_to_string(&toml) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|e| failed(&toml, e))?,
    };
    let mut proposed = vec![(toml.clone(), current.clone(), settings(&current, &seen).map_err(|e| failed(&toml, e))?)];
    let own_policy = beside_policy(&dir, &seen)?;
    let mut whole = vec![];
    if own_policy.is_none() {
        whole.push((dir.join("policy.toml"), policy(&seen).map_err(|e| failed(&dir, e))?));
    }
    whole.extend(rules::AGENTS.iter().map(|(name, text)| (dir.join("agents").join(name), (*text).to_owned())));
    whole.extend(rules::PROMPTS.iter().map(|(name, text)| (dir.join("prompts").join(name), (*text).to_owned())));
    // A directory with agents of its own keeps exactly those.
    let has_own = |part: &str| std::fs::read_dir(dir.join(part)).is_ok_and(|mut d| d.next().is_some());
    let (own_agents, own_prompts) = (has_own("agents"), has_own("prompts"));
    let skip =
        |p: &Path| p.exists() || (own_agents && p.starts_with(dir.join("agents"))) || (own_prompts && p.starts_with(dir.join("prompts")));
    proposed.extend(whole.into_iter().filter(|(path, _)| !skip(path)).map(|(path, text)| (path, String::new(), text)));
    proposed.retain(|(_, before, after)| before != after);
    if global.json {
        let files: Vec<_> = proposed.iter().map(|(p, b, a)| json!({"path": p, "new": b.is_empty(), "text": a})).collect();
        let ungranted = own_policy.map(|(_, ungranted)| ungranted).unwrap_or_default();
        output::json(&json!({"config": dir, "files": files, "ungranted": ungranted, "written": args.write}));
    } else {
        for (path, before, after) in &proposed {
            let short = before.is_empty() && path.extension().is_some_and(|x| x == "md");
            output::line(if short {
                format!("new {} (as shipped)", path.display())
            } else {
                format!("--- {}\n{}", path.display(), diff(before, after))
            });
        }
        if let Some((path, ungranted)) = own_policy.filter(|(_, ungranted)| !ungranted.is_empty()) {
            output::line(format!(
                "{} is yours and stays. On this host, and not granted there; to grant, write what you mean into it:",
                path.display()
            ));
            for (key, values) in ungranted {
                output::line(format!("  {key}: {values:?}"));
            }
        }
    }
    if proposed.is_empty() {
        if !global.json {
            output::line("nothing to change");
        }
        return Ok(Ended::Done);
    }
    let yes = args.write
        || (!global.json
            && terminal::ask("Write these files? [y/N]").is_ok_and(|a| a.eq_ignore_ascii_case("y") || a.eq_ignore_ascii_case("yes")));
    if !yes {
        eprintln!("nothing was written; `dockwarden init --write` writes it");
        return Ok(Ended::Done);
    }
    for (path, _, text) in &proposed {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
        }
        // Beside and renamed: a running supervisor never reads half a file.
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path)).map_err(|e| failed(path, e))?;
    }
    eprintln!(
        "wrote {} files; a running supervisor takes policy, agents and prompts over by itself, dockwarden.toml at its next start",
        proposed.len()
    );
    Ok(Ended::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            projects: BTreeMap::from([(StackName::new("shop").expect("name"), "/srv/shop".into())]),
            registries: BTreeSet::from(["ghcr.io/acme".to_owned()]),
            networks: BTreeSet::from(["edge".to_owned()]),
            binds: BTreeSet::from(["/srv/data".to_owned()]),
        }
    }

    #[test]
    fn a_registry_is_read_with_its_name_space() {
        let cases = [
            ("nginx@sha256:0", None),
            ("acme/web@sha256:0", Some("docker.io/acme")),
            ("ghcr.io/acme/web/x@sha256:0", Some("ghcr.io/acme")),
            ("localhost:5000/web", Some("localhost:5000")),
        ];
        for (reference, expected) in cases {
            assert_eq!(registry(reference).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn what_somebody_wrote_is_kept_and_what_is_proposed_loads() {
        let mine = "# mine\nlisten = \"127.0.0.1:9\"\n\n[stacks.old]\ndir = \"/srv/old\"\n";
        let text = settings(mine, &seen()).expect("edits");
        let parsed = config::parse(&text, "f").expect("loads");
        assert!(text.starts_with("# mine\nlisten = \"127.0.0.1:9\"\n"), "{text}");
        assert_eq!(parsed.stacks.keys().map(|k| k.as_str()).collect::<Vec<_>>(), ["old", "shop"]);
        let policy = crate::gate::policy::parse("policy.toml", &policy(&seen()).expect("edits")).expect("loads");
        assert!(policy.allowed_registries.contains(&"ghcr.io/acme".to_owned()));
        assert!(policy.networks_granted.is_empty(), "granting is a decision");
    }

    #[test]
    fn what_an_own_policy_does_not_grant_is_told_and_the_file_stays() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(beside_policy(dir.path(), &seen()).expect("read"), None);
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, rules::POLICY).expect("written");
        let missing = |value: &str| vec![value.to_owned()];
        let all = BTreeMap::from([
            ("allowed_registries", missing("ghcr.io/acme")),
            ("networks_granted", missing("edge")),
            ("bind_roots_approval", missing("/srv/data")),
        ]);
        assert_eq!(beside_policy(dir.path(), &seen()).expect("read"), Some((path.clone(), all)));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), rules::POLICY);
        let grants = "allowed_registries = [\"ghcr.io\"]\nbind_roots_allow = [\"/srv\"]\nnetworks_granted = [\"edge\"]\n";
        std::fs::write(&path, grants).expect("written");
        let mut seen = seen();
        seen.binds.insert("/srv/shop/data".into());
        seen.binds.extend(["/".to_owned(), "/var/run/docker.sock".to_owned()]);
        assert_eq!(beside_policy(dir.path(), &seen).expect("read"), Some((path.clone(), BTreeMap::new())));
        std::fs::write(&path, "allowed_registry = []").expect("written");
        assert!(beside_policy(dir.path(), &seen).expect_err("refused").to_string().contains("allowed_registry"));
    }

    #[test]
    fn a_diff_shows_only_what_changes() {
        assert_eq!(diff("a\nb\nc", "a\nx\nc\nd"), "+ x\n- b\n+ d\n");
        assert_eq!(diff("", "a"), "+ a\n");
    }
}
