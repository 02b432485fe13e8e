//! Runbooks: a skill whose front matter has `steps:` is a fixed sequence of calls that needs no model. Here are its templates and its checks, pure.
//! A value is put in once and never looked at for placeholders again. Deliberately absent: making the calls, and any right: each is judged like any other.

use super::load::LoadProblem;
use super::prompt::PromptError;
use crate::model::prompt::{Prompt, Step};
use crate::redact;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Most steps of a runbook: what is longer is a program.
const MAX_STEPS: usize = 50;
/// Longest text argument, in characters.
const MAX_VALUE: usize = 4000;
/// Lines and bytes of a reply that a report shows.
const SHOWN_LINES: usize = 120;
const SHOWN_BYTES: usize = 12 * 1024;
/// Largest report, in bytes.
const MAX_REPORT: usize = 96 * 1024;

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Told {
    /// What later steps see: the reply, `{"error": ...}` of a failure, `null` of a step that was left out, a list for a step with `each`.
    pub value: Value,
    /// What the report shows, each part with the element it is about.
    pub texts: Vec<(Option<String>, String)>,
}

/// What placeholders can mean.
#[derive(Debug)]
pub struct Scope<'a> {
    /// The task's input.
    pub input: &'a Map<String, Value>,
    /// Steps so far.
    pub steps: &'a BTreeMap<String, Told>,
    /// The element at hand, in a step with `each`.
    pub item: Option<&'a Value>,
}

enum Part<'a> {
    Text(&'a str),
    Path(Vec<&'a str>),
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut out = vec![];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((path, tail)) = after.split_once("}}") else { break };
        if !before.is_empty() {
            out.push(Part::Text(before));
        }
        out.push(Part::Path(path.trim().split('.').collect()));
        rest = tail;
    }
    if !rest.is_empty() {
        out.push(Part::Text(rest));
    }
    out
}

/// The path, when the text is one placeholder and nothing else.
fn only(text: &str) -> Option<Vec<&str>> {
    match parts(text.trim()).as_slice() {
        [Part::Path(path)] => Some(path.clone()),
        _ => None,
    }
}

fn lookup(path: &[&str], scope: &Scope<'_>) -> Value {
    let (root, rest) = match path {
        ["steps", id, rest @ ..] => (scope.steps.get(*id).map(|t| &t.value), rest),
        ["item", rest @ ..] => (scope.item, rest),
        [argument, rest @ ..] => (scope.input.get(*argument), rest),
        [] => (None, path),
    };
    let into = |v: &'_ Value, key: &str| match v {
        Value::Array(items) => key.parse::<usize>().ok().and_then(|n| items.get(n).cloned()),
        Value::Object(map) => map.get(key).cloned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    let mut found = root.cloned().unwrap_or_default();
    for key in rest {
        found = into(&found, key).unwrap_or_default();
    }
    found
}

fn as_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A value with its placeholders put in. What stands for nothing is left out of objects: an argument that was not given stays away.
pub fn fill(value: &Value, scope: &Scope<'_>) -> Value {
    match value {
        Value::String(text) => match only(text) {
            Some(path) => lookup(&path, scope),
            None => parts(text)
                .into_iter()
                .map(|p| match p {
                    Part::Text(t) => t.to_owned(),
                    Part::Path(path) => as_text(&lookup(&path, scope)),
                })
                .collect::<String>()
                .into(),
        },
        Value::Array(items) => items.iter().map(|v| fill(v, scope)).collect(),
        Value::Object(map) => {
            let filled = map.iter().map(|(k, v)| (k.clone(), fill(v, scope)));
            Value::Object(filled.filter(|(k, v)| !v.is_null() || map[k].is_null()).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// A condition as written.
enum When<'a> {
    Is(Vec<&'a str>),
    Not(Vec<&'a str>),
    Equals(Vec<&'a str>, &'a str),
    Differs(Vec<&'a str>, &'a str),
}

/// The conditions of a text, all of which must hold; `None` when one is not understood.
fn conditions(text: &str) -> Option<Vec<When<'_>>> {
    let mut out = vec![];
    let mut rest = text;
    loop {
        // A text that is compared with may hold the word.
        let joint = rest.match_indices(" and ").find(|(at, and)| {
            let after = rest[at + and.len()..].trim_start();
            after.strip_prefix("not ").unwrap_or(after).trim_start().starts_with("{{")
        });
        let Some((at, and)) = joint else { break };
        out.push(condition(&rest[..at])?);
        rest = &rest[at + and.len()..];
    }
    out.push(condition(rest)?);
    Some(out)
}

fn condition(text: &str) -> Option<When<'_>> {
    let text = text.trim();
    if let Some((left, right)) = text.split_once("}} == ") {
        return only(&text[..left.len() + 2]).map(|p| When::Equals(p, right.trim()));
    }
    if let Some((left, right)) = text.split_once("}} != ") {
        return only(&text[..left.len() + 2]).map(|p| When::Differs(p, right.trim()));
    }
    match text.strip_prefix("not ") {
        Some(rest) => only(rest).map(When::Not),
        None => only(text).map(When::Is),
    }
}

fn holds_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Whether a step is made. An unreadable condition, which loading refuses, is not so.
pub fn wanted(step: &Step, scope: &Scope<'_>) -> bool {
    let Some(text) = &step.when else { return true };
    let right = |to: &str| only(to).map_or_else(|| to.to_owned(), |path| as_text(&lookup(&path, scope)));
    let holds = |when: When<'_>| match when {
        When::Is(path) => holds_something(&lookup(&path, scope)),
        When::Not(path) => !holds_something(&lookup(&path, scope)),
        When::Equals(path, to) => as_text(&lookup(&path, scope)) == right(to),
        When::Differs(path, to) => as_text(&lookup(&path, scope)) != right(to),
    };
    conditions(text).is_some_and(|all| all.into_iter().all(holds))
}

/// The elements of a step with `each`; one without an element for any other. Not a list: nothing.
pub fn elements(step: &Step, scope: &Scope<'_>) -> Vec<Option<Value>> {
    match step.each.as_deref().and_then(only) {
        None => vec![None],
        Some(path) => match lookup(&path, scope) {
            Value::Array(items) => items.into_iter().map(Some).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => vec![],
        },
    }
}

/// How an element is called in a report.
pub fn label(item: &Value) -> String {
    let named = ["name", "stack", "service", "id"].iter().find_map(|k| item[*k].as_str());
    redact::line(named.or(item.as_str()).unwrap_or(&item.to_string()), 80)
}

/// Whether a runbook gets the arguments it needs, and no others.
///
/// # Errors
/// `PromptError`.
pub fn arguments(skill: &Prompt, given: &Map<String, Value>) -> Result<(), PromptError> {
    for (name, value) in given {
        if !skill.arguments.iter().any(|a| a.name == *name) {
            let known = skill.arguments.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(PromptError::Unknown { prompt: skill.name.clone(), argument: name.chars().take(80).collect(), known });
        }
        if value.as_str().is_some_and(|v| v.chars().count() > MAX_VALUE) {
            return Err(PromptError::TooLong { argument: name.clone() });
        }
    }
    for a in skill.arguments.iter().filter(|a| a.required) {
        if !given.get(&a.name).is_some_and(holds_something) {
            return Err(PromptError::Missing { prompt: skill.name.clone(), argument: a.name.clone(), description: a.description.clone() });
        }
    }
    Ok(())
}

/// The report of a runbook. What steps answered stands in code blocks that its content cannot leave; inside of a line it is one cleaned line.
pub fn report(skill: &Prompt, scope: &Scope<'_>) -> String {
    let mut out = String::new();
    for line in skill.body.lines() {
        let block = only(line).filter(|p| matches!(p.as_slice(), ["steps", _])).and_then(|p| scope.steps.get(p[1]));
        match block {
            Some(told) => out.push_str(&blocks(told)),
            None => {
                for part in parts(line) {
                    match part {
                        Part::Text(text) => out.push_str(text),
                        Part::Path(path) => {
                            let found = lookup(&path, scope);
                            let text = if found.is_null() { "(none)".into() } else { as_text(&found) };
                            out.push_str(&redact::line(&text, 500));
                        }
                    }
                }
                out.push('\n');
            }
        }
    }
    redact::keep_start(&out, MAX_REPORT).to_owned()
}

fn blocks(told: &Told) -> String {
    let mut out = String::new();
    if told.texts.is_empty() {
        out.push_str("(left out)\n");
    }
    for (item, text) in &told.texts {
        if let Some(item) = item {
            out.push_str(&format!("\n**{}**\n", item.replace('*', "")));
        }
        let clean = redact::clean(text);
        let kept = redact::keep_start(&clean, SHOWN_BYTES);
        let (all, shown) = (clean.lines().count(), kept.lines().count().min(SHOWN_LINES));
        out.push('\n');
        kept.lines().take(SHOWN_LINES).for_each(|l| out.push_str(&format!("    {l}\n")));
        if shown < all {
            out.push_str(&format!("\n({} more lines)\n", all - shown));
        }
        out.push('\n');
    }
    out
}

/// Every placeholder in a value.
fn placeholders<'a>(value: &'a Value, found: &mut Vec<Vec<&'a str>>) {
    match value {
        Value::String(text) => found.extend(parts(text).into_iter().filter_map(|p| match p {
            Part::Path(path) => Some(path),
            Part::Text(_) => None,
        })),
        Value::Array(items) => items.iter().for_each(|v| placeholders(v, found)),
        Value::Object(map) => map.values().for_each(|v| placeholders(v, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether an argument is used by a step.
pub(super) fn uses(steps: &[Step], argument: &str) -> bool {
    let mut found = vec![];
    for step in steps {
        step.input.values().for_each(|v| placeholders(v, &mut found));
        let texts = step.when.iter().chain(&step.each);
        found.extend(texts.flat_map(|t| parts(t)).filter_map(|p| if let Part::Path(path) = p { Some(path) } else { None }));
    }
    found.iter().any(|p| p[0] == argument)
}

/// Whether `steps.ID...` names a step of the runbook.
pub(super) fn names_step(steps: &[Step], placeholder: &str) -> bool {
    let mut path = placeholder.split('.');
    path.next() == Some("steps") && path.next().is_some_and(|id| steps.iter().any(|s| s.id == id))
}

/// What is wrong with the steps, as far as the file alone tells.
pub(super) fn check(skill: &Prompt, file: &str) -> Vec<LoadProblem> {
    let mut problems = vec![];
    let mut problem = |problem: String, hint: String| problems.push(LoadProblem { file: file.to_owned(), line: None, problem, hint });
    if skill.steps.len() > MAX_STEPS {
        problem(format!("{} steps", skill.steps.len()), format!("a runbook has at most {MAX_STEPS} steps: split it"));
    }
    if let Some(name) = skill.arguments.iter().map(|a| a.name.as_str()).find(|n| matches!(*n, "steps" | "item")) {
        problem(format!("argument {name:?} has a name that placeholders use themselves"), "call it something else".into());
    }
    for (n, step) in skill.steps.iter().enumerate() {
        let (id, earlier) = (&step.id, &skill.steps[..n]);
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if id.is_empty() || id.len() > 40 || !id.bytes().all(valid) {
            problem(format!("step id {id:?} is not valid"), "lower-case letters, digits, '-' and '_', at most 40".into());
        }
        if earlier.iter().any(|s| s.id == *id) {
            problem(format!("step {id:?} is there twice"), "give each step a name of its own".into());
        }
        if step.when.as_deref().is_some_and(|w| conditions(w).is_none()) {
            let forms = "{{x}}, not {{x}}, {{x}} == text, {{x}} != text, {{x}} != {{y}}, and several of them joined by and";
            problem(format!("step {id:?}: when is not understood"), forms.into());
        }
        if step.each.as_deref().is_some_and(|e| only(e).is_none()) {
            problem(format!("step {id:?}: each is not one placeholder"), "e.g. each: \"{{steps.status.stacks}}\"".into());
        }
        let mut found = vec![];
        step.input.values().for_each(|v| placeholders(v, &mut found));
        let texts = step.when.iter().chain(&step.each);
        found.extend(texts.flat_map(|t| parts(t)).filter_map(|p| if let Part::Path(path) = p { Some(path) } else { None }));
        for path in found {
            let known = match path.as_slice() {
                ["steps", other, ..] => earlier.iter().any(|s| s.id == *other),
                ["item", ..] => step.each.is_some(),
                [argument, ..] => skill.arguments.iter().any(|a| a.name == *argument),
                [] => false,
            };
            if !known {
                let hint = "an argument, steps.ID of an earlier step, or item in a step with each".into();
                problem(format!("step {id:?}: placeholder {:?} stands for nothing", path.join(".")), hint);
            }
        }
    }
    problems
}

/// What is wrong with the steps as calls: `fields` gives the arguments of a tool, or what to do when there is no such tool.
pub fn check_tools(skill: &Prompt, file: &str, fields: &dyn Fn(&str) -> Result<Vec<String>, String>) -> Vec<LoadProblem> {
    let mut problems = vec![];
    for step in &skill.steps {
        let mut problem = |problem: String, hint: String| {
            let problem = format!("step {:?}: {problem}", step.id);
            problems.push(LoadProblem { file: file.to_owned(), line: None, problem, hint });
        };
        let known = match fields(&step.tool) {
            Ok(known) => known,
            Err(hint) => {
                problem(format!("there is no tool {:?}", step.tool), hint);
                continue;
            }
        };
        for key in step.input.keys().filter(|k| !known.contains(k)) {
            problem(format!("{} takes no {key:?}", step.tool), format!("it takes {}", known.join(", ")));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::prompt::parse_prompt;
    use serde_json::json;

    const TEXT: &str = r#"---
name: look
title: Look
description: Looks.
arguments:
  - {name: stack, description: A stack, required: true}
  - {name: deep, description: How far}
retry: {tries: 2, pause_s: 1}
steps:
  - {id: status, tool: status, input: {stack: "{{stack}}"}}
  - {id: logs, tool: logs, each: "{{steps.status.services}}", when: "{{item.state}} != ok", input: {stack: "{{stack}}", service: "{{item.name}}", tail: 5, grep: "{{deep}}"}, continue_on_error: true}
---
# {{stack}}: {{steps.status.verdict}}

{{steps.status}}
{{steps.logs}}
"#;

    fn skill() -> Prompt {
        parse_prompt("look.md", TEXT).unwrap_or_else(|p| panic!("{p:#?}"))
    }

    fn problems(from: &str, to: &str) -> String {
        assert!(TEXT.contains(from), "{from}");
        let problems = parse_prompt("look.md", &TEXT.replace(from, to)).expect_err("refused");
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_placeholder_keeps_its_type_alone_and_is_text_among_text_and_is_never_expanded_again() {
        let input = json!({"stack": "{{deep}}", "n": 3}).as_object().cloned().unwrap();
        let steps = [("a".to_owned(), Told { value: json!({"list": [1, {"x": "y"}]}), texts: vec![] })].into();
        let scope = Scope { input: &input, steps: &steps, item: Some(&json!("it")) };
        let template = json!({"n": "{{n}}", "text": "n={{n}} {{item}} {{steps.a.list.1.x}}", "list": "{{ steps.a.list }}", "none": "{{nothing}}", "null": null, "evil": "{{stack}}", "open": "{{n"});
        let filled = json!({"n": 3, "text": "n=3 it y", "list": [1, {"x": "y"}], "null": null, "evil": "{{deep}}", "open": "{{n"});
        assert_eq!(fill(&template, &scope), filled);
    }

    #[test]
    fn a_step_is_made_when_its_condition_holds_and_once_for_each_element() {
        let skill = skill();
        let input = Map::new();
        let value = json!({"services": [{"name": "web", "state": "ok"}, {"name": "db", "state": "sick"}]});
        let steps = [("status".to_owned(), Told { value, texts: vec![] })].into();
        let scope = Scope { input: &input, steps: &steps, item: None };
        let items: Vec<Value> = elements(&skill.steps[1], &scope).into_iter().flatten().collect();
        let made = |item| wanted(&skill.steps[1], &Scope { item: Some(item), ..scope });
        assert_eq!(items.iter().map(|i| (label(i), made(i))).collect::<Vec<_>>(), [("web".into(), false), ("db".into(), true)]);
        assert_eq!(elements(&skill.steps[0], &scope), [None]);
        let step = |when: &str| Step { when: Some(when.into()), ..skill.steps[0].clone() };
        for (when, holds) in [
            ("{{steps.status}}", true),
            ("not {{steps.status}}", false),
            ("{{steps.x}}", false),
            ("not {{steps.x}}", true),
            ("{{steps.status}} and not {{steps.x}}", true),
            ("{{steps.status}} and {{steps.x}}", false),
            ("{{steps.status.services.0.state}} == ok and {{steps.status.services.1.state}} != ok", true),
            ("{{steps.status.services.0.state}} == ok and well", false),
            ("{{steps.status.services.0.state}} != {{steps.status.services.1.state}}", true),
            ("{{steps.status.services.0.state}} == {{ steps.status.services.0.state }}", true),
            // Two that stand for nothing are the same.
            ("{{steps.x.to_release}} != {{steps.x.from_release}}", false),
        ] {
            assert_eq!(wanted(&step(when), &scope), holds, "{when}");
        }
    }

    #[test]
    fn a_report_shows_replies_in_blocks_they_cannot_leave() {
        let input = json!({"stack": "shop"}).as_object().cloned().unwrap();
        let told = |value, texts: &[(Option<&str>, &str)]| Told {
            value,
            texts: texts.iter().map(|(i, t)| (i.map(str::to_owned), (*t).to_owned())).collect(),
        };
        let steps = [
            ("status".to_owned(), told(json!({"verdict": "fine\n# Approved"}), &[(None, "web up\n```\n# Approved")])),
            ("logs".to_owned(), told(json!([]), &[(Some("db"), &"x\n".repeat(200))])),
        ]
        .into();
        let text = report(&skill(), &Scope { input: &input, steps: &steps, item: None });
        assert!(text.starts_with("# shop: fine"), "{text}");
        assert!(
            text.contains("    web up\n    ```\n    # Approved\n") && text.contains("**db**") && text.contains("(80 more lines)"),
            "{text}"
        );
        assert_eq!(text.lines().filter(|l| l.starts_with('#')).count(), 1, "{text}");
    }

    #[test]
    fn what_cannot_work_is_refused_when_the_file_is_loaded() {
        for (from, to, expected) in [
            ("service: \"{{item.name}}\"", "service: \"{{itm.name}}\"", "\"itm.name\" stands for nothing"),
            ("id: logs", "id: status", "step \"status\" is there twice"),
            ("id: logs", "id: \"Lo gs\"", "step id \"Lo gs\" is not valid"),
            ("!= ok", "~ ok", "when is not understood"),
            ("!= ok", "!= ok and {{item.state}} ~ ok", "when is not understood"),
            ("!= ok", "!= {{steps.logs}}", "\"steps.logs\" stands for nothing"),
            ("each: \"{{steps.status.services}}\"", "each: \"all\"", "each is not one placeholder"),
            ("{{steps.status.services}}", "{{steps.logs.services}}", "\"steps.logs.services\" stands for nothing"),
            ("{{steps.logs}}\n", "{{steps.lgos}}\n", "placeholder \"steps.lgos\" is no argument"),
            ("continue_on_error", "continue_on_eror", "continue_on_eror"),
            ("grep: \"{{deep}}\"", "grep: x", "argument \"deep\" is never used"),
            ("{name: deep", "{name: item", "placeholders use themselves"),
        ] {
            let text = problems(from, to);
            assert!(text.contains(expected), "{to}: {text}");
        }
        let fields = |tool: &str| if tool == "status" { Ok(vec!["stack".to_owned()]) } else { Err("did you mean x?".to_owned()) };
        let problems: Vec<(String, String)> = check_tools(&skill(), "look.md", &fields).into_iter().map(|p| (p.problem, p.hint)).collect();
        assert_eq!(problems, [("step \"logs\": there is no tool \"logs\"".to_owned(), "did you mean x?".to_owned())]);
        let fields = |_: &str| Ok(["stack", "service", "grep"].map(str::to_owned).to_vec());
        let problems: Vec<String> = check_tools(&skill(), "look.md", &fields).iter().map(|p| p.problem.clone()).collect();
        assert_eq!(problems, ["step \"logs\": logs takes no \"tail\""]);
    }

    #[test]
    fn arguments_are_given_or_refused() {
        let of = |v: Value| arguments(&skill(), v.as_object().unwrap()).map_err(|e| e.to_string());
        assert_eq!(of(json!({"stack": "shop", "deep": 2})), Ok(()));
        assert!(of(json!({})).unwrap_err().contains("needs the argument \"stack\""));
        assert!(of(json!({"stack": ""})).is_err());
        assert!(of(json!({"stack": "shop", "x": 1})).unwrap_err().contains("no argument \"x\""));
    }
}
