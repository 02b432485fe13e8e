//! What people at the machine ask for: approvals, operators, tokens, audit verification. Reading needs the home's owner; deciding needs an
//! operator's passphrase, checked here. Deliberately absent: what an approval leads to (`call::approval`).

mod memory;

use super::credential;
use super::handover;
use super::peer::{Peer, WARDEN};
use super::wire::{Admin, Credential};
use crate::adapters::Doors;
use crate::call::approval::{self, run_approved};
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::{AgentName, ApprovalId};
use crate::store::approval::{Approval, ApprovalState};
use chrono::Utc;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// One guess at a time, and a wrong one costs this much on top of the hash.
static GUESSES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const WRONG_GUESS: Duration = Duration::from_secs(1);

type Done = Result<Reply, CallError>;

fn reply(value: Value, text: impl Into<String>) -> Done {
    Ok(Reply { value, text: text.into() })
}

fn denied(message: impl Into<String>, hint: &str) -> CallError {
    CallError::new(ErrorCode::Denied, message, hint)
}

/// Runs one request.
///
/// # Errors
/// `Denied` for another user than the home's owner or a wrong passphrase, `NotFound`, and the store's.
pub async fn run(doors: &Arc<Doors>, peer: &Peer, admin: Admin) -> Done {
    if !peer.is_owner() {
        let message = format!("uid {} does not own this supervisor's home", peer.uid);
        return Err(denied(message, "ask its owner, or use the tools `approval` and `agents` as an agent"));
    }
    let house = &doors.house;
    match admin {
        Admin::Info => info(doors).await,
        Admin::Approvals { all } => {
            let list = house.store.approvals(!all, Utc::now()).await?;
            let text = if list.is_empty() { "no approvals wait".to_owned() } else { format!("{} approvals", list.len()) };
            reply(json!({"approvals": list.iter().map(row).collect::<Vec<_>>()}), text)
        }
        Admin::ApprovalShow { approval } => show(house, &approval).await,
        Admin::Approve { approval, credential } => decide(house, &approval, &credential, true).await,
        Admin::Deny { approval, credential } => decide(house, &approval, &credential, false).await,
        Admin::Freeze { reason, credential } => {
            let by = verified(house, &credential).await?;
            approval::freeze(&house.store, &by, &reason, Utc::now()).await?;
            let text = format!(
                "frozen by {by}: nothing changes until `dockwarden unfreeze`; operations under way go on to their end, `dockwarden cancel` stops one"
            );
            reply(json!({"frozen": approval::frozen(&house.store).await?, "operations": house.executor.active()}), text)
        }
        Admin::Unfreeze { credential } => {
            let by = verified(house, &credential).await?;
            let before = approval::frozen(&house.store).await?;
            approval::unfreeze(&house.store, &by, Utc::now()).await?;
            reply(
                json!({"frozen": null, "was": before}),
                if before.is_some() { format!("unfrozen by {by}") } else { "nothing was frozen".to_owned() },
            )
        }
        Admin::Operators => {
            let names: Vec<String> = house.store.operators().await?.into_iter().map(|(name, _)| name).collect();
            reply(json!({"operators": names}), names.join("\n"))
        }
        Admin::OperatorAdd { name, passphrase, credential } => operator_add(house, &name, passphrase, credential.as_ref()).await,
        Admin::Token { agent, revoke, credential } => token(house, &agent, revoke, credential.as_ref()).await,
        Admin::Adopt { stack, dry_run, accept_drift, environment, credential } => {
            let by = deciding(house, dry_run, credential.as_ref()).await?;
            handover::adopt(house, stack.as_deref(), handover::How { dry_run, accept_drift, environment, by }).await
        }
        Admin::Eject { stack, dry_run, credential } => {
            let by = deciding(house, dry_run, credential.as_ref()).await?;
            handover::eject(house, &stack, dry_run, &by).await
        }
        Admin::AuditVerify => {
            let report = house.store.audit_verify().await?;
            let text = if report.problems.is_empty() {
                format!("intact: {} rows, {} checkpoints, head {}", report.rows, report.checkpoints, report.head)
            } else {
                format!("NOT intact:\n{}", report.problems.join("\n"))
            };
            reply(json!(report), text)
        }
        Admin::MemoryRestore { agent, at, credential } => memory::restore(house, &agent, at, credential.as_ref()).await,
        Admin::MemoryExport { agent, dir } => memory::export(house, &agent, &dir).await,
        Admin::MemoryImport { agent, context, of, credential } => {
            memory::import(house, &agent, &context, of.as_deref(), credential.as_ref()).await
        }
        Admin::MemoryVerify { agent } => memory::verify(house, &agent).await,
        Admin::BackupRepository { credential } => {
            let by = authorised(house, credential.as_ref()).await?;
            house.store.audit_event(&by.name, "backup_key_shown", None, &json!({}), Utc::now()).await?;
            let missing = || CallError::new(ErrorCode::NotFound, "this build has no backups", "use a build with the `backup` feature");
            let backups = house.backups.as_ref().ok_or_else(missing)?;
            reply(json!({"repository": backups.repo, "password_file": backups.key_file}), by.note)
        }
    }
}

async fn info(doors: &Arc<Doors>) -> Done {
    let house = &doors.house;
    let rulebook = house.rulebook.load();
    let frozen = approval::frozen(&house.store).await?;
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "instance": house.store.instance(), "host": house.config.host_name,
        "home": house.config.home, "config": house.config.config_dir, "memory": house.config.memory, "uptime_s": doors.started.elapsed().as_secs(),
        "agents": rulebook.agents.keys().collect::<Vec<_>>(), "policy_version": rulebook.version, "prompts": house.prompts.load().len(),
        "operations": house.executor.active(), "clients": doors.presence.count(), "in_container": house.config.path_map.is_some(),
        "frozen": frozen,
    });
    let state = frozen.map(|f| format!(" ({f})")).unwrap_or_default();
    reply(value, format!("dockwarden {} on {}{state}", env!("CARGO_PKG_VERSION"), house.config.host_name))
}

fn approval_id(text: &str) -> Result<ApprovalId, CallError> {
    ApprovalId::new(text)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "see `dockwarden approvals list`").field("approval"))
}

/// An approval as lists show it: without the call's input, which may carry secret values.
fn row(a: &Approval) -> Value {
    json!({"approval_id": a.id, "state": a.state, "agent": a.agent, "tool": a.tool, "stack": a.stack, "environment": a.environment, "reason": a.reason,
           "needed": a.needed, "approved_by": a.approved_by, "denied_by": a.denied_by, "operation_id": a.operation, "created_at": a.created_at, "expires_at": a.expires_at})
}

async fn show(house: &Arc<House>, text: &str) -> Done {
    let id = approval_id(text)?;
    let approval = crate::call::approval::find(&house.store, &id).await?;
    let mut value = row(&approval);
    value["digest"] = json!(approval.digest);
    if let Some(plan) = &approval.plan
        && let Some(plan) = house.store.plan(plan).await?
    {
        value["changes"] = json!(plan.changes);
        value["findings"] = json!(plan.findings);
    }
    reply(value, format!("{} wants {} on {}", approval.agent, approval.tool, approval.stack.as_ref().map_or("the host", |s| s.as_str())))
}

async fn decide(house: &Arc<House>, text: &str, credential: &Credential, yes: bool) -> Done {
    let id = approval_id(text)?;
    let by = verified(house, credential).await?;
    let now = Utc::now();
    let before = crate::call::approval::find(&house.store, &id).await?;
    if yes && before.agent == by {
        return Err(denied("who asked cannot approve", "another operator approves"));
    }
    let Some(after) = house.store.decide_approval(&id, &by, yes, now).await? else {
        let state = json!(before.state);
        let message = format!("approval {id} is {} already", state.as_str().unwrap_or("settled"));
        return Err(CallError::new(ErrorCode::Conflict, message, "the agent repeats its call to ask again"));
    };
    let what = if yes { "approval_given" } else { "approval_denied" };
    let stack = after.stack.as_ref().map(|s| s.as_str());
    house.store.audit_event(&by, what, stack, &json!({"approval": id, "digest": after.digest, "agent": after.agent}), now).await?;
    let mut value = row(&after);
    match after.state {
        ApprovalState::Approved => {
            let started = run_approved(house, &id).await?;
            value["result"] = started.value;
            reply(value, format!("approved by {by}; {}", started.text))
        }
        ApprovalState::Pending => {
            reply(value, format!("approved by {by}; {} of {} approvals given", after.approved_by.len(), after.needed))
        }
        ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Used | ApprovalState::Stale => {
            reply(value, format!("denied by {by}"))
        }
    }
}

/// Checks a passphrase; one guess at a time.
async fn verified(house: &Arc<House>, credential: &Credential) -> Result<String, CallError> {
    let _one = GUESSES.lock().await;
    let stored = house.store.operators().await?.into_iter().find(|(name, _)| *name == credential.operator);
    let ok = match stored {
        None => false,
        Some((_, hash)) => {
            let passphrase = credential.passphrase.clone();
            let checked = tokio::task::spawn_blocking(move || credential::verify(&passphrase, &hash)).await;
            let internal = |e: String| {
                CallError::new(
                    ErrorCode::Internal,
                    "the operator's credential could not be checked",
                    "set it again with `dockwarden operators add`",
                )
                .detail(e)
            };
            checked.map_err(|e| internal(e.to_string()))?.map_err(|e| internal(e.to_string()))?
        }
    };
    if ok {
        return Ok(credential.operator.clone());
    }
    tokio::time::sleep(WRONG_GUESS).await;
    let operator = crate::adapters::client_text(&credential.operator);
    house.store.audit_event("operator", "credential_refused", None, &json!({"operator": operator}), Utc::now()).await?;
    Err(denied(
        "the operator or the passphrase is wrong",
        "make an operator with `dockwarden operators add NAME`, then type its passphrase",
    ))
}

/// Who decides about a stack: an operator. A look is the home's owner's.
async fn deciding(house: &Arc<House>, look: bool, credential: Option<&Credential>) -> Result<String, CallError> {
    match credential {
        Some(credential) => verified(house, credential).await,
        None if look => Ok("home-owner".into()),
        None => Err(denied(
            "this needs an operator's passphrase",
            "run it at a terminal: it is typed there, never passed as an argument or variable; `dockwarden operators add NAME` makes an operator",
        )
        .field("credential")),
    }
}

struct Authorised {
    name: String,
    note: String,
}

/// An operator where there is one; on a home without operators its owner, and the reply says so.
async fn authorised(house: &Arc<House>, credential: Option<&Credential>) -> Result<Authorised, CallError> {
    match credential {
        Some(credential) => Ok(Authorised { name: verified(house, credential).await?, note: String::new() }),
        None if house.store.operators().await?.is_empty() => Ok(Authorised {
            name: "home-owner".into(),
            note: "No operator exists yet, so the home's owner was enough. Add one (`dockwarden operators add NAME`): from then on this asks for a passphrase.".into(),
        }),
        None => Err(denied("this needs an operator's passphrase", "run it at a terminal: it is typed there, never passed as an argument or variable").field("credential")),
    }
}

async fn operator_add(house: &Arc<House>, name: &str, passphrase: String, credential: Option<&Credential>) -> Done {
    let name = AgentName::new(name)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "choose a name like a login name").field("name"))?;
    if house.rulebook.load().agents.contains_key(name.as_str()) {
        return Err(CallError::new(ErrorCode::Conflict, format!("{name} is an agent"), "an operator is a person: choose another name")
            .field("name"));
    }
    let by = authorised(house, credential).await?;
    let hashed = tokio::task::spawn_blocking(move || credential::hash(&passphrase)).await;
    let bad = |e: String| CallError::new(ErrorCode::InvalidArgument, e, "type a longer passphrase").field("passphrase");
    let hash = hashed.map_err(|e| bad(e.to_string()))?.map_err(|e| bad(e.to_string()))?;
    house.store.put_operator(name.as_str(), &hash, Utc::now()).await?;
    house.store.audit_event(&by.name, "operator_added", None, &json!({"operator": name}), Utc::now()).await?;
    reply(json!({"operator": name}), format!("operator {name} may now approve. {}", by.note).trim())
}

async fn token(house: &Arc<House>, agent: &str, revoke: bool, credential: Option<&Credential>) -> Done {
    let there = house.rulebook.load().agents.contains_key(agent);
    if !there {
        return Err(
            CallError::new(ErrorCode::NotFound, format!("there is no agent {agent}"), "see `dockwarden agents list`").field("agent")
        );
    }
    if agent == WARDEN {
        return Err(denied("agent warden is the supervisor's own loop", "make a token for another agent"));
    }
    let by = authorised(house, credential).await?;
    let (token, kept) = credential::token()
        .map_err(|e| CallError::new(ErrorCode::Internal, "no token could be made", "look at the supervisor's log").detail(e.to_string()))?;
    let revoked = if revoke { house.store.revoke_tokens(agent, Utc::now()).await? } else { 0 };
    house.store.put_token(agent, &kept, Utc::now()).await?;
    house.store.audit_event(&by.name, "token_made", None, &json!({"agent": agent, "revoked": revoked}), Utc::now()).await?;
    reply(json!({"agent": agent, "token": token, "revoked": revoked, "note": by.note}), token)
}
