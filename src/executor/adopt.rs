//! Taking a stack over from Compose, and giving it back. Nothing is restarted: adopting tags the images that run, claims the stack and writes the
//! registry in one transaction; giving it back removes the claim and our tags and forgets. Both are journaled like any operation; an adoption that
//! was interrupted before its transaction is undone, one after it is done. Deliberately absent: judging what runs (`call::adopt` does).

use super::acts::Act;
use super::run::{Begin, Halt, Run, failed};
use super::work::Held;
use super::{Active, Executor, ExecutorError, Request, Standing, names};
use crate::engine::EngineError;
use crate::gate::Permit;
use crate::model::adopted::{AdoptedObject, Adoption, ObjectKind};
use crate::model::ids::*;
use crate::model::labels;
use crate::model::operation::*;
use crate::model::plan::Plan;
use crate::model::release::{Release, ReleaseState};
use chrono::Utc;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

impl Executor {
    /// Makes what runs the plan's release of the stack: `plan.desired` with `plan.images` is what the objects of `adoption` are. Waits for the end.
    ///
    /// # Errors
    /// `Busy` while an operation holds the stack, `Closing`, `Store`. An adoption that failed is an operation in a failed state.
    pub async fn adopt(
        self: &Arc<Self>,
        plan: Plan,
        permit: Permit,
        request: Request,
        adoption: Adoption,
    ) -> Result<Operation, ExecutorError> {
        let id = {
            let _one = self.turn(&plan.stack).await?;
            let op = self.begin(&plan.stack, request, Some(&plan)).await?;
            let (id, stack) = (op.id.clone(), plan.stack.clone());
            let standing = Standing { state: op.state, phase: op.phase, percent: 0.0, message: "adopting".into() };
            let (send, receive) = watch::channel(standing);
            let (cancel, conclude) = (CancellationToken::new(), CancellationToken::new());
            let active = Active {
                stack: Some(stack),
                volumes: BTreeSet::new(),
                standing: receive,
                cancel: cancel.clone(),
                conclude: conclude.clone(),
            };
            self.active.lock().expect("no panic while held").insert(id.clone(), active);
            let begin = Begin { exec: self.clone(), plan, permit, current: None, op, steps: vec![], standing: send, cancel, conclude };
            let run = Run::new(begin);
            let held = Held { exec: self.clone(), id: id.clone() };
            // On its own: who asked may go away, half an adoption must not stay.
            self.tasks.spawn(async move {
                let id = run.operation_id().clone();
                let end = match run.adopt(adoption).await {
                    Ok(()) => run.settle(OperationState::Done, None, vec![]).await,
                    Err(halt) => run.end(halt).await,
                };
                if let Err(e) = end {
                    tracing::error!(operation = %id, error = %e, "the end of the adoption could not be recorded; the next start takes it over");
                }
                drop(held);
            });
            id
        };
        self.wait(&id, super::ADOPT_WITHIN, super::Until::Ended).await
    }

    /// Gives a stack back: its claim and our tags go, then every record of it. Containers, networks and volumes stay as they are.
    ///
    /// # Errors
    /// `Busy`, `Closing`, the engine's and the store's; it can be asked for again after each.
    pub async fn eject(self: &Arc<Self>, stack: &StackName, permit: &Permit, request: Request) -> Result<(), ExecutorError> {
        let _one = self.turn(stack).await?;
        let op = self.begin(stack, request, None).await?;
        let given_back = self.give_back(stack, permit, &op).await;
        if let Err(e) = &given_back {
            // Nobody is at work on it any more. What forgets the stack comes last: it is still ours.
            let message = format!("{e}; the stack is still managed here, eject it again");
            self.store.end_superseded(&op.id, OperationState::Failed, &message, Utc::now()).await?;
        }
        given_back
    }

    async fn give_back(&self, stack: &StackName, permit: &Permit, op: &Operation) -> Result<(), ExecutorError> {
        let claim = names::claim(stack);
        let intent = json!({"act": "eject", "claim": claim});
        let seq = self.store.step_intent(&op.id, op.epoch, Phase::Prepare, "eject", &intent, Utc::now()).await?;
        let holder = self.engine.container(&claim).await?;
        if holder.is_some_and(|c| c.labels.get(labels::INSTANCE).is_some_and(|i| i == self.store.instance())) {
            self.engine.remove_container(permit, &claim, true).await?;
        }
        self.untag(stack, permit).await?;
        self.store.step_done(&op.id, seq, &Value::Null).await?;
        let observed = self.observe(stack).await?;
        let object = |kind, id: String| AdoptedObject { kind, id, stack: stack.clone(), labels: BTreeMap::new() };
        let containers = observed.containers.into_iter().map(|c| object(ObjectKind::Container, c.id.to_string()));
        let networks = observed.networks.into_iter().map(|n| object(ObjectKind::Network, n));
        let volumes = observed.volumes.into_iter().map(|v| object(ObjectKind::Volume, v));
        let given_back: Vec<AdoptedObject> = containers.chain(networks).chain(volumes).collect();
        // Last: as long as it has not happened, the stack is ours and can be ejected again.
        self.store.forget_stack(stack, &given_back).await?;
        Ok(())
    }

    async fn begin(&self, stack: &StackName, request: Request, plan: Option<&Plan>) -> Result<Operation, ExecutorError> {
        if self.closing.is_cancelled() {
            return Err(ExecutorError::Closing);
        }
        let op = Operation {
            stack: Some(stack.clone()),
            plan: plan.map(|p| p.id.clone()),
            state: OperationState::Running,
            phase: Phase::Prepare,
            release: plan.map(|p| p.to_release),
            reason: request.reason,
            ..Operation::new(
                OperationId::new(format!("op-{}", ulid::Ulid::generate().to_string().to_lowercase())).expect("a ULID is a valid id"),
                request.verb,
                request.agent,
                request.call,
                Utc::now(),
            )
        };
        if let Some(plan) = plan {
            self.store.put_plan(plan).await?;
        }
        match self.store.begin_operation(op, &request.args_hash).await? {
            Ok(op) | Err(op) => Ok(op),
        }
    }

    /// Our tags on images go, except where one is the last that keeps an image.
    async fn untag(&self, stack: &StackName, permit: &Permit) -> Result<(), EngineError> {
        let prefix = format!("dockwarden/{stack}/");
        for image in self.engine.images().await? {
            let (ours, others): (Vec<_>, Vec<_>) = image.tags.iter().partition(|t| t.starts_with(&prefix));
            if others.is_empty() && image.repo_digests.is_empty() {
                continue;
            }
            for tag in ours.into_iter().filter_map(|t| ImageRef::new(t.as_str()).ok()) {
                match self.engine.remove_image(permit, &tag).await {
                    Ok(()) | Err(EngineError::NotFound { .. } | EngineError::Conflict(_)) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

impl Run {
    async fn adopt(&self, mut adoption: Adoption) -> Result<(), Halt> {
        let (store, plan, op) = (&self.exec.store, &self.plan, self.operation());
        let release = Release {
            stack: plan.stack.clone(),
            number: plan.to_release,
            state: ReleaseState::Pending,
            environment: plan.environment.clone(),
            spec: plan.desired.clone(),
            images: plan.images.clone(),
            agent: op.agent.clone(),
            operation: op.id.clone(),
            reason: op.reason.clone(),
            content_of: None,
            project_dir: plan.project_dir.clone(),
            git: plan.git.clone(),
            created_at: Utc::now(),
        };
        store.put_release(&release).await?;
        self.note_judged().await?;
        let mut any = None;
        for (service, identity) in &plan.images {
            let Some(image) = identity.id.as_deref().and_then(|id| ImageRef::new(id).ok()) else { continue };
            // Kept even when Compose's tag moves on: release 1 can be gone back to.
            let tag = format!("dockwarden/{}/{}:r{}", plan.stack, service.as_str().to_lowercase(), plan.to_release);
            if let Ok(target) = ImageRef::new(tag) {
                self.step(Phase::Prepare, format!("tag:{service}"), Act::Tag { image: image.clone(), target }).await?;
            }
            any.get_or_insert(image);
        }
        let image = any.ok_or_else(|| failed("no image of the stack is on the engine"))?;
        self.step(Phase::Prepare, "claim".into(), Act::Claim { image }).await?;
        let mut taken = vec![];
        for object in &mut adoption.objects {
            object.labels.insert(labels::OPERATION.into(), op.id.to_string());
            let gone = match (object.kind, EngineName::new(object.id.as_str())) {
                (_, Err(e)) => return Err(failed(e.to_string())),
                (ObjectKind::Container, Ok(id)) => self.exec.engine.container(&id).await.map(|c| {
                    let gone = c.is_none();
                    taken.extend(c);
                    gone
                }),
                (ObjectKind::Network, Ok(name)) => self.exec.engine.network(&name).await.map(|n| n.is_none()),
                (ObjectKind::Volume, Ok(name)) => self.exec.engine.volume(&name).await.map(|v| v.is_none()),
            };
            if gone.map_err(|e| failed(e.to_string()))? {
                return Err(failed(format!("{} {} went away while the stack was adopted; adopt it again", kind(object.kind), object.id)));
            }
        }
        self.exec.note_links(&plan.stack, &taken).await?;
        if self.cancel.is_cancelled() {
            return Err(Halt::Cancelled);
        }
        store.adopt(&op, &release, &adoption, Utc::now()).await?;
        self.exec.recorded()
    }
}

fn kind(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Container => "container",
        ObjectKind::Network => "network",
        ObjectKind::Volume => "volume",
    }
}
