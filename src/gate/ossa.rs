//! From a manifest of the Open Standard for Software Agents to one of ours: the fields this house has a meaning for, in both dialects that are in use. What
//! was not understood is told, never dropped in silence; nothing grants more than its tier's defaults. Deliberately absent: reading and writing files.

use super::manifest::{front_matter, parse};
use super::{LoadProblem, ToolFacts, call, rules};
use crate::model::agent::Tier;
use crate::model::ids::AgentName;
use crate::model::policy::Policy;
use crate::redact;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Largest manifest that is read, bytes.
pub const MOST_BYTES: usize = 256 * 1024;
/// Days a daily cost is counted for: our limit is a month's.
const DAYS: f64 = 30.0;

/// A manifest as it would be written.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Imported {
    /// Agent.
    pub name: String,
    /// Text of `agents/<name>.md`.
    pub text: String,
    /// Understood, and what became of it, where that is not the same.
    pub noted: Vec<String>,
    /// Fields without a meaning here, by path.
    pub not_understood: Vec<String>,
}

/// What the fields say, gathered on the way through.
struct Reader<'a> {
    file: &'a str,
    noted: Vec<String>,
    unknown: Vec<String>,
    comments: Vec<String>,
}

/// Turns a manifest into one of ours, checked like every agent file. `agents` are those it may name.
///
/// # Errors
/// What makes it no agent at all, or an agent that would not load; with what to do.
pub fn import(
    file: &str,
    text: &str,
    tools: &[ToolFacts],
    policy: &Policy,
    agents: &BTreeSet<String>,
) -> Result<Imported, Vec<LoadProblem>> {
    let fault = |problem: String, hint: &str| vec![LoadProblem { file: file.into(), line: None, problem, hint: hint.into() }];
    if text.len() > MOST_BYTES {
        return Err(fault(format!("the file has {} bytes, at most {MOST_BYTES} are read", text.len()), "is it a manifest?"));
    }
    let root: Value = yaml_serde::from_str(text).map_err(|e| {
        let line = e.location().map(|l| l.line());
        vec![LoadProblem { file: file.into(), line, problem: e.to_string(), hint: "it must be one YAML document".into() }]
    })?;
    let version = root.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if !version.starts_with("ossa/") {
        return Err(fault(format!("apiVersion is {version:?}"), "a manifest of an OSSA agent has apiVersion: ossa/v..."));
    }
    if let Some(kind) = root.get("kind").filter(|k| *k != "Agent") {
        return Err(fault(format!("kind is {kind}"), "only kind: Agent can be imported"));
    }
    let name = root.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let name = AgentName::new(name)
        .map_err(|e| fault(format!("metadata.name: {e}"), "write a name of that form into the file, then import it again"))?;
    if super::load::HOUSE_AGENTS.contains(&name.as_str()) {
        return Err(fault(format!("metadata.name: {name} is the supervisor's own agent"), "call it something else"));
    }
    let empty = Map::new();
    let spec = root.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let mut reader = Reader { file, noted: vec![], unknown: vec![], comments: vec![] };
    let role = spec.get("role").and_then(Value::as_str).map(|r| redact::clean(r).trim().to_owned()).filter(|r| !r.is_empty());
    let role =
        role.ok_or_else(|| fault("spec.role is missing or no text".into(), "it is the agent's prompt: write what the agent is to do"))?;
    let tier = tier(spec).map_err(|(problem, hint)| fault(problem, hint))?;
    let description =
        root.pointer("/metadata/description").and_then(Value::as_str).map(|d| redact::line(d, 1000)).filter(|d| !d.is_empty());
    let description = description.unwrap_or_else(|| {
        reader.noted.push("metadata.description is missing: the first line of spec.role stands for it".into());
        redact::line(role.lines().next().unwrap_or_default(), 300)
    });
    let hands = [reader.names(spec, "can_delegate_to", name.as_str(), agents), reader.names(spec, "conflicts_with", name.as_str(), agents)];
    let prohibited = reader.prohibited(spec, tools);
    let limit = reader.cost(spec);
    reader.runtime(spec);
    reader.rest(&root, "", KNOWN);
    let front = Front { name: name.as_str(), description: &description, tier, prohibited: &prohibited, hands: &hands, limit };
    let text = front.write(&reader, tools, policy, &role);
    // What is written must load; if it did not, the import is at fault and says so instead of leaving a broken file.
    parse(&format!("agents/{name}.md"), &text, tools, policy).map_err(|all| -> Vec<LoadProblem> {
        let of = |p: LoadProblem| LoadProblem {
            file: file.into(),
            line: None,
            problem: format!("what would be written does not load: {}", p.problem),
            hint: p.hint,
        };
        all.into_iter().map(of).collect()
    })?;
    front_matter(&text).map_err(|e| fault(format!("the result has {e}"), "report this"))?;
    Ok(Imported { name: name.to_string(), text, noted: reader.noted, not_understood: reader.unknown })
}

/// `spec.access.tier`, or the older `spec.access_tier`.
fn tier(spec: &Map<String, Value>) -> Result<Tier, (String, &'static str)> {
    const HINT: &str = "one of tier_1_read, tier_2_write_limited, tier_3_write_elevated, tier_4_policy";
    let new = spec.get("access").and_then(|a| a.get("tier"));
    let given = match (new, spec.get("access_tier")) {
        (Some(a), Some(b)) if a != b => {
            return Err((format!("spec.access.tier is {a} and spec.access_tier is {b}"), "keep one of the two"));
        }
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return Err(("spec.access.tier is missing".into(), HINT)),
    };
    serde_json::from_value(given.clone()).map_err(|_| (format!("the tier {given} does not exist"), HINT))
}

/// Paths with a meaning, `.`-separated; everything below them is read, too.
const KNOWN: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.description",
    "spec.role",
    "spec.access.tier",
    "spec.access_tier",
    "spec.separation.conflicts_with",
    "spec.separation.can_delegate_to",
    "spec.separation.prohibited_actions",
    "spec.constraints.cost",
    "spec.constraints.resources",
    "spec.deployment.scaling.min_replicas",
    "spec.deployment.resources.cpu",
    "spec.deployment.resources.memory",
    "spec.monitoring.health_check",
];

impl Reader<'_> {
    fn separation<'a>(&mut self, spec: &'a Map<String, Value>, key: &str) -> Vec<&'a str> {
        let Some(given) = spec.get("separation").and_then(|s| s.get(key)) else { return vec![] };
        let Some(list) = given.as_array() else {
            self.unknown.push(format!("spec.separation.{key}: not a list"));
            return vec![];
        };
        for odd in list.iter().filter(|v| !v.is_string()) {
            self.unknown.push(format!("spec.separation.{key}: {}", redact::line(&odd.to_string(), 80)));
        }
        list.iter().filter_map(Value::as_str).collect()
    }

    /// Agents of this home; the others cannot be named before they exist.
    fn names(&mut self, spec: &Map<String, Value>, key: &str, own: &str, agents: &BTreeSet<String>) -> Vec<String> {
        let mut out: Vec<String> = vec![];
        for name in self.separation(spec, key) {
            let house = key == "can_delegate_to" && super::load::HOUSE_AGENTS.contains(&name);
            if name == own || out.iter().any(|n| n == name) {
                continue;
            }
            if agents.contains(name) && !house {
                out.push(name.to_owned());
            } else {
                let why = if house {
                    "the supervisor's own agent takes no work"
                } else {
                    "no agent of this home; add it to the file when there is one"
                };
                self.unknown.push(format!("spec.separation.{key}: {} ({why})", redact::line(name, 80)));
            }
        }
        out
    }

    /// Tools of ours among the prohibited actions.
    fn prohibited(&mut self, spec: &Map<String, Value>, tools: &[ToolFacts]) -> Vec<String> {
        let mut out: Vec<String> = vec![];
        for action in self.separation(spec, "prohibited_actions") {
            let tool = action.trim().to_ascii_lowercase().replace(['-', ' '], "_");
            match tools.iter().find(|t| t.name == tool) {
                Some(t) if !out.contains(&t.name) => out.push(t.name.clone()),
                Some(_) => {}
                None => self.unknown.push(format!("spec.separation.prohibited_actions: {} (no tool here)", redact::line(action, 80))),
            }
        }
        out
    }

    /// A month's cost in US dollars.
    fn cost(&mut self, spec: &Map<String, Value>) -> Option<f64> {
        let cost = spec.get("constraints")?.get("cost")?;
        let Some(cost) = cost.as_object() else {
            self.unknown.push("spec.constraints.cost: not a map".into());
            return None;
        };
        let dollars = cost.get("currency").and_then(Value::as_str).is_none_or(|c| c.eq_ignore_ascii_case("usd"));
        let mut found: Option<f64> = None;
        for (key, value) in cost {
            let amount = value.as_f64().filter(|v| v.is_finite() && *v >= 0.0 && dollars);
            let monthly = match (key.as_str(), amount) {
                ("currency", _) if dollars => continue,
                ("maxCostPerMonth" | "max_cost_per_month" | "usd_per_month", Some(v)) => v,
                ("maxCostPerDay" | "max_cost_per_day", Some(v)) => {
                    let month = v * DAYS;
                    self.noted.push(format!("spec.constraints.cost.{key} {v} became usd_per_month {month}: there is no limit a day"));
                    month
                }
                _ => {
                    self.unknown.push(format!("spec.constraints.cost.{key}"));
                    continue;
                }
            };
            found = Some(found.map_or(monthly, |f| f.min(monthly)));
        }
        found
    }

    /// What asks for a container of the agent's own: it has none here, and the file remembers it.
    fn runtime(&mut self, spec: &Map<String, Value>) {
        let at = |path: &[&str]| path.iter().try_fold(spec.get(path[0])?, |v, p| if *p == path[0] { Some(v) } else { v.get(p) }).cloned();
        for path in [
            &["constraints", "resources"][..],
            &["deployment", "scaling", "min_replicas"],
            &["deployment", "resources", "cpu"],
            &["deployment", "resources", "memory"],
            &["monitoring", "health_check"],
        ] {
            if let Some(value) = at(path).filter(|v| !v.is_null()) {
                let path = path.join(".");
                self.comments.push(format!("spec.{path}: {}", redact::line(&value.to_string(), 200)));
                self.noted.push(format!(
                    "spec.{path} is kept as a comment: agents run in the supervisor, nothing is reserved or probed for them"
                ));
            }
        }
    }

    /// Every path no one has read.
    fn rest(&mut self, value: &Value, at: &str, known: &[&str]) {
        let Some(map) = value.as_object() else { return };
        for (key, child) in map {
            let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            if known.contains(&path.as_str()) {
                continue;
            }
            let leads_on = known.iter().any(|k| k.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
            if leads_on && child.is_object() {
                self.rest(child, &path, known);
            } else {
                self.unknown.push(redact::line(&path, 200));
            }
        }
    }
}

struct Front<'a> {
    name: &'a str,
    description: &'a str,
    tier: Tier,
    prohibited: &'a [String],
    hands: &'a [Vec<String>; 2],
    limit: Option<f64>,
}

impl Front<'_> {
    /// The file. JSON texts and lists are YAML, too.
    fn write(&self, reader: &Reader<'_>, tools: &[ToolFacts], policy: &Policy, role: &str) -> String {
        let rules = self.rules(reader.file, tools, policy);
        // Reads need no rule. What the tier could never do is not offered; what is prohibited is named, so that its rule speaks of something.
        let granted = |name: &str| rules.iter().any(|r| r["tools"].as_array().is_some_and(|t| t.iter().any(|t| t == name)));
        let own = |name: &str| name == "memory_write" && self.tier != Tier::Tier1Read;
        let listed: Vec<&str> = tools.iter().filter(|t| !t.mutates || granted(&t.name) || own(&t.name)).map(|t| t.name.as_str()).collect();
        let mut out = format!("---\nname: {}\ndescription: {}\ntools: {}\n", self.name, json!(self.description), listed.join(", "));
        for comment in &reader.comments {
            out.push_str(&format!("# {comment}\n"));
        }
        out.push_str(&format!("dockwarden:\n  tier: {}\n", call::tier_name(self.tier)));
        if !rules.is_empty() {
            out.push_str("  rules:\n");
            rules.iter().for_each(|r| out.push_str(&format!("    - {r}\n")));
        }
        for (key, list) in ["can_delegate_to", "conflicts_with"].iter().zip(self.hands).filter(|(_, l)| !l.is_empty()) {
            out.push_str(&format!("  {key}: {}\n", json!(list)));
        }
        if let Some(usd) = self.limit {
            out.push_str(&format!("  limits: {{usd_per_month: {usd}}}\n"));
        }
        format!("{out}---\n{role}\n")
    }

    /// The default grants of the tier, narrowed by what is prohibited.
    fn rules(&self, file: &str, tools: &[ToolFacts], policy: &Policy) -> Vec<Value> {
        let (strict, free): (Vec<&String>, Vec<&String>) = policy.environments.keys().partition(|e| rules::production_like(policy, e));
        let pick = |names: &[&str]| -> Vec<String> {
            let exist = names.iter().filter(|n| tools.iter().any(|t| t.name == **n && t.mutates));
            exist.map(|n| (*n).to_owned()).filter(|n| !self.prohibited.contains(n)).collect()
        };
        let changes = pick(&["deploy", "scale", "restart", "rollback", "stop", "cancel"]);
        let copies = pick(&["backup", "verify_backup"]);
        let rule = |id: &str, effect: &str, tools: &[String], environments: &[&String], because: &str| {
            let mut rule = json!({"id": id, "effect": effect, "tools": tools, "because": because});
            if !environments.is_empty() {
                rule["environments"] = json!(environments);
            }
            rule
        };
        let writes = matches!(self.tier, Tier::Tier2WriteLimited | Tier::Tier3WriteElevated);
        let mut out = vec![];
        if writes && !copies.is_empty() {
            out.push(rule("backups", "allow", &copies, &[], "a backup only adds a copy"));
        }
        if writes && !changes.is_empty() && !free.is_empty() {
            out.push(rule("try-out", "allow", &changes, &free, "the default of its tier: free where no users are"));
        }
        if self.tier == Tier::Tier3WriteElevated && !changes.is_empty() && !strict.is_empty() {
            out.push(rule("production", "approval", &changes, &strict, "the default of its tier: a person reviews changes here"));
        }
        for tool in self.prohibited {
            let because = format!("prohibited_actions of {}", redact::line(file.rsplit('/').next().unwrap_or(file), 100));
            out.push(rule(&format!("no-{}", tool.replace('_', "-")), "deny", std::slice::from_ref(tool), &[], &because));
        }
        out
    }
}

#[cfg(test)]
mod tests;
