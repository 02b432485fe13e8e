//! `dockwarden mcp`: stdin and stdout of an MCP client, bridged to the supervisor's socket; starts a supervisor when none runs, and outlives one that
//! is restarted. Deliberately absent: configuration, policy, SQLite and rmcp. A client waits for this process, so it does nothing but connect and copy.

mod link;
mod queue;
pub(in crate::adapters) mod replay;

use crate::adapters::socket::client::{self, ClientError};
use crate::adapters::socket::wire;
use link::{Ended, LAST_WORDS, Link, after, downward, tell, upward};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender};

/// How long a supervisor may be away before one is started in its place: whatever runs it brings it back, and would find its home taken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between looks for it, at first and later.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_LATER: Duration = Duration::from_secs(1);
/// Pause between tries to start one that did not start.
const START_AGAIN: Duration = Duration::from_secs(10);
/// Time for its welcome: one that ends still takes connections, and answers none.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);
/// A connection that ends sooner has failed.
const SHORT: Duration = Duration::from_secs(1);
/// So many in a row: something about this client ends them.
const MOST_SHORT: u32 = 10;

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

fn broken(e: std::io::Error) -> ClientError {
    ClientError::Broken(e.to_string())
}

/// A connection that was welcomed, and what was read beyond the welcome.
struct Welcomed {
    stream: UnixStream,
    ahead: Vec<u8>,
}

impl Bridge {
    async fn introduce(&self, stream: tokio::net::UnixStream) -> Result<Welcomed, ClientError> {
        let hello = wire::Hello {
            door: wire::HelloDoor::Mcp,
            agent: Some(self.agent.clone()),
            read_only: self.read_only,
            toolsets: self.toolsets.clone(),
        };
        let silent = || ClientError::Broken(format!("no welcome within {WELCOME_WITHIN:?}"));
        let (from, to) = tokio::time::timeout(WELCOME_WITHIN, client::introduce(stream, &hello)).await.map_err(|_| silent())??;
        let ahead = from.buffer().to_vec();
        let stream = from.into_inner().reunite(to).expect("introduce() split one stream").into_std().map_err(broken)?;
        stream.set_nonblocking(false).map_err(broken)?;
        Ok(Welcomed { stream, ahead })
    }

    /// Connects, `starting` a supervisor when none runs.
    async fn connect(&self, starting: bool) -> Result<Welcomed, ClientError> {
        let stream = match starting {
            true => client::connect_or_start(&self.home, self.config.as_deref()).await?,
            false => client::connect(&self.home).await?,
        };
        self.introduce(stream).await
    }

    /// Waits for a supervisor; `None` when the client left meanwhile.
    async fn reconnect(&self, link: &Link, own: bool, ends: &mut Receiver<Ended>) -> Result<Option<Welcomed>, ClientError> {
        let begun = Instant::now();
        // One that this bridge started has nobody else who would bring it back.
        let mut start_at = if own { begun } else { begun + PATIENCE };
        let mut told = false;
        loop {
            let starting = Instant::now() >= start_at && link.wanted();
            let failed = match self.connect(starting).await {
                Ok(welcomed) => return Ok(Some(welcomed)),
                Err(e) if !may_pass(&e) => return Err(e),
                Err(e) => e,
            };
            if starting {
                start_at = Instant::now() + START_AGAIN;
            }
            // The way to the socket opens a moment after the socket; and where this user may start none, whoever runs it brings it back.
            let stands = matches!(failed, ClientError::DidNotStart { .. })
                || (matches!(failed, ClientError::Forbidden { .. }) && begun.elapsed() >= PATIENCE);
            if stands && !told {
                eprintln!("dockwarden: {failed}; looking for it as long as the client is there");
                told = true;
            }
            let pause = if begun.elapsed() < PATIENCE { LOOK } else { LOOK_LATER };
            match tokio::time::timeout(pause, ends.recv()).await {
                Err(_) => {}
                Ok(Some(Ended::Client(result))) => return result.map(|()| None).map_err(broken),
                Ok(Some(Ended::Output(e))) => return Err(broken(e)),
                Ok(Some(Ended::Supervisor)) => {}
                Ok(None) => return Ok(None),
            }
        }
    }
}

/// Whether waiting may mend what is wrong with the way to a supervisor that was there before. Where this user may start none, or finds the way to the socket
/// closed, whoever runs it brings it back; who is not welcome any more stays so.
fn may_pass(e: &ClientError) -> bool {
    match e {
        ClientError::NotRunning { .. }
        | ClientError::Forbidden { .. }
        | ClientError::DidNotStart { .. }
        | ClientError::TooSlow { .. }
        | ClientError::Broken(_) => true,
        ClientError::Refused { .. } => false,
    }
}

/// Carries what the supervisor says, on a thread that ends with the connection.
fn carry(link: &Arc<Link>, welcomed: Welcomed, ended: &Sender<Ended>) {
    let (link, ended) = (Arc::clone(link), ended.clone());
    std::thread::spawn(move || downward(&link, &welcomed.stream, welcomed.ahead, &ended));
}

/// Bridges until the client leaves.
///
/// # Errors
/// In words for the client's log: no supervisor and none could be started, or the supervisor refused the agent.
pub async fn run(bridge: &Bridge) -> Result<(), ClientError> {
    let (first, own) = match bridge.connect(false).await {
        Err(ClientError::NotRunning { .. }) => (bridge.connect(true).await?, true),
        connected => (connected?, false),
    };
    let link = Arc::new(Link::default());
    let (ended, mut ends) = tokio::sync::mpsc::channel(4);
    link.restore(&first.stream).map_err(broken)?;
    carry(&link, first, &ended);
    let (waits, to) = (Arc::clone(&link), ended.clone());
    std::thread::spawn(move || {
        if let Err(e) = after(&waits) {
            // Nobody listens any more only when the process ends.
            let _ = to.blocking_send(Ended::Output(e));
        }
    });
    let (up, to) = (Arc::clone(&link), ended.clone());
    // Not waited for: a read of stdin that nobody answers ends with the process.
    std::thread::spawn(move || upward(&up, std::io::stdin().lock(), &to));
    let (mut closing, mut since, mut short) = (false, Instant::now(), 0);
    loop {
        let next = ends.recv();
        // A supervisor that was stopped closes nothing.
        let end = if closing { tokio::time::timeout(LAST_WORDS, next).await.unwrap_or(None) } else { next.await };
        let Some(end) = end else { return Ok(()) };
        match end {
            Ended::Client(result) => {
                result.map_err(broken)?;
                if !link.close() {
                    return Ok(());
                }
                closing = true;
            }
            Ended::Output(e) => return Err(broken(e)),
            Ended::Supervisor if closing => return Ok(()),
            Ended::Supervisor => {
                short = if since.elapsed() < SHORT { short + 1 } else { 0 };
                tell(&link.cut()).map_err(broken)?;
                if short >= MOST_SHORT {
                    return Err(ClientError::Broken(format!("it ended {short} times at once; its log tells why")));
                }
                eprintln!("dockwarden: the supervisor went away; waiting until it is back");
                let Some(welcomed) = bridge.reconnect(&link, own, &mut ends).await? else { return Ok(()) };
                since = Instant::now();
                match link.restore(&welcomed.stream) {
                    Ok(told) => {
                        eprintln!("dockwarden: the supervisor is back");
                        tell(&told).map_err(broken)?;
                    }
                    // The other direction tells of it, and it is tried again.
                    Err(e) => eprintln!("dockwarden: the supervisor went away again: {e}"),
                }
                carry(&link, welcomed, &ended);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_may_start_nothing_waits_until_it_leaves_and_one_that_is_refused_does_not() {
        let path = || PathBuf::from("/nowhere");
        for e in [
            ClientError::NotRunning { home: path() },
            ClientError::Forbidden { path: path() },
            ClientError::DidNotStart { log: String::new() },
            ClientError::TooSlow { path: path() },
            ClientError::Broken(String::new()),
        ] {
            assert!(may_pass(&e), "{e}");
        }
        let (code, message, hint, whole) = (String::new(), String::new(), String::new(), serde_json::Value::Null);
        assert!(!may_pass(&ClientError::Refused { code, message, hint, whole }));

        // Nobody is there, and its home is no directory that anybody could start one for.
        let bridge = Bridge { home: path(), config: None, agent: "keeper".into(), read_only: false, toolsets: None };
        let (ended, mut ends) = tokio::sync::mpsc::channel(4);
        let link = Link::default();
        let waits = bridge.reconnect(&link, false, &mut ends);
        let leaves = async {
            tokio::time::sleep(LOOK * 4).await;
            ended.send(Ended::Client(Ok(()))).await.expect("it still looks");
        };
        let (waited, ()) = tokio::join!(waits, leaves);
        assert!(matches!(waited, Ok(None)), "the client left");
    }
}
