//! What runs beside the doors for as long as they are open. Deliberately absent: the doors, and everything that ends before they open.

use super::rules;
use crate::call::House;
use crate::store::audit::rotate::Rotation;
use crate::store::memory::compact::Keep;
use chrono::{TimeDelta, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pause between looks at whether the audit log is to be rotated.
const ROTATE_EVERY: Duration = Duration::from_secs(60);
/// Pause between looks at whether a memory has outgrown its limits.
const COMPACT_EVERY: Duration = Duration::from_secs(600);
/// MiB of the audit log in its database before it is rotated, when the file says nothing.
const SEGMENT_MIB: u32 = 64;
/// Pause between signed checkpoints of the audit log.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);

/// What runs beside the doors: the supervisor's loop, reload of rules, audit checkpoints, histories.
pub(super) fn begin(house: &Arc<House>, shutdown: &CancellationToken, tasks: &TaskTracker) {
    tasks.spawn(rules::watch(Arc::clone(house), shutdown.clone()));
    tasks.spawn(crate::supervisor::run(Arc::clone(house), shutdown.clone()));
    tasks.spawn(crate::supervisor::tasks::run(Arc::clone(house), shutdown.clone()));
    tasks.spawn(crate::supervisor::triggers::run(Arc::clone(house), shutdown.clone()));
    tasks.spawn(crate::supervisor::disk::run(Arc::clone(house), shutdown.clone()));
    tasks.spawn(rotate(Arc::clone(house), shutdown.clone()));
    tasks.spawn(compact(Arc::clone(house), shutdown.clone()));
    let (house, shutdown) = (Arc::clone(house), shutdown.clone());
    tasks.spawn(async move {
        loop {
            if let Err(e) = house.store.project_history().await {
                tracing::error!(error = %e, "agents' histories could not be brought up to date");
            }
            if let Err(e) = house.store.audit_checkpoint(Utc::now()).await {
                tracing::error!(error = %e, "the audit log could not be checkpointed");
            }
            if tokio::time::timeout(CHECKPOINT_EVERY, shutdown.cancelled()).await.is_ok() {
                return;
            }
        }
    });
}

/// Seals the closed part of the audit log whenever it is due.
async fn rotate(house: Arc<House>, shutdown: CancellationToken) {
    let settings = &house.config.settings.audit;
    let rotation = Rotation {
        max_bytes: u64::from(settings.segment_mib.unwrap_or(SEGMENT_MIB)) << 20,
        max_age: settings.segment_days.map(|d| TimeDelta::days(i64::from(d))),
    };
    loop {
        match house.store.audit_rotate(&rotation, Utc::now()).await {
            Ok(None) => {}
            Ok(Some(sealed)) => {
                tracing::info!(first = sealed.first, last = sealed.last, file = %sealed.file.display(), "a part of the audit log was sealed");
            }
            Err(e) => tracing::error!(error = %e, "the audit log could not be rotated; it goes on growing"),
        }
        if tokio::time::timeout(ROTATE_EVERY, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Keeps every agent's memory within its limits.
async fn compact(house: Arc<House>, shutdown: CancellationToken) {
    loop {
        match house.store.memory_agents().await {
            Ok(agents) => {
                for agent in agents {
                    compact_one(&house, &agent).await;
                }
            }
            Err(e) => tracing::error!(error = %e, "the agents' memories could not be looked at; they go on growing"),
        }
        if tokio::time::timeout(COMPACT_EVERY, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn compact_one(house: &House, agent: &crate::model::ids::AgentName) {
    let limits = house.rulebook.load().agents.get(agent.as_str()).map(|a| a.limits.clone()).unwrap_or_default();
    let (max_bytes, days) = house.config.settings.memory.of(&limits);
    let keep = Keep { max_bytes, max_age: days.map(|d| TimeDelta::days(i64::from(d))) };
    let now = Utc::now();
    match house.store.memory_compact(agent, &keep, now).await {
        Ok(None) => {}
        Ok(Some(left)) => {
            let detail = serde_json::json!({"agent": agent, "first": left.first, "last": left.last, "file": left.file});
            tracing::info!(%agent, first = left.first, last = left.last, file = %left.file.display(), "old events of a memory went to a file");
            if let Err(e) = house.store.audit_event("supervisor", "memory_compacted", None, &detail, now).await {
                tracing::error!(%agent, error = %e, "the audit log has no row of a compaction; the memory's own log has");
            }
        }
        Err(e) => tracing::error!(%agent, error = %e, "a memory could not be compacted; it goes on growing"),
    }
}

/// Records snapshots that lie in the repository and nowhere else, e.g. of one that was copied here.
pub(super) async fn snapshots_unknown(house: Arc<House>, shutdown: CancellationToken) {
    let Some(backups) = &house.backups else { return };
    let recorded = tokio::select! {
        recorded = crate::executor::backup::records::record_unknown(&house.store, backups) => recorded,
        () = shutdown.cancelled() => return,
    };
    match recorded {
        Ok(0) => {}
        Ok(n) => tracing::info!(snapshots = n, "snapshots found in the backup repository are recorded"),
        Err(e) => tracing::warn!(error = %e, "the backup repository could not be compared with what is recorded"),
    }
}
