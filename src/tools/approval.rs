//! `approval`: where an approval stands. It is given by an operator outside of any tool.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::{Call, CallError, approval};
use crate::gate::Permit;
use crate::model::ids::{ApprovalId, StackName};
use crate::model::plan::Plan;
use crate::redact;
use crate::store::approval::ApprovalState;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// From a reply in state pending_approval.
    approval_id: ApprovalId,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    approval_id: ApprovalId,
    state: ApprovalState,
    agent: String,
    tool: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<StackName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    digest: String,
    needed: u32,
    approved_by: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denied_by: Option<String>,
    /// What it started: follow it with `operation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<String>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

pub(super) struct Approval;

impl Verb for Approval {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "approval",
        title: "Follow an approval",
        description: "State of an approval: pending, approved, denied, expired, used (operation_id is what it started) or stale (the stack changed; call again). Only an operator gives it.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let found = approval::find(&call.house.store, &input.approval_id).await?;
        Ok(found.stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let a = approval::find(&call.house.store, &input.approval_id).await?;
        Ok(Output {
            approval_id: a.id,
            state: a.state,
            agent: a.agent,
            tool: a.tool,
            stack: a.stack,
            environment: a.environment,
            digest: a.digest,
            needed: a.needed,
            approved_by: a.approved_by,
            denied_by: a.denied_by.as_deref().map(|d| redact::line(d, 300)),
            operation_id: a.operation.map(|id| id.to_string()),
            created_at: a.created_at,
            expires_at: a.expires_at,
        })
    }

    fn text(o: &Output) -> Option<String> {
        let state = format!("{:?}", o.state).to_lowercase();
        let operation = o.operation_id.as_ref().map(|id| format!(", started {id}")).unwrap_or_default();
        Some(format!(
            "{} for {} by {}: {state} ({} of {} given){operation}; void after {}",
            o.approval_id,
            o.tool,
            o.agent,
            o.approved_by.len(),
            o.needed,
            o.expires_at.to_rfc3339()
        ))
    }
}
