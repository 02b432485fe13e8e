//! `task_submit`: gives an agent work that outlives the call: a skill with its arguments, or a prompt. It is done with the rights of both.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::tasks::{self, Wish};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{AgentName, StackName, TaskId};
use crate::model::plan::Plan;
use crate::model::task::{TaskState, TaskWork};
use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Who does it.
    agent: Option<AgentName>,
    /// A skill, or:
    skill: Option<String>,
    /// what to do, in words.
    prompt: Option<String>,
    /// The skill's arguments, or facts.
    #[schemars(with = "Option<super::schema::Row>")]
    input: Option<Map<String, Value>>,
    /// Stack it is about.
    stack: Option<StackName>,
    /// Same key, same task.
    idempotency_key: Option<String>,
    /// Start so many seconds from now.
    delay_s: Option<u32>,
    /// Instead of all else: a failed task to do again.
    again: Option<TaskId>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    task_id: TaskId,
    agent: AgentName,
    state: TaskState,
    due_at: DateTime<Utc>,
}

pub(super) struct TaskSubmit;

fn invalid(message: &str, hint: &str, field: &str) -> CallError {
    CallError::new(ErrorCode::InvalidArgument, message, hint).field(field)
}

/// What is asked for, before anything is looked up but the task to do again.
async fn wish(call: &Call, input: Input) -> Result<Wish, CallError> {
    let mut delegated_by = call.who.on_behalf.clone();
    // Work for oneself is no delegation.
    if input.agent.as_ref() != Some(&call.who.agent) && delegated_by.last() != Some(&call.who.agent) {
        delegated_by.push(call.who.agent.clone());
    }
    let delay = TimeDelta::seconds(input.delay_s.unwrap_or(0).into());
    let submitter = call.who.agent.to_string();
    if let Some(id) = input.again {
        if input.agent.is_some() || input.skill.is_some() || input.prompt.is_some() || input.input.is_some() || input.stack.is_some() {
            return Err(invalid("again repeats a task as it was", "leave the other fields out, or leave again out", "again"));
        }
        let old = tasks::find(&call.house, &id).await?;
        if !matches!(old.state, TaskState::Failed | TaskState::Cancelled) {
            let message = format!("task {id} is {}", old.state.as_str());
            return Err(CallError::new(ErrorCode::Conflict, message, "only a failed or cancelled task is done again").field("again"));
        }
        // Whoever gave it the first time still counts: repeating a task must not widen what it may do.
        let mut chain = old.delegated_by;
        chain.extend(delegated_by.into_iter().filter(|a| !chain.contains(a)).collect::<Vec<_>>());
        let key = input.idempotency_key;
        return Ok(Wish {
            agent: old.agent,
            work: old.work,
            input: old.input,
            stack: old.stack,
            delegated_by: chain,
            origin: "call",
            submitter,
            idempotency_key: key,
            delay,
            pushed: old.pushed,
        });
    }
    let agent = input.agent.ok_or_else(|| invalid("task_submit needs an agent", "name who does it; `agents` lists them", "agent"))?;
    let work = match (input.skill, input.prompt) {
        (Some(skill), None) => TaskWork::Skill(skill),
        (None, Some(prompt)) => TaskWork::Prompt(prompt),
        (None, None) | (Some(_), Some(_)) => return Err(invalid("a task is one thing to do", "give one of skill and prompt", "skill")),
    };
    let (input, stack, key) = (input.input.unwrap_or_default(), input.stack, input.idempotency_key);
    Ok(Wish { agent, work, input, stack, delegated_by, origin: "call", submitter, idempotency_key: key, delay, pushed: None })
}

impl Verb for TaskSubmit {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "task_submit",
        title: "Give an agent a task",
        description: "Queues work for an agent; it outlives this call. Each of its calls needs the agent's right and yours. Follow it with `tasks`.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let stack = match &input.again {
            Some(id) => tasks::find(&call.house, id).await?.stack,
            None => input.stack.clone(),
        };
        Ok(stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let (task, _) = tasks::submit(&call.house, wish(call, input).await?, true, call.now).await?;
        Ok(Output { task_id: task.id, agent: task.agent, state: task.state, due_at: task.due_at })
    }

    fn text(o: &Output) -> Option<String> {
        Some(format!("{} for {}: {}", o.task_id, o.agent, o.state.as_str()))
    }
}
