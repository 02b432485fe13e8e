//! `dockwarden mcp`: stdin and stdout of an MCP client, bridged to the supervisor's socket; starts a supervisor when none runs.
//! Deliberately absent: configuration, policy, SQLite and rmcp. A client waits for this process, so it does nothing but connect and copy.

use crate::adapters::socket::{client, wire};
use std::io::{Read, Write};
use std::path::PathBuf;

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
    /// Tools to list.
    pub toolsets: Option<String>,
}

/// One direction came to its end.
enum Ended {
    /// The client closed its side.
    Up(std::io::Result<()>),
    /// The supervisor closed its side.
    Down(std::io::Result<()>),
}

/// Bridges until one side ends.
///
/// # Errors
/// In words for the client's log: no supervisor and none could be started, or the supervisor refused the agent.
pub async fn run(bridge: &Bridge) -> Result<(), client::ClientError> {
    let hello = wire::Hello {
        door: wire::HelloDoor::Mcp,
        agent: Some(bridge.agent.clone()),
        read_only: bridge.read_only,
        toolsets: bridge.toolsets.clone(),
    };
    let stream = client::connect_or_start(&bridge.home, bridge.config.as_deref()).await?;
    let (from, to) = client::introduce(stream, &hello).await?;
    let ahead = from.buffer().to_vec();
    let broken = |e: std::io::Error| client::ClientError::Broken(e.to_string());
    let stream = from.into_inner().reunite(to).expect("introduce() split one stream").into_std().map_err(broken)?;
    stream.set_nonblocking(false).map_err(broken)?;
    let up = stream.try_clone().map_err(broken)?;
    let (ended, mut ends) = tokio::sync::mpsc::channel(2);
    // A thread for each direction: tokio moves stdin and stdout to other threads for every message. They are not waited for: a read of
    // stdin that nobody answers ends with the process.
    let upward = ended.clone();
    std::thread::spawn(move || {
        let copied = copy(&mut std::io::stdin().lock(), &mut &up);
        // The supervisor answers what still runs, then closes; one that is gone already is told of by the other direction.
        let _ = up.shutdown(std::net::Shutdown::Write);
        let _ = upward.blocking_send(Ended::Up(copied));
    });
    std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        let copied = out.write_all(&ahead).and_then(|()| out.flush()).and_then(|()| copy(&mut &stream, &mut out));
        let _ = ended.blocking_send(Ended::Down(copied));
    });
    loop {
        match ends.recv().await {
            Some(Ended::Up(Ok(()))) => {}
            Some(Ended::Up(result) | Ended::Down(result)) => return result.map_err(broken),
            None => return Ok(()),
        }
    }
}

/// Copies what arrives as it arrives, until the end.
fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n]).and_then(|()| to.flush())?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
