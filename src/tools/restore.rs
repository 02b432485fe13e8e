//! `restore`: a snapshot's data into a volume beside the live one, compared byte by byte. Live data is never touched.

use super::{Effect, ToolSpec, Verb, logs, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError, volumes};
use crate::executor::restore::{RestoreOutcome, restore_volume};
use crate::gate::Permit;
use crate::model::ids::{EngineName, SnapshotId, StackName};
use crate::model::labels;
use crate::model::plan::Plan;
use crate::store::backup::BackupRecord;
use schemars::JsonSchema;
use serde::Deserialize;

/// Snapshots of a volume looked through for the one at a moment.
const LOOKED_THROUGH: usize = 1000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// From `backups`.
    snapshot_id: Option<SnapshotId>,
    /// Instead: the volume, with `at`.
    volume: Option<EngineName>,
    /// The newest snapshot not after this: RFC 3339, or an age like `2h`.
    at: Option<String>,
    /// Volume to fill; a new one by default. Must be empty or not exist.
    into: Option<EngineName>,
}

pub(super) struct Restore;

impl Verb for Restore {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "restore",
        title: "Restore a snapshot",
        description: "Restores a snapshot into a volume beside the live one and verifies every byte; live data is never changed. The reply says how to take the restored volume into use.",
        effect: Effect::Destructive,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<RestoreOutcome>,
    };
    type Input = Input;
    type Output = RestoreOutcome;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let snapshot = snapshot(call, input).await?;
        let stack = snapshot.stack.as_deref().and_then(|s| StackName::new(s).ok());
        if let Some(into) = &input.into {
            unused(call, into, stack.as_ref()).await?;
        }
        Ok(Scope::service(stack.as_ref(), None))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, permit: Permit) -> Result<RestoreOutcome, CallError> {
        let context = volumes::context(call)?;
        let snapshot = snapshot(call, &input).await?;
        call.progress(0.0, format!("restoring {} bytes of {}", snapshot.bytes, snapshot.volume));
        let mut outcome = restore_volume(&context, &permit, &snapshot, input.into).await.map_err(|e| volumes::backup_error(&e))?;
        outcome.differences.truncate(100);
        Ok(outcome)
    }

    fn text(o: &RestoreOutcome) -> Option<String> {
        let verified = if o.verified { "verified".to_owned() } else { format!("NOT equal to the snapshot: {}", o.differences.join("; ")) };
        Some(format!("{} of {} into {}: {} files, {} bytes, {verified}\n{}", o.snapshot_id, o.source, o.volume, o.files, o.bytes, o.next))
    }
}

async fn snapshot(call: &Call, input: &Input) -> Result<BackupRecord, CallError> {
    let wrong =
        |message: &str| CallError::new(ErrorCode::InvalidArgument, message, "give snapshot_id, or volume and at").field("snapshot_id");
    let found = match (&input.snapshot_id, &input.volume, &input.at) {
        (Some(id), None, None) => call.house.store.backup(id).await?,
        (None, Some(volume), Some(at)) => {
            let at = logs::moment(at, call.now).map_err(|e| e.field("at"))?;
            call.house.store.backups(None, Some(volume.as_str()), LOOKED_THROUGH).await?.into_iter().find(|s| s.at <= at)
        }
        _ => return Err(wrong("restore takes either snapshot_id, or volume and at")),
    };
    found.ok_or_else(|| CallError::new(ErrorCode::NotFound, "there is no such snapshot", "call `backups` to see them").field("snapshot_id"))
}

/// A volume of another stack, or of nobody we know, is not filled.
async fn unused(call: &Call, into: &EngineName, stack: Option<&StackName>) -> Result<(), CallError> {
    let Some(volume) = call.house.engine.volume(into).await? else { return Ok(()) };
    let ours = volume.labels.get(labels::INSTANCE).is_some_and(|i| i == call.house.store.instance());
    let same_stack = volume.labels.get(labels::STACK).is_none_or(|s| stack.is_some_and(|mine| mine.as_str() == s));
    if ours && same_stack {
        return Ok(());
    }
    let hint = "leave `into` out to get a new volume";
    Err(CallError::new(ErrorCode::Conflict, format!("volume {into} exists and does not belong to the snapshot's stack"), hint)
        .field("into"))
}
