//! Memory as operators handle it: back to a moment, out to files, in from files, checked. Deliberately absent: what agents do with their own memory, which
//! are tools.

use crate::adapters::people::{Done, authorised, reply};
use crate::adapters::socket::wire::Credential;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House, recall};
use crate::model::ids::AgentName;
use crate::store::StoreError;
use chrono::{DateTime, Utc};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// A memory there is: of an agent in force, or of one whose file is still there.
fn known(house: &House, agent: &str) -> Result<AgentName, CallError> {
    let name = named(agent, "agent")?;
    let there = house.rulebook.load().agents.contains_key(agent) || house.config.memory.join(agent).join("memory.db").exists();
    if there {
        return Ok(name);
    }
    let hint = "see `dockwarden agents list`, or the directories in the memory directory";
    Err(CallError::new(ErrorCode::NotFound, format!("there is no agent {agent} and no memory of one"), hint).field("agent"))
}

fn named(agent: &str, field: &str) -> Result<AgentName, CallError> {
    AgentName::new(agent)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "see `dockwarden agents list`").field(field))
}

/// What of the store's words is the caller's to mend.
fn told(e: StoreError) -> CallError {
    match &e {
        StoreError::Absent { .. } => CallError::new(ErrorCode::Conflict, e.to_string(), "nothing was changed").field("at"),
        StoreError::Missing { .. } => CallError::new(ErrorCode::NotFound, e.to_string(), "name a later moment").field("at"),
        StoreError::Corrupt { what: "context.json", .. } | StoreError::TooLarge { .. } => {
            CallError::new(ErrorCode::InvalidArgument, e.to_string(), "mend the file; nothing was imported")
        }
        StoreError::Io { .. } => {
            let hint = "name a directory the supervisor's user may write, as the supervisor sees it";
            CallError::new(ErrorCode::InvalidArgument, e.to_string(), hint).field("dir")
        }
        _ => e.into(),
    }
}

pub(super) async fn restore(house: &Arc<House>, agent: &str, at: DateTime<Utc>, credential: Option<&Credential>) -> Done {
    let name = known(house, agent)?;
    let by = authorised(house, credential).await?;
    let now = Utc::now();
    let done = match house.store.memory_restore(&name, at, &by.name, now).await {
        // What is needed is in files that are not here: the backups of the supervisor have them.
        Err(StoreError::Absent { .. }) => {
            recall::files(&house.store, house.backups.as_deref(), &name).await?;
            house.store.memory_restore(&name, at, &by.name, now).await
        }
        done => done,
    };
    let done = done.map_err(told)?;
    let detail = json!({"agent": name, "at": at, "as_of": done.as_of, "changed": done.changed.len()});
    house.store.audit_event(&by.name, "memory_restored", None, &detail, now).await?;
    let text = format!("memory of {name} is as of event {}: {} keys, {} changed. {}", done.as_of, done.keys, done.changed.len(), by.note);
    reply(json!(done), text.trim())
}

pub(super) async fn export(house: &Arc<House>, agent: &str, dir: &Path) -> Done {
    let name = known(house, agent)?;
    if !dir.is_absolute() {
        let hint = "write the whole path";
        return Err(CallError::new(ErrorCode::InvalidArgument, "the directory is not absolute", hint).field("dir"));
    }
    house.store.memory_export(&name, dir).await.map_err(told)?;
    let files = [dir.join("context.json"), dir.join("history.json")];
    reply(json!({"agent": name, "files": files}), format!("{}\n{}", files[0].display(), files[1].display()))
}

pub(super) async fn import(house: &Arc<House>, agent: &str, context: &str, of: Option<&str>, credential: Option<&Credential>) -> Done {
    let name = known(house, agent)?;
    let of = of.map(|of| named(of, "of")).transpose()?;
    let by = authorised(house, credential).await?;
    let now = Utc::now();
    let limits = house.rulebook.load().agents.get(name.as_str()).map(|a| a.limits.clone()).unwrap_or_default();
    let (most, _) = house.config.settings.memory.of(&limits);
    let keys = house.store.memory_import(&name, context, of.as_ref(), most, now).await.map_err(told)?;
    house.store.audit_event(&by.name, "memory_imported", None, &json!({"agent": name, "keys": keys, "of": of}), now).await?;
    reply(json!({"agent": name, "keys": keys}), format!("{keys} entries imported for {name}. {}", by.note).trim())
}

pub(super) async fn verify(house: &Arc<House>, agent: &str) -> Done {
    let name = known(house, agent)?;
    let problems = house.store.memory_verify(&name).await?;
    let text = if problems.is_empty() { format!("intact: memory of {name}") } else { format!("NOT intact:\n{}", problems.join("\n")) };
    reply(json!({"agent": name, "problems": problems}), text)
}
