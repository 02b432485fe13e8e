//! `deploy`, and devices asked for by what they can.

use super::scalar::*;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// `deploy`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deploy {
    /// `replicated`, `global`.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Containers.
    #[serde(deserialize_with = "int", skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i64>,
    /// Labels of the service.
    #[serde(deserialize_with = "mapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How an update goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_config: Option<UpdateConfig>,
    /// How a rollback goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_config: Option<UpdateConfig>,
    /// Limits and reservations.
    pub resources: DeployResources,
    /// When a container is started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Nodes.
    pub placement: Placement,
    /// `vip`, `dnsrr`.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub endpoint_mode: Option<String>,
}

/// `deploy.update_config` and `rollback_config`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateConfig {
    /// Containers at a time.
    #[serde(deserialize_with = "int", skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<i64>,
    /// Time between two of them.
    #[serde(skip_serializing_if = "no_span")]
    pub delay: Option<Span>,
    /// `continue`, `pause`, `rollback`.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub failure_action: Option<String>,
    /// Time a new container is watched.
    #[serde(skip_serializing_if = "no_span")]
    pub monitor: Option<Span>,
    /// Share of failures that is borne.
    #[serde(deserialize_with = "float", skip_serializing_if = "no_float", serialize_with = "shortest")]
    pub max_failure_ratio: Option<f32>,
    /// `start-first`, `stop-first`.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
}

/// `deploy.resources`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeployResources {
    /// At most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<DeployResource>,
    /// At least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<DeployResource>,
}

/// `deploy.resources.limits` and `reservations`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeployResource {
    /// CPUs.
    #[serde(deserialize_with = "float", skip_serializing_if = "no_float", serialize_with = "shortest")]
    pub cpus: Option<f32>,
    /// Memory.
    #[serde(skip_serializing_if = "no_bytes")]
    pub memory: Option<Bytes>,
    /// Processes.
    #[serde(deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub pids: Option<i64>,
    /// Devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRequest>,
    /// Resources by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
}

/// A device asked for by what it can.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceRequest {
    /// What it must be able to do, e.g. `gpu`.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Driver.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// How many, -1 = all.
    #[serde(deserialize_with = "device_count", skip_serializing_if = "is_zero")]
    pub count: Option<i64>,
    /// Which ones.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub device_ids: Vec<String>,
    /// Options of the driver.
    #[serde(deserialize_with = "mapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

fn device_count<'de, D: Deserializer<'de>>(d: D) -> Result<Option<i64>, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(None),
        Some(Scalar::Int(i)) => Ok(Some(i)),
        Some(Scalar::Text(t)) if t.eq_ignore_ascii_case("all") => Ok(Some(-1)),
        Some(Scalar::Text(t)) => t.parse().map(Some).map_err(|_| D::Error::custom(format_args!("{t:?} is neither `all` nor a number"))),
        Some(Scalar::Float(_) | Scalar::Bool(_)) => Err(D::Error::custom("the count is `all` or a whole number")),
    }
}

/// One of `generic_resources`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenericResource {
    /// Kind and number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discrete_resource_spec: Option<DiscreteResource>,
}

/// Kind and number of a generic resource.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscreteResource {
    /// Kind.
    pub kind: String,
    /// Number.
    #[serde(deserialize_with = "int")]
    pub value: Option<i64>,
}

/// `deploy.restart_policy`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// `none`, `on-failure`, `any`.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Time before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// Attempts at most.
    #[serde(deserialize_with = "int", skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<i64>,
    /// Time in which attempts are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
}

/// `deploy.placement`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// Conditions on nodes.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// What is spread.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<Preference>,
    /// Containers on a node.
    #[serde(deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub max_replicas_per_node: Option<i64>,
}

/// One of `deploy.placement.preferences`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preference {
    /// Label over whose values containers are spread.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub spread: Option<String>,
}
