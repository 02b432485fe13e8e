//! The claim of a stack on an engine: only one supervisor changes a stack there.

use super::run::{Fail, Run};
use super::{names, render};
use crate::engine::EngineError;
use crate::gate::request::RequestFacts;
use crate::model::ids::{EngineName, ImageRef};
use crate::model::labels;
use crate::model::observed::ContainerDetail;
use serde_json::{Value, json};

impl Run {
    /// A never started container with a fixed name: the engine's unique names are the only compare-and-swap it has.
    pub(super) async fn claim(&self, image: &ImageRef) -> Result<Value, Fail> {
        let name = names::claim(&self.plan.stack);
        // All but the first deploy find it.
        if let Some(holder) = self.exec.engine.container(&name).await? {
            return self.held_by(&name, Some(holder));
        }
        let mut spec = render::claim(&name, image);
        spec.labels = names::base(self.exec.store.instance(), &self.plan.stack, self.operation_id());
        spec.labels.insert(labels::ROLE.into(), labels::ROLE_CLAIM.into());
        let mut allowed = RequestFacts::own(image.as_str(), None);
        allowed.plain.stack = Some(self.plan.stack.to_string());
        self.judge(crate::gate::request::assert_own(&spec, &allowed))?;
        match self.exec.engine.create_container(&self.permit, &spec).await {
            Ok(_) => return Ok(json!({"made": true})),
            Err(EngineError::Conflict(_)) => {}
            Err(e) => return Err(e.into()),
        }
        let holder = self.exec.engine.container(&name).await?;
        self.held_by(&name, holder)
    }

    fn held_by(&self, name: &EngineName, holder: Option<ContainerDetail>) -> Result<Value, Fail> {
        let instance = holder.as_ref().and_then(|c| c.labels.get(labels::INSTANCE)).map(String::as_str);
        if instance == Some(self.exec.store.instance()) {
            return Ok(json!({"made": holder.is_some_and(|c| self.made_by_me(&c.labels))}));
        }
        Err(Fail::Refused(format!(
            "stack {} is claimed on this engine by another supervisor (instance {}); remove container {name} if that supervisor is gone for good",
            self.plan.stack,
            instance.unwrap_or("unknown")
        )))
    }
}
