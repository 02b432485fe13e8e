//! Operations on data as a client sees them: begun, waited for, and where a volume lies.

use super::engine::docker;
use super::eventually;
use super::home::Home;
use super::mcp::Client;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Waits for the end of an operation.
pub async fn ended(client: &Client, id: &Value) -> Value {
    eventually("the operation ends", Duration::from_secs(240), || async {
        let op = client.ok("operation", json!({"operation_id": id, "wait_s": 20})).await;
        (!matches!(op["state"].as_str(), Some("queued" | "running" | "monitoring"))).then_some(op)
    })
    .await
}

/// Calls a tool that begins an operation, and waits for its end, whatever it is.
pub async fn called(client: &Client, tool: &str, mut arguments: Value) -> Value {
    arguments["wait"] = json!(false);
    let begun = client.ok(tool, arguments).await;
    ended(client, &begun["operation_id"]).await
}

/// [`called`], and the end is a good one.
pub async fn done(client: &Client, tool: &str, arguments: Value) -> Value {
    let op = called(client, tool, arguments).await;
    assert_eq!(op["state"], json!("done"), "{tool}: {op:#}");
    op
}

/// Where a volume lies on this host.
pub fn mountpoint(volume: &str) -> PathBuf {
    PathBuf::from(docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", volume]))
}

/// Whether an operation is over, as the supervisor's records say.
pub fn settled(home: &Home, operation: &str) -> bool {
    let open =
        rusqlite::Connection::open_with_flags(home.path("state/state.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opened");
    open.query_row("SELECT settled_at IS NOT NULL FROM operation WHERE id = ?1", [operation], |r| r.get(0)).unwrap_or(false)
}
