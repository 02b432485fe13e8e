//! What the plan gate must know of the world and cannot look up itself: where host paths really lead, whose volumes and networks there are, which values
//! stand in the text of a file. Reads only. What could not be found out is left out, and the gate takes what is missing for the worse.

use super::compose_files::{Bundle, on_host, protected, visible};
use super::{Call, CallError, observe};
use crate::compose::Loaded;
use crate::engine::Engine;
use crate::executor::places;
use crate::gate::plan::{BindFact, OtherStack, PathKind, PlanFacts, above, normalise, ownership, paths};
use crate::model::config::{Config, OwnContainer};
use crate::model::ids::{ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::{ContainerSummary, ImageIdentity, ImageInfo, NetworkInfo, VolumeInfo};
use crate::model::plan::{Carried, Plan};
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use crate::planner::Observed;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

pub(super) mod carried;

use carried::with_files;

/// What the loaded texts tell beyond the resolved stack.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    declared: BTreeSet<String>,
    referenced: Vec<(String, String)>,
    env_from_files: BTreeMap<(String, String), String>,
}

impl Texts {
    /// Of texts at hand.
    pub fn of(loaded: &Loaded, bundle: &Bundle) -> Self {
        Self {
            declared: bundle.variables.keys().cloned().collect(),
            referenced: loaded.references.iter().map(|(name, path)| (name.clone(), path.clone())).collect(),
            env_from_files: loaded.env_from_files.clone(),
        }
    }

    /// Variables the texts refer to and nothing declares.
    pub fn undeclared(&self) -> Vec<String> {
        self.referenced.iter().map(|(name, _)| name).filter(|name| !self.declared.contains(*name)).cloned().collect()
    }

    /// Of a release whose texts are not at hand: nothing is claimed to stand in them, and every variable it uses was declared when it was made.
    pub fn unknown(spec: &StackSpec) -> Self {
        let entries =
            spec.services.iter().flat_map(|(name, s)| s.environment.keys().map(move |k| ((name.to_string(), k.clone()), String::new())));
        let env_from_files: BTreeMap<_, _> = entries.collect();
        let objects = spec.configs.values().chain(spec.secrets.values()).filter_map(|o| o.environment.clone());
        Self { declared: env_from_files.keys().map(|(_, k)| k.clone()).chain(objects).collect(), referenced: vec![], env_from_files }
    }
}

/// The plan as far as facts are looked up for it.
struct Subject<'a> {
    stack: &'a StackName,
    images: &'a BTreeMap<ServiceName, ImageIdentity>,
    project_dir: Option<&'a str>,
    environment: &'a str,
    /// Volumes and networks that are this stack's own.
    own: BTreeSet<String>,
}

/// What there is on the engine and around the supervisor.
struct World {
    instance: String,
    volumes: Vec<VolumeInfo>,
    networks: Vec<NetworkInfo>,
    containers: Vec<ContainerSummary>,
    images: Vec<ImageInfo>,
    supervisor: Supervisor,
    supervisor_env: BTreeSet<String>,
    resolved: BTreeMap<String, BindFact>,
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
    let mut own: BTreeSet<String> = observed.volumes.iter().chain(&observed.networks).cloned().collect();
    if let Some(release) = current {
        own.extend(release.spec.volumes.values().filter(|v| !v.external).map(|v| v.name.clone()));
        own.extend(release.spec.networks.values().filter(|n| !n.external).map(|n| n.name.clone()));
    }
    let supervisor = supervisor(engine.as_ref(), &house.config.own_container).await?;
    let names = names(call, plan, &own).await?;
    let followed = followed(call, plan).await?;
    let named = paths::named(&plan.desired, plan.project_dir.as_deref(), &call.rulebook.policy);
    let config = house.config.clone();
    // Follows links on disks that may be slow or network mounts.
    let resolved = tokio::task::spawn_blocking(move || resolve_all(&config, named)).await.unwrap_or_default();
    let world = World {
        instance: house.store.instance().to_owned(),
        volumes: volumes?,
        networks: networks?,
        containers: containers?,
        images: images?,
        supervisor,
        supervisor_env: std::env::vars_os().filter_map(|(k, _)| k.into_string().ok()).collect(),
        resolved,
    };
    let subject =
        Subject { stack: &plan.stack, images: &plan.images, project_dir: plan.project_dir.as_deref(), environment: &plan.environment, own };
    let mut facts = assemble(subject, world, texts, &house.config);
    facts.carried.clone_from(&plan.carried);
    for (stack, names) in names {
        facts.other_stacks.entry(stack).or_default().names = names;
    }
    for (stack, paths) in followed {
        facts.other_stacks.entry(stack).or_default().followed = paths;
    }
    Ok(facts)
}

/// Names that services of other stacks answer to on networks of this plan that are not its own, by stack and network.
async fn names(
    call: &Call,
    plan: &Plan,
    own: &BTreeSet<String>,
) -> Result<BTreeMap<String, BTreeMap<String, BTreeSet<String>>>, CallError> {
    let shared = |name: &String, external: bool| external || !own.contains(name);
    let shared: BTreeSet<&String> = plan.desired.networks.values().filter(|n| shared(&n.name, n.external)).map(|n| &n.name).collect();
    let mut found: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    if shared.is_empty() {
        return Ok(found);
    }
    let store = &call.house.store;
    for record in store.stacks().await?.into_iter().filter(|s| s.name != plan.stack) {
        let Some(number) = record.current else { continue };
        let Some(release) = store.release(&record.name, number).await? else { continue };
        for (service, spec) in release.spec.services.iter().filter(|(_, s)| s.active) {
            for (key, attached) in &spec.networks {
                let Some(network) = release.spec.networks.get(key).filter(|n| shared.contains(&n.name)) else { continue };
                let entry = found.entry(record.name.to_string()).or_default().entry(network.name.clone()).or_default();
                entry.extend(ownership::names(service.as_str(), spec, &attached.aliases));
            }
        }
    }
    Ok(found)
}

/// Host paths that containers of other stacks have, where they were judged to lead, by stack.
async fn followed(call: &Call, plan: &Plan) -> Result<BTreeMap<String, Vec<above::Followed>>, CallError> {
    let store = &call.house.store;
    let mut found = BTreeMap::new();
    for record in store.stacks().await?.into_iter().filter(|s| s.name != plan.stack) {
        let Some(number) = record.current else { continue };
        let Some(release) = store.release(&record.name, number).await? else { continue };
        let judged = places::judged(store, &release).await?;
        let real = |path: &str| judged.get(&normalise(path)).cloned().unwrap_or_else(|| normalise(path));
        let carried = match with_files(&release.spec).next() {
            Some(_) => {
                carried::of(&call.house, (&release.spec, None), &release.images, &observe::stack(&call.house, &record.name).await?).await?
            }
            None => Carried::default(),
        };
        let mut paths = above::followed(&release.spec, &carried, &real);
        paths.retain(|f| release.spec.services.iter().any(|(name, s)| s.active && name.as_str() == f.service));
        if !paths.is_empty() {
            found.insert(record.name.to_string(), paths);
        }
    }
    Ok(found)
}

/// Facts of what was found. Reads nothing.
fn assemble(subject: Subject<'_>, world: World, texts: &Texts, config: &Config) -> PlanFacts {
    let Subject { stack, images, mut own, .. } = subject;
    let mut other: BTreeMap<String, OtherStack> = BTreeMap::new();
    let mut unowned = BTreeSet::new();
    let owner = |l: &BTreeMap<String, String>| l.get(labels::STACK).filter(|_| l.get(labels::INSTANCE) == Some(&world.instance)).cloned();
    let volumes = world.volumes.iter().map(|v| (v.name.to_string(), &v.labels, true));
    for (name, object_labels, is_volume) in volumes.chain(world.networks.iter().map(|n| (n.name.clone(), &n.labels, false))) {
        match owner(object_labels) {
            Some(theirs) if theirs == stack.as_str() => {
                own.insert(name);
            }
            Some(theirs) => {
                let entry = other.entry(theirs).or_default();
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
    for c in &world.containers {
        if let Some(theirs) = owner(&c.labels).filter(|s| s != stack.as_str()) {
            let entry = other.entry(theirs).or_default();
            entry.containers.insert(c.name.clone());
            entry.hostnames.extend(hostnames(&c.labels));
        }
    }
    let health = |id: &Option<String>| {
        world.images.iter().any(|i| Some(&i.id) == id.as_ref() && i.health_test.as_ref().is_some_and(|t| !t.is_empty()))
    };
    PlanFacts {
        stack: Some(stack.clone()),
        project_dir: subject.project_dir.map(str::to_owned),
        environment: subject.environment.to_owned(),
        resolved: world.resolved,
        carried: Carried::default(),
        protected_paths: protected(config).into_iter().map(|p| p.display().to_string()).collect(),
        engine_sockets: sockets(config),
        supervisor_containers: world.supervisor.containers,
        supervisor_objects: world.supervisor.objects,
        supervisor_unknown: world.supervisor.unknown,
        other_stacks: other,
        own_objects: own,
        unowned_objects: unowned,
        local_images: world
            .images
            .iter()
            .filter(|i| i.repo_digests.is_empty())
            .flat_map(|i| i.tags.iter().cloned().chain([i.id.clone()]))
            .collect(),
        image_healthchecks: images.iter().filter(|(_, identity)| health(&identity.id)).map(|(service, _)| service.to_string()).collect(),
        declared_vars: texts.declared.clone(),
        supervisor_env: world.supervisor_env,
        referenced_vars: texts.referenced.clone(),
        env_from_files: texts.env_from_files.clone(),
    }
}

/// Host names under which a reverse proxy that reads labels (Traefik, Caddy) reaches a container.
fn hostnames(labels: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in labels {
        if key.starts_with("traefik.") {
            // Host(`a`, `b`), HostSNI(`c`): every back-quoted or quoted word of a rule.
            for rule in value.split("Host").skip(1).filter_map(|r| r.trim_start_matches("SNI").strip_prefix('(')) {
                let names = rule.split(')').next().unwrap_or_default();
                found.extend(names.split(',').map(|n| n.trim().trim_matches(['`', '"', '\'']).to_ascii_lowercase()));
            }
        } else if key == "caddy" || (key.starts_with("caddy_") && !key.contains('.')) {
            let site = |s: &str| {
                s.trim()
                    .trim_start_matches("https://")
                    .trim_start_matches("http://")
                    .split([':', '/'])
                    .next()
                    .unwrap_or_default()
                    .to_ascii_lowercase()
            };
            found.extend(value.split([',', ' ']).map(site));
        }
    }
    found.retain(|n| n.contains('.') && !n.starts_with('*'));
    found
}

/// The supervisor's own container and what it mounts and is attached to, when it runs in one.
#[derive(Debug, Clone, Default, PartialEq)]
struct Supervisor {
    containers: BTreeSet<String>,
    objects: BTreeSet<String>,
    /// Nobody could tell which they are.
    unknown: bool,
}

async fn supervisor(engine: &dyn Engine, own: &OwnContainer) -> Result<Supervisor, CallError> {
    let id = match own {
        OwnContainer::None => return Ok(Supervisor::default()),
        OwnContainer::Unknown => return Ok(Supervisor { unknown: true, ..Supervisor::default() }),
        OwnContainer::Is(id) => id,
    };
    let Some(me) = engine.container(id).await? else { return Ok(Supervisor { unknown: true, ..Supervisor::default() }) };
    let mut objects: BTreeSet<String> = me.mounts.into_iter().filter_map(|m| m.name).collect();
    objects.extend(me.networks.into_keys());
    Ok(Supervisor { containers: BTreeSet::from([me.name, me.id.to_string()]), objects, unknown: false })
}

/// Where paths really lead.
fn resolve_all(config: &Config, paths: BTreeSet<String>) -> BTreeMap<String, BindFact> {
    paths.into_iter().filter_map(|p| Some((p.clone(), resolve(config, &p)?))).collect()
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

#[cfg(test)]
mod cases;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::{Behaviour, FakeEngine};
    use crate::engine::{ContainerSpec, EngineMount};
    use crate::model::ids::{EngineName, ImageRef};
    use crate::model::spec::MountKind;

    #[tokio::test]
    async fn our_own_volumes_are_known_by_our_own_container_and_not_finding_it_is_not_having_none() {
        let engine = FakeEngine::new();
        engine.add_image("dockwarden:1", Behaviour::running());
        let mount =
            EngineMount { source: Some("dockwarden_state".into()), ..EngineMount::new(MountKind::Volume, "/var/lib/dockwarden".into()) };
        let (name, image) = (EngineName::new("dockwarden").unwrap(), ImageRef::new("dockwarden:1").unwrap());
        let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::new(name, image) };
        let id = Engine::create_container(&engine, &crate::executor::backup::test_permit(), &spec).await.unwrap();
        let mine = supervisor(&engine, &OwnContainer::Is(id.clone())).await.unwrap();
        assert!(mine.objects.contains("dockwarden_state") && mine.containers.contains("dockwarden") && !mine.unknown, "{mine:?}");
        let gone = EngineName::new("another").unwrap();
        for own in [OwnContainer::Unknown, OwnContainer::Is(gone)] {
            assert!(supervisor(&engine, &own).await.unwrap().unknown, "{own:?}");
        }
        assert_eq!(supervisor(&engine, &OwnContainer::None).await.unwrap(), Supervisor::default());
    }
}
