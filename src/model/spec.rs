//! The resolved stack: a closed, typed form of a compose file after interpolation, merging and defaults. The gate judges it, the
//! planner diffs it, the executor turns it into engine requests, a release stores it. Units: bytes, nanoseconds of CPU (1e9 = one
//! CPU), milliseconds. Maps are ordered, so the canonical JSON of a value is stable.

pub mod checks;
pub mod confinement;
pub mod files;
pub mod mounts;
pub mod settings;
pub mod written;

pub use checks::{Command, Hook, Hooks, HttpProbe, Probe, ProbeCheck, Trigger, TriggerAction, Triggers};
pub use files::{FileMount, FileObject};
pub use mounts::{MountKind, MountSpec};
pub use settings::{
    BackupSettings, CanarySettings, Criticality, DriftMode, FrontSettings, HealMode, Keep, Monitor, Quiesce, START_TIMEOUT_MOST,
    ServiceSettings, StackHook, StackHooks, StackSettings, StackTest, VolumeSettings,
};

use super::ids::{ImageRef, ServiceName, StackName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A whole stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackSpec {
    /// Project name.
    pub name: StackName,
    /// All services, also those whose profile is not active (`ServiceSpec::active` tells).
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// Networks by key in the file; `default` is present when a service uses it.
    pub networks: BTreeMap<String, NetworkSpec>,
    /// Volumes by key in the file.
    pub volumes: BTreeMap<String, VolumeSpec>,
    /// Configs by key.
    pub configs: BTreeMap<String, FileObject>,
    /// Secrets by key.
    pub secrets: BTreeMap<String, FileObject>,
    /// `x-dockwarden` at the top of the file.
    #[serde(default)]
    pub settings: StackSettings,
    /// Other `x-` keys at the top of the file, as canonical JSON.
    #[serde(default)]
    pub extensions: BTreeMap<String, serde_json::Value>,
    /// What the file asks for and we do not do, by path; shown in the plan, never dropped silently.
    #[serde(default)]
    pub unsupported: Vec<Unsupported>,
    /// Secrets among the variables of the call it came with, which may stand anywhere in it: never shown.
    #[serde(default, skip_serializing_if = "std::collections::BTreeSet::is_empty")]
    pub declared: std::collections::BTreeSet<String>,
}

impl StackSpec {
    /// A stack of nothing.
    pub fn new(name: StackName) -> Self {
        Self {
            name,
            services: BTreeMap::new(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            configs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            settings: StackSettings::default(),
            extensions: BTreeMap::new(),
            unsupported: vec![],
            declared: Default::default(),
        }
    }
}

/// Something in the file that has no effect here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// Path, e.g. `services.web.build`.
    pub path: String,
    /// Why, and what to do instead.
    pub reason: String,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    /// Whether an active profile (or none) selects it.
    pub active: bool,
    /// Profiles as written.
    pub profiles: Vec<String>,
    /// Image; `None` only with `build`.
    pub image: Option<ImageRef>,
    /// Build section as canonical JSON, when there is one.
    pub build: Option<serde_json::Value>,
    /// Command; `None` = the image's; `Some(vec![])` = cleared.
    pub command: Option<Vec<String>>,
    /// Entrypoint; `None` = the image's; `Some(vec![])` = cleared.
    pub entrypoint: Option<Vec<String>>,
    /// Environment; `None` = named without a value and unset.
    pub environment: BTreeMap<String, Option<String>>,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
    /// Dependencies.
    pub depends_on: BTreeMap<ServiceName, Dependency>,
    /// Health check of the file; `None` = the image's, if it has one.
    pub healthcheck: Option<Healthcheck>,
    /// Published ports, one entry per port (ranges expanded).
    pub ports: Vec<PortSpec>,
    /// Ports only exposed, e.g. `8080/tcp`.
    pub expose: Vec<String>,
    /// Mounts: binds, volumes, tmpfs (the `tmpfs:` key included).
    pub mounts: Vec<MountSpec>,
    /// Networks by key in the file; empty with `network_mode`.
    pub networks: BTreeMap<String, ServiceNetwork>,
    /// `network_mode`, e.g. `host`, `none`, `service:db`, `container:x`.
    pub network_mode: Option<String>,
    /// Restart policy.
    pub restart: Restart,
    /// Number of containers (`scale`, `deploy.replicas`); 1 by default.
    pub replicas: u32,
    /// Limits and reservations.
    pub resources: Resources,
    /// `user`.
    pub user: Option<String>,
    /// `working_dir`.
    pub working_dir: Option<String>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `domainname`.
    pub domainname: Option<String>,
    /// `container_name`.
    pub container_name: Option<String>,
    /// `privileged`.
    pub privileged: bool,
    /// `cap_add`, as written.
    pub cap_add: Vec<String>,
    /// `cap_drop`, as written.
    pub cap_drop: Vec<String>,
    /// `security_opt`.
    pub security_opt: Vec<String>,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
    /// `device_cgroup_rules`.
    pub device_cgroup_rules: Vec<String>,
    /// GPUs and reserved devices (`gpus`, `deploy.resources.reservations.devices`) as canonical JSON.
    pub device_requests: Vec<serde_json::Value>,
    /// `pid`.
    pub pid: Option<String>,
    /// `ipc`.
    pub ipc: Option<String>,
    /// `uts`.
    pub uts: Option<String>,
    /// `userns_mode`.
    pub userns_mode: Option<String>,
    /// `cgroup` (`host` or `private`).
    pub cgroup: Option<String>,
    /// `cgroup_parent`.
    pub cgroup_parent: Option<String>,
    /// `isolation`.
    pub isolation: Option<String>,
    /// `sysctls`.
    pub sysctls: BTreeMap<String, String>,
    /// `ulimits`: name -> (soft, hard).
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// `shm_size` in bytes.
    pub shm_size: Option<u64>,
    /// `extra_hosts`: `host:address` entries.
    pub extra_hosts: Vec<String>,
    /// `dns`.
    pub dns: Vec<String>,
    /// `dns_search`.
    pub dns_search: Vec<String>,
    /// `dns_opt`.
    pub dns_opt: Vec<String>,
    /// `group_add`.
    pub group_add: Vec<String>,
    /// `init`.
    pub init: Option<bool>,
    /// `read_only`.
    pub read_only: bool,
    /// `stdin_open`.
    pub stdin_open: bool,
    /// `tty`.
    pub tty: bool,
    /// `stop_signal`.
    pub stop_signal: Option<String>,
    /// `stop_grace_period` in milliseconds.
    pub stop_grace_period_ms: Option<u64>,
    /// Logging driver and options.
    pub logging: Option<Logging>,
    /// Configs mounted.
    pub configs: Vec<FileMount>,
    /// Secrets mounted.
    pub secrets: Vec<FileMount>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i64>,
    /// `oom_kill_disable`.
    pub oom_kill_disable: bool,
    /// `runtime`.
    pub runtime: Option<String>,
    /// `platform`.
    pub platform: Option<String>,
    /// `pull_policy`.
    pub pull_policy: Option<String>,
    /// `volumes_from`, as written.
    pub volumes_from: Vec<String>,
    /// `links`, as written.
    pub links: Vec<String>,
    /// `external_links`, as written.
    pub external_links: Vec<String>,
    /// `mac_address`.
    pub mac_address: Option<String>,
    /// `storage_opt`.
    pub storage_opt: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `use_api_socket`: asks for the engine's socket.
    pub use_api_socket: bool,
    /// `x-dockwarden` of the service.
    pub settings: ServiceSettings,
    /// Every other key that compose knows, as canonical JSON, so that a diff and the gate still see it.
    pub other: BTreeMap<String, serde_json::Value>,
    /// Keys as the file has them, where the fields above do not tell.
    pub written: written::Written,
}

/// When a dependency counts as met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// Started.
    #[default]
    ServiceStarted,
    /// Its health check passes.
    ServiceHealthy,
    /// It ended with exit code 0.
    ServiceCompletedSuccessfully,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Condition.
    pub condition: DependencyCondition,
    /// Whether a missing dependency is an error.
    pub required: bool,
    /// Restart with the dependency.
    pub restart: bool,
}

/// Health check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", "..."]`; empty = the image's.
    pub test: Vec<String>,
    /// Interval in ms.
    pub interval_ms: Option<u64>,
    /// Time-out in ms.
    pub timeout_ms: Option<u64>,
    /// Retries.
    pub retries: Option<u32>,
    /// Start period in ms.
    pub start_period_ms: Option<u64>,
    /// Interval within the start period in ms.
    pub start_interval_ms: Option<u64>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Port inside.
    pub target: u16,
    /// Host port or range (`8080`, `8080-8090`), `None` = the engine chooses.
    pub published: Option<String>,
    /// Host address; `None` = all.
    pub host_ip: Option<String>,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// `ingress` or `host`.
    pub mode: String,
    /// `name`; for readers only.
    #[serde(default)]
    pub name: Option<String>,
    /// `app_protocol`; for readers only.
    #[serde(default)]
    pub app_protocol: Option<String>,
    /// Path in the file, e.g. `services.web.ports[0]`.
    #[serde(default)]
    pub path: String,
}

/// A service's attachment to a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceNetwork {
    /// Extra aliases.
    pub aliases: Vec<String>,
    /// Fixed IPv4 address.
    pub ipv4_address: Option<String>,
    /// Fixed IPv6 address.
    pub ipv6_address: Option<String>,
    /// Link-local addresses.
    pub link_local_ips: Vec<String>,
    /// MAC address.
    pub mac_address: Option<String>,
    /// Order of attachment, higher first.
    pub priority: Option<i64>,
    /// `gw_priority`: which network has the default route.
    pub gw_priority: Option<i64>,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
}

/// Restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Never (Compose's default).
    #[default]
    No,
    /// Always.
    Always,
    /// On a non-zero exit, at most so often (0 = without bound).
    OnFailure(u32),
    /// Always unless stopped by hand.
    UnlessStopped,
}

/// Limits and reservations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CPU limit in billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// Process limit.
    pub pids: Option<i64>,
    /// Reserved memory in bytes.
    pub memory_reservation: Option<u64>,
    /// Reserved CPU in billionths.
    pub nano_cpus_reservation: Option<u64>,
    /// Memory plus swap in bytes, -1 = no limit.
    pub memswap: Option<i64>,
    /// Swappiness 0..100.
    pub swappiness: Option<i64>,
    /// `cpu_shares`.
    pub cpu_shares: Option<i64>,
    /// `cpuset`.
    pub cpuset: Option<String>,
    /// `cpu_quota`, `cpu_period` in microseconds.
    pub cpu_quota: Option<i64>,
    /// see `cpu_quota`.
    pub cpu_period: Option<i64>,
    /// `blkio_config` as canonical JSON.
    pub blkio: Option<serde_json::Value>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Host path (or CDI name).
    pub source: String,
    /// Path inside.
    pub target: String,
    /// `rwm` subset.
    pub permissions: String,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Logging {
    /// Driver; empty = the engine's default.
    pub driver: String,
    /// Options.
    pub options: BTreeMap<String, String>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// Name on the engine (`name:` or `<stack>_<key>`).
    pub name: String,
    /// Kept outside of this stack.
    pub external: bool,
    /// Driver; `None` = bridge.
    pub driver: Option<String>,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// No route out.
    pub internal: bool,
    /// Attachable.
    pub attachable: bool,
    /// IPv6.
    pub enable_ipv6: bool,
    /// `enable_ipv6` as written.
    pub written_ipv6: Option<bool>,
    /// `enable_ipv4` as written.
    pub written_ipv4: Option<bool>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// IPAM driver.
    pub ipam_driver: Option<String>,
    /// IPAM pools.
    pub ipam: Vec<IpamPool>,
}

/// One IPAM pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamPool {
    /// CIDR.
    pub subnet: Option<String>,
    /// CIDR.
    pub ip_range: Option<String>,
    /// Address.
    pub gateway: Option<String>,
    /// Reserved addresses.
    pub aux_addresses: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeSpec {
    /// Name on the engine (`name:` or `<stack>_<key>`).
    pub name: String,
    /// Kept outside of this stack.
    pub external: bool,
    /// Driver; `None` = local.
    pub driver: Option<String>,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Name the file gives, when `name` is a restored volume taken into use instead of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped_from: Option<String>,
    /// `x-dockwarden`.
    #[serde(skip_serializing_if = "VolumeSettings::is_empty")]
    pub settings: VolumeSettings,
}

impl VolumeSpec {
    /// What it says of its backups.
    pub fn backup(&self) -> BackupSettings {
        self.settings.backup.clone().unwrap_or_default()
    }

    /// Name the file gives it, whatever volume is in use.
    pub fn declared(&self) -> &str {
        self.swapped_from.as_deref().unwrap_or(&self.name)
    }
}

impl ServiceSpec {
    /// Whether it lives in the network, processes, memory, names or control group of another service: then its containers are bound to the very
    /// containers of that one.
    pub fn shares(&self, other: &ServiceName) -> bool {
        let modes = [&self.network_mode, &self.pid, &self.ipc, &self.uts, &self.cgroup];
        modes.into_iter().any(|m| m.as_deref().and_then(|m| m.strip_prefix("service:")) == Some(other.as_str()))
    }

    /// Whether two copies of it could write the same data, or claim the same device or host network: then two never run at once.
    pub fn single_writer(&self) -> bool {
        if self.settings.concurrent {
            return false;
        }
        self.mounts.iter().any(|m| !m.read_only && matches!(m.kind, MountKind::Bind | MountKind::Volume | MountKind::Cluster))
            || self.volumes_from.iter().any(|v| !v.ends_with(":ro"))
            || !self.devices.is_empty()
            || self.network_mode.as_deref() == Some("host")
    }
}
