//! What people at the machine ask for: approvals, operators, tokens, audit verification. Reading needs the home's owner; deciding needs an
//! operator's passphrase. Deliberately absent: checking it and deciding (`adapters::people`, the same for every door).

mod memory;

use super::credential;
use super::handover;
use super::peer::Peer;
use super::wire::{Admin, Credential};
use crate::adapters::people::{self, Done, authorised, denied, reply, verified};
use crate::adapters::{Doors, tokens};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::call::{approval, brakes};
use crate::model::ids::{AgentName, StackName};
use crate::store::token::Removal;
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// Rows of the audit log in one answer: below the 4 MiB of a line with details of the usual size.
const MAX_ROWS: usize = 500;

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
            reply(json!({"approvals": list.iter().map(people::row).collect::<Vec<_>>()}), text)
        }
        Admin::ApprovalShow { approval } => people::show(house, &approval).await,
        Admin::Approve { approval, confirm, credential } => {
            let by = verified(house, &credential).await?;
            people::decide_confirmed(house, &approval, &by, confirm.as_deref(), people::Word::Approve, people::CLI).await
        }
        Admin::Deny { approval, credential } => {
            let by = verified(house, &credential).await?;
            people::decide(house, &approval, &by, people::Word::Deny, people::CLI).await
        }
        Admin::Revoke { approval, credential } => {
            let by = verified(house, &credential).await?;
            people::decide(house, &approval, &by, people::Word::Revoke, people::CLI).await
        }
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
        Admin::BreakerLift { agent, stack, credential } => {
            let (by, stack) = (verified(house, &credential).await?, stack_name(&stack)?);
            brakes::lift(&house.store, &by, &agent, &stack, Utc::now()).await?;
            reply(
                json!({"agent": agent, "stack": stack}),
                format!("lifted by {by}: {agent} may change {stack} again, as far as its rules go"),
            )
        }
        Admin::BreakGlass { agent, stack, minutes, reason, credential } => {
            let (by, stack) = (verified(house, &credential).await?, stack_name(&stack)?);
            if !house.rulebook.load().agents.contains_key(&agent) || crate::gate::load::HOUSE_AGENTS.contains(&agent.as_str()) {
                let message = format!("there is no agent {:?} to do it for", crate::redact::line(&agent, 80));
                return Err(CallError::new(ErrorCode::NotFound, message, "see `dockwarden agents list`").field("agent"));
            }
            let glass = brakes::Glass { agent, stack, by, reason, until: Utc::now() };
            let made = brakes::break_glass(&house.store, glass, minutes, Utc::now()).await?;
            let text = format!(
                "GLASS BROKEN by {}: until {} what {} does on {} needs no approval; what is denied stays denied. `dockwarden break-glass --end` ends it",
                made.by, made.until, made.agent, made.stack
            );
            reply(json!(made), text)
        }
        Admin::MendGlass { credential } => {
            let by = verified(house, &credential).await?;
            let ended = brakes::mend(&house.store, &by, Utc::now()).await?;
            reply(json!({"ended": ended}), format!("{ended} ended by {by}: approvals are asked for again"))
        }
        Admin::Operators => {
            let names: Vec<String> = house.store.operators().await?.into_iter().map(|(name, _)| name).collect();
            reply(json!({"operators": names}), names.join("\n"))
        }
        Admin::OperatorAdd { name, passphrase, credential } => operator_add(house, &name, passphrase, credential.as_ref()).await,
        Admin::OperatorRemove { name, credential } => operator_remove(house, &name, &credential).await,
        Admin::Adopt { stack, dry_run, accept_drift, environment, credential } => {
            let by = deciding(house, dry_run, credential.as_ref()).await?;
            handover::adopt(house, stack.as_deref(), handover::How { dry_run, accept_drift, environment, by }).await
        }
        Admin::Eject { stack, dry_run, credential } => {
            let by = deciding(house, dry_run, credential.as_ref()).await?;
            handover::eject(house, &stack, dry_run, &by).await
        }
        Admin::Token { agent, revoke, label, days, credential } => {
            tokens::make(doors, &tokens::Wish { agent, revoke, label, days }, credential.as_ref()).await
        }
        Admin::Tokens => tokens::list(house).await,
        Admin::Spent { month } => spent(house, month.as_deref()).await,
        Admin::TokenRevoke { token, credential } => tokens::revoke(doors, &token, credential.as_ref()).await,
        Admin::OperatorToken { label, days, credential } => {
            let by = verified(house, &credential).await?;
            tokens::make_for_operator(house, &by, &label, days).await
        }
        Admin::OperatorTokens => tokens::list_of_operators(house).await,
        Admin::OperatorTokenRevoke { token, credential } => {
            let by = verified(house, &credential).await?;
            tokens::revoke_of_operator(house, &token, &by).await
        }
        Admin::PolicyCheck => {
            let stacks = crate::call::judge::running(house).await?;
            let line = |s: &crate::call::judge::Judged| {
                let found = s.findings.iter().map(|f| format!("\n  {} {}: {}", f.verdict.as_str(), f.rule, f.because)).collect::<String>();
                let error = s.error.as_ref().map(|e| format!("\n  not judged: {e}")).unwrap_or_default();
                format!("{} release {} in {}: {}{found}{error}", s.stack, s.release, s.environment, s.verdict.as_str())
            };
            let text = if stacks.is_empty() { "no stack runs".to_owned() } else { stacks.iter().map(line).collect::<Vec<_>>().join("\n") };
            reply(json!({"stacks": stacks}), text)
        }
        Admin::AuditRows { after, since, limit } => {
            let (rows, head) = (house.store.audit_after(after, since, limit.min(MAX_ROWS)).await?, house.store.audit_head().await?);
            reply(json!({"rows": rows, "head": head, "instance": house.store.instance(), "host": house.config.host_name}), "")
        }
        Admin::AuditFirsts { since } => reply(json!({"firsts": house.store.audit_firsts(since).await?}), ""),
        Admin::AuditCheckpoint => {
            let (checkpoint, key) = house.store.audit_signed_head(Utc::now()).await?;
            reply(json!({"checkpoint": checkpoint, "key": key}), checkpoint.trim_end_matches('\n'))
        }
        Admin::AuditVerify { kept } => {
            let report = house.store.audit_verify_against(kept).await?;
            let text = if report.problems.is_empty() {
                format!(
                    "intact: {} rows, {} segments, {} checkpoints, head {}",
                    report.rows, report.segments, report.checkpoints, report.head
                )
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
            if let Err(e) = tokio::fs::write(backups.key_told(), format!("{}\n", Utc::now().to_rfc3339())).await {
                tracing::warn!(error = %e, "that the key of the backups was told is not noted");
            }
            let env: serde_json::Map<String, serde_json::Value> = backups.restic_env().into_iter().map(|(k, v)| (k, json!(v))).collect();
            reply(json!({"repository": backups.place(), "password_file": backups.key_file, "env": env}), by.note)
        }
    }
}

fn stack_name(text: &str) -> Result<StackName, CallError> {
    StackName::new(text)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "name a stack of `dockwarden status`").field("stack"))
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
        "frozen": frozen, "glass": brakes::broken(&house.store, Utc::now()).await?,
    });
    let state = frozen.map(|f| format!(" ({f})")).unwrap_or_default();
    reply(value, format!("dockwarden {} on {}{state}", env!("CARGO_PKG_VERSION"), house.config.host_name))
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

async fn operator_remove(house: &Arc<House>, name: &str, credential: &Credential) -> Done {
    let by = verified(house, credential).await?;
    match house.store.remove_operator(name, Utc::now()).await? {
        Removal::Gone => {
            house.store.audit_event(&by, "operator_removed", None, &json!({"operator": name}), Utc::now()).await?;
            reply(json!({"removed": name}), format!("{name} is no operator any more: passphrase, tokens and web sessions are void"))
        }
        Removal::Unknown => {
            let name = crate::redact::line(name, 80);
            Err(CallError::new(ErrorCode::NotFound, format!("there is no operator {name:?}"), "see `dockwarden operators`").field("name"))
        }
        Removal::Last => {
            let hint = "add the next one first: `dockwarden operators add NAME`";
            Err(CallError::new(ErrorCode::Conflict, format!("{name} is the only operator; without one nobody could approve"), hint)
                .field("name"))
        }
    }
}

/// What agents spent, with their caps of the month.
async fn spent(house: &Arc<House>, month: Option<&str>) -> Done {
    let rows = house.store.spent(month).await?;
    let book = house.rulebook.load();
    let caps: std::collections::BTreeMap<&String, f64> =
        book.agents.iter().filter_map(|(name, a)| a.limits.usd_per_month.map(|cap| (name, cap))).collect();
    let now = crate::model::spend::month(Utc::now());
    reply(json!({"spent": rows, "caps": caps, "this_month": now}), String::new())
}
