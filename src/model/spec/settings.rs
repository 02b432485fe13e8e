//! `x-dockwarden`: what a file says to us, at its top for the stack and under a service for that service. Closed; the schema is generated from here.

use serde::{Deserialize, Serialize};

/// `x-dockwarden` at the top of a file. Closed: an unknown key is an error with its path.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StackSettings {
    /// Watch window after a deploy in seconds before the release counts as good; 10 by default.
    pub monitor_s: Option<u64>,
    /// Scheduled backups of all volumes of the stack.
    pub backup: Option<BackupSettings>,
    /// Whether the supervisor heals services: `off`, `restart` (default).
    pub heal: Option<HealMode>,
}

/// `x-dockwarden` of a service. Closed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// Two copies may run at once although it writes data.
    pub concurrent: bool,
    /// Strategy asked for; the planner chooses otherwise.
    pub strategy: Option<crate::model::plan::Strategy>,
    /// Time for a new container to become healthy, in seconds; 60 by default.
    pub start_timeout_s: Option<u64>,
    /// Healing of this service.
    pub heal: Option<HealMode>,
    /// Whether a new version changes its data so that older ones may not read it; by default judged by whether the image's version changes.
    pub migrates: Option<bool>,
    /// Backups of the service's volumes.
    pub backup: Option<BackupSettings>,
}

/// How far the supervisor goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HealMode {
    /// Reports only.
    Off,
    /// Restarts.
    Restart,
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
    /// Snapshot of a service's volumes before it is replaced: `true` always, `false` never; by default when its image changes and a volume holds at most 1 GiB.
    pub pre_update: Option<bool>,
    /// Longest run of one backup in seconds; six hours by default.
    pub timeout: Option<u64>,
    /// Snapshots that a scheduled backup leaves.
    pub keep: Option<Keep>,
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
