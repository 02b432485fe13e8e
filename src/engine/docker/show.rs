//! The engine's answers as our model. Pure; what is missing in an answer becomes the field's empty value, never a guess.

use crate::engine::{EngineError, EngineResult};
use crate::model::ids::EngineName;
use crate::model::observed::*;
use crate::model::spec::IpamPool;
use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerStatsResponse, ContainerSummaryStateEnum, EventMessage,
    HealthStatusEnum, ImageInspect, ImageSummary, Ipam, IpamConfig, LocalNodeState, NetworkInspect, PortMap, SystemInfo, SystemVersion,
};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashMap};

/// Kept of the last health probe's output, bytes.
const HEALTH_OUTPUT: usize = 4096;

/// An id of the engine as our name; anything else is an answer we do not understand.
pub(super) fn id(text: Option<String>) -> EngineResult<EngineName> {
    let text = text.ok_or_else(|| EngineError::Protocol("an object without id".into()))?;
    EngineName::new(text).map_err(|e| EngineError::Protocol(e.to_string()))
}

/// The engine itself.
pub(super) fn engine(info: SystemInfo, version: SystemVersion) -> EngineInfo {
    let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
    runtimes.sort();
    EngineInfo {
        version: version.version.or(info.server_version).unwrap_or_default(),
        api_version: version.api_version.unwrap_or_default(),
        id: info.id.unwrap_or_default(),
        name: info.name.unwrap_or_default(),
        cpus: unsigned(info.ncpu),
        memory_bytes: unsigned(info.mem_total),
        os: version.os.or(info.os_type).unwrap_or_default(),
        // The version speaks of architectures as images do (`amd64`), the info as the kernel does (`x86_64`).
        arch: version.arch.or(info.architecture).unwrap_or_default(),
        root_dir: info.docker_root_dir.unwrap_or_default(),
        runtimes,
        swarm: info.swarm.and_then(|s| s.local_node_state) == Some(LocalNodeState::ACTIVE),
        log_driver: info.logging_driver.unwrap_or_default(),
    }
}

/// A row of the container list.
pub(super) fn summary(c: bollard::models::ContainerSummary) -> EngineResult<ContainerSummary> {
    let state = match c.state {
        Some(ContainerSummaryStateEnum::CREATED) => RunState::Created,
        Some(ContainerSummaryStateEnum::RUNNING) => RunState::Running,
        Some(ContainerSummaryStateEnum::PAUSED) => RunState::Paused,
        Some(ContainerSummaryStateEnum::RESTARTING) => RunState::Restarting,
        Some(ContainerSummaryStateEnum::REMOVING) => RunState::Removing,
        Some(ContainerSummaryStateEnum::EXITED) => RunState::Exited,
        Some(ContainerSummaryStateEnum::DEAD) => RunState::Dead,
        other => return Err(EngineError::Protocol(format!("container state {other:?}"))),
    };
    let status = c.status.unwrap_or_default();
    let mut ports: Vec<PublishedPort> = c
        .ports
        .unwrap_or_default()
        .into_iter()
        .map(|p| PublishedPort {
            host_ip: p.ip.unwrap_or_default(),
            host_port: p.public_port.unwrap_or(0),
            container_port: p.private_port,
            protocol: p.typ.map(|t| t.to_string()).unwrap_or_default(),
        })
        .collect();
    sort_ports(&mut ports);
    Ok(ContainerSummary {
        id: id(c.id)?,
        // A linked container has more than one name; its own has one slash.
        name: c
            .names
            .unwrap_or_default()
            .into_iter()
            .find(|n| n.matches('/').count() == 1)
            .map(|n| n.trim_start_matches('/').to_owned())
            .unwrap_or_default(),
        image: c.image.unwrap_or_default(),
        image_id: c.image_id.unwrap_or_default(),
        state,
        health: health_in(&status),
        status,
        labels: sorted(c.labels),
        ports,
        created: c.created.and_then(|s| DateTime::from_timestamp(s, 0)).unwrap_or_default(),
    })
}

/// Health as the status text of a list tells it: the only place where lists before API 1.52 do.
pub(super) fn health_in(status: &str) -> HealthState {
    if status.ends_with("(healthy)") {
        HealthState::Healthy
    } else if status.ends_with("(unhealthy)") {
        HealthState::Unhealthy
    } else if status.ends_with("(health: starting)") {
        HealthState::Starting
    } else {
        HealthState::None
    }
}

/// A container in detail.
pub(super) fn detail(c: ContainerInspectResponse) -> EngineResult<ContainerDetail> {
    let state = c.state.unwrap_or_default();
    let run = run_state(&state)?;
    let own = c.id.clone().unwrap_or_default();
    let config = c.config.unwrap_or_default();
    let host = c.host_config.unwrap_or_default();
    let settings = c.network_settings.unwrap_or_default();
    let bound = settings.ports.filter(|p| p.values().any(Option::is_some));
    let networks = settings.networks.unwrap_or_default();
    let health = state.health.unwrap_or_default();
    let short = own.get(..12).unwrap_or(&own).to_owned();
    Ok(ContainerDetail {
        id: id(c.id)?,
        name: c.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: c.image.unwrap_or_default(),
        state: run,
        health: match health.status {
            Some(HealthStatusEnum::STARTING) => HealthState::Starting,
            Some(HealthStatusEnum::HEALTHY) => HealthState::Healthy,
            // The engine calls a container that was paused unhealthy until its next check, though none has failed.
            Some(HealthStatusEnum::UNHEALTHY) if health.failing_streak.unwrap_or(0) == 0 => HealthState::Starting,
            Some(HealthStatusEnum::UNHEALTHY) => HealthState::Unhealthy,
            Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => HealthState::None,
        },
        exit_code: state.exit_code.unwrap_or(0),
        oom_killed: state.oom_killed.unwrap_or(false),
        error: state.error.unwrap_or_default(),
        restart_count: unsigned(c.restart_count),
        started_at: moment(state.started_at.as_deref()),
        finished_at: moment(state.finished_at.as_deref()),
        labels: sorted(config.labels),
        restart_policy: host
            .restart_policy
            .and_then(|p| p.name)
            .map(|n| n.to_string())
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "no".into()),
        addresses: networks.iter().filter_map(|(n, e)| Some((n.clone(), e.ip_address.clone().filter(|a| !a.is_empty())?))).collect(),
        // Engines before API 1.45 add the short id to the aliases themselves; nobody asked for it.
        networks: networks
            .into_iter()
            .map(|(n, e)| (n, e.aliases.unwrap_or_default().into_iter().filter(|a| *a != short).collect()))
            .collect(),
        mounts: c
            .mounts
            .unwrap_or_default()
            .into_iter()
            .map(|m| MountInfo {
                kind: m.typ.unwrap_or_default(),
                name: m.name.filter(|n| !n.is_empty()),
                source: m.source.unwrap_or_default(),
                target: m.destination.unwrap_or_default(),
                writable: m.rw.unwrap_or(false),
            })
            .collect(),
        ports: ports(bound.or(host.port_bindings).unwrap_or_default()),
        last_health_output: health.log.and_then(|l| l.into_iter().next_back()).and_then(|r| r.output).map(|o| cut(o, HEALTH_OUTPUT)),
        pid: state.pid.unwrap_or(0),
        health_test: test_of(config.healthcheck.and_then(|h| h.test)),
    })
}

/// What a container was made with.
pub(super) fn made_with(c: ContainerInspectResponse) -> MadeWith {
    let settings = super::made::settings(&c);
    let (config, host) = (c.config.unwrap_or_default(), c.host_config.unwrap_or_default());
    MadeWith {
        env: config.env.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        network_mode: host.network_mode.unwrap_or_default(),
        privileged: host.privileged.unwrap_or(false),
        read_only: host.readonly_rootfs.unwrap_or(false),
        cap_add: host.cap_add.unwrap_or_default(),
        cap_drop: host.cap_drop.unwrap_or_default(),
        memory: unsigned(host.memory),
        nano_cpus: unsigned(host.nano_cpus),
        pids: host.pids_limit.unwrap_or(0),
        settings,
    }
}

fn run_state(s: &ContainerState) -> EngineResult<RunState> {
    match s.status {
        Some(ContainerStateStatusEnum::CREATED) => Ok(RunState::Created),
        Some(ContainerStateStatusEnum::RUNNING) => Ok(RunState::Running),
        Some(ContainerStateStatusEnum::PAUSED) => Ok(RunState::Paused),
        Some(ContainerStateStatusEnum::RESTARTING) => Ok(RunState::Restarting),
        Some(ContainerStateStatusEnum::REMOVING) => Ok(RunState::Removing),
        Some(ContainerStateStatusEnum::EXITED) => Ok(RunState::Exited),
        Some(ContainerStateStatusEnum::DEAD) => Ok(RunState::Dead),
        other => Err(EngineError::Protocol(format!("container state {other:?}"))),
    }
}

fn ports(map: PortMap) -> Vec<PublishedPort> {
    let mut out = Vec::new();
    for (key, bindings) in map {
        let (port, protocol) = key.split_once('/').unwrap_or((&key, "tcp"));
        let Ok(container_port) = port.parse() else { continue };
        for b in bindings.unwrap_or_default() {
            // A range `8000-8010` shows its beginning until the engine has chosen.
            let host_port = b.host_port.as_deref().and_then(|p| p.split('-').next()).and_then(|p| p.parse().ok()).unwrap_or(0);
            out.push(PublishedPort { host_ip: b.host_ip.unwrap_or_default(), host_port, container_port, protocol: protocol.to_owned() });
        }
    }
    sort_ports(&mut out);
    out
}

fn sort_ports(ports: &mut [PublishedPort]) {
    ports.sort_by(|a, b| {
        (a.container_port, &a.protocol, a.host_port, &a.host_ip).cmp(&(b.container_port, &b.protocol, b.host_port, &b.host_ip))
    });
}

fn test_of(test: Option<Vec<String>>) -> Option<Vec<String>> {
    test.filter(|t| t.first().is_some_and(|w| w != "NONE"))
}

/// An inspected image.
pub(super) fn image(i: ImageInspect) -> ImageInfo {
    let config = i.config.unwrap_or_default();
    let mut volumes = config.volumes.unwrap_or_default();
    volumes.sort();
    ImageInfo {
        id: i.id.unwrap_or_default(),
        tags: tags(i.repo_tags.unwrap_or_default()),
        repo_digests: tags(i.repo_digests.unwrap_or_default()),
        arch: i.architecture.unwrap_or_default(),
        size: unsigned(i.size),
        created: i.created.filter(|t| t.timestamp() > 0),
        user: config.user.unwrap_or_default(),
        health_test: test_of(config.healthcheck.and_then(|h| h.test)),
        volumes,
        labels: sorted(config.labels),
        env: config.env.unwrap_or_default(),
    }
}

/// A row of the image list: without architecture, user, health check, volumes and environment, which only an inspect tells.
pub(super) fn image_row(i: ImageSummary) -> ImageInfo {
    ImageInfo {
        id: i.id,
        tags: tags(i.repo_tags),
        repo_digests: tags(i.repo_digests),
        arch: String::new(),
        size: unsigned(Some(i.size)),
        created: DateTime::from_timestamp(i.created, 0).filter(|t| t.timestamp() > 0),
        user: String::new(),
        health_test: None,
        volumes: Vec::new(),
        labels: sorted(Some(i.labels)),
        env: Vec::new(),
    }
}

/// Without the engine's `<none>:<none>`.
fn tags(list: Vec<String>) -> Vec<String> {
    list.into_iter().filter(|t| !t.contains("<none>")).collect()
}

/// An inspected network.
pub(super) fn network(n: NetworkInspect) -> EngineResult<NetworkInfo> {
    let mut containers: Vec<String> = n.containers.unwrap_or_default().into_keys().collect();
    containers.sort();
    let (pools, ipam_driver) = ipam(n.ipam);
    Ok(NetworkInfo {
        id: id(n.id)?,
        name: n.name.unwrap_or_default(),
        driver: n.driver.unwrap_or_default(),
        internal: n.internal.unwrap_or(false),
        labels: sorted(n.labels),
        options: sorted(n.options),
        ipv6: n.enable_ipv6.unwrap_or(false),
        attachable: n.attachable.unwrap_or(false),
        subnets: pools.iter().filter_map(|p| p.subnet.clone()).collect(),
        pools,
        ipam_driver,
        containers,
    })
}

/// A row of the network list, without the attached containers.
pub(super) fn network_row(n: bollard::models::Network) -> EngineResult<NetworkInfo> {
    let (pools, ipam_driver) = ipam(n.ipam);
    Ok(NetworkInfo {
        id: id(n.id)?,
        name: n.name.unwrap_or_default(),
        driver: n.driver.unwrap_or_default(),
        internal: n.internal.unwrap_or(false),
        labels: sorted(n.labels),
        options: sorted(n.options),
        ipv6: n.enable_ipv6.unwrap_or(false),
        attachable: n.attachable.unwrap_or(false),
        subnets: pools.iter().filter_map(|p| p.subnet.clone()).collect(),
        pools,
        ipam_driver,
        containers: Vec::new(),
    })
}

/// Address pools and their driver. What is empty was not given.
fn ipam(ipam: Option<Ipam>) -> (Vec<IpamPool>, String) {
    let ipam = ipam.unwrap_or_default();
    let given = |text: Option<String>| text.filter(|t| !t.is_empty());
    let pool = |c: IpamConfig| IpamPool {
        subnet: given(c.subnet),
        ip_range: given(c.ip_range),
        gateway: given(c.gateway),
        aux_addresses: sorted(c.auxiliary_addresses),
    };
    (ipam.config.unwrap_or_default().into_iter().map(pool).collect(), ipam.driver.unwrap_or_default())
}

/// A volume. Volumes of other tools may have names we cannot address; those are left out by the caller.
pub(super) fn volume(v: bollard::models::Volume) -> EngineResult<VolumeInfo> {
    Ok(VolumeInfo {
        name: EngineName::new(v.name).map_err(|e| EngineError::Protocol(e.to_string()))?,
        driver: v.driver,
        mountpoint: v.mountpoint,
        labels: sorted(Some(v.labels)),
        options: sorted(Some(v.options)),
        created: v.created_at,
    })
}

/// An event; `None` for one that is not of a container.
pub(super) fn event(e: EventMessage) -> Option<EngineEvent> {
    let actor = e.actor?;
    let mut labels = sorted(actor.attributes);
    // The engine mixes its own attributes with the labels, and its own win; they are not labels.
    for own in ["image", "name", "exitCode", "signal", "execDuration", "execID"] {
        labels.remove(own);
    }
    let at = e.time_nano.map(DateTime::from_timestamp_nanos).or_else(|| DateTime::from_timestamp(e.time?, 0))?;
    Some(EngineEvent { action: e.action?, container: EngineName::new(actor.id?).ok()?, labels, at })
}

/// A sample from two readings of the same container: CPU by what was used between them.
pub(super) fn stats(first: &ContainerStatsResponse, second: ContainerStatsResponse) -> StatsSample {
    let used =
        |s: &ContainerStatsResponse| s.cpu_stats.as_ref().and_then(|c| c.cpu_usage.as_ref()).and_then(|u| u.total_usage).unwrap_or(0);
    let wall = second.read.zip(first.read).and_then(|(b, a)| (b - a).num_nanoseconds()).filter(|ns| *ns > 0);
    let cpu_percent = wall.map_or(0.0, |ns| used(&second).saturating_sub(used(first)) as f64 * 100.0 / ns as f64);
    let memory = second.memory_stats.unwrap_or_default();
    let detail = memory.stats.unwrap_or_default();
    // The page cache that can be dropped is not use: `total_inactive_file` of cgroup v1, `inactive_file` of v2.
    let cache = detail.get("total_inactive_file").or_else(|| detail.get("inactive_file")).copied().unwrap_or(0);
    let networks = second.networks.unwrap_or_default();
    let blocks = second.blkio_stats.and_then(|b| b.io_service_bytes_recursive).unwrap_or_default();
    let moved =
        |op: &str| blocks.iter().filter(|b| b.op.as_deref().is_some_and(|o| o.eq_ignore_ascii_case(op))).filter_map(|b| b.value).sum();
    StatsSample {
        cpu_percent,
        memory_bytes: memory.usage.unwrap_or(0).saturating_sub(cache),
        memory_limit_bytes: memory.limit.unwrap_or(0),
        net_rx_bytes: networks.values().filter_map(|n| n.rx_bytes).sum(),
        net_tx_bytes: networks.values().filter_map(|n| n.tx_bytes).sum(),
        block_read_bytes: moved("read"),
        block_write_bytes: moved("write"),
        pids: second.pids_stats.and_then(|p| p.current).unwrap_or(0),
    }
}

/// A time of an inspect; the engine's year 1 means never.
fn moment(text: Option<&str>) -> Option<DateTime<Utc>> {
    let at = DateTime::parse_from_rfc3339(text?).ok()?.with_timezone(&Utc);
    (at.timestamp() > 0).then_some(at)
}

/// The beginning of a text, whole characters.
pub(super) fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

fn sorted(map: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().collect()
}

fn unsigned(v: Option<i64>) -> u64 {
    v.and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
