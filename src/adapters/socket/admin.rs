//! What people at the machine ask for: approvals, operators, tokens, audit verification. Reading needs the home's owner; deciding needs an
//! operator's passphrase. One file per subject. Deliberately absent: checking it and deciding (`adapters::people`, the same for every door).

mod approvals;
mod audit;
mod backups;
mod brakes;
mod look;
mod memory;
mod operators;
mod stacks;

use super::peer::Peer;
use super::wire::Admin;
use crate::adapters::people::{Done, denied};
use crate::adapters::{Doors, tokens};
use std::sync::Arc;

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
        Admin::Info => look::info(doors).await,
        Admin::Spent { month } => look::spent(house, month.as_deref()).await,
        Admin::PolicyCheck => look::policy(house).await,
        Admin::Approvals { all } => approvals::list(house, all).await,
        Admin::ApprovalShow { approval } => approvals::show(house, &approval).await,
        Admin::Approve { approval, confirm, credential } => approvals::approve(house, &approval, confirm.as_deref(), &credential).await,
        Admin::Reject { approval, credential } => approvals::reject(house, &approval, &credential).await,
        Admin::Revoke { approval, credential } => approvals::revoke(house, &approval, &credential).await,
        Admin::Freeze { reason, credential } => brakes::freeze(house, &reason, &credential).await,
        Admin::Unfreeze { credential } => brakes::unfreeze(house, &credential).await,
        Admin::BreakerLift { agent, stack, credential } => brakes::lift(house, &agent, &stack, &credential).await,
        Admin::BreakGlass { agent, stack, minutes, reason, credential } => {
            brakes::break_glass(house, brakes::Wish { agent, stack, minutes, reason }, &credential).await
        }
        Admin::MendGlass { credential } => brakes::mend_glass(house, &credential).await,
        Admin::Operators => operators::list(house).await,
        Admin::OperatorAdd { name, passphrase, credential } => operators::add(house, &name, passphrase, credential.as_ref()).await,
        Admin::OperatorRemove { name, credential } => operators::remove(house, &name, &credential).await,
        Admin::OperatorToken { label, days, credential } => operators::make_token(house, &label, days, &credential).await,
        Admin::OperatorTokens => tokens::list_of_operators(house).await,
        Admin::OperatorTokenRevoke { token, credential } => operators::revoke_token(house, &token, &credential).await,
        Admin::Token { agent, revoke, label, days, credential } => {
            tokens::make(doors, &tokens::Wish { agent, revoke, label, days }, credential.as_ref()).await
        }
        Admin::Tokens => tokens::list(house).await,
        Admin::TokenRevoke { token, credential } => tokens::revoke(doors, &token, credential.as_ref()).await,
        Admin::Adopt { stack, dry_run, accept_drift, environment, credential } => {
            stacks::adopt(house, stack.as_deref(), stacks::Wish { dry_run, accept_drift, environment }, credential.as_ref()).await
        }
        Admin::Eject { stack, dry_run, credential } => stacks::eject(house, &stack, dry_run, credential.as_ref()).await,
        Admin::AuditRows { after, since, limit } => audit::rows(house, after, since, limit).await,
        Admin::AuditFirsts { since } => audit::firsts(house, since).await,
        Admin::AuditVerify { kept } => audit::verify(house, kept).await,
        Admin::AuditCheckpoint => audit::checkpoint(house).await,
        Admin::MemoryRestore { agent, at, credential } => memory::restore(house, &agent, at, credential.as_ref()).await,
        Admin::MemoryExport { agent, dir } => memory::export(house, &agent, &dir).await,
        Admin::MemoryImport { agent, context, of, credential } => {
            memory::import(house, &agent, &context, of.as_deref(), credential.as_ref()).await
        }
        Admin::MemoryVerify { agent } => memory::verify(house, &agent).await,
        Admin::BackupRepository { credential } => backups::repository(house, credential.as_ref()).await,
    }
}
