//! `restore`: a snapshot's data into a volume beside the live one, compared byte by byte. Live data is never touched.

use super::{Effect, ToolSpec, Verb, logs, schema};
use crate::call::data::{self, DataView};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::run::{self, Waiting};
use crate::call::{Call, CallError, compose_files, prepare};
use crate::executor::backup::{DataJob, DataResult, Directory};
use crate::executor::restore::RestoreOutcome;
use crate::gate::Permit;
use crate::model::ids::{EngineName, SnapshotId, StackName};
use crate::model::labels;
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use crate::store::backup::BackupRecord;
use chrono::{DateTime, Local, NaiveDate, NaiveTime, TimeZone, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Snapshots of a volume looked through for the one at a moment.
const LOOKED_THROUGH: usize = 1000;

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// From `backups`.
    snapshot_id: Option<SnapshotId>,
    /// Instead: the volume (or directory), with `at`.
    volume: Option<String>,
    /// The newest whole snapshot not after this: RFC 3339, an age like `2h`, or `yesterday 18:00` by the supervisor's clock.
    at: Option<String>,
    /// Volume to fill; a new one by default. Must be empty or not exist.
    into: Option<EngineName>,
    /// Take the restored volume into use, as a release of its own; the live volume is kept. False by default.
    #[serde(default)]
    swap: bool,
    /// Wait until it ended; true by default.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    /// Longest wait, 45 by default, 55 at most; the restore goes on.
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
    fn waiting(&self) -> Waiting {
        let (idempotency_key, reason) = (self.idempotency_key.clone(), self.reason.clone());
        Waiting { wait: self.wait, timeout_s: self.timeout_s, idempotency_key, reason }
    }
}

/// The operation, and what it restored once it is done.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    #[serde(flatten)]
    view: DataView,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl From<(DataView, DataResult)> for Output {
    fn from((view, mut done): (DataView, DataResult)) -> Self {
        let o = done.restored.pop();
        let RestoreOutcome { volume, source, snapshot_id, files, bytes, verified, differences, next } = match o {
            Some(o) => o,
            None => {
                return Self {
                    view,
                    volume: None,
                    source: None,
                    snapshot_id: None,
                    files: None,
                    bytes: None,
                    verified: None,
                    differences: vec![],
                    next: None,
                };
            }
        };
        Self {
            view,
            volume: Some(volume),
            source: Some(source),
            snapshot_id: Some(snapshot_id),
            files: Some(files),
            bytes: Some(bytes),
            verified: Some(verified),
            differences,
            next: Some(next),
        }
    }
}

pub(super) struct Restore;

impl Verb for Restore {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "restore",
        title: "Restore a snapshot",
        description: "Restores a snapshot into a volume beside the live one and verifies every byte, as an operation that goes on when the caller leaves; no live volume is ever overwritten. With `swap` the stack goes on with the restored volume, proven like a deploy.",
        effect: Effect::Destructive,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let snapshot = snapshot(call, input).await?;
        let stack = stack_of(&snapshot);
        if input.swap && (input.into.is_some() || stack.is_none()) {
            let message =
                "swap makes a new volume for the stack the snapshot is of: it goes without `into`, and with a snapshot of a stack";
            return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave `into` or `swap` out").field("swap"));
        }
        if input.swap && snapshot.volume.starts_with('/') {
            let message = format!("{} is a directory of the host: only a volume can be swapped in", snapshot.volume);
            let hint = "restore it without `swap`, stop the service, rename the two directories, start it";
            return Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("swap"));
        }
        if let Some(into) = &input.into {
            if into.as_str() == snapshot.volume {
                let message = format!("{into} is the volume the snapshot was taken of: a restore goes beside the live data");
                return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave `into` out to get a new volume").field("into"));
            }
            let beside = format!("{}-restored-", snapshot.volume);
            let own = stack.as_ref().map(|s| format!("{s}_"));
            if !into.as_str().starts_with(&beside) && !own.as_ref().is_some_and(|own| into.as_str().starts_with(own)) {
                let names = own.map_or_else(|| format!("{beside}*"), |own| format!("{own}* or {beside}*"));
                let message =
                    format!("a restore of {} makes no volume called {into}: such a name may be another stack's to come", snapshot.volume);
                return Err(
                    CallError::new(ErrorCode::InvalidArgument, message, format!("leave `into` out, or choose {names}")).field("into")
                );
            }
            unused(call, into, stack.as_ref()).await?;
        }
        Ok(Scope::service(stack.as_ref(), None))
    }

    const REPLAYS: bool = true;

    async fn earlier(call: &Call, input: &Input) -> Result<Option<Operation>, CallError> {
        run::earlier(call, &super::as_arguments(input)?, input.idempotency_key.as_deref(), None).await
    }

    async fn replay(call: &Call, input: &Input, operation: Operation) -> Result<Option<Output>, CallError> {
        data::replay(call, operation, &input.waiting()).await.map(|done| Some(Output::from(done)))
    }

    async fn plan(call: &Call, input: &Input) -> Result<Option<Plan>, CallError> {
        if !input.swap {
            return Ok(None);
        }
        let record = snapshot(call, input).await?;
        let stack = stack_of(&record).ok_or_else(|| not_of_a_stack(&record))?;
        prepare::swap(call, &stack, record).await.map(Some)
    }

    async fn resolved(call: &Call, input: &Input) -> Result<Option<Value>, CallError> {
        let record = snapshot(call, input).await?;
        Ok(Some(json!({"snapshot_id": record.snapshot_id, "volume": record.volume, "taken_at": record.at})))
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<Output, CallError> {
        if let Some(plan) = plan {
            let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
            return Ok(data::execute_plan(call, Self::SPEC.name, plan, permit, waiting, &arguments).await?.into());
        }
        let snapshot = Box::new(snapshot(call, &input).await?);
        let stack = stack_of(&snapshot);
        let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
        let job = match directory(call, &snapshot) {
            Some(directory) if input.into.is_none() => DataJob::RestoreDirectory { snapshot, directory },
            _ => DataJob::Restore { snapshot, into: input.into },
        };
        Ok(data::execute(call, Self::SPEC.name, stack, job, permit, waiting, &arguments).await?.into())
    }

    fn text(o: &Output) -> Option<String> {
        let mut text = o.view.line("restore");
        if let (Some(volume), Some(source), Some(id)) = (&o.volume, &o.source, &o.snapshot_id) {
            let verified = if o.verified == Some(true) {
                "verified".to_owned()
            } else {
                format!("NOT equal to the snapshot: {}", o.differences.join("; "))
            };
            let (files, bytes) = (o.files.unwrap_or_default(), o.bytes.unwrap_or_default());
            text.push_str(&format!("\n{id} of {source} into {volume}: {files} files, {bytes} bytes, {verified}"));
        }
        if let Some(next) = &o.next {
            text.push_str(&format!("\n{next}"));
        }
        Some(text)
    }
}

fn stack_of(record: &BackupRecord) -> Option<StackName> {
    record.stack.as_deref().and_then(|s| StackName::new(s).ok())
}

/// The directory of the host that a snapshot is of.
fn directory(call: &Call, record: &BackupRecord) -> Option<Directory> {
    let host = record.volume.starts_with('/').then(|| record.volume.clone())?;
    let here = compose_files::visible(&call.house.config, std::path::Path::new(&host));
    Some(Directory { here: here.filter(|h| h.parent().is_some_and(std::path::Path::is_dir)), host })
}

fn not_of_a_stack(record: &BackupRecord) -> CallError {
    let message = format!("snapshot {} is of no stack", record.snapshot_id);
    CallError::new(ErrorCode::InvalidArgument, message, "restore it beside, without `swap`").field("swap")
}

async fn snapshot(call: &Call, input: &Input) -> Result<BackupRecord, CallError> {
    let wrong =
        |message: &str| CallError::new(ErrorCode::InvalidArgument, message, "give snapshot_id, or volume and at").field("snapshot_id");
    let found = match (&input.snapshot_id, &input.volume, &input.at) {
        (Some(id), None, None) => call.house.store.backup(id).await?,
        (None, Some(volume), Some(at)) => {
            let at = match clock(at, call.now, &Local) {
                Some(at) => at,
                None => logs::moment(at, call.now).map_err(|e| e.field("at"))?,
            };
            call.house.store.backups(None, Some(volume), LOOKED_THROUGH).await?.into_iter().find(|s| s.at <= at && s.state == "complete")
        }
        _ => return Err(wrong("restore takes either snapshot_id, or volume and at")),
    };
    found.ok_or_else(|| CallError::new(ErrorCode::NotFound, "there is no such snapshot", "call `backups` to see them").field("snapshot_id"))
}

/// `today 18:00`, `yesterday 18:00` or `2026-01-31 18:00` by the clock of a place. Of an hour that comes twice the first one; none of one that is left out.
fn clock<Z: TimeZone>(text: &str, now: DateTime<Utc>, zone: &Z) -> Option<DateTime<Utc>> {
    let (day, time) = text.trim().split_once(' ')?;
    let today = now.with_timezone(zone).date_naive();
    let day = match day {
        "today" => today,
        "yesterday" => today.pred_opt()?,
        date => NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?,
    };
    let time = NaiveTime::parse_from_str(time.trim(), "%H:%M").ok()?;
    Some(zone.from_local_datetime(&day.and_time(time)).earliest()?.to_utc())
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

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::FixedOffset;

    #[test]
    fn a_moment_is_one_of_the_clock_on_the_wall() {
        let (now, east) = ("2026-03-01T23:30:00Z".parse().unwrap(), FixedOffset::east_opt(3600).unwrap());
        let at = |text: &str| clock(text, now, &east).map(|t| t.to_rfc3339());
        // There it is the second of March already.
        assert_eq!(at("yesterday 18:00").as_deref(), Some("2026-03-01T17:00:00+00:00"));
        assert_eq!(at("today 00:10").as_deref(), Some("2026-03-01T23:10:00+00:00"));
        assert_eq!(at("2026-01-31 06:05").as_deref(), Some("2026-01-31T05:05:00+00:00"));
        for no in ["yesterday", "yesterday 25:00", "tomorrow 18:00", "18:00", "2026-02-30 10:00", "2h", ""] {
            assert_eq!(at(no), None, "{no}");
        }
    }
}
