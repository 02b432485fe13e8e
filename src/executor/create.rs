//! A container of a service is made: as it was rendered, once the second judgement has nothing against the very request. One that an earlier run of the step
//! made is found again.

use super::run::{Fail, Run};
use crate::engine::ContainerSpec;
use crate::gate::request::RequestFacts;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::spec::MountKind;
use serde_json::{Value, json};

impl Run {
    /// The container an earlier run of this step made after all. One that was never started may lack files and networks, which come after the create
    /// itself: it is removed, to be made again.
    pub(super) async fn made_before(&self, name: &EngineName, volumes: bool) -> Result<Option<EngineName>, Fail> {
        let Some(there) = self.exec.engine.container(name).await? else { return Ok(None) };
        if !self.made_by_me(&there.labels) {
            return Err(Fail::Refused(format!("a container named {name} is in the way")));
        }
        if there.started_at.is_some() {
            return Ok(Some(there.id));
        }
        self.exec.engine.remove_container(&self.permit, &there.id, volumes).await?;
        Ok(None)
    }

    /// Makes a container of a service, without starting it.
    pub(super) async fn create(
        &self,
        service: &ServiceName,
        number: u32,
        canary: bool,
        inherits: Option<&EngineName>,
        name: &EngineName,
    ) -> Result<Value, Fail> {
        if let Some(id) = self.made_before(name, inherits.is_none()).await? {
            return Ok(json!({"id": id}));
        }
        let mut inherited = match inherits {
            Some(old) => self.exec.engine.container(old).await?.map(|c| c.mounts).unwrap_or_default(),
            None => vec![],
        };
        let mut allowed = self.exec.request_facts(&self.plan, Some(service)).pulled(self.image_id(service).await?.as_str());
        allowed.volumes.extend(self.put_in_place(service, &mut inherited));
        let mut spec = self.render(service, number, canary, &inherited).await?;
        if let Some(colour) = self.colour_of(service).await?.filter(|_| !canary) {
            allowed.networks.insert(colour.to_string());
            spec.networks.push(self.coloured(service, number, &colour)?);
        }
        let id = self.create_judged(spec, allowed).await?;
        Ok(json!({"id": id}))
    }

    /// Creates a container once the second judgement has nothing against the very request.
    pub(super) async fn create_judged(&self, mut spec: ContainerSpec, mut allowed: RequestFacts) -> Result<EngineName, Fail> {
        for source in spec.mounts.iter_mut().filter(|m| m.kind == MountKind::Bind).filter_map(|m| m.source.as_mut()) {
            if let Some(real) = allowed.real_paths.get(source) {
                source.clone_from(real);
            }
        }
        // What the stack has on the engine allows more, and is looked at only where that is asked for.
        if self.judge(crate::gate::request::assert_container(&spec, &allowed)).is_err() {
            let own = self.exec.observe(&self.plan.stack).await?.containers;
            allowed.volumes.extend(own.iter().flat_map(|c| &c.mounts).filter_map(|m| m.name.clone()));
            allowed.containers.extend(own.into_iter().map(|c| c.id.to_string()));
            self.judge(crate::gate::request::assert_container(&spec, &allowed))?;
        }
        let id = self.exec.engine.create_container(&self.permit, &spec).await?;
        if spec.extras.volumes_from.is_empty() && spec.mounts.iter().all(|m| m.kind != MountKind::Bind) {
            self.unbound.lock().expect("no panic while held").insert(id.clone());
        }
        Ok(id)
    }
}
