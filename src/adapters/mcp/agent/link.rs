//! The connection of an agent to its supervisor: made when it is needed, dropped when it breaks, made again. Deliberately absent: what is said over it.

use crate::adapters::mcp::work::ANSWER;
use crate::model::ids::AgentName;
use crate::runner::outside::{Ask, METHOD};
use rmcp::model::{
    CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ClientRequest, CustomRequest, ErrorCode, Implementation,
    ServerResult,
};
use rmcp::service::{ClientInitializeError, RoleClient, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransportConfig, StreamableHttpError};
use rmcp::{ErrorData, ServiceExt};
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Time to open a connection and be greeted.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Unused connections are tried so often, so that a host that went away is noticed.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Where the token is.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// In a file, read anew for each connection: a changed one is used at the next.
    File(PathBuf),
    /// As it was given in the environment.
    Given(crate::runner::models::Key),
}

impl TokenSource {
    fn read(&self) -> Result<crate::runner::models::Key, String> {
        match self {
            Self::Given(key) => Ok(key.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("the token file {}: {e}", path.display()))?;
                crate::runner::models::Key::new(&text).map_err(|e| format!("the token file {}: {e}", path.display()))
            }
        }
    }
}

/// Why the supervisor did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It said no. Asking again says the same.
    #[error("{message}")]
    Refused {
        /// Stable code.
        code: String,
        /// Cause.
        message: String,
        /// What to do.
        hint: String,
    },
    /// It is away, ends or has trouble: asking again later helps.
    #[error("{0}")]
    Away(String),
}

type Client = RunningService<RoleClient, ClientConfig>;

/// One connection, and the word that it broke.
#[derive(Clone)]
struct Line {
    client: Arc<Client>,
    broken: CancellationToken,
}

/// The connection.
pub struct Link {
    url: String,
    agent: AgentName,
    token: TokenSource,
    http: reqwest::Client,
    line: Mutex<Option<Line>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("url", &self.url).field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// In words, when no HTTP client can be built.
    pub fn new(url: &str, agent: AgentName, token: TokenSource) -> Result<Self, String> {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::trace!("the process has a provider of cryptography already");
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .tcp_keepalive(ALIVE_EVERY)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| format!("no HTTP client: {e}"))?;
        Ok(Self { url: url.to_owned(), agent, token, http, line: Mutex::default() })
    }

    async fn line(&self) -> Result<Line, LinkError> {
        let mut line = self.line.lock().await;
        if let Some(line) = line.as_ref().filter(|l| !l.broken.is_cancelled() && !l.client.is_closed()) {
            return Ok(line.clone());
        }
        let hint = "give --token-file the file an operator filled with `dockwarden agents token NAME`";
        let refused = |message: String| LinkError::Refused { code: "unauthorized".into(), message, hint: hint.into() };
        let token = self.token.read().map_err(refused)?;
        let mut config = StreamableHttpClientTransportConfig::with_uri(self.url.clone()).auth_header(token.reveal());
        // What was asked over a stream that broke is asked again here, where it is known what that means.
        config.retry_config = Arc::new(NeverRetry::default());
        let me = Implementation::new(format!("dockwarden agent run {}", self.agent), env!("CARGO_PKG_VERSION"));
        let me = ClientConfig::new(ClientCapabilities::default(), me);
        let transport = StreamableHttpClientTransport::with_client(self.http.clone(), config);
        let served = tokio::time::timeout(CONNECT_WITHIN, me.serve(transport)).await;
        let client = served.map_err(|_| LinkError::Away(format!("no answer within {CONNECT_WITHIN:?}")))?;
        let client = client
            .map_err(|e| if unauthorized(&e) { refused(format!("{} does not take this token", self.url)) } else { unconnected(&e) })?;
        let new = Line { client: Arc::new(client), broken: CancellationToken::new() };
        *line = Some(new.clone());
        Ok(new)
    }

    /// Asks by the custom method, once.
    ///
    /// # Errors
    /// `LinkError`.
    pub async fn ask<T: DeserializeOwned>(&self, ask: &Ask, within: Duration) -> Result<T, LinkError> {
        let params = serde_json::to_value(ask).map_err(|e| away(&e))?;
        let line = self.line().await?;
        let request = ClientRequest::CustomRequest(CustomRequest::new(METHOD, Some(params)));
        let answer = self.over(&line, within, line.client.send_request(request)).await?;
        let ServerResult::CustomResult(mut answer) = answer else {
            return Err(LinkError::Away("the answer is none of this method; is the supervisor of the same version?".into()));
        };
        serde_json::from_value(answer.0[ANSWER].take()).map_err(|e| away(&e))
    }

    /// Calls a tool, once.
    ///
    /// # Errors
    /// `LinkError`; a tool's refusal is an answer.
    pub async fn call(&self, params: CallToolRequestParams, within: Duration) -> Result<CallToolResult, LinkError> {
        let line = self.line().await?;
        self.over(&line, within, line.client.call_tool(params)).await
    }

    async fn over<T>(&self, line: &Line, within: Duration, asked: impl Future<Output = Result<T, ServiceError>>) -> Result<T, LinkError> {
        let answer = tokio::select! {
            answer = tokio::time::timeout(within, asked) => answer,
            // Another question found out; this one's answer will not come either.
            () = line.broken.cancelled() => return Err(LinkError::Away("the connection broke".into())),
        };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ServiceError::McpError(e))) => {
                let refused = refusal(&e);
                // What was not refused may be the transport's own word that the answer's stream broke.
                if matches!(refused, LinkError::Away(_)) {
                    line.broken.cancel();
                }
                Err(refused)
            }
            Ok(Err(ServiceError::TransportSend(e))) => {
                line.broken.cancel();
                Err(away(e.error.as_ref()))
            }
            Ok(Err(e)) => {
                line.broken.cancel();
                Err(away(&e))
            }
            Err(_) => {
                line.broken.cancel();
                Err(LinkError::Away(format!("no answer within {within:?}")))
            }
        }
    }

    /// Says goodbye, if it can be said at once.
    pub async fn close(&self) {
        let Some(line) = self.line.lock().await.take() else { return };
        line.client.cancellation_token().cancel();
    }
}

fn away(e: &(impl std::error::Error + ?Sized)) -> LinkError {
    let mut words = e.to_string();
    let mut cause = e.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = inner.source();
    }
    LinkError::Away(crate::redact::line(&words, 400))
}

/// What kept a connection from being made, without the names of the layers it went through.
fn unconnected(e: &ClientInitializeError) -> LinkError {
    match e {
        ClientInitializeError::TransportError { error, .. } => away(error.error.as_ref()),
        other => away(other),
    }
}

/// The door's 401: no such token.
fn unauthorized(e: &ClientInitializeError) -> bool {
    let ClientInitializeError::TransportError { error, .. } = e else { return false };
    let http = error.error.downcast_ref::<StreamableHttpError<reqwest::Error>>();
    http.is_some_and(|e| matches!(e, StreamableHttpError::AuthRequired(_) | StreamableHttpError::InsufficientScope(_)))
}

fn refusal(e: &ErrorData) -> LinkError {
    let text = |key: &str| e.data.as_ref().and_then(|d| d["error"][key].as_str()).unwrap_or_default().to_owned();
    match text("code").as_str() {
        code @ ("denied" | "invalid_argument" | "conflict" | "not_found") => {
            LinkError::Refused { code: code.into(), message: text("message"), hint: text("hint") }
        }
        "" if e.code == ErrorCode::METHOD_NOT_FOUND || e.code == ErrorCode::INVALID_PARAMS => LinkError::Refused {
            code: "invalid_argument".into(),
            message: format!("the supervisor does not understand this process: {}", crate::redact::line(&e.message, 300)),
            hint: "use the dockwarden binary of the same version as the supervisor".into(),
        },
        _ => LinkError::Away(crate::redact::line(&e.message, 400)),
    }
}
