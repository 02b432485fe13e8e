//! `eject`: an operator gives a stack back to plain Compose. Its containers, networks and volumes go on as they are; what is known of it here is forgotten,
//! the audit log excepted. Deliberately absent: checking who asks (the door does).

use super::adopt::{call, request};
use super::error::ErrorCode;
use super::{CallError, House, approval, observe, prepare, run};
use crate::executor::names;
use crate::gate;
use crate::model::config::StackSettingsEntry;
use crate::model::ids::{AgentName, StackName};
use crate::model::labels;
use crate::model::observed::ContainerDetail;
use crate::model::verdict::Verdict;
use crate::redact;
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

/// What giving a stack back means, or meant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ejected {
    /// Stack.
    pub stack: StackName,
    /// `would_eject` or `ejected`.
    pub state: &'static str,
    /// Release that serves.
    pub release: Option<u32>,
    /// Containers that go on running.
    pub containers: Vec<String>,
    /// The command with which Compose takes it over.
    pub command: Option<String>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// Gives a stack back to plain Compose, or tells what that would mean.
///
/// # Errors
/// `NotFound` for a stack that is not ours, `Conflict` while something of ours stands in front of it, `Busy` while an operation holds it.
pub async fn eject(house: &Arc<House>, stack: &StackName, dry_run: bool, by: &AgentName) -> Result<Ejected, CallError> {
    let record = house.store.stack(stack).await?.ok_or_else(|| prepare::not_deployed(stack))?;
    let registered = prepare::registration(house, stack).await?;
    let everything = observe::stack(house, stack).await?.containers;
    let claim = names::claim(stack);
    let serves =
        |c: &&ContainerDetail| c.labels.get(labels::ROLE).is_some_and(|r| r == labels::ROLE_SERVING) && !names::is_retired(&c.name);
    if let Some(other) = everything.iter().find(|c| c.name != claim.as_str() && !serves(c)) {
        let message = format!("container {} of stack {stack} means nothing to Compose", redact::line(&other.name, 80));
        let hint = "wait for the operation it belongs to, or deploy the stack with strategy handover first";
        return Err(CallError::new(ErrorCode::Conflict, message, hint).field("stack"));
    }
    let mut containers: Vec<String> = everything.iter().filter(serves).map(|c| redact::line(&c.name, 80)).collect();
    containers.sort();
    let mut out = Ejected {
        stack: stack.clone(),
        state: "would_eject",
        release: record.current,
        containers,
        command: registered.as_ref().map(|entry| command(stack, entry)),
        notes: notes(house, stack, registered.is_some()),
    };
    if dry_run {
        return Ok(out);
    }
    if let Some(frozen) = approval::frozen(&house.store).await? {
        return Err(CallError::new(ErrorCode::Denied, frozen, "lift it with `dockwarden unfreeze`"));
    }
    let call = call(house, by, "eject", stack, record.environment);
    let detail = json!({"release": record.current, "containers": out.containers, "registration": registered});
    house.store.audit_event(by.as_str(), "eject_asked", Some(stack.as_str()), &detail, call.now).await?;
    let decision = gate::operator_decision(by.as_str());
    let facts = call.facts.get().expect("call() set them");
    let permit = gate::permit(&call.id, facts, &decision, Verdict::Allow, &[], true)
        .map_err(|r| CallError::new(ErrorCode::Denied, r.to_string(), "report this"))?;
    let done = house.executor.eject(stack, &permit, request(&call, "eject", None)).await.map_err(run::executor_error);
    let (event, detail) = match &done {
        Ok(()) => ("ejected", json!({})),
        Err(e) => ("eject_failed", json!({"why": redact::line(&e.message, 500)})),
    };
    house.store.audit_event(by.as_str(), event, Some(stack.as_str()), &detail, chrono::Utc::now()).await?;
    done?;
    out.state = "ejected";
    Ok(out)
}

fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn command(stack: &StackName, entry: &StackSettingsEntry) -> String {
    let mut out = format!("cd {} && docker compose -p {stack}", shell(&entry.dir.display().to_string()));
    for (flag, items) in [("-f", &entry.files), ("--env-file", &entry.env_files), ("--profile", &entry.profiles)] {
        for item in items {
            out.push_str(&format!(" {flag} {}", shell(item)));
        }
    }
    out.push_str(" up -d");
    out
}

fn notes(house: &House, stack: &StackName, registered: bool) -> Vec<String> {
    let mut notes = vec![
        "Compose knows its containers by its own labels, which ours carry too; its configuration hash differs, so it recreates the containers once. \
         Volumes and networks are kept."
            .to_owned(),
    ];
    if !registered {
        notes.push("its files were given in calls and are not on this host: write them into a directory before you run `docker compose up -d` there".into());
    }
    if house.config.settings.stacks.contains_key(stack) {
        notes.push(format!("remove [stacks.{stack}] from dockwarden.toml, or it can be deployed here again"));
    }
    notes
}
