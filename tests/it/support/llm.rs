//! A model's provider that says what a test wrote: Anthropic's Messages and OpenAI's chat completions over SSE, words and arguments in small pieces,
//! parallel calls, usage, refusals, slowness, answers that break off. Every question is kept.

use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Tokens of an answer: read anew, read from the cache, written to the cache, written.
pub type Counted = (u64, u64, u64, u64);

/// What it does with a question.
#[derive(Debug, Clone)]
pub enum Say {
    /// A whole answer.
    Answer { text: String, calls: Vec<(String, Value)>, usage: Counted },
    /// An answer cut at its longest.
    Long { text: String, usage: Counted },
    /// A refusal: status, `retry-after`, body.
    Refuse(u16, Option<&'static str>, String),
    /// The question is read, and the connection closes.
    HangsUp,
    /// Words, then the connection closes.
    BreaksOff(String),
    /// Words, then an error inside the stream.
    FailsWithin(&'static str),
    /// Bytes that are no answer.
    Garbage,
    /// Nothing, for as long as the client waits.
    Nothing,
    /// Words, then nothing.
    Stalls(String),
}

/// Words and calls.
pub fn answer(text: &str, calls: &[(&str, Value)], usage: Counted) -> Say {
    let calls = calls.iter().map(|(tool, input)| ((*tool).to_owned(), input.clone())).collect();
    Say::Answer { text: text.into(), calls, usage }
}

/// A question as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Path.
    pub path: String,
    /// Headers as text.
    pub head: String,
    /// Body.
    pub body: Value,
}

type Script = Arc<dyn Fn(usize, &Asked) -> Say + Send + Sync>;

/// A running provider; it ends with the test's runtime.
pub struct Provider {
    /// `http://127.0.0.1:port/v1`.
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Provider {
    /// One that answers question `n` (from 0) as `script` says.
    pub async fn start(script: impl Fn(usize, &Asked) -> Say + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", script).await
    }

    /// As `start`, at an address of this host that others reach it by.
    pub async fn start_at(address: &str, script: impl Fn(usize, &Asked) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (kept, script): (_, Script) = (asked.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, script) = (kept.clone(), script.clone());
                tokio::spawn(async move {
                    // A client that went away is part of some tests.
                    if let Err(e) = serve(stream, &kept, &script).await {
                        eprintln!("the scripted provider: {e}");
                    }
                });
            }
        });
        Self { url, asked }
    }

    /// One that says these, in order.
    pub async fn saying(lines: Vec<Say>) -> Self {
        Self::start(move |n, _| lines[n].clone()).await
    }

    /// Questions so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

async fn serve(mut stream: TcpStream, kept: &Mutex<Vec<Asked>>, script: &Script) -> std::io::Result<()> {
    let mut bytes = vec![];
    let head = loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await?;
        if n == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&piece[..n]);
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let length = text.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let whole = head + length.expect("a length");
    while bytes.len() < whole {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await?;
        bytes.extend_from_slice(&piece[..n]);
    }
    let body = serde_json::from_slice(&bytes[head..whole]).expect("JSON");
    let path = text.split(' ').nth(1).expect("a path").to_owned();
    let asked = Asked { path, head: text, body };
    let n = {
        let mut kept = kept.lock().expect("not poisoned");
        kept.push(asked.clone());
        kept.len() - 1
    };
    let said = script(n, &asked);
    let events = if asked.path.ends_with("/messages") { anthropic(n, &said) } else { openai(n, &said) };
    if matches!(said, Say::HangsUp) {
        return Ok(());
    }
    if matches!(said, Say::Nothing) {
        tokio::time::sleep(Duration::from_secs(30)).await;
        return Ok(());
    }
    if let Say::Refuse(status, after, body) = &said {
        let after = after.map(|a| format!("retry-after: {a}\r\n")).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} No\r\ncontent-type: application/json\r\n{after}content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        return stream.write_all(body.as_bytes()).await;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await?;
    for event in events {
        // In pieces that split events, as networks do.
        for piece in event.as_bytes().chunks(37) {
            stream.write_all(piece).await?;
            stream.flush().await?;
        }
    }
    if matches!(said, Say::Stalls(_)) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    stream.shutdown().await
}

/// A text in three pieces, at characters.
fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(chars.len().div_ceil(3).max(1)).map(|c| c.iter().collect()).collect()
}

fn anthropic(n: usize, said: &Say) -> Vec<String> {
    let event = |value: Value| format!("event: {}\ndata: {value}\n\n", value["type"].as_str().expect("a type"));
    let begin = |(fresh, cached, written, _): Counted| {
        event(json!({"type": "message_start", "message": {"id": format!("msg_{n}"), "role": "assistant", "content": [],
            "usage": {"input_tokens": fresh, "cache_read_input_tokens": cached, "cache_creation_input_tokens": written, "output_tokens": 1}}}))
    };
    let words = |text: &str| {
        let mut out = vec![event(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}))];
        out.extend(
            pieces(text)
                .iter()
                .map(|p| event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}}))),
        );
        out
    };
    let stop = |i: usize| event(json!({"type": "content_block_stop", "index": i}));
    let end = |reason: &str, (.., out): Counted| {
        [
            event(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": out}})),
            event(json!({"type": "message_stop"})),
        ]
    };
    match said {
        Say::Answer { text, calls, usage } => {
            let mut out = vec![begin(*usage), event(json!({"type": "ping"}))];
            if !text.is_empty() {
                out.extend(words(text));
                out.push(stop(0));
            }
            for (i, (tool, input)) in calls.iter().enumerate() {
                let at = i + 1;
                let block = json!({"type": "tool_use", "id": format!("toolu_{n}_{i}"), "name": tool, "input": {}});
                out.push(event(json!({"type": "content_block_start", "index": at, "content_block": block})));
                let delta = |p: &String| {
                    event(json!({"type": "content_block_delta", "index": at, "delta": {"type": "input_json_delta", "partial_json": p}}))
                };
                out.extend(pieces(&arguments(input)).iter().map(delta));
                out.push(stop(at));
            }
            out.extend(end(if calls.is_empty() { "end_turn" } else { "tool_use" }, *usage));
            out
        }
        Say::Long { text, usage } => {
            let mut out = vec![begin(*usage)];
            out.extend(words(text));
            out.push(stop(0));
            out.extend(end("max_tokens", *usage));
            out
        }
        Say::BreaksOff(text) | Say::Stalls(text) => [vec![begin((1, 0, 0, 1))], words(text)].concat(),
        Say::FailsWithin(kind) => {
            let error = json!({"type": "error", "error": {"type": kind, "message": "so it is"}});
            [vec![begin((1, 0, 0, 1))], words("I will"), vec![event(error)]].concat()
        }
        Say::Garbage => vec!["event: content_block_start\ndata: {no json\n\n".into()],
        Say::Refuse(..) | Say::Nothing | Say::HangsUp => vec![],
    }
}

fn openai(n: usize, said: &Say) -> Vec<String> {
    let event = |value: Value| format!("data: {value}\n\n");
    let delta = |delta: Value, finish: Value| {
        event(json!({"id": format!("c{n}"), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
    };
    let words = |text: &str| pieces(text).iter().map(|p| delta(json!({"content": p}), Value::Null)).collect::<Vec<_>>();
    let end = |reason: &str, (fresh, cached, _, out): Counted| {
        [
            delta(json!({}), json!(reason)),
            event(json!({"id": format!("c{n}"), "choices": [], "usage": {"prompt_tokens": fresh + cached, "completion_tokens": out,
                "total_tokens": fresh + cached + out, "prompt_tokens_details": {"cached_tokens": cached}}})),
            "data: [DONE]\n\n".to_owned(),
        ]
    };
    match said {
        Say::Answer { text, calls, usage } => {
            let mut out = vec![delta(json!({"role": "assistant", "content": ""}), Value::Null)];
            out.extend(words(text));
            let split: Vec<Vec<String>> = calls.iter().map(|(_, input)| pieces(&arguments(input))).collect();
            for (i, (tool, _)) in calls.iter().enumerate() {
                let call =
                    json!({"index": i, "id": format!("call_{n}_{i}"), "type": "function", "function": {"name": tool, "arguments": ""}});
                out.push(delta(json!({"tool_calls": [call]}), Value::Null));
            }
            // Arguments of parallel calls come in turns.
            for k in 0..split.iter().map(Vec::len).max().unwrap_or(0) {
                for (i, piece) in split.iter().enumerate().filter_map(|(i, p)| Some((i, p.get(k)?))) {
                    out.push(delta(json!({"tool_calls": [{"index": i, "function": {"arguments": piece}}]}), Value::Null));
                }
            }
            out.extend(end(if calls.is_empty() { "stop" } else { "tool_calls" }, *usage));
            out
        }
        Say::Long { text, usage } => [words(text), end("length", *usage).to_vec()].concat(),
        Say::BreaksOff(text) | Say::Stalls(text) => words(text),
        Say::FailsWithin(kind) => [words("I will"), vec![event(json!({"error": {"type": kind, "message": "so it is"}}))]].concat(),
        Say::Garbage => vec!["data: {no json\n\n".into()],
        Say::Refuse(..) | Say::Nothing | Say::HangsUp => vec![],
    }
}

/// A string stands for arguments that are no JSON.
fn arguments(input: &Value) -> String {
    input.as_str().map_or_else(|| input.to_string(), str::to_owned)
}
