//! The other end of the local socket: connect, start a supervisor when none runs, introduce oneself, ask. Used by the bridge and the CLI,
//! so it loads nothing. Deliberately absent: retries of a request; a request may have been done.

use super::wire::{Admin, Answer, Ask, Hello};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// How long a supervisor may take to open its socket: recovery comes first.
const START_WITHIN: Duration = Duration::from_secs(20);
/// Pause between attempts.
const RETRY: Duration = Duration::from_millis(10);
/// Life of a supervisor started on demand, without client, stack or operation.
const IDLE_EXIT_S: u32 = 60;

/// Why the supervisor could not be reached or did not do it.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ClientError {
    /// No supervisor, and none may be started.
    #[error("no supervisor runs for {}", .home.display())]
    #[diagnostic(help("start one: `dockwarden serve` (or ./scripts/start.sh)"))]
    NotRunning {
        /// Home.
        home: PathBuf,
    },
    /// This user may not use the socket.
    #[error("this user may not use the supervisor's socket {}", .path.display())]
    #[diagnostic(help("act as the user the supervisor runs as, or attach over HTTP with a token"))]
    Forbidden {
        /// Socket.
        path: PathBuf,
    },
    /// The started supervisor ended at once.
    #[error("the supervisor could not start:\n{log}")]
    #[diagnostic(help("mend what it says; `dockwarden doctor` explains the set-up"))]
    DidNotStart {
        /// Last lines of its log.
        log: String,
    },
    /// It did not answer in time.
    #[error("the supervisor did not open {} within {START_WITHIN:?}", .path.display())]
    #[diagnostic(help("look into log/serve.log of its home"))]
    TooSlow {
        /// Socket.
        path: PathBuf,
    },
    /// It refused this client, or the request failed.
    #[error("{message}")]
    #[diagnostic(help("{hint}"))]
    Refused {
        /// Stable code.
        code: String,
        /// Cause.
        message: String,
        /// What to do.
        hint: String,
        /// The whole error.
        whole: Value,
    },
    /// The connection broke.
    #[error("the connection to the supervisor broke: {0}")]
    #[diagnostic(help("what was begun goes on; look with `dockwarden status`"))]
    Broken(String),
}

fn refused(error: Value) -> ClientError {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let said = error["data"]["engine"]["text"].as_str().map(|said| format!("\nthe engine says: {said}")).unwrap_or_default();
    ClientError::Refused { code: text("code"), message: text("message") + &said, hint: text("hint"), whole: error }
}

fn broken(e: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(e.to_string())
}

/// Connects to a running supervisor.
///
/// # Errors
/// `NotRunning`, `Forbidden`, `Broken`.
pub async fn connect(home: &Path) -> Result<UnixStream, ClientError> {
    let path = crate::config::socket_path(home);
    UnixStream::connect(&path).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => ClientError::NotRunning { home: home.to_path_buf() },
        std::io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
        _ => broken(e),
    })
}

/// Connects, starting a supervisor detached when none runs.
///
/// # Errors
/// As `connect`, and `DidNotStart`, `TooSlow`.
pub async fn connect_or_start(home: &Path, config: Option<&Path>) -> Result<UnixStream, ClientError> {
    match connect(home).await {
        Err(ClientError::NotRunning { .. }) => {}
        other => return other,
    }
    let (mut child, log) = start(home, config).map_err(|e| ClientError::DidNotStart { log: e.to_string() })?;
    let begun = Instant::now();
    loop {
        match connect(home).await {
            Err(ClientError::NotRunning { .. }) => {}
            other => return other,
        }
        // A child that ended may have lost the race for the lock to another one: then the socket appears soon.
        let ended = child.try_wait().is_ok_and(|status| status.is_some_and(|s| s.code() != Some(i32::from(crate::app::ALREADY_RUNNING))));
        if ended {
            return Err(ClientError::DidNotStart { log: tail(&log) });
        }
        if begun.elapsed() > START_WITHIN {
            return Err(ClientError::TooSlow { path: crate::config::socket_path(home) });
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn start(home: &Path, config: Option<&Path>) -> std::io::Result<(Child, PathBuf)> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let dir = home.join("log");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let path = dir.join("serve.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    let mut command = Command::new(std::env::current_exe()?);
    // `--detach` makes it leave this session, so that it outlives the client's terminal.
    command.args(["serve", "--detach", "--idle-exit", &IDLE_EXIT_S.to_string(), "--home"]).arg(home);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let child = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
    Ok((child, path))
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| format!("{}: {e}", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Says hello and reads the welcome.
///
/// # Errors
/// `Refused`, `Broken`.
pub async fn introduce(stream: UnixStream, hello: &Hello) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), ClientError> {
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(hello).map_err(broken)?;
    line.push(b'\n');
    write.write_all(&line).await.map_err(broken)?;
    let mut read = BufReader::with_capacity(64 * 1024, read);
    let mut text = String::new();
    read.read_line(&mut text).await.map_err(broken)?;
    let mut welcome: Value = serde_json::from_str(&text).map_err(|_| broken("it closed without an answer"))?;
    match welcome.get_mut("error") {
        Some(error) => Err(refused(error.take())),
        None => Ok((read, write)),
    }
}

/// A connection that asks.
#[derive(Debug)]
pub struct Session {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Session {
    /// Takes over an introduced connection.
    pub async fn open(stream: UnixStream, hello: &Hello) -> Result<Self, ClientError> {
        let (read, write) = introduce(stream, hello).await?;
        Ok(Self { read, write })
    }
    /// Calls a tool; `progress` gets each line meanwhile. Returns value and text.
    ///
    /// # Errors
    /// `Refused` with the tool's error, `Broken`.
    pub async fn call(&mut self, tool: &str, input: Value, progress: &mut dyn FnMut(f64, &str)) -> Result<(Value, String), ClientError> {
        self.ask(&Ask::Tool { id: 1.into(), tool: tool.to_owned(), input }, progress).await
    }
    /// Asks for something only people do.
    ///
    /// # Errors
    /// As `call`.
    pub async fn admin(&mut self, admin: Admin) -> Result<(Value, String), ClientError> {
        self.ask(&Ask::Admin { id: 1.into(), admin }, &mut |_, _| {}).await
    }

    async fn ask(&mut self, ask: &Ask, progress: &mut dyn FnMut(f64, &str)) -> Result<(Value, String), ClientError> {
        let mut line = serde_json::to_vec(ask).map_err(broken)?;
        line.push(b'\n');
        self.write.write_all(&line).await.map_err(broken)?;
        loop {
            let mut text = String::new();
            if self.read.read_line(&mut text).await.map_err(broken)? == 0 {
                return Err(broken("it ended before it answered"));
            }
            match serde_json::from_str::<Answer>(&text).map_err(broken)? {
                Answer::Progress { progress: p, .. } => progress(p.percent, &p.message),
                Answer::Done { ok, text, .. } => return Ok((ok, text)),
                Answer::Error { error, .. } => return Err(refused(error)),
            }
        }
    }
}
