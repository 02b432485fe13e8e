//! JSON Schemas of inputs and outputs in the form every MCP client reads: root `type: object`, nothing by reference, no type arrays, no root combinators;
//! outputs are shallow and terse, since each schema is paid for in every client's context. Deliberately absent: what any tool's fields are.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Levels of properties an output schema spells out; below it an object is just an object.
const OUTPUT_DEPTH: usize = 1;

/// An object whose fields another tool's schema, or its own names, tell: spelling a record out in every tool that shows it would be paid for in every context.
pub(super) type Row = Map<String, Value>;

/// Schema of a tool's arguments.
pub(super) fn input<T: JsonSchema>() -> Value {
    let mut schema = generate::<T>(SchemaSettings::draft2020_12());
    simplify(&mut schema, false);
    finish(schema)
}

/// Schema of a tool's structured content. Nothing of it is required: an error has structured content of its own, and clients check that too
/// (TypeScript SDK 1.x).
pub(super) fn output<T: JsonSchema>() -> Value {
    let mut schema = generate::<T>(SchemaSettings::draft2020_12().for_serialize());
    simplify(&mut schema, true);
    prune(&mut schema, 0);
    let mut schema = finish(schema);
    schema.as_object_mut().expect("a type of ours is an object").remove("required");
    schema
}

/// Schema of the structured content of a tool that may answer `state: pending_approval` instead: the two fields of that answer are there.
pub(super) fn approvable<T: JsonSchema>() -> Value {
    let mut schema = output::<T>();
    let root = schema.as_object_mut().expect("finish() made it an object");
    let properties = root["properties"].as_object_mut().expect("finish() gave it properties");
    properties.entry("state").or_insert_with(|| json!({"type": "string"}));
    let other = properties.insert("approval".into(), json!({"type": "object"}));
    debug_assert!(other.is_none(), "a field of the tool's own would contradict it");
    schema
}

fn generate<T: JsonSchema>(mut settings: SchemaSettings) -> Value {
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn finish(mut schema: Value) -> Value {
    if let Some(root) = schema.as_object_mut() {
        for key in ["$schema", "title", "description", "$defs"] {
            root.remove(key);
        }
        root.entry("properties").or_insert_with(|| json!({}));
    }
    schema
}

/// Nullable becomes optional, number formats no validator knows go, and `terse` drops the words.
fn simplify(schema: &mut Value, terse: bool) {
    match schema {
        Value::Object(map) => {
            nullable(map);
            map.remove("default");
            // Which fields tell a repeated call is the line's matter.
            map.remove("writeOnly");
            // Said by the parser where it matters, and paid for at every number.
            if map.get("minimum").is_some_and(|m| m == 0) {
                map.remove("minimum");
            }
            if map.get("format").and_then(Value::as_str).is_some_and(|f| f != "date-time") {
                map.remove("format");
            }
            if terse {
                for key in ["format", "minimum", "maximum", "description"] {
                    map.remove(key);
                }
                constants(map);
                // The words of a state are in the tool's description, where a model reads them; here they would be paid for twice.
                map.remove("enum");
            }
            for (key, child) in map.iter_mut() {
                if key == "properties" {
                    // The names below are fields, not keywords: a field called `description` must stay.
                    child.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(|c| simplify(c, terse));
                } else if key != "enum" && key != "const" && key != "required" {
                    simplify(child, terse);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|i| simplify(i, terse)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `type: [x, null]` and `anyOf: [x, null]` become `x`.
fn nullable(map: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|t| t != "null");
        if types.len() == 1 {
            let only = types.remove(0);
            map.insert("type".into(), only);
        }
    }
    let Some(Value::Array(options)) = map.get_mut("anyOf") else { return };
    options.retain(|o| o.get("type").is_none_or(|t| t != "null"));
    if options.len() == 1 {
        let Value::Object(only) = options.remove(0) else { return };
        map.remove("anyOf");
        for (key, value) in only {
            map.entry(key).or_insert(value);
        }
        nullable(map);
    }
}

/// `oneOf` of documented constants becomes a plain `enum`.
fn constants(map: &mut Map<String, Value>) {
    let Some(Value::Array(options)) = map.get("oneOf") else { return };
    let mut names = vec![];
    for option in options {
        match (option.get("const"), option.get("enum")) {
            (Some(name), _) => names.push(name.clone()),
            (None, Some(Value::Array(more))) => names.extend(more.iter().cloned()),
            _ => return,
        }
    }
    map.remove("oneOf");
    map.insert("type".into(), json!("string"));
    map.insert("enum".into(), Value::Array(names));
}

/// Cuts an output schema below [`OUTPUT_DEPTH`].
fn prune(schema: &mut Value, depth: usize) {
    let Value::Object(map) = schema else { return };
    if depth >= OUTPUT_DEPTH && map.contains_key("properties") {
        map.retain(|key, _| key == "type");
        return;
    }
    for child in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        prune(child, depth + 1);
    }
    if let Some(items) = map.get_mut("items") {
        prune(items, depth);
    }
}
