//! An agent manifest as loaded: identity, grants, limits, prompt. `gate::manifest` parses and checks the files.

use super::ids::AgentName;
use super::verdict::Verdict;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Tier: the widest default grants an agent may have; the file narrows, a label never widens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Tier {
    /// Reads.
    #[serde(rename = "tier_1_read")]
    Tier1Read,
    /// Plan, backup, own memory, staging.
    #[serde(rename = "tier_2_write_limited")]
    Tier2WriteLimited,
    /// With approval in production.
    #[serde(rename = "tier_3_write_elevated")]
    Tier3WriteElevated,
    /// Writes policy, never executes.
    #[serde(rename = "tier_4_policy")]
    Tier4Policy,
}

/// A loaded agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Name.
    pub name: AgentName,
    /// What it is for.
    pub description: String,
    /// Tools it may name at all; empty = none.
    pub tools: Vec<String>,
    /// `model` of the front matter.
    pub model: Option<String>,
    /// Tier.
    pub tier: Tier,
    /// Rules in file order.
    pub rules: Vec<Rule>,
    /// Limits.
    pub limits: Limits,
    /// Whether its plans may bring commands of hooks and backups: `allow`, `approval` or `deny`; by its tier when absent.
    #[serde(default)]
    pub hooks: Option<Verdict>,
    /// Agents it may hand work to.
    #[serde(default)]
    pub can_delegate_to: Vec<String>,
    /// Agents it never works for and never hands work to.
    #[serde(default)]
    pub conflicts_with: Vec<String>,
    /// Prompt: the file's text after the front matter.
    pub prompt: String,
    /// File it came from, for messages.
    pub source: String,
}

/// One rule of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Id, unique within the agent.
    pub id: String,
    /// What it says: `allow`, `approval` or `deny`.
    pub effect: Verdict,
    /// Tools it speaks of.
    pub tools: Vec<String>,
    /// Stack globs; empty = any stack and none.
    #[serde(default)]
    pub stacks: Vec<String>,
    /// Environments; empty = any.
    #[serde(default)]
    pub environments: Vec<String>,
    /// Service globs; empty = any.
    #[serde(default)]
    pub services: Vec<String>,
    /// Conditions over the call's arguments, by dotted path or JSON pointer; all must hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, ArgCondition>,
    /// Calls per hour by this agent under this rule.
    #[serde(default)]
    pub max_per_hour: Option<u32>,
    /// Calls per hour by this agent under this rule on any one stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_hour_per_stack: Option<u32>,
    /// Number of approvals for `effect: approval`; 1 by default.
    #[serde(default)]
    pub approvals: Option<u32>,
    /// Life of an approval, e.g. `30m`.
    #[serde(default)]
    pub ttl: Option<String>,
    /// Ways an approval may come: `operator` (default), `client`.
    #[serde(default)]
    pub channels: Vec<String>,
    /// Why the rule is there; said in replies.
    pub because: String,
    /// Calls that must match.
    #[serde(default, rename = "match")]
    pub matches: Vec<RuleExample>,
    /// Calls that must not match.
    #[serde(default)]
    pub not_match: Vec<RuleExample>,
}

/// A condition over one argument of a call: exactly one of `equals`, `one_of`, `glob`, `min` and `max`, `absent`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArgCondition {
    /// This value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// One of these values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<Value>>,
    /// Text of this form: `*` any text, `?` one character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub glob: Option<String>,
    /// A number, at least this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// A number, at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Left out (`true`), or given (`false`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<bool>,
}

/// An example call of a rule, checked when the file is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleExample {
    /// Tool.
    pub tool: String,
    /// Stack.
    #[serde(default)]
    pub stack: Option<String>,
    /// Environment.
    #[serde(default)]
    pub environment: Option<String>,
    /// Service.
    #[serde(default)]
    pub service: Option<String>,
    /// Arguments.
    #[serde(default)]
    pub args: Map<String, Value>,
}

/// Limits of an agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Calls per minute over all tools.
    pub calls_per_minute: Option<u32>,
    /// US dollars per month for LLM calls.
    pub usd_per_month: Option<f64>,
    /// Answers of its model in one task; 40 when not said.
    pub turns: Option<u32>,
    /// Tries of a task whose skill says nothing of them.
    pub task_tries: Option<u32>,
    /// MiB of its memory that stay in its database; what `[memory]` says when absent.
    pub memory_mib: Option<u32>,
    /// Days its history stays there; what `[memory]` says when absent.
    pub memory_days: Option<u32>,
}
