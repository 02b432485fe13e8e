//! The line transport behind the bridge: one JSON-RPC message a line. Answers what is not JSON with a parse error and goes on; an
//! over-long line is answered and skipped; when the client closes its side, calls that run are answered before the connection ends.

use super::{Caller, Server};
use crate::adapters::Doors;
use crate::call::Door;
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::service::{RoleServer, serve_server_with_ct};
use rmcp::transport::Transport;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Notify};

/// Longest line taken, bytes: the same bound as an HTTP body.
pub const MAX_LINE: usize = 4 * 1024 * 1024;

/// Serves one bridged client until it goes away.
pub async fn serve<R, W>(doors: Arc<Doors>, caller: Caller, read: R, write: W)
where
    R: AsyncBufRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let agent = caller.agent.clone();
    let server = Server::for_caller(Arc::clone(&doors), Door::McpStdio, caller);
    match serve_server_with_ct(server, Lines::new(read, write), doors.hangup.child_token()).await {
        Ok(running) => {
            if let Err(e) = running.waiting().await {
                tracing::warn!(%agent, error = %e, "an MCP connection ended abnormally");
            }
        }
        Err(e) => tracing::info!(%agent, error = %e, "an MCP client left before it introduced itself"),
    }
}

struct Lines<R, W> {
    read: R,
    line: Vec<u8>,
    skipping: bool,
    write: Arc<Mutex<W>>,
    open: Arc<Open>,
}

/// Requests taken and not answered yet.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    answered: Notify,
}

enum Taken {
    Line,
    TooLong,
    End,
}

impl<R: AsyncBufRead + Unpin, W: AsyncWrite + Unpin> Lines<R, W> {
    fn new(read: R, write: W) -> Self {
        Self { read, line: Vec::new(), skipping: false, write: Arc::new(Mutex::new(write)), open: Arc::default() }
    }

    /// Reads up to a newline within `MAX_LINE`. Safe to drop half-way: what was consumed is in `self.line`.
    async fn take(&mut self) -> std::io::Result<Taken> {
        loop {
            let available = self.read.fill_buf().await?;
            if available.is_empty() {
                return Ok(Taken::End);
            }
            let newline = available.iter().position(|b| *b == b'\n');
            let part = newline.unwrap_or(available.len());
            let too_long = !self.skipping && self.line.len() + part > MAX_LINE;
            if !self.skipping && !too_long {
                self.line.extend_from_slice(&available[..part]);
            }
            self.read.consume(newline.map_or(part, |n| n + 1));
            if too_long {
                self.line.clear();
                self.skipping = newline.is_none();
                return Ok(Taken::TooLong);
            }
            if newline.is_some() && !std::mem::take(&mut self.skipping) {
                return Ok(Taken::Line);
            }
        }
    }
}

/// Answers what carries no readable id.
async fn answer<W: AsyncWrite + Unpin>(write: &Mutex<W>, code: i32, message: &str) {
    let text = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}});
    if let Err(e) = send_line(write, text.to_string().into_bytes()).await {
        tracing::debug!(error = %e, "a parse error could not be answered");
    }
}

async fn send_line<W: AsyncWrite + Unpin>(write: &Mutex<W>, mut line: Vec<u8>) -> std::io::Result<()> {
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
            let answers = matches!(item, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_));
            let line = serde_json::to_vec(&item).map_err(std::io::Error::other)?;
            let sent = send_line(&write, line).await;
            if answers {
                // An answer without a counted request cannot take the count below zero.
                let _ = open.count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                open.answered.notify_waiters();
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            match self.take().await {
                Ok(Taken::Line) => {}
                Ok(Taken::TooLong) => {
                    answer(
                        &self.write,
                        -32600,
                        "the message is longer than 4 MiB; send it in parts or name a file of the stack's directory",
                    )
                    .await;
                    continue;
                }
                Ok(Taken::End) => {
                    let open = Arc::clone(&self.open);
                    loop {
                        let answered = open.answered.notified();
                        if open.count.load(Ordering::SeqCst) == 0 {
                            return None;
                        }
                        answered.await;
                    }
                }
                Err(e) => {
                    tracing::debug!(error = %e, "a client's connection broke");
                    return None;
                }
            }
            let line = std::mem::take(&mut self.line);
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            match serde_json::from_slice::<ClientJsonRpcMessage>(text) {
                Ok(message) => {
                    if matches!(message, JsonRpcMessage::Request(_)) {
                        self.open.count.fetch_add(1, Ordering::SeqCst);
                    }
                    return Some(message);
                }
                Err(e) if e.is_data() => answer(&self.write, -32600, "this is JSON but not a JSON-RPC message of MCP").await,
                Err(_) => answer(&self.write, -32700, "this line is not JSON; send one JSON-RPC message a line").await,
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.write.lock().await.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(input: Vec<u8>) -> (Vec<String>, Vec<String>) {
        let (write, mut far) = tokio::io::duplex(1 << 20);
        let mut lines = Lines::new(tokio::io::BufReader::new(std::io::Cursor::new(input)), write);
        let mut taken = vec![];
        while let Some(message) = lines.receive().await {
            lines.open.count.store(0, Ordering::SeqCst);
            taken.push(serde_json::to_value(&message).expect("serialises")["method"].as_str().unwrap_or("?").to_owned());
        }
        drop(lines);
        let mut answers = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut far, &mut answers).await.expect("reads");
        (taken, answers.lines().map(str::to_owned).collect())
    }

    #[tokio::test]
    async fn garbage_is_answered_and_the_next_message_is_taken() {
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let (taken, answers) = read_all(format!("\u{1}garbage\n\n[1,2]\n{ping}\n").into_bytes()).await;
        assert_eq!(taken, ["ping"]);
        let codes: Vec<i64> = answers
            .iter()
            .map(|a| serde_json::from_str::<serde_json::Value>(a).expect("json")["error"]["code"].as_i64().expect("code"))
            .collect();
        assert_eq!(codes, [-32700, -32600]);
    }

    #[tokio::test]
    async fn a_line_beyond_the_bound_is_answered_and_skipped() {
        let mut input = vec![b'x'; MAX_LINE * 2];
        input.extend_from_slice(b"\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n");
        let (taken, answers) = read_all(input).await;
        assert_eq!((taken, answers.len()), (vec!["ping".to_owned()], 1));
    }

    #[tokio::test]
    async fn the_end_of_input_waits_for_open_answers() {
        let (write, _far) = tokio::io::duplex(1 << 16);
        let input = b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\n".to_vec();
        let mut lines = Lines::new(tokio::io::BufReader::new(std::io::Cursor::new(input)), write);
        assert!(lines.receive().await.is_some());
        let answer = ServerJsonRpcMessage::error(rmcp::ErrorData::internal_error("x", None), Some(rmcp::model::RequestId::Number(7)));
        let send = lines.send(answer);
        assert_eq!(lines.open.count.load(Ordering::SeqCst), 1);
        let (message, sent) = tokio::join!(lines.receive(), send);
        assert_eq!(lines.open.count.load(Ordering::SeqCst), 0);
        assert!(message.is_none() && sent.is_ok());
    }
}
