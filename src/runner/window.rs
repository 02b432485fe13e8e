//! What of a task its model is shown again: everything while it fits, then the oldest results in a line each. The task itself, the first words (its
//! plan) and what is still under way always stay. Pure. Deliberately absent: asking a model to summarise itself, which costs and invents.

use super::provider::{Answered, Asked, Message, Request};
use crate::model::task::{Turn, TurnCall};
use crate::redact;
use serde_json::{Map, Value, json};

/// Longest result of one call that is shown, bytes.
const MOST_RESULT: usize = 16_000;
/// Longest result when there is hardly room.
const LEAST_RESULT: usize = 2_000;
/// Longest words of an earlier turn that are shown again when room is short.
const MOST_WORDS: usize = 400;
/// Results are folded in groups of so many turns: what is shown again stays the same for as long, so that the provider's cache holds.
const GROUP: usize = 6;
/// What a folded result keeps.
const KEPT: [&str; 12] = [
    "state",
    "operation_id",
    "approval_id",
    "plan_id",
    "digest",
    "release",
    "snapshot_id",
    "stack",
    "verb",
    "incident_id",
    "task_id",
    "message",
];
/// States of what is under way.
const OPEN: [&str; 4] = ["queued", "running", "monitoring", "pending_approval"];

/// Tokens of so many bytes, rather too many: English has about four bytes a token, JSON about three.
pub fn tokens(bytes: usize) -> u64 {
    (bytes / 3) as u64 + 1
}

/// Bytes of English that have as many tokens as a text: what is not ASCII, and the digits of ids and hashes, are two bytes a token at most.
pub fn weight(text: &str) -> usize {
    text.len() + text.bytes().filter(|b| !b.is_ascii() || b.is_ascii_digit()).count().div_ceil(2)
}

/// Tokens of a question.
pub fn size_of(request: &Request) -> u64 {
    let tools: usize = request.tools.iter().map(|t| t.name.len() + weight(&t.description) + weight(&t.schema.to_string()) + 20).sum();
    tokens(weight(&request.system) + tools) + size(&request.messages)
}

/// Tokens of a conversation.
pub fn size_of_messages(messages: &[Message]) -> u64 {
    size(messages)
}

fn size(messages: &[Message]) -> u64 {
    let bytes = |m: &Message| match m {
        Message::User(text) => weight(text),
        Message::Model { text, calls } => {
            weight(text) + calls.iter().map(|c| weight(&c.id) + weight(&c.tool) + weight(&c.input.to_string()) + 20).sum::<usize>()
        }
        Message::Results(results) => results.iter().map(|r| weight(&r.id) + weight(&r.text) + 20).sum(),
    };
    messages.iter().map(|m| tokens(bytes(m) + 12)).sum()
}

/// The conversation of a task, within `room` tokens. `None` when not even the shortest form fits.
pub fn conversation(task: &str, turns: &[Turn], room: u64) -> Option<Vec<Message>> {
    let groups = (0..turns.len()).step_by(GROUP).chain([turns.len().saturating_sub(1)]);
    let mut shapes: Vec<Shape> = groups.map(|folded| Shape { folded, result: MOST_RESULT, words: usize::MAX }).collect();
    shapes.push(Shape { folded: turns.len().saturating_sub(1), result: LEAST_RESULT, words: MOST_WORDS });
    if turns.is_empty() {
        shapes.truncate(1);
    }
    shapes.into_iter().map(|shape| shape.of(task, turns)).find(|messages| size(messages) <= room)
}

#[derive(Clone, Copy)]
struct Shape {
    /// Turns before this one have their results folded.
    folded: usize,
    /// Longest result of the others.
    result: usize,
    /// Longest words of the folded ones, the first excepted.
    words: usize,
}

impl Shape {
    fn of(self, task: &str, turns: &[Turn]) -> Vec<Message> {
        let mut out = vec![Message::User(task.to_owned())];
        for (i, turn) in turns.iter().enumerate() {
            let fold = i < self.folded;
            let text = if fold && i > 0 { redact::keep_start(&turn.text, self.words) } else { turn.text.as_str() };
            let calls = turn.calls.iter().map(|c| Asked { id: c.id.clone(), tool: c.tool.clone(), input: c.input.clone() }).collect();
            out.push(Message::Model { text: text.to_owned(), calls });
            if turn.calls.is_empty() {
                if turn.cut {
                    out.push(Message::User(CUT.into()));
                }
                continue;
            }
            let shown = |c: &TurnCall| {
                let text = if fold && !under_way(c, &turns[i + 1..]) { folded(c) } else { whole(c, self.result) };
                Answered { id: c.id.clone(), tool: c.tool.clone(), text }
            };
            out.push(Message::Results(turn.calls.iter().map(shown).collect()));
        }
        out
    }
}

/// What is said after an answer that was cut, or said nothing.
const CUT: &str = "Your last answer was empty or was cut at its longest; calls in it were not made. Go on in shorter steps: make one call, or end with a short report.";

fn whole(call: &TurnCall, most: usize) -> String {
    let Some(reply) = &call.reply else { return json!({"state": "not made"}).to_string() };
    let text = reply.to_string();
    if text.len() <= most {
        return text;
    }
    let start = redact::keep_start(&text, most);
    format!("{start}\n[{} of {} bytes left out: ask for less, e.g. one service or fewer lines]", text.len() - start.len(), text.len())
}

fn folded(call: &TurnCall) -> String {
    let Some(reply) = &call.reply else { return json!({"state": "not made"}).to_string() };
    let mut kept = Map::new();
    if let Some(error) = reply.get("error") {
        kept.insert("error".into(), json!({"code": error["code"], "message": error["message"]}));
    }
    for key in KEPT {
        if let Some(value) = reply.get(key).filter(|v| v.to_string().len() <= 200) {
            kept.insert(key.into(), value.clone());
        }
    }
    kept.insert(
        "left_out".into(),
        json!(format!("this result of {} was {} bytes; call again if you need it", call.tool, reply.to_string().len())),
    );
    Value::Object(kept).to_string()
}

/// Whether a result tells of something that was not over then, and no later one says that it is.
fn under_way(call: &TurnCall, later: &[Turn]) -> bool {
    let state = |r: &Value| r.get("state").and_then(Value::as_str).map(str::to_owned);
    let Some(reply) = call.reply.as_ref().filter(|r| state(r).is_some_and(|s| OPEN.contains(&s.as_str()))) else { return false };
    let id = reply.get("operation_id");
    let over = |c: &TurnCall| {
        c.reply.as_ref().is_some_and(|r| r.get("operation_id") == id && state(r).is_some_and(|s| !OPEN.contains(&s.as_str())))
    };
    id.is_none() || !later.iter().flat_map(|t| &t.calls).any(over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, Utc};

    fn turn(number: u32, text: &str, reply: Value) -> Turn {
        let call = TurnCall { id: format!("c{number}"), tool: "logs".into(), input: json!({"n": number}), reply: Some(reply) };
        Turn {
            number,
            at: DateTime::<Utc>::UNIX_EPOCH,
            text: text.into(),
            cut: false,
            refused: false,
            calls: vec![call],
            tokens_in: 0,
            tokens_cached: 0,
            tokens_out: 0,
            micro_usd: 0,
        }
    }

    fn big() -> Value {
        json!({"text": "x".repeat(6_000), "state": "done", "operation_id": "op-1"})
    }

    fn results(messages: &[Message]) -> Vec<String> {
        let texts = |m: &Message| match m {
            Message::Results(r) => r.iter().map(|r| r.text.clone()).collect(),
            Message::User(_) | Message::Model { .. } => vec![],
        };
        messages.iter().flat_map(texts).collect()
    }

    #[test]
    fn everything_is_shown_while_it_fits() {
        let turns: Vec<Turn> = (1..=3).map(|n| turn(n, "words", big())).collect();
        let shown = conversation("do it", &turns, 100_000).unwrap();
        assert_eq!(shown.len(), 7);
        assert_eq!(shown[0], Message::User("do it".into()));
        assert!(results(&shown).iter().all(|t| t.len() > 6_000));
    }

    #[test]
    fn the_oldest_results_are_folded_first_and_keep_their_ids() {
        let turns: Vec<Turn> = (1..=14).map(|n| turn(n, "words", big())).collect();
        let shown = conversation("do it", &turns, 20_000).unwrap();
        let texts = results(&shown);
        assert_eq!(texts.iter().filter(|t| t.len() > 6_000).count(), 8, "one group of six is folded");
        assert!(texts[..6].iter().all(|t| t.contains("left_out") && t.contains("op-1") && t.len() < 300), "{}", texts[0]);
        // One more turn folds no more than before: what is shown again stays the same.
        let more: Vec<Turn> = (1..=14).map(|n| turn(n, "words", if n == 14 { json!({}) } else { big() })).collect();
        assert_eq!(conversation("do it", &more, 20_000).unwrap()[..13], shown[..13]);
    }

    #[test]
    fn the_task_the_plan_and_what_is_under_way_always_stay() {
        let mut turns: Vec<Turn> = (1..=30).map(|n| turn(n, &"plan ".repeat(100), big())).collect();
        let open = |op: &str, state: &str| json!({"operation_id": op, "state": state, "services": ["y".repeat(300)]});
        turns[1] = turn(2, "deploy", open("op-7", "running"));
        turns[2] = turn(3, "deploy", open("op-8", "monitoring"));
        turns[3] = turn(4, "look", open("op-8", "done"));
        let shown = conversation("the task", &turns, 9_000).unwrap();
        assert_eq!(shown[0], Message::User("the task".into()));
        assert!(matches!(&shown[1], Message::Model { text, .. } if text.len() == 500), "the first words whole");
        let texts = results(&shown);
        assert!(texts[1].contains(&"y".repeat(300)), "what is under way is whole: {}", texts[1]);
        assert!(texts[2].contains("left_out"), "what is over is folded: {}", texts[2]);
        assert!(size(&shown) <= 9_000);
        assert_eq!(conversation("the task", &turns, 500), None);
    }

    #[test]
    fn other_scripts_and_digits_count_as_more_than_english() {
        let of = |text: &str| size(&[Message::User(text.to_owned())]);
        assert!((of(&"word".repeat(300)), of(&"x".repeat(1_200))) == (405, 405));
        for (text, characters) in [("\u{6e2c}", 1_000), ("\u{436}", 1_000), ("7", 2_000), ("\u{1f600}", 1_000)] {
            assert!(of(&text.repeat(characters)) >= 1_000, "{text}");
        }
    }

    #[test]
    fn a_result_is_bounded_and_says_so() {
        let shown = conversation("t", &[turn(1, "", json!({"text": "z".repeat(50_000)}))], 100_000).unwrap();
        let texts = results(&shown);
        assert!(texts[0].len() < 16_200 && texts[0].contains("bytes left out"), "{}", &texts[0][15_900..]);
    }
}
