//! Configuration of a supervisor as plain data: where things are, which stacks are registered. Read and checked by `config`.

use super::ids::{AgentName, EngineName, StackName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `dockwarden.toml`. Closed: an unknown key is an error.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address of the HTTP door; `127.0.0.1:7420` by default.
    pub listen: Option<String>,
    /// Engine endpoint; by default DOCKER_HOST, the client's context, the usual socket.
    pub engine: Option<String>,
    /// Registered stacks.
    pub stacks: BTreeMap<StackName, StackSettingsEntry>,
    /// Agent the command line acts as when `--agent` is not given; `stack-keeper` by default.
    pub cli_agent: Option<String>,
    /// More about the HTTP door.
    pub http: HttpSettings,
    /// When the closed part of the audit log is sealed.
    pub audit: AuditSettings,
    /// How much of an agent's memory stays in its database.
    pub memory: MemorySettings,
    /// When the disk of the home is too full.
    pub disk: super::disk::DiskSettings,
    /// Host names the HTTP door answers to beside loopback.
    pub allowed_hosts: Vec<String>,
    /// Origins the HTTP door accepts beside loopback.
    pub allowed_origins: Vec<String>,
    /// Scheduled backups of every stack with data unless its file says otherwise: cron with five fields; `17 3 * * *` by default, `off` for none.
    pub backup_schedule: Option<String>,
    /// Where the repository of backups is, and its copies.
    pub backup: super::target::BackupSettings,
    /// Times in which the loop changes nothing.
    pub maintenance: Vec<MaintenanceWindow>,
    /// Who is told what needs a person; nobody when absent.
    pub notify: Option<NotifySettings>,
    /// Models of agents that do tasks by themselves.
    pub models: ModelsSettings,
    /// The queue of tasks.
    pub tasks: TaskSettings,
    /// What gives agents work without anybody asking.
    pub triggers: Vec<super::trigger::Trigger>,
}

/// `[models]`: the default, and one table a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelsSettings {
    /// The one that `model: inherit` of an agent means.
    pub default: Option<String>,
    /// Models by the name that agents use.
    #[serde(flatten)]
    pub named: BTreeMap<String, ModelSettings>,
}

/// `[models.NAME]`: a model and how it is reached. Closed. The key itself is never here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// What it speaks.
    pub provider: ModelProvider,
    /// Its name at the provider.
    pub model: String,
    /// Address up to and without `messages` or `chat/completions`; the provider's own when absent.
    #[serde(default)]
    pub base_url: Option<String>,
    /// Environment variable with the key.
    #[serde(default)]
    pub key_env: Option<String>,
    /// File with the key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Most tokens of one answer.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// Tokens it takes in all, question and answer.
    #[serde(default = "default_context_tokens")]
    pub context_tokens: u32,
    /// Longest wait for the first word, and for each further one, seconds.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: u64,
    /// What it costs; without it an agent with `usd_per_month` does not run on it.
    #[serde(default)]
    pub price: Option<PriceSettings>,
}

fn default_max_tokens() -> u32 {
    4_096
}
fn default_context_tokens() -> u32 {
    100_000
}
fn default_timeout_s() -> u64 {
    120
}

/// What a model speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelProvider {
    /// Anthropic's Messages.
    Anthropic,
    /// OpenAI's chat completions, as vLLM, Ollama and others speak it too.
    Openai,
}

/// US dollars per million tokens, at most six decimals. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceSettings {
    /// Read.
    pub input: f64,
    /// Read from the provider's cache; as `input` when not said.
    #[serde(default)]
    pub cached: Option<f64>,
    /// Written to the provider's cache; a quarter more than `input` when not said.
    #[serde(default)]
    pub cache_write: Option<f64>,
    /// Written.
    pub output: f64,
}

/// `[tasks]`: bounds of the queue. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskSettings {
    /// Agents with a task at work at once.
    pub max_agents: u32,
    /// Tasks taken per second; a burst of as many is taken at once.
    pub max_per_second: u32,
    /// Tasks that may wait for their turn.
    pub max_queued: u64,
    /// Tries of a task whose skill and agent say nothing.
    pub tries: u32,
    /// Pause before the second try, in seconds; it doubles with each one.
    pub retry_pause_s: u32,
    /// Whether the shipped maintenance runs: `weekly-review`, `monthly-check` and `monthly-refresh`.
    pub maintenance: bool,
    /// Agents that run in a process of their own and fetch their tasks (`dockwarden agent run`): the supervisor does not do their tasks itself.
    pub outside: Vec<AgentName>,
}

impl Default for TaskSettings {
    fn default() -> Self {
        Self { max_agents: 40, max_per_second: 100, max_queued: 10_000, tries: 3, retry_pause_s: 10, maintenance: true, outside: vec![] }
    }
}

/// `[http]`: how the HTTP door speaks. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// PEM file with the certificate and those that signed it; the door speaks TLS when it is set.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    pub tls_key: Option<PathBuf>,
}

/// `[audit]`: when the closed part of the log becomes a sealed segment. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSettings {
    /// With more MiB than this in `audit.db`; 64 by default.
    pub segment_mib: Option<u32>,
    /// With a row older than so many days; never for its age by default.
    pub segment_days: Option<u32>,
}

/// `[memory]`: how much of an agent's memory stays in its database, unless its own `limits` say otherwise; older events go to a file beside it. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemorySettings {
    /// At most so many MiB; notes may fill half of them.
    pub max_mib: u32,
    /// History younger than so many days; any age when absent.
    pub max_days: Option<u32>,
}

impl Default for MemorySettings {
    fn default() -> Self {
        // Some hundred thousand calls; beyond it looking for a note takes longer than reading it.
        Self { max_mib: 64, max_days: None }
    }
}

impl MemorySettings {
    /// What holds for an agent with such limits of its own: bytes, and days.
    pub fn of(&self, limits: &super::agent::Limits) -> (u64, Option<u32>) {
        (u64::from(limits.memory_mib.unwrap_or(self.max_mib)) << 20, limits.memory_days.or(self.max_days))
    }
}

/// `[notify]`: where messages go. Closed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NotifySettings {
    /// Address that gets one JSON POST an event (ntfy, Slack, Discord, or anything else).
    pub url: Option<String>,
    /// File with that address, where it is a secret.
    pub url_file: Option<PathBuf>,
    /// Command that gets the JSON on stdin: program and arguments, no shell.
    pub command: Vec<String>,
    /// Topic of ntfy; its `url` is then the server's root.
    pub topic: Option<String>,
    /// Address under which people reach the HTTP door, for links.
    pub public_url: Option<String>,
    /// Events to tell; all when empty.
    pub events: Vec<NotifyEvent>,
}

/// What is worth a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotifyEvent {
    /// An approval waits.
    ApprovalPending,
    /// It waits and is about to expire.
    ApprovalExpiring,
    /// An operation was undone.
    RolledBack,
    /// An operation is stuck, or changes were stopped after too many failures.
    NeedsAttention,
    /// Healing gave up, or a service was quarantined.
    GaveUp,
    /// A backup failed.
    BackupFailed,
    /// An operator lifted denials for a while.
    BreakGlass,
    /// Half, four fifths or all of an agent's budget of the month is spent.
    Budget,
    /// More than half of all services are down at once: nothing is healed.
    HostFailing,
    /// What runs is not what was deployed.
    DriftFound,
    /// A task of an agent failed for good.
    TaskFailed,
    /// The disk of the home fills up.
    Disk,
}

/// A time in which people work on stacks: the loop looks and keeps its hands off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// When it begins: cron with five fields, in the supervisor's time zone.
    pub schedule: String,
    /// How long it lasts.
    pub minutes: u32,
    /// Stacks, `*` as a wildcard at the end; all when empty.
    #[serde(default)]
    pub stacks: Vec<String>,
}

impl MaintenanceWindow {
    /// Whether it speaks of a stack.
    pub fn covers(&self, stack: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => stack.starts_with(start),
            None => pattern == stack,
        };
        self.stacks.is_empty() || self.stacks.iter().any(fits)
    }
}

/// A registered stack.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StackSettingsEntry {
    /// Project directory, absolute; every relative path in the file means it.
    pub dir: PathBuf,
    /// Files in order; by default those that `COMPOSE_FILE` of the environment file names, else the first of compose.yaml, compose.yml,
    /// docker-compose.yml, docker-compose.yaml and an override file.
    pub files: Vec<String>,
    /// Environment; the policy's default when absent.
    pub environment: Option<String>,
    /// Active profiles; by default those of `COMPOSE_PROFILES` of the environment file.
    pub profiles: Vec<String>,
    /// Environment files for interpolation; `.env` of the directory by default.
    pub env_files: Vec<String>,
    /// Backups of its data, where its files do not say: for stacks whose files nobody wants to touch.
    #[serde(deserialize_with = "super::spec::settings::stack_wide", skip_serializing_if = "Option::is_none")]
    pub backup: Option<super::spec::BackupSettings>,
    /// The directory is a git checkout that a signed push brings forward before its task is done; left as it lies by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git: Option<GitFollow>,
}

/// What a checkout follows. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitFollow {
    /// Branch: the one that is checked out and whose pushes count.
    pub branch: String,
    /// Remote it is fetched from; `origin` by default.
    #[serde(default = "origin")]
    pub remote: String,
}

fn origin() -> String {
    "origin".to_owned()
}

impl GitFollow {
    /// The reference as a push names it.
    pub fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    /// What is wrong with it, in words: both are arguments of git.
    ///
    /// # Errors
    /// The first thing found.
    pub fn check(&self) -> Result<(), String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        for (what, name) in [("branch", &self.branch), ("remote", &self.remote)] {
            let parts_sound = name.split('/').all(|p| !p.is_empty() && !p.starts_with('.') && !p.ends_with(".lock"));
            if name.len() > 200 || name.starts_with('-') || name.contains("..") || !name.bytes().all(plain) || !parts_sound {
                return Err(format!("git.{what} = {name:?} is no name of a {what}"));
            }
        }
        Ok(())
    }
}

/// Everything a running supervisor knows about its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// State directory (`$DOCKWARDEN_HOME`).
    pub home: PathBuf,
    /// Configuration directory (`$DOCKWARDEN_CONFIG`).
    pub config_dir: PathBuf,
    /// Memory directory (`$MCP_MEMORY_PATH`).
    pub memory: PathBuf,
    /// The file.
    pub settings: Settings,
    /// Host name shown to clients.
    pub host_name: String,
    /// When the supervisor runs in a container: container path prefix -> host path prefix of its own mounts.
    pub path_map: Option<BTreeMap<PathBuf, PathBuf>>,
    /// The supervisor's own container.
    pub own_container: OwnContainer,
}

impl Config {
    /// A place with nothing set, outside of a container.
    pub fn new(home: PathBuf, config_dir: PathBuf, memory: PathBuf) -> Self {
        Self {
            home,
            config_dir,
            memory,
            settings: Settings::default(),
            host_name: String::new(),
            path_map: None,
            own_container: OwnContainer::None,
        }
    }
}

/// Which container of its engine the supervisor runs in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OwnContainer {
    /// None of them.
    #[default]
    None,
    /// This one.
    Is(EngineName),
    /// One of them, perhaps, and nobody could tell which: what belongs to nobody we know may be ours.
    Unknown,
}

/// Schedule of backups when the file names none: once a night, off the full hour.
pub const DEFAULT_BACKUP_SCHEDULE: &str = "17 3 * * *";

/// The cron line of a schedule: words stand for lines off the full hour, anything else for itself.
pub fn schedule_line(schedule: &str) -> &str {
    match schedule {
        "hourly" => "17 * * * *",
        "daily" => DEFAULT_BACKUP_SCHEDULE,
        "weekly" => "17 3 * * 0",
        "monthly" => "17 3 1 * *",
        line => line,
    }
}
