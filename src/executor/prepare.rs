//! PREPARE: the release's record, its images with their retention tags, the claim, networks and volumes. What does not wait for another is done at once.

use super::acts::Act;
use super::run::{Halt, Run, failed};
use crate::model::ids::{EngineName, ImageRef, ServiceName};
use crate::model::observed::ImageIdentity;
use crate::model::operation::Phase;
use crate::model::release::{Release, ReleaseState};
use crate::store::StoreError;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::BTreeMap;

/// Does things at once. The first failure is reported when all have ended, so that nothing goes on while it is undone.
pub(super) async fn side_by_side(work: impl IntoIterator<Item = impl Future<Output = Result<(), Halt>>>) -> Result<(), Halt> {
    let mut work: FuturesUnordered<_> = work.into_iter().collect();
    let mut first = Ok(());
    while let Some(result) = work.next().await {
        first = first.and(result);
    }
    first
}

impl Run {
    /// The release's own record, before anything of it exists.
    pub(super) async fn record_release(&self) -> Result<(), Halt> {
        let op = self.operation();
        let plan = &self.plan;
        let release = Release {
            stack: plan.stack.clone(),
            number: plan.to_release,
            state: ReleaseState::Pending,
            environment: plan.environment.clone(),
            spec: plan.desired.clone(),
            images: plan.images.clone(),
            agent: op.agent,
            operation: op.id,
            reason: op.reason,
            content_of: plan.content_of,
            project_dir: plan.project_dir.clone(),
            git: plan.git.clone(),
            created_at: Utc::now(),
        };
        match self.exec.store.add_release(&release).await {
            Err(e @ StoreError::Taken { .. }) => Err(failed(e.to_string())),
            other => Ok(other?),
        }?;
        Ok(self.note_judged().await?)
    }

    pub(super) async fn prepare(&self) -> Result<(), Halt> {
        self.pull_images().await?;
        let mut pulled = self.with_pulled();
        for (service, identity) in &mut pulled {
            identity.id = Some(self.image_id(service).await.map_err(|e| failed(e.to_string()))?.to_string());
        }
        if pulled != self.plan.images
            && let Some(mut release) = self.exec.store.release(&self.plan.stack, self.plan.to_release).await?
        {
            release.images = pulled.clone();
            self.exec.store.put_release(&release).await?;
        }
        let ids = pulled.iter().filter_map(|(service, identity)| Some((service, ImageRef::new(identity.id.as_deref()?).ok()?)));
        let tags = side_by_side(ids.map(|(service, image)| async move {
            let tag = format!("dockwarden/{}/{}:r{}", self.plan.stack, service.as_str().to_lowercase(), self.plan.to_release);
            match ImageRef::new(tag) {
                Ok(target) => self.step(Phase::Prepare, format!("tag:{service}"), Act::Tag { image, target }).await.map(|_| ()),
                Err(_) => Ok(()),
            }
        }));
        // The claim before anything else that is seen on the engine: of two homes that begin at once one is refused, and has moved no tag of the other.
        self.claim_stack(&pulled).await?;
        let (tagged, made) = tokio::join!(tags, Box::pin(self.make_objects()));
        tagged.and(made)
    }

    async fn claim_stack(&self, pulled: &BTreeMap<ServiceName, ImageIdentity>) -> Result<(), Halt> {
        if let Some(image) = pulled.values().find_map(|i| i.id.as_deref()).and_then(|id| ImageRef::new(id).ok()) {
            self.step(Phase::Prepare, "claim".into(), Act::Claim { image }).await?;
        }
        Ok(())
    }

    /// Networks and volumes.
    async fn make_objects(&self) -> Result<(), Halt> {
        let active = || self.plan.desired.services.values().filter(|s| s.active);
        let named = |name: &str| EngineName::new(name).map_err(|e| failed(e.to_string()));
        let mut made = vec![];
        for (key, network) in self.plan.desired.networks.iter().filter(|(_, n)| !n.external) {
            if active().any(|s| s.networks.contains_key(key)) {
                made.push((format!("network:{key}"), Act::Network { key: key.clone(), name: named(&network.name)? }));
            }
        }
        for (key, volume) in self.plan.desired.volumes.iter().filter(|(_, v)| !v.external) {
            if active().any(|s| s.mounts.iter().any(|m| m.source.as_deref() == Some(key.as_str()))) {
                made.push((format!("volume:{key}"), Act::Volume { key: key.clone(), name: named(&volume.name)? }));
            }
        }
        side_by_side(made.into_iter().map(|(key, act)| async move { self.step(Phase::Prepare, key, act).await.map(|_| ()) })).await?;
        self.prepare_colour().await
    }
}
