//! `backup`: a snapshot of a volume, or of every volume a stack writes, into the repository.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::data::{self, DataView};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::run::{self, Waiting};
use crate::call::sources::{self, Choice};
use crate::call::{Call, CallError, Door, volumes};
use crate::executor::backup::{BackupJob, DataJob, DataResult, Keeping, keep};
use crate::gate::Permit;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use crate::store::backup::BackupRecord;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// All volumes of a stack.
    stack: Option<StackName>,
    /// One volume of a stack, by its name on the engine.
    volume: Option<EngineName>,
    /// With `stack`: only what this service writes.
    service: Option<ServiceName>,
    /// Mark the snapshots `keep`: no schedule removes them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    keep: bool,
    /// Instead: bring this copy up to date.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<String>,
    /// Wait until it ended; true by default.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    /// Longest wait, 45 by default, 55 at most; the backup goes on.
    #[serde(skip_serializing)]
    timeout_s: Option<u64>,
    /// A repeated call with the same key returns the same operation.
    #[serde(skip_serializing)]
    idempotency_key: Option<String>,
    /// Why, for the record.
    #[serde(skip_serializing)]
    reason: Option<String>,
}

impl Input {
    /// Neither a stack nor a part of one: the supervisor itself.
    fn own(&self) -> bool {
        self.stack.is_none() && self.volume.is_none() && self.service.is_none()
    }

    fn tags(&self) -> Vec<String> {
        self.keep.then(|| keep::KEPT.to_owned()).into_iter().collect()
    }

    fn waiting(&self) -> Waiting {
        let (idempotency_key, reason) = (self.idempotency_key.clone(), self.reason.clone());
        Waiting { wait: self.wait, timeout_s: self.timeout_s, idempotency_key, reason }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    #[serde(flatten)]
    view: DataView,
    #[schemars(with = "Vec<Row>")]
    snapshots: Vec<BackupRecord>,
}

impl From<(DataView, DataResult)> for Output {
    fn from((view, done): (DataView, DataResult)) -> Self {
        Self { view, snapshots: done.snapshots }
    }
}

pub(super) struct Backup;

impl Verb for Backup {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "backup",
        title: "Back up volumes",
        description: "Takes a deduplicated, encrypted snapshot of a stack's data, of one volume, or (without arguments) of the supervisor's own databases and memories, as an operation that goes on when the caller leaves. Writers are paused or stopped meanwhile where x-dockwarden.backup says so.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        if input.own() {
            return Ok(Scope::default());
        }
        Ok(Scope::stack(&volumes::owner(call, input.stack.as_ref(), input.volume.as_ref()).await?))
    }

    const REPLAYS: bool = true;

    async fn earlier(call: &Call, input: &Input) -> Result<Option<Operation>, CallError> {
        run::earlier(call, &super::as_arguments(input)?, input.idempotency_key.as_deref(), None).await
    }

    async fn replay(call: &Call, input: &Input, operation: Operation) -> Result<Option<Output>, CallError> {
        data::replay(call, operation, &input.waiting()).await.map(|done| Some(Output::from(done)))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, permit: Permit) -> Result<Output, CallError> {
        let scheduled = call.who.door == Door::Loop;
        if let Some(copy) = super::verify_backup::copy(call, input.copy.as_deref())? {
            if !input.own() || input.keep {
                let message = "a copy is of the whole repository: copy goes without stack, volume, service and keep";
                return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave them out").field("copy"));
            }
            let (arguments, waiting, job) = (super::as_arguments(&input)?, input.waiting(), DataJob::Copy { copy });
            return Ok(data::execute(call, Self::SPEC.name, None, job, permit, waiting, &arguments).await?.into());
        }
        if input.own() {
            let job = BackupJob { instance: true, tags: input.tags(), keep: scheduled.then(Keeping::default), ..BackupJob::default() };
            let (arguments, waiting, job) = (super::as_arguments(&input)?, input.waiting(), DataJob::Backup(Box::new(job)));
            return Ok(data::execute(call, Self::SPEC.name, None, job, permit, waiting, &arguments).await?.into());
        }
        let stack = volumes::owner(call, input.stack.as_ref(), input.volume.as_ref()).await?;
        let release = volumes::current(call, &stack).await?;
        let choice = match (&input.volume, &input.service) {
            (Some(volume), None) => Choice::Volume(volume.clone()),
            (None, Some(service)) => Choice::Service(service.clone()),
            (None, None) if scheduled => Choice::Scheduled,
            (None, None) => Choice::All,
            (Some(_), Some(_)) => {
                let message = "backup takes service with stack, not with volume";
                return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave one of them out").field("service"));
            }
        };
        // What a schedule adds it also thins out; a call of anybody else only ever adds.
        let job = sources::job(call, &stack, release.as_ref(), choice, scheduled).await?;
        let job = DataJob::Backup(Box::new(BackupJob { tags: input.tags(), ..job }));
        let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
        Ok(data::execute(call, Self::SPEC.name, Some(stack), job, permit, waiting, &arguments).await?.into())
    }

    fn text(o: &Output) -> Option<String> {
        let line = |s: &BackupRecord| {
            format!("\n{} {}: {} bytes, {} added, {} files, {}", s.snapshot_id, s.volume, s.bytes, s.added, s.files, s.state)
        };
        Some(o.view.line("backup") + &o.snapshots.iter().map(line).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_kept_is_marked_as_schedules_honour_it() {
        let of = |input: &str| serde_json::from_str::<Input>(input).unwrap().tags();
        assert_eq!(of(r#"{"stack": "shop", "keep": true}"#), [keep::KEPT]);
        assert_eq!(of(r#"{"stack": "shop"}"#), Vec::<String>::new());
    }
}
