//! Stacks that change hands: taken over from Compose, and given back.

use super::super::handover;
use super::super::wire::Credential;
use crate::adapters::people::{Done, denied, verified};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::StackName;
use std::sync::Arc;

/// How a stack is taken over.
pub(super) struct Wish {
    pub(super) dry_run: bool,
    pub(super) accept_drift: bool,
    pub(super) environment: Option<String>,
}

/// Takes a stack over from Compose.
pub(super) async fn adopt(house: &Arc<House>, stack: Option<&str>, wish: Wish, credential: Option<&Credential>) -> Done {
    let Wish { dry_run, accept_drift, environment } = wish;
    let by = deciding(house, dry_run, credential).await?;
    handover::adopt(house, stack, handover::How { dry_run, accept_drift, environment, by }).await
}

/// Gives one back.
pub(super) async fn eject(house: &Arc<House>, stack: &str, dry_run: bool, credential: Option<&Credential>) -> Done {
    let by = deciding(house, dry_run, credential).await?;
    handover::eject(house, stack, dry_run, &by).await
}

/// A name as it was typed.
pub(super) fn stack_name(text: &str) -> Result<StackName, CallError> {
    StackName::new(text)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "name a stack of `dockwarden status`").field("stack"))
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
