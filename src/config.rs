//! Where things are and what `dockwarden.toml` says: environment, files, and (in a container) the path map. Read once at start.
//! Deliberately absent: engine calls beyond the path map's input, policy and agents (`app::rules` loads those), defaults hidden elsewhere.

mod backup;
pub mod container;

pub use crate::model::config::DEFAULT_BACKUP_SCHEDULE;
use crate::model::config::{Config, Settings, schedule_line};
use std::path::{Path, PathBuf};

/// Whether a schedule can be kept.
pub fn valid_schedule(schedule: &str) -> bool {
    let line = schedule_line(schedule);
    line.split_whitespace().count() == 5 && line.parse::<croner::Cron>().is_ok()
}

/// HTTP door when nothing else is said: loopback only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7420";

/// What is wrong with the configuration, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, thiserror::Error, miette::Diagnostic)]
#[error("{}: {message}", location(file, *line))]
#[diagnostic(help("{hint}"))]
pub struct ConfigError {
    /// File or environment variable.
    pub file: String,
    /// Line, from 1; `None` when the whole is meant.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

fn location(file: &str, line: Option<usize>) -> String {
    line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"))
}

impl ConfigError {
    fn new(file: impl Into<String>, line: Option<usize>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { file: file.into(), line, message: message.into(), hint: hint.into() }
    }
}

/// The three directories, resolved from flags and environment without touching the disk beyond one `stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// State.
    pub home: PathBuf,
    /// Configuration.
    pub config_dir: PathBuf,
    /// Memory.
    pub memory: PathBuf,
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Unit file of the supervisor as a service, see `dockwarden service`.
pub const UNIT: &str = "/etc/systemd/system/dockwarden.service";

/// The home a unit of ours says; `None` for a text that is none.
pub fn home_of_unit(unit: &str) -> Option<PathBuf> {
    let line = unit.lines().find(|l| l.starts_with("ExecStart="))?;
    let quoted = line.split_once("--home \"")?.1;
    let mut home = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some(PathBuf::from(home)).filter(|p| p.is_absolute()),
            '\\' => home.push(chars.next()?),
            '%' => home.push(chars.next().filter(|c| *c == '%')?),
            c => home.push(c),
        }
    }
}

/// The state directory: flag, `$DOCKWARDEN_HOME`, that of the installed service, `$XDG_STATE_HOME/dockwarden`, `~/.local/state/dockwarden`,
/// `/var/lib/dockwarden`. The bridge calls this alone: it must not load anything. A command that went to another home than the service's would
/// start a second supervisor beside it.
pub fn home_dir(flag: Option<&Path>) -> PathBuf {
    let found = flag
        .map(Path::to_path_buf)
        .or_else(|| variable("DOCKWARDEN_HOME"))
        .or_else(|| std::fs::read_to_string(UNIT).ok().as_deref().and_then(home_of_unit))
        .or_else(|| variable("XDG_STATE_HOME").map(|d| d.join("dockwarden")))
        .or_else(|| variable("HOME").map(|d| d.join(".local/state/dockwarden")))
        .unwrap_or_else(|| PathBuf::from("/var/lib/dockwarden"));
    std::path::absolute(&found).unwrap_or(found)
}

/// The configuration directory: flag, `$DOCKWARDEN_CONFIG`, `/etc/dockwarden` where it exists, `$XDG_CONFIG_HOME/dockwarden`, `~/.config/dockwarden`.
pub fn config_dir(flag: Option<&Path>) -> PathBuf {
    let system = PathBuf::from("/etc/dockwarden");
    let found = flag
        .map(Path::to_path_buf)
        .or_else(|| variable("DOCKWARDEN_CONFIG"))
        .or_else(|| system.is_dir().then(|| system.clone()))
        .or_else(|| variable("XDG_CONFIG_HOME").map(|d| d.join("dockwarden")))
        .or_else(|| variable("HOME").map(|d| d.join(".config/dockwarden")))
        .unwrap_or(system);
    std::path::absolute(&found).unwrap_or(found)
}

/// Resolves all three directories; memory is `$MCP_MEMORY_PATH`, else `<home>/memory`.
pub fn places(home: Option<&Path>, config: Option<&Path>) -> Places {
    let home = home_dir(home);
    let memory = variable("MCP_MEMORY_PATH").map_or_else(|| home.join("memory"), |m| std::path::absolute(&m).unwrap_or(m));
    Places { config_dir: config_dir(config), memory, home }
}

/// The supervisor's socket of a home.
pub fn socket_path(home: &Path) -> PathBuf {
    home.join("run/supervisor.sock")
}

/// Reads and checks the configuration. A missing `dockwarden.toml` means the defaults; a faulty one is an error, never half used.
///
/// # Errors
/// The file, the line, the cause and what to write instead.
pub fn load(places: &Places) -> Result<Config, ConfigError> {
    let file = places.config_dir.join("dockwarden.toml");
    let name = file.display().to_string();
    let settings = match std::fs::read_to_string(&file) {
        Ok(text) => parse(&text, &name)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Settings::default(),
        // What a container engine makes of a mount whose source does not exist.
        Err(e) if file.is_dir() => {
            return Err(ConfigError::new(
                name,
                None,
                e.to_string(),
                "put a file there; in a container, DOCKWARDEN_TOML in .env names the one of the host",
            ));
        }
        Err(e) => return Err(ConfigError::new(name, None, e.to_string(), "make the file readable for the user dockwarden runs as")),
    };
    container::check_environment(&|key| std::env::var(key).ok(), &|path| path.is_dir())?;
    Ok(Config {
        home: places.home.clone(),
        config_dir: places.config_dir.clone(),
        memory: places.memory.clone(),
        settings,
        host_name: host_name(),
        path_map: None,
        own_container: Default::default(),
    })
}

/// The name clients are shown: `$DOCKWARDEN_HOST_NAME` (a container's own name says nothing), else the kernel's.
fn host_name() -> String {
    let kernel = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    std::env::var("DOCKWARDEN_HOST_NAME").ok().filter(|n| !n.is_empty()).unwrap_or_else(kernel)
}

/// Parses and checks the text of `dockwarden.toml`.
///
/// # Errors
/// As `load`.
pub fn parse(text: &str, name: &str) -> Result<Settings, ConfigError> {
    let settings: Settings = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let hint = if e.message().contains("unknown field") {
            "remove the key or correct its spelling; every accepted key is listed in docs/configuration.md"
        } else {
            "correct the line; `dockwarden init` shows a file that works on this host"
        };
        ConfigError::new(name, line, e.message(), hint)
    })?;
    check(&settings, text, name)?;
    Ok(settings)
}

fn line_of(text: &str, needle: &str) -> Option<usize> {
    text.lines().position(|l| !l.trim_start().starts_with('#') && l.contains(needle)).map(|n| n + 1)
}

/// Whether all are host names as the Host list takes them.
///
/// # Errors
/// The first that is none, in words.
pub fn check_hosts(hosts: &[String]) -> Result<(), String> {
    let bad = |h: &&String| h.is_empty() || h.contains(['/', '*', '@', '$']) || h.chars().any(|c| c.is_whitespace() || c.is_control());
    hosts.iter().find(bad).map_or(Ok(()), |h| Err(format!("{h:?} is not a host name")))
}

fn check(settings: &Settings, text: &str, name: &str) -> Result<(), ConfigError> {
    let fault = |needle: &str, message: String, hint: &str| Err(ConfigError::new(name, line_of(text, needle), message, hint));
    if let Some(listen) = &settings.listen
        && listen != "off"
        && listen.parse::<std::net::SocketAddr>().is_err()
    {
        return fault(
            "listen",
            format!("listen = {listen:?} is not an address and port"),
            "write e.g. listen = \"127.0.0.1:7420\", or \"off\" for no HTTP door",
        );
    }
    for (key, value) in [("segment_mib", settings.audit.segment_mib), ("segment_days", settings.audit.segment_days)] {
        if value == Some(0) {
            return fault(key, format!("audit.{key} = 0 would seal every row by itself"), "write 1 or more, or leave it out");
        }
    }
    for (key, value) in [("max_mib", Some(settings.memory.max_mib)), ("max_days", settings.memory.max_days)] {
        if value == Some(0) {
            return fault(key, format!("memory.{key} = 0 would leave no memory"), "write 1 or more, or leave it out");
        }
    }
    let disk = &settings.disk;
    if !(disk.warn_percent < disk.critical_percent && disk.warn_percent > 0 && disk.critical_percent <= 100) {
        let message =
            format!("disk.warn_percent = {} and disk.critical_percent = {} are no two steps", disk.warn_percent, disk.critical_percent);
        let needle = if text.contains("critical_percent") { "critical_percent" } else { "warn_percent" };
        return fault(needle, message, "write percents between 1 and 100, the warning below the critical one; 85 and 95 by default");
    }
    match (&settings.http.tls_cert, &settings.http.tls_key) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            if let Some(bad) = [("tls_cert", cert), ("tls_key", key)].into_iter().find(|(_, path)| !path.is_absolute()) {
                let message = format!("http.{} = {:?} is not absolute", bad.0, bad.1);
                return fault(bad.0, message, "write the whole path of the PEM file");
            }
        }
        (Some(_), None) => return fault("tls_cert", "http.tls_cert has no tls_key".into(), "set both, or neither"),
        (None, Some(_)) => return fault("tls_key", "http.tls_key has no tls_cert".into(), "set both, or neither"),
    }
    for (stack, entry) in &settings.stacks {
        if !entry.dir.is_absolute() {
            return fault(
                stack.as_str(),
                format!("stacks.{stack}.dir = {:?} is not absolute", entry.dir),
                "write the whole path: every relative path of the stack means it",
            );
        }
        if let Some(Err(message)) = entry.git.as_ref().map(crate::model::config::GitFollow::check) {
            return fault(
                "git",
                format!("stacks.{stack}: {message}"),
                "write e.g. git = {branch = \"main\"}; remote is \"origin\" by default",
            );
        }
        if let Some(bad) = entry.files.iter().chain(&entry.env_files).find(|f| f.is_empty() || f.contains('\0')) {
            return fault(
                stack.as_str(),
                format!("stacks.{stack} names an unusable file {bad:?}"),
                "name files relative to the stack's directory",
            );
        }
    }
    if let Some(agent) = &settings.cli_agent
        && let Err(e) = crate::model::ids::AgentName::new(agent.clone())
    {
        return fault("cli_agent", e.to_string(), "name an agent of agents/*.md");
    }
    if let Err(message) = check_hosts(&settings.allowed_hosts) {
        return fault("allowed_hosts", format!("allowed_hosts: {message}"), "write bare names or name:port, without scheme or wildcard");
    }
    if let Some(bad) = settings.allowed_origins.iter().find(|o| !o.starts_with("http://") && !o.starts_with("https://")) {
        return fault("allowed_origins", format!("allowed_origins: {bad:?} has no scheme"), "write e.g. \"https://console.example.com\"");
    }
    if let Some(notify) = &settings.notify {
        let scheme = |url: &&String| !url.starts_with("https://") && !url.starts_with("http://");
        if let Some(bad) = notify.url.iter().chain(&notify.public_url).find(scheme) {
            return fault(bad, "notify: an address has no scheme".into(), "write e.g. \"https://ntfy.sh\"");
        }
        if notify.url.is_some() && notify.url_file.is_some() {
            return fault("url_file", "notify has both url and url_file".into(), "keep one of the two");
        }
        if notify.url.is_none() && notify.url_file.is_none() && notify.command.is_empty() {
            return fault("[notify]", "notify names nobody to tell".into(), "set url, url_file or command");
        }
    }
    if let Some(schedule) = &settings.backup_schedule
        && schedule != "off"
        && !valid_schedule(schedule)
    {
        return fault(
            "backup_schedule",
            format!("backup_schedule = {schedule:?} is not a schedule"),
            "write hourly, daily, weekly, monthly, a cron line of five fields like \"17 3 * * *\" (03:17 every night), or \"off\"",
        );
    }
    if let Err((needle, message, hint)) = backup::check(&settings.backup, cfg!(feature = "backup-remote")) {
        return fault(&needle, message, hint);
    }
    if let Err((needle, message, hint)) = check_models(&settings.models) {
        return fault(&needle, message, hint);
    }
    let five = |s: &str| s.split_whitespace().count() == 5 && s.parse::<croner::Cron>().is_ok();
    if let Some(w) = settings.maintenance.iter().find(|w| !five(&w.schedule) || w.minutes == 0) {
        return fault(
            "maintenance",
            format!("maintenance: schedule {:?} for {} minutes is no window", w.schedule, w.minutes),
            "write e.g. maintenance = [{schedule = \"0 2 * * 0\", minutes = 60, stacks = [\"web-*\"]}]",
        );
    }
    let tasks = &settings.tasks;
    if tasks.max_agents == 0 || tasks.max_per_second == 0 || tasks.max_queued == 0 || tasks.tries == 0 {
        return fault("[tasks]", "tasks: a bound is 0: nothing could ever be done".into(), "leave it out for its default");
    }
    for (n, trigger) in settings.triggers.iter().enumerate() {
        if let Err((message, hint)) = trigger.check(five) {
            return fault(&format!("{:?}", trigger.name), message, hint);
        }
        if settings.triggers[..n].iter().any(|t| t.name == trigger.name) {
            return fault(
                &format!("{:?}", trigger.name),
                format!("trigger {} is there twice", trigger.name),
                "give each a name of its own",
            );
        }
    }
    Ok(())
}

type Fault = (String, String, &'static str);

/// Models that cannot be asked: the line to look for, what is wrong, what to write.
fn check_models(models: &crate::model::config::ModelsSettings) -> Result<(), Fault> {
    if let Some(default) = models.default.as_ref().filter(|d| !models.named.contains_key(*d)) {
        return Err(("default".into(), format!("models.default = {default:?} is not configured"), "name one of the [models.NAME] tables"));
    }
    for (name, m) in &models.named {
        let fault = |message: String, hint: &'static str| Err((format!("models.{name}"), format!("models.{name}: {message}"), hint));
        if name == "inherit" || crate::model::ids::AgentName::new(name.clone()).is_err() {
            return fault("is not a name for a model".into(), "lower-case letters, digits, '-' and '_'; `inherit` means the default");
        }
        if m.model.trim().is_empty() {
            return fault("model is empty".into(), "write the model's name at the provider");
        }
        if m.key_env.is_some() && m.key_file.is_some() {
            return fault("has both key_env and key_file".into(), "keep one of the two");
        }
        let url = m.base_url.as_deref().map(|u| u.parse::<http::Uri>());
        if url.is_some_and(|u| !u.is_ok_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some())) {
            return fault(
                "base_url is not an address".into(),
                "write e.g. \"https://api.anthropic.com/v1\" or \"http://127.0.0.1:11434/v1\"",
            );
        }
        if m.base_url.as_ref().is_some_and(|u| u.contains('@')) {
            return fault("base_url holds credentials".into(), "put the key into key_file or key_env");
        }
        if m.max_tokens == 0 || u64::from(m.max_tokens) * 2 > u64::from(m.context_tokens) {
            let message = format!("max_tokens {} does not fit into context_tokens {}", m.max_tokens, m.context_tokens);
            return fault(message, "an answer may take up half of the context at most");
        }
        if !(1..=3600).contains(&m.timeout_s) {
            return fault(format!("timeout_s = {}", m.timeout_s), "1 to 3600 seconds");
        }
        if let Some(Err(message)) = m.price.as_ref().map(crate::runner::models::price) {
            return fault(message, "US dollars per million tokens, e.g. price = {input = 3.0, cached = 0.3, output = 15.0}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> ConfigError {
        parse(text, "dockwarden.toml").expect_err("must be refused")
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let e = refused("listen = \"127.0.0.1:7420\"\n\nlisten_adress = \"x\"\n");
        assert_eq!((e.line, e.message.contains("listen_adress"), e.hint.contains("spelling")), (Some(3), true, true));
    }

    #[test]
    fn values_that_cannot_work_are_refused_with_their_line() {
        assert_eq!(refused("listen = \"localhost\"").line, Some(1));
        assert_eq!(refused("maintenance = [{schedule = \"sunday\", minutes = 5}]").line, Some(1));
        assert_eq!(refused("[backup]\nworker_memory_mib = 63").line, Some(2));
        assert_eq!(refused("maintenance = [{schedule = \"0 2 * * 0\", minutes = 0}]").line, Some(1));
        assert_eq!(refused("# a comment about backup_schedule\nbackup_schedule = \"nightly\"").line, Some(2));
        assert_eq!(refused("[stacks.shop]\ndir = \"relative\"").line, Some(1));
        assert_eq!(refused("allowed_hosts = [\"*\"]").line, Some(1));
        assert_eq!(refused("allowed_origins = [\"example.com\"]").line, Some(1));
        assert_eq!(refused("cli_agent = \"../x\"").line, Some(1));
        let model = |rest: &str| format!("[models.m]\nprovider = \"openai\"\nmodel = \"x\"\n{rest}\n");
        for rest in [
            "base_url = \"localhost:1\"",
            "base_url = \"https://key@host/v1\"",
            "key_env = \"A\"\nkey_file = \"/b\"",
            "max_tokens = 60000",
            "timeout_s = 0",
            "price = {input = -1, output = 1}",
        ] {
            let e = refused(&model(rest));
            assert_eq!((e.line, e.message.contains("models.m")), (Some(1), true), "{rest}: {e}");
        }
        assert_eq!(refused("[models]\ndefault = \"m\"").line, Some(2));
        assert!(refused(&model("key = \"sk-1\"")).message.contains("key"), "a key is never written there");
        assert!(refused("[models.inherit]\nprovider = \"openai\"\nmodel = \"x\"").message.contains("not a name"));
        assert_eq!(refused("[tasks]\nmax_agents = 0").line, Some(1));
        let trigger = "[[triggers]]\nname = \"a\"\nagent = \"x\"\nskill = \"s\"\non = {cron = \"0 6 * * 1\"}\n";
        assert!(refused(&trigger.replace("0 6 * * 1", "daily")).message.contains("not a cron line"));
        assert!(refused(&format!("{trigger}{trigger}")).message.contains("twice"));
        assert!(refused(&trigger.replace("skill", "skil")).message.contains("skil"));
        assert_eq!(refused("[audit]\nsegment_mib = 1\nsegment_days = 0").line, Some(3));
        assert_eq!(refused("[memory]\nmax_days = 30\nmax_mib = 0").line, Some(3));
        assert_eq!(refused("[disk]\nwarn_percent = 95").line, Some(2));
        assert_eq!(refused("[disk]\nwarn_percent = 80\ncritical_percent = 101").line, Some(3));
        assert_eq!(refused("[http]\ntls_cert = \"/a.pem\"").line, Some(2));
        assert_eq!(refused("[http]\ntls_cert = \"/a.pem\"\ntls_key = \"b.pem\"").line, Some(3));
        assert_eq!(refused("[notify]\nurl = \"ntfy.sh\"").line, Some(2));
        assert_eq!(refused("[notify]\nurl = \"https://a\"\nurl_file = \"/x\"").line, Some(3));
        assert_eq!(refused("[notify]\ntopic = \"x\"").line, Some(1));
        assert_eq!(refused("[notify]\ncommand = [\"x\"]\nevents = [\"everything\"]").line, Some(3));
    }

    #[test]
    fn a_whole_file_is_read() {
        let text = "listen = \"off\"\nbackup_schedule = \"17 3 * * *\"\n[disk]\nwarn_percent = 70\n[stacks.shop]\ndir = \"/srv/shop\"\n";
        let s = parse(text, "f").expect("valid");
        assert_eq!((s.disk.warn_percent, s.disk.critical_percent), (70, 95));
        assert_eq!(s.listen.as_deref(), Some("off"));
        assert_eq!(s.stacks.values().next().expect("one").dir, PathBuf::from("/srv/shop"));
    }

    #[test]
    fn the_flag_wins_over_everything() {
        assert_eq!(home_dir(Some(Path::new("/x/y"))), PathBuf::from("/x/y"));
        assert_eq!(socket_path(Path::new("/x")), PathBuf::from("/x/run/supervisor.sock"));
    }
}
