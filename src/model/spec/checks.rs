//! What `x-dockwarden` may have done beside starting containers: probes, hooks, triggers. Closed types; a value that exists is valid.

use serde::{Deserialize, Serialize};

/// Longest time a probe, a smoke test or a hook may be given, in seconds.
const MAX_TIMEOUT_S: u64 = 3600;

/// One check of a running container. Written as a mapping with exactly one of `http`, `tcp`, `exec`, `url`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "ProbeText", into = "ProbeText")]
#[schemars(with = "ProbeText")]
pub struct Probe {
    /// What is asked.
    pub check: ProbeCheck,
    /// Time for one attempt, in seconds.
    pub timeout_s: u64,
    /// Certificates are not checked.
    pub insecure: bool,
}

/// What a probe asks, and whom.
#[derive(Debug, Clone, PartialEq)]
pub enum ProbeCheck {
    /// A GET to a port of the container.
    Http(HttpProbe),
    /// A connection to a port of the container.
    Tcp(u16),
    /// A command in the container that must exit 0.
    Exec(Vec<String>),
    /// A GET by the supervisor to an absolute `http://` or `https://` address.
    Url(String),
}

/// A probe as it is written. Exactly one of `http`, `tcp`, `exec`, `url`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Probe")]
pub struct ProbeText {
    /// A GET to a port of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<HttpProbe>,
    /// A port of the container that must accept connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<u16>,
    /// A command in the container that must exit 0, word by word: `["pg_isready"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<Vec<String>>,
    /// An absolute `http://` or `https://` address that the supervisor itself asks; never a link-local or metadata address.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Time for one attempt, in seconds; 5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
    /// With https: any certificate will do. A finding of the plan.
    #[serde(skip_serializing_if = "is_false")]
    insecure: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A GET to a port of the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// Port inside the container.
    pub port: u16,
    /// Path with query; `/` by default.
    #[serde(default = "root")]
    pub path: String,
    /// By https; the certificate must be good for `localhost`, or the probe `insecure`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tls: bool,
    /// Status that counts as passed; any from 200 to 399 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Text that must stand in the first 64 KiB of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
}

fn root() -> String {
    "/".into()
}

/// Default time for one attempt of a probe, in seconds.
const PROBE_TIMEOUT_S: u64 = 5;

impl TryFrom<ProbeText> for Probe {
    type Error = String;

    fn try_from(t: ProbeText) -> Result<Self, String> {
        let timeout_s = limited(t.timeout_s, PROBE_TIMEOUT_S)?;
        let given = [t.http.is_some(), t.tcp.is_some(), t.exec.is_some(), t.url.is_some()].iter().filter(|g| **g).count();
        let check = match (t.http, t.tcp, t.exec, t.url) {
            _ if given != 1 => return Err(format!("a probe has exactly one of http, tcp, exec and url; this one has {given}")),
            (Some(http), ..) => ProbeCheck::Http(checked(http)?),
            (_, Some(0), ..) => return Err("tcp: 0 is no port".into()),
            (_, Some(port), ..) => ProbeCheck::Tcp(port),
            (_, _, Some(command), _) => ProbeCheck::Exec(words(command)?),
            (_, _, _, Some(url)) => ProbeCheck::Url(web_address(url)?),
            (None, None, None, None) => return Err("a probe has exactly one of http, tcp, exec and url".into()),
        };
        let tls = matches!(&check, ProbeCheck::Http(h) if h.tls) || matches!(&check, ProbeCheck::Url(u) if u.starts_with("https:"));
        if t.insecure && !tls {
            return Err("insecure: only a probe by https has a certificate".into());
        }
        Ok(Self { check, timeout_s, insecure: t.insecure })
    }
}

impl From<Probe> for ProbeText {
    fn from(p: Probe) -> Self {
        let mut text = Self { timeout_s: Some(p.timeout_s), insecure: p.insecure, ..Self::default() };
        match p.check {
            ProbeCheck::Http(http) => text.http = Some(http),
            ProbeCheck::Tcp(port) => text.tcp = Some(port),
            ProbeCheck::Exec(command) => text.exec = Some(command),
            ProbeCheck::Url(url) => text.url = Some(url),
        }
        text
    }
}

impl std::fmt::Display for ProbeCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(h) => write!(f, "{} {}{}", if h.tls { "https" } else { "http" }, h.port, h.path),
            Self::Tcp(port) => write!(f, "tcp {port}"),
            Self::Exec(command) => write!(f, "exec {}", command.join(" ")),
            Self::Url(url) => write!(f, "url {url}"),
        }
    }
}

fn limited(given: Option<u64>, default: u64) -> Result<u64, String> {
    match given.unwrap_or(default) {
        s if (1..=MAX_TIMEOUT_S).contains(&s) => Ok(s),
        s => Err(format!("timeout_s: {s} is not between 1 and {MAX_TIMEOUT_S}")),
    }
}

fn checked(http: HttpProbe) -> Result<HttpProbe, String> {
    if http.port == 0 {
        return Err("http.port: 0 is no port".into());
    }
    // The path goes into a request line and, by another way, into a shell's argument.
    if !http.path.starts_with('/') || http.path.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err(format!("http.path: {:?} does not begin with / or holds spaces or control characters", http.path));
    }
    if http.status.is_some_and(|s| !(100..=599).contains(&s)) {
        return Err("http.status: not between 100 and 599".into());
    }
    Ok(http)
}

fn words(command: Vec<String>) -> Result<Vec<String>, String> {
    match command.first() {
        Some(first) if !first.is_empty() => Ok(command),
        Some(_) | None => Err("a command is a list of words, the first one not empty".into()),
    }
}

fn web_address(url: String) -> Result<String, String> {
    let parsed: http::Uri = url.parse().map_err(|e| format!("url: {e}"))?;
    match parsed.scheme_str() {
        Some("http" | "https") if parsed.host().is_some_and(|h| !h.is_empty()) => Ok(url),
        Some(_) | None => Err("url: an absolute http:// or https:// address is needed".into()),
    }
}

/// Commands around the start of a service's new release.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Run in order, each in a one-off container of the new image with the service's environment, networks and mounts, before a new container of the service is made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<Hook>,
    /// Run in order in the first new container, once the release serves and before the old one's containers are put away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<Hook>,
}

/// One command. It must exit 0; after a crash of the supervisor in its middle it may run again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "HookText", into = "HookText")]
#[schemars(with = "HookText")]
pub struct Hook {
    /// The command, word by word.
    pub run: Vec<String>,
    /// Time it may take, in seconds.
    pub timeout_s: u64,
}

/// A hook as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Hook")]
pub struct HookText {
    /// The command, word by word.
    run: Vec<String>,
    /// Time it may take, in seconds; 60 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
}

/// A command, written as a list of words or as one text that is split at blanks; no shell reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "CommandText", into = "Vec<String>")]
#[schemars(with = "CommandText")]
pub struct Command(pub Vec<String>);

/// A command as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Command")]
pub enum CommandText {
    /// Words at blanks; quotes, pipes and variables need a shell and are refused.
    Text(String),
    /// Word by word.
    Words(Vec<String>),
}

impl TryFrom<CommandText> for Command {
    type Error = String;

    fn try_from(t: CommandText) -> Result<Self, String> {
        let given = match t {
            CommandText::Words(given) => given,
            // A pipe's exit code is that of its last command: a dump that failed would look like one that did not.
            CommandText::Text(t) if t.contains(['\'', '"', '`', '$', '|', '&', ';', '<', '>', '\\', '*']) => {
                return Err(format!("{t:?} needs a shell, and none reads it: write the command as a list of words"));
            }
            CommandText::Text(t) => t.split_whitespace().map(str::to_owned).collect(),
        };
        words(given).map(Self)
    }
}

impl From<Command> for Vec<String> {
    fn from(c: Command) -> Self {
        c.0
    }
}

impl TryFrom<HookText> for Hook {
    type Error = String;

    fn try_from(t: HookText) -> Result<Self, String> {
        Ok(Self { timeout_s: limited(t.timeout_s, 60)?, run: words(t.run).map_err(|e| format!("run: {e}"))? })
    }
}

impl From<Hook> for HookText {
    fn from(h: Hook) -> Self {
        Self { run: h.run, timeout_s: Some(h.timeout_s) }
    }
}

/// What the watch window does about what it sees. Absent = the default named at each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Triggers {
    /// A container ended, restarts, or its health check fails; `rollback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<TriggerAction>,
    /// The service's own probes fail for more than 2 minutes; `rollback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<TriggerAction>,
    /// More than 10 error lines within a minute, and more than the old release wrote; `warn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_lines: Option<TriggerAction>,
    /// Lines about failing database connections that the old release did not write; `warn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_errors: Option<TriggerAction>,
    /// More than 95 % of the CPU it may use, which the old release did not need; `warn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<TriggerAction>,
    /// More than 95 % of the memory it may use, which the old release did not need; `warn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<TriggerAction>,
}

/// What a trigger does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TriggerAction {
    /// Nothing.
    Off,
    /// Tells it in the operation and the audit log.
    Warn,
    /// Switches back to the old release.
    Rollback,
}

/// What a trigger watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// See [`Triggers::health`].
    Health,
    /// See [`Triggers::unavailable`].
    Unavailable,
    /// See [`Triggers::error_lines`].
    ErrorLines,
    /// See [`Triggers::database_errors`].
    DatabaseErrors,
    /// See [`Triggers::cpu`].
    Cpu,
    /// See [`Triggers::memory`].
    Memory,
}

impl Trigger {
    /// The word of the file and of messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Unavailable => "unavailable",
            Self::ErrorLines => "error_lines",
            Self::DatabaseErrors => "database_errors",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

impl Triggers {
    /// What was written for a trigger.
    pub fn written(&self, trigger: Trigger) -> Option<TriggerAction> {
        match trigger {
            Trigger::Health => self.health,
            Trigger::Unavailable => self.unavailable,
            Trigger::ErrorLines => self.error_lines,
            Trigger::DatabaseErrors => self.database_errors,
            Trigger::Cpu => self.cpu,
            Trigger::Memory => self.memory,
        }
    }

    /// What a trigger does: as written for the service, else for the stack, else by default.
    pub fn action(service: &Triggers, stack: &Triggers, trigger: Trigger) -> TriggerAction {
        let default = match trigger {
            Trigger::Health | Trigger::Unavailable => TriggerAction::Rollback,
            Trigger::ErrorLines | Trigger::DatabaseErrors | Trigger::Cpu | Trigger::Memory => TriggerAction::Warn,
        };
        service.written(trigger).or(stack.written(trigger)).unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refused(v: Value) -> String {
        serde_json::from_value::<Probe>(v).unwrap_err().to_string()
    }

    #[test]
    fn a_probe_has_exactly_one_kind_and_reads_back_as_written() {
        let written = json!({"http": {"port": 80, "path": "/health", "status": 204}, "timeout_s": 3});
        let probe: Probe = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&probe).unwrap(), written);
        let tcp: Probe = serde_json::from_value(json!({"tcp": 5432})).unwrap();
        assert_eq!((tcp.check, tcp.timeout_s), (ProbeCheck::Tcp(5432), 5));
        for (bad, why) in [
            (json!({}), "has 0"),
            (json!({"tcp": 1, "exec": ["a"]}), "has 2"),
            (json!({"tcp": 0}), "no port"),
            (json!({"exec": []}), "list of words"),
            (json!({"http": {"port": 1, "path": "x"}}), "does not begin"),
            (json!({"http": {"port": 1, "path": "/a b"}}), "spaces"),
            (json!({"url": "/relative"}), "absolute"),
            (json!({"url": "ftp://x/"}), "absolute"),
            (json!({"url": "http://x/", "insecure": true}), "only a probe by https"),
            (json!({"tcp": 1, "insecure": true}), "only a probe by https"),
            (json!({"tcp": 1, "timeout_s": 0}), "between 1"),
            (json!({"tcp": 1, "port": 1}), "unknown field"),
        ] {
            assert!(refused(bad.clone()).contains(why), "{bad}: {}", refused(bad.clone()));
        }
    }

    #[test]
    fn the_service_speaks_before_the_stack_and_both_before_the_default() {
        let stack = Triggers { error_lines: Some(TriggerAction::Rollback), ..Triggers::default() };
        let service = Triggers { error_lines: Some(TriggerAction::Off), ..Triggers::default() };
        let none = Triggers::default();
        assert_eq!(Triggers::action(&none, &none, Trigger::ErrorLines), TriggerAction::Warn);
        assert_eq!(Triggers::action(&none, &stack, Trigger::ErrorLines), TriggerAction::Rollback);
        assert_eq!(Triggers::action(&service, &stack, Trigger::ErrorLines), TriggerAction::Off);
        assert_eq!(Triggers::action(&none, &none, Trigger::Health), TriggerAction::Rollback);
    }
}
