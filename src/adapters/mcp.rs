//! The MCP door: the catalogue, calls and prompts as an MCP server sees them, for both protocol eras. The only place that knows rmcp.
//! Deliberately absent: any tool's name or meaning, and roots, sampling and logging, which the protocol gave up.

pub mod agent;
pub mod ask;
pub mod bridge;
pub mod complete;
#[cfg(feature = "conformance")]
pub mod fixture;
pub mod http;
pub mod info;
pub mod listing;
pub mod prompts;
pub mod reply;
pub mod resources;
pub mod sessions;
pub mod stdio;
pub mod subscribe;
pub mod topics;
pub mod work;

use super::{Doors, client_text};
use crate::call::{Door, Principal};
use crate::model::ids::AgentName;
use crate::store::token::TokenId;
use crate::tools::toolsets::Selection;
use rmcp::model::*;
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;

/// How long a client may keep a list: rules change rarely, and a change is notified to those who listen.
const LIST_FRESH_MS: u64 = 60_000;

/// Who is behind a connection or a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// Agent.
    pub agent: AgentName,
    /// Launched with `--read-only`, or asked for by a header: only what reads is listed and allowed.
    pub read_only: bool,
    /// Which of its tools the client wants listed.
    pub toolsets: Selection,
}

/// A name for a connection: what comes by it can be told apart in the audit log.
fn connection() -> Arc<str> {
    format!("con-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase()).into()
}

/// The server of one connection.
#[derive(Debug, Clone)]
pub struct Server {
    doors: Arc<Doors>,
    door: Door,
    /// Fixed for a connection (stdio); over HTTP each request brings its own.
    caller: Option<Caller>,
    /// What a legacy session subscribed to.
    session: Arc<subscribe::Session>,
    /// Where that is kept over restarts (HTTP).
    kept: Option<Arc<sessions::Sessions>>,
    /// Name of this connection in the audit log.
    connection: Arc<str>,
}

impl Server {
    /// A server for a connection whose caller is known.
    pub fn for_caller(doors: Arc<Doors>, door: Door, caller: Caller) -> Self {
        Self { doors, door, caller: Some(caller), session: Arc::default(), kept: None, connection: connection() }
    }
    /// A server whose requests each carry their caller.
    pub fn per_request(doors: Arc<Doors>, kept: Arc<sessions::Sessions>) -> Self {
        Self { doors, door: Door::McpHttp(None), caller: None, session: Arc::default(), kept: Some(kept), connection: connection() }
    }

    /// Keeps what the session of a request follows, where sessions outlive a supervisor.
    async fn keep(&self, context: &RequestContext<RoleServer>) {
        let parts = context.extensions.get::<::http::request::Parts>();
        let id = parts.and_then(|p| p.headers.get("mcp-session-id")).and_then(|v| v.to_str().ok());
        if let (Some(kept), Some(id)) = (&self.kept, id) {
            self.session.keep(kept, id).await;
        }
    }

    fn caller(&self, context: &RequestContext<RoleServer>) -> Result<Caller, ErrorData> {
        let from_request = || context.extensions.get::<::http::request::Parts>().and_then(|p| p.extensions.get::<Caller>()).cloned();
        self.caller.clone().or_else(from_request).ok_or_else(|| ErrorData::invalid_request("the request carries no identity", None))
    }

    /// The caller as the line knows it.
    fn principal(&self, caller: &Caller, context: &RequestContext<RoleServer>) -> Principal {
        let client = context.client_info().map(|c| client_text(&format!("{} {}", c.name, c.version)));
        let parts = context.extensions.get::<::http::request::Parts>();
        let door = match self.door {
            Door::McpHttp(_) => Door::McpHttp(parts.and_then(|p| p.extensions.get::<TokenId>()).copied()),
            door => door,
        };
        Principal { agent: caller.agent.clone(), door, client, read_only: caller.read_only, on_behalf: vec![] }
    }

    fn info(&self, caller: Option<&Caller>) -> ServerConfig {
        info::config(&self.doors.house, caller)
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        self.info(self.caller.as_ref())
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let caller = self.caller(&context)?;
        context.peer.set_peer_info(request.clone());
        let mut result = self.negotiate_initialize(&request)?;
        result.instructions = self.info(Some(&caller)).instructions;
        Ok(result)
    }

    async fn discover(&self, context: RequestContext<RoleServer>) -> Result<DiscoverResult, ErrorData> {
        let caller = self.caller(&context)?;
        Ok(DiscoverResult::from_server_info(self.supported_protocol_versions().into_owned(), self.info(Some(&caller))))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let caller = self.caller(&context)?;
        let listed = listing::listed(&self.doors.house.rulebook.load(), &caller);
        let tools = listing::tools(&listed);
        #[cfg(feature = "conformance")]
        let tools = [tools, fixture::tools()].concat();
        Ok(ListToolsResult::with_all_items(tools).with_ttl_ms(LIST_FRESH_MS).with_cache_scope(CacheScope::Private))
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        let caller = self.caller(&context)?;
        #[cfg(feature = "conformance")]
        if fixture::has_tool(&request.name) {
            return fixture::call_tool(&self.doors, request, &context).await;
        }
        let who = self.principal(&caller, &context);
        let input = Value::Object(request.arguments.unwrap_or_default());
        let (sender, lines) = tokio::sync::mpsc::channel(32);
        if let Some(named) = context.meta.get(crate::runner::outside::CALL) {
            return Ok(reply::result(work::call(&self.doors, who, named, request.name.into_owned(), input).await).into());
        }
        let session = format!("{} {}", who.door.detail(), self.connection);
        // Only a client that can be asked makes a copy worth its bytes.
        let kept = if ask::shows_forms(&context) || request.request_state.is_some() { input.clone() } else { Value::Null };
        let asker =
            ask::Asker { doors: &self.doors, who: &who, session: &session, tool: &request.name, input: &kept, begun: Instant::now() };
        let back = asker.brought(request.request_state.as_deref(), request.input_responses.as_ref()).await;
        let may_ask = match back {
            ask::Back::Reply(result) => return Ok(reply::result(*result).into()),
            ask::Back::Quiet => false,
            ask::Back::Ask => true,
        };
        let token = context.meta.get_progress_token();
        let call = self.doors.call(who.clone(), request.name.to_string(), input, token.is_some().then_some(sender));
        let result = match token {
            None => call.await,
            Some(token) => reply::with_progress(call, lines, &context.peer, token).await,
        };
        let asked = if may_ask { asker.ask(&result, &context).await } else { None };
        Ok(asked.unwrap_or_else(|| reply::result(result).into()))
    }

    async fn on_custom_request(&self, request: CustomRequest, context: RequestContext<RoleServer>) -> Result<CustomResult, ErrorData> {
        let caller = self.caller(&context)?;
        let who = self.principal(&caller, &context);
        work::answer(&self.doors, &who, request, &context.ct).await
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        self.caller(&context)?;
        let prompts: Vec<Prompt> = self.doors.house.prompts.load().iter().filter(|p| p.steps.is_empty()).map(prompts::listed).collect();
        #[cfg(feature = "conformance")]
        let prompts = [prompts, fixture::prompts()].concat();
        Ok(ListPromptsResult::with_all_items(prompts).with_ttl_ms(LIST_FRESH_MS).with_cache_scope(CacheScope::Private))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        self.caller(&context)?;
        #[cfg(feature = "conformance")]
        if let Some(filled) = fixture::get_prompt(&request) {
            return filled;
        }
        prompts::filled(&self.doors.house.prompts.load(), &request.name, request.arguments.as_ref())
            .map(GetPromptResponse::from)
            .map_err(|message| ErrorData::invalid_params(message, None))
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let caller = self.caller(&context)?;
        let cursor = request.and_then(|r| r.cursor);
        let (found, next) = resources::list(&self.doors, &caller, cursor.as_deref()).await?;
        #[cfg(feature = "conformance")]
        let found = [found, fixture::resources()].concat();
        let mut result = ListResourcesResult::with_all_items(found).with_ttl_ms(LIST_FRESH_MS).with_cache_scope(CacheScope::Private);
        result.next_cursor = next;
        Ok(result)
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let caller = self.caller(&context)?;
        let found = resources::templates(&self.doors, &caller);
        #[cfg(feature = "conformance")]
        let found = [found, fixture::templates()].concat();
        Ok(ListResourceTemplatesResult::with_all_items(found).with_ttl_ms(LIST_FRESH_MS).with_cache_scope(CacheScope::Private))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let caller = self.caller(&context)?;
        #[cfg(feature = "conformance")]
        if let Some(content) = fixture::read(&request.uri) {
            return Ok(content.into());
        }
        let who = self.principal(&caller, &context);
        resources::content(&self.doors, who, &caller, &request.uri).await.map(Into::into)
    }

    async fn complete(&self, request: CompleteRequestParams, context: RequestContext<RoleServer>) -> Result<CompleteResult, ErrorData> {
        let caller = self.caller(&context)?;
        #[cfg(feature = "conformance")]
        if let Some(values) = fixture::complete(&request) {
            return Ok(CompleteResult::new(values));
        }
        complete::values(&self.doors, &caller, &request).await.map(CompleteResult::new)
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let found_again = context.extensions.get::<rmcp::transport::streamable_http_server::session::SessionRestoreMarker>();
        if let (Some(kept), Some(marker)) = (&self.kept, found_again) {
            self.session.resume(kept, &marker.id).await;
        }
        self.session.begin(&self.doors, self.door, context.peer);
    }

    async fn subscribe(&self, request: SubscribeRequestParams, context: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        let caller = self.caller(&context)?;
        let who = self.principal(&caller, &context);
        self.session.room(&request.uri)?;
        subscribe::judged(&self.doors, &who, &caller, &request.uri).await?;
        self.session.add(&request.uri, &caller)?;
        self.keep(&context).await;
        Ok(())
    }

    async fn unsubscribe(&self, request: UnsubscribeRequestParams, context: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.caller(&context)?;
        self.session.remove(&request.uri);
        self.keep(&context).await;
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(subscribe::accepted(requested))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let caller = self.caller(context.request_context())?;
        let who = self.principal(&caller, context.request_context());
        subscribe::listen(&self.doors, &who, &caller, context).await
    }

    /// What the HTTP transport checks parameter headers against.
    fn get_tool(&self, name: &str) -> Option<Tool> {
        #[cfg(feature = "conformance")]
        if let Some(tool) = fixture::tools().into_iter().find(|t| t.name == name) {
            return Some(tool);
        }
        listing::tool_of(name)
    }

    #[cfg(feature = "conformance")]
    #[expect(deprecated, reason = "the suite asks for logging")]
    async fn set_level(&self, _: SetLevelRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    #[cfg(feature = "conformance")]
    async fn get_task(&self, request: GetTaskParams, _: RequestContext<RoleServer>) -> Result<GetTaskResult, ErrorData> {
        fixture::TASKS.get_task(&request.task_id).map(GetTaskResult::new)
    }

    #[cfg(feature = "conformance")]
    async fn update_task(&self, request: UpdateTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        fixture::TASKS.update_task(&request.task_id, request.input_responses)
    }

    #[cfg(feature = "conformance")]
    async fn cancel_task(&self, request: CancelTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        fixture::TASKS.cancel_task(&request.task_id)
    }
}

#[cfg(test)]
mod told_tests;
