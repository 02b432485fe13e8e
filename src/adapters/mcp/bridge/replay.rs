//! What a bridge must know of the lines it carries, so that its client outlives the supervisor: how the client introduced itself, what it follows,
//! and what is not answered yet. Deliberately absent: sockets, and any change to a line.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Addresses and streams that are followed again; what a session may follow in all.
const MOST_FOLLOWED: usize = 256;

/// The part of a message that is looked at.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Option<Params>,
    /// Of a reply that is none of an error.
    #[serde(default)]
    result: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Params {
    #[serde(default)]
    uri: Option<String>,
    #[serde(default, rename = "requestId")]
    request_id: Option<Value>,
}

/// A request that is not answered yet.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    id: Value,
    method: String,
    /// Of a stream, which is asked for again.
    line: Option<Vec<u8>>,
}

/// One client's conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    initialize: Option<Vec<u8>>,
    initialized: Option<Vec<u8>>,
    /// Line of the last `logging/setLevel`.
    level: Option<Vec<u8>>,
    /// Lines of `resources/subscribe`, by address.
    follows: BTreeMap<String, Vec<u8>>,
    /// Requests of the client, by the text of their id.
    open: BTreeMap<String, Asked>,
    /// Replies to what the bridge said again: the client had them long ago.
    swallow: BTreeSet<String>,
    /// Questions of the supervisor that the client has not answered.
    questions: BTreeSet<String>,
    /// Those it takes back: who respects that answers them no more, and a late answer is nobody's.
    late: BTreeSet<String>,
    /// Those of a supervisor that is gone. A new one counts from the beginning: a late answer must not be taken for that to another question.
    stale: BTreeSet<String>,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// It goes on.
    Pass,
    /// It does not.
    Drop,
    /// It does not, and this is answered to who sent it.
    Answer(Vec<u8>),
}

fn text_of(id: &Value) -> String {
    id.to_string()
}

fn line(value: &Value) -> Vec<u8> {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

impl Conversation {
    /// A line of the client, with its newline. What is not understood goes on: the supervisor answers it.
    pub fn up(&mut self, bytes: &[u8]) -> Line {
        // Params of other forms are no reason not to know id and method.
        let Some(head) = head(bytes) else { return Line::Pass };
        let Some(method) = head.method else {
            let Some(id) = head.id.as_ref().map(text_of) else { return Line::Pass };
            self.questions.remove(&id);
            return if self.stale.remove(&id) | self.late.remove(&id) { Line::Drop } else { Line::Pass };
        };
        match (head.id, method.as_str()) {
            (Some(id), method) => {
                let key = text_of(&id);
                let streams = method == "subscriptions/listen";
                match method {
                    "initialize" => self.initialize = Some(bytes.to_vec()),
                    "logging/setLevel" => self.level = Some(bytes.to_vec()),
                    "resources/subscribe" => {
                        if let Some(uri) = head.params.and_then(|p| p.uri)
                            && self.follows.len() < MOST_FOLLOWED
                        {
                            self.follows.insert(uri, bytes.to_vec());
                        }
                    }
                    "resources/unsubscribe" => {
                        if let Some(uri) = head.params.and_then(|p| p.uri) {
                            self.follows.remove(&uri);
                        }
                    }
                    _ => {}
                }
                self.open.insert(key, Asked { id, method: method.to_owned(), line: streams.then(|| bytes.to_vec()) });
            }
            (None, "notifications/initialized") => self.initialized = Some(bytes.to_vec()),
            (None, "notifications/cancelled") => {
                if let Some(id) = head.params.and_then(|p| p.request_id) {
                    self.open.remove(&text_of(&id));
                }
            }
            (None, _) => {}
        }
        Line::Pass
    }

    /// A line of which nothing could be sent: whether it is to be sent again. What [`Conversation::again`] says is not, nor what was answered
    /// meanwhile, nor an answer to who asks no more.
    pub fn unsent(&mut self, bytes: &[u8]) -> bool {
        let Some(head) = head(bytes) else { return true };
        match (head.id, head.method.as_deref()) {
            (_, Some("initialize" | "notifications/initialized" | "logging/setLevel" | "resources/subscribe" | "subscriptions/listen"))
            | (_, None) => false,
            (Some(id), Some(_)) => self.open.remove(&text_of(&id)).is_some(),
            (None, Some(_)) => true,
        }
    }

    /// A line of the supervisor, with its newline.
    pub fn down(&mut self, bytes: &[u8]) -> Line {
        let Some(Head { id, method, params, result }) = head(bytes) else { return Line::Pass };
        let Some(id) = id else {
            if method.as_deref() == Some("notifications/cancelled")
                && let Some(id) = params.and_then(|p| p.request_id).as_ref().map(text_of)
                && self.questions.remove(&id)
            {
                self.late.insert(id);
            }
            return Line::Pass;
        };
        let key = text_of(&id);
        if method.is_none() {
            // A stream ends when its client cancels it. A supervisor that ends ends all of them: the next one is asked for this again.
            if result.is_some() && self.open.get(&key).is_some_and(|a| a.line.is_some()) {
                return Line::Drop;
            }
            self.open.remove(&key);
            return if self.swallow.remove(&key) { Line::Drop } else { Line::Pass };
        }
        if self.stale.contains(&key) {
            let message = "the client has not answered an earlier question under this id";
            return Line::Answer(line(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32603, "message": message}})));
        }
        self.late.remove(&key);
        self.questions.insert(key);
        Line::Pass
    }

    /// The supervisor is gone: what the client is told of its open requests.
    pub fn cut(&mut self) -> Vec<Vec<u8>> {
        self.stale.append(&mut self.questions);
        self.swallow.clear();
        let mut told = vec![];
        // `initialize` and streams are asked for again, and answered then.
        let (again, lost): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.open).into_iter().partition(|(_, a)| a.line.is_some() || a.method == "initialize");
        self.open = again;
        for asked in lost.into_values() {
            told.push(line(&interrupted(&asked)));
        }
        told
    }

    /// What a new supervisor is told first: the client's own words.
    pub fn again(&mut self) -> Vec<u8> {
        let mut lines = vec![];
        for said in self.initialize.iter().chain(&self.initialized).chain(&self.level).chain(self.follows.values()) {
            lines.extend_from_slice(said);
            if let Some(Head { id: Some(id), .. }) = head(said)
                && !self.open.contains_key(&text_of(&id))
            {
                self.swallow.insert(text_of(&id));
            }
        }
        for stream in self.open.values().filter_map(|a| a.line.as_ref()) {
            lines.extend_from_slice(stream);
        }
        lines
    }

    /// What the client is told when a supervisor is there again: whatever it keeps of lists and of what it follows may have changed.
    pub fn returned(&self) -> Vec<Vec<u8>> {
        if self.initialized.is_none() {
            return vec![];
        }
        let lists =
            ["tools", "prompts", "resources"].map(|l| json!({"jsonrpc": "2.0", "method": format!("notifications/{l}/list_changed")}));
        let updated = |uri: &String| json!({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}});
        lists.iter().map(line).chain(self.follows.keys().map(|uri| line(&updated(uri)))).collect()
    }
}

/// The id of the request that a line cancels.
pub fn cancels(bytes: &[u8]) -> Option<Value> {
    let head = head(bytes).filter(|h| h.id.is_none() && h.method.as_deref() == Some("notifications/cancelled"))?;
    head.params?.request_id
}

/// The id of the request that a line is.
pub fn asked(bytes: &[u8]) -> Option<Value> {
    head(bytes).filter(|h| h.method.is_some())?.id
}

/// The answer to a request that was said to no supervisor, because none came back in time.
pub fn never_begun(bytes: &[u8]) -> Option<Vec<u8>> {
    let Head { id: Some(id), method: Some(method), .. } = head(bytes)? else { return None };
    let message = "the supervisor was away for too long; this was not begun, and will not be";
    let hint = "try again in a moment; an operator finds out with `dockwarden doctor` why it is not back";
    Some(line(&error(&id, &method, message, hint)))
}

/// Whether a line waits for an answer. One that is not understood does: the supervisor answers it.
pub fn asks(bytes: &[u8]) -> bool {
    head(bytes).is_none_or(|h| h.method.is_some() && h.id.is_some())
}

fn head(bytes: &[u8]) -> Option<Head> {
    serde_json::from_slice(bytes).ok().or_else(|| {
        // Params of another form than ours, e.g. a uri that is a number.
        let mut value: Value = serde_json::from_slice(bytes).ok()?;
        value.as_object_mut()?.remove("params");
        serde_json::from_value(value).ok()
    })
}

/// The answer to a request whose supervisor went away. Of a tool call it is a tool's error: clients show only those to the model.
fn interrupted(asked: &Asked) -> Value {
    let message = "the supervisor went away before it answered; it is back, or will be soon";
    let hint = "what the call began goes on or is undone by itself: look with `operation` (the newest are listed without arguments) or `status` before you call again; with the same idempotency_key a call never begins a second operation";
    error(&asked.id, &asked.method, message, hint)
}

fn error(id: &Value, method: &str, message: &str, hint: &str) -> Value {
    if method != "tools/call" {
        return json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32603, "message": format!("{message}; {hint}")}});
    }
    let text = format!("interrupted: {message}\nhint: {hint}");
    let error = json!({"code": "interrupted", "message": message, "hint": hint});
    json!({"jsonrpc": "2.0", "id": id, "result": {
        "resultType": "complete", "content": [{"type": "text", "text": text}], "structuredContent": {"error": error}, "isError": true
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(c: &mut Conversation, value: Value) -> Line {
        c.up(&line(&value))
    }

    fn hear(c: &mut Conversation, value: Value) -> Line {
        c.down(&line(&value))
    }

    fn lines(bytes: &[u8]) -> Vec<Value> {
        bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).expect("json")).collect()
    }

    fn introduced() -> Conversation {
        let mut c = Conversation::default();
        say(&mut c, json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}));
        assert_eq!(hear(&mut c, json!({"jsonrpc": "2.0", "id": 0, "result": {}})), Line::Pass);
        say(&mut c, json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        c
    }

    #[test]
    fn a_new_supervisor_is_told_who_the_client_is_and_the_client_hears_nothing_of_it() {
        let mut c = introduced();
        say(&mut c, json!({"id": 1, "method": "resources/subscribe", "params": {"uri": "dockwarden://stacks/a"}}));
        say(&mut c, json!({"id": 2, "method": "resources/subscribe", "params": {"uri": "dockwarden://stacks/b"}}));
        say(&mut c, json!({"id": 3, "method": "resources/unsubscribe", "params": {"uri": "dockwarden://stacks/a"}}));
        say(&mut c, json!({"id": 4, "method": "logging/setLevel", "params": {"level": "info"}}));
        for id in 1..5 {
            hear(&mut c, json!({"id": id, "result": {}}));
        }
        assert_eq!(c.cut(), Vec::<Vec<u8>>::new(), "nothing was open");
        let again: Vec<Value> = lines(&c.again()).iter().map(|l| l["method"].clone()).collect();
        assert_eq!(again, ["initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe"]);
        assert_eq!(hear(&mut c, json!({"id": 0, "result": {}})), Line::Drop);
        assert_eq!(hear(&mut c, json!({"id": 2, "result": {}})), Line::Drop);
        assert_eq!(hear(&mut c, json!({"id": 2, "result": {}})), Line::Pass, "once");
        let told = c.returned().concat();
        let told: Vec<Value> = lines(&told);
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[3]["params"]["uri"], "dockwarden://stacks/b");
    }

    #[test]
    fn open_requests_are_answered_and_streams_are_asked_for_again() {
        let mut c = introduced();
        say(&mut c, json!({"id": 5, "method": "tools/call", "params": {"name": "deploy"}}));
        say(&mut c, json!({"id": "6", "method": "tools/list"}));
        say(&mut c, json!({"id": 7, "method": "subscriptions/listen", "params": {}}));
        say(&mut c, json!({"id": 8, "method": "tools/call", "params": {"name": "status"}}));
        say(&mut c, json!({"id": 9, "method": "tools/call", "params": {"name": "status"}}));
        say(&mut c, json!({"method": "notifications/cancelled", "params": {"requestId": 8}}));
        hear(&mut c, json!({"id": 9, "result": {}}));
        let told = lines(&c.cut().concat());
        assert_eq!(told.iter().map(|t| t["id"].clone()).collect::<Vec<_>>(), [json!("6"), json!(5)]);
        assert!(told[0]["error"]["message"].as_str().is_some_and(|m| m.contains("`operation`")), "{told:?}");
        let result = &told[1]["result"];
        assert_eq!(result["isError"], true);
        assert!(result["content"][0]["text"].as_str().is_some_and(|t| t.starts_with("interrupted: ") && t.contains("`operation`")));
        assert_eq!(lines(&c.again()).iter().filter(|l| l["method"] == "subscriptions/listen").count(), 1);
        assert_eq!(c.cut(), Vec::<Vec<u8>>::new(), "answered once");
    }

    #[test]
    fn an_introduction_that_was_cut_off_is_answered_by_the_next_supervisor() {
        let mut c = Conversation::default();
        say(&mut c, json!({"id": 0, "method": "initialize", "params": {}}));
        assert_eq!(c.cut(), Vec::<Vec<u8>>::new());
        assert_eq!(lines(&c.again()).len(), 1);
        assert_eq!(hear(&mut c, json!({"id": 0, "result": {}})), Line::Pass);
        assert_eq!(c.returned(), Vec::<Vec<u8>>::new(), "it knows no lists yet");
    }

    #[test]
    fn a_late_answer_to_a_supervisor_that_is_gone_answers_no_other_question() {
        let mut c = introduced();
        assert_eq!(hear(&mut c, json!({"id": 0, "method": "elicitation/create", "params": {}})), Line::Pass);
        c.cut();
        let Line::Answer(refused) = hear(&mut c, json!({"id": 0, "method": "elicitation/create", "params": {}})) else { panic!("asked") };
        assert_eq!(lines(&refused)[0]["error"]["code"], -32603);
        assert_eq!(say(&mut c, json!({"id": 0, "result": {"action": "accept"}})), Line::Drop);
        assert_eq!(hear(&mut c, json!({"id": 0, "method": "elicitation/create", "params": {}})), Line::Pass, "now it may be asked");
        assert_eq!(say(&mut c, json!({"id": 0, "result": {"action": "accept"}})), Line::Pass);
    }

    #[test]
    fn a_line_that_could_not_be_sent_is_sent_once_more_unless_it_was_answered() {
        let mut c = introduced();
        let call = line(&json!({"id": 3, "method": "tools/call", "params": {"name": "status"}}));
        c.up(&call);
        assert!(c.unsent(&call));
        assert_eq!(c.cut(), Vec::<Vec<u8>>::new(), "it was never asked");
        c.up(&call);
        assert_eq!(c.cut().len(), 1);
        assert!(!c.unsent(&call), "the client was told already");
        assert!(!c.unsent(&line(&json!({"id": 0, "result": {"action": "accept"}}))), "nobody asks any more");
        assert!(!c.unsent(&line(&json!({"method": "notifications/initialized"}))), "it is said again anyhow");
    }

    #[test]
    fn a_question_that_was_taken_back_may_be_asked_by_the_next_supervisor_and_its_late_answer_is_nobodys() {
        let mut c = introduced();
        let question = || json!({"id": 0, "method": "elicitation/create", "params": {}});
        let back = || json!({"method": "notifications/cancelled", "params": {"requestId": 0}});
        assert_eq!((hear(&mut c, question()), hear(&mut c, back())), (Line::Pass, Line::Pass));
        assert_eq!(say(&mut c, json!({"id": 0, "result": {"action": "accept"}})), Line::Drop, "too late");
        assert_eq!((hear(&mut c, question()), hear(&mut c, back())), (Line::Pass, Line::Pass));
        c.cut();
        assert_eq!(hear(&mut c, question()), Line::Pass, "nobody owes an answer to the first");
        assert_eq!(say(&mut c, json!({"id": 0, "result": {"action": "accept"}})), Line::Pass);
    }

    #[test]
    fn a_stream_outlives_a_supervisor_that_ends_in_order() {
        let mut c = introduced();
        say(&mut c, json!({"id": 7, "method": "subscriptions/listen", "params": {}}));
        assert_eq!(hear(&mut c, json!({"id": 7, "result": {}})), Line::Drop, "the supervisor ends, not the stream");
        c.cut();
        assert_eq!(lines(&c.again()).iter().filter(|l| l["method"] == "subscriptions/listen").count(), 1);
        assert_eq!(hear(&mut c, json!({"id": 7, "error": {"code": -32600, "message": "too many"}})), Line::Pass, "it was refused");
        c.cut();
        assert_eq!(lines(&c.again()).iter().filter(|l| l["method"] == "subscriptions/listen").count(), 0);
    }

    #[test]
    fn what_is_not_understood_goes_on() {
        let mut c = Conversation::default();
        for odd in [&b"garbage\n"[..], b"[1,2]\n", b"\n", br#"{"id":1,"method":"resources/subscribe","params":[7]}"#, br#"{"id":null}"#] {
            assert_eq!(c.up(odd), Line::Pass);
            assert_eq!(c.down(odd), Line::Pass);
        }
    }
}
