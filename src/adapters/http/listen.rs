//! The accept loop: no Nagle delay on any accepted socket, a cap on connections, a time limit for headers, graceful end.
//! Deliberately absent: routing.

use super::strangers::Strangers;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most connections at once; beyond it clients wait in the backlog.
const MAX_CONNECTIONS: usize = 512;
/// A client that does not finish its headers is let go.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Time for open responses to be written once their streams are told to end.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves until `shutdown`, lets open responses finish until `hangup`, and waits for what is still being written within `DRAIN`.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken, hangup: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let open = TaskTracker::new();
    let strangers = Strangers::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let client = strangers.meet();
                let (router, shutdown) = (router.clone().layer(Extension(client.clone())), shutdown.clone());
                open.spawn(async move {
                    tokio::select! {
                        () = connection(stream, router, shutdown) => {}
                        () = client.cut() => {}
                    }
                    client.known();
                    drop(place);
                });
            }
            Err(e) => {
                // Out of descriptors: pause instead of spinning.
                tracing::warn!(error = %e, "the HTTP door could not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    open.close();
    tokio::select! {
        () = open.wait() => return,
        () = hangup.cancelled() => {}
    }
    if tokio::time::timeout(DRAIN, open.wait()).await.is_err() {
        tracing::info!(open = open.len(), "HTTP connections were cut at the end");
    }
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    // With Nagle's algorithm a small reply waits for the client's delayed ACK: 44 ms instead of 0.1 ms a call.
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(error = %e, "TCP_NODELAY could not be set");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "an HTTP connection ended");
    }
}
