//! Bytes between a client and a backend, both ways, until both have closed. A side that closed its half is passed on as such; a broken one breaks
//! the other, once what it had said is on its way: a backend that answers before the request is whole and closes has answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Bytes read at a time and direction.
const BUFFER: usize = 16 * 1024;
/// Time for the last bytes of a backend that broke to reach their client.
const LINGER: Duration = Duration::from_millis(500);

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
    /// The client broke.
    Broken,
    /// The backend broke; what it said before may still be on its way.
    Lost,
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
    let up = pump(from_client, to_backend, (Side::Client, Side::Backend), &clock);
    let down = pump(from_backend, to_client, (Side::Backend, Side::Client), &clock);
    tokio::pin!(up, down);
    let (mut up_open, mut down_open) = (true, true);
    let mut lost = false;
    while down_open || up_open && !lost {
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
        match ended {
            Ok(()) => {}
            // It takes no more; what it has said is still to be read.
            Err(Broke { by: Side::Backend, error }) if down_open => {
                tracing::debug!(%error, "a backend takes no more of a session");
                lost = true;
            }
            Err(Broke { by, error }) => {
                tracing::debug!(%error, ?by, "a session broke");
                return if by == Side::Backend { End::Lost } else { End::Broken };
            }
        }
    }
    if lost { End::Lost } else { End::Done }
}

/// Which end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

/// What ended one direction.
struct Broke {
    by: Side,
    error: std::io::Error,
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (reading, writing): (Side, Side),
    clock: &Clock,
) -> Result<(), Broke> {
    let broke = |by| move |error| Broke { by, error };
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await.map_err(broke(reading))?;
        clock.tick();
        if n == 0 {
            // The other side may have closed both halves already: then there is nothing left to tell it.
            return match to.shutdown().await {
                Err(e) if e.kind() == std::io::ErrorKind::NotConnected => Ok(()),
                other => other.map_err(broke(writing)),
            };
        }
        to.write_all(&buffer[..n]).await.map_err(broke(writing))?;
        clock.tick();
    }
}

/// Gives a client the time to get what its backend said last: what it sends is read and dropped, as long as it stays, for a moment.
pub(super) async fn linger(client: &mut TcpStream) {
    let dropped = async {
        let mut buffer = vec![0; BUFFER];
        while client.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    };
    if tokio::time::timeout(LINGER, dropped).await.is_err() {
        tracing::trace!("a client stays although its backend broke");
    }
}

/// Has the drop of a connection tell the peer that it broke, instead of an orderly end.
pub(super) fn reset(stream: &TcpStream) {
    if let Err(e) = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!(error = %e, "a broken session ends in order");
    }
}
