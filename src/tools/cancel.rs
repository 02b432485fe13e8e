//! `cancel`: stops an operation and undoes it, as long as the new release does not serve yet; or stops a task.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::{self, Scope};
use crate::call::run::{self, OperationView};
use crate::call::{Call, CallError, tasks};
use crate::gate::Permit;
use crate::model::ids::{OperationId, TaskId};
use crate::model::plan::Plan;
use crate::model::task::TaskState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Operation to stop.
    operation_id: Option<OperationId>,
    /// Task to stop.
    task_id: Option<TaskId>,
    /// Why, for the record.
    #[allow(dead_code, reason = "kept with the call's arguments in the audit log")]
    reason: Option<String>,
}

/// What was stopped. A task is shown by id and state alone, so that the tool's schema stays the one of an operation.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Output {
    Operation(Box<OperationView>),
    Task { task_id: TaskId, state: TaskState },
}

impl JsonSchema for Output {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        OperationView::schema_name()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        OperationView::json_schema(generator)
    }
}

pub(super) struct Cancel;

impl Verb for Cancel {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "cancel",
        title: "Cancel an operation or a task",
        description: "Stops a task, or an operation and undoes what it did. Once the new release serves it is too late: use `rollback`.",
        effect: Effect::Write,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let stack = match (&input.operation_id, &input.task_id) {
            (Some(id), None) => facts::operation(call, id).await?.stack,
            (None, Some(id)) => tasks::find(&call.house, id).await?.stack,
            (Some(_), Some(_)) | (None, None) => {
                let hint = "give one of operation_id and task_id";
                return Err(CallError::new(ErrorCode::InvalidArgument, "cancel stops one thing", hint).field("operation_id"));
            }
        };
        Ok(stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        if let Some(id) = input.task_id {
            let task = tasks::cancel(&call.house, &id, call.now).await?;
            return Ok(Output::Task { task_id: task.id, state: task.state });
        }
        let id = input.operation_id.expect("scope() saw one of the two");
        let operation = call.house.executor.cancel(&id).await.map_err(run::executor_error)?;
        Ok(Output::Operation(Box::new(run::view(call, operation).await?)))
    }

    fn text(output: &Output) -> Option<String> {
        Some(match output {
            Output::Operation(view) => run::text(view),
            Output::Task { task_id, state: TaskState::Running } => format!("{task_id} stops after the call at work"),
            Output::Task { task_id, state } => format!("{task_id} is {}", state.as_str()),
        })
    }
}
