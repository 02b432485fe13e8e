//! `operation`: where an operation stands, waiting for it when asked to.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::{self, Scope};
use crate::call::run::{self, OperationView};
use crate::call::{Call, CallError, data};
use crate::executor::Until;
use crate::executor::backup::DataResult;
use crate::executor::backup::export::Exported;
use crate::executor::restore::RestoreOutcome;
use crate::gate::Permit;
use crate::model::ids::OperationId;
use crate::model::plan::Plan;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// From deploy, rollback, restart, stop, scale, backup or restore.
    operation_id: OperationId,
    /// Wait so many seconds for it to settle, 55 at most; 0 by default.
    wait_s: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    #[serde(flatten)]
    view: OperationView,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    snapshots: Vec<BackupRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    restored: Vec<RestoreOutcome>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    drills: Vec<DrillRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    // Not in the schema: every client pays for it, and two verbs alone give these.
    #[schemars(skip)]
    checks: Vec<CheckRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    exports: Vec<Exported>,
}

pub(super) struct Operation;

impl Verb for Operation {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "operation",
        title: "Follow an operation",
        description: "State, phase, services and evidence of an operation. States: queued, running, monitoring (serves, watched), done, rolled_back (failed and undone), failed, cancelled, needs_attention (a person must look).",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let operation = facts::operation(call, &input.operation_id).await?;
        Ok(operation.stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let operation = match input.wait_s.unwrap_or(0) {
            0 => facts::operation(call, &input.operation_id).await?,
            seconds => run::wait(call, input.operation_id, Some(seconds), Until::Ended).await?,
        };
        let DataResult { snapshots, restored, drills, checks, exports } = data::result(call, &operation.id).await?;
        Ok(Output { view: run::view(call, operation).await?, snapshots, restored, drills, checks, exports })
    }

    fn text(output: &Output) -> Option<String> {
        let mut text = run::text(&output.view);
        for s in &output.snapshots {
            text.push_str(&format!("\nsnapshot {} of {}: {} bytes, {} files, {}", s.snapshot_id, s.volume, s.bytes, s.files, s.state));
        }
        for r in &output.restored {
            let verified = if r.verified { "verified" } else { "NOT equal to the snapshot" };
            text.push_str(&format!(
                "\nrestored {} of {} into {}: {} files, {} bytes, {verified}",
                r.snapshot_id, r.source, r.volume, r.files, r.bytes
            ));
        }
        Some(text)
    }
}
