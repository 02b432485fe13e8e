//! What the mutating calls do to the fake engine's objects: containers, endpoints, networks, volumes, images, execs.
//! Running and stopping is in `run`, content of files in `files`.

use super::world::{Container, Endpoint, Image, Network, Volume, World, no_container};
use super::{Behaviour, world};
use crate::engine::{ContainerSpec, EngineError, EngineMount, EngineResult, ExecSpec, NetworkAttachment, NetworkCreate, VolumeCreate};
use crate::model::ids::{EngineName, ImageRef};
use crate::model::observed::*;
use crate::model::spec::{IpamPool, MountKind};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// Creates a container.
    pub fn create_container(&mut self, spec: &ContainerSpec) -> EngineResult<EngineName> {
        self.check_name(spec.name.as_str())?;
        let image = self.image(spec.image.as_str()).cloned().ok_or_else(|| no_image(spec.image.as_str()))?;
        let mut networks = BTreeMap::new();
        for a in &spec.networks {
            let name = self.network_name(&a.network).ok_or_else(|| no_network(&a.network))?;
            networks.insert(name, endpoint(a));
        }
        let (mounts, anonymous) = self.mounts(spec, &image)?;
        let created = self.now();
        let id = self.new_id("container");
        let container = Container {
            id: id.clone(),
            name: spec.name.as_str().to_owned(),
            image_id: image.id,
            behaviour: image.behaviour,
            state: RunState::Created,
            health: HealthState::None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            restart: spec.restart,
            restart_count: 0,
            created,
            started_at: None,
            finished_at: None,
            networks,
            mounts,
            anonymous,
            bound: Vec::new(),
            pid: 0,
            last_health_output: None,
            logs: Vec::new(),
            files: BTreeMap::new(),
            spec: spec.clone(),
        };
        self.containers.insert(id.clone(), container);
        for f in &spec.files {
            self.put_file(&id, &f.path, f.content.clone());
        }
        Ok(id)
    }

    fn check_name(&self, name: &str) -> EngineResult<()> {
        match self.containers.values().find(|c| c.name == name) {
            None => Ok(()),
            Some(c) => Err(EngineError::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove (or rename) that container to be able to reuse that name.",
                c.id
            ))),
        }
    }

    /// Mounts of the specification and volumes the image declares; missing volumes are made, as Docker does.
    fn mounts(&mut self, spec: &ContainerSpec, image: &Image) -> EngineResult<(Vec<MountInfo>, BTreeSet<String>)> {
        let declared = image.behaviour.volumes.iter().filter(|p| !spec.mounts.iter().any(|m| m.target == **p));
        let declared: Vec<EngineMount> = declared.map(|p| anonymous_volume(p)).collect();
        let (mut mounts, mut anonymous) = (Vec::new(), BTreeSet::new());
        for m in spec.mounts.iter().chain(&declared) {
            let (kind, name, source) = match m.kind {
                MountKind::Bind | MountKind::Npipe => {
                    let source = m.source.clone().unwrap_or_default();
                    if self.missing_paths.contains(&source) {
                        let text = format!("invalid mount config for type \"bind\": bind source path does not exist: {source}");
                        return Err(EngineError::Refused(text));
                    }
                    ("bind", None, source)
                }
                MountKind::Volume | MountKind::Cluster => {
                    let name = match m.source.clone().filter(|s| !s.is_empty()) {
                        Some(name) => name,
                        None => {
                            let name = self.new_id("volume").as_str().to_owned();
                            anonymous.insert(name.clone());
                            name
                        }
                    };
                    self.ensure_volume(&name);
                    let source = mountpoint(&name);
                    ("volume", Some(name), source)
                }
                MountKind::Tmpfs => ("tmpfs", None, String::new()),
                MountKind::Image => return Err(EngineError::Refused("mount type unknown: image".into())),
            };
            mounts.push(MountInfo { kind: kind.into(), name, source, target: m.target.clone(), writable: !m.read_only });
        }
        for from in &spec.extras.volumes_from {
            let (container, mode) = from.split_once(':').unwrap_or((from, ""));
            let other = self.containers.values().find(|c| c.id.as_str() == container || c.name == container);
            let other = other.ok_or_else(|| no_container(container))?;
            let taken = other.mounts.iter().filter(|m| !mounts.iter().any(|own: &MountInfo| own.target == m.target));
            let taken: Vec<MountInfo> = taken.map(|m| MountInfo { writable: m.writable && mode != "ro", ..m.clone() }).collect();
            mounts.extend(taken);
        }
        Ok((mounts, anonymous))
    }

    pub(super) fn ensure_volume(&mut self, name: &str) {
        let created = self.now();
        let new = || Volume { driver: "local".into(), labels: BTreeMap::new(), options: BTreeMap::new(), created, files: BTreeMap::new() };
        self.volumes.entry(name.to_owned()).or_insert_with(new);
    }

    /// Pauses or resumes; already so is fine.
    pub fn pause(&mut self, id: &str, paused: bool) -> EngineResult<()> {
        let c = self.find_mut(id)?;
        match (c.state, paused) {
            (RunState::Running, true) => c.state = RunState::Paused,
            (RunState::Paused, false) => c.state = RunState::Running,
            (RunState::Running, false) | (RunState::Paused, true) => {}
            (_, true) => return Err(not_running(&c.name)),
            (_, false) => return Err(EngineError::Conflict(format!("Container {} is not paused", c.name))),
        }
        Ok(())
    }

    /// Removes by force; already gone is fine.
    pub fn remove_container(&mut self, id: &str, volumes: bool) {
        let Some(c) = self.find(id) else { return };
        let (id, up) = (c.id.clone(), c.is_up());
        if up {
            self.kill(&id);
        }
        self.emit(&id, "destroy");
        let Some(c) = self.containers.remove(&id) else { return };
        if volumes {
            for name in &c.anonymous {
                if self.users_of(name).is_empty() {
                    self.volumes.remove(name);
                }
            }
        }
    }

    /// Renames.
    pub fn rename(&mut self, id: &str, name: &str) -> EngineResult<()> {
        if self.find(id).is_some_and(|c| c.name == name) {
            return Err(EngineError::Refused("Renaming a container with the same name as its current name".into()));
        }
        if self.find(id).is_none() {
            return Err(no_container(id));
        }
        self.check_name(name)?;
        self.find_mut(id)?.name = name.to_owned();
        Ok(())
    }

    /// Runs a command, by the script, else by the image's behaviour.
    pub fn exec(&mut self, id: &str, spec: &ExecSpec) -> EngineResult<ExecOutcome> {
        let script = self.exec_script.clone();
        let c = self.find_mut(id)?;
        if c.state != RunState::Running {
            return Err(not_running(c.id.as_str()));
        }
        let (id, named) = (c.id.clone(), c.name.clone());
        if let Some(outcome) = self.front_command(&id, &named, &spec.command) {
            return Ok(outcome);
        }
        let c = self.find_mut(id.as_str())?;
        if let Some(outcome) = script.and_then(|s| s(&c.name, &spec.command)) {
            return Ok(outcome);
        }
        let by_health = Some(i64::from(c.health == HealthState::Unhealthy));
        let exit_code = c.behaviour.exec_exit.unwrap_or(by_health);
        let text = &c.behaviour.exec_output;
        let cut = text.floor_char_boundary(spec.max_output.min(text.len()));
        Ok(ExecOutcome { exit_code, output: text[..cut].to_owned(), truncated: cut < text.len() })
    }

    /// Creates a network.
    pub fn create_network(&mut self, spec: &NetworkCreate) -> EngineResult<EngineName> {
        let name = spec.name.as_str().to_owned();
        if self.networks.contains_key(&name) {
            return Err(EngineError::Conflict(format!("network with name {name} already exists")));
        }
        let (id, number) = (self.new_id("network"), self.networks.len() as u64);
        let mut pools = spec.spec.ipam.clone();
        if pools.iter().all(|p| p.subnet.is_none()) {
            let place = format!("172.{}.{}", 16 + (number / 256) % 16, number % 256);
            pools = vec![IpamPool { subnet: Some(format!("{place}.0/24")), gateway: Some(format!("{place}.1")), ..IpamPool::default() }];
        }
        let ipam_driver = spec.spec.ipam_driver.clone().unwrap_or_else(|| "default".into());
        let driver = spec.spec.driver.clone().unwrap_or_else(|| "bridge".into());
        let (labels, options) = (spec.labels.clone(), spec.spec.driver_opts.clone());
        let (internal, ipv6, attachable) = (spec.spec.internal, spec.spec.enable_ipv6, spec.spec.attachable);
        let network = Network { id: id.clone(), driver, internal, labels, options, ipv6, attachable, pools, ipam_driver, number, hosts: 0 };
        self.networks.insert(name, network);
        Ok(id)
    }

    /// Attaches; already attached is fine and changes nothing.
    pub fn connect(&mut self, id: &str, a: &NetworkAttachment) -> EngineResult<()> {
        let c = self.find(id).ok_or_else(|| no_container(id))?;
        let (cid, up, mode) = (c.id.clone(), c.is_up(), c.spec.network_mode.clone());
        let network = self.network_name(&a.network).ok_or_else(|| no_network(&a.network))?;
        if mode.is_some() {
            return Err(EngineError::Refused(
                "container sharing network namespace with another container or host cannot be connected to any other network".into(),
            ));
        }
        if self.find_mut(id)?.networks.contains_key(&network) {
            return Ok(());
        }
        let mut end = endpoint(a);
        if up {
            end.address = self.address_on(&cid, &network, end.fixed.clone().as_deref())?;
        }
        self.find_mut(id)?.networks.insert(network, end);
        Ok(())
    }

    /// Detaches; not attached, or no such network any more, is fine.
    pub fn disconnect(&mut self, id: &str, network: &str) -> EngineResult<()> {
        let name = self.network_name(network).unwrap_or_else(|| network.to_owned());
        self.find_mut(id)?.networks.remove(&name);
        Ok(())
    }

    /// Removes a network; already gone is fine, attached running containers are Docker's refusal.
    pub fn remove_network(&mut self, name_or_id: &str) -> EngineResult<()> {
        let Some(name) = self.network_name(name_or_id) else { return Ok(()) };
        if self.containers.values().any(|c| c.is_up() && c.networks.contains_key(&name)) {
            let id = &self.networks[&name].id;
            return Err(EngineError::Refused(format!("error while removing network: network {name} id {id} has active endpoints")));
        }
        self.networks.remove(&name);
        Ok(())
    }

    /// Creates a volume; existing with the same driver is fine.
    pub fn create_volume(&mut self, spec: &VolumeCreate) -> EngineResult<()> {
        let driver = spec.driver.clone().unwrap_or_else(|| "local".into());
        if let Some(v) = self.volumes.get(spec.name.as_str()) {
            if v.driver == driver {
                return Ok(());
            }
            return Err(EngineError::Conflict(format!("create {}: conflict: volume name must be unique", spec.name)));
        }
        let created = self.now();
        let volume = Volume { driver, labels: spec.labels.clone(), options: spec.driver_opts.clone(), created, files: BTreeMap::new() };
        self.volumes.insert(spec.name.as_str().to_owned(), volume);
        Ok(())
    }

    /// Removes a volume.
    pub fn remove_volume(&mut self, name: &str) -> EngineResult<()> {
        let users = self.users_of(name);
        if !users.is_empty() {
            return Err(EngineError::Conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
        }
        self.volumes.remove(name);
        Ok(())
    }

    /// Ids of containers, running or not, that mount the volume.
    fn users_of(&self, volume: &str) -> Vec<String> {
        let uses = |c: &&Container| c.mounts.iter().any(|m| m.name.as_deref() == Some(volume));
        self.containers.values().filter(uses).map(|c| c.id.as_str().to_owned()).collect()
    }

    /// Takes an image from the scripted registry.
    pub fn pull(&mut self, image: &ImageRef) -> EngineResult<()> {
        let digest = self.published(image.as_str())?;
        let tag = world::with_tag(image.as_str());
        match self.image(&digest).map(|i| i.id.clone()) {
            Some(here) => {
                if !tag.contains('@') {
                    self.move_tag(&here, &tag);
                }
            }
            None => {
                let behaviour = self.manifests[&digest].clone();
                self.add_image(&tag, behaviour, Some(digest));
            }
        }
        Ok(())
    }

    /// Tags an image.
    pub fn tag(&mut self, image: &str, target: &str) -> EngineResult<()> {
        let id = self.image(image).map(|i| i.id.clone()).ok_or_else(|| no_image(image))?;
        self.move_tag(&id, &world::with_tag(target));
        Ok(())
    }

    /// Removes a tag, or the image with its last one; in use is a conflict.
    pub fn remove_image(&mut self, reference: &str) -> EngineResult<()> {
        let image = self.image(reference).cloned().ok_or_else(|| no_image(reference))?;
        let by_id = image.id == reference;
        if !by_id && image.tags.len() > 1 {
            let tag = world::with_tag(reference);
            self.images.iter_mut().filter(|i| i.id == image.id).for_each(|i| i.tags.retain(|t| *t != tag));
            return Ok(());
        }
        if by_id && image.tags.len() > 1 {
            let text = format!("conflict: unable to delete {reference} (must be forced) - image is referenced in multiple repositories");
            return Err(EngineError::Conflict(text));
        }
        if let Some(c) = self.containers.values().find(|c| c.image_id == image.id) {
            let text = format!(
                "conflict: unable to remove repository reference \"{reference}\" (must force) - container {} is using its referenced image",
                c.id.short()
            );
            return Err(EngineError::Conflict(text));
        }
        self.images.retain(|i| i.id != image.id);
        Ok(())
    }

    /// Removes images without tag and container; returns their bytes.
    pub fn prune_images(&mut self) -> u64 {
        let used: BTreeSet<&String> = self.containers.values().map(|c| &c.image_id).collect();
        let before = self.images.len();
        self.images.retain(|i| !i.tags.is_empty() || !i.repo_digests.is_empty() || used.contains(&i.id));
        (before - self.images.len()) as u64 * super::objects::IMAGE_SIZE
    }

    /// Imports an image that runs and does nothing.
    pub fn import_image(&mut self, tag: &ImageRef) -> String {
        self.add_image(tag.as_str(), Behaviour::running(), None)
    }
}

/// Where Docker keeps a volume.
pub(super) fn mountpoint(volume: &str) -> String {
    format!("/var/lib/docker/volumes/{volume}/_data")
}

fn endpoint(a: &NetworkAttachment) -> Endpoint {
    Endpoint { aliases: a.aliases.clone(), fixed: a.ipv4_address.clone(), address: String::new() }
}

fn anonymous_volume(target: &str) -> EngineMount {
    EngineMount::new(MountKind::Volume, target.to_owned())
}

fn no_image(reference: &str) -> EngineError {
    EngineError::NotFound { what: "image", detail: format!("No such image: {reference}") }
}

fn no_network(name: &str) -> EngineError {
    EngineError::NotFound { what: "network", detail: format!("network {name} not found") }
}

fn not_running(id: &str) -> EngineError {
    EngineError::Conflict(format!("Container {id} is not running"))
}
