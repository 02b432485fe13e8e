//! `policy.toml`: from text to a checked `Policy`. Closed: an unknown key, a rule nobody knows, or a level that would open the host is an
//! error with its line. Deliberately absent: reading the file, and deciding anything by it.

use super::load::{HOUSE_AGENTS, LoadProblem};
use super::rules;
use crate::model::ids::{AgentName, ServiceName, StackName};
use crate::model::policy::{Policy, RuleLevel};
use std::collections::BTreeMap;

/// Parses and checks a policy. `file` is only named in problems.
///
/// # Errors
/// Every problem found; a text that does not parse gives the first one only.
pub fn parse(file: &str, text: &str) -> Result<Policy, Vec<LoadProblem>> {
    let policy: Policy = toml::from_str(text).map_err(|e| {
        vec![LoadProblem {
            file: file.into(),
            line: e.span().map(|s| line_at(text, s.start)),
            problem: e.message().trim().replace('\n', "; "),
            hint: "the keys and their meaning are listed in the shipped agents/policy.toml".into(),
        }]
    })?;
    let mut check = Check { file, text, problems: Vec::new() };
    check.environments(&policy);
    check.levels("rules", &policy.rules);
    check.paths(&policy);
    check.lists(&policy);
    check.exceptions(&policy);
    check.peers(&policy);
    if policy.taint.window_s == 0 {
        check.problem("window_s", "taint.window_s is 0", "seconds, e.g. 1800; level = \"off\" switches it off");
    }
    if check.problems.is_empty() { Ok(policy) } else { Err(check.problems) }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}

struct Check<'a> {
    file: &'a str,
    text: &'a str,
    problems: Vec<LoadProblem>,
}

impl Check<'_> {
    /// Adds a problem at the first line outside of comments that holds `needle`.
    fn problem(&mut self, needle: &str, problem: impl Into<String>, hint: impl Into<String>) {
        let line = self.text.lines().position(|l| !l.trim_start().starts_with('#') && l.contains(needle)).map(|i| i + 1);
        self.problems.push(LoadProblem { file: self.file.into(), line, problem: problem.into(), hint: hint.into() });
    }

    fn environments(&mut self, policy: &Policy) {
        if !policy.environments.contains_key(&policy.default_environment) {
            let names = policy.environments.keys().cloned().collect::<Vec<_>>().join(", ");
            self.problem(
                "default_environment",
                format!("default_environment {:?} is not an environment of this policy", policy.default_environment),
                format!("environments are: {names}"),
            );
        }
        for (name, environment) in &policy.environments {
            if StackName::new(name.as_str()).is_err() {
                self.problem(name, format!("environment name {name:?} is not valid"), "lower-case letters, digits, '-' and '_'");
            }
            if matches!(environment.mutations, Some(RuleLevel::Off | RuleLevel::Warn)) {
                self.problem("mutations", format!("environments.{name}.mutations has no such level"), "allow, approval or deny");
            }
            if environment.changes_per_hour == Some(0) {
                self.problem(
                    "changes_per_hour",
                    format!("environments.{name}.changes_per_hour is 0"),
                    "1 or more, or mutations = \"deny\"",
                );
            }
            self.levels(&format!("environments.{name}.rules"), &environment.rules);
        }
    }

    fn levels(&mut self, at: &str, levels: &BTreeMap<String, RuleLevel>) {
        for (id, level) in levels {
            match rules::find(id) {
                None => self.problem(id, format!("{at} names the rule {id:?}, which does not exist"), nearest(id)),
                Some(r) if r.host_root && *level != RuleLevel::Deny => self.problem(
                    id,
                    format!("{at}: {id:?} cannot be weakened: {}", r.title),
                    "write an [[exceptions]] entry for the one value that is meant, with a reason and an end date",
                ),
                Some(_) => {}
            }
        }
    }

    fn paths(&mut self, policy: &Policy) {
        for (key, roots) in [("bind_roots_allow", &policy.bind_roots_allow), ("bind_roots_approval", &policy.bind_roots_approval)] {
            for root in roots {
                if !root.starts_with('/') || super::plan::normalise(root) != *root {
                    self.problem(
                        root,
                        format!("{key}: {root:?} is not a plain absolute path"),
                        "write it without '~', '.', '..', '//' or a '/' at the end",
                    );
                } else if let Some(why) = super::plan::never_a_root(root) {
                    self.problem(root, format!("{key}: {root:?} {why}"), "name the directory that holds the data, nothing above it");
                }
            }
        }
    }

    fn lists(&mut self, policy: &Policy) {
        for registry in &policy.allowed_registries {
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
            if registry.is_empty() || !registry.chars().all(fits) || registry.ends_with('/') || registry.contains("//") {
                self.problem(
                    registry,
                    format!("allowed_registries: {registry:?} is neither a registry nor a namespace"),
                    "e.g. \"docker.io/library\", \"ghcr.io/acme\", \"local\"; wildcards are not known",
                );
            }
        }
        for network in &policy.networks_granted {
            if matches!(network.as_str(), "host" | "none" | "bridge" | "") {
                self.problem(
                    "networks_granted",
                    format!("networks_granted: {network:?} cannot be granted"),
                    "name a network an operator made",
                );
            }
        }
        for runtime in policy.runtimes_allow.iter().filter(|r| policy.runtimes_approval.contains(r)) {
            self.problem(
                "runtimes_approval",
                format!("runtime {runtime:?} is both allowed and under approval"),
                "keep it in one of the two lists",
            );
        }
    }

    fn exceptions(&mut self, policy: &Policy) {
        for (i, e) in policy.exceptions.iter().enumerate() {
            let at = format!("exceptions[{i}]");
            match rules::find(&e.rule) {
                None => self.problem(&e.rule, format!("{at} names the rule {:?}, which does not exist", e.rule), nearest(&e.rule)),
                Some(r) if r.id.starts_with("yaml.") => {
                    self.problem(&e.rule, format!("{at}: {:?} cannot be excepted", e.rule), "mend the file: it has no single meaning");
                }
                Some(_) => {}
            }
            if StackName::new(e.stack.as_str()).is_err() || e.service.as_deref().is_some_and(|s| ServiceName::new(s).is_err()) {
                self.problem(
                    &e.stack,
                    format!("{at}: stack or service is not a valid name"),
                    "an exception is for one stack and one service; no wildcards",
                );
            }
            if e.value.is_empty() || e.because.trim().is_empty() {
                self.problem(&e.rule, format!("{at}: value or because is empty"), "say which exact value is meant and why");
            }
        }
    }

    fn peers(&mut self, policy: &Policy) {
        for (uid, agents) in &policy.peers {
            if uid.parse::<u32>().is_err() {
                self.problem(uid, format!("peers: {uid:?} is not a user id"), "a number, e.g. \"1000\"");
            }
            for agent in agents.iter().filter(|a| *a != "*") {
                if HOUSE_AGENTS.contains(&agent.as_str()) {
                    self.problem(
                        uid,
                        format!("peers.{uid} names {agent:?}, the supervisor's own agent"),
                        "nobody may act as it; take it out of the list",
                    );
                } else if AgentName::new(agent.as_str()).is_err() {
                    self.problem(
                        uid,
                        format!("peers.{uid}: {agent:?} is not an agent's name"),
                        "the file name in agents/ without .md, or \"*\"",
                    );
                }
            }
        }
    }
}

/// A hint with the rule ids that look like `id`.
fn nearest(id: &str) -> String {
    let head = id.split('.').next().unwrap_or(id);
    let near: Vec<&str> = rules::RULES.iter().map(|r| r.id).filter(|r| r.split('.').next() == Some(head)).collect();
    if near.is_empty() { "`dockwarden policy explain` lists the rules".into() } else { format!("rules near it: {}", near.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        parse("policy.toml", text).err().unwrap_or_default().iter().map(|p| format!("{}: {}", p.line.unwrap_or(0), p.problem)).collect()
    }

    #[test]
    fn an_empty_policy_is_the_default_one() {
        assert_eq!(parse("policy.toml", ""), Ok(Policy::default()));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let found = problems("# top\ndefault_environment = \"development\"\nallow_everything = true\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("3: unknown field `allow_everything`"), "{found:?}");
    }

    #[test]
    fn text_that_is_no_toml_is_an_error_with_its_line() {
        let found = problems("\n\n[rules\n");
        assert!(found.len() == 1 && found[0].starts_with("3: "), "{found:?}");
    }

    #[test]
    fn what_would_open_the_host_is_refused() {
        assert_eq!(
            problems("[rules]\nprivileged = \"warn\"\n\"bind.nowhere\" = \"off\"\n"),
            [
                "3: rules names the rule \"bind.nowhere\", which does not exist",
                "2: rules: \"privileged\" cannot be weakened: privileged container"
            ]
        );
        assert_eq!(problems("bind_roots_allow = [\"/\"]"), ["1: bind_roots_allow: \"/\" holds the whole host"]);
        assert_eq!(problems("bind_roots_allow = [\"/srv/../etc\"]"), ["1: bind_roots_allow: \"/srv/../etc\" is not a plain absolute path"]);
        assert_eq!(problems("networks_granted = [\"host\"]"), ["1: networks_granted: \"host\" cannot be granted"]);
        assert_eq!(problems("[peers]\n1000 = [\"warden\"]"), ["2: peers.1000 names \"warden\", the supervisor's own agent"]);
    }

    #[test]
    fn environments_and_exceptions_are_checked() {
        assert_eq!(problems("default_environment = \"qa\""), ["1: default_environment \"qa\" is not an environment of this policy"]);
        assert_eq!(
            problems("[environments.development]\nmutations = \"off\""),
            ["2: environments.development.mutations has no such level"]
        );
        let exception =
            "[[exceptions]]\nrule = \"bind.outside\"\nstack = \"Shop*\"\nvalue = \"/etc/ssl\"\nbecause = \" \"\nexpires = \"2027-01-01\"\n";
        assert_eq!(
            problems(exception),
            ["3: exceptions[0]: stack or service is not a valid name", "2: exceptions[0]: value or because is empty"]
        );
    }
}
