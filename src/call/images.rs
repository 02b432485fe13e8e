//! What the images of a plan are on the engine now: by reference for a deploy, by what a release recorded for a way back. Reads only.

use super::error::ErrorCode;
use super::{Call, CallError};
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::observed::{ImageIdentity, ImageInfo};
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// Identities of the images of all active services, as the engine has them now.
pub(super) async fn identities(call: &Call, spec: &StackSpec, refresh: bool) -> Result<BTreeMap<ServiceName, ImageIdentity>, CallError> {
    let wanted: Vec<(ServiceName, ImageRef)> =
        spec.services.iter().filter(|(_, s)| s.active).filter_map(|(name, s)| Some((name.clone(), s.image.clone()?))).collect();
    if refresh {
        return Ok(wanted.into_iter().map(|(name, reference)| (name, identity(reference, None))).collect());
    }
    let asked: Vec<_> = wanted.iter().map(|(_, reference)| call.house.engine.image(reference)).collect();
    let found: Vec<Option<ImageInfo>> = stream::iter(asked).buffered(8).try_collect().await?;
    Ok(wanted.into_iter().zip(found).map(|((name, reference), found)| (name, identity(reference, found))).collect())
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
