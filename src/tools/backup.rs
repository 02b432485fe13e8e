//! `backup`: a snapshot of a volume, or of every volume a stack writes, into the repository.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::{Call, CallError, volumes};
use crate::executor::backup::{self, BackupReason, Quiesce};
use crate::gate::Permit;
use crate::model::ids::{EngineName, StackName};
use crate::model::plan::Plan;
use crate::store::backup::BackupRecord;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// All volumes of a stack.
    stack: Option<StackName>,
    /// One volume of a stack, by its name on the engine.
    volume: Option<EngineName>,
    /// Why, for the record.
    #[allow(dead_code, reason = "kept with the call's arguments in the audit log")]
    reason: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    snapshots: Vec<BackupRecord>,
}

pub(super) struct Backup;

impl Verb for Backup {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "backup",
        title: "Back up volumes",
        description: "Takes a deduplicated, encrypted snapshot of a stack's volumes, or of one volume. Writers are paused or stopped meanwhile where the stack's x-dockwarden.backup says so.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::stack(&volumes::owner(call, input.stack.as_ref(), input.volume.as_ref()).await?))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, permit: Permit) -> Result<Output, CallError> {
        let context = volumes::context(call)?;
        let stack = volumes::owner(call, input.stack.as_ref(), input.volume.as_ref()).await?;
        let release = volumes::current(call, &stack).await?;
        let targets = match input.volume {
            Some(volume) => vec![volume],
            None => volumes::of_stack(call, &stack, release.as_ref()).await?,
        };
        let quiesce = release.as_ref().map(volumes::quiesce).unwrap_or(Quiesce::None);
        let reason =
            BackupReason { stack: Some(stack), agent: call.who.agent.to_string(), release: release.map(|r| r.number), tags: vec![] };
        let progress = call.progress.clone();
        let sink = Arc::new(move |p: backup::Progress| {
            if let Some(progress) = &progress {
                // The size is not known before the end: the line says how far it is, the percentage stays open. Lossy by design.
                progress.try_send((0.0, format!("{} bytes, {} files", p.bytes, p.files))).ok();
            }
        });
        let snapshots = backup::backup_volumes(&context, &permit, &reason, &targets, quiesce, call.now, sink)
            .await
            .map_err(|e| volumes::backup_error(&e))?;
        Ok(Output { snapshots })
    }

    fn text(o: &Output) -> Option<String> {
        let line = |s: &BackupRecord| {
            format!("{} {}: {} bytes, {} added, {} files, {}", s.snapshot_id, s.volume, s.bytes, s.added, s.files, s.state)
        };
        Some(o.snapshots.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}
