//! `stop`: stops the containers of a stack; with `remove` containers and networks go too, volumes never.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::prepare;
use crate::call::run::{self, OperationView, Waiting};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::StackName;
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use crate::planner::Want;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
    /// Also remove containers and networks; never volumes.
    #[serde(default)]
    remove: bool,
    // As of `deploy`, whose descriptions stand for all: every client pays for words here.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    #[serde(skip_serializing)]
    timeout_s: Option<u64>,
    #[serde(skip_serializing)]
    idempotency_key: Option<String>,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    reason: Option<String>,
}

impl Input {
    fn waiting(&self) -> Waiting {
        Waiting { wait: self.wait, timeout_s: self.timeout_s, idempotency_key: self.idempotency_key.clone(), reason: self.reason.clone() }
    }
}

pub(super) struct Stop;

impl Verb for Stop {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "stop",
        title: "Stop a stack",
        description: "Stops all containers of a stack; the supervisor leaves it stopped until `restart` or `deploy`. Volumes are never removed.",
        effect: Effect::Destructive,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<OperationView>,
    };
    type Input = Input;
    type Output = OperationView;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::stack(&input.stack))
    }

    const REPLAYS: bool = true;

    async fn earlier(call: &Call, input: &Input) -> Result<Option<Operation>, CallError> {
        run::earlier(call, &super::as_arguments(input)?, input.idempotency_key.as_deref(), None).await
    }

    async fn replay(call: &Call, input: &Input, operation: Operation) -> Result<Option<OperationView>, CallError> {
        run::replay(call, operation, &input.waiting()).await.map(Some)
    }

    async fn plan(call: &Call, input: &Input) -> Result<Option<Plan>, CallError> {
        prepare::in_place(call, &input.stack, Want::Stop { remove: input.remove }).await.map(Some)
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<OperationView, CallError> {
        let arguments = super::as_arguments(&input)?;
        run::execute(call, Self::SPEC.name, super::planned(plan)?, permit, input.waiting(), &arguments).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
