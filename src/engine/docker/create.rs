//! Our container, network and endpoint specifications as the engine's request bodies. Pure. Host paths are only ever mounted (`Mounts`),
//! never made: `Binds` would create what does not exist. What the engine would silently ignore is refused.

use super::rare;
use super::{ApiVersion, IMAGE_MOUNT, MULTI_ENDPOINT, SUBPATH};
use crate::engine::{ContainerSpec, EngineError, EngineMount, EngineResult, InjectedFile, NetworkAttachment, NetworkCreate, PortBinding};
use crate::model::spec::{Healthcheck, MountKind, Restart};
use bollard::models::{
    ContainerCreateBody, DeviceMapping, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Ipam,
    IpamConfig, Mount, MountBindOptions, MountImageOptions, MountTmpfsOptions, MountType, MountVolumeOptions, NetworkCreateRequest,
    NetworkingConfig, PortMap, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::{BTreeMap, HashMap};

/// The body of a create. Below API 1.44 only the first network goes with it; the rest is connected before the start.
pub(super) fn container(spec: &ContainerSpec, api: ApiVersion) -> EngineResult<ContainerCreateBody> {
    check(spec, api)?;
    let at_create = if api >= MULTI_ENDPOINT { spec.networks.len() } else { 1 };
    let endpoints: HashMap<String, EndpointSettings> =
        spec.networks.iter().take(at_create).map(|n| (n.network.clone(), endpoint(n))).collect();
    let mut exposed = spec.exposed.clone();
    exposed.extend(spec.ports.iter().map(port_key).filter(|k| !spec.exposed.contains(k)));
    exposed.sort();
    exposed.dedup();
    Ok(ContainerCreateBody {
        image: Some(spec.image.as_str().to_owned()),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        env: Some(spec.env.clone()),
        labels: Some(map(&spec.labels)),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        healthcheck: spec.healthcheck.as_ref().map(healthcheck),
        exposed_ports: some(&exposed),
        open_stdin: Some(spec.stdin_open),
        tty: Some(spec.tty),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec.stop_timeout_s.map(signed),
        networking_config: (!endpoints.is_empty()).then_some(NetworkingConfig { endpoints_config: Some(endpoints) }),
        host_config: Some(host_config(spec, api)?),
        ..ContainerCreateBody::default()
    })
}

/// Refuses what an engine of this version would take and not do.
fn check(spec: &ContainerSpec, api: ApiVersion) -> EngineResult<()> {
    let needs = |what: &str, version: ApiVersion| {
        let text = format!("{what} needs an engine with API {}.{}, this one has {}.{}", version.0, version.1, api.0, api.1);
        if api < version { Err(EngineError::Refused(text)) } else { Ok(()) }
    };
    for m in &spec.mounts {
        if m.subpath.is_some() {
            needs(&format!("the sub-path of {}", m.target), SUBPATH)?;
        }
        if m.kind == MountKind::Image {
            needs(&format!("the image mount at {}", m.target), IMAGE_MOUNT)?;
        }
    }
    if spec.networks.iter().any(|n| n.mac_address.is_some()) {
        needs("mac_address", MULTI_ENDPOINT)?;
    }
    Ok(())
}

fn host_config(spec: &ContainerSpec, api: ApiVersion) -> EngineResult<HostConfig> {
    let primary = spec.networks.first().map(|n| n.network.clone());
    // What `docker run` and Compose make of this option themselves: an engine knows it by the two lists only.
    let (system, confined): (Vec<String>, Vec<String>) =
        spec.security_opt.iter().cloned().partition(|o| o.trim() == "systempaths=unconfined");
    let open_paths = !system.is_empty();
    Ok(HostConfig {
        mounts: Some(spec.mounts.iter().filter(|m| !rare::is(m)).map(mount).collect::<EngineResult<_>>()?),
        binds: rare::binds(&spec.mounts)?,
        tmpfs: rare::tmpfs(&spec.mounts),
        network_mode: spec.network_mode.clone().or(primary),
        port_bindings: Some(port_map(&spec.ports)),
        restart_policy: Some(restart(spec.restart)),
        nano_cpus: spec.nano_cpus.map(signed),
        memory: spec.memory.map(signed),
        memory_reservation: spec.memory_reservation.map(signed),
        memory_swap: spec.memswap,
        pids_limit: spec.pids,
        cpu_shares: spec.cpu_shares,
        cpuset_cpus: spec.cpuset.clone(),
        cpu_quota: spec.cpu_quota,
        cpu_period: spec.cpu_period,
        privileged: Some(spec.privileged),
        cap_add: some(&spec.cap_add),
        cap_drop: some(&spec.cap_drop),
        security_opt: some(&confined),
        masked_paths: open_paths.then(Vec::new),
        readonly_paths: open_paths.then(Vec::new),
        devices: Some(
            spec.devices
                .iter()
                .map(|d| DeviceMapping {
                    path_on_host: Some(d.source.clone()),
                    path_in_container: Some(d.target.clone()),
                    cgroup_permissions: Some(d.permissions.clone()),
                })
                .collect(),
        ),
        device_cgroup_rules: some(&spec.device_cgroup_rules),
        pid_mode: spec.pid_mode.clone(),
        ipc_mode: spec.ipc_mode.clone(),
        uts_mode: spec.uts_mode.clone(),
        userns_mode: spec.userns_mode.clone(),
        cgroupns_mode: spec.cgroupns_mode.as_deref().map(|m| parse("cgroup", m)).transpose()?,
        cgroup_parent: spec.cgroup_parent.clone(),
        sysctls: (!spec.sysctls.is_empty()).then(|| map(&spec.sysctls)),
        ulimits: Some(
            spec.ulimits
                .iter()
                .map(|(name, (soft, hard))| ResourcesUlimits { name: Some(name.clone()), soft: Some(*soft), hard: Some(*hard) })
                .collect(),
        ),
        shm_size: spec.shm_size.map(signed),
        extra_hosts: some(&spec.extra_hosts),
        dns: some(&spec.dns),
        dns_search: some(&spec.dns_search),
        dns_options: some(&spec.dns_opt),
        group_add: some(&spec.group_add),
        init: spec.init,
        readonly_rootfs: Some(spec.read_only),
        log_config: spec
            .logging
            .as_ref()
            .map(|l| HostConfigLogConfig { typ: Some(l.driver.clone()).filter(|d| !d.is_empty()), config: Some(map(&l.options)) }),
        oom_score_adj: spec.oom_score_adj,
        runtime: spec.runtime.clone(),
        ..rare::host_config(&spec.extras, api)?
    })
}

/// A restart policy.
pub(super) fn restart(restart: Restart) -> RestartPolicy {
    let (name, most) = match restart {
        Restart::No => (RestartPolicyNameEnum::NO, None),
        Restart::Always => (RestartPolicyNameEnum::ALWAYS, None),
        Restart::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, None),
        Restart::OnFailure(most) => (RestartPolicyNameEnum::ON_FAILURE, Some(i64::from(most))),
    };
    RestartPolicy { name: Some(name), maximum_retry_count: most }
}

/// An endpoint on a network.
pub(super) fn endpoint(a: &NetworkAttachment) -> EndpointSettings {
    let fixed = a.ipv4_address.is_some() || a.ipv6_address.is_some() || !a.link_local_ips.is_empty();
    EndpointSettings {
        aliases: some(&a.aliases),
        links: some(&a.links),
        ipam_config: fixed.then(|| EndpointIpamConfig {
            ipv4_address: a.ipv4_address.clone(),
            ipv6_address: a.ipv6_address.clone(),
            link_local_ips: some(&a.link_local_ips),
        }),
        mac_address: a.mac_address.clone(),
        driver_opts: (!a.driver_opts.is_empty()).then(|| map(&a.driver_opts)),
        ..EndpointSettings::default()
    }
}

/// The body of a network's creation.
pub(super) fn network(create: &NetworkCreate) -> NetworkCreateRequest {
    let spec = &create.spec;
    let pools = spec.ipam.iter().map(|p| IpamConfig {
        subnet: p.subnet.clone(),
        ip_range: p.ip_range.clone(),
        gateway: p.gateway.clone(),
        auxiliary_addresses: (!p.aux_addresses.is_empty()).then(|| map(&p.aux_addresses)),
    });
    let ipam = (spec.ipam_driver.is_some() || !spec.ipam.is_empty()).then(|| Ipam {
        driver: Some(spec.ipam_driver.clone().unwrap_or_else(|| "default".into())),
        config: Some(pools.collect()),
        options: None,
    });
    NetworkCreateRequest {
        name: create.name.as_str().to_owned(),
        driver: Some(spec.driver.clone().unwrap_or_else(|| "bridge".into())),
        internal: Some(spec.internal),
        attachable: Some(spec.attachable),
        enable_ipv6: Some(spec.enable_ipv6),
        options: (!spec.driver_opts.is_empty()).then(|| map(&spec.driver_opts)),
        labels: Some(map(&create.labels)),
        ipam,
        ..NetworkCreateRequest::default()
    }
}

/// Milliseconds become nanoseconds; `None` and an empty test leave the image's. `start_interval` is a speed-up that engines before
/// API 1.44 ignore.
fn healthcheck(h: &Healthcheck) -> HealthConfig {
    let ns = |ms: Option<u64>| ms.map(|ms| signed(ms.saturating_mul(1_000_000)));
    HealthConfig {
        test: some(&h.test),
        interval: ns(h.interval_ms),
        timeout: ns(h.timeout_ms),
        retries: h.retries.map(i64::from),
        start_period: ns(h.start_period_ms),
        start_interval: ns(h.start_interval_ms),
    }
}

fn mount(m: &EngineMount) -> EngineResult<Mount> {
    let mut mount = Mount { target: Some(m.target.clone()), source: m.source.clone(), read_only: Some(m.read_only), ..Mount::default() };
    mount.typ = Some(match m.kind {
        MountKind::Bind => {
            let propagation = m.propagation.as_deref().map(|p| parse("bind.propagation", p)).transpose()?;
            mount.bind_options = propagation.map(|p| MountBindOptions { propagation: Some(p), ..MountBindOptions::default() });
            MountType::BIND
        }
        MountKind::Volume => {
            let special = m.nocopy || m.subpath.is_some();
            mount.volume_options = special.then(|| MountVolumeOptions {
                no_copy: Some(m.nocopy),
                subpath: m.subpath.clone(),
                ..MountVolumeOptions::default()
            });
            MountType::VOLUME
        }
        MountKind::Tmpfs => {
            mount.tmpfs_options =
                Some(MountTmpfsOptions { size_bytes: m.tmpfs_size.map(signed), mode: m.tmpfs_mode.map(i64::from), options: None });
            MountType::TMPFS
        }
        MountKind::Npipe => MountType::NPIPE,
        MountKind::Cluster => MountType::CLUSTER,
        MountKind::Image => {
            mount.image_options = m.subpath.as_ref().map(|s| MountImageOptions { subpath: Some(s.clone()) });
            MountType::IMAGE
        }
    });
    Ok(mount)
}

fn port_key(p: &PortBinding) -> String {
    format!("{}/{}", p.container_port, p.protocol)
}

fn port_map(ports: &[PortBinding]) -> PortMap {
    let mut out = PortMap::new();
    for p in ports {
        let binding =
            bollard::models::PortBinding { host_ip: Some(p.host_ip.clone()), host_port: Some(p.host_port.clone().unwrap_or_default()) };
        out.entry(port_key(p)).or_default().get_or_insert_default().push(binding);
    }
    out
}

/// Directories above the files, outermost first, `/` left out.
pub(super) fn parents(files: &[InjectedFile]) -> std::collections::BTreeSet<String> {
    let above = |f: &InjectedFile| f.path.match_indices('/').skip(1).map(|(at, _)| f.path[..at].to_owned()).collect::<Vec<_>>();
    files.iter().flat_map(above).collect()
}

/// A tar of files with modes and owners, to be unpacked at `/`. `missing` directories are made for all to enter (the engine would make
/// them for root alone); those that are there must not be named, or their modes would change.
pub(super) fn files_tar(files: &[InjectedFile], missing: &[String]) -> EngineResult<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for dir in missing {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        let inside = format!("{}/", dir.trim_start_matches('/'));
        tar.append_data(&mut header, inside, &[][..]).map_err(|e| EngineError::Refused(format!("directory {dir:?}: {e}")))?;
    }
    for f in files {
        let bad = |why: String| EngineError::Refused(format!("file {:?}: {why}", f.path));
        let inside = f.path.strip_prefix('/').filter(|p| !p.is_empty() && p.split('/').all(|c| !matches!(c, "" | "." | "..")));
        let inside = inside.ok_or_else(|| bad("its path must be absolute, without '.' and '..'".into()))?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(f.content.len() as u64);
        header.set_mode(f.mode);
        header.set_uid(f.uid);
        header.set_gid(f.gid);
        tar.append_data(&mut header, inside, f.content.as_slice()).map_err(|e| bad(e.to_string()))?;
    }
    tar.into_inner().map_err(|e| EngineError::Refused(format!("packing files: {e}")))
}

fn parse<T: std::str::FromStr>(what: &str, text: &str) -> EngineResult<T> {
    text.parse().map_err(|_| EngineError::Refused(format!("{what}: {text:?} is no value the engine knows")))
}

/// Sizes beyond what the engine can hold mean "as much as there is".
fn signed(v: u64) -> i64 {
    i64::try_from(v).unwrap_or(i64::MAX)
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

pub(super) fn map(m: &BTreeMap<String, String>) -> HashMap<String, String> {
    m.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests;
