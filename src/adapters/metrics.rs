//! Counters for `/metrics`: calls by tool and outcome, their duration, and what runs. Deliberately absent: labels with unbounded values
//! (agents, stacks, unknown tool names), which would let a caller grow the supervisor's memory.

use crate::call::CallError;
use crate::call::dispatch::Reply;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    tool: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// The registry and its families.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    seconds: Histogram,
    operations: Family<StateLabels, Gauge>,
    clients: Gauge,
    notifications: Family<OutcomeLabels, Counter>,
}

/// The outcome's word, as in the audit log.
pub fn outcome(result: &Result<Reply, CallError>) -> &'static str {
    use crate::call::error::ErrorCode;
    match result {
        Ok(reply) if reply.value.get("state").and_then(|s| s.as_str()) == Some("pending_approval") => "pending_approval",
        Ok(_) => "ok",
        Err(e) if matches!(e.code, ErrorCode::Denied | ErrorCode::RateLimited) => "denied",
        Err(_) => "error",
    }
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("dockwarden");
        let calls = Family::<CallLabels, Counter>::default();
        // From below the overhead of one call (0.5 ms) to the longest a call waits (45 s and more).
        let seconds = Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 45.0, 120.0]);
        let operations = Family::<StateLabels, Gauge>::default();
        let clients = Gauge::default();
        registry.register("calls", "Calls by tool and outcome", calls.clone());
        registry.register("call_duration_seconds", "Duration of calls", seconds.clone());
        registry.register("operations", "Operations not yet finished, by state", operations.clone());
        registry.register("clients", "Connected clients and running calls", clients.clone());
        let notifications = Family::<OutcomeLabels, Counter>::default();
        registry.register("notifications", "Notifications by what became of them", notifications.clone());
        Self { registry, calls, seconds, operations, clients, notifications }
    }
    /// Counts one call. Names outside the catalogue are counted as one.
    pub fn call(&self, tool: &str, outcome: &'static str, took: Duration) {
        let known = crate::tools::catalogue().iter().any(|t| t.name == tool);
        self.calls.get_or_create(&CallLabels { tool: if known { tool } else { "unknown" }.to_owned(), outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }
    /// Counts what became of one notification.
    pub fn notification(&self, outcome: &'static str) {
        self.notifications.get_or_create(&OutcomeLabels { outcome }).inc();
    }
    /// The text a scraper reads.
    pub fn text(&self, operations: &[(&'static str, i64)], clients: usize) -> String {
        self.operations.clear();
        for (state, count) in operations {
            self.operations.get_or_create(&StateLabels { state }).set(*count);
        }
        self.clients.set(i64::try_from(clients).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a String cannot fail; an encoder fault would show as an empty page in the scraper.
        if let Err(e) = encode(&mut text, &self.registry) {
            tracing::error!(error = %e, "metrics could not be written");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
