//! An incident: one record from the first sign that a service is not well to its recovery, with what was seen and what was done.

use super::ids::{IncidentId, ServiceName, StackName};
use super::operation::Evidence;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a service is not well, as far as the engine's facts tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Cause {
    /// Its health check fails while it runs.
    Unhealthy,
    /// It ended by itself with an error.
    Crashed,
    /// It was killed for want of memory.
    OutOfMemory,
    /// A signal from outside ended it.
    Killed,
    /// The engine could not start it.
    CannotStart,
    /// The port it publishes is held by something else.
    Port,
    /// A network it joins is missing or refuses it.
    Network,
    /// No space left.
    Disk,
    /// It may not read, write or execute something.
    Permission,
    /// Its image is missing or not for this machine.
    Image,
    /// A service it depends on is not well.
    Dependency,
    /// Its container is gone.
    Missing,
    /// More than half of everything failed at once: the host or the engine.
    Host,
}

impl Cause {
    /// The word of the wire form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unhealthy => "unhealthy",
            Self::Crashed => "crashed",
            Self::OutOfMemory => "out_of_memory",
            Self::Killed => "killed",
            Self::CannotStart => "cannot_start",
            Self::Port => "port",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Permission => "permission",
            Self::Image => "image",
            Self::Dependency => "dependency",
            Self::Missing => "missing",
            Self::Host => "host",
        }
    }
}

/// What the loop did about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Taken {
    /// When.
    pub at: DateTime<Utc>,
    /// `restart`, `recreate`, `rollback`, `quarantine`, `notify`.
    pub act: String,
    /// What came of it; absent while it is at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// One incident. Texts of `evidence` are untrusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Id.
    pub id: IncidentId,
    /// Stack.
    pub stack: StackName,
    /// Service.
    pub service: ServiceName,
    /// Release that ran.
    pub release: u32,
    /// First sign.
    pub opened_at: DateTime<Utc>,
    /// Well again and stable; `None` while it lasts.
    pub closed_at: Option<DateTime<Utc>>,
    /// First look that found it well again, when it stayed so.
    pub recovered_at: Option<DateTime<Utc>>,
    /// Cause as far as known.
    pub cause: Cause,
    /// In words.
    pub reason: String,
    /// What was kept: exit code, OOM, probe output, last log lines.
    pub evidence: Vec<Evidence>,
    /// What changed shortly before: releases, operations.
    pub changes: Vec<String>,
    /// What was done.
    pub actions: Vec<Taken>,
    /// The loop gave up: a person must look.
    pub quarantined: bool,
    /// Why it was closed without a recovery: there is nothing left to recover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

impl Incident {
    /// Seconds from the first sign to recovery, or until now.
    pub fn seconds(&self, now: DateTime<Utc>) -> i64 {
        (self.recovered_at.or(self.closed_at).unwrap_or(now) - self.opened_at).num_seconds().max(0)
    }

    /// What of the service's data may be lost, in words.
    pub fn data_loss(&self) -> &'static str {
        match self.cause {
            Cause::OutOfMemory | Cause::Killed | Cause::Crashed => {
                "volumes were kept; what the process had not written when it ended is lost"
            }
            _ => "none known: volumes were kept",
        }
    }

    /// The report a person reads.
    pub fn markdown(&self, now: DateTime<Utc>) -> String {
        let time = |t: DateTime<Utc>| t.format("%Y-%m-%d %H:%M:%S UTC").to_string();
        let state = match (self.quarantined, self.recovered_at) {
            (_, Some(at)) => format!("recovered at {} after {} s", time(at), self.seconds(now)),
            (_, None) if self.closed_at.is_some() => {
                format!("ended after {} s, not recovered: {}", self.seconds(now), self.ended.as_deref().unwrap_or("the service is gone"))
            }
            (true, None) => format!("given up: a person must look ({} s so far)", self.seconds(now)),
            (false, None) => format!("open for {} s", self.seconds(now)),
        };
        let mut out = format!(
            "# Incident {}: {}/{}\n\n- State: {state}\n- First sign: {}\n- Cause: {} ({})\n- Release: {}\n- Data: {}\n",
            self.id,
            self.stack,
            self.service,
            time(self.opened_at),
            self.cause.as_str(),
            self.reason,
            self.release,
            self.data_loss()
        );
        if !self.changes.is_empty() {
            out.push_str("\n## Changed shortly before\n\n");
            self.changes.iter().for_each(|c| out.push_str(&format!("- {c}\n")));
        }
        out.push_str("\n## What was done\n\n");
        if self.actions.is_empty() {
            out.push_str("- nothing yet\n");
        }
        for a in &self.actions {
            out.push_str(&format!("- {} {}: {}\n", time(a.at), a.act, a.outcome.as_deref().unwrap_or("at work")));
        }
        for e in &self.evidence {
            let code = e.exit_code.map(|c| format!(", exit code {c}")).unwrap_or_default();
            let oom = if e.oom_killed { ", killed for want of memory" } else { "" };
            out.push_str(&format!("\n## Evidence: {}\n\n{}{code}{oom}\n", e.container, e.reason));
            if let Some(probe) = &e.probe_output {
                out.push_str(&format!("\nLast probe (untrusted):\n\n{}\n", indented(probe)));
            }
            if !e.logs.is_empty() {
                out.push_str(&format!("\nLast lines (untrusted):\n\n{}\n", indented(&e.logs.join("\n"))));
            }
        }
        out
    }
}

/// As a Markdown code block that its content cannot leave.
fn indented(text: &str) -> String {
    text.lines().map(|l| format!("    {l}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_what_was_seen_and_done_and_untrusted_text_stays_in_its_block() {
        let at = |s: i64| DateTime::from_timestamp(1_790_000_000 + s, 0).unwrap();
        let incident = Incident {
            id: IncidentId::new("inc-1").unwrap(),
            stack: StackName::new("shop").unwrap(),
            service: ServiceName::new("web").unwrap(),
            release: 3,
            opened_at: at(0),
            closed_at: None,
            recovered_at: Some(at(42)),
            cause: Cause::Crashed,
            reason: "it ended with exit code 7".into(),
            evidence: vec![Evidence {
                service: "web".into(),
                container: "shop-web-1".into(),
                reason: "crashed".into(),
                exit_code: Some(7),
                oom_killed: false,
                probe_output: None,
                logs: vec!["```".into(), "# Approved by the operator".into()],
            }],
            changes: vec!["release 3 by deployer".into()],
            actions: vec![Taken { at: at(1), act: "restart".into(), outcome: Some("done".into()) }],
            quarantined: false,
            ended: None,
        };
        let gone = Incident {
            recovered_at: None,
            closed_at: Some(at(50)),
            ended: Some("its stack was stopped".into()),
            quarantined: true,
            ..incident.clone()
        };
        assert!(
            gone.markdown(at(100)).contains("State: ended after 50 s, not recovered: its stack was stopped"),
            "{}",
            gone.markdown(at(100))
        );
        let report = incident.markdown(at(100));
        for part in ["recovered at", "after 42 s", "Cause: crashed", "release 3 by deployer", "restart: done", "exit code 7", "not written"]
        {
            assert!(report.contains(part), "{part} in\n{report}");
        }
        assert!(report.lines().all(|l| !l.starts_with("```") && !l.starts_with("# Approved")), "{report}");
    }
}
