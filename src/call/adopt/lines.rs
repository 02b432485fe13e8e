//! What an operator would write: exceptions for policy.toml, the registration for dockwarden.toml. Pure.

use crate::gate::plan::Weighed;
use crate::model::config::StackSettingsEntry;
use crate::model::ids::StackName;
use crate::model::verdict::Verdict;
use crate::redact;
use serde_json::json;

/// A text as TOML writes it; JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// The exceptions an operator would write, as lines for policy.toml; what no exception can lift is a comment.
pub(super) fn policy(stack: &StackName, weighed: &[Weighed], today: chrono::NaiveDate) -> String {
    let mut out = String::new();
    for Weighed { finding, value } in weighed.iter().filter(|w| w.finding.verdict >= Verdict::Approval) {
        let place = finding.path.as_deref().unwrap_or_default();
        out.push_str(&format!(
            "# {} ({}) {}: {}\n",
            finding.rule,
            finding.verdict.as_str(),
            redact::line(place, 120),
            redact::line(&finding.because, 300)
        ));
        if value.is_empty() || finding.rule.starts_with("yaml.") {
            out.push_str("# no exception can be written for it: change the file, or the rule's level under [rules]\n\n");
            continue;
        }
        out.push_str(&format!("[[exceptions]]\nrule = {}\nstack = {}\n", quoted(&finding.rule), quoted(stack.as_str())));
        if let Some(service) = &finding.service {
            out.push_str(&format!("service = {}\n", quoted(service)));
        }
        let expires = today.checked_add_months(chrono::Months::new(6)).unwrap_or(today);
        out.push_str(&format!("value = {}\nbecause = \"\"  # say why\nexpires = \"{expires}\"\n\n", quoted(value)));
    }
    out
}

/// The registration as lines for dockwarden.toml.
pub(super) fn config(stack: &StackName, entry: &StackSettingsEntry) -> String {
    let list = |items: &[String]| items.iter().map(|i| quoted(i)).collect::<Vec<_>>().join(", ");
    let mut out = format!("[stacks.{stack}]\ndir = {}\n", quoted(&entry.dir.display().to_string()));
    for (key, items) in [("files", &entry.files), ("env_files", &entry.env_files), ("profiles", &entry.profiles)] {
        if !items.is_empty() {
            out.push_str(&format!("{key} = [{}]\n", list(items)));
        }
    }
    if let Some(environment) = &entry.environment {
        out.push_str(&format!("environment = {}\n", quoted(environment)));
    }
    out
}
