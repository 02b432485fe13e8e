//! Images of a plan that are not on the engine as planned: pulled by the digest the plan names, a few at once, each image once. What was pulled is in the
//! journal, and every container of the operation is made of exactly that.

use super::acts::Act;
use super::run::{Fail, Halt, Run, failed};
use crate::model::ids::{ImageRef, ServiceName};
use crate::model::observed::ImageIdentity;
use crate::model::operation::Phase;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pulls at once: an engine takes three layers at a time by itself, and a registry counts connections.
const AT_ONCE: usize = 3;

/// Whether a reference names its content itself.
fn by_digest(image: &ImageRef) -> bool {
    image.as_str().contains('@')
}

impl Run {
    /// Pulls what is not on the engine. The first failure keeps those from beginning that have not begun, and is reported when all have ended.
    pub(super) async fn pull_images(&self) -> Result<(), Halt> {
        let pulls = self.plan.images.iter().filter(|(service, identity)| identity.id.is_none() && self.puller(service) == Some(*service));
        let stopped = AtomicBool::new(false);
        let stopped = &stopped;
        let work = pulls.map(|(service, identity)| async move {
            if stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.say(format!("pulling {}", identity.reference));
            let digest = identity.repo_digest.clone();
            let act = Act::Pull { service: service.clone(), image: identity.reference.clone(), digest };
            let result = self.step(Phase::Prepare, format!("pull:{service}"), act).await;
            stopped.fetch_or(result.is_err(), Ordering::Relaxed);
            result.map(|_| ())
        });
        let work: Vec<_> = work.collect();
        let ended: Vec<Result<(), Halt>> = stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
        ended.into_iter().collect::<Result<(), Halt>>()?;
        self.only_what_was_approved()
    }

    /// The service in whose name the image of this one is pulled: the first that wants the same content for the same platform.
    fn puller(&self, service: &ServiceName) -> Option<&ServiceName> {
        let platform = |s: &ServiceName| self.plan.desired.services.get(s).and_then(|s| s.platform.as_deref());
        let wanted = self.plan.images.get(service)?;
        let same = |s: &ServiceName, i: &ImageIdentity| i == wanted && platform(s) == platform(service);
        self.plan.images.iter().find(|(s, i)| same(s, i)).map(|(s, _)| s)
    }

    /// What a pull of this operation brought for a service.
    pub(super) fn pulled(&self, service: &ServiceName) -> Option<(ImageRef, Option<String>)> {
        let key = format!("pull:{}", self.puller(service)?);
        let journal = self.journal.lock().expect("no panic while held");
        let done = journal.get(&key)?.done.as_ref()?;
        let id = ImageRef::new(done["id"].as_str()?).ok()?;
        Some((id, done["repo_digest"].as_str().map(str::to_owned)))
    }

    /// The images as they are now that everything was pulled: what the release records.
    pub(super) fn with_pulled(&self) -> BTreeMap<ServiceName, ImageIdentity> {
        let mut images = self.plan.images.clone();
        for (service, identity) in images.iter_mut().filter(|(_, i)| i.id.is_none()) {
            if let Some((id, digest)) = self.pulled(service) {
                identity.id = Some(id.to_string());
                identity.repo_digest = digest.or(identity.repo_digest.take());
            }
        }
        images
    }

    /// Who approved a tag whose content nobody could name has approved no content: it is on the engine now, and a new plan names it.
    fn only_what_was_approved(&self) -> Result<(), Halt> {
        if self.operation().approval.is_none() {
            return Ok(());
        }
        let unnamed = |i: &&ImageIdentity| i.id.is_none() && i.repo_digest.is_none() && !by_digest(&i.reference);
        match self.plan.images.values().find(unnamed) {
            None => Ok(()),
            Some(identity) => Err(failed(format!(
                "stale_plan: what {} names was not known when the plan was approved, because its registry did not answer; it is on the engine now and nothing \
                 was started: plan again, and the approval binds what was pulled",
                identity.reference
            ))),
        }
    }

    /// Pulls one image, by its digest where the plan names one, and has its reference name it then.
    pub(super) async fn pull(&self, service: &ServiceName, image: &ImageRef, digest: Option<&str>) -> Result<Value, Fail> {
        let engine = &*self.exec.engine;
        let exact = digest.map(ImageRef::new).transpose().map_err(|e| Fail::Refused(e.to_string()))?;
        let target = exact.as_ref().unwrap_or(image);
        let platform = self.plan.desired.services.get(service).and_then(|s| s.platform.as_deref());
        // Content named by its digest need not be fetched twice; for another platform it is other content.
        let here = match (&exact, platform) {
            (Some(exact), None) => engine.image(exact).await?,
            (Some(_), Some(_)) | (None, _) => None,
        };
        let found = match here {
            Some(here) => here,
            None => {
                engine.pull(&self.permit, target, platform, &|line: String| self.say(line)).await?;
                let gone = || Fail::Refused(format!("image {target} was pulled and is not on the engine; is something pruning images?"));
                engine.image(target).await?.ok_or_else(gone)?
            }
        };
        let id = ImageRef::new(found.id.as_str()).map_err(|e| Fail::Refused(e.to_string()))?;
        if exact.is_some() && !by_digest(image) {
            engine.tag(&self.permit, &id, image).await?;
        }
        let repo_digest = exact.map(|e| e.to_string()).or_else(|| found.repo_digest_for(image));
        Ok(json!({"id": id, "repo_digest": repo_digest}))
    }
}
