//! One look at a stack: its containers in full, and the names of its networks and volumes.

use super::Executor;
use crate::engine::EngineError;
use crate::model::ids::StackName;
use crate::model::labels;
use crate::planner::Observed;
use futures_util::TryStreamExt;
use futures_util::stream::FuturesOrdered;
use std::collections::BTreeMap;

impl Executor {
    /// What is on the engine for a stack of ours.
    ///
    /// # Errors
    /// The engine's.
    pub async fn observe(&self, stack: &StackName) -> Result<Observed, EngineError> {
        let filter = [labels::filter(labels::INSTANCE, self.store.instance()), labels::filter(labels::STACK, stack.as_str())];
        let (containers, networks, volumes) =
            tokio::try_join!(self.engine.containers(&filter), self.engine.networks(&filter), self.engine.volumes(&filter))?;
        let mut looks = FuturesOrdered::new();
        for container in containers.iter().filter(|c| c.labels.get(labels::ROLE).map(String::as_str) != Some(labels::ROLE_CLAIM)) {
            looks.push_back(self.engine.container(&container.id));
        }
        let details: Vec<_> = looks.try_collect().await?;
        Ok(Observed {
            containers: details.into_iter().flatten().collect(),
            networks: networks.into_iter().map(|n| n.name).collect(),
            volumes: volumes.into_iter().map(|v| v.name.to_string()).collect(),
            once: BTreeMap::new(),
        })
    }
}
