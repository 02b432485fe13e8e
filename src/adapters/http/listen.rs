//! The accept loop: no Nagle delay on any accepted socket, TLS where there is a certificate, a cap on connections, a time limit for
//! handshake and headers, graceful end.
//! Deliberately absent: routing.

use super::strangers::Strangers;
use super::tls::Tls;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most connections at once; beyond it clients wait in the backlog.
pub const MAX_CONNECTIONS: usize = 512;
/// A client that does not finish its headers is let go.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Time for open responses to be written once their streams are told to end.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves until `shutdown`, lets open responses finish until `hangup`, and waits for what is still being written within `DRAIN`.
pub async fn serve(listener: TcpListener, tls: Option<Arc<Tls>>, router: Router, shutdown: CancellationToken, hangup: CancellationToken) {
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
                let (tls, router, shutdown) = (tls.clone(), router.clone().layer(Extension(client.clone())), shutdown.clone());
                open.spawn(async move {
                    tokio::select! {
                        () = accepted_one(stream, tls.as_deref(), router, shutdown) => {}
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

async fn accepted_one(stream: TcpStream, tls: Option<&Tls>, router: Router, shutdown: CancellationToken) {
    match open(stream, tls).await {
        Ok(Line::Plain(stream)) => connection(stream, router, shutdown).await,
        Ok(Line::Tls(stream)) => connection(stream, router, shutdown).await,
        Err(e) => tracing::debug!(error = %e, "a TLS handshake failed"),
    }
}

/// A connection that is ready for HTTP.
enum Line {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Makes an accepted socket quick, and shakes hands where there is a certificate.
async fn open(stream: TcpStream, tls: Option<&Tls>) -> std::io::Result<Line> {
    // With Nagle's algorithm a small reply waits for the client's delayed ACK: 44 ms instead of 0.1 ms a call.
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(error = %e, "TCP_NODELAY could not be set");
    }
    match tls {
        None => Ok(Line::Plain(stream)),
        Some(tls) => Ok(Line::Tls(Box::new(tls.accept(stream).await?))),
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(stream: S, router: Router, shutdown: CancellationToken) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_accepted_socket_is_without_nagles_delay_with_tls_and_without() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let Ok(Line::Plain(plain)) = open(accepted.expect("accepted").0, None).await else { panic!("no TLS was asked for") };
        assert!(plain.nodelay().expect("a socket"));

        let pair = super::super::tls::tests::Pair::new();
        let cert = pair.renew();
        let tls = pair.load().expect("a pair");
        let client = async {
            let stream = TcpStream::connect(address).await.expect("open");
            super::super::tls::tests::connect(stream, &cert).await.expect("shaken")
        };
        let server = async { open(listener.accept().await.expect("accepted").0, Some(&tls)).await };
        let (_client, line) = tokio::join!(client, server);
        let Ok(Line::Tls(stream)) = line else { panic!("TLS was asked for") };
        assert!(stream.get_ref().0.nodelay().expect("a socket"));
    }
}
