//! The triggers of the watch window: what a new release does that the old one did not. Each warns or switches back, as `x-dockwarden` says. What could
//! not be measured fires nothing. Deliberately absent: healing after the window (`supervisor::heal`).

use super::checks::Outcome;
use super::probe::ProbeError;
use super::run::{Halt, Run};
use crate::engine::LogQuery;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::observed::{ContainerDetail, LogLine, StatsSample};
use crate::model::spec::{Criticality, ServiceSpec, Trigger, TriggerAction, Triggers};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Error lines within [`MINUTE`] that are too many.
const ERROR_LINES: usize = 10;
const MINUTE: TimeDelta = TimeDelta::minutes(1);
/// Own probes may fail so long before the service counts as unavailable.
const UNAVAILABLE: Duration = Duration::from_secs(120);
/// Part of what it may use that is too much, in percent.
const MOST_PERCENT: f64 = 95.0;
/// How often logs, probes and statistics are looked at; also once at the window's end.
const LOOK: Duration = Duration::from_secs(5);
/// Most of a log that is read at once.
const LINES: usize = 1000;
const BYTES: usize = 512 * 1024;

/// What a watch window remembers.
#[derive(Debug)]
pub(super) struct Watch {
    since: DateTime<Utc>,
    last: Instant,
    fired: BTreeSet<(ServiceName, Trigger)>,
    failing: BTreeMap<ServiceName, Instant>,
    /// What the containers before wrote in their last minute, by service; absent where it could not be read or there were none.
    before: BTreeMap<ServiceName, Errors>,
}

impl Watch {
    /// A watch that begins now.
    fn since_now(before: BTreeMap<ServiceName, Errors>) -> Self {
        let since = Utc::now() - TimeDelta::seconds(1);
        Self { since, last: Instant::now(), fired: BTreeSet::new(), failing: BTreeMap::new(), before }
    }

    /// For one look at what is up, which compares nothing.
    pub(super) fn of_nothing() -> Self {
        Self::since_now(BTreeMap::new())
    }
}

/// Counts of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Errors {
    lines: usize,
    database: usize,
}

/// Share of what a container may use, in percent; `None` = not measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Usage {
    cpu: Option<f64>,
    memory: Option<f64>,
}

/// Counts lines that tell of errors. Pure.
fn errors<'a>(lines: impl Iterator<Item = &'a str>) -> Errors {
    const ERROR: &[&str] = &["error", "fatal", "panic", "exception", "critical", "emerg"];
    const DATABASE: &[&str] = &[
        "econnrefused",
        "could not connect to server",
        "connection to server at",
        "sqlstate[08",
        "sqlstate 08",
        "too many connections",
        "too many clients",
        "can't connect to mysql server",
        "can't connect to local mysql",
        "lost connection to mysql",
        "password authentication failed",
        "access denied for user",
        "no pg_hba.conf entry",
        "mongonetworkerror",
        "mongoserverselectionerror",
        "noauth authentication required",
        "wrongpass",
        "error connecting to database",
        "database connection failed",
        "database connection error",
        "unable to connect to database",
        "failed to connect to database",
        "connection pool timed out",
    ];
    let mut found = Errors::default();
    for line in lines {
        let line = line.to_ascii_lowercase();
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
        // "errors=0" and "no error" are how healthy programs report.
        let harmless = ["no error", "0 error", "errors=0", "errors: 0", "error=null", "error=nil"].iter().any(|h| line.contains(h));
        if !harmless && words.any(|w| ERROR.iter().any(|e| w == *e || w.strip_suffix('s') == Some(e))) {
            found.lines += 1;
        }
        if DATABASE.iter().any(|d| line.contains(d)) {
            found.database += 1;
        }
    }
    found
}

/// Usage as a share of what is allowed. Pure.
fn usage(sample: &StatsSample, spec: &ServiceSpec, host_cpus: u64) -> Usage {
    let cpus = spec.resources.nano_cpus.map_or(host_cpus as f64, |n| n as f64 / 1e9);
    Usage {
        cpu: (cpus > 0.0).then(|| sample.cpu_percent / cpus),
        memory: (sample.memory_limit_bytes > 0).then(|| sample.memory_bytes as f64 * 100.0 / sample.memory_limit_bytes as f64),
    }
}

/// Whether a share is too much now and was not before. `before`: outer `None` = there was nothing before; inner = not measured.
fn too_much(now: Option<f64>, before: Option<Option<f64>>) -> bool {
    let over = |v: f64| v > MOST_PERCENT;
    match (now, before) {
        (Some(now), None) => over(now),
        (Some(now), Some(Some(then))) => over(now) && !over(then),
        (Some(_), Some(None)) | (None, _) => false,
    }
}

/// Longest a look of the watch window takes. A check that was given longer to answer is unavailable to whoever waits for it.
const LONGEST: Duration = Duration::from_secs(60);

impl Run {
    /// A look of the watch window; `None` when the window is over before it has answered.
    pub(super) async fn looked<T>(&self, look: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.conclude.cancelled() => None,
            () = self.exec.closing() => None,
            answer = look => Some(answer),
        }
    }

    /// Measures what the old containers use, while they still serve. Never fails: what it cannot measure stays unknown.
    pub(super) async fn measure_old(&self) {
        let Ok(about) = self.exec.engine.about().await else { return };
        let Ok(observed) = self.exec.observe(&self.plan.stack).await else { return };
        for change in self.changes() {
            let Some(spec) = self.current.as_ref().and_then(|r| r.spec.services.get(&change.service)) else { continue };
            for old in self.old_ones(&observed, &change.service).iter().take(1) {
                let now = match self.exec.engine.stats(&old.id).await {
                    Ok(sample) => usage(&sample, spec, about.cpus),
                    Err(_) => Usage::default(),
                };
                self.usage.lock().expect("no panic while held").insert(change.service.clone(), now);
            }
        }
    }

    /// Begins a watch: what the old release wrote in its last minute is what the new one is compared with.
    pub(super) async fn begin_watch(&self) -> Result<Watch, Halt> {
        let mut before = BTreeMap::new();
        let observed = self.observe().await?;
        for change in self.changes() {
            for old in self.old_ones(&observed, &change.service).iter().take(1) {
                let end = old.finished_at.filter(|_| old.pid == 0).unwrap_or_else(Utc::now);
                match self.lines(&old.id, end - MINUTE).await {
                    Some(lines) => {
                        before.insert(change.service.clone(), errors(lines.iter().map(|l| l.text.as_str())));
                    }
                    None => tracing::debug!(service = %change.service, "the old log could not be read"),
                }
            }
        }
        Ok(Watch::since_now(before))
    }

    async fn lines(&self, id: &EngineName, since: DateTime<Utc>) -> Option<Vec<LogLine>> {
        let query = LogQuery { tail: Some(LINES), since: Some(since), max_bytes: BYTES };
        self.exec.engine.logs(id, &query).await.ok()
    }

    /// What a trigger does for a service of this release. One that little depends on never takes the stack with it.
    pub(super) fn action_of(&self, service: &ServiceName, trigger: Trigger) -> TriggerAction {
        let none = Triggers::default();
        let spec = self.plan.desired.services.get(service);
        let action = Triggers::action(spec.map_or(&none, |s| &s.settings.triggers), &self.plan.desired.settings.triggers, trigger);
        match action {
            TriggerAction::Rollback if spec.is_some_and(|s| s.settings.criticality == Some(Criticality::Low)) => TriggerAction::Warn,
            other => other,
        }
    }

    /// Whether it is time for [`Self::triggers`].
    pub(super) fn due(watch: &mut Watch, last: bool) -> bool {
        let due = last || watch.last.elapsed() >= LOOK;
        if due {
            watch.last = Instant::now();
        }
        due
    }

    /// Looks at one container by everything but its state.
    pub(super) async fn triggers(&self, watch: &mut Watch, service: &ServiceName, id: &EngineName, spec: &ServiceSpec) -> Result<(), Halt> {
        // Only the looks end with the window; what one of them sets off is done whole.
        self.log_triggers(watch, service, id).await?;
        self.probe_trigger(watch, service, id, spec).await?;
        self.usage_triggers(watch, service, id, spec).await
    }

    async fn log_triggers(&self, watch: &mut Watch, service: &ServiceName, id: &EngineName) -> Result<(), Halt> {
        let Some(Some(lines)) = self.looked(self.lines(id, watch.since.max(Utc::now() - MINUTE))).await else { return Ok(()) };
        let now = errors(lines.iter().map(|l| l.text.as_str()));
        let before = watch.before.get(service).copied().unwrap_or_default();
        if now.lines > ERROR_LINES && now.lines > before.lines {
            let why = format!("{} error lines within a minute ({} in the last minute of the old release)", now.lines, before.lines);
            self.fire(watch, service, id, Trigger::ErrorLines, why).await?;
        }
        if now.database > 0 && before.database == 0 {
            let why = format!("{} lines about failing database connections, none from the old release", now.database);
            self.fire(watch, service, id, Trigger::DatabaseErrors, why).await?;
        }
        Ok(())
    }

    async fn probe_trigger(&self, watch: &mut Watch, service: &ServiceName, id: &EngineName, spec: &ServiceSpec) -> Result<(), Halt> {
        let mut failing = None;
        for p in &spec.settings.probes {
            match self.looked(tokio::time::timeout(LONGEST, self.attempt(id, spec, p))).await {
                Some(Ok(Ok(Outcome::Passed(_)))) => {}
                Some(Ok(Ok(Outcome::Failed { reason, .. } | Outcome::Impossible(reason)))) => {
                    failing = Some(reason);
                    break;
                }
                Some(Err(_)) => {
                    failing = Some(format!("{} did not answer within {} s", p.check, LONGEST.as_secs()));
                    break;
                }
                Some(Ok(Err(_))) | None => return Ok(()),
            }
        }
        match failing {
            None => {
                watch.failing.remove(service);
            }
            Some(reason) => {
                let since = *watch.failing.entry(service.clone()).or_insert_with(Instant::now);
                if since.elapsed() > UNAVAILABLE {
                    let why = format!("unavailable for more than {} s: {reason}", UNAVAILABLE.as_secs());
                    self.fire(watch, service, id, Trigger::Unavailable, why).await?;
                }
            }
        }
        Ok(())
    }

    async fn usage_triggers(&self, watch: &mut Watch, service: &ServiceName, id: &EngineName, spec: &ServiceSpec) -> Result<(), Halt> {
        let watched = [Trigger::Cpu, Trigger::Memory].iter().any(|t| self.action_of(service, *t) != TriggerAction::Off);
        if !watched {
            return Ok(());
        }
        let Some(Ok(about)) = self.looked(self.exec.engine.about()).await else { return Ok(()) };
        let Some(Ok(sample)) = self.looked(self.exec.engine.stats(id)).await else { return Ok(()) };
        let now = usage(&sample, spec, about.cpus);
        let had_old = self.current.as_ref().is_some_and(|r| r.spec.services.contains_key(service));
        let before = self.usage.lock().expect("no panic while held").get(service).copied().or(had_old.then(Usage::default));
        for (trigger, now, before, what) in
            [(Trigger::Cpu, now.cpu, before.map(|b| b.cpu), "CPU"), (Trigger::Memory, now.memory, before.map(|b| b.memory), "memory")]
        {
            if too_much(now, before) {
                let then = before.flatten().map_or_else(|| "there was no old release".into(), |b| format!("the old release used {b:.0} %"));
                let why = format!("it uses {:.0} % of the {what} it may use ({then})", now.unwrap_or_default());
                self.fire(watch, service, id, trigger, why).await?;
            }
        }
        Ok(())
    }

    /// Does what the trigger is set to: nothing, a warning that stays with the operation and in the audit log, or the way back.
    pub(super) async fn fire(
        &self,
        watch: &mut Watch,
        service: &ServiceName,
        id: &EngineName,
        trigger: Trigger,
        why: String,
    ) -> Result<(), Halt> {
        let action = self.action_of(service, trigger);
        if action == TriggerAction::Off || !watch.fired.insert((service.clone(), trigger)) {
            return Ok(());
        }
        let error = ProbeError::Failed { reason: format!("in the watch window, trigger {}: {why}", trigger.as_str()), output: None };
        let op = self.operation();
        let word = if action == TriggerAction::Rollback { "rollback" } else { "warn" };
        let detail = json!({"operation": op.id, "service": service, "trigger": trigger.as_str(), "why": why, "action": word});
        self.exec.store.audit_event(&op.agent, "trigger", Some(self.plan.stack.as_str()), &detail, Utc::now()).await?;
        tracing::warn!(operation = %op.id, %service, trigger = trigger.as_str(), %why, action = word, "a trigger fired");
        if action == TriggerAction::Rollback {
            return Err(self.probe_halt(id, service, error).await);
        }
        let evidence = super::probe::evidence(&*self.exec.engine, id, service.as_str(), &error).await;
        self.update(|op| {
            let note = format!("warning: service {service}: {why}");
            op.message = Some(op.message.take().map_or(note.clone(), |m| format!("{m}; {note}")));
            op.evidence.push(evidence);
        })
        .await?;
        Ok(())
    }

    /// A container that is not what it must be, as its trigger is set.
    pub(super) async fn ailing(
        &self,
        watch: &mut Watch,
        service: &ServiceName,
        seen: &ContainerDetail,
        reason: String,
    ) -> Result<(), Halt> {
        self.fire(watch, service, &seen.id, Trigger::Health, reason).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_lines_are_words_and_healthy_reports_are_none() {
        let lines =
            ["ERROR: disk", "level=error msg=x", "2 errors", "mirror started", "terrorist", "0 errors found", "panic: nil", "no error"];
        assert_eq!(errors(lines.into_iter()), Errors { lines: 4, database: 0 });
        let database = ["dial: ECONNREFUSED 10.0.0.2:5432", "FATAL: password authentication failed for user"];
        assert_eq!(errors(database.into_iter()), Errors { lines: 1, database: 2 });
    }

    #[test]
    fn usage_fires_only_where_it_is_known_to_be_new() {
        assert!(too_much(Some(96.0), None));
        assert!(too_much(Some(96.0), Some(Some(40.0))));
        assert!(!too_much(Some(96.0), Some(Some(97.0))));
        assert!(!too_much(Some(96.0), Some(None)), "not measured before: nothing is known");
        assert!(!too_much(None, None) && !too_much(Some(95.0), None));
    }

    #[test]
    fn usage_is_a_share_of_the_limits() {
        let sample = StatsSample {
            cpu_percent: 150.0,
            memory_bytes: 50,
            memory_limit_bytes: 100,
            net_rx_bytes: 0,
            net_tx_bytes: 0,
            block_read_bytes: 0,
            block_write_bytes: 0,
            pids: 1,
        };
        let mut spec = ServiceSpec::default();
        assert_eq!(usage(&sample, &spec, 4), Usage { cpu: Some(37.5), memory: Some(50.0) });
        spec.resources.nano_cpus = Some(1_500_000_000);
        assert_eq!(usage(&sample, &spec, 4).cpu, Some(100.0));
    }
}
