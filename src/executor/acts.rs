//! The acts an operation is made of: each may be done again (a command in a container is the one that then runs twice), is named in the journal before it
//! is done, and has its undo beside it, even where that is "none".

use super::backup::DataAct;
use super::names;
use super::run::{Fail, Run};
use crate::engine::{EngineError, NetworkCreate, VolumeCreate};
use crate::model::front::Routes;
use crate::model::ids::{EngineName, ImageRef, ServiceName};
use crate::model::labels;
use crate::model::observed::RunState;
use crate::model::spec::Restart;
use crate::store::kept::KeptRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// One act, as the journal keeps it. Never carries a secret value: what a container is made of is rendered from the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// The switch begins: from here a crash goes forward. Undo: none.
    Switch,
    /// The new version of a service was well on the data it migrates. Undo: none; what undoing does about it is `datapath`'s.
    DataPath {
        /// Service.
        service: ServiceName,
        /// Why it counts as migrating.
        why: String,
    },
    /// A one-shot started, unless it was started before. Undo: stopped; remembered when it had ended well.
    RunOnce {
        /// Service.
        service: ServiceName,
        /// Container.
        id: EngineName,
        /// Run-once key.
        key: String,
    },
    /// A one-shot ran to its end. Undo: none, what it did stays done.
    Ran {
        /// Service.
        service: ServiceName,
        /// Run-once key.
        key: String,
    },
    /// A hook run in a one-off container. Undo: the container removed; what the command did stays done.
    HookOnce {
        /// Service.
        service: ServiceName,
        /// Name of the container.
        name: EngineName,
        /// Command.
        run: Vec<String>,
        /// Time it may take, in seconds.
        timeout_s: u64,
    },
    /// A hook run in a new container. Undo: none, what the command did stays done.
    HookExec {
        /// Service.
        service: ServiceName,
        /// Container.
        id: EngineName,
        /// Command.
        run: Vec<String>,
        /// Time it may take, in seconds.
        timeout_s: u64,
    },
    /// Image pulled. Undo: none (an image harms nobody).
    Pull {
        /// Service it is for.
        service: ServiceName,
        /// Reference.
        image: ImageRef,
        /// `repo@sha256:...` that the plan names: this is pulled, and the reference then names it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// Image tagged for the release, so that a prune keeps it. Undo: tag removed.
    Tag {
        /// Image id.
        image: ImageRef,
        /// Tag.
        target: ImageRef,
    },
    /// Claim of the stack on the engine. Undo: removed when this operation made it.
    Claim {
        /// Image the never started container is made of.
        image: ImageRef,
    },
    /// Network made. Undo: removed when this operation made it.
    Network {
        /// Key in the file.
        key: String,
        /// Name on the engine.
        name: EngineName,
    },
    /// Network of a blue-green release made. Undo: removed.
    Colour {
        /// Name on the engine.
        name: EngineName,
    },
    /// Volume made. Undo: removed when this operation made it (nobody else can have written it).
    Volume {
        /// Key in the file.
        key: String,
        /// Name on the engine.
        name: EngineName,
    },
    /// Container made. Undo: removed.
    Create {
        /// Service.
        service: ServiceName,
        /// Number from 1.
        number: u32,
        /// A canary rather than a serving container.
        canary: bool,
        /// Container it replaces, whose anonymous volumes it takes over.
        inherits: Option<EngineName>,
        /// Name.
        name: EngineName,
    },
    /// Container started. Undo: stopped when this operation made it, so that its port and data are free before the old one starts; one
    /// that was there before may stay up.
    Start {
        /// Container.
        id: EngineName,
    },
    /// Container stopped. Undo: started again.
    Stop {
        /// Container.
        id: EngineName,
        /// Grace time in ms.
        grace_ms: u64,
    },
    /// Container restarted in place. Undo: none.
    Restart {
        /// Container.
        id: EngineName,
        /// Grace time in ms.
        grace_ms: u64,
    },
    /// Restart policy changed. Undo: changed back, and what ran with it and has ended since is started.
    SetRestart {
        /// Container.
        id: EngineName,
        /// Before.
        from: Restart,
        /// After.
        to: Restart,
        /// It ran when its policy was taken away, so that nothing started it again when it ended.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        up: bool,
    },
    /// Container renamed. Undo: renamed back.
    Rename {
        /// Container.
        id: EngineName,
        /// Before.
        from: EngineName,
        /// After.
        to: EngineName,
    },
    /// Container connected to a network of its service again. Undo: none, the release says so.
    Connect {
        /// Service.
        service: ServiceName,
        /// Container.
        id: EngineName,
        /// Network.
        network: String,
    },
    /// Container removed for good. Undo: none; only what no longer serves is removed.
    Remove {
        /// Container.
        id: EngineName,
        /// With its anonymous volumes.
        volumes: bool,
    },
    /// Network removed. Undo: none.
    RemoveNetwork {
        /// Name.
        name: EngineName,
    },
    /// Data made safe or brought back. Undo: the data act's own.
    Data {
        /// Which.
        data: DataAct,
    },
    /// Data that the release has taken the place of is recorded as kept. Undo: the record goes.
    Keep {
        /// Which.
        kept: Vec<KeptRecord>,
    },
    /// Image of fronts made of our own binary. Undo: none (an image harms nobody).
    FrontImage {
        /// Tag.
        image: ImageRef,
    },
    /// A front made, with its first routes. Undo: removed.
    CreateFront {
        /// Service.
        service: ServiceName,
        /// Image.
        image: ImageRef,
        /// Name.
        name: EngineName,
        /// Routes it starts with.
        routes: Routes,
    },
    /// Routes of a front changed. Undo: changed back.
    Route {
        /// Container of the front.
        front: EngineName,
        /// Before.
        from: Routes,
        /// After.
        to: Routes,
    },
    /// Release made current. Undo: the one before is current again.
    Current {
        /// Release.
        release: u32,
        /// Before.
        previous: Option<u32>,
        /// Whether a call had stopped the stack, as it was before the act: what makes the release current makes the stack run.
        #[serde(default)]
        stopped: bool,
    },
}

impl Run {
    /// Does an act; safe to repeat.
    pub(super) async fn perform(&self, act: &Act) -> Result<Value, Fail> {
        let (engine, permit) = (&*self.exec.engine, &self.permit);
        match act {
            Act::Switch | Act::DataPath { .. } => Ok(Value::Null),
            Act::RunOnce { id, .. } => self.start_once(id).await,
            Act::Ran { service, key } => self.remember_run(service, key).await,
            Act::HookOnce { service, name, run, timeout_s } => self.hook_once(service, name, run, *timeout_s).await,
            Act::HookExec { service, id, run, timeout_s } => self.hook_exec(service, id, run, *timeout_s).await,
            Act::Pull { service, image, digest } => self.pull(service, image, digest.as_deref()).await,
            Act::Tag { image, target } => Ok(engine.tag(permit, image, target).await.map(|()| Value::Null)?),
            Act::Claim { image } => self.claim(image).await,
            Act::Network { key, name } => self.ensure_network(key, name).await,
            Act::Colour { name } => self.ensure_colour(name).await,
            Act::Volume { key, name } => self.ensure_volume(key, name).await,
            Act::Create { service, number, canary, inherits, name } => {
                self.create(service, *number, *canary, inherits.as_ref(), name).await
            }
            Act::Start { id } => self.start_or_resume(id).await,
            Act::Stop { id, .. } if self.exec.around().is_us(id) => Err(Fail::Refused(format!(
                "container {id} is the supervisor's own: it is not stopped from within; stop it with the engine's own client"
            ))),
            Act::Stop { id, grace_ms } => match engine.stop(permit, id, Duration::from_millis(*grace_ms)).await {
                Ok(()) | Err(EngineError::NotFound { .. }) => Ok(Value::Null),
                Err(e) => Err(e.into()),
            },
            Act::Restart { id, grace_ms } => {
                self.same_paths(id).await?;
                Ok(engine.restart(permit, id, Duration::from_millis(*grace_ms)).await.map(|()| Value::Null)?)
            }
            Act::SetRestart { id, to, .. } => Ok(engine.set_restart(permit, id, *to).await.map(|()| Value::Null)?),
            Act::Rename { id, to, .. } => self.rename(id, to).await,
            Act::Connect { service, id, network } => self.connect_again(service, id, network).await,
            Act::Remove { id, volumes } => Ok(engine.remove_container(permit, id, *volumes).await.map(|()| Value::Null)?),
            Act::RemoveNetwork { name } => Ok(engine.remove_network(permit, name).await.map(|()| Value::Null)?),
            Act::Data { data } => self.perform_data(data).await,
            Act::Keep { kept } => Ok(self.exec.store.keep(kept).await.map(|()| Value::Null)?),
            Act::FrontImage { image } => self.front_image(image).await,
            Act::CreateFront { service, image, name, routes } => self.create_front(service, image, name, routes).await,
            Act::Route { front, to, .. } => self.route(front, to).await.map(|open| json!({"open": open})),
            Act::Current { release, .. } => {
                // One service of a stopped stack does not bring the others back.
                let runs = self.plan.only.is_none();
                Ok(self.exec.store.make_current(&self.plan.stack, *release, runs, self.epoch).await.map(|()| Value::Null)?)
            }
        }
    }

    /// Takes an act back; safe to repeat, also when the act itself was never done.
    pub(super) async fn take_back(&self, act: &Act, done: Option<&Value>) -> Result<(), Fail> {
        let (engine, permit) = (&*self.exec.engine, &self.permit);
        let made_here = done.is_none_or(|d| d["made"] != json!(false));
        match act {
            Act::Switch
            | Act::Pull { .. }
            | Act::Restart { .. }
            | Act::Remove { .. }
            | Act::Connect { .. }
            | Act::RemoveNetwork { .. }
            | Act::FrontImage { .. }
            | Act::DataPath { .. }
            | Act::Ran { .. }
            | Act::HookExec { .. } => Ok(()),
            Act::RunOnce { service, id, key } => self.stop_once(service, id, key).await,
            Act::HookOnce { name, .. } => self.remove_hook(name).await,
            Act::CreateFront { name, .. } => {
                let id = done.and_then(|d| d["id"].as_str()).and_then(|id| EngineName::new(id).ok());
                let target = id.as_ref().unwrap_or(name);
                if self.is_mine(target).await? {
                    engine.remove_container(permit, target, true).await?;
                }
                Ok(())
            }
            Act::Route { front, from, to } => self.route_back(front, from, to).await,
            Act::Start { id } => {
                if let Some(mine) = engine.container(id).await?.filter(|c| self.made_by_me(&c.labels)) {
                    engine.stop(permit, id, Duration::from_millis(self.grace_of_new(&mine))).await?;
                }
                Ok(())
            }
            Act::Tag { image, target } => {
                // Another home's by now, where it names something else.
                if engine.image(target).await?.is_none_or(|there| there.id != image.as_str()) {
                    return Ok(());
                }
                match engine.remove_image(permit, target).await {
                    Ok(()) | Err(EngineError::NotFound { .. } | EngineError::Conflict(_)) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            Act::Claim { .. } => {
                let name = names::claim(&self.plan.stack);
                if made_here && self.is_mine(&name).await? {
                    engine.remove_container(permit, &name, true).await?;
                }
                Ok(())
            }
            Act::Network { name, .. } | Act::Colour { name } => {
                let mine = engine.network(name).await?.is_some_and(|n| self.made_by_me(&n.labels));
                if made_here && mine {
                    engine.remove_network(permit, name).await?;
                }
                Ok(())
            }
            Act::Volume { name, .. } => {
                let mine = engine.volume(name).await?.is_some_and(|v| self.made_by_me(&v.labels));
                if made_here && mine {
                    engine.remove_volume(permit, name).await?;
                }
                Ok(())
            }
            Act::Create { name, inherits, .. } => {
                let id = done.and_then(|d| d["id"].as_str()).and_then(|id| EngineName::new(id).ok());
                let target = id.as_ref().unwrap_or(name);
                if self.is_mine(target).await? {
                    // Anonymous volumes go with the container only when it brought none over from its predecessor.
                    engine.remove_container(permit, target, inherits.is_none()).await?;
                }
                Ok(())
            }
            Act::Stop { id, .. } => self.serve_again(id).await,
            Act::SetRestart { id, from, up, .. } => match engine.set_restart(permit, id, *from).await {
                Ok(()) if *up => self.serve_again_if_ended(id).await,
                Ok(()) | Err(EngineError::NotFound { .. }) => Ok(()),
                Err(e) => Err(e.into()),
            },
            Act::Rename { id, from, .. } => match self.rename(id, from).await {
                Ok(_) | Err(Fail::Engine(EngineError::NotFound { .. })) => Ok(()),
                Err(e) => Err(e),
            },
            Act::Data { data } => self.take_back_data(data).await,
            Act::Keep { .. } => Ok(self.exec.store.unkeep(self.operation_id()).await?),
            Act::Current { previous, stopped, .. } => {
                self.exec.store.set_current(&self.plan.stack, *previous, self.epoch).await?;
                // Earlier versions kept it with the result.
                if *stopped || done.is_some_and(|d| d["stopped"] == true) {
                    // What a call had stopped is not to run again because a release after it failed.
                    self.exec.store.set_stopped(&self.plan.stack, true).await?;
                }
                Ok(())
            }
        }
    }

    /// Starts; a paused one is resumed, since an engine refuses to start it.
    async fn start_or_resume(&self, id: &EngineName) -> Result<Value, Fail> {
        let (engine, permit) = (&*self.exec.engine, &self.permit);
        if !self.unbound.lock().expect("no panic while held").contains(id) {
            self.same_paths(id).await?;
        }
        match engine.start(permit, id).await {
            Ok(()) => {}
            Err(EngineError::Conflict(why)) => match engine.container(id).await?.map(|c| c.state) {
                Some(RunState::Paused) => engine.pause(permit, id, false).await?,
                Some(_) | None => return Err(EngineError::Conflict(why).into()),
            },
            Err(e) => return Err(e.into()),
        }
        Ok(Value::Null)
    }

    pub(super) fn made_by_me(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        labels.get(labels::OPERATION).is_some_and(|o| *o == self.operation_id().to_string())
            && labels.get(labels::INSTANCE).is_some_and(|i| i == self.exec.store.instance())
    }

    pub(super) async fn is_mine(&self, name: &EngineName) -> Result<bool, Fail> {
        Ok(self.exec.engine.container(name).await?.is_some_and(|c| self.made_by_me(&c.labels)))
    }

    /// Renames unless it already carries the name.
    async fn rename(&self, id: &EngineName, to: &EngineName) -> Result<Value, Fail> {
        let seen = self.exec.engine.container(id).await?;
        if seen.as_ref().is_none_or(|c| c.name != to.as_str()) {
            self.exec.engine.rename(&self.permit, id, to).await?;
        }
        Ok(Value::Null)
    }

    async fn ensure_network(&self, key: &str, name: &EngineName) -> Result<Value, Fail> {
        if let Some(there) = self.exec.engine.network(name).await? {
            return Ok(json!({"made": self.made_by_me(&there.labels)}));
        }
        let spec = self.plan.desired.networks.get(key).cloned().unwrap_or_default();
        let mut labels = spec.labels.clone();
        labels.extend(names::base(self.exec.store.instance(), &self.plan.stack, self.operation_id()));
        labels.insert(labels::COMPOSE_PROJECT.into(), self.plan.stack.to_string());
        labels.insert(labels::COMPOSE_NETWORK.into(), key.to_owned());
        let request = NetworkCreate { name: name.clone(), spec, labels };
        self.judge(crate::gate::request::assert_network(&request, &self.exec.request_facts(&self.plan, None)))?;
        match self.exec.engine.create_network(&self.permit, &request).await {
            Ok(_) => Ok(json!({"made": true})),
            Err(EngineError::Conflict(_)) => Ok(json!({"made": false})),
            Err(e) => Err(e.into()),
        }
    }

    async fn ensure_volume(&self, key: &str, name: &EngineName) -> Result<Value, Fail> {
        if let Some(there) = self.exec.engine.volume(name).await? {
            return Ok(json!({"made": self.made_by_me(&there.labels)}));
        }
        let spec = self.plan.desired.volumes.get(key).cloned().unwrap_or_default();
        let mut labels = spec.labels.clone();
        labels.extend(names::base(self.exec.store.instance(), &self.plan.stack, self.operation_id()));
        labels.insert(labels::COMPOSE_PROJECT.into(), self.plan.stack.to_string());
        labels.insert(labels::COMPOSE_VOLUME.into(), key.to_owned());
        let request = VolumeCreate { name: name.clone(), driver: spec.driver, driver_opts: spec.driver_opts, labels };
        self.judge(crate::gate::request::assert_volume(&request, &self.exec.request_facts(&self.plan, None)))?;
        self.exec.engine.create_volume(&self.permit, &request).await?;
        Ok(json!({"made": true}))
    }
}
