//! `backups`: the snapshots we took, newest first.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
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
/// Most snapshots looked through for a page: years of a nightly one of a hundred volumes.
const ALL: usize = 100_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Those of one stack.
    stack: Option<StackName>,
    /// Those of one volume.
    volume: Option<EngineName>,
    /// `next_cursor` of the reply before, for older snapshots.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    snapshots: Vec<BackupRecord>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    /// Pass as `cursor` for older ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
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
        let volume = input.volume.as_ref().map(EngineName::as_str);
        let mut snapshots =
            call.house.store.backups(input.stack.as_ref(), volume, if input.cursor.is_some() { ALL } else { SHOWN + 1 }).await?;
        if let Some(cursor) = &input.cursor {
            let at = snapshots.iter().position(|s| s.snapshot_id == *cursor).ok_or_else(|| no_cursor(cursor))?;
            snapshots.drain(..=at);
        }
        let truncated = snapshots.len() > SHOWN;
        snapshots.truncate(SHOWN);
        let next_cursor = snapshots.last().map(|s| s.snapshot_id.clone()).filter(|_| truncated);
        Ok(Output { snapshots, truncated, next_cursor })
    }

    fn text(o: &Output) -> Option<String> {
        let line = |s: &BackupRecord| {
            format!("{} {} {} {} bytes {} files {}", s.at.format("%Y-%m-%dT%H:%M:%SZ"), s.snapshot_id, s.volume, s.bytes, s.files, s.state)
        };
        let mut out =
            if o.snapshots.is_empty() { "no snapshots".into() } else { o.snapshots.iter().map(line).collect::<Vec<_>>().join("\n") };
        if let Some(next) = &o.next_cursor {
            out.push_str(&format!("\n(older snapshots: cursor {next})"));
        }
        Some(out)
    }
}

fn no_cursor(text: &str) -> CallError {
    let message = format!("{:?} is no cursor of these snapshots", crate::redact::line(text, 64));
    CallError::new(ErrorCode::InvalidArgument, message, "pass next_cursor of the reply before, with the same stack and volume")
        .field("cursor")
}
