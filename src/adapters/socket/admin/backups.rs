//! Where the backups are, and the key that opens them.

use super::super::wire::Credential;
use crate::adapters::people::{Done, authorised, reply};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// How any restic opens the repository; that the key was told is noted.
pub(super) async fn repository(house: &Arc<House>, credential: Option<&Credential>) -> Done {
    let by = authorised(house, credential).await?;
    house.store.audit_event(&by.name, "backup_key_shown", None, &json!({}), Utc::now()).await?;
    let missing = || CallError::new(ErrorCode::NotFound, "this build has no backups", "use a build with the `backup` feature");
    let backups = house.backups.as_ref().ok_or_else(missing)?;
    if let Err(e) = tokio::fs::write(backups.key_told(), format!("{}\n", Utc::now().to_rfc3339())).await {
        tracing::warn!(error = %e, "that the key of the backups was told is not noted");
    }
    let env: serde_json::Map<String, serde_json::Value> = backups.restic_env().into_iter().map(|(k, v)| (k, json!(v))).collect();
    reply(json!({"repository": backups.place(), "password_file": backups.key_file, "env": env}), by.note)
}
