//! Connections in: accept within the cap, find a backend, relay. One task per connection.

use super::dial::{self, NoBackend};
use super::relay::{self, End};
use super::table::{Place, Table};
use super::{proxy, relay::Rules};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pause after an accept that failed (out of descriptors): trying again at once would only burn the CPU.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop`.
pub(super) async fn accept(listener: TcpListener, target: u16, table: Arc<Table>, sessions: TaskTracker, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let client = match accepted {
            Ok((client, _)) => client,
            Err(e) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // At the cap the others wait in the kernel's queue.
        let place = tokio::select! {
            place = table.place() => place,
            () = stop.cancelled() => return,
        };
        sessions.spawn(session(client, target, table.clone(), place));
    }
}

async fn session(mut client: TcpStream, target: u16, table: Arc<Table>, mut place: Place) {
    if let Err(e) = dial::tune(&client) {
        // The client is gone before it began.
        tracing::debug!(error = %e, "a connection ended at once");
        return;
    }
    let (mut backend, ticket) = match dial::backend(&client, target, &table, &mut place).await {
        Ok(found) => found,
        Err(NoBackend::ClientGone) => return,
        Err(NoBackend::TooMany | NoBackend::Late) => {
            table.refused();
            relay::reset(&client);
            return;
        }
    };
    place.release();
    let limits = table.limits();
    if limits.proxy_protocol {
        let header = match (client.peer_addr(), client.local_addr()) {
            (Ok(from), Ok(to)) => proxy::header(from, to),
            _ => return,
        };
        if let Err(e) = backend.write_all(&header).await {
            tracing::debug!(backend = %ticket.name, error = %e, "the backend ended before the session began");
            relay::reset(&client);
            return;
        }
    }
    table.served(&ticket.name);
    let rules = Rules { idle: Duration::from_millis(limits.idle_ms), half_open: Duration::from_millis(limits.half_open_ms) };
    let ended = tokio::select! {
        ended = relay::relay(&mut client, &mut backend, &rules) => ended,
        () = expelled(&table, &ticket.name) => End::Cut("its backend left the routes and its time to end is over"),
    };
    match ended {
        End::Done => {}
        End::Lost => {
            relay::linger(&mut client).await;
            // As the backend ended: half an answer must not look like a whole one.
            relay::reset(&client);
            relay::reset(&backend);
        }
        End::Broken => {
            // Half an answer must not look like a whole one.
            relay::reset(&client);
            relay::reset(&backend);
        }
        End::Cut(why) => {
            tracing::debug!(backend = %ticket.name, why, "session cut");
            relay::reset(&client);
            relay::reset(&backend);
        }
    }
}

/// Ends when a backend has been out of the routes for as long as its sessions may stay.
async fn expelled(table: &Table, name: &crate::model::ids::EngineName) {
    let mut changes = table.changes();
    loop {
        if table.leaving(name) {
            let bound = Duration::from_millis(table.limits().drain_ms);
            tokio::select! {
                () = tokio::time::sleep(bound) => return,
                // It may have come back.
                () = until_back(table, name) => {}
            }
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn until_back(table: &Table, name: &crate::model::ids::EngineName) {
    let mut changes = table.changes();
    while table.leaving(name) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
