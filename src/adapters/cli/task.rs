//! Tasks: give one, see them, wait for one, stop one.

use super::{CliError, CliResult, Ended, Global, output, reach};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

/// Give an agent something to do, and see what came of it.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// What to do; lists tasks when absent.
    #[command(subcommand)]
    command: Option<TaskCommand>,
}

/// What to do with tasks.
#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// Give an agent a skill (with --input NAME=VALUE) or a prompt.
    Submit {
        /// Who does it.
        #[arg(value_name = "AGENT")]
        doer: String,
        /// Skill of prompts/.
        #[arg(long, conflicts_with = "prompt", required_unless_present = "prompt")]
        skill: Option<String>,
        /// What to do, in words.
        #[arg(long)]
        prompt: Option<String>,
        /// An argument of the skill, or a fact; a value that is JSON is sent as such.
        #[arg(long = "input", value_name = "NAME=VALUE")]
        inputs: Vec<String>,
        /// Stack it is about.
        #[arg(long)]
        stack: Option<String>,
        /// The same key gives the same task.
        #[arg(long)]
        idempotency_key: Option<String>,
        /// Start so many seconds from now.
        #[arg(long)]
        delay_s: Option<u32>,
        /// Wait until it has ended and show its result.
        #[arg(long)]
        wait: bool,
    },
    /// List tasks, newest first.
    List {
        /// Of this agent.
        #[arg(long)]
        of: Option<String>,
        /// In this state: queued, running, waiting_approval, succeeded, failed or cancelled.
        #[arg(long)]
        state: Option<String>,
        /// At most so many, 200 a page.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Page: the cursor of the page before.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Show a task with its result.
    Show {
        /// Task.
        task: String,
        /// Wait until it has ended.
        #[arg(long)]
        wait: bool,
    },
    /// Do a failed or cancelled task again.
    Retry {
        /// Task.
        task: String,
    },
    /// Stop a task; the call at work is finished.
    Cancel {
        /// Task.
        task: String,
    },
}

fn facts(list: &[String]) -> Result<Value, CliError> {
    let pair = |text: &String| {
        let hint = "write --input NAME=VALUE";
        let (key, value) = text.split_once('=').ok_or_else(|| CliError::Usage(format!("--input {text:?} has no '='"), hint.into()))?;
        // A name that happens to be a number would become one: only what cannot be a plain word is read as JSON.
        let parsed = value.starts_with(['[', '{', '"']).then(|| serde_json::from_str(value).ok()).flatten();
        let parsed = parsed.or_else(|| matches!(value, "true" | "false").then(|| json!(value == "true")));
        Ok((key.to_owned(), parsed.unwrap_or_else(|| value.into())))
    };
    list.iter().map(pair).collect::<Result<Map<_, _>, CliError>>().map(Value::Object)
}

/// The value without what was not given.
fn given(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).collect()),
        other => other,
    }
}

/// Runs `task`.
pub async fn task(global: &Global, args: TaskArgs) -> CliResult {
    match args.command.unwrap_or(TaskCommand::List { of: None, state: None, limit: 20, cursor: None }) {
        TaskCommand::Submit { doer, skill, prompt, inputs, stack, idempotency_key, delay_s, wait } => {
            let wish = json!({"agent": doer, "skill": skill, "prompt": prompt, "input": facts(&inputs)?, "stack": stack, "idempotency_key": idempotency_key, "delay_s": delay_s});
            let (value, text) = reach::value(global, "task_submit", given(wish)).await?;
            match value["task_id"].as_str() {
                Some(id) if wait => show(global, id, true).await,
                _ => {
                    output::reply(global.json, "task_submit", &value, &text);
                    Ok(reach::ended(&value))
                }
            }
        }
        TaskCommand::List { of, state, limit, cursor } => {
            reach::show(global, "tasks", given(json!({"agent": of, "state": state, "limit": limit, "cursor": cursor}))).await
        }
        TaskCommand::Show { task, wait } => show(global, &task, wait).await,
        TaskCommand::Retry { task } => reach::show(global, "task_submit", json!({"again": task})).await,
        TaskCommand::Cancel { task } => {
            let (value, text) = reach::value(global, "cancel", json!({"task_id": task})).await?;
            output::reply(global.json, "cancel", &value, &text);
            Ok(reach::cancelled(&value))
        }
    }
}

/// One task; 1 when it failed or was cancelled, 4 when it waits for a person.
async fn show(global: &Global, id: &str, wait: bool) -> CliResult {
    loop {
        let (value, text) = reach::value(global, "tasks", json!({"task_id": id, "wait_s": if wait { 50 } else { 0 }})).await?;
        let state = value["tasks"][0]["state"].as_str().unwrap_or_default().to_owned();
        if wait && matches!(state.as_str(), "queued" | "running") {
            continue;
        }
        output::reply(global.json, "tasks", &value, &text);
        return Ok(match state.as_str() {
            "failed" | "cancelled" => Ended::Failed,
            "waiting_approval" => Ended::PendingApproval,
            _ => Ended::Done,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_text_unless_they_look_like_json() {
        let of = |list: &[&str]| facts(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            of(&["stack=shop", "n=3", "deep=true", "l=[1]", "eq=a=b"]).expect("facts"),
            json!({"stack": "shop", "n": "3", "deep": true, "l": [1], "eq": "a=b"})
        );
        assert_eq!(of(&["stack"]).expect_err("refused").code(), 2);
    }
}
