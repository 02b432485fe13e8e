//! An engine that a test started itself and may stop: its own network and mount namespace, data root, exec root, socket and pid file. (A second one in
//! the network namespace of the first would flush the first one's rules.) What runs on it goes with it.

use super::eventually;
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tokio::process::Child;

/// A running engine.
pub struct OwnEngine {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl OwnEngine {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("dw-engine-").tempdir().expect("a temporary directory");
        let mut engine = Self { dir, child: None };
        engine.boot().await;
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `DOCKER_HOST` of it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// The client against it, for a minute: an engine that hangs is what some tests are about.
    fn client(&self) -> Command {
        let mut client = Command::new("timeout");
        client.args(["-k", "5", "60", "docker"]).env("DOCKER_HOST", self.host());
        client
    }

    /// The client against it.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.client().args(args).output().expect("the docker client runs");
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Brings an image of the shared engine here.
    pub fn load(&self, image: &str) {
        let mut save = Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn().expect("the docker client runs");
        let pipe = save.stdout.take().expect("piped");
        let load = self.client().arg("load").stdin(pipe).output().expect("the docker client runs");
        assert!(save.wait().expect("a child of ours").success() && load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
    }

    /// Runs a program where the engine's published ports are.
    pub fn inside(&self, program: &str, args: &[&str]) -> Output {
        let pid = std::fs::read_to_string(self.path("docker.pid")).expect("the engine runs");
        Command::new("nsenter").args(["-t", pid.trim(), "-n", program]).args(args).output().expect("nsenter runs")
    }

    /// Starts it, on the data it has.
    pub async fn boot(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("dockerd.log")).expect("a log file");
        let dockerd = format!(
            "ip link set lo up; exec dockerd --data-root {0}/data --exec-root {0}/exec -H unix://{0}/docker.sock -p {0}/docker.pid",
            self.dir.path().display()
        );
        let child = tokio::process::Command::new("unshare")
            .args(["-m", "-n", "sh", "-c", &dockerd])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare runs");
        self.child = Some(child);
        eventually("the engine of this test answers", Duration::from_secs(60), || async {
            let version = Command::new("timeout").args(["5", "docker", "version"]).env("DOCKER_HOST", self.host()).output();
            version.is_ok_and(|o| o.status.success()).then_some(())
        })
        .await;
    }

    /// It answers nothing for a while: its socket takes connections, and nobody reads them. What runs on it goes on.
    pub async fn hang(&self, time: Duration) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(pid, Signal::STOP).expect("signalled");
        tokio::time::sleep(time).await;
        kill_process(pid, Signal::CONT).expect("signalled");
    }

    /// Stops it in order, with all that runs on it.
    pub async fn halt(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(pid, Signal::TERM).expect("signalled");
        match tokio::time::timeout(Duration::from_secs(60), child.wait()).await {
            Ok(ended) => drop(ended.expect("a child of ours")),
            Err(_) => panic!("the engine did not end:\n{}", std::fs::read_to_string(self.path("dockerd.log")).unwrap_or_default()),
        }
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
        if let Err(e) = kill_process(pid, Signal::TERM) {
            eprintln!("the engine of this test: {e}");
        }
        // `Drop` cannot await; the data may go only when its user is gone.
        for _ in 0..600 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("the engine of this test did not end within a minute");
    }
}
