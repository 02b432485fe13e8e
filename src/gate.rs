//! The gate: decides each call per agent, tool, stack and environment, and each plan by what would really be sent to the engine.
//! Total, pure, default deny; the strictest verdict wins and every matching rule is returned. Deliberately absent: I/O, clocks, stores.

pub mod approvers;
pub mod args;
pub mod call;
pub mod delegation;
pub mod explain;
pub mod glob;
pub mod hooks;
pub mod load;
pub mod manifest;
pub mod ossa;
mod overlap;
pub mod plan;
pub mod policy;
pub mod prompt;
pub mod reach;
pub mod request;
pub mod rules;
pub mod runbook;

pub use load::{LoadProblem, ToolFacts};

use crate::model::agent::Agent;
use crate::model::ids::{CallId, ServiceName, StackName};
use crate::model::verdict::{Finding, Verdict};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything the gate decides by: agents and policy, loaded together, replaced together.
#[derive(Debug, Clone)]
pub struct Rulebook {
    /// Agents by name.
    pub agents: BTreeMap<String, Arc<Agent>>,
    /// Policy.
    pub policy: Arc<crate::model::policy::Policy>,
    /// Hash over policy.toml and every agent's grants: part of each digest.
    pub version: String,
}

/// A call as the call gate sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct CallFacts {
    /// Who calls.
    pub agent: String,
    /// Tool, a name of the catalogue.
    pub tool: String,
    /// Whether the call changes the world.
    pub mutates: bool,
    /// The tool changes the world and this call only asks what it would do (`prune` with `dry_run`): judged as a read, and no permit comes of it.
    pub preview: bool,
    /// Stack, when the call names one.
    pub stack: Option<StackName>,
    /// Environment of that stack, resolved.
    pub environment: Option<String>,
    /// Service, when the call names one.
    pub service: Option<ServiceName>,
    /// Its arguments as given; `null` where there are none.
    pub arguments: Arc<Value>,
    /// Who gave the agent this work, outermost first: each must have the right too.
    pub on_behalf: Vec<String>,
}

/// What the call gate says.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Strictest verdict; `Deny` when no rule grants the call.
    pub verdict: Verdict,
    /// Every rule that matched, or the default deny.
    pub findings: Vec<Finding>,
    /// Rate limit to count under: (counter key, most per window, window in seconds).
    pub limits: Vec<RateLimit>,
    /// For `Approval`: how many, how long, by which channels.
    pub approval: Option<ApprovalTerms>,
    /// What to do to get a denied call through, for the caller.
    pub hint: Option<String>,
}

/// Channel of an approval: the person at the client whose agent asks.
pub const CLIENT: &str = "client";

impl Decision {
    /// Whether the answer of the person at the client decides this call. Only the rules of its agent can say so: never where the plan asks for an approval, too
    /// (`plan` is what the plan gate said), nor where more than one person has to agree, for the one at the client may be an operator as well.
    pub fn client_decides(&self, plan: Verdict, needed: u32) -> bool {
        let says = self.approval.as_ref().is_some_and(|t| t.channels.iter().any(|c| c == CLIENT));
        says && self.verdict == Verdict::Approval && plan < Verdict::Approval && needed <= 1
    }

    /// Both at once, as strict as the stricter one: of a call that is about two stacks.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.verdict = self.verdict.max(other.verdict);
        for finding in other.findings {
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
        for limit in other.limits {
            if !self.limits.contains(&limit) {
                self.limits.push(limit);
            }
        }
        self.approval = delegation::stricter(self.approval, other.approval);
        self.hint = self.hint.or(other.hint);
        self
    }
}

/// A counter that the intent transaction raises and checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Key, e.g. `deployer/web-staging`.
    pub key: String,
    /// Most in the window.
    pub max: u32,
    /// Window in seconds.
    pub window_s: u32,
}

/// Terms of an approval.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ApprovalTerms {
    /// Approvals needed.
    pub count: u32,
    /// Life in seconds.
    pub ttl_s: u64,
    /// `operator`, `client`.
    pub channels: Vec<String>,
}

/// Proof that the gate allowed an effect. Only this module can make one; every method that changes the world takes one.
#[derive(Debug, Clone)]
pub struct Permit {
    call: CallId,
    agent: String,
    tool: String,
    stack: Option<StackName>,
    on_behalf: Vec<String>,
}

impl Permit {
    /// Call it was given for.
    pub fn call(&self) -> &CallId {
        &self.call
    }
    /// Agent it was given to.
    pub fn agent(&self) -> &str {
        &self.agent
    }
    /// Who gave the agent this work, outermost first. Not known of what was taken over.
    pub fn on_behalf(&self) -> &[String] {
        &self.on_behalf
    }
    /// Tool it was given for.
    pub fn tool(&self) -> &str {
        &self.tool
    }
    /// Stack it is limited to.
    pub fn stack(&self) -> Option<&StackName> {
        self.stack.as_ref()
    }
}

/// Why no permit was given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("not permitted: {verdict:?}")]
pub struct Refusal {
    /// Verdict that stood in the way.
    pub verdict: Verdict,
    /// The findings behind it.
    pub findings: Vec<Finding>,
}

/// Gives a permit for a call whose intent is in the audit log. `plan` is the plan gate's verdict (`Allow` for calls without a plan);
/// `approved` says that the needed approvals were given for exactly this plan digest.
///
/// # Errors
/// A `Refusal` when either gate denies, or asks for an approval that was not given; always for a preview.
pub fn permit(
    call: &CallId,
    facts: &CallFacts,
    decision: &Decision,
    plan: Verdict,
    findings: &[Finding],
    approved: bool,
) -> Result<Permit, Refusal> {
    if facts.preview {
        let because = "a call that only asks what would be done gets no permit to do it".to_owned();
        let finding = Finding { rule: "call.preview".into(), verdict: Verdict::Deny, service: None, path: None, because };
        return Err(Refusal { verdict: Verdict::Deny, findings: vec![finding] });
    }
    let verdict = decision.verdict.max(plan);
    let ok = match verdict {
        Verdict::Allow | Verdict::Warn => true,
        Verdict::Approval => approved,
        Verdict::Deny => false,
    };
    if !ok {
        let findings = decision.findings.iter().chain(findings).filter(|f| f.verdict == verdict).cloned().collect();
        return Err(Refusal { verdict, findings });
    }
    Ok(Permit {
        call: call.clone(),
        agent: facts.agent.clone(),
        tool: facts.tool.clone(),
        stack: facts.stack.clone(),
        on_behalf: facts.on_behalf.clone(),
    })
}

/// A permit as tests need one: of a call of the agent `tester` that was allowed.
#[cfg(test)]
pub(crate) fn test_permit(tool: &str, stack: Option<StackName>) -> Permit {
    let facts = CallFacts {
        agent: "tester".into(),
        tool: tool.into(),
        mutates: true,
        preview: false,
        stack,
        environment: None,
        service: None,
        arguments: Arc::default(),
        on_behalf: vec![],
    };
    let decision = Decision { verdict: Verdict::Allow, findings: vec![], limits: vec![], approval: None, hint: None };
    permit(&CallId::new("call-1").expect("a valid id"), &facts, &decision, Verdict::Allow, &[], false).expect("allowed")
}

/// The decision about what an operator does at the terminal (`adopt`, `eject`), its passphrase checked by the door: allowed, and recorded as such.
/// Agents never get here: these acts are no tools.
pub fn operator_decision(operator: &str) -> Decision {
    let finding = Finding {
        rule: "operator".into(),
        verdict: Verdict::Allow,
        service: None,
        path: None,
        because: format!("operator {operator} asked for it at the terminal"),
    };
    Decision { verdict: Verdict::Allow, findings: vec![finding], limits: vec![], approval: None, hint: None }
}

/// Gives a permit to go on with an operation that a permit once started and a restart interrupted: taking it over is not a new
/// decision, leaving it half-done is never right. Commands of a backup are never begun by it, only ended, so it needs not know who it was for.
pub fn permit_takeover(op: &crate::model::operation::Operation) -> Permit {
    Permit { call: op.call.clone(), agent: op.agent.clone(), tool: op.verb.clone(), stack: op.stack.clone(), on_behalf: vec![] }
}
