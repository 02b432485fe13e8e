//! The engine found running, shared by two tests at a time. Missing, it fails the test: a skipped test proves nothing.

use super::BIN;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{Semaphore, SemaphorePermit};

/// More than two deploys at once measure the machine, not us.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// A slot on the engine, given back when dropped.
pub struct Slot {
    _permit: SemaphorePermit<'static>,
    /// Image of the demo application, built from the binary under test.
    pub image: String,
}

/// Waits for a slot on an engine that answers.
pub async fn engine() -> Slot {
    let permit = SLOTS.acquire().await.expect("never closed");
    let image = tokio::task::spawn_blocking(|| image().to_owned()).await.expect("the image is built");
    Slot { _permit: permit, image }
}

fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let version = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
        assert!(
            version.as_ref().is_ok_and(|o| o.status.success()),
            "this test needs a container engine, and none answers: ./scripts/test.sh starts one ({version:?})"
        );
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image.sh");
        stdout(&Command::new(script).args(["demo", "--binary", BIN]).output().expect("scripts/image.sh runs"))
    })
}

/// Image of a real database, `postgres` or `redis`, made of Debian's packages; data in `/data`, user 999. See `scripts/image-debian.sh`.
pub async fn database(kind: &'static str) -> String {
    let build = move || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image-debian.sh");
        stdout(&Command::new(script).arg(kind).output().expect("scripts/image-debian.sh runs"))
    };
    tokio::task::spawn_blocking(build).await.expect("the image is built")
}

/// Runs the Docker client and returns what it prints; a failure is the test's.
pub fn docker(args: &[&str]) -> String {
    stdout(&Command::new("timeout").args(["-k", "5", "300", "docker"]).args(args).output().expect("the docker client runs"))
}

/// Starts following the events of a stack's containers on the engine at this `DOCKER_HOST`; the returned future ends when the n-th has come.
pub fn nth_event(host: Option<&str>, stack: &str, n: usize) -> impl Future<Output = ()> + use<> {
    let mut client = tokio::process::Command::new("docker");
    if let Some(host) = host {
        client.env("DOCKER_HOST", host);
    }
    // What comes before the client is connected counts too.
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let since = format!("{}.{:09}", since / 1_000_000_000, since % 1_000_000_000);
    let mut child = client
        .args(["events", "--since", &since, "--filter", &format!("label=dockwarden.stack={stack}"), "--filter", "type=container"])
        .args(["--format", "{{.Action}}"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the docker client runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    async move {
        let _follower = child;
        let mut seen = 0;
        while seen < n {
            let line = lines.next_line().await.expect("events are text").expect("the engine keeps answering");
            // Probes are the noisy part and say nothing about how far a deploy is.
            seen += usize::from(!line.starts_with("exec_"));
        }
    }
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Removes everything of a stack: containers by force, then networks, volumes and image tags. Errors are told, not raised: it runs in `Drop`.
pub fn remove_stack(stack: &str) {
    let list = |args: &[&str]| -> Vec<String> {
        let output = Command::new("docker").args(args).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    };
    let remove = |verb: &[&str], ids: Vec<String>| {
        if ids.is_empty() {
            return;
        }
        match Command::new("docker").args(verb).args(&ids).output() {
            Ok(o) if o.status.success() => {}
            other => eprintln!("cleaning up {stack}: docker {verb:?} {ids:?}: {other:?}"),
        }
    };
    let filters = ["com.docker.compose.project", "dockwarden.stack"].map(|label| format!("label={label}={stack}"));
    for filter in &filters {
        remove(&["rm", "-f", "-v"], list(&["ps", "-aq", "--filter", filter]));
    }
    for filter in filters {
        remove(&["network", "rm"], list(&["network", "ls", "-q", "--filter", &filter]));
        remove(&["volume", "rm", "-f"], list(&["volume", "ls", "-q", "--filter", &filter]));
    }
    remove(&["rm", "-f"], list(&["ps", "-aq", "--filter", &format!("name=^dockwarden-claim-{stack}$")]));
    remove(&["rmi"], list(&["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &format!("reference=dockwarden/{stack}/*")]));
}
