//! A backend for a connection: looked up by name at each connect, the next one when one does not take it, and patience, bounded, when none does.

use super::table::{Place, Table, Ticket};
use crate::model::ids::EngineName;
use rustix::net::sockopt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Pause before all backends are tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Keepalive: a dead peer is found after 60 + 5 x 10 s.
const KEEP_IDLE: Duration = Duration::from_secs(60);
const KEEP_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_COUNT: u32 = 5;

/// Why a connection gets no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoBackend {
    /// Too many wait already.
    TooMany,
    /// Waited as long as allowed.
    Late,
    /// The client went away.
    ClientGone,
}

/// No delay and keepalive, on both ends of a session.
pub(super) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_COUNT)?;
    Ok(())
}

/// A connection to a backend of the routes in force.
pub(super) async fn backend(
    client: &TcpStream,
    port: u16,
    table: &Arc<Table>,
    place: &mut Place,
) -> Result<(TcpStream, Ticket), NoBackend> {
    let accepted = Instant::now();
    let mut changes = table.changes();
    loop {
        changes.mark_unchanged();
        let limits = table.limits();
        let mut tried = vec![];
        while let Some(ticket) = table.pick(&tried) {
            match tokio::time::timeout(Duration::from_millis(limits.connect_ms), connect(&ticket.name, port)).await {
                Ok(Ok(stream)) => return Ok((stream, ticket)),
                // Ours, not the backend's: what counts against it may take a canary back.
                Ok(Err(e)) if out_of_files(&e) => {
                    tracing::warn!(error = %e, "no file descriptor for a connection to a backend; it waits");
                    break;
                }
                Ok(Err(e)) => tracing::debug!(backend = %ticket.name, error = %e, "a backend did not take a connection"),
                Err(_) => tracing::debug!(backend = %ticket.name, "a backend did not take a connection in time"),
            }
            table.failed(&ticket.name);
            tried.push(ticket.name.clone());
        }
        if !place.hold() {
            return Err(NoBackend::TooMany);
        }
        let again = async { if table.holds() { std::future::pending().await } else { tokio::time::sleep(AGAIN).await } };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Err(NoBackend::Late) },
            () = again => {}
            () = tokio::time::sleep_until(accepted + Duration::from_millis(limits.hold_ms)) => return Err(NoBackend::Late),
            () = gone(client) => return Err(NoBackend::ClientGone),
        }
        if accepted.elapsed() >= Duration::from_millis(table.limits().hold_ms) {
            return Err(NoBackend::Late);
        }
    }
}

fn out_of_files(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    e.raw_os_error().is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

async fn connect(name: &EngineName, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((name.as_str(), port)).await?;
    tune(&stream)?;
    Ok(stream)
}

/// Ends when a client that has sent nothing closes. One that has sent something is served, even if it closed its side since.
async fn gone(client: &TcpStream) {
    let mut byte = [0];
    match client.peek(&mut byte).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}
