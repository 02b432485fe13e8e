//! `diagnose`: why a stack or service is not well, with evidence, what changed before, its incidents, and what to do next.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::diagnose::{self, Ailment};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::hands::{self, ByHand, Hands};
use crate::call::{Call, CallError, observe, prepare};
use crate::engine::LogQuery;
use crate::gate::Permit;
use crate::model::ids::{IncidentId, ServiceName, StackName};
use crate::model::incident::{Cause, Incident};
use crate::model::plan::Plan;
use crate::redact::{self, Untrusted};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Incidents shown.
const SHOWN: usize = 5;
/// Incidents found by their words.
const FOUND: usize = 20;
/// Log lines and bytes per finding.
const LINES: usize = 20;
const BYTES: usize = 3000;
/// Bytes of log lines and probes of all findings together: a reply carries them twice, and clients refuse replies of 25,000 tokens.
const EVIDENCE: usize = 12_000;
/// Findings shown; more than that at once have one cause, and it is the host's.
const FINDINGS: usize = 40;
/// Bytes of a report.
const REPORT: usize = 16_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
    /// One service; all by default.
    service: Option<ServiceName>,
    /// The whole report of this incident instead.
    incident_id: Option<IncidentId>,
    /// Only incidents with these words in their report.
    find: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Found {
    service: ServiceName,
    cause: Cause,
    reason: String,
    /// Nothing it depends on is ill: begin here.
    root_cause: bool,
    next: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Untrusted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Untrusted>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct IncidentRow {
    incident_id: IncidentId,
    service: ServiceName,
    cause: Cause,
    opened_at: DateTime<Utc>,
    /// From first sign to recovery, or until now.
    seconds: i64,
    /// `open recovered quarantined ended`.
    state: String,
    actions: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    stack: StackName,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<u32>,
    /// No service asked for is ill.
    well: bool,
    findings: Vec<Found>,
    /// Evidence or findings were left out: name a service.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    /// Releases of the last day, operations of the last hour.
    changes: Vec<String>,
    incidents: Vec<IncidentRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Untrusted>,
}

pub(super) struct Diagnose;

impl Verb for Diagnose {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "diagnose",
        title: "Why is it down",
        description: "Why a stack or service is not well: cause, evidence, root cause among dependencies, recent changes, incidents, next step. Changes nothing.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::service(Some(&input.stack), input.service.as_ref()))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let store = &call.house.store;
        let record = store.stack(&input.stack).await?.ok_or_else(|| prepare::not_deployed(&input.stack))?;
        let number = record.current.ok_or_else(|| prepare::not_deployed(&input.stack))?;
        let release = store.release(&input.stack, number).await?.ok_or_else(|| prepare::not_deployed(&input.stack))?;
        if let Some(service) = input.service.as_ref().filter(|s| !release.spec.services.contains_key(*s)) {
            return Err(prepare::no_service(&input.stack, service, release.spec.services.keys()));
        }
        let observed = observe::stack(&call.house, &input.stack).await?;
        let ailing = match record.stopped {
            true => vec![],
            false => diagnose::ailments(&release, &observed, &BTreeSet::new(), &|c| c.restart_count, call.now),
        };
        let by_hand = Hands::read(store).await?.of(&input.stack);
        let roots = diagnose::roots(&release.spec, &ailing);
        let wanted = |s: &ServiceName| input.service.as_ref().is_none_or(|w| w == s);
        // Where to begin comes first, and has its evidence whatever the bound.
        let mut asked: Vec<&Ailment> = ailing.iter().filter(|a| wanted(&a.service)).collect();
        asked.sort_by_key(|a| !roots.iter().any(|r| r.service == a.service));
        let mut truncated = asked.len() > FINDINGS;
        let (mut findings, mut room) = (vec![], EVIDENCE);
        for ailment in asked.into_iter().take(FINDINGS) {
            let mut finding = found(call, &input.stack, &release, &observed, ailment, &roots).await;
            if let Some((reason, next)) = hand(&release, ailment, &by_hand) {
                (finding.reason, finding.next) = (reason.to_owned(), next);
            }
            for evidence in [&mut finding.probe, &mut finding.logs] {
                truncated |= !within(evidence, &mut room);
            }
            findings.push(finding);
        }
        let incidents = match &input.find {
            Some(words) => {
                let mut found = store.incidents_matching(std::slice::from_ref(&input.stack), redact::keep_start(words, 500), FOUND).await?;
                found.retain(|i| wanted(&i.service));
                found
            }
            None => store.incidents(Some(&input.stack), input.service.as_ref(), SHOWN).await?,
        };
        let report = match &input.incident_id {
            Some(id) => Some(report(call, &input.stack, id).await?),
            None => None,
        };
        Ok(Output {
            well: findings.is_empty(),
            findings,
            truncated,
            changes: diagnose::changes(&call.house, &input.stack, call.now).await?,
            incidents: incidents.iter().map(|i| row(i, call.now)).collect(),
            report,
            stack: input.stack,
            release: Some(number),
        })
    }

    fn text(o: &Output) -> Option<String> {
        let mut out = if o.well { format!("{}: nothing is wrong now", o.stack) } else { format!("{}: NOT well", o.stack) };
        for f in &o.findings {
            let root = if f.root_cause { " (root cause)" } else { "" };
            out.push_str(&format!("\n{}{root}: {}: {}\n  next: {}", f.service, f.cause.as_str(), f.reason, f.next));
            for text in [&f.probe, &f.logs].into_iter().flatten() {
                out.push_str(&format!("\n  [untrusted, {}]\n{}", text.source, text.text));
            }
        }
        if o.truncated {
            out.push_str("\n(more was found: name a service to see all of it)");
        }
        for c in &o.changes {
            out.push_str(&format!("\nchanged: {c}"));
        }
        for i in &o.incidents {
            let acts = i.actions.join(", ");
            out.push_str(&format!("\nincident {} {} {} {} ({} s) {acts}", i.incident_id, i.service, i.cause.as_str(), i.state, i.seconds));
        }
        if let Some(report) = &o.report {
            out.push_str(&format!("\n[untrusted, {}]\n{}", report.source, report.text));
        }
        Some(out)
    }
}

/// Whether evidence has room; what has none is left out.
fn within(evidence: &mut Option<Untrusted>, room: &mut usize) -> bool {
    let Some(text) = evidence else { return true };
    let fits = text.text.len() <= *room;
    if fits {
        *room -= text.text.len();
    } else {
        *evidence = None;
    }
    fits
}

/// Reason and next step where a hand did it.
fn hand(release: &crate::model::release::Release, a: &Ailment, by_hand: &ByHand) -> Option<(&'static str, String)> {
    if a.container.as_ref().is_some_and(|id| by_hand.stopped.contains(id)) {
        return Some((hands::STOPPED, hands::again(&release.stack)));
    }
    let removed = a.cause == Cause::Missing && by_hand.removed.contains(&a.service);
    removed.then(|| (hands::REMOVED, hands::back(&release.stack, release.number)))
}

async fn found(
    call: &Call,
    stack: &StackName,
    release: &crate::model::release::Release,
    observed: &crate::planner::Observed,
    a: &Ailment,
    roots: &[Ailment],
) -> Found {
    let container = a.container.as_ref().and_then(|id| observed.containers.iter().find(|c| c.id == *id));
    let mut cause = a.cause;
    let mut logs = None;
    if let Some(c) = container {
        let query = LogQuery { tail: Some(LINES), since: None, max_bytes: BYTES };
        let text = match call.house.engine.logs(&c.id, &query).await {
            Ok(lines) => lines.into_iter().map(|l| l.text).collect::<Vec<_>>().join("\n"),
            Err(e) => format!("(the log could not be read: {e})"),
        };
        // A log often names what an exit code only hints at.
        if matches!(cause, Cause::Crashed | Cause::Unhealthy) {
            cause = text.lines().rev().find_map(diagnose::cause_of_error).unwrap_or(cause);
        }
        logs = (!text.is_empty()).then(|| redact::envelope(format!("logs of {}", c.name), &text, BYTES));
    }
    let root_cause = roots.iter().any(|r| r.service == a.service);
    let ill: Vec<String> =
        release.spec.services.get(&a.service).into_iter().flat_map(|s| s.depends_on.keys()).map(ToString::to_string).collect();
    let reason = if root_cause { a.reason.clone() } else { format!("{}; it depends on {}", a.reason, ill.join(", ")) };
    let cause = if root_cause { cause } else { Cause::Dependency };
    let next = diagnose::next_step(stack, &Ailment { cause, ..a.clone() });
    let refused = container.zip(a.error.as_deref()).map(|(c, e)| redact::envelope(format!("engine, of the start of {}", c.name), e, 500));
    let probe = refused.or_else(|| {
        let c = container.filter(|_| a.cause == Cause::Unhealthy)?;
        let text = c.last_health_output.as_deref().filter(|t| !t.trim().is_empty())?;
        Some(redact::envelope(format!("health check of {}", c.name), text, 500))
    });
    Found { service: a.service.clone(), cause, reason, root_cause, next, probe, logs }
}

async fn report(call: &Call, stack: &StackName, id: &IncidentId) -> Result<Untrusted, CallError> {
    let found = call.house.store.incident(id).await?.filter(|i| i.stack == *stack);
    let incident = found.ok_or_else(|| {
        let message = format!("stack {stack} has no incident {id}");
        CallError::new(ErrorCode::NotFound, message, "`diagnose` without incident_id lists them").field("incident_id")
    })?;
    Ok(redact::envelope(format!("report of {id}"), &incident.markdown(call.now), REPORT))
}

fn row(i: &Incident, now: DateTime<Utc>) -> IncidentRow {
    let state = match (i.recovered_at, i.quarantined) {
        (Some(_), _) => "recovered",
        (None, _) if i.closed_at.is_some() => "ended",
        (None, true) => "quarantined",
        (None, false) => "open",
    };
    IncidentRow {
        incident_id: i.id.clone(),
        service: i.service.clone(),
        cause: i.cause,
        opened_at: i.opened_at,
        seconds: i.seconds(now),
        state: state.into(),
        actions: i.actions.iter().map(|a| format!("{}: {}", a.act, a.outcome.as_deref().unwrap_or("at work"))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_of_many_findings_stays_within_one_bound() {
        let mut room = EVIDENCE;
        let text = "x".repeat(BYTES);
        let mut kept = 0;
        for n in 0..35 {
            let mut evidence = Some(redact::envelope(format!("logs of {n}"), &text, BYTES));
            let fits = within(&mut evidence, &mut room);
            assert_eq!(fits, evidence.is_some());
            kept += evidence.map_or(0, |e| e.text.len());
        }
        assert!((EVIDENCE - BYTES..=EVIDENCE).contains(&kept), "{kept}");
        assert!(within(&mut None, &mut room), "what is not there is not left out");
    }
}
