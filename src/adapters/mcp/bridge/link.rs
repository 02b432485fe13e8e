//! The two directions of a bridge and what they share: the connection that is there or not, and the conversation so far. A thread for each
//! direction: tokio moves stdin and stdout to other threads for every message. Deliberately absent: how a connection is made.

use super::queue::{Queue, Waiting};
use super::replay::{self, Conversation, Line};
use crate::adapters::mcp::stdio::lines::IdScan;
use crate::adapters::mcp::stdio::{MAX_LINE, TOO_LONG};
use serde_json::json;
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
/// How long it is waited for what a supervisor takes no more of after the client left.
pub const LAST_WORDS: Duration = Duration::from_secs(65);
/// Pause between looks at what waited too long.
const LOOK: Duration = Duration::from_millis(500);
/// A new supervisor that takes nothing for so long is none.
const TAKES_WITHIN: Duration = Duration::from_secs(10);

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

/// A supervisor that is there.
#[derive(Debug, Clone)]
struct Up {
    stream: Arc<UnixStream>,
    /// Counts connections: what answers one is not said to another.
    number: u64,
}

#[derive(Debug, Default)]
struct State {
    conversation: Conversation,
    queue: Queue,
    /// None while there is none.
    up: Option<Up>,
    connections: u64,
    /// Since when there is none.
    away: Option<Instant>,
    /// One is being told who the client is: what the client says meanwhile comes after that.
    restoring: bool,
    /// Somebody writes to the supervisor; nobody else does.
    sending: bool,
    /// Since when the client says no more.
    left: Option<Instant>,
}

impl State {
    /// The next line that goes on now, noted as said, and who is to hear it.
    fn next(&mut self) -> Option<(Up, Waiting)> {
        loop {
            let asks = self.queue.front().map(|w| w.to.is_none() && replay::asks(&w.line))?;
            let Some(up) = self.up.clone() else {
                // A request waits for the next supervisor. Of anything else the conversation knows all that has to come of it.
                if self.restoring || asks {
                    return None;
                }
                if let Some(Waiting { line, to: None, .. }) = self.queue.pop() {
                    self.conversation.up(&line);
                }
                continue;
            };
            let waiting = self.queue.pop()?;
            let goes = match waiting.to {
                Some(number) => number == up.number,
                None => self.conversation.up(&waiting.line) == Line::Pass,
            };
            if goes {
                return Some((up, waiting));
            }
        }
    }

    /// A line went only in part, or not at all.
    fn failed(&mut self, up: &Up, waiting: Waiting, sent: usize) {
        if self.up.as_ref().is_some_and(|now| now.number == up.number) {
            (self.up, self.away) = (None, Some(Instant::now()));
        }
        // Of a line that went in part it is not known what came of it: then it counts as said.
        if waiting.to.is_none() && sent == 0 && self.conversation.unsent(&waiting.line) {
            self.queue.unsent(waiting);
        }
    }
}

/// What both directions share.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<State>,
    moved: Condvar,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has said something that waits for a supervisor, and is still there to hear of it.
    pub fn wanted(&self) -> bool {
        let state = self.state();
        state.left.is_none() && state.queue.asks()
    }

    /// A supervisor is there: it is told who the client is and what it follows, then the client goes on. Gives what the client is to be told.
    ///
    /// # Errors
    /// The connection's, which is closed then.
    pub fn restore(&self, mut stream: &UnixStream) -> std::io::Result<Vec<Vec<u8>>> {
        let again = {
            let mut state = self.state();
            state.restoring = true;
            state.conversation.again()
        };
        // Without the lock, and not for ever: one that was stopped takes connections and reads nothing.
        let taken = stream.set_write_timeout(Some(TAKES_WITHIN)).and_then(|()| stream.write_all(&again));
        let taken = taken.and_then(|()| stream.set_write_timeout(None)).and_then(|()| stream.try_clone());
        let mut state = self.state();
        state.restoring = false;
        self.moved.notify_all();
        match taken {
            Ok(up) => {
                state.connections += 1;
                (state.up, state.away) = (Some(Up { stream: Arc::new(up), number: state.connections }), None);
                Ok(state.conversation.returned())
            }
            Err(e) => {
                // The other direction must hear of it, too; one that is closed already is as good.
                stream.shutdown(Shutdown::Both).ok();
                Err(e)
            }
        }
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
        up.is_some_and(|up| up.stream.shutdown(Shutdown::Write).is_ok())
    }

    /// A line of the client: it goes on at once where it can, and waits for the next supervisor where there is none.
    fn say(&self, line: Vec<u8>) {
        let mut state = self.state();
        while state.queue.is_full() {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.queue.push(line, Instant::now());
        // Nobody is woken for a line that went.
        if !self.send(state) {
            self.moved.notify_all();
        }
    }

    /// Sends what can be sent, unless somebody does already. Whether nothing waits any more.
    fn send<'a>(&'a self, mut state: MutexGuard<'a, State>) -> bool {
        if state.sending {
            return false;
        }
        state.sending = true;
        while let Some((up, waiting)) = state.next() {
            // Without the lock: a supervisor that does not read for a while waits for the other direction.
            drop(state);
            let sent = written(&up.stream, &waiting.line);
            state = self.state();
            if let Err(sent) = sent {
                state.failed(&up, waiting, sent);
            }
        }
        state.sending = false;
        state.queue.is_empty()
    }

    /// Sends what waited when a supervisor is back, and gives what the client is told of that which waited too long.
    fn look(&self, now: Instant) -> Vec<Vec<u8>> {
        let mut state = self.state();
        let told = state.queue.overdue(now);
        let left = state.left.is_some_and(|at| now.duration_since(at) > LEFT_PATIENCE);
        // Nobody waits without end for a client that is gone.
        if left && state.up.is_none() && !state.restoring {
            state.queue.clear();
        }
        self.send(state);
        self.moved.notify_all();
        told
    }

    /// The client says no more: waits until what it said has gone on, or is not waited for any more.
    fn leave(&self) {
        let mut state = self.state();
        let since = *state.left.get_or_insert_with(Instant::now);
        while (state.sending || !state.queue.is_empty()) && since.elapsed() < LAST_WORDS {
            state = self.moved.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Answers what came by a connection; behind a line that is being written, never within it.
    fn answer(&self, number: u64, line: Vec<u8>) {
        self.state().queue.answer(line, number, Instant::now());
        self.moved.notify_all();
    }
}

/// Looks after what waits, for as long as the process lives.
///
/// # Errors
/// The client takes no more.
pub fn after(link: &Link) -> std::io::Result<()> {
    loop {
        tell(&link.look(Instant::now()))?;
        let state = link.state();
        // Woken by what waits and by a supervisor that is back; looked at again for what waits too long.
        if state.queue.is_empty() {
            drop(link.moved.wait(state).unwrap_or_else(PoisonError::into_inner));
        } else if state.sending || state.up.is_none() {
            drop(link.moved.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner));
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

/// Carries the client's lines until it closes its side. A line that is too long is answered here: no part of it goes on, whatever becomes of the supervisor.
pub fn upward(link: &Link, mut from: impl Read, ended: &Sender<Ended>) {
    let mut buffer = vec![0; CHUNK];
    let mut line: Vec<u8> = vec![];
    let mut long: Option<IdScan> = None;
    let result = loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => break Err(e),
        };
        let mut told = vec![];
        for part in buffer[..n].split_inclusive(|b| *b == b'\n') {
            let whole = part.ends_with(b"\n");
            if let Some(mut scan) = long.take() {
                scan.feed(part);
                match whole {
                    true => told.push(too_long(scan)),
                    false => long = Some(scan),
                }
                continue;
            }
            line.extend_from_slice(part);
            if line.len() > MAX_LINE + usize::from(whole) {
                let mut scan = IdScan::default();
                scan.feed(&std::mem::take(&mut line));
                match whole {
                    true => told.push(too_long(scan)),
                    false => long = Some(scan),
                }
            } else if whole {
                link.say(std::mem::take(&mut line));
            }
        }
        if let Err(e) = tell(&told) {
            break Err(e);
        }
    };
    if !line.is_empty() {
        line.push(b'\n');
        link.say(line);
    }
    link.leave();
    // Nobody listens any more only when the process ends.
    let _ = ended.blocking_send(Ended::Client(result));
}

fn too_long(scan: IdScan) -> Vec<u8> {
    let answer = json!({"jsonrpc": "2.0", "id": scan.id(), "error": {"code": -32600, "message": TOO_LONG}});
    format!("{answer}\n").into_bytes()
}

/// Carries the supervisor's lines until it closes its side. `ahead` was read with its welcome.
pub fn downward(link: &Link, mut from: &UnixStream, ahead: Vec<u8>, ended: &Sender<Ended>) {
    let number = link.state().connections;
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
                    Line::Answer(answer) => link.answer(number, answer),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::io::{BufRead, BufReader};

    const PATIENT: Duration = Duration::from_secs(20);

    fn call(id: u64) -> Vec<u8> {
        format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "deploy"}})).into_bytes()
    }

    fn cancel(id: u64) -> Vec<u8> {
        format!("{}\n", json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})).into_bytes()
    }

    /// Ids and methods of the lines a supervisor hears, so many of them.
    fn heard(stream: &UnixStream, lines: usize) -> Vec<Value> {
        stream.set_read_timeout(Some(PATIENT)).expect("a socket");
        let read = BufReader::new(stream).lines().take(lines);
        read.map(|l| serde_json::from_str::<Value>(&l.expect("in time")).expect("json")["id"].clone()).collect()
    }

    #[test]
    fn what_waits_for_a_supervisor_is_said_to_it_in_order_and_what_was_cancelled_is_not() {
        let link = Link::default();
        assert!(!link.wanted());
        [call(8), call(9), cancel(9), call(10)].into_iter().for_each(|line| link.say(line));
        assert!(link.wanted());
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        link.restore(&ours).expect("told");
        assert_eq!(link.look(Instant::now()), Vec::<Vec<u8>>::new());
        link.say(call(11));
        assert_eq!(heard(&theirs, 3), [8, 10, 11].map(Value::from));
        assert!(!link.wanted());
    }

    #[test]
    fn a_call_whose_client_gave_up_is_answered_and_never_made() {
        let link = Link::default();
        link.say(call(1));
        let told = link.look(Instant::now() + Duration::from_secs(61));
        assert_eq!(told.len(), 1);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        link.restore(&ours).expect("told");
        link.say(call(2));
        assert_eq!(heard(&theirs, 1), [Value::from(2)]);
    }

    #[test]
    fn a_client_that_half_closed_its_socket_has_left_and_wants_nothing() {
        let link = Arc::new(Link::default());
        let (mut client, stdin) = UnixStream::pair().expect("a pair");
        let (ended, mut ends) = tokio::sync::mpsc::channel(4);
        let (up, from) = (Arc::clone(&link), stdin.try_clone().expect("a socket"));
        let reader = std::thread::spawn(move || upward(&up, &from, &ended));
        client.write_all(&call(1)).expect("written");
        // As Node ends the stdin of a child: the other half stays open.
        client.shutdown(Shutdown::Write).expect("half closed");
        let begun = Instant::now();
        while link.state().left.is_none() {
            assert!(begun.elapsed() < PATIENT, "it never left");
            std::thread::yield_now();
        }
        assert!(!link.wanted() && link.state().queue.asks());
        link.cut();
        link.look(Instant::now() + LEFT_PATIENCE * 2);
        reader.join().expect("it ended");
        assert!(matches!(ends.blocking_recv(), Some(Ended::Client(Ok(())))));
        assert!(link.state().queue.is_empty(), "nobody waits for what it asked");
        drop(stdin);
    }

    #[test]
    fn a_supervisor_that_takes_nothing_is_none_and_holds_nobody_up() {
        let link = Link::default();
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        while (&ours).write(&[b' '; CHUNK]).is_ok() {}
        let params = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}});
        link.say(format!("{params}\n").into_bytes());
        // Non-blocking stands for the time-out of a write: both end in WouldBlock.
        let mut state = link.state();
        let line = state.queue.pop().expect("there").line;
        state.conversation.up(&line);
        drop(state);
        link.restore(&ours).expect_err("it takes nothing");
        assert!(link.state().up.is_none() && !link.state().restoring);
        assert_eq!((&ours).read(&mut [0; 1]).expect("closed for the other direction, too"), 0);
    }

    #[test]
    fn no_part_of_a_line_that_is_too_long_goes_on() {
        let link = Link::default();
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        link.restore(&ours).expect("told");
        let (ended, _ends) = tokio::sync::mpsc::channel(4);
        let said = format!("{{\"id\": 7, \"method\": \"{}\"}}\n", "x".repeat(MAX_LINE)).into_bytes();
        upward(&link, &[&said[..], &call(8)].concat()[..], &ended);
        assert_eq!(heard(&theirs, 1), [Value::from(8)]);
        let mut scan = IdScan::default();
        scan.feed(&said);
        let answer: Value = serde_json::from_slice(&too_long(scan)).expect("json");
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(-32600)));
    }

    #[test]
    fn an_answer_of_the_bridge_goes_to_the_supervisor_that_asked_and_no_other() {
        let link = Link::default();
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        link.restore(&ours).expect("told");
        link.answer(7, call(70));
        link.answer(1, call(10));
        link.say(call(2));
        assert_eq!(heard(&theirs, 2), [10, 2].map(Value::from));
    }
}
