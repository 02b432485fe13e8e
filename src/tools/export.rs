//! `export`: snapshots as plain `.tar.zst` files with their SHA-256, for the day when nothing of ours is at hand.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema, verify_backup};
use crate::call::data::{self, DataView};
use crate::call::facts::Scope;
use crate::call::run::{self, Waiting};
use crate::call::{Call, CallError};
use crate::executor::backup::export::Exported;
use crate::executor::backup::{DataJob, DataResult};
use crate::gate::Permit;
use crate::model::ids::{SnapshotId, StackName};
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One snapshot, from `backups`.
    snapshot_id: Option<SnapshotId>,
    /// Instead: the newest whole snapshot of each source of a stack.
    stack: Option<StackName>,
    /// Wait until it ended; true by default.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    /// A repeated call with the same key returns the same operation.
    #[serde(skip_serializing)]
    idempotency_key: Option<String>,
    #[serde(skip_serializing)]
    reason: Option<String>,
}

impl Input {
    fn waiting(&self) -> Waiting {
        Waiting { wait: self.wait, timeout_s: None, idempotency_key: self.idempotency_key.clone(), reason: self.reason.clone() }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    #[serde(flatten)]
    view: DataView,
    #[schemars(with = "Vec<Row>")]
    exports: Vec<Exported>,
}

impl From<(DataView, DataResult)> for Output {
    fn from((view, done): (DataView, DataResult)) -> Self {
        Self { view, exports: done.exports }
    }
}

pub(super) struct Export;

impl Verb for Export {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "export",
        title: "Export snapshots",
        description: "Writes snapshots as .tar.zst files with their SHA-256 into the home's `exports`; the last two of a source stay.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let first =
            verify_backup::snapshots(call, Self::SPEC.name, input.snapshot_id.as_ref(), input.stack.as_ref()).await?.into_iter().next();
        let stack = first.and_then(|s| s.stack).and_then(|s| StackName::new(s).ok());
        Ok(Scope::service(stack.as_ref(), None))
    }

    const REPLAYS: bool = true;

    async fn earlier(call: &Call, input: &Input) -> Result<Option<Operation>, CallError> {
        run::earlier(call, &super::as_arguments(input)?, input.idempotency_key.as_deref(), None).await
    }

    async fn replay(call: &Call, input: &Input, operation: Operation) -> Result<Option<Output>, CallError> {
        data::replay(call, operation, &input.waiting()).await.map(|done| Some(Output::from(done)))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, permit: Permit) -> Result<Output, CallError> {
        let snapshots = verify_backup::snapshots(call, Self::SPEC.name, input.snapshot_id.as_ref(), input.stack.as_ref()).await?;
        let stack = snapshots.first().and_then(|s| s.stack.as_deref()).and_then(|s| StackName::new(s).ok());
        let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
        Ok(data::execute(call, Self::SPEC.name, stack, DataJob::Export { snapshots }, permit, waiting, &arguments).await?.into())
    }

    fn text(o: &Output) -> Option<String> {
        let line = |e: &Exported| {
            format!("\n{} of {} in {}: {} files, {} bytes, sha256 {}", e.snapshot_id, e.source, e.file, e.files, e.size, e.sha256)
        };
        Some(o.view.line("export") + &o.exports.iter().map(line).collect::<String>())
    }
}
