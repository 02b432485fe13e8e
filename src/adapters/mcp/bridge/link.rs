//! The two directions of a bridge and what they share: the connection that is there or not, and the conversation so far. A thread for each
//! direction: tokio moves stdin and stdout to other threads for every message. Deliberately absent: how a connection is made.

use super::replay::{self, Conversation, Line};
use crate::adapters::mcp::stdio::MAX_LINE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// How long what a client asked for before it left waits for a supervisor.
const LEFT_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between looks whether the client is still there.
const LOOK: Duration = Duration::from_millis(500);

/// One direction came to its end.
#[derive(Debug)]
pub enum Ended {
    /// The client closed its side, or it broke.
    Client(std::io::Result<()>),
    /// The client takes no more.
    Output(std::io::Error),
    /// The supervisor closed its side, or died.
    Supervisor,
}

#[derive(Debug, Default)]
struct State {
    conversation: Conversation,
    /// To the supervisor; none while there is none.
    up: Option<Arc<UnixStream>>,
    /// Since when there is none.
    away: Option<Instant>,
    /// The client waits to say something.
    wanted: bool,
}

/// What both directions share.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<State>,
    back: Condvar,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has said something that waits for a supervisor.
    pub fn wanted(&self) -> bool {
        self.state().wanted
    }

    /// A supervisor is there: it is told who the client is and what it follows, then the client goes on. Gives what the client is to be told.
    ///
    /// # Errors
    /// The connection's.
    pub fn restore(&self, stream: &UnixStream) -> std::io::Result<Vec<Vec<u8>>> {
        let up = Arc::new(stream.try_clone()?);
        // In one piece: what the client says meanwhile is either said again here or sent after it.
        let mut state = self.state();
        (&*stream).write_all(&state.conversation.again())?;
        (state.up, state.away, state.wanted) = (Some(up), None, false);
        self.back.notify_all();
        Ok(state.conversation.returned())
    }

    /// The supervisor is gone. Gives the answers to what the client waits for.
    pub fn cut(&self) -> Vec<Vec<u8>> {
        let mut state = self.state();
        state.up = None;
        state.away.get_or_insert_with(Instant::now);
        state.conversation.cut()
    }

    /// The client says no more: the supervisor answers what still runs, then closes. Whether there is one.
    pub fn close(&self) -> bool {
        let up = self.state().up.clone();
        // One that is gone already is told of by the other direction.
        up.is_some_and(|up| up.shutdown(Shutdown::Write).is_ok())
    }

    /// Notes a line as said and gives who is to hear it: for a request, the next supervisor if this one is gone. Nobody, when the conversation knows
    /// all that has to come of it.
    fn say(&self, line: &[u8]) -> Option<Arc<UnixStream>> {
        let mut state = self.state();
        loop {
            if let Some(up) = state.up.clone() {
                return (state.conversation.up(line) == Line::Pass).then_some(up);
            }
            if !replay::asks(line) {
                state.conversation.up(line);
                return None;
            }
            let away = state.away.get_or_insert_with(Instant::now).elapsed();
            // A supervisor is not started for a client that is gone, nor is one waited for without end.
            let left = client_left();
            if left && away > LEFT_PATIENCE {
                return None;
            }
            state.wanted = !left;
            state = self.back.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends one line, to the next supervisor if this one is gone.
    fn send(&self, line: &[u8]) {
        loop {
            let Some(up) = self.say(line) else { return };
            // Without the lock: a supervisor that does not read for a while waits for the other direction.
            let Err(sent) = written(&up, line) else { return };
            let mut state = self.state();
            if state.up.as_ref().is_some_and(|now| Arc::ptr_eq(now, &up)) {
                (state.up, state.away) = (None, Some(Instant::now()));
            }
            // Of a line that went in part it is not known what came of it: then it counts as said.
            if sent > 0 || !state.conversation.unsent(line) {
                return;
            }
        }
    }
}

/// Whether the client closed its side, whatever of it is still to be read.
fn client_left() -> bool {
    let stdin = std::io::stdin();
    let mut looked = [PollFd::new(&stdin, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut looked, Some(&at_once)).is_ok() && looked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Writes all of it, or tells how much went.
fn written(mut to: &UnixStream, bytes: &[u8]) -> Result<(), usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match to.write(&bytes[sent..]) {
            Ok(0) => return Err(sent),
            Ok(n) => sent += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Err(sent),
        }
    }
    Ok(())
}

/// Lines to the client, whole and at once.
///
/// # Errors
/// The client takes no more.
pub fn tell(lines: &[Vec<u8>]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    lines.iter().try_for_each(|line| out.write_all(line))?;
    out.flush()
}

/// Carries the client's lines until it closes its side.
pub fn upward(link: &Link, mut from: impl Read, ended: &Sender<Ended>) {
    let mut buffer = vec![0; CHUNK];
    let mut line: Vec<u8> = vec![];
    // Within a line that is too long to be looked at: it goes on as it is, the supervisor answers it.
    let mut long = false;
    let result = loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => break Err(e),
        };
        for part in buffer[..n].split_inclusive(|b| *b == b'\n') {
            let whole = part.ends_with(b"\n");
            if long {
                raw(link, part);
                long = !whole;
                continue;
            }
            line.extend_from_slice(part);
            if line.len() > MAX_LINE + 1 {
                raw(link, &line);
                long = !whole;
                line = vec![];
            } else if whole {
                link.send(&line);
                line.clear();
            }
        }
    };
    if !line.is_empty() {
        line.push(b'\n');
        link.send(&line);
    }
    // Nobody listens any more only when the process ends.
    let _ = ended.blocking_send(Ended::Client(result));
}

/// A part of a line that is not looked at; lost with its supervisor.
fn raw(link: &Link, part: &[u8]) {
    let up = link.state().up.clone();
    if let Some(up) = up
        && written(&up, part).is_err()
    {
        eprintln!("dockwarden: a line of more than 4 MiB was lost with the supervisor");
    }
}

/// Carries the supervisor's lines until it closes its side. `ahead` was read with its welcome.
pub fn downward(link: &Link, mut from: &UnixStream, ahead: Vec<u8>, ended: &Sender<Ended>) {
    let mut buffer = vec![0; CHUNK];
    let mut held = ahead;
    let end = loop {
        if let Some(end) = held.iter().rposition(|b| *b == b'\n') {
            let mut pass = vec![];
            for line in held[..=end].split_inclusive(|b| *b == b'\n') {
                let verdict = link.state().conversation.down(line);
                match verdict {
                    Line::Pass => pass.extend_from_slice(line),
                    Line::Drop => {}
                    // A supervisor that is gone needs no answer.
                    Line::Answer(answer) => {
                        let _gone = written(from, &answer);
                    }
                }
            }
            held.drain(..=end);
            if let Err(e) = tell(&[pass]) {
                break Ended::Output(e);
            }
        }
        match from.read(&mut buffer) {
            Ok(0) => break Ended::Supervisor,
            Ok(n) => held.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break Ended::Supervisor,
        }
    };
    let _ = ended.blocking_send(end);
}
