//! What a person decides by, made once for every door: terminal, REST, page and the question at a client print this and nothing of their own. Deliberately
//! absent: markup, and whether a word counts (`super::decide`).

use super::asker;
use crate::model::plan::{Action, Change, DiffLine, Plan};
use crate::model::verdict::{Finding, Verdict};
use crate::redact;
use crate::store::approval::{Approval, ApprovalState};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;

/// Most of one value, bytes: what a plan's diff shows whole (4,000 characters) is shown whole. What is longer says that it was cut.
pub const LONGEST: usize = 17_000;
/// Most that `bounded` leaves, with its mark.
pub const LONGEST_MARKED: usize = LONGEST + 40;

/// An approval, every text of it final: masked, of one line, and marked where it was cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Tool and place.
    pub title: String,
    /// Who asked, until when, how many words it takes, which releases, and the digest: name and value.
    pub facts: Vec<(&'static str, String)>,
    /// What the agent says of it.
    pub reason: Option<String>,
    /// What would change, a service after the other, then what is beside them.
    pub parts: Vec<Part>,
    /// What the policy says; `None` without a plan.
    pub findings: Option<Vec<Said>>,
    /// The call's arguments, with what they meant: how it goes about it (`data`, `refresh`) is said nowhere else.
    pub call: Vec<(String, String)>,
}

/// What would change of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Service, or `beside the services`.
    pub name: String,
    /// What would be done with it; empty beside the services.
    pub action: String,
    /// Strategy and expected loss, where something is done.
    pub how: String,
    /// What would change.
    pub lines: Vec<Line>,
}

/// One changed value.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What.
    pub path: String,
    /// Before.
    pub from: Option<String>,
    /// After.
    pub to: Option<String>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// How grave.
    pub verdict: Verdict,
    /// Rule.
    pub rule: String,
    /// Path or service.
    pub place: String,
    /// Why.
    pub because: String,
}

impl Shown {
    /// Everything about an approval and its plan. The plan is that of [`super::with_plan`], the arguments those of [`super::arguments`].
    pub fn of(a: &Approval, plan: Option<&Plan>, arguments: &Value, now: DateTime<Utc>) -> Self {
        let open = matches!(a.state, ApprovalState::Pending | ApprovalState::Approved);
        let by = if a.approved_by.is_empty() { String::new() } else { format!(": {}", a.approved_by.join(", ")) };
        let left = if open { format!(" ({})", left(a.expires_at, now)) } else { String::new() };
        let mut facts = vec![
            ("Asked by", format!("agent {}", asker(a))),
            ("At", moment(a.created_at)),
            ("State", word(&a.state)),
            ("Expires", format!("{}{left}", moment(a.expires_at))),
            ("Approvals", format!("{} of {}{by}", a.approved_by.len(), a.needed)),
        ];
        facts.extend(a.denied_by.as_ref().map(|by| ("Rejected by", by.clone())));
        if let Some(plan) = plan {
            let from = plan.from_release.map_or_else(|| "nothing".to_owned(), |n| format!("release {n}"));
            let what = plan.content_of.map_or_else(String::new, |n| format!(" (content of release {n})"));
            facts.push(("Releases", format!("{from} to release {}{what}", plan.to_release)));
            let dirty = |dirty| if dirty { ", with uncommitted changes" } else { "" };
            facts.extend(plan.git.as_ref().map(|g| ("Git", format!("{}{}", g.commit, dirty(g.dirty)))));
        }
        facts.push(("Digest", a.digest.clone()));
        facts.iter_mut().for_each(|(_, value)| *value = final_text(value));
        let mut parts: Vec<Part> = plan.into_iter().flat_map(|p| &p.changes).map(part).collect();
        if let Some(plan) = plan.filter(|p| !p.stack_diff.is_empty()) {
            let lines = plan.stack_diff.iter().map(line).collect();
            parts.push(Part { name: "beside the services".into(), action: String::new(), how: String::new(), lines });
        }
        Self {
            title: final_text(&format!("{} on {}", a.tool, place(a))),
            facts,
            reason: a.reason.as_deref().map(final_text),
            parts,
            findings: plan.map(|p| p.findings.iter().map(said).collect()),
            call: arguments.as_object().into_iter().flatten().map(|(key, value)| (final_text(key), argument(value))).collect(),
        }
    }

    /// What would change, as text.
    pub fn diff(&self) -> String {
        let mut out = vec![];
        for part in &self.parts {
            out.push(match (part.action.as_str(), part.how.as_str()) {
                ("", _) => part.name.clone(),
                (action, "") => format!("{}: {action}", part.name),
                (action, how) => format!("{}: {action} {how}", part.name),
            });
            for line in &part.lines {
                out.extend(line.from.iter().map(|from| format!("  - {}: {from}", line.path)));
                out.extend(line.to.iter().map(|to| format!("  + {}: {to}", line.path)));
            }
        }
        out.join("\n")
    }

    /// All of it as text, one thing a line.
    pub fn text(&self) -> String {
        let mut out = vec![self.title.clone()];
        out.extend(self.facts.iter().map(|(name, value)| format!("{name}: {value}")));
        out.extend(self.reason.iter().map(|reason| format!("It says, unchecked: {reason}")));
        out.extend(Some(self.diff()).filter(|d| !d.is_empty()));
        for f in self.findings.iter().flatten() {
            out.push(format!("{} {} {}: {}", f.verdict.as_str(), f.rule, f.place, f.because));
        }
        if !self.call.is_empty() {
            out.push("The call".into());
            out.extend(self.call.iter().map(|(key, value)| format!("  {key}: {value}")));
        }
        out.join("\n")
    }
}

/// Tool and place of an approval's title.
pub fn place(a: &Approval) -> String {
    let stack = a.stack.as_ref().map_or("the host", |s| s.as_str());
    a.environment.as_deref().map_or_else(|| stack.to_owned(), |e| format!("{stack} in {e}"))
}

/// A moment, to the second.
pub fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// What is left until `at`, in words.
pub fn left(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (at - now).num_seconds() {
        ..=0 => "over".into(),
        s @ 1..=119 => format!("{s} s left"),
        s @ 120..=7199 => format!("{} min left", s / 60),
        s => format!("{} h left", s / 3600),
    }
}

/// The wire word of a value, as people read it.
pub fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(|s| s.replace('_', " "))).unwrap_or_default()
}

fn part(c: &Change) -> Part {
    let how = match c.action {
        Action::Unchanged => String::new(),
        _ => format!("by {}; expected loss: {}", word(&c.strategy), final_text(&c.expected_loss)),
    };
    Part { name: c.service.to_string(), action: word(&c.action), how, lines: c.diff.iter().map(line).collect() }
}

fn line(l: &DiffLine) -> Line {
    let side = |text: &Option<String>| text.as_ref().map(|t| bounded(&redact::at(&l.path, t)));
    Line { path: final_text(&l.path), from: side(&l.from), to: side(&l.to) }
}

fn said(f: &Finding) -> Said {
    let place = f.path.as_deref().or(f.service.as_deref()).unwrap_or_default();
    Said { verdict: f.verdict, rule: final_text(&f.rule), place: final_text(place), because: final_text(&f.because) }
}

fn argument(value: &Value) -> String {
    final_text(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn final_text(text: &str) -> String {
    bounded(&redact::said(text))
}

/// One line of at most [`LONGEST`] bytes. Nobody approves what they cannot know is there: a cut is marked, and an end of a line is told from a space and from a
/// backslash with an n.
fn bounded(text: &str) -> String {
    let text = redact::clean(text).trim().replace('\\', "\\\\").replace('\n', "\\n");
    let kept = redact::keep_start(&text, LONGEST);
    if kept.len() < text.len() { format!("{kept} [cut] ({} bytes)", text.len()) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::people;
    use crate::call::dispatch::tests::{COMPOSE, bench};
    use crate::model::ids::ServiceName;
    use crate::model::plan::Strategy;
    use serde_json::json;

    fn change(to: &str) -> Change {
        Change {
            service: ServiceName::new("web").expect("valid"),
            action: Action::Update,
            strategy: Strategy::Handover,
            expected_loss: "0.2 s".into(),
            diff: vec![DiffLine { path: "command[2]".into(), from: None, to: Some(to.into()) }],
        }
    }

    #[test]
    fn an_end_of_a_line_and_the_two_characters_that_stand_for_it_are_shown_apart() {
        assert_eq!([bounded("a\nb"), bounded("a\\nb"), bounded("a\\\nb")], ["a\\nb", "a\\\\nb", "a\\\\\\nb"]);
    }

    #[tokio::test]
    async fn everything_there_is_to_know_stands_there_and_a_cut_is_marked() {
        let b = bench().await;
        let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production", "reason": "trust\nme"});
        let asked = b.call("deploy", input).await.expect("asked").value;
        let id = asked["approval"]["approval_id"].as_str().expect("an id");
        let (mut approval, plan) = people::with_plan(&b.house, id).await.expect("there");
        let mut plan = plan.expect("a plan");
        (approval.needed, approval.approved_by, approval.digest) = (2, vec!["ann".into()], "d1".into());
        approval.created_at = DateTime::UNIX_EPOCH;
        approval.expires_at = DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(30);
        (plan.from_release, plan.to_release, plan.content_of) = (Some(3), 4, Some(2));
        plan.changes = vec![change("sh -c x"), Change { action: Action::Unchanged, diff: vec![], ..change("") }];
        plan.stack_diff = vec![DiffLine { path: "networks.edge.internal".into(), from: Some("true".into()), to: Some("false".into()) }];
        plan.findings = vec![Finding {
            rule: "ports.public".into(),
            verdict: Verdict::Approval,
            service: Some("web".into()),
            path: None,
            because: "80".into(),
        }];
        let now = DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(3);
        let shown = |a: &Approval, p: &Plan, arguments| Shown::of(a, Some(p), &arguments, now);
        let text = shown(&approval, &plan, json!({"data": "copy", "compose": "a: 1\nb: 2"})).text();
        let expected = "deploy on shop in production\nAsked by: agent keeper\nAt: 1970-01-01T00:00:00Z\nState: pending\n\
            Expires: 1970-01-01T00:30:00Z (27 min left)\nApprovals: 1 of 2: ann\nReleases: release 3 to release 4 (content of release 2)\nDigest: d1\n\
            It says, unchecked: trust me\nweb: update by handover; expected loss: 0.2 s\n  + command[2]: sh -c x\nweb: unchanged\n\
            beside the services\n  - networks.edge.internal: true\n  + networks.edge.internal: false\napproval ports.public web: 80\n\
            The call\n  compose: a: 1\\nb: 2\n  data: copy";
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&text.replace("trust\\nme", "trust me")), sorted(expected), "{text}");

        plan.changes = vec![change(&format!("{}; EVIL", "a ".repeat(1_500)))];
        assert!(shown(&approval, &plan, json!({})).diff().contains("; EVIL\n"));
        plan.changes = vec![change(&"b".repeat(20_000))];
        let long = shown(&approval, &plan, json!({"reason": "r".repeat(LONGEST + 5)})).text();
        assert!(long.contains(&format!("{} [cut] (20000 bytes)\n", "b".repeat(LONGEST))) && !long.contains(&"b".repeat(LONGEST + 1)));
        assert!(long.ends_with(&format!(" [cut] ({} bytes)", LONGEST + 5)), "an argument, too");
        assert!(long.lines().all(|l| l.len() < LONGEST_MARKED + 64));
    }
}
