//! Conditions of rules over a call's arguments: what they mean, and which could never hold. Compared are the arguments as the caller wrote them; one that
//! was left out is absent, whatever the tool takes instead. A call that carries out a stored plan has the arguments the plan was made with, too. Pure. Deliberately absent: expressions; the set of conditions is closed.

use super::{ToolFacts, glob};
use crate::model::agent::{ArgCondition, Rule};
use serde_json::{Map, Value};

/// What names a stack, an environment or a service has keys of its own in a rule: those hold for calls that name it in another way, too.
const OWN_KEYS: &[(&str, &str)] = &[("stack", "stacks"), ("environment", "environments"), ("service", "services")];

/// Whether all conditions of a rule hold for a call's arguments.
pub fn fit(rule: &Rule, arguments: &Value) -> bool {
    unmet(rule, arguments).is_none()
}

/// The first condition that does not hold, in words.
pub fn unmet(rule: &Rule, arguments: &Value) -> Option<String> {
    rule.args.iter().find(|(path, c)| !holds(c, at(arguments, path))).map(|(path, c)| format!("{path} {}", in_words(c)))
}

/// The condition as a person reads it.
pub fn in_words(c: &ArgCondition) -> String {
    match c {
        ArgCondition { equals: Some(v), .. } => format!("= {v}"),
        ArgCondition { one_of: Some(all), .. } => format!("one of {}", Value::Array(all.clone())),
        ArgCondition { glob: Some(pattern), .. } => format!("like {pattern:?}"),
        ArgCondition { absent: Some(absent), .. } => if *absent { "left out" } else { "given" }.to_owned(),
        ArgCondition { min, max, .. } => {
            let bound = |word: &str, n: &Option<f64>| n.map(|n| format!("{word} {n}"));
            [bound("at least", min), bound("at most", max)].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    }
}

/// Parts of a path: `/a/b` is a JSON pointer, `a.b` the same with dots.
fn parts(path: &str) -> Vec<String> {
    match path.strip_prefix('/') {
        Some(pointer) => pointer.split('/').map(|p| p.replace("~1", "/").replace("~0", "~")).collect(),
        None => path.split('.').map(str::to_owned).collect(),
    }
}

/// The value at a path; `null` is as good as none.
fn at<'a>(arguments: &'a Value, path: &str) -> Option<&'a Value> {
    let found = parts(path).iter().try_fold(arguments, |v, part| v.as_object()?.get(part.as_str()))?;
    (!found.is_null()).then_some(found)
}

fn holds(c: &ArgCondition, value: Option<&Value>) -> bool {
    if let Some(absent) = c.absent {
        return absent == value.is_none();
    }
    let Some(value) = value else { return false };
    if let Some(n) = value.as_f64().filter(|_| c.min.is_some() || c.max.is_some()) {
        return c.min.is_none_or(|min| n >= min) && c.max.is_none_or(|max| n <= max);
    }
    c.equals.as_ref().is_some_and(|e| same(e, value))
        || c.one_of.as_ref().is_some_and(|all| all.iter().any(|e| same(e, value)))
        || c.glob.as_deref().is_some_and(|p| value.as_str().is_some_and(|v| glob::matches(p, v)))
}

/// Equal; numbers by value, so that 3 and 3.0 are one.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => a == b || (x == y && (!a.is_u64() || !b.is_u64())),
        _ => a == b,
    }
}

/// Everything wrong with a rule's conditions, as problem and hint: contradictions, and what the tools it names could never be called with.
pub(super) fn check(rule: &Rule, tools: &[ToolFacts]) -> Vec<(String, String)> {
    let mut out = vec![];
    let mut seen: Vec<Vec<String>> = vec![];
    for (path, condition) in &rule.args {
        let named = parts(path);
        if seen.contains(&named) {
            out.push((format!("args names {path:?} twice"), "keep one spelling, with dots or as a JSON pointer".into()));
        }
        if let Some((_, key)) = OWN_KEYS.iter().find(|(own, _)| named == [*own]) {
            out.push((
                format!("args names {path:?}, which has the key {key}"),
                format!("write `{key}:` instead; it holds however a call names it"),
            ));
            continue;
        }
        seen.push(named);
        if let Some(problem) = contradiction(condition) {
            out.push((format!("args.{path} {}", problem.0), problem.1.into()));
            continue;
        }
        for tool in rule.tools.iter().filter_map(|t| tools.iter().find(|f| f.name == *t)) {
            if let Some((problem, hint)) = never(tool, path, condition) {
                out.push((format!("args.{path} {problem}"), hint));
            }
        }
    }
    out
}

fn contradiction(c: &ArgCondition) -> Option<(String, &'static str)> {
    let kinds = [c.equals.is_some(), c.one_of.is_some(), c.glob.is_some(), c.min.is_some() || c.max.is_some(), c.absent.is_some()];
    let plain = |v: &Value| !matches!(v, Value::Null | Value::Array(_) | Value::Object(_));
    match kinds.iter().filter(|k| **k).count() {
        0 => return Some(("asks for nothing".into(), "one of equals, one_of, glob, min and max, absent")),
        1 => {}
        _ => return Some(("asks for several things at once".into(), "keep one of equals, one_of, glob, min and max, absent")),
    }
    if [c.min, c.max].into_iter().flatten().any(|n| !n.is_finite()) {
        return Some(("has a bound that is no number".into(), "write a number"));
    }
    if let (Some(min), Some(max)) = (c.min, c.max)
        && min > max
    {
        return Some((format!("can never match: at least {min} and at most {max}"), "swap the two"));
    }
    if c.glob.as_deref() == Some("") {
        return Some(("can never match: an empty pattern".into(), "e.g. \"ghcr.io/acme/*\""));
    }
    if c.one_of.as_ref().is_some_and(Vec::is_empty) {
        return Some(("can never match: one of nothing".into(), "list the values"));
    }
    if c.equals.iter().chain(c.one_of.iter().flatten()).any(|v| !plain(v)) {
        return Some(("compares with something that is no text, number, true or false".into(), "`absent: true` is for what is left out"));
    }
    None
}

/// Why a condition could hold for no call of a tool, or for every one.
fn never(tool: &ToolFacts, path: &str, c: &ArgCondition) -> Option<(String, String)> {
    let mut schema = &tool.input;
    let mut required = false;
    for part in parts(path) {
        let properties = schema.get("properties").and_then(Value::as_object);
        required = schema.get("required").and_then(Value::as_array).is_some_and(|r| r.iter().any(|n| n == part.as_str()));
        schema = match properties.and_then(|p| p.get(&part)).or_else(|| schema.get("additionalProperties").filter(|a| a.is_object())) {
            Some(found) => found,
            None => return Some((format!("can never match: {} has no such argument", tool.name), nearest(&part, properties))),
        };
    }
    if c.absent.is_some() {
        let word = format!("{} cannot be called without it", tool.name);
        return required.then(|| (format!("says nothing: {word}"), "take the condition out".into()));
    }
    let asked = c.equals.iter().chain(c.one_of.iter().flatten());
    let words = words(schema);
    if let Some(bad) = asked.clone().find(|v| !takes(schema, v) || words.as_ref().is_some_and(|w| !w.contains(v))) {
        let hint = words.map_or_else(|| "write a value of its type".into(), |w| format!("its values are {}", Value::Array(w)));
        return Some((format!("can never match: {} does not take {bad} there", tool.name), hint));
    }
    if let Some(pattern) = &c.glob {
        let fits = |w: &Vec<Value>| w.iter().filter_map(Value::as_str).any(|w| glob::matches(pattern, w));
        if !takes(schema, &Value::String(String::new())) || !words.as_ref().is_none_or(fits) {
            return Some((format!("can never match: {} takes no such text there", tool.name), "equals, one_of, min or max".into()));
        }
    }
    if (c.min.is_some() || c.max.is_some()) && !takes(schema, &Value::from(0)) {
        return Some((format!("can never match: {} takes no number there", tool.name), "equals, one_of or glob".into()));
    }
    None
}

/// The words a schema is limited to, when it is.
fn words(schema: &Value) -> Option<Vec<Value>> {
    if let Some(Value::Array(all)) = schema.get("enum") {
        return Some(all.clone());
    }
    if let Some(one) = schema.get("const") {
        return Some(vec![one.clone()]);
    }
    let Some(Value::Array(options)) = schema.get("oneOf").or_else(|| schema.get("anyOf")) else { return None };
    options.iter().map(words).collect::<Option<Vec<_>>>().map(|all| all.concat())
}

/// Whether a value's type is one the schema takes; a schema that says nothing takes all.
fn takes(schema: &Value, value: &Value) -> bool {
    let is = |word: &str| match word {
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => false,
    };
    match (schema.get("type"), schema.get("oneOf").or_else(|| schema.get("anyOf"))) {
        (Some(Value::String(one)), _) => is(one),
        (Some(Value::Array(all)), _) => all.iter().filter_map(Value::as_str).any(is),
        (_, Some(Value::Array(options))) => options.iter().any(|o| takes(o, value)),
        _ => true,
    }
}

/// Arguments of an example that the tool does not have.
pub(super) fn unknown<'a>(tool: &ToolFacts, args: &'a Map<String, Value>) -> Option<(&'a str, String)> {
    let known = tool.input.get("properties").and_then(Value::as_object);
    let odd = args.keys().find(|k| !known.is_some_and(|p| p.contains_key(*k)))?;
    Some((odd, nearest(odd, known)))
}

fn nearest(word: &str, known: Option<&Map<String, Value>>) -> String {
    let names: Vec<&str> = known.into_iter().flat_map(|p| p.keys().map(String::as_str)).collect();
    let near = names.iter().map(|n| (strsim::jaro_winkler(word, n), *n)).filter(|(score, _)| *score > 0.78);
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((_, name)) => format!("did you mean {name}?"),
        None if names.is_empty() => "it takes no arguments".into(),
        None => format!("its arguments are: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
