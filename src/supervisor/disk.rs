//! Watches the disk of the home: tells once when it passes a threshold, and once when there is room again (`[disk]`). Deliberately absent: making room, and what
//! is still done on a full disk (`store::reserve`).

use crate::call::House;
use crate::model::disk::{DiskLevel, DiskUsage};
use crate::store::{Store, StoreResult, disk};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between looks: one system call each.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Where the level is kept that was told.
const TOLD: &str = "disk";
/// Rows of the audit log by which `[notify]` learns of it.
pub(super) const HIGH: &str = "disk_high";
pub(super) const CRITICAL: &str = "disk_critical";
const EASED: &str = "disk_eased";

/// Runs until `shutdown`.
pub async fn run(house: Arc<House>, shutdown: CancellationToken) {
    // Kept here beside the store: on a full disk the store may not take it, and what was told must not be told every ten seconds.
    let mut told = match level(&house.store).await {
        Ok(told) => told,
        Err(e) => {
            tracing::error!(error = %e, "what was told of the disk could not be read; it is told again");
            DiskLevel::Fine
        }
    };
    loop {
        match disk::usage(&house.config.home) {
            Ok(usage) => told = look(&house, usage, told, Utc::now()).await,
            Err(e) => {
                tracing::error!(home = %house.config.home.display(), error = %e, "the room on the home's disk could not be looked at")
            }
        }
        if tokio::time::timeout(LOOK_EVERY, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// The level that was told last.
///
/// # Errors
/// The database's.
pub async fn level(store: &Store) -> StoreResult<DiskLevel> {
    Ok(store.value(TOLD).await?.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default())
}

/// One look: a level that is not the one told before gets its row. The level that is told now.
async fn look(house: &House, usage: DiskUsage, told: DiskLevel, now: DateTime<Utc>) -> DiskLevel {
    let (settings, percent) = (&house.config.settings.disk, usage.percent());
    let level = settings.level(percent, told);
    if level == told {
        return told;
    }
    let (what, threshold) = match level {
        _ if level < told => (EASED, if told == DiskLevel::Critical { settings.critical_percent } else { settings.warn_percent }),
        DiskLevel::Critical => (CRITICAL, settings.critical_percent),
        DiskLevel::High | DiskLevel::Fine => (HIGH, settings.warn_percent),
    };
    let free_mib = usage.free >> 20;
    let home = house.config.home.display();
    match what {
        CRITICAL => {
            tracing::error!(%home, percent, free_mib, "the disk of the home is nearly full: without an audit row nothing is executed")
        }
        HIGH => tracing::warn!(%home, percent, free_mib, "the disk of the home fills up"),
        _ => tracing::info!(%home, percent, free_mib, "the disk of the home has room again"),
    }
    let detail =
        json!({"path": house.config.home, "percent": percent, "threshold": threshold, "free_mib": free_mib, "level": level, "was": told});
    if let Err(e) = house.store.audit_event("supervisor", what, None, &detail, now).await {
        tracing::error!(error = %e, "how full the disk is could not be recorded; it is tried again");
        return told;
    }
    if let Err(e) = house.store.set_value(TOLD, &json!(level)).await {
        tracing::error!(error = %e, "that it was told how full the disk is could not be kept; a restart tells it again");
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::dispatch::tests::bench;
    use crate::store::audit::AuditRow;

    #[tokio::test]
    async fn each_threshold_is_told_once_up_and_once_down_and_never_in_between() {
        let b = bench().await;
        let now = Utc::now();
        let mut told = level(&b.house.store).await.expect("read");
        for used in [50, 85, 84, 86, 96, 94, 97, 92, 50, 49] {
            told = look(&b.house, DiskUsage { used: used << 30, free: (100 - used) << 30 }, told, now).await;
            assert_eq!(level(&b.house.store).await.expect("read"), told, "at {used}");
        }
        let rows: Vec<AuditRow> = b.house.store.audit_after(0, None, 100).await.expect("rows");
        let told: Vec<(&str, u64, u64)> = rows
            .iter()
            .map(|r| (r.tool.as_str(), r.detail["percent"].as_u64().expect("a number"), r.detail["threshold"].as_u64().expect("a number")))
            .collect();
        assert_eq!(told, [(HIGH, 85, 85), (CRITICAL, 96, 95), (EASED, 92, 95), (EASED, 50, 85)]);
        assert_eq!((&rows[0].detail["free_mib"], &rows[0].detail["was"]), (&json!(15 << 10), &json!("fine")));
    }
}
