//! `tasks`: what agents were given to do, and what came of it. Input and result are what other agents, containers or models wrote: enveloped.

use super::schema::Row;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError, tasks};
use crate::gate::Permit;
use crate::model::ids::{AgentName, ApprovalId, StackName, TaskId};
use crate::model::plan::Plan;
use crate::model::task::{Task, TaskState, TaskWork};
use crate::redact::{self, Untrusted};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// Tasks listed when the caller does not say how many, and at most.
const LISTED: usize = 20;
const MOST: usize = 200;
/// Longest wait: clients give up at 60 s.
const MAX_WAIT_S: u64 = 55;
/// Most of a result that a reply shows, in bytes: well under what a model reads at once.
const RESULT: usize = 32 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One task, with its result and steps.
    task_id: Option<TaskId>,
    /// Of this agent.
    agent: Option<AgentName>,
    /// In this state.
    state: Option<String>,
    /// 20 by default, 200 at most.
    limit: Option<usize>,
    /// `next_cursor` of the reply before.
    cursor: Option<TaskId>,
    /// Wait so many seconds for task_id to end, 55 at most.
    wait_s: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct View {
    task_id: TaskId,
    agent: AgentName,
    /// Skill; absent for a prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    skill: Option<String>,
    state: TaskState,
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<StackName>,
    origin: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    delegated_by: Vec<AgentName>,
    attempt: u32,
    created_at: DateTime<Utc>,
    due_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval_id: Option<ApprovalId>,
    /// Prompt and input.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<Untrusted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Untrusted>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    tasks: Vec<View>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Row>")]
    steps: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<TaskId>,
}

fn view(t: Task, whole: bool) -> View {
    let (skill, prompt) = match t.work {
        TaskWork::Skill(name) => (Some(name), None),
        TaskWork::Prompt(text) => (None, Some(text)),
    };
    let giver = t.delegated_by.last().map_or(t.origin.clone(), |a| format!("agent {a}"));
    let given = json!({"prompt": prompt, "input": t.input}).to_string();
    let room = if whole { RESULT } else { 300 };
    View {
        given: whole.then(|| redact::envelope(giver, &given, RESULT)),
        result: t.result.map(|r| redact::envelope(format!("task {}", t.id), redact::keep_start(&r, room), room)),
        task_id: t.id,
        agent: t.agent,
        skill,
        state: t.state,
        stack: t.stack,
        origin: t.origin,
        delegated_by: t.delegated_by,
        attempt: t.attempt,
        created_at: t.created_at,
        due_at: t.due_at,
        started_at: t.started_at,
        ended_at: t.ended_at,
        approval_id: t.waits_for,
    }
}

fn state(word: &str) -> Result<TaskState, CallError> {
    serde_json::from_value(json!(word)).map_err(|_| {
        let hint = "queued, running, waiting_approval, succeeded, failed or cancelled";
        CallError::new(ErrorCode::InvalidArgument, format!("{:?} is no state of a task", redact::line(word, 40)), hint).field("state")
    })
}

pub(super) struct Tasks;

impl Verb for Tasks {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "tasks",
        title: "Tasks of agents",
        description: "Tasks, newest first, or one with its result. States: queued, running, waiting_approval, succeeded, failed (for good: task_submit with again repeats it), cancelled.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(call: &Call, input: &Input) -> Result<Scope, CallError> {
        let Some(id) = &input.task_id else { return Ok(Scope::default()) };
        Ok(tasks::find(&call.house, id).await?.stack.as_ref().map(Scope::stack).unwrap_or_default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let Some(id) = &input.task_id else {
            let state = input.state.as_deref().map(state).transpose()?;
            if let Some(after) = &input.cursor {
                let hint = "pass next_cursor of the reply before";
                let gone = |e: CallError| CallError::new(e.code, format!("cursor: {}", e.message), hint).field("cursor");
                tasks::find(&call.house, after).await.map_err(gone)?;
            }
            let most = input.limit.unwrap_or(LISTED).clamp(1, MOST);
            let mut found = call.house.store.tasks_page(input.agent.as_ref(), state, input.cursor.as_ref(), most + 1).await?;
            let more = found.len() > most;
            found.truncate(most);
            let next_cursor = found.last().filter(|_| more).map(|t| t.id.clone());
            return Ok(Output { tasks: found.into_iter().map(|t| view(t, false)).collect(), steps: vec![], next_cursor });
        };
        let task = tasks::wait(&call.house, id, Duration::from_secs(input.wait_s.unwrap_or(0).min(MAX_WAIT_S))).await?;
        let steps = call.house.store.task_steps(id).await?.into_iter().map(|s| {
            let failed = s.reply.as_ref().and_then(|r| r["error"]["message"].as_str()).map(|m| redact::line(m, 300));
            let state = match (&s.reply, &failed) {
                (None, _) => "begun",
                (Some(_), Some(_)) => "failed",
                (Some(_), None) => "done",
            };
            json!({"step": s.step, "at": s.at, "state": state, "error": failed})
        });
        Ok(Output { tasks: vec![view(task, true)], steps: steps.collect(), next_cursor: None })
    }

    fn text(o: &Output) -> Option<String> {
        let line = |v: &View| {
            let what = v.skill.as_deref().unwrap_or("a prompt");
            let about = v.stack.as_ref().map(|s| format!(" on {s}")).unwrap_or_default();
            let waits = v.approval_id.as_ref().map(|a| format!(" for {a}")).unwrap_or_default();
            let single = v.given.is_some();
            let told = |r: &Untrusted| {
                if single { format!("\nresult (untrusted):\n\n{}", r.text) } else { format!(": {}", redact::line(&r.text, 120)) }
            };
            let result = v.result.as_ref().map(told).unwrap_or_default();
            format!("{} {} {}{waits}: {what}{about} ({}){result}", v.task_id, v.agent, v.state.as_str(), v.origin)
        };
        let mut lines: Vec<String> = o.tasks.iter().map(line).collect();
        if lines.is_empty() {
            lines.push("no tasks".into());
        }
        lines.extend(o.next_cursor.iter().map(|next| format!("(older ones: cursor {next})")));
        Some(lines.join("\n"))
    }
}
