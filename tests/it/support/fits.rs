//! Whether a tool's structured content is what its output schema says: `type`, `required`, `properties`, `items`, `additionalProperties`, `anyOf` and `oneOf`,
//! which is all that our schemas have. Clients check the same, and take a reply that does not fit for a broken server.

use serde_json::Value;

/// What does not fit, by path; nothing when all does.
pub fn misfits(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = vec![];
    walk(schema, value, "", &mut found);
    found
}

fn walk(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(kind) = schema["type"].as_str() {
        let is = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "null" => value.is_null(),
            other => panic!("{path}: a schema with type {other}"),
        };
        if !is {
            found.push(format!("{path} is no {kind}: {value}"));
            return;
        }
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = schema[key].as_array()
            && !options.iter().any(|option| misfits(option, value).is_empty())
        {
            found.push(format!("{path} is none of {key}: {value}"));
        }
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    found.extend(required.filter(|name| value.get(name).is_none()).map(|name| format!("{path} has no {name}")));
    for (name, part) in value.as_object().into_iter().flatten() {
        let at = format!("{path}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(inner), _) => walk(inner, part, &at, found),
            (None, Value::Bool(false)) => found.push(format!("{at} is not in the schema")),
            (None, other) if other.is_object() => walk(other, part, &at, found),
            (None, _) => {}
        }
    }
    if schema["items"].is_object() {
        for (n, item) in value.as_array().into_iter().flatten().enumerate() {
            walk(&schema["items"], item, &format!("{path}[{n}]"), found);
        }
    }
}
