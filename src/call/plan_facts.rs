//! What the plan gate must know of the world and cannot look up itself: where host paths really lead, whose volumes and networks there are, which values
//! stand in the text of a file. Reads only. What could not be found out is left out, and the gate takes what is missing for the worse.

use super::compose_files::{Bundle, on_host, visible};
use super::{Call, CallError};
use crate::gate::plan::{BindFact, OtherStack, PathKind, PlanFacts};
use crate::model::config::Config;
use crate::model::ids::EngineName;
use crate::model::labels;
use crate::model::plan::Plan;
use crate::model::release::Release;
use crate::model::spec::{MountKind, StackSpec};
use crate::planner::Observed;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What the loaded texts tell beyond the resolved stack.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    declared: BTreeSet<String>,
    env_from_files: BTreeSet<(String, String)>,
}

impl Texts {
    /// Of texts at hand. A value that stands in none of the compose texts came from a variable or an environment file.
    pub fn of(spec: &StackSpec, bundle: &Bundle) -> Self {
        let written = |value: &str| bundle.sources.iter().any(|s| s.text.contains(value));
        let entries = spec.services.iter().flat_map(|(name, s)| s.environment.iter().map(move |(k, v)| (name, k, v.as_deref())));
        let env_from_files = entries
            .filter(|(_, _, v)| v.is_some_and(|v| !v.is_empty() && !written(v)))
            .map(|(name, k, _)| (name.to_string(), k.clone()))
            .collect();
        Self { declared: bundle.variables.keys().cloned().collect(), env_from_files }
    }

    /// Of a release whose texts are not at hand: nothing is claimed to stand in them, and every variable it uses was declared when it was made.
    pub fn unknown(spec: &StackSpec) -> Self {
        let entries = spec.services.iter().flat_map(|(name, s)| s.environment.keys().map(move |k| (name.to_string(), k.clone())));
        let env_from_files: BTreeSet<_> = entries.collect();
        Self { declared: env_from_files.iter().map(|(_, k)| k.clone()).collect(), env_from_files }
    }
}

/// Gathers the facts of a plan.
///
/// # Errors
/// The engine's.
pub async fn gather(
    call: &Call,
    plan: &Plan,
    observed: &Observed,
    current: Option<&Release>,
    texts: &Texts,
) -> Result<PlanFacts, CallError> {
    let house = &call.house;
    let engine = &house.engine;
    let everything: &[String] = &[];
    let (volumes, networks, containers, images) =
        tokio::join!(engine.volumes(everything), engine.networks(everything), engine.containers(everything), engine.images());
    let (volumes, networks, containers, images) = (volumes?, networks?, containers?, images?);

    let mut own: BTreeSet<String> = observed.volumes.iter().chain(&observed.networks).cloned().collect();
    if let Some(release) = current {
        own.extend(release.spec.volumes.values().filter(|v| !v.external).map(|v| v.name.clone()));
        own.extend(release.spec.networks.values().filter(|n| !n.external).map(|n| n.name.clone()));
    }
    let mut other: BTreeMap<String, OtherStack> = BTreeMap::new();
    let mut unowned = BTreeSet::new();
    let ours = |l: &BTreeMap<String, String>| l.get(labels::INSTANCE).is_some_and(|i| i == house.store.instance());
    let owner = |l: &BTreeMap<String, String>| ours(l).then(|| l.get(labels::STACK).cloned()).flatten();
    for (name, object_labels, is_volume) in
        volumes.iter().map(|v| (v.name.to_string(), &v.labels, true)).chain(networks.iter().map(|n| (n.name.clone(), &n.labels, false)))
    {
        match owner(object_labels) {
            Some(stack) if stack == plan.stack.as_str() => {
                own.insert(name);
            }
            Some(stack) => {
                let entry = other.entry(stack).or_default();
                if is_volume {
                    entry.volumes.insert(name)
                } else {
                    entry.networks.insert(name)
                };
            }
            None if !own.contains(&name) => {
                unowned.insert(name);
            }
            None => {}
        }
    }
    for c in &containers {
        match owner(&c.labels) {
            Some(stack) if stack == plan.stack.as_str() => {}
            Some(stack) => {
                other.entry(stack).or_default().containers.insert(c.name.clone());
            }
            None => {}
        }
    }
    let (supervisor_containers, supervisor_objects) = supervisor(call).await?;
    let config = &house.config;
    let paths = paths(plan, &call.rulebook.policy);
    let resolving = config.clone();
    // Follows links on disks that may be slow or network mounts.
    let resolved =
        tokio::task::spawn_blocking(move || paths.into_iter().filter_map(|p| Some((p.clone(), resolve(&resolving, &p)?))).collect())
            .await
            .unwrap_or_default();
    Ok(PlanFacts {
        stack: Some(plan.stack.clone()),
        project_dir: plan.project_dir.clone(),
        environment: plan.environment.clone(),
        resolved,
        protected_paths: [&config.home, &config.config_dir, &config.memory].map(|p| on_host(config, p).display().to_string()).into(),
        engine_sockets: sockets(config),
        supervisor_containers,
        supervisor_objects,
        other_stacks: other,
        own_objects: own,
        unowned_objects: unowned,
        local_images: images
            .iter()
            .filter(|i| i.repo_digests.is_empty())
            .flat_map(|i| i.tags.iter().cloned().chain([i.id.clone()]))
            .collect(),
        image_healthchecks: plan
            .images
            .iter()
            .filter(|(_, identity)| {
                images.iter().any(|i| Some(&i.id) == identity.id.as_ref() && i.health_test.as_ref().is_some_and(|t| !t.is_empty()))
            })
            .map(|(service, _)| service.to_string())
            .collect(),
        declared_vars: texts.declared.clone(),
        supervisor_env: std::env::vars_os().filter_map(|(k, _)| k.into_string().ok()).collect(),
        referenced_vars: vec![],
        env_from_files: texts.env_from_files.clone(),
    })
}

/// The supervisor's own container and what it mounts, when it runs in one: the host name of a container is its short id unless someone set another.
async fn supervisor(call: &Call) -> Result<(BTreeSet<String>, BTreeSet<String>), CallError> {
    if call.house.config.path_map.is_none() {
        return Ok(Default::default());
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let Ok(id) = EngineName::new(host) else { return Ok(Default::default()) };
    let Some(me) = call.house.engine.container(&id).await? else { return Ok(Default::default()) };
    let mut objects: BTreeSet<String> = me.mounts.into_iter().filter_map(|m| m.name).collect();
    objects.extend(me.networks.into_keys());
    Ok((BTreeSet::from([me.name, me.id.to_string()]), objects))
}

/// Every host path that the plan or the policy names.
fn paths(plan: &Plan, policy: &crate::model::policy::Policy) -> BTreeSet<String> {
    let spec = &plan.desired;
    let mut all: BTreeSet<String> = policy.bind_roots_allow.iter().chain(&policy.bind_roots_approval).cloned().collect();
    all.extend(plan.project_dir.clone());
    for s in spec.services.values() {
        all.extend(s.mounts.iter().filter(|m| m.kind == MountKind::Bind).filter_map(|m| m.source.clone()));
        all.extend(s.devices.iter().map(|d| d.source.clone()));
        let context = s.build.as_ref().and_then(|b| b.get("context").or(Some(b))).and_then(|c| c.as_str());
        all.extend(context.map(str::to_owned));
    }
    all.extend(spec.volumes.values().filter_map(|v| v.driver_opts.get("device").cloned()));
    all.extend(spec.configs.values().chain(spec.secrets.values()).filter_map(|f| f.file.clone()));
    all.retain(|p| p.starts_with('/'));
    all
}

/// A host path after links are followed; `None` when this process cannot see it.
fn resolve(config: &Config, path: &str) -> Option<BindFact> {
    let seen = visible(config, Path::new(path))?;
    match std::fs::canonicalize(&seen) {
        Ok(real) => {
            let kind = std::fs::metadata(&real).ok().map(|m| {
                let t = m.file_type();
                match () {
                    () if t.is_dir() => PathKind::Directory,
                    () if t.is_file() => PathKind::File,
                    () if t.is_socket() => PathKind::Socket,
                    () if t.is_block_device() || t.is_char_device() => PathKind::Device,
                    () => PathKind::Other,
                }
            });
            Some(BindFact { real: on_host(config, &real).display().to_string(), exists: true, kind })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Some(BindFact { real: on_host(config, &missing(&seen)?).display().to_string(), exists: false, kind: None })
        }
        // Not allowed to look, or a ring of links: unknown, which the gate takes for outside.
        Err(_) => None,
    }
}

/// The real parent of a path that does not exist, plus the rest.
fn missing(path: &Path) -> Option<PathBuf> {
    // A dangling link would be followed by whoever creates its target later: it leads nowhere we can vouch for.
    if std::fs::symlink_metadata(path).is_ok() {
        return None;
    }
    let (parent, name) = (path.parent()?, path.file_name()?);
    let real = std::fs::canonicalize(parent).ok().or_else(|| missing(parent))?;
    Some(real.join(name))
}

/// Sockets of engines beside the usual ones, which the gate knows.
fn sockets(config: &Config) -> Vec<String> {
    let named = config.settings.engine.clone().into_iter().chain(std::env::var("DOCKER_HOST").ok());
    named.filter_map(|e| e.strip_prefix("unix://").map(str::to_owned)).collect()
}
