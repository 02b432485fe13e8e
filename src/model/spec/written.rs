//! What a service's resolved fields no longer tell: keys as the file has them after interpolation and merging, typed, in Compose's canonical
//! form. The canonical form of a project is made of these and the resolved fields together; the executor reads what it carries out from here too
//! where no resolved field has it (hooks, builds, update settings). Unknown keys are refused.

mod build;
mod deploy;
mod life;
mod scalar;

pub use build::{Build, FileReference, Ulimit};
pub use deploy::{
    Deploy, DeployResource, DeployResources, DeviceRequest, DiscreteResource, GenericResource, Placement, Preference, RestartPolicy,
    UpdateConfig,
};
pub use life::{Blkio, CredentialSpec, Develop, Hook, ThrottleDevice, Watch, WeightDevice};
pub use scalar::{Bytes, Span};

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Keys of a service as written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// `image` where it is no reference.
    pub image: Option<String>,
    /// `restart`.
    pub restart: Option<String>,
    /// `security_opt` where it names profiles by file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// `scale`.
    pub scale: Option<i64>,
    /// `cpus`.
    pub cpus: Option<f32>,
    /// `cpu_count` (Windows).
    pub cpu_count: Option<i64>,
    /// `cpu_percent` (Windows).
    pub cpu_percent: Option<f32>,
    /// `cpu_rt_period` in microseconds.
    pub cpu_rt_period: Option<i64>,
    /// `cpu_rt_runtime` in microseconds.
    pub cpu_rt_runtime: Option<i64>,
    /// `mem_limit`.
    pub mem_limit: Option<Bytes>,
    /// `mem_reservation`.
    pub mem_reservation: Option<Bytes>,
    /// `memswap_limit`.
    pub memswap_limit: Option<Bytes>,
    /// `mem_swappiness`.
    pub mem_swappiness: Option<Bytes>,
    /// `pids_limit`.
    pub pids_limit: Option<i64>,
    /// `attach`.
    pub attach: Option<bool>,
    /// `deploy`.
    pub deploy: Option<Deploy>,
    /// `build`.
    pub build: Option<Build>,
    /// `develop`.
    pub develop: Option<Develop>,
    /// `blkio_config`.
    pub blkio_config: Option<Blkio>,
    /// `credential_spec`.
    pub credential_spec: Option<CredentialSpec>,
    /// `post_start`.
    pub post_start: Vec<Hook>,
    /// `pre_stop`.
    pub pre_stop: Vec<Hook>,
    /// `gpus`.
    pub gpus: Vec<DeviceRequest>,
    /// `tmpfs`.
    pub tmpfs: Vec<String>,
    /// `volumes`, without those of `tmpfs`: one entry per mount, in its order.
    pub mounts: Vec<MountSections>,
    /// Ulimits given as one number.
    pub single_ulimits: BTreeSet<String>,
    /// Targets of devices given without permissions.
    pub bare_devices: BTreeSet<String>,
    /// Networks given as an empty mapping and not only named.
    pub empty_networks: BTreeSet<String>,
    /// Dependencies that are not written but follow from links, shared namespaces and `volumes_from`.
    pub implied_dependencies: BTreeSet<String>,
    /// `healthcheck.disable`.
    pub healthcheck_disable: bool,
    /// `healthcheck.test` where it is disabled as well.
    pub healthcheck_test: Vec<String>,
}

/// Which groups of options a mount was given, and those that have no field of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MountSections {
    /// `bind`.
    pub bind: bool,
    /// `volume`.
    pub volume: bool,
    /// `tmpfs`.
    pub tmpfs: bool,
    /// `image`.
    pub image: bool,
    /// Source as written, where the resolved one is spelled otherwise.
    pub source: Option<String>,
    /// `consistency`.
    pub consistency: Option<String>,
    /// `bind.recursive`.
    pub recursive: Option<String>,
}
