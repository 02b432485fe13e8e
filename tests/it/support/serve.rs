//! `dockwarden serve` as a process of its own, to be killed as an outage would: SIGKILL, no goodbye.

use super::eventually;
use super::home::Home;
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;

/// A running supervisor.
pub struct Serve {
    child: Child,
    /// `127.0.0.1:port` of the HTTP door.
    pub listen: String,
}

impl Serve {
    /// Starts one on a free port and waits until it answers.
    pub async fn start(home: &Home) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        Self::start_with(home, &["--listen", &free.to_string()], &free.to_string()).await
    }

    /// Starts one with these arguments after `serve`; `listen` is where they make it listen.
    pub async fn start_with(home: &Home, args: &[&str], listen: &str) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(home.path("serve.log")).expect("a log file");
        let mut child = home
            .command(["serve"].iter().chain(args))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .expect("the binary runs");
        for _ in 0..600 {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                panic!("serve ended with {status}:\n{}", std::fs::read_to_string(home.path("serve.log")).unwrap_or_default());
            }
            if home.run(&["health", "--self"]).await.0 == 0 {
                return Self { child, listen: listen.to_owned() };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("serve does not answer:\n{}", std::fs::read_to_string(home.path("serve.log")).unwrap_or_default());
    }

    /// URL of the MCP door.
    pub fn mcp_url(&self) -> String {
        format!("http://{}/mcp", self.listen)
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill9(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(mut self) -> std::process::ExitStatus {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("still running");
        kill_process(pid, Signal::TERM).expect("signalled");
        let child = &mut self.child;
        match tokio::time::timeout(Duration::from_secs(30), child.wait()).await {
            Ok(status) => status.expect("a child of ours"),
            Err(_) => panic!("serve did not end within 30 s of SIGTERM"),
        }
    }

    /// Resident memory in KiB.
    pub async fn rss_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id().expect("still running"));
        eventually("VmRSS", Duration::from_secs(5), || async {
            let text = std::fs::read_to_string(&path).ok()?;
            text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
        })
        .await
    }
}
