//! What a fake image does when it runs: health, exits, answers to execs. A description only; `run` acts it out.

/// What the health check of a started container comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeHealth {
    /// Healthy at once.
    Healthy,
    /// Unhealthy at once.
    Unhealthy,
    /// For ever `starting` in the engine's words (execs of the test still answer).
    Starting,
}

/// How containers of an image behave. Start from one of the constructors and add with the `with_` methods.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Health check defined in the image; a container's own takes precedence.
    pub health_test: Option<Vec<String>>,
    /// What the health check, wherever defined, comes to.
    pub health: FakeHealth,
    /// Exit code right after each start; `None` = keeps running.
    pub exits: Option<i64>,
    /// The engine refuses each start with this text (command not found, mount refused, ...).
    pub start_error: Option<String>,
    /// Exit code of execs; `None` = 0 unless the container is unhealthy, then 1. `Some(None)` = does not end in time.
    pub exec_exit: Option<Option<i64>>,
    /// Output of execs.
    pub exec_output: String,
    /// Exit code on a stop; 137 means the signal is ignored until the kill.
    pub stop_exit: i64,
    /// Lines written at each start.
    pub logs: Vec<String>,
    /// Paths declared as volumes.
    pub volumes: Vec<String>,
    /// User.
    pub user: String,
    /// Environment.
    pub env: Vec<String>,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Architecture.
    pub arch: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self::running()
    }
}

impl Behaviour {
    /// Runs, has no health check of its own; one given by the container passes.
    pub fn running() -> Self {
        Self {
            health_test: None,
            health: FakeHealth::Healthy,
            exits: None,
            start_error: None,
            exec_exit: None,
            exec_output: String::new(),
            stop_exit: 0,
            logs: Vec::new(),
            volumes: Vec::new(),
            user: String::new(),
            env: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            arch: "amd64".into(),
        }
    }

    /// Has a health check and becomes healthy.
    pub fn healthy() -> Self {
        Self { health_test: Some(vec!["CMD".into(), "/probe".into()]), ..Self::running() }
    }

    /// Has a health check and stays unhealthy; execs exit with 1.
    pub fn unhealthy() -> Self {
        Self { health: FakeHealth::Unhealthy, exec_output: "probe failed".into(), ..Self::healthy() }
    }

    /// Has a health check that the engine never finishes; execs exit with 0 (our own probe can pass).
    pub fn starting() -> Self {
        Self { health: FakeHealth::Starting, ..Self::healthy() }
    }

    /// Exits with this code right after each start.
    pub fn exits(code: i64) -> Self {
        Self { exits: Some(code), ..Self::running() }
    }

    /// Cannot be started; the engine says why.
    pub fn refused(text: &str) -> Self {
        Self { start_error: Some(text.into()), ..Self::running() }
    }

    /// With this exit code and output of every exec.
    pub fn with_exec(mut self, code: i64, output: &str) -> Self {
        self.exec_exit = Some(Some(code));
        self.exec_output = output.into();
        self
    }

    /// With execs that never end within their time.
    pub fn with_hanging_exec(mut self) -> Self {
        self.exec_exit = Some(None);
        self
    }

    /// With a health check defined in the image.
    pub fn with_health_test(mut self, test: &[&str]) -> Self {
        self.health_test = Some(test.iter().map(|s| (*s).to_owned()).collect());
        self
    }

    /// With these paths declared as volumes.
    pub fn with_volumes(mut self, paths: &[&str]) -> Self {
        self.volumes = paths.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// With these lines written at each start.
    pub fn with_logs(mut self, lines: &[&str]) -> Self {
        self.logs = lines.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// With this exit code on a stop.
    pub fn with_stop_exit(mut self, code: i64) -> Self {
        self.stop_exit = code;
        self
    }

    /// With a label.
    pub fn with_label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}
