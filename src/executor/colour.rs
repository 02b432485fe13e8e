//! `blue_green`: the network on which the services of a release that start together find each other before anyone else finds them. A container stands
//! on it beside the stack's networks, where its front reaches it. It lives as long as a container of its release does.

use super::acts::Act;
use super::names;
use super::run::{Fail, Halt, Run};
use crate::engine::{EngineError, NetworkAttachment, NetworkCreate};
use crate::gate::request::RequestFacts;
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::operation::Phase;
use crate::model::plan::{Action, Change, Strategy};
use crate::model::spec::{NetworkSpec, ServiceSpec};
use crate::planner;
use serde_json::{Value, json};

/// Whether a service may stand on the network: one of those that meet on a network of the stack already.
fn may_stand(run: &Run, spec: &ServiceSpec) -> bool {
    let shared = planner::strategies::meeting(&run.plan.desired);
    spec.settings.strategy == Some(Strategy::BlueGreen) && spec.networks.keys().any(|key| shared.contains(key.as_str()))
}

impl Run {
    /// Makes the network where services start together: for an update, and when all of them start for the first time, so that these too meet no other
    /// version when the next one comes. One that is added alone stands where its siblings do.
    pub(super) async fn prepare_colour(&self) -> Result<(), Halt> {
        let asked = |c: &&Change| {
            let spec = self.plan.desired.services.get(&c.service);
            spec.is_some_and(|s| s.active && s.settings.strategy == Some(Strategy::BlueGreen)) && c.action != Action::Remove
        };
        let actions: Vec<Action> = self.plan.changes.iter().filter(asked).map(|c| c.action).collect();
        let first = !actions.is_empty() && actions.iter().all(|a| *a == Action::Create);
        if !first && !actions.contains(&Action::Update) {
            return Ok(());
        }
        let name = names::colour(&self.plan.stack, self.operation_id());
        self.step(Phase::Prepare, "colour".into(), Act::Colour { name }).await.map(|_| ())
    }

    /// The network a new container of a service stands on beside the stack's: this operation's, else the one its siblings stand on.
    pub(super) async fn colour_of(&self, service: &ServiceName) -> Result<Option<EngineName>, Fail> {
        if !self.plan.desired.services.get(service).is_some_and(|s| may_stand(self, s)) {
            return Ok(None);
        }
        if self.journal.lock().expect("no panic while held").contains_key("colour") {
            return Ok(Some(names::colour(&self.plan.stack, self.operation_id())));
        }
        let observed = self.exec.observe(&self.plan.stack).await?;
        let begins = names::colours(&self.plan.stack);
        let all = observed.containers.iter().filter(|c| c.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_SERVING));
        let found = all.flat_map(|c| c.networks.keys()).find(|n| n.starts_with(&begins));
        found.map(|n| EngineName::new(n.as_str()).map_err(|e| Fail::Refused(e.to_string()))).transpose()
    }

    /// How a container stands on it: under the names its siblings know from the networks they share.
    pub(super) fn coloured(&self, service: &ServiceName, number: u32, colour: &EngineName) -> Result<NetworkAttachment, Fail> {
        let spec = self.plan.desired.services.get(service).ok_or_else(|| Fail::Refused(format!("the release has no service {service}")))?;
        let mut aliases = vec![service.to_string(), names::canonical(&self.plan.stack, service, spec, number).to_string()];
        let shared = planner::strategies::meeting(&self.plan.desired);
        aliases.extend(spec.networks.iter().filter(|(key, _)| shared.contains(key.as_str())).flat_map(|(_, n)| n.aliases.iter().cloned()));
        aliases.sort();
        aliases.dedup();
        Ok(NetworkAttachment { network: colour.to_string(), aliases, ..NetworkAttachment::default() })
    }

    pub(super) async fn ensure_colour(&self, name: &EngineName) -> Result<Value, Fail> {
        if let Some(there) = self.exec.engine.network(name).await? {
            return Ok(json!({"made": self.made_by_me(&there.labels)}));
        }
        let mut labels = names::base(self.exec.store.instance(), &self.plan.stack, self.operation_id());
        labels.insert(labels::ROLE.into(), labels::ROLE_COLOUR.into());
        labels.insert(labels::COMPOSE_PROJECT.into(), self.plan.stack.to_string());
        let request = NetworkCreate { name: name.clone(), spec: NetworkSpec { name: name.to_string(), ..NetworkSpec::default() }, labels };
        let plain = NetworkSpec { name: name.to_string(), ..NetworkSpec::default() };
        let allowed = RequestFacts { network_specs: [(name.to_string(), plain)].into(), ..RequestFacts::default() };
        self.judge(crate::gate::request::assert_network(&request, &allowed))?;
        match self.exec.engine.create_network(&self.permit, &request).await {
            Ok(_) => Ok(json!({"made": true})),
            Err(EngineError::Conflict(_)) => Ok(json!({"made": false})),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes networks of colours on which nothing of the stack stands any more.
    pub(super) async fn remove_colours(&self) -> Result<(), Halt> {
        let observed: planner::Observed = self.observe().await?;
        let begins = names::colours(&self.plan.stack);
        let used = |n: &str| observed.containers.iter().any(|c| c.networks.contains_key(n));
        for network in observed.networks.iter().filter(|n| n.starts_with(&begins) && !used(n)) {
            let Ok(name) = EngineName::new(network.as_str()) else { continue };
            if let Err(Halt::Interrupted(why)) =
                self.step(Phase::Monitor, format!("remove-network:{name}"), Act::RemoveNetwork { name: name.clone() }).await
            {
                return Err(Halt::Interrupted(why));
            }
        }
        Ok(())
    }
}
