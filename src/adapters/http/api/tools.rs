//! Tools as requests: reads under names of their own, and every tool by `POST /api/tools/NAME`. Paths, parameters and schemas come from the
//! catalogue, so that what is described is what is taken. Deliberately absent: knowledge of any single tool beyond the table.

use super::{Answer, Part, Who};
use crate::adapters::Doors;
use crate::tools::{ToolSpec, catalogue};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, RawPathParams, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Reads with a path of their own: parameters in braces are arguments of the tool, the others come from the query.
const READS: &[(&str, &str)] = &[
    ("/api/stacks", "status"),
    ("/api/stacks/{stack}", "status"),
    ("/api/stacks/{stack}/health", "health"),
    ("/api/stacks/{stack}/logs", "logs"),
    ("/api/stacks/{stack}/stats", "stats"),
    ("/api/stacks/{stack}/diagnose", "diagnose"),
    ("/api/stacks/{stack}/releases", "history"),
    ("/api/stacks/{stack}/releases/{release}", "history"),
    ("/api/operations", "operation"),
    ("/api/operations/{operation_id}", "operation"),
    ("/api/backups", "backups"),
    ("/api/audit", "audit"),
    ("/api/agents", "agents"),
    ("/api/agents/{agent}", "agents"),
];

/// The part.
pub(super) fn part() -> Part {
    let mut router = Router::new().route("/api/tools/{tool}", post(call));
    let mut paths = Map::new();
    for &(path, name) in READS {
        let read = move |State(doors): State<Arc<Doors>>,
                         who: Who,
                         given: RawPathParams,
                         query: Result<Query<Vec<(String, String)>>, QueryRejection>| async move {
            let Query(query) = query?;
            let given = given.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).chain(query).collect();
            who.call(&doors, name, arguments(spec(name), given)).await
        };
        router = router.route(path, get(read));
        paths.insert(path.into(), json!({"get": described(path, spec(name))}));
    }
    for tool in catalogue() {
        paths.insert(format!("/api/tools/{}", tool.name), json!({"post": call_described(tool)}));
    }
    Part { router, docs: utoipa::openapi::OpenApi::default(), paths }
}

fn spec(name: &str) -> &'static ToolSpec {
    catalogue().iter().copied().find(|t| t.name == name).expect("the table names tools of the catalogue; a test reads it")
}

async fn call(
    State(doors): State<Arc<Doors>>,
    who: Who,
    tool: Result<Path<String>, PathRejection>,
    input: Result<Json<Value>, JsonRejection>,
) -> Answer {
    let Path(tool) = tool?;
    let Json(input) = input?;
    who.call(&doors, &tool, input).await
}

/// Text of a path or query as the arguments a tool takes. What does not fit stays text, for the tool to refuse in its own words.
fn arguments(tool: &ToolSpec, given: Vec<(String, String)>) -> Value {
    let schema = (tool.input_schema)();
    let mut arguments = Map::new();
    for (name, text) in given {
        let kind = schema["properties"][&name]["type"].as_str().unwrap_or("string");
        let value = match kind {
            "integer" | "number" | "boolean" => serde_json::from_str(&text).ok().filter(|v: &Value| !v.is_string()),
            "array" => Some(json!(text.split(',').collect::<Vec<_>>())),
            _ => None,
        };
        let value = value.unwrap_or(Value::String(text));
        match (arguments.get_mut(&name), value) {
            (None, value) => drop(arguments.insert(name, value)),
            (Some(Value::Array(there)), Value::Array(more)) => there.extend(more),
            // Given twice: which of them was meant is not ours to choose.
            (Some(there), value) => *there = json!([there.take(), value]),
        }
    }
    Value::Object(arguments)
}

fn described(path: &str, tool: &ToolSpec) -> Value {
    let schema = (tool.input_schema)();
    let empty = Map::new();
    let parameter = |(name, schema): (&String, &Value)| {
        let inside = path.contains(&format!("{{{name}}}"));
        let mut schema = schema.clone();
        let about = schema.as_object_mut().and_then(|s| s.remove("description"));
        let mut parameter = json!({"name": name, "in": if inside { "path" } else { "query" }, "required": inside, "schema": schema});
        if let Some(about) = about {
            parameter["description"] = about;
        }
        parameter
    };
    let parameters: Vec<Value> = schema["properties"].as_object().unwrap_or(&empty).iter().map(parameter).collect();
    let id = path.trim_start_matches("/api/").replace(['{', '}'], "").replace('/', "_");
    json!({"tags": ["read"], "operationId": format!("get_{id}"), "summary": tool.title, "description": tool.description,
           "parameters": parameters, "responses": responses(tool)})
}

fn call_described(tool: &ToolSpec) -> Value {
    let body = json!({"required": true, "content": {"application/json": {"schema": (tool.input_schema)()}}});
    json!({"tags": ["tools"], "operationId": format!("call_{}", tool.name), "summary": tool.title, "description": tool.description,
           "requestBody": body, "responses": responses(tool)})
}

fn responses(tool: &ToolSpec) -> Value {
    let error = json!({"description": "cause and what to do next", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}});
    json!({"200": {"description": "done", "content": {"application/json": {"schema": (tool.output_schema)()}}},
           "202": {"description": "waits for an operator: see `approval`"}, "default": error})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_names_a_tool_that_reads_and_arguments_it_has() {
        for (path, name) in READS {
            let tool = spec(name);
            assert_eq!(tool.effect, crate::tools::Effect::Read, "{path}");
            let schema = (tool.input_schema)();
            for inside in path.split('{').skip(1).map(|rest| rest.split('}').next().expect("closed")) {
                assert!(schema["properties"][inside].is_object(), "{path}: {name} has no {inside}");
            }
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                assert!(path.contains(&format!("{{{required}}}")), "{path}: {name} needs {required}");
            }
        }
    }

    #[test]
    fn text_becomes_what_the_schema_says_and_what_does_not_fit_is_left_to_the_tool() {
        let given =
            |pairs: &[(&str, &str)]| arguments(spec("history"), pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        assert_eq!(given(&[("stack", "007"), ("release", "7")]), json!({"stack": "007", "release": 7}));
        assert_eq!(given(&[("release", "seven"), ("nosuch", "1")]), json!({"release": "seven", "nosuch": "1"}));
        assert_eq!(given(&[("release", "1"), ("release", "2")]), json!({"release": [1, 2]}));
    }
}
