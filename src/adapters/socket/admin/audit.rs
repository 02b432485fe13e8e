//! The audit log, for reports and checks.

use crate::adapters::people::{Done, reply};
use crate::call::House;
use chrono::{DateTime, Utc};
use serde_json::json;

/// Rows in one answer: below the 4 MiB of a line with details of the usual size.
const MAX_ROWS: usize = 500;

/// Rows after one, oldest first.
pub(super) async fn rows(house: &House, after: i64, since: Option<DateTime<Utc>>, limit: usize) -> Done {
    let (rows, head) = (house.store.audit_after(after, since, limit.min(MAX_ROWS)).await?, house.store.audit_head().await?);
    reply(json!({"rows": rows, "head": head, "instance": house.store.instance(), "host": house.config.host_name}), "")
}

/// What agents did first since a moment.
pub(super) async fn firsts(house: &House, since: DateTime<Utc>) -> Done {
    reply(json!({"firsts": house.store.audit_firsts(since).await?}), "")
}

/// A signed statement of the log as it is now, to be kept elsewhere.
pub(super) async fn checkpoint(house: &House) -> Done {
    let (checkpoint, key) = house.store.audit_signed_head(Utc::now()).await?;
    reply(json!({"checkpoint": checkpoint, "key": key}), checkpoint.trim_end_matches('\n'))
}

/// Checks the chain, and that it still has what checkpoints kept elsewhere were made of.
pub(super) async fn verify(house: &House, kept: String) -> Done {
    let report = house.store.audit_verify_against(kept).await?;
    let text = if report.problems.is_empty() {
        format!("intact: {} rows, {} segments, {} checkpoints, head {}", report.rows, report.segments, report.checkpoints, report.head)
    } else {
        format!("NOT intact:\n{}", report.problems.join("\n"))
    };
    reply(json!(report), text)
}
