//! `x-dockwarden`: what a file says to us, at its top for the stack and under a service for that service. Closed; the schema is generated from here.

use super::checks::{Command, Hook, Hooks, Probe, Triggers};
use crate::model::ids::ServiceName;
use serde::{Deserialize, Serialize};

/// `x-dockwarden` at the top of a file. Closed: an unknown key is an error with its path.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StackSettings {
    /// Watch window after a deploy in seconds before the release counts as good; 10 by default.
    pub monitor_s: Option<u64>,
    /// The watch window in full; goes before `monitor_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Monitor>,
    /// What the watch window does about what it sees.
    #[serde(skip_serializing_if = "is_default")]
    pub triggers: Triggers,
    /// Tests of the stack as a whole, made once in every release that changes a container, after those of its services and before anything is switched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub smoke: Vec<StackTest>,
    /// Commands around every release that changes a container.
    #[serde(skip_serializing_if = "is_default")]
    pub hooks: StackHooks,
    /// Whether the release changes data in a way the one before cannot read: then nothing automatic goes back over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrates: Option<bool>,
    /// Backups of all data of the stack, where a service says nothing else. `pre`, `post`, `stdout` and `verify` belong to a service.
    #[serde(deserialize_with = "stack_wide")]
    pub backup: Option<BackupSettings>,
    /// How far the supervisor heals services: `off`, `restart`, `full` (default).
    pub heal: Option<HealMode>,
    /// What the supervisor does when what runs is not what was deployed: `off`, `report` (default), `mend`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftMode>,
}

/// Longest [`ServiceSettings::start_timeout_s`]: an operation holds its stack meanwhile.
pub const START_TIMEOUT_MOST: u64 = 86_400;

/// Commands run in one service's container: at the stack, or a volume, they would belong to nobody.
pub(crate) fn stack_wide<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<BackupSettings>, D::Error> {
    let read = Option::<BackupSettings>::deserialize(text)?;
    match &read {
        Some(b) if !b.pre.is_empty() || !b.post.is_empty() || b.stdout.is_some() || b.verify.is_some() => {
            Err(serde::de::Error::custom("backup: pre, post, stdout and verify belong into the x-dockwarden of the service they run in"))
        }
        _ => Ok(read),
    }
}

/// `x-dockwarden` of a service. Closed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// Two copies may run at once although it writes data.
    pub concurrent: bool,
    /// Strategy asked for; the planner chooses otherwise. With `front` or `hold` the service stands behind a front from its first release on.
    pub strategy: Option<crate::model::plan::Strategy>,
    /// Bounds of the service's front.
    pub front: Option<FrontSettings>,
    /// Course of `strategy: canary`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanarySettings>,
    /// Time for a new container to become healthy, in seconds; 60 by default, at most a day (86400).
    pub start_timeout_s: Option<u64>,
    /// Checks of a new container beside its health check; all must pass before anything is switched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// Tests made once, when every changed service of the stack has passed its probes and before any is switched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub smoke: Vec<Probe>,
    /// Commands around the start of a new release.
    #[serde(skip_serializing_if = "is_default")]
    pub hooks: Hooks,
    /// What the watch window does about what it sees of this service.
    #[serde(skip_serializing_if = "is_default")]
    pub triggers: Triggers,
    /// Whether a new version of it changes data in a way the one before cannot read. By default yes for a new image version of a service that writes a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrates: Option<bool>,
    /// How much depends on it; `normal` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criticality: Option<Criticality>,
    /// Healing of this service.
    pub heal: Option<HealMode>,
    /// Restart a container that uses so many percent of its memory limit for a minute and more, before the kernel kills it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "percent")]
    #[schemars(range(min = 1, max = 100))]
    pub memory_restart_percent: Option<u8>,
    /// Copies that must stay up while the supervisor heals: with so many well it acts on those that are ill or gone alone, and takes none away.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "at_least_one")]
    #[schemars(range(min = 1))]
    pub heal_instances: Option<u32>,
    /// Backups of the service's volumes.
    pub backup: Option<BackupSettings>,
}

/// A test of a stack, made against one of its services: its new container where it gets one, else the one that serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StackTest {
    /// Service.
    pub service: ServiceName,
    /// The test.
    pub test: Probe,
}

/// Commands around a release of a stack.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StackHooks {
    /// Run in order, each in a one-off container of a service's new image, before any container of the release is made. Not of a service that writes data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<StackHook>,
    /// Run in order in a container of a service, once the release serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<StackHook>,
}

/// A command in a container of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StackHook {
    /// Service.
    pub service: ServiceName,
    /// The command.
    pub hook: Hook,
}

/// How a release is watched once it serves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Monitor {
    /// Length of the watch window in seconds; 10 by default.
    pub window_s: Option<u64>,
}

/// How much depends on a service. A trigger of a `low` one never switches a whole stack back, it warns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Criticality {
    /// The stack is of use without it.
    Low,
    /// Part of what the stack is for.
    Normal,
    /// Nothing works without it.
    High,
}

impl StackSettings {
    /// Length of the watch window in seconds, where the file says one.
    pub fn window_s(&self) -> Option<u64> {
        self.monitor.as_ref().and_then(|m| m.window_s).or(self.monitor_s)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bounds of a front. Without a value: its default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FrontSettings {
    /// How long sessions of a replaced container may stay, in seconds; 10 by default.
    pub drain_s: Option<u64>,
    /// How long a connection waits for a container to serve it, in seconds; 30 by default.
    pub hold_s: Option<u64>,
    /// How long a session may be silent, in seconds; 3600 by default.
    pub idle_s: Option<u64>,
    /// Open connections; 4096 by default. More wait in the kernel's queue.
    pub max_connections: Option<u32>,
    /// Connections that wait for a container to serve them; 1024 by default. More are refused.
    pub max_held: Option<u32>,
    /// The service learns its clients' addresses by the PROXY protocol, version 2.
    pub proxy_protocol: bool,
}

/// How a new version gets its share of new connections under `strategy: canary`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CanarySettings {
    /// Shares in percent, growing; 10 and 50 by default.
    pub weights: Vec<u32>,
    /// How long each share is watched, in seconds; 30 by default.
    pub bake_s: u64,
    /// Connects to the new version that may fail in a share before it is taken back; 0 by default.
    pub max_failed: u64,
}

impl Default for CanarySettings {
    fn default() -> Self {
        Self { weights: vec![10, 50], bake_s: 30, max_failed: 0 }
    }
}

/// How far the supervisor goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HealMode {
    /// Reports only.
    Off,
    /// Restarts.
    Restart,
    /// Restarts, then makes the container anew, then rolls a young release back.
    Full,
}

/// What the supervisor does about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DriftMode {
    /// Does not look.
    Off,
    /// Tells it once.
    #[default]
    Report,
    /// Tells it and makes the release that runs whole again, at most once an hour.
    Mend,
}

fn percent<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    match Option::<u8>::deserialize(from)? {
        Some(n) if !(1..=100).contains(&n) => Err(serde::de::Error::custom(format!("{n} is no percentage from 1 to 100"))),
        percent => Ok(percent),
    }
}

fn at_least_one<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(from)? {
        Some(0) => Err(serde::de::Error::custom("heal_instances: 0 protects nothing; leave it out, or say how many copies must stay up")),
        copies => Ok(copies),
    }
}

/// Backup settings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackupSettings {
    /// `false` = no scheduled backup.
    pub enable: Option<bool>,
    /// Cron expression with five fields, in the supervisor's time zone.
    pub schedule: Option<String>,
    /// `none`, `pause` or `stop` while the data is read.
    pub quiesce: Option<Quiesce>,
    /// Snapshot of a service's volumes before it is replaced: `true` always; `false` is a wish, since the operator's policy goes before it. By default as `pre_update` of the policy says: when its image changes.
    pub pre_update: Option<bool>,
    /// Longest run of one backup in seconds; six hours by default.
    pub timeout: Option<u64>,
    /// Snapshots that a scheduled backup leaves.
    pub keep: Option<Keep>,
    /// Of a service: run in order in its container before its data is read; each must exit 0, or nothing is read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<Hook>,
    /// Of a service: run in order in its container once its data was read, also when that failed or was interrupted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<Hook>,
    /// Of a service: a command in its container whose output is stored as one file, e.g. `pg_dump -U postgres shop`; it must exit 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Command>,
    /// Of a service: a command that must exit 0 in the container a drill starts on the restored data, without network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Command>,
}

impl BackupSettings {
    /// These, and where they say nothing what others say.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        Self {
            enable: self.enable.or(others.enable),
            schedule: self.schedule.or_else(|| others.schedule.clone()),
            quiesce: self.quiesce.or(others.quiesce),
            pre_update: self.pre_update.or(others.pre_update),
            timeout: self.timeout.or(others.timeout),
            keep: self.keep.or_else(|| others.keep.clone()),
            ..self
        }
    }
}

/// `x-dockwarden` of a volume. Closed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeSettings {
    /// Backups of this volume, before what the services that write it and the stack say.
    #[serde(deserialize_with = "stack_wide")]
    pub backup: Option<BackupSettings>,
}

impl VolumeSettings {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How many snapshots of a source stay: the newest of each of so many hours, days, weeks and months, and the last ones before updates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Keep {
    /// Hours; 24 by default.
    pub hourly: u32,
    /// Days; 7 by default.
    pub daily: u32,
    /// Weeks; 5 by default.
    pub weekly: u32,
    /// Months; 12 by default.
    pub monthly: u32,
    /// Snapshots before updates, beside those of the last 7 days; 5 by default.
    pub pre_update: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Self { hourly: 24, daily: 7, weekly: 5, monthly: 12, pre_update: 5 }
    }
}

/// What happens to the containers that write a volume while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Quiesce {
    /// Nothing.
    #[default]
    None,
    /// Paused.
    Pause,
    /// Stopped and started again.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The schema of `x-dockwarden`, as editors read it: of a stack at the root, of a service under `$defs`.
    fn schema() -> Value {
        let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
        let (stack, service) = (generator.subschema_for::<StackSettings>(), generator.subschema_for::<ServiceSettings>());
        let volume = generator.subschema_for::<VolumeSettings>();
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "x-dockwarden of a stack; that of a service is $defs.ServiceSettings, that of a volume $defs.VolumeSettings",
            "allOf": [stack],
            "x-service": service,
            "x-volume": volume,
            "$defs": generator.take_definitions(true),
        })
    }

    #[test]
    fn the_schema_in_the_documentation_is_the_one_that_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/x-dockwarden.schema.json");
        let text = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
        if std::env::var_os("INSTA_UPDATE").is_some_and(|v| v == "always") {
            std::fs::write(path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap() == text,
            "docs/x-dockwarden.schema.json is out of date: INSTA_UPDATE=always writes it"
        );
    }

    #[test]
    fn the_key_is_closed_and_empty_settings_take_no_room() {
        let refused = |v: Value| serde_json::from_value::<ServiceSettings>(v).unwrap_err().to_string();
        assert!(refused(json!({"probe": []})).contains("unknown field `probe`"));
        assert!(refused(json!({"hooks": {"before": []}})).contains("unknown field `before`"));
        assert!(refused(json!({"triggers": {"error_lines": "explode"}})).contains("unknown variant `explode`"));
        assert!(refused(json!({"heal_instances": 0})).contains("protects nothing"));
        let written = serde_json::to_value(ServiceSettings::default()).unwrap();
        assert!(
            ["probes", "smoke", "hooks", "triggers", "migrates", "criticality", "heal_instances"].iter().all(|k| written.get(k).is_none()),
            "{written}"
        );
    }

    #[test]
    fn a_volume_has_no_container_to_run_commands_in_and_says_only_what_differs() {
        let read = |v: Value| serde_json::from_value::<VolumeSettings>(v);
        let own = read(json!({"backup": {"enable": false, "keep": {"daily": 3}}})).unwrap().backup.unwrap();
        let stack = BackupSettings { enable: Some(true), schedule: Some("hourly".into()), ..BackupSettings::default() };
        let both = own.or(&stack);
        assert_eq!((both.enable, both.schedule.as_deref(), both.keep.map(|k| k.daily)), (Some(false), Some("hourly"), Some(3)));
        for command in [json!({"stdout": "pg_dump shop"}), json!({"pre": [{"run": ["x"]}]})] {
            assert!(read(json!({"backup": command})).unwrap_err().to_string().contains("the service they run in"));
        }
    }

    #[test]
    fn the_window_is_read_under_both_names_and_the_full_one_wins() {
        let window = |v: Value| serde_json::from_value::<StackSettings>(v).unwrap().window_s();
        assert_eq!(window(json!({})), None);
        assert_eq!(window(json!({"monitor_s": 3})), Some(3));
        assert_eq!(window(json!({"monitor_s": 3, "monitor": {"window_s": 7}})), Some(7));
    }
}
