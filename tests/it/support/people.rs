//! What a person at the terminal does, by the socket's own lines: the terminal itself is what a test has not got. A passphrase goes over the
//! same wire and is checked by the same code as a typed one.

use super::home::Home;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Passphrase of every operator a test makes.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// Sends one request for people; the answer, or the error.
pub async fn admin(home: &Home, request: Value) -> Result<Value, Value> {
    tokio::time::timeout(Duration::from_secs(300), exchange(home, request)).await.expect("an answer in time")
}

async fn exchange(home: &Home, mut request: Value) -> Result<Value, Value> {
    let stream = UnixStream::connect(home.path("state/run/supervisor.sock")).await.expect("the supervisor's socket");
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"{\"door\":\"cli\"}\n").await.expect("written");
    lines.next_line().await.expect("readable").expect("a welcome");
    request["id"] = json!(1);
    write.write_all(format!("{request}\n").as_bytes()).await.expect("written");
    let text = lines.next_line().await.expect("readable").expect("an answer");
    let answer: Value = serde_json::from_str(&text).expect("json");
    if answer["error"].is_null() { Ok(answer["ok"].clone()) } else { Err(answer["error"].clone()) }
}

/// Makes an operator; all but the first are vouched for by `by`.
pub async fn operator(home: &Home, name: &str, by: Option<&str>) {
    let credential = by.map(credential);
    admin(home, json!({"admin": "operator_add", "name": name, "passphrase": PASSPHRASE, "credential": credential})).await.expect("made");
}

/// What an operator types.
pub fn credential(operator: &str) -> Value {
    json!({"operator": operator, "passphrase": PASSPHRASE})
}
