//! Delivery of a message: one POST or one command, tried again with growing pauses, then given up with a line in the log. Deliberately
//! absent: the receiver's address in any log (it is often the whole secret), redirects, and proxies of the environment.

use crate::model::config::NotifySettings;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Pauses between attempts: a receiver that restarts is back within a minute or two.
const PAUSES: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20), Duration::from_secs(60)];
/// Longest attempt.
const WITHIN: Duration = Duration::from_secs(10);

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Taken by the receiver.
    Delivered,
    /// Given up after all attempts.
    Failed,
    /// Never tried: too many waited.
    Dropped,
}

impl Outcome {
    /// The word of the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Takes messages somewhere.
#[derive(Debug)]
pub struct Courier {
    http: Option<(reqwest::Client, String)>,
    command: Vec<String>,
    pauses: Vec<Duration>,
}

impl Courier {
    /// One for the settings.
    ///
    /// # Errors
    /// In words: an unreadable `url_file`, a client that cannot be built.
    pub fn new(settings: &NotifySettings) -> Result<Self, String> {
        let url = match (&settings.url, &settings.url_file) {
            (Some(url), _) => Some(url.clone()),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file).map_err(|e| format!("notify.url_file {}: {e}", file.display()))?;
                Some(text.trim().to_owned())
            }
            (None, None) => None,
        };
        let http = url.map(|url| client().map(|client| (client, url))).transpose()?;
        Ok(Self { http, command: settings.command.clone(), pauses: PAUSES.to_vec() })
    }

    #[cfg(test)]
    pub(super) fn impatient(mut self) -> Self {
        self.pauses = vec![Duration::from_millis(1); PAUSES.len()];
        self
    }

    /// All attempts for one message.
    pub(super) async fn deliver(&self, message: &Value) -> bool {
        let mut pauses = self.pauses.iter();
        loop {
            let error = match tokio::time::timeout(WITHIN, self.attempt(message)).await {
                Ok(Ok(())) => return true,
                Ok(Err(e)) => e,
                Err(_) => format!("no answer within {} s", WITHIN.as_secs()),
            };
            let event = message["event_id"].as_str().unwrap_or_default();
            let Some(pause) = pauses.next() else {
                tracing::error!(event, error, "a notification could not be delivered and is given up");
                return false;
            };
            tracing::warn!(event, error, again_in_s = pause.as_secs(), "a notification was not taken");
            tokio::time::sleep(*pause).await;
        }
    }

    async fn attempt(&self, message: &Value) -> Result<(), String> {
        if let Some((client, url)) = &self.http {
            let request = client.post(url).header("content-type", "application/json").body(message.to_string());
            let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
            if !answer.status().is_success() {
                return Err(format!("the receiver answered {}", answer.status()));
            }
        }
        if let Some((program, arguments)) = self.command.split_first() {
            run(program, arguments, message).await?;
        }
        Ok(())
    }
}

/// A command with the message on stdin and nothing of our environment but the search path.
async fn run(program: &str, arguments: &[String], message: &Value) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    let mut child = command.spawn().map_err(|e| format!("notify.command: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(message.to_string().as_bytes()).await {
            // A command that needs no message may close its end early; its exit code says whether it worked.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.map_err(|e| format!("notify.command: {e}"))?,
        }
    }
    let status = child.wait().await.map_err(|e| format!("notify.command: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("notify.command ended with {status}")) }
}

fn client() -> Result<reqwest::Client, String> {
    // The process has one TLS provider; a second call finds it there.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("the TLS provider was there already");
    }
    reqwest::Client::builder()
        .timeout(WITHIN)
        .redirect(reqwest::redirect::Policy::none())
        // The address is often the whole secret: it goes to nobody else.
        .no_proxy()
        .user_agent(concat!("dockwarden/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| format!("no HTTP client: {e}"))
}
