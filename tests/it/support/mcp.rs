//! Real MCP clients over both doors, by the SDK's own transports; nothing of our server's code is in between.

use super::home::Home;
use rmcp::model::{CallToolRequestParams, CallToolResult};
use rmcp::service::{RoleClient, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ServiceError, ServiceExt};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;

/// A call waits for less than a minute by contract; a machine that is busy may be slow besides.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);

/// A connected client.
pub struct Client {
    service: RunningService<RoleClient, ()>,
    // The bridge; ends with the client.
    _bridge: Option<Child>,
}

impl Client {
    /// Over stdio, through `dockwarden mcp --agent NAME`.
    pub async fn stdio(home: &Home, agent: &str) -> Self {
        Self::over(&mut home.command(["mcp", "--agent", agent])).await
    }

    /// Over stdio of this command.
    pub async fn over(command: &mut tokio::process::Command) -> Self {
        let mut bridge = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let pipes = (bridge.stdout.take().expect("piped"), bridge.stdin.take().expect("piped"));
        let service = tokio::time::timeout(ANSWER_WITHIN, ().serve(pipes)).await.expect("in time").expect("initialize over stdio");
        Self { service, _bridge: Some(bridge) }
    }

    /// Over Streamable HTTP with a bearer token.
    pub async fn http(url: &str, token: &str) -> Self {
        Self::try_http(url, Some(token)).await.expect("initialize over HTTP")
    }

    /// Over Streamable HTTP with a bearer token, by this HTTP client.
    pub async fn http_by(http: reqwest::Client, url: &str, token: &str) -> Self {
        let config = StreamableHttpClientTransportConfig::with_uri(url.to_owned()).auth_header(token);
        let service = ().serve(StreamableHttpClientTransport::with_client(http, config)).await.expect("initialize over HTTP");
        Self { service, _bridge: None }
    }

    /// Over Streamable HTTP; the refusal is the caller's to look at.
    pub async fn try_http(url: &str, token: Option<&str>) -> Result<Self, String> {
        // The SDK's HTTP client wants to know who does TLS, even for plain HTTP; the first test to ask decides for the process.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut config = StreamableHttpClientTransportConfig::with_uri(url.to_owned());
        if let Some(token) = token {
            config = config.auth_header(token);
        }
        let service = ().serve(StreamableHttpClientTransport::from_config(config)).await.map_err(|e| e.to_string())?;
        Ok(Self { service, _bridge: None })
    }

    /// The SDK's client, for lists, prompts and resources.
    pub fn peer(&self) -> &RunningService<RoleClient, ()> {
        &self.service
    }

    /// Calls a tool and returns the whole result.
    pub async fn call(&self, tool: &str, arguments: Value) -> Result<CallToolResult, ServiceError> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        let call = self.service.call_tool(CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments));
        let result =
            tokio::time::timeout(ANSWER_WITHIN, call).await.unwrap_or_else(|_| panic!("{tool}: no answer within {ANSWER_WITHIN:?}"))?;
        // As other clients do: a reply that does not fit its schema is a broken server's.
        if let (Some(spec), Some(value)) = (dockwarden::tools::catalogue().iter().find(|s| s.name == tool), &result.structured_content) {
            let misfits = super::fits::misfits(&(spec.output_schema)(), value);
            assert!(misfits.is_empty(), "{tool}: {misfits:?}");
        }
        Ok(result)
    }

    /// Calls a tool that must succeed; its structured content.
    pub async fn ok(&self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await.unwrap_or_else(|e| panic!("{tool}: {e}"));
        assert_ne!(result.is_error, Some(true), "{tool}: {:#}", serde_json::to_value(&result).unwrap_or_default());
        result.structured_content.unwrap_or_else(|| panic!("{tool} returned no structured content"))
    }

    /// Calls a tool that must answer with a tool error; its structured content, or its text where there is none.
    pub async fn refused(&self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await.unwrap_or_else(|e| panic!("{tool}: {e}"));
        assert_eq!(result.is_error, Some(true), "{tool}: {:#}", serde_json::to_value(&result).unwrap_or_default());
        result.structured_content.clone().unwrap_or_else(|| serde_json::to_value(&result.content).unwrap_or_default())
    }

    /// Says goodbye and waits until the connection is closed.
    pub async fn close(self) {
        tokio::time::timeout(ANSWER_WITHIN, self.service.cancel()).await.expect("in time").expect("closed");
    }
}
