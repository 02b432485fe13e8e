//! Plans of going back: an older release, and the one that runs with the data of a snapshot. Nothing is changed.

use super::{Desired, new_id, not_deployed, planned};
use crate::call::data_plan::bring::{self, Brought};
use crate::call::data_plan::{self, DataChoice};
use crate::call::error::ErrorCode;
use crate::call::images::on_hand;
use crate::call::{Call, CallError, plan_facts, successor};
use crate::model::ids::StackName;
use crate::model::plan::Plan;
use crate::model::release::{Release, ReleaseState};
use crate::planner::Want;
use crate::store::backup::BackupRecord;
use std::collections::BTreeSet;

/// Releases looked through for one to go back to.
const LOOKED_THROUGH: usize = 100;

/// Plans going back to an older release: the named one, the one that wrote the data brought back, or the newest good one before what runs.
///
/// # Errors
/// `NotFound` naming `history` when there is none; `Preflight` when one of its images is gone; `Conflict` when the data needs a choice.
pub async fn rollback(call: &Call, stack: &StackName, to: Option<u32>, data: &DataChoice) -> Result<Plan, CallError> {
    let store = &call.house.store;
    let record = store.stack(stack).await?.ok_or_else(|| not_deployed(stack))?;
    let releases = store.releases(stack, LOOKED_THROUGH).await?;
    let current = releases.iter().find(|r| Some(r.number) == record.current).cloned();
    let to = to.or_else(|| data.release());
    let target = match to {
        Some(number) => releases.into_iter().find(|r| r.number == number),
        None => previous_good(&releases, record.current).cloned(),
    };
    let target = target.ok_or_else(|| {
        let what = to.map_or_else(|| "an older good release".to_owned(), |n| format!("release {n}"));
        CallError::new(
            ErrorCode::NotFound,
            format!("stack {stack} has no {what} to go back to"),
            format!("call `history` with stack {stack} and name one in to_release"),
        )
        .field("to_release")
    })?;
    let snapshots = match data {
        DataChoice::Keep => {
            data_plan::readable(call, current.as_ref(), &target).await?;
            &[][..]
        }
        DataChoice::CodeOnly => &[],
        DataChoice::Snapshots(records) => records,
    };
    let brought = bring::snapshots(call, stack, &target.spec, target.project_dir.as_deref(), snapshots).await?;
    let content_of = target.content_of.or(Some(target.number));
    let images = on_hand(call, &target).await?;
    successor::refuse(&call.house, stack, &target.spec, None).await?;
    let facts = plan_facts::Texts::unknown(&target.spec);
    let desired = Desired {
        spec: target.spec,
        images,
        unresolved: vec![],
        content_of,
        project_dir: target.project_dir,
        git: target.git,
        facts,
        brought,
    };
    let plan = planned(call, stack, Some(desired), None, new_id(), (&BTreeSet::new(), Brought::default())).await?;
    bring::taken_over(&plan)?;
    Ok(plan)
}

/// Plans the release that runs again, with the data of a snapshot in place of the live data.
///
/// # Errors
/// As [`rollback`]; `NotFound` when nothing runs.
pub async fn swap(call: &Call, stack: &StackName, snapshot: BackupRecord) -> Result<Plan, CallError> {
    let current = call.house.store.stack(stack).await?.and_then(|r| r.current).ok_or_else(|| not_deployed(stack))?;
    let of_swap = |e: CallError| if e.field.as_deref() == Some("data") { e.field("swap") } else { e };
    if let Some((service, restore)) = bring::anonymous(call, stack, &snapshot).await? {
        let brought = Brought { restore: vec![restore], exchange: vec![] };
        let plan = planned(call, stack, None, Some(Want::Recreate { service }), new_id(), (&BTreeSet::new(), brought)).await?;
        bring::taken_over(&plan).map_err(of_swap)?;
        return Ok(plan);
    }
    rollback(call, stack, Some(current), &DataChoice::Snapshots(vec![snapshot])).await.map_err(of_swap)
}

/// The newest good release before the content that runs, else the newest that served without having been watched to its end: going back twice goes
/// further back, never to what was just left.
fn previous_good(releases: &[Release], current: Option<u32>) -> Option<&Release> {
    let running = releases.iter().find(|r| Some(r.number) == current);
    let below = running.map_or(u32::MAX, |r| r.content_of.unwrap_or(r.number));
    let before = releases.iter().filter(|r| r.content_of.unwrap_or(r.number) < below);
    let newest = |state| before.clone().filter(|r| r.state == state).max_by_key(|r| r.number);
    newest(ReleaseState::Good).or_else(|| newest(ReleaseState::Unproven))
}
