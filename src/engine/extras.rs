//! Settings of a container that few services have. Their types are those of the file: nothing about them is decided on the way.

use crate::model::spec::written::{Blkio, DeviceRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of a container that few services have.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    /// Annotations for the runtime; engines before API 1.43 have none.
    pub annotations: BTreeMap<String, String>,
    /// Limits of block devices.
    pub blkio: Option<Blkio>,
    /// Real-time period in microseconds.
    pub cpu_rt_period: Option<i64>,
    /// Real-time budget in a period, microseconds.
    pub cpu_rt_runtime: Option<i64>,
    /// Devices asked for by what they can.
    pub device_requests: Vec<DeviceRequest>,
    /// Swappiness 0..100.
    pub swappiness: Option<i64>,
    /// Never killed for want of memory.
    pub oom_kill_disable: bool,
    /// Options of the storage driver.
    pub storage_opt: BTreeMap<String, String>,
    /// Containers whose mounts are taken over: `<id>` or `<id>:ro`.
    pub volumes_from: Vec<String>,
    /// Platform the image must be of, `linux/amd64`.
    pub platform: Option<String>,
}
