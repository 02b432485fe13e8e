//! `verify_backup`: a drill. Snapshots are restored into scratch volumes, compared, on request used by a container without network, and removed again.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::data::{self, DataView};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::run::{self, Waiting};
use crate::call::{Call, CallError, volumes};
use crate::executor::backup::{DataJob, DataResult, drill};
use crate::gate::Permit;
use crate::model::ids::{SnapshotId, StackName};
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Snapshots looked through for the newest of each volume.
const LOOKED_THROUGH: usize = 1000;

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One snapshot, from `backups`.
    snapshot_id: Option<SnapshotId>,
    /// Instead: the newest whole snapshot of every volume of a stack.
    stack: Option<StackName>,
    /// Instead: check the repository and read this part of seven of its data.
    #[serde(skip_serializing_if = "Option::is_none")]
    repository_part: Option<u32>,
    /// From this copy of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<String>,
    /// Also start the service's image on the restored data, without network, and wait for its health check. False by default.
    #[serde(default)]
    probe: bool,
    /// Wait until it ended; true by default.
    #[serde(skip_serializing)]
    wait: Option<bool>,
    /// Longest wait, 45 by default, 55 at most; the drill goes on.
    #[serde(skip_serializing)]
    timeout_s: Option<u64>,
    /// A repeated call with the same key returns the same operation.
    #[serde(skip_serializing)]
    idempotency_key: Option<String>,
}

impl Input {
    fn waiting(&self) -> Waiting {
        Waiting { wait: self.wait, timeout_s: self.timeout_s, idempotency_key: self.idempotency_key.clone(), reason: None }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    #[serde(flatten)]
    view: DataView,
    #[schemars(with = "Vec<Row>")]
    drills: Vec<DrillRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    checks: Vec<CheckRecord>,
}

impl From<(DataView, DataResult)> for Output {
    fn from((view, done): (DataView, DataResult)) -> Self {
        Self { view, drills: done.drills, checks: done.checks }
    }
}

pub(super) struct VerifyBackup;

impl Verb for VerifyBackup {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "verify_backup",
        title: "Rehearse a restore",
        description: "Restores snapshots into scratch volumes, compares every byte, on request starts the service on them without network, and removes all of it. Results are kept: `backups` shows the last of each volume. Live data is not touched.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        if input.repository_part.is_some() {
            return part(input).map(|_| Scope::default());
        }
        let first = of(call, input).await?.into_iter().next();
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
        if input.repository_part.is_some() {
            let (arguments, waiting, job) = (
                super::as_arguments(&input)?,
                input.waiting(),
                DataJob::Check { part: part(&input)?, copy: copy(call, input.copy.as_deref())? },
            );
            return Ok(data::execute(call, Self::SPEC.name, None, job, permit, waiting, &arguments).await?.into());
        }
        let snapshots = of(call, &input).await?;
        let stack = snapshots.first().and_then(|s| s.stack.as_deref()).and_then(|s| StackName::new(s).ok());
        let release = match &stack {
            Some(stack) if input.probe => volumes::current(call, stack).await?,
            _ => None,
        };
        let with_user = |s: BackupRecord| {
            let service = release.as_ref().and_then(|r| drill::user_of(r, &s.volume)).map(|(service, _)| service);
            (s, service)
        };
        let copy = copy(call, input.copy.as_deref())?;
        let job = DataJob::Drill { snapshots: snapshots.into_iter().map(with_user).collect(), copy };
        let (arguments, waiting) = (super::as_arguments(&input)?, input.waiting());
        Ok(data::execute(call, Self::SPEC.name, stack, job, permit, waiting, &arguments).await?.into())
    }

    fn text(o: &Output) -> Option<String> {
        let line = |d: &DrillRecord| {
            let result = if d.passed { "came back whole" } else { "FAILED" };
            let probed = d.probed.as_ref().map(|s| format!(", used by {s}")).unwrap_or_default();
            let detail = if d.detail.is_empty() { String::new() } else { format!(": {}", crate::redact::line(&d.detail, 500)) };
            let from = d.copy.as_ref().map(|c| format!(" from the copy {c}")).unwrap_or_default();
            let said = d.evidence.as_ref().map(|e| format!("\n  [untrusted, {}]\n{}", e.source, e.text)).unwrap_or_default();
            format!(
                "\n{} of {}{from}: {result}{probed}, {} files, {} bytes, {} ms{detail}{said}",
                d.snapshot_id, d.volume, d.files, d.bytes, d.duration_ms
            )
        };
        let check = |c: &CheckRecord| {
            let part = c.part.as_ref().map(|p| format!(" and part {p} of its data")).unwrap_or_default();
            let detail = crate::redact::line(&c.detail, 500);
            let result = match (c.passed, detail.is_empty()) {
                (true, true) => "sound".to_owned(),
                (true, false) => format!("sound; strange, and no harm to any snapshot: {detail}"),
                (false, _) => format!("NOT SOUND: {detail}"),
            };
            format!("\n{}{part}: {result}", super::backups::looked_at(c))
        };
        let (drills, checks) = (o.drills.iter().map(line), o.checks.iter().map(check));
        Some(o.view.line("verify_backup") + &drills.chain(checks).collect::<String>())
    }
}

/// Parts the repository's data is read in, one a day.
pub(crate) const PARTS: u32 = 7;

fn part(input: &Input) -> Result<(u32, u32), CallError> {
    match (input.repository_part, &input.snapshot_id, &input.stack) {
        (Some(n), None, None) if (1..=PARTS).contains(&n) => Ok((n, PARTS)),
        _ => {
            let message = format!("repository_part is 1 to {PARTS}, and goes without snapshot_id and stack");
            Err(CallError::new(ErrorCode::InvalidArgument, message, "check each part in turn").field("repository_part"))
        }
    }
}

/// A copy that is configured.
pub(super) fn copy(call: &Call, name: Option<&str>) -> Result<Option<String>, CallError> {
    let Some(name) = name else { return Ok(None) };
    let unknown = |message: String| {
        let hint = "`backups` names the copies; [backup.copies.NAME] of dockwarden.toml makes one";
        CallError::new(ErrorCode::NotFound, message, hint).field("copy")
    };
    let Some(house) = &call.house.backups else { return Err(unknown("this supervisor has no backups".into())) };
    match house.second(name) {
        Ok(second) => Ok(Some(second.name.clone())),
        Err(e) => Err(unknown(crate::redact::line(&e.to_string(), 300))),
    }
}

async fn of(call: &Call, input: &Input) -> Result<Vec<BackupRecord>, CallError> {
    snapshots(call, VerifyBackup::SPEC.name, input.snapshot_id.as_ref(), input.stack.as_ref()).await
}

/// One snapshot by its id, or the newest whole one of each source of a stack.
pub(super) async fn snapshots(
    call: &Call,
    verb: &str,
    id: Option<&SnapshotId>,
    stack: Option<&StackName>,
) -> Result<Vec<BackupRecord>, CallError> {
    let store = &call.house.store;
    let found: Vec<BackupRecord> = match (id, stack) {
        (Some(id), None) => store.backup(id).await?.into_iter().collect(),
        (None, Some(stack)) => {
            let mut newest: Vec<BackupRecord> = vec![];
            for record in store.backups(Some(stack), None, LOOKED_THROUGH).await? {
                if record.state == "complete" && !newest.iter().any(|n| n.volume == record.volume) {
                    newest.push(record);
                }
            }
            newest
        }
        _ => {
            let message = format!("{verb} takes either snapshot_id or stack");
            return Err(CallError::new(ErrorCode::InvalidArgument, message, "give one of them").field("snapshot_id"));
        }
    };
    found.iter().try_for_each(data::not_the_houses)?;
    if found.is_empty() {
        let error = CallError::new(ErrorCode::NotFound, "there is no such snapshot", "call `backups` to see them, `backup` to take one");
        return Err(error.field(if stack.is_some() { "stack" } else { "snapshot_id" }));
    }
    Ok(found)
}
