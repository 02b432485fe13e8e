//! What an engine shows us: containers, images, networks, volumes, events, samples. Plain data, one meaning per field.

use super::ids::{EngineName, ImageRef};
use super::spec::IpamPool;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The engine itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Engine version, e.g. `20.10.24`.
    pub version: String,
    /// Highest API version it speaks, e.g. `1.41`.
    pub api_version: String,
    /// Unique id of the engine, where it has one.
    pub id: String,
    /// Host name.
    pub name: String,
    /// CPUs.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Operating system, e.g. `linux`.
    pub os: String,
    /// Architecture as images name it, e.g. `amd64`.
    pub arch: String,
    /// Data root on the engine's host.
    pub root_dir: String,
    /// Runtimes it offers, e.g. `runc`.
    pub runtimes: Vec<String>,
    /// Whether swarm mode is active.
    pub swarm: bool,
    /// Log driver of containers that name none, e.g. `json-file`; empty where the engine does not say.
    #[serde(default)]
    pub log_driver: String,
}

/// Lifecycle state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Created, never started.
    Created,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Being restarted by the engine.
    Restarting,
    /// Being removed.
    Removing,
    /// Not running any more.
    Exited,
    /// The engine lost it.
    Dead,
}

/// The engine's word on a container's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No health check is defined.
    None,
    /// Within start period or before enough probes.
    Starting,
    /// Passing.
    Healthy,
    /// Failing.
    Unhealthy,
}

/// One row of a container list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// Full id.
    pub id: EngineName,
    /// Name without the leading slash.
    pub name: String,
    /// Image reference as given at creation.
    pub image: String,
    /// Image id (`sha256:...`).
    pub image_id: String,
    /// State.
    pub state: RunState,
    /// Health as far as the list's status text tells it.
    pub health: HealthState,
    /// Human status text, e.g. `Up 3 minutes (healthy)`.
    pub status: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Creation time.
    pub created: DateTime<Utc>,
}

/// A port published on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Host address, e.g. `127.0.0.1`; empty when only exposed.
    pub host_ip: String,
    /// Host port; 0 when only exposed.
    pub host_port: u16,
    /// Port inside the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// One container in detail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerDetail {
    /// Full id.
    pub id: EngineName,
    /// Name without the leading slash.
    pub name: String,
    /// Image reference as given at creation.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// State.
    pub state: RunState,
    /// Health.
    pub health: HealthState,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// Killed by the out-of-memory killer in its last run.
    pub oom_killed: bool,
    /// Engine's error text of the last start, if any.
    pub error: String,
    /// How often the engine restarted it.
    pub restart_count: u64,
    /// Start of the current or last run.
    pub started_at: Option<DateTime<Utc>>,
    /// End of the last run.
    pub finished_at: Option<DateTime<Utc>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Restart policy name: `no`, `always`, `on-failure`, `unless-stopped`.
    pub restart_policy: String,
    /// Networks it is attached to, by network name, with its aliases there.
    pub networks: BTreeMap<String, Vec<String>>,
    /// Address per network name, empty while not running.
    pub addresses: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<MountInfo>,
    /// Published ports (host configuration; filled also while stopped).
    pub ports: Vec<PublishedPort>,
    /// Output of the last health probe the engine ran, bounded to 4 KiB.
    pub last_health_output: Option<String>,
    /// Main process id on the host, 0 when not running.
    pub pid: i64,
    /// Health-check command of the image or container (`["CMD", ...]`), if any.
    pub health_test: Option<Vec<String>>,
}

#[cfg(test)]
impl ContainerDetail {
    /// One that runs, has no health check and is on no network; tests say what else it is.
    pub(crate) fn running(id: &str, name: &str, image: &str) -> Self {
        Self {
            id: EngineName::new(id).unwrap(),
            name: name.into(),
            image: image.into(),
            image_id: "sha256:1".into(),
            state: RunState::Running,
            health: HealthState::None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            restart_count: 0,
            started_at: None,
            finished_at: None,
            labels: BTreeMap::new(),
            restart_policy: "no".into(),
            networks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            mounts: vec![],
            ports: vec![],
            last_health_output: None,
            pid: 1,
            health_test: None,
        }
    }
}

/// What a container was made with, where [`ContainerDetail`] does not tell it: to compare a container someone else made with a file. Values the
/// image gave are among them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MadeWith {
    /// `KEY=value`, the image's included.
    pub env: Vec<String>,
    /// Command, the image's when it was made without.
    pub command: Vec<String>,
    /// Entrypoint, the image's when it was made without.
    pub entrypoint: Vec<String>,
    /// User, empty for the image's own default.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// `bridge`, `host`, `none`, `container:<id>` or the primary network.
    pub network_mode: String,
    /// Privileged.
    pub privileged: bool,
    /// Read-only root file system.
    pub read_only: bool,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    pub cap_drop: Vec<String>,
    /// Memory limit in bytes, 0 for none.
    pub memory: u64,
    /// CPU limit in billionths, 0 for none.
    pub nano_cpus: u64,
    /// Process limit, 0 or less for none.
    pub pids: i64,
    /// Everything else that differs from what an engine gives a container by itself: key as compose names it -> text. The same text, the same setting.
    pub settings: std::collections::BTreeMap<String, String>,
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// `bind`, `volume`, `tmpfs`.
    pub kind: String,
    /// Volume name, for volumes.
    pub name: Option<String>,
    /// Host path.
    pub source: String,
    /// Path inside.
    pub target: String,
    /// Writable.
    pub writable: bool,
}

/// An image on the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// `sha256:...` of the image configuration.
    pub id: String,
    /// Tags.
    pub tags: Vec<String>,
    /// `repo@sha256:...` digests.
    pub repo_digests: Vec<String>,
    /// Architecture.
    pub arch: String,
    /// Size in bytes.
    pub size: u64,
    /// Creation time.
    pub created: Option<DateTime<Utc>>,
    /// User the image runs as, empty for root.
    pub user: String,
    /// Health check defined in the image.
    pub health_test: Option<Vec<String>>,
    /// Paths declared as volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment defined in the image.
    pub env: Vec<String>,
}

impl ImageInfo {
    /// The `repo@sha256:...` of the repository a reference names, else of any.
    pub fn repo_digest_for(&self, reference: &ImageRef) -> Option<String> {
        let repository = repository(reference);
        self.repo_digests.iter().find(|d| d.split('@').next() == Some(repository)).or_else(|| self.repo_digests.first()).cloned()
    }
}

/// The repository of a reference, without tag and digest; a port of the registry is no tag.
pub fn repository(reference: &ImageRef) -> &str {
    let text = reference.as_str().split('@').next().unwrap_or_default();
    text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(text, |(repository, _)| repository)
}

/// A network on the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Full id.
    pub id: EngineName,
    /// Name.
    pub name: String,
    /// Driver, e.g. `bridge`.
    pub driver: String,
    /// No route out.
    pub internal: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Has addresses of version 6.
    #[serde(default)]
    pub ipv6: bool,
    /// Containers may be attached by hand.
    #[serde(default)]
    pub attachable: bool,
    /// Subnets in CIDR form.
    pub subnets: Vec<String>,
    /// Its address pools, with what the engine chose where nothing was asked for.
    #[serde(default)]
    pub pools: Vec<IpamPool>,
    /// Driver of its addresses, e.g. `default`.
    #[serde(default)]
    pub ipam_driver: String,
    /// Ids of attached running containers (filled by inspect).
    pub containers: Vec<String>,
}

/// A volume on the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Name.
    pub name: EngineName,
    /// Driver, e.g. `local`.
    pub driver: String,
    /// Path on the engine's host.
    pub mountpoint: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Creation time.
    pub created: Option<DateTime<Utc>>,
}

/// One line a container wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// When the engine received it.
    pub at: DateTime<Utc>,
    /// `true` for standard error.
    pub stderr: bool,
    /// The text, without line end, lossy UTF-8, untrusted.
    pub text: String,
}

/// One sample of a container's use of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsSample {
    /// CPU in percent of one core since the previous sample.
    pub cpu_percent: f64,
    /// Memory in bytes without page cache.
    pub memory_bytes: u64,
    /// Limit in bytes.
    pub memory_limit_bytes: u64,
    /// Bytes received.
    pub net_rx_bytes: u64,
    /// Bytes sent.
    pub net_tx_bytes: u64,
    /// Bytes read from block devices.
    pub block_read_bytes: u64,
    /// Bytes written to block devices.
    pub block_write_bytes: u64,
    /// Processes.
    pub pids: u64,
}

/// What happened to a container, from the engine's event stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineEvent {
    /// `start`, `die`, `oom`, `kill`, `stop`, `destroy`, `health_status: unhealthy`, ...
    pub action: String,
    /// Container id.
    pub container: EngineName,
    /// Labels of the container as the event carries them.
    pub labels: BTreeMap<String, String>,
    /// When, with the engine's nanoseconds.
    pub at: DateTime<Utc>,
}

/// Result of a command run inside a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// Exit code; `None` when it did not end within the time given.
    pub exit_code: Option<i64>,
    /// Output, standard output and error merged, lossy UTF-8, bounded, untrusted.
    pub output: String,
    /// Whether output was cut.
    pub truncated: bool,
}

/// Identity of an image as a release records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// Reference as written in the file.
    pub reference: ImageRef,
    /// `sha256:...` image id; `None` until it was pulled.
    pub id: Option<String>,
    /// `repo@sha256:...`, where the engine or the registry tells one. Without an id it is what will be pulled.
    pub repo_digest: Option<String>,
}

impl ImageIdentity {
    /// Whether both are known to be the same content; never for what is not known.
    pub fn same_content(&self, other: &ImageIdentity) -> bool {
        let digest = |i: &ImageIdentity| i.repo_digest.as_deref().and_then(|d| d.split_once('@')).map(|(_, d)| d.to_owned());
        (self.id.is_some() && self.id == other.id) || (digest(self).is_some() && digest(self) == digest(other))
    }
}
