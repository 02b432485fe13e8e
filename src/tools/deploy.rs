//! `deploy`: makes a plan's content the stack, atomically and journaled; what ran before runs on when it fails.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::prepare::{self, Source};
use crate::call::run::{self, OperationView, Waiting};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{ImageRef, PlanId, ServiceName, StackName};
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// From `plan`; goes with `digest`, instead of `stack` and its fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_id: Option<PlanId>,
    /// Digest `plan` returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// Stack name.
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<StackName>,
    /// Compose file text; by default the registered directory is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    compose: Option<String>,
    /// Relative path -> text, instead of `compose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<BTreeMap<String, String>>,
    /// Must be the stack's own; only a new stack can choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    /// Variables for interpolation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    variables: BTreeMap<String, String>,
    /// Service -> image to use instead of the file's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    images: BTreeMap<ServiceName, ImageRef>,
    /// Pull tags again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    refresh: bool,
    /// Wait until it serves or failed; true by default.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    /// Longest wait, 45 by default, 55 at most; the operation goes on.
    #[serde(skip_serializing)]
    timeout_s: Option<u64>,
    /// A repeated call with the same key returns the same operation.
    #[serde(skip_serializing)]
    idempotency_key: Option<String>,
    /// Why, for the record.
    #[serde(skip_serializing)]
    reason: Option<String>,
}

pub(super) struct Deploy;

impl Verb for Deploy {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "deploy",
        title: "Deploy a stack",
        description: "Deploys a stack: give plan_id and digest of a plan, or the stack itself. New containers are proven before old ones go; a failed deploy leaves what ran before running and returns evidence. pending_approval: an operator must approve; poll `approval`.",
        effect: Effect::Write,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<OperationView>,
    };
    type Input = Input;
    type Output = OperationView;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let mut given = None;
        let stack = match (&input.plan_id, &input.digest, &input.stack) {
            (Some(id), Some(_), None) if is_bare(input) => {
                let plan = prepare::stored(call, id).await?;
                given = Some(plan.given.ok_or_else(|| {
                    let message = format!("plan {id} does not say which arguments it was made with, so no rule can judge it");
                    CallError::new(ErrorCode::StalePlan, message, "call `plan` again and deploy the new plan")
                })?);
                plan.stack
            }
            (None, None, Some(stack)) => stack.clone(),
            _ => {
                let message = "deploy takes either plan_id and digest, or stack with compose, files, variables, images or refresh";
                return Err(CallError::new(ErrorCode::InvalidArgument, message, "call `plan` first and pass its plan_id and digest alone")
                    .field("plan_id"));
            }
        };
        Ok(Scope { stack: Some(stack), environment: input.environment.clone(), given, ..Scope::default() })
    }

    const REPLAYS: bool = true;

    async fn earlier(call: &Call, input: &Input) -> Result<Option<Operation>, CallError> {
        run::earlier(call, &super::as_arguments(input)?, input.idempotency_key.as_deref(), input.plan_id.as_ref()).await
    }

    async fn replay(call: &Call, input: &Input, operation: Operation) -> Result<Option<OperationView>, CallError> {
        let waiting = Waiting { wait: input.wait, timeout_s: input.timeout_s, ..Waiting::default() };
        run::replay(call, operation, &waiting).await.map(Some)
    }

    async fn plan(call: &Call, input: &Input) -> Result<Option<Plan>, CallError> {
        let plan = match (&input.plan_id, &input.digest, &input.stack) {
            (Some(id), Some(digest), _) => prepare::again(call, &prepare::stored(call, id).await?, digest).await?,
            (_, _, Some(stack)) => {
                let source = Source {
                    stack: stack.clone(),
                    compose: input.compose.clone(),
                    files: input.files.clone(),
                    variables: input.variables.clone(),
                    images: input.images.clone(),
                    refresh: input.refresh,
                };
                prepare::deploy(call, &source).await?
            }
            _ => return Err(CallError::new(ErrorCode::InvalidArgument, "deploy needs plan_id and digest, or stack", "call `plan` first")),
        };
        Ok(Some(plan))
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<OperationView, CallError> {
        let arguments = super::as_arguments(&input)?;
        let waiting =
            Waiting { wait: input.wait, timeout_s: input.timeout_s, idempotency_key: input.idempotency_key, reason: input.reason };
        run::execute(call, Self::SPEC.name, super::planned(plan)?, permit, waiting, &arguments).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}

fn is_bare(input: &Input) -> bool {
    input.compose.is_none() && input.files.is_none() && input.variables.is_empty() && input.images.is_empty() && !input.refresh
}
