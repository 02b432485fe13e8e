//! What somebody's own Compose replaced is left to it: told once, never fought, and nothing is made beside it.

use super::{Healer, Look, LookError};
use crate::call::diagnose::Ailment;
use crate::call::successor;
use crate::model::labels;
use serde_json::json;

impl Healer {
    /// The ailing services that Compose does not run meanwhile.
    pub(super) async fn without_successor(&mut self, look: &Look<'_>, ailing: Vec<Ailment>) -> Result<Vec<Ailment>, LookError> {
        if ailing.is_empty() {
            return Ok(ailing);
        }
        let successors = successor::of(&self.house, look.stack).await.map_err(|e| LookError::Successors(e.message))?;
        let (left, ailing): (Vec<_>, Vec<_>) = ailing.into_iter().partition(|a| successors.contains_key(&a.service));
        for Ailment { service, .. } in left {
            let c = &successors[&service];
            if !self.replaced.insert(c.id.clone()) {
                continue;
            }
            let stack = look.stack;
            tracing::warn!(%stack, %service, container = %c.id, "replaced by Compose: left alone; `dockwarden adopt` takes it over");
            let number = c.labels.get(labels::COMPOSE_NUMBER);
            let hint = format!("run `dockwarden adopt {stack}`, or remove it and `deploy`");
            let detail = json!({"service": service, "container": c.id, "number": number, "hint": hint});
            self.house.store.audit_event(super::super::WARDEN, "replaced_by_compose", Some(stack.as_str()), &detail, look.now).await?;
        }
        Ok(ailing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{ContainerSpec, Engine};
    use crate::gate::Permit;
    use crate::model::ids::{AgentName, EngineName, ImageRef, StackName};
    use crate::model::observed::ContainerSummary;
    use crate::supervisor::tasks::tests::Bench;
    use std::sync::Arc;

    async fn all(engine: &Arc<dyn Engine>) -> Vec<ContainerSummary> {
        let mut found = engine.containers(&[labels::filter(labels::COMPOSE_PROJECT, "shop")]).await.expect("listed");
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The container that Compose makes beside the one it replaces.
    async fn made_by_compose(engine: &Arc<dyn Engine>, permit: &Permit, oneoff: &str) -> EngineName {
        let mut spec =
            ContainerSpec::new(EngineName::new("0123456789ab_shop-web-1").expect("valid"), ImageRef::new("hello:1").expect("valid"));
        let labels = [(labels::COMPOSE_PROJECT, "shop"), (labels::COMPOSE_SERVICE, "web"), (labels::COMPOSE_ONEOFF, oneoff)];
        spec.labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        engine.create_container(permit, &spec).await.expect("made")
    }

    async fn deployed() -> (Bench, Permit) {
        let b = Bench::with(|_| {}).await;
        let agent = AgentName::new("a0").expect("valid");
        let who = crate::call::Principal { agent, door: crate::call::Door::Cli, client: None, read_only: false, on_behalf: vec![] };
        let input = json!({"stack": "shop", "compose": "x-dockwarden: {monitor_s: 0}\nservices:\n  web:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.5\n"});
        crate::call::dispatch::dispatch(&b.house, &who, "deploy", input, None).await.expect("deployed");
        let operation = b.house.store.operations(Some(&StackName::new("shop").expect("valid")), 1).await.expect("read").remove(0);
        let permit = crate::gate::permit_takeover(&operation);
        // The loop's own agent is shipped.
        b.house.rulebook.store(Arc::new(crate::gate::call::tests::shipped()));
        (b, permit)
    }

    async fn events(b: &Bench) -> usize {
        let rows = b.house.store.audit_after(0, None, 1000).await.expect("rows");
        rows.into_iter().filter(|r| r.tool == "replaced_by_compose").count()
    }

    async fn scanned(b: &Bench) {
        let (wake, mut woken) = tokio::sync::mpsc::channel(16);
        let mut healer = Healer::new(b.house.clone(), wake).await;
        healer.quiet_until = None;
        healer.signs.way = std::time::Duration::ZERO;
        for _ in 0..2 {
            healer.scan().await;
        }
        drop(healer);
        // What was begun has ended when nobody can wake the loop any more.
        while woken.recv().await.is_some() {}
    }

    #[tokio::test]
    async fn what_compose_replaces_is_left_to_it_at_every_moment_of_the_exchange() {
        let (b, permit) = deployed().await;
        let engine = b.house.engine.clone();
        let ours = all(&engine).await.remove(0);
        let theirs = made_by_compose(&engine, &permit, "False").await;
        engine.stop(&permit, &ours.id, std::time::Duration::ZERO).await.expect("stopped");
        scanned(&b).await;
        assert_eq!(all(&engine).await.len(), 2, "its successor is made, ours is stopped");
        engine.remove_container(&permit, &ours.id, false).await.expect("removed");
        scanned(&b).await;
        assert_eq!(
            all(&engine).await.into_iter().map(|c| c.id).collect::<Vec<_>>(),
            std::slice::from_ref(&theirs),
            "ours is gone, its successor not started"
        );
        engine.rename(&permit, &theirs, &EngineName::new("shop-web-1").expect("valid")).await.expect("renamed");
        engine.start(&permit, &theirs).await.expect("started");
        scanned(&b).await;
        assert_eq!(all(&engine).await.into_iter().map(|c| c.id).collect::<Vec<_>>(), [theirs], "one container serves, and it is theirs");
        assert_eq!(events(&b).await, 2, "told once by each run of the loop that finds ours gone");

        // Nor is one made beside it on request.
        let input = json!({"stack": "shop", "service": "web", "recreate": true});
        let refused = super::super::super::call(&b.house, "restart", input).await.expect_err("refused");
        assert!(refused.message.contains("is run by Compose") && refused.hint.contains("dockwarden adopt shop"), "{refused:?}");
    }

    #[tokio::test]
    async fn what_compose_ran_once_succeeds_nobody() {
        let (b, permit) = deployed().await;
        let engine = b.house.engine.clone();
        let ours = all(&engine).await.remove(0);
        made_by_compose(&engine, &permit, "True").await;
        engine.remove_container(&permit, &ours.id, false).await.expect("removed");
        scanned(&b).await;
        let found = all(&engine).await;
        assert_eq!(found.len(), 2, "made again: {found:?}");
        assert_eq!(events(&b).await, 0);
    }
}
