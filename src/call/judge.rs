//! The plan gate over what runs: the current release of every stack as if it were asked for again. Changes nothing, on the engine or in the
//! store. Deliberately absent: what to do about a finding, which is a person's matter.

use super::data_plan::DataChoice;
use super::{Call, CallError, Door, House, Principal, prepare};
use crate::gate::explain::call_of;
use crate::model::ids::{AgentName, StackName};
use crate::model::plan::{Action, Change};
use crate::model::verdict::{Finding, Verdict};
use serde::Serialize;
use std::sync::Arc;

/// What the policy says about a running stack.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// Stack.
    pub stack: StackName,
    /// Release that runs.
    pub release: u32,
    /// Environment it is judged in.
    pub environment: String,
    /// Strictest verdict.
    pub verdict: Verdict,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Why it could not be judged; then the verdict is `deny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where what runs differs from its release, a line each; empty when a deploy of the same release would change nothing.
///
/// # Errors
/// Those of planning.
pub async fn drift(house: &Arc<House>, stack: &StackName, release: u32) -> Result<Vec<String>, CallError> {
    let agent = AgentName::new("warden").expect("a valid name");
    let who = Principal { agent, door: Door::Loop, client: None, read_only: true, on_behalf: vec![] };
    let call = Call::new(house, &who, None, None);
    let environment = crate::call::facts::environment(&call, stack, None).await?;
    call.facts.get_or_init(|| call_of(who.agent.as_str(), "plan", false, Some(stack.clone()), Some(environment), None));
    let plan = prepare::rollback(&call, stack, Some(release), &DataChoice::CodeOnly).await?;
    let line = |c: &Change| {
        let differs = c.diff.iter().map(|d| {
            let side = |s: &Option<String>| s.clone().unwrap_or_else(|| "-".into());
            format!("{} runs {} release {}", d.path, side(&d.from), side(&d.to))
        });
        format!("{}: {}", c.service, differs.collect::<Vec<_>>().join("; "))
    };
    Ok(plan.changes.iter().filter(|c| c.action != Action::Unchanged).map(|c| crate::redact::line(&line(c), 300)).collect())
}

/// Judges the current release of every stack.
///
/// # Errors
/// The store's. A stack that cannot be judged is in the answer, with the reason.
pub async fn running(house: &Arc<House>) -> Result<Vec<Judged>, CallError> {
    let mut out = vec![];
    for record in house.store.stacks().await? {
        let Some(release) = record.current else { continue };
        let agent = AgentName::new("policy-check").expect("a valid name");
        let who = Principal { agent, door: Door::Cli, client: None, read_only: true, on_behalf: vec![] };
        let call = Call::new(house, &who, None, None);
        let environment = match house.config.settings.stacks.get(&record.name).and_then(|s| s.environment.clone()) {
            Some(registered) => registered,
            None if record.environment.is_empty() => call.environment().to_owned(),
            None => record.environment.clone(),
        };
        let facts = call_of(who.agent.as_str(), "plan", false, Some(record.name.clone()), Some(environment.clone()), None);
        call.facts.get_or_init(|| facts);
        let judged = match prepare::rollback(&call, &record.name, Some(release), &DataChoice::CodeOnly).await {
            Ok(plan) => Judged { verdict: plan.verdict, findings: plan.findings, error: None, stack: record.name, release, environment },
            Err(e) => {
                let error = Some(format!("{}: {}", e.message, e.hint));
                Judged { verdict: Verdict::Deny, findings: e.findings, error, stack: record.name, release, environment }
            }
        };
        out.push(judged);
    }
    Ok(out)
}
