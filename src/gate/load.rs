//! From the texts of `policy.toml` and `agents/*.md` to one `Rulebook`: all of it or, with every problem named, none of it. Deliberately
//! absent: reading files and deciding when to reload; a caller that gets problems keeps the book it has.

use super::{Rulebook, delegation, manifest, policy};
use crate::model::agent::Agent;
use crate::model::ids::AgentName;
use crate::model::policy::Policy;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Agents of the house itself: their rights come from their manifest, and no peer, token or launch flag may act as them.
pub const HOUSE_AGENTS: &[&str] = &["warden"];

/// A tool of the catalogue as the gate needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolFacts {
    /// Name.
    pub name: String,
    /// Whether it changes the world.
    pub mutates: bool,
    /// JSON Schema of its arguments, nothing by reference.
    pub input: serde_json::Value,
}

/// Something wrong in a file, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{file}{}: {problem} ({hint})", line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct LoadProblem {
    /// File name as given.
    pub file: String,
    /// Line, from 1, where one is known.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

impl Rulebook {
    /// Builds the book from file texts: `agents` as (file name, text), `policy` as the text of `policy.toml`, `tools` as the catalogue.
    ///
    /// # Errors
    /// Every problem of every file, in file order. Nothing is loaded when there is one.
    pub fn build(agents: Vec<(String, String)>, policy: &str, tools: &[ToolFacts]) -> Result<Self, Vec<LoadProblem>> {
        let mut problems = Vec::new();
        let policy = policy::parse("policy.toml", policy).unwrap_or_else(|p| {
            problems.extend(p);
            Policy::default()
        });
        let mut loaded: BTreeMap<String, Arc<Agent>> = BTreeMap::new();
        let mut failed: BTreeSet<String> = BTreeSet::new();
        for (file, text) in &agents {
            match manifest::parse(file, text, tools, &policy) {
                Ok(agent) => {
                    let name = agent.name.to_string();
                    if let Some(first) = loaded.insert(name.clone(), Arc::new(agent)) {
                        problems.push(LoadProblem {
                            file: file.clone(),
                            line: None,
                            problem: format!("agent {name:?} is already defined by {}", first.source),
                            hint: "keep one file per agent".into(),
                        });
                    }
                }
                Err(p) => {
                    failed.insert(manifest::stem(file).to_owned());
                    problems.extend(p);
                }
            }
        }
        for (uid, names) in &policy.peers {
            for name in names.iter().filter(|n| *n != "*" && !loaded.contains_key(*n) && !failed.contains(*n)) {
                problems.push(LoadProblem {
                    file: "policy.toml".into(),
                    line: None,
                    problem: format!("peers.{uid} names the agent {name:?}, which does not exist"),
                    hint: format!("agents are: {}", loaded.keys().cloned().collect::<Vec<_>>().join(", ")),
                });
            }
        }
        let line_of = |file: &str, key: &str| {
            let text = agents.iter().find(|(f, _)| f == file).map(|(_, t)| t.as_str())?;
            text.lines().position(|l| l.contains(key)).map(|i| i + 1)
        };
        problems.extend(delegation::check(&loaded, &failed, &line_of));
        if !problems.is_empty() {
            return Err(problems);
        }
        let version = version(&policy, loaded.values().map(AsRef::as_ref));
        Ok(Self { agents: loaded, policy: Arc::new(policy), version })
    }

    /// Version of what decides about one agent: the policy and that agent's grants. An approval bound to it outlives a change of
    /// somebody else's manifest. `None` for an unknown agent.
    pub fn version_for(&self, agent: &str) -> Option<String> {
        self.agents.get(agent).map(|a| version(&self.policy, [a.as_ref()]))
    }

    /// The same for work done on behalf of others: what decides about each of them is part of it, and so is the order of hands.
    pub fn version_for_chain(&self, agent: &str, on_behalf: &[AgentName]) -> Option<String> {
        let mut all = vec![self.agents.get(agent)?.as_ref()];
        for name in on_behalf {
            all.push(self.agents.get(name.as_str())?.as_ref());
        }
        Some(version(&self.policy, all))
    }
}

/// SHA-256 over the policy and the grants of `agents` as canonical JSON: a comment or a new wording of a prompt makes no approval stale.
fn version<'a>(policy: &Policy, agents: impl IntoIterator<Item = &'a Agent>) -> String {
    let mut hash = Sha256::new();
    let mut field = |value: serde_json::Value| {
        let text = value.to_string();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    field(serde_json::to_value(policy).expect("a policy has string keys only"));
    for a in agents {
        let hands = [&a.can_delegate_to, &a.conflicts_with];
        field(
            serde_json::json!({"name": a.name, "tools": a.tools, "tier": a.tier, "rules": a.rules, "limits": a.limits, "hooks": a.hooks, "hands": hands}),
        );
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
