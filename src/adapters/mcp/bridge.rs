//! `dockwarden mcp`: stdin and stdout of an MCP client, bridged to the supervisor's socket; starts a supervisor when none runs.
//! Deliberately absent: configuration, policy, SQLite and rmcp. A client waits for this process, so it does nothing but connect and copy.

use crate::adapters::socket::{client, wire};
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;

/// What the bridge needs to know.
#[derive(Debug, Clone)]
pub struct Bridge {
    /// State directory.
    pub home: PathBuf,
    /// Configuration directory, when given: passed on to a supervisor it starts.
    pub config: Option<PathBuf>,
    /// Agent.
    pub agent: String,
    /// Only reads.
    pub read_only: bool,
}

/// Bridges until one side ends.
///
/// # Errors
/// In words for the client's log: no supervisor and none could be started, or the supervisor refused the agent.
pub async fn run(bridge: &Bridge) -> Result<(), client::ClientError> {
    let hello = wire::Hello { door: wire::HelloDoor::Mcp, agent: Some(bridge.agent.clone()), read_only: bridge.read_only };
    let stream = client::connect_or_start(&bridge.home, bridge.config.as_deref()).await?;
    let (mut from, mut to) = client::introduce(stream, &hello).await?;
    let upward = async {
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
        // The client closed its side: the supervisor answers what still runs, then closes.
        let _ = to.shutdown().await;
        copied
    };
    let downward = async {
        let mut out = tokio::io::stdout();
        // `copy` flushes only when it has nothing to read; stdout of tokio is unbuffered beyond one write.
        let copied = tokio::io::copy_buf(&mut from, &mut out).await;
        let _ = out.flush().await;
        copied
    };
    tokio::pin!(upward, downward);
    tokio::select! {
        down = &mut downward => down.map(|_| ()),
        up = &mut upward => match up {
            Ok(_) => downward.await.map(|_| ()),
            Err(e) => Err(e),
        },
    }
    .map_err(|e| client::ClientError::Broken(e.to_string()))
}
