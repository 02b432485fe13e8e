//! The line transport behind the bridge: one JSON-RPC message a line. Answers what is not JSON with a parse error and goes on; an
//! over-long line is answered and skipped; a client that asks faster than it reads is not read on; when it closes its side, calls that run
//! are answered before the connection ends.

pub mod lines;

use super::{Caller, Server};
use crate::adapters::Doors;
use crate::call::Door;
use crate::call::gauge::Gauge;
use crate::gate::RateLimit;
use chrono::Utc;
use lines::{IdScan, Reader, Taken};
use rmcp::model::{ClientJsonRpcMessage, ClientNotification, ClientRequest, JsonRpcMessage, RequestId, ServerJsonRpcMessage};
use rmcp::service::{RoleServer, serve_server_with_ct};
use rmcp::transport::Transport;
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Longest line taken, bytes: the same bound as an HTTP body.
pub const MAX_LINE: usize = 4 * 1024 * 1024;
/// What a longer one is answered.
pub const TOO_LONG: &str = "the message is longer than 4 MiB; send it in parts or name a file of the stack's directory";
/// Requests of one client that are at work or whose replies it has not read yet. A model asks for a handful at once.
const MAX_OPEN: usize = 64;
/// Requests that wait for one of those to be answered: what comes behind them may be a cancellation, or the answer to a question of ours.
const MAX_WAITING: usize = 64;
/// Bytes of waiting requests.
const MAX_WAITING_BYTES: usize = 2 * MAX_LINE;
/// Open `subscriptions/listen` streams of one client.
const MAX_STREAMS: usize = 32;
/// Time for open answers after the client closed its side: a call waits 55 s at most.
const LAST_ANSWERS: Duration = Duration::from_secs(60);

/// Serves one bridged client until it goes away.
pub async fn serve<R, W>(doors: Arc<Doors>, caller: Caller, read: R, write: W)
where
    R: AsyncBufRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let agent = caller.agent.clone();
    let calls = doors.house.rulebook.load().agents.get(agent.as_str()).and_then(|a| a.limits.calls_per_minute);
    let lines = Lines::new(read, write).limited(super::http::requests_per_minute(calls));
    let server = Server::for_caller(Arc::clone(&doors), Door::McpStdio, caller);
    match serve_server_with_ct(server, lines, doors.hangup.child_token()).await {
        Ok(running) => {
            if let Err(e) = running.waiting().await {
                tracing::warn!(%agent, error = %e, "an MCP connection ended abnormally");
            }
        }
        Err(e) => tracing::info!(%agent, error = %e, "an MCP client left before it introduced itself"),
    }
}

type Writer<W> = Arc<tokio::sync::Mutex<W>>;

struct Lines<R, W> {
    read: Reader<R>,
    write: Writer<W>,
    open: Arc<Open>,
    /// Requests of the last minute, whatever they ask, and most of them.
    requests: Gauge,
    most: u32,
    /// Requests read while too many were open, with their length.
    waiting: VecDeque<(usize, ClientJsonRpcMessage)>,
    /// Answers of the transport's own. Written beside reading, which may be dropped at any moment: half a line would spoil the next one.
    answers: JoinSet<()>,
    /// The client closed its side; what is open is waited for until then.
    ends: Option<Instant>,
}

/// Requests taken and not answered yet.
#[derive(Debug, Default)]
struct Open {
    ids: Mutex<Ids>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Ids {
    calls: HashSet<RequestId>,
    /// Answered only when they are cancelled, so nothing waits for them.
    streams: HashSet<RequestId>,
}

impl Open {
    fn ids(&self) -> std::sync::MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered, or its client wants no answer any more: then none is sent.
    fn close(&self, id: &RequestId) {
        let mut ids = self.ids();
        ids.calls.remove(id);
        ids.streams.remove(id);
        drop(ids);
        self.answered.notify_waiters();
    }
}

/// What becomes of a message that was read.
enum Next {
    Pass,
    Later,
    Refuse(RequestId),
}

impl<R: AsyncBufRead + Unpin, W: AsyncWrite + Send + Unpin + 'static> Lines<R, W> {
    fn new(read: R, write: W) -> Self {
        let write = Arc::new(tokio::sync::Mutex::new(write));
        let read = Reader::new(read, MAX_LINE);
        let (requests, most) = (Gauge::new(), u32::MAX);
        Self { read, write, open: Arc::default(), requests, most, waiting: VecDeque::new(), answers: JoinSet::new(), ends: None }
    }

    /// With at most so many requests a minute.
    fn limited(mut self, most: u32) -> Self {
        self.most = most;
        self
    }

    /// Counts a request; the seconds until one fits again, when there were too many.
    fn too_many(&self) -> Option<u64> {
        let limit = RateLimit { key: String::new(), max: self.most, window_s: 60 };
        self.requests.count("", &limit, Utc::now()).err().map(|refused| refused.retry_after_s)
    }

    /// Answers without the server behind the transport.
    fn answer(&mut self, id: Value, code: i32, message: &str) {
        let text = json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}).to_string();
        let write = Arc::clone(&self.write);
        self.answers.spawn(async move {
            if let Err(e) = send_line(&write, text.into_bytes()).await {
                tracing::debug!(error = %e, "a message that is none could not be answered");
            }
        });
    }

    /// Books a message that was read.
    fn book(&mut self, message: &ClientJsonRpcMessage) -> Next {
        match message {
            JsonRpcMessage::Request(request) if matches!(request.request, ClientRequest::SubscriptionsListenRequest(_)) => {
                let mut ids = self.open.ids();
                if ids.streams.len() >= MAX_STREAMS {
                    return Next::Refuse(request.id.clone());
                }
                ids.streams.insert(request.id.clone());
                Next::Pass
            }
            JsonRpcMessage::Request(request) => {
                let mut ids = self.open.ids();
                if ids.calls.len() >= MAX_OPEN {
                    return Next::Later;
                }
                ids.calls.insert(request.id.clone());
                Next::Pass
            }
            JsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.waiting.retain(|(_, m)| !matches!(m, JsonRpcMessage::Request(r) if r.id == *id));
                    self.open.close(id);
                }
                Next::Pass
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => Next::Pass,
        }
    }
}

async fn send_line<W: AsyncWrite + Unpin>(write: &tokio::sync::Mutex<W>, mut line: Vec<u8>) -> std::io::Result<()> {
    line.push(b'\n');
    let mut write = write.lock().await;
    write.write_all(&line).await?;
    write.flush().await
}

impl<R, W> Transport<RoleServer> for Lines<R, W>
where
    R: AsyncBufRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    type Error = std::io::Error;

    fn send(&mut self, item: ServerJsonRpcMessage) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let (write, open) = (Arc::clone(&self.write), Arc::clone(&self.open));
        async move {
            let line = serde_json::to_vec(&item).map_err(std::io::Error::other)?;
            let sent = send_line(&write, line).await;
            match &item {
                JsonRpcMessage::Response(response) => open.close(&response.id),
                JsonRpcMessage::Error(error) => error.id.iter().for_each(|id| open.close(id)),
                JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => {}
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            let open = Arc::clone(&self.open);
            // Before the looks below, so that no answer is missed between a look and the wait.
            let answered = open.answered.notified();
            let room = open.ids().calls.len() < MAX_OPEN;
            if room && let Some((_, message)) = self.waiting.pop_front() {
                match self.book(&message) {
                    Next::Pass => return Some(message),
                    Next::Later | Next::Refuse(_) => unreachable!("only calls wait, and there is room for one"),
                }
            }
            let crowded = self.waiting.len() >= MAX_WAITING
                || self.waiting.iter().map(|(bytes, _)| bytes).sum::<usize>() >= MAX_WAITING_BYTES
                || self.answers.len() >= MAX_WAITING;
            let unanswered = !open.ids().calls.is_empty() || !self.waiting.is_empty() || !self.answers.is_empty();
            if self.ends.is_some() && !unanswered {
                return None;
            }
            let taken = tokio::select! {
                taken = self.read.take(), if self.ends.is_none() && !crowded => taken,
                () = answered => continue,
                _ = self.answers.join_next(), if !self.answers.is_empty() => continue,
                () = async { tokio::time::sleep_until(self.ends.unwrap_or_else(Instant::now)).await }, if self.ends.is_some() => {
                    tracing::warn!("a client left with requests that were not answered in time");
                    return None;
                }
            };
            let line = match taken {
                Ok(Taken::Line(line)) => line,
                Ok(Taken::TooLong(id)) => {
                    self.answer(id, -32600, TOO_LONG);
                    continue;
                }
                Ok(Taken::End) => {
                    self.ends = Some(Instant::now() + LAST_ANSWERS);
                    continue;
                }
                Err(e) => {
                    tracing::debug!(error = %e, "a client's connection broke");
                    return None;
                }
            };
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            match serde_json::from_slice::<ClientJsonRpcMessage>(text) {
                Ok(message) => {
                    if let JsonRpcMessage::Request(request) = &message
                        && let Some(after) = self.too_many()
                    {
                        let told = format!("this client made {} requests within a minute; try again in {after} s", self.most);
                        self.answer(request.id.clone().into_json_value(), -32600, &told);
                        continue;
                    }
                    match self.book(&message) {
                        Next::Pass => return Some(message),
                        Next::Later => self.waiting.push_back((line.len(), message)),
                        Next::Refuse(id) => {
                            let message = "too many subscriptions/listen streams are open; cancel some, one can follow up to 256 resources";
                            self.answer(id.into_json_value(), -32600, message);
                        }
                    }
                }
                Err(e) if e.is_data() => self.answer(IdScan::of(text), -32600, "this is JSON but not a JSON-RPC message of MCP"),
                Err(_) => self.answer(Value::Null, -32700, "this line is not JSON; send one JSON-RPC message a line"),
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.write.lock().await.shutdown().await
    }
}

#[cfg(test)]
mod tests;
