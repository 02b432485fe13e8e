//! Containers that somebody disconnected from a network of their service, connected again under the names they had.

use super::acts::Act;
use super::names;
use super::run::{Fail, Halt, Run};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::operation::Phase;
use crate::planner::{Observed, drift};
use serde_json::Value;

impl Run {
    /// Connects what was disconnected of a service, its front included.
    pub(super) async fn connect_lost(&self, service: &ServiceName, observed: &Observed) -> Result<(), Halt> {
        for ((c, network), _) in drift::disconnected(&self.plan.desired, service, observed) {
            let key = format!("connect:{service}:{}:{network}", c.id.short());
            let act = Act::Connect { service: service.clone(), id: c.id.clone(), network };
            self.step(Phase::StartNew, key, act).await?;
        }
        Ok(())
    }

    pub(super) async fn connect_again(&self, service: &ServiceName, id: &EngineName, network: &str) -> Result<Value, Fail> {
        let seen = self.exec.engine.container(id).await?.ok_or_else(|| Fail::Refused(format!("the container {id} is gone")))?;
        if seen.networks.contains_key(network) {
            return Ok(Value::Null);
        }
        if !self.exec.request_facts(&self.plan, Some(service)).networks.contains(network) {
            return Err(Fail::Refused(format!("network {network} is not of this stack")));
        }
        let label = |key: &str| seen.labels.get(key).map(String::as_str);
        let found = if label(labels::ROLE) == Some(labels::ROLE_FRONT) {
            self.front_attachments(service)?.into_iter().find(|a| a.network == network)
        } else {
            let number = label(labels::NUMBER).and_then(|n| n.parse().ok()).unwrap_or(1);
            let mut found = self.render(service, number, false, &[]).await?.networks.into_iter().find(|a| a.network == network);
            // Behind a front it has the name of the operation that made it, not of this one.
            let mine = names::backend(self.operation_id(), service, number);
            if let (Some(a), Some(own)) = (&mut found, label(labels::BACKEND)) {
                a.aliases.retain(|alias| alias != mine.as_str());
                a.aliases.push(own.to_owned());
            }
            found
        };
        let attachment = found.ok_or_else(|| Fail::Refused(format!("service {service} has no network {network}")))?;
        self.exec.engine.connect(&self.permit, id, &attachment).await?;
        Ok(Value::Null)
    }
}
