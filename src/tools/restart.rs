//! `restart`: restarts (or starts) the containers of a stack or of one service in place.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::prepare;
use crate::call::run::{self, OperationView, Waiting};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{ServiceName, StackName};
use crate::model::plan::Plan;
use crate::planner::Want;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
    /// One service; all by default.
    service: Option<ServiceName>,
}

pub(super) struct Restart;

impl Verb for Restart {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "restart",
        title: "Restart or start a stack",
        description: "Restarts the containers of a stack, or of one service, in place; starts a stopped stack. Same release, short downtime.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<OperationView>,
    };
    type Input = Input;
    type Output = OperationView;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::service(Some(&input.stack), input.service.as_ref()))
    }

    async fn plan(call: &Call, input: &Input) -> Result<Option<Plan>, CallError> {
        prepare::in_place(call, &input.stack, Want::Restart { service: input.service.clone() }).await.map(Some)
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<OperationView, CallError> {
        let arguments = super::as_arguments(&input)?;
        run::execute(call, Self::SPEC.name, super::planned(plan)?, permit, Waiting::default(), &arguments).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
