//! `memory_write`: a note of the calling agent to itself, kept across sessions and crashes.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError, taint};
use crate::gate::Permit;
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest key in bytes.
const MAX_KEY: usize = 200;
/// Follows the agent's name as the source of a note that repeats untrusted output.
const FROM_OTHERS: &str = ", from untrusted output";
/// Largest value as JSON, in bytes: a note, not a file.
const MAX_VALUE: usize = 32 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Key, at most 200 bytes.
    key: String,
    /// Any JSON up to 32 KiB; null removes the key. No secrets.
    #[schemars(schema_with = "note")]
    value: Value,
}

/// Forms a note usually has. Any other is taken too: a schema that says nothing would tell as much, but clients warn of a tool that has one.
fn note(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"anyOf": [
        {"type": "string"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "object", "additionalProperties": true},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "object", "additionalProperties": true}]}},
    ]})
}

/// The input's schema, with the null that removes a key: elsewhere a null only means that a field may be left out, and is dropped.
fn input_schema() -> Value {
    let mut schema = schema::input::<Input>();
    let forms = schema["properties"]["value"]["anyOf"].as_array_mut().expect("note() lists forms");
    forms.push(serde_json::json!({"type": "null"}));
    schema
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    key: String,
    seq: i64,
}

pub(super) struct MemoryWrite;

impl Verb for MemoryWrite {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "memory_write",
        title: "Write own memory",
        description: "Keeps a note under a key for your later sessions; the old value stays in the history.",
        effect: Effect::Write,
        idempotent: true,
        input_schema,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        let refused = |field, message: String| {
            Err(CallError::new(ErrorCode::InvalidArgument, message, "keep notes short; split a long one over several keys").field(field))
        };
        if input.key.is_empty() || input.key.len() > MAX_KEY || input.key.chars().any(char::is_control) {
            return refused("key", format!("a key has 1 to {MAX_KEY} bytes and no control characters"));
        }
        match input.value.to_string().len() {
            size if size > MAX_VALUE => refused("value", format!("the value has {size} bytes, at most {MAX_VALUE} are kept")),
            _ => Ok(Scope::default()),
        }
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let mut value = input.value;
        crate::redact::reply(&mut value);
        let limits = call.rulebook.agents.get(call.who.agent.as_str()).map(|a| a.limits.clone()).unwrap_or_default();
        let (most, _) = call.house.config.settings.memory.of(&limits);
        let me = &call.who.agent;
        // In a later session it would read as the agent's own words.
        let others = taint::of_others(call, &json!([input.key, value])).await?;
        let source = if others { format!("{me}{FROM_OTHERS}") } else { me.to_string() };
        let seq = call.house.store.memory_write_as(me, &source, &input.key, &value, most, call.now).await?;
        Ok(Output { key: input.key, seq })
    }

    fn text(o: &Output) -> Option<String> {
        Some(format!("remembered {} (event {})", o.key, o.seq))
    }
}
