//! The catalogue as clients see it: forms that every MCP client reads, texts short enough, one snapshot per tool.

use super::*;
use serde_json::json;

#[path = "../../tests/it/support/fits.rs"]
mod fits;

/// Every reply that a test gets from the line passes here: clients refuse a success that does not fit its schema, and the model is told that it failed.
pub(crate) fn assert_fits(tool: &str, value: &Value) {
    let spec = catalogue().iter().find(|t| t.name == tool).expect("a tool that answered");
    let misfits = fits::misfits(&(spec.output_schema)(), value);
    assert!(misfits.is_empty(), "{tool}: {misfits:?}");
}

#[test]
fn what_does_not_fit_a_schema_is_found() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "object"}, "b": {"items": {"type": "integer"}}}});
    assert_eq!(fits::misfits(&schema, &json!({"a": {}, "b": [1], "c": 1})), Vec::<String>::new());
    for wrong in [json!({"a": "ap-1"}), json!({}), json!({"a": {}, "b": [1.5]}), json!([])] {
        assert_eq!(fits::misfits(&schema, &wrong).len(), 1, "{wrong}");
    }
}

#[test]
fn an_error_and_a_question_to_an_operator_fit_every_schema_they_are_answered_under() {
    let error = json!({"error": {"code": "not_found", "message": "m", "hint": "h", "field": "stack"}});
    let pending = json!({"state": "pending_approval", "approval": {"approval_id": "ap-1", "digest": "d"}, "how": "h"});
    for spec in catalogue() {
        assert_fits(spec.name, &error);
        if spec.effect != Effect::Read {
            assert_fits(spec.name, &pending);
        }
    }
}

/// A strict client makes only what a schema allows: what the description offers must be among it.
#[test]
fn memory_write_takes_null_and_any_other_json() {
    let schema = (find("memory_write").expect("a tool").spec().input_schema)();
    for value in [json!(null), json!("a"), json!(1), json!(true), json!({"a": [1]}), json!([{"a": 1}, 2, "b"])] {
        assert_eq!(fits::misfits(&schema, &json!({"key": "k", "value": value})), Vec::<String>::new());
    }
}

/// Every schema inside a schema, with its path.
fn walk<'a>(schema: &'a Value, path: String, seen: &mut Vec<(String, &'a Value)>) {
    let Some(map) = schema.as_object() else { return };
    seen.push((path.clone(), schema));
    for (key, child) in map {
        let at = format!("{path}.{key}");
        match key.as_str() {
            "properties" => child.as_object().into_iter().flatten().for_each(|(name, c)| walk(c, format!("{at}.{name}"), seen)),
            "items" | "additionalProperties" => walk(child, at, seen),
            "oneOf" | "anyOf" | "allOf" => child.as_array().into_iter().flatten().for_each(|c| walk(c, at.clone(), seen)),
            _ => {}
        }
    }
}

#[test]
fn schemas_have_the_form_every_client_reads() {
    for spec in catalogue() {
        for (which, schema) in [("input", (spec.input_schema)()), ("output", (spec.output_schema)())] {
            let name = format!("{} {which}", spec.name);
            assert_eq!(schema["type"], "object", "{name}");
            assert!(schema["properties"].is_object(), "{name}");
            for combinator in ["oneOf", "anyOf", "allOf"] {
                assert!(schema.get(combinator).is_none(), "{name}: {combinator} at the root");
            }
            let text = schema.to_string();
            assert!(!text.contains("\"$ref\"") && !text.contains("\"$defs\""), "{name}: references in {text}");
            let mut seen = vec![];
            walk(&schema, name.clone(), &mut seen);
            for (path, part) in seen {
                assert!(!part["type"].is_array(), "{path}: several types");
                let bare = part["enum"].as_array().is_some() && which == "input";
                assert!(!bare, "{path}: variants without description in {part}");
            }
            if which == "input" {
                assert_eq!(schema["additionalProperties"], json!(false), "{name}: unknown fields must be refused");
            }
        }
    }
}

/// The bundle for desktop clients shows tools before anything runs: what it shows must be what there is.
#[test]
fn the_bundles_manifest_lists_the_catalogue() {
    let manifest: Value = serde_json::from_str(include_str!("../../mcpb/manifest.json")).expect("JSON");
    for required in ["manifest_version", "name", "version", "description", "author", "server"] {
        assert!(!manifest[required].is_null(), "{required} is required by the specification");
    }
    assert_eq!((manifest["manifest_version"].as_str(), manifest["version"].as_str()), (Some("0.3"), Some(env!("CARGO_PKG_VERSION"))));
    let server = &manifest["server"];
    assert_eq!(server["type"], "binary");
    let entry = server["entry_point"].as_str().expect("a path");
    assert_eq!(server["mcp_config"]["command"], format!("${{__dirname}}/{entry}"));
    // Every value a user gives is asked for, and only those are used.
    let text = server.to_string();
    let used: std::collections::BTreeSet<&str> =
        text.split("${user_config.").skip(1).map(|rest| rest.split('}').next().expect("closed")).collect();
    assert_eq!(used, manifest["user_config"].as_object().expect("an object").keys().map(String::as_str).collect());
    let tools: Vec<Value> = catalogue().iter().map(|t| json!({"name": t.name, "description": t.description})).collect();
    let expected = serde_json::to_string_pretty(&tools).expect("JSON");
    assert_eq!(manifest["tools"], json!(tools), "`tools` of mcpb/manifest.json must be:\n{expected}");
}

#[test]
fn each_tool_is_sorted_described_and_short() {
    let names: Vec<_> = catalogue().iter().map(|s| s.name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(names, sorted);
    for spec in catalogue() {
        assert!(!spec.title.is_empty() && spec.description.len() <= 300, "{}: {} characters", spec.name, spec.description.len());
    }
    // About four characters a token: all tools stay under 9,000.
    let all: usize = catalogue()
        .iter()
        .map(|s| s.description.len() + (s.input_schema)().to_string().len() + (s.output_schema)().to_string().len() + 120)
        .sum();
    assert!(all < 36_000, "the catalogue has {all} characters");
}

#[test]
fn schemas_do_not_change_unnoticed() {
    for spec in catalogue() {
        let shown = json!({"description": spec.description, "input": (spec.input_schema)(), "output": (spec.output_schema)()});
        insta::assert_json_snapshot!(spec.name, shown);
    }
}

#[test]
fn a_wrong_argument_is_named_with_cause_and_hint() {
    let refused = |tool: &str, input: Value| find(tool).expect("a tool").parse(input).err().expect("refused");
    let unknown = refused("restart", json!({"stack": "shop", "servce": "web"}));
    assert_eq!(unknown.field.as_deref(), Some("servce"));
    assert!(unknown.message.contains("unknown field `servce`"), "{unknown}");
    assert_eq!(unknown.hint, "did you mean service? it takes stack, service, recreate, wait, timeout_s, idempotency_key");
    let missing = refused("restart", json!({}));
    assert_eq!(
        (missing.field.as_deref(), missing.hint.as_str()),
        (Some("stack"), "add stack; it takes stack, service, recreate, wait, timeout_s, idempotency_key")
    );
    let wrong = refused("restart", json!({"stack": "../x"}));
    assert_eq!(wrong.field.as_deref(), Some("stack"));
    assert!(wrong.message.contains("invalid stack"), "{wrong}");
}

#[test]
fn an_unknown_tool_gets_the_nearest_names() {
    let e = find("deplyo").err().expect("unknown");
    assert_eq!((e.code, e.hint.as_str()), (ErrorCode::UnknownTool, "did you mean deploy?"));
    assert!(find("zzzz").err().expect("unknown").hint.starts_with("the tools are agents, approval"));
}

/// A value that is one of these is masked nowhere: who declares it a secret must not blind those who read replies.
#[test]
fn the_filter_of_what_leaves_knows_every_word_of_the_house() {
    let mut words: std::collections::BTreeSet<String> = crate::gate::rules::RULES.iter().map(|r| r.id.to_owned()).collect();
    for spec in catalogue() {
        words.insert(spec.name.to_owned());
        for schema in [(spec.input_schema)(), (spec.output_schema)()] {
            let mut seen = vec![];
            walk(&schema, String::new(), &mut seen);
            for (_, part) in seen {
                words.extend(part["properties"].as_object().into_iter().flatten().map(|(k, _)| k.clone()));
                words.extend(
                    part["enum"].as_array().into_iter().flatten().chain(part.get("const")).filter_map(|w| w.as_str().map(str::to_owned)),
                );
            }
        }
    }
    assert!(words.len() > 200 && words.contains("operation_id"), "{words:?}");
    words.insert("pending_approval".to_owned());
    words.retain(|w| crate::redact::declared::could_be_masked(w));
    assert!(words.is_empty(), "add these to src/redact/words.txt: {words:?}");
}
