//! The engine port: what a container engine must do for us, and nothing more. Reads are free; every method that changes the world
//! takes a [`Permit`], which only the gate can make. Deliberately absent: anything about stacks, releases or policy.

pub mod adopted;
pub mod docker;
mod error;
mod extras;
pub mod fake;
pub mod made;

pub use error::{EngineError, EngineResult, foreign};
pub use extras::Extras;

use crate::gate::Permit;
use crate::model::ids::{EngineName, ImageRef};
use crate::model::observed::*;
use crate::model::spec::{DeviceSpec, Healthcheck, Logging, Restart};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use std::collections::BTreeMap;
use std::time::Duration;

/// A container to be created, in engine terms: everything is resolved.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ContainerSpec {
    /// Name.
    pub name: EngineName,
    /// Image id (`sha256:...`) or reference.
    pub image: ImageRef,
    /// `None` = the image's.
    pub command: Option<Vec<String>>,
    /// `None` = the image's.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=value`, or `KEY` to unset.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// User.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Domain name.
    pub domainname: Option<String>,
    /// Health check; `None` = the image's.
    pub healthcheck: Option<Healthcheck>,
    /// Exposed ports, `8080/tcp`.
    pub exposed: Vec<String>,
    /// Published ports.
    pub ports: Vec<PortBinding>,
    /// Mounts.
    pub mounts: Vec<EngineMount>,
    /// Networks in order of attachment; the first is the primary. Empty with `network_mode`.
    pub networks: Vec<NetworkAttachment>,
    /// `host`, `none`, `container:<id>`; `None` = by `networks`.
    pub network_mode: Option<String>,
    /// Restart policy.
    pub restart: Restart,
    /// CPU limit in billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// Memory reservation in bytes.
    pub memory_reservation: Option<u64>,
    /// Memory plus swap.
    pub memswap: Option<i64>,
    /// Process limit.
    pub pids: Option<i64>,
    /// CPU shares.
    pub cpu_shares: Option<i64>,
    /// CPU set.
    pub cpuset: Option<String>,
    /// CPU quota and period in microseconds.
    pub cpu_quota: Option<i64>,
    /// See `cpu_quota`.
    pub cpu_period: Option<i64>,
    /// Privileged.
    pub privileged: bool,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    pub cap_drop: Vec<String>,
    /// Security options.
    pub security_opt: Vec<String>,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
    /// Device cgroup rules.
    pub device_cgroup_rules: Vec<String>,
    /// PID mode.
    pub pid_mode: Option<String>,
    /// IPC mode.
    pub ipc_mode: Option<String>,
    /// UTS mode.
    pub uts_mode: Option<String>,
    /// User namespace mode.
    pub userns_mode: Option<String>,
    /// Cgroup namespace mode.
    pub cgroupns_mode: Option<String>,
    /// Cgroup parent.
    pub cgroup_parent: Option<String>,
    /// Sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Ulimits: name -> (soft, hard).
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// Shared memory in bytes.
    pub shm_size: Option<u64>,
    /// `host:address`.
    pub extra_hosts: Vec<String>,
    /// DNS servers.
    pub dns: Vec<String>,
    /// DNS search domains.
    pub dns_search: Vec<String>,
    /// DNS options.
    pub dns_opt: Vec<String>,
    /// Extra groups.
    pub group_add: Vec<String>,
    /// Run an init as PID 1.
    pub init: Option<bool>,
    /// Read-only root file system.
    pub read_only: bool,
    /// Keep stdin open.
    pub stdin_open: bool,
    /// Terminal.
    pub tty: bool,
    /// Stop signal.
    pub stop_signal: Option<String>,
    /// Stop time-out in seconds.
    pub stop_timeout_s: Option<u64>,
    /// Logging.
    pub logging: Option<Logging>,
    /// OOM score adjustment.
    pub oom_score_adj: Option<i64>,
    /// Runtime.
    pub runtime: Option<String>,
    /// Files put into the container before it starts: path -> content (configs and secrets given inline).
    pub files: Vec<InjectedFile>,
    /// What few services have.
    #[serde(default)]
    pub extras: Extras,
}

impl ContainerSpec {
    /// A container that takes everything from its image and the engine's defaults: no networks, no mounts, restart `no`.
    pub fn new(name: EngineName, image: ImageRef) -> Self {
        Self {
            name,
            image,
            command: None,
            entrypoint: None,
            env: Vec::new(),
            labels: BTreeMap::new(),
            user: None,
            working_dir: None,
            hostname: None,
            domainname: None,
            healthcheck: None,
            exposed: Vec::new(),
            ports: Vec::new(),
            mounts: Vec::new(),
            networks: Vec::new(),
            network_mode: None,
            restart: Restart::No,
            nano_cpus: None,
            memory: None,
            memory_reservation: None,
            memswap: None,
            pids: None,
            cpu_shares: None,
            cpuset: None,
            cpu_quota: None,
            cpu_period: None,
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            security_opt: Vec::new(),
            devices: Vec::new(),
            device_cgroup_rules: Vec::new(),
            pid_mode: None,
            ipc_mode: None,
            uts_mode: None,
            userns_mode: None,
            cgroupns_mode: None,
            cgroup_parent: None,
            sysctls: BTreeMap::new(),
            ulimits: BTreeMap::new(),
            shm_size: None,
            extra_hosts: Vec::new(),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_opt: Vec::new(),
            group_add: Vec::new(),
            init: None,
            read_only: false,
            stdin_open: false,
            tty: false,
            stop_signal: None,
            stop_timeout_s: None,
            logging: None,
            oom_score_adj: None,
            runtime: None,
            files: Vec::new(),
            extras: Extras::default(),
        }
    }
}

/// A file copied into a created container.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InjectedFile {
    /// Absolute path inside.
    pub path: String,
    /// Content.
    pub content: Vec<u8>,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
}

/// A published port in engine terms.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortBinding {
    /// Host address; empty = all.
    pub host_ip: String,
    /// Host port; `None` = the engine chooses. May be a range `8000-8010`.
    pub host_port: Option<String>,
    /// Port inside.
    pub container_port: u16,
    /// Protocol.
    pub protocol: String,
}

/// A mount in engine terms.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EngineMount {
    /// Kind.
    pub kind: crate::model::spec::MountKind,
    /// Host path or volume name; `None` for anonymous volumes and tmpfs.
    pub source: Option<String>,
    /// Path inside.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// Propagation of a bind.
    pub propagation: Option<String>,
    /// Do not copy the image's content into a new volume.
    pub nocopy: bool,
    /// Sub-path of a volume.
    pub subpath: Option<String>,
    /// Size of a tmpfs in bytes.
    pub tmpfs_size: Option<u64>,
    /// Mode of a tmpfs.
    pub tmpfs_mode: Option<u32>,
    /// Further options of a tmpfs, `noexec`, `uid=1000`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs_options: Vec<String>,
    /// SELinux label of what is mounted: `z` shared, `Z` the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
}

impl EngineMount {
    /// A writable mount of nothing in particular: what it is of, and how, is said beside it.
    pub fn new(kind: crate::model::spec::MountKind, target: String) -> Self {
        Self {
            kind,
            source: None,
            target,
            read_only: false,
            propagation: None,
            nocopy: false,
            subpath: None,
            tmpfs_size: None,
            tmpfs_mode: None,
            tmpfs_options: vec![],
            selinux: None,
        }
    }
}

/// Attachment to a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct NetworkAttachment {
    /// Network name.
    pub network: String,
    /// Aliases.
    pub aliases: Vec<String>,
    /// Fixed IPv4 address.
    pub ipv4_address: Option<String>,
    /// Fixed IPv6 address.
    pub ipv6_address: Option<String>,
    /// Link-local addresses.
    pub link_local_ips: Vec<String>,
    /// MAC address.
    pub mac_address: Option<String>,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// `name:alias`: what the container alone calls another name of the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
}

/// A network to be created.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NetworkCreate {
    /// Name.
    pub name: EngineName,
    /// Specification.
    pub spec: crate::model::spec::NetworkSpec,
    /// Labels (ours and the file's).
    pub labels: BTreeMap<String, String>,
}

/// A volume to be created.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VolumeCreate {
    /// Name.
    pub name: EngineName,
    /// Driver; `None` = local.
    pub driver: Option<String>,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecSpec {
    /// Command and arguments.
    pub command: Vec<String>,
    /// User; `None` = the container's.
    pub user: Option<String>,
    /// Environment additions.
    pub env: Vec<String>,
    /// Time limit; after it the exec is left behind and `exit_code` is `None`.
    pub timeout: Duration,
    /// Output kept, bytes.
    pub max_output: usize,
}

/// Where the output of a command goes.
pub type ExecSink<'a> = dyn tokio::io::AsyncWrite + Send + Unpin + 'a;

/// Which log lines.
#[derive(Debug, Clone, PartialEq)]
pub struct LogQuery {
    /// Last lines; `None` = all within the bounds.
    pub tail: Option<usize>,
    /// Not before.
    pub since: Option<DateTime<Utc>>,
    /// Most bytes read.
    pub max_bytes: usize,
}

/// What to prune. Never volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneKind {
    /// Dangling images only.
    DanglingImages,
    /// Build cache.
    BuildCache,
}

/// A container engine. Implemented by `engine::docker` and `engine::fake`.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug {
    // ---- reads ------------------------------------------------------------------------------------------------------------
    /// Version, capacity. Also serves as the liveness check.
    async fn info(&self) -> EngineResult<EngineInfo>;
    /// The same for display: an answer may be a minute old, and proves nothing about the engine being alive.
    async fn about(&self) -> EngineResult<EngineInfo> {
        self.info().await
    }
    /// Containers, running or not, that carry all of `labels` (`key=value` or `key`).
    async fn containers(&self, labels: &[String]) -> EngineResult<Vec<ContainerSummary>>;
    /// A container, or `None` when there is none of that name or id.
    async fn container(&self, id: &EngineName) -> EngineResult<Option<ContainerDetail>>;
    /// What a container was made with, as far as a compose file can say it; `None` when there is none of that name or id.
    async fn made_with(&self, id: &EngineName) -> EngineResult<Option<MadeWith>>;
    /// An image, or `None` when it is not on the engine.
    async fn image(&self, image: &ImageRef) -> EngineResult<Option<ImageInfo>>;
    /// The digest a reference names in its registry now, `sha256:...`, asked for with the credentials of the Docker client configuration; nothing is
    /// pulled. Answers or fails within seconds.
    async fn registry_digest(&self, image: &ImageRef) -> EngineResult<String>;
    /// All images.
    async fn images(&self) -> EngineResult<Vec<ImageInfo>>;
    /// Networks that carry all of `labels`; all with an empty list.
    async fn networks(&self, labels: &[String]) -> EngineResult<Vec<NetworkInfo>>;
    /// A network by name or id.
    async fn network(&self, name: &EngineName) -> EngineResult<Option<NetworkInfo>>;
    /// Volumes that carry all of `labels`; all with an empty list.
    async fn volumes(&self, labels: &[String]) -> EngineResult<Vec<VolumeInfo>>;
    /// A volume by name.
    async fn volume(&self, name: &EngineName) -> EngineResult<Option<VolumeInfo>>;
    /// Log lines in order.
    async fn logs(&self, id: &EngineName, query: &LogQuery) -> EngineResult<Vec<LogLine>>;
    /// One sample of use.
    async fn stats(&self, id: &EngineName) -> EngineResult<StatsSample>;
    /// Container events (start, die, oom, kill, stop, destroy, health_status) of containers carrying all of `labels`, from `since` on. Ends when the connection ends.
    async fn events(&self, labels: &[String], since: Option<DateTime<Utc>>) -> EngineResult<BoxStream<'static, EngineResult<EngineEvent>>>;
    /// A tar stream of a path inside a container.
    async fn download(&self, id: &EngineName, path: &str) -> EngineResult<BoxStream<'static, EngineResult<bytes::Bytes>>>;

    // ---- changes ----------------------------------------------------------------------------------------------------------
    /// Pulls an image with the credentials of the Docker client configuration; progress lines go to `progress`.
    async fn pull(
        &self,
        permit: &Permit,
        image: &ImageRef,
        platform: Option<&str>,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> EngineResult<()>;
    /// Tags an image.
    async fn tag(&self, permit: &Permit, image: &ImageRef, target: &ImageRef) -> EngineResult<()>;
    /// Removes an image (or one tag of it).
    async fn remove_image(&self, permit: &Permit, image: &ImageRef) -> EngineResult<()>;
    /// Creates a container (not started), `files` already inside. A taken name is `Conflict`.
    async fn create_container(&self, permit: &Permit, spec: &ContainerSpec) -> EngineResult<EngineName>;
    /// Starts; already running is fine.
    async fn start(&self, permit: &Permit, id: &EngineName) -> EngineResult<()>;
    /// Stops with a grace time; already stopped is fine.
    async fn stop(&self, permit: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()>;
    /// Restarts with a grace time.
    async fn restart(&self, permit: &Permit, id: &EngineName, grace: Duration) -> EngineResult<()>;
    /// Pauses or resumes.
    async fn pause(&self, permit: &Permit, id: &EngineName, paused: bool) -> EngineResult<()>;
    /// Removes a container by force; already gone is fine. `volumes` also removes its anonymous volumes.
    async fn remove_container(&self, permit: &Permit, id: &EngineName, volumes: bool) -> EngineResult<()>;
    /// Renames.
    async fn rename(&self, permit: &Permit, id: &EngineName, name: &EngineName) -> EngineResult<()>;
    /// Changes the restart policy in place.
    async fn set_restart(&self, permit: &Permit, id: &EngineName, restart: Restart) -> EngineResult<()>;
    /// Runs a command in a running container.
    async fn exec(&self, permit: &Permit, id: &EngineName, spec: &ExecSpec) -> EngineResult<ExecOutcome>;
    /// As `exec`, with the standard output written to `out` as it comes; the outcome's text is the error output alone.
    async fn exec_into(&self, permit: &Permit, id: &EngineName, spec: &ExecSpec, out: &mut ExecSink<'_>) -> EngineResult<ExecOutcome>;
    /// Creates a network; `Conflict` when one of that name exists.
    async fn create_network(&self, permit: &Permit, spec: &NetworkCreate) -> EngineResult<EngineName>;
    /// Attaches a container; already attached is fine.
    async fn connect(&self, permit: &Permit, id: &EngineName, attachment: &NetworkAttachment) -> EngineResult<()>;
    /// Detaches a container; not attached is fine.
    async fn disconnect(&self, permit: &Permit, id: &EngineName, network: &EngineName) -> EngineResult<()>;
    /// Removes a network; already gone is fine.
    async fn remove_network(&self, permit: &Permit, name: &EngineName) -> EngineResult<()>;
    /// Creates a volume; existing with the same driver is fine.
    async fn create_volume(&self, permit: &Permit, spec: &VolumeCreate) -> EngineResult<()>;
    /// Removes a volume; already gone is fine, in use is `Conflict`.
    async fn remove_volume(&self, permit: &Permit, name: &EngineName) -> EngineResult<()>;
    /// Unpacks a tar stream at a path inside a container.
    async fn upload(&self, permit: &Permit, id: &EngineName, path: &str, tar: BoxStream<'static, bytes::Bytes>) -> EngineResult<()>;
    /// Imports a tar as an image with the given tag and returns its id.
    async fn import_image(&self, permit: &Permit, tag: &ImageRef, tar: bytes::Bytes) -> EngineResult<String>;
    /// Prunes; returns bytes freed.
    async fn prune(&self, permit: &Permit, what: PruneKind) -> EngineResult<u64>;
}
