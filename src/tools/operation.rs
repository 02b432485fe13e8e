//! `operation`: where an operation stands, waiting for it when asked to.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::{self, Scope};
use crate::call::run::{self, OperationView};
use crate::call::{Call, CallError};
use crate::executor::Until;
use crate::gate::Permit;
use crate::model::ids::OperationId;
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// From deploy, rollback, restart, stop or scale.
    operation_id: OperationId,
    /// Wait so many seconds for it to settle, 55 at most; 0 by default.
    wait_s: Option<u64>,
}

pub(super) struct Operation;

impl Verb for Operation {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "operation",
        title: "Follow an operation",
        description: "State, phase, services and evidence of an operation. States: queued, running, monitoring (serves, being watched), done, rolled_back (failed and undone), failed, cancelled, needs_attention (a person must look).",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<OperationView>,
    };
    type Input = Input;
    type Output = OperationView;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let operation = facts::operation(call, &input.operation_id).await?;
        Ok(operation.stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<OperationView, CallError> {
        let operation = match input.wait_s.unwrap_or(0) {
            0 => facts::operation(call, &input.operation_id).await?,
            seconds => run::wait(call, input.operation_id, Some(seconds), Until::Ended).await?,
        };
        run::view(call, operation).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
