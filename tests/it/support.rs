//! What the areas share: an engine that answers, a home of its own for each test, the real binary as a process, real MCP clients.
//! Tests touch only what they made: every stack gets a name of this run, and goes with its home.

// Each area uses its part; what none of them uses yet is still the support's interface.
#![allow(dead_code)]

pub mod compose_run;
pub mod data;
pub mod engine;
pub mod fits;
pub mod home;
pub mod http;
pub mod llm;
pub mod mcp;
pub mod own_engine;
pub mod people;
pub mod registry;
pub mod serve;

use std::time::{Duration, Instant};

/// The binary under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_dockwarden");

/// Looks every 20 ms until `look` finds something; panics with `what` after `within`. Waiting for a condition, never for a time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + within;
    loop {
        // A look that hangs is one that finds nothing; the last begins before the end and has a moment.
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(10));
        if let Ok(Some(found)) = tokio::time::timeout(left, look()).await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
