//! `restore`: a snapshot's data into a volume beside the live one, compared byte by byte. Live data is never touched.

mod lineage;

use super::{Effect, ToolSpec, Verb, logs, schema};
use crate::call::data::{self, DataView};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::run::{self, Waiting};
use crate::call::{Call, CallError, kept, prepare, sources, volumes};
use crate::executor::backup::{BackupError, DataJob, DataResult, Directory, Failure};
use crate::executor::restore::RestoreOutcome;
use crate::gate::Permit;
use crate::model::ids::{EngineName, SnapshotId, StackName};
use crate::model::labels;
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use crate::redact::{self, Untrusted};
use crate::store::backup::BackupRecord;
use chrono::{DateTime, Local, NaiveDate, NaiveTime, TimeZone, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Component, Path, PathBuf};

/// Most of the names of files that differ, bytes.
const DIFFERENCES: usize = 4_000;

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
    /// Take it into use; what was live is kept.
    #[serde(default)]
    swap: bool,
    /// Only this path of it.
    path: Option<String>,
    /// Other stack to fill a volume for.
    to_stack: Option<StackName>,
    /// Alone: lets go of a place that `backups` lists as `kept`, once a snapshot holds all of it.
    confirm: Option<String>,
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
    /// Names of files that differ: a container may have chosen them.
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Untrusted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl From<(DataView, DataResult)> for Output {
    fn from((view, mut done): (DataView, DataResult)) -> Self {
        let o = done.restored.pop();
        let RestoreOutcome { volume, source, snapshot_id, files, bytes, verified, differences, next, by_sums: _ } = match o {
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
                    differences: None,
                    next: None,
                };
            }
        };
        let differences =
            (!differences.is_empty()).then(|| redact::envelope(format!("files of {source}"), &differences.join("\n"), DIFFERENCES));
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
        description: "Restores a snapshot beside the live data and verifies every byte; what is live is never overwritten. With `swap` the stack goes on with it, proven like a deploy.",
        effect: Effect::Destructive,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        if let Some(place) = &input.confirm {
            alone(input)?;
            return Ok(Scope::stack(&kept::at(call, place).await?.stack));
        }
        let snapshot = snapshot(call, input).await?;
        let stack = stack_of(&snapshot);
        if input.swap && (input.into.is_some() || stack.is_none()) {
            let message =
                "swap makes a new volume for the stack the snapshot is of: it goes without `into`, and with a snapshot of a stack";
            return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave `into` or `swap` out").field("swap"));
        }
        if input.swap && directory(call, &snapshot).await?.is_some_and(|d| d.here.is_none()) {
            let message = format!("{} is a directory of the host that the supervisor does not see", snapshot.volume);
            let hint = "restore it into a volume with `into`, or let the supervisor's container see the directory above it";
            return Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("swap"));
        }
        if let Some(path) = &input.path {
            inside(path)?;
            if input.swap {
                let message = "swap takes a whole snapshot into use, and path asks for a part of it";
                return Err(CallError::new(ErrorCode::InvalidArgument, message, "leave `path` or `swap` out").field("path"));
            }
        }
        if let Some(to) = &input.to_stack {
            return elsewhere(input, &snapshot, stack, to);
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
        if let Some(place) = &input.confirm {
            let kept = kept::at(call, place).await?;
            // Refused before anybody is asked to approve it.
            let covered_by = kept::releasable(call, &kept).await?.map(|s| s.snapshot_id).or(kept.covered);
            return Ok(Some(json!({"kept": kept.place, "operation_id": kept.operation, "since": kept.since, "covered_by": covered_by})));
        }
        let record = snapshot(call, input).await?;
        let mut resolved = json!({"snapshot_id": record.snapshot_id, "volume": record.volume, "taken_at": record.at});
        if let Some(asked) = input.volume.as_ref().filter(|v| **v != record.volume) {
            resolved["asked_for"] = json!(asked);
        }
        Ok(Some(resolved))
    }

    async fn run(call: &Call, input: Input, plan: Option<Plan>, permit: Permit) -> Result<Output, CallError> {
        if let Some(plan) = plan {
            let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
            let live = plan.data.exchange.first().map(|e| e.host.clone());
            let done: Output = data::execute_plan(call, Self::SPEC.name, plan, permit, waiting, &arguments).await?.into();
            // It is in use: what was filled beside it has taken its place, and nothing is left to be called.
            return Ok(Output { volume: live.filter(|_| done.volume.is_some()).or(done.volume), next: None, ..done });
        }
        if let Some(place) = &input.confirm {
            let kept = Box::new(kept::at(call, place).await?);
            let snapshot = kept::releasable(call, &kept).await?.map(Box::new);
            let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
            let (stack, host) = (Some(kept.stack.clone()), kept::host(call, &kept));
            let job = DataJob::Discard { kept, host, snapshot };
            return Ok(data::execute(call, Self::SPEC.name, stack, job, permit, waiting, &arguments).await?.into());
        }
        let snapshot = Box::new(snapshot(call, &input).await?);
        let stack = stack_of(&snapshot);
        let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
        let path = input.path.as_deref().map(inside).transpose()?;
        if let Some(path) = &path {
            there(call, &snapshot, path).await?;
        }
        let stack = input.to_stack.clone().or(stack);
        let job = match directory(call, &snapshot).await? {
            Some(directory) if input.into.is_none() && input.to_stack.is_none() => DataJob::RestoreDirectory { snapshot, directory, path },
            _ => DataJob::Restore { snapshot, into: input.into, path, to: input.to_stack },
        };
        Ok(data::execute(call, Self::SPEC.name, stack, job, permit, waiting, &arguments).await?.into())
    }

    fn text(o: &Output) -> Option<String> {
        let mut text = o.view.line("restore");
        if let (Some(volume), Some(source), Some(id)) = (&o.volume, &o.source, &o.snapshot_id) {
            let verified = if o.verified == Some(true) { "verified".to_owned() } else { "NOT equal to the snapshot".to_owned() };
            let (files, bytes) = (o.files.unwrap_or_default(), o.bytes.unwrap_or_default());
            text.push_str(&format!("\n{id} of {source} into {volume}: {files} files, {bytes} bytes, {verified}"));
        }
        if let Some(next) = &o.next {
            text.push_str(&format!("\n{next}"));
        }
        if let Some(differences) = &o.differences {
            text.push_str(&format!("\n[untrusted, {}] {}", differences.source, differences.text));
        }
        Some(text)
    }
}

/// A path inside of a snapshot: relative, and no way up.
fn inside(text: &str) -> Result<PathBuf, CallError> {
    let mut path = PathBuf::new();
    let wrong = |what: &str| {
        let message = format!("{:?} {what}", crate::redact::line(text, 200));
        CallError::new(ErrorCode::InvalidArgument, message, "give a path inside of the snapshot, e.g. sub/dir").field("path")
    };
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(wrong("is absolute")),
            Component::ParentDir => return Err(wrong("leads up")),
        }
    }
    if path.as_os_str().is_empty() { Err(wrong("names nothing")) } else { Ok(path) }
}

/// Refuses a path that the snapshot does not hold, before anything is made.
async fn there(call: &Call, record: &BackupRecord, path: &Path) -> Result<(), CallError> {
    let Some(house) = &call.house.backups else { return Ok(()) };
    let unknown = |e: String| CallError::new(ErrorCode::Conflict, crate::redact::line(&e, 300), "call `backups` to see the snapshots");
    let id = SnapshotId::new(record.snapshot_id.as_str()).map_err(|e| unknown(e.to_string()))?;
    match house.find(&id, path).await {
        Err(e @ BackupError::Worker(Failure::NoSuchPath { .. })) => {
            let message = crate::redact::line(&e.to_string(), 500);
            Err(CallError::new(ErrorCode::NotFound, message, "give one that is there, or leave `path` out").field("path"))
        }
        other => other.map_err(|e| unknown(e.to_string())),
    }
}

/// `confirm` restores nothing.
fn alone(input: &Input) -> Result<(), CallError> {
    let Input { snapshot_id, volume, at, into, swap, path, to_stack, confirm: _, wait: _, timeout_s: _, idempotency_key: _, reason: _ } =
        input;
    if snapshot_id.is_none() && volume.is_none() && at.is_none() && into.is_none() && !swap && path.is_none() && to_stack.is_none() {
        return Ok(());
    }
    let message = "confirm lets kept data go and restores nothing";
    Err(CallError::new(ErrorCode::InvalidArgument, message, "give confirm alone").field("confirm"))
}

/// A restore for another stack is about both: whose data is read, and who gets it.
fn elsewhere(input: &Input, snapshot: &BackupRecord, stack: Option<StackName>, to: &StackName) -> Result<Scope, CallError> {
    let refused = |message: String, hint: &str| Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("to_stack"));
    match stack {
        None => refused(format!("snapshot {} is of no stack", snapshot.snapshot_id), "restore it beside, without `to_stack`"),
        Some(stack) if stack == *to => {
            refused(format!("the snapshot is of {to} itself"), "leave `to_stack` out: the data comes back beside the live data")
        }
        Some(_) if input.swap || input.into.is_some() => {
            refused("to_stack names the volume itself and takes nothing into use".into(), "leave `into` and `swap` out")
        }
        Some(stack) => Ok(Scope { stack: Some(to.clone()), also: Some(stack), ..Scope::default() }),
    }
}

fn stack_of(record: &BackupRecord) -> Option<StackName> {
    record.stack.as_deref().and_then(|s| StackName::new(s).ok())
}

/// The directory of the host that a snapshot is of.
async fn directory(call: &Call, record: &BackupRecord) -> Result<Option<Directory>, CallError> {
    if !record.volume.starts_with('/') {
        return Ok(None);
    }
    let release = match stack_of(record) {
        Some(stack) => volumes::current(call, &stack).await?,
        None => None,
    };
    let mut found = sources::directory_of(&call.house, release.as_ref(), &record.volume).await?;
    found.here = found.here.filter(|h| h.parent().is_some_and(std::path::Path::is_dir));
    Ok(Some(found))
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
            return lineage::newest(call, volume, at).await;
        }
        _ => return Err(wrong("restore takes either snapshot_id, or volume and at")),
    };
    let found = found.ok_or_else(|| {
        CallError::new(ErrorCode::NotFound, "there is no such snapshot", "call `backups` to see them").field("snapshot_id")
    })?;
    data::not_the_houses(&found).map(|()| found)
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
    fn a_path_inside_of_a_snapshot_leads_neither_out_nor_nowhere() {
        for (text, path) in [("sub/dir", "sub/dir"), ("./sub//dir/", "sub/dir"), ("a file", "a file")] {
            assert_eq!(inside(text).unwrap(), Path::new(path), "{text}");
        }
        for (text, why) in [("/etc", "is absolute"), ("sub/../../etc", "leads up"), ("..", "leads up"), ("", "nothing"), (".", "nothing")] {
            let e = inside(text).unwrap_err();
            assert!(e.message.contains(why) && e.field.as_deref() == Some("path"), "{text}: {}", e.message);
        }
    }

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
