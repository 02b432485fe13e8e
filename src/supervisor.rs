//! The loop that keeps stacks healthy while nobody looks: woken by engine events and by a periodic scan. It is itself an agent
//! (`warden`): whatever it does goes through the one line, under its own manifest. It takes no input and keeps no retry inside: every
//! look decides anew from what is there.

pub mod disk;
mod heal;
mod incidents;
pub mod notify;
mod policy;
mod schedule;
pub mod tasks;
pub mod triggers;
mod watch;

use crate::call::{Door, House, Principal, dispatch};
use crate::model::ids::AgentName;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The loop's own agent.
pub const WARDEN: &str = "warden";
/// How often every stack is looked at without an event.
const SCAN: Duration = Duration::from_secs(30);
/// How often schedules, expiries and checkpoints are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(20);

/// Runs until `shutdown`.
pub async fn run(house: Arc<House>, shutdown: CancellationToken) {
    let (wake, mut woken) = tokio::sync::mpsc::channel::<watch::Wake>(256);
    let watcher = tokio::spawn(watch::run(house.clone(), wake.clone(), shutdown.clone()));
    // Beside the healing: what it calls may wait for disks and for operations.
    let keeper = tokio::spawn(keep_house(house.clone(), shutdown.clone()));
    let mut healer = heal::Healer::new(house, wake).await;
    let mut scan = tokio::time::interval(SCAN);
    scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(wake) = woken.recv() => healer.woken(wake).await,
            _ = scan.tick() => {
                // What has happened goes before what is seen: an event may tell why something is gone.
                while let Ok(wake) = woken.try_recv() {
                    healer.woken(wake).await;
                }
                healer.scan().await;
            }
        }
    }
    for (what, task) in [("the event watcher", watcher), ("the housekeeping", keeper)] {
        if let Err(e) = task.await {
            tracing::error!(error = %e, "{what} ended badly");
        }
    }
}

/// Schedules, expiries and checkpoints, until `shutdown`.
async fn keep_house(house: Arc<House>, shutdown: CancellationToken) {
    let mut ticker = tokio::time::interval(HOUSEKEEPING);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => schedule::tick(&house).await,
        }
    }
}

/// A call of the loop, like any other agent's.
async fn call(house: &Arc<House>, tool: &str, input: Value) -> Result<Value, crate::call::CallError> {
    let who = Principal {
        agent: AgentName::new(WARDEN).expect("a valid name"),
        door: Door::Loop,
        client: None,
        read_only: false,
        on_behalf: vec![],
    };
    dispatch::dispatch(house, &who, tool, input, None).await.map(|reply| reply.value)
}
