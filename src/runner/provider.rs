//! What a model is to a run: a question goes in, words and calls come out. One place (`wire`) knows a vendor. Deliberately absent: retries, money, and
//! what is done with the calls.

use crate::model::spend::Usage;
use crate::runner::hands::Offer;
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

/// Longest text and arguments of one answer that are taken, in bytes: beyond any `max_tokens`, a provider that streams for ever.
const MOST_BYTES: usize = 4 << 20;

/// A call a model asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The provider's id of it.
    pub id: String,
    /// Tool.
    pub tool: String,
    /// Arguments; a string when they were no JSON.
    pub input: Value,
}

/// What a call was answered, as the model reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The provider's id of the call.
    pub id: String,
    /// Tool.
    pub tool: String,
    /// Text.
    pub text: String,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// From us.
    User(String),
    /// From the model.
    Model {
        /// Its words.
        text: String,
        /// Calls it asked for.
        calls: Vec<Asked>,
    },
    /// What its calls were answered.
    Results(Vec<Answered>),
}

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the model is and must keep to.
    pub system: String,
    /// The conversation, a message of ours last.
    pub messages: Vec<Message>,
    /// Tools it may ask for.
    pub tools: Vec<Offer>,
    /// Most tokens of the answer.
    pub max_tokens: u32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Done, or waiting for its calls.
    Done,
    /// As long as it may be.
    MaxTokens,
    /// The provider refused to go on.
    Refused,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Words.
    Text(String),
    /// A whole call.
    Call(Asked),
    /// Bytes of what is not passed on: thoughts, or a call (by its id) as far as it has come.
    Unseen {
        /// Of which call.
        call: Option<String>,
        /// So many, of a call from its beginning.
        bytes: usize,
    },
    /// Tokens; the last one counts. A provider may leave it out.
    Usage(Usage),
    /// The end; nothing follows.
    End(EndReason),
}

/// Why there is no answer. Texts are of the provider, cleaned, and never hold a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// Too many questions.
    #[error("the provider limits how often it is asked: {detail}")]
    RateLimited {
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// Its words.
        detail: String,
    },
    /// It has too much to do, or failed inside.
    #[error("the provider is overloaded or failed: {detail}")]
    Overloaded {
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// Its words.
        detail: String,
    },
    /// The key is missing, wrong or may not do this.
    #[error("the provider refused the key: {0}")]
    Unauthorized(String),
    /// The question is longer than the model takes.
    #[error("the conversation is longer than the model takes: {0}")]
    ContextTooLong(String),
    /// The question is wrong, or the address or the model's name is.
    #[error("the provider did not take the question: {0}")]
    BadRequest(String),
    /// No word in time.
    #[error("the provider did not answer in time: {0}")]
    Timeout(String),
    /// Nobody there.
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    /// The answer broke off or was not understood.
    #[error("the provider's answer broke off or was not understood: {0}")]
    Broken(String),
}

impl ProviderError {
    /// Whether asking again can help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Overloaded { .. } | Self::Timeout(_) | Self::Unreachable(_) | Self::Broken(_) => true,
            Self::Unauthorized(_) | Self::ContextTooLong(_) | Self::BadRequest(_) => false,
        }
    }

    /// Whether the provider may charge for it: the model may have begun to answer.
    pub fn may_cost(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Broken(_) => true,
            Self::RateLimited { .. }
            | Self::Overloaded { .. }
            | Self::Unauthorized(_)
            | Self::ContextTooLong(_)
            | Self::BadRequest(_)
            | Self::Unreachable(_) => false,
        }
    }

    /// How long it wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Overloaded { retry_after, .. } => *retry_after,
            Self::Unauthorized(_)
            | Self::ContextTooLong(_)
            | Self::BadRequest(_)
            | Self::Timeout(_)
            | Self::Unreachable(_)
            | Self::Broken(_) => None,
        }
    }
}

/// An answer as it comes in.
pub type Events = Pin<Box<dyn Stream<Item = Result<Event, ProviderError>> + Send>>;

/// A model that can be asked.
pub trait Provider: Send + Sync {
    /// Asks. Errors come in the stream; dropping it ends the question.
    fn ask(&self, request: Request) -> Events;
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Spoken {
    /// Words.
    pub text: String,
    /// Calls, in order.
    pub calls: Vec<Asked>,
    /// Tokens, when the provider said.
    pub usage: Option<Usage>,
    /// Why it ended.
    pub end: EndReason,
}

/// Takes an answer to its end, at most `within` in all.
///
/// # Errors
/// The stream's; `Timeout`; `Broken` when it ended without its end.
pub async fn listen(mut events: Events, within: Duration) -> Result<Spoken, ProviderError> {
    let (mut text, mut calls, mut usage, mut bytes) = (String::new(), vec![], None, 0_usize);
    let whole = async {
        let mut begun = false;
        let mut parts = BTreeMap::<String, usize>::new();
        while let Some(event) = events.next().await {
            // An answer that fails in the middle was asked for, and begun: whatever the provider calls its failure, it may charge for it.
            let event = event.map_err(|e| if begun && e.may_pass() && !e.may_cost() { ProviderError::Broken(e.to_string()) } else { e })?;
            begun = true;
            match event {
                Event::Text(piece) => {
                    bytes += piece.len();
                    text.push_str(&piece);
                }
                Event::Call(call) => {
                    bytes = bytes.saturating_sub(parts.remove(&call.id).unwrap_or(0)).saturating_add(call.input.to_string().len());
                    calls.push(call);
                }
                Event::Unseen { call: None, bytes: more } => bytes = bytes.saturating_add(more),
                Event::Unseen { call: Some(id), bytes: whole } => {
                    let whole = whole.saturating_add(id.len());
                    bytes = bytes.saturating_add(whole).saturating_sub(parts.insert(id, whole).unwrap_or(0));
                }
                Event::Usage(counted) => usage = Some(counted),
                Event::End(end) => return Ok(Spoken { text: std::mem::take(&mut text), calls: std::mem::take(&mut calls), usage, end }),
            }
            if bytes > MOST_BYTES {
                return Err(ProviderError::Broken(format!("it is longer than {MOST_BYTES} bytes")));
            }
        }
        Err(ProviderError::Broken("it ended without saying so".into()))
    };
    let ended = tokio::time::timeout(within, whole).await;
    ended.unwrap_or_else(|_| Err(ProviderError::Timeout(format!("not finished after {} s", within.as_secs()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn heard(events: Vec<Event>) -> Result<Spoken, ProviderError> {
        let all = events.into_iter().chain([Event::End(EndReason::Done)]).map(Ok);
        listen(Box::pin(futures_util::stream::iter(all)), Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn what_is_not_passed_on_counts_against_the_longest_answer_and_a_call_that_grows_counts_once() {
        let thought = || Event::Unseen { call: None, bytes: MOST_BYTES / 8 };
        assert!(heard((0..7).map(|_| thought()).collect()).await.is_ok());
        let endless = heard((0..9).map(|_| thought()).collect()).await.expect_err("bounded");
        assert!(endless.to_string().contains("longer than"), "{endless}");
        // Each piece says how long the call is by now.
        let piece = |id: &str, bytes| Event::Unseen { call: Some(id.into()), bytes };
        let grows = (0..4_000).map(|n| piece("c1", n * 1_000));
        let whole = Event::Call(Asked { id: "c1".into(), tool: "status".into(), input: json!({}) });
        assert_eq!(heard(grows.chain([whole, thought()]).collect()).await.expect("taken").calls.len(), 1);
        let many = (0..9).map(|n| piece(&format!("c{n}"), MOST_BYTES / 8)).collect();
        assert!(heard(many).await.is_err(), "of all calls together");
    }
}
