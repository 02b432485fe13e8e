//! What the images of a plan are: by reference for a deploy, on the engine or in the registry, by what a release recorded for a way back. Reads only.

use super::error::ErrorCode;
use super::{Call, CallError};
use crate::gate::plan::Weighed;
use crate::gate::plan::outside::UNRESOLVED;
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::observed::{ImageIdentity, ImageInfo, repository};
use crate::model::plan::{Action, Plan};
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use crate::{gate, redact};
use chrono::{DateTime, Duration, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// Look-ups at once, on the engine and in registries.
const AT_ONCE: usize = 8;

/// Identities of the images of all active services, as the engine has them now. What it does not have, and what `refresh` names, is asked for in the
/// registry: what is there already stays what it is, the rest is pulled by the digest that is told here. Findings name what no registry told.
pub(super) async fn identities(
    call: &Call,
    spec: &StackSpec,
    refresh: &(dyn Fn(&ServiceName) -> bool + Sync),
) -> Result<(BTreeMap<ServiceName, ImageIdentity>, Vec<Weighed>), CallError> {
    let wanted: Vec<(ServiceName, ImageRef)> =
        spec.services.iter().filter(|(_, s)| s.active).filter_map(|(name, s)| Some((name.clone(), s.image.clone()?))).collect();
    let never =
        |name: &ServiceName| spec.services.get(name).and_then(|s| s.pull_policy.as_deref()).is_some_and(|p| matches!(p, "never" | "build"));
    let asked: Vec<_> = wanted.iter().map(|(_, reference)| call.house.engine.image(reference)).collect();
    let found: Vec<Option<ImageInfo>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    if let Some(((name, reference), _)) = wanted.iter().zip(&found).find(|((name, _), found)| found.is_none() && never(name)) {
        let policy = spec.services[name].pull_policy.as_deref().unwrap_or_default();
        let message = format!("image {reference} of service {name} is not on the engine, and its pull_policy is {policy}");
        let hint = "build or load the image on the engine, or change the pull_policy";
        return Err(CallError::new(ErrorCode::Preflight, message, hint).field(format!("services.{name}.pull_policy")));
    }
    let store = &call.house.store;
    let current = match store.stack(&spec.name).await?.and_then(|r| r.current) {
        Some(number) => store.release(&spec.name, number).await?.map(|r| r.images).unwrap_or_default(),
        None => BTreeMap::new(),
    };
    let looks: Vec<_> = wanted
        .into_iter()
        .zip(found)
        .map(|((name, reference), here)| {
            let again = refresh(&name) && !never(&name);
            let runs = current.get(&name).and_then(|i| i.id.clone());
            async move {
                let (identity, unknown) = resolve(call, reference, here, again, runs.as_deref()).await?;
                Ok::<_, CallError>((name, identity, unknown))
            }
        })
        .collect();
    let (mut images, mut findings) = (BTreeMap::new(), vec![]);
    for (name, identity, unknown) in stream::iter(looks).buffered(AT_ONCE).try_collect::<Vec<_>>().await? {
        findings.extend(unknown.map(|why| {
            let because = redact::line(&format!("what {} names is known only after the pull: {why}", identity.reference), 300);
            let path = format!("services.{name}.image");
            Weighed::said(UNRESOLVED, Some(name.to_string()), Some(path), identity.reference.as_str(), because)
        }));
        images.insert(name, identity);
    }
    Ok((images, findings))
}

/// What one reference names: as the engine has it, or, for what it does not have or shall look for again, as the registry tells it.
async fn resolve(
    call: &Call,
    reference: ImageRef,
    here: Option<ImageInfo>,
    again: bool,
    runs: Option<&str>,
) -> Result<(ImageIdentity, Option<String>), CallError> {
    if let Some(digest) = reference.as_str().split_once('@').map(|(_, d)| d) {
        // It names its content itself.
        let exact = format!("{}@{digest}", repository(&reference));
        let known = identity(reference, here);
        return Ok((ImageIdentity { repo_digest: known.repo_digest.or(Some(exact)), ..known }, None));
    }
    // An id is no tag that could move.
    if here.is_some() && (!again || reference.as_str().starts_with("sha256:")) {
        return Ok((identity(reference, here), None));
    }
    let unknown = |reference, why| (ImageIdentity { reference, id: None, repo_digest: None }, Some(why));
    let allowed = gate::plan::images::parse(reference.as_str())
        .is_some_and(|image| gate::plan::images::listed(&image.name, &call.rulebook.policy.allowed_registries));
    if !allowed {
        // A plan is free: it must not have the engine call on whatever host an agent names.
        return Ok(unknown(reference, "its registry is not under allowed_registries and was not asked".to_owned()));
    }
    let digest = match call.house.engine.registry_digest(&reference).await {
        Ok(digest) => digest,
        Err(e) => return Ok(unknown(reference, format!("its registry did not tell ({e})"))),
    };
    let exact = format!("{}@{digest}", repository(&reference));
    let has = |image: &ImageInfo| image.repo_digests.iter().any(|d| d.split_once('@').is_some_and(|(_, d)| d == digest));
    let mut id = here.filter(has).map(|image| image.id);
    if id.is_none() && runs.is_some() {
        // The tag was moved here, but what runs is what the registry has.
        let named = ImageRef::new(exact.as_str()).map_err(|e| CallError::new(ErrorCode::Internal, e.to_string(), "report this"))?;
        id = call.house.engine.image(&named).await?.map(|image| image.id).filter(|id| Some(id.as_str()) == runs);
    }
    Ok((ImageIdentity { reference, id, repo_digest: Some(exact) }, None))
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
    let repo_digest = image.repo_digest_for(&reference);
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
