//! What the official conformance suite expects a server to have: tools, prompts and resources of fixed names and contents. Compiled only with the
//! feature `conformance`, for `scripts/conformance.sh`; a binary that is shipped has none of it. The suite's names and texts are the suite's.
//! Deliberately absent: the house. Nothing here can touch a stack.
#![expect(deprecated, reason = "the suite asks for what the protocol gave up, too")]

mod inputs;
mod tasks;

pub use tasks::TASKS;

use crate::adapters::Doors;
use crate::adapters::changes::Change;
use rmcp::model::*;
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const IMAGE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg==";
const AUDIO: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=";

type Called = Result<CallToolResponse, ErrorData>;

fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(map) => map,
        _ => JsonObject::new(),
    }
}

/// Name, description and the properties of its arguments.
const SIMPLE: &[(&str, &str)] = &[
    ("test_simple_text", "Returns text"),
    ("test_image_content", "Returns an image"),
    ("test_audio_content", "Returns audio"),
    ("test_embedded_resource", "Returns an embedded resource"),
    ("test_multiple_content_types", "Returns several contents"),
    ("test_tool_with_logging", "Logs while it runs"),
    ("test_error_handling", "Always fails"),
    ("test_tool_with_progress", "Reports progress"),
    ("test_elicitation_sep1034_defaults", "Asks with defaults"),
    ("test_elicitation_sep1330_enums", "Asks with enumerations"),
    ("test_reconnection", "Takes a moment"),
    ("test_trigger_tool_change", "Tells of a change of tools"),
    ("test_trigger_prompt_change", "Tells of a change of prompts"),
    ("test_missing_capability", "Needs sampling"),
    ("test_streaming_elicitation", "Asks by result"),
    ("test_logging_tool", "Logs when asked to"),
];

fn with_schema() -> Vec<Tool> {
    let text = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]});
    let header = json!({"type": "object", "properties": {"value": {"type": "string", "x-mcp-header": "Value"}}, "required": ["value"]});
    let draft = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {"$anchor": "address", "type": "object",
                              "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
        "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
        "allOf": [{"anyOf": [{"required": ["name"]}, {"required": ["address"]}]}],
        "if": {"required": ["address"]},
        "then": {"properties": {"address": {"required": ["street"]}}},
        "else": {"required": ["name"]},
        "additionalProperties": false
    });
    vec![
        Tool::new("test_sampling", "Asks the client's model", object(text("prompt"))),
        Tool::new("test_elicitation", "Asks the client's user", object(text("message"))),
        Tool::new("json_schema_2020_12_tool", "Has a schema of draft 2020-12", object(draft)),
        Tool::new("test_custom_header", "Has a parameter that goes into a header", object(header)),
    ]
}

/// Every tool of the suite.
pub fn tools() -> Vec<Tool> {
    let bare = |(name, description): &(&'static str, &'static str)| {
        Tool::new(*name, *description, object(json!({"type": "object", "properties": {}})))
    };
    SIMPLE.iter().chain(inputs::TOOLS).map(bare).chain(with_schema()).chain(tasks::tools()).collect()
}

/// Whether a name is one of them.
pub fn has_tool(name: &str) -> bool {
    tools().iter().any(|t| t.name == name)
}

fn said(text: impl Into<String>) -> Called {
    Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
}

/// Answers a call of one of them.
pub async fn call_tool(doors: &Arc<Doors>, request: CallToolRequestParams, context: &RequestContext<RoleServer>) -> Called {
    if inputs::TOOLS.iter().any(|(name, _)| request.name == *name) {
        return inputs::call(&request, &context.meta);
    }
    if tasks::tools().iter().any(|t| t.name == request.name) {
        return tasks::call(request, context).await;
    }
    let arguments = request.arguments.unwrap_or_default();
    let argument = |name: &str| arguments.get(name).and_then(Value::as_str);
    let embedded = |uri: &str, mime: &str, text: &str| ContentBlock::resource(ResourceContents::text(text, uri).with_mime_type(mime));
    match request.name.as_ref() {
        "test_simple_text" => said("This is a simple text response for testing."),
        "test_image_content" => Ok(CallToolResult::success(vec![ContentBlock::image(IMAGE, "image/png")]).into()),
        "test_audio_content" => Ok(CallToolResult::success(vec![ContentBlock::Audio(AudioContent::new(AUDIO, "audio/wav"))]).into()),
        "test_embedded_resource" => {
            let content = embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.");
            Ok(CallToolResult::success(vec![content]).into())
        }
        "test_multiple_content_types" => {
            let content = vec![
                ContentBlock::text("Multiple content types test:"),
                ContentBlock::image(IMAGE, "image/png"),
                embedded("test://mixed-content-resource", "application/json", r#"{"test":"data","value":123}"#),
            ];
            Ok(CallToolResult::success(content).into())
        }
        "test_tool_with_logging" => {
            for line in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
                log(context, LoggingLevel::Info, line).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            said("Logging test completed")
        }
        "test_logging_tool" => {
            if let Some(level) = context.meta.log_level() {
                log(context, level, "logLevel was requested").await?;
            }
            said("Logging tool completed")
        }
        "test_error_handling" => {
            Ok(CallToolResult::error(vec![ContentBlock::text("This tool intentionally returns an error for testing")]).into())
        }
        "test_tool_with_progress" => {
            let (sender, lines) = tokio::sync::mpsc::channel(8);
            let call = async move {
                for (percent, message) in [(0.0, "Starting"), (50.0, "Halfway"), (100.0, "Complete")] {
                    sender.send((percent, message.to_owned())).await.ok();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(crate::call::dispatch::Reply::new(json!({}), "Progress test completed"))
            };
            // By the same way as the progress of a deploy.
            let reply = match context.meta.get_progress_token() {
                Some(token) => super::reply::with_progress(call, lines, &context.peer, token).await,
                None => call.await,
            };
            said(reply.map_or_else(|e| e.to_string(), |r| r.text))
        }
        "test_custom_header" => said(argument("value").unwrap_or_default()),
        "test_sampling" => inputs::sample(context, argument("prompt").unwrap_or("Hello")).await,
        "test_elicitation" => inputs::elicit(context, argument("message").unwrap_or("Please answer"), inputs::person()).await,
        "test_elicitation_sep1034_defaults" => inputs::elicit(context, "All of these have defaults", inputs::defaults()).await,
        "test_elicitation_sep1330_enums" => inputs::elicit(context, "Choose", inputs::enums()).await,
        "json_schema_2020_12_tool" => said(format!("Hello, {}!", argument("name").unwrap_or("world"))),
        "test_reconnection" => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            said("Reconnection test completed")
        }
        "test_trigger_tool_change" | "test_trigger_prompt_change" => {
            doors.changes.tell(Change::Rules);
            said("told")
        }
        "test_missing_capability" => {
            if context.meta.client_capabilities().unwrap_or_default().sampling.is_none() {
                let needed = ClientCapabilities::builder().enable_sampling().build();
                return Err(ErrorData::missing_required_client_capability(needed));
            }
            said("Required capability declared")
        }
        "test_streaming_elicitation" => {
            Ok(InputRequiredResult::from_input_requests([inputs::question("streaming_elicitation", "Provide a value", "value")].into())
                .into())
        }
        other => Err(ErrorData::invalid_params(format!("there is no tool {other}"), None)),
    }
}

async fn log(context: &RequestContext<RoleServer>, level: LoggingLevel, text: &str) -> Result<(), ErrorData> {
    let line = LoggingMessageNotificationParam::new(level, json!(text)).with_logger("conformance");
    context.peer.notify_logging_message(line).await.map_err(|e| ErrorData::internal_error(e.to_string(), None))
}

/// Resources of the suite.
pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("test://static-text", "Static text").with_description("A fixed text").with_mime_type("text/plain"),
        Resource::new("test://static-binary", "Static binary").with_description("A fixed image").with_mime_type("image/png"),
    ]
}

/// Templates of the suite.
pub fn templates() -> Vec<ResourceTemplate> {
    vec![ResourceTemplate::new("test://template/{id}/data", "Template").with_description("By id").with_mime_type("application/json")]
}

/// Content of one of them.
pub fn read(uri: &str) -> Option<ReadResourceResult> {
    let content = match uri {
        "test://static-text" | "test://watched-resource" => ResourceContents::text("This is the content of the static text resource.", uri),
        "test://static-binary" => ResourceContents::blob(IMAGE, uri).with_mime_type("image/png"),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let text = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
            ResourceContents::text(text.to_string(), uri).with_mime_type("application/json")
        }
    };
    Some(ReadResourceResult::new(vec![content]).with_ttl_ms(60_000).with_cache_scope(CacheScope::Public))
}

/// Prompts of the suite.
pub fn prompts() -> Vec<Prompt> {
    let bare = |name: &str| Prompt::new(name, Some("A prompt of the suite"), None);
    let argument = |name: &str| PromptArgument::new(name).with_description("An argument").with_required(true);
    let with = Prompt::new("test_prompt_with_arguments", Some("With arguments"), Some(vec![argument("arg1"), argument("arg2")]));
    let names = ["test_simple_prompt", "test_prompt_with_embedded_resource", "test_prompt_with_image", "test_input_required_result_prompt"];
    names.into_iter().map(bare).chain([with]).collect()
}

/// Text of one of them; `None` when the name is not of the suite.
pub fn get_prompt(request: &GetPromptRequestParams) -> Option<Result<GetPromptResponse, ErrorData>> {
    let say = |text: String| PromptMessage::new_text(Role::User, text);
    let messages = match request.name.as_str() {
        "test_simple_prompt" => vec![say("This is a simple prompt for testing.".into())],
        "test_prompt_with_arguments" => {
            let value = |name: &str| request.arguments.as_ref().and_then(|a| a.get(name)).and_then(Value::as_str).unwrap_or_default();
            vec![say(format!("Prompt with arguments: arg1='{}', arg2='{}'", value("arg1"), value("arg2")))]
        }
        "test_prompt_with_embedded_resource" => {
            let uri = request.arguments.as_ref().and_then(|a| a.get("resourceUri")).and_then(Value::as_str).unwrap_or("test://static-text");
            let resource = ResourceContents::text("Embedded resource content for testing.", uri);
            vec![
                PromptMessage::new(Role::User, ContentBlock::resource(resource)),
                say("Please process the embedded resource above.".into()),
            ]
        }
        "test_prompt_with_image" => {
            vec![PromptMessage::new(Role::User, ContentBlock::image(IMAGE, "image/png")), say("Please analyze the image above.".into())]
        }
        "test_input_required_result_prompt" => return Some(Ok(inputs::prompt(request))),
        _ => return None,
    };
    Some(Ok(GetPromptResult::new(messages).with_description("A prompt of the suite").into()))
}

/// Completion of the suite's prompts and templates; `None` when it is another's.
pub fn complete(request: &CompleteRequestParams) -> Option<CompletionInfo> {
    let ours = match &request.r#ref {
        Reference::Prompt(p) => p.name.starts_with("test_"),
        Reference::Resource(r) => r.uri.starts_with("test://"),
        _ => false,
    };
    let values = ["paris", "park", "party"].iter().filter(|v| v.starts_with(&request.argument.value)).map(|v| (*v).to_owned());
    ours.then(|| CompletionInfo::with_all_values(values.collect()).unwrap_or_default())
}
