//! Counters for `/metrics`: calls by tool and outcome, their duration, what models cost, what runs (`stacks`), and backups (`backups`). Deliberately absent: labels with
//! unbounded values (agents, unknown tool names), which would let a caller grow the supervisor's memory.

mod backups;
mod stacks;

use crate::call::CallError;
use crate::call::dispatch::Reply;
use crate::model::disk::{DiskLevel, DiskUsage};
use crate::model::spend::Spent;
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
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
    model_questions: Family<ModelLabels, Counter>,
    model_tokens: Family<ModelLabels, Counter>,
    model_micro_usd: Family<ModelLabel, Counter>,
    model_millis: Family<ModelLabel, Counter>,
    disk_bytes: Family<KindLabel, Gauge>,
    disk_level: Gauge,
    reactions: Histogram,
    /// Numbers of backups.
    pub backups: backups::Backups,
    /// Numbers of what runs.
    pub stacks: stacks::Stacks,
}

/// The outcome's word, as in the audit log.
pub fn outcome(result: &Result<Reply, CallError>) -> &'static str {
    use crate::call::error::ErrorCode;
    match result {
        Ok(reply) if reply.known.state.as_deref() == Some("pending_approval") => "pending_approval",
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
        let (model_questions, model_tokens) = (Family::<ModelLabels, Counter>::default(), Family::<ModelLabels, Counter>::default());
        let (model_micro_usd, model_millis) = (Family::<ModelLabel, Counter>::default(), Family::<ModelLabel, Counter>::default());
        registry.register("model_questions", "Questions to models by what came of them, from the ledger", model_questions.clone());
        registry.register("model_tokens", "Tokens read (cached ones apart) and written", model_tokens.clone());
        registry.register(
            "model_micro_usd",
            "Cost in millionths of a US dollar, questions under way at their worst",
            model_micro_usd.clone(),
        );
        registry.register("model_milliseconds", "Time waited for answers", model_millis.clone());
        let (disk_bytes, disk_level) = (Family::<KindLabel, Gauge>::default(), Gauge::default());
        registry.register("home_disk_bytes", "Room of the file system of the home: used and free", disk_bytes.clone());
        registry.register("home_disk_level", "How full it is: 0 fine, 1 high, 2 critical", disk_level.clone());
        // Around the goal of 50 ms.
        let reactions = Histogram::new([0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0]);
        registry.register("heal_reaction_seconds", "From an event of the engine to the loop's first call because of it", reactions.clone());
        let (backups, stacks) = (backups::Backups::new(&mut registry), stacks::Stacks::new(&mut registry));
        Self {
            registry,
            calls,
            seconds,
            operations,
            clients,
            notifications,
            model_questions,
            model_tokens,
            model_micro_usd,
            model_millis,
            disk_bytes,
            disk_level,
            reactions,
            backups,
            stacks,
        }
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
    /// Notes the room on the home's disk, and how full that is.
    pub fn disk(&self, usage: DiskUsage, level: DiskLevel) {
        for (kind, bytes) in [("used", usage.used), ("free", usage.free)] {
            self.disk_bytes.get_or_create(&KindLabel { kind }).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        self.disk_level.set(match level {
            DiskLevel::Fine => 0,
            DiskLevel::High => 1,
            DiskLevel::Critical => 2,
        });
    }
    /// Counts how soon the loop acted.
    pub fn reactions(&self, took: &[Duration]) {
        took.iter().for_each(|t| self.reactions.observe(t.as_secs_f64()));
    }
    /// Takes the ledger's numbers over: they outlive the process, and are bounded by the models that are configured.
    pub fn spent(&self, rows: &[Spent]) {
        for family in [&self.model_questions, &self.model_tokens] {
            family.clear();
        }
        self.model_micro_usd.clear();
        self.model_millis.clear();
        for r in rows {
            let kind = |kind| ModelLabels { model: r.model.clone(), kind };
            for (outcome, n) in [("answered", r.answers), ("refused", r.errors), ("lost", r.lost)] {
                self.model_questions.get_or_create(&kind(outcome)).inc_by(n);
            }
            for (what, n) in [("in", r.tokens_in - r.tokens_cached.min(r.tokens_in)), ("cached", r.tokens_cached), ("out", r.tokens_out)] {
                self.model_tokens.get_or_create(&kind(what)).inc_by(n);
            }
            let model = ModelLabel { model: r.model.clone() };
            self.model_micro_usd.get_or_create(&model).inc_by(r.micro_usd);
            self.model_millis.get_or_create(&model).inc_by(r.millis);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that begin with our prefix, as a query writes them.
    fn names(text: &str) -> std::collections::BTreeSet<&str> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(|c| !word(c)).filter(|w| w.starts_with("dockwarden_")).collect()
    }

    #[test]
    fn dashboard_and_alerts_ask_only_for_metrics_that_there_are() {
        let metrics = Metrics::new();
        metrics.call("status", "ok", Duration::from_millis(1));
        metrics.notification("sent");
        metrics.spent(&[Spent { agent: "a".into(), model: "m".into(), answers: 1, ..Spent::default() }]);
        metrics.stacks.sample();
        metrics.backups.sample();
        let text = metrics.text(&[("running", 1)], 1);
        let alerts = names(include_str!("../../examples/monitoring/alerts.yml"));
        let asked = names(include_str!("../../examples/monitoring/grafana/dashboards/dockwarden.json"));
        let asked: std::collections::BTreeSet<&str> = asked.into_iter().chain(alerts).collect();
        assert!(asked.len() > 7, "{asked:?}");
        assert_eq!(asked.difference(&names(&text)).collect::<Vec<_>>(), Vec::<&&str>::new());
        // Each that there is has its row, and each row is of one.
        let told = names(include_str!("../../docs/api.md"));
        let families: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let missing: Vec<&&str> =
            families.iter().filter(|f| !told.contains(**f) && !told.contains(format!("{f}_total").as_str())).collect();
        assert_eq!(missing, Vec::<&&str>::new());
    }

    #[test]
    fn the_disk_is_shown_as_it_was_looked_at_last() {
        let metrics = Metrics::new();
        metrics.disk(DiskUsage { used: 95, free: 5 }, DiskLevel::Critical);
        metrics.disk(DiskUsage { used: 90, free: 10 }, DiskLevel::High);
        let text = metrics.text(&[], 0);
        for line in
            ["dockwarden_home_disk_bytes{kind=\"used\"} 90", "dockwarden_home_disk_bytes{kind=\"free\"} 10", "dockwarden_home_disk_level 1"]
        {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_ledger_is_shown_as_it_stands_and_never_added_to_itself() {
        let metrics = Metrics::new();
        let row = |agent: &str, micro_usd| Spent {
            agent: agent.into(),
            model: "big".into(),
            answers: 2,
            tokens_in: 100,
            tokens_cached: 40,
            tokens_out: 5,
            micro_usd,
            ..Spent::default()
        };
        let rows = [row("a", 70), row("b", 30)];
        metrics.spent(&rows);
        metrics.spent(&rows);
        let text = metrics.text(&[], 0);
        for line in [
            "dockwarden_model_micro_usd_total{model=\"big\"} 100",
            "dockwarden_model_questions_total{model=\"big\",kind=\"answered\"} 4",
            "dockwarden_model_tokens_total{model=\"big\",kind=\"cached\"} 80",
            "dockwarden_model_tokens_total{model=\"big\",kind=\"in\"} 120",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
