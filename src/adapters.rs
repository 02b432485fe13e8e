//! The doors: MCP, HTTP, the local socket and the command line. They translate between a protocol and `call::dispatch`, and decide nothing.

pub mod changes;
pub mod cli;
pub mod http;
pub mod mcp;
pub mod metrics;
pub mod people;
pub mod socket;
pub mod tokens;

use crate::call::dispatch::{Reply, dispatch, dispatch_as};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House, Principal, Progress};
use crate::model::ids::CallId;
use metrics::Metrics;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What all doors share. One per supervisor.
#[derive(Debug)]
pub struct Doors {
    /// The house calls run in.
    pub house: Arc<House>,
    /// Counters.
    pub metrics: Metrics,
    /// Who is connected.
    pub presence: Presence,
    /// What changes, for clients that listen.
    pub changes: changes::Changes,
    /// What is connected by which token.
    pub tokens: tokens::Live,
    /// Ends accepting: no new connection, no new call.
    pub shutdown: CancellationToken,
    /// Ends connections: comes when the calls that ran at `shutdown` are answered, or had their time.
    pub hangup: CancellationToken,
    /// Start of the supervisor.
    pub started: Instant,
}

impl Doors {
    /// Opens nothing yet; the doors take it.
    pub fn new(house: Arc<House>, shutdown: CancellationToken) -> Arc<Self> {
        let (changes, hangup) = (changes::Changes::default(), CancellationToken::new());
        let (metrics, presence, tokens) = (Metrics::new(), Presence::new(), tokens::Live::default());
        Arc::new(Self { house, metrics, presence, changes, tokens, shutdown, hangup, started: Instant::now() })
    }

    /// Runs one call in a task of its own: a client that goes away stops waiting, never the call. A panic in a tool is that call's
    /// error, not the supervisor's end.
    ///
    /// # Errors
    /// What the call answered.
    pub async fn call(
        self: &Arc<Self>,
        who: Principal,
        tool: String,
        input: Value,
        progress: Option<Progress>,
    ) -> Result<Reply, CallError> {
        self.run(who, tool, input, Named::No(progress)).await
    }

    /// As [`Doors::call`], under a name that was written down before: a caller that was interrupted finds by it what became of the call.
    ///
    /// # Errors
    /// As [`Doors::call`].
    pub async fn call_as(self: &Arc<Self>, who: Principal, id: CallId, tool: String, input: Value) -> Result<Reply, CallError> {
        self.run(who, tool, input, Named::As(id)).await
    }

    async fn run(self: &Arc<Self>, who: Principal, tool: String, input: Value, named: Named) -> Result<Reply, CallError> {
        if self.shutdown.is_cancelled() {
            return Err(ending());
        }
        let doors = Arc::clone(self);
        let task = self.house.calls.spawn(async move {
            let _busy = doors.presence.enter();
            let begun = Instant::now();
            let result = match named {
                Named::No(progress) => dispatch(&doors.house, &who, &tool, input, progress).await,
                Named::As(id) => dispatch_as(&doors.house, &who, id, &tool, input).await,
            };
            doors.metrics.call(&tool, metrics::outcome(&result), begun.elapsed());
            result
        });
        task.await.unwrap_or_else(|e| {
            tracing::error!(error = %e, "a call ended abnormally");
            Err(CallError::new(
                ErrorCode::Internal,
                "the supervisor failed inside this call",
                "look at its log; calling again is safe with the same idempotency_key",
            ))
        })
    }
}

/// How a call is called, and where its progress goes.
enum Named {
    No(Option<Progress>),
    As(CallId),
}

/// The refusal of a supervisor that ends: nothing was begun.
pub fn ending() -> CallError {
    let hint = "call again when it is back; what was begun is finished or undone by then, see `operation` and `history`";
    CallError::new(ErrorCode::Busy, "the supervisor is ending", hint).data(serde_json::json!({"ending": true}))
}

/// Counts clients and calls, and knows since when there were none.
#[derive(Debug)]
pub struct Presence {
    count: AtomicUsize,
    empty_since: std::sync::Mutex<Instant>,
}

/// One client or call; counted until dropped.
#[derive(Debug)]
pub struct Guest<'a>(&'a Presence);

impl Presence {
    fn new() -> Self {
        Self { count: AtomicUsize::new(0), empty_since: std::sync::Mutex::new(Instant::now()) }
    }
    /// Counts one more.
    pub fn enter(&self) -> Guest<'_> {
        self.count.fetch_add(1, Ordering::SeqCst);
        Guest(self)
    }
    /// How long nobody has been here; zero while somebody is.
    pub fn empty_for(&self) -> Duration {
        if self.count.load(Ordering::SeqCst) > 0 {
            return Duration::ZERO;
        }
        self.empty_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1
            && let Ok(mut since) = self.0.empty_since.lock()
        {
            *since = Instant::now();
        }
    }
}

/// What a client says of itself, fit for the audit log: printable, at most 80 characters.
pub fn client_text(raw: &str) -> String {
    raw.chars().filter(|c| !c.is_control() && *c != '\u{feff}' && !('\u{200b}'..='\u{202e}').contains(c)).take(80).collect()
}

#[cfg(test)]
mod garbage_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_counts_guests_and_their_leaving() {
        let p = Presence::new();
        let a = p.enter();
        let b = p.enter();
        assert_eq!((p.count(), p.empty_for()), (2, Duration::ZERO));
        drop((a, b));
        assert_eq!(p.count(), 0);
        assert!(p.empty_for() < Duration::from_secs(60));
    }

    #[test]
    fn what_a_client_says_of_itself_is_cleaned_and_bounded() {
        assert_eq!(client_text("cla\u{1b}[31mude\u{202e} 1"), "cla[31mude 1");
        assert_eq!(client_text(&"x".repeat(500)).len(), 80);
    }
}
