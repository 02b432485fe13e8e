//! What the supervisor says of itself: state, costs, and what the policy of now says of what runs.

use crate::adapters::Doors;
use crate::adapters::people::{Done, reply};
use crate::call::{House, approval, brakes};
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;

/// Version, places, load.
pub(super) async fn info(doors: &Arc<Doors>) -> Done {
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

/// What agents spent, with their caps of the month.
pub(super) async fn spent(house: &Arc<House>, month: Option<&str>) -> Done {
    let rows = house.store.spent(month).await?;
    let book = house.rulebook.load();
    let caps: std::collections::BTreeMap<&String, f64> =
        book.agents.iter().filter_map(|(name, a)| a.limits.usd_per_month.map(|cap| (name, cap))).collect();
    let now = crate::model::spend::month(Utc::now());
    reply(json!({"spent": rows, "caps": caps, "this_month": now}), String::new())
}

/// What the gate would say now of every release that serves.
pub(super) async fn policy(house: &Arc<House>) -> Done {
    let stacks = crate::call::judge::running(house).await?;
    let line = |s: &crate::call::judge::Judged| {
        let found = s.findings.iter().map(|f| format!("\n  {} {}: {}", f.verdict.as_str(), f.rule, f.because)).collect::<String>();
        let error = s.error.as_ref().map(|e| format!("\n  not judged: {e}")).unwrap_or_default();
        format!("{} release {} in {}: {}{found}{error}", s.stack, s.release, s.environment, s.verdict.as_str())
    };
    let text = if stacks.is_empty() { "no stack runs".to_owned() } else { stacks.iter().map(line).collect::<Vec<_>>().join("\n") };
    reply(json!({"stacks": stacks}), text)
}
