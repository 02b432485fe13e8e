//! A task done by a model: model call, tool calls through the line, until done, out of budget, out of turns, or waiting for a human.

pub mod hands;

use crate::call::House;
use crate::model::task::{Task, TaskEnd};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Does one try of `task` and returns how it ended. `stop` ends it after the call at work.
pub async fn run(_house: &Arc<House>, task: &Task, _stop: &CancellationToken) -> TaskEnd {
    TaskEnd::Failed(format!("the agent {} has no model that this build can call", task.agent))
}
