//! What happens to a container while it lives: `develop`, hooks; and the sections few files have.

use super::scalar::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `develop`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Develop {
    /// What a change of a file leads to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<Watch>,
}

/// One of `develop.watch`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// Path watched.
    pub path: String,
    /// `sync`, `rebuild`, ...
    pub action: String,
    /// Path inside.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Command run.
    pub exec: Hook,
    /// Patterns left out.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// Patterns taken.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Synchronised at the start.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub initial_sync: bool,
}

/// A command run inside of a container at some point of its life.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hook {
    /// Words.
    pub command: Option<Vec<String>>,
    /// User.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// With all rights.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// Directory.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Environment.
    #[serde(deserialize_with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, Option<String>>,
}

/// `blkio_config`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blkio {
    /// Weight.
    #[serde(deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub weight: Option<i64>,
    /// Weights by device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read in a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_read_bps: Vec<ThrottleDevice>,
    /// Operations in a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_read_iops: Vec<ThrottleDevice>,
    /// Bytes written in a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_write_bps: Vec<ThrottleDevice>,
    /// Operations in a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_write_iops: Vec<ThrottleDevice>,
}

/// Weight of a device. Compose writes the keys with capital letters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightDevice {
    /// Device.
    #[serde(rename = "Path", alias = "path")]
    pub path: String,
    /// Weight.
    #[serde(rename = "Weight", alias = "weight", deserialize_with = "int")]
    pub weight: Option<i64>,
}

/// Rate of a device. Compose writes the keys with capital letters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleDevice {
    /// Device.
    #[serde(rename = "Path", alias = "path")]
    pub path: String,
    /// Rate.
    #[serde(rename = "Rate", alias = "rate")]
    pub rate: Bytes,
}

/// `credential_spec` (Windows).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialSpec {
    /// Config.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// File.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Registry value.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}
