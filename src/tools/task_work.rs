//! `task_work`: how an agent that runs in a process of its own gets its tasks and brings them back. Only the calling agent's own.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError, tasks};
use crate::gate::{Permit, prompt};
use crate::model::ids::{AgentName, StackName, TaskId};
use crate::model::plan::Plan;
use crate::model::task::{Task, TaskState, TaskWork};
use crate::redact::{self, Untrusted};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// The task you have; without it you get your next one.
    task_id: Option<TaskId>,
    /// It is done, and this came of it.
    result: Option<String>,
    /// It could not be done.
    #[serde(default)]
    failed: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    /// Absent when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<TaskState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<StackName>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    delegated_by: Vec<AgentName>,
    /// The skill, filled in: instructions of the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    skill: Option<String>,
    /// Prompt and facts as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<Untrusted>,
    /// Call again with task_id before.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<DateTime<Utc>>,
}

pub(super) struct Working;

fn nothing() -> Output {
    Output { task_id: None, state: None, stack: None, delegated_by: vec![], skill: None, given: None, lease_until: None }
}

/// A task as its agent gets it. A skill that is gone or does not fit is told to it, so that it can report the task as failed.
fn handed(call: &Call, task: Task) -> Result<Output, CallError> {
    let skill = match &task.work {
        TaskWork::Prompt(_) => None,
        TaskWork::Skill(name) => {
            let prompts = call.house.prompts.load();
            // What stands inside instructions must not read like some; all of it is below, as given.
            let arguments = task.input.iter().map(|(k, v)| (k.clone(), tasks::argument(v))).collect();
            let filled = prompt::render(tasks::skill(&prompts, name)?, &arguments);
            Some(filled.map_err(|e| {
                CallError::new(ErrorCode::Conflict, e.to_string(), "report the task as failed").data(json!({"task_id": task.id}))
            })?)
        }
    };
    let prompt = match &task.work {
        TaskWork::Prompt(text) => Some(text),
        TaskWork::Skill(_) => None,
    };
    let giver = task.delegated_by.last().map_or(task.origin.clone(), |a| format!("agent {a}"));
    let given = redact::envelope(giver, &json!({"prompt": prompt, "input": task.input}).to_string(), 64 * 1024);
    Ok(Output {
        task_id: Some(task.id),
        state: Some(TaskState::Running),
        stack: task.stack,
        delegated_by: task.delegated_by,
        skill,
        given: Some(given),
        lease_until: Some(call.now + tasks::LEASE),
    })
}

impl Verb for Working {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "task_work",
        title: "Fetch and finish own tasks",
        description: "For agents that run outside the supervisor: gets your next task, keeps it for two more minutes (task_id), or ends it (task_id and result). Your calls meanwhile need the right of who gave it too.",
        effect: Effect::Write,
        idempotent: false,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        if input.task_id.is_none() && (input.result.is_some() || input.failed) {
            let hint = "give the task_id that task_work returned";
            return Err(CallError::new(ErrorCode::InvalidArgument, "a result belongs to a task", hint).field("task_id"));
        }
        Ok(Scope::default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let (house, agent) = (&call.house, &call.who.agent);
        let Some(id) = input.task_id else {
            let next = tasks::fetch(house, agent, call.now).await?;
            return next.map_or_else(|| Ok(nothing()), |task| handed(call, task));
        };
        let end = match (input.result, input.failed) {
            (None, false) => None,
            (text, true) => Some((TaskState::Failed, text.unwrap_or_else(|| "given up by its agent".into()))),
            (Some(text), false) => Some((TaskState::Succeeded, text)),
        };
        match end {
            None => {
                let task = tasks::keep(house, agent, &id, call.now).await?;
                Ok(Output { task_id: Some(task.id), state: Some(task.state), lease_until: Some(call.now + tasks::LEASE), ..nothing() })
            }
            Some(end) => {
                let task = tasks::finish(house, agent, &id, end, call.now).await?;
                Ok(Output { task_id: Some(task.id), state: Some(task.state), ..nothing() })
            }
        }
    }

    fn text(o: &Output) -> Option<String> {
        let Some(id) = &o.task_id else { return Some("nothing to do".into()) };
        let state = o.state.map(TaskState::as_str).unwrap_or_default();
        let skill = o.skill.as_ref().map(|s| format!("\n{s}")).unwrap_or_default();
        let given = o.given.as_ref().map(|g| format!("\n[untrusted, {}]\n{}", g.source, g.text)).unwrap_or_default();
        Some(format!("{id} is {state}{skill}{given}"))
    }
}
