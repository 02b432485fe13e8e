//! The yardstick of `calls.sh`: an rmcp server with one tool that does nothing, over stdio (no argument) or Streamable HTTP (`http`; prints its
//! address). What a call costs here is the SDK and the transport; what it costs more with dockwarden is dockwarden.

use rmcp::model::*;
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use serde_json::json;
use std::sync::Arc;

#[derive(Clone)]
struct Noop;

impl ServerHandler for Noop {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build()).with_server_info(Implementation::new("noop", "0"))
    }

    async fn call_tool(&self, _: CallToolRequestParams, _: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        let mut out = CallToolResult::success(vec![ContentBlock::text("{}")]);
        out.structured_content = Some(json!({}));
        Ok(out.into())
    }
}

async fn http() -> std::io::Result<()> {
    use axum::serve::ListenerExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let service = StreamableHttpService::new(|| Ok(Noop), Arc::new(LocalSessionManager::default()), StreamableHttpServerConfig::default());
    let router = axum::Router::new().route_service("/mcp", service);
    let quick = listener.tap_io(|stream| stream.set_nodelay(true).expect("a TCP socket"));
    axum::serve(quick, router).await
}

// As many workers as `serve` has.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("http") => http().await?,
        // `cargo bench` runs every bench with this flag: there is nothing to measure here.
        Some("--bench") => {}
        _ => drop(Noop.serve(rmcp::transport::stdio()).await?.waiting().await?),
    }
    Ok(())
}
