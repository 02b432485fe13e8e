//! The TCP front: a process of its own that owns a service's ports and name and passes connections on to whatever serves it, so that a release can
//! be replaced without a lost connection. IPv4 and IPv6, TCP only. It knows no stack, no release and no policy: it follows a routes file.
//!
//! **How the supervisor reaches it.** The front runs in a container that is joined to the stack's networks alone. Its control socket lies on its own
//! volume: a supervisor that may look into that directory of the engine's host connects to it there (and asks who listens). Any other, in a container
//! or without the rights, reaches it through the engine: it runs this binary again inside that container (`front --apply ROUTES`), which talks to the
//! socket and prints the answer. Unlike a file put there by the archive calls both *answer*: new routes are in force when the call returns, which is
//! what a switch has to know before it stops the old release. The front writes the routes beside its socket by write-rename, on a volume that lives as long as its container:
//! after a restart of the engine it goes on by itself. The first routes are put there before the first start.
//!
//! **One process per service**, not per port: the name of a service leads to one container, which must answer on all of its ports.
//!
//! Deliberately absent: TLS, HTTP, health checks (the supervisor probes before it routes), UDP (it has no sessions to keep).

mod accept;
mod control;
mod dial;
mod file;
mod proxy;
mod relay;
mod table;
#[cfg(test)]
mod tests;

pub use control::ask;

use crate::model::front::{Routes, SOCKET};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use table::Table;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the routes file is looked at; a change by the control socket needs no look.
const LOOK: Duration = Duration::from_secs(1);
/// Length of the kernel's queue of connections not yet accepted.
const BACKLOG: i32 = 1024;

/// One port of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Where clients connect. `[::]` takes IPv4 too.
    pub address: SocketAddr,
    /// Port of the backends.
    pub target: u16,
}

impl std::str::FromStr for Listen {
    type Err = String;

    /// `80` or `[::]:8080` (same port at the backends), `127.0.0.1:8080=80`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, target) = text.split_once('=').map_or((text, None), |(a, t)| (a, Some(t)));
        let address: SocketAddr = match address.parse::<u16>() {
            Ok(port) => SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port),
            Err(_) => address.parse().map_err(|_| format!("{address:?} is neither a port nor address:port"))?,
        };
        let target = match target {
            Some(t) => t.parse().map_err(|_| format!("{t:?} is not a port"))?,
            None => address.port(),
        };
        if target == 0 {
            return Err("the port of the backends is 0".into());
        }
        Ok(Self { address, target })
    }
}

/// Why a front does not run.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// A port cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The control socket cannot be made.
    #[error("cannot make the control socket {0}: {1}")]
    Control(PathBuf, std::io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(std::io::Error),
}

/// A front that listens.
#[derive(Debug)]
pub struct Front {
    table: Arc<Table>,
    file: Arc<file::RoutesFile>,
    listeners: Vec<(TcpListener, u16)>,
    control: UnixListener,
}

impl Front {
    /// Listens on every port and reads the routes. Without usable routes it starts all the same and holds connections, bounded, until there
    /// are some: a refused connection is lost, a held one is late.
    ///
    /// # Errors
    /// `Listen`, `Control`.
    pub async fn bind(listen: &[Listen], routes: PathBuf) -> Result<Self, FrontError> {
        let listeners = listen.iter().map(|l| Ok((bind(l.address)?, l.target))).collect::<Result<_, FrontError>>()?;
        let socket = routes.with_file_name(SOCKET);
        let failed = |e| FrontError::Control(socket.clone(), e);
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let control = UnixListener::bind(&socket).map_err(failed)?;
        let table = Arc::new(Table::new(Routes::to([], Default::default())));
        let file = Arc::new(file::RoutesFile::new(routes));
        file.load(&table);
        Ok(Self { table, file, listeners, control })
    }

    /// Addresses it listens on, in the order given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|(l, _)| l.local_addr().ok()).collect()
    }

    /// Passes connections on until `stop`, then lets open sessions end within their bound.
    pub async fn run(self, stop: CancellationToken) {
        let sessions = TaskTracker::new();
        let tasks = TaskTracker::new();
        for (listener, target) in self.listeners {
            tasks.spawn(accept::accept(listener, target, self.table.clone(), sessions.clone(), stop.clone()));
        }
        tasks.spawn(control::serve(self.control, self.table.clone(), self.file.clone(), stop.clone()));
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = look.tick() => self.file.load(&self.table),
                () = stop.cancelled() => break,
            }
        }
        tasks.close();
        tasks.wait().await;
        sessions.close();
        let bound = Duration::from_millis(self.table.limits().drain_ms);
        if tokio::time::timeout(bound, sessions.wait()).await.is_err() {
            tracing::warn!(open = sessions.len(), ?bound, "sessions still open are cut");
        }
    }

    /// Reads the routes file again at once.
    pub fn reload(&self) -> impl Fn() + Send + 'static {
        let (file, table) = (self.file.clone(), self.table.clone());
        move || file.load(&table)
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, FrontError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
    let make = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            // One socket for both families, whatever the host's default.
            sockopt::set_ipv6_v6only(&socket, false)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    match make(address) {
        // A kernel without IPv6.
        Err(e) if address.is_ipv6() && e.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
            let v4 = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port());
            make(v4).map_err(|e| FrontError::Listen(v4, e))
        }
        other => other.map_err(|e| FrontError::Listen(address, e)),
    }
}

/// A session takes two descriptors, and many engines give a process 1024: as many as the engine allows at all.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(error = %e, current = ?limit.current, "the limit of open files cannot be raised");
    }
}

/// Runs a front until SIGTERM or SIGINT; SIGHUP reads the routes again.
///
/// # Errors
/// `Listen`, `Control`, `Signals`.
pub async fn run(listen: &[Listen], routes: PathBuf) -> Result<(), FrontError> {
    use tokio::signal::unix::{SignalKind, signal};
    // Handlers first: as PID 1 a signal without one is ignored, and a stop would take the whole grace time.
    let on = |kind| signal(kind).map_err(FrontError::Signals);
    let (mut term, mut int, mut hup) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
    raise_open_files();
    let front = Front::bind(listen, routes).await?;
    tracing::info!(addresses = ?front.addresses(), "listening");
    let reload = front.reload();
    let stop = CancellationToken::new();
    let serving = front.run(stop.clone());
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return Ok(()),
            _ = term.recv() => stop.cancel(),
            _ = int.recv() => stop.cancel(),
            _ = hup.recv() => reload(),
        }
    }
}
