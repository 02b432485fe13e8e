//! What an agent costs and does at this moment, for whoever looks at it. Deliberately absent: what it may.

use super::{Call, CallError};
use crate::model::agent::Agent;
use crate::model::spend::{self, Spent};
use schemars::JsonSchema;
use serde::Serialize;

/// What there is to say of one agent beyond its line in the list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Doing {
    /// Month money is counted in.
    pub month: String,
    /// Its cap, US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_usd: Option<String>,
    /// A line per model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Calls at work.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<String>,
}

/// What was spent in this month, by all.
///
/// # Errors
/// The store's.
pub async fn spent(call: &Call) -> Result<Vec<Spent>, CallError> {
    Ok(call.house.store.spent(Some(&spend::month(call.now))).await?)
}

/// What one agent spent of it, US dollars; `None` when it asked no model.
pub fn usd(spent: &[Spent], agent: &Agent) -> Option<String> {
    let own: Vec<u64> = spent.iter().filter(|s| s.agent == agent.name.as_str()).map(|s| s.micro_usd).collect();
    (!own.is_empty()).then(|| spend::dollars(own.iter().sum()))
}

/// The rest of what there is to say of one agent.
///
/// # Errors
/// The store's.
pub async fn of(call: &Call, spent: &[Spent], agent: &Agent) -> Result<Doing, CallError> {
    let model = |s: &Spent| {
        let lost = if s.lost > 0 { format!(", {} lost", s.lost) } else { String::new() };
        format!("{}: {} USD, {} answers{lost}", s.model, spend::dollars(s.micro_usd), s.answers)
    };
    let calls = call.house.store.calls_at_work(agent.name.as_str()).await?;
    let line = |(at, tool, stack): (chrono::DateTime<chrono::Utc>, String, Option<String>)| {
        let stack = stack.map(|s| format!(" {s}")).unwrap_or_default();
        format!("{tool}{stack} since {}", at.format("%H:%M:%S UTC"))
    };
    Ok(Doing {
        month: spend::month(call.now),
        cap_usd: agent.limits.usd_per_month.map(|usd| spend::dollars((usd * 1e6).round() as u64)),
        models: spent.iter().filter(|s| s.agent == agent.name.as_str()).map(model).collect(),
        calls: calls.into_iter().map(line).collect(),
    })
}
