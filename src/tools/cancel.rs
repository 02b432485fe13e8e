//! `cancel`: stops an operation and undoes it, as long as the new release does not serve yet.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::{self, Scope};
use crate::call::run::{self, OperationView};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::OperationId;
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Operation to stop.
    operation_id: OperationId,
    /// Why, for the record.
    #[allow(dead_code, reason = "kept with the call's arguments in the audit log")]
    reason: Option<String>,
}

pub(super) struct Cancel;

impl Verb for Cancel {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "cancel",
        title: "Cancel an operation",
        description: "Stops an operation and undoes what it did. Once the new release serves it is too late: use `rollback`.",
        effect: Effect::Write,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<OperationView>,
    };
    type Input = Input;
    type Output = OperationView;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let operation = facts::operation(call, &input.operation_id).await?;
        Ok(operation.stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<OperationView, CallError> {
        let operation = call.house.executor.cancel(&input.operation_id).await.map_err(run::executor_error)?;
        run::view(call, operation).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
