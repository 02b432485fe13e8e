//! `rollback`: an older release again, by the same path as a deploy.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::prepare;
use crate::call::run::{self, OperationView, Waiting};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::StackName;
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
    /// Release to go back to; by default the last good one before the current.
    to_release: Option<u32>,
    /// `keep` (default) and `code_only`: volumes stay as they are.
    data: Option<String>,
    /// Why, for the record.
    #[serde(skip_serializing)]
    reason: Option<String>,
}

pub(super) struct Rollback;

impl Verb for Rollback {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "rollback",
        title: "Roll a stack back",
        description: "Makes an older release run again (images, configuration, secrets), proven like a deploy. Volumes are never changed: keep and code_only mean the same today. `history` lists the releases.",
        effect: Effect::Destructive,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<OperationView>,
    };
    type Input = Input;
    type Output = OperationView;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        match input.data.as_deref() {
            None | Some("keep" | "code_only") => Ok(Scope::stack(&input.stack)),
            Some(other) => {
                let message = format!("rollback does not change data, so data: {:?} is refused", crate::redact::line(other, 64));
                let hint = "use data: keep, or bring the data back with `restore {snapshot_id}` (beside the live data) and swap it in";
                Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("data"))
            }
        }
    }

    async fn plan(call: &Call, input: &Input) -> Result<Option<Plan>, CallError> {
        prepare::rollback(call, &input.stack, input.to_release).await.map(Some)
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<OperationView, CallError> {
        let arguments = super::as_arguments(&input)?;
        let waiting = Waiting { reason: input.reason, ..Waiting::default() };
        run::execute(call, Self::SPEC.name, super::planned(plan)?, permit, waiting, &arguments).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
