//! A home of its own: state, configuration with the shipped agents, memory. Dropping it removes the stacks that were named through it.

use super::{BIN, engine};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::process::Command;

/// A temporary home.
pub struct Home {
    dir: tempfile::TempDir,
    stacks: Mutex<Vec<String>>,
    engine: Option<String>,
    // Its end is this one's.
    _watch: Sender<()>,
}

/// The last net: a test that never ends is named and takes the run with it, instead of the time of whoever waits for the run.
fn watched(home: &Path) -> Sender<()> {
    let (alive, ended) = channel();
    let long = ["DOCKWARDEN_MATRIX", "DOCKWARDEN_SOAK_S"].iter().any(|v| std::env::var_os(v).is_some());
    let limit = Duration::from_secs(if long { 4 * 3600 } else { 15 * 60 });
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let log = home.join("serve.log");
    std::thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test} did not end within {limit:?}; its supervisor says:\n{}", std::fs::read_to_string(log).unwrap_or_default());
            std::process::abort();
        }
    });
    alive
}

impl Home {
    /// The shipped agents, prompts and policy.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("dw-").tempdir().expect("a temporary directory");
        let watch = watched(dir.path());
        let home = Self { dir, stacks: Mutex::default(), engine: None, _watch: watch };
        for name in ["config/agents", "config/prompts", "state", "stacks"] {
            std::fs::create_dir_all(home.path(name)).expect("created");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for kind in ["agents", "prompts"] {
            for entry in std::fs::read_dir(root.join(kind)).expect("shipped") {
                let from = entry.expect("readable").path();
                let name = from.file_name().expect("a file has a name");
                let to = if name == "policy.toml" { home.path("config").join(name) } else { home.path("config").join(kind).join(name) };
                std::fs::copy(&from, to).expect("copied");
            }
        }
        home
    }

    /// Uses the engine at this `DOCKER_HOST`.
    pub fn on_engine(mut self, host: String) -> Self {
        self.engine = Some(host);
        self
    }

    /// A path under the temporary directory: `state`, `config`, `stacks`, ...
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces a file of the configuration, e.g. `dockwarden.toml`, `policy.toml`, `agents/deployer.md`.
    pub fn configure(&self, file: &str, text: &str) {
        std::fs::write(self.path("config").join(file), text).expect("written");
    }

    /// Lifts an agent's limit of calls per minute: a test that waits for a condition asks more often than a person does.
    pub fn unlimited(&self, agent: &str) {
        let file = format!("agents/{agent}.md");
        let text = std::fs::read_to_string(self.path("config").join(&file)).expect("shipped");
        let lifted: Vec<&str> = text.lines().filter(|l| !l.contains("calls_per_minute")).collect();
        assert_ne!(lifted.len(), text.lines().count(), "{file} has no limit to lift");
        self.configure(&file, &(lifted.join("\n") + "\n"));
    }

    /// Lets an agent's operations fail as often as they like: a test that breaks many releases is stopped by the breaker otherwise.
    pub fn unbroken(&self) {
        let text = std::fs::read_to_string(self.path("config/policy.toml")).expect("shipped");
        let lifted = text.replace("breaker_failures = 5", "breaker_failures = 1000");
        assert_ne!(lifted, text, "policy.toml has a breaker to lift");
        self.configure("policy.toml", &lifted);
    }

    /// A stack name of this run and this home; whatever is deployed under it goes when the home goes.
    pub fn stack(&self, base: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}-{base}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.stacks.lock().expect("not poisoned").push(name.clone());
        name
    }

    /// A stack whose name somebody else makes, to go with the home as those of `stack` do.
    pub fn named(&self, name: String) {
        self.stacks.lock().expect("not poisoned").push(name);
    }

    /// The binary under test with this home and nothing else of the caller's environment that could lead elsewhere.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command_of(BIN, args)
    }

    /// As `command`, another program.
    pub fn command_of<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command.args(args).env_clear().kill_on_drop(true);
        for keep in ["PATH", "DOCKER_HOST", "DOCKER_CONTEXT", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(keep) {
                command.env(keep, value);
            }
        }
        // Helpers a test puts there are found before the machine's own.
        let mut path = std::ffi::OsString::from(self.path("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        if let Some(host) = &self.engine {
            command.env("DOCKER_HOST", host);
        }
        command.env("HOME", self.dir.path()).env("DOCKWARDEN_HOME", self.path("state")).env("DOCKWARDEN_CONFIG", self.path("config"));
        command
    }

    /// A bearer token of this agent.
    pub async fn token(&self, agent: &str) -> String {
        let (code, out, err) = self.run(&["agents", "token", agent, "--json"]).await;
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<serde_json::Value>(&out).expect("json")["token"].as_str().expect("a token").to_owned()
    }

    /// Runs a command to its end: exit code, stdout, stderr.
    pub async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = tokio::time::timeout(Duration::from_secs(300), self.command(args).stdin(std::process::Stdio::null()).output());
        let output = output.await.unwrap_or_else(|_| panic!("{args:?} did not end")).expect("the binary runs");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for stack in self.stacks.lock().expect("not poisoned").drain(..) {
            engine::remove_stack(&stack);
        }
    }
}
