//! One `agents/<name>.md`: front matter of a Claude Code subagent, one `dockwarden:` key, and the prompt. Strict: an unknown key, a rule
//! that can never match, an example that fails is an error with file, line and hint. Deliberately absent: reading files, and deciding.

use super::call;
use super::load::{LoadProblem, ToolFacts};
use super::{args, explain, glob, overlap, rules};
use crate::model::agent::{Agent, Limits, Rule, RuleExample, Tier};
use crate::model::ids::AgentName;
use crate::model::policy::Policy;
use crate::model::verdict::Verdict;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Front {
    name: String,
    description: String,
    /// Claude Code reads a missing list as "all tools"; here it means none.
    #[serde(default)]
    tools: Tools,
    #[serde(default)]
    model: Option<String>,
    dockwarden: Grants,
}

#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
enum Tools {
    Text(String),
    List(Vec<String>),
}

impl Default for Tools {
    fn default() -> Self {
        Self::List(vec![])
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Grants {
    tier: Tier,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    limits: Limits,
    /// Whether its plans may bring commands of hooks and backups: `allow`, `approval` or `deny`; by its tier when absent.
    #[serde(default)]
    hooks: Option<Verdict>,
    /// Agents it may hand work to; none when absent.
    #[serde(default)]
    can_delegate_to: Vec<String>,
    /// Agents it never works for and never hands work to.
    #[serde(default)]
    conflicts_with: Vec<String>,
}

/// The name a file stands for: its last component without `.md`.
pub fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".md").unwrap_or(name)
}

/// JSON Schema of the front matter.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Front).to_value()
}

/// Splits a file into front matter (with the number of its first line) and the text after it.
///
/// # Errors
/// What is missing, in words.
pub fn front_matter(text: &str) -> Result<(&str, &str), &'static str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rest = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n")).ok_or("the file does not begin with a line `---`")?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Ok((&rest[..at], rest[at + line.len()..].trim()));
        }
        at += line.len();
    }
    Err("the front matter has no closing line `---`")
}

/// Line in the file of an error in its front matter.
pub(super) fn yaml_line(e: &yaml_serde::Error) -> Option<usize> {
    e.location().map(|l| l.line() + 1)
}

/// Parses and checks one agent file against the catalogue and the policy's environments.
///
/// # Errors
/// Every problem found; a front matter that does not parse gives the first one only.
pub fn parse(file: &str, text: &str, tools: &[ToolFacts], policy: &Policy) -> Result<Agent, Vec<LoadProblem>> {
    let one = |line, problem: String, hint: &str| vec![LoadProblem { file: file.into(), line, problem, hint: hint.into() }];
    let (front, prompt) = front_matter(text)
        .map_err(|e| one(Some(1), e.into(), "an agent file is `---`, YAML front matter, `---`, and the agent's prompt"))?;
    let parsed: Front = yaml_serde::from_str(front).map_err(|e| {
        one(
            yaml_line(&e),
            e.to_string(),
            "keys: name, description, tools, model, dockwarden: {tier, rules, limits, hooks, can_delegate_to, conflicts_with}; see the shipped agents/deployer.md",
        )
    })?;
    let name = AgentName::new(parsed.name.as_str())
        .map_err(|e| one(line_of(front, "name:"), e.to_string(), "the name is the file name without .md"))?;
    let listed: Vec<String> = match parsed.tools {
        Tools::Text(t) => t.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect(),
        Tools::List(l) => l,
    };
    // Claude Code calls a tool of an MCP server by this longer name; both forms name the same tool.
    let listed = listed.into_iter().map(|t| t.strip_prefix("mcp__dockwarden__").map_or(t.clone(), str::to_owned)).collect();
    let agent = Agent {
        name,
        description: parsed.description,
        tools: listed,
        model: parsed.model,
        tier: parsed.dockwarden.tier,
        rules: parsed.dockwarden.rules,
        limits: parsed.dockwarden.limits,
        hooks: parsed.dockwarden.hooks,
        can_delegate_to: parsed.dockwarden.can_delegate_to,
        conflicts_with: parsed.dockwarden.conflicts_with,
        prompt: prompt.to_owned(),
        source: file.to_owned(),
    };
    let mut check = Check { file, front, tools, policy, agent: &agent, problems: Vec::new() };
    check.identity();
    check.limits();
    let mut seen = BTreeSet::new();
    for rule in &agent.rules {
        if !seen.insert(rule.id.as_str()) {
            check.problem(
                &rule.id,
                format!("rule id {:?} is used twice", rule.id),
                "an id names one rule in replies, audit and counters: rename one",
            );
        }
        check.terms(rule);
        check.reach(rule);
        check.args(rule);
        check.examples(rule);
    }
    check.overruled();
    if check.problems.is_empty() { Ok(agent) } else { Err(check.problems) }
}

fn line_of(front: &str, needle: &str) -> Option<usize> {
    front.lines().position(|l| !l.trim_start().starts_with('#') && l.contains(needle)).map(|i| i + 2)
}

/// Line of the last rule with that id: where two share it, the second one is the mistake.
fn line_of_rule(front: &str, id: &str) -> Option<usize> {
    let names = |l: &str| {
        let after = l.split("id:").skip(1).map(|t| t.trim_start().trim_start_matches(['"', '\'']));
        after
            .into_iter()
            .any(|t| t.strip_prefix(id).is_some_and(|t| !t.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))))
    };
    front.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with('#') && names(l)).last().map(|(i, _)| i + 2)
}

struct Check<'a> {
    file: &'a str,
    front: &'a str,
    tools: &'a [ToolFacts],
    policy: &'a Policy,
    agent: &'a Agent,
    problems: Vec<LoadProblem>,
}

impl Check<'_> {
    fn at(&mut self, line: Option<usize>, problem: String, hint: impl Into<String>) {
        self.problems.push(LoadProblem { file: self.file.into(), line, problem, hint: hint.into() });
    }

    fn problem(&mut self, rule: &str, problem: String, hint: impl Into<String>) {
        self.at(line_of_rule(self.front, rule), problem, hint);
    }

    fn known(&self, tool: &str) -> Option<bool> {
        self.tools.iter().find(|t| t.name == tool).map(|t| t.mutates)
    }

    fn unknown_tool(&self, tool: &str) -> String {
        let head = tool.split('_').next().unwrap_or(tool);
        let near: Vec<&str> = self.tools.iter().map(|t| t.name.as_str()).filter(|t| t.starts_with(head) || head.starts_with(t)).collect();
        let names = if near.is_empty() { self.tools.iter().map(|t| t.name.as_str()).collect() } else { near };
        format!("tools are: {}", names.join(", "))
    }

    fn identity(&mut self) {
        let stem = stem(self.file);
        if stem != self.agent.name.as_str() {
            let problem = format!("the file is called {stem:?} and the agent {:?}", self.agent.name.as_str());
            self.at(line_of(self.front, "name:"), problem, "name the file after the agent: agents/<name>.md");
        }
        if self.agent.hooks == Some(Verdict::Warn) {
            self.at(line_of(self.front, "hooks:"), "hooks is warn".into(), "allow, approval or deny");
        }
        if self.agent.description.trim().is_empty() {
            self.at(line_of(self.front, "description:"), "the description is empty".into(), "say what the agent is for and when to use it");
        }
        for tool in &self.agent.tools {
            if self.known(tool).is_none() {
                let hint = self.unknown_tool(tool);
                self.at(line_of(self.front, "tools:"), format!("tools names {tool:?}, which does not exist"), hint);
            }
        }
    }

    fn limits(&mut self) {
        let line = line_of(self.front, "limits:");
        if self.agent.limits.calls_per_minute == Some(0) {
            self.at(line, "calls_per_minute is 0".into(), "leave the tools away instead: an agent without tools can do nothing");
        }
        if self.agent.limits.turns == Some(0) {
            self.at(line, "turns is 0".into(), "1 or more; an agent without `model` does no tasks of its own");
        }
        if self.agent.limits.task_tries == Some(0) {
            self.at(line, "task_tries is 0".into(), "1 or more: a task is tried at least once");
        }
        for (key, value) in [("memory_mib", self.agent.limits.memory_mib), ("memory_days", self.agent.limits.memory_days)] {
            if value == Some(0) {
                self.at(line, format!("{key} is 0"), "1 or more: an agent without a memory has no memory tools");
            }
        }
        if self.agent.limits.usd_per_month.is_some_and(|v| !v.is_finite() || v < 0.0) {
            self.at(line, "usd_per_month is not an amount".into(), "a number of US dollars, 0 or more");
        }
    }

    /// What a rule says about itself.
    fn terms(&mut self, rule: &Rule) {
        let id = rule.id.as_str();
        if id.is_empty() || !id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')) {
            self.problem(id, format!("rule id {id:?} is not valid"), "lower-case letters, digits, '-' and '_'");
        }
        if id.starts_with("tier_") {
            self.problem(id, format!("rule id {id:?} could be taken for a tier in replies and the audit log"), "another id");
        }
        if rule.because.trim().is_empty() {
            self.problem(id, format!("rule {id:?} has an empty because"), "say why the rule is there: callers and reviewers read it");
        }
        if rule.effect == Verdict::Warn {
            self.problem(id, format!("rule {id:?} has effect warn"), "effects are allow, approval and deny");
        }
        if rule.effect != Verdict::Approval && (rule.approvals.is_some() || rule.ttl.is_some() || !rule.channels.is_empty()) {
            self.problem(
                id,
                format!("rule {id:?} has approvals, ttl or channels without effect: approval"),
                "take them out, or make it effect: approval",
            );
        }
        if rule.approvals == Some(0) {
            self.problem(id, format!("rule {id:?} asks for 0 approvals"), "1 or more, or effect: allow");
        }
        for (key, max) in [("max_per_hour", rule.max_per_hour), ("max_per_hour_per_stack", rule.max_per_hour_per_stack)] {
            if max == Some(0) {
                self.problem(id, format!("rule {id:?} has {key} 0"), "1 or more, or effect: deny");
            } else if max.is_some() && rule.effect == Verdict::Deny {
                self.problem(id, format!("rule {id:?} has {key} with effect: deny: nothing is ever counted"), "take it out");
            }
        }
        if let Some(ttl) = rule.ttl.as_deref().filter(|t| call::seconds(t).is_none()) {
            self.problem(id, format!("rule {id:?}: ttl {ttl:?} is not a time"), "e.g. 30m, 2h, 45s; at most 7d");
        }
        for channel in rule.channels.iter().filter(|c| !matches!(c.as_str(), "operator" | "client")) {
            self.problem(id, format!("rule {id:?}: channel {channel:?} does not exist"), "operator (default) or client");
        }
    }

    /// Whether a rule can match any call at all, and have an effect when it does.
    fn reach(&mut self, rule: &Rule) {
        let id = rule.id.as_str();
        if rule.tools.is_empty() {
            self.problem(id, format!("rule {id:?} names no tool: it can never match"), "list the tools it speaks of");
        }
        for pattern in rule.stacks.iter().chain(&rule.services) {
            if let Some(why) = glob::impossible(pattern) {
                self.problem(id, format!("rule {id:?}: {pattern:?} can never match: {why}"), "e.g. \"web-*\"");
            }
        }
        for environment in rule.environments.iter().filter(|e| !self.policy.environments.contains_key(*e)) {
            let names = self.policy.environments.keys().cloned().collect::<Vec<_>>().join(", ");
            self.problem(
                id,
                format!("rule {id:?}: environment {environment:?} does not exist: it can never match"),
                format!("environments are: {names}"),
            );
        }
        for tool in &rule.tools {
            match self.known(tool) {
                None => {
                    let hint = self.unknown_tool(tool);
                    self.problem(id, format!("rule {id:?} names the tool {tool:?}, which does not exist"), hint);
                }
                Some(_) if !self.agent.tools.contains(tool) => self.problem(
                    id,
                    format!("rule {id:?} names the tool {tool:?}, which is not in the agent's tools: it can never match"),
                    format!("add {tool} to the `tools:` line, or take it out of the rule"),
                ),
                Some(mutates) if mutates && rule.effect < Verdict::Deny => self.tier(rule, tool),
                Some(_) => {}
            }
        }
    }

    /// A grant the tier takes back everywhere is a mistake in the file, not a narrower grant.
    fn tier(&mut self, rule: &Rule, tool: &str) {
        let everywhere = || self.policy.environments.keys();
        let environments: Vec<&String> =
            if rule.environments.is_empty() { everywhere().collect() } else { rule.environments.iter().collect() };
        let capped =
            |e: &String| call::tier_cap(self.agent.tier, tool, true, Some(e.as_str()), rules::production_like(self.policy, e)).is_some();
        if !environments.is_empty() && environments.into_iter().all(capped) {
            let id = rule.id.as_str();
            let tier = call::tier_name(self.agent.tier);
            self.problem(
                id,
                format!("rule {id:?} grants {tool:?}, which {tier} never executes there: it can never match"),
                "raise the tier, or take the tool or the environment out",
            );
        }
    }

    /// Whether the conditions over arguments can hold, and say something.
    fn args(&mut self, rule: &Rule) {
        for (problem, hint) in args::check(rule, self.tools) {
            self.problem(&rule.id, format!("rule {:?}: {problem}", rule.id), hint);
        }
    }

    /// Rules that another one of the same agent always overrules.
    fn overruled(&mut self) {
        for (dead, by) in overlap::dead(&self.agent.rules) {
            let problem = format!("rule {:?} never decides anything: {:?} speaks of every such call and is stricter", dead.id, by.id);
            self.problem(&dead.id, problem, "take one of the two out, or narrow the stricter one");
        }
    }

    fn examples(&mut self, rule: &Rule) {
        for (example, expected) in rule.matches.iter().map(|e| (e, true)).chain(rule.not_match.iter().map(|e| (e, false))) {
            let word = if expected { "match" } else { "not_match" };
            let RuleExample { tool, stack, environment, service, args } = example;
            let facts = self.tools.iter().find(|t| t.name == *tool);
            if self.known(tool).is_none() || environment.as_ref().is_some_and(|e| !self.policy.environments.contains_key(e)) {
                let problem =
                    format!("rule {:?}: the {word} example of tool {tool:?} names a tool or environment that does not exist", rule.id);
                self.problem(&rule.id, problem, "an example that cannot happen proves nothing");
            } else if let Some((odd, hint)) = facts.and_then(|f| args::unknown(f, args)) {
                let problem = format!("rule {:?}: the {word} example gives {tool} an argument {odd:?} that it does not have", rule.id);
                self.problem(&rule.id, problem, hint);
            } else if explain::example_matches(rule, example) != expected {
                let shown =
                    [("tool", Some(tool)), ("stack", stack.as_ref()), ("environment", environment.as_ref()), ("service", service.as_ref())];
                let mut shown: Vec<String> = shown.into_iter().filter_map(|(k, v)| v.map(|v| format!("{k}: {v}"))).collect();
                if !args.is_empty() {
                    shown.push(format!("args: {}", serde_json::Value::Object(args.clone())));
                }
                let does = if expected { "does not match" } else { "matches" };
                let problem = format!("rule {:?} {does} its {word} example {{{}}}", rule.id, shown.join(", "));
                self.problem(&rule.id, problem, "correct the rule or the example");
            }
        }
    }
}

#[cfg(test)]
mod tests;
