//! `backups`: the snapshots we took, newest first.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::coverage::{self, Uncovered};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::kept::{self, Kept};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{EngineName, StackName};
use crate::model::plan::Plan;
use crate::store::backup::copies::CopyState;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
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
    /// The last drill of each volume.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    drills: Vec<DrillRecord>,
    /// The last look at the repository of each kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    checks: Vec<CheckRecord>,
    /// Where each copy of the repository stands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    copies: Vec<CopyState>,
    /// Data that no backup covers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    uncovered: Vec<Uncovered>,
    /// What was live before a swap, until `restore {confirm}`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    kept: Vec<Kept>,
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
        description: "Snapshots of volumes, newest first: when, how large, whether complete, and which data of services no backup covers. Pass snapshot_id to `restore`.",
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
        let uncovered = match input.volume {
            Some(_) => vec![],
            None => coverage::uncovered(call, input.stack.as_ref()).await?,
        };
        let drills = call.house.store.last_drills(input.stack.as_ref(), input.volume.as_ref().map(EngineName::as_str)).await?;
        let next_cursor = snapshots.last().map(|s| s.snapshot_id.clone()).filter(|_| truncated);
        let checks = call.house.store.last_checks().await?;
        let mut kept = kept::list(call, input.stack.as_ref()).await?;
        kept.retain(|k| volume.is_none_or(|v| k.place == v || k.source == v));
        let names = call.house.backups.iter().flat_map(|h| h.copies.iter()).map(|c| c.name.clone()).collect();
        let copies = call.house.store.copies(names).await?;
        Ok(Output { snapshots, drills, checks, copies, uncovered, kept, truncated, next_cursor })
    }

    fn text(o: &Output) -> Option<String> {
        let line = |s: &BackupRecord| {
            let copies = if s.copies.is_empty() { String::new() } else { format!(" also in {}", s.copies.join(", ")) };
            let at = s.at.format("%Y-%m-%dT%H:%M:%SZ");
            format!("{at} {} {} {} bytes {} files {}{copies}", s.snapshot_id, s.volume, s.bytes, s.files, s.state)
        };
        let mut lines: Vec<String> = o.snapshots.iter().map(line).collect();
        if lines.is_empty() {
            lines.push("no snapshots".into());
        }
        let drill = |d: &DrillRecord| {
            let result = if d.passed { "passed" } else { "FAILED" };
            let from = d.copy.as_ref().map(|c| format!(" from the copy {c}")).unwrap_or_default();
            format!("drill of {}{from} at {}: {result}", d.volume, d.at.format("%Y-%m-%dT%H:%M:%SZ"))
        };
        lines.extend(o.drills.iter().map(drill));
        let check = |c: &CheckRecord| {
            let result = if c.passed { "sound" } else { "NOT SOUND" };
            format!("{} at {}: {result}", looked_at(c).trim_start_matches("the "), c.at.format("%Y-%m-%dT%H:%M:%SZ"))
        };
        lines.extend(o.checks.iter().map(check));
        lines.extend(o.copies.iter().map(stands));
        lines.extend(o.uncovered.iter().map(|u| format!("NOT COVERED: {} of {}/{}: {}", u.data, u.stack, u.service, u.because)));
        lines.extend(o.kept.iter().map(Kept::line));
        lines.extend(o.next_cursor.iter().map(|next| format!("(older snapshots: cursor {next})")));
        Some(lines.join("\n"))
    }
}

/// What a check looked at.
pub(super) fn looked_at(check: &CheckRecord) -> String {
    check.copy.as_ref().map_or_else(|| "the repository".to_owned(), |c| format!("the copy {c}"))
}

fn stands(c: &CopyState) -> String {
    let good = c.last_good.map_or_else(|| "never up to date".to_owned(), |at| format!("as of {}", at.format("%Y-%m-%dT%H:%M:%SZ")));
    let failed = c.failed_at.map(|at| format!(", FAILED at {}: {}", at.format("%Y-%m-%dT%H:%M:%SZ"), c.detail)).unwrap_or_default();
    format!("copy {}: {good}, {} snapshots, {} newer ones not in it{failed}", c.copy, c.held, c.missing)
}

fn no_cursor(text: &str) -> CallError {
    let message = format!("{:?} is no cursor of these snapshots", crate::redact::line(text, 64));
    CallError::new(ErrorCode::InvalidArgument, message, "pass next_cursor of the reply before, with the same stack and volume")
        .field("cursor")
}
