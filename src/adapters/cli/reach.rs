//! From a command to the supervisor and back: connect (starting one when none runs), call, show. Deliberately absent: per-tool knowledge
//! beyond its table (`output`).

use super::{CliError, CliResult, Ended, Global, output};
use crate::adapters::socket::client::{ClientError, Session, connect, connect_or_start};
use crate::adapters::socket::wire::{Admin, Hello, HelloDoor};
use crate::config;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::time::Duration;

/// Agent of the command line when nothing else is said.
pub const DEFAULT_AGENT: &str = "stack-keeper";

/// The agent a command acts as.
///
/// # Errors
/// When dockwarden.toml has to be read for it and cannot be.
pub fn agent(global: &Global) -> Result<String, CliError> {
    if let Some(agent) = &global.agent {
        return Ok(agent.clone());
    }
    let places = config::places(global.home.as_deref(), global.config.as_deref());
    let settings = match std::fs::read_to_string(places.config_dir.join("dockwarden.toml")) {
        Ok(text) => config::parse(&text, "dockwarden.toml")?,
        // Absent or not for this user's eyes: the default, which the supervisor judges anyway.
        Err(_) => crate::model::config::Settings::default(),
    };
    Ok(settings.cli_agent.unwrap_or_else(|| DEFAULT_AGENT.into()))
}

/// A session that may call tools.
///
/// # Errors
/// The supervisor's, or why there is none.
pub async fn session(global: &Global) -> Result<Session, CliError> {
    let hello = Hello { door: HelloDoor::Cli, agent: Some(agent(global)?), read_only: false, toolsets: None };
    let stream = connect_or_start(&config::home_dir(global.home.as_deref()), global.config.as_deref()).await?;
    Ok(Session::open(stream, &hello).await?)
}

/// A session for what people do; `start` a supervisor for it when none runs.
///
/// # Errors
/// As `session`.
pub async fn people(global: &Global, start: bool) -> Result<Session, CliError> {
    let hello = Hello { door: HelloDoor::Cli, agent: None, read_only: false, toolsets: None };
    let home = config::home_dir(global.home.as_deref());
    let stream = if start { connect_or_start(&home, global.config.as_deref()).await? } else { connect(&home).await? };
    Ok(Session::open(stream, &hello).await?)
}

/// Asks for something only people do.
///
/// # Errors
/// As `session`.
pub async fn admin(global: &Global, admin: Admin) -> Result<(Value, String), CliError> {
    Ok(people(global, true).await?.admin(admin).await?)
}

/// A spinner on stderr when a person watches, nothing otherwise.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {pos:>3} % {wide_msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Calls a tool with a progress bar; gives its value and text.
///
/// # Errors
/// As `session`, and the tool's.
pub async fn value(global: &Global, tool: &str, input: Value) -> Result<(Value, String), CliError> {
    let mut session = session(global).await?;
    let bar = bar();
    let result = session
        .call(tool, input, &mut |percent, message| {
            bar.set_position(percent.clamp(0.0, 100.0) as u64);
            bar.set_message(message.to_owned());
        })
        .await;
    bar.finish_and_clear();
    Ok(result?)
}

/// Calls a tool and shows what it answers.
///
/// # Errors
/// As `value`.
pub async fn show(global: &Global, tool: &str, input: Value) -> CliResult {
    let (mut value, mut text) = value(global, tool, input).await?;
    if let Some(started) = own(global, &value).await? {
        (value, text) = started;
    }
    output::reply(global.json, tool, &value, &text);
    Ok(ended(&value))
}

/// As `show`, for calls that start an operation: waits on until it is settled, however long that takes.
///
/// # Errors
/// As `value`.
pub async fn operate(global: &Global, tool: &str, input: Value, wait: bool) -> CliResult {
    let (mut value, mut text) = self::value(global, tool, input).await?;
    if let Some(started) = own(global, &value).await? {
        (value, text) = started;
    }
    while wait && matches!(value["state"].as_str(), Some("queued" | "running")) {
        let Some(id) = value["operation_id"].as_str().map(str::to_owned) else { break };
        (value, text) = self::value(global, "operation", serde_json::json!({"operation_id": id, "wait_s": 45})).await?;
    }
    output::reply(global.json, tool, &value, &text);
    Ok(ended(&value))
}

/// What came of a call that waits, where an operator at this terminal confirmed it as their own.
async fn own(global: &Global, value: &Value) -> Result<Option<(Value, String)>, CliError> {
    match ended(value) {
        Ended::PendingApproval => super::approvals::own(global, value).await,
        _ => Ok(None),
    }
}

/// The exit a reply's state means.
pub fn ended(value: &Value) -> Ended {
    match value["state"].as_str() {
        Some("pending_approval") => Ended::PendingApproval,
        Some("failed" | "rolled_back" | "cancelled" | "needs_attention") => Ended::Failed,
        _ => Ended::Done,
    }
}

/// The exit of a command that cancels: that it is cancelled is what was asked for.
pub fn cancelled(value: &Value) -> Ended {
    match value["state"].as_str() {
        Some("cancelled" | "rolled_back") => Ended::Done,
        _ => ended(value),
    }
}

/// Whether an error means that no supervisor runs.
pub fn not_running(error: &CliError) -> bool {
    matches!(error, CliError::Client(ClientError::NotRunning { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn states_map_to_exits() {
        assert_eq!(ended(&json!({"state": "pending_approval"})), Ended::PendingApproval);
        for bad in ["failed", "rolled_back", "cancelled", "needs_attention"] {
            assert_eq!(ended(&json!({"state": bad})), Ended::Failed, "{bad}");
        }
        for good in [json!({"state": "monitoring"}), json!({}), json!(null)] {
            assert_eq!(ended(&good), Ended::Done, "{good}");
        }
        for (state, end) in [("cancelled", Ended::Done), ("running", Ended::Done), ("pending_approval", Ended::PendingApproval)] {
            assert_eq!(cancelled(&json!({"state": state})), end, "{state}");
        }
    }
}
