//! The two directions of a bridge and what they share: the connection that is there or not, and the conversation so far. A thread for each
//! direction: tokio moves stdin and stdout to other threads for every message. Deliberately absent: how a connection is made.

use super::replay::{Conversation, Line};
use crate::adapters::mcp::stdio::MAX_LINE;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::Sender;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

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
        let again = self.state().conversation.again();
        (&*stream).write_all(&again)?;
        let up = Arc::new(stream.try_clone()?);
        let mut state = self.state();
        state.up = Some(up);
        state.wanted = false;
        self.back.notify_all();
        Ok(state.conversation.returned())
    }

    /// The supervisor is gone. Gives the answers to what the client waits for.
    pub fn cut(&self) -> Vec<Vec<u8>> {
        let mut state = self.state();
        state.up = None;
        state.conversation.cut()
    }

    /// The client says no more: the supervisor answers what still runs, then closes. Whether there is one.
    pub fn close(&self) -> bool {
        let up = self.state().up.clone();
        // One that is gone already is told of by the other direction.
        up.is_some_and(|up| up.shutdown(Shutdown::Write).is_ok())
    }

    /// Waits for a supervisor, then notes a line as said.
    fn say(&self, line: &[u8]) -> (Arc<UnixStream>, Line) {
        let mut state = self.state();
        loop {
            if let Some(up) = state.up.clone() {
                return (up, state.conversation.up(line));
            }
            state.wanted = true;
            state = self.back.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends one line, to the next supervisor if this one is gone.
    fn send(&self, line: &[u8]) {
        loop {
            let (up, verdict) = self.say(line);
            if verdict != Line::Pass {
                return;
            }
            // Without the lock: a supervisor that does not read for a while waits for the other direction.
            let Err(sent) = written(&up, line) else { return };
            let mut state = self.state();
            if state.up.as_ref().is_some_and(|now| Arc::ptr_eq(now, &up)) {
                state.up = None;
            }
            // Of a line that went in part it is not known what came of it: then it counts as said.
            if sent > 0 || !state.conversation.unsent(line) {
                return;
            }
        }
    }
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
