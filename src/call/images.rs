//! What the images of a plan are on the engine now: by reference for a deploy, by what a release recorded for a way back. Reads only.

use super::error::ErrorCode;
use super::{Call, CallError};
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::observed::{ImageIdentity, ImageInfo};
use crate::model::plan::{Action, Plan};
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use chrono::{DateTime, Duration, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// Identities of the images of all active services, as the engine has them now.
pub(super) async fn identities(call: &Call, spec: &StackSpec, refresh: bool) -> Result<BTreeMap<ServiceName, ImageIdentity>, CallError> {
    let wanted: Vec<(ServiceName, ImageRef)> =
        spec.services.iter().filter(|(_, s)| s.active).filter_map(|(name, s)| Some((name.clone(), s.image.clone()?))).collect();
    let never =
        |name: &ServiceName| spec.services.get(name).and_then(|s| s.pull_policy.as_deref()).is_some_and(|p| matches!(p, "never" | "build"));
    if refresh && !wanted.iter().any(|(name, _)| never(name)) {
        return Ok(wanted.into_iter().map(|(name, reference)| (name, identity(reference, None))).collect());
    }
    let asked: Vec<_> = wanted.iter().map(|(_, reference)| call.house.engine.image(reference)).collect();
    let found: Vec<Option<ImageInfo>> = stream::iter(asked).buffered(8).try_collect().await?;
    if let Some(((name, reference), _)) = wanted.iter().zip(&found).find(|((name, _), found)| found.is_none() && never(name)) {
        let policy = spec.services[name].pull_policy.as_deref().unwrap_or_default();
        let message = format!("image {reference} of service {name} is not on the engine, and its pull_policy is {policy}");
        let hint = "build or load the image on the engine, or change the pull_policy";
        return Err(CallError::new(ErrorCode::Preflight, message, hint).field(format!("services.{name}.pull_policy")));
    }
    let kept = |name: &ServiceName, found| if refresh && !never(name) { None } else { found };
    Ok(wanted
        .into_iter()
        .zip(found)
        .map(|((name, reference), found)| {
            let found = kept(&name, found);
            (name, identity(reference, found))
        })
        .collect())
}

/// Services whose images are pulled again by their `pull_policy`: those that get a new container anyway, so that a deploy without changes stays
/// one. An interval counts from the release that runs.
pub(super) fn pulled_again(plan: &Plan, current: Option<&Release>, now: DateTime<Utc>) -> Vec<ServiceName> {
    let due = |policy: &str| match policy {
        "always" => true,
        "daily" => older(current, now, Duration::days(1)),
        "weekly" => older(current, now, Duration::weeks(1)),
        other => other.strip_prefix("every_").and_then(span).is_some_and(|span| older(current, now, span)),
    };
    let renewed = plan.changes.iter().filter(|c| matches!(c.action, Action::Create | Action::Update));
    let policy = |service: &ServiceName| plan.desired.services.get(service)?.pull_policy.as_deref();
    let known = |service: &ServiceName| plan.images.get(service).is_some_and(|i| i.id.is_some());
    renewed.map(|c| &c.service).filter(|s| policy(s).is_some_and(due) && known(s)).cloned().collect()
}

fn older(current: Option<&Release>, now: DateTime<Utc>, span: Duration) -> bool {
    current.is_none_or(|r| now - r.created_at >= span)
}

/// `12h`, `1d12h`, `2w`: Compose's units, weeks and days included.
fn span(text: &str) -> Option<Duration> {
    let mut seconds = 0i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0)?;
        let number: i64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b'w' => 7 * 86_400,
            b'd' => 86_400,
            b'h' => 3_600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then(|| Duration::try_seconds(seconds)).flatten()
}

/// One image as the engine knows it; without an id when it does not.
pub(super) fn identity(reference: ImageRef, found: Option<ImageInfo>) -> ImageIdentity {
    let Some(image) = found else { return ImageIdentity { reference, id: None, repo_digest: None } };
    // The repository without tag and digest; a port of the registry is no tag.
    let text = reference.as_str().split('@').next().unwrap_or_default();
    let repo = text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(text, |(repo, _)| repo);
    let repo_digest = image.repo_digests.iter().find(|d| d.split('@').next() == Some(repo)).or_else(|| image.repo_digests.first()).cloned();
    ImageIdentity { reference, id: Some(image.id), repo_digest }
}

/// Images of an older release: those gone from the engine are pulled again by digest.
pub(super) async fn on_hand(call: &Call, release: &Release) -> Result<BTreeMap<ServiceName, ImageIdentity>, CallError> {
    let mut found = release.images.clone();
    for (service, identity) in &mut found {
        let id = identity.id.as_deref().and_then(|id| ImageRef::new(id).ok());
        let here = match &id {
            Some(id) => call.house.engine.image(id).await?.is_some(),
            None => false,
        };
        if here {
            continue;
        }
        let digest = identity.repo_digest.as_deref().and_then(|d| ImageRef::new(d).ok()).ok_or_else(|| {
            let message = format!("image {} of service {service} is gone from the engine and has no registry digest", identity.reference);
            CallError::new(ErrorCode::Preflight, message, "`history` tells which releases are restorable; name one in to_release")
        })?;
        *identity = ImageIdentity { reference: digest, id: None, repo_digest: identity.repo_digest.clone() };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_in_every_unit_and_nothing_else_is_one() {
        for (text, seconds) in [("12h", 43_200), ("1d12h", 129_600), ("2w", 1_209_600), ("90s", 90), ("5m", 300)] {
            assert_eq!(span(text), Duration::try_seconds(seconds), "{text}");
        }
        for text in ["", "h", "12", "12x", "1h-2m", "99999999999999999999w"] {
            assert_eq!(span(text), None, "{text}");
        }
    }
}
