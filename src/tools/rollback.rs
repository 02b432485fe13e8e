//! `rollback`: an older release again, by the same path as a deploy.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::data_plan::DataChoice;
use crate::call::facts::Scope;
use crate::call::prepare;
use crate::call::run::{self, OperationView, Waiting};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::StackName;
use crate::model::operation::Operation;
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
    /// `keep` (default): volumes stay, refused where the older release may not read them; `code_only`: without that check; or snapshot ids, separated by
    /// commas: their data in new volumes, the live ones are kept aside.
    data: Option<String>,
    // As of `deploy`, whose descriptions stand for all: every client pays for words here.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    #[serde(skip_serializing)]
    timeout_s: Option<u64>,
    /// Same key, same operation.
    #[serde(skip_serializing)]
    idempotency_key: Option<String>,
    /// Why, for the record.
    #[serde(skip_serializing)]
    reason: Option<String>,
}

impl Input {
    fn waiting(&self) -> Waiting {
        Waiting { wait: self.wait, timeout_s: self.timeout_s, idempotency_key: self.idempotency_key.clone(), reason: self.reason.clone() }
    }
}

pub(super) struct Rollback;

impl Verb for Rollback {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "rollback",
        title: "Roll a stack back",
        description: "Makes an older release run again (images, configuration, secrets), proven like a deploy. Data stays as it is unless `data` names snapshots; no live volume is ever overwritten. `history` lists the releases, `backups` the snapshots.",
        effect: Effect::Destructive,
        idempotent: false,
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
        let data = DataChoice::of(call, &input.stack, input.data.as_deref()).await?;
        prepare::rollback(call, &input.stack, input.to_release, &data).await.map(Some)
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<OperationView, CallError> {
        let arguments = super::as_arguments(&input)?;
        run::execute(call, Self::SPEC.name, super::planned(plan)?, permit, input.waiting(), &arguments).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
