//! What a service's resolved fields no longer tell: keys as the file has them after interpolation and merging, typed, in Compose's canonical
//! form. The canonical form of a project is made of these and the resolved fields together; the executor reads what it carries out from here too
//! where no resolved field has it (hooks, builds, update settings). Unknown keys are refused.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Keys of a service as written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// `image` where it is no reference.
    pub image: Option<String>,
    /// `restart`.
    pub restart: Option<String>,
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

/// A number of bytes; text with a unit (`512m`) is read, digits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes(pub i64);

impl Bytes {
    /// Parses a size in powers of 1024, as the engine's own tools do.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no size; write e.g. 512m, 1g or a number of bytes");
        let last = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' ')).ok_or_else(refuse)?;
        let (number, unit) = if text.as_bytes()[last] == b' ' { (&text[..last], &text[last + 1..]) } else { text.split_at(last + 1) };
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let unit = unit.to_ascii_lowercase();
        let power = match unit.as_str() {
            "" | "b" => 0,
            _ => {
                let power = "kmgtp".find(&unit[..1]).filter(|_| matches!(&unit[1..], "" | "b" | "ib")).ok_or_else(refuse)?;
                i32::try_from(power + 1).map_err(|_| refuse())?
            }
        };
        let value = number * 1024f64.powi(power);
        if (0.0..9.2e18).contains(&value) { Ok(Self(value as i64)) } else { Err(refuse()) }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(d)? {
            Scalar::Int(i) => Ok(Self(i)),
            Scalar::Float(_) | Scalar::Bool(_) => Ok(Self(0)),
            // What is written is read again, also where a text must not be negative.
            Scalar::Text(t) => t
                .strip_prefix('-')
                .and_then(|t| t.parse::<i64>().ok())
                .map(|i| Self(-i))
                .map_or_else(|| Self::parse(&t).map_err(D::Error::custom), Ok),
        }
    }
}

/// A duration in nanoseconds, written as Go writes one (`1m30s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub i64);

impl Span {
    /// Parses a duration of Go: numbers with `ns`, `us`, `ms`, `s`, `m`, `h`.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no duration; write e.g. 30s, 1m30s or 500ms");
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        let mut total = 0f64;
        if rest.is_empty() {
            return Err(refuse());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(refuse)?;
            let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
            rest = &rest[digits..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let factor = match &rest[..end] {
                "ns" => 1.0,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 6e10,
                "h" => 3.6e12,
                _ => return Err(refuse()),
            };
            total += number * factor;
            rest = &rest[end..];
        }
        if total > 9.2e18 {
            return Err(refuse());
        }
        Ok(Self(if negative { -(total.round() as i64) } else { total.round() as i64 }))
    }

    /// As Go writes it.
    pub fn text(self) -> String {
        let n = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let fraction = |n: u64, unit: u64, name: &str| {
            let digits = (unit as f64).log10() as usize;
            let rest = format!("{:0digits$}", n % unit);
            let rest = rest.trim_end_matches('0');
            let dot = if rest.is_empty() || unit == 1 { String::new() } else { format!(".{rest}") };
            format!("{sign}{}{dot}{name}", n / unit)
        };
        match n {
            0 => "0s".into(),
            1..1_000 => fraction(n, 1, "ns"),
            1_000..1_000_000 => fraction(n, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => fraction(n, 1_000_000, "ms"),
            _ => {
                let (minutes, nanos) = (n / 60_000_000_000, n % 60_000_000_000);
                let mut out = sign.to_owned();
                if minutes >= 60 {
                    let _ = write!(out, "{}h", minutes / 60);
                }
                if minutes > 0 {
                    let _ = write!(out, "{}m", minutes % 60);
                }
                out + fraction(nanos, 1_000_000_000, "s").trim_start_matches('-')
            }
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&text(d)?).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

fn text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(match Scalar::deserialize(d)? {
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => f.to_string(),
        Scalar::Text(t) => t,
    })
}

fn some_text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    // An empty text is the same as none, as in everything Compose writes.
    Ok(Option::<Scalar>::deserialize(d)?
        .map(|s| match s {
            Scalar::Bool(b) => b.to_string(),
            Scalar::Int(i) => i.to_string(),
            Scalar::Float(f) => f.to_string(),
            Scalar::Text(t) => t,
        })
        .filter(|t| !t.is_empty()))
}

fn int<'de, D: Deserializer<'de>>(d: D) -> Result<Option<i64>, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(None),
        Some(Scalar::Int(i)) => Ok(Some(i)),
        Some(Scalar::Text(t)) => t.parse().map(Some).map_err(|_| D::Error::custom(format_args!("{t:?} is no whole number"))),
        Some(Scalar::Float(f)) if f.fract() == 0.0 && f.abs() < 9e15 => Ok(Some(f as i64)),
        Some(Scalar::Float(f)) => Err(D::Error::custom(format_args!("{f} is no whole number"))),
        Some(Scalar::Bool(b)) => Err(D::Error::custom(format_args!("{b} is no number"))),
    }
}

fn float<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f32>, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(None),
        Some(Scalar::Int(i)) => Ok(Some(i as f32)),
        Some(Scalar::Float(f)) => Ok(Some(f as f32)),
        Some(Scalar::Text(t)) => t.parse().map(Some).map_err(|_| D::Error::custom(format_args!("{t:?} is no number"))),
        Some(Scalar::Bool(b)) => Err(D::Error::custom(format_args!("{b} is no number"))),
    }
}

fn flag<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    match Option::<Scalar>::deserialize(d)? {
        None => Ok(false),
        Some(Scalar::Bool(b)) => Ok(b),
        Some(Scalar::Text(t)) => match t.to_ascii_lowercase().as_str() {
            "true" | "y" | "yes" | "on" => Ok(true),
            "false" | "n" | "no" | "off" => Ok(false),
            _ => Err(D::Error::custom(format_args!("{t:?} is no boolean; write true or false"))),
        },
        Some(Scalar::Int(i)) => Err(D::Error::custom(format_args!("{i} is no boolean"))),
        Some(Scalar::Float(f)) => Err(D::Error::custom(format_args!("{f} is no boolean"))),
    }
}

/// One text or many.
fn texts<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        One(Scalar),
        Many(Vec<Scalar>),
    }
    let plain = |s: Scalar| match s {
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => f.to_string(),
        Scalar::Text(t) => t,
    };
    Ok(match Option::<Form>::deserialize(d)? {
        None => Vec::new(),
        Some(Form::One(one)) => vec![plain(one)],
        Some(Form::Many(many)) => many.into_iter().map(plain).collect(),
    })
}

/// A mapping or a list of `key=value`; nothing stays nothing.
fn pairs<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, Option<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Map(BTreeMap<String, Option<Scalar>>),
        List(Vec<Scalar>),
    }
    let plain = |s: Scalar| match s {
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => f.to_string(),
        Scalar::Text(t) => t,
    };
    Ok(match Option::<Form>::deserialize(d)? {
        None => BTreeMap::new(),
        Some(Form::Map(map)) => map.into_iter().map(|(k, v)| (k, v.map(plain))).collect(),
        Some(Form::List(items)) => items
            .into_iter()
            .map(plain)
            .map(|t| t.split_once('=').map(|(k, v)| (k.to_owned(), Some(v.to_owned()))).unwrap_or((t, None)))
            .collect(),
    })
}

/// As [`pairs`]; nothing is an empty text.
fn mapping<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(pairs(d)?.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect())
}

fn as_list<S: Serializer>(map: &BTreeMap<String, Option<String>>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(map.iter().map(|(k, v)| v.as_ref().map_or_else(|| k.clone(), |v| format!("{k}={v}"))))
}

fn is_zero(value: &Option<i64>) -> bool {
    value.is_none_or(|v| v == 0)
}

fn no_float(value: &Option<f32>) -> bool {
    value.is_none_or(|v| v == 0.0)
}

fn shortest<S: Serializer>(value: &Option<f32>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        // The shortest digits of the narrow number, not those of the wide one it becomes.
        Some(v) if v.fract() == 0.0 && v.abs() < 1e15 => s.serialize_i64(*v as i64),
        Some(v) => s.serialize_f64(v.to_string().parse().unwrap_or_else(|_| f64::from(*v))),
        None => s.serialize_none(),
    }
}

fn no_bytes(value: &Option<Bytes>) -> bool {
    value.is_none_or(|v| v.0 == 0)
}

fn no_span(value: &Option<Span>) -> bool {
    value.is_none_or(|v| v.0 == 0)
}

fn is_false(value: &bool) -> bool {
    !*value
}

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

/// `build`. Paths are absolute where there is a project directory.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Build {
    /// Directory or address.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// File, relative to the context.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The file itself.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub dockerfile_inline: Option<String>,
    /// Build arguments that have a value.
    #[serde(deserialize_with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, Option<String>>,
    /// Keys of the agent: id and socket or file.
    #[serde(deserialize_with = "pairs", serialize_with = "as_list", skip_serializing_if = "BTreeMap::is_empty")]
    pub ssh: BTreeMap<String, Option<String>>,
    /// Labels of the image.
    #[serde(deserialize_with = "mapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Caches read.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub cache_from: Vec<String>,
    /// Caches written.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub cache_to: Vec<String>,
    /// Without a cache.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub no_cache: bool,
    /// Steps that take nothing from the cache.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub no_cache_filter: Vec<String>,
    /// More contexts by name.
    #[serde(deserialize_with = "mapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub additional_contexts: BTreeMap<String, String>,
    /// Base images are pulled.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub pull: bool,
    /// `host=address`, sorted.
    #[serde(deserialize_with = "hosts", skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// Isolation (Windows).
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Network of the steps.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Stage.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Secrets of the steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<FileReference>,
    /// Shared memory of the steps.
    #[serde(skip_serializing_if = "no_bytes")]
    pub shm_size: Option<Bytes>,
    /// More names of the image.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Limits of the steps.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Platforms.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// With all rights.
    #[serde(deserialize_with = "flag", skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// Rights of the build; Compose checks them and does not print them.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub entitlements: Vec<String>,
    /// Attestation.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Attestation.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub sbom: Option<String>,
}

fn hosts<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Address {
        One(String),
        Many(Vec<String>),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Map(BTreeMap<String, Address>),
        List(Vec<String>),
    }
    let bare = |ip: &str| ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).filter(|i| !i.is_empty()).unwrap_or(ip).to_owned();
    let mut out: Vec<String> = match Option::<Form>::deserialize(d)? {
        None => Vec::new(),
        Some(Form::Map(map)) => map
            .into_iter()
            .flat_map(|(host, address)| match address {
                Address::One(one) => vec![format!("{host}={}", bare(&one))],
                Address::Many(many) => many.iter().map(|ip| format!("{host}={}", bare(ip))).collect(),
            })
            .collect(),
        Some(Form::List(items)) => {
            let mut out = Vec::new();
            for item in &items {
                let Some((host, addresses)) = item.split_once('=').or_else(|| item.split_once(':')) else {
                    return Err(D::Error::custom(format_args!("{item:?} has no address; write host=address")));
                };
                out.extend(addresses.split(',').map(|ip| format!("{host}={}", bare(ip))));
            }
            out
        }
    };
    out.sort();
    Ok(out)
}

/// A limit: one number, or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ulimit {
    /// Soft and hard alike.
    Single(i64),
    /// Soft and hard.
    Both(i64, i64),
}

impl Serialize for Ulimit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = BTreeMap::new();
        match self {
            Self::Single(0) => {}
            Self::Single(n) => return s.serialize_i64(*n),
            Self::Both(soft, hard) => {
                map.extend([("soft", *soft), ("hard", *hard)].into_iter().filter(|(_, v)| *v != 0));
            }
        }
        map.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Ulimit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(i64),
            Text(String),
            Two {
                #[serde(default, deserialize_with = "int")]
                soft: Option<i64>,
                #[serde(default, deserialize_with = "int")]
                hard: Option<i64>,
            },
        }
        match Form::deserialize(d)? {
            Form::One(n) => Ok(Self::Single(n)),
            Form::Text(t) => t.parse().map(Self::Single).map_err(|_| D::Error::custom(format_args!("{t:?} is no whole number"))),
            Form::Two { soft, hard } => Ok(Self::Both(soft.unwrap_or(0), hard.unwrap_or(0))),
        }
    }
}

/// A secret used by a build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileReference {
    /// Key of the secret.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Name within.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Owner.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Group.
    #[serde(deserialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub gid: Option<String>,
    /// Mode.
    #[serde(deserialize_with = "int", skip_serializing_if = "Option::is_none")]
    pub mode: Option<i64>,
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, canonical) in [
            ("90s", "1m30s"),
            ("1h", "1h0m0s"),
            ("500ms", "500ms"),
            ("1.5s", "1.5s"),
            ("0", "0s"),
            ("100us", "100\u{b5}s"),
            ("7ns", "7ns"),
            ("-2s", "-2s"),
            ("36h2m", "36h2m0s"),
        ] {
            assert_eq!(Span::parse(text).map(Span::text), Ok(canonical.to_owned()), "{text}");
            assert_eq!(Span::parse(canonical), Span::parse(text), "{text}");
        }
        assert!(["", "5", "1d", "s", "1 s", "x"].iter().all(|t| Span::parse(t).is_err()));
    }

    #[test]
    fn sizes_are_read_as_the_engines_tools_do() {
        let sizes = ["512m", "1gb", "64MiB", "10", "1.5k", "64 m", "3b"].map(|t| Bytes::parse(t).map(|b| b.0));
        assert_eq!(sizes, [Ok(512 << 20), Ok(1 << 30), Ok(64 << 20), Ok(10), Ok(1536), Ok(64 << 20), Ok(3)]);
        assert!(["", "x", "1zb", "-1", "1bb", "m"].iter().all(|t| Bytes::parse(t).is_err()));
    }
}
