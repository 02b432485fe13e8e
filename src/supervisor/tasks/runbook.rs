//! A task done by a runbook: its calls in order, each journaled before and after, so that a task that was interrupted goes on where it was and no step is
//! made twice. Deliberately absent: templates and conditions (`gate::runbook`), and any right beyond the agent's.

use super::principal;
use crate::call::approval::{self, Came};
use crate::call::dispatch::{Reply, dispatch};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House, Principal};
use crate::executor::Until;
use crate::gate::runbook::{self, Scope, Told};
use crate::model::ids::{ApprovalId, OperationId};
use crate::model::operation::OperationState;
use crate::model::prompt::{Prompt, Step};
use crate::model::task::{Task, TaskEnd};
use crate::redact;
use crate::store::approval::ApprovalState;
use crate::store::task::TaskStep;
use crate::store::{StoreError, StoreResult};
use crate::tools::{Effect, catalogue};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Elements of a list that a step is made for; the report says that there were more.
const MAX_ELEMENTS: usize = 100;
/// Waits for a rate limit within one try, and the longest of them.
const LIMIT_WAITS: u32 = 3;
const LIMIT_WAIT: Duration = Duration::from_secs(65);
/// One look at an operation that a step began.
const FOLLOW_S: u64 = 30;

/// Why a try ends in the middle.
enum Halt {
    End(TaskEnd),
    Store(StoreError),
}

impl From<StoreError> for Halt {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

struct Run<'a> {
    house: &'a Arc<House>,
    task: &'a Task,
    skill: &'a Prompt,
    who: Principal,
    stop: &'a CancellationToken,
    journal: BTreeMap<String, TaskStep>,
}

/// Does one try of a runbook.
pub(super) async fn run(house: &Arc<House>, task: &Task, skill: &Prompt, stop: &CancellationToken) -> TaskEnd {
    let journal = match house.store.task_steps(&task.id).await {
        Ok(steps) => steps.into_iter().map(|s| (s.step.clone(), s)).collect(),
        Err(e) => return TaskEnd::Retry(e.to_string()),
    };
    let mut run = Run { house, task, skill, who: principal(task), stop, journal };
    match run.all(skill).await {
        Ok(report) => TaskEnd::Succeeded(report),
        Err(Halt::End(end)) => end,
        Err(Halt::Store(e)) => TaskEnd::Retry(e.to_string()),
    }
}

impl Run<'_> {
    async fn all(&mut self, skill: &Prompt) -> Result<String, Halt> {
        let mut steps = BTreeMap::<String, Told>::new();
        for step in &skill.steps {
            let told = self.step(step, &steps).await?;
            steps.insert(step.id.clone(), told);
        }
        Ok(runbook::report(skill, &Scope { input: &self.task.input, steps: &steps, item: None }))
    }

    async fn step(&mut self, step: &Step, steps: &BTreeMap<String, Told>) -> Result<Told, Halt> {
        let scope = Scope { input: &self.task.input, steps, item: None };
        let elements = runbook::elements(step, &scope);
        let (mut values, mut texts) = (vec![], vec![]);
        for (n, item) in elements.iter().take(MAX_ELEMENTS).enumerate() {
            let scope = Scope { item: item.as_ref(), ..scope };
            if !runbook::wanted(step, &scope) {
                continue;
            }
            let key = if item.is_some() { format!("{}.{n}", step.id) } else { step.id.clone() };
            let input = runbook::fill(&Value::Object(step.input.clone()), &scope);
            let (value, text) = match self.made(&key, step, input).await? {
                Ok(reply) => (reply.value, reply.text),
                Err(why) if step.continue_on_error => (json!({"error": why}), format!("failed: {why}")),
                Err(why) => return Err(Halt::End(TaskEnd::Failed(format!("step {key} ({}): {why}", step.tool)))),
            };
            texts.push((item.as_ref().map(runbook::label), text));
            values.push(value);
        }
        if elements.len() > MAX_ELEMENTS {
            texts.push((None, format!("{} more were left out", elements.len() - MAX_ELEMENTS)));
        }
        let value = if step.each.is_some() { Value::Array(values) } else { values.pop().unwrap_or_default() };
        Ok(Told { value, texts })
    }

    /// What a step answered: from the journal when it was made before, else by making it. `Err` is why it failed, in words.
    async fn made(&mut self, key: &str, step: &Step, mut input: Value) -> Result<Result<Reply, String>, Halt> {
        let before = self.journal.get(key).cloned();
        match before.as_ref().and_then(|b| b.reply.as_ref()) {
            Some(kept) if kept.get("approval").is_some() => return self.decided(key, kept).await,
            Some(kept) => return Ok(from_journal(kept)),
            None => {}
        }
        let tool = catalogue().iter().find(|t| t.name == step.tool);
        let keyed = tool.is_some_and(|t| (t.input_schema)()["properties"].get("idempotency_key").is_some());
        if keyed && input.get("idempotency_key").is_none() {
            input["idempotency_key"] = json!(format!("{}.{key}", self.task.id));
        }
        if self.stop.is_cancelled() {
            return Err(Halt::End(TaskEnd::Cancelled));
        }
        if let Some(begun) = before {
            // Killed between intent and reply. A key finds what it began; what has none may have begun an operation all the same.
            let changes = tool.is_some_and(|t| t.effect != Effect::Read);
            if let Some(id) = if changes && !keyed { self.begun(&step.tool, &input, begun.at).await? } else { None } {
                return self.follow(key, &id).await;
            }
        } else {
            self.house.store.task_step_begin(&self.task.id, key, Utc::now()).await?;
        }
        match self.call(&step.tool, input).await? {
            Ok(reply) if reply.known.state.as_deref() == Some("pending_approval") => {
                let Some(approval) = reply.known.approval else { return Ok(Err("the approval it waits for has no id".into())) };
                self.keep(key, &json!({"approval": approval})).await?;
                Err(Halt::End(TaskEnd::Waiting(approval)))
            }
            Ok(reply) => self.settle(key, reply).await,
            // Who ends refuses what comes in: that says nothing of the step. What it may have begun is looked for when the task goes on.
            Err(_) if self.stop.is_cancelled() => Err(Halt::End(TaskEnd::Cancelled)),
            Err(e) if again(e.code) && !step.continue_on_error => {
                // Only these are said before anything begins. After the others the next try looks for what the call began all the same.
                if matches!(e.code, ErrorCode::RateLimited | ErrorCode::Busy) {
                    self.house.store.task_step_undone(&self.task.id, key).await?;
                }
                Err(Halt::End(TaskEnd::Retry(format!("step {key} ({}): {}", step.tool, e.message))))
            }
            // The world moved on under its plan: what was looked at is looked at anew by the next try.
            Err(e) if e.code == ErrorCode::StalePlan && !step.continue_on_error => {
                self.look_anew(key).await?;
                Err(Halt::End(TaskEnd::Retry(format!("step {key} ({}): {}", step.tool, e.message))))
            }
            Err(e) => self.failed(key, &format!("{} (hint: {})", e.message, e.hint)).await,
        }
    }

    /// Forgets a step that did nothing, and what the steps answered that only read.
    async fn look_anew(&mut self, key: &str) -> StoreResult<()> {
        let reads = |of: &str| {
            let id = of.split('.').next().unwrap_or(of);
            let tool = self.skill.steps.iter().find(|s| s.id == id).map(|s| s.tool.as_str());
            catalogue().iter().any(|t| Some(t.name) == tool && t.effect == Effect::Read)
        };
        let steps = self.house.store.task_steps(&self.task.id).await?.into_iter().map(|s| s.step);
        let anew: Vec<String> = steps.filter(|s| s == key || reads(s)).collect();
        self.house.store.task_steps_anew(&self.task.id, anew).await
    }

    /// One call through the line. A rate limit is waited for, within bounds.
    async fn call(&self, tool: &str, input: Value) -> Result<Result<Reply, CallError>, Halt> {
        for _ in 0..LIMIT_WAITS {
            let e = match dispatch(self.house, &self.who, tool, input.clone(), None).await {
                Err(e) if e.code == ErrorCode::RateLimited => e,
                done => return Ok(done),
            };
            let wait = Duration::from_secs(e.data.as_ref().and_then(|d| d["retry_after_s"].as_u64()).unwrap_or(1));
            if wait > LIMIT_WAIT {
                return Ok(Err(e));
            }
            if tokio::time::timeout(wait, self.stop.cancelled()).await.is_ok() {
                return Err(Halt::End(TaskEnd::Cancelled));
            }
        }
        Ok(dispatch(self.house, &self.who, tool, input, None).await)
    }

    /// Keeps a reply, once the operation it began has settled.
    async fn settle(&mut self, key: &str, reply: Reply) -> Result<Result<Reply, String>, Halt> {
        let open = matches!(reply.known.state.as_deref(), Some("queued" | "running"));
        if let Some(id) = reply.known.operation.clone().filter(|_| open) {
            return self.follow(key, &id).await;
        }
        self.conclude(key, reply).await
    }

    async fn conclude(&mut self, key: &str, reply: Reply) -> Result<Result<Reply, String>, Halt> {
        if let Some(bad @ ("failed" | "rolled_back" | "needs_attention" | "cancelled")) = reply.known.state.as_deref()
            && let Some(id) = &reply.known.operation
        {
            let why = redact::line(reply.value["message"].as_str().unwrap_or_default(), 300);
            return self.failed(key, &format!("operation {id} is {bad}: {why}")).await;
        }
        self.keep(key, &json!({"value": reply.value, "text": reply.text})).await?;
        Ok(Ok(reply))
    }

    /// Waits for an operation, as long as it takes; one that is stopped goes on by itself.
    async fn follow(&mut self, key: &str, id: &OperationId) -> Result<Result<Reply, String>, Halt> {
        loop {
            if self.stop.is_cancelled() {
                return Err(Halt::End(TaskEnd::Cancelled));
            }
            let input = json!({"operation_id": id, "wait_s": FOLLOW_S});
            let reply = tokio::select! {
                reply = self.call("operation", input) => reply?,
                () = self.stop.cancelled() => return Err(Halt::End(TaskEnd::Cancelled)),
            };
            match reply {
                Ok(r) if matches!(r.known.state.as_deref(), Some("queued" | "running")) => {}
                Ok(r) => return self.conclude(key, r).await,
                Err(e) if again(e.code) => return Err(Halt::End(TaskEnd::Retry(format!("operation {id}: {}", e.message)))),
                // The agent may not look at operations: it has what the store knows.
                Err(_) => return self.looked_up(key, id).await,
            }
        }
    }

    /// Waits for an operation that the agent may not ask about: it is its own all the same.
    async fn looked_up(&mut self, key: &str, id: &OperationId) -> Result<Result<Reply, String>, Halt> {
        loop {
            let Some(operation) = self.house.store.operation(id).await? else {
                return self.failed(key, &format!("operation {id} is gone")).await;
            };
            if operation.state.is_terminal() || operation.state == OperationState::Monitoring {
                let value =
                    json!({"operation_id": id, "state": operation.state, "release": operation.release, "message": operation.message});
                let text = format!("operation {id} is {}", operation.state.as_str());
                return self.conclude(key, Reply::new(value, text)).await;
            }
            // One that is not at work here is looked at again after the pause.
            let settles = async {
                let pause = tokio::time::sleep(Duration::from_secs(1));
                let (waited, ()) = tokio::join!(self.house.executor.wait(id, Duration::from_secs(FOLLOW_S), Until::Settled), pause);
                waited
            };
            tokio::select! {
                waited = settles => {
                    waited.map_err(|e| Halt::End(TaskEnd::Retry(format!("operation {id}: {e}"))))?;
                }
                () = self.stop.cancelled() => return Err(Halt::End(TaskEnd::Cancelled)),
            }
        }
    }

    /// The operation that this agent's interrupted call began, found by what it did and when.
    async fn begun(&self, tool: &str, input: &Value, at: DateTime<Utc>) -> StoreResult<Option<OperationId>> {
        let stack = input["stack"].as_str().and_then(|s| crate::model::ids::StackName::new(s).ok());
        let found = self.house.store.operations(stack.as_ref(), 50).await?;
        let mine = |o: &&crate::model::operation::Operation| o.agent == self.task.agent.as_str() && o.verb == tool && o.created_at >= at;
        Ok(found.iter().rev().find(mine).map(|o| o.id.clone()))
    }

    /// A step that waited for a human: what came of it.
    async fn decided(&mut self, key: &str, kept: &Value) -> Result<Result<Reply, String>, Halt> {
        let id = kept["approval"].as_str().and_then(|id| ApprovalId::new(id).ok());
        let Some(id) = id else { return self.failed(key, "the approval it waited for cannot be read").await };
        let Some(approval) = self.house.store.approval(&id, Utc::now()).await? else {
            return self.failed(key, &format!("approval {id} is gone")).await;
        };
        match approval.state {
            ApprovalState::Pending | ApprovalState::Approved => Err(Halt::End(TaskEnd::Waiting(id))),
            ApprovalState::Denied => self.failed(key, &format!("approval {id} was denied")).await,
            ApprovalState::Expired => self.failed(key, &format!("approval {id} expired before its call could start")).await,
            ApprovalState::Stale => self.failed(key, &format!("approval {id} is stale: the stack changed before it ran")).await,
            ApprovalState::Used => match approval::came_of(&self.house.store, &approval).await? {
                Came::Operation(operation) => self.follow(key, &operation.id).await,
                Came::AtWork => Err(Halt::End(TaskEnd::Waiting(id))),
                Came::Done => {
                    let value = json!({"state": "done", "approval_id": id});
                    self.conclude(key, Reply::new(value, format!("done with approval {id}"))).await
                }
                Came::Failed(why) => self.failed(key, &format!("approval {id} was given, but its call failed: {why}")).await,
                Came::Unknown => {
                    self.failed(key, &format!("the call of approval {id} was interrupted; whether it was done is not known")).await
                }
            },
        }
    }

    async fn failed(&mut self, key: &str, why: &str) -> Result<Result<Reply, String>, Halt> {
        let why = redact::line(why, 1000);
        self.keep(key, &json!({"error": {"message": why}})).await?;
        Ok(Err(why))
    }

    async fn keep(&mut self, key: &str, reply: &Value) -> StoreResult<()> {
        self.house.store.task_step_done(&self.task.id, key, reply, Utc::now()).await
    }
}

/// A reply as the journal has it.
fn from_journal(kept: &Value) -> Result<Reply, String> {
    match kept["error"]["message"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok(Reply::new(kept["value"].clone(), kept["text"].as_str().unwrap_or_default())),
    }
}

/// Errors that another try may mend.
fn again(code: ErrorCode) -> bool {
    match code {
        ErrorCode::RateLimited | ErrorCode::Busy | ErrorCode::EngineUnavailable | ErrorCode::StorageFull | ErrorCode::Internal => true,
        ErrorCode::InvalidArgument
        | ErrorCode::UnknownTool
        | ErrorCode::NotFound
        | ErrorCode::Denied
        | ErrorCode::StalePlan
        | ErrorCode::Conflict
        | ErrorCode::Preflight
        | ErrorCode::Failed
        | ErrorCode::RegistryUnauthorized => false,
    }
}
