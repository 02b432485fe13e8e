//! A task done by a model: model call, tool calls through the line, until done, out of budget, out of turns, or waiting for a human. It has no rights
//! of its own: it calls as the task's agent, on behalf of whoever gave the task. Deliberately absent: which task is run when (the queue's matter).

pub mod ask;
pub mod hands;
pub mod journal;
pub mod models;
pub mod outside;
pub mod prompt;
pub mod provider;
pub mod window;
#[cfg(feature = "llm")]
pub mod wire;
pub mod work;

use crate::call::{Door, House, Principal};
use crate::model::agent::Agent;
use crate::model::config::ModelSettings;
use crate::model::ids::AgentName;
use crate::model::task::{Task, TaskEnd};
use ask::Patience;
use journal::HouseJournal;
use models::Model;
use outside::Brief;
use prompt::{Facts, StackFact};
use provider::Provider;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use work::Desk;

/// What agents with a model are told by a build without models.
pub const NO_MODELS: &str = "this dockwarden was built without `llm`: install one that was built with it";
/// Answers of a model in one task when its manifest does not say.
pub const TURNS: u32 = 40;

/// Does one try of `task` and returns how it ended. `stop` ends it after the call at work.
pub async fn run(house: &Arc<House>, task: &Task, stop: &CancellationToken) -> TaskEnd {
    let (agent, model) = match ready(house, task) {
        Ok(ready) => ready,
        Err(why) => return TaskEnd::Failed(format!("the agent {} cannot do tasks: {why}", task.agent)),
    };
    match connect(&model) {
        Ok(provider) => run_with(house, task, &agent, &model, provider.as_ref(), Patience::default(), stop).await,
        Err(why) => TaskEnd::Failed(format!("the agent {} cannot do tasks: {why}", task.agent)),
    }
}

/// The agent of a task and its model with its key.
fn ready(house: &House, task: &Task) -> Result<(Arc<Agent>, Model), String> {
    if !cfg!(feature = "llm") {
        // Before anything of the configuration is found wanting: mending that would not help.
        return Err(NO_MODELS.into());
    }
    let (agent, name, settings) = chosen(house, &task.agent)?;
    let model = models::resolve(&name, &settings, &|var| std::env::var(var).ok())?;
    affordable(&agent, &model)?;
    Ok((agent, model))
}

/// An agent and the settings of its model.
///
/// # Errors
/// In words, with what to write where.
pub fn chosen(house: &House, agent: &AgentName) -> Result<(Arc<Agent>, String, ModelSettings), String> {
    let book = house.rulebook.load();
    let agent = book.agents.get(agent.as_str()).ok_or("there is no such agent in agents/")?.clone();
    let (name, settings) = models::find(&house.config.settings.models, agent.model.as_deref())?;
    Ok((agent, name.to_owned(), settings.clone()))
}

/// A budget needs a price to be counted by.
///
/// # Errors
/// In words.
pub fn affordable(agent: &Agent, model: &Model) -> Result<(), String> {
    if agent.limits.usd_per_month.is_some() && model.price.is_none() {
        let name = &model.name;
        return Err(format!(
            "it has a budget (limits.usd_per_month) and its model {name} no price: add price = {{input = ..., output = ...}} to [models.{name}] (0 for a model that costs nothing)"
        ));
    }
    Ok(())
}

/// A connection to a model's provider; nothing is asked yet.
///
/// # Errors
/// In words.
#[cfg(feature = "llm")]
pub fn connect(model: &Model) -> Result<Box<dyn Provider>, String> {
    let wire = wire::Wire::new(model.provider, &model.base_url, &model.model, model.key.clone(), model.timeout)?;
    Ok(Box::new(wire))
}

/// A connection to a model's provider: none in this build.
///
/// # Errors
/// Always, in words.
#[cfg(not(feature = "llm"))]
pub fn connect(_model: &Model) -> Result<Box<dyn Provider>, String> {
    Err(NO_MODELS.into())
}

/// As [`run`], with what is asked given.
pub async fn run_with(
    house: &Arc<House>,
    task: &Task,
    agent: &Agent,
    model: &Model,
    provider: &dyn Provider,
    patience: Patience,
    stop: &CancellationToken,
) -> TaskEnd {
    let brief = match brief(house, task, agent).await {
        Ok(brief) => brief,
        Err(end) => return end,
    };
    let client = Some(format!("task {}", task.id));
    let who = Principal { agent: task.agent.clone(), door: Door::Task, client, read_only: false, on_behalf: task.delegated_by.clone() };
    let hands = hands::HouseHands { house: house.clone(), who };
    // Read at each question: an operator who lowers it stops what is at work.
    let (book, cap) = (&house.rulebook, agent.limits.usd_per_month);
    let cap = || book.load().agents.get(task.agent.as_str()).map_or(cap, |a| a.limits.usd_per_month).map(micro);
    let journal = HouseJournal::new(&house.store, task.agent.clone(), task.id.clone(), cap, model);
    let desk =
        Desk { journal: &journal, hands: &hands, provider, model, system: brief.system, task: brief.task, turns: brief.turns, patience };
    house.desk.reads(task);
    let end = work::work(&desk, task, stop).await;
    house.desk.read(task);
    end
}

/// What a model is told of a task before it begins.
///
/// # Errors
/// How the try ends when there is nothing to tell it.
pub async fn brief(house: &Arc<House>, task: &Task, agent: &Agent) -> Result<Brief, TaskEnd> {
    let words = prompt::task(task, &house.prompts.load()).map_err(TaskEnd::Failed)?;
    let facts = facts(house).await.map_err(|e| TaskEnd::Retry(format!("the supervisor could not read its state: {e}")))?;
    // Before anybody reads it.
    crate::call::taint::told(house, task, chrono::Utc::now()).await;
    Ok(Brief { system: prompt::system(agent, &facts), task: words, turns: agent.limits.turns.unwrap_or(TURNS) })
}

/// Dollars as the ledger counts them. The manifest's check let only finite amounts of 0 or more through; more than fits is no limit anyway.
pub fn micro(dollars: f64) -> u64 {
    (dollars * 1e6).round() as u64
}

/// Every stack the house knows, with its environment.
async fn facts(house: &House) -> Result<Facts, crate::store::StoreError> {
    let default = house.rulebook.load().policy.default_environment.clone();
    let mut stacks = BTreeMap::new();
    for (name, entry) in &house.config.settings.stacks {
        stacks.insert(name.to_string(), (entry.environment.clone(), false));
    }
    for known in house.store.stacks().await? {
        let environment = Some(known.environment).filter(|e| !e.is_empty());
        let entry = stacks.entry(known.name.to_string()).or_insert((None, false));
        *entry = (entry.0.clone().or(environment), known.current.is_some());
    }
    let fact = |(name, (environment, deployed)): (String, (Option<String>, bool))| StackFact {
        name,
        environment: environment.unwrap_or_else(|| default.clone()),
        deployed,
    };
    Ok(Facts { host: house.config.host_name.clone(), stacks: stacks.into_iter().map(fact).collect() })
}

#[cfg(test)]
mod tests;
