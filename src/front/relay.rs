//! Bytes between a client and a backend, both ways, until both have closed. A side that closed its half is passed on as such; a broken one breaks
//! the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Bytes read at a time and direction.
const BUFFER: usize = 16 * 1024;

/// Bounds of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Longest silence.
    pub idle: Duration,
    /// Longest silence once one side has closed.
    pub half_open: Duration,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides closed in order.
    Done,
    /// One side broke.
    Broken,
    /// We cut it, and why.
    Cut(&'static str),
}

/// Moment of the last byte, in ms since the session began.
struct Clock {
    start: Instant,
    last: AtomicU64,
}

impl Clock {
    fn tick(&self) {
        self.last.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// Relays until the session ends.
pub(super) async fn relay(client: &mut TcpStream, backend: &mut TcpStream, rules: &Rules) -> End {
    let clock = Clock { start: Instant::now(), last: AtomicU64::new(0) };
    let ((from_client, to_client), (from_backend, to_backend)) = (client.split(), backend.split());
    let (up, down) = (pump(from_client, to_backend, &clock), pump(from_backend, to_client, &clock));
    tokio::pin!(up, down);
    let (mut up_open, mut down_open) = (true, true);
    while up_open || down_open {
        let silence = if up_open && down_open { rules.idle } else { rules.half_open };
        let ended = tokio::select! {
            ended = &mut up, if up_open => { up_open = false; ended }
            ended = &mut down, if down_open => { down_open = false; ended }
            () = tokio::time::sleep_until(clock.last() + silence) => {
                if clock.last().elapsed() >= silence {
                    return End::Cut(if up_open && down_open { "idle for too long" } else { "half open for too long" });
                }
                continue;
            }
        };
        if let Err(e) = ended {
            tracing::debug!(error = %e, "a session broke");
            return End::Broken;
        }
    }
    End::Done
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, clock: &Clock) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        clock.tick();
        if n == 0 {
            // The other side may have closed both halves already: then there is nothing left to tell it.
            return match to.shutdown().await {
                Err(e) if e.kind() == std::io::ErrorKind::NotConnected => Ok(()),
                other => other,
            };
        }
        to.write_all(&buffer[..n]).await?;
        clock.tick();
    }
}

/// Has the drop of a connection tell the peer that it broke, instead of an orderly end.
pub(super) fn reset(stream: &TcpStream) {
    if let Err(e) = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!(error = %e, "a broken session ends in order");
    }
}
