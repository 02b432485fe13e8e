//! A service of a release as one engine request. Chooses nothing: everything was decided by the plan. Pure.

use super::names;
use crate::engine::{ContainerSpec, EngineMount, Extras, InjectedFile, NetworkAttachment, PortBinding};
use crate::model::ids::{EngineName, ImageRef, OperationId, ServiceName};
use crate::model::labels;
use crate::model::observed::MountInfo;
use crate::model::spec::mounts;
use crate::model::spec::{FileMount, FileObject, Logging, MountKind, MountSpec, PortSpec, Restart, ServiceSpec, StackSpec};
use crate::planner::front::fronted;
use std::collections::{BTreeMap, BTreeSet};

/// What a container is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds the service's alias, ports and Compose labels.
    Serving,
    /// Proves a version beside the old one: no alias, no ports, no Compose labels.
    Canary,
}

/// Everything one container needs beside the service's text.
#[derive(Debug)]
pub struct Rendering<'a> {
    /// Instance of the home.
    pub instance: &'a str,
    /// Stack.
    pub stack: &'a StackSpec,
    /// Service.
    pub service: &'a ServiceName,
    /// Number from 1.
    pub number: u32,
    /// Role.
    pub role: Role,
    /// Operation.
    pub operation: &'a OperationId,
    /// Release it belongs to.
    pub release: u32,
    /// Image id.
    pub image: ImageRef,
    /// Spec hash.
    pub hash: String,
    /// Mounts of the container it replaces: anonymous volumes are carried over by name.
    pub inherited: &'a [MountInfo],
    /// Engine names of the volumes this release or the one before declares: they are mounted where the file says, and nowhere else.
    pub declared: BTreeSet<String>,
    /// Containers of the services whose namespaces or volumes it shares.
    pub joined: BTreeMap<String, EngineName>,
    /// The engine's log driver for containers that name none.
    pub log_driver: &'a str,
}

/// The log driver that engines come with.
const JSON_FILE: &str = "json-file";
/// Default limits of a json-file log where a service has none.
const LOG_MAX_SIZE: &str = "10m";
const LOG_MAX_FILE: &str = "3";

/// Name of the volume of an old container's mount that the next container of its service takes over. `declared`: names that this release or the one before
/// gives its volumes.
pub fn carried_over<'a>(spec: &ServiceSpec, old: &'a MountInfo, declared: &BTreeSet<String>) -> Option<&'a String> {
    let name = old.name.as_ref().filter(|_| old.kind == "volume")?;
    let carry = match spec.mounts.iter().find(|m| m.target == old.target) {
        // What is there by another service's volumes comes from there again.
        None => !declared.contains(name) && (spec.volumes_from.is_empty() || anonymous_name(name)),
        Some(m) => m.kind == MountKind::Volume && m.source.is_none(),
    };
    carry.then_some(name)
}

/// The request. Restart policy is `no`: a container gets the file's policy when it takes over.
///
/// # Errors
/// A sentence when the service asks for something that cannot be expressed, e.g. an inline secret in a read-only container.
pub fn container(r: &Rendering<'_>) -> Result<ContainerSpec, String> {
    let spec = r.stack.services.get(r.service).ok_or_else(|| format!("the release has no service {}", r.service))?;
    let serving = r.role == Role::Serving;
    let published = serving && !fronted(spec);
    let mut mounts: Vec<EngineMount> = spec.mounts.iter().map(|m| mount(r.stack, m)).collect();
    for old in r.inherited {
        if let Some(name) = carried_over(spec, old, &r.declared) {
            mounts.retain(|m| m.target != old.target);
            mounts.push(volume(name, &old.target, !old.writable));
        }
    }
    let targets: Vec<&str> = mounts.iter().map(|m| m.target.as_str()).collect();
    let (files, file_mounts) = files(r.stack, r.service, spec, &targets)?;
    mounts.extend(file_mounts);
    Ok(ContainerSpec {
        name: if serving { names::working(r.operation, r.service, r.number) } else { names::canary(r.operation, r.service) },
        image: r.image.clone(),
        command: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        env: spec.environment.iter().filter_map(|(k, v)| v.as_ref().map(|v| format!("{k}={v}"))).collect(),
        labels: labels_of(r, spec),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        healthcheck: spec.healthcheck.clone(),
        exposed: spec.expose.clone(),
        ports: if published { spec.ports.iter().map(|p| port(p, r.number)).collect() } else { vec![] },
        mounts,
        networks: if spec.network_mode.is_some() { vec![] } else { attachments(r, spec) },
        network_mode: r.mode(spec.network_mode.as_ref())?,
        restart: Restart::No,
        nano_cpus: spec.resources.nano_cpus,
        memory: spec.resources.memory,
        memory_reservation: spec.resources.memory_reservation,
        memswap: spec.resources.memswap,
        pids: spec.resources.pids,
        cpu_shares: spec.resources.cpu_shares,
        cpuset: spec.resources.cpuset.clone(),
        cpu_quota: spec.resources.cpu_quota,
        cpu_period: spec.resources.cpu_period,
        privileged: spec.privileged,
        cap_add: spec.cap_add.clone(),
        cap_drop: spec.cap_drop.clone(),
        security_opt: spec.security_opt.clone(),
        devices: spec.devices.clone(),
        device_cgroup_rules: spec.device_cgroup_rules.clone(),
        pid_mode: r.mode(spec.pid.as_ref())?,
        ipc_mode: r.mode(spec.ipc.as_ref())?,
        uts_mode: spec.uts.clone(),
        userns_mode: spec.userns_mode.clone(),
        cgroupns_mode: spec.cgroup.clone(),
        cgroup_parent: spec.cgroup_parent.clone(),
        sysctls: spec.sysctls.clone(),
        ulimits: spec.ulimits.clone(),
        shm_size: spec.shm_size,
        extra_hosts: spec.extra_hosts.clone(),
        dns: spec.dns.clone(),
        dns_search: spec.dns_search.clone(),
        dns_opt: spec.dns_opt.clone(),
        group_add: spec.group_add.clone(),
        init: spec.init,
        read_only: spec.read_only,
        stdin_open: spec.stdin_open,
        tty: spec.tty,
        stop_signal: spec.stop_signal.clone(),
        stop_timeout_s: spec.stop_grace_period_ms.map(|ms| ms.div_ceil(1000)),
        logging: logging(spec, r.log_driver),
        oom_score_adj: spec.oom_score_adj,
        runtime: spec.runtime.clone(),
        files,
        extras: extras(r, spec)?,
    })
}

/// Names the engine makes for volumes without one: 64 hexadecimal digits.
fn anonymous_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Services whose containers must be known to make one of this service: those whose namespaces or volumes it shares.
pub fn shared_with(spec: &ServiceSpec) -> BTreeSet<&str> {
    let modes = [&spec.network_mode, &spec.pid, &spec.ipc].into_iter().flatten().filter_map(|m| m.strip_prefix("service:"));
    modes.chain(spec.volumes_from.iter().filter_map(|v| volumes_of(v).ok()).map(|(service, _)| service)).collect()
}

/// `service[:mode]`, or what follows `container:`.
fn volumes_of(written: &str) -> Result<(&str, &str), (&str, &str)> {
    match written.strip_prefix("container:") {
        Some(rest) => Err(rest.split_once(':').unwrap_or((rest, ""))),
        None => Ok(written.split_once(':').unwrap_or((written, ""))),
    }
}

impl Rendering<'_> {
    /// The container that stands for a service.
    fn of(&self, service: &str) -> Result<&EngineName, String> {
        self.joined.get(service).ok_or_else(|| format!("service {} shares with {service}, which has no container", self.service))
    }

    fn mode(&self, mode: Option<&String>) -> Result<Option<String>, String> {
        match mode.and_then(|m| m.strip_prefix("service:")) {
            Some(service) => Ok(Some(format!("container:{}", self.of(service)?))),
            None => Ok(mode.cloned()),
        }
    }
}

fn extras(r: &Rendering<'_>, spec: &ServiceSpec) -> Result<Extras, String> {
    let written = &spec.written;
    let reserved =
        written.deploy.as_ref().and_then(|d| d.resources.reservations.as_ref()).map(|r| r.devices.as_slice()).unwrap_or_default();
    let mut gpus = written.gpus.clone();
    for g in gpus.iter_mut().filter(|g| !g.capabilities.iter().any(|c| c == "gpu")) {
        g.capabilities.push("gpu".into());
    }
    let volumes = spec.volumes_from.iter().map(|written| {
        let (name, mode) = match volumes_of(written) {
            Ok((service, mode)) => (r.of(service)?.as_str(), mode),
            Err((container, mode)) => (container, mode),
        };
        Ok(if mode.is_empty() { name.to_owned() } else { format!("{name}:{mode}") })
    });
    Ok(Extras {
        annotations: spec.annotations.clone(),
        blkio: written.blkio_config.clone(),
        cpu_rt_period: written.cpu_rt_period,
        cpu_rt_runtime: written.cpu_rt_runtime,
        device_requests: reserved.iter().cloned().chain(gpus).collect(),
        swappiness: spec.resources.swappiness,
        oom_kill_disable: spec.oom_kill_disable,
        storage_opt: spec.storage_opt.clone(),
        volumes_from: volumes.collect::<Result<_, String>>()?,
        platform: spec.platform.clone(),
    })
}

/// What the service alone calls others: a link is an alias of a name that the network knows, so it outlives the container behind the name.
fn links(spec: &ServiceSpec) -> Vec<String> {
    let named = |l: &String| match l.split_once(':') {
        Some((name, alias)) if name != alias => Some(format!("{name}:{alias}")),
        // The network knows the name as it is.
        Some(_) | None => None,
    };
    spec.links.iter().chain(&spec.external_links).filter_map(named).collect()
}

fn labels_of(r: &Rendering<'_>, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut map = spec.labels.clone();
    map.extend(names::base(r.instance, &r.stack.name, r.operation));
    let serving = r.role == Role::Serving;
    map.extend([
        (labels::SERVICE.to_owned(), r.service.to_string()),
        (labels::RELEASE.to_owned(), r.release.to_string()),
        (labels::NUMBER.to_owned(), r.number.to_string()),
        (labels::SPEC.to_owned(), r.hash.clone()),
        (labels::ROLE.to_owned(), if serving { labels::ROLE_SERVING } else { labels::ROLE_CANARY }.to_owned()),
    ]);
    if serving && fronted(spec) {
        map.insert(labels::BACKEND.to_owned(), names::backend(r.operation, r.service, r.number).to_string());
    }
    if serving {
        map.extend([
            (labels::COMPOSE_PROJECT.to_owned(), r.stack.name.to_string()),
            (labels::COMPOSE_SERVICE.to_owned(), r.service.to_string()),
            (labels::COMPOSE_NUMBER.to_owned(), r.number.to_string()),
            (labels::COMPOSE_HASH.to_owned(), r.hash.clone()),
            (labels::COMPOSE_ONEOFF.to_owned(), "False".to_owned()),
        ]);
    }
    map
}

/// Where the file names no driver the engine's is left alone; the `json-file` that engines come with has no bound of its own, so it gets one.
fn logging(spec: &ServiceSpec, engines: &str) -> Option<Logging> {
    let mut logging = spec.logging.clone().unwrap_or_default();
    if logging.driver.is_empty() {
        if !matches!(engines, "" | JSON_FILE) {
            return spec.logging.clone();
        }
        logging.driver = JSON_FILE.into();
    }
    if logging.driver == JSON_FILE && !logging.options.contains_key("max-size") {
        logging.options.insert("max-size".into(), LOG_MAX_SIZE.into());
        logging.options.entry("max-file".into()).or_insert_with(|| LOG_MAX_FILE.into());
    }
    Some(logging)
}

/// The host port of the n-th copy: the n-th of a range, so that copies do not race for one.
pub(super) fn port(p: &PortSpec, number: u32) -> PortBinding {
    let nth = |range: &str| {
        let (first, last) = range.split_once('-')?;
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        Some((first + number - 1).min(last).to_string())
    };
    PortBinding {
        host_ip: p.host_ip.clone().unwrap_or_default(),
        host_port: p.published.as_ref().map(|range| nth(range).unwrap_or_else(|| range.clone())),
        container_port: p.target,
        protocol: p.protocol.to_ascii_lowercase(),
    }
}

fn attachments(r: &Rendering<'_>, spec: &ServiceSpec) -> Vec<NetworkAttachment> {
    let mut keys: Vec<_> = spec.networks.iter().collect();
    keys.sort_by_key(|(key, n)| (std::cmp::Reverse(n.priority.unwrap_or(0)), (*key).clone()));
    keys.into_iter()
        .map(|(key, n)| {
            let network = r.stack.networks.get(key).map_or_else(|| key.clone(), |s| s.name.clone());
            // Behind a front the front holds the service's name and fixed addresses.
            let serving = r.role == Role::Serving && !fronted(spec);
            let mut aliases = vec![];
            if r.role == Role::Serving && fronted(spec) {
                aliases.push(names::backend(r.operation, r.service, r.number).to_string());
            }
            if serving {
                aliases.extend([r.service.to_string(), names::canonical(&r.stack.name, r.service, spec, r.number).to_string()]);
                aliases.push(format!("{}-{}-{}", r.stack.name, r.service, r.number));
                aliases.extend(n.aliases.iter().cloned());
                aliases.sort();
                aliases.dedup();
            }
            NetworkAttachment {
                network,
                aliases,
                // A canary never takes a fixed address: the old container still holds it.
                ipv4_address: n.ipv4_address.clone().filter(|_| serving),
                ipv6_address: n.ipv6_address.clone().filter(|_| serving),
                link_local_ips: if serving { n.link_local_ips.clone() } else { vec![] },
                mac_address: n.mac_address.clone().or_else(|| spec.mac_address.clone()).filter(|_| serving),
                driver_opts: n.driver_opts.clone(),
                links: links(spec),
            }
        })
        .collect()
}

fn mount(stack: &StackSpec, m: &MountSpec) -> EngineMount {
    let source = match m.kind {
        MountKind::Volume | MountKind::Cluster => {
            m.source.as_ref().map(|key| stack.volumes.get(key).map_or_else(|| key.clone(), |v| v.name.clone()))
        }
        MountKind::Bind | MountKind::Npipe | MountKind::Image => m.source.clone(),
        MountKind::Tmpfs => None,
    };
    EngineMount {
        kind: m.kind,
        source,
        target: m.target.clone(),
        read_only: m.read_only,
        propagation: m.propagation.clone(),
        nocopy: m.nocopy,
        subpath: m.subpath.clone(),
        tmpfs_size: m.tmpfs_size,
        tmpfs_mode: m.tmpfs_mode,
        tmpfs_options: m.tmpfs_options.clone(),
        selinux: m.selinux.clone(),
    }
}

fn volume(name: &str, target: &str, read_only: bool) -> EngineMount {
    EngineMount { source: Some(name.to_owned()), ..plain(MountKind::Volume, target, read_only) }
}

fn plain(kind: MountKind, target: &str, read_only: bool) -> EngineMount {
    EngineMount { read_only, ..EngineMount::new(kind, target.to_owned()) }
}

/// Configs and secrets: copied into the container before it starts. A read-only container takes no copies, and what is mounted above a target would: the
/// copy would be in a volume or a host's directory that the old one is still at work on, or be hidden by memory. There a file is mounted.
fn files(
    stack: &StackSpec,
    service: &ServiceName,
    spec: &ServiceSpec,
    targets: &[&str],
) -> Result<(Vec<InjectedFile>, Vec<EngineMount>), String> {
    let mut copies = vec![];
    let mut binds = vec![];
    let configs = spec.configs.iter().map(|m| ("config", m, stack.configs.get(&m.source)));
    let secrets = spec.secrets.iter().map(|m| ("secret", m, stack.secrets.get(&m.source)));
    for (kind, wanted, object) in configs.chain(secrets) {
        let object = object.ok_or_else(|| format!("service {service} names {kind} {}, which the file does not define", wanted.source))?;
        // As in Compose a mount of the service at the same place counts.
        if targets.iter().any(|t| mounts::same_place(t, &wanted.target)) {
            continue;
        }
        let covered = mounts::above(&wanted.target, targets.iter().copied());
        match deliver(wanted, object, spec.read_only || covered.is_some()) {
            Some(Delivery::Copy(file)) => copies.push(file),
            Some(Delivery::Mount(m)) => binds.push(m),
            None => {
                let why = match covered {
                    _ if object.external => "external ones need a swarm".to_owned(),
                    Some(mount) if object.content.is_some() => {
                        format!("its target {} lies in the mount at {mount}; choose another target, or give it with `file:`", wanted.target)
                    }
                    _ => "a read_only service takes only configs and secrets with `file:`".to_owned(),
                };
                return Err(format!("{kind} {} of service {service} cannot be delivered: {why}", wanted.source));
            }
        }
    }
    Ok((copies, binds))
}

/// Whether every config and secret of a service can be delivered. `carried` are the places of volumes that its container takes over from the one before.
///
/// # Errors
/// A sentence that names the first that cannot.
pub fn deliverable(stack: &StackSpec, service: &ServiceName, carried: &[&str]) -> Result<(), String> {
    let spec = stack.services.get(service).ok_or_else(|| format!("the release has no service {service}"))?;
    let targets: Vec<&str> = spec.mounts.iter().map(|m| m.target.as_str()).chain(carried.iter().copied()).collect();
    files(stack, service, spec, &targets).map(|_| ())
}

enum Delivery {
    Copy(InjectedFile),
    Mount(EngineMount),
}

fn deliver(wanted: &FileMount, object: &FileObject, mounted: bool) -> Option<Delivery> {
    let number = |id: &Option<String>| id.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    match (&object.content, &object.file) {
        (Some(content), _) if !mounted => Some(Delivery::Copy(InjectedFile {
            path: wanted.target.clone(),
            content: content.clone().into_bytes(),
            mode: wanted.mode.unwrap_or(0o444),
            uid: number(&wanted.uid),
            gid: number(&wanted.gid),
        })),
        (_, Some(file)) => {
            Some(Delivery::Mount(EngineMount { source: Some(file.clone()), ..plain(MountKind::Bind, &wanted.target, true) }))
        }
        (_, None) => None,
    }
}

/// The never started container that claims a stack. Its command never runs; an engine refuses a container without any.
pub fn claim(name: &EngineName, image: &ImageRef) -> ContainerSpec {
    ContainerSpec {
        command: Some(vec!["dockwarden-claim".into()]),
        network_mode: Some("none".into()),
        cap_drop: vec!["ALL".into()],
        read_only: true,
        ..ContainerSpec::new(name.clone(), image.clone())
    }
}
