//! Lines of the client that wait: for a supervisor, or behind one that does. A client gives a request up after a minute and tells its model so: what waited that
//! long is answered here and never begun. Deliberately absent: sockets, and what was said already (`replay`).

use super::replay;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A request that waited so long is begun no more.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// Most that waits, in lines and bytes; then the client is not read on.
const MOST: usize = 1_024;
const MOST_BYTES: usize = 2 * crate::adapters::mcp::stdio::MAX_LINE;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    /// With its newline.
    pub line: Vec<u8>,
    /// When it was said.
    since: Instant,
    /// The connection it is for, when it answers what came by that one.
    pub to: Option<u64>,
}

/// What waits, in the order it was said.
#[derive(Debug, Default)]
pub struct Queue {
    lines: VecDeque<Waiting>,
    bytes: usize,
}

impl Queue {
    /// Whether it takes no more for now.
    pub fn is_full(&self) -> bool {
        self.lines.len() >= MOST || self.bytes >= MOST_BYTES
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether something waits for an answer.
    pub fn asks(&self) -> bool {
        self.lines.iter().any(|w| w.to.is_none() && replay::asks(&w.line))
    }

    /// A line of the client. Who cancels a request that still waits hears no more of it, and nobody else ever did.
    pub fn push(&mut self, line: Vec<u8>, now: Instant) {
        if let Some(id) = replay::cancels(&line)
            && let Some(at) = self.lines.iter().position(|w| w.to.is_none() && replay::asked(&w.line).as_ref() == Some(&id))
        {
            self.taken(at);
            return;
        }
        self.back(Waiting { line, since: now, to: None });
    }

    /// An answer of the bridge to what came by a connection.
    pub fn answer(&mut self, line: Vec<u8>, to: u64, now: Instant) {
        self.back(Waiting { line, since: now, to: Some(to) });
    }

    fn back(&mut self, waiting: Waiting) {
        self.bytes += waiting.line.len();
        self.lines.push_back(waiting);
    }

    /// One that could not be sent is the first again.
    pub fn unsent(&mut self, waiting: Waiting) {
        self.bytes += waiting.line.len();
        self.lines.push_front(waiting);
    }

    /// The next.
    pub fn front(&self) -> Option<&Waiting> {
        self.lines.front()
    }

    /// Takes the next.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.taken(0)
    }

    fn taken(&mut self, at: usize) -> Option<Waiting> {
        let waiting = self.lines.remove(at)?;
        self.bytes -= waiting.line.len();
        Some(waiting)
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Drops the requests that were given up by now, and gives what their client is told.
    pub fn overdue(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let late = |w: &Waiting| w.to.is_none() && now.duration_since(w.since) >= GIVEN_UP && replay::asks(&w.line);
        let mut told = vec![];
        while let Some(at) = self.lines.iter().position(late) {
            told.extend(self.taken(at).and_then(|w| replay::never_begun(&w.line)));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn line(value: &Value) -> Vec<u8> {
        format!("{value}\n").into_bytes()
    }

    fn call(id: u64) -> Vec<u8> {
        line(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "deploy"}}))
    }

    fn cancel(id: u64) -> Vec<u8> {
        line(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}))
    }

    #[test]
    fn a_request_that_was_cancelled_while_it_waited_is_never_said() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        [call(8), call(9), cancel(9)].into_iter().for_each(|line| queue.push(line, now));
        assert_eq!(queue.pop().map(|w| w.line), Some(call(8)));
        assert!(queue.is_empty() && queue.bytes == 0);
        queue.push(cancel(7), now);
        assert_eq!(queue.pop().map(|w| w.line), Some(cancel(7)), "what was said before is cancelled where it runs");
    }

    #[test]
    fn what_its_client_gave_up_is_answered_and_not_begun() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(call(1), now);
        queue.push(line(&json!({"jsonrpc": "2.0", "id": "l", "method": "tools/list"})), now);
        queue.push(cancel(5), now);
        queue.push(call(2), now + GIVEN_UP / 2);
        assert_eq!(queue.overdue(now + GIVEN_UP / 2), Vec::<Vec<u8>>::new());
        let told: Vec<Value> = queue.overdue(now + GIVEN_UP).iter().map(|t| serde_json::from_slice(t).expect("json")).collect();
        assert_eq!((&told[0]["id"], &told[0]["result"]["isError"], told.len()), (&json!(1), &json!(true), 2));
        let text = told[0]["result"]["content"][0]["text"].as_str().expect("a text");
        assert!(text.starts_with("interrupted: ") && text.contains("not begun"), "{text}");
        assert_eq!((&told[1]["id"], &told[1]["error"]["code"]), (&json!("l"), &json!(-32603)));
        assert!(queue.asks(), "the later one still waits");
        assert_eq!(queue.pop().map(|w| w.line), Some(cancel(5)));
        assert_eq!(queue.overdue(now + GIVEN_UP * 2).len(), 1);
        assert!(queue.is_empty() && queue.bytes == 0 && !queue.asks());
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for n in 0..MOST {
            assert!(!queue.is_full());
            queue.push(call(n as u64), now);
        }
        assert!(queue.is_full());
        queue.clear();
        queue.push(vec![b'x'; MOST_BYTES], now);
        assert!(queue.is_full());
        let waiting = queue.pop().expect("there");
        queue.unsent(waiting);
        assert_eq!(queue.bytes, MOST_BYTES);
    }
}
