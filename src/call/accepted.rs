//! Findings an operator approved with a release do not ask again while they are the same: same rule, same place, same value, same environment. Only what
//! asks for an approval is ever answered by an earlier one; what is denied stays denied, and what an agent's rules ask for is asked each time.

use super::{Call, CallError};
use crate::gate::plan::{Weighed, subject};
use crate::model::ids::{OperationId, ServiceName};
use crate::model::observed::ImageIdentity;
use crate::model::plan::{Asked, Plan};
use crate::model::release::Release;
use crate::model::verdict::{Finding, Verdict};
use serde_json::json;
use std::collections::BTreeMap;

/// A finding that was approved, and what carried the approval since.
#[derive(Debug)]
pub(super) struct Accepted<'a> {
    /// Release it was approved with.
    release: u32,
    /// Releases it still stood for.
    carried: Vec<&'a Release>,
}

/// What operators approved with these releases.
///
/// # Errors
/// The store's.
pub(super) async fn with<'a>(call: &Call, releases: &[&'a Release]) -> Result<BTreeMap<String, Accepted<'a>>, CallError> {
    let mut accepted: BTreeMap<String, Accepted<'a>> = BTreeMap::new();
    for &release in releases {
        for (key, number) in call.house.store.accepted(&release.operation).await? {
            let one = accepted.entry(key).or_insert(Accepted { release: number, carried: vec![] });
            one.release = number;
            one.carried.push(release);
        }
    }
    Ok(accepted)
}

/// The findings of a plan: one that was approved before becomes a warning that names the release. Notes in the plan what it asks.
pub(super) fn settle(call: &Call, plan: &mut Plan, weighed: Vec<Weighed>, accepted: &BTreeMap<String, Accepted<'_>>) -> Vec<Finding> {
    let mut findings = Vec::with_capacity(weighed.len());
    for Weighed { mut finding, value } in weighed {
        if finding.verdict == Verdict::Approval {
            let about = json!([
                plan.stack,
                plan.environment,
                finding.rule,
                finding.service,
                finding.path,
                value,
                finding.because,
                subject::subject(&plan.desired, &finding)
            ]);
            let key = call.house.store.keyed_digest(about.to_string().as_bytes());
            let release = accepted.get(&key).filter(|a| same_image(plan, &finding, &a.carried)).map(|a| a.release);
            if let Some(release) = release {
                finding.verdict = Verdict::Warn;
                finding.because = format!("{}; approved with release {release}", finding.because);
            }
            plan.asked.push(Asked { finding: key, release });
        }
        findings.push(finding);
    }
    plan.asked.sort();
    plan.asked.dedup();
    findings
}

/// Whether an approval of how an image is named still means the same image. A tag that names other content now, or content nobody knows yet, is asked
/// for again.
fn same_image(plan: &Plan, finding: &Finding, carried: &[&Release]) -> bool {
    let Some(service) = finding.service.as_deref() else { return true };
    if !finding.rule.starts_with("image.") || finding.path.as_deref() != Some(format!("services.{service}.image").as_str()) {
        return true;
    }
    let of = |images: &BTreeMap<ServiceName, ImageIdentity>| images.iter().find(|(s, _)| s.as_str() == service).map(|(_, i)| i.clone());
    let Some(planned) = of(&plan.images) else { return true };
    carried.iter().filter_map(|r| of(&r.images)).any(|then| then.same_content(&planned))
}

/// Keeps what an operator approved with the operation that carries it out. Failing here only means being asked again.
pub(super) async fn keep(call: &Call, asked: &[Asked], release: u32, operation: &OperationId) {
    if let Err(e) = try_keep(call, asked, release, operation).await {
        tracing::warn!(%operation, error = %e, "what was approved could not be kept; the next plan asks again");
    }
}

async fn try_keep(call: &Call, asked: &[Asked], release: u32, operation: &OperationId) -> Result<(), CallError> {
    let now = by_operator(call).await?;
    let kept = asked.iter().filter_map(|a| Some((a.finding.clone(), a.release.or(Some(release).filter(|_| now))?)));
    let kept: BTreeMap<String, u32> = kept.collect();
    if !kept.is_empty() {
        call.house.store.keep_accepted(operation, kept).await?;
    }
    Ok(())
}

/// Whether a registered operator gave the approval this call runs under: a client's own answer approves one call, not what comes after.
async fn by_operator(call: &Call) -> Result<bool, CallError> {
    let Some(id) = call.approved_by.get() else { return Ok(false) };
    let store = &call.house.store;
    let Some(approval) = store.approval(id, call.now).await? else { return Ok(false) };
    let operators = store.operators().await?;
    Ok(approval.approved_by.iter().any(|by| operators.iter().any(|(name, _)| name == by)))
}
