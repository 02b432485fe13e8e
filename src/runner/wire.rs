//! Providers by the crate `genai`: Anthropic's Messages and OpenAI's chat completions, whatever address speaks them. The only place that names it.
//! Deliberately absent: its own choice of provider by a model's name, its reading of the environment, and its texts unseen: what a provider says is
//! cleaned and freed of the key before anybody sees it.

use super::models::Key;
use super::provider::{Asked, EndReason, Event, Events, Message, Provider, ProviderError, Request};
use crate::model::config::ModelProvider;
use crate::model::spend::Usage;
use crate::redact;
use futures_util::StreamExt;
use genai::adapter::AdapterKind;
use genai::chat::{
    CacheControl, ChatMessage, ChatOptions, ChatRequest, ChatStreamEvent, ContentPart, MessageContent, MessageOptions, StopReason, Tool,
    ToolCall, ToolResponse,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{Client, Headers, ModelIden, ServiceTarget};
use serde_json::Value;
use std::time::Duration;

/// Time to open a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Longest text of a provider that is passed on.
const MOST_WORDS: usize = 400;

/// A model at its provider.
pub struct Wire {
    client: Client,
    kind: ModelProvider,
    base_url: String,
    model: String,
    key: Option<Key>,
    patience: Duration,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("kind", &self.kind)
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Wire {
    /// Connects to nothing yet. `patience` is the longest wait for the first and each further piece of an answer.
    ///
    /// # Errors
    /// In words, when no client can be built.
    pub fn new(kind: ModelProvider, base_url: &str, model: &str, key: Option<Key>, patience: Duration) -> Result<Self, String> {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::trace!("the process has a provider of cryptography already");
        }
        let http = reqwest::Client::builder().connect_timeout(CONNECT_WITHIN).redirect(reqwest::redirect::Policy::none());
        // Without TLS a proxy of the environment would read the key.
        let http = if base_url.starts_with("http://") { http.no_proxy() } else { http };
        let http = http.build().map_err(|e| format!("no HTTP client: {e}"))?;
        let base_url = format!("{}/", base_url.trim_end_matches('/'));
        let client = Client::builder().with_reqwest(http).build().map_err(|e| format!("no client of the provider: {e}"))?;
        Ok(Self { client, kind, base_url, model: model.to_owned(), key, patience })
    }

    fn target(&self) -> ServiceTarget {
        let adapter = match self.kind {
            ModelProvider::Anthropic => AdapterKind::Anthropic,
            ModelProvider::Openai => AdapterKind::OpenAI,
        };
        let auth = match (&self.key, self.kind) {
            (Some(key), _) => AuthData::Key(key.reveal().to_owned()),
            // A server of one's own asks for no key; the crate would insist on one.
            (None, ModelProvider::Openai) => {
                AuthData::RequestOverride { url: format!("{}chat/completions", self.base_url), headers: Headers::default() }
            }
            (None, ModelProvider::Anthropic) => AuthData::RequestOverride {
                url: format!("{}messages", self.base_url),
                headers: Headers::from(("anthropic-version".to_owned(), "2023-06-01".to_owned())),
            },
        };
        ServiceTarget { endpoint: Endpoint::from_owned(self.base_url.as_str()), auth, model: ModelIden::new(adapter, self.model.as_str()) }
    }

    fn request(&self, request: Request) -> ChatRequest {
        let caches = self.kind == ModelProvider::Anthropic;
        let last = request.tools.len().saturating_sub(1);
        let tool = |(i, offer): (usize, super::hands::Offer)| {
            let tool = Tool::new(offer.name).with_description(offer.description).with_schema(offer.schema);
            // Tools and system prompt are the same in every turn: they are read from the cache from the second on.
            if caches && i == last { tool.with_cache_control(CacheControl::Ephemeral) } else { tool }
        };
        let mut messages: Vec<ChatMessage> = request.messages.into_iter().map(message).collect();
        if caches && let Some(newest) = messages.last_mut() {
            newest.options = Some(MessageOptions::from(CacheControl::Ephemeral));
        }
        let asked = ChatRequest::from_messages(messages).with_system(request.system);
        if request.tools.is_empty() { asked } else { asked.with_tools(request.tools.into_iter().enumerate().map(tool).collect::<Vec<_>>()) }
    }

    fn words(&self, text: &str) -> String {
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |k| k.scrub(text));
        redact::line(&text, MOST_WORDS)
    }

    fn freed(&self, call: ToolCall) -> Asked {
        let input = self.key.as_ref().map_or(call.fn_arguments.clone(), |k| k.scrub_value(call.fn_arguments));
        Asked { id: call.call_id, tool: self.words(&call.fn_name), input }
    }
}

fn message(message: Message) -> ChatMessage {
    match message {
        Message::User(text) => ChatMessage::user(text),
        Message::Model { text, calls } => {
            let mut parts = vec![];
            if !text.trim().is_empty() {
                parts.push(ContentPart::Text(text));
            }
            parts.extend(calls.into_iter().map(|c| {
                // The protocols want an object; what was none was refused, and its text is in the refusal.
                let fn_arguments = if c.input.is_object() { c.input } else { serde_json::json!({}) };
                ContentPart::ToolCall(ToolCall { call_id: c.id, fn_name: c.tool, fn_arguments, thought_signatures: None })
            }));
            if parts.is_empty() {
                parts.push(ContentPart::Text("(no words)".into()));
            }
            ChatMessage::assistant(MessageContent::from_parts(parts))
        }
        Message::Results(results) => {
            let responses: Vec<ToolResponse> = results.into_iter().map(|r| ToolResponse::new(r.id, r.text).with_fn_name(r.tool)).collect();
            ChatMessage::tool(MessageContent::from_parts(responses.into_iter().map(ContentPart::ToolResponse).collect::<Vec<_>>()))
        }
    }
}

impl Provider for Wire {
    fn ask(&self, request: Request) -> Events {
        let options = ChatOptions::default()
            .with_max_tokens(request.max_tokens)
            .with_capture_usage(true)
            .with_capture_tool_calls(true)
            .with_stream_header_timeout(self.patience)
            .with_stream_read_timeout(self.patience);
        let this = Self {
            client: self.client.clone(),
            kind: self.kind,
            base_url: self.base_url.clone(),
            model: self.model.clone(),
            key: self.key.clone(),
            patience: self.patience,
        };
        let (target, request) = (self.target(), self.request(request));
        let opened = async move {
            match this.client.exec_chat_stream(target, request, Some(&options)).await {
                Ok(response) => response.stream.flat_map(move |event| futures_util::stream::iter(this.events(event))).boxed(),
                Err(e) => futures_util::stream::iter([Err(this.error(&e))]).boxed(),
            }
        };
        Box::pin(futures_util::stream::once(opened).flatten())
    }
}

impl Wire {
    fn events(&self, event: genai::Result<ChatStreamEvent>) -> Vec<Result<Event, ProviderError>> {
        let end = match event {
            Ok(ChatStreamEvent::Chunk(chunk)) => {
                return vec![Ok(Event::Text(self.key.as_ref().map_or_else(|| chunk.content.clone(), |k| k.scrub(&chunk.content))))];
            }
            // Calls are taken whole, from the end; that something was written already, and how much, is what counts.
            Ok(ChatStreamEvent::ReasoningChunk(chunk) | ChatStreamEvent::ThoughtSignatureChunk(chunk)) => {
                return vec![Ok(Event::Unseen { call: None, bytes: chunk.content.len() })];
            }
            Ok(ChatStreamEvent::ToolCallChunk(chunk)) => {
                let (call, said) = (chunk.tool_call.call_id, chunk.tool_call.fn_arguments);
                let bytes = said.as_str().map_or_else(|| said.to_string().len(), str::len);
                return vec![Ok(Event::Unseen { call: Some(call), bytes })];
            }
            Ok(ChatStreamEvent::Start | ChatStreamEvent::Heartbeat) => return vec![],
            Ok(ChatStreamEvent::End(end)) => end,
            Err(e) => return vec![Err(self.error(&e))],
        };
        let mut out = vec![];
        let reason = match &end.captured_stop_reason {
            Some(StopReason::MaxTokens(_)) => EndReason::MaxTokens,
            Some(StopReason::ContentFilter(_)) => EndReason::Refused,
            Some(StopReason::Completed(_) | StopReason::ToolCall(_) | StopReason::StopSequence(_) | StopReason::Other(_)) => {
                EndReason::Done
            }
            // Both protocols say why they stop; without it the answer is not whole.
            None => return vec![Err(ProviderError::Broken("it ended without a reason".into()))],
        };
        if let Some(usage) = end.captured_usage.as_ref().and_then(usage) {
            out.push(Ok(Event::Usage(usage)));
        }
        let calls = end.captured_content.map(MessageContent::into_tool_calls).unwrap_or_default();
        out.extend(calls.into_iter().map(|c| Ok(Event::Call(self.freed(c)))));
        out.push(Ok(Event::End(reason)));
        out
    }

    fn error(&self, e: &genai::Error) -> ProviderError {
        use genai::Error as G;
        if let Some(status) = e.status() {
            let body = match e {
                G::HttpError { body, .. } => body.as_str(),
                G::WebModelCall { webc_error: genai::webc::Error::ResponseFailedStatus { body, .. }, .. } => body.as_str(),
                _ => "",
            };
            let after = e.headers().and_then(|h| h.get("retry-after")).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
            // Not a number, negative or beyond all bounds: as if it had said nothing.
            let after = after.and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
            return self.refused(status.as_u16(), after, body);
        }
        match e {
            G::WebStream { error, cause, .. } => {
                if let Some(inner) = error.downcast_ref::<genai::Error>() {
                    return self.error(inner);
                }
                if error.downcast_ref::<genai::webc::StreamTimeout>().is_some() {
                    return ProviderError::Timeout(format!("nothing for {} s", self.patience.as_secs()));
                }
                match error.downcast_ref::<reqwest::Error>() {
                    Some(e) => self.unreached(e),
                    None => ProviderError::Broken(self.words(cause)),
                }
            }
            G::WebModelCall { webc_error: genai::webc::Error::Reqwest(e), .. } => self.unreached(e),
            G::ChatResponse { body, .. } => {
                let kind = body.pointer("/error/type").or_else(|| body.get("type")).and_then(Value::as_str).unwrap_or_default();
                let status = match kind {
                    "rate_limit_error" | "rate_limit_exceeded" => 429,
                    "authentication_error" | "permission_error" => 401,
                    "invalid_request_error" => 400,
                    _ => 529,
                };
                self.refused(status, None, &body.to_string())
            }
            G::StreamParse { serde_error, .. } => ProviderError::Broken(self.words(&serde_error.to_string())),
            other => ProviderError::Broken(self.words(&other.to_string())),
        }
    }

    fn unreached(&self, e: &reqwest::Error) -> ProviderError {
        // Without the address: it may hold a key.
        let mut cause = String::new();
        let mut source = std::error::Error::source(e);
        while let Some(inner) = source {
            cause = inner.to_string();
            source = inner.source();
        }
        let words = self.words(if cause.is_empty() { "no connection" } else { &cause });
        match () {
            // Only without a connection it is certain that nobody read the question, and that it costs nothing.
            () if e.is_connect() => ProviderError::Unreachable(words),
            () if e.is_timeout() => ProviderError::Timeout(words),
            () => ProviderError::Broken(words),
        }
    }

    fn refused(&self, status: u16, retry_after: Option<Duration>, body: &str) -> ProviderError {
        let parsed: Option<Value> = serde_json::from_str(body).ok();
        let said = parsed.as_ref().and_then(|v| v.pointer("/error/message").or_else(|| v.get("message")).or_else(|| v.get("error")));
        let words = self.words(said.and_then(Value::as_str).unwrap_or(body));
        let detail = if words.is_empty() { format!("status {status}") } else { format!("status {status}: {words}") };
        let too_long = ["prompt is too long", "context_length", "context length", "maximum context", "too many tokens"];
        let code = parsed.as_ref().and_then(|v| v.pointer("/error/code")).and_then(Value::as_str).unwrap_or_default();
        let told = format!("{} {code}", words.to_ascii_lowercase());
        match status {
            401 | 403 => ProviderError::Unauthorized(detail),
            // Of something in between, which lost the answer: the question may have been read all the same.
            408 | 502 | 504 | 524 => ProviderError::Timeout(detail),
            413 => ProviderError::ContextTooLong(detail),
            400 | 422 if too_long.iter().any(|w| told.contains(w)) => ProviderError::ContextTooLong(detail),
            429 => ProviderError::RateLimited { retry_after, detail },
            500..=599 => ProviderError::Overloaded { retry_after, detail },
            _ => ProviderError::BadRequest(detail),
        }
    }
}

fn usage(u: &genai::chat::Usage) -> Option<Usage> {
    let n = |v: Option<i32>| v.and_then(|v| u64::try_from(v).ok());
    let details = u.prompt_tokens_details.as_ref();
    // What counts one half only is not believed to have given the other for nothing.
    let (input, output) = (n(u.prompt_tokens)?, n(u.completion_tokens)?);
    Some(Usage {
        input,
        cached: n(details.and_then(|d| d.cached_tokens)).unwrap_or(0),
        cache_written: n(details.and_then(|d| d.cache_creation_tokens)).unwrap_or(0),
        output,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_counts_one_half_only_gives_the_other_for_nothing_to_nobody() {
        let of = |input, output| usage(&genai::chat::Usage { prompt_tokens: input, completion_tokens: output, ..Default::default() });
        assert_eq!(of(Some(7), None), None);
        assert_eq!(of(None, Some(7)), None);
        assert_eq!(of(Some(7), Some(3)).map(|u| (u.input, u.output)), Some((7, 3)));
    }
}
