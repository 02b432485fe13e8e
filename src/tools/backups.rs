//! `backups`: the snapshots we took, newest first.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{EngineName, StackName};
use crate::model::plan::Plan;
use crate::store::backup::BackupRecord;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Snapshots shown.
const SHOWN: usize = 100;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Those of one stack.
    stack: Option<StackName>,
    /// Those of one volume.
    volume: Option<EngineName>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    snapshots: Vec<BackupRecord>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

pub(super) struct Backups;

impl Verb for Backups {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "backups",
        title: "List snapshots",
        description: "Snapshots of volumes, newest first: when, how large, whether complete. Pass snapshot_id to `restore`.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::service(input.stack.as_ref(), None))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let mut snapshots =
            call.house.store.backups(input.stack.as_ref(), input.volume.as_ref().map(EngineName::as_str), SHOWN + 1).await?;
        let truncated = snapshots.len() > SHOWN;
        snapshots.truncate(SHOWN);
        Ok(Output { snapshots, truncated })
    }

    fn text(o: &Output) -> Option<String> {
        let line = |s: &BackupRecord| {
            format!("{} {} {} {} bytes {} files {}", s.at.format("%Y-%m-%dT%H:%M:%SZ"), s.snapshot_id, s.volume, s.bytes, s.files, s.state)
        };
        Some(if o.snapshots.is_empty() { "no snapshots".into() } else { o.snapshots.iter().map(line).collect::<Vec<_>>().join("\n") })
    }
}
