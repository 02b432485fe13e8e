//! `restart`: restarts (or starts) the containers of a stack or of one service in place.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::prepare;
use crate::call::run::{self, OperationView, Waiting};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{ServiceName, StackName};
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
    /// One service; all by default.
    service: Option<ServiceName>,
    /// Make the service's containers anew instead; needs `service`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recreate: bool,
    // As of `deploy`, whose descriptions stand for all: every client pays for words here.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    #[serde(skip_serializing)]
    timeout_s: Option<u64>,
    /// Same key, same operation.
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

pub(super) struct Restart;

impl Verb for Restart {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "restart",
        title: "Restart or start a stack",
        description: "Restarts the containers of a stack or service in place; starts a stopped stack. recreate makes those of one service anew.",
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

    const REPLAYS: bool = true;

    async fn earlier(call: &Call, input: &Input) -> Result<Option<Operation>, CallError> {
        run::earlier(call, &super::as_arguments(input)?, input.idempotency_key.as_deref(), None).await
    }

    async fn replay(call: &Call, input: &Input, operation: Operation) -> Result<Option<OperationView>, CallError> {
        run::replay(call, operation, &input.waiting()).await.map(Some)
    }

    async fn plan(call: &Call, input: &Input) -> Result<Option<Plan>, CallError> {
        let want = match (&input.service, input.recreate) {
            (Some(service), true) => Want::Recreate { service: service.clone() },
            (None, true) => {
                let hint = "name the service; `deploy` with refresh makes all of a stack anew that changed";
                return Err(CallError::new(ErrorCode::InvalidArgument, "recreate makes one service anew", hint).field("service"));
            }
            (service, false) => Want::Restart { service: service.clone() },
        };
        prepare::in_place(call, &input.stack, want).await.map(Some)
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<OperationView, CallError> {
        let arguments = super::as_arguments(&input)?;
        run::execute(call, Self::SPEC.name, super::planned(plan)?, permit, input.waiting(), &arguments).await
    }

    fn text(output: &OperationView) -> Option<String> {
        Some(run::text(output))
    }
}
