//! The audit log for other systems and for people: an export with the names of OpenTelemetry, a tail, a report in Markdown. Rows come in
//! pages, so that a long log needs no more memory than a short one. Deliberately absent: changing or filtering what was written.

use super::{CliError, CliResult, Ended, Global, output, reach};
use crate::adapters::socket::client::Session;
use crate::adapters::socket::wire::Admin;
use crate::model::spend::{self, Spent};
use crate::redact;
use crate::store::audit::export::First;
use crate::store::audit::{AuditReport, AuditRow};
use crate::supervisor::WARDEN;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

/// Rows asked for at once.
const PAGE: usize = 500;
/// Pause between looks of a tail.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Most lines of a list in a report; what is more is counted.
const MOST: usize = 50;

/// A moment: RFC 3339, or an age like `90s`, `2h`, `7d`, `4w`.
fn moment(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, CliError> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let wrong = || CliError::Usage(format!("{text:?} is no moment"), "write e.g. 2026-01-31T08:00:00Z, 2h, 7d or 4w".into());
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    let age = number.parse::<u32>().map_err(|_| wrong())?;
    now.checked_sub_signed(TimeDelta::seconds(i64::from(age) * seconds)).ok_or_else(wrong)
}

fn read<T: DeserializeOwned>(value: &Value, key: &str) -> Result<T, CliError> {
    let hint = "use the dockwarden binary of the same version as the supervisor";
    serde_json::from_value(value[key].clone()).map_err(|e| CliError::Failed(format!("the supervisor's answer: {e}"), hint.into()))
}

/// Calls `see` with every row after `after`, oldest first, up to the head as it was at the beginning; gives that head.
async fn each(
    session: &mut Session,
    mut after: i64,
    since: Option<DateTime<Utc>>,
    mut see: impl FnMut(AuditRow, &Value) -> Result<(), CliError>,
) -> Result<i64, CliError> {
    let mut until: Option<i64> = None;
    loop {
        let (page, _) = session.admin(Admin::AuditRows { after, since, limit: PAGE }).await?;
        let head = *until.get_or_insert(read(&page, "head")?);
        let rows: Vec<AuditRow> = read(&page, "rows")?;
        let full = rows.len() == PAGE;
        for row in rows {
            after = row.seq;
            if row.seq <= head {
                see(row, &page)?;
            }
        }
        if !full || after >= head {
            return Ok(head);
        }
    }
}

fn write_line(value: &Value) -> Result<(), CliError> {
    writeln!(std::io::stdout(), "{value}").map_err(|e| CliError::Failed(format!("stdout: {e}"), "give it somewhere to write to".into()))
}

/// Runs `audit export`.
pub async fn export(global: &Global, since: Option<&str>) -> CliResult {
    let since = since.map(|s| moment(s, Utc::now())).transpose()?;
    let mut session = reach::people(global, true).await?;
    each(&mut session, 0, since, |row, page| write_line(&otel(&row, &page["instance"], &page["host"]))).await?;
    Ok(Ended::Done)
}

/// A row as an OpenTelemetry log record: the names of its data model and semantic conventions, our own under `dockwarden.`.
fn otel(row: &AuditRow, instance: &Value, host: &Value) -> Value {
    let (door, token) = row.door.split_once(' ').map_or((row.door.as_str(), None), |(d, t)| (d, Some(t)));
    let severity = match (row.verdict.as_str(), row.outcome.as_deref()) {
        (_, Some("error" | "unknown")) => ("ERROR", 17),
        ("deny", _) | (_, Some("denied")) => ("WARN", 13),
        _ => ("INFO", 9),
    };
    let mut attributes = json!({
        "gen_ai.agent.name": row.agent, "dockwarden.audit.seq": row.seq, "dockwarden.audit.hash": row.hash, "dockwarden.verdict": row.verdict.as_str(),
    });
    let is_event = row.kind == "event";
    let optional = [
        ("gen_ai.operation.name", (!is_event).then_some("execute_tool")),
        ("gen_ai.tool.name", (!is_event).then_some(row.tool.as_str())),
        ("gen_ai.tool.call.id", Some(row.call.as_str()).filter(|c| !c.is_empty())),
        ("deployment.environment.name", row.environment.as_deref()),
        ("dockwarden.stack", row.stack.as_deref()),
        ("dockwarden.outcome", row.outcome.as_deref()),
        ("dockwarden.door", Some(door).filter(|d| !d.is_empty())),
        ("dockwarden.token.id", token),
        ("error.type", row.detail["code"].as_str()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            attributes[name] = json!(value);
        }
    }
    let name = if is_event { format!("dockwarden.{}", row.tool) } else { format!("dockwarden.call.{}", row.kind) };
    json!({
        "Timestamp": row.at.to_rfc3339_opts(SecondsFormat::Nanos, true), "SeverityText": severity.0, "SeverityNumber": severity.1, "EventName": name,
        "Resource": {"service.name": "dockwarden", "service.version": env!("CARGO_PKG_VERSION"), "service.instance.id": instance, "host.name": host},
        "Attributes": attributes, "Body": row.detail,
    })
}

/// Runs `audit tail`.
pub async fn tail(global: &Global, follow: bool, lines: u32) -> CliResult {
    let mut session = reach::people(global, true).await?;
    let (page, _) = session.admin(Admin::AuditRows { after: i64::MAX, since: None, limit: 1 }).await?;
    let mut after = read::<i64>(&page, "head")? - i64::from(lines);
    loop {
        after = each(&mut session, after, None, |row, _| {
            if global.json {
                return write_line(&json!(row));
            }
            output::line(in_a_line(&row));
            Ok(())
        })
        .await?
        .max(after);
        if !follow {
            return Ok(Ended::Done);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn in_a_line(row: &AuditRow) -> String {
    let at = row.at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let place = [row.stack.as_deref(), row.environment.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("/");
    let outcome = row.outcome.as_deref().unwrap_or("-");
    let line =
        format!("{} {at} {:<7} {:<8} {} {} {place} {outcome} {}", row.seq, row.kind, row.verdict.as_str(), row.agent, row.tool, row.door);
    redact::line(&line, 400)
}

/// Runs `audit report`.
pub async fn report(global: &Global, since: &str) -> CliResult {
    let now = Utc::now();
    let since = moment(since, now)?;
    let mut session = reach::people(global, true).await?;
    let (verified, _) = session.admin(Admin::AuditVerify { kept: String::new() }).await?;
    let hint = "use the dockwarden binary of the same version as the supervisor";
    let verified: AuditReport = serde_json::from_value(verified).map_err(|e| CliError::Failed(e.to_string(), hint.into()))?;
    let (firsts, _) = session.admin(Admin::AuditFirsts { since }).await?;
    let mut report = Report::default();
    let mut host = String::new();
    each(&mut session, 0, Some(since), |row, page| {
        host = page["host"].as_str().unwrap_or_default().to_owned();
        report.add(&row);
        Ok(())
    })
    .await?;
    let (spent, _) = session.admin(Admin::Spent { month: None }).await?;
    let from = spend::month(since);
    let mut spent = read::<Vec<Spent>>(&spent, "spent")?;
    spent.retain(|s| s.month >= from);
    let text = report.markdown(&verified, &read::<Vec<First>>(&firsts, "firsts")?, (since, now), &host) + &cost(&spent);
    output::reply(global.json, "", &json!({"markdown": text, "intact": verified.problems.is_empty()}), &text);
    Ok(if verified.problems.is_empty() { Ended::Done } else { Ended::Failed })
}

#[derive(Debug, Default)]
struct PerAgent {
    calls: u64,
    changes: u64,
    denied: u64,
    failed: u64,
    pending: u64,
}

/// What a report counts and lists; bounded whatever the log holds.
#[derive(Debug, Default)]
struct Report {
    agents: BTreeMap<String, PerAgent>,
    denials: BTreeMap<(String, String, String), u64>,
    approvals: Listed,
    releases: Listed,
    rollbacks: Listed,
    loops: BTreeMap<(String, String, String), u64>,
    operators: Listed,
}

/// Lines up to `MOST`, and how many more there were.
#[derive(Debug, Default)]
struct Listed(Vec<String>, usize);

impl Listed {
    fn push(&mut self, line: String) {
        if self.0.len() < MOST { self.0.push(line) } else { self.1 += 1 }
    }
}

/// A table cell or list item of Markdown: one line, and nothing in it is markup.
fn plain(text: &str) -> String {
    redact::line(text, 200).chars().flat_map(|c| ("\\`*_{}[]<>#|!~&".contains(c)).then_some('\\').into_iter().chain([c])).collect()
}

/// What agents spent on models, by whole months.
fn cost(spent: &[Spent]) -> String {
    let mut out = "\n## Models\n\n".to_owned();
    if spent.is_empty() {
        return out + "None was asked.\n";
    }
    out.push_str("| month | agent | model | answers | refused | lost | tokens in | tokens out | USD |\n|---|---|---|---:|---:|---:|---:|---:|---:|\n");
    for s in spent {
        let (agent, model, usd) = (plain(&s.agent), plain(&s.model), spend::dollars(s.micro_usd));
        out.push_str(&format!(
            "| {} | {agent} | {model} | {} | {} | {} | {} | {} | {usd} |\n",
            s.month, s.answers, s.errors, s.lost, s.tokens_in, s.tokens_out
        ));
    }
    out
}

impl Report {
    fn add(&mut self, row: &AuditRow) {
        let at = row.at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let (agent, tool, stack) = (plain(&row.agent), plain(&row.tool), plain(row.stack.as_deref().unwrap_or("-")));
        if row.kind == "event" {
            return self.event(row, &at, (agent, tool, stack));
        }
        let ended = matches!(row.kind.as_str(), "read" | "outcome");
        if row.kind == "intent" || row.kind == "read" {
            self.agents.entry(agent.clone()).or_default().calls += 1;
        }
        if row.kind == "intent" {
            self.agents.entry(agent.clone()).or_default().changes += 1;
        }
        if !ended {
            return;
        }
        let counts = self.agents.entry(agent.clone()).or_default();
        match row.outcome.as_deref() {
            Some("denied") => {
                counts.denied += 1;
                let by = row.detail["findings"].as_array().into_iter().flatten().find(|f| f["verdict"] == "deny");
                let rule = by.and_then(|f| f["rule"].as_str()).unwrap_or("-");
                *self.denials.entry((agent.clone(), tool.clone(), plain(rule))).or_default() += 1;
            }
            Some("error" | "unknown") => counts.failed += 1,
            Some("pending_approval") => counts.pending += 1,
            _ => {}
        }
        if row.agent == WARDEN {
            *self.loops.entry((tool.clone(), stack.clone(), plain(row.outcome.as_deref().unwrap_or("-")))).or_default() += 1;
        }
        let detail = &row.detail["detail"];
        if let Some(release) = detail["release"].as_u64() {
            let state = plain(detail["state"].as_str().unwrap_or("-"));
            let line = format!("- {at} {stack} release {release} by {agent} ({tool}): {state}");
            if row.tool == "rollback" || detail["state"] == "rolled_back" { self.rollbacks.push(line) } else { self.releases.push(line) }
        }
    }

    fn event(&mut self, row: &AuditRow, at: &str, (who, what, stack): (String, String, String)) {
        let detail = &row.detail;
        match row.tool.as_str() {
            "approval_given" | "approval_denied" | "approval_revoked" => {
                let waited = detail["waited_s"].as_i64().map_or_else(|| "?".into(), |s| format!("{s} s"));
                let text = |key: &str| plain(detail[key].as_str().unwrap_or("-"));
                let word = what.trim_start_matches("approval\\_");
                self.approvals.push(format!(
                    "- {at} {word} by {who} after {waited}: {} of {} on {stack} ({}, {})",
                    text("tool"),
                    text("agent"),
                    text("approval"),
                    text("door")
                ));
            }
            _ if row.agent == WARDEN => *self.loops.entry((what, stack, "-".into())).or_default() += 1,
            _ => self.operators.push(format!("- {at} {what} by {who}")),
        }
    }

    fn markdown(&self, verified: &AuditReport, firsts: &[First], (since, now): (DateTime<Utc>, DateTime<Utc>), host: &str) -> String {
        let day = |t: DateTime<Utc>| t.to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut out = format!("# Audit report of {}\n\n{} to {}\n\n", plain(host), day(since), day(now));
        if verified.problems.is_empty() {
            out.push_str(&format!(
                "**The log is intact**: {} rows, {} checkpoints, head `{}`.\n",
                verified.rows, verified.checkpoints, verified.head
            ));
        } else {
            out.push_str("**The log is NOT intact.** Nothing below can be relied on.\n\n");
            verified.problems.iter().for_each(|p| out.push_str(&format!("- {}\n", plain(p))));
        }
        out.push_str(
            "\n## Agents\n\n| agent | calls | changes | denied | failed | waiting for approval |\n|---|---:|---:|---:|---:|---:|\n",
        );
        for (agent, c) in &self.agents {
            out.push_str(&format!("| {agent} | {} | {} | {} | {} | {} |\n", c.calls, c.changes, c.denied, c.failed, c.pending));
        }
        let counted = |title: &str, head: &str, rows: &BTreeMap<(String, String, String), u64>| {
            let mut out = format!("\n## {title}\n\n");
            if rows.is_empty() {
                return out + "None.\n";
            }
            out.push_str(&format!("| {head} | times |\n|---|---|---|---:|\n"));
            let mut sorted: Vec<_> = rows.iter().collect();
            sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
            sorted.iter().take(MOST).for_each(|((a, b, c), n)| out.push_str(&format!("| {a} | {b} | {c} | {n} |\n")));
            if sorted.len() > MOST {
                out.push_str(&format!("\nand {} more\n", sorted.len() - MOST));
            }
            out
        };
        let listed = |title: &str, list: &Listed| {
            let more = if list.1 > 0 { format!("- and {} more\n", list.1) } else { String::new() };
            let lines = if list.0.is_empty() { "None.\n".to_owned() } else { list.0.join("\n") + "\n" };
            format!("\n## {title}\n\n{lines}{more}")
        };
        out.push_str(&counted("Denials", "agent | tool | rule", &self.denials));
        out.push_str(&listed("Approvals", &self.approvals));
        out.push_str(&listed("Releases", &self.releases));
        out.push_str(&listed("Rollbacks", &self.rollbacks));
        out.push_str(&counted("The loop", "action | stack | outcome", &self.loops));
        out.push_str(&listed("Operators and the supervisor", &self.operators));
        let mut new = Listed::default();
        for f in firsts {
            let on = f.stack.as_deref().map(|s| format!(" on {}", plain(s))).unwrap_or_default();
            new.push(format!("- {} {} used {}{on}", day(f.at), plain(&f.agent), plain(&f.tool)));
        }
        out + &listed("For the first time", &new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::verdict::Verdict;

    fn at(minutes: i64) -> DateTime<Utc> {
        "2026-01-02T10:00:00Z".parse::<DateTime<Utc>>().expect("a time") + TimeDelta::minutes(minutes)
    }

    fn row(seq: i64, kind: &str, agent: &str, tool: &str, outcome: Option<&str>, detail: Value) -> AuditRow {
        AuditRow {
            seq,
            at: at(seq),
            kind: kind.into(),
            call: if kind == "event" { String::new() } else { format!("call-{seq}") },
            agent: agent.into(),
            door: if kind == "event" { String::new() } else { "mcp-http tk-0a0b0c0d0e0f".into() },
            tool: tool.into(),
            stack: Some("shop".into()),
            environment: Some("staging".into()),
            verdict: if outcome == Some("denied") { Verdict::Deny } else { Verdict::Allow },
            outcome: outcome.map(str::to_owned),
            detail,
            hash: "ab".repeat(32),
        }
    }

    fn rows() -> Vec<AuditRow> {
        let denied = json!({"code": "denied", "findings": [{"rule": "default.deny", "verdict": "deny", "because": "x"}]});
        let given = json!({"approval": "ap-1", "agent": "deployer", "tool": "deploy", "door": "page", "waited_s": 95});
        vec![
            row(1, "intent", "deployer", "deploy", None, json!({})),
            row(2, "outcome", "deployer", "deploy", Some("ok"), json!({"detail": {"release": 4, "state": "monitoring"}})),
            row(3, "read", "observer", "status", Some("ok"), json!({})),
            row(4, "read", "observer", "deploy", Some("denied"), denied),
            row(5, "event", "ann", "approval_given", None, given),
            row(6, "intent", "warden", "restart", None, json!({})),
            row(7, "outcome", "warden", "restart", Some("ok"), json!({"detail": {}})),
            row(8, "event", "warden", "healing_gave_up", None, json!({})),
            row(9, "outcome", "deployer", "deploy", Some("ok"), json!({"detail": {"release": 5, "state": "rolled_back"}})),
            row(10, "event", "eve|<b>`x`", "freeze", None, json!({})),
        ]
    }

    #[test]
    fn a_report_begins_with_the_chain_and_tells_who_did_what() {
        let mut report = Report::default();
        rows().iter().for_each(|r| report.add(r));
        let intact = AuditReport { rows: 10, head: "ab".repeat(32), checkpoints: 2, segments: 0, problems: vec![] };
        let first = First { agent: "deployer".into(), tool: "deploy".into(), stack: Some("shop".into()), at: at(1) };
        insta::assert_snapshot!(report.markdown(&intact, std::slice::from_ref(&first), (at(0), at(60)), "box_1"));
        let broken = AuditReport { problems: vec!["row 2 was changed".into()], ..intact };
        let text = report.markdown(&broken, &[], (at(0), at(60)), "box");
        let (verdict, agents) = (text.find("NOT intact"), text.find("## Agents"));
        assert!(verdict.is_some() && verdict < agents && text.contains("- row 2 was changed"), "{text}");
    }

    #[test]
    fn a_row_is_exported_under_the_names_of_open_telemetry() {
        let all = rows();
        let value = otel(&all[3], &json!("inst"), &json!("box"));
        assert_eq!(
            value,
            json!({
                "Timestamp": "2026-01-02T10:04:00.000000000Z", "SeverityText": "WARN", "SeverityNumber": 13, "EventName": "dockwarden.call.read",
                "Resource": {"service.name": "dockwarden", "service.version": env!("CARGO_PKG_VERSION"), "service.instance.id": "inst", "host.name": "box"},
                "Attributes": {
                    "gen_ai.agent.name": "observer", "dockwarden.audit.seq": 4, "dockwarden.audit.hash": "ab".repeat(32), "dockwarden.verdict": "deny",
                    "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "deploy", "gen_ai.tool.call.id": "call-4",
                    "deployment.environment.name": "staging", "dockwarden.stack": "shop", "dockwarden.outcome": "denied", "dockwarden.door": "mcp-http",
                    "dockwarden.token.id": "tk-0a0b0c0d0e0f", "error.type": "denied",
                },
                "Body": all[3].detail,
            })
        );
        let event = otel(&all[4], &json!(""), &json!(""));
        assert_eq!((event["EventName"].as_str(), event["Attributes"].get("gen_ai.tool.name")), (Some("dockwarden.approval_given"), None));
    }

    #[test]
    fn moments_are_times_or_ages() {
        let now = at(0);
        assert_eq!(moment("7d", now).expect("an age"), now - TimeDelta::days(7));
        assert_eq!(moment("2026-01-01T00:00:00+01:00", now).expect("a time").to_rfc3339(), "2025-12-31T23:00:00+00:00");
        for bad in ["", "d", "7", "7y", "-1d", "1.5h", "yesterday", "é", "99999999999d"] {
            assert!(moment(bad, now).is_err(), "{bad:?}");
        }
        assert!(moment("4294967295w", now).is_err() || moment("4294967295w", now).is_ok_and(|t| t < now));
    }
}
