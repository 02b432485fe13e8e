//! The transport against a client in memory.

use super::*;
use futures_util::FutureExt as _;
use rmcp::model::ServerResult;
use tokio::io::{AsyncReadExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf};

/// A transport, and the client's end of it.
fn pair() -> (Lines<BufReader<ReadHalf<DuplexStream>>, WriteHalf<DuplexStream>>, DuplexStream) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (read, write) = tokio::io::split(near);
    (Lines::new(BufReader::new(read), write), far)
}

fn ping(id: usize) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"ping\"}}\n")
}

fn cancelled(id: usize) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{id}}}}}\n")
}

fn reply(id: i64) -> ServerJsonRpcMessage {
    ServerJsonRpcMessage::response(ServerResult::empty(()), RequestId::Number(id))
}

/// What is received of an input until nothing more comes, each request answered at once, and what the transport answered itself.
async fn read_all(input: Vec<u8>) -> (Vec<String>, Vec<Value>) {
    let (write, mut far) = tokio::io::duplex(1 << 20);
    let mut lines = Lines::new(BufReader::new(std::io::Cursor::new(input)), write);
    let mut taken = vec![];
    while let Some(message) = lines.receive().await {
        if let JsonRpcMessage::Request(request) = &message {
            lines.open.close(&request.id);
        }
        taken.push(serde_json::to_value(&message).expect("serialises")["method"].as_str().unwrap_or("?").to_owned());
    }
    drop(lines);
    let mut answers = String::new();
    far.read_to_string(&mut answers).await.expect("reads");
    (taken, answers.lines().map(|a| serde_json::from_str(a).expect("json")).collect())
}

#[tokio::test]
async fn garbage_is_answered_and_the_next_message_is_taken() {
    let (taken, answers) = read_all(format!("\u{1}garbage\n\n[1,2]\n{{\"id\":4}}\n{}", ping(1)).into_bytes()).await;
    assert_eq!(taken, ["ping"]);
    let told: Vec<(Value, i64)> = answers.iter().map(|a| (a["id"].clone(), a["error"]["code"].as_i64().expect("code"))).collect();
    assert_eq!(told, [(Value::Null, -32700), (Value::Null, -32600), (json!(4), -32600)]);
}

#[tokio::test]
async fn a_line_beyond_the_bound_is_answered_under_its_id_and_skipped() {
    let mut input = format!("{{\"method\":\"tools/call\",\"params\":\"{}\",\"id\":\"a\"}}\n", "x".repeat(MAX_LINE * 2)).into_bytes();
    input.extend_from_slice(ping(1).as_bytes());
    let (taken, answers) = read_all(input).await;
    assert_eq!((taken, answers.len()), (vec!["ping".to_owned()], 1));
    assert_eq!(answers[0]["id"], "a");
}

#[tokio::test]
async fn a_last_line_without_its_newline_is_a_message_too() {
    assert_eq!(read_all(ping(1).trim_end().as_bytes().to_vec()).await, (vec!["ping".to_owned()], vec![]));
}

#[tokio::test]
async fn the_end_of_input_waits_for_open_answers() {
    let (mut lines, mut far) = pair();
    far.write_all(ping(7).as_bytes()).await.expect("room");
    assert!(lines.receive().await.is_some());
    far.shutdown().await.expect("closed");
    assert!(lines.receive().now_or_never().is_none(), "7 is open");
    let send = lines.send(reply(7));
    let (message, sent) = tokio::join!(lines.receive(), send);
    assert!(message.is_none() && sent.is_ok());
}

#[tokio::test]
async fn a_cancelled_request_and_an_open_stream_are_not_waited_for() {
    let (mut lines, mut far) = pair();
    let listen = r#"{"jsonrpc":"2.0","id":8,"method":"subscriptions/listen","params":{"notifications":{}}}"#;
    far.write_all(format!("{}{listen}\n{}", ping(7), cancelled(7)).as_bytes()).await.expect("room");
    far.shutdown().await.expect("closed");
    for _ in 0..3 {
        assert!(lines.receive().await.is_some());
    }
    assert!(lines.open.ids().streams.contains(&RequestId::Number(8)), "a stream, not a custom request");
    assert_eq!(lines.receive().now_or_never().map(|m| m.is_none()), Some(true), "nothing is waited for");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_waited_for_within_a_bound() {
    let (mut lines, mut far) = pair();
    far.write_all(ping(7).as_bytes()).await.expect("room");
    far.shutdown().await.expect("closed");
    assert!(lines.receive().await.is_some());
    let before = Instant::now();
    assert!(lines.receive().await.is_none());
    assert_eq!(before.elapsed().as_secs(), LAST_ANSWERS.as_secs());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_on_but_may_cancel() {
    let (mut lines, mut far) = pair();
    let many: String = (0..1_000).map(ping).collect();
    far.write_all(cancelled(MAX_OPEN + 1).as_bytes()).await.expect("room");
    far.write_all(many.as_bytes()).await.expect("room");
    assert!(lines.receive().await.is_some(), "the cancellation of what is not there");
    for _ in 0..MAX_OPEN {
        assert!(matches!(lines.receive().await, Some(JsonRpcMessage::Request(_))));
    }
    // A poll that has done much is ended by the runtime; what follows must not be.
    tokio::task::yield_now().await;
    assert!(lines.receive().now_or_never().is_none(), "no more than {MAX_OPEN} at once");
    assert_eq!((lines.open.ids().calls.len(), lines.waiting.len()), (MAX_OPEN, MAX_WAITING));

    let send = lines.send(reply(0));
    send.await.expect("written");
    let Some(JsonRpcMessage::Request(next)) = lines.receive().await else { panic!("there is room again") };
    assert_eq!(next.id, RequestId::Number(i64::try_from(MAX_OPEN).expect("small")), "in their order");
}

#[tokio::test]
async fn a_cancellation_behind_waiting_requests_is_heard() {
    let (mut lines, mut far) = pair();
    let many: String = (0..=MAX_OPEN).map(ping).collect();
    far.write_all(format!("{many}{}{}", cancelled(MAX_OPEN), cancelled(0)).as_bytes()).await.expect("room");
    for _ in 0..MAX_OPEN + 2 {
        assert!(lines.receive().await.is_some());
    }
    assert!(lines.waiting.is_empty(), "the one that waited was cancelled");
    assert!(!lines.open.ids().calls.contains(&RequestId::Number(0)));
}

#[tokio::test]
async fn streams_of_one_client_are_bounded() {
    let (mut lines, mut far) = pair();
    for id in 0..=MAX_STREAMS {
        let listen = json!({"jsonrpc": "2.0", "id": id, "method": "subscriptions/listen", "params": {"notifications": {}}});
        far.write_all(format!("{listen}\n").as_bytes()).await.expect("room");
    }
    for _ in 0..MAX_STREAMS {
        assert!(lines.receive().await.is_some());
    }
    tokio::task::yield_now().await;
    assert!(lines.receive().now_or_never().is_none());
    lines.answers.join_next().await.expect("an answer").expect("written");
    let mut told = vec![0; 512];
    let n = far.read(&mut told).await.expect("an answer");
    let told: Value = serde_json::from_slice(&told[..n]).expect("json");
    assert_eq!((&told["id"], &told["error"]["code"]), (&json!(MAX_STREAMS), &json!(-32600)));
}

#[tokio::test]
async fn a_client_asks_so_often_in_a_minute_and_what_is_no_request_counts_for_nothing() {
    let (lines, mut far) = pair();
    let mut lines = lines.limited(2);
    let said = format!("{}{}{}{}{}", ping(1), cancelled(1), ping(2), ping(3), cancelled(2));
    far.write_all(said.as_bytes()).await.expect("room");
    for _ in 0..4 {
        lines.receive().await.expect("what is within the limit, and what is no request");
    }
    while lines.answers.join_next().await.is_some() {}
    let mut answer = vec![0; 4096];
    let n = far.read(&mut answer).await.expect("answered");
    let answer: Value = serde_json::from_slice(&answer[..n]).expect("json");
    assert_eq!(answer["id"], 3);
    assert!(answer["error"]["message"].as_str().is_some_and(|m| m.contains("2 requests within a minute")), "{answer}");
}
